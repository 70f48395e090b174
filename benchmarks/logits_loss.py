"""The losses of logits: `xent.bench` with peak memory and the bars that the kernels have to reach."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks import avx2, logits_memory
from benchmarks.bars import AVX2_BARS, BARS, judge
from xent.bench import Shape
from xent.bench.machine import HUGE_PAGES
from xent.bench.peers import IMPLEMENTATIONS, Implementation
from xent.bench.run import Progress
from xent.bench.run import run as measure
from xent.bench.timing import Settings
from xent.errors import ArgumentError, message

MEMORY_SHAPES = ("gpt2", "cifar", "segmentation")
"""The shapes whose peak memory is measured, which takes a process for each implementation."""


def run(
    shapes: Iterable[str | Shape] = (),
    *,
    quick: bool = False,
    settings: Settings | None = None,
    threads: int = 2,
    measure_memory: bool = True,
    huge_pages: bool = False,
    command: str = "",
    progress: Progress = lambda description, done, total: None,
    implementations: Sequence[Implementation] = IMPLEMENTATIONS,
) -> dict[str, Any]:
    """Measure as `xent.bench.run` does, and return its record with memory and bars.

    *Parameters*: those of `xent.bench.run`, and `measure_memory`; with `huge_pages` torch asks the system for huge
    pages, which is possible only before it is imported.
    """
    if huge_pages:
        _ask_for_huge_pages()
    start = time.perf_counter()
    record = measure(
        shapes,
        quick=quick,
        settings=settings,
        threads=threads,
        command=command,
        progress=progress,
        implementations=implementations,
    )
    for case in record["cases"]:
        if measure_memory and not quick and case["shape"] in MEMORY_SHAPES:
            _add_memory(case, threads, progress)
        case["bars"] = judge(case, AVX2_BARS if avx2.is_asked_for() else BARS)
    if avx2.is_asked_for():
        record["machine"]["code_for"] = avx2.AVX2
    return {**record, "seconds": round(time.perf_counter() - start, 1)}


def _ask_for_huge_pages() -> None:
    if os.environ.get(HUGE_PAGES) == "1":
        return
    if "torch" in sys.modules:
        remedy = f"Set {HUGE_PAGES}=1 in the environment of the process"
        problem = "torch is imported already and has read its settings"
        raise ArgumentError(message("bench", "huge_pages", problem, remedy))
    os.environ[HUGE_PAGES] = "1"


def _add_memory(case: dict[str, Any], threads: int, progress: Progress) -> None:
    rows, classes, *positions = case["size"]
    shape, dtype = Shape(case["shape"], rows, classes, tuple(positions)), case["dtype"]
    measured = [entry for entry in case["contestants"] if entry["role"] != "limit" and not entry["not_available"]]
    description = f"{shape.name} {dtype}, memory"
    for done, entry in enumerate(measured):
        progress(description, done, len(measured))
        entry["memory"] = logits_memory.peak_bytes(entry["name"], shape, dtype, threads)
    progress(description, len(measured), len(measured))
