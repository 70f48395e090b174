"""Errors of the linear loss and its gradients in bfloat16, by the number of chunks that the rows are visited in.

An error is relative, |found - exact| / |exact| in the Euclidean norm, against float64 from the same rounded arguments.
Beside ours: the unfused loss, which has no chunks, and torch's own chunked loss with the same number of chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xent.linear.calls import gradients
from xent.linear.driver import Wanted
from xent.linear.host import Host, Method, sizes_of
from xent.linear.plan import plan_of_rows
from xent.linear.products import products_for
from xent.objective import Objective
from xent.torch.linear_kernels import Call, problem_of, tensors_of
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
        ours = _relative(ours_in_chunks(x, w, y, ROWS // chunks), truth)
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=ROWS // chunks)
        theirs = _errors(partial(F.linear_cross_entropy, options=options), (x, w, y), truth)
        for name, errors in ((OURS, ours), (UNFUSED, unfused), (CHUNKED, theirs)):
            points.append({"contestant": name, "chunks": chunks, **errors})
    return points


def ours_in_chunks(x: Tensor, w: Tensor, y: Tensor, chunk_rows: int) -> tuple[Tensor, ...]:
    """Our mean loss and its gradients by input and weight, cut into chunks of so many rows."""
    rows = LinearRows(x, w, None, y, None)
    problem = problem_of(Call("bench", Objective(), 1, x.dtype), rows)
    threads = torch.get_num_threads()
    method = Method.of(problem, products_for(problem.input.dtype, 6.0 * x.numel() * len(w), threads))
    plan = plan_of_rows(sizes_of(problem, method, with_weight=True, with_bias=False), chunk_rows)
    host = Host(problem, method, plan, threads)
    host.row_scale = 1.0 / len(x)
    found = gradients(host, Wanted(bias=False))
    mean = host.losses.sum(dtype=np.float64) / len(x)
    dinput, dweight, _ = tensors_of(found, rows)
    assert dinput is not None
    assert dweight is not None
    return torch.tensor(mean, dtype=torch.float32), dinput, dweight


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
    return _relative(_found(loss, *given), truth)


def _relative(found: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> dict[str, float]:
    pairs = zip(QUANTITIES, found, truth, strict=True)
    return {name: float(f"{((ours.double() - t).norm() / t.norm()).item():.4g}") for name, ours, t in pairs}
