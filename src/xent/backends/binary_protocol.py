"""`BinaryBackend`: what a kind of device offers for the binary cross-entropy. Neither validation nor reduction.

    loss = sample_weight * weight * (pos_weight * y' * softplus(-z) + (1 - y') * softplus(z))

Elements lie as they like; `Elements` are the tensors or arrays of a call. A target that is `ignore_index` makes loss
and gradient 0, whatever the logit; one outside [0, 1] (with a focal factor, one that is neither 0 nor 1) makes its
element NaN, and so does a NaN. Infinite logits are certain: minus infinity is a probability of 0, plus infinity of 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from xent.objective import Objective
from xent.reduction import gradient_scale

Array = Any
"""A NumPy array or a torch tensor."""


@dataclass(frozen=True, eq=False)
class Elements:
    """The arrays of a call. Weights are None or broadcast against the logits, which they are not expanded for.

    The target has the logits' shape: a floating dtype of any kind, uint8 or int64. `sample_weight` has an axis of size
    1 for the classes.
    """

    logits: Any
    target: Any
    objective: Objective
    weight: Any = None
    pos_weight: Any = None
    sample_weight: Any = None


class Visited(NamedTuple):
    """What a visit to the elements found. `losses` and `gradient` are None if they were not asked for."""

    losses: Any
    total: Any
    """The sum of the losses in float64: a number, or a tensor of one where reading it would wait."""
    ignored: int
    """How many elements are ignored; -1 where that was not counted."""
    gradient: Any


class BinaryBackend(Protocol):
    """Losses and gradients of elements."""

    @property
    def reads_values(self) -> bool:
        """Whether the host can read numbers without waiting for a device."""

    @property
    def one_visit(self) -> bool:
        """Whether a gradient is best made with the loss."""

    def visit(
        self,
        elements: Elements,
        scale: Array | float | None = None,
        *,
        losses: bool = False,
        out: Array | None = None,
        **more: Any,
    ) -> Visited:
        """Return the losses if they are asked for, their sum, and with a scale the gradient of sum(scale * loss).

        `scale` is one number or an array like the logits. `more` has what kinds of devices know of: on the CPU `after`,
        a factor of the gradient after it was rounded (not for 16 bits); on others `finished`, a tensor of one number,
        which is 1 where nothing is left to do.
        """

    def count(self, elements: Elements) -> Any:
        """Return the number of elements that count, or the sum of their sample weights; a number, or a tensor."""


class _Ignoring:
    """Whether elements like these had ignored ones among them the last time; what is expected costs no second visit."""

    KINDS = 64

    def __init__(self) -> None:
        self.kinds: set[Any] = set()

    def kind(self, elements: Elements) -> Any:
        """What stands for elements like these."""
        return elements.logits.shape[1:], elements.logits.dtype, elements.objective.ignore_index

    def came(self, kind: Any, ignored: bool) -> None:
        """Remember."""
        if not ignored:
            self.kinds.discard(kind)
        elif kind not in self.kinds:
            if len(self.kinds) >= self.KINDS:
                self.kinds.clear()
            self.kinds.add(kind)


_IGNORING = _Ignoring()


def reduced_visit(
    backend: BinaryBackend, elements: Elements, visit: Callable[[Any, Any], Visited], *, gradient: bool
) -> tuple[Visited, Any]:
    """Visit the elements for their reduction; return what was found and what a mean divides by.

    `visit` takes the scale of the gradient (None without one) and the memory for it (None: new memory). The number of
    elements that count is known after the visit, and the gradient of a mean needs it before. So none is expected to be
    ignored, unless some were the last time, and where that is wrong the gradient is made again. The bits are the same.
    """
    objective = elements.objective
    denominator: Any = objective.denominator or 1.0
    kind, guessed = None, False
    if objective.reduction == "mean" and objective.denominator is None:
        kind = _IGNORING.kind(elements) if backend.reads_values else None
        guessed = kind is not None and elements.sample_weight is None and kind not in _IGNORING.kinds
        denominator = float(size_of(elements.logits)) if guessed else backend.count(elements)
    found = visit(gradient_scale(denominator, objective) if gradient else None, None)
    if kind is not None:
        _IGNORING.came(kind, found.ignored > 0)
    if guessed and found.ignored:
        denominator = float(size_of(elements.logits) - found.ignored)
        if gradient:
            found = visit(gradient_scale(denominator, objective), found.gradient)
    return found, denominator


def size_of(logits: Any) -> int:
    """The number of elements."""
    return math.prod(logits.shape)


def ignored_value(ignore_index: int, cast: Any) -> Any:
    """`ignore_index` as a floating point number to compare targets with; NaN where the dtype does not have it.

    >>> import numpy as np
    >>> float(ignored_value(-100, np.float32)), float(ignored_value(2**24 + 1, np.float32))
    (-100.0, nan)
    """
    number = cast(ignore_index)
    return number if int(number) == ignore_index else cast("nan")


def smoothing_of(objective: Objective) -> tuple[float, float]:
    """(on, off) of the smoothed target on * y + off."""
    return 1.0 - objective.label_smoothing, objective.label_smoothing / 2
