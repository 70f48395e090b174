"""The softmax cross-entropy on the CPU: loss, gradient and statistics of each row, without validation or reduction.

    z    = softcap * tanh(logit_scale * x / softcap)                        (no softcap: z = logit_scale * x)
    t[j] = weight[j] * ((1 - label_smoothing) * p[j] + label_smoothing / classes)
    lse  = log(sum(exp(z)))
    loss = sum(t * (lse - z)) + z_loss * lse**2
    dx   = ((sum(t) + 2 * z_loss * lse) * exp(z - lse) - t) * dz/dx

*Logits*: (rows, classes), or (outer, classes, inner) with a row for each pair (outer, inner). float32, float64,
float16, or the bits of bfloat16 as uint16. Rows may be apart (a slice of the classes); anything else that is not
contiguous is copied. Logits are never written to.

*Target*: class indices, int64, one for each row; or distributions shaped like the logits in their computing dtype,
float64 for float64 and float32 otherwise. `objective.weight` is an array of that dtype too.

*Results*: losses in the computing dtype and the log-sum-exp in float64, both of shape (rows,); gradients shaped and
typed like the logits. They may be handed in with `out`. float32 gradients from a float64 log-sum-exp keep their last
digits even if all logits have a large offset in common.

A row whose label is `ignore_index` has loss, log-sum-exp and gradient 0, whatever its logits; any other label outside
[0, classes) gives NaN. NaN or +inf among the logits make that row NaN, and so do logits that are all -inf.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xent import memory
from xent.backends import sparse_rows
from xent.backends.cpu import kernels
from xent.backends.cpu.contrast import contrast_gradient
from xent.backends.cpu.formats import as_kernel_array, bits, flat
from xent.backends.cpu.statistics_gradient import statistics_gradient
from xent.backends.cpu.threads import get_num_threads, over_rows
from xent.backends.cpu.tile import NO_LABELS, PARALLEL_SIZE, ROW_CLASSES, computing_dtype, flattened
from xent.backends.protocol import Statistics
from xent.objective import Objective
from xent.reduction import weighted_count
from xent.sparse import is_sparse

Array = NDArray[Any]


@dataclass(frozen=True)
class CpuBackend:
    """The kernels of this folder on NumPy arrays (`xent.backends.Backend`)."""

    threads: Callable[[], int] = get_num_threads
    """How many threads a call may use."""
    reads_values = True
    one_visit = True
    has_second_derivatives = True

    def compute_dtype(self, dtype: Any) -> np.dtype[Any]:
        """The dtype of losses and arithmetic."""
        return computing_dtype(np.dtype(dtype))

    def forward(self, logits: Array, target: Array, objective: Objective) -> tuple[Array, Array]:
        """Return the loss and the log-sum-exp of each row."""
        if is_sparse(target):
            return sparse_rows.forward(self, logits, target, objective)
        call = _Call(logits, target, objective)
        loss, lse = np.empty(call.rows, call.dtype), np.empty(call.rows)
        nothing = np.empty(0, call.stored.dtype)
        call.run(kernels.forward, (call.scales(1.0), loss, lse, nothing, 1.0), self.threads)
        return loss, lse

    def backward(
        self,
        logits: Array,
        target: Array,
        saved: Array,
        row_scale: Array | float,
        objective: Objective,
        *,
        out: Array | None = None,
    ) -> Array:
        """Return the gradient of sum(row_scale * loss) from the log-sum-exps that `forward` returned.

        In float64 it is made without them: a log-sum-exp of 100 has lost 7 bits of exp(z - lse), which float32
        gradients do not notice.
        """
        if is_sparse(target):
            return sparse_rows.backward(self, logits, target, saved, row_scale, objective, out=out)
        call = _Call(logits, target, objective)
        if call.dtype == np.float64:
            return self.forward_backward(logits, target, row_scale, objective, out=out)[2]
        out = memory.empty(logits.shape, logits.dtype) if out is None else out
        results = (as_kernel_array(saved), call.scales(row_scale), bits(out.reshape(-1)))
        call.run(kernels.backward, results, self.threads)
        return out

    def forward_backward(
        self,
        logits: Array,
        target: Array,
        row_scale: Array | float,
        objective: Objective,
        *,
        out: Array | None = None,
        after: float = 1.0,
    ) -> tuple[Array, Array, Array]:
        """Return loss, log-sum-exp and gradient in one visit: each row's gradient while the row is in cache.

        With `after`, which is not for 16 bits, the gradient is that number times what it is without, to the last bit.
        """
        if is_sparse(target):
            return sparse_rows.forward_backward(self, logits, target, row_scale, objective, out=out, after=after)
        call = _Call(logits, target, objective)
        loss, lse = np.empty(call.rows, call.dtype), np.empty(call.rows)
        out = memory.empty(logits.shape, logits.dtype) if out is None else out
        results = (call.scales(row_scale), loss, lse, bits(out.reshape(-1)), after)
        call.run(kernels.forward, results, self.threads)
        return loss, lse, out

    def statistics(self, logits: Array, labels: Array, objective: Objective) -> Statistics:
        """Return log-probability and rank of the label, entropy, log-sum-exp and argmax of each row, in one visit."""
        call = _Call(logits, labels, objective)
        dtypes = (call.dtype, call.dtype, np.float64, np.int64, np.int64)
        statistics = Statistics(*(np.empty(call.rows, dtype) for dtype in dtypes))
        call.run(kernels.statistics, tuple(statistics), self.threads)
        return statistics

    def statistics_gradient(
        self,
        logits: Array,
        labels: Array,
        statistics: Statistics,
        upstream: tuple[Array, Array, Array],
        objective: Objective,
        *,
        out: Array | None = None,
    ) -> Array:
        """Return the gradient of sum(d_log_prob * log_prob + d_entropy * entropy + d_lse * lse)."""
        rows, shape = logits, logits.shape
        if len(shape) == 3:  # the kernel takes rows
            rows = np.ascontiguousarray(np.moveaxis(logits, 1, 2)).reshape(-1, shape[1])
        gradient = memory.empty(rows.shape, rows.dtype) if out is None else out
        statistics_gradient(
            rows, labels.reshape(-1), statistics, upstream, objective, out=gradient, threads=self.threads
        )
        return gradient if len(shape) == 2 else np.moveaxis(gradient.reshape(shape[0], shape[2], shape[1]), 2, 1)

    def contrast_gradient(self, logits: Array, first: int | None, rows: Any, columns: Any, logit_scale: float) -> None:
        """Replace the similarities of a contrastive loss by their gradient."""
        contrast_gradient(logits, first, rows, columns, logit_scale, threads=self.threads)

    def count(
        self, labels: Array, weight: Array | None, ignore_index: int, sample_weight: Array | None = None
    ) -> float:
        """Return the weighted count of the labels that are not `ignore_index`."""
        labels = as_kernel_array(labels.reshape(-1))
        if weight is None and sample_weight is None:
            return float(kernels.count_other(labels, ignore_index))
        return float(weighted_count(labels, weight, ignore_index, sample_weight))

    def total(self, losses: Array) -> float:
        """Return the sum of the losses."""
        return float(kernels.total(losses))


class _Call:
    """The arguments of a call as kernels take them."""

    __slots__ = ("arguments", "dtype", "rows", "size", "stored")

    def __init__(self, logits: Array, target: Array, objective: Objective) -> None:
        shape = logits.shape
        classes, inner = shape[1], 1 if len(shape) == 2 else shape[2]
        self.rows, self.size = shape[0] * inner, shape[0] * inner * classes
        self.dtype = computing_dtype(logits.dtype)
        order = (True, None) if inner == 1 and classes >= ROW_CLASSES else (None, True)
        self.stored, outer_stride = flat(logits)
        soft = target.dtype.kind == "f"
        rows = as_kernel_array(target.reshape(-1))
        labels, soft_target = (NO_LABELS, rows) if soft else (rows, np.empty(0, self.dtype))
        weight, options = np.empty(0, self.dtype), None
        if soft or not objective.is_plain:
            weight, options = flattened(objective, self.dtype, classes)
        layout = (*order, self.stored, outer_stride, classes, inner)
        self.arguments = (*layout, labels, objective.ignore_index, soft_target, weight, options)

    def run(self, kernel: Any, results: tuple[Any, ...], threads: Callable[[], int]) -> None:
        """Run a kernel over all rows."""
        over_rows(kernel, (*self.arguments, *results), self.rows, 1 if self.size < PARALLEL_SIZE else threads())

    def scales(self, row_scale: Array | float) -> Array:
        """Row scales as a kernel takes them: one, or one for each row."""
        return as_kernel_array(row_scale) if isinstance(row_scale, np.ndarray) else np.array((row_scale,), self.dtype)
