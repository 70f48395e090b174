"""Matrices that are transposed in registers, of any size, with numbers around them."""

import numba
import numpy as np
import pytest

from xent.backends.cpu.compilation import OPTIONS
from xent.backends.cpu.transposition import transpose


@numba.njit(**OPTIONS)
def transposed(source, rows, columns, source_stride, target, target_stride):
    transpose(source, rows, columns, source_stride, target, target_stride)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (16, 16), (8, 8), (17, 3), (255, 10), (10, 256), (33, 127), (7, 9)]
)
@pytest.mark.parametrize("gap", [0, 5])
def test_a_matrix_is_transposed_and_nothing_beside_it_written(dtype, rows, columns, gap):
    source = np.random.default_rng(0).standard_normal((rows, columns + gap)).astype(dtype)
    target = np.full((columns + 1, rows + gap), 7, dtype)
    # No number behind the last of the matrix: a page that is not there may begin.
    transposed(source.reshape(-1)[: source.size - gap], rows, columns, columns + gap, target.reshape(-1), rows + gap)
    np.testing.assert_array_equal(target[:columns, :rows], source[:, :columns].T)
    assert (target[columns:] == 7).all()
    assert (target[:, rows:] == 7).all()


def test_every_bit_of_a_number_arrives():
    bits = np.arange(256, dtype=np.uint32) << 23 | 0x400001  # NaNs with a payload, subnormal numbers, -0
    source, target = bits.view(np.float32), np.empty(256, np.float32)
    transposed(source, 16, 16, 16, target, 16)
    np.testing.assert_array_equal(target.view(np.uint32).reshape(16, 16), bits.reshape(16, 16).T)
