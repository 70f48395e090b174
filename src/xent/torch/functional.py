"""The public calls of the torch front: checks, and the choice of what computes.

plain tensors                                            a backend under autograd.py: kernels for the CPU and GPUs
torch.compile, torch.func, tensor subclasses, modes      the same as operators, operators.py
other devices, and forward mode                          formulas of torch operations, xent/backends/formula.py

Which device has which backend is in xent/backends/choice.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, Never

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from xent.backends.choice import choose
from xent.backends.formula import FORMULA
from xent.backends.protocol import Backend, Statistics
from xent.checks import Layout, check_options_of_labels, check_weight_shape, check_weights, layout, require_labels
from xent.errors import ObjectiveError, message
from xent.objective import Objective
from xent.sparse import SparseTarget
from xent.torch import autograd, operators
from xent.torch._torch_private import (
    is_forward_mode,
    is_traced,
    is_transformed,
    is_watched,
    legacy_reduction,
    takes_over,
)
from xent.torch.reduced import reduced_by_formula
from xent.torch.rows import (
    Call,
    as_matrix,
    as_rows,
    check_floating,
    check_labels_now,
    check_tensors,
    from_rows,
    is_soft,
    labels_as_rows,
    refuse_recording,
    sample_weights,
    sparse_as_rows,
    times,
)
from xent.torch.sharding import is_distributed
from xent.torch.small import loss_of_few

DEFAULT = Objective()
STANDARD = (-100, "mean", 0.0, 0.0, None, 1.0, 0.0, None, None)
"""The options of `DEFAULT`, and torch's older names for a reduction."""


def cross_entropy(
    input: Tensor,
    target: Tensor | SparseTarget,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float | Tensor = 1.0,
    denominator: float | Tensor | None = None,
    focal_gamma: float = 0.0,
    sample_weight: Tensor | None = None,
    check: bool = False,
    **unknown: Never,
) -> Tensor:
    """Softmax cross-entropy of logits: a drop-in for `torch.nn.functional.cross_entropy`.

    *Definition*: ``loss = lse(x) - x[label]`` for a label, ``sum(p * (lse(x) - x))`` for class probabilities p, with
    ``lse(x) = log(sum(exp(x)))``; `xent.Objective` has the equation with all options.

    Parameters
    ----------
    input : tensor (C,), (N, C) or (N, C, d1, ...): logits of dtype float64, float32, bfloat16 or float16, with
        arbitrary strides; minus infinity masks a class.
    target : class indices of that shape without C, in [0, C) or equal to `ignore_index`; or class probabilities of
        exactly that shape, which may require a gradient; or a `SparseTarget`, which lists a few classes of each row.
    weight : tensor (C,), optional: what one row of each class counts for, 0 or more. It may require a gradient.
    size_average, reduce : torch's names for `reduction` before version 1.0, deprecated there too.
    check : look at labels and weights also where that makes the host wait for the device; on the CPU they are always
        checked. In a batch of `torch.func` that is compiled nothing can be raised: there such a row is NaN.
    ignore_index, reduction, label_smoothing : as in torch; see `xent.Objective`.
    z_loss, softcap, logit_scale, denominator : beyond torch; see `xent.Objective`. logit_scale, a learned temperature,
        and denominator may be tensors of one number, and then get their gradients.
    focal_gamma : see `xent.Objective`. The losses of rows are made first, so that a gradient takes a second visit to
        the logits (of a linear layer, a fourth product).
    sample_weight : one weight for each loss, of its shape. A mean divides by the sum of the weights (times those of the
        labels' classes). Its gradient is the row's loss. A loss of weight 0 counts for nothing, also an infinite one.
    **unknown : none; a misspelt option is answered with the names of those that exist.

    Returns
    -------
    tensor () in nats, or with `reduction="none"` of the input's shape without C; float32 for 16-bit logits, else of
    the input's dtype. A mean over nothing but ignored rows is NaN with gradient 0 (0 with `denominator`).

    Raises
    ------
    LabelError
        A label is out of range. On devices other than the CPU, and inside `torch.compile`, looking would cost a
        synchronisation: without `check` the row is NaN there instead, and no memory out of bounds is touched.
    ShapeError, DTypeError, ObjectiveError

    Notes
    -----
    *Numerics*: float32 for 16-bit and float32 logits, with sums over blocks in float64; float64 throughout for float64.
    docs/accuracy.md has bounds and measured errors. Results repeat bit for bit, whatever the number of threads.
    *Memory*: beside the gradient, a few numbers per row. When a gradient will be needed, a mean or a sum makes it in
    the same visit to the logits as the loss. Class probabilities are used as they are: their sums are not checked.

    Examples
    --------
    >>> logits = torch.tensor([[2.0, 1.0, 0.1], [0.5, 2.5, 0.0]], requires_grad=True)
    >>> loss = cross_entropy(logits, torch.tensor([0, 1]))
    >>> loss.backward()
    >>> round(loss.item(), 4), logits.grad.sum(dim=1).abs().max().item() < 1e-7
    (0.3069, True)

    References
    ----------
    Bridle (1990), Probabilistic Interpretation of Feedforward Classification Network Outputs
    """
    # Neither a tensor nor what is a symbol to a compiler may be compared with a number.
    has_numbers = type(logit_scale) is float and denominator is None and not (unknown or torch.compiler.is_compiling())
    given = (ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale, focal_gamma, size_average, reduce)
    is_standard = has_numbers and given == STANDARD
    if is_standard and weight is None and sample_weight is None:
        loss = loss_of_few(input, target)
        if loss is not None:
            return loss
    tensors = (input, *(target.tensors if isinstance(target, SparseTarget) else (target,)), weight, sample_weight)
    watched = is_watched(*tensors)
    if watched and has_torch_function_variadic(*tensors) and takes_over(*tensors):
        named: dict[str, Any] = {"size_average": size_average, "ignore_index": ignore_index, "reduce": reduce}
        named |= {"reduction": reduction, "label_smoothing": label_smoothing, "z_loss": z_loss, "softcap": softcap}
        named |= {"logit_scale": logit_scale, "denominator": denominator, "check": check}
        named |= {"focal_gamma": focal_gamma, "sample_weight": sample_weight}
        found: Tensor = handle_torch_function(cross_entropy, tensors, input, target, weight, **(named | unknown))
        return found
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    name = "cross_entropy"
    objective, learned = DEFAULT, NUMBERS
    if not is_standard:
        options = (ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale, denominator, focal_gamma)
        objective, learned = objective_of(name, *options, **unknown)
    how = layout_of(name, input, target, weight, objective, check=check, watched=watched)
    if isinstance(target, SparseTarget):
        logits, rows = as_matrix(input, how.class_axis), sparse_as_rows(name, target, how, check=check)
    else:
        logits, rows = as_rows(input), as_rows(target) if how.soft else labels_as_rows(target, how)
    logits = learned.scaled(logits)
    weights, class_weight = sample_weights(name, sample_weight, weight, rows, how, objective)
    backend = backend_of(input.device) if watched else choose(input.device)
    if backend is FORMULA or watched:
        if backend is FORMULA:
            losses, _ = FORMULA.forward(logits, rows, objective.weighted(class_weight))
        else:
            is_distributed(name, input=input, target=rows, weight=weight)
            losses = operators.cross_entropy_rows(logits, rows, class_weight, objective)
        loss = reduced_by_formula(losses, rows, class_weight, objective, weights)
    else:
        call = Call(name, objective, backend, labels_are_checked=check, sample_weight=weights)
        loss = autograd.cross_entropy(call, logits, rows, class_weight)
    return from_rows(loss, how) if objective.reduction == "none" else learned.divided(loss)


def statistics(
    input: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    check: bool = False,
) -> Statistics:
    """Log-probability and rank of the labels, entropy, log-sum-exp and argmax of each row, in one visit to the logits.

    *Definition*: with q = softmax(z) of the softcapped logits z (`xent.Objective`), ``log_prob = log q[label]``,
    ``entropy = -sum(q * log q)``, ``lse = log(sum(exp(z)))``; ``argmax`` is the first class with the greatest logit,
    and ``rank`` the number of classes whose logit is greater than the label's: 0 for a right prediction.

    Parameters
    ----------
    input : tensor (C,), (N, C) or (N, C, d1, ...): logits; minus infinity masks a class.
    target : class indices of that shape without C, in [0, C) or equal to `ignore_index`.
    ignore_index, softcap, logit_scale : see `xent.Objective`.
    check : look at the labels also where that makes the host wait for the device; on the CPU they are always checked.

    Returns
    -------
    Statistics
        Five tensors of the target's shape. log_prob, entropy and lse are in nats, float32 for 16-bit logits, and
        differentiable; argmax and rank are int64. An ignored row has log_prob 0 and rank -1.

    Raises
    ------
    LabelError
        A label is out of range (on other devices than the CPU, without `check`: NaN and rank -1).
    ShapeError, DTypeError, ObjectiveError

    Notes
    -----
    *Numerics*: as `cross_entropy`. Masked classes add 0 to the entropy. *Memory*: a few numbers per row beside the
    gradient.

    Examples
    --------
    >>> found = statistics(torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([1]))
    >>> round(found.entropy.item(), 4), round(found.log_prob.item(), 4), found.rank.item()
    (0.6931, -0.6931, 0)

    References
    ----------
    Shannon (1948), A Mathematical Theory of Communication
    """
    watched = is_watched(input, target)
    if watched and has_torch_function_variadic(input, target) and takes_over(input, target):
        options: dict[str, Any] = {"ignore_index": ignore_index, "softcap": softcap, "logit_scale": logit_scale}
        found: Statistics = handle_torch_function(statistics, (input, target), input, target, check=check, **options)
        return found
    objective, learned = objective_of("statistics", ignore_index, "none", softcap=softcap, logit_scale=logit_scale)
    how = layout_of("statistics", input, target, None, objective, check=check, watched=watched)
    require_labels("statistics", how, "cross_entropy")
    logits, labels = learned.scaled(as_rows(input)), labels_as_rows(target, how)
    backend = backend_of(input.device)
    if backend is FORMULA:
        rows = FORMULA.statistics(logits, labels, objective)
    elif watched:
        is_distributed("statistics", input=input, target=target)
        rows = operators.statistics_rows(logits, labels, objective)
    else:
        call = Call("statistics", objective, backend, labels_are_checked=check)
        rows = autograd.Statistics.apply(logits, labels, call)  # type: ignore[no-untyped-call]
    return Statistics(*(from_rows(tensor, how) for tensor in rows))


class Learned(NamedTuple):
    """Options that are tensors of one number: torch sees what is done with them, and they get their gradients."""

    scale: Tensor | None = None
    """Of the logits, before anything else."""
    denominator: Tensor | None = None
    """Of the sum of the losses."""

    def scaled(self, logits: Tensor) -> Tensor:
        """The logits times the scale."""
        return logits if self.scale is None else times(logits, self.scale)

    def scaled_layer(self, input: Tensor, linear_bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Input and bias of a layer, so that its logits are those times the scale."""
        if self.scale is None:
            return input, linear_bias
        bias = None if linear_bias is None else times(linear_bias, self.scale).to(linear_bias.dtype)
        wide = input.to(torch.float64 if input.dtype == torch.float64 else torch.float32)
        return (wide * self.scale.to(wide.dtype)).to(input.dtype), bias

    def divided(self, loss: Tensor) -> Tensor:
        """The loss over the denominator."""
        return loss if self.denominator is None else (loss / self.denominator).to(loss.dtype)


NUMBERS = Learned()
"""No option is a tensor."""


def objective_of(
    name: str,
    ignore_index: int,
    reduction: str,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float | Tensor = 1.0,
    denominator: float | Tensor | None = None,
    focal_gamma: float = 0.0,
    **unknown: Any,
) -> tuple[Objective, Learned]:
    """The options of a call, and those of them that are tensors torch has to see.

    A tensor that needs no gradient and can be read for nothing is a number like any other.
    """
    learned = learned_of(name, logit_scale, denominator)
    options: Any = {
        "ignore_index": ignore_index,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "softcap": softcap,
        "logit_scale": 1.0 if learned.scale is not None else logit_scale,
        "denominator": 1.0 if learned.denominator is not None else denominator,
        "focal_gamma": focal_gamma,
    }
    objective = Objective.of(name, options | unknown)
    if learned.denominator is not None:
        objective = replace(objective, reduction="sum", denominator=None)
    return objective, learned


def learned_of(name: str, logit_scale: float | Tensor, denominator: float | Tensor | None) -> Learned:
    """Those of the two that are tensors torch has to see."""
    scale = logit_scale if isinstance(logit_scale, Tensor) and has_to_be_seen(logit_scale) else None
    divisor = denominator if isinstance(denominator, Tensor) and has_to_be_seen(denominator) else None
    for option, tensor in {"logit_scale": scale, "denominator": divisor}.items():
        if tensor is not None and tensor.numel() != 1:
            found = f"found a tensor of shape {tuple(tensor.shape)}, expected one number"
            raise ObjectiveError(message(name, option, found, "See help(xent.Objective)"))
    return Learned(*(None if tensor is None else tensor.reshape(()) for tensor in (scale, divisor)))


def has_to_be_seen(tensor: Tensor) -> bool:
    """Whether a tensor of one number takes part in what torch records, or reading it would wait for a device."""
    if torch.compiler.is_compiling() or tensor.requires_grad:
        return True
    return is_forward_mode() or not may_look_at(tensor)


def backend_of(device: torch.device) -> Backend:
    """What computes for logits on this device."""
    return FORMULA if has_to_be_formula() else choose(device)


def has_to_be_formula() -> bool:
    """Whether torch has to see through the loss: for tangents, and for transforms inside compiled code."""
    if torch.compiler.is_compiling():
        return is_transformed()
    return is_forward_mode()


def may_look_at(tensor: Tensor) -> bool:
    """Whether the numbers of a tensor can be looked at without waiting for a device, and are there at all."""
    return tensor.device.type == "cpu" and not (is_transformed() or is_traced(tensor))


def layout_of(
    call: str,
    input: Tensor,
    target: Tensor | SparseTarget,
    weight: Tensor | None,
    objective: Objective,
    *,
    check: bool = False,
    place: torch.device | None = None,
    watched: bool = False,
) -> Layout:
    """Check shapes, dtypes and places, and labels where they are looked at; return how input and target lie as rows."""
    if watched:
        refuse_recording(call)
    if isinstance(target, SparseTarget):
        check_tensors(call, place=place, input=input, target=target.ids, weight=weight)
        check_tensors(call, place=place or input.device, target=target.given)
        check_floating(call, "input", input)
        how = target.layout(call, tuple(input.shape), 0 if input.ndim == 1 else 1)
    else:
        check_tensors(call, place=place, input=input, target=target, weight=weight)
        check_floating(call, "input", input)
        how = layout(call, "input", tuple(input.shape), tuple(target.shape), floating_target=is_soft(call, target))
    check_options_of_labels(call, how, objective)
    if weight is not None:
        check_class_weights(call, weight, how, check=check)
    if isinstance(target, Tensor) and not how.soft and (check or watched):
        check_labels_now(call, target, how.classes, objective.ignore_index, check=check)
    return how


def check_class_weights(call: str, weight: Tensor, how: Layout, *, check: bool) -> None:
    """Check shape and dtype of class weights, and their numbers where they are looked at."""
    check_floating(call, "weight", weight)
    check_weight_shape(call, tuple(weight.shape), how.classes)
    if may_look_at(weight) or (check and not torch.compiler.is_compiling()):
        check_weights(call, weight)
