"""What other targets and options of the linear loss cost: forward and backward, beside labels without options.

A sparse target of 64 classes, weights of rows and the focal loss, 2048 x 768 x 50257 in float32, interleaved.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from benchmarks.bars import verdict
from benchmarks.linear_loss import SHAPES, LinearShape, make_inputs
from xent.bench import machine
from xent.bench.run import SCHEMA, Progress
from xent.bench.timing import Settings, interleaved, ratios, summary

LISTED = 64
PLAIN = "labels"
BARS = {"sparse target, k = 64": 1.05, "sample_weight": 1.02, "focal_gamma": None}
"""At most so many times as long as labels; None: nothing was required."""


def run_options(
    *,
    quick: bool = False,
    threads: int = 2,
    command: str = "",
    progress: Progress = lambda description, done, total: None,
) -> dict[str, Any]:
    """Measure and return the record."""
    machine.require_torch()
    shape = SHAPES["quick" if quick else "gpt2"]
    settings = Settings(rounds=11, least_rounds=5, seconds_per_case=120.0, minimum_s=0.0)
    record = {"record": "xent bench options", "schema": SCHEMA, "device": "cpu", **machine.describe(command, threads)}
    start, others = time.perf_counter(), machine.OtherProcesses()
    with machine.limited_threads(threads):
        seconds = interleaved(calls_of(shape), settings, after_round=lambda n: progress("options", n, settings.rounds))
    bars = []
    for name, bound in BARS.items():
        ratio = summary(ratios(seconds[name], seconds[PLAIN]))
        bars.append({"measure": name, "kind": "at most", "bound": bound, **ratio})
        if bound is not None:
            bars[-1] |= verdict(ratio["median"], bound, at_most=True)
    case = {
        "size": list(shape.size),
        "dtype": "float32",
        "share_of_others": others.share(),
        "seconds": {name: summary(times) for name, times in seconds.items()},
        "bars": bars,
    }
    return {**record, "seconds": round(time.perf_counter() - start, 1), "settings": asdict(settings), "cases": [case]}


def calls_of(shape: LinearShape) -> dict[str, Callable[[], Any]]:
    """Loss and gradients by input and weight, by option."""
    import torch

    from xent.torch import SparseTarget, linear_cross_entropy

    x, w, y = make_inputs(shape, "float32")
    generator = torch.Generator().manual_seed(0)
    others = torch.stack([torch.randperm(shape.classes, generator=generator)[:LISTED] for _ in range(shape.rows)])
    weights = torch.rand(shape.rows, generator=generator) + 0.5
    shares = torch.rand(shape.rows, LISTED, generator=generator)
    target = SparseTarget(others, shares / shares.sum(1, keepdim=True))
    given: dict[str, dict[str, Any]] = {
        PLAIN: {},
        "sparse target, k = 64": {"target": target},
        "sample_weight": {"sample_weight": weights},
        "focal_gamma": {"focal_gamma": 2.0},
    }

    def call(options: dict[str, Any]) -> Any:
        return torch.autograd.grad(linear_cross_entropy(x, w, **{"target": y, **options}), (x, w))

    return {name: lambda options=options: call(options) for name, options in given.items()}  # type: ignore[misc]
