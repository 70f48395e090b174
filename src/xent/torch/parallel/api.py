"""Classes sharded over the processes of a group: the losses and statistics of xent.torch, with `group=`.

Each rank holds some of the classes of every row: its columns of the logits, or its rows of the last layer's weight. The
shards follow each other in the order of the ranks and may be of any size, none included; each rank tells how many
classes it has. What crosses the network are a few numbers per row (`traffic`), and for the linear loss the gradient of
its input; logits never do. torch.distributed carries them: gloo on the CPU, NCCL on a GPU.

    sharded_arguments.py          the arguments of a rank, and agreement about them
    shards.py, linear_shards.py   the loss from what the shards tell, and its gradients
    ranks.py                      collectives, and errors for all ranks

Who holds what, with R ranks and classes C = C_1 + ... + C_R:

| argument | on rank k | gradient |
|---|---|---|
| logits | (rows, C_k) | of this rank's classes |
| input (linear loss) | (rows, features), the same on every rank | complete on every rank: added up over the group |
| linear_weight, linear_bias, weight | (C_k, features), (C_k,), (C_k,) | of this rank's classes |
| class indices | global, the same on every rank | |
| class probabilities | (rows, C_k) | of this rank's classes |
| loss, statistics | the same on every rank | the same from above on every rank |

Every rank of the group makes the call and its backward. DTensors sharded over the classes bring their group along.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar, Unpack, cast

import torch
import torch.distributed as dist
from torch import Tensor

from xent.backends.protocol import Statistics
from xent.linear.plan import DEFAULT_WORKSPACE
from xent.objective import ParallelOptions
from xent.torch.functional import cross_entropy as _whole_cross_entropy
from xent.torch.functional import statistics as _whole_statistics
from xent.torch.linear import linear_cross_entropy as _whole_linear_cross_entropy
from xent.torch.linear import linear_statistics as _whole_linear_statistics
from xent.torch.parallel.arguments import Arguments, Options, reduced
from xent.torch.parallel.combine import NUMBERS
from xent.torch.parallel.ranks import HEADER

__all__ = ["Traffic", "cross_entropy", "linear_cross_entropy", "linear_statistics", "statistics", "traffic"]

Denominator = float | Literal["global"] | None
Call = TypeVar("Call", bound=Callable[..., Any])


def _outside_of_compilers(call: Call) -> Call:
    """A compiler breaks the graph here: what the ranks agree upon is known at run time only."""
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
    weight : tensor (C_k,), optional: what one row of each class of this rank counts for.
    group : the ranks over which the classes are sharded. None: that of the DTensors; without any the classes are
        whole, and only `denominator` asks other ranks.
    denominator : see `xent.Objective`; or "global": the weighted count of rows that are not ignored, added up over
        `denominator_group`. Each rank's loss is then its rows' share of the mean over all rows.
    denominator_group : the ranks among which rows are split (data or sequence parallel); None: all processes.
    **options : see `xent.Objective`.

    Returns
    -------
    tensor in nats, the same on every rank of the group; shape and dtype as from `xent.torch.cross_entropy`.

    Raises
    ------
    LabelError, ShapeError, DTypeError, ObjectiveError
        On every rank of the group, with the name of the rank whose arguments are wrong or differ.
    RankError
        Another process failed or ended, or makes another call.

    Notes
    -----
    *Network*: `traffic` has the bytes. *Memory*: beside the gradient, a few numbers per row. *Numerics*: as the loss
    of one rank, within rounding; all ranks get the same bits. Differentiable once. A process that neither ends nor
    calls is noticed when the group's own `timeout` is over (`init_process_group(timeout=...)`).

    Examples
    --------
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> logits = torch.tensor([[2.0, 1.0, 0.1], [0.5, 2.5, 0.0]])  # all classes on the one rank that there is
    >>> round(cross_entropy(logits, torch.tensor([0, 1]), group=dist.group.WORLD).item(), 4)
    0.3069
    >>> dist.destroy_process_group()

    References
    ----------
    Shoeybi et al. (2019), Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism
    """
    given = Options("cross_entropy", dict(options), denominator, denominator_group)
    arguments = Arguments.of_logits(given, group, input, target, weight)
    if arguments.group is None:
        whole = given.counted(target, weight, soft=target.is_floating_point(), device=input.device)
        return _whole_cross_entropy(input, target, weight, **whole)
    call = arguments.agree()
    return reduced(call, call.losses)


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
    **options: Unpack[ParallelOptions],
) -> Tensor:
    """`xent.torch.linear_cross_entropy` of a layer whose classes are sharded over a group, without its logits.

    *Definition*: ``cross_entropy(input @ linear_weight.T + linear_bias, target)`` over the classes of all ranks.

    Parameters
    ----------
    input : tensor (..., features), the same on every rank. Its gradient is added up over the group and complete on
        every rank.
    linear_weight : tensor (C_k, features): this rank's rows of the weight; or a DTensor with Shard(0).
    target : class indices (...) among all classes, the same on every rank; or this rank's class probabilities
        (..., C_k).
    linear_bias, weight : tensors (C_k,), optional: this rank's biases and class weights.
    workspace : see `xent.torch.linear_cross_entropy`; of each rank.
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
    *Speed*: three products with this rank's classes. A chunk's numbers are exchanged while its logits are in the
    workspace, so that they need not be made again: two small messages for each chunk. *Memory*: the workspace, and a
    few numbers per row; never (rows, C_k) beyond it. *Network*: `traffic`.

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
    given = Options("linear_cross_entropy", dict(options), denominator, denominator_group)
    arguments = Arguments.of_layer(given, group, input, linear_weight, linear_bias, target, weight, workspace)
    if arguments.group is None:
        whole = given.counted(target, weight, soft=target.is_floating_point(), device=input.device)
        return _whole_linear_cross_entropy(
            input, linear_weight, target, linear_bias=linear_bias, weight=weight, workspace=workspace, **whole
        )
    call = arguments.agree()
    return reduced(call, call.linear_losses)


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
        The same on every rank; argmax and rank count all classes. In a row with a NaN, argmax is not told.

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
    options: dict[str, object] = {"ignore_index": ignore_index, "softcap": softcap, "logit_scale": logit_scale}
    given = Options("statistics", options, None, None)
    arguments = Arguments.of_logits(given, group, input, target, None)
    if arguments.group is None:
        return _whole_statistics(input, target, ignore_index=ignore_index, softcap=softcap, logit_scale=logit_scale)
    return arguments.agree().statistics()


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
    """`xent.torch.linear_statistics` of a layer whose classes are sharded over a group, without its logits.

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
    options: dict[str, object] = {"ignore_index": ignore_index, "softcap": softcap, "logit_scale": logit_scale}
    given = Options("linear_statistics", options, None, None)
    arguments = Arguments.of_layer(given, group, input, linear_weight, linear_bias, target, None, workspace)
    if arguments.group is None:
        return _whole_linear_statistics(
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            ignore_index=ignore_index,
            softcap=softcap,
            logit_scale=logit_scale,
            workspace=workspace,
        )
    return arguments.agree().linear_statistics()


class Traffic(NamedTuple):
    """What a call hands to collectives on each rank, in bytes; see `traffic`."""

    forward_per_row: int
    backward_per_row: int
    per_call: int
    per_chunk: int

    def sent_per_row(self, ranks: int) -> float:
        """Bytes that each rank sends for a row: a ring sends every number of a sum 2 (R - 1) / R times."""
        return 2 * (ranks - 1) / ranks * (self.forward_per_row + self.backward_per_row)


def traffic(
    quantity: Literal["loss", "statistics"] = "loss",
    *,
    features: int = 0,
    itemsize: int = 4,
    has_mass: bool = False,
) -> Traffic:
    """Bytes that a call hands to collectives on each rank; it does not depend on the number of classes.

    Parameters
    ----------
    quantity : "loss", or "statistics".
    features : of the input of a linear loss, whose gradient is added up over the ranks; 0 for logits.
    itemsize : bytes of one number of that gradient's sum: 8 for float64, 4 for everything else.
    has_mass : whether the loss has class weights or class probabilities: one more number per row.

    Returns
    -------
    Traffic
        Bytes per row of forward and backward; bytes of the header (which an all-gather sends to each other rank)
        and the sign that backward went well, per call; and of the sign that goes with each chunk.

    Raises
    ------
    KeyError
        There is no such quantity.

    Examples
    --------
    >>> traffic(), traffic(features=4096).sent_per_row(ranks=8)
    (Traffic(forward_per_row=24, backward_per_row=0, per_call=256, per_chunk=8), 28714.0)
    """
    numbers = NUMBERS["loss_with_mass" if has_mass and quantity == "loss" else quantity]
    signs = 2 if quantity == "statistics" else 1
    return Traffic(8 * numbers, features * itemsize, 8 * HEADER + (8 if features else 0), 8 * signs)
