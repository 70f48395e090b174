"""A shard of the classes: what one process reports of its rows, so that xent.torch.parallel can combine all of them.

With the shard's own log-sum-exp, and t as in xent/objective.py (its `classes` are all classes):

    lse_k  = log(sum(exp(z)))                          over the classes of the shard; -inf if all are masked
    loss_k = sum(t * (lse_k - z)),  mass_k = sum(t)    over them
    dx     = row_scale * (pull * exp(z - lse) - t) * dz/dx

with the lse of all shards and pull = mass + 2 * z_loss * lse from their mass.

A label is relative to the first class of the shard: outside [0, classes) it belongs to another one, and the row counts
all the same. Only a row labelled IGNORED is left out: its results are 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from xent.backends.protocol import Array, Statistics
from xent.objective import Objective

IGNORED = -(2**63)
"""The label of a row that counts for nothing."""


@dataclass(frozen=True)
class Shard:
    """Which classes are here: `classes` of them from `first`, of `total`."""

    first: int
    classes: int
    total: int


class Local(NamedTuple):
    """Of each row, float64: of a shard, or of all shards together."""

    lse: Any
    loss: Any
    mass: Any


class LocalStatistics(NamedTuple):
    """For statistics: `best` and `label_x` are logits as they are, `label_z` is transformed; -inf elsewhere."""

    lse: Any
    entropy: Any
    best: Any
    best_at: Any
    label_x: Any
    label_z: Any


class ShardBackend(Protocol):
    """The part of a sharded loss that one process computes, of logits (rows, classes)."""

    def compute_dtype(self, dtype: Any) -> Any:
        """The dtype of losses and arithmetic."""

    def forward(self, logits: Array, target: Array, objective: Objective, shard: Shard) -> Local:
        """Return log-sum-exp, loss and mass of the shard."""

    def backward(
        self,
        logits: Array,
        target: Array,
        lse: Array,
        pull: Array,
        row_scale: Array,
        objective: Objective,
        shard: Shard,
        *,
        out: Array | None = None,
    ) -> Array:
        """Return row_scale * (pull * exp(z - lse) - t) * dz/dx; lse of all shards, and all three in float64."""

    def statistics(self, logits: Array, labels: Array, objective: Objective, shard: Shard) -> LocalStatistics:
        """Return what the shard knows of each row; nothing of a label that is elsewhere."""

    def count_above(self, logits: Array, x: Array) -> Array:
        """Return how many logits of each row are above x, which is float64."""

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
        """Return the gradient of the statistics of all shards by the logits of this one."""


def share_elsewhere(labels: Array, classes: int, upstream: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """The upstream gradients on a shard: of d_log_prob * (one_hot - q), a label elsewhere leaves -d_log_prob * q."""
    d_log_prob, d_entropy, d_lse = upstream
    elsewhere = (labels != IGNORED) & ((labels < 0) | (labels >= classes))
    return d_log_prob, d_entropy, d_lse - d_log_prob * elsewhere
