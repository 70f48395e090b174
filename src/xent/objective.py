"""`Objective`: every option of the loss, in one frozen value that travels from the fronts down to the kernels.

The options change the loss of one row with logits x and target distribution p as follows (docs/definitions.md):

    z     = softcap * tanh(logit_scale * x / softcap)           (softcap=None: z = logit_scale * x)
    q     = softmax(z),  lse = log(sum(exp(z)))
    t[j]  = weight[j] * ((1 - label_smoothing) * p[j] + label_smoothing / classes)
    loss  = sum(t[j] * (lse - z[j])) + z_loss * lse**2
    loss  = weight[y] * (1 - q[y])**focal_gamma * (lse - z[y])  (focal_gamma > 0: for a label y alone)

and the rows are then reduced by `reduction` and `denominator` (reduction.py).
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import KW_ONLY, InitVar, dataclass, replace
from typing import Any, ClassVar, Literal, Self, TypedDict, get_args

from xent.errors import ObjectiveError, message
from xent.options import check_option

__all__ = ["BinaryOptions", "Objective", "Options", "ParallelOptions", "UnweightedOptions"]

Reduction = Literal["none", "sum", "mean"]


class ParallelOptions(TypedDict, total=False):
    """The keyword arguments that every loss takes; `Objective` documents them."""

    ignore_index: int
    label_smoothing: float
    z_loss: float
    softcap: float | None
    logit_scale: float
    focal_gamma: float
    reduction: Reduction


class UnweightedOptions(ParallelOptions, total=False):
    """The same with a denominator, which on several machines may also be counted."""

    denominator: float | None


class Options(UnweightedOptions, total=False):
    """The same with class weights, which the torch front takes as an argument of their own."""

    weight: Any


class BinaryOptions(TypedDict, total=False):
    """The keyword arguments of the binary loss that `Objective` documents."""

    ignore_index: int
    label_smoothing: float
    softcap: float | None
    logit_scale: float
    focal_gamma: float
    reduction: Reduction
    denominator: float | None


OPTIONS = tuple(Options.__annotations__)
TEXT = tuple(name for name in OPTIONS if name != "weight")

_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "ignore_index": (lambda i: i == int(i) and -(2**63) <= i < 2**63, "an integer of 64 bits"),
    "label_smoothing": (lambda e: 0.0 <= e <= 1.0, "a number in [0, 1]"),
    "z_loss": (lambda a: 0.0 <= a < math.inf, "a finite number, 0 or more"),
    "softcap": (lambda c: c is None or 0.0 < c < math.inf, "None or a finite number above 0"),
    "logit_scale": (lambda s: 0.0 < s < math.inf, "a finite number above 0"),
    "focal_gamma": (lambda g: 0.0 <= g < math.inf, "a finite number, 0 or more"),
    "reduction": (lambda r: r in get_args(Reduction), "'none', 'sum' or 'mean'"),
    "denominator": (lambda d: d is None or 0.0 < d < math.inf, "None or a finite number above 0"),
}


@dataclass(frozen=True, eq=False)
class Objective:
    """The options of the loss, checked once.

    Parameters
    ----------
    weight : array of shape (classes,), optional
        What one row of each class counts for, zero or more. Its dtype does not matter; its length is checked against
        the logits (targets.py).
    ignore_index : int
        Rows with this label add 0 to the loss, to the gradient and to the denominator. Class indices only.
    label_smoothing : float in [0, 1]
        The share of the target distribution that is spread evenly over all classes.
    z_loss : float, 0 or more
        The factor of lse**2, which keeps the normaliser of a large model near 1.
    softcap : float above 0, optional
        Logits are mapped smoothly into (-softcap, softcap). Minus infinity stays minus infinity.
    logit_scale : float above 0
        Factor of the logits; 1 / temperature.
    focal_gamma : float, 0 or more
        The exponent of the focal loss, a factor (1 - q[label])**focal_gamma of the loss: what is right already counts
        less. Class indices only; not with label_smoothing or z_loss.
    reduction : "none", "sum" or "mean"
        What is returned of the losses of the rows.
    denominator : float above 0, optional
        What "mean" divides the sum by, in place of the weighted count of the rows that are not ignored.
    call : str
        The name that errors give to the call; not kept.

    Raises
    ------
    ObjectiveError
        An option is out of its range, or `denominator` is given with a reduction other than "mean".

    Examples
    --------
    >>> Objective(label_smoothing=0.1).reduction
    'mean'
    """

    weight: Any = None
    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    logit_scale: float = 1.0
    focal_gamma: float = 0.0
    reduction: Reduction = "mean"
    denominator: float | None = None
    _: KW_ONLY
    call: InitVar[str] = "Objective"
    text: ClassVar[tuple[str, ...]] = TEXT
    """What `to_text` writes down."""

    def __post_init__(self, call: str) -> None:
        for option, (holds, expected) in _RANGES.items():
            check_option(self, call, option, holds, expected)
        if self.denominator is not None and self.reduction != "mean":
            found = f"a denominator has no meaning with reduction={self.reduction!r}"
            remedy = "Use reduction='mean', or leave the denominator out and divide the result yourself"
            raise ObjectiveError(message(call, "denominator", found, remedy))
        if self.focal_gamma and (self.label_smoothing or self.z_loss):
            found = "the focal loss is one of the label's probability alone"
            raise ObjectiveError(message(call, "focal_gamma", found, "Leave out label_smoothing and z_loss"))

    @property
    def is_plain(self) -> bool:
        """Whether no option changes the loss of a row with a label that counts, `lse(x) - x[label]`."""
        without = self.weight is None and self.softcap is None and self.logit_scale == 1.0
        return without and not (self.label_smoothing or self.z_loss or self.focal_gamma)

    @property
    def of_rows(self) -> Objective:
        """The losses of rows that the rest of the options, focal_gamma and the reduction, is applied to."""
        return replace(self, reduction="none", denominator=None, focal_gamma=0.0)

    @property
    def of_elements(self) -> Objective:
        """The losses of elements that the reduction is applied to."""
        return replace(self, reduction="none", denominator=None)

    @classmethod
    def of(cls, call: str, options: Options | UnweightedOptions) -> Objective:
        """Build the objective of a call from its keyword arguments; an unknown one is named with those that exist."""
        for option in options:
            if option not in OPTIONS:
                found = f"there is no option {option!r}"
                raise ObjectiveError(message(call, option, found, f"The options are {', '.join(OPTIONS)}"))
        return cls(**options, call=call)

    def weighted(self, weight: Any) -> Objective:
        """The same options with these class weights."""
        return self if weight is None else replace(self, weight=weight)

    def to_text(self) -> str:
        """All options but the class weights as text, for interfaces that take nothing else."""
        # Not json.dumps, which torch's compiler cannot trace. A number that has changed since the last call is a symbol
        # to that compiler, and a symbol has no text; as a key of a dictionary it becomes a number.
        options = [(name, *{getattr(self, name): None}) for name in self.text]
        return "{" + ", ".join([f"{name!r}: {value!r}" for name, value in options]) + "}"

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The options that `to_text` wrote down."""
        return cls(**ast.literal_eval(text))
