"""The public call of the binary cross-entropy: checks, and the choice of what computes, as in functional.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Never

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from xent.backends.binary_protocol import Elements
from xent.backends.choice import choose_binary
from xent.backends.formula_binary import FORMULA_BINARY, ignored, losses_of
from xent.checks import binary_options, check_binary_shapes, check_binary_target, check_weights
from xent.errors import DTypeError, ObjectiveError, message
from xent.objective import Objective
from xent.torch._torch_private import (
    PLAIN,
    assert_on_device,
    is_transformed,
    is_watched,
    legacy_reduction,
    takes_over,
    without_numbers,
    without_transforms,
)
from xent.torch.binary_autograd import BinaryCall, binary_cross_entropy, reduced_by_formula
from xent.torch.binary_operators import binary_losses
from xent.torch.functional import has_to_be_formula, may_look_at, objective_of
from xent.torch.rows import check_floating, check_tensors, int64, refuse_recording
from xent.torch.sharding import is_distributed

NAME = "binary_cross_entropy_with_logits"


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    logit_scale: float | Tensor = 1.0,
    denominator: float | Tensor | None = None,
    focal_gamma: float = 0.0,
    sample_weight: Tensor | None = None,
    check: bool = False,
    **unknown: Never,
) -> Tensor:
    """Binary cross-entropy of logits: a drop-in for `torch.nn.functional.binary_cross_entropy_with_logits`.

    *Definition*: ``loss = y * softplus(-x) + (1 - y) * softplus(x)`` of each logit and its target y, with
    ``softplus(x) = log(1 + exp(x))``: the cross-entropy between y and ``sigmoid(x)``. docs/definitions.md has the
    equation with all options.

    Parameters
    ----------
    input : tensor of any shape: logits of dtype float64, float32, bfloat16 or float16, with arbitrary strides. Minus
        infinity is certainly 0, plus infinity certainly 1.
    target : tensor of that shape, of any floating, integer or boolean dtype: the probability of 1, in [0, 1], or
        `ignore_index`. It may require a gradient.
    weight : tensor that broadcasts to that shape, 0 or more: a factor of the losses. It may require a gradient.
    size_average, reduce : torch's names for `reduction` before version 1.0, deprecated there too.
    reduction : "none", "sum" or "mean", which divides by the number of elements that are not ignored.
    pos_weight : tensor that broadcasts to that shape, 0 or more: a factor of the part of the target 1, against labels
        that are rare. It may require a gradient.
    ignore_index : elements with this target add 0 to loss, gradient and denominator.
    label_smoothing : the share of a target that is moved to 1/2.
    softcap, logit_scale, denominator : see `xent.Objective`. logit_scale and denominator may be tensors of one number,
        and then get their gradients.
    focal_gamma : the exponent of the focal loss, a factor (1 - p)**focal_gamma with the probability p of the label; for
        targets of 0 and 1.
    sample_weight : one weight for each row, of the input's shape without the last axis (one axis: of its shape). A mean
        divides by their sum over the elements that count. A loss of weight 0 counts for nothing, also an infinite one.
    check : look at targets and weights also where that makes the host wait for the device; on the CPU they are always
        checked. In a batch of `torch.func` that is compiled nothing can be raised: there such an element is NaN.
    **unknown : none; a misspelt option is answered with the names of those that exist.

    Returns
    -------
    tensor () in nats, or with `reduction="none"` of the input's shape; float32 for 16-bit logits, else of the input's
    dtype. A mean over no elements that count is NaN with gradient 0 (0 with `denominator`).

    Raises
    ------
    LabelError
        A target is outside [0, 1]. On devices other than the CPU, and inside `torch.compile`, looking would cost a
        synchronisation: without `check` the element is NaN there instead.
    ShapeError, DTypeError, ObjectiveError

    Notes
    -----
    *Numerics*: float32 for 16-bit and float32 logits, sums in float64; float64 throughout for float64. Losses of
    confident right predictions keep their digits, and none is negative. Results repeat bit for bit, whatever the number
    of threads. *Memory*: the gradient alone. When one will be needed, a mean or a sum makes it in the same visit to
    the logits as the loss. Weights are not expanded.

    Examples
    --------
    >>> logits = torch.tensor([[2.0, -1.0], [0.5, 0.0]], requires_grad=True)
    >>> loss = binary_cross_entropy_with_logits(logits, torch.tensor([[1, 0], [1, 0]]))
    >>> loss.backward()
    >>> round(loss.item(), 4)
    0.4019

    References
    ----------
    Cox (1958), The Regression Analysis of Binary Sequences
    """
    tensors = (input, target, weight, pos_weight, sample_weight)
    watched = is_watched(*tensors)
    if watched and has_torch_function_variadic(*tensors) and takes_over(*tensors):
        options: dict[str, Any] = {"reduction": reduction, "pos_weight": pos_weight, "ignore_index": ignore_index}
        options |= {"size_average": size_average, "reduce": reduce, "label_smoothing": label_smoothing}
        options |= {"softcap": softcap, "logit_scale": logit_scale, "denominator": denominator, "check": check}
        options |= {"focal_gamma": focal_gamma, "sample_weight": sample_weight}
        own = binary_cross_entropy_with_logits
        found: Tensor = handle_torch_function(own, tensors, *tensors[:3], **(options | unknown))
        return found
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    binary_options(NAME, unknown)
    given = (ignore_index, reduction, label_smoothing, 0.0, softcap, logit_scale, denominator, focal_gamma)
    objective, learned = objective_of(NAME, *given)
    elements = _elements(*tensors, objective, check=check, watched=watched)
    if learned.scale is not None:
        known = elements.logits.masked_fill(ignored(elements.target, objective), 0.0)
        elements = replace(elements, logits=learned.scaled(known))
    backend = FORMULA_BINARY if has_to_be_formula() else choose_binary(input.device)
    if backend is FORMULA_BINARY:
        loss = reduced_by_formula(losses_of(elements), elements)
    elif watched:
        weights = {"weight": weight, "pos_weight": pos_weight, "sample_weight": sample_weight}
        is_distributed(NAME, True, input=input, target=target, **weights)
        losses = binary_losses(elements.logits, elements.target, pos_weight, objective.of_elements)
        loss = reduced_by_formula(losses, elements)
    else:
        loss = binary_cross_entropy(BinaryCall(NAME, backend, check), elements)
    return loss.reshape(input.shape) if objective.reduction == "none" else learned.divided(loss)


def _elements(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    sample_weight: Tensor | None,
    objective: Objective,
    *,
    check: bool,
    watched: bool,
) -> Elements:
    """Check the arguments, and their numbers where they are looked at; return them with one axis at least."""
    if watched:
        refuse_recording(NAME)
    weights = {"weight": weight, "pos_weight": pos_weight, "sample_weight": sample_weight}
    arguments: dict[str, Any] = {"input": input, "target": target, **weights}
    check_tensors(NAME, **arguments)
    check_floating(NAME, "input", input)
    shapes = {name: None if tensor is None else tuple(tensor.shape) for name, tensor in weights.items()}
    check_binary_shapes(NAME, "input", tuple(input.shape), target=tuple(target.shape), **shapes)
    for name, tensor in weights.items():
        if tensor is not None:
            check_floating(NAME, name, tensor)
            looked_at = may_look_at(tensor) or (check and not torch.compiler.is_compiling())
            if looked_at and name != "sample_weight":
                check_weights(NAME, tensor, name)
    own_target = _target(target, objective)
    if check or watched:
        _check_targets_now(own_target, objective, check=check)
    logits = input.resolve_neg()  # kernels read memory, which does not know of a pending sign
    if sample_weight is not None and input.ndim > 1:
        sample_weight = sample_weight.unsqueeze(-1)
    if input.ndim == 0:
        logits, own_target = logits.reshape(1), own_target.reshape(1)
    return Elements(logits, own_target, objective, weight, pos_weight, sample_weight)


def _target(target: Tensor, objective: Objective) -> Tensor:
    """The target in a dtype that kernels take: floating point numbers of any kind, uint8 or int64."""
    if target.is_floating_point():
        check_floating(NAME, "target", target)
        if objective.focal_gamma and target.requires_grad:
            found = "the focal loss is one of labels, which have no gradient"
            raise ObjectiveError(message(NAME, "target", found, "Pass target.detach()"))
        return target.resolve_neg()
    if target.is_complex():
        found = f"found dtype {target.dtype}, expected real numbers or booleans"
        raise DTypeError(message(NAME, "target", found, "Pass target.real"))
    return target.to(torch.uint8) if target.dtype in (torch.bool, torch.uint8) else int64(target)


def _check_targets_now(target: Tensor, objective: Objective, *, check: bool) -> None:
    """Look at targets before a backend does, as `rows.check_labels_now` does at labels."""
    if torch.compiler.is_compiling() or without_numbers(target):
        if check and not is_transformed():  # a batch in a graph cannot raise: there such an element is NaN
            valid = ((target >= 0) & (target <= 1)) | ignored(target, objective)
            assert_on_device(valid.all(), f"{NAME}: a target is neither in [0, 1] nor {objective.ignore_index}")
        return
    target = without_transforms(target) if is_transformed() else target
    if check or (is_transformed() and target.device.type == "cpu" and type(target) in PLAIN):
        check_binary_target(NAME, target, ignored(target, objective), objective)
