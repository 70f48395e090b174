"""The divergences as formulas of torch operations: for devices without kernels, and where torch has to see through.

The equations of xent/reference/divergence.py, in the dtype that the kernels compute in. Both the losses and their
gradient can be differentiated any number of times. Rows are (N, C) or (N, C, S), with the classes on axis 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xent.backends.formula import centred, softcapped_logits, softcapped_logits_derivative
from xent.divergence import Divergence
from xent.terms import kl_terms, log_and_excess


class FormulaDivergence:
    """The formulas of this file (`xent.backends.divergence_protocol.DivergenceBackend`). `out` is copied to."""

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor | None, options: Divergence) -> Tensor:
        """Return the losses, (N,) or (N, S)."""
        ignored = _ignored(labels, options)
        pair = _pair(_without(student, ignored), _without(teacher, ignored), options)
        if options.kind == "js":
            _, of_teacher, of_student = _of_mixture(pair, options.beta)
            terms = of_teacher + of_student
        else:
            p, q, d = (pair.q, pair.p, pair.d) if options.kind == "forward" else (pair.p, pair.q, -pair.d)
            terms = kl_terms(torch, p, q, d).masked_fill((p > 0) & (q == 0) & pair.masked, torch.inf)
        loss = options.factor * terms.sum(dim=1)
        if options.z_loss:
            loss = loss + options.z_loss * pair.lse.squeeze(1) ** 2
        return loss if ignored is None else loss.masked_fill(ignored, 0.0)

    def forward_backward(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None,
        row_scale: Tensor | float,
        options: Divergence,
        *,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the losses and the gradient."""
        gradient = divergence_gradient(student, teacher, labels, row_scale, options)
        losses = self.forward(student, teacher, labels, options)
        return losses, gradient if out is None else out.copy_(gradient)


DIVERGENCE_FORMULA = FormulaDivergence()


def divergence_gradient(
    student: Tensor, teacher: Tensor, labels: Tensor | None, row_scale: Tensor | float, options: Divergence
) -> Tensor:
    """The gradient of sum(row_scale * loss) by the student's logits; differentiable itself."""
    ignored = _ignored(labels, options)
    usable = _without(student, ignored)
    pair = _pair(usable, _without(teacher, ignored), options)
    if options.kind == "forward":
        near, d = _near(pair)
        gradient = torch.where(near, pair.q * torch.expm1(-d), pair.p - pair.q)
    elif options.kind == "reverse":
        d = -pair.d  # 0 where a class is masked
        gradient = pair.p * (d - (pair.p * d).sum(dim=1, keepdim=True))
    else:
        log_ratio = _of_mixture(pair, options.beta)[0].masked_fill(pair.p == 0, 0.0)
        mean = (pair.p * log_ratio).sum(dim=1, keepdim=True)
        gradient = (1 - options.beta) * pair.p * (log_ratio - mean)
    gradient = options.factor * gradient
    if options.z_loss:
        largest = torch.finfo(gradient.dtype).max
        gradient = gradient + (2 * options.z_loss * pair.lse).clamp(-largest, largest) * pair.p
    gradient = gradient * softcapped_logits_derivative(usable, options)
    gradient = gradient * (row_scale.unsqueeze(1) if isinstance(row_scale, Tensor) and row_scale.ndim else row_scale)
    if ignored is not None:
        gradient = gradient.masked_fill(ignored.unsqueeze(1), 0.0)
    return gradient.to(student.dtype)


class _Pair(NamedTuple):
    """p the student's distribution, q the teacher's, d = log q - log p, 0 where a class is `masked` in either."""

    p: Tensor
    q: Tensor
    d: Tensor
    masked: Tensor
    lse: Tensor
    """Of the student, with an axis of one class."""


def _pair(student: Tensor, teacher: Tensor, options: Divergence) -> _Pair:
    s, lse_s, shift, masked_s = _normalised(student, options)
    t, lse_t, _, masked_t = _normalised(teacher, options)
    masked = masked_s | masked_t
    d = (t.masked_fill(masked, 0.0) - s.masked_fill(masked, 0.0)) - (lse_t - lse_s).masked_fill(masked, 0.0)
    return _Pair((s - lse_s).exp(), (t - lse_t).exp(), d, masked, lse_s + shift)


def _normalised(logits: Tensor, options: Divergence) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z relative to its maximum, its log-sum-exp, the maximum, and which classes are masked.

    A row of masked classes alone has none that counts as masked, so that it is NaN.
    """
    z, shift = centred(softcapped_logits(logits, options))
    lse = torch.logsumexp(z, dim=1, keepdim=True)
    return z, lse, shift, (z == -torch.inf) & (lse != -torch.inf)


def _near(pair: _Pair) -> tuple[Tensor, Tensor]:
    """Where neither class is masked and the probabilities are close, and d there."""
    near = (pair.d.abs() < 1.0) & ~pair.masked
    return near, torch.where(near, pair.d, 0.0)


def _of_mixture(pair: _Pair, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """log(p / m), and the teacher's and the student's terms of the JS divergence."""
    near, d = _near(pair)
    difference = torch.where(near, -pair.q * torch.expm1(-d), pair.q - pair.p)
    m = beta * pair.q + (1 - beta) * pair.p
    usable = torch.where(m == 0, 1.0, m)
    _, of_teacher = log_and_excess(torch, pair.q / usable, (1 - beta) * difference / usable)
    log_of_student, of_student = log_and_excess(torch, pair.p / usable, -beta * difference / usable)
    return log_of_student, beta * m * of_teacher, (1 - beta) * m * of_student


def _ignored(labels: Tensor | None, options: Divergence) -> Tensor | None:
    """Which rows count for nothing."""
    return None if labels is None else labels == options.ignore_index


def _without(logits: Tensor, ignored: Tensor | None) -> Tensor:
    """The logits with those rows set to 0, so that a NaN there reaches neither loss nor gradient."""
    return logits if ignored is None else logits.masked_fill(ignored.unsqueeze(1), 0.0)
