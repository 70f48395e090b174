"""The public calls of the torch front: checks, and the choice of what computes.

plain tensors on the CPU                    the Numba kernels, by autograd.py
plain tensors on a GPU                      the Triton kernels, by gpu_autograd.py
under torch.compile, and tensor subclasses  the same kernels as operators, by operators.py
other devices, and under torch.func         a formula of torch operations, composed.py

Which device has which kernels is in backends.py.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from xent.backends import formula as composed
from xent.checks import Layout, check_ignore_index, check_labels, check_weight_shape, layout, require_labels
from xent.errors import DTypeError, message
from xent.objective import Objective, UnweightedOptions
from xent.reduction import mean_denominator
from xent.torch import autograd, operators
from xent.torch.backends import backend_of
from xent.torch.rows import as_rows, check_tensors, from_rows, is_traced, is_transformed, labels_as_rows

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
    input : tensor (C,), (N, C) or (N, C, d1, ...): logits of dtype float64, float32, bfloat16 or float16, strided at
        will; minus infinity masks a class.
    target : class indices of that shape without C, in [0, C) or equal to `ignore_index`; or class probabilities of
        exactly that shape, which may require a gradient.
    weight : tensor (C,), optional: what one row of each class counts for.
    check : look at the labels also where that makes the host wait for the device; on the CPU they are always checked.
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
    implementation = _implementation(input, target, weight)
    if implementation not in (operators, composed):
        loss: Tensor = implementation.cross_entropy(logits, rows, weight, objective)
    else:
        losses = implementation.cross_entropy_rows(logits, rows, weight, objective)
        denominator = mean_denominator(rows, weight, how.soft, how.rows, objective)
        loss = composed.reduced(losses, denominator, objective)
    return from_rows(loss, how) if objective.reduction == "none" else loss


class Statistics(NamedTuple):
    """What one visit to the logits tells of each row; see `statistics`."""

    log_prob: Tensor
    entropy: Tensor
    lse: Tensor
    argmax: Tensor
    rank: Tensor


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

    *Definition*: with q = softmax(z) of the bent logits z (`xent.Objective`), ``log_prob = log q[label]``,
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
    *Numerics*: as `cross_entropy`. Masked classes add 0 to the entropy. *Memory*: a few numbers per row; the gradient
    is a formula of torch operations, which holds a few copies of the logits for a moment.

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
    implementation = _implementation(input, target, None)
    if implementation in (operators, composed):
        rows = implementation.statistics_rows(logits, labels, objective)
    else:
        rows = implementation.Statistics.apply(logits, labels, objective)
    return Statistics(*(from_rows(tensor, how) for tensor in rows))


def _implementation(input: Tensor, target: Tensor, weight: Tensor | None) -> ModuleType:
    """The module that computes for these tensors."""
    backend = "formula" if is_transformed() else backend_of(input.device)
    if backend == "formula":
        return composed
    if is_traced(input, target, weight):
        return operators
    if backend == "numba":
        return autograd
    from xent.torch import gpu_autograd  # loads Triton

    return gpu_autograd


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
    if check and not how.soft:
        check_labels(call, target.to(torch.int64), how.classes, objective.ignore_index)
    return how
