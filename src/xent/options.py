"""The check of one option of a loss: a number, or what holds one, and its range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xent.errors import ObjectiveError, message


def check_option(
    objective: Any,
    call: str,
    option: str,
    holds: Callable[[Any], bool],
    expected: str,
    remedy: str = "See help(xent.Objective)",
) -> None:
    """Make an option of a frozen value the number that it is, and raise ObjectiveError if it is out of its range."""
    value = getattr(objective, option)
    if not isinstance(value, float | int | str | None):  # an array of one number, or a tensor
        value = _number(call, option, value)
        object.__setattr__(objective, option, value)
    try:
        usable = bool(holds(value))
    except (TypeError, ValueError, ArithmeticError, RuntimeError):  # not a number, or several
        usable = False
    if not usable:
        raise ObjectiveError(message(call, option, f"found {value!r}, expected {expected}", remedy))


def _number(call: str, option: str, value: Any) -> Any:
    """The number in an array or tensor of one."""
    if getattr(value, "requires_grad", False):
        found = "found a tensor that requires a gradient, which this option does not get"
        raise ObjectiveError(message(call, option, found, f"Pass {option}.item(); weight and logit_scale get one"))
    try:
        return value.item()
    except (AttributeError, TypeError, ValueError, RuntimeError):  # no array, or one of several numbers
        return value
