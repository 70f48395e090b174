"""The rows of a call on one thread, on the plain threads of a pool, and on the threads of torch's OpenMP runtime.

torch's threads exist in each case, as in a program that trains, and wait for its next operation.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from benchmarks.internals import without_openmp
from xent.bench import machine
from xent.bench.run import SCHEMA, Progress
from xent.bench.timing import Settings, interleaved, summary

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
    progress: Progress = lambda description, done, total: None,
) -> dict[str, Any]:
    """Measure the forward of float32 logits with these numbers of rows, on each kind of threads."""
    machine.require_torch()
    record = {"record": "xent bench threads", "schema": SCHEMA, "device": "cpu", **machine.describe(command, threads)}
    start, others, points = time.perf_counter(), machine.OtherProcesses(), []
    with machine.limited_threads(threads):
        for done, count in enumerate(rows):
            progress("threads", done, len(rows))
            for way, seconds in interleaved(_calls(count, threads), settings).items():
                point = {"rows": count, "classes": CLASSES, "way": way, "rounds": len(seconds)}
                points.append({**point, **summary(seconds)})
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

    from xent.torch import cross_entropy

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, CLASSES, generator=generator)
    labels = torch.randint(0, CLASSES, (rows,), generator=generator)

    def on_openmp() -> Any:
        return cross_entropy(logits, labels)

    def alone() -> Any:
        torch.set_num_threads(1)
        try:
            return on_openmp()
        finally:
            torch.set_num_threads(threads)

    def on_pool() -> Any:
        with without_openmp():
            return on_openmp()

    return {ALONE: alone, POOL: on_pool, OPENMP: on_openmp}
