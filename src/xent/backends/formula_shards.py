"""The part of a sharded loss that one process computes, as formulas of torch operations (`ShardBackend`).

For devices without kernels of shards; xent/backends/shard.py has the equations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xent.backends.formula import (
    FORMULA,
    compute_dtype,
    ignored_rows,
    labelled,
    softcapped_logits,
    softcapped_logits_derivative,
    target_weights,
)
from xent.backends.protocol import Statistics
from xent.backends.shard import IGNORED, Local, LocalStatistics, Shard, share_elsewhere
from xent.objective import Objective


@dataclass(frozen=True)
class FormulaShards:
    """The formulas of this file, on tensors (rows, classes)."""

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of losses and arithmetic."""
        return compute_dtype(dtype)

    def forward(self, logits: Tensor, target: Tensor, objective: Objective, shard: Shard) -> Local:
        """Return log-sum-exp, loss and mass of the shard; 0 for ignored rows."""
        z = softcapped_logits(logits, objective)
        t = _target_weights(target, z, objective, shard)
        lse = _log_sum_exp(z)
        # Where all is masked any finite reference will do: t * inf, or 0 without t.
        reference = lse.masked_fill(lse == -torch.inf, 0.0)
        terms = torch.where((t == 0) & (z == -torch.inf), 0.0, t * (reference.unsqueeze(1) - z))
        local = Local(lse, terms.sum(dim=1), t.sum(dim=1, dtype=torch.float64))
        ignored = ignored_rows(target, replace(objective, ignore_index=IGNORED))
        return local if ignored is None else Local(*(numbers.masked_fill(ignored, 0.0) for numbers in local))

    def backward(
        self,
        logits: Tensor,
        target: Tensor,
        lse: Tensor,
        pull: Tensor,
        row_scale: Tensor,
        objective: Objective,
        shard: Shard,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return row_scale * (pull * exp(z - lse) - t) * dz/dx."""
        z = softcapped_logits(logits, objective)
        t = _target_weights(target, z, objective, shard)
        q = torch.exp(z - lse.unsqueeze(1)).to(z.dtype)
        gradient = (pull * row_scale).to(z.dtype).unsqueeze(1) * q - row_scale.to(z.dtype).unsqueeze(1) * t
        gradient = gradient * softcapped_logits_derivative(logits, objective)
        ignored = ignored_rows(target, replace(objective, ignore_index=IGNORED))
        if ignored is not None:
            gradient = gradient.masked_fill(ignored.unsqueeze(1), 0.0)
        gradient = gradient.to(logits.dtype)
        return gradient if out is None else out.copy_(gradient)

    def statistics(self, logits: Tensor, labels: Tensor, objective: Objective, shard: Shard) -> LocalStatistics:
        """Return what the shard knows of each row; -inf for a label that lies elsewhere."""
        z = softcapped_logits(logits, objective).double()
        lse = _log_sum_exp(z)
        nowhere = torch.full_like(lse, -torch.inf)
        if not z.shape[1]:
            return LocalStatistics(lse, torch.zeros_like(lse), nowhere, torch.zeros_like(labels), nowhere, nowhere)
        masked = z == -torch.inf
        log_q = z - lse.unsqueeze(1)
        entropy = -(log_q.exp().masked_fill(masked, 0.0) * log_q.masked_fill(masked, 0.0)).sum(dim=1)
        here, place = labelled(labels, z, replace(objective, ignore_index=IGNORED))
        label_x, label_z = (torch.where(here, x.gather(1, place).squeeze(1), nowhere) for x in (logits.double(), z))
        best, best_at = logits.double().max(dim=1).values, logits.argmax(dim=1)
        return LocalStatistics(lse, entropy, best, best_at, label_x, label_z)

    def count_above(self, logits: Tensor, x: Tensor) -> Tensor:
        """Return how many logits of each row are above x."""
        return (logits.double() > x.unsqueeze(1)).sum(dim=1)

    def statistics_gradient(
        self,
        logits: Tensor,
        labels: Tensor,
        statistics: Statistics,
        upstream: tuple[Tensor, Tensor, Tensor],
        objective: Objective,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return the gradient of the statistics of all shards by the logits of this one."""
        d_log_prob, d_entropy, d_lse = (numbers.double() for numbers in upstream)
        shares = share_elsewhere(labels, logits.shape[1], (d_log_prob, d_entropy, d_lse))
        here = replace(objective, ignore_index=IGNORED)
        return FORMULA.statistics_gradient(logits, labels, statistics, shares, here, out=out)


def _log_sum_exp(z: Tensor) -> Tensor:
    """In float64, so that an offset which all logits have in common costs no digits; -inf where all is masked."""
    if not z.shape[1]:
        return z.new_full((len(z),), -torch.inf, dtype=torch.float64)
    highest = z.amax(dim=1, keepdim=True)
    reference = highest.masked_fill(highest == -torch.inf, 0.0)
    return reference[:, 0].double() + torch.exp(z - reference).sum(dim=1, dtype=torch.float64).log()


def _target_weights(target: Tensor, z: Tensor, objective: Objective, shard: Shard) -> Tensor:
    """t of the shard's classes, for labels relative to the first of them."""
    if not target.is_floating_point():
        # Back to labels among all classes, which are known to be in range.
        target = torch.where(target == IGNORED, IGNORED, target + shard.first)
    return target_weights(target, z, replace(objective, ignore_index=IGNORED), shard.first, shard.total)
