"""The losses as formulas of torch operations: for devices without a kernel, and wherever torch must see through them.

The same equations as xent/reference/cross_entropy.py, in the dtype that the kernels compute in (float32 for 16-bit
logits). Differentiable as often as wanted, which is what the kernels' double backward uses. Rows are (N, C) or
(N, C, S), with the classes on axis 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xent.objective import Objective
from xent.reduction import reduce


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums, losses and log-sum-exps: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def bent_logits(logits: Tensor, objective: Objective) -> Tensor:
    """z = softcap * tanh(logit_scale * x / softcap). Minus infinity stays, plus infinity becomes NaN."""
    x = logits.to(compute_dtype(logits.dtype))
    # A factor, and not masked_fill, which would make the derivative 0.
    x = x * torch.where(x == torch.inf, torch.nan, 1.0).to(x.dtype)
    if objective.softcap is None:
        return x if objective.logit_scale == 1.0 else objective.logit_scale * x
    masked = x == -torch.inf
    # tanh has derivative 0 at infinity, but 0 times the infinity that follows would be NaN: bend finite numbers only.
    u = objective.logit_scale * x.masked_fill(masked, 0.0) / objective.softcap
    return (objective.softcap * _tanh(u)).masked_fill(masked, -torch.inf)


def _tanh(u: Tensor) -> Tensor:
    """tanh(u), whose derivative 1 - tanh(u)**2 does not cancel where it is small: there by exponentials."""
    sign = torch.where(u < 0, -1.0, 1.0).to(u.dtype)
    e = torch.exp(-2.0 * u * sign)
    return torch.where(u.abs() < 1, torch.tanh(u), sign * (1.0 - e) / (1.0 + e))


def target_weights(target: Tensor, z: Tensor, weight: Tensor | None, objective: Objective) -> Tensor:
    """t = weight * ((1 - label_smoothing) * p + label_smoothing / classes), like z; 0 for ignored rows.

    A label out of range, which has no p, gives NaN: on a device the range is not looked at.
    """
    classes = z.shape[1]
    if target.is_floating_point():
        p = target.to(z.dtype)
    else:
        positions = torch.arange(classes, device=z.device).reshape(1, -1, *[1] * (z.ndim - 2))
        p = (target.unsqueeze(1) == positions).to(z.dtype)
    if objective.label_smoothing:
        p = (1 - objective.label_smoothing) * p + objective.label_smoothing / classes
    if weight is not None:
        p = p * weight.to(z.dtype).reshape(1, -1, *[1] * (z.ndim - 2))
    if target.is_floating_point():
        return p
    ignored = (target == objective.ignore_index).unsqueeze(1)
    outside = ((target < 0) | (target >= classes)).unsqueeze(1)
    return p.masked_fill(outside, torch.nan).masked_fill(ignored, 0.0)


def centred(z: Tensor) -> tuple[Tensor, Tensor]:
    """z less its maximum, and the maximum, a constant: an offset of all logits costs no digits of what follows."""
    shift = z.detach().amax(dim=1, keepdim=True)
    shift = torch.where(shift.isfinite(), shift, 0.0)
    return z - shift, shift


def cross_entropy_rows(logits: Tensor, target: Tensor, weight: Tensor | None, objective: Objective) -> Tensor:
    """The loss of each row: sum(t * (lse - z)) + z_loss * lse**2."""
    z = bent_logits(_without_ignored(logits, target, objective), objective)
    t = target_weights(target, z, weight, objective)
    z, shift = centred(z)
    lse = torch.logsumexp(z, dim=1, keepdim=True)
    # 0 log 0 = 0: a class that counts for nothing may be impossible.
    loss = (t * torch.where((t == 0) & (z == -torch.inf), 0.0, lse - z)).sum(dim=1)
    if objective.z_loss:
        loss = loss + objective.z_loss * (lse + shift).squeeze(1) ** 2
    return loss if target.is_floating_point() else loss.masked_fill(target == objective.ignore_index, 0.0)


def reduced(losses: Tensor, denominator: Tensor | float, objective: Objective) -> Tensor:
    """What the reduction makes of the losses, without waiting for them."""
    if objective.reduction == "none":
        return losses
    value: Tensor = reduce(losses.sum(dtype=torch.float64), denominator, objective).to(losses.dtype)
    return value


def cross_entropy_gradient(
    logits: Tensor, target: Tensor, weight: Tensor | None, row_scale: Tensor, objective: Objective
) -> Tensor:
    """row_scale * ((sum(t) + 2 * z_loss * lse) * q - t) * dz/dx, as a formula that can itself be differentiated."""
    usable = _without_ignored(logits, target, objective)
    z = bent_logits(usable, objective)
    t = target_weights(target, z, weight, objective)
    derivative = bent_logits_derivative(z, objective)
    z, shift = centred(z)
    lse = torch.logsumexp(z, dim=1, keepdim=True)
    gradient = (t.sum(dim=1, keepdim=True) + 2 * objective.z_loss * (lse + shift)) * torch.exp(z - lse) - t
    gradient = gradient * derivative * row_scale.unsqueeze(1)
    if not target.is_floating_point():
        gradient = gradient.masked_fill((target == objective.ignore_index).unsqueeze(1), 0.0)
    return gradient.to(logits.dtype)


def target_gradient(
    logits: Tensor, weight: Tensor | None, row_scale: Tensor, objective: Objective, dtype: torch.dtype
) -> Tensor:
    """The gradient by class probabilities: (1 - label_smoothing) * weight * (lse - z)."""
    z = bent_logits(logits, objective)
    gradient = (1 - objective.label_smoothing) * (torch.logsumexp(z, dim=1, keepdim=True) - z)
    if weight is not None:
        gradient = gradient * weight.to(z.dtype).reshape(1, -1, *[1] * (z.ndim - 2))
    return (gradient * row_scale.unsqueeze(1)).to(dtype)


def statistics_rows(logits: Tensor, labels: Tensor, objective: Objective) -> tuple[Tensor, ...]:
    """(log_prob, entropy, lse, argmax, rank) of each row; see `xent.torch.statistics`."""
    z = bent_logits(logits, objective)
    lse = torch.logsumexp(z, dim=1)
    log_q = z - lse.unsqueeze(1)
    masked = z == -torch.inf
    entropy = -(log_q.exp() * log_q.masked_fill(masked, 0.0)).sum(dim=1)
    known = (labels >= 0) & (labels < z.shape[1]) & (labels != objective.ignore_index)
    place = labels.clamp(0, z.shape[1] - 1).unsqueeze(1)
    # A label out of range is NaN, an ignored one 0.
    unknown = torch.where(labels == objective.ignore_index, 0.0, torch.nan).to(z.dtype)
    log_prob = torch.where(known, log_q.gather(1, place).squeeze(1), unknown)
    rank = torch.where(known, (logits > logits.gather(1, place)).sum(dim=1), -1)
    return log_prob, entropy, lse, logits.argmax(dim=1), rank


def statistics_gradient(
    logits: Tensor, labels: Tensor, d_log_prob: Tensor, d_entropy: Tensor, d_lse: Tensor, objective: Objective
) -> Tensor:
    """d_log_prob * (one_hot - q) - d_entropy * q * (log q + entropy) + d_lse * q, times dz/dx."""
    z = bent_logits(logits, objective)
    log_q = z - torch.logsumexp(z, dim=1, keepdim=True)
    q, log_q = log_q.exp(), log_q.masked_fill(z == -torch.inf, 0.0)
    entropy = -(q * log_q).sum(dim=1, keepdim=True)
    known = (labels >= 0) & (labels < z.shape[1]) & (labels != objective.ignore_index)
    of_label = d_log_prob * known
    gradient = (d_lse - of_label).unsqueeze(1) * q - d_entropy.unsqueeze(1) * q * (log_q + entropy)
    place = labels.clamp(0, z.shape[1] - 1).unsqueeze(1)
    gradient = gradient.scatter_add(1, place, of_label.unsqueeze(1))
    return (gradient * bent_logits_derivative(z, objective)).to(logits.dtype)


def bent_logits_derivative(z: Tensor, objective: Objective) -> Tensor | float:
    """dz/dx from z: logit_scale * (1 - tanh(u)**2) with tanh(u) = z / softcap; 0 for a masked class."""
    if objective.softcap is None:
        return objective.logit_scale
    bent = torch.where(z == -torch.inf, 1.0, z / objective.softcap)
    return objective.logit_scale * (1 - bent**2)


def _without_ignored(logits: Tensor, target: Tensor, objective: Objective) -> Tensor:
    """The logits with ignored rows set to 0, so that a NaN there reaches neither loss nor gradient."""
    if target.is_floating_point():
        return logits
    return logits.masked_fill((target == objective.ignore_index).unsqueeze(1), 0.0)
