"""Arrays of every kind: byte orders, layouts, masks, dtypes that are not computed in, no rows, the largest numbers.

An array that holds the same numbers gives the same bits; what cannot be answered is an error with its remedy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
import torch
from comparison import ULPS, assert_within, eps, relative
from test_errors import refuse

import xent.information
import xent.likelihood
import xent.numpy
import xent.reference as reference
import xent.torch
from xent.errors import DTypeError, LabelError
from xent.objective import Objective

RNG = np.random.default_rng(20261126)
# Quarters below 4: every dtype holds them, so that arrays of all dtypes hold the same numbers.
LOGITS = RNG.integers(-12, 16, (6, 5)) / 4
LABELS = np.array([4, 0, 2, 1, 3, 2])
SOFT = RNG.permuted(np.tile([0.5, 0.25, 0.125, 0.125, 0.0], (6, 1)), axis=1)
WEIGHT = np.array([1.0, 2.0, 0.5, 0.25, 4.0])
LINEAR = RNG.integers(-8, 9, (5, 5)) / 4
BIAS = np.array([0.5, -0.25, 1.0, 0.0, 2.0])


def weighted(logits: Any, target: Any, weight: Any) -> tuple[Any, ...]:
    return xent.numpy.cross_entropy_value_and_grad(logits, target, weight=weight)


def squared(logits: Any, target: Any) -> tuple[Any, ...]:
    return xent.numpy.squared_error_value_and_grad(logits, target)


def linear(input: Any, linear_weight: Any, target: Any, linear_bias: Any) -> tuple[Any, ...]:
    loss, gradients = xent.numpy.linear_cross_entropy_value_and_grad(
        input, linear_weight, target, linear_bias=linear_bias
    )
    return loss, *gradients


def linear_statistics(input: Any, linear_weight: Any, target: Any, linear_bias: Any) -> tuple[Any, ...]:
    return tuple(xent.numpy.linear_statistics(input, linear_weight, target, linear_bias=linear_bias))


CALLS: dict[str, tuple[Callable[..., tuple[Any, ...]], tuple[np.ndarray, ...], tuple[str, ...]]] = {
    "labels": (weighted, (LOGITS, LABELS, WEIGHT), ("logits", "target", "weight")),
    "soft": (weighted, (LOGITS, SOFT, WEIGHT), ("logits", "target", "weight")),
    "squared": (squared, (LOGITS, LABELS), ("logits", "target")),
    "squared-soft": (squared, (LOGITS, SOFT), ("logits", "target")),
    "linear": (linear, (LOGITS, LINEAR, LABELS, BIAS), ("input", "linear_weight", "target", "linear_bias")),
    "linear-soft": (linear, (LOGITS, LINEAR, SOFT, BIAS), ("input", "linear_weight", "target", "linear_bias")),
    "statistics": (linear_statistics, (LOGITS, LINEAR, LABELS, BIAS), ("input", "linear_weight", "target")),
}


def each_argument() -> list[Any]:
    """Every array argument of every call."""
    return [
        pytest.param(call, arguments, place, name, id=f"{id_}-{name}")
        for id_, (call, arguments, names) in CALLS.items()
        for place, name in ((names.index(name), name) for name in names)
    ]


def with_argument(arguments: tuple[Any, ...], place: int, value: Any) -> list[Any]:
    return [*arguments[:place], value, *arguments[place + 1 :]]


def in_dtype(array: np.ndarray, dtype: str) -> np.ndarray:
    """The array in a floating dtype; labels stay labels, in as many bytes."""
    return array.astype(dtype.replace("f", "i") if array.dtype.kind == "i" else dtype)


def assert_same_bits(found: tuple[Any, ...], wanted: tuple[Any, ...]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert one.dtype.isnative
        assert one.shape == other.shape
        assert type(one) is type(other)
        np.testing.assert_array_equal(one, other)


# ----------------------------------------------------------------------------------------------- byte order and layout


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("name", CALLS)
def test_the_byte_order_changes_no_bit(name, dtype):
    call, arguments, _ = CALLS[name]
    swapped = [in_dtype(array, dtype).astype(in_dtype(array, dtype).dtype.newbyteorder("S")) for array in arguments]
    assert not any(array.dtype.isnative for array in swapped)
    assert_same_bits(call(*swapped), call(*(in_dtype(array, dtype) for array in arguments)))


@pytest.mark.parametrize("dtype", [">f2", "<f2", ">f4", "<f4", ">f8", "<f8", ">i2", "<u8"])
def test_losses_and_gradients_in_any_byte_order_are_those_of_the_reference(dtype):
    logits = np.trunc(LOGITS).astype(dtype) if np.dtype(dtype).kind in "iu" else LOGITS.astype(dtype)
    logits = np.abs(LOGITS).astype(dtype) if dtype == "<u8" else logits
    loss, gradient = xent.numpy.cross_entropy_value_and_grad(logits, LABELS, reduction="none")
    rows = logits.astype(np.float64)
    # A few roundings of numbers below 8, and the rounding to the dtype that is returned.
    unit = eps(loss.dtype)
    wanted, _ = reference.cross_entropy(rows, LABELS, Objective())
    assert_within(loss, wanted, 4 * unit * (wanted + 8))
    assert_within(gradient, reference.cross_entropy_gradient(rows, LABELS, Objective()), 8 * unit + eps(gradient.dtype))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
def test_labels_of_any_integer_dtype_and_byte_order_are_labels(dtype, order):
    labels = LABELS.astype(order + dtype)
    for call, arguments, names in (CALLS["labels"], CALLS["squared"], CALLS["linear"], CALLS["statistics"]):
        place = names.index("target")
        assert_same_bits(call(*with_argument(arguments, place, labels)), call(*arguments))


def unaligned(array: np.ndarray) -> np.ndarray:
    """The column of a packed table, one byte from where it would have to be."""
    table = np.zeros(len(array), dtype=[("flag", "i1"), ("column", array.dtype, array.shape[1:])])
    table["column"] = array
    assert not table["column"].flags.aligned
    return table["column"]


def read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def spread(array: np.ndarray) -> np.ndarray:
    """Every second number along each axis of an array twice as long."""
    wide = np.zeros([2 * size for size in array.shape], array.dtype)
    view = wide[(slice(None, None, 2),) * array.ndim]
    view[...] = array
    return view


LAYOUTS = {
    "reversed": lambda array: np.ascontiguousarray(array[(slice(None, None, -1),) * array.ndim])[
        (slice(None, None, -1),) * array.ndim
    ],
    "spread": spread,
    "fortran": np.asfortranarray,
    "unaligned": unaligned,
    "read-only": read_only,
    "subclass": lambda array: np.ma.masked_array(array),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CALLS)
def test_the_layout_of_the_arguments_changes_nothing(name, layout):
    call, arguments, _ = CALLS[name]
    found, wanted = call(*(LAYOUTS[layout](array) for array in arguments)), call(*arguments)
    for one, other in zip(found, wanted, strict=True):
        assert type(one) is type(other)
        relative(one, other, ULPS, np.float64, floor=ULPS * eps(np.float64))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f8", ">f4"])
def test_the_layout_of_logits_changes_no_bit_in_the_kernels(dtype, layout):
    for shape in ((6, 5), (3, 5, 4), (4, 200), (2, 3, 2, 2)):
        logits = RNG.normal(size=shape).astype(dtype)
        labels = RNG.integers(0, shape[1], shape[:1] + shape[2:])
        options = {"label_smoothing": 0.1, "z_loss": 1e-3}
        found = xent.numpy.cross_entropy_value_and_grad(LAYOUTS[layout](logits), LAYOUTS[layout](labels), **options)
        assert_same_bits(found, xent.numpy.cross_entropy_value_and_grad(logits, labels, **options))


@pytest.mark.parametrize("axis", [0, 1])
def test_broadcast_views_are_read_as_what_they_show(axis):
    logits = np.broadcast_to(np.take(LOGITS, [0], axis), LOGITS.shape)
    soft, linear_weight = np.broadcast_to(SOFT[:1], SOFT.shape), np.broadcast_to(LINEAR[:1], LINEAR.shape)
    assert not all(logits.strides)
    assert_same_bits(weighted(logits, SOFT, WEIGHT), weighted(logits.copy(), SOFT, WEIGHT))
    assert_same_bits(weighted(LOGITS, soft, WEIGHT), weighted(LOGITS, soft.copy(), WEIGHT))
    assert_same_bits(
        linear(logits, linear_weight, np.broadcast_to(1, 6), np.broadcast_to(0.5, 5)),
        linear(logits.copy(), linear_weight.copy(), np.full(6, 1), np.full(5, 0.5)),
    )


def test_memory_mapped_files_are_arrays(tmp_path):
    LOGITS.astype(">f4").tofile(tmp_path / "logits")
    logits = np.memmap(tmp_path / "logits", ">f4", "r", shape=LOGITS.shape)
    assert_same_bits(weighted(logits, LABELS, WEIGHT), weighted(LOGITS.astype("f4"), LABELS, WEIGHT))
    found = xent.information.softmax(logits)
    assert type(found) is np.ndarray
    np.testing.assert_array_equal(found, xent.information.softmax(LOGITS.astype("f4")))


def test_bfloat16_class_probabilities_are_those_of_their_numbers():
    assert_same_bits(weighted(LOGITS, SOFT.astype(ml_dtypes.bfloat16), WEIGHT), weighted(LOGITS, SOFT, WEIGHT))


# ------------------------------------------------------------------------------------------------------- masked, sparse


@pytest.mark.parametrize(("call", "arguments", "place", "name"), each_argument())
def test_masked_entries_are_an_error_that_names_filled(call, arguments, place, name):
    mask = np.zeros(arguments[place].shape, bool)
    mask[..., -1] = True
    masked = np.ma.masked_array(arguments[place], mask)
    count = f"{int(mask.sum())} masked"
    refuse(DTypeError, [f"{name}=", count, ".filled("], call, *with_argument(arguments, place, masked))
    refuse(DTypeError, [f"{name}=", count, ".filled("], call, *with_argument(arguments, place, list(masked)))


def test_a_masked_array_filled_with_minus_infinity_masks_the_class():
    masked = np.ma.masked_array(LOGITS, LOGITS.min(axis=1, keepdims=True) == LOGITS)
    labels = LOGITS.argmax(axis=1)
    loss, gradient = xent.numpy.cross_entropy_value_and_grad(masked.filled(-np.inf), labels, reduction="none")
    rows = [np.exp(row.compressed() - row.max()) for row in masked]
    relative(loss, [math.log(math.fsum(row)) for row in rows])
    assert (gradient[masked.mask] == 0).all()


SPARSE = (scipy.sparse.csr_matrix, scipy.sparse.coo_array, scipy.sparse.csc_array)


@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_matrices_are_an_error_that_names_toarray(kind):
    refuse(DTypeError, ["logits=", kind.__name__, ".toarray()"], xent.numpy.cross_entropy, kind(LOGITS), LABELS)
    refuse(DTypeError, ["target=", ".toarray()"], xent.numpy.cross_entropy, LOGITS, kind(SOFT))
    refuse(DTypeError, ["input=", ".toarray()"], linear, kind(LOGITS), LINEAR, LABELS, BIAS)
    refuse(DTypeError, ["entropy(p=", ".toarray()"], xent.information.entropy, kind(SOFT))
    refuse(DTypeError, ["y_proba=", ".toarray()"], xent.likelihood.likelihood, LABELS, kind(SOFT))


@pytest.mark.parametrize("layout", ["to_sparse_coo", "to_sparse_csr", "to_sparse_csc"])
@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta")
def test_sparse_tensors_are_an_error_that_names_to_dense(layout):
    sparse = getattr(torch.tensor(SOFT), layout)()
    for call, argument in ((xent.information.entropy, "p"), (xent.information.softmax, "logits")):
        refuse(DTypeError, [f"{argument}=", "torch.sparse_", ".to_dense()"], call, sparse)
    refuse(DTypeError, ["logits=", ".to_dense()"], xent.numpy.cross_entropy, sparse, LABELS)


def test_tensors_that_numpy_cannot_view_are_sent_to_the_torch_front():
    both = torch.complex(torch.tensor(LOGITS), -torch.tensor(LOGITS))
    negative = both.conj().imag
    assert negative.is_neg()
    for tensor, hint in (
        (both.conj(), "resolve_conj"),
        (negative, "resolve_neg"),
        (torch.tensor(LOGITS, requires_grad=True), "detach"),
        (torch.tensor(LOGITS).to(torch.float8_e5m2), "Float8"),
    ):
        refuse(DTypeError, ["logits=", hint, "xent.torch"], xent.numpy.cross_entropy, tensor, LABELS)
    assert xent.torch.cross_entropy(negative, torch.tensor(LABELS)) == xent.numpy.cross_entropy(LOGITS, LABELS)
    np.testing.assert_array_equal(xent.information.softmax(negative), xent.information.softmax(torch.tensor(LOGITS)))


# --------------------------------------------------------------------------------------------------------------- dtypes

STRUCTURED = np.dtype([("a", "f4"), ("b", "f4")])
REFUSED = {
    "longdouble": (np.longdouble, ".astype(numpy.float64)"),
    "longdouble swapped": (np.dtype(np.longdouble).newbyteorder("S"), ".astype(numpy.float64)"),
    "complex": (np.complex64, "real part"),
    "object": (object, ".astype(numpy.float64)"),
    "datetime": ("M8[s]", ".astype(numpy.float64)"),
    "timedelta": ("m8[s]", ".astype(numpy.float64)"),
    "bool": (bool, ".astype(numpy.int64)"),
    "bytes": ("S4", ".astype(numpy.float64)"),
    "text": ("U4", ".astype(numpy.float64)"),
    "float8_e4m3fn": (ml_dtypes.float8_e4m3fn, ".astype(numpy.float32)"),
    "float8_e5m2": (ml_dtypes.float8_e5m2, ".astype(numpy.float32)"),
    "int4": (ml_dtypes.int4, ".astype(numpy.int64)"),
    "structured": (STRUCTURED, "array['a']"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize(("call", "arguments", "place", "name"), each_argument())
def test_other_dtypes_are_an_error_that_says_what_to_do(call, arguments, place, name, kind):
    dtype, remedy = REFUSED[kind]
    array = np.zeros(arguments[place].shape, dtype)
    refuse(DTypeError, [f"{name}=", str(np.dtype(dtype)), remedy], call, *with_argument(arguments, place, array))


@pytest.mark.parametrize("kind", [kind for kind in REFUSED if "longdouble" not in kind and kind != "bool"])
def test_other_dtypes_are_no_probabilities(kind):
    dtype, remedy = REFUSED[kind]
    array = np.zeros((3, 3), dtype)
    for call, argument in ((xent.information.entropy, "p"), (xent.information.softmax, "logits")):
        refuse(DTypeError, [f"{argument}=", str(np.dtype(dtype)), remedy], call, array)
    refuse(DTypeError, ["y_proba=", remedy], xent.likelihood.negative_log_likelihood, [0, 1, 2], array)
    refuse(DTypeError, ["y_true=", "integers"], xent.likelihood.negative_log_likelihood, array[:, 0], np.eye(3))


@pytest.mark.parametrize("label", [5, 2**63, 2**64 - 100, 2**64 - 1])
def test_labels_beyond_int64_are_out_of_range_and_not_wrapped(label):
    """2**64 - 100 has the bits of -100, the `ignore_index`."""
    labels = np.array([0, label], np.uint64)
    refuse(LabelError, [str(label), "row 1", "[0, 5)"], xent.numpy.cross_entropy, LOGITS[:2], labels)
    refuse(LabelError, [str(label), "row 1", "[0, 5)"], xent.numpy.squared_error, LOGITS[:2], labels)
    refuse(LabelError, [str(label), "row 1", "[0, 5)"], linear, LOGITS[:2], LINEAR, labels, BIAS)
    refuse(LabelError, [str(label), "row 1", "[0, 5)"], xent.information.one_hot, labels, 5)
    refuse(LabelError, [str(label), "row 1"], xent.likelihood.log_likelihood, labels, SOFT[:2])


@pytest.mark.parametrize("dtype", ["f4", ">f8"])
def test_whole_numbers_in_a_floating_dtype_are_no_labels(dtype):
    remedy = "Convert them to integers"
    refuse(DTypeError, ["target=", remedy], xent.numpy.cross_entropy, LOGITS, LABELS.astype(dtype))
    refuse(DTypeError, ["labels=", "integers"], xent.information.one_hot, LABELS.astype(dtype), 5)


# -------------------------------------------------------------------------------------------------------------- no rows


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2), (2, 3, 0), (0, 3, 0), (2, 3, 0, 4), (2, 3, 4, 0), (0, 3, 4, 5)])
def test_no_rows_in_any_shape_are_what_they_are_to_torch(shape, soft):
    target = np.zeros(shape) if soft else np.zeros(shape[:1] + shape[2:], int)
    for reduction in ("none", "sum", "mean"):
        wanted = torch.nn.functional.cross_entropy(torch.zeros(shape), torch.tensor(target), reduction=reduction)
        for call in (xent.numpy.cross_entropy_value_and_grad, xent.numpy.squared_error_value_and_grad):
            loss, gradient = call(np.zeros(shape), target, reduction=reduction)
            np.testing.assert_array_equal(loss, wanted)
            assert gradient.shape == shape


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (0, 3, 5)])
def test_no_rows_of_a_linear_layer_have_empty_and_zero_gradients(shape):
    loss, of_input, of_weight, of_bias = linear(np.zeros(shape), LINEAR, np.zeros(shape[:-1], int), BIAS)
    assert math.isnan(loss)
    assert of_input.shape == shape
    assert not of_weight.any()
    assert not of_bias.any()
    statistics = linear_statistics(np.zeros(shape), LINEAR, np.zeros(shape[:-1], int), BIAS)
    assert all(array.shape == shape[:-1] for array in statistics)


@pytest.mark.parametrize("shape", [(2, 0, 3), (0, 0), (0,)])
def test_no_classes_are_an_error(shape):
    labels = np.zeros(shape[:1] + shape[2:] if len(shape) > 1 else (), int)
    refuse(xent.errors.ShapeError, ["logits=", "no classes"], xent.numpy.cross_entropy, np.zeros(shape), labels)
