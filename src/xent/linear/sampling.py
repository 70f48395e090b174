"""Which gradients of a linear layer are made from entries rounded at random, and what the rounding did.

The gradient of the logits is nearly empty: of a row, most entries are far below its scale. `gradient="sampled"` rounds
an entry g below the limit l = threshold * scale of its row to l or to 0, at random and so that its expectation is g.
Few entries are left, and both products with them take a fraction of the time. The loss, the entries of labels and the
gradient of the bias are exact. docs/sampled.md has the derivation and what it does to training.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from xent.errors import ArgumentError, message
from xent.objective import Objective
from xent.sparse import is_sparse, unpacked

Array = Any
GradientOption = Literal["exact", "sampled", "sampled input", "sampled weight"]

THRESHOLD = 2.0**-12
"""The default: the rounding adds at most this share of the variance that the rows of a batch have themselves."""
SEEDS = 2**63


@dataclass
class GradientReport:
    """What a call with a sampled gradient did; the call fills it in, or its backward if that makes the gradient.

    Parameters
    ----------
    kept : array (rows,), int64: the entries of each row of the logits' gradient that are not 0.
    variance : array (rows,), float64
        What the rounding added to the variance of each row: the sum of ``|g| (l - |g|)`` over the entries below l.
    is_dense : array (rows,), bool
        Whether dense products were made of the row, because too many entries were left in its chunk of rows. That
        changes the time, and nothing else.
    classes : int

    Examples
    --------
    >>> report = GradientReport()
    >>> report.kept.shape, report.density
    ((0,), 0.0)
    """

    kept: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    variance: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    is_dense: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    classes: int = 0

    @property
    def density(self) -> float:
        """The share of entries that are left."""
        return float(self.kept.sum() / max(self.kept.size * self.classes, 1))

    def begin(self, rows: int, classes: int) -> None:
        """Make room for the rows of a call."""
        self.kept, self.variance, self.classes = np.zeros(rows, np.int64), np.zeros(rows), classes
        self.is_dense = np.zeros(rows, np.bool_)


@dataclass(frozen=True)
class Sampling:
    """How a call rounds the gradient of its logits at random."""

    threshold: float
    seed: Any
    """An integer of 63 bits; a tensor of one until it is needed."""
    input: bool = True
    """Whether the gradient of the input is made of the rounded entries; else of the exact ones."""
    weight: bool = True
    first_class: int = 0
    """The number of a shard's first class."""
    report: GradientReport | None = None

    def to_text(self) -> str:
        """All but seed and report, for interfaces that take nothing else."""
        return repr((self.threshold, self.input, self.weight))

    @classmethod
    def from_text(cls, text: str, seed: Any) -> Sampling | None:
        """What `to_text` wrote down; None for no text."""
        if not text:
            return None
        threshold, of_input, of_weight = ast.literal_eval(text)
        return cls(threshold, seed, of_input, of_weight)

    def seeded(self, call: str) -> Sampling:
        """With the seed as an integer."""
        return self if isinstance(self.seed, int) else replace(self, seed=_in_range(call, int(self.seed)))


def sampling_of(
    call: str, gradient: str, threshold: float | None, seed: Any, report: GradientReport | None
) -> Sampling | None:
    """Check the options of a sampled gradient; None for an exact one. Without a seed the caller draws one."""
    if gradient not in get_args(GradientOption):
        expected = ", ".join(map(repr, get_args(GradientOption)))
        remedy = "Leave it out for the exact gradient"
        raise ArgumentError(message(call, "gradient", f"found {gradient!r}, expected one of {expected}", remedy))
    if gradient == "exact":
        for name, value in (("threshold", threshold), ("seed", seed), ("report", report)):
            if value is not None:
                found = "an exact gradient has none"
                raise ArgumentError(message(call, name, found, "Pass gradient='sampled' with it"))
        return None
    if threshold is not None and not (isinstance(threshold, int | float) and 0.0 < threshold <= 1.0):
        found = f"found {threshold!r}, expected a number above 0, at most 1"
        raise ArgumentError(message(call, "threshold", found, f"Leave it out for {THRESHOLD}"))
    if not (seed is None or isinstance(seed, int | np.integer) or hasattr(seed, "requires_grad")):
        found = f"found {type(seed).__name__}, expected an integer"
        raise ArgumentError(message(call, "seed", found, "Pass a number, such as that of the step, or leave it out"))
    if report is not None and not isinstance(report, GradientReport):
        found = f"found {type(report).__name__}, expected a GradientReport"
        raise ArgumentError(message(call, "report", found, "Pass report=GradientReport(), and read it after the call"))
    parts = {"sampled": (True, True), "sampled input": (True, False), "sampled weight": (False, True)}[gradient]
    seed = _in_range(call, int(seed)) if isinstance(seed, int | np.integer) else seed
    return Sampling(THRESHOLD if threshold is None else float(threshold), seed, *parts, report=report)


def _in_range(call: str, seed: int) -> int:
    if not 0 <= seed < SEEDS:
        found = f"found {seed}, expected 0 or more, below 2**63"
        raise ArgumentError(message(call, "seed", found, "Pass a step's number"))
    return seed


def refuse_sampling(call: str, how: Sampling | str | None, where: str) -> None:
    """Raise ArgumentError where gradients would not be the sampled ones that were asked for."""
    if how:
        raise ArgumentError(
            message(call, "gradient", f"there are no sampled gradients {where}", "Pass gradient='exact'")
        )


def scales_of(objective: Objective, row_scale: Any, target: Array) -> Array:
    """The scale of the gradient of each row: one number, or (rows,)."""
    scale = row_scale * objective.logit_scale
    if objective.weight is None:
        return scale
    return scale * _weights_of(objective.weight, target, objective.label_smoothing)


def _weights_of(weight: Array, target: Array, label_smoothing: float) -> Array:
    """What class weights make of the target's mass in each row."""
    if is_sparse(target):
        ids, p, rest = unpacked(target)
        of_target = (p * weight[ids]).sum(axis=1)
        if rest is not None:
            of_target = of_target + rest[:, 0] * (weight.sum() - weight[ids].sum(axis=1))
    elif target.ndim == 2:
        of_target = target @ weight.astype(target.dtype)
    else:
        of_target = weight[np.clip(target, 0, len(weight) - 1)]
    return (1.0 - label_smoothing) * of_target + label_smoothing * weight.mean()
