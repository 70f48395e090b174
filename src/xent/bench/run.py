"""All implementations on some shapes, as one record of plain numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from xent.bench import machine
from xent.bench.peers import IMPLEMENTATIONS, Calls, Implementation, Inputs, Measure, NotAvailableError, make_inputs
from xent.bench.shapes import Shape, select
from xent.bench.timing import Settings, interleaved, ratios, rounded, summary

SCHEMA = 1
"""Of records. They list the implementations as "contestants", as those in benchmarks/results do."""
MEASURES: tuple[Measure, ...] = ("forward_backward", "forward")

Progress = Callable[[str, int, int], None]
Seconds = dict[tuple[str, Measure], list[float]]


@dataclass(frozen=True)
class _Prepared:
    """An implementation with its calls, or with the reason why there are none."""

    implementation: Implementation
    calls: Calls
    reason: str | None = None

    @classmethod
    def on(cls, inputs: Inputs, implementation: Implementation) -> _Prepared:
        try:
            return cls(implementation, implementation.prepare(inputs))
        except NotAvailableError as error:
            return cls(implementation, {}, str(error))


def run(
    shapes: Iterable[str | Shape] = (),
    *,
    quick: bool = False,
    settings: Settings | None = None,
    threads: int = 2,
    command: str = "",
    progress: Progress = lambda description, done, total: None,
    implementations: Sequence[Implementation] = IMPLEMENTATIONS,
) -> dict[str, Any]:
    """Measure the implementations on the shapes and return the record, which `json.dumps` can write.

    Parameters
    ----------
    shapes : names from `SHAPES`, or shapes; without any all of them.
    quick : the quick shapes and implementations in few rounds: a first look in less than a minute.
    settings : rounds and seconds; the default depends on `quick`.
    threads : for torch, NumPy's libraries and the kernels alike.
    progress : called with what is being measured, the number of rounds done and their total.

    Raises
    ------
    ArgumentError
        An unknown shape, or less than one thread.
    MissingDependencyError
        torch is not installed.
    """
    selected = [item for item in shapes if isinstance(item, Shape)] or select(
        [str(item) for item in shapes], quick=quick
    )
    machine.require_torch()
    settings = settings or (Settings().quick() if quick else Settings())
    measured = [implementation for implementation in implementations if implementation.quick or not quick]
    record = {"record": "xent bench", "schema": SCHEMA, "device": "cpu", **machine.describe(command, threads)}
    start = time.perf_counter()
    with machine.limited_threads(threads):
        cases = [_case(shape, dtype, measured, settings, progress) for shape in selected for dtype in shape.dtypes]
    seconds = round(time.perf_counter() - start, 1)
    return {**record, "seconds": seconds, "settings": asdict(settings), "cases": cases}


def _case(
    shape: Shape, dtype: str, implementations: Sequence[Implementation], settings: Settings, progress: Progress
) -> dict[str, Any]:
    description = f"{shape.name} {dtype}"
    progress(description, 0, settings.rounds)
    inputs = make_inputs(shape, dtype)
    prepared = [_Prepared.on(inputs, implementation) for implementation in implementations]
    losses = _compared(prepared, dtype)
    others = machine.OtherProcesses()
    calls = {(p.implementation.name, measure): call for p in prepared for measure, call in p.calls.items()}
    seconds = interleaved(calls, settings, after_round=lambda done: progress(description, done, settings.rounds))
    share_of_others = others.share()
    progress(description, settings.rounds, settings.rounds)
    return {
        "shape": shape.name,
        "size": list(shape.size),
        "where": shape.where,
        "dtype": dtype,
        "elements": shape.elements,
        "losses": shape.losses,
        "logits_bytes": inputs.logits.nbytes,
        "rounds": len(next(iter(seconds.values()))),
        "share_of_others": share_of_others,
        "contestants": [_entry(p, seconds, losses) for p in prepared],
        "ratios": _ratios([p.implementation for p in prepared if p.calls], seconds),
    }


def _entry(prepared: _Prepared, seconds: Seconds, losses: dict[str, float]) -> dict[str, Any]:
    implementation = prepared.implementation
    times = {measure: seconds[implementation.name, measure] for measure in prepared.calls}
    return {
        "name": implementation.name,
        "role": implementation.role,
        "note": implementation.note,
        "not_available": prepared.reason,
        "loss": losses.get(implementation.name),
        "seconds": {measure: summary(samples) for measure, samples in times.items()},
        "samples": {measure: [rounded(s) for s in samples] for measure, samples in times.items()},
    }


def _ratios(implementations: list[Implementation], seconds: Seconds) -> list[dict[str, Any]]:
    """The time of each peer over that of each of ours, and the time of all of them over that of the copies."""
    entries = []
    for above in implementations:
        for below in implementations:
            if (above.role, below.role) not in (("peer", "ours"), ("peer", "limit"), ("ours", "limit")):
                continue
            for measure in MEASURES:
                base: Measure = "copy" if below.role == "limit" else measure
                if (above.name, measure) in seconds and (below.name, base) in seconds:
                    ratio = ratios(seconds[above.name, measure], seconds[below.name, base])
                    names = {"measure": measure, "numerator": above.name, "denominator": below.name}
                    entries.append({**names, **summary(ratio)})
    return entries


# ------------------------------------------------------------------------------------- implementations have to agree


def _compared(prepared: Sequence[_Prepared], dtype: str) -> dict[str, float]:
    """The loss of each implementation; AssertionError unless losses and norms of gradients agree up to rounding."""
    tolerance = 2e-2 if dtype in ("bfloat16", "float16") else 1e-4
    losses: dict[str, float] = {}
    norms: dict[str, float] = {}
    for each in prepared:
        name = each.implementation.name
        if "forward" in each.calls:
            losses[name] = _number(each.calls["forward"]())
        if "forward_backward" in each.calls:
            loss, gradient = each.calls["forward_backward"]()
            _require_equal({name: losses[name], f"{name} with gradient": _number(loss)}, tolerance)
            norms[name] = _norm(gradient)
    _require_equal(losses, tolerance)
    _require_equal(norms, tolerance)
    return losses


def _number(loss: Any) -> float:
    """A loss from torch or NumPy as a float."""
    return float(loss.detach()) if hasattr(loss, "detach") else float(loss)


def _norm(gradient: Any) -> float:
    """The sum of the absolute values, in float64."""
    import torch

    return float(torch.linalg.vector_norm(torch.as_tensor(gradient), 1, dtype=torch.float64))


def _require_equal(values: dict[str, float], tolerance: float) -> None:
    if values and not max(values.values()) - min(values.values()) <= tolerance * max(map(abs, values.values())):
        raise AssertionError(f"implementations do not compute the same: {values}")
