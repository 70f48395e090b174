"""Ways of executing the loss beside torch's: second derivatives, gradients per sample, soft targets, a scaled loss.

python benchmarks/modes.py --rounds 100 --out benchmarks/results/cpu/modes.json

Calls alternate. A ratio is that of the medians, and beside it that of the least times, which a busy machine disturbs
less; below 1 ours is faster. A scaled loss is compared with our own loss without the factor.
"""

from __future__ import annotations

import functools
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer

import xent.torch

ROWS, CLASSES = 512, 1000
LARGE = (1024, 50257)


def compared(first: Callable[[], object], second: Callable[[], object], rounds: int) -> dict[str, float]:
    """Milliseconds of both, and their ratios."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 3):
        for call, found in zip((first, second), times, strict=True):
            start = time.perf_counter()
            call()
            found.append(1e3 * (time.perf_counter() - start))
    ours, theirs = (found[3:] for found in times)
    return {
        "ours": statistics.median(ours),
        "theirs": statistics.median(theirs),
        "ratio": statistics.median(ours) / statistics.median(theirs),
        "ratio of the least": min(ours) / min(theirs),
    }


def measured(rounds: int) -> dict[str, dict[str, float]]:
    """All comparisons."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, CLASSES, generator=generator).requires_grad_()
    p = torch.rand(ROWS, CLASSES, generator=generator).softmax(1).requires_grad_()
    y = torch.randint(0, CLASSES, (ROWS,), generator=generator)

    def penalty(loss: Any) -> None:
        (gradient,) = torch.autograd.grad(loss(x, y), x, create_graph=True)
        torch.autograd.grad(gradient.pow(2).sum(), x)

    def per_sample(loss: Any) -> None:
        torch.func.vmap(torch.func.grad(lambda row, label: loss(row[None], label[None])))(x.detach(), y)

    def soft(loss: Any) -> None:
        torch.autograd.grad(loss(x, p), (x, p))

    found = {}
    for name, call in {"gradient penalty": penalty, "gradients per sample": per_sample, "soft target": soft}.items():
        ours, theirs = (functools.partial(call, loss) for loss in (xent.torch.cross_entropy, F.cross_entropy))
        found[name] = compared(ours, theirs, rounds)
    large = torch.randn(LARGE, generator=generator).requires_grad_()
    labels = torch.randint(0, LARGE[1], LARGE[:1], generator=generator)

    def step(factor: Callable[[], float]) -> None:
        torch.autograd.grad(xent.torch.cross_entropy(large, labels) * factor(), large)

    few = max(rounds // 10, 5)
    for _ in range(3):
        step(lambda: 1 / 3)
    third = statistics.median(_times(lambda: step(lambda: 1 / 3), few))
    for _ in range(3):
        step(lambda: 1.0)
    plain = statistics.median(_times(lambda: step(lambda: 1.0), few))
    varying = statistics.median(_times(lambda: step(random.random), few))
    found["loss / 3"] = {"ours": third, "theirs": plain, "ratio": third / plain}
    found["another factor each time"] = {"ours": varying, "theirs": plain, "ratio": varying / plain}
    return found


def _times(call: Callable[[], object], rounds: int) -> list[float]:
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        found.append(1e3 * (time.perf_counter() - start))
    return found


def main(rounds: int = 100, threads: int = 2, out: Annotated[Path | None, typer.Option()] = None) -> None:
    """Measure, print, and write the record."""
    torch.set_num_threads(threads)
    found = measured(rounds)
    for name, numbers in found.items():
        print(f"{name:28}", "  ".join(f"{key} {value:.3g}" for key, value in numbers.items()))
    if out is not None:
        record = {"record": "modes", "threads": threads, "torch": torch.__version__, "milliseconds": found}
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
