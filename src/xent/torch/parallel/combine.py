"""The loss and the statistics of rows whose classes are sharded over a group, from what each shard reports.

With lse_k, loss_k and mass_k of shard k (xent/backends/shard.py) and highest = max(lse_k), which is exchanged first:

    lse  = highest + log(sum_k exp(lse_k - highest))
    mass = sum_k mass_k
    loss = sum_k (loss_k + mass_k * (highest - lse_k)) + mass * (lse - highest) + z_loss * lse**2

All terms of the first sum are 0 or more without smoothing, so nothing cancels, however large the logits. The entropy
follows by its chain rule, with the share w_k = exp(lse_k - lse) of each shard:

    entropy = sum_k w_k * (entropy_k - log w_k)

What is exchanged are float64 numbers, a few for each row (`NUMBERS`); logits never are. A linear layer exchanges them
chunk by chunk, while the logits of the chunk are in the workspace. Asking once for all rows would make the logits of
every chunk twice, four products instead of three: for 1000 rows, 4096 features and 32000 classes the product that is
saved has 2.6e11 operations, half a millisecond on a device that does 500 TFLOP/s, and two messages cost a fraction of
that. So all ranks cut the rows in the same way, by the plan of the largest shard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xent.backends.cpu.linear_steps import Method
from xent.backends.cpu.linear_steps import sizes_of as cpu_sizes_of
from xent.backends.cpu.products import library_of_torch
from xent.backends.cpu.shards import CpuShards
from xent.backends.cpu.tensors import TensorBackend, TensorLinearBackend, layer_arrays, steps
from xent.backends.formula_shards import FormulaShards
from xent.backends.protocol import Array, Statistics
from xent.backends.shard import IGNORED, Local, LocalStatistics, Shard, ShardBackend
from xent.backends.tensor_steps import TensorSteps
from xent.backends.tensor_steps import sizes_of as tensor_sizes_of
from xent.linear.backend import LinearBackend
from xent.linear.driver import Gradients, Layer, Wanted
from xent.linear.plan import Plan, Sizes, balanced, make_plan
from xent.objective import Objective
from xent.reduction import weighted_count
from xent.torch.parallel.agreement import Ranks

NUMBERS = {"loss": 3, "loss_with_mass": 4, "statistics": 8}
"""Of 8 bytes, per row: maxima and sums. The mass is known beforehand for labels without class weights."""


def has_kernels(tensor: Tensor) -> bool:
    """Whether the kernels of xent/backends/cpu/shards.py compute; elsewhere formulas do."""
    return tensor.device.type == "cpu"


def sharded(like: Tensor, shard: Shard, ranks: Ranks, *, sums_mass: bool) -> Any:
    """The backend of logits (rows, classes) of which this rank has a shard, for tensors on the device of `like`."""
    if has_kernels(like):
        return TensorBackend(ShardedBackend(CpuShards(torch.get_num_threads), shard, ranks, sums_mass, True))
    return ShardedBackend(FormulaShards(), shard, ranks, sums_mass, False)


def sharded_linear(backend: Any, plan: Plan) -> ShardedLinear:
    """The backend of a linear layer of which this rank has a shard, cut by the plan of all ranks."""
    if isinstance(backend, TensorBackend):
        arrays: Any = backend.arrays
        inner: Any = TensorLinearBackend(
            ExchangingBackend(arrays, lambda layer, wanted: steps(layer, wanted, plan), plan)
        )
        return ShardedLinear(inner, arrays.ranks)
    inner = ExchangingBackend(backend, lambda layer, wanted: TensorSteps(layer, wanted, plan), plan)
    return ShardedLinear(inner, backend.ranks)


def sizes_of(layer: Layer, wanted: Wanted) -> list[int]:
    """What the common plan has to know of the layer of this rank."""
    if not has_kernels(layer.input):
        return list(astuple(tensor_sizes_of(layer)))
    arrays = layer_arrays(layer)
    wanted = wanted._replace(bias=wanted.bias and layer.bias is not None)
    return list(astuple(cpu_sizes_of(arrays, Method.of(arrays, library_of_torch()), wanted)))


def common_plan(call: str, sizes: Sequence[Sequence[int]], classes: int, workspace: int) -> Plan:
    """The plan of a rank with so many classes, from the sizes of all ranks: every rank has the same chunks."""
    plan = make_plan(call, Sizes(*(max(numbers) for numbers in zip(*sizes, strict=True))), workspace)
    parts = balanced(classes, -(-classes // len(plan.parts))) if classes else ()
    return replace(plan, parts=parts or ((0, 0),))


# ------------------------------------------------------------------------------------------------------ rows of logits


@dataclass
class ShardedBackend:
    """`xent.backends.Backend` of logits (rows, classes) whose classes are sharded: every rank makes the same calls.

    `saved` is the log-sum-exp and the mass of each row over all shards.
    """

    local: ShardBackend
    shard: Shard
    ranks: Ranks
    sums_mass: bool
    on_arrays: bool
    """Whether the local backend takes NumPy arrays."""

    one_visit = False
    has_second_derivatives = False
    exchanging = False
    """Whether an error comes from an exchange, in which all ranks take part, rather than from this rank alone."""

    @property
    def reads_values(self) -> bool:
        return self.on_arrays

    def compute_dtype(self, dtype: Any) -> Any:
        """The dtype of losses and arithmetic."""
        return self.local.compute_dtype(dtype)

    def forward(self, logits: Array, target: Array, objective: Objective) -> tuple[Array, Array]:
        """Return the losses of the rows in float64, and log-sum-exps and masses, over all shards."""
        local = self.local.forward(logits, self._here(target, objective), objective, self.shard)
        with _Exchange(self):
            whole = self._combined(local, self._ignored(target, objective), objective)
        return self._back(whole.loss), self._back(torch.stack([whole.lse, whole.mass]))

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
        """Return the gradient of sum(row_scale * loss) by the logits of this shard."""
        lse, pull = saved
        if objective.z_loss:
            pull = pull + 2 * objective.z_loss * lse
        if self.on_arrays:
            scale: Array = np.full(len(lse), row_scale, np.float64)
        else:
            scale = torch.as_tensor(row_scale, dtype=torch.float64, device=lse.device).expand(len(lse))
        here = self._here(target, objective)
        return self.local.backward(logits, here, lse, pull, scale, objective, self.shard, out=out)

    def forward_backward(
        self,
        logits: Array,
        target: Array,
        row_scale: Array | float,
        objective: Objective,
        *,
        out: Array | None = None,
    ) -> tuple[Array, Array, Array]:
        """Return losses, saved numbers and gradient."""
        losses, saved = self.forward(logits, target, objective)
        return losses, saved, self.backward(logits, target, saved, row_scale, objective, out=out)

    def statistics(self, logits: Array, labels: Array, objective: Objective) -> Statistics:
        """Return the statistics of the rows over all shards, in float64."""
        local = self.local.statistics(logits, self._here(labels, objective), objective, self.shard)
        with _Exchange(self):
            values = self._combined_statistics(local, lambda x: self.local.count_above(logits, self._back(x)))
        ignored = self._ignored(labels, objective)
        log_prob, rank = values.log_prob.masked_fill(ignored, 0.0), values.rank.masked_fill(ignored, -1)
        return Statistics(*(self._back(numbers) for numbers in values._replace(log_prob=log_prob, rank=rank)))

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
        """Return the gradient of the statistics by the logits of this shard."""
        here = self._here(labels, objective)
        d_log_prob, d_entropy, d_lse = upstream
        d_log_prob = d_log_prob * (labels != objective.ignore_index)
        return self.local.statistics_gradient(
            logits, here, statistics, (d_log_prob, d_entropy, d_lse), objective, out=out
        )

    def count(
        self, labels: Array, weight: Array | None, ignore_index: int, sample_weight: Array | None = None
    ) -> float:
        """Return the weighted count of the labels that are not `ignore_index`; each label's weight lies with it."""
        if weight is None:
            return float(weighted_count(labels, None, ignore_index, sample_weight))
        here = (labels >= self.shard.first) & (labels < self.shard.first + self.shard.classes)
        local = self._where(here & (labels != ignore_index), labels - self.shard.first, IGNORED)
        part = float(weighted_count(local, weight, IGNORED, sample_weight)) if self.shard.classes else 0.0
        return self.ranks.total(torch.tensor(part, dtype=torch.float64, device=self.ranks.device)).item()

    def total(self, losses: Array) -> Any:
        """Return the sum of the losses."""
        return float(losses.sum()) if self.on_arrays else losses.sum()

    def scale(self, gradient: Tensor, factor: Tensor) -> None:
        """Multiply a gradient, in place, by an upstream gradient."""
        gradient.mul_(factor)

    def _combined(self, local: Local, ignored: Tensor, objective: Objective) -> Local:
        """Of all shards, as tensors; all 0 for ignored rows."""
        lse, loss, mass = (torch.as_tensor(numbers, device=self.ranks.device) for numbers in local)
        highest = self.ranks.maximum(lse)
        below = highest - lse
        reports = [torch.exp(-below), loss + torch.where(mass == 0, 0.0, mass * below)]
        sums = self.ranks.total(torch.stack([*reports, mass] if self.sums_mass else reports))
        log_total = sums[0].log()
        mass = sums[2] if self.sums_mass else torch.ones_like(lse)
        lse = highest + log_total
        loss = sums[1] + torch.where(mass == 0, 0.0, mass * log_total)
        if objective.z_loss:
            loss = loss + objective.z_loss * lse**2
        # A row without a finite log-sum-exp is NaN, also where its label counts for nothing.
        loss = torch.where(lse.isnan(), lse, loss)
        return Local(*(tensor.masked_fill(ignored, 0.0) for tensor in (lse, loss, mass)))

    def _combined_statistics(self, local: LocalStatistics, count_above: Callable[[Tensor], Any]) -> Statistics:
        """Of all shards, without regard to ignored rows."""
        lse, entropy, best, best_at, label_x, label_z = (
            torch.as_tensor(numbers, device=self.ranks.device) for numbers in local
        )
        # NaN is not ordered: where it is the first of its shard it counts as the greatest.
        best = best.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        highest, greatest, x = self.ranks.maximum(torch.stack([lse, best, label_x]))
        share = torch.exp(lse - highest)
        chained = torch.where(share == 0, 0.0, share * (entropy + (highest - lse)))
        count = torch.as_tensor(count_above(x), device=x.device).double()
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
        entropy = sums[1] / sums[0] + log_total
        return Statistics(log_prob, entropy, highest + log_total, argmax.long(), sums[3].long())

    def _here(self, target: Array, objective: Objective) -> Array:
        """Labels relative to the first class of the shard, IGNORED where they are to be ignored."""
        if target.ndim == 2:
            return target
        return self._where(target == objective.ignore_index, IGNORED, target - self.shard.first)

    def _ignored(self, target: Array, objective: Objective) -> Tensor:
        """Which rows count for nothing."""
        if target.ndim == 2:
            return torch.zeros(len(target), dtype=torch.bool, device=self.ranks.device)
        return torch.as_tensor(target == objective.ignore_index, device=self.ranks.device)

    def _where(self, condition: Array, yes: Any, no: Any) -> Array:
        return np.where(condition, yes, no) if self.on_arrays else torch.where(condition, yes, no)

    def _back(self, tensor: Tensor) -> Array:
        """Numbers of all shards as the local backend takes them."""
        return tensor.numpy() if self.on_arrays else tensor


class _Exchange:
    """While numbers are exchanged, an error is one of all ranks."""

    def __init__(self, backend: ShardedBackend) -> None:
        self.backend = backend

    def __enter__(self) -> None:
        self.backend.exchanging = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.backend.exchanging = False


# ------------------------------------------------------------------------------------------------------- linear layers


@dataclass(frozen=True)
class ExchangingBackend(LinearBackend):
    """The linear losses of this rank, with an exchange in each chunk. If this rank fails, it lets the others know."""

    plan: Plan

    def run(self, layer: Layer, visit: Any, wanted: Wanted) -> Any:
        """Run the driver; with gradients, until all ranks have finished."""
        backend: Any = self.rows
        try:
            steps = super().run(layer, visit, wanted)
        except Exception as error:
            if backend.exchanging:
                backend.exchanging = False
                raise
            chunks = self.plan.chunks if visit.known is None else ()
            awaited = next((last - first for first, last in chunks if last > visit.visited), None)
            if awaited is not None:  # the first message about the next chunk
                shape = (awaited,) if visit.numbers == 1 else (visit.numbers, awaited)
                raise backend.ranks.failed(shape, error) from error
            if any(wanted):  # the sign below
                raise backend.ranks.failed((0,), error) from error
            raise
        if any(wanted):
            backend.ranks.maximum(torch.zeros(0, dtype=torch.float64, device=backend.ranks.device))
        return steps


@dataclass(frozen=True)
class ShardedLinear:
    """`LinearBackend` whose gradient of the input, of which each rank has a share, is added up over the ranks."""

    inner: Any
    ranks: Ranks

    def forward(self, layer: Layer, objective: Objective) -> tuple[Tensor, Tensor]:
        """Return losses and saved numbers."""
        found: tuple[Tensor, Tensor] = self.inner.forward(layer, objective)
        return found

    def forward_backward(
        self, layer: Layer, row_scale: Any, objective: Objective, wanted: Wanted
    ) -> tuple[Tensor, Tensor, Gradients]:
        """Return losses, saved numbers and the wanted gradients."""
        losses, saved, gradients = self.inner.forward_backward(layer, row_scale, objective, wanted)
        return losses, saved, self._summed(gradients)

    def backward(self, layer: Layer, saved: Tensor, row_scale: Any, objective: Objective, wanted: Wanted) -> Gradients:
        """Return the wanted gradients."""
        return self._summed(self.inner.backward(layer, saved, row_scale, objective, wanted))

    def statistics(self, layer: Layer, objective: Objective) -> Statistics:
        """Return the statistics of each row."""
        found: Statistics = self.inner.statistics(layer, objective)
        return found

    def statistics_gradient(
        self, layer: Layer, statistics: Statistics, upstream: Any, objective: Objective, wanted: Wanted
    ) -> Gradients:
        """Return the wanted gradients of the statistics."""
        return self._summed(self.inner.statistics_gradient(layer, statistics, upstream, objective, wanted))

    def _summed(self, gradients: Gradients) -> Gradients:
        """16-bit shares are added up in float32 and rounded once."""
        share = gradients.input
        if share is None:
            return gradients
        dtype = torch.float64 if share.dtype == torch.float64 else torch.float32
        wide = torch.empty_like(share, dtype=dtype, memory_format=torch.contiguous_format)
        return gradients._replace(input=self.ranks.total(wide.copy_(share)).to(share.dtype))
