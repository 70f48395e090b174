"""Time against the number of elements, from 1e4 to 1e9: once the rows grow, once the classes grow.

The largest logits and what is computed from them need 12 GB. Implementations are therefore measured one after another,
and sizes beyond the available memory are left out and listed in the record.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

from xent.bench import Shape, machine
from xent.bench.peers import EAGER, IMPLEMENTATIONS, OURS, REUSED, Measure, make_inputs
from xent.bench.run import SCHEMA, Progress
from xent.bench.timing import Settings, interleaved, summary

FIXED = 1000
ELEMENTS = (10**4, 10**5, 10**6, 10**7, 10**8, 10**9)
MEASURED: tuple[tuple[str, Measure], ...] = ((OURS, "forward_backward"), (EAGER, "forward_backward"), (REUSED, "copy"))
SETTINGS = Settings(rounds=7, least_rounds=3, seconds_per_case=4.0)
TENSORS_AT_ONCE = 3
"""Logits, their gradient, and what `F.cross_entropy` saves for backward."""


def run_scaling(
    *,
    elements: tuple[int, ...] = ELEMENTS,
    settings: Settings = SETTINGS,
    threads: int = 2,
    command: str = "",
    progress: Progress = lambda description, done, total: None,
) -> dict[str, Any]:
    """Measure forward + backward of ours and of `F.cross_entropy`, and a copy, on float32 logits of these sizes."""
    machine.require_torch()
    record = {"record": "xent bench scaling", "schema": SCHEMA, "device": "cpu", **machine.describe(command, threads)}
    start, others = time.perf_counter(), machine.OtherProcesses()
    points: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    with machine.limited_threads(threads):
        for done, (grows, shape) in enumerate(_shapes(elements)):
            progress("scaling", done, 2 * len(elements))
            if reason := _too_large(shape):
                left_out.append({"grows": grows, "elements": shape.elements, "reason": reason})
            else:
                points += [{"grows": grows, **point} for point in _points(shape, settings)]
    progress("scaling", 2 * len(elements), 2 * len(elements))
    seconds = round(time.perf_counter() - start, 1)
    return {
        **record,
        "seconds": seconds,
        "settings": dataclasses.asdict(settings),
        "share_of_others": others.share(),
        "dtype": "float32",
        "points": points,
        "left_out": left_out,
    }


def _shapes(elements: tuple[int, ...]) -> Iterator[tuple[str, Shape]]:
    for count in elements:
        yield "rows", Shape("rows", count // FIXED, FIXED)
    for count in elements:
        yield "classes", Shape("classes", FIXED, count // FIXED)


def _points(shape: Shape, settings: Settings) -> Iterator[dict[str, Any]]:
    inputs = make_inputs(shape, "float32")
    for name, measure in MEASURED:
        (implementation,) = (each for each in IMPLEMENTATIONS if each.name == name)
        call = implementation.prepare(inputs)[measure]
        seconds = interleaved({name: call}, settings)[name]
        del call
        yield {
            "rows": shape.rows,
            "classes": shape.classes,
            "elements": shape.elements,
            "contestant": name,
            "measure": measure,
            "rounds": len(seconds),
            **summary(seconds),
        }


def _too_large(shape: Shape) -> str | None:
    needed, available = TENSORS_AT_ONCE * 4 * shape.elements, machine.memory_bytes("MemAvailable")
    if available is None or needed < 0.9 * available:
        return None
    return f"needs {needed / 1e9:.0f} GB of memory, and {available / 1e9:.0f} GB are free"
