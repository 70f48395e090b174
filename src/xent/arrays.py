"""Arrays of any library in, checks on probabilities: what `information` and `likelihood` share."""

from __future__ import annotations

import math
from typing import Any

import array_api_compat
import numpy as np

from xent.errors import ArgumentError, DistributionError, DTypeError, LabelError, ShapeError, message

Array = Any  # any array of the array API standard


def as_arrays(call: str, **arrays: Any) -> tuple[Any, list[Array]]:
    """Return the array namespace and the named arguments as arrays of one floating dtype, at least float32.

    Plain Python numbers and lists become NumPy arrays. Integers (a one-hot vector typed as 0 and 1) follow the floating
    arguments. 16-bit numbers are widened to float32: neither sums nor logarithms are made in 16 bits.
    """
    xp, converted = _as_given(call, arrays)
    for name, array in zip(arrays, converted, strict=True):
        if not xp.isdtype(array.dtype, ("real floating", "integral", "bool")):
            found = f"found dtype {array.dtype}, expected real numbers"
            raise DTypeError(message(call, name, found, "Convert the values to floating point numbers first"))
    floating = [array.dtype for array in converted if xp.isdtype(array.dtype, "real floating")]
    dtype = xp.result_type(*floating) if floating else default_floating(xp)
    if xp.finfo(dtype).bits < 32:
        dtype = xp.float32
    return xp, [array if array.dtype == dtype else xp.astype(array, dtype) for array in converted]


def as_probabilities(call: str, check: bool, **array: Any) -> tuple[Any, Array]:
    """One argument whose values are probabilities; DistributionError if `check` finds one that is not."""
    tolerances = _sum_tolerances(call, array)
    xp, converted = as_arrays(call, **array)
    if check:
        for name in array:
            _check_probabilities(call, name, converted[0], tolerances[name])
    return xp, converted[0]


def as_distributions(call: str, axis: int, check: bool, **arrays: Any) -> tuple[Any, list[Array]]:
    """Arguments that are distributions along `axis`, of shapes that fit; `check` raises DistributionError otherwise."""
    tolerances = _sum_tolerances(call, arrays)
    xp, converted = as_arrays(call, **arrays)
    named = dict(zip(arrays, converted, strict=True))
    _check_shapes(call, axis, named)
    if check:
        for name, array in named.items():
            _check_probabilities(call, name, array, tolerances[name])
            _check_sums(call, name, array, axis, tolerances[name])
    return xp, converted


def as_labels(call: str, classes: int, check: bool, **array: Any) -> tuple[Any, Array]:
    """One argument of class indices; LabelError if `check` finds one outside [0, classes)."""
    xp, (labels,) = _as_given(call, array)
    (name,) = array
    if not xp.isdtype(labels.dtype, "integral"):
        found = f"found dtype {labels.dtype}, expected integers"
        raise DTypeError(message(call, name, found, "Pass class indices 0, 1, ...; sklearn's LabelEncoder makes them"))
    if check:
        outside = (labels < 0) | (labels >= classes)
        if xp.any(outside):
            where, label = first_wrong(outside, labels)
            found = f"label {label} at row {where} is outside [0, {classes})"
            raise LabelError(
                message(call, name, found, f"Labels count from 0, so {classes} classes end at {classes - 1}")
            )
    return xp, labels


def check_classes(call: str, classes: int) -> None:
    """Raise ArgumentError unless this can be a number of classes."""
    if classes < 1 or classes != int(classes):
        found = f"found {classes!r}, expected a whole number of 1 or more"
        raise ArgumentError(message(call, "classes", found, "Pass the number of all classes, labelled here or not"))


def check_soft_target(call: str, target: Array, axis: int) -> None:
    """Raise DistributionError unless the target of a loss holds distributions along `axis`."""
    as_distributions(call, axis, True, target=target)


def default_floating(xp: Any) -> Any:
    """The floating dtype that the library gives to plain numbers."""
    return xp.__array_namespace_info__().default_dtypes(device=None)["real floating"]


def _as_given(call: str, arrays: dict[str, Any]) -> tuple[Any, list[Array]]:
    """The namespace of the arrays, and every argument as an array of it, dtypes as they came."""
    present = [value for value in arrays.values() if array_api_compat.is_array_api_obj(value)]
    try:
        xp = array_api_compat.array_namespace(*(present or [np.zeros(1)]))
    except TypeError:
        found = f"found arrays of different libraries: {', '.join(sorted({type(a).__module__ for a in present}))}"
        raise DTypeError(message(call, ", ".join(arrays), found, "Convert them to one library first")) from None
    device = array_api_compat.device(present[0]) if present else "cpu"
    converted = []
    for name, value in arrays.items():
        try:
            is_array = array_api_compat.is_array_api_obj(value)
            converted.append(value if is_array else xp.asarray(value, device=device))
        except (TypeError, ValueError) as error:
            found = f"found a {type(value).__name__} that does not make an array ({error})"
            remedy = "Pass an array, or nested lists of numbers of equal length"
            raise DTypeError(message(call, name, found, remedy)) from None
    return xp, converted


def _check_shapes(call: str, axis: int, arrays: dict[str, Array]) -> None:
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    for name, shape in shapes.items():
        if not -len(shape) <= axis < len(shape):
            found = f"shape {shape} has no axis {axis}"
            raise ShapeError(message(call, name, found, "Pass an array whose classes lie along `axis`"))
    listed = " and ".join(f"{name} {shape}" for name, shape in shapes.items())
    names = ", ".join(shapes)
    if len({shape[axis] for shape in shapes.values()}) > 1:
        found = f"the number of classes along axis {axis} differs: {listed}"
        raise ShapeError(message(call, names, found, "Both distributions need the same classes"))
    for sizes in zip(*(reversed(shape) for shape in shapes.values()), strict=False):
        if len({size for size in sizes if size != 1}) > 1:
            found = f"the shapes do not broadcast: {listed}"
            raise ShapeError(message(call, names, found, "Axes other than the classes must be equal, or 1"))


def sum_tolerance(eps: float) -> float:
    """How far a distribution's sum may be from 1: the square root of the dtype's rounding, at least a millionth.

    That is half of the digits of float32 (3.5e-4), float16 (0.03) and bfloat16 (0.09). For float64 it is 1e-6, so that
    numbers that a float32 softmax made, and that were widened later, still count as a distribution.
    """
    return max(1e-6, math.sqrt(eps))


def _sum_tolerances(call: str, arrays: dict[str, Any]) -> dict[str, float]:
    """The tolerance of each argument, from the dtype in which it came."""
    xp, given = _as_given(call, arrays)
    return {
        name: sum_tolerance(float(xp.finfo(array.dtype).eps) if xp.isdtype(array.dtype, "real floating") else 0.0)
        for name, array in zip(arrays, given, strict=True)
    }


def _check_probabilities(call: str, name: str, p: Array, tolerance: float) -> None:
    xp = array_api_compat.array_namespace(p)
    wrong = ~((p >= 0) & (p <= 1 + tolerance))  # NaN compares false, so it is among the wrong ones
    if xp.any(wrong):
        where, value = first_wrong(wrong, p)
        remedy = "Pass probabilities. For logits use softmax first, or xent.numpy and xent.torch, which take logits"
        raise DistributionError(message(call, name, f"{value:.6g} at {where} is not a probability", remedy))


def _check_sums(call: str, name: str, p: Array, axis: int, tolerance: float) -> None:
    xp = array_api_compat.array_namespace(p)
    totals = xp.sum(p, axis=axis)
    wrong = ~(xp.abs(totals - 1) <= tolerance)
    if xp.any(wrong):
        where, total = first_wrong(wrong, totals)
        at = f" at row {where}" if p.ndim > 1 else ""
        found = f"the distribution{at} sums to {total:.9g}, not to 1 (within {tolerance:.1g})"
        remedy = "If these are counts or rounded numbers, divide by p.sum(axis, keepdims=True); for logits use softmax"
        raise DistributionError(message(call, name, found, remedy))


def first_wrong(wrong: Array, values: Array) -> tuple[str, Any]:
    """The index of the first wrong entry, written as an index is, and its value."""
    xp = array_api_compat.array_namespace(wrong)
    position = int(xp.argmax(xp.astype(xp.reshape(wrong, (-1,)), xp.int8)))
    value = xp.reshape(values, (-1,))[position].item()
    index: list[int] = []
    for size in reversed(wrong.shape):
        position, place = divmod(position, size)
        index.insert(0, place)
    return (str(index[0]) if len(index) == 1 else str(tuple(index))), value
