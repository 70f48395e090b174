"""All contestants on some shapes, as one record of plain numbers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from xent.benchmark import machine, memory
from xent.benchmark.bars import judged
from xent.benchmark.peers import (
    CONTESTANTS,
    Calls,
    Contestant,
    Inputs,
    Measure,
    NotAvailableError,
    make_inputs,
)
from xent.benchmark.shapes import Shape, checked_device, chosen
from xent.benchmark.timing import Settings, Spread, interleaved, ratios

SCHEMA = 1
MEASURES: tuple[Measure, ...] = ("forward_backward", "forward")

Progress = Callable[[str, int, int], None]
Seconds = dict[tuple[str, Measure], list[float]]


@dataclass(frozen=True)
class _Entrant:
    """A contestant that was asked to take part: its calls, or the reason why there are none."""

    contestant: Contestant
    calls: Calls
    reason: str | None = None


def run(
    shapes: Iterable[str | Shape] = (),
    *,
    quick: bool = False,
    settings: Settings | None = None,
    threads: int = 2,
    device: str = "cpu",
    measure_memory: bool = True,
    huge_pages: bool = False,
    command: str = "",
    progress: Progress = lambda what, done, total: None,
    contestants: Sequence[Contestant] = CONTESTANTS,
) -> dict[str, Any]:
    """Measure every contestant on the shapes and return the record, which `json.dumps` can write.

    Parameters
    ----------
    shapes : names from `SHAPES`, or shapes; without any all of them.
    quick : the quick shapes, the quick contestants, few rounds and no memory: a first look in less than a minute.
    settings : rounds and seconds; the default depends on `quick`.
    threads : for torch, NumPy's libraries and ours alike.
    device : one of `DEVICES`.
    measure_memory : also start a process for each contestant, on the shapes that ask for it.
    huge_pages : let torch ask for huge pages, which only a process can that has not imported torch yet.
    progress : is called with what is measured now, how many rounds of it are done, and how many there are.
    contestants : who takes part.

    Raises
    ------
    ArgumentError
        An unknown shape or device.
    MissingDependencyError
        torch is not installed.
    """
    checked_device(device)
    known = [item for item in shapes if isinstance(item, Shape)] or chosen([str(item) for item in shapes], quick=quick)
    machine.require_torch()
    machine.ask_for_huge_pages(huge_pages)
    settings = settings or (Settings().quick() if quick else Settings())
    taking_part = [contestant for contestant in contestants if contestant.quick or not quick]
    record = {"record": "xent bench", "schema": SCHEMA, "device": device, **machine.describe(command, threads)}
    start = time.perf_counter()
    cases: list[dict[str, Any]] = []
    with machine.limited(threads):
        for shape in known:
            for dtype in shape.dtypes:
                case = _case(shape, dtype, taking_part, settings, progress)
                if measure_memory and shape.memory and not quick:
                    _add_memory(case, shape, dtype, threads, progress)
                cases.append({**case, "bars": judged(case)})
    seconds = round(time.perf_counter() - start, 1)
    return {**record, "seconds": seconds, "settings": dataclasses.asdict(settings), "cases": cases}


def _case(
    shape: Shape, dtype: str, contestants: Sequence[Contestant], settings: Settings, progress: Progress
) -> dict[str, Any]:
    what = f"{shape.name} {dtype}"
    progress(what, 0, settings.rounds)
    inputs = make_inputs(shape, dtype)
    entrants = [_entered(contestant, inputs) for contestant in contestants]
    losses = _agreed(entrants, dtype)
    others = machine.Others()
    calls = {(e.contestant.name, measure): call for e in entrants for measure, call in e.calls.items()}
    seconds = interleaved(calls, settings, after_round=lambda done: progress(what, done, settings.rounds))
    share_of_others = others.share()
    progress(what, settings.rounds, settings.rounds)
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
        "contestants": [_figures(entrant, seconds, losses) for entrant in entrants],
        "ratios": _ratios([e.contestant for e in entrants if e.calls], seconds),
    }


def _entered(contestant: Contestant, inputs: Inputs) -> _Entrant:
    try:
        return _Entrant(contestant, contestant.prepare(inputs))
    except NotAvailableError as error:
        return _Entrant(contestant, {}, str(error))


def _figures(entrant: _Entrant, seconds: Seconds, losses: dict[str, float]) -> dict[str, Any]:
    contestant = entrant.contestant
    return {
        "name": contestant.name,
        "role": contestant.role,
        "note": contestant.note,
        "not_available": entrant.reason,
        "loss": losses.get(contestant.name),
        "seconds": {measure: _spread(seconds[contestant.name, measure]) for measure in entrant.calls},
        "samples": {measure: [_short(s) for s in seconds[contestant.name, measure]] for measure in entrant.calls},
        "memory": None,
    }


def _ratios(contestants: list[Contestant], seconds: Seconds) -> list[dict[str, Any]]:
    """Each peer over each of ours (how many times as fast ours is), and everyone over the copies (times a copy)."""
    found = []
    for above in contestants:
        for below in contestants:
            if (above.role, below.role) not in (("peer", "ours"), ("peer", "limit"), ("ours", "limit")):
                continue
            for measure in MEASURES:
                base: Measure = "copy" if below.role == "limit" else measure
                if (above.name, measure) in seconds and (below.name, base) in seconds:
                    ratio = ratios(seconds[above.name, measure], seconds[below.name, base])
                    names = {"measure": measure, "numerator": above.name, "denominator": below.name}
                    found.append({**names, **_spread(ratio)})
    return found


def _add_memory(case: dict[str, Any], shape: Shape, dtype: str, threads: int, progress: Progress) -> None:
    measured = [c for c in case["contestants"] if c["role"] != "limit" and not c["not_available"]]
    what = f"{shape.name} {dtype}, memory"
    for done, contestant in enumerate(measured):
        progress(what, done, len(measured))
        contestant["memory"] = memory.peak_bytes(contestant["name"], shape, dtype, threads)
    progress(what, len(measured), len(measured))


# ----------------------------------------------------------------------------------------- everyone has the same answer


def _agreed(entrants: Sequence[_Entrant], dtype: str) -> dict[str, float]:
    """The loss of each contestant; AssertionError unless losses and sizes of gradients agree, up to rounding."""
    tolerance = 2e-2 if dtype in ("bfloat16", "float16") else 1e-4
    losses: dict[str, float] = {}
    sizes: dict[str, float] = {}
    for entrant in entrants:
        name = entrant.contestant.name
        if "forward" in entrant.calls:
            losses[name] = _number(entrant.calls["forward"]())
        if "forward_backward" in entrant.calls:
            loss, gradient = entrant.calls["forward_backward"]()
            _demand({name: losses[name], f"{name} with gradient": _number(loss)}, tolerance)
            sizes[name] = _size(gradient)
    _demand(losses, tolerance)
    _demand(sizes, tolerance)
    return losses


def _number(loss: Any) -> float:
    """A loss from torch or NumPy as a float."""
    return float(loss.detach()) if hasattr(loss, "detach") else float(loss)


def _size(gradient: Any) -> float:
    """The sum of the absolute values, made in float64."""
    import torch

    return float(torch.linalg.vector_norm(torch.as_tensor(gradient), 1, dtype=torch.float64))


def _demand(values: dict[str, float], tolerance: float) -> None:
    if values and not max(values.values()) - min(values.values()) <= tolerance * max(map(abs, values.values())):
        raise AssertionError(f"contestants do not compute the same: {values}")


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {name: _short(value) for name, value in dataclasses.asdict(Spread.of(values)).items()}


def _short(value: float) -> float:
    return float(f"{value:.5g}")
