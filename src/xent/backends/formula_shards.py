"""What a shard tells and its gradients as formulas of torch operations: for devices without a kernel of shards.

The same as xent/backends/cpu/shards.py, which has the equations, on tensors (rows, classes); labels are relative to the first
class of the shard.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xent.backends.cpu.shards import Local, LocalStatistics, Shard
from xent.backends.formula import bent_logits, compute_dtype
from xent.objective import Objective


def forward(logits: Tensor, target: Tensor, weight: Tensor | None, objective: Objective, shard: Shard) -> Local:
    """Log-sum-exp, loss and mass of the shard; 0 for ignored rows."""
    z = bent_logits(logits, objective)
    t = _target_weights(target, z, weight, objective, shard)
    lse = _log_sum_exp(z)
    # Where all is masked any finite reference will do: t * inf, or 0 without t.
    reference = lse.masked_fill(lse == -torch.inf, 0.0)
    terms = torch.where((t == 0) & (z == -torch.inf), 0.0, t * (reference.unsqueeze(1) - z))
    found = Local(lse, terms.sum(dim=1), t.sum(dim=1, dtype=torch.float64))
    ignored = _ignored(target, objective)
    return found if ignored is None else Local(*(tensor.masked_fill(ignored, 0.0) for tensor in found))


def backward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    found: Local,
    row_scale: Tensor,
    objective: Objective,
    shard: Shard,
) -> Tensor:
    """The gradient of sum(row_scale * loss), from what all shards found."""
    z = bent_logits(logits, objective)
    t = _target_weights(target, z, weight, objective, shard)
    pull = found.mass + 2 * objective.z_loss * found.lse if objective.z_loss else found.mass
    q = torch.exp(z - found.lse.unsqueeze(1)).to(z.dtype)
    gradient: Tensor = (pull * row_scale).to(z.dtype).unsqueeze(1) * q - row_scale.to(z.dtype).unsqueeze(1) * t
    gradient = gradient * _slope(logits, objective)
    ignored = _ignored(target, objective)
    if ignored is not None:
        gradient = gradient.masked_fill(ignored.unsqueeze(1), 0.0)
    return gradient.to(logits.dtype)


def target_gradient(
    logits: Tensor, weight: Tensor | None, lse: Tensor, row_scale: Tensor, objective: Objective, dtype: torch.dtype
) -> Tensor:
    """The gradient by class probabilities: (1 - label_smoothing) * weight * (lse - z)."""
    z = bent_logits(logits, objective)
    gradient = (1 - objective.label_smoothing) * (lse.unsqueeze(1) - z)
    if weight is not None:
        gradient = gradient * weight.to(z.dtype)
    return (gradient * row_scale.unsqueeze(1)).to(dtype)


def statistics(logits: Tensor, labels: Tensor, objective: Objective) -> LocalStatistics:
    """What the shard knows of each row; -inf for a label that lies elsewhere."""
    z = bent_logits(logits, objective).double()
    lse = _log_sum_exp(z)
    log_q = (z - lse.unsqueeze(1)).masked_fill(z == -torch.inf, 0.0)
    q = torch.exp(z - lse.unsqueeze(1)).masked_fill(z == -torch.inf, 0.0)
    nowhere = torch.full_like(lse, -torch.inf)
    if not z.shape[1]:
        return LocalStatistics(lse, torch.zeros_like(lse), nowhere, torch.zeros_like(labels), nowhere, nowhere)
    here = (labels >= 0) & (labels < z.shape[1])
    place = labels.clamp(0, z.shape[1] - 1).unsqueeze(1)
    label_x, label_z = (torch.where(here, x.gather(1, place).squeeze(1), nowhere) for x in (logits.double(), z))
    best, best_at = logits.double().max(dim=1).values, logits.argmax(dim=1)
    return LocalStatistics(lse, -(q * log_q).sum(dim=1), best, best_at, label_x, label_z)


def statistics_gradient(
    logits: Tensor,
    labels: Tensor,
    lse: Tensor,
    entropy: Tensor,
    upstream: tuple[Tensor, Tensor, Tensor],
    objective: Objective,
) -> Tensor:
    """d_log_prob * (one_hot - q) - d_entropy * q * (log q + entropy) + d_lse * q, times dz/dx."""
    d_log_prob, d_entropy, d_lse = (tensor.double() for tensor in upstream)
    z = bent_logits(logits, objective)
    log_q = z - lse.unsqueeze(1)
    q, log_q = log_q.exp(), log_q.masked_fill(z == -torch.inf, 0.0)
    gradient = (d_lse - d_log_prob).unsqueeze(1) * q - d_entropy.unsqueeze(1) * q * (log_q + entropy.unsqueeze(1))
    if z.shape[1]:
        here = (labels >= 0) & (labels < z.shape[1])
        place = labels.clamp(0, z.shape[1] - 1).unsqueeze(1)
        gradient = gradient.scatter_add(1, place, (d_log_prob * here).unsqueeze(1))
    return (gradient * _slope(logits, objective)).to(logits.dtype)


def _log_sum_exp(z: Tensor) -> Tensor:
    """In float64, so that an offset which all logits have in common costs no digits; -inf where all is masked."""
    if not z.shape[1]:
        return z.new_full((len(z),), -torch.inf, dtype=torch.float64)
    highest = z.amax(dim=1, keepdim=True)
    reference = highest.masked_fill(highest == -torch.inf, 0.0)
    return reference[:, 0].double() + torch.exp(z - reference).sum(dim=1, dtype=torch.float64).log()


def _slope(logits: Tensor, objective: Objective) -> Tensor | float:
    """dz/dx = logit_scale / cosh(u)**2, u = logit_scale * x / softcap: where it is small, 1 - tanh(u)**2 cancels."""
    if objective.softcap is None:
        return objective.logit_scale
    u = logits.to(compute_dtype(logits.dtype)) * (objective.logit_scale / objective.softcap)
    return objective.logit_scale / torch.cosh(u) ** 2


def _target_weights(target: Tensor, z: Tensor, weight: Tensor | None, objective: Objective, shard: Shard) -> Tensor:
    """t = weight * ((1 - label_smoothing) * p + label_smoothing / all classes)."""
    if target.is_floating_point():
        t = target.to(z.dtype)
    else:
        classes = torch.arange(shard.first, shard.first + shard.classes, device=z.device)
        t = (target.unsqueeze(1) == classes).to(z.dtype)
    # With one class smoothing changes nothing.
    if objective.label_smoothing and shard.total > 1:
        t = (1 - objective.label_smoothing) * t + objective.label_smoothing / shard.total
    t = t if weight is None else t * weight.to(z.dtype)
    ignored = _ignored(target, objective)
    return t if ignored is None else t.masked_fill(ignored.unsqueeze(1), 0.0)


def _ignored(target: Tensor, objective: Objective) -> Tensor | None:
    return None if target.is_floating_point() else target == objective.ignore_index
