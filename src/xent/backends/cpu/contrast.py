"""The gradient of a contrastive loss by its similarities, some rows of them (xent/linear/contrast.py), on NumPy arrays.

    dx = logit_scale * (row_scale * exp(z - row_lse) + column_scale * exp(z - column_lse)),    z = logit_scale * x

and at the positive logit_scale * (row_scale * expm1(-row_loss) + column_scale * expm1(-column_loss)), which is the same
less both scales: in it nothing cancels. A log-sum-exp in float64 is split into what `z` of the computing type is
compared with, and a factor near 1, so that a large offset that all similarities have in common costs no digits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xent.backends.cpu.accumulation import put
from xent.backends.cpu.compilation import allocator, device
from xent.backends.cpu.formats import as_kernel_array, bits, decode, scratch
from xent.backends.cpu.primitives import exp
from xent.backends.cpu.team import row_kernel
from xent.backends.cpu.threads import over_rows
from xent.backends.cpu.tile import BLOCK, PARALLEL_SIZE, computing_dtype

Array = NDArray[Any]

NONE = -(2**62)
"""The first column of positives where there are none."""


def contrast_gradient(
    logits: Array, first: int | None, rows: Any, columns: Any, logit_scale: float, *, threads: Callable[[], int]
) -> None:
    """Replace similarities (rows, classes) by their gradient. Row r has its positive in column `first` + r, if any.

    `rows` and `columns` have loss, log-sum-exp and scale (`xent.linear.contrast.Side`); columns may be None.
    """
    dtype, (count, classes) = computing_dtype(logits.dtype), logits.shape
    row_reference, row_factor = _split(rows, logit_scale, dtype)
    if columns is None:
        column_reference = column_factor = np.empty(0, dtype)
    else:
        column_reference, column_factor = _split(columns, logit_scale, dtype)
    of_positives = _of_positives(rows, slice(None), logit_scale)
    if first is not None and columns is not None:
        of_positives += _of_positives(columns, slice(first, first + count), logit_scale)
    arguments = (bits(logits.reshape(-1)), classes, NONE if first is None else first, dtype.type(logit_scale))
    arguments += (row_reference, row_factor, column_reference, column_factor, of_positives.astype(dtype))
    over_rows(_kernel, arguments, count, threads() if logits.size >= PARALLEL_SIZE else 1)


def _split(side: Any, logit_scale: float, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Reference and factor, so that factor * exp(z - reference) = logit_scale * scale * exp(z - lse)."""
    reference = as_kernel_array(side.lse.astype(dtype))
    with np.errstate(invalid="ignore", over="ignore"):  # of an infinite log-sum-exp there is no gradient
        factor = side.scale * logit_scale * np.exp(reference.astype(np.float64) - side.lse)
    return reference, factor.astype(dtype)


def _of_positives(side: Any, places: slice, logit_scale: float) -> Array:
    found: Array = logit_scale * side.scale[places] * np.expm1(-side.loss[places])
    return found


@allocator
def _room(logits: Any) -> Any:
    return scratch(logits, BLOCK)


@device
def _load(logits: Any, z: Any, scale: Any) -> None:
    for i in range(len(z)):
        z[i] = decode(logits[i]) * scale


@device
def _of_row(z: Any, reference: Any, factor: Any) -> None:
    """z = factor * exp(z - reference)."""
    for i in range(len(z)):
        z[i] = factor * exp(z[i] - reference)


@device
def _of_row_and_columns(z: Any, reference: Any, factor: Any, references: Any, factors: Any) -> None:
    """The same, and that of each column added."""
    for i in range(len(z)):
        z[i] = factor * exp(z[i] - reference) + factors[i] * exp(z[i] - references[i])


@row_kernel
def _kernel(
    logits: Any, classes: int, first_positive: int, scale: Any, row_reference: Any, row_factor: Any,
    column_reference: Any, column_factor: Any, of_positives: Any, first: int, last: int,
) -> None:  # fmt: skip
    block = _room(logits)
    for r in range(first, last):
        positive = first_positive + r
        for start in range(0, classes, BLOCK):
            stop = min(start + BLOCK, classes)
            z, own = block[: stop - start], logits[r * classes + start : r * classes + stop]
            _load(own, z, scale)
            if len(column_reference):
                _of_row_and_columns(
                    z, row_reference[r], row_factor[r], column_reference[start:stop], column_factor[start:stop]
                )
            else:
                _of_row(z, row_reference[r], row_factor[r])
            if start <= positive < stop:
                z[positive - start] = of_positives[r]
            put(own, z)
