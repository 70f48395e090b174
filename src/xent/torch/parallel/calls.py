"""A call that all ranks of a group make together: autograd.py over the backend of a shard."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from xent.backends.protocol import Statistics
from xent.backends.shard import Shard
from xent.checks import Layout
from xent.objective import Objective
from xent.reduction import mean_denominator
from xent.torch import autograd
from xent.torch.parallel.arguments import Options
from xent.torch.parallel.combine import common_plan, sharded, sharded_linear
from xent.torch.parallel.ranks import Ranks
from xent.torch.rows import Call, LinearRows


@dataclass(frozen=True)
class Agreed:
    """What the ranks have agreed on. Of logits, `rows.weight` is None and there is no workspace."""

    options: Options
    objective: Objective
    layout: Layout
    rows: LinearRows
    ranks: Ranks
    shard: Shard
    workspace: int | None
    dtype: torch.dtype
    sizes: list[list[int]]
    """Of the plans of all ranks."""

    def loss(self) -> torch.Tensor:
        """The reduced loss, or the losses in the shape of the target."""
        call, rows = self._call(), self.rows
        if self.workspace is None:
            loss = autograd.cross_entropy(call, rows.input, rows.target, rows.class_weight)
        else:
            loss = autograd.linear_cross_entropy(call, rows)
        return loss.reshape(self.layout.loss_shape) if self.objective.reduction == "none" else loss

    def statistics(self) -> Statistics:
        """The statistics in the shape of the target."""
        call, rows = self._call(), self.rows
        if self.workspace is None:
            found = autograd.Statistics.apply(rows.input, rows.target, call)  # type: ignore[no-untyped-call]
        else:
            found = autograd.LinearStatistics.apply(*rows[:4], call)  # type: ignore[no-untyped-call]
        return Statistics(*(tensor.reshape(self.layout.loss_shape) for tensor in found))

    def _call(self) -> Call:
        name, rows = self.options.call, self.rows
        sums_mass = self.layout.soft or rows.class_weight is not None
        backend = sharded(rows.input, self.shard, self.ranks, sums_mass=sums_mass)
        objective = self.objective
        if self.options.is_global:
            labels = None if self.layout.soft else rows.target
            own = float(mean_denominator(labels, rows.class_weight, self.layout.rows, objective, backend.count))
            # Without anything to count the mean is NaN, as without a denominator.
            objective = replace(objective, denominator=self.options.added_up(own, self.ranks.device) or None)
        if self.workspace is None:
            return Call(name, objective, backend, labels_are_checked=True)
        plan = common_plan(name, self.sizes, self.shard.classes, self.workspace)
        linear = sharded_linear(backend, plan)
        return Call(name, objective, backend, linear, self.workspace, self.dtype, labels_are_checked=True)
