"""Errors of the linear loss and its gradients in bfloat16, by the number of chunks that the rows are divided into.

An error is |computed - exact| / |exact| in the Euclidean norm, against float64 from the same rounded arguments.
Beside ours: the unfused loss, which has no chunks, and torch's own chunked loss with the same number of chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.internals import rows_in_a_chunk
from xent.torch import linear_cross_entropy

ROWS, FEATURES, CLASSES = 1024, 128, 1009
CHUNKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
QUANTITIES = ("loss", "input", "weight")
OURS, UNFUSED, CHUNKED = "xent.torch", "F.cross_entropy(F.linear)", "F.linear_cross_entropy, chunked"

Loss = Callable[..., Tensor]


def measure(
    progress: Callable[[str, int, int], None] = lambda description, done, total: None,
    dtype: torch.dtype = torch.bfloat16,
) -> list[dict[str, Any]]:
    """The errors of each implementation with each number of chunks, in a second or two."""
    x, w, y = make_inputs(dtype)
    exact = loss_and_gradients(unfused, x.double(), w.double(), y)
    of_unfused = relative_errors(loss_and_gradients(unfused, x, w, y), exact)
    points = []
    for done, chunks in enumerate(CHUNKS):
        progress("error by chunks", done, len(CHUNKS))
        ours = relative_errors(ours_in_chunks(x, w, y, ROWS // chunks), exact)
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=ROWS // chunks)
        chunked = loss_and_gradients(partial(F.linear_cross_entropy, options=options), x, w, y)
        for name, errors in ((OURS, ours), (UNFUSED, of_unfused), (CHUNKED, relative_errors(chunked, exact))):
            points.append({"contestant": name, "chunks": chunks, **errors})
    return points


def ours_in_chunks(x: Tensor, w: Tensor, y: Tensor, chunk_rows: int) -> tuple[Tensor, ...]:
    """Our mean loss and its gradients by input and weight, in chunks of so many rows."""
    with rows_in_a_chunk(chunk_rows):
        return loss_and_gradients(linear_cross_entropy, x, w, y)


def unfused(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """The loss of logits that are held as a whole."""
    return F.cross_entropy(F.linear(x, w), y)


def make_inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and labels."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(size, FEATURES, generator=generator) for size in (ROWS, CLASSES))
    return x.to(dtype), w.mul_(FEATURES**-0.5).to(dtype), torch.randint(CLASSES, (ROWS,), generator=generator)


def loss_and_gradients(loss: Loss, x: Tensor, w: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """The loss and its gradients by input and weight."""
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    value = loss(x, w, y)
    return (value.detach(), *torch.autograd.grad(value, (x, w)))


def relative_errors(computed: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> dict[str, float]:
    """The error of each quantity."""
    pairs = zip(QUANTITIES, computed, exact, strict=True)
    return {name: float(f"{((c.double() - e).norm() / e.norm()).item():.4g}") for name, c, e in pairs}
