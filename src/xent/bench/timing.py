"""Times in interleaved rounds, so that a temporary disturbance of the machine affects all implementations alike.

In each round every call is measured once. The order is rotated by one from round to round and reversed in every other
round, so that no call is always first or always follows the same one. A call shorter than `minimum_s` is repeated
until the measurement is that long. Ratios are formed within a round before their median is taken: a slow round slows
both sides of its ratio.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

Key = TypeVar("Key")
Clock = Callable[[], float]


@dataclass(frozen=True)
class Settings:
    """How long to measure."""

    rounds: int = 15
    least_rounds: int = 5
    seconds_per_case: float = 20.0
    """After this time no further round begins, once `least_rounds` are done."""
    minimum_s: float = 0.02
    warm_ups: int = 1

    def quick(self) -> Settings:
        """Fewer rounds, for a first look."""
        return Settings(rounds=5, least_rounds=3, seconds_per_case=5.0, minimum_s=0.01)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median and quartiles of one or more values.

        >>> Spread.of([1.0, 2.0, 3.0, 4.0, 100.0])
        Spread(median=3.0, low=2.0, high=4.0)
        """
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles with five significant digits, as a record has them.

    >>> summary([0.1234567])
    {'median': 0.12346, 'low': 0.12346, 'high': 0.12346}
    """
    return {name: rounded(value) for name, value in asdict(Spread.of(values)).items()}


def rounded(value: float) -> float:
    """The value with five significant digits."""
    return float(f"{value:.5g}")


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Round by round, one time over the other."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


def interleaved(
    calls: Mapping[Key, Callable[[], Any]],
    settings: Settings,
    clock: Clock = time.perf_counter,
    after_round: Callable[[int], None] = lambda done: None,
) -> dict[Key, list[float]]:
    """Seconds of one call, for every call and round."""
    repeats = {key: _repeats(call, settings, clock) for key, call in calls.items()}
    seconds: dict[Key, list[float]] = {key: [] for key in calls}
    start = clock()
    for done in range(settings.rounds):
        if done >= settings.least_rounds and clock() - start > settings.seconds_per_case:
            break
        with _without_collection():
            for key in _order(list(calls), done):
                seconds[key].append(_elapsed(calls[key], repeats[key], clock) / repeats[key])
        after_round(done + 1)
    return seconds


def _order(keys: list[Key], done: int) -> list[Key]:
    """The keys, rotated by one in each round, reversed in every other."""
    first = done % len(keys) if keys else 0
    rotated = keys[first:] + keys[:first]
    return rotated[::-1] if done % 2 else rotated


def _repeats(call: Callable[[], Any], settings: Settings, clock: Clock) -> int:
    """The number of calls that take the minimum time."""
    for _ in range(settings.warm_ups):
        call()
    repeats = 1
    while (elapsed := _elapsed(call, repeats, clock)) < settings.minimum_s:
        wanted = repeats * settings.minimum_s / max(elapsed, 1e-9)
        repeats = min(max(math.ceil(1.1 * wanted), repeats + 1), 20 * repeats)
    return repeats


def _elapsed(call: Callable[[], Any], repeats: int, clock: Clock) -> float:
    start = clock()
    for _ in range(repeats):
        call()
    return clock() - start


@contextmanager
def _without_collection() -> Iterator[None]:
    """Collect garbage now and not while times are measured."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
