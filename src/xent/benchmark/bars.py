"""The figures that the kernels have to reach, as data, and how a record compares with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from xent.benchmark.peers import EAGER, OURS, REUSED, Measure
from xent.benchmark.shapes import SHAPES
from xent.benchmark.timing import Spread

MEMORY_PER_LOSS = 32
MEMORY_ALLOWANCE = 2 << 20


@dataclass(frozen=True)
class Bar:
    """A ratio of medians in one run: how many times as fast as a peer, or how many times as long as a copy."""

    shape: str
    dtype: str
    measure: Measure
    against: str
    bound: float
    aim: float | None = None

    @property
    def is_limit(self) -> bool:
        """Whether the bar is a most (times as long as a copy) and not a least (times as fast as a peer)."""
        return self.against == REUSED

    @property
    def numerator(self) -> str:
        return OURS if self.is_limit else self.against

    @property
    def denominator(self) -> str:
        return self.against if self.is_limit else OURS


def _against_eager(shape: str, dtype: str, forward_backward: float, forward: float) -> list[Bar]:
    return [
        Bar(shape, dtype, "forward_backward", EAGER, forward_backward),
        Bar(shape, dtype, "forward", EAGER, forward),
    ]


BARS: tuple[Bar, ...] = (
    *_against_eager("gpt2", "float32", 8, 4),
    Bar("gpt2", "float32", "forward_backward", REUSED, 2.5, aim=1.5),
    *_against_eager("gpt2", "bfloat16", 6, 4),
    *_against_eager("imagenet", "float32", 5, 4),
    *_against_eager("imagenet", "bfloat16", 5, 4),
    *_against_eager("cifar", "float32", 8, 8),
    *_against_eager("segmentation", "float32", 4, 4),
    *_against_eager("tiny", "float32", 1, 1),
    *_against_eager("small", "float32", 1, 1),
)


def judged(case: Mapping[str, Any], bars: Iterable[Bar] = BARS) -> list[dict[str, Any]]:
    """The bars of this case: what was required and measured, whether it is met, else by what factor missed."""
    wanted = (case["shape"], case["dtype"])
    is_known = case["shape"] in SHAPES and list(SHAPES[case["shape"]].size) == case["size"]
    found = [_judged_ratio(case, bar) for bar in bars if is_known and (bar.shape, bar.dtype) == wanted]
    return [entry for entry in [*found, _judged_memory(case)] if entry]


def _judged_ratio(case: Mapping[str, Any], bar: Bar) -> dict[str, Any] | None:
    wanted = (bar.measure, bar.numerator, bar.denominator)
    for ratio in case["ratios"]:
        if (ratio["measure"], ratio["numerator"], ratio["denominator"]) == wanted:
            spread = Spread(*(ratio[key] for key in ("median", "low", "high")))
            return entry(bar.measure, bar.against, bar.bound, spread, at_most=bar.is_limit, aim=bar.aim)
    return None


def _judged_memory(case: Mapping[str, Any]) -> dict[str, Any] | None:
    """Beside logits and gradient O(rows): 32 bytes for a loss, and 2 MB that a page and a measurement may cost."""
    for contestant in case["contestants"]:
        peak = (contestant["memory"] or {}).get("forward_backward")
        if contestant["name"] == OURS and peak is not None:
            beside = max(0, peak - case["logits_bytes"])
            bound = MEMORY_PER_LOSS * case["losses"] + MEMORY_ALLOWANCE
            spread = Spread(beside, beside, beside)
            return entry("memory", "bytes beside logits and gradient", bound, spread, at_most=True)
    return None


def entry(
    measure: str, against: str, bound: float, found: Spread, *, at_most: bool, aim: float | None = None
) -> dict[str, Any]:
    """A bar in a record: what was required and measured, whether it is met, else by what factor it is missed."""
    return {
        "kind": "at most" if at_most else "at least",
        "measure": measure,
        "against": against,
        "bound": bound,
        "aim": aim,
        **asdict(found),
        **verdict(found.median, bound, at_most=at_most),
    }


def verdict(value: float, bound: float, *, at_most: bool) -> dict[str, Any]:
    """Whether a figure meets its bound, else by what factor it misses it."""
    excess = value / bound if at_most else bound / value
    return {"met": excess <= 1, "missed_by": None if excess <= 1 else round(excess, 3)}
