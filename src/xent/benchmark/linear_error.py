"""Errors of the linear loss and its gradients in bfloat16, by the number of chunks that the rows are visited in.

An error is relative, |found - exact| / |exact| in the Euclidean norm, against float64 from the same rounded arguments.
Beside ours: the unfused loss, which has no chunks, and torch's own chunked loss with the same number of chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xent.linear.calls import plan_of
from xent.linear.driver import Wanted
from xent.linear.host import Method
from xent.linear.products import products_for
from xent.objective import Objective
from xent.torch import linear_cross_entropy
from xent.torch.linear_kernels import Call, problem_of
from xent.torch.rows import LinearRows

ROWS, FEATURES, CLASSES = 1024, 128, 1009
CHUNKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
QUANTITIES = ("loss", "input", "weight")
OURS, UNFUSED, CHUNKED = "xent.torch", "F.cross_entropy(F.linear)", "F.linear_cross_entropy, chunked"

Loss = Callable[..., Tensor]


def measured(
    progress: Callable[[str, int, int], None] = lambda what, done, total: None, dtype: torch.dtype = torch.bfloat16
) -> list[dict[str, Any]]:
    """The errors of each contestant with each number of chunks; a second or two."""
    x, w, y = _inputs(dtype)
    truth = _found(_unfused, x.double(), w.double(), y)
    unfused = _errors(_unfused, (x, w, y), truth)
    points = []
    for done, chunks in enumerate(CHUNKS):
        progress("error by chunks", done, len(CHUNKS))
        workspace = workspace_for(x, w, y, chunks)
        ours = _errors(partial(linear_cross_entropy, workspace=workspace), (x, w, y), truth)
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=ROWS // chunks)
        theirs = _errors(partial(F.linear_cross_entropy, options=options), (x, w, y), truth)
        for name, errors in ((OURS, ours), (UNFUSED, unfused), (CHUNKED, theirs)):
            points.append({"contestant": name, "chunks": chunks, **errors})
    return points


def workspace_for(x: Tensor, w: Tensor, y: Tensor, chunks: int) -> int:
    """The least workspace with which our loss visits the rows in at most so many chunks."""
    problem = problem_of(Call("bench", Objective(), 1, x.dtype), LinearRows(x, w, None, y, None))
    operations = 6.0 * x.shape[0] * w.shape[0] * w.shape[1]
    method = Method.of(problem, products_for(problem.input.dtype, operations, torch.get_num_threads()))

    def fits(workspace: int) -> bool:
        try:
            return len(plan_of("bench", problem, method, Wanted(bias=False), workspace).chunks) <= chunks
        except ValueError:
            return False

    low, high = 0, 1 << 40
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _unfused(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, w), y)


def _inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(size, FEATURES, generator=generator) for size in (ROWS, CLASSES))
    return x.to(dtype), w.mul_(FEATURES**-0.5).to(dtype), torch.randint(CLASSES, (ROWS,), generator=generator)


def _found(loss: Loss, x: Tensor, w: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    value = loss(x, w, y)
    return (value.detach(), *torch.autograd.grad(value, (x, w)))


def _errors(loss: Loss, given: tuple[Tensor, Tensor, Tensor], truth: tuple[Tensor, ...]) -> dict[str, float]:
    pairs = zip(QUANTITIES, _found(loss, *given), truth, strict=True)
    return {name: float(f"{((ours.double() - t).norm() / t.norm()).item():.4g}") for name, ours, t in pairs}
