"""The public calls of the torch front: checks, and the choice of what computes.

plain tensors                               a backend under autograd.py: kernels for the CPU and GPUs
under torch.compile, and tensor subclasses  the same as operators, by operators.py
other devices, and under torch.func         formulas of torch operations, xent/backends/formula.py

Which device has which backend is in xent/backends/choice.py.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from xent.backends.choice import choose
from xent.backends.formula import FORMULA
from xent.backends.protocol import Backend, Statistics
from xent.checks import (
    Layout,
    check_ignore_index,
    check_labels,
    check_weight_shape,
    check_weights,
    layout,
    require_labels,
)
from xent.errors import DTypeError, message
from xent.objective import Objective, UnweightedOptions
from xent.torch import autograd, operators
from xent.torch._torch_private import is_traced, is_transformed
from xent.torch.rows import Call, as_rows, check_tensors, from_rows, labels_as_rows

DEFAULT = Objective()


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    check: bool = False,
    **options: Unpack[UnweightedOptions],
) -> Tensor:
    """Softmax cross-entropy of logits: a drop-in for `torch.nn.functional.cross_entropy`.

    *Definition*: ``loss = lse(x) - x[label]`` for a label, ``sum(p * (lse(x) - x))`` for class probabilities p, with
    ``lse(x) = log(sum(exp(x)))``; `xent.Objective` has the equation with all options.

    Parameters
    ----------
    input : tensor (C,), (N, C) or (N, C, d1, ...): logits of dtype float64, float32, bfloat16 or float16, with
        arbitrary strides; minus infinity masks a class.
    target : class indices of that shape without C, in [0, C) or equal to `ignore_index`; or class probabilities of
        exactly that shape, which may require a gradient.
    weight : tensor (C,), optional: what one row of each class counts for, 0 or more.
    check : look at labels and weights also where that makes the host wait for the device; on the CPU they are always
        checked.
    **options : ignore_index, reduction and label_smoothing as in torch; z_loss, softcap, logit_scale and denominator
        beyond it. See `xent.Objective`.

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
    if has_torch_function_variadic(input, target, weight):
        tensors = (input, target, weight)
        found: Tensor = handle_torch_function(cross_entropy, tensors, *tensors, check=check, **options)
        return found
    objective = Objective.of("cross_entropy", options) if options else DEFAULT
    how = layout_of("cross_entropy", input, target, weight, objective, check=check)
    logits = as_rows(input)
    rows = as_rows(target) if how.soft else labels_as_rows(target, how)
    call = Call("cross_entropy", objective, backend_of(input.device), labels_are_checked=check)
    if is_traced(input, target, weight) and call.backend is not FORMULA:
        losses = operators.cross_entropy_rows(logits, rows, weight, objective)
    elif call.backend is FORMULA:
        losses, _ = FORMULA.forward(logits, rows, objective.weighted(weight))
    else:
        loss = autograd.cross_entropy(call, logits, rows, weight)
        return from_rows(loss, how) if objective.reduction == "none" else loss
    loss = autograd.reduced_by_formula(losses, rows, weight, objective)
    return from_rows(loss, how) if objective.reduction == "none" else loss


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
    if has_torch_function_variadic(input, target):
        options: dict[str, Any] = {"ignore_index": ignore_index, "softcap": softcap, "logit_scale": logit_scale}
        found: Statistics = handle_torch_function(statistics, (input, target), input, target, check=check, **options)
        return found
    objective = Objective(ignore_index=ignore_index, softcap=softcap, logit_scale=logit_scale, call="statistics")
    how = layout_of("statistics", input, target, None, objective, check=check)
    require_labels("statistics", how, "cross_entropy")
    logits, labels = as_rows(input), labels_as_rows(target, how)
    backend = backend_of(input.device)
    if backend is FORMULA:
        rows = FORMULA.statistics(logits, labels, objective)
    elif is_traced(input, target):
        rows = operators.statistics_rows(logits, labels, objective)
    else:
        call = Call("statistics", objective, backend, labels_are_checked=check)
        rows = autograd.Statistics.apply(logits, labels, call)  # type: ignore[no-untyped-call]
    return Statistics(*(from_rows(tensor, how) for tensor in rows))


def backend_of(device: torch.device) -> Backend:
    """What computes for logits on this device: under a `torch.func` transform, formulas."""
    return FORMULA if is_transformed() else choose(device)


def may_look_at(tensor: Tensor) -> bool:
    """Whether the numbers of a tensor can be looked at without waiting for a device, and are there at all."""
    return tensor.device.type == "cpu" and not (is_transformed() or is_traced(tensor))


def layout_of(
    call: str, input: Tensor, target: Tensor, weight: Tensor | None, objective: Objective, *, check: bool = False
) -> Layout:
    """Check shapes and dtypes, and with `check` the labels; return how input and target lie as rows."""
    check_tensors(call, input=input, target=target)
    if not input.is_floating_point():
        found = f"found dtype {input.dtype}, expected floating point logits"
        raise DTypeError(message(call, "input", found, "Convert them with input.float()"))
    soft = target.is_floating_point()
    how = layout(call, "input", tuple(input.shape), tuple(target.shape), floating_target=soft)
    check_ignore_index(call, how, objective)
    if weight is not None:
        check_weight_shape(call, tuple(weight.shape), how.classes)
        if check or may_look_at(weight):
            check_weights(call, weight)
    if check and not how.soft:
        check_labels(call, target.to(torch.int64), how.classes, objective.ignore_index)
    return how
