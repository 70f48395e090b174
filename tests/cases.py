"""One table of instances for every test of the losses: logits, target and options, float64 and exactly known."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Any

import mpmath_oracle
import numpy as np
import pytest

INF = np.inf
EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class Case:
    name: str
    logits: np.ndarray
    target: np.ndarray
    options: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return self.name

    @property
    def soft(self) -> bool:
        return self.target.ndim == 2

    @property
    def plain(self) -> bool:
        """One label per row and unbent logits: no subtraction is left, and every relative error is small."""
        return not self.soft and not {"label_smoothing", "z_loss", "softcap", "logit_scale"} & set(self.options)

    def rounded(self, dtype: str) -> Case:
        """This case as an implementation of that dtype gets it: logits and class probabilities rounded."""
        with np.errstate(over="ignore"):
            return replace(
                self,
                logits=self.logits.astype(dtype),
                target=self.target.astype(dtype) if self.soft else self.target,
            )

    def fits(self, dtype: str) -> bool:
        """Whether rounding to the dtype turns no finite logit into an infinite one."""
        return bool((np.isinf(self.rounded(dtype).logits) == np.isinf(self.logits)).all())


def expected(case: Case, dtype: str, quantity: str = "cross_entropy") -> Expected:
    """The oracle's answer for the case in that dtype; made once for all tests."""
    return _expected(case, dtype, quantity)


@dataclass(frozen=True)
class Expected:
    loss: np.ndarray
    lse: np.ndarray
    gradient: np.ndarray
    pull: np.ndarray  # the sizes of the gradient's two terms: softmax and target
    push: np.ndarray
    loss_size: np.ndarray
    total: np.ndarray  # the sum of the target's weights

    @property
    def sizes(self) -> np.ndarray:
        return self.pull + self.push


@functools.cache
def _expected(case: Case, dtype: str, quantity: str) -> Expected:
    given = case.rounded(dtype)
    one_row = getattr(mpmath_oracle, f"{quantity}_row")
    with mpmath_oracle.exactly():
        rows = [one_row(given.logits[i], given.target[i], **given.options) for i in range(len(given.logits))]
        names = ("loss", "lse", "loss_size", "total")
        loss, lse, size, total = (mpmath_oracle.floats(getattr(r, n) for r in rows) for n in names)
        entries = [np.array([mpmath_oracle.floats(getattr(r, n)) for r in rows]) for n in ("gradient", "pull", "push")]
    return Expected(loss, lse, *entries, size, total)


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _random(classes: int, spread: float, rows: int = 3) -> Case:
    rng = _rng(classes)
    logits = rng.normal(0, spread, (rows, classes))
    return Case(f"random-{classes}-spread-{spread:g}", logits, rng.integers(0, classes, rows))


RANDOM = [_random(classes, spread) for classes in (2, 3, 10, 97) for spread in (1.0, 30.0)]


def _each_label(name: str, *rows: list[float], labels: list[int] | None = None) -> Case:
    """Every row with every label, or with the labels that are given."""
    logits, target = [], []
    for row in rows:
        for label in range(len(row)) if labels is None else labels:
            logits.append(row)
            target.append(label)
    return Case(name, np.array(logits, dtype=float), np.array(target))


EXTREME = [
    _each_label("one-class", [3.0], [-700.0], [1e4], [0.0]),
    _each_label("two-classes", [0.0, 0.0], [1.0, -1.0], [0.3, 700.0]),
    _each_label("confident", [0.0, -50.0], [0.0, -37.0], [0.0, -700.0], [-20.0, 20.0]),
    _each_label("underflow", [0.0, -744.0], [0.0, -746.0], [0.0, -2000.0]),
    _each_label("plus-minus-700", [700.0, -700.0, 0.0], [-700.0, -700.0, -699.0], [700.0, 700.0, 699.5]),
    _each_label("ten-thousand", [1e4, -1e4, 0.0], [1e4, 1e4 - 0.1, 1e4 - 30.3], [-1e4, -9999.7, -1e4]),
    _each_label("tiny-gaps", [1.0, 1.0 + EPS, 1.0 - EPS / 2], [1e-300, 0.0, -1e-300], [5e-324, 0.0, -5e-324]),
    _each_label("ties", [5.0] * 4, [-1e4] * 4),
    _each_label("far-offset", [1e15, 1e15 + 0.5, 1e15 - 40.0], [-1e12, -1e12 + 0.25, -1e12 - 1.125]),
    _each_label("huge", [1e300, -1e300, 0.0], [-1e300, -1e300, -1e300]),
    _each_label("masked", [-INF, 0.0, 1.0], [-INF, 700.0, -700.0], [-INF, -1e4, 1e4], labels=[1, 2]),
    _each_label("all-but-one-masked", [-INF, 5.0, -INF], [-INF, -1e4, -INF], labels=[1]),
    _each_label("masked-label", [-INF, 0.0, 1.0], [-INF, 700.0, 0.0], labels=[0]),
]


def distributions(rng: np.random.Generator, rows: int, classes: int) -> np.ndarray:
    """Class probabilities with zeros among them; the first row is one-hot."""
    p = rng.dirichlet(np.full(classes, 0.3), rows)
    p[p < 0.01] = 0.0
    p /= p.sum(axis=1, keepdims=True)
    p[0] = np.eye(classes)[1]
    return p


def _base(name: str, *, soft: bool = False, **options: Any) -> Case:
    """Five rows of six classes with logits from ordinary to large; the options vary. Dyadic weights fit any dtype."""
    rng = _rng(7)
    logits = rng.normal(size=(5, 6)) * np.array([[1.0], [0.1], [4.0], [20.0], [60.0]])
    target = distributions(rng, 5, 6) if soft else rng.integers(0, 6, 5)
    return Case(name, logits, target, options)


WEIGHT = [0.5, 1.0, 0.0, 2.25, 0.125, 4.0]


def _with(case: Case, name: str, **options: Any) -> Case:
    return replace(case, name=name, options=options)


def _ignoring(case: Case, ignore_index: int, rows: list[int]) -> Case:
    target = case.target.copy()
    target[rows] = ignore_index
    return replace(case, target=target, options={**case.options, "ignore_index": ignore_index})


_CONFIDENT = next(case for case in EXTREME if case.name == "confident")
_MASKED = next(case for case in EXTREME if case.name == "masked")
_TEN_THOUSAND = next(case for case in EXTREME if case.name == "ten-thousand")

OPTIONS = [
    _base("weight", weight=WEIGHT),
    _ignoring(_base("ignore-default"), -100, [1, 4]),
    _ignoring(_base("ignore-a-class", weight=WEIGHT), 3, [0]),
    _ignoring(_base("ignore-beyond-the-classes"), 6, [2, 3]),
    _ignoring(_base("ignore-all"), -1, [0, 1, 2, 3, 4]),
    _base("smoothing", label_smoothing=0.1),
    _base("smoothing-all", label_smoothing=1.0),
    _base("smoothing-weight", label_smoothing=0.3, weight=WEIGHT),
    _ignoring(_base("smoothing-ignore", label_smoothing=0.3, weight=WEIGHT), -100, [2]),
    _with(_CONFIDENT, "smoothing-confident", label_smoothing=0.1),
    _base("z-loss", z_loss=1e-3),
    _base("z-loss-large", z_loss=2.0, label_smoothing=0.1, weight=WEIGHT),
    _with(_MASKED, "z-loss-masked", z_loss=0.01),
    _base("softcap", softcap=30.0),
    _base("softcap-tight", softcap=1.5),
    _with(_MASKED, "softcap-masked", softcap=15.0),
    _with(_MASKED, "softcap-tight-masked", softcap=2.0),
    _with(_TEN_THOUSAND, "softcap-saturated", softcap=30.0),
    _base("scale", logit_scale=0.07),
    _base("scale-up", logit_scale=3.0),
    _with(_MASKED, "scale-masked", logit_scale=2.5),
    _base("soft", soft=True),
    _base("soft-weight", soft=True, weight=WEIGHT),
    _base("soft-smoothing", soft=True, label_smoothing=0.2),
    _base("soft-everything", soft=True, weight=WEIGHT, label_smoothing=0.2, z_loss=0.01, softcap=20.0, logit_scale=0.9),
    _ignoring(
        _base("everything", weight=WEIGHT, label_smoothing=0.2, z_loss=0.01, softcap=20.0, logit_scale=0.9), -7, [3]
    ),
]

CASES = RANDOM + EXTREME + OPTIONS
BY_NAME = {case.name: case for case in CASES}
assert len(BY_NAME) == len(CASES), "two cases share a name"

# The squared error has no weights and no z-loss.
SQUARED_ERROR = [case for case in CASES if not {"weight", "z_loss"} & set(case.options)]

REDUCTIONS = [{"reduction": "sum"}, {"reduction": "mean"}, {"reduction": "mean", "denominator": 2.5}]

# For tests that bring logits of their own: the options of a row as keywords, and the names of the reductions.
KEYWORDS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "z-loss": {"z_loss": 0.01},
    "softcap": {"softcap": 3.0},
    "scale": {"logit_scale": 0.7},
    "all": {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 3.0, "logit_scale": 0.7},
}
FEW_KEYWORDS = [name if name in ("plain", "all") else pytest.param(name, marks=pytest.mark.slow) for name in KEYWORDS]
"""Their names, for tests that take long: two of them always run."""
EVERY_REDUCTION = ["none", "sum", "mean"]

# Numbers of classes around the sizes that kernels like to work in.
AWKWARD_CLASSES = [1, 2, 7, 8, 9, 15, 16, 17, 127, 128, 129, 1000, 1025, 2500]
