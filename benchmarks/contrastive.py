"""The contrastive loss of 8192 pairs of 512 numbers, both directions, beside torch's formula: time and peak memory.

    python -m benchmarks.contrastive NAME THREADS     the peak memory of one implementation, as JSON

Forward and backward by both batches and the logarithm of the scale, float32. Memory is that beside the arguments.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from benchmarks.bars import verdict
from benchmarks.processes import answer_of, peak_of
from xent.bench import machine
from xent.bench.run import SCHEMA, Progress
from xent.bench.timing import Settings, interleaved, ratios, summary

if TYPE_CHECKING:
    from torch import Tensor

PAIRS, FEATURES = 8192, 512
OURS, PEER, PRODUCT = "contrastive_loss", "F.cross_entropy(z) + F.cross_entropy(z.T)", "one product"
SPEED, MEMORY = 1.5, 0.25
"""At least so many times as fast as torch's formula, in at most this part of its memory."""


def run_contrastive(
    *,
    threads: int = 2,
    measure_memory: bool = True,
    command: str = "",
    progress: Progress = lambda description, done, total: None,
) -> dict[str, Any]:
    """Measure and return the record."""
    machine.require_torch()
    settings = Settings(rounds=11, least_rounds=5, seconds_per_case=90.0, minimum_s=0.0)
    record = {"record": "xent bench contrastive", "schema": SCHEMA, "device": "cpu"}
    record |= machine.describe(command, threads)
    start, others = time.perf_counter(), machine.OtherProcesses()
    with machine.limited_threads(threads):
        seconds = interleaved(calls_of(PAIRS), settings, after_round=lambda n: progress("pairs", n, settings.rounds))
    speed = summary(ratios(seconds[PEER], seconds[OURS]))
    bars = [{"measure": "times as fast", "kind": "at least", "bound": SPEED, **speed}]
    bars[0] |= verdict(speed["median"], SPEED, at_most=False)
    case: dict[str, Any] = {
        "size": [PAIRS, FEATURES],
        "dtype": "float32",
        "share_of_others": others.share(),
        "seconds": {name: summary(times) for name, times in seconds.items()},
    }
    if measure_memory:
        found = {name: answer_of("contrastive", name, str(threads), description=name)["bytes"] for name in (OURS, PEER)}
        part = found[OURS] / found[PEER]
        bars.append({"measure": "part of its memory", "kind": "at most", "bound": MEMORY, "median": round(part, 3)})
        bars[-1] |= verdict(part, MEMORY, at_most=True)
        case["memory"] = found
    case["bars"] = bars
    return {**record, "seconds": round(time.perf_counter() - start, 1), "settings": asdict(settings), "cases": [case]}


def arguments_of(pairs: int) -> tuple[Tensor, ...]:
    """Embeddings of length 1, of which pairs are alike, and the logarithm of a scale."""
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(0)
    a = torch.randn(pairs, FEATURES, generator=generator)
    b = F.normalize(a + torch.randn(pairs, FEATURES, generator=generator), dim=1)
    return F.normalize(a, dim=1).requires_grad_(), b.requires_grad_(), torch.tensor(2.6593).requires_grad_()


def calls_of(pairs: int) -> dict[str, Callable[[], Any]]:
    """Loss and gradients, by implementation; and one product, of which a formula needs three."""
    import torch
    import torch.nn.functional as F

    from xent.torch import contrastive_loss

    a, b, log_scale = arguments_of(pairs)
    labels = torch.arange(pairs)

    def by_torch() -> Any:
        z = log_scale.exp() * a @ b.T
        return torch.autograd.grad((F.cross_entropy(z, labels) + F.cross_entropy(z.T, labels)) / 2, (a, b, log_scale))

    def ours() -> Any:
        return torch.autograd.grad(contrastive_loss(a, b, logit_scale=log_scale.exp()), (a, b, log_scale))

    def product() -> Any:
        with torch.no_grad():
            return a @ b.T

    return {OURS: ours, PEER: by_torch, PRODUCT: product}


def _measure(name: str, threads: int) -> dict[str, int]:
    with machine.limited_threads(threads):
        calls_of(256)[name]()
        call = calls_of(PAIRS)[name]
        return {"bytes": peak_of(call)}


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], int(sys.argv[2]))))
