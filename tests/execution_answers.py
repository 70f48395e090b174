"""What the calls of execution_cases.py have to answer: by the definition in float64, and within which bounds.

The answers come from torch operations that are written down here (a log-sum-exp, and torch's own derivatives of it),
never from the package.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from comparison import assert_within
from execution_cases import BINARY, CONTRASTIVE, DIVERGENCES, INF, STATISTICS, TEACHER, Problem
from torch import Tensor


class Answer(NamedTuple):
    """What a mode found. `upstream` and `direction` of the problem make vectors of its derivatives:

    the gradients of sum(upstream * value), the tangent of value in the direction of the variables, and `second`, the
    gradients of sum(direction * gradients). A mode answers what it is for, and leaves the rest out.
    """

    value: Tensor | None = None
    gradients: tuple[Tensor, ...] | None = None
    tangent: Tensor | None = None
    second: tuple[Tensor, ...] | None = None
    has_numbers: bool = True  # False: shapes and dtypes only


def defined(tensors: Mapping[str, Tensor], options: Mapping[str, Any], call: str) -> Tensor:
    """The definition (docs/definitions.md) in the dtype of the tensors, of logits or of a layer."""
    given: dict[str, Any] = {**options, **tensors}
    if call in DIVERGENCES:
        return defined_divergence(given, call)
    if call == CONTRASTIVE:
        return defined_contrastive(given)
    x = given["input"]
    if call.startswith("linear"):
        x = x @ given["linear_weight"].T + given["linear_bias"]
    elif x.ndim > 2 and call != BINARY:
        x = x.movedim(1, -1)
    scale = given["log_scale"].exp() if "log_scale" in given else given.get("logit_scale", 1.0)
    masked = x == -INF
    z = scale * x.masked_fill(masked, 0.0)
    if "softcap" in given:
        z = given["softcap"] * torch.tanh(z / given["softcap"])
    z = z.masked_fill(masked, -INF)
    target = given["target"]
    if "probs" in given:
        target = listed(target, given["probs"], given["tail"], z.shape[-1], is_last=call.startswith("linear"))
    if call in STATISTICS:
        return defined_statistics(x, z, masked, target.long(), given.get("ignore_index", -100))
    if call.endswith(BINARY):
        return defined_binary(z, masked, target, given)
    if target.is_floating_point() and target.ndim > 2 and not call.startswith("linear"):
        target = target.movedim(1, -1)
    return defined_loss(z, masked, target, given)


def defined_contrastive(given: Mapping[str, Any]) -> Tensor:
    scale = given["log_scale"].exp() if "log_scale" in given else given.get("logit_scale", 1.0)
    z = scale * given["a"] @ given["b"].T
    rows, columns = (similarities.logsumexp(1) - z.diagonal() for similarities in (z, z.T))
    losses = (rows + columns) / 2 if given.get("symmetric", True) else rows
    reduction = given.get("reduction", "mean")
    return losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.mean()


def listed(ids: Tensor, p: Tensor, tail: str, classes: int, *, is_last: bool) -> Tensor:
    """Class probabilities of a target that lists some, with the classes where the logits have them."""
    axis = -1 if is_last or ids.ndim == 1 else 1
    ids, p = ids.movedim(axis, -1), p.movedim(axis, -1).double()
    total = p.sum(-1, keepdim=True)
    rest = (1 - total) / (classes - ids.shape[-1]) if tail == "uniform" else torch.zeros_like(total)
    whole = rest.expand(*ids.shape[:-1], classes).scatter(-1, ids, p / total if tail == "renormalise" else p)
    return whole.movedim(-1, axis)


def defined_statistics(x: Tensor, z: Tensor, masked: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    lse, q = z.logsumexp(-1), z.softmax(-1)
    known = labels != ignore_index
    there = labels.where(known, 0).unsqueeze(-1)
    log_prob = torch.where(known, z.gather(-1, there).squeeze(-1) - lse, 0.0)
    entropy = lse - (q * z.masked_fill(masked, 0.0)).sum(-1)
    rank = torch.where(known, (x > x.gather(-1, there)).sum(-1), -1)
    return torch.stack([log_prob, entropy, lse, x.argmax(-1).double(), rank.double()])


def defined_binary(z: Tensor, masked: Tensor, target: Tensor, given: Mapping[str, Any]) -> Tensor:
    """Of logits that are minus infinity the target is 0 or ignored here, and the loss 0."""
    known, zero = target.to(z.dtype) != given.get("ignore_index", -100), z.new_zeros(())
    y = target.to(z.dtype).where(known, 0.0)
    z = z.masked_fill(masked | ~known, 0.0)
    up, down = torch.logaddexp(zero, -z), torch.logaddexp(zero, z)
    if gamma := given.get("focal_gamma", 0.0):
        up, down = torch.sigmoid(-z) ** gamma * up, torch.sigmoid(z) ** gamma * down
    smoothing, pos_weight = given.get("label_smoothing", 0.0), given.get("pos_weight", 1.0)
    y = (1 - smoothing) * y + smoothing / 2
    losses = given.get("weight", 1.0) * (pos_weight * y * up + (1 - y) * down)
    losses = losses.masked_fill(masked | ~known, 0.0)
    count: Any = known.sum()
    if "sample_weight" in given:
        losses = losses * given["sample_weight"].unsqueeze(-1)
        count = (known * given["sample_weight"].unsqueeze(-1)).sum()
    match given.get("reduction", "mean"):
        case "none":
            return losses
        case "sum":
            return losses.sum()
    denominator = given.get("denominator")
    return losses.sum() / (count if denominator is None else denominator)


def defined_loss(z: Tensor, masked: Tensor, target: Tensor, given: Mapping[str, Any]) -> Tensor:
    classes, weight = z.shape[-1], given.get("weight")
    weight = z.new_ones(classes) if weight is None else weight
    if target.is_floating_point():
        p, known = target, torch.ones(target.shape[:-1], dtype=torch.bool)
        count: Any = known.sum()
    else:
        known = target.long() != given.get("ignore_index", -100)
        labels = target.long().where(known, 0)
        p = torch.nn.functional.one_hot(labels, classes).to(z)
        count = (weight[labels] * known).sum()
    smoothing = given.get("label_smoothing", 0.0)
    t = weight * ((1 - smoothing) * p + smoothing / classes)
    lse = z.logsumexp(-1)
    impossible = masked & (t == 0)  # 0 * infinity
    terms = (t * (lse.unsqueeze(-1) - z.masked_fill(impossible, 0.0))).masked_fill(impossible, 0.0)
    losses = torch.where(known, terms.sum(-1) + given.get("z_loss", 0.0) * lse**2, 0.0)
    if "focal_gamma" in given:
        of_label = (z.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - lse).exp()
        losses = (1 - of_label) ** given["focal_gamma"] * losses
    if "sample_weight" in given:
        losses = losses * given["sample_weight"]
        label_weight = 1.0 if target.is_floating_point() else weight[labels] * known
        count = (given["sample_weight"] * label_weight).sum()
    match given.get("reduction", "mean"):
        case "none":
            return losses
        case "sum":
            return losses.sum()
    denominator = given.get("denominator")
    return losses.sum() / (count if denominator is None else denominator)


def defined_divergence(given: Mapping[str, Any], call: str) -> Tensor:
    """By the textbook, of log-softmaxes; a masked class has no part, as here both mask it."""
    log_p, lse = log_softmax_of(given, "input", ("linear_weight", "linear_bias"), call)
    log_q, _ = log_softmax_of(given, "target_input" if "target_input" in given else "target", TEACHER[1:], call)
    if call.endswith("kl_divergence"):
        pair = (log_p, log_q) if given.get("direction") == "reverse" else (log_q, log_p)
        losses = kl(*pair)
    else:
        beta = given.get("beta", 0.5)
        mixture = torch.log(beta * log_q.exp() + (1 - beta) * log_p.exp())
        losses = beta * kl(log_q, mixture) + (1 - beta) * kl(log_p, mixture)
    if given.get("temperature_squared"):
        losses = given["temperature"] ** 2 * losses
    losses = losses + given.get("z_loss", 0.0) * lse**2
    weights = torch.ones_like(losses)
    if "labels" in given:
        counted = given["labels"].long() != given.get("ignore_index", -100)
        losses, weights = torch.where(counted, losses, 0.0), torch.where(counted, weights, 0.0)
    weights = weights * given.get("sample_weight", 1.0)
    losses = losses * given.get("sample_weight", 1.0)
    match given.get("reduction", "mean"):
        case "none":
            return losses
        case "sum":
            return losses.sum()
    return losses.sum() / given.get("denominator", weights.sum())


def log_softmax_of(given: Mapping[str, Any], name: str, of_layer: Sequence[str], call: str) -> tuple[Tensor, Tensor]:
    """Log-probabilities, with classes last, and the log-sum-exp; masked classes are left out of both."""
    x = given[name]
    if call.startswith("linear"):
        x = x @ given[of_layer[0]].T + given[of_layer[1]]
    elif x.ndim > 2:
        x = x.movedim(1, -1)
    z = x[..., ~(x == -INF).flatten(0, -2).any(0) if x.ndim > 1 else x != -INF]
    scale = given["log_scale"].exp() if "log_scale" in given else given.get("logit_scale", 1.0)
    z = scale * z / given.get("temperature", 1.0)
    if "softcap" in given:
        z = given["softcap"] * torch.tanh(z / given["softcap"])
    return z.log_softmax(-1), z.logsumexp(-1)


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(-1)


@functools.cache
def expected(of: Problem) -> Answer:
    """The definition's answer in float64. A mean over nothing is NaN, and its derivatives are 0."""
    given = {name: tensor.cpu() for name, tensor in of.tensors.items()}
    wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in given.items()}

    def function(*variables: Tensor) -> Tensor:
        options = {**of.case.options, "tail": of.case.tail}
        found = defined({**wide, **dict(zip(of.variables, variables, strict=True))}, options, of.call)
        return found[:3] if of.is_statistics and of.case.nan_row is not None else found

    variables = tuple(wide[name].clone().requires_grad_() for name in of.variables)
    value = function(*variables)
    zeros = tuple(torch.zeros_like(variable) for variable in variables)
    if value.ndim == 0 and value.isnan():
        return Answer(value.detach(), zeros, torch.zeros_like(value), zeros)
    gradients = torch.autograd.grad(value, variables, of.upstream.cpu().double(), create_graph=True)
    directions = tuple(direction.cpu().double() for direction in of.direction)
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    second = torch.autograd.grad(slope, variables, allow_unused=True, materialize_grads=True)
    _, tangent = torch.autograd.functional.jvp(function, variables, directions)
    return Answer(value.detach(), tuple(g.detach() for g in gradients), tangent.detach(), second)


# ------------------------------------------------------------------------------ the bounds


def check(of: Problem, answer: Answer, arithmetic: torch.dtype | None = None) -> None:
    """What a mode found is the definition's answer, up to the rounding of what it computes in; no loss is negative."""
    wanted = expected(of)
    if arithmetic is None:
        # A layer may round its 16-bit logits to 16 bits.
        arithmetic = of.case.dtype if of.multiplies else of.value_dtype
    unit = ROUNDINGS[arithmetic] * torch.finfo(arithmetic).eps
    # Where a probability is nearly 1, what is left of it is the difference of numbers of that size.
    least = 1.0 if of.case.margin else 0.0
    assert any(part is not None for part in answer[:4]), "an answer without an answer"
    for name in ("value", "tangent"):
        found = getattr(answer, name)
        if found is not None:
            assert found.dtype == of.value_dtype, f"{name} of dtype {found.dtype}, expected {of.value_dtype}"
            _check(name, found, getattr(wanted, name), unit, answer.has_numbers, of.is_statistics, least)
    if answer.value is not None and answer.has_numbers and not of.is_statistics:
        assert not (answer.value < 0).any(), f"a loss of {answer.value.min()}"
    for name in ("gradients", "second"):
        found, right = getattr(answer, name), getattr(wanted, name)
        # Second derivatives are sums over the directions of all variables.
        floor = max(least, *(size_of(tensor).item() for tensor in right)) if name == "second" else least
        for variable, one, other in zip(of.variables, found or (), right, strict=found is not None):
            what, dtype = f"{name} of {variable}", of.tensors[variable].dtype
            assert one is not None, f"{what}: None"
            assert one.dtype == dtype, f"{what} of dtype {one.dtype}, expected {dtype}"
            _check(what, one, other, unit + torch.finfo(dtype).eps, answer.has_numbers, least=floor)


ROUNDINGS = {torch.float64: 32, torch.float32: 16, torch.bfloat16: 4, torch.float16: 4}
"""How many roundings of its largest number a result may be off: of a few terms that are added up and cancel, in an
ordinary computation; 16-bit results are products of which each is rounded once."""


def size_of(wanted: Tensor, each_first: bool = False) -> Tensor:
    """The largest of the finite numbers; of statistics, of each of them."""
    sizes = wanted.nan_to_num(0.0, 0.0, 0.0).abs()
    if not sizes.numel():
        return sizes.new_zeros(())
    if each_first and wanted.ndim > 1:
        return sizes.flatten(1).amax(1).reshape(-1, *[1] * (wanted.ndim - 1))
    return sizes if each_first else sizes.max()


def _check(
    what: str,
    found: Tensor,
    wanted: Tensor,
    unit: float,
    has_numbers: bool,
    each_first: bool = False,
    least: float = 0.0,
) -> None:
    assert tuple(found.shape) == tuple(wanted.shape), f"{what}: shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
    if has_numbers:
        bound = unit * size_of(wanted, each_first).clamp(min=least).expand(wanted.shape)
        assert_within(found.detach().cpu().double(), wanted, bound.numpy(), what)
