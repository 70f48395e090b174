"""Who shares the rows of a call: nobody, the plain threads of a pool, or the threads of torch's OpenMP runtime.

torch's threads are there in each case, as in a program that trains: they wait for the next operation of torch.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from xent.benchmark import machine
from xent.benchmark.run import SCHEMA, Progress
from xent.benchmark.timing import Settings, Spread, interleaved

CLASSES = 1000
ROWS = (128, 300, 1000, 4096, 30_000)
ALONE, POOL, OPENMP = WAYS = ("one thread", "pool", "OpenMP")
SETTINGS = Settings(rounds=11, least_rounds=5, seconds_per_case=6.0)


def run_threads(
    *,
    rows: tuple[int, ...] = ROWS,
    settings: Settings = SETTINGS,
    threads: int = 2,
    command: str = "",
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Measure the forward of float32 logits with these numbers of rows, shared in each way."""
    machine.require_torch()
    record = {"record": "xent bench threads", "schema": SCHEMA, "device": "cpu", **machine.describe(command, threads)}
    start, others, points = time.perf_counter(), machine.Others(), []
    with machine.limited(threads):
        for done, count in enumerate(rows):
            progress("threads", done, len(rows))
            for way, seconds in interleaved(_calls(count, threads), settings).items():
                spread = {key: float(f"{value:.5g}") for key, value in dataclasses.asdict(Spread.of(seconds)).items()}
                points.append({"rows": count, "classes": CLASSES, "way": way, "rounds": len(seconds), **spread})
    progress("threads", len(rows), len(rows))
    return {
        **record,
        "seconds": round(time.perf_counter() - start, 1),
        "settings": dataclasses.asdict(settings),
        "share_of_others": others.share(),
        "points": points,
    }


def _calls(rows: int, threads: int) -> dict[str, Callable[[], Any]]:
    import torch

    from xent.backends.cpu.threads import without_openmp
    from xent.torch import cross_entropy

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, CLASSES, generator=generator)
    labels = torch.randint(0, CLASSES, (rows,), generator=generator)

    def shared() -> Any:
        return cross_entropy(logits, labels)

    def alone() -> Any:
        torch.set_num_threads(1)
        try:
            return shared()
        finally:
            torch.set_num_threads(threads)

    def by_pool() -> Any:
        with without_openmp():
            return shared()

    return {ALONE: alone, POOL: by_pool, OPENMP: shared}
