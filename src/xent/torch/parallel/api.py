"""Classes sharded over the processes of a group: the losses and statistics of xent.torch, with `group=`.

Each rank holds some of the classes of every row: its columns of the logits, or its rows of the last layer's weight. The
shards follow each other in the order of the ranks and may be of any size, zero included; each rank reports how many
classes it has. A few numbers per row cross the network (`traffic`), and for the linear loss the gradient of its input;
logits never do. torch.distributed carries them: gloo on the CPU, NCCL on a GPU.

    arguments.py                  the arguments of one rank, opened and checked
    agreement.py                  what the ranks compare before a call, their collectives, and errors on all ranks
    pairs.py                      the contrastive loss of pairs that lie on several ranks
    combine.py, linear_shards.py  the loss of all classes from the losses of the shards, and its gradients

Who holds what, with R ranks and classes C = C_1 + ... + C_R:

| argument | on rank k | gradient |
|---|---|---|
| logits | (rows, C_k) | of this rank's classes |
| input (linear loss) | (rows, features), the same on every rank | summed over the group: complete on every rank |
| linear_weight, linear_bias, weight | (C_k, features), (C_k,), (C_k,) | of this rank's classes |
| class indices | among all classes, the same on every rank | |
| class probabilities | (rows, C_k) | of this rank's classes |
| loss, statistics | the same on every rank | the upstream gradient is the same on every rank |

Every rank of the group makes the call and its backward pass. A DTensor that is sharded over the classes implies its
group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeVar, Unpack, cast

import torch
import torch.distributed as dist
from torch import Tensor

from xent.backends.protocol import Statistics
from xent.errors import ArgumentError, message
from xent.linear.plan import DEFAULT_WORKSPACE
from xent.linear.sampling import GradientOption
from xent.objective import ParallelOptions
from xent.torch.functional import cross_entropy as _whole_cross_entropy
from xent.torch.functional import statistics as _whole_statistics
from xent.torch.linear import linear_cross_entropy as _whole_linear_cross_entropy
from xent.torch.linear import linear_statistics as _whole_linear_statistics
from xent.torch.parallel import calls
from xent.torch.parallel.agreement import REPORT_BYTES
from xent.torch.parallel.arguments import Arguments, Options
from xent.torch.parallel.combine import NUMBERS

__all__ = ["Traffic", "cross_entropy", "linear_cross_entropy", "linear_statistics", "statistics", "traffic"]

Denominator = float | Literal["global"] | None
Call = TypeVar("Call", bound=Callable[..., Any])


def _outside_of_compilers(call: Call) -> Call:
    """Break the graph of a compiler: what the other ranks report is known at run time only."""
    return cast(Call, torch.compiler.disable(call))  # type: ignore[no-untyped-call]


@_outside_of_compilers
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    denominator: Denominator = None,
    denominator_group: dist.ProcessGroup | None = None,
    sample_weight: Tensor | None = None,
    **options: Unpack[ParallelOptions],
) -> Tensor:
    """`xent.torch.cross_entropy` of logits whose classes are sharded over a group.

    *Definition*: that of `xent.Objective`, over the classes of all ranks: label smoothing is spread over all of them.

    Parameters
    ----------
    input : tensor (N, C_k), (N, C_k, d1, ...) or (C_k,): this rank's columns of the logits; or a DTensor with
        Shard(1) (Shard(0) for a single row).
    target : class indices among all classes, without the axis C_k and the same on every rank; or this rank's columns
        of class probabilities, shaped like `input`.
    weight : tensor (C_k,), optional: the weights of this rank's classes.
    group : the process group over which the classes are sharded. None: that of the DTensors; without DTensors all
        classes are on this rank, and other ranks matter to `denominator` only.
    denominator : see `xent.Objective`; or "global": the weighted count of valid labels, summed over
        `denominator_group`. Each rank's loss is then the share of its rows in the mean over all rows.
    denominator_group : the process group over which rows are split (data or sequence parallel); None: all processes.
    sample_weight : one weight for each loss, the same on every rank; see `xent.torch.cross_entropy`.
    **options : see `xent.Objective`.

    Returns
    -------
    tensor in nats, the same on every rank of the group; shape and dtype as from `xent.torch.cross_entropy`.

    Raises
    ------
    LabelError, ShapeError, DTypeError, ObjectiveError
        On every rank of the group: the arguments of a rank, which is named, are wrong or differ from the others'.
    RankError
        Another process failed or ended, or makes another call; or this process is not a member of the group.
    ArgumentError
        `group` or `denominator_group` is not a process group.

    Notes
    -----
    *Network*: `traffic` has the bytes. *Memory*: beside the gradient, a few numbers per row. *Numerics*: equal to the
    loss of one rank up to rounding; all ranks get the same bits. Differentiable once. A process that neither ends nor
    makes the call is noticed when the group's `timeout` expires (`init_process_group(timeout=...)`).

    Examples
    --------
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> logits = torch.tensor([[2.0, 1.0, 0.1], [0.5, 2.5, 0.0]])  # one rank, with all classes
    >>> round(cross_entropy(logits, torch.tensor([0, 1]), group=dist.group.WORLD).item(), 4)
    0.3069
    >>> dist.destroy_process_group()

    References
    ----------
    Shoeybi et al. (2019), Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism
    """
    passed = Options("cross_entropy", dict(options), denominator, denominator_group)
    arguments = replace(Arguments.of_logits(passed, group, input, target, weight), sample_weight=sample_weight)
    if arguments.group is None:
        rows = arguments.rows
        return _whole_cross_entropy(rows.input, rows.target, rows.class_weight, **arguments.whole_options())
    return calls.loss(arguments.agree())


@_outside_of_compilers
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    workspace: int | str = DEFAULT_WORKSPACE,
    denominator: Denominator = None,
    denominator_group: dist.ProcessGroup | None = None,
    sample_weight: Tensor | None = None,
    gradient: GradientOption = "exact",
    threshold: float | None = None,
    seed: int | Tensor | None = None,
    **options: Unpack[ParallelOptions],
) -> Tensor:
    """`xent.torch.linear_cross_entropy` of a layer whose classes are sharded over a group; the logits are never stored.

    *Definition*: ``cross_entropy(input @ linear_weight.T + linear_bias, target)`` over the classes of all ranks.

    Parameters
    ----------
    input : tensor (..., features), the same on every rank. Its gradient is summed over the group, and complete on
        every rank.
    linear_weight : tensor (C_k, features): this rank's rows of the weight; or a DTensor with Shard(0).
    target : class indices (...) among all classes, the same on every rank; or this rank's class probabilities
        (..., C_k).
    linear_bias, weight : tensors (C_k,), optional: this rank's biases and class weights.
    workspace : of each rank; see `xent.torch.linear_cross_entropy`.
    gradient, threshold, seed : see there; not with class weights. With one seed on all ranks, what is left of the
        gradient does not depend on how the classes are sharded.
    group, denominator, denominator_group, options : see `cross_entropy`.

    Returns
    -------
    tensor in nats, the same on every rank of the group.

    Raises
    ------
    LabelError, ShapeError, DTypeError, ObjectiveError, ArgumentError, RankError
        On every rank of the group; see `cross_entropy`.

    Notes
    -----
    *Speed*: three products with this rank's classes. The ranks exchange the numbers of a chunk while its logits are in
    the workspace, so that the logits are computed once: two small messages per chunk. *Memory*: the workspace, and a
    few numbers per row. *Network*: `traffic`.

    Examples
    --------
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> hidden, head = torch.ones(2, 3, requires_grad=True), torch.zeros(5, 3, requires_grad=True)
    >>> loss = linear_cross_entropy(hidden, head, torch.tensor([0, 4]), group=dist.group.WORLD)
    >>> loss.backward()
    >>> round(loss.item(), 4), hidden.grad.shape
    (1.6094, torch.Size([2, 3]))
    >>> dist.destroy_process_group()
    """
    passed = Options("linear_cross_entropy", dict(options), denominator, denominator_group)
    arguments = Arguments.of_layer(passed, group, input, linear_weight, linear_bias, target, weight, workspace)
    arguments = replace(arguments, sample_weight=sample_weight)
    if arguments.group is None:
        x, w, b, y, class_weight = arguments.rows
        whole = arguments.whole_options() | {"gradient": gradient, "threshold": threshold, "seed": seed}
        return _whole_linear_cross_entropy(x, w, y, linear_bias=b, weight=class_weight, workspace=workspace, **whole)
    arguments = replace(arguments, gradient=(gradient, threshold, seed))
    return calls.loss(arguments.agree())


@_outside_of_compilers
def statistics(
    input: Tensor,
    target: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> Statistics:
    """`xent.torch.statistics` of logits whose classes are sharded over a group.

    Parameters
    ----------
    input, target, group : see `cross_entropy`; class indices only.
    ignore_index, softcap, logit_scale : see `xent.Objective`.

    Returns
    -------
    Statistics
        The same on every rank; argmax and rank are those among all classes. In a row with a NaN, argmax is undefined.

    Raises
    ------
    LabelError, ShapeError, DTypeError, ObjectiveError, RankError
        On every rank of the group; see `cross_entropy`.

    Examples
    --------
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> found = statistics(torch.zeros(2, 4), torch.tensor([0, 3]), group=dist.group.WORLD)
    >>> found.entropy.exp().tolist(), found.rank.tolist()
    ([4.0, 4.0], [0, 0])
    >>> dist.destroy_process_group()
    """
    options: dict[str, Any] = {"ignore_index": ignore_index, "softcap": softcap, "logit_scale": logit_scale}
    arguments = Arguments.of_logits(Options("statistics", options, None, None), group, input, target, None)
    if arguments.group is None:
        return _whole_statistics(arguments.rows.input, arguments.rows.target, **options)
    return calls.statistics(arguments.agree())


@_outside_of_compilers
def linear_statistics(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    linear_bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    workspace: int | str = DEFAULT_WORKSPACE,
) -> Statistics:
    """`xent.torch.linear_statistics` of a layer whose classes are sharded over a group; the logits are never stored.

    Parameters
    ----------
    input, linear_weight, linear_bias, target, workspace, group : see `linear_cross_entropy`; class indices only.
    ignore_index, softcap, logit_scale : see `xent.Objective`.

    Returns
    -------
    Statistics
        As from `statistics`.

    Raises
    ------
    LabelError, ShapeError, DTypeError, ObjectiveError, ArgumentError, RankError
        On every rank of the group; see `cross_entropy`.

    Examples
    --------
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> labels = torch.tensor([0, 3])
    >>> found = linear_statistics(torch.ones(2, 3), torch.zeros(4, 3), labels, group=dist.group.WORLD)
    >>> found.entropy.exp().tolist(), found.rank.tolist()
    ([4.0, 4.0], [0, 0])
    >>> dist.destroy_process_group()
    """
    options: dict[str, Any] = {"ignore_index": ignore_index, "softcap": softcap, "logit_scale": logit_scale}
    passed = Options("linear_statistics", options, None, None)
    arguments = Arguments.of_layer(passed, group, input, linear_weight, linear_bias, target, None, workspace)
    if arguments.group is None:
        x, w, b, y, _ = arguments.rows
        return _whole_linear_statistics(x, w, y, linear_bias=b, workspace=workspace, **options)
    return calls.statistics(arguments.agree())


class Traffic(NamedTuple):
    """The bytes that one call hands to collectives on each rank; see `traffic`."""

    forward_per_row: int
    backward_per_row: int
    per_call: int
    per_chunk: int

    def sent_per_row(self, ranks: int) -> float:
        """Bytes that each rank sends for a row: a ring sends every number of a sum 2 (R - 1) / R times."""
        _check_count("Traffic.sent_per_row", "ranks", ranks, 1)
        return 2 * (ranks - 1) / ranks * (self.forward_per_row + self.backward_per_row)


def traffic(
    quantity: Literal["loss", "statistics"] = "loss",
    *,
    features: int = 0,
    itemsize: int = 4,
    has_mass: bool = False,
) -> Traffic:
    """The bytes that one call hands to collectives on each rank; they do not depend on the number of classes.

    Parameters
    ----------
    quantity : "loss" or "statistics".
    features : of the input of a linear loss, whose gradient is summed over the ranks; 0 for logits.
    itemsize : bytes of one number of that sum: 8 for float64, 4 for every other dtype.
    has_mass : whether the loss has class weights or class probabilities: one more number per row.

    Returns
    -------
    Traffic
        Bytes per row of the forward and of the backward pass. *per_call*: an upper bound of the report with which a
        call begins, a pickled dictionary of about 500 bytes that an all-gather sends to each other rank; and for a
        linear loss 8 bytes that say whether the backward pass went well. *per_chunk*: the flags that say whether the
        chunk went well.

    Raises
    ------
    ArgumentError
        There is no such quantity, or a number is not an integer or too small.

    Examples
    --------
    >>> traffic(), traffic(features=4096).sent_per_row(ranks=8)
    (Traffic(forward_per_row=24, backward_per_row=0, per_call=1024, per_chunk=8), 28714.0)
    """
    if quantity not in ("loss", "statistics"):
        found = f"found {quantity!r}, expected 'loss' or 'statistics'"
        raise ArgumentError(message("traffic", "quantity", found, "See help(xent.torch.parallel.traffic)"))
    _check_count("traffic", "features", features, 0)
    _check_count("traffic", "itemsize", itemsize, 1)
    numbers = NUMBERS["loss_with_mass" if has_mass and quantity == "loss" else quantity]
    flags = 2 if quantity == "statistics" else 1
    return Traffic(8 * numbers, features * itemsize, REPORT_BYTES + (8 if features else 0), 8 * flags)


def _check_count(call: str, argument: str, value: object, least: int) -> None:
    if not isinstance(value, int) or value < least:
        found = f"found {value!r}, expected an integer of {least} or more"
        raise ArgumentError(message(call, argument, found, "See help(xent.torch.parallel.traffic)"))
