"""A call that all ranks of a group make together: autograd.py over the backend of a shard."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from xent.backends.protocol import Statistics
from xent.errors import ObjectiveError, message
from xent.torch import autograd, linear_autograd
from xent.torch.parallel.arguments import Agreement
from xent.torch.parallel.combine import common_plan, sharded, sharded_linear
from xent.torch.reduced import denominator_of
from xent.torch.rows import Call


def loss(agreement: Agreement) -> Tensor:
    """The reduced loss, or the losses in the shape of the target."""
    class_weight = agreement.prepared.rows.class_weight
    if agreement.prepared.objective.focal_gamma and class_weight is not None:
        agreement = _with_weights_of_rows(agreement, class_weight)
    call, prepared = _call(agreement), agreement.prepared
    rows = prepared.rows
    if call.linear is None:
        value = autograd.cross_entropy(call, rows.input, rows.target, rows.class_weight)
    else:
        value = linear_autograd.linear_cross_entropy(call, rows)
    return value.reshape(prepared.layout.loss_shape) if call.objective.reduction == "none" else value


def statistics(agreement: Agreement) -> Statistics:
    """The statistics in the shape of the target."""
    call, prepared = _call(agreement), agreement.prepared
    rows = prepared.rows
    if call.linear is None:
        values = autograd.Statistics.apply(rows.input, rows.target, call)  # type: ignore[no-untyped-call]
    else:
        values = linear_autograd.LinearStatistics.apply(*rows[:4], call)  # type: ignore[no-untyped-call]
    return Statistics(*(tensor.reshape(prepared.layout.loss_shape) for tensor in values))


def _with_weights_of_rows(agreement: Agreement, class_weight: Tensor) -> Agreement:
    """Class weights as weights of rows, as a focal loss takes them: each lies on the rank that has the class."""
    prepared, shard, objective = agreement.prepared, agreement.shard, agreement.prepared.objective
    labels = prepared.rows.target
    if class_weight.requires_grad:
        found = "the weights of a focal loss get no gradient here"
        raise ObjectiveError(message(prepared.options.call, "weight", found, "Pass weight.detach()"))
    here = (labels >= shard.first) & (labels < shard.first + shard.classes) & (labels != objective.ignore_index)
    weights = torch.zeros(len(labels), dtype=torch.float64, device=agreement.ranks.device)
    weights[here] = class_weight.double()[labels[here] - shard.first]
    weights = agreement.ranks.total(weights)
    if prepared.sample_weight is not None:
        weights = weights * prepared.sample_weight
    rows = prepared.rows._replace(class_weight=None)
    return replace(agreement, prepared=replace(prepared, rows=rows, sample_weight=weights))


def _call(agreement: Agreement) -> Call:
    prepared, ranks, shard = agreement.prepared, agreement.ranks, agreement.shard
    options, rows, objective, soft = prepared.options, prepared.rows, prepared.objective, prepared.layout.soft
    backend = sharded(rows.input, shard, ranks, sums_mass=soft or rows.class_weight is not None)
    if options.is_global:
        counting = Call(options.call, objective, backend, sample_weight=prepared.sample_weight)
        count = denominator_of(counting, rows.target, rows.class_weight)
        # Without anything to count the mean is NaN, as without a denominator.
        objective = replace(objective, denominator=options.total_count(count, ranks.device) or None)
    linear, room = None, prepared.workspace or 0
    if prepared.workspace is not None:
        plan = common_plan(options.call, agreement.sizes, shard.classes, prepared.workspace)
        linear = sharded_linear(backend, plan)
    how = None if prepared.sampling is None else replace(prepared.sampling, first_class=shard.first)
    return Call(options.call, objective, backend, linear, room, prepared.dtype, True, prepared.sample_weight, how)
