"""The public calls for the loss of a linear layer: checks, and the choice of what computes.

plain tensors                               the driver of xent.linear, under autograd.py
under torch.compile, and tensor subclasses  the same as operators, by operators.py
other devices, and under torch.func         formulas that hold the logits, linear_formula.py
"""

from __future__ import annotations

from typing import Any, Never

import torch
from torch import Tensor

from xent.backends.choice import choose, choose_linear
from xent.backends.protocol import Statistics
from xent.checks import Layout, check_linear_shapes, check_options_of_labels, checked_layout, require_labels
from xent.errors import DTypeError, ShapeError, message
from xent.linear.plan import DEFAULT_WORKSPACE, parse_bytes
from xent.linear.sampling import GradientOption, GradientReport, refuse_sampling
from xent.objective import Objective
from xent.sparse import SparseTarget
from xent.torch import linear_autograd, linear_formula, linear_operators
from xent.torch._torch_private import is_watched
from xent.torch.functional import check_class_weights, has_to_be_formula, objective_of
from xent.torch.linear_positions import check_chunking, ignored_label, over_positions
from xent.torch.reduced import reduced_by_formula
from xent.torch.rows import (
    Call,
    LinearRows,
    autocast_dtype,
    check_floating,
    check_labels_now,
    check_tensors,
    int64,
    is_soft,
    refuse_recording,
    sample_weights,
    sparse_as_rows,
)
from xent.torch.sampled import sampling
from xent.torch.sharding import is_distributed


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor | SparseTarget,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float | Tensor = 1.0,
    denominator: float | Tensor | None = None,
    focal_gamma: float = 0.0,
    sample_weight: Tensor | None = None,
    workspace: int | str = DEFAULT_WORKSPACE,
    check: bool = False,
    gradient: GradientOption = "exact",
    threshold: float | None = None,
    seed: int | Tensor | None = None,
    report: GradientReport | None = None,
    **unknown: Never,
) -> Tensor:
    """Cross-entropy of a linear layer without its logits: a drop-in for `torch.nn.functional.linear_cross_entropy`.

    *Definition*: ``cross_entropy(input @ linear_weight.T + linear_bias, target)``; `xent.Objective` has the equation of
    the loss with all options. The last layer and the loss of a language model in one call.

    Parameters
    ----------
    input : tensor (..., features), of dtype float64, float32, bfloat16 or float16.
    linear_weight : tensor (C, features) of the same dtype, as in `torch.nn.Linear`; it may be the embedding (tied
        weights). Or (C, d_1, ..., d_K, features), torch's K-dimensional loss: a layer for each position d, all of an
        input (N, features).
    target : class indices (...), in [0, C) or equal to `ignore_index`; or class probabilities (..., C), which may
        require a gradient; or a `SparseTarget` that lists classes (..., k). Of a K-dimensional loss (N, d_1, ..., d_K)
        or (N, C, d_1, ..., d_K).
    linear_bias : tensor (C,) or (C, d_1, ..., d_K), optional
    weight : tensor (C,), optional: what one row of each class counts for, 0 or more. It may require a gradient.
    reduction, label_smoothing : as in torch.
    ignore_index : as in torch; None means -100.
    options : torch's `LinearCrossEntropyOptions`, of which only `allow_retain_graph` may differ from its default: the
        `workspace` decides on chunks.
    z_loss, softcap, logit_scale, denominator : beyond torch; see `xent.Objective`. logit_scale, a learned temperature,
        and denominator may be tensors of one number, and then get their gradients.
    focal_gamma, sample_weight : see `cross_entropy`.
    workspace : bytes, or text such as "128MB": how much memory the call may use beside arguments and gradients. More
        is a little faster, until all rows fit. "auto" is 128 MB, and on a GPU 1 GB.
    check : look at the labels also where that makes the host wait for the device; on the CPU they are always checked.
    gradient : "exact"; or "sampled", which rounds small entries of the logits' gradient at random, so that few are left
        and both products with them are fast. Its expectation is the exact gradient; the loss, the entries of labels and
        the gradient of the bias are exact. "sampled input" and "sampled weight" round for one of the two. On a CPU.
    threshold : an entry below threshold * (scale of its row) is rounded. None is 2**-12.
    seed : integer, or a tensor of one. None draws one from torch's generator; a step's number repeats its gradient.
    report : a `GradientReport` to fill in: what is left of each row, and the variance that the rounding adds.
    **unknown : none; a misspelt option is answered with the names of those that exist.

    Returns
    -------
    tensor () in nats, or with `reduction="none"` of the shape that class indices have; float32 for 16-bit arguments,
    else of their dtype.

    Raises
    ------
    LabelError
        A label is out of range (on other devices than the CPU, without `check`: the row is NaN).
    ArgumentError
        The workspace holds not even one row; the message has the least that will do. Or gradients cannot be sampled
        here: on other devices, under torch.func, in K dimensions, or where they are to be differentiated.
    ShapeError, DTypeError, ObjectiveError

    Notes
    -----
    *Speed*: three matrix products and little else, when gradients are wanted; one product less for each of input and
    weight that needs none. A sum or a mean makes its gradients with the loss; with `reduction="none"`, backward makes
    the logits once more. *Memory*: the workspace and a few numbers per row, whatever the number of rows. Gradients
    of a sum or a mean exist from the forward on. 16-bit weights need 2 bytes for each weight of the workspace for
    float32 sums; where it has no room for that, the logits are made several times.
    *Numerics*: losses and sums over rows are float32 for 16-bit arguments, and the error of no gradient grows with
    the number of chunks. 16-bit logits are rounded to 16 bits where the processor multiplies those faster, as without
    fusion. A scale that is a tensor multiplies input and bias, and rounds 16-bit ones once more. Under autocast the
    gradient of a float32 weight is summed in float32 and never rounded to 16 bits. Results repeat bit for bit. On a
    GPU the float32 sums for a 16-bit weight come beside the workspace. Second derivatives and other devices hold the
    logits. *K dimensions*: one position after another, with the logits made once more in backward, as with
    `reduction="none"`; the gradient of the weight is copied once. *Sampled gradients*: an entry g below the limit
    l = threshold * scale becomes l sign(g) with probability ``|g| / l``, else 0, by a hash of seed, row and class: the
    result depends on no chunk and no thread. That adds ``|g| (l - |g|)`` to its variance, at most ``threshold`` of what
    the rows of a batch have themselves (docs/sampled.md). It pays where at most an eighth of the entries is left, as
    with 32768 classes or more, or once most probabilities are small; elsewhere the products are dense.

    Examples
    --------
    >>> hidden, head = torch.ones(2, 3, requires_grad=True), torch.zeros(5, 3, requires_grad=True)
    >>> loss = linear_cross_entropy(hidden, head, torch.tensor([0, 4]))
    >>> loss.backward()
    >>> round(loss.item(), 4), head.grad.shape
    (1.6094, torch.Size([5, 3]))

    References
    ----------
    Wijmans et al. (2024), Cut Your Losses in Large-Vocabulary Language Models
    """
    name = "linear_cross_entropy"
    refuse_recording(name)
    check_chunking(name, options)
    given = (ignored_label(ignore_index), reduction, label_smoothing, z_loss, softcap, logit_scale, denominator)
    objective, learned = objective_of(name, *given, focal_gamma, **unknown)
    input, linear_bias = learned.scaled_layer(input, linear_bias)
    how_sampled = sampling(name, gradient, threshold, seed, report, input, linear_weight, linear_bias)
    if isinstance(linear_weight, Tensor) and linear_weight.ndim > 2:
        refuse_sampling(name, how_sampled, "for a weight of K dimensions")
        if isinstance(target, SparseTarget):
            found = "found a SparseTarget for a weight of K dimensions"
            raise ShapeError(message(name, "target", found, "Call it for each position, with a weight (C, features)"))
        tensors = (input, linear_weight, target, linear_bias, weight, sample_weight)
        loss = over_positions(name, linear_cross_entropy, objective, *tensors, workspace=workspace, check=check)
        return learned.divided(loss)
    how = layout_of(name, input, linear_weight, linear_bias, target, weight, objective, check=check)
    call, rows = _call(name, objective, how, input, linear_weight, linear_bias, target, weight, workspace, check)
    weights, class_weight = sample_weights(name, sample_weight, weight, rows.target, how, objective)
    call = call._replace(sample_weight=weights, sampling=how_sampled)
    rows = rows._replace(class_weight=class_weight)
    if call.linear is None:
        losses = linear_formula.losses(rows.to(call.dtype), objective)
        loss = reduced_by_formula(losses, rows.target, class_weight, objective, weights)
    elif is_watched(*rows, weights):
        others = {"linear_weight": linear_weight, "linear_bias": linear_bias, "target": rows.target, "weight": weight}
        by_rows = is_distributed(name, input=input, **others)
        if by_rows:
            refuse_sampling(name, how_sampled, "of distributed tensors")
        loss = linear_operators.linear_cross_entropy(call, rows, by_rows=by_rows)
    else:
        loss = linear_autograd.linear_cross_entropy(call, rows)
    return loss.reshape(how.loss_shape) if objective.reduction == "none" else learned.divided(loss)


def linear_statistics(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    workspace: int | str = DEFAULT_WORKSPACE,
    check: bool = False,
) -> Statistics:
    """`xent.torch.statistics` of a linear layer without its logits: for reinforcement learning and distillation.

    *Definition*: ``statistics(input @ linear_weight.T + linear_bias, target)``: of each row the log-probability and the
    rank of the label, entropy, log-sum-exp and argmax.

    Parameters
    ----------
    input, linear_weight, linear_bias, workspace, check : see `linear_cross_entropy`.
    target : class indices (...), in [0, C) or equal to `ignore_index`.
    ignore_index, softcap, logit_scale : see `xent.Objective`.

    Returns
    -------
    Statistics
        Five tensors of the target's shape; log_prob, entropy and lse are in nats, float32 for 16-bit arguments, and
        differentiable by input, weight and bias. argmax and rank are int64. An ignored row has log_prob 0 and rank -1.

    Raises
    ------
    LabelError, ArgumentError, ShapeError, DTypeError, ObjectiveError
        As `linear_cross_entropy`.

    Notes
    -----
    *Speed*: one matrix product, and for the gradients three more. *Memory*: the workspace and a few numbers per row, in
    both directions. *Numerics*: as `linear_cross_entropy`.

    Examples
    --------
    >>> found = linear_statistics(torch.ones(2, 3), torch.zeros(4, 3), torch.tensor([0, 3]))
    >>> found.entropy.exp().tolist(), found.rank.tolist()
    ([4.0, 4.0], [0, 0])
    """
    name = "linear_statistics"
    refuse_recording(name)
    objective, learned = objective_of(name, ignore_index, "none", softcap=softcap, logit_scale=logit_scale)
    input, linear_bias = learned.scaled_layer(input, linear_bias)
    how = layout_of(name, input, linear_weight, linear_bias, target, None, objective, check=check)
    require_labels(name, how, "linear_cross_entropy")
    call, rows = _call(name, objective, how, input, linear_weight, linear_bias, target, None, workspace, check)
    if call.linear is None:
        statistics = linear_formula.statistics(rows.to(call.dtype), objective)
    elif is_watched(*rows):
        is_distributed(name, input=input, linear_weight=linear_weight, linear_bias=linear_bias, target=target)
        statistics = linear_operators.linear_statistics(call, rows)
    else:
        statistics = linear_autograd.LinearStatistics.apply(*rows[:4], call)  # type: ignore[no-untyped-call]
    return Statistics(*(tensor.reshape(how.loss_shape) for tensor in statistics))


def _call(
    name: str,
    objective: Objective,
    how: Layout,
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor | SparseTarget,
    weight: Tensor | None,
    workspace: int | str,
    check: bool,
) -> tuple[Call, LinearRows]:
    """What computes, and the tensors as rows."""
    dtype = product_dtype(name, input=input, linear_weight=linear_weight, linear_bias=linear_bias)
    linear: Any = None if has_to_be_formula() else choose_linear(input.device)
    room = parse_bytes(name, workspace, input.device.type)
    call = Call(name, objective, choose(input.device), linear, room, dtype, labels_are_checked=check)
    if isinstance(target, SparseTarget):
        y = sparse_as_rows(name, target, how, check=check)
    elif how.soft:
        y = target.reshape(how.rows, how.classes)
    else:
        y = int64(target if target.ndim == 1 else target.reshape(-1))
    x = (input if input.ndim == 2 else input.reshape(how.rows, input.shape[-1])).resolve_neg()
    return call, LinearRows(x, linear_weight.resolve_neg(), linear_bias, y, weight)


def layout_of(
    call: str,
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor | SparseTarget,
    weight: Tensor | None,
    objective: Objective,
    *,
    check: bool = False,
) -> Layout:
    """Check shapes and dtypes, and with `check` the labels; return how input and target lie as rows."""
    parts = {"target": target} if not isinstance(target, SparseTarget) else {"target": target.ids}
    check_tensors(call, input=input, linear_weight=linear_weight, linear_bias=linear_bias, weight=weight, **parts)
    bias_shape = None if linear_bias is None else tuple(linear_bias.shape)
    check_linear_shapes(call, tuple(input.shape), tuple(linear_weight.shape), bias_shape)
    logits_shape = (*input.shape[:-1], linear_weight.shape[0])
    if isinstance(target, SparseTarget):
        check_tensors(call, place=input.device, target=target.given)
        how = target.layout(call, logits_shape, len(logits_shape) - 1)
    else:
        soft = is_soft(call, target)
        how = Layout(logits_shape, len(logits_shape) - 1, soft=tuple(target.shape) == logits_shape)
        how = checked_layout(call, "linear_weight", how, tuple(target.shape), floating_target=soft)
    check_options_of_labels(call, how, objective)
    if weight is not None:
        check_class_weights(call, weight, how, check=check)
    if isinstance(target, Tensor) and not how.soft:
        check_labels_now(call, target, how.classes, objective.ignore_index, check=check)
    return how


def product_dtype(call: str, **named: Tensor | None) -> torch.dtype:
    """The dtype of the products: that of the arguments, or of autocast, which leaves float64 alone."""
    dtypes = {}
    for argument, tensor in named.items():
        if tensor is not None:
            check_floating(call, argument, tensor)
            dtypes[argument] = tensor.dtype
    name, first = next((name, tensor) for name, tensor in named.items() if tensor is not None)
    if (autocast := autocast_dtype(first.device, dtypes.values())) is not None:
        return autocast
    for argument, dtype in dtypes.items():
        if dtype != first.dtype:
            found = f"found dtype {dtype}, while {name} has {first.dtype}"
            raise DTypeError(message(call, argument, found, "Convert one of them, or call under torch.autocast"))
    return first.dtype
