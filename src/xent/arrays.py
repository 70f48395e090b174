"""Conversion of arrays of any library, and checks of probabilities, for `information` and `likelihood`."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import array_api_compat
import numpy as np
from numpy.ma import MaskedArray

from xent.errors import ArgumentError, DistributionError, DTypeError, LabelError, ShapeError, message

Array = Any  # any array of the array API standard


def as_arrays(call: str, **arrays: Any) -> tuple[Any, list[Array]]:
    """Return the array namespace and the named arguments as arrays of one floating dtype, at least float32.

    Python numbers and lists become NumPy arrays. Integers (a one-hot vector of 0 and 1) take the dtype of the floating
    arguments. Numbers of 16 and 8 bits are widened to float32: neither sums nor logarithms are computed in so few.
    NumPy's longdouble stays what it is.
    """
    xp, given = _to_arrays(call, arrays)
    converted = [array.astype(np.float32) if is_numpy_bfloat16(array.dtype) else array for array in given]
    for name, array in zip(arrays, converted, strict=True):
        if not _is_of_kind(xp, array.dtype, ("real floating", "integral", "bool")):
            problem = f"found dtype {array.dtype}, expected real numbers"
            raise DTypeError(message(call, name, problem, conversion(array.dtype)))
    # Widened one by one: libraries have no common dtype of 8-bit and other floating numbers.
    floating = [
        array.dtype if xp.finfo(array.dtype).bits >= 32 else xp.float32
        for array in converted
        if xp.isdtype(array.dtype, "real floating")
    ]
    dtype = xp.result_type(*floating) if floating else default_floating(xp)
    return xp, [array if array.dtype == dtype else xp.astype(array, dtype) for array in converted]


def as_probabilities(call: str, check: bool, **array: Any) -> tuple[Any, Array]:
    """Return one argument as an array of probabilities; with `check`, DistributionError if it is not."""
    tolerances = _sum_tolerances(call, array)
    xp, converted = as_arrays(call, **array)
    if check:
        for name in array:
            _check_probabilities(call, name, converted[0], tolerances[name])
    return xp, converted[0]


def as_distributions(call: str, axis: int, check: bool, **arrays: Any) -> tuple[Any, list[Array]]:
    """Return arguments as distributions along `axis`, of fitting shapes; with `check`, DistributionError if not."""
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
    """Return one argument as class indices; with `check`, LabelError if one is outside [0, classes).

    They are int64 (int32 where a library has nothing wider): in uint8 the number of 300 classes is 44.
    """
    xp, (given,) = _to_arrays(call, array)
    (name,) = array
    if not _is_of_kind(xp, given.dtype, "integral"):
        problem = f"found dtype {given.dtype}, expected integers"
        raise DTypeError(
            message(call, name, problem, "Pass class indices 0, 1, ...; sklearn's LabelEncoder makes them")
        )
    wide = xp.__array_namespace_info__().default_dtypes(device=None)["integral"]
    # uint64 labels from 2^63 on become negative, which is out of range as well.
    labels = given if given.dtype == wide else xp.astype(given, wide)
    if check:
        outside = (labels < 0) | (labels >= classes)
        if xp.any(outside):
            where, label = first_wrong(outside, given)
            problem = f"label {label} at row {where} is outside [0, {classes})"
            remedy = f"Labels count from 0, so {classes} classes end at {classes - 1}"
            raise LabelError(message(call, name, problem, remedy))
    return xp, labels


def check_classes(call: str, classes: int) -> None:
    """Raise ArgumentError unless this is a number of classes."""
    try:
        usable = bool(classes >= 1 and classes == int(classes))
    except (TypeError, ValueError, OverflowError):  # not a finite number
        usable = False
    if not usable:
        problem = f"found {classes!r}, expected a whole number of 1 or more"
        raise ArgumentError(message(call, "classes", problem, "Pass the number of all classes, labelled here or not"))


def check_soft_target(call: str, target: Array, axis: int) -> None:
    """Raise DistributionError unless the target of a loss holds distributions along `axis`."""
    as_distributions(call, axis, True, target=target)


def default_floating(xp: Any) -> Any:
    """Return the default floating dtype of an array library."""
    return xp.__array_namespace_info__().default_dtypes(device=None)["real floating"]


def _to_arrays(call: str, arrays: dict[str, Any]) -> tuple[Any, list[Array]]:
    """Return the namespace of the arrays, and every argument as an array of it, with unchanged dtypes.

    Of NumPy's arrays the byte order becomes the machine's, and subclasses become plain arrays.
    """
    for name, value in arrays.items():
        check_is_dense(call, name, value)
    present = [value for value in arrays.values() if array_api_compat.is_array_api_obj(value)]
    try:
        xp = array_api_compat.array_namespace(*(present or [np.zeros(1)]))
    except TypeError:
        problem = f"found arrays of different libraries: {', '.join(sorted({type(a).__module__ for a in present}))}"
        raise DTypeError(message(call, ", ".join(arrays), problem, "Convert them to one library first")) from None
    device = array_api_compat.device(present[0]) if present else "cpu"
    converted = []
    for name, value in arrays.items():
        try:
            is_array = array_api_compat.is_array_api_obj(value)
            array = value if is_array else xp.asarray(value, device=device)
            converted.append(native(np.asarray(array)) if array_api_compat.is_numpy_array(array) else array)
        except (TypeError, ValueError, RuntimeError) as error:
            problem = f"found a {type(value).__name__} that does not make an array ({error})"
            remedy = "Pass an array, or nested lists of numbers of equal length"
            raise DTypeError(message(call, name, problem, remedy)) from None
    return xp, converted


def check_is_dense(call: str, name: str, value: Any) -> None:
    """Raise DTypeError for masked entries, which NumPy reads as the numbers below the mask, and for sparse matrices."""
    masked = [part for part in (value if isinstance(value, list | tuple) else [value]) if isinstance(part, MaskedArray)]
    entries = sum(int(np.ma.getmaskarray(part).sum()) for part in masked)
    if entries:
        problem = f"found a masked array with {entries} masked entries"
        remedy = (
            "Replace them with .filled(value): -inf masks the class of a logit, ignore_index the row of a label, "
            "and a probability is 0"
        )
        raise DTypeError(message(call, name, problem, remedy))
    if hasattr(value, "toarray") and hasattr(value, "nnz"):  # SciPy's and CuPy's sparse matrices
        problem, remedy = f"found a sparse {type(value).__name__}, expected an array", "Pass its .toarray()"
        raise DTypeError(message(call, name, problem, remedy))
    if array_api_compat.is_torch_array(value) and str(value.layout).startswith("torch.sparse"):
        problem, remedy = f"found a tensor of layout {value.layout}, expected a dense one", "Pass its .to_dense()"
        raise DTypeError(message(call, name, problem, remedy))


def native(array: np.ndarray) -> np.ndarray:
    """Return a NumPy array in the machine's byte order, which compiled code requires; a copy of any other only."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def is_numpy_bfloat16(dtype: Any) -> bool:
    """Whether this is the bfloat16 of ml_dtypes, which jax brings, in a NumPy array: a "void" to NumPy."""
    return isinstance(dtype, np.dtype) and dtype.kind == "V" and dtype.name == "bfloat16"


def rounded(numbers: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """NumPy's float64 numbers in a narrower dtype; uint16 stands for the bits of bfloat16."""
    if dtype != np.uint16:
        return numbers.astype(dtype)
    # To bfloat16 by way of float32, rounding to nearest even by adding half of what is dropped.
    pattern = np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32)
    upper = ((pattern + 0x7FFF + ((pattern >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(numbers), np.uint16(0x7FC0), upper)


def widened(numbers: np.ndarray) -> np.ndarray:
    """The bits of bfloat16 (uint16) as float32, the inverse of `rounded`; other numbers as they are."""
    return (numbers.astype(np.uint32) << 16).view(np.float32) if numbers.dtype == np.uint16 else numbers


def conversion(dtype: Any) -> str:
    """Return the remedy for an array whose dtype is none of the real numbers that a call takes."""
    name = str(dtype)
    if getattr(dtype, "names", None):
        return f"Pass one of its fields, such as array[{dtype.names[0]!r}], or structured_to_unstructured of the array"
    if "complex" in name:
        return "Pass its real part"
    if "float8" in name or "float6" in name or "float4" in name:
        return "Convert it with .astype(numpy.float32), which holds all its numbers"
    if getattr(dtype, "char", "") == "g":
        return "Convert it with .astype(numpy.float64)"
    return "Convert it to numbers first: .astype(numpy.float64), or labels with .astype(numpy.int64)"


def _is_of_kind(xp: Any, dtype: Any, kind: Any) -> bool:
    try:
        return bool(xp.isdtype(dtype, kind))
    except TypeError:  # a dtype that others have added to NumPy, such as ml_dtypes.float8_e4m3fn
        return False


def check_classes_axis(call: str, axis: int, **array: Array) -> None:
    """Raise ShapeError unless the array has classes along `axis`."""
    _check_shapes(call, axis, array)
    ((name, logits),) = array.items()
    if logits.shape[axis] == 0:
        problem = f"shape {tuple(logits.shape)} has no classes along axis {axis}"
        raise ShapeError(message(call, name, problem, "Pass at least one class"))


def _check_shapes(call: str, axis: int, arrays: dict[str, Array]) -> None:
    if not isinstance(axis, Integral):
        problem = f"found {axis!r}, expected a whole number"
        raise ArgumentError(message(call, "axis", problem, "Pass the number of the axis of the classes, such as -1"))
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    for name, shape in shapes.items():
        if not -len(shape) <= axis < len(shape):
            problem = f"shape {shape} has no axis {axis}"
            raise ShapeError(message(call, name, problem, "Pass an array whose classes lie along `axis`"))
    listed = " and ".join(f"{name} {shape}" for name, shape in shapes.items())
    names = ", ".join(shapes)
    if len({shape[axis] for shape in shapes.values()}) > 1:
        problem = f"the number of classes along axis {axis} differs: {listed}"
        raise ShapeError(message(call, names, problem, "Both distributions need the same classes"))
    for sizes in zip(*(reversed(shape) for shape in shapes.values()), strict=False):
        if len({size for size in sizes if size != 1}) > 1:
            problem = f"the shapes do not broadcast: {listed}"
            raise ShapeError(message(call, names, problem, "Axes other than the classes must be equal, or 1"))


def sum_tolerance(eps: float) -> float:
    """Return how far from 1 a distribution may sum: the square root of the dtype's rounding, but at least 1e-6.

    That is half of the digits of float32 (3.5e-4), float16 (0.03) and bfloat16 (0.09). For float64 it is 1e-6, so that
    the result of a float32 softmax still counts as a distribution after it has been widened.
    """
    return max(1e-6, math.sqrt(eps))


def _sum_tolerances(call: str, arrays: dict[str, Any]) -> dict[str, float]:
    """Return the tolerance of each argument, from its own dtype."""
    xp, converted = _to_arrays(call, arrays)
    return {name: sum_tolerance(_rounding(xp, array.dtype)) for name, array in zip(arrays, converted, strict=True)}


def _rounding(xp: Any, dtype: Any) -> float:
    """Return the distance from 1 to the next number of a dtype; 0 for integers."""
    if is_numpy_bfloat16(dtype):
        return 2.0**-7
    return float(xp.finfo(dtype).eps) if _is_of_kind(xp, dtype, "real floating") else 0.0


def _check_probabilities(call: str, name: str, p: Array, tolerance: float) -> None:
    xp = array_api_compat.array_namespace(p)
    wrong = ~((p >= 0) & (p <= 1 + tolerance))  # comparisons with NaN are false, so NaN is wrong
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
        problem = f"the distribution{at} sums to {total:.9g}, not to 1 (within {tolerance:.1g})"
        remedy = "If these are counts or rounded numbers, divide by p.sum(axis, keepdims=True); for logits use softmax"
        raise DistributionError(message(call, name, problem, remedy))


def first_wrong(wrong: Array, values: Array) -> tuple[str, Any]:
    """Return the index of the first wrong entry, as text, and its value."""
    xp = array_api_compat.array_namespace(wrong)
    position = int(xp.argmax(xp.astype(xp.reshape(wrong, (-1,)), xp.int8)))
    value = xp.reshape(values, (-1,))[position]
    if hasattr(value, "item"):
        value = value.item()
    else:  # the standard has conversions only
        value = int(value) if xp.isdtype(value.dtype, "integral") else float(value)
    index: list[int] = []
    for size in reversed(wrong.shape):
        position, place = divmod(position, size)
        index.insert(0, place)
    return (str(index[0]) if len(index) == 1 else str(tuple(index))), value
