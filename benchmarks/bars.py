"""The figures that the kernels have to reach on a CPU, as data, and how a record compares with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from xent.bench import SHAPES
from xent.bench.peers import EAGER, OURS, REUSED, Measure
from xent.bench.show import number, ratio_of
from xent.bench.timing import Spread

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
        """Whether the bar is an upper bound (times as long as a copy) and not a lower one (times as fast as a peer)."""
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


SMALL = tuple(
    bar for shape in ("tiny", "small", "one", "sixteen") for bar in _against_eager(shape, "float32", 0.95, 0.95)
)
BARS: tuple[Bar, ...] = (
    *_against_eager("gpt2", "float32", 8, 4),
    Bar("gpt2", "float32", "forward_backward", REUSED, 2.5, aim=1.5),
    *_against_eager("gpt2", "bfloat16", 7, 4),
    *_against_eager("imagenet", "float32", 4.5, 3.5),
    *_against_eager("imagenet", "bfloat16", 5, 4),
    *_against_eager("cifar", "float32", 8, 8),
    *_against_eager("segmentation", "float32", 4, 4),
    *SMALL,
)
AVX2_BARS: tuple[Bar, ...] = (
    *_against_eager("imagenet", "float32", 3.5, 2.5),
    *_against_eager("cifar", "float32", 4, 4),
    *_against_eager("segmentation", "float32", 4, 4),
    *SMALL,
)
"""Of code for processors without AVX-512 (avx2.py)."""


def judge(case: Mapping[str, Any], bars: Iterable[Bar] = BARS) -> list[dict[str, Any]]:
    """The bars of this case: what was required and measured, whether it is met, else the factor that is missing."""
    name, dtype = case["shape"], case["dtype"]
    is_known = name in SHAPES and list(SHAPES[name].size) == case["size"]
    verdicts = [_judge_ratio(case, bar) for bar in bars if is_known and (bar.shape, bar.dtype) == (name, dtype)]
    return [each for each in [*verdicts, _judge_memory(case)] if each]


def missed(record: Mapping[str, Any]) -> list[str]:
    """A sentence for each bar that the record does not reach."""
    return [
        f"{case['shape']} {case['dtype']}, {bar['measure'].replace('_', ' + ')} against {bar['against']}: "
        f"{number(bar['median'])}, required {bar['kind']} {bar['bound']:g}"
        for case in record["cases"]
        for bar in case["bars"]
        if not bar["met"]
    ]


def _judge_ratio(case: Mapping[str, Any], bar: Bar) -> dict[str, Any] | None:
    ratio = ratio_of(case, bar.measure, bar.numerator, bar.denominator)
    if ratio is None:
        return None
    spread = Spread(*(ratio[key] for key in ("median", "low", "high")))
    return entry(bar.measure, bar.against, bar.bound, spread, at_most=bar.is_limit, aim=bar.aim)


def _judge_memory(case: Mapping[str, Any]) -> dict[str, Any] | None:
    """Beside logits and gradient O(rows): 32 bytes for a loss, and 2 MB for a page and the measurement."""
    for implementation in case["contestants"]:
        peak = (implementation.get("memory") or {}).get("forward_backward")
        if implementation["name"] == OURS and peak is not None:
            beside = max(0, peak - case["logits_bytes"])
            bound = MEMORY_PER_LOSS * case["losses"] + MEMORY_ALLOWANCE
            spread = Spread(beside, beside, beside)
            return entry("memory", "bytes beside logits and gradient", bound, spread, at_most=True)
    return None


def entry(
    measure: str, against: str, bound: float, measured: Spread, *, at_most: bool, aim: float | None = None
) -> dict[str, Any]:
    """A bar in a record: what was required and measured, whether it is met, else the factor that is missing."""
    return {
        "kind": "at most" if at_most else "at least",
        "measure": measure,
        "against": against,
        "bound": bound,
        "aim": aim,
        **asdict(measured),
        **verdict(measured.median, bound, at_most=at_most),
    }


def verdict(value: float, bound: float, *, at_most: bool) -> dict[str, Any]:
    """Whether a figure meets its bound, else the factor that is missing."""
    excess = value / bound if at_most else bound / value
    return {"met": excess <= 1, "missed_by": None if excess <= 1 else round(excess, 3)}
