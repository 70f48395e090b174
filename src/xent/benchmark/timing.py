"""Times in interleaved rounds, so that what disturbs the machine for a while disturbs every contestant.

In each round every call is measured once. The order moves on by one from round to round and is read backwards in every
other one, so that nobody is always first or always follows the same neighbour. A call that is shorter than
`minimum_s` is repeated until the measurement is that long. Ratios are formed within a round, and then their median
is taken: a slow round slows both sides of its ratio.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

Key = TypeVar("Key")
Clock = Callable[[], float]


@dataclass(frozen=True)
class Settings:
    """How long to measure."""

    rounds: int = 15
    least_rounds: int = 5
    seconds_per_case: float = 20.0
    """After this time and the least number of rounds no further round begins."""
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


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Round by round, one time over the other."""
    return [above / below for above, below in zip(numerator, denominator, strict=True)]


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
    """The keys, moved on by one in each round, backwards in every other."""
    first = done % len(keys) if keys else 0
    turned = keys[first:] + keys[:first]
    return turned[::-1] if done % 2 else turned


def _repeats(call: Callable[[], Any], settings: Settings, clock: Clock) -> int:
    """How often to call for a measurement of the minimum length."""
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
    """Collect garbage now, and not while the clock runs."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
