"""`Backend`: what a kind of device offers to the fronts, and what it returns. Neither validation nor reduction.

    forward               losses of the rows, and what a later gradient needs of them (`saved`)
    backward              the gradient from `saved`
    forward_backward      both in one call
    statistics            log-probability, entropy, log-sum-exp, argmax and rank of each row
    statistics_gradient   their gradient

Arrays are those of the device's library: NumPy arrays or torch tensors. A backend whose classes are sharded over
several processes (xent.torch.parallel) is a `Backend` like any other.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

from xent import markup
from xent.objective import Objective

Array = Any
"""A NumPy array or a torch tensor."""

MOST_SHOWN = 10


class Statistics(NamedTuple):
    """What one visit to the logits yields for each row; nats.

    `log_prob` is that of the label, `entropy` that of the softmax, `lse` the log-sum-exp. `argmax` is the first largest
    logit. `rank` counts the logits strictly above the label's; it is -1 without a label (`ignore_index`: log_prob 0;
    out of range: NaN).
    """

    log_prob: Any
    entropy: Any
    lse: Any
    argmax: Any
    rank: Any

    def _repr_html_(self) -> str | None:
        """The first rows as a table, which notebooks show; None where the numbers cannot be read."""
        try:
            columns = [number.reshape(-1)[:MOST_SHOWN].tolist() for number in self]
        except (AttributeError, RuntimeError, TypeError):  # numbers of tensors on the meta device, or being traced
            return None
        rows = math.prod(self.argmax.shape)
        first = f"the first {MOST_SHOWN} of " if rows > MOST_SHOWN else ""
        cells = [
            [row, *(number if isinstance(number, int) else markup.number(number) for number in line)]
            for row, line in enumerate(zip(*columns, strict=True))
        ]
        return markup.table(f"Statistics of {first}{rows:,} rows, in nats", ["row", *self._fields], cells, texts=0)


class Backend(Protocol):
    """Losses, gradients and statistics of logits (rows, classes), or (outer, classes, inner) with outer * inner rows.

    The target holds class indices, one for each row, or class probabilities shaped like the logits; `objective.weight`
    is None or an array (classes,). Losses have the computing dtype. A row whose label is `ignore_index` has loss and
    gradient 0, whatever its logits; any other label outside [0, classes) gives NaN, and no memory is read for it. NaN
    or +inf among the logits make that row NaN, and so do logits that are all -inf.
    """

    @property
    def reads_values(self) -> bool:
        """Whether the host can read numbers without waiting for a device."""

    @property
    def one_visit(self) -> bool:
        """Whether `forward_backward` visits the logits once, so that the gradient is best made with the loss."""

    @property
    def has_second_derivatives(self) -> bool:
        """Whether the formula of torch operations stands in for second derivatives."""

    def compute_dtype(self, dtype: Any) -> Any:
        """The dtype of losses and arithmetic: float64 for float64, float32 for everything narrower."""

    def forward(self, logits: Array, target: Array, objective: Objective) -> tuple[Array, Array]:
        """Return the losses (rows,) and `saved` (..., rows): the log-sum-exps in float64, or more."""

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
        """Return the gradient of sum(row_scale * loss). `row_scale` is one number, or an array of one for each row.

        `out` may be the logits themselves: a row is read before its gradient is written.
        """

    def forward_backward(
        self,
        logits: Array,
        target: Array,
        row_scale: Array | float,
        objective: Objective,
        *,
        out: Array | None = None,
    ) -> tuple[Array, Array, Array]:
        """Return losses, `saved` and gradient: `forward`, then `backward`."""

    def statistics(self, logits: Array, labels: Array, objective: Objective) -> Statistics:
        """Return the statistics of each row, the log-sum-exp in float64; logit_scale, softcap, ignore_index count."""

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
        """Return the gradient of sum(d_log_prob * log_prob + d_entropy * entropy + d_lse * lse).

        `upstream` is (d_log_prob, d_entropy, d_lse), one number for each row.
        """

    def count(self, labels: Array, weight: Array | None, ignore_index: int, sample_weight: Array | None = None) -> Any:
        """Return the weighted count of the labels that are not `ignore_index` (reduction.py)."""

    def total(self, losses: Array) -> Any:
        """Return the sum of the losses in float64: a number, or an array of one where reading it would wait."""
