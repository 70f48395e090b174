"""The losses as formulas of torch operations: for devices without kernels, and wherever torch has to see through them.

The same equations as xent/reference/cross_entropy.py, in the dtype that the kernels compute in (float32 for 16-bit
logits). Differentiable any number of times: second derivatives of every backend are those of these formulas. Rows are
(N, C) or (N, C, S), with the classes on axis 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xent.backends.protocol import Statistics
from xent.objective import Objective
from xent.reduction import weighted_count
from xent.sparse import dense, is_sparse, packed_gradient


@dataclass(frozen=True)
class FormulaBackend:
    """The formulas of this file (`xent.backends.Backend`). Nothing is written in place, and `out` is copied to."""

    reads_values = False
    one_visit = False
    has_second_derivatives = True

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of losses and arithmetic."""
        return compute_dtype(dtype)

    def forward(self, logits: Tensor, target: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
        """Return the losses, sum(t * (lse - z)) + z_loss * lse**2, and the log-sum-exps."""
        z, shift = centred(softcapped_logits(_without_ignored(logits, target, objective), objective))
        t = target_weights(target, z, objective)
        lse = torch.logsumexp(z, dim=1, keepdim=True)
        # 0 log 0 = 0: a class that counts for nothing may be impossible.
        loss = (t * torch.where((t == 0) & (z == -torch.inf), 0.0, lse - z)).sum(dim=1)
        whole = (lse + shift).squeeze(1)
        if objective.z_loss:
            loss = loss + objective.z_loss * whole**2
        ignored = ignored_rows(target, objective)
        return (loss if ignored is None else loss.masked_fill(ignored, 0.0)), whole.detach().double()

    def backward(
        self,
        logits: Tensor,
        target: Tensor,
        saved: Tensor | None,
        row_scale: Tensor | float,
        objective: Objective,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return row_scale * ((sum(t) + 2 * z_loss * lse) * q - t) * dz/dx; differentiable itself."""
        usable = _without_ignored(logits, target, objective)
        z, shift = centred(softcapped_logits(usable, objective))
        t = target_weights(target, z, objective)
        lse = torch.logsumexp(z, dim=1, keepdim=True)
        pull = t.sum(dim=1, keepdim=True)
        if objective.z_loss:
            # An overflow would be NaN at the classes of probability 0.
            largest = torch.finfo(z.dtype).max
            pull = pull + (2 * objective.z_loss * (lse + shift)).clamp(-largest, largest)
        gradient = (pull * torch.exp(z - lse) - t) * softcapped_logits_derivative(usable, objective)
        gradient = gradient * (
            row_scale.unsqueeze(1) if isinstance(row_scale, Tensor) and row_scale.ndim else row_scale
        )
        ignored = ignored_rows(target, objective)
        if ignored is not None:
            gradient = gradient.masked_fill(ignored.unsqueeze(1), 0.0)
        gradient = gradient.to(logits.dtype)
        return gradient if out is None else out.copy_(gradient)

    def forward_backward(
        self,
        logits: Tensor,
        target: Tensor,
        row_scale: Tensor | float,
        objective: Objective,
        *,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses, log-sum-exps and gradient."""
        losses, saved = self.forward(logits, target, objective)
        return losses, saved, self.backward(logits, target, saved, row_scale, objective, out=out)

    def statistics(self, logits: Tensor, labels: Tensor, objective: Objective) -> Statistics:
        """Return log_prob, entropy, lse, argmax and rank of each row; see `xent.torch.statistics`."""
        z, shift = centred(softcapped_logits(logits, objective))
        lse = torch.logsumexp(z, dim=1, keepdim=True)
        log_q = z - lse
        entropy = -(log_q.exp() * log_q.masked_fill(z == -torch.inf, 0.0)).sum(dim=1)
        lse = (lse + shift).squeeze(1)
        known, place = labelled(labels, z, objective)
        # A label out of range is NaN, an ignored one 0.
        unknown = torch.where(labels == objective.ignore_index, 0.0, torch.nan).to(z.dtype)
        log_prob = torch.where(known, log_q.gather(1, place).squeeze(1), unknown)
        rank = torch.where(known, (logits > logits.gather(1, place)).sum(dim=1), -1)
        return Statistics(log_prob, entropy, lse, logits.argmax(dim=1), rank)

    def statistics_gradient(
        self,
        logits: Tensor,
        labels: Tensor,
        statistics: Statistics | None,
        upstream: tuple[Tensor, Tensor, Tensor],
        objective: Objective,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return (d_log_prob * (one_hot - q) - d_entropy * q * (log q + entropy) + d_lse * q) * dz/dx.

        With `statistics`, from their log-sum-exps and entropies, which may be those of all shards; without, from those
        of the logits, and differentiable itself.
        """
        z = softcapped_logits(logits, objective)
        if statistics is None:
            z, _ = centred(z)
        lse = torch.logsumexp(z, dim=1) if statistics is None else statistics.lse
        log_q = z - lse.unsqueeze(1)
        q, log_q = log_q.exp(), log_q.masked_fill(z == -torch.inf, 0.0)
        entropy = -(q * log_q).sum(dim=1) if statistics is None else statistics.entropy
        d_log_prob, d_entropy, d_lse = upstream
        known, place = labelled(labels, z, objective)
        of_label = (d_log_prob * known).to(q.dtype)
        gradient = (d_lse - of_label).unsqueeze(1) * q - d_entropy.unsqueeze(1) * q * (log_q + entropy.unsqueeze(1))
        if z.shape[1]:
            gradient = gradient.scatter_add(1, place, of_label.unsqueeze(1).to(gradient.dtype))
        gradient = (gradient * softcapped_logits_derivative(logits, objective)).to(logits.dtype)
        return gradient if out is None else out.copy_(gradient)

    def count(
        self, labels: Tensor, weight: Tensor | None, ignore_index: int, sample_weight: Tensor | None = None
    ) -> Tensor:
        """Return the weighted count of the labels that are not `ignore_index`."""
        wide = None if weight is None else weight.double()
        found: Tensor = weighted_count(labels, wide, ignore_index, sample_weight, weights_of_valid)
        return found.double()

    def total(self, losses: Tensor) -> Tensor:
        """Return the sum of the losses in float64."""
        return losses.sum(dtype=torch.float64)


FORMULA = FormulaBackend()


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums, losses and log-sum-exps: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def target_gradient(
    logits: Tensor, target: Tensor, row_scale: Tensor, objective: Objective, lse: Tensor | None = None
) -> Tensor:
    """The gradient by class probabilities: (1 - label_smoothing) * weight * (lse - z).

    Of a shard, `lse` is that of all classes.
    """
    if is_sparse(target):
        of_listed: Tensor = packed_gradient(_target_gradient(logits, row_scale, objective, lse), target)
        return of_listed
    return _target_gradient(logits, row_scale, objective, lse).to(target.dtype)


def _target_gradient(logits: Tensor, row_scale: Tensor, objective: Objective, lse: Tensor | None) -> Tensor:
    surprise = surprises(logits, objective, lse)
    share = ((1 - objective.label_smoothing) * row_scale).unsqueeze(1)
    if objective.weight is None and objective.label_smoothing != 1.0:
        return surprise * share
    if objective.weight is not None:
        share = share * class_weights(objective, surprise)
    # A class that has no part in the loss may be impossible.
    return torch.where(share == 0, 0.0, surprise * share)


def weight_gradient(
    logits: Tensor, target: Tensor, row_scale: Tensor, objective: Objective, lse: Tensor | None = None
) -> Tensor:
    """The gradient by the class weights: the sum over rows of row_scale * t / weight * (lse - z)."""
    surprise = surprises(_without_ignored(logits, target, objective), objective, lse)
    t = target_weights(target, surprise, replace(objective, weight=None))
    return _of_classes(row_scale.unsqueeze(1) * t * torch.where(t == 0, 0.0, surprise))


def surprises(logits: Tensor, objective: Objective, lse: Tensor | None = None) -> Tensor:
    """lse - z, the loss that each class would have; with a log-sum-exp that is known, in one step."""
    if lse is None:
        z, _ = centred(softcapped_logits(logits, objective))
        return torch.logsumexp(z, dim=1, keepdim=True) - z
    z = logits if _is_plain(objective) else softcapped_logits(logits, objective)
    dtype = compute_dtype(logits.dtype)
    return lse.reshape(z.shape[:1] + z.shape[2:]).to(dtype).unsqueeze(1) - z.to(dtype)


def gradient_derivatives(
    logits: Tensor, target: Tensor, row_scale: Tensor, upstream: Tensor, objective: Objective, *, options: bool = False
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The derivatives of sum(upstream * `backward`) by logits, row_scale, and with `options` target and weight.

    With s = row_scale, V = upstream * dz/dx, r = sum(q * V) and pull = sum(t) + 2 * z_loss * lse:

        d logits     s * (pull * q * (V - r) + 2 * z_loss * r * q) * dz/dx  +  upstream * s * (pull * q - t) * d2z/dx2
        d row_scale  pull * r - sum(t * V)
        d t          s * (r - V)

    The class probabilities and the class weights are factors of t.
    """
    # Ignored rows are taken out at the end; a NaN in them matters only to whoever differentiates this.
    usable = _without_ignored(logits, target, objective) if torch.is_grad_enabled() else logits
    if _is_plain(objective) and not objective.z_loss:
        q = torch.softmax(usable.to(compute_dtype(usable.dtype)), dim=1)
        pull_of_lse: Tensor | float = 0.0
    else:
        z, shift = centred(softcapped_logits(usable, objective))
        lse = torch.logsumexp(z, dim=1, keepdim=True)
        q, pull_of_lse = torch.exp(z - lse), 2 * objective.z_loss * (lse + shift) if objective.z_loss else 0.0
    s, above = row_scale.to(q.dtype).unsqueeze(1), upstream.to(q.dtype)
    slope = softcapped_logits_derivative(usable, objective)
    v = above if _is_plain(objective) else above * slope
    mass, of_target, t = _target_products(target, q, v, objective, options or objective.softcap is not None)
    pull = mass + pull_of_lse
    qv = q * v
    r = qv.sum(dim=1, keepdim=True)
    dlogits = s * pull * torch.addcmul(qv, q, r, value=-1)
    if objective.z_loss:
        dlogits = dlogits + s * (2 * objective.z_loss) * r * q
    if not _is_plain(objective):
        dlogits = dlogits * slope
    if objective.softcap is not None and t is not None:
        # d2z/dx2 = -2 * scale * tanh(u) / cap * dz/dx
        bend = softcapped_logits(usable, objective).masked_fill(usable == -torch.inf, 0.0) * slope
        factor = -2.0 * objective.logit_scale / objective.softcap**2
        dlogits = dlogits + above * s * (pull * q - t) * bend * factor
    drow_scale = (pull * r - of_target).squeeze(1)
    dt = s * (r - v) if options else None
    ignored = ignored_rows(target, objective)
    if ignored is not None:
        dlogits, drow_scale = dlogits.masked_fill(ignored.unsqueeze(1), 0.0), drow_scale.masked_fill(ignored, 0.0)
        dt = None if dt is None else dt.masked_fill(ignored.unsqueeze(1), 0.0)
    dtarget = dweight = None
    if dt is not None and target.is_floating_point():
        share = 1 - objective.label_smoothing
        dtarget = dt * share if objective.weight is None else dt * share * class_weights(objective, dt)
        dtarget = packed_gradient(dtarget, target) if is_sparse(target) else dtarget
    if dt is not None and objective.weight is not None:
        dweight = _of_classes(dt * target_weights(target, dt, replace(objective, weight=None)))
    return dlogits.to(logits.dtype), drow_scale.to(row_scale.dtype), dtarget, dweight


def _target_products(
    target: Tensor, q: Tensor, v: Tensor, objective: Objective, whole: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """sum(t), sum(t * v), and t where it is needed `whole`; of a label without smoothing from its own entry."""
    if whole or target.is_floating_point() or (objective.label_smoothing and q.shape[1] > 1):
        t = target_weights(target, q, objective)
        return t.sum(dim=1, keepdim=True), torch.where(t == 0, 0.0, t * v).sum(dim=1, keepdim=True), t
    known, place = labelled(target, q, objective)
    unknown = torch.where(target == objective.ignore_index, 0.0, torch.nan).to(q.dtype)
    share = (
        torch.ones_like(unknown)
        if objective.weight is None
        else _of_labels(objective.weight.to(q.dtype), place.squeeze(1))
    )
    mass = torch.where(known, share, unknown).unsqueeze(1)
    return mass, mass * v.gather(1, place), None


def _of_classes(numbers: Tensor) -> Tensor:
    """The sum over the rows for each class."""
    return numbers.sum(dim=(0, *range(2, numbers.ndim)))


def _is_plain(objective: Objective) -> bool:
    """Whether z = x."""
    return objective.softcap is None and objective.logit_scale == 1.0


# ------------------------------------------------------------------------------------------------- parts of the loss


def softcapped_logits(logits: Tensor, objective: Objective) -> Tensor:
    """z = softcap * tanh(logit_scale * x / softcap). Minus infinity stays, plus infinity becomes NaN."""
    x = logits.to(compute_dtype(logits.dtype))
    # A factor, and not masked_fill, which would make the derivative 0.
    x = x * torch.where(x == torch.inf, torch.nan, 1.0).to(x.dtype)
    if objective.softcap is None:
        return x if objective.logit_scale == 1.0 else objective.logit_scale * x
    masked = x == -torch.inf
    # tanh has derivative 0 at infinity, but 0 times the infinity that follows would be NaN: only of finite numbers.
    u = objective.logit_scale * x.masked_fill(masked, 0.0) / objective.softcap
    e, sign = _decay(u)
    # The derivative 1 - tanh(u)**2 must not cancel where it is small: there by exponentials.
    tanh = torch.where(u.abs() < 1, torch.tanh(u), sign * (1.0 - e) / (1.0 + e))
    return (objective.softcap * tanh).masked_fill(masked, -torch.inf)


def softcapped_logits_derivative(logits: Tensor, objective: Objective) -> Tensor | float:
    """dz/dx = logit_scale / cosh(u)**2 with u = logit_scale * x / softcap; 0 for a masked class.

    1 - tanh(u)**2, which is the same, cancels for large u.
    """
    if objective.softcap is None:
        return objective.logit_scale
    e, _ = _decay(logits.to(compute_dtype(logits.dtype)) * (objective.logit_scale / objective.softcap))
    return objective.logit_scale * 4.0 * e / (1.0 + e) ** 2


def _decay(u: Tensor) -> tuple[Tensor, Tensor]:
    """exp(-2 |u|), and the sign of u."""
    sign = torch.where(u < 0, -1.0, 1.0).to(u.dtype)
    return torch.exp(-2.0 * u * sign), sign


def centred(z: Tensor) -> tuple[Tensor, Tensor]:
    """z less its maximum, and the maximum, a constant: an offset of all logits costs no digits of what follows."""
    shift = z.detach().amax(dim=1, keepdim=True)
    shift = torch.where(shift.isfinite(), shift, 0.0)
    return z - shift, shift


def class_weights(objective: Objective, z: Tensor) -> Tensor:
    """The class weights, to be multiplied with numbers shaped like z."""
    weight: Tensor = objective.weight.to(z.dtype).reshape(1, -1, *[1] * (z.ndim - 2))
    return weight


def _of_labels(weight: Tensor, labels: Tensor) -> Tensor:
    """weight[labels], whose derivative `torch.func` can batch."""
    return weight.gather(0, labels.reshape(-1)).reshape(labels.shape)


def weights_of_valid(weight: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """The weights of the valid labels, 0 for others: also where the derivative above is infinite."""
    return torch.where(valid, _of_labels(weight, labels), 0.0)


def ignored_rows(target: Tensor, objective: Objective) -> Tensor | None:
    """Which rows count for nothing: those labelled `ignore_index`. None for class probabilities."""
    return None if target.is_floating_point() else target == objective.ignore_index


def target_weights(target: Tensor, z: Tensor, objective: Objective, first: int = 0, total: int | None = None) -> Tensor:
    """t = weight * ((1 - label_smoothing) * p + label_smoothing / classes), like z; 0 for ignored rows.

    z holds the classes from `first` on, of `total`. A label outside of them all, which has no p, gives NaN: on a device
    the range is not looked at.
    """
    total = z.shape[1] if total is None else total
    if is_sparse(target):
        t: Tensor = dense(target, z.shape[1], z.dtype)
    elif target.is_floating_point():
        t = target.to(z.dtype)
    else:
        classes = torch.arange(first, first + z.shape[1], device=z.device).reshape(1, -1, *[1] * (z.ndim - 2))
        t = (target.unsqueeze(1) == classes).to(z.dtype)
    if objective.label_smoothing and total > 1:  # with one class smoothing changes nothing
        t = (1 - objective.label_smoothing) * t + objective.label_smoothing / total
    if objective.weight is not None:
        t = t * class_weights(objective, z)
    ignored = ignored_rows(target, objective)
    if ignored is None:
        return t
    outside = (target < 0) | (target >= total)
    return t.masked_fill(outside.unsqueeze(1), torch.nan).masked_fill(ignored.unsqueeze(1), 0.0)


def labelled(labels: Tensor, z: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """Which rows have a label among the classes of z, and an index that may be used for all of them."""
    known = (labels >= 0) & (labels < z.shape[1]) & (labels != objective.ignore_index)
    return known, labels.clamp(0, max(z.shape[1] - 1, 0)).unsqueeze(1)


def _without_ignored(logits: Tensor, target: Tensor, objective: Objective) -> Tensor:
    """The logits with ignored rows set to 0, so that a NaN there reaches neither loss nor gradient."""
    ignored = ignored_rows(target, objective)
    return logits if ignored is None else logits.masked_fill(ignored.unsqueeze(1), 0.0)
