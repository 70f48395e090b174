"""The arguments of a call on a shard: DTensors opened, shapes checked, and everything agreed upon with the other ranks.

`Arguments` is what a rank was given; `agree` makes an `Agreed` of it, which knows where the rank's classes lie among
all of them, and computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from xent.backends.cpu import shards as cpu
from xent.backends.cpu.shards import IGNORED
from xent.backends.formula import compute_dtype
from xent.checks import Layout, label_error, require_labels
from xent.errors import ObjectiveError, ShapeError, message
from xent.linear import shards as linear
from xent.linear.plan import parse_bytes
from xent.objective import Objective
from xent.reduction import gradient_scale, mean_denominator
from xent.torch import functional
from xent.torch import linear as layers
from xent.torch.functional import Statistics
from xent.torch.linear_kernels import Call
from xent.torch.parallel import combine as shards
from xent.torch.parallel import linear_shards
from xent.torch.parallel.combine import Sharded
from xent.torch.parallel.ranks import Ranks
from xent.torch.rows import LinearRows

REDUCTIONS = ("none", "sum", "mean")


@dataclass(frozen=True)
class Options:
    """The options of a call, before they are checked; the denominator may be "global"."""

    call: str
    options: dict[str, Any]
    denominator: float | str | None
    denominator_group: dist.ProcessGroup | None

    @property
    def is_global(self) -> bool:
        return self.denominator == "global"

    def objective(self) -> Objective:
        """The options, checked; a denominator that has to be counted is left out."""
        options: Any = {**self.options, "denominator": None if self.is_global else self.denominator}
        objective = Objective.of(self.call, options)
        if self.is_global and objective.reduction != "mean":
            found = f"a denominator has no meaning with reduction={objective.reduction!r}"
            raise ObjectiveError(message(self.call, "denominator", found, "Use reduction='mean'"))
        return objective

    def counted(self, target: Tensor, weight: Tensor | None, *, soft: bool, device: torch.device) -> dict[str, Any]:
        """The options of a call whose classes are whole, with a global denominator counted."""
        if not self.is_global:
            return {**self.options, "denominator": self.denominator}
        rows = target.shape.numel() // (target.shape[1] if soft and target.ndim > 1 else 1)
        count = mean_denominator(target, weight, soft, rows, self.objective())
        # Without anything to count the mean is NaN, as without a denominator.
        return {**self.options, "denominator": self.added_up(count, device) or None}

    def added_up(self, count: Any, device: torch.device) -> float:
        """The count of all ranks among which rows are split."""
        ranks = Ranks(self.call, self.denominator_group, device)
        return ranks.total(torch.as_tensor(float(count), dtype=torch.float64, device=device)).item()


@dataclass(frozen=True)
class Arguments:
    """The tensors of this rank: those of `rows` for a layer; for logits `weight` is None and the rest as it is."""

    given: Options
    group: dist.ProcessGroup | None
    rows: LinearRows
    workspace: int | str | None

    @classmethod
    def of_logits(
        cls, given: Options, group: dist.ProcessGroup | None, input: Any, target: Any, weight: Any
    ) -> Arguments:
        """Of logits; `group` is None only if there is no sharded tensor either."""
        axis = 0 if getattr(input, "ndim", 2) == 1 else 1
        soft = isinstance(target, Tensor) and target.is_floating_point()
        axes = {"input": axis, "target": axis if soft else None, "weight": 0}
        opened, group = _opened(given.call, group, axes, {"input": input, "target": target, "weight": weight})
        return cls(given, group, LinearRows(opened[0], None, None, opened[1], opened[2]), None)  # type: ignore[arg-type]

    @classmethod
    def of_layer(
        cls,
        given: Options,
        group: dist.ProcessGroup | None,
        input: Any,
        linear_weight: Any,
        linear_bias: Any,
        target: Any,
        weight: Any,
        workspace: int | str,
    ) -> Arguments:
        """Of a linear layer."""
        soft = isinstance(target, Tensor) and target.is_floating_point()
        tensors = {
            "input": input,
            "linear_weight": linear_weight,
            "linear_bias": linear_bias,
            "target": target,
            "weight": weight,
        }
        last = target.ndim - 1 if soft else None
        axes = {"input": None, "linear_weight": 0, "linear_bias": 0, "target": last, "weight": 0}
        opened, group = _opened(given.call, group, axes, tensors)
        return cls(given, group, LinearRows(*opened), workspace)

    def agree(self) -> Agreed:
        """Check, and agree with the other ranks; raises on all of them what is wrong with one."""
        device = self.rows.input.device if isinstance(self.rows.input, Tensor) else torch.device("cpu")
        ranks = Ranks(self.given.call, self.group, device)
        prepared, own = ranks.agree(self._prepared, _equal, _own)
        counts = [numbers[0] for numbers in own]
        shard = cpu.Shard(sum(counts[: ranks.rank]), counts[ranks.rank], sum(counts))
        _check(prepared, ranks, shard.total, own)
        soft = prepared.how.soft
        sharded = Sharded(prepared.objective, shard, ranks, soft or prepared.rows.class_weight is not None)
        if prepared.layer is None or prepared.method is None:
            return Agreed(self.given, prepared, sharded, None)
        sizes = [numbers[5:11] for numbers in own]
        plan = linear.common_plan(self.given.call, sizes, shard.classes, prepared.layer.workspace)
        layer = linear_shards.LinearSharded(prepared.layer, sharded, prepared.method, plan)
        return Agreed(self.given, prepared, sharded, layer)

    def _prepared(self) -> Prepared:
        """What this rank can find out by itself."""
        objective, call = self.given.objective(), self.given.call
        x, w, b, y, class_weight = self.rows
        if self.workspace is None:
            axis = 0 if getattr(x, "ndim", 2) == 1 else 1
            soft = isinstance(y, Tensor) and y.is_floating_point()
            how = functional.layout_of(
                call, _one(x, axis), _one(y, axis) if soft else y, _one(class_weight, 0), objective
            )
            how = replace(how, logits_shape=tuple(x.shape))
            by_rows = [tensor.movedim(axis, -1).reshape(how.rows, how.classes) for tensor in ((x, y) if soft else (x,))]
            rows = self.rows._replace(input=by_rows[0], target=by_rows[1] if soft else y.reshape(-1))
            layer, method, sizes = None, None, [0] * 6
        else:
            soft = isinstance(y, Tensor) and y.is_floating_point()
            how = layers.layout_of(
                call, x, _one(w, 0), _one(b, 0), _one(y, -1) if soft else y, _one(class_weight, 0), objective
            )
            how = replace(how, logits_shape=(*x.shape[:-1], w.shape[0]))
            target = y.reshape(how.rows, how.classes) if how.soft else y.reshape(-1)
            rows = self.rows._replace(input=x.reshape(how.rows, x.shape[-1]), target=target)
            layer = Call(call, objective, parse_bytes(call, self.workspace), layers.product_dtype(call, x, w, b))
            method, sizes = None, [0] * 6
            if shards.has_kernels(x):
                method, sizes = linear_shards.method_and_sizes(layer, rows, _wanted(rows)[:3])
        if call.endswith("statistics"):
            require_labels(call, how, "cross_entropy")
        return Prepared(self.given, objective, how, rows, layer, method, sizes)


@dataclass(frozen=True)
class Prepared:
    """A rank's arguments, checked by themselves."""

    given: Options
    objective: Objective
    how: Layout
    rows: LinearRows
    layer: Call | None
    method: Any
    sizes: list[int]


@dataclass(frozen=True)
class Agreed:
    """A call that all ranks of the group make together."""

    given: Options
    prepared: Prepared
    sharded: Sharded
    layer: linear_shards.LinearSharded | None

    def losses(self, scale: float | None) -> Tensor:
        """The losses of logits."""
        rows = self.prepared.rows
        found: Tensor = shards.CrossEntropy.apply(rows.input, rows.target, rows.class_weight, self.sharded)  # type: ignore[no-untyped-call]
        return found

    def linear_losses(self, scale: float | None) -> Tensor:
        """The losses of a layer, with gradients at once if the scale of the rows is given."""
        if self.layer is None:
            return self._by_logits().losses(scale)
        at_once = scale if torch.is_grad_enabled() else None
        found: Tensor = linear_shards.CrossEntropy.apply(*self.prepared.rows, self.layer, at_once)  # type: ignore[no-untyped-call]
        return found

    def statistics(self) -> Statistics:
        """The statistics of logits."""
        rows = self.prepared.rows
        found = shards.Statistics.apply(rows.input, rows.target, self.sharded)  # type: ignore[no-untyped-call]
        return self._shaped(found, rows.input.dtype)

    def linear_statistics(self) -> Statistics:
        """The statistics of a layer."""
        rows, layer = self.prepared.rows, self.layer
        if layer is None:
            return self._by_logits().statistics()
        found = linear_shards.Statistics.apply(*rows[:4], layer)  # type: ignore[no-untyped-call]
        return self._shaped(found, layer.call.dtype)

    def _by_logits(self) -> Agreed:
        """A layer as its logits, on devices whose steps are not written: torch makes them and their gradients."""
        prepared = self.prepared
        assert prepared.layer is not None
        rows = prepared.rows.to(prepared.layer.dtype)
        x: Tensor = shards.Shared.apply(rows.input, self.sharded.ranks)  # type: ignore[no-untyped-call]
        logits = torch.nn.functional.linear(x, rows.weight, rows.bias)
        return replace(self, prepared=replace(prepared, rows=rows._replace(input=logits, weight=None, bias=None)))  # type: ignore[arg-type]

    def _shaped(self, values: tuple[Tensor, ...], dtype: torch.dtype) -> Statistics:
        wide, shape = compute_dtype(dtype), self.prepared.how.loss_shape
        return Statistics(*(v.reshape(shape).to(wide) for v in values[:3]), *(v.reshape(shape) for v in values[3:]))

    def denominator(self) -> float:
        """What a mean divides by."""
        prepared, objective, shard = self.prepared, self.prepared.objective, self.sharded.shard
        target, weight, soft = prepared.rows.target, prepared.rows.class_weight, prepared.how.soft
        is_known = soft or objective.reduction != "mean" or objective.denominator is not None
        if weight is None or is_known:
            count = float(mean_denominator(target, None, soft, prepared.how.rows, objective))
        else:
            # Each label's weight lies with the label.
            here = (target != objective.ignore_index) & (target >= shard.first)
            here &= target < shard.first + shard.classes
            labels = torch.where(here, target - shard.first, IGNORED)
            local = replace(objective, ignore_index=IGNORED)
            part = mean_denominator(labels, weight.detach().double(), False, len(labels), local) if shard.classes else 0
            ranks = self.sharded.ranks
            count = ranks.total(torch.as_tensor(float(part), dtype=torch.float64, device=ranks.device)).item()
        return self.given.added_up(count, self.sharded.ranks.device) if self.given.is_global else count


def reduced(call: Agreed, losses_of: Callable[[float | None], Tensor]) -> Tensor:
    """The losses of a call, reduced as its objective says, in the dtype of its losses."""
    prepared, objective = call.prepared, call.prepared.objective
    dtype = compute_dtype(prepared.rows.input.dtype if prepared.layer is None else prepared.layer.dtype)
    if objective.reduction == "none":
        return losses_of(None).reshape(prepared.how.loss_shape).to(dtype)
    denominator = call.denominator()
    scale = gradient_scale(denominator, objective)
    total = losses_of(scale).sum() * scale
    # A mean over nothing is NaN, with gradient 0.
    return (total if denominator else total + math.nan).to(dtype)


def _equal(prepared: Prepared) -> dict[str, float]:
    """What has to be the same on all ranks."""
    objective, rows, layer = prepared.objective, prepared.rows, prepared.layer
    options = objective.to_numbers()
    dtype = rows.input.dtype if layer is None else layer.dtype
    return {
        "rows": prepared.how.rows,
        "features": 0 if layer is None else rows.input.shape[-1],
        "dtype": _number(str(dtype)),
        "gradients": sum(2**i for i, wanted in enumerate(_wanted(rows)) if wanted),
        "class probabilities": prepared.how.soft,
        "class weights": rows.class_weight is not None,
        "linear_bias": rows.bias is not None,
        "workspace": 0 if layer is None else layer.workspace,
        "ignore_index": options[0],
        "label_smoothing": options[1],
        "z_loss": options[2],
        "softcap": options[3],
        "logit_scale": options[4],
        "reduction": REDUCTIONS.index(objective.reduction),
        "denominator": math.inf if prepared.given.is_global else objective.denominator or 0.0,
    }


def _own(prepared: Prepared) -> list[int]:
    """The number of classes, the least and the greatest label and their rows, sizes, and a number for all labels."""
    how, target = prepared.how, prepared.rows.target
    if how.soft or not how.rows:
        return [how.classes, 0, 0, 0, 0, *prepared.sizes, 0]
    labels = target.long().masked_fill(target == prepared.objective.ignore_index, 0)
    low, high = labels.min(0), labels.max(0)
    places = torch.arange(len(labels), device=labels.device)
    extremes = [int(low.values), int(low.indices), int(high.values), int(high.indices)]
    # Very likely another number for other labels, or for the same in another order.
    mixed = int(((target.long() + 1) * (2 * places + 1)).sum())
    return [how.classes, *extremes, *prepared.sizes, mixed]


def _check(prepared: Prepared, ranks: Ranks, total: int, own: list[list[int]]) -> None:
    """Raise on all ranks if a label of one of them is out of range, or if their labels differ."""
    call, shape = prepared.given.call, prepared.how.loss_shape
    if not total:
        raise ShapeError(message(call, "input", "found no classes on any rank", "Pass at least one class"))
    for rank, (_, low, low_row, high, high_row, *_) in enumerate(own):
        for label, row in ((low, low_row), (high, high_row)):
            if not 0 <= label < total:
                index = tuple(int(place) for place in np.unravel_index(row, shape)) if shape else ()
                where = str(index[0]) if len(index) == 1 else str(index)
                raise label_error(call, f"{where} of {ranks.name(rank)}", label, total)
    ranks.compare("labels", [numbers[11] for numbers in own])


def _wanted(rows: LinearRows) -> tuple[bool, ...]:
    """Which of input, weight, bias and target need a gradient."""
    return tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in rows[:4])


def _one(tensor: Any, axis: int) -> Any:
    """A tensor of one class in place of an empty one, whose other axes are to be checked."""
    if not isinstance(tensor, Tensor) or not tensor.ndim or tensor.shape[axis]:
        return tensor
    shape = list(tensor.shape)
    shape[axis] = 1
    return tensor.new_empty(shape)


def _number(text: str) -> float:
    """A short text as a number."""
    return float(int.from_bytes(text.encode()[-6:], "big"))


def _opened(
    call: str, group: dist.ProcessGroup | None, axes: dict[str, int | None], tensors: dict[str, Any]
) -> tuple[list[Any], dist.ProcessGroup | None]:
    """The local tensors, and the group over which the classes lie; each is a plain tensor already, or a DTensor."""
    groups = {} if group is None else {"group": group}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            found = _group_of(call, name, tensor, axes[name])
            groups |= {} if found is None else {name: found}
    members = {name: tuple(dist.get_process_group_ranks(found)) for name, found in groups.items()}
    if len(set(members.values())) > 1:
        listed = ", ".join(f"{name} by ranks {list(ranks)}" for name, ranks in members.items())
        raise ShapeError(message(call, "group", f"the classes are sharded differently: {listed}", "Use one group"))
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors.values()]
    return local, next(iter(groups.values()), None)


def _group_of(call: str, name: str, tensor: DTensor, axis: int | None) -> dist.ProcessGroup | None:
    """The group over which a DTensor has its classes; None if each rank has all of it."""
    cut = [place for place, placement in enumerate(tensor.placements) if not isinstance(placement, Replicate)]
    if axis is None and not cut:
        return None
    if axis is not None and len(cut) == 1 and tensor.placements[cut[0]] == Shard(axis):
        return tensor.device_mesh.get_group(cut[0])
    wanted = "Replicate() everywhere" if axis is None else f"Shard({axis}) along one dimension of the mesh"
    found = f"found placements {tensor.placements}, expected {wanted}"
    remedy = "Redistribute it; for rows split over ranks pass to_local() and denominator='global'"
    raise ShapeError(message(call, name, found, remedy))
