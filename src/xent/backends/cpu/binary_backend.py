"""The binary cross-entropy on the CPU: losses and gradients of elements, without validation or reduction.

    z    = softcap * tanh(logit_scale * x / softcap)                        (no softcap: z = logit_scale * x)
    y'   = (1 - label_smoothing) * y + label_smoothing / 2
    loss = sample_weight * weight * (pos_weight * y' * softplus(-z) + (1 - y') * softplus(z))

*Logits*: float32, float64, float16, or the bits of bfloat16 as uint16, of any shape; what is not contiguous is copied.
*Target*: of that shape and any of these dtypes, uint8 or int64. *Weights* are converted to the computing dtype as they
are, and read with strides. *Results*: losses in the computing dtype, the gradient in the logits' dtype, contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xent import memory
from xent.backends.binary_protocol import Elements, Visited, ignored_value, smoothing_of
from xent.backends.cpu import binary_kernels, kernels
from xent.backends.cpu.binary_kernels import BLOCK
from xent.backends.cpu.formats import as_kernel_array, bits
from xent.backends.cpu.threads import get_num_threads, over_rows
from xent.backends.cpu.tile import PARALLEL_SIZE, computing_dtype
from xent.objective import Objective

Array = NDArray[Any]
Weights = tuple[Array, Array, Array]
"""Numbers side by side, and sizes and strides of the axes over which they are broadcast."""


@dataclass(frozen=True)
class CpuBinary:
    """The kernels of binary_kernels.py on NumPy arrays (`xent.backends.binary_protocol.BinaryBackend`)."""

    threads: Callable[[], int] = get_num_threads
    """How many threads a call may use."""
    reads_values = True
    one_visit = True

    def visit(
        self,
        elements: Elements,
        scale: Array | float | None = None,
        *,
        losses: bool = False,
        out: Array | None = None,
        after: float = 1.0,
    ) -> Visited:
        """Return the losses if they are asked for, their sum, and with a scale the gradient."""
        logits = elements.logits
        dtype, shape = computing_dtype(logits.dtype), logits.shape
        x, y = _side_by_side(logits), _side_by_side(elements.target)
        each = np.empty(x.size if losses else 0, dtype)
        if scale is None:
            out = np.empty(0, logits.dtype)
        elif out is None:
            out = memory.empty(shape, logits.dtype)
        blocks = -(-x.size // BLOCK)
        sums, ignored = np.empty(blocks), np.empty(blocks, np.int64)
        arguments = (
            *(x, y, _ignored_by(elements.objective, y.dtype)),
            *_broadcast(elements.weight, shape, dtype),
            *_broadcast(elements.pos_weight, shape, dtype),
            *_broadcast(elements.sample_weight, shape, dtype),
            flattened(elements.objective, after),
            *(_scales(scale, dtype), each, sums, ignored, bits(out.reshape(-1))),
        )
        self._run(binary_kernels.visit, arguments, x.size)
        total = float(kernels.total(sums))
        found = each.reshape(shape) if losses else None
        return Visited(found, total, int(ignored.sum()), None if scale is None else out)

    def count(self, elements: Elements) -> float:
        """Return the number of elements that count, or the sum of their sample weights."""
        target = _side_by_side(elements.target)
        sums = np.empty(-(-target.size // BLOCK))
        weights = _broadcast(elements.sample_weight, elements.logits.shape, np.dtype(np.float64))
        ignored = _ignored_by(elements.objective, target.dtype)
        self._run(binary_kernels.count, (target, ignored, *weights, sums), target.size)
        return float(kernels.total(sums))

    def _run(self, kernel: Any, arguments: tuple[Any, ...], size: int) -> None:
        over_rows(kernel, arguments, -(-size // BLOCK), 1 if size < PARALLEL_SIZE else self.threads())


def flattened(objective: Objective, after: float) -> Array:
    """The options of an element's loss as numbers for `binary_kernels.terms_of`."""
    on, off = smoothing_of(objective)
    cap = objective.softcap or 0.0
    return np.array((objective.logit_scale, cap, on, off, objective.focal_gamma, after))


def _side_by_side(array: Array) -> Array:
    """The numbers of an array as kernels take them: one dimension, without gaps."""
    return as_kernel_array(bits(array.reshape(-1)))


def _ignored_by(objective: Objective, dtype: np.dtype[Any]) -> Any:
    """`ignore_index` in the dtype in which a kernel reads targets: int64, float64 or float32."""
    if dtype in (np.uint8, np.int64):
        return objective.ignore_index
    return ignored_value(objective.ignore_index, np.float64 if dtype == np.float64 else np.float32)


def _scales(scale: Array | float | None, dtype: np.dtype[Any]) -> Array:
    """Scales of the gradient as a kernel takes them: one, or one for each element."""
    if isinstance(scale, np.ndarray) and scale.ndim:
        return as_kernel_array(scale.astype(dtype, copy=False).reshape(-1))
    return np.array((1.0 if scale is None else float(scale),), dtype)


def _broadcast(weight: Array | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Weights:
    """Weights with the sizes and strides of the axes of `shape`, as few as there are different ones."""
    numbers = np.empty(0, dtype) if weight is None else as_kernel_array(weight.astype(dtype, copy=False).reshape(-1))
    sizes, strides = [math.prod(shape)], [0]
    if weight is not None:
        contiguous = numbers.reshape(weight.shape)
        items = np.broadcast_to(contiguous, shape).strides
        sizes, strides = [1], [0]
        for size, stride in zip(shape, (item // dtype.itemsize for item in items), strict=True):
            if size == 1:
                continue
            if sizes[-1] == 1 or strides[-1] == stride * size:  # one axis, that the last two make
                sizes[-1], strides[-1] = sizes[-1] * size, stride
            else:
                sizes, strides = [*sizes, size], [*strides, stride]
    return numbers, np.array(sizes, np.int64), np.array(strides, np.int64)
