"""Probabilities in arrays of every kind: what test_array_kinds.py asks of logits, of `information` and `likelihood`."""

from __future__ import annotations

import math
import warnings
from typing import Any

import ml_dtypes
import mpmath_oracle as oracle
import numpy as np
import pytest
import torch
from comparison import ULPS, relative
from libraries import load
from test_array_kinds import LABELS, LAYOUTS, SOFT, assert_same_bits
from test_errors import refuse

import xent.information
import xent.likelihood
from xent.errors import DTypeError, LabelError

load("jax")  # float64 before the first array is made


def information(p: Any, q: Any, labels: Any) -> tuple[Any, ...]:
    of_two = (xent.information.cross_entropy, xent.information.kl_divergence, xent.information.js_divergence)
    return (
        *(f(p, q) for f in of_two),
        xent.information.entropy(q),
        xent.information.perplexity(p, q),
        xent.information.information_content(q),
        xent.information.softmax(q),
        xent.information.log_softmax(q),
        xent.information.one_hot(labels, 5),
        xent.likelihood.negative_log_likelihood(labels, q),
        xent.likelihood.log_likelihood(labels, q, reduction="none"),
    )


MIXED = 0.5 * SOFT + np.full(SOFT.shape, 0.1)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", np.longdouble])
def test_the_byte_order_of_probabilities_changes_no_bit(dtype):
    native = [SOFT.astype(dtype), MIXED.astype(dtype), LABELS.astype("i2")]
    assert_same_bits(information(*(a.astype(a.dtype.newbyteorder("S")) for a in native)), information(*native))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_of_probabilities_changes_nothing(layout):
    native = [SOFT, MIXED, LABELS]
    found = information(*(LAYOUTS[layout](array) for array in native))
    for one, other in zip(found, information(*native), strict=True):
        assert type(one) is type(other)
        relative(one, other, ULPS, np.float64)


def test_matrices_are_arrays():
    """numpy.matrix has no vectors: its sums along an axis would stay matrices."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        matrix = np.asmatrix(SOFT)
    np.testing.assert_array_equal(xent.information.entropy(matrix), xent.information.entropy(SOFT))


def test_bfloat16_of_ml_dtypes_is_computed_in_float32():
    narrow = MIXED.astype(ml_dtypes.bfloat16)
    found, wide = xent.information.entropy(narrow), narrow.astype(np.float64)
    assert found.dtype == np.float32
    with oracle.exactly():
        relative(found, oracle.floats([oracle.entropy(row) for row in wide]), ULPS, np.float32)


@pytest.mark.parametrize("name", ["p", "q"])
def test_masked_probabilities_are_an_error_that_names_filled(name):
    arguments = {"p": SOFT, "q": MIXED}
    arguments[name] = np.ma.masked_array(arguments[name], SOFT == 0)
    for call in (xent.information.cross_entropy, xent.information.kl_divergence, xent.information.js_divergence):
        refuse(DTypeError, [f"{name}=", "6 masked", ".filled("], call, *arguments.values())
    masked = np.ma.masked_array(LABELS, LABELS == 2)
    refuse(DTypeError, ["labels=", "2 masked", ".filled("], xent.information.one_hot, masked, 5)
    refuse(DTypeError, ["y_true=", "2 masked", ".filled("], xent.likelihood.likelihood, masked, SOFT)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_8_bit_tensors_are_computed_in_float32_with_any_other_argument(dtype):
    """Neither torch nor JAX has a common dtype of 8-bit and other floats."""
    p, q = torch.tensor([0.5, 0.5]).to(getattr(torch, dtype)), torch.tensor([0.25, 0.75])
    with oracle.exactly():
        wanted = float(oracle.cross_entropy([0.5, 0.5], [0.25, 0.75]))
    for other in (q, q.double(), q.half(), q.to(p.dtype)):
        found = xent.information.cross_entropy(p, other)
        assert found.dtype == (torch.float64 if other.dtype == torch.float64 else torch.float32)
        relative(found.item(), wanted, ULPS, np.float32)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32"])
def test_labels_of_few_bits_name_classes_of_many(xp, dtype):
    """In uint8 the number 300 is 44, so that label 127 was refused, or marked several classes."""
    labels = xp.module.asarray(np.array([0, 127], dtype))
    found = xp.numpy(xent.information.one_hot(labels, 300))
    assert [row.nonzero()[0].tolist() for row in found] == [[0], [127]]
    proba = xp.asarray(np.full((2, 300), 1 / 300))
    relative(float(xent.likelihood.negative_log_likelihood(labels, proba)), 2 * math.log(300))
    with pytest.raises(LabelError, match="127 at row 1"):
        xent.information.one_hot(labels, 100)
