"""The binary cross-entropy as formulas of torch operations: for devices without kernels, and wherever torch has to see.

The same equations as xent/reference/binary_cross_entropy.py, in the dtype that the kernels compute in. The losses are
differentiable any number of times; their gradient and its derivatives are written in closed form, which does not cancel
where a derivative of log(1 + exp(z)) taken by torch would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xent.backends.binary_protocol import Elements, Visited, ignored_value, smoothing_of
from xent.backends.formula import compute_dtype
from xent.focal import focal_loss
from xent.objective import Objective


@dataclass(frozen=True)
class FormulaBinary:
    """The formulas of this file (`xent.backends.binary_protocol.BinaryBackend`)."""

    reads_values = False
    one_visit = False

    def visit(
        self,
        elements: Elements,
        scale: Tensor | float | None = None,
        *,
        losses: bool = False,
        out: Tensor | None = None,
        **more: Any,
    ) -> Visited:
        """Return losses, their sum, and the gradient of sum(scale * loss) if there is a scale."""
        found = weighted(losses_of(elements), elements.weight, elements.sample_weight)
        gradient = None
        if scale is not None:
            gradient = gradient_of(elements, scale)
            gradient = gradient if out is None else out.copy_(gradient)
        return Visited(found if losses else None, found.sum(dtype=torch.float64), -1, gradient)

    def count(self, elements: Elements) -> Tensor:
        """Return the number of elements that count, or the sum of their sample weights, in float64."""
        if elements.sample_weight is None and not elements.target.requires_grad:
            counted: Tensor = elements.target.numel() - ignored(elements.target, elements.objective).sum().double()
            return counted
        known = ~ignored(elements.target, elements.objective)
        if elements.sample_weight is None:
            return known.sum(dtype=torch.float64)
        if elements.sample_weight.ndim == known.ndim and known.ndim > 1:
            known = known.sum(dim=-1, keepdim=True)
        count: Tensor = (known.double() * elements.sample_weight.double()).sum()
        return count


FORMULA_BINARY = FormulaBinary()


def losses_of(elements: Elements) -> Tensor:
    """The loss of each element without weight and sample_weight."""
    parts = parts_of(elements)
    if elements.objective.focal_gamma:
        surprise = torch.where(parts.is_one, _softplus(-parts.z), _softplus(parts.z))
        focal: Tensor = focal_loss(surprise.double(), elements.objective.focal_gamma, torch)
        losses = weighted(focal.to(parts.z.dtype), parts.positive + parts.negative)
    else:
        losses = weighted(_softplus(-parts.z), parts.positive) + weighted(_softplus(parts.z), parts.negative)
    return losses.masked_fill(parts.ignored, 0.0)


def weighted(losses: Tensor, *weights: Tensor | None) -> Tensor:
    """The losses times weights; nothing of weight 0 is infinite."""
    for weight in weights:
        if weight is not None:
            wide = weight.to(losses.dtype)
            losses = torch.where((wide == 0) & losses.isinf(), 0.0, losses) * wide
    return losses


def gradient_of(elements: Elements, scale: Tensor | float) -> Tensor:
    """The gradient of sum(scale * loss) by the logits, differentiable itself."""
    parts = parts_of(elements)
    gradient = slope_of(parts, elements.objective) * derivative_of(parts, elements.objective)
    for weight in (elements.weight, elements.sample_weight, scale):
        if weight is not None:
            gradient = gradient * (weight.to(gradient.dtype) if isinstance(weight, Tensor) else weight)
    return gradient.masked_fill(parts.ignored, 0.0).to(elements.logits.dtype)


def gradient_derivatives(
    elements: Elements, scale: Tensor, upstream: Tensor, *, options: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The derivatives of sum(upstream * gradient_of) by logits and scale, and with `options` target and pos_weight.

    With g = dloss/dz and V = upstream * dz/dx:

        d logits   scale * (V * dz/dx * dg/dz  +  upstream * g * d2z/dx2)
        d scale    V * g
        d y'       scale * V * dg/dy',  dg/dy' = -(pos_weight * (1 - q) + q)
        d pos      scale * V * dg/dpos, dg/dpos = -y' * (1 - q)
    """
    objective, parts = elements.objective, parts_of(elements)
    slope, bend = slope_of(parts, objective), bend_of(parts, objective)
    derivative = derivative_of(parts, objective)
    above, s = upstream.to(slope.dtype), scale.to(slope.dtype)
    v = above * derivative
    dlogits = s * v * derivative * bend
    if objective.softcap is not None:
        # d2z/dx2 = -2 * scale * tanh(u) / cap * dz/dx
        z = torch.where(parts.z.isinf(), 0.0, parts.z)
        dlogits = dlogits + s * v * slope * z * (-2.0 * objective.logit_scale / objective.softcap**2)
    dscale = (v * slope).masked_fill(parts.ignored, 0.0)
    dtarget = dpos = None
    if options:
        other = torch.sigmoid(-parts.z)
        pos_weight = 1.0 if elements.pos_weight is None else elements.pos_weight.to(s.dtype)
        by_target = -(pos_weight * other + torch.sigmoid(parts.z)) * smoothing_of(objective)[0]
        dtarget = (s * v * by_target).masked_fill(parts.ignored, 0.0)
        by_pos = -parts.y * other
        if objective.focal_gamma:
            by_pos = torch.where(parts.is_one, _focal_slope(parts.z, objective.focal_gamma), 0.0)
        dpos = (s * v * by_pos).masked_fill(parts.ignored, 0.0)
    return dlogits.masked_fill(parts.ignored, 0.0).to(elements.logits.dtype), dscale.to(scale.dtype), dtarget, dpos


def target_gradient(elements: Elements, scale: Tensor) -> Tensor:
    """The gradient of sum(scale * loss) by the target: a share of pos_weight * softplus(-z) - softplus(z)."""
    parts = parts_of(elements)
    up = weighted(_softplus(-parts.z), elements.pos_weight)
    gradient = weighted(up - _softplus(parts.z), scale * smoothing_of(elements.objective)[0])
    return gradient.masked_fill(parts.ignored, 0.0).to(elements.target.dtype)


def pos_weight_gradient(elements: Elements, scale: Tensor) -> Tensor:
    """The gradient of sum(scale * loss) by the weight of a target of 1, of each element: y' * softplus(-z)."""
    parts, gamma = parts_of(elements), elements.objective.focal_gamma
    surprise = _softplus(-parts.z)
    if gamma:
        focal: Tensor = focal_loss(surprise.double(), gamma, torch)
        surprise = focal.to(surprise.dtype)
    return weighted(surprise, parts.y, scale).masked_fill(parts.ignored, 0.0)


# -------------------------------------------------------------------------------------------------- parts of the loss


class Parts(NamedTuple):
    """Of each element: z, y' (0 or 1 with a focal factor), the weights of both outcomes, and what is ignored."""

    x: Tensor
    z: Tensor
    y: Tensor
    positive: Tensor
    negative: Tensor
    ignored: Tensor

    @property
    def is_one(self) -> Tensor:
        """Which labels are 1."""
        is_one: Tensor = self.y == 1
        return is_one


def parts_of(elements: Elements) -> Parts:
    """The parts of the loss; logits of ignored elements are 0."""
    objective, target = elements.objective, elements.target
    left_out = ignored(target, objective)
    x = elements.logits.to(compute_dtype(elements.logits.dtype)).masked_fill(left_out, 0.0)
    inside = (target >= 0) & (target <= 1)
    if objective.focal_gamma:
        inside = (target == 0) | (target == 1)
    # Added, and not masked_fill, so that the derivative stays.
    y = target.to(x.dtype) + torch.where(inside | left_out, 0.0, torch.nan).to(x.dtype)
    y = y.masked_fill(left_out, 0.0)
    on, off = smoothing_of(objective)
    if objective.label_smoothing:
        y = on * y + off
    positive = y if elements.pos_weight is None else y * elements.pos_weight.to(y.dtype)
    return Parts(x, softcapped(x, objective), y, positive, 1.0 - y, left_out)


EXACT = 2**8
"""Up to which every floating dtype has the whole numbers, so that a target need not be widened to be compared."""


def ignored(target: Tensor, objective: Objective) -> Tensor:
    """Which elements are ignored: those whose target is exactly `ignore_index`."""
    if not target.is_floating_point():
        return target.long() == objective.ignore_index
    if abs(objective.ignore_index) <= EXACT:
        return target.detach() == float(objective.ignore_index)
    return target.detach().to(compute_dtype(target.dtype)) == ignored_number(objective, target.dtype)


def ignored_number(objective: Objective, dtype: torch.dtype) -> float:
    """`ignore_index` as a target of a floating dtype would have it; NaN if none has."""
    return float(ignored_value(objective.ignore_index, np.float64 if dtype == torch.float64 else np.float32))


def softcapped(x: Tensor, objective: Objective) -> Tensor:
    """z = softcap * tanh(logit_scale * x / softcap); infinities stay as they are."""
    if objective.softcap is None:
        return x if objective.logit_scale == 1.0 else objective.logit_scale * x
    infinite = x.isinf()
    u = objective.logit_scale * x.masked_fill(infinite, 0.0) / objective.softcap
    return torch.where(infinite, x.detach(), objective.softcap * torch.tanh(u))


def derivative_of(parts: Parts, objective: Objective) -> Tensor | float:
    """dz/dx = logit_scale / cosh(u)**2; 0 at both infinities."""
    if objective.softcap is None:
        return objective.logit_scale
    u = parts.x * (objective.logit_scale / objective.softcap)
    e = torch.exp(-2.0 * u * torch.where(u < 0, -1.0, 1.0).to(u.dtype))
    return objective.logit_scale * 4.0 * e / (1.0 + e) ** 2


def slope_of(parts: Parts, objective: Objective) -> Tensor:
    """dloss/dz = (1 - y') * q - pos_weight * y' * (1 - q)."""
    if objective.focal_gamma:
        sign = _sign(parts)
        return (parts.positive + parts.negative) * sign * _focal_slope(sign * parts.z, objective.focal_gamma)
    return parts.negative * torch.sigmoid(parts.z) - parts.positive * torch.sigmoid(-parts.z)


def bend_of(parts: Parts, objective: Objective) -> Tensor:
    """d2loss/dz2 = (pos_weight * y' + 1 - y') * q * (1 - q)."""
    share = parts.positive + parts.negative
    if objective.focal_gamma:
        return share * _focal_bend(_sign(parts) * parts.z, objective.focal_gamma)
    return share * torch.sigmoid(parts.z) * torch.sigmoid(-parts.z)


def _sign(parts: Parts) -> Tensor:
    return torch.where(parts.is_one, 1.0, -1.0).to(parts.z.dtype)


def _softplus(z: Tensor) -> Tensor:
    """log(1 + exp(z)); torch's own function of that name is rounded to z from 20 on."""
    return -F.logsigmoid(-z)


def _focal_terms(z: Tensor, gamma: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """f = (1 - p)**gamma, p, 1 - p and p * s with p = sigmoid(z) and s = -log(p), in float64."""
    wide = z.double()
    p, other = torch.sigmoid(wide), torch.sigmoid(-wide)
    infinite = wide == -torch.inf
    ps = torch.where(infinite, 0.0, p * _softplus(-wide.masked_fill(infinite, 0.0)))
    return torch.exp(gamma * F.logsigmoid(-wide)), p, other, ps


def _focal_slope(z: Tensor, gamma: float) -> Tensor:
    """The derivative of (1 - p)**gamma * s by z: -f * (gamma * p * s + 1 - p)."""
    f, _, other, ps = _focal_terms(z, gamma)
    return (-f * (gamma * ps + other)).to(z.dtype)


def _focal_bend(z: Tensor, gamma: float) -> Tensor:
    """Its second derivative: f * (gamma * p * s * (gamma * p - (1 - p)) + (2 * gamma + 1) * p * (1 - p))."""
    f, p, other, ps = _focal_terms(z, gamma)
    return (f * (gamma * ps * (gamma * p - other) + (2 * gamma + 1) * p * other)).to(z.dtype)
