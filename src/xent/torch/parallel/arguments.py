"""The arguments of a call on one rank: DTensors opened, shapes and dtypes checked, and compared with the other ranks.

`Arguments` holds what the call was given on this rank. `Arguments.agree` checks it, exchanges reports with the other
ranks (agreement.py), and returns an `Agreement`: the checked arguments, and where this rank's classes lie among all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any
from zlib import crc32

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor import Shard as ShardPlacement

from xent.backends.formula import FORMULA
from xent.backends.shard import Shard
from xent.checks import Layout, label_error, require_labels
from xent.errors import DTypeError, ObjectiveError, ShapeError, XentError, message
from xent.linear.driver import Wanted
from xent.linear.plan import parse_bytes
from xent.linear.sampling import GradientOption, Sampling, refuse_sampling
from xent.objective import Objective
from xent.sparse import SparseTarget
from xent.torch import functional
from xent.torch import linear as layers
from xent.torch.parallel.agreement import Ranks, check_group
from xent.torch.parallel.combine import sizes_of
from xent.torch.reduced import denominator_of
from xent.torch.rows import Call, LinearRows, sample_weights
from xent.torch.sampled import sampling

Group = dist.ProcessGroup | None

ARGUMENTS = ("input", "linear_weight", "linear_bias", "target", "weight")
"""What the public calls name the tensors of `LinearRows`."""


@dataclass(frozen=True)
class Options:
    """The options of a call as they were passed; the denominator may be "global"."""

    call: str
    options: dict[str, Any]
    denominator: float | str | None
    denominator_group: Group

    @property
    def is_global(self) -> bool:
        return isinstance(self.denominator, str) and self.denominator == "global"

    def objective(self) -> Objective:
        """The options, checked; a global denominator, which has to be counted, is left out."""
        if isinstance(self.denominator, str) and not self.is_global:
            found = f"found {self.denominator!r}, expected None, a finite number above 0, or 'global'"
            raise ObjectiveError(message(self.call, "denominator", found, "See help(xent.torch.parallel)"))
        options: Any = {**self.options, "denominator": None if self.is_global else self.denominator}
        objective = Objective.of(self.call, options)
        if self.is_global and objective.reduction != "mean":
            found = f"a denominator has no meaning with reduction={objective.reduction!r}"
            raise ObjectiveError(message(self.call, "denominator", found, "Use reduction='mean'"))
        if self.is_global:
            check_group(self.call, "denominator_group", self.denominator_group)
        return objective

    def total_count(self, count: Any, device: torch.device) -> float:
        """The sum of the counts of all ranks among which rows are split: the global denominator."""
        ranks = Ranks(self.call, self.denominator_group, device, "denominator_group")
        return ranks.total(torch.as_tensor(float(count), dtype=torch.float64, device=device)).item()


@dataclass(frozen=True)
class Arguments:
    """What a call was given on this rank, with DTensors opened. For logits there is neither weight nor bias in `rows`.

    `group` is None if there is neither a group nor a sharded DTensor: then all classes are on this rank.
    """

    options: Options
    group: Group
    rows: LinearRows
    is_layer: bool
    workspace: int | str | None
    problem: XentError | None
    """What was wrong with the tensors as they were opened; raised on all ranks when they agree."""
    sample_weight: Tensor | None = None
    gradient: tuple[GradientOption, float | None, int | Tensor | None] = ("exact", None, None)
    """Of a layer: how it is made, threshold and seed."""

    @classmethod
    def of_logits(cls, options: Options, group: Group, input: Any, target: Any, weight: Any) -> Arguments:
        """The arguments of a call on logits."""
        _refuse_sparse(options.call, target)
        axis = _class_axis(input)
        axes = (axis, None, None, axis if _is_soft(target) else None, 0)
        tensors = (input, None, None, target, weight)
        rows, group, problem = _opened(options.call, group, tensors, axes)
        return cls(options, group, rows, False, None, problem)

    @classmethod
    def of_layer(
        cls,
        options: Options,
        group: Group,
        input: Any,
        linear_weight: Any,
        linear_bias: Any,
        target: Any,
        weight: Any,
        workspace: int | str,
    ) -> Arguments:
        """The arguments of a call on a linear layer."""
        _refuse_sparse(options.call, target)
        axes = (None, 0, 0, target.ndim - 1 if _is_soft(target) else None, 0)
        tensors = (input, linear_weight, linear_bias, target, weight)
        rows, group, problem = _opened(options.call, group, tensors, axes)
        return cls(options, group, rows, True, workspace, problem)

    def whole_options(self) -> dict[str, Any]:
        """The options for the call of xent.torch where all classes are on this rank: a global denominator is counted.

        The mean over nothing is NaN, as without a denominator.
        """
        objective, denominator = self.options.objective(), self.options.denominator
        if self.options.is_global:
            layout = self._layout(objective)
            target, given = self._target_as_rows(layout), (self.options.call, self.sample_weight)
            weights, class_weight = sample_weights(*given, self.rows.class_weight, target, layout, objective)
            count = denominator_of(Call("", objective, FORMULA, sample_weight=weights), target, class_weight)
            denominator = self.options.total_count(count, self.rows.input.device) or None
        return {**self.options.options, "denominator": denominator, "sample_weight": self.sample_weight}

    def agree(self) -> Agreement:
        """Check the arguments of all ranks; what is wrong with one, or differs, is raised on every rank."""
        x = self.rows.input
        ranks = Ranks(self.options.call, self.group, x.device if isinstance(x, Tensor) else torch.device("cpu"))

        def prepare() -> tuple[Prepared, dict[str, Any], dict[str, Any]]:
            if self.problem is not None:
                raise self.problem
            prepared = self._prepared()
            return prepared, _common_facts(prepared), _own_facts(prepared)

        prepared, own = ranks.agree(prepare)
        counts = [facts["classes"] for facts in own]
        shard = Shard(sum(counts[: ranks.rank]), counts[ranks.rank], sum(counts))
        _check_labels(prepared, ranks, shard.total, own)
        return Agreement(prepared, ranks, shard, [] if prepared.sizes is None else [facts["sizes"] for facts in own])

    def _prepared(self) -> Prepared:
        """What this rank can check and find out without the others."""
        call, objective = self.options.call, self.options.objective()
        layout = self._layout(objective)
        if call.endswith("statistics"):
            require_labels(call, layout, "cross_entropy")
        x, w, b, _, _ = self.rows
        # For a layer the last axis of the input has the features.
        axis = x.ndim - 1 if self.is_layer else layout.class_axis
        target = self._target_as_rows(layout)
        # Class weights lie where their classes lie, whatever becomes of them.
        weights, _ = sample_weights(call, self.sample_weight, None, target, layout, objective)
        rows = self.rows._replace(input=x.movedim(axis, -1).reshape(layout.rows, x.shape[axis]), target=target)
        if not self.is_layer:
            return Prepared(self.options, objective, layout, rows, None, x.dtype, None, weights)
        workspace: Any = self.workspace
        room, dtype = (
            parse_bytes(call, workspace, x.device.type),
            layers.product_dtype(call, input=x, linear_weight=w, linear_bias=b),
        )
        how = sampling(call, *self.gradient, None, *rows[:3])
        if rows.class_weight is not None:
            refuse_sampling(call, how, "with class weights, which lie on the ranks that have the classes")
        layer = rows.layer(Call(call, objective, FORMULA, None, room, dtype, sampling=how))
        sizes = sizes_of(layer, Wanted(*_wanted(rows)[:3]))
        return Prepared(self.options, objective, layout, rows, room, dtype, sizes, weights, how)

    def _target_as_rows(self, layout: Layout) -> Tensor:
        """Labels (rows,), or class probabilities (rows, classes)."""
        target: Tensor = self.rows.target
        if not layout.soft:
            return target.reshape(-1).long()
        axis = target.ndim - 1 if self.is_layer else layout.class_axis
        return target.movedim(axis, -1).reshape(layout.rows, layout.classes)

    def _layout(self, objective: Objective) -> Layout:
        """How the logits lie as rows; shapes and dtypes are checked as in xent.torch, but a shard may have no class."""
        call, (x, w, b, target, class_weight) = self.options.call, self.rows
        axis = -1 if self.is_layer else _class_axis(x)
        target = _with_a_class(target, axis) if _is_soft(target) else target
        class_weight = _with_a_class(class_weight, 0)
        if not self.is_layer:
            layout = functional.layout_of(call, _with_a_class(x, axis), target, class_weight, objective)
            return replace(layout, logits_shape=tuple(x.shape))
        layout = layers.layout_of(call, x, _with_a_class(w, 0), _with_a_class(b, 0), target, class_weight, objective)
        return replace(layout, logits_shape=(*x.shape[:-1], w.shape[0]))


@dataclass(frozen=True)
class Prepared:
    """The arguments of this rank, checked by themselves."""

    options: Options
    objective: Objective
    layout: Layout
    """Of this rank's columns of the logits."""
    rows: LinearRows
    workspace: int | None
    """In bytes; None for logits."""
    dtype: torch.dtype
    """Of the logits."""
    sizes: list[int] | None
    """The sizes for which the ranks make their common plan of chunks; None for logits."""
    sample_weight: Tensor | None
    sampling: Sampling | None = None

    @property
    def weights(self) -> str | None:
        """What stands for the weights of rows where ranks compare theirs."""
        if self.sample_weight is None:
            return None
        numbers = self.sample_weight.detach().double().cpu().numpy()
        return f"of sum {numbers.sum():g} and checksum {crc32(numbers.tobytes()):x}"


@dataclass(frozen=True)
class Agreement:
    """A call that all ranks of the group make together: nothing is wrong with the arguments of any."""

    prepared: Prepared
    ranks: Ranks
    shard: Shard
    """Which classes are on this rank."""
    sizes: list[list[int]]
    """`Prepared.sizes` of all ranks; empty where they are None."""


# ----------------------------------------------------------------------------------------------- what a rank reports


def _common_facts(prepared: Prepared) -> dict[str, Any]:
    """What has to be the same on all ranks; the names are those of agreement.DIFFERENCES, or of options."""
    rows, layout, workspace = prepared.rows, prepared.layout, prepared.workspace
    facts: dict[str, Any] = {
        "device": rows.input.device.type,
        "rows": layout.rows,
        "loss shape": layout.loss_shape,
        "features": None if workspace is None else rows.input.shape[-1],
        "dtype": str(rows.input.dtype),
        "product dtype": None if workspace is None else str(prepared.dtype),
        "target": "class probabilities" if layout.soft else "class indices",
        "class weights": rows.class_weight is not None,
        "sample_weight": prepared.weights,
        "linear_bias": rows.bias is not None,
        "workspace": workspace,
        "gradient": "exact" if prepared.sampling is None else f"sampled {prepared.sampling.to_text()}",
    }
    # Class weights lie where their classes lie; every other option is about all classes.
    options = {field.name: _plain(getattr(prepared.objective, field.name)) for field in fields(Objective)}
    del options["weight"]
    if prepared.options.is_global:
        options["denominator"] = "global"
    gradients = [name for name, wanted in zip(ARGUMENTS, _wanted(rows), strict=False) if wanted]
    return {**facts, **options, "gradients": ", ".join(gradients) or "no argument"}


def _own_facts(prepared: Prepared) -> dict[str, Any]:
    """The number of classes, labels, and sizes on this rank."""
    extremes, checksum = None, None
    if not prepared.layout.soft and prepared.layout.rows:
        *extremes, checksum = _summary(prepared.rows.target.long(), prepared.objective.ignore_index)
    return {
        "classes": prepared.layout.classes,
        "extremes": extremes,
        "checksum": checksum,
        "sizes": prepared.sizes,
    }


def _summary(labels: Tensor, ignore_index: int) -> list[int]:
    """The least label and its row, the greatest and its row, and a checksum of all, which one copy brings to the host.

    Ignored labels are left out of the extremes: 0 is a class as long as there are any.
    """
    valid = labels.masked_fill(labels == ignore_index, 0)
    least, greatest = valid.min(0), valid.max(0)
    # Each label is mixed with its row (splitmix64): other labels, or the same in another order, have another sum.
    mixed = labels + torch.arange(1, len(labels) + 1, device=labels.device) * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        mixed = (mixed ^ (mixed >> shift)) * factor
    numbers = torch.stack([*least, *greatest, mixed.sum()])
    return numbers.tolist()


def _check_labels(prepared: Prepared, ranks: Ranks, classes: int, own: list[dict[str, Any]]) -> None:
    """Raise on all ranks if a label of one of them is not a class, or if their labels differ."""
    call, shape = prepared.options.call, prepared.layout.loss_shape
    if not classes:
        raise ShapeError(message(call, "input", "found no classes on any rank", "Pass at least one class"))
    for rank, facts in enumerate(own):
        if facts["extremes"] is None:
            continue
        least, least_row, greatest, greatest_row = facts["extremes"]
        for label, row in ((least, least_row), (greatest, greatest_row)):
            if not 0 <= label < classes:
                raise label_error(call, f"{_index(row, shape)} of {ranks.name(rank)}", label, classes)
    if len({facts["checksum"] for facts in own}) > 1:
        # Only now do the labels themselves travel, to name a row and what it has on the ranks.
        labels = np.stack(ranks.exchanged(prepared.rows.target.long().cpu().numpy()))
        row = int((labels != labels[0]).any(axis=0).argmax())
        ranks.compare("label", [f"{label} at row {_index(row, shape)}" for label in labels[:, row]])


def _index(row: int, shape: tuple[int, ...]) -> str:
    """The index of a row in losses of this shape, as an error names it."""
    index = tuple(int(place) for place in np.unravel_index(row, shape)) if shape else ()
    return str(index[0]) if len(index) == 1 else str(index)


def _wanted(rows: LinearRows) -> tuple[bool, ...]:
    """Which of input, weight, bias and target need a gradient."""
    return tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in rows[:4])


def _plain(value: Any) -> Any:
    """The Python value of an option that may be a NumPy number or a tensor of one number."""
    return value.item() if isinstance(value, Tensor | np.generic | np.ndarray) else value


# ------------------------------------------------------------------------------------------------------------ tensors


def _refuse_sparse(call: str, target: Any) -> None:
    if isinstance(target, SparseTarget):
        found = "found a SparseTarget, which sharded classes do not take yet"
        raise DTypeError(message(call, "target", found, "Pass class probabilities of each shard"))


def _is_soft(target: Any) -> bool:
    return isinstance(target, Tensor) and target.is_floating_point()


def _class_axis(logits: Any) -> int:
    """The axis of the classes, by torch's convention."""
    return 0 if getattr(logits, "ndim", 2) == 1 else 1


def _with_a_class(tensor: Any, axis: int) -> Any:
    """A tensor of one class in place of one without any, whose other axes are to be checked."""
    if not isinstance(tensor, Tensor) or not -tensor.ndim <= axis < tensor.ndim or tensor.shape[axis]:
        return tensor
    shape = list(tensor.shape)
    shape[axis] = 1
    return tensor.new_zeros(shape)


def _opened(
    call: str, group: Group, tensors: Sequence[Any], axes: Sequence[int | None]
) -> tuple[LinearRows, Group, XentError | None]:
    """The local tensors of DTensors, the group over which the classes are sharded, and what is wrong with an argument.

    With a group the error is for all of its ranks, and raised when they agree; without one it is raised at once.
    `axes` says which axis of each argument has the classes.
    """
    if group is not None:
        check_group(call, "group", group)
    groups: dict[str, dist.ProcessGroup] = {} if group is None else {"group": group}
    problem: XentError | None = None
    weight = tensors[-1]
    if weight is not None and not isinstance(weight, Tensor):
        found = f"found a {type(weight).__name__}, expected a tensor or None"
        problem = DTypeError(message(call, "weight", found, "Pass one number for each class, as a tensor"))
    for name, tensor, axis in zip(ARGUMENTS, tensors, axes, strict=True):
        if isinstance(tensor, DTensor):
            try:
                implied = _class_group(call, name, tensor, axis)
            except ShapeError as error:
                problem = problem or error
            else:
                groups |= {} if implied is None else {name: implied}
    group = next(iter(groups.values()), None)
    members = {name: dist.get_process_group_ranks(sharded) for name, sharded in groups.items()}
    if any(ranks != next(iter(members.values())) for ranks in members.values()):
        listed = ", ".join(f"{name} over ranks {ranks}" for name, ranks in members.items())
        found = f"the classes are sharded over different groups: {listed}"
        problem = problem or ShapeError(message(call, "group", found, "Shard all of them over the same ranks"))
    if problem is not None and group is None:
        raise problem
    local = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)
    return LinearRows(*local), group, problem


def _class_group(call: str, name: str, tensor: DTensor, axis: int | None) -> Group:
    """The group over which the classes of a DTensor are sharded; None if the argument is to be whole and is."""
    split = [place for place, placement in enumerate(tensor.placements) if not isinstance(placement, Replicate)]
    if axis is None and not split:
        return None
    if axis is not None and len(split) == 1 and tensor.placements[split[0]] == ShardPlacement(axis):
        return tensor.device_mesh.get_group(split[0])
    wanted = "Replicate() everywhere" if axis is None else f"Shard({axis}) along one dimension of the mesh"
    found = f"found placements {tensor.placements}, expected {wanted}"
    remedy = "Redistribute it; for rows split over ranks pass to_local() and denominator='global'"
    raise ShapeError(message(call, name, found, remedy))
