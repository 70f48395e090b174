"""The gradient of the statistics of each row (`statistics` of a backend), without validation.

With q = softmax(z), H its entropy and z the softcapped logits, the derivatives by z of the log-probability of the
label, of the entropy and of the log-sum-exp are one_hot - q, -q * (log q + H) and q. Their sum, each times its upstream
gradient,

    dx = (d_log_prob * (one_hot - q) - d_entropy * q * (log q + H) + d_lse * q) * dz/dx

is computed in one visit. A masked class has q = 0 and gradient 0. A row with `ignore_index` keeps the shares of entropy
and log-sum-exp; d_log_prob counts only where there is a valid label. `out` may be the logits themselves: a block is
read before it is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xent.backends.cpu.accumulation import put
from xent.backends.cpu.blocks import multiply
from xent.backends.cpu.compilation import allocator, device
from xent.backends.cpu.formats import as_kernel_array, bits, decode, scratch
from xent.backends.cpu.primitives import exp, softcap_and_derivative
from xent.backends.cpu.team import row_kernel
from xent.backends.cpu.threads import over_rows
from xent.backends.cpu.tile import BLOCK, PARALLEL_SIZE, computing_dtype, flattened
from xent.backends.protocol import Statistics
from xent.objective import Objective

Array = NDArray[Any]


def statistics_gradient(
    logits: Array,
    labels: Array,
    statistics: Statistics,
    upstream: tuple[Array, Array, Array],
    objective: Objective,
    *,
    out: Array,
    threads: Callable[[], int],
) -> None:
    """Write the gradient of sum(d_log_prob * log_prob + d_entropy * entropy + d_lse * lse) by logits (rows, classes).

    Logits and `out` are contiguous; of the statistics, `lse` and `entropy` count, and are converted to float64 as
    `upstream` is.
    """
    rows, classes = logits.shape
    flat, into = bits(logits.reshape(-1)), bits(out.reshape(-1))
    numbers = (
        as_kernel_array(np.asarray(x, np.float64).reshape(-1)) for x in (statistics.lse, statistics.entropy, *upstream)
    )
    _, options = flattened(objective, computing_dtype(logits.dtype), classes)
    arguments = (flat, classes, as_kernel_array(labels), objective.ignore_index, options, *numbers, into)
    over_rows(_kernel, arguments, rows, threads() if logits.size >= PARALLEL_SIZE else 1)


@allocator
def _room(logits: Any) -> Any:
    return scratch(logits, BLOCK), scratch(logits, BLOCK)


@device
def _load(logits: Any, z: Any, derivative: Any, scale: Any, cap: Any) -> None:
    """Transformed logits and dz/dx."""
    for i in range(len(z)):
        z[i] = decode(logits[i])
    if cap != 0:
        for i in range(len(z)):
            z[i], derivative[i] = softcap_and_derivative(z[i], scale, cap)
    else:
        for i in range(len(z)):
            z[i], derivative[i] = z[i] * scale, scale


@device
def _gradient(z: Any, lse: float, plain: Any, sloped: Any, entropy: Any) -> None:
    """z = q * (plain - sloped * (log q + entropy)) with q = exp(z - lse); 0 for a masked class."""
    number = z.dtype.type
    for i in range(len(z)):
        log_q = number(np.float64(z[i]) - lse)
        shifted = number(0) if log_q == -np.inf else log_q + entropy
        z[i] = exp(log_q) * (plain - sloped * shifted)


@row_kernel
def _kernel(
    logits: Any, classes: int, labels: Any, ignore_index: int, options: Any, lse: Any, entropy: Any, d_log_prob: Any,
    d_entropy: Any, d_lse: Any, out: Any, first: int, last: int,
) -> None:  # fmt: skip
    block, slopes = _room(logits)
    number = block.dtype.type
    for r in range(first, last):
        label = labels[r]
        has_label = 0 <= label < classes and label != ignore_index
        of_label = d_log_prob[r] if has_label else 0.0
        for start in range(0, classes, BLOCK):
            stop = min(start + BLOCK, classes)
            z, derivative = block[: stop - start], slopes[: stop - start]
            _load(
                logits[r * classes + start : r * classes + stop], z, derivative, number(options[0]), number(options[1])
            )
            _gradient(z, lse[r], number(d_lse[r] - of_label), number(d_entropy[r]), number(entropy[r]))
            if has_label and start <= label < stop:
                z[label - start] += number(of_label)
            multiply(z, derivative)
            put(out[r * classes + start : r * classes + stop], z)
