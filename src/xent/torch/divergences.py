"""The public calls of the divergences of logits: checks, and the choice of what computes, as in functional.py."""

from __future__ import annotations

from functools import partial
from typing import Any, Never

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from xent.backends.divergence_formula import DIVERGENCE_FORMULA
from xent.backends.formula import FORMULA
from xent.checks import Layout, check_teacher_shape
from xent.errors import ShapeError, message
from xent.objective import Objective
from xent.sparse import SparseTarget
from xent.torch import divergence_autograd, divergence_operators
from xent.torch._torch_private import is_watched, takes_over
from xent.torch.divergence_autograd import counted
from xent.torch.divergence_options import check_row_labels, divergence_of
from xent.torch.functional import backend_of, cross_entropy, layout_of
from xent.torch.listed_divergence import kl_divergence_from_list
from xent.torch.reduced import reduced_by_formula
from xent.torch.rows import (
    Call,
    as_rows,
    check_floating,
    check_tensors,
    from_rows,
    labels_as_rows,
    refuse_recording,
    sample_weights,
)
from xent.torch.sharding import is_distributed


def kl_divergence(
    input: Tensor,
    target: Tensor | SparseTarget,
    *,
    direction: str = "forward",
    labels: Tensor | None = None,
    ignore_index: int = -100,
    temperature: float = 1.0,
    temperature_squared: bool = False,
    softcap: float | None = None,
    logit_scale: float | Tensor = 1.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    denominator: float | Tensor | None = None,
    sample_weight: Tensor | None = None,
    **unknown: Never,
) -> Tensor:
    """KL divergence of two rows of logits, of a student (`input`) from its teacher (`target`): knowledge distillation.

    *Definition*: with p_s = softmax(z of input), p_t = softmax(z of target) and z = x * logit_scale / temperature, or
    softcapped as in `xent.Objective`, ``KL(p_t || p_s) = sum(p_t * (log p_t - log p_s))``: the order and the meaning of
    ``F.kl_div(log_softmax(input), log_softmax(target), log_target=True)``. `direction="reverse"` is
    ``KL(p_s || p_t)``. The loss of a row is factor * KL + z_loss * lse(z of input)**2.

    Parameters
    ----------
    input : tensor (C,), (N, C) or (N, C, d1, ...): the student's logits, of dtype float64, float32, bfloat16 or
        float16, with arbitrary strides; minus infinity masks a class.
    target : the teacher's logits, of the same shape. It gets its gradient where it requires one. Of another dtype,
        both are converted to the wider one. Or a `SparseTarget`, the top k of a teacher; forward only, and as exact as
        the difference of two numbers of the cross-entropy's size.
    direction : "forward", which covers all that the teacher does, or "reverse", which seeks one of its modes.
    labels : integers of the shape without C, optional. A row labelled `ignore_index` counts for nothing, in loss,
        gradient and denominator; no other label means anything.
    ignore_index : the label of such rows.
    temperature : what both logits are divided by, above 0.
    temperature_squared : multiply the divergence by temperature**2, so that its gradients keep their size (Hinton et
        al.); the z-loss is not.
    softcap, logit_scale : of both logits; see `xent.Objective`. logit_scale may be a tensor of one number, and then
        gets its gradient.
    z_loss : the factor of the square of the student's log-sum-exp.
    reduction : "none", "sum" or "mean". The mean is over the rows that count, which is torch's "batchmean"; torch's
        own "mean" divides by the number of classes too.
    denominator : what a mean divides by instead; a number, or a tensor of one, which gets its gradient.
    sample_weight : one weight for each row; see `cross_entropy`.
    **unknown : none; a misspelt option is answered with the names of those that exist.

    Returns
    -------
    tensor () in nats, or with `reduction="none"` of the input's shape without C; float32 for 16-bit logits, else of
    the input's dtype. Never negative, and exactly 0 of equal logits. +inf where a class is possible in the first
    distribution and masked in the second; NaN or +inf among the logits make their row NaN.

    Raises
    ------
    ShapeError, DTypeError, ObjectiveError

    Notes
    -----
    *Numerics*: each term is p_t * (d - 1 + exp(-d)) with d = log p_t - log p_s, which is 0 or more, by a series for
    small d: a divergence of 1e-9 has its digits. float32 for 16-bit and float32 logits, with sums over blocks in
    float64; float64 throughout for float64. Results repeat bit for bit, whatever the number of threads. *Memory*: one
    gradient for each of student and teacher that learns, and a few numbers per row; logits (N, C, d1, ...) are copied
    to rows first, and so are those that are widened. A mean or a sum makes its gradients with the loss. The gradient
    of a row whose divergence is infinite is finite.

    Examples
    --------
    >>> student, teacher = torch.tensor([[0.0, 0.0]], requires_grad=True), torch.tensor([[2.0, 0.0]])
    >>> loss = kl_divergence(student, teacher)
    >>> loss.backward()
    >>> round(loss.item(), 4), student.grad
    (0.3278, tensor([[-0.3808,  0.3808]]))

    References
    ----------
    Kullback, Leibler (1951), On Information and Sufficiency; Hinton, Vinyals, Dean (2015), Distilling the Knowledge in
    a Neural Network, arXiv:1503.02531
    """
    options: dict[str, Any] = {"direction": direction, "ignore_index": ignore_index, "temperature": temperature}
    options |= {"temperature_squared": temperature_squared, "softcap": softcap, "logit_scale": logit_scale}
    options |= {"z_loss": z_loss, "reduction": reduction, "denominator": denominator}
    if isinstance(target, SparseTarget):
        how = layout_of("kl_divergence", input, target, None, Objective())
        loss = partial(cross_entropy, input)
        return kl_divergence_from_list("kl_divergence", loss, target, how, labels, sample_weight, options | unknown)
    return _divergence(kl_divergence, input, target, labels, sample_weight, options | unknown)


def js_divergence(
    input: Tensor,
    target: Tensor,
    *,
    beta: float = 0.5,
    labels: Tensor | None = None,
    ignore_index: int = -100,
    temperature: float = 1.0,
    temperature_squared: bool = False,
    softcap: float | None = None,
    logit_scale: float | Tensor = 1.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    denominator: float | Tensor | None = None,
    sample_weight: Tensor | None = None,
    **unknown: Never,
) -> Tensor:
    """Generalised Jensen-Shannon divergence of two rows of logits: between forward and reverse `kl_divergence`.

    *Definition*: ``beta * KL(p_t || m) + (1 - beta) * KL(p_s || m)`` with ``m = beta * p_t + (1 - beta) * p_s`` and the
    distributions of `kl_divergence`: the JSD of on-policy distillation. With beta = 1/2 it is the Jensen-Shannon
    divergence, symmetric and at most log 2. Never infinite.

    Parameters
    ----------
    input, target : the logits of student and teacher; see `kl_divergence`.
    beta : the teacher's share of the mixture, between 0 and 1 and neither of them.
    labels, ignore_index, temperature, temperature_squared, softcap, logit_scale, z_loss, reduction, denominator,
        sample_weight, **unknown : see `kl_divergence`.

    Returns
    -------
    as `kl_divergence`.

    Raises
    ------
    ShapeError, DTypeError, ObjectiveError

    Notes
    -----
    *Numerics*: the terms of both divergences are compared with m itself, as r log r - r + 1 with r = p / m, 0 or more,
    so that nothing cancels for equal logits. *Memory*: as `kl_divergence`.

    Examples
    --------
    >>> round(js_divergence(torch.tensor([[0.0, -torch.inf]]), torch.tensor([[-torch.inf, 0.0]])).item(), 4)
    0.6931

    References
    ----------
    Lin (1991), Divergence Measures Based on the Shannon Entropy; Agarwal et al. (2024), On-Policy Distillation of
    Language Models, arXiv:2306.13649
    """
    options: dict[str, Any] = {"beta": beta, "ignore_index": ignore_index, "temperature": temperature}
    options |= {"temperature_squared": temperature_squared, "softcap": softcap, "logit_scale": logit_scale}
    options |= {"z_loss": z_loss, "reduction": reduction, "denominator": denominator}
    return _divergence(js_divergence, input, target, labels, sample_weight, options | unknown)


def _divergence(
    loss_of: Any,
    input: Tensor,
    target: Tensor,
    labels: Tensor | None,
    sample_weight: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """The loss that a public function names."""
    name, tensors = loss_of.__name__, (input, target, labels, sample_weight)
    watched = is_watched(*tensors)
    if watched and has_torch_function_variadic(*tensors) and takes_over(*tensors):
        more = options | {"labels": labels, "sample_weight": sample_weight}
        found: Tensor = handle_torch_function(loss_of, tensors, input, target, **more)
        return found
    divergence, learned = divergence_of(name, name, options)
    how = _layout_of(name, input, target, labels, watched=watched)
    dtype = torch.promote_types(input.dtype, target.dtype)
    student, teacher = (learned.scaled(as_rows(logits.to(dtype))) for logits in (input, target))
    kept = None if labels is None else labels_as_rows(labels, how)
    weights, _ = sample_weights(name, sample_weight, None, counted(teacher, kept), how, divergence)
    backend = backend_of(input.device)
    if backend is FORMULA or watched:
        if backend is FORMULA:
            losses = DIVERGENCE_FORMULA.forward(student, teacher, kept, divergence)
        else:
            is_distributed(name, input=input, target=target, labels=labels)
            losses = divergence_operators.divergence_rows(student, teacher, kept, divergence)
        loss = reduced_by_formula(losses, counted(teacher, kept), None, divergence, weights)
    else:
        call = Call(name, divergence, backend, sample_weight=weights)
        loss = divergence_autograd.divergence(call, student, teacher, kept)
    return from_rows(loss, how) if divergence.reduction == "none" else learned.divided(loss)


def _layout_of(name: str, input: Tensor, target: Tensor, labels: Tensor | None, *, watched: bool) -> Layout:
    """Check shapes, dtypes and places; return how the logits lie as rows."""
    if watched:
        refuse_recording(name)
    check_tensors(name, input=input, target=target)
    check_floating(name, "input", input)
    check_floating(name, "target", target)
    if not input.ndim:
        raise ShapeError(message(name, "input", "found a single number", "Pass logits of shape (classes,) at least"))
    how = Layout(tuple(input.shape), 0 if input.ndim == 1 else 1, soft=True)
    check_teacher_shape(name, how, tuple(target.shape))
    check_row_labels(name, labels, how, input.device)
    return how
