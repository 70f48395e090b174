"""The loss and the statistics of rows whose classes are sharded over a group, from what each shard tells.

With lse_k, loss_k and mass_k of shard k (cpu/shards.py) and highest = max(lse_k), which is the first thing exchanged:

    lse  = highest + log(sum_k exp(lse_k - highest))
    mass = sum_k mass_k
    loss = sum_k (loss_k + mass_k * (highest - lse_k)) + mass * (lse - highest) + z_loss * lse**2

All terms of the first sum are 0 or more without smoothing, so nothing cancels, however large the logits. The entropy
follows by its chain rule, with the share w_k = exp(lse_k - lse) of each shard:

    entropy = sum_k w_k * (entropy_k - log w_k)

What is exchanged are float64 numbers, a few for each row (`NUMBERS`); logits never are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xent import memory
from xent.backends import formula_shards as shard_formulas
from xent.backends.cpu import shards as cpu
from xent.backends.cpu.shards import IGNORED, Local, LocalStatistics, Shard
from xent.backends.cpu.statistics_gradient import statistics_gradient
from xent.backends.formula import compute_dtype
from xent.objective import Objective
from xent.torch import kernels
from xent.torch.kernels import as_array
from xent.torch.parallel.agreement import Ranks

NUMBERS = {"loss": 3, "loss_with_mass": 4, "statistics": 8}
"""Of 8 bytes, per row: maxima and sums. The mass is known beforehand for labels without class weights."""


@dataclass(frozen=True)
class Sharded:
    """A call on a shard: its options, which classes are here, and whom to ask about the others."""

    objective: Objective
    shard: Shard
    ranks: Ranks
    sums_mass: bool

    def loss(self, found: Local, ignored: Tensor) -> Local:
        """Combine what the shards tell, as tensors; all 0 for ignored rows."""
        lse, loss, mass = (_tensor(array, self.ranks.device) for array in found)
        highest = self.ranks.maximum(lse)
        below = highest - lse
        told = [torch.exp(-below), loss + torch.where(mass == 0, 0.0, mass * below)]
        sums = self.ranks.total(torch.stack([*told, mass] if self.sums_mass else told))
        log_total = sums[0].log()
        mass = sums[2] if self.sums_mass else torch.ones_like(lse)
        lse = highest + log_total
        loss = sums[1] + torch.where(mass == 0, 0.0, mass * log_total)
        if self.objective.z_loss:
            loss = loss + self.objective.z_loss * lse**2
        # A row without a finite log-sum-exp is NaN, also where its label counts for nothing.
        loss = torch.where(lse.isnan(), lse, loss)
        return Local(*(tensor.masked_fill(ignored, 0.0) for tensor in (lse, loss, mass)))

    def statistics(self, found: LocalStatistics, above: Any) -> tuple[Tensor, ...]:
        """(log_prob, entropy, lse, argmax, rank) without regard to ignored rows; `above(x)` counts the local logits."""
        lse, entropy, best, best_at, label_x, label_z = (_tensor(array, self.ranks.device) for array in found)
        # NaN is not ordered: where it is the first of its shard it counts as the greatest.
        best = best.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        highest, greatest, x = self.ranks.maximum(torch.stack([lse, best, label_x]))
        share = torch.exp(lse - highest)
        chained = torch.where(share == 0, 0.0, share * (entropy + (highest - lse)))
        count = torch.as_tensor(above(x), dtype=torch.float64, device=x.device)
        # The label lies on one shard; a masked one has log-probability -inf there and must not be NaN elsewhere.
        of_label = torch.where(label_x == -torch.inf, 0.0, label_z - highest)
        sums = self.ranks.total(torch.stack([share, chained, of_label, count]))
        log_total = sums[0].log()
        log_prob = torch.where(x == -torch.inf, -torch.inf, sums[2] - log_total)
        log_prob = torch.where(sums[0].isnan(), torch.nan, log_prob)
        place = torch.where(best == greatest, -(self.shard.first + best_at.double()), -torch.inf)
        if not self.shard.classes:
            place = torch.full_like(place, -torch.inf)
        argmax = -self.ranks.maximum(place)
        return log_prob, sums[1] / sums[0] + log_total, highest + log_total, argmax.long(), sums[3].long()


class CrossEntropy(torch.autograd.Function):
    """Of (logits (rows, classes), target, class weight, call): the losses of the rows, float64."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, call: Sharded) -> Tensor:
        ignored = ignored_rows(target, call.objective)
        found = call.loss(_forward(logits, target, weight, call), ignored)
        ctx.call, ctx.found = call, found
        ctx.save_for_backward(logits, target, weight)
        return found.loss.clone()  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, weight = ctx.saved_tensors
        call, found = ctx.call, ctx.found
        dlogits = dtarget = None
        if ctx.needs_input_grad[0]:
            dlogits = _backward(logits, target, weight, found, upstream, call)
        if ctx.needs_input_grad[1]:
            dtarget = shard_formulas.target_gradient(logits, weight, found.lse, upstream, call.objective, target.dtype)
        return dlogits, dtarget, None, None


class Statistics(torch.autograd.Function):
    """Of (logits (rows, classes), labels, call): log_prob, entropy, lse, argmax, rank."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, call: Sharded) -> tuple[Tensor, ...]:
        if has_kernels(logits):
            x, here = as_array(logits), local_labels(labels, call)
            threads = torch.get_num_threads()
            found = cpu.statistics(x, here, call.objective, call.shard, threads=threads)
            values = call.statistics(found, lambda label: cpu.above(x, label.numpy(), threads=threads))
        else:
            found = shard_formulas.statistics(logits, labels - call.shard.first, call.objective)
            values = call.statistics(found, lambda label: (logits.double() > label.unsqueeze(1)).sum(dim=1))
        ignored = ignored_rows(labels, call.objective)
        values = without_label(values, ignored)
        ctx.call, ctx.entropy, ctx.lse = call, values[1], values[2]
        ctx.save_for_backward(logits, labels)
        ctx.mark_non_differentiable(*values[3:])
        return tuple(v.clone() for v in values)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_log_prob: Tensor, d_entropy: Tensor, d_lse: Tensor, *_: Tensor
    ) -> tuple[Tensor, None, None]:
        logits, labels = ctx.saved_tensors
        call: Sharded = ctx.call
        d_log_prob = d_log_prob.masked_fill(ignored_rows(labels, call.objective), 0.0)
        if not has_kernels(logits):
            above = (d_log_prob, d_entropy, d_lse)
            here = labels - call.shard.first
            gradient = shard_formulas.statistics_gradient(logits, here, ctx.lse, ctx.entropy, above, call.objective)
            return gradient, None, None
        x = np.ascontiguousarray(as_array(logits))
        out = memory.empty(x.shape, x.dtype)
        write_statistics_gradient(
            x, local_labels(labels, call), ctx.lse, ctx.entropy, (d_log_prob, d_entropy, d_lse), call.objective, out
        )
        return kernels.as_tensor(out, logits.dtype), None, None


def has_kernels(tensor: Tensor) -> bool:
    """Whether the kernels of cpu/shards.py do the work; the formulas of shard_formulas.py do it elsewhere."""
    return tensor.device.type == "cpu"


class Shared(torch.autograd.Function):
    """The input of a layer, the same on all ranks, each of which has a share of its gradient: they are added up."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return input.view_as(input)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, share: Tensor) -> tuple[Tensor, None]:
        return summed(share, ctx.ranks), None


def summed(share: Tensor, ranks: Ranks) -> Tensor:
    """The sum of each rank's share of a gradient; 16-bit shares are added up in float32 and rounded once."""
    wide = torch.empty_like(share, dtype=compute_dtype(share.dtype), memory_format=torch.contiguous_format)
    return ranks.total(wide.copy_(share)).to(share.dtype)


def write_statistics_gradient(
    logits: Any, labels: Any, lse: Any, entropy: Any, upstream: Any, objective: Objective, out: Any
) -> None:
    """The gradient of the statistics on a shard, from log-sum-exp and entropy of all shards.

    Of a row whose label lies elsewhere, d_log_prob * (one_hot - q) leaves -d_log_prob * q here.
    """
    d_log_prob, d_entropy, d_lse = (np.array(tensor, np.float64) for tensor in upstream)
    elsewhere = (labels != IGNORED) & ((labels < 0) | (labels >= logits.shape[1]))
    d_lse -= np.where(elsewhere, d_log_prob, 0.0)
    statistics_gradient(
        logits,
        labels,
        np.array(lse, np.float64),
        np.array(entropy, np.float64),
        (d_log_prob, d_entropy, d_lse),
        replace(objective, ignore_index=IGNORED),
        out=out,
        threads=torch.get_num_threads(),
    )


def without_label(values: tuple[Tensor, ...], ignored: Tensor) -> tuple[Tensor, ...]:
    """Statistics of rows without a label: log-probability 0 and rank -1."""
    log_prob, entropy, lse, argmax, rank = values
    return log_prob.masked_fill(ignored, 0.0), entropy, lse, argmax, rank.masked_fill(ignored, -1)


def ignored_rows(target: Tensor, objective: Objective) -> Tensor:
    """Which rows count for nothing."""
    if target.is_floating_point():
        return torch.zeros(len(target), dtype=torch.bool, device=target.device)
    return target == objective.ignore_index


def local_labels(labels: Tensor, call: Sharded) -> Any:
    """Labels as the kernels of a shard take them."""
    return call.shard.labels(kernels.target_array(labels, np.empty(0)), call.objective.ignore_index)


def weighted(objective: Objective, weight: Tensor | None, logits: Any) -> Objective:
    """The options with the class weights of the shard as the kernels take them."""
    return kernels.with_weight(objective, weight, logits)


def _forward(logits: Tensor, target: Tensor, weight: Tensor | None, call: Sharded) -> Local:
    if not has_kernels(logits):
        return shard_formulas.forward(logits, target, weight, call.objective, call.shard)
    x = as_array(logits)
    y = kernels.target_array(target, x) if target.is_floating_point() else local_labels(target, call)
    return cpu.forward(x, y, weighted(call.objective, weight, x), call.shard, threads=torch.get_num_threads())


def _backward(
    logits: Tensor, target: Tensor, weight: Tensor | None, found: Local, upstream: Tensor, call: Sharded
) -> Tensor:
    if not has_kernels(logits):
        return shard_formulas.backward(logits, target, weight, found, upstream, call.objective, call.shard)
    x = as_array(logits)
    y = kernels.target_array(target, x) if target.is_floating_point() else local_labels(target, call)
    out = memory.empty(x.shape, x.dtype)
    scale = np.ascontiguousarray(upstream.detach().double().numpy())
    objective = weighted(call.objective, weight, x)
    lse, mass = found.lse.numpy(), found.mass.numpy()
    cpu.backward(x, y, lse, mass, scale, objective, call.shard, out=out, threads=torch.get_num_threads())
    return kernels.as_tensor(out, logits.dtype)


def _tensor(array: Any, device: torch.device) -> Tensor:
    return torch.as_tensor(array, device=device)
