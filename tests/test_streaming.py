"""Gradients that are large enough to be stored past the caches, whole lines at a time, beside those that are not."""

import numpy as np
import pytest

from xent.backends.cpu.backend import CpuBackend
from xent.backends.cpu.streaming import LARGE, LINE
from xent.objective import Objective

DTYPES = [np.float32, np.float64, np.float16]


def large_logits(dtype, classes):
    """A little more than is streamed, with rows that begin anywhere in a line."""
    rows = LARGE // (classes * np.dtype(dtype).itemsize) + 1
    assert classes * np.dtype(dtype).itemsize % LINE
    block = np.random.default_rng(0).standard_normal(10_007)
    return np.resize(block, (rows, classes)).astype(dtype)


def softmax_less_one_hot(logits, labels):
    """The gradient of the sum, in float64."""
    wide = logits.astype(np.float64)
    exponentials = np.exp(wide - wide.max(1, keepdims=True))
    gradient = exponentials / exponentials.sum(1, keepdims=True)
    gradient[np.arange(len(logits)), labels] -= 1
    return gradient


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [10, 333, 2049, 600_001])
def test_streamed_gradients_are_right_to_the_last_number(dtype, classes):
    logits = large_logits(dtype, classes)
    labels = np.arange(len(logits)) * 7919 % classes
    out = np.full(logits.shape, np.nan, dtype)
    CpuBackend().forward_backward(logits, labels, 1.0, Objective(), out=out)
    anew = np.full(logits.shape, np.nan, dtype)
    lse = CpuBackend().forward(logits, labels, Objective())[1]
    CpuBackend().backward(logits, labels, lse, 1.0, Objective(), out=anew)
    # In the computing type: a few roundings of the exponential, the sum and the product, and with the log-sum-exp given
    # also that of z - lse, which is a relative error of the exponential. float16 rounds once more.
    unit = np.finfo(np.promote_types(dtype, np.float32)).eps / 2
    stored, tiny = (2.0**-11, 2.0**-24) if dtype is np.float16 else (0.0, 0.0)
    span = lse.max() - float(logits.min())
    for first in range(0, len(logits), 4096):
        rows = slice(first, first + 4096)
        expected = softmax_less_one_hot(logits[rows], labels[rows])
        np.testing.assert_allclose(out[rows], expected, rtol=stored + 16 * unit, atol=tiny)
        np.testing.assert_allclose(anew[rows], expected, rtol=stored + (16 + span) * unit, atol=tiny)


def test_nothing_is_written_beside_a_streamed_gradient():
    """Rows of an odd length, in an array with numbers before and behind."""
    logits = large_logits(np.float32, 333)
    memory = np.full(logits.size + 50, 7.0, np.float32)
    for offset in (0, 1, 15, 16, 33):
        memory[:] = 7.0
        out = memory[offset : offset + logits.size].reshape(logits.shape)
        CpuBackend().forward_backward(logits, np.zeros(len(logits), np.int64), 1.0, Objective(), out=out)
        assert (memory[:offset] == 7.0).all()
        assert (memory[offset + logits.size :] == 7.0).all()
        assert np.abs(out.sum(1, dtype=np.float64)).max() < 1e-5
