"""The products of a layer whose gradients of logits are rounded at random (`xent.linear.driver.Steps`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from xent.backends.cpu import sampling as kernels
from xent.backends.cpu.formats import as_kernel_array, bits
from xent.backends.cpu.linear_steps import Array, CpuSteps
from xent.backends.cpu.products import Library
from xent.backends.cpu.sampling import CLASSES_AT_ONCE, Kept
from xent.backends.cpu.threads import over_rows
from xent.backends.cpu.tile import NO_LABELS
from xent.linear.driver import Layer, Wanted
from xent.linear.plan import Plan
from xent.linear.sampling import Sampling

FEATURES_AT_ONCE = 64
"""The fewest features of the input's gradient that are worth a thread of their own."""
MOST_ROWS = 2**16
"""Of a chunk, whose numbers are 16-bit ones in the lists of entries."""


class SampledSteps(CpuSteps):
    """The steps of a call. After `round_at_random` products are sparse where few entries are left, else dense."""

    def __init__(self, layer: Layer, wanted: Wanted, library: Library, threads: int, plan: Plan | None = None) -> None:
        super().__init__(layer, wanted, library, threads, plan)
        assert layer.sampling is not None
        self.sampling: Sampling = layer.sampling.seeded(layer.call)
        classes, units = layer.classes, -(-layer.classes // CLASSES_AT_ONCE)
        self._capacity = int(self.plan.chunk_rows * classes * kernels.DENSEST)
        new = lambda count, dtype: self._take(count, np.dtype(dtype))  # noqa: E731
        of_units, starts, stops = new(2 * units, np.int64), new(classes, np.int32), new(classes, np.int32)
        rows, columns, order = (new(self._capacity, dtype) for dtype in (np.uint16, np.uint16, np.int32))
        values = bits(self._take(self._capacity, self.method.chunk))
        self._room = Kept(of_units, rows, columns, values, starts, stops, order)
        if not self.method.widened:
            self._sum = self._take(self.plan.chunk_rows * layer.features, self.compute)
        self._kept: Kept | None = None
        if self.sampling.report is not None:
            self.sampling.report.begin(layer.rows, classes)

    def make_logits(self, first: int, last: int) -> Array:
        """logits = input @ weight.T + bias."""
        self._kept = None
        return super().make_logits(first, last)

    def round_at_random(self, first: int, last: int, scales: Any) -> None:
        """Round the gradient of these rows where it lies, and list what is left of it if that is little."""
        gradient, layer, rows = bits(self._chunk(first, last).reshape(-1)), self.layer, last - first
        limits = np.empty(rows, self.compute)
        limits[:] = np.abs(scales) * self.sampling.threshold
        labels = as_kernel_array(layer.target[first:last]) if layer.target.ndim == 1 else NO_LABELS
        kept, variance = np.empty(rows, np.int64), np.empty(rows)
        numbers = (np.uint64(self.sampling.seed), first, self.sampling.first_class)
        arguments = (gradient, layer.classes, labels, limits, *numbers, kept, variance)
        self._run(kernels.round_at_random, arguments, rows, size=gradient.size)
        is_sparse = kept.sum() <= self._capacity and rows <= MOST_ROWS and self._lies_by_rows
        if is_sparse:
            cursor = np.zeros(1, np.int64)
            self._run(
                kernels.collect,
                (gradient, layer.classes, rows, cursor, self._room),
                len(self._room.units) // 2,
                size=gradient.size,
            )
            self._kept = self._room
        if (report := self.sampling.report) is not None:
            report.kept[first:last], report.variance[first:last] = kept, variance
            report.is_dense[first:last] = not is_sparse

    @property
    def _lies_by_rows(self) -> bool:
        return bool(self.layer.weight.flags.c_contiguous and self.layer.input.flags.c_contiguous)

    def input_gradient(self, first: int, last: int) -> None:
        """dinput = dlogits @ weight."""
        if self._kept is None:
            super().input_gradient(first, last)
            return
        assert self.of_input is not None
        features, target = self.layer.features, bits(self.of_input[first:last].reshape(-1))
        width = max(FEATURES_AT_ONCE, -(-features // (16 * self.threads)) * 16)
        arguments = (self._kept, bits(self.layer.weight.reshape(-1)), features, width, self._sum[: target.size], target)
        over_rows(kernels.input_gradient, arguments, -(-features // width), self.threads)

    def weight_gradient(self, first: int, last: int, part: tuple[int, int]) -> None:
        """dweight += dlogits.T @ input, for the classes of the part."""
        if self._kept is None:
            super().weight_gradient(first, last, part)
            return
        assert self.of_weight is not None
        features, is_first = self.layer.features, first == 0
        x, total = bits(self.layer.input[first:last].reshape(-1)), self.of_weight.reshape(-1)
        product, classes = (self._kept, x, features), self.layer.classes
        if total.dtype == self.compute:
            over_rows(kernels.add_to_weight, (*product, total, is_first), classes, self.threads)
        elif self.plan.summed:
            start, stop = part
            upper = total[start * features : stop * features].view(np.uint16)
            arguments = (*product, upper, self._lower[: upper.size], start, is_first)
            over_rows(kernels.add_to_weight_halves, arguments, stop - start, self.threads)
        else:
            over_rows(kernels.round_to_weight, (*product, bits(total)), classes, self.threads)


def make_steps(layer: Layer, wanted: Wanted, library: Library, threads: int, plan: Plan | None = None) -> CpuSteps:
    """The steps of a call on the CPU."""
    kind = CpuSteps if layer.sampling is None else SampledSteps
    return kind(layer, wanted, library, threads, plan)
