"""The other losses on a GPU beside torch's formulas: forward and backward, time and peak memory beside the inputs.

Binary loss, KL divergence of logits, linear KL divergence, a sparse target of a linear layer, contrastive loss. With
each comes its error against the peer's float64 value on the first rows, so that nothing fast is wrong.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.gpu_losses import device_and_name, device_clock
from xent.bench import machine
from xent.bench.run import SCHEMA, Progress
from xent.bench.timing import Settings, interleaved, ratios, summary

if TYPE_CHECKING:
    import torch
    from torch import Tensor

OURS, PEER = "xent.torch", "torch"
ROWS = 64
"""Rows whose loss is compared."""


@dataclass(frozen=True)
class Work:
    """A loss: inputs of some rows, those that want a gradient first, and the two implementations of its mean."""

    name: str
    size: tuple[int, ...]
    dtype: str
    inputs: Callable[[int, Any], list[Tensor]]
    learns: int
    ours: Callable[..., Tensor]
    peer: Callable[..., Tensor]


def works() -> list[Work]:
    """What is measured."""
    import torch
    import torch.nn.functional as F

    from xent.torch import (
        SparseTarget,
        binary_cross_entropy_with_logits,
        contrastive_loss,
        kl_divergence,
        linear_cross_entropy,
        linear_kl_divergence,
    )

    def kl_by_torch(s: Tensor, t: Tensor) -> Tensor:
        log_q, log_p = (F.log_softmax(x if x.dtype == torch.float64 else x.float(), 1) for x in (s, t))
        return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")

    def by_torch(a: Tensor, b: Tensor) -> Tensor:
        z, labels = 14.0 * a @ b.T, torch.arange(len(a), device=a.device)
        return (F.cross_entropy(z, labels) + F.cross_entropy(z.T, labels)) / 2

    def dense(x: Tensor, w: Tensor, ids: Tensor, p: Tensor) -> Tensor:
        z = F.linear(x, w)
        return F.cross_entropy(z, torch.zeros_like(z).scatter(1, ids, p.to(z.dtype)))

    def listed(x: Tensor, w: Tensor, ids: Tensor, p: Tensor) -> Tensor:
        return linear_cross_entropy(x, w, SparseTarget(ids, p))

    def two(rows: int, classes: int) -> Callable[[int, Any], list[Tensor]]:
        return lambda n, new: [new(n or rows, classes) * 2, new(n or rows, classes) * 2]

    def hot(rows: int, classes: int) -> Callable[[int, Any], list[Tensor]]:
        return lambda n, new: [new(n or rows, classes), (new(n or rows, classes) > 1.3).to(new(1).dtype)]

    def layers(n: int, new: Any) -> list[Tensor]:
        rows = n or 8192
        return [new(rows, 2048), new(128256, 2048) / 22, new(rows, 2048), new(128256, 2048) / 22]

    def lists(n: int, new: Any) -> list[Tensor]:
        rows = n or 8192
        ids = new(rows, 128256).argsort(1)[:, :64]
        return [new(rows, 2048), new(128256, 2048) / 22, ids, new(rows, 64).float().softmax(1)]

    def embeddings(n: int, new: Any) -> list[Tensor]:
        return [F.normalize(new(n or 16384, 1024), dim=1) for _ in range(2)]

    found = []
    for dtype in ("bfloat16", "float32"):
        bce = (binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits)
        found += [
            Work("binary", (65536, 80), dtype, hot(65536, 80), 1, *bce),
            Work("binary", (65536, 4096), dtype, hot(65536, 4096), 1, *bce),
            Work("kl_divergence", (8192, 128256), dtype, two(8192, 128256), 1, kl_divergence, kl_by_torch),
        ]

    def linear_kl(x: Tensor, w: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return linear_kl_divergence(x, w, y, v)

    def linear_kl_by_torch(x: Tensor, w: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return kl_by_torch(F.linear(x, w), F.linear(y, v))

    kl = (linear_kl, linear_kl_by_torch)
    found += [
        Work("linear_kl_divergence", (8192, 128256, 2048), "bfloat16", layers, 2, *kl),
        Work("sparse target, k = 64", (8192, 128256, 2048), "bfloat16", lists, 2, listed, dense),
    ]
    ours = (lambda a, b: contrastive_loss(a, b, logit_scale=14.0), by_torch)
    found += [Work("contrastive_loss", (16384, 1024), dtype, embeddings, 2, *ours) for dtype in ("bfloat16", "float32")]
    return found


def run_other(
    *,
    settings: Settings | None = None,
    command: str = "",
    progress: Progress = lambda description, done, total: None,
) -> dict[str, Any]:
    """Measure and return the record."""
    device, about = device_and_name()
    settings = settings or Settings(minimum_s=0.05)
    start = time.perf_counter()
    cases: list[dict[str, Any]] = []
    for work in works():
        progress(work.name, len(cases), 10)
        cases.append(_case(work, device, settings))
    record = {"record": "xent bench other", "schema": SCHEMA, "device": about, **machine.describe(command, 1)}
    elapsed = round(time.perf_counter() - start, 1)
    return {**record, "seconds": elapsed, "settings": dataclasses.asdict(settings), "cases": cases}


def _case(work: Work, device: torch.device, settings: Settings) -> dict[str, Any]:
    import torch

    generator = torch.Generator(device).manual_seed(0)
    dtype = getattr(torch, work.dtype)

    def new(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=dtype)

    inputs = work.inputs(0, new)
    for tensor in inputs[: work.learns]:
        tensor.requires_grad_()

    def step(loss: Callable[..., Tensor]) -> Any:
        return torch.autograd.grad(loss(*inputs), inputs[: work.learns])

    calls = {OURS: lambda: step(work.ours), PEER: lambda: step(work.peer)}
    memory = {name: _peak(call) for name, call in calls.items()}
    seconds = interleaved(calls, settings, device_clock(device))
    few = work.inputs(ROWS, new)
    wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in few]
    exact = float(work.peer(*wide))
    return {
        "name": work.name,
        "size": list(work.size),
        "dtype": work.dtype,
        "seconds": {name: summary(times) for name, times in seconds.items()},
        "times_as_fast": summary(ratios(seconds[PEER], seconds[OURS])),
        "memory": memory,
        "loss": exact,
        "loss_error": abs(float(work.ours(*few)) - exact),
    }


def _peak(call: Callable[[], Any]) -> int:
    """Bytes beside the inputs at the peak of a call, the gradients included."""
    import torch

    call()  # compiles
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before
