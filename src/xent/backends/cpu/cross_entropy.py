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

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xent import memory
from xent.backends.cpu import kernels
from xent.backends.cpu.formats import as_kernel_array, bits, flat
from xent.backends.cpu.threads import get_num_threads, over_rows
from xent.objective import Objective

Array = NDArray[Any]

# Classes from which on a row is worth a loop of its own.
ROW_CLASSES = 128
# Logits below which a call stays on the calling thread.
PARALLEL_SIZE = 2**17

NO_LABELS = np.empty(0, np.int64)
NOTHING = {np.dtype(np.float32): np.empty(0, np.float32), np.dtype(np.float64): np.empty(0, np.float64)}
FLOAT32, FLOAT64, FLOAT16 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16)


class Statistics(NamedTuple):
    """What one visit to the logits tells about each row; nats.

    `log_prob` is that of the label, `entropy` that of the softmax. `argmax` is the first largest logit. `rank` counts
    the logits strictly above the label's; it is -1 without a label (`ignore_index`: log_prob 0; out of range: NaN).
    """

    log_prob: Array
    entropy: Array
    lse: Array
    argmax: Array
    rank: Array


def forward(
    logits: Array,
    target: Array,
    objective: Objective,
    *,
    loss: Array | None = None,
    lse: Array | None = None,
    threads: int | None = None,
) -> tuple[Array, Array]:
    """Return the loss and the log-sum-exp of each row."""
    call = _Call(logits, target, objective)
    loss = np.empty(call.rows, call.dtype) if loss is None else loss
    lse = np.empty(call.rows, FLOAT64) if lse is None else lse
    call.run(kernels.forward, (loss, lse), threads)
    return loss, lse


def backward(
    logits: Array,
    target: Array,
    lse: Array,
    row_scale: Array | float,
    objective: Objective,
    *,
    out: Array | None = None,
    threads: int | None = None,
) -> Array:
    """Return the gradient of sum(row_scale * loss) from the log-sum-exp that `forward` gave.

    `row_scale` is one number, or one for each row in the computing dtype.
    """
    call = _Call(logits, target, objective)
    out = memory.empty(logits.shape, logits.dtype) if out is None else out
    call.run(kernels.backward, (as_kernel_array(lse), call.scales(row_scale), bits(out.reshape(-1))), threads)
    return out


def forward_backward(
    logits: Array,
    target: Array,
    row_scale: Array | float,
    objective: Objective,
    *,
    loss: Array | None = None,
    lse: Array | None = None,
    out: Array | None = None,
    threads: int | None = None,
) -> tuple[Array, Array, Array]:
    """Return loss, log-sum-exp and gradient in one visit: `forward`, then `backward`, each row while it is in cache."""
    call = _Call(logits, target, objective)
    loss = np.empty(call.rows, call.dtype) if loss is None else loss
    lse = np.empty(call.rows, FLOAT64) if lse is None else lse
    out = memory.empty(logits.shape, logits.dtype) if out is None else out
    call.run(kernels.forward_backward, (call.scales(row_scale), loss, lse, bits(out.reshape(-1))), threads)
    return loss, lse, out


def statistics(logits: Array, labels: Array, objective: Objective, *, threads: int | None = None) -> Statistics:
    """Return log-probability and rank of the label, entropy, log-sum-exp and argmax of each row, in one visit.

    Of the objective, `logit_scale`, `softcap` and `ignore_index` count.
    """
    call = _Call(logits, labels, objective)
    log_prob, entropy = np.empty(call.rows, call.dtype), np.empty(call.rows, call.dtype)
    found = Statistics(
        log_prob, entropy, np.empty(call.rows, FLOAT64), np.empty(call.rows, np.int64), np.empty(call.rows, np.int64)
    )
    call.run(kernels.statistics, tuple(found), threads)
    return found


class _Call:
    """The arguments of a call as kernels take them."""

    __slots__ = ("arguments", "dtype", "rows", "size")

    def __init__(self, logits: Array, target: Array, objective: Objective) -> None:
        shape = logits.shape
        classes, inner = shape[1], 1 if len(shape) == 2 else shape[2]
        self.rows, self.size = shape[0] * inner, shape[0] * inner * classes
        self.dtype = FLOAT64 if logits.dtype == FLOAT64 else FLOAT32
        along = inner == 1 and classes >= ROW_CLASSES
        stored, outer_stride = flat(logits)
        nothing = NOTHING[self.dtype]
        soft = target.dtype.kind == "f"
        rows = as_kernel_array(target.reshape(-1))
        labels, soft_target = (NO_LABELS, rows) if soft else (rows, nothing)
        weight = nothing if objective.weight is None else as_kernel_array(objective.weight)
        options = np.array(
            (objective.logit_scale, objective.softcap or 0.0, objective.label_smoothing, objective.z_loss)
        )
        self.arguments = (
            along,
            stored,
            outer_stride,
            classes,
            inner,
            labels,
            soft_target,
            weight,
            options,
            objective.ignore_index,
        )

    def run(self, kernel: Any, results: tuple[Any, ...], threads: int | None) -> None:
        """Run a kernel over all rows."""
        threads = 1 if self.size < PARALLEL_SIZE else threads or get_num_threads()
        over_rows(kernel, (*self.arguments, *results), self.rows, threads)

    def scales(self, row_scale: Array | float) -> Array:
        """Row scales as a kernel takes them: one, or one for each row."""
        return as_kernel_array(row_scale) if isinstance(row_scale, np.ndarray) else np.array((row_scale,), self.dtype)
