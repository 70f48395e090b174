"""The losses written out in longdouble from their definitions, apart from the package, and what rounding may add.

docs/definitions.md has the equations. Every result is a pair: the number, and the bound of the error that a computation
in the dtype's arithmetic is entitled to. The bound follows the rounding of the logits (that of a matrix product, of a
softcap, of a scale) through log-sum-exp, probabilities and products, by the size of the terms (docs/accuracy.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
LONG = np.longdouble

# A sum, an exponential or a product is worth a few roundings; a softcap's tanh has 3.4 units in the last place, and
# its argument two more.
ROUNDINGS, CAP_ROUNDINGS, SCALE_ROUNDINGS = 4, 8, 2

LANES = {"float32": 16, "float64": 8}


def eps(dtype: str) -> float:
    """The spacing of numbers at 1."""
    return 2.0**-7 if dtype == "bfloat16" else float(np.finfo(dtype).eps)


def least(dtype: str) -> float:
    """The smallest subnormal number."""
    return 2.0**-133 if dtype == "bfloat16" else float(np.finfo(dtype).smallest_subnormal)


class Bounded(NamedTuple):
    """A number, or an array of them, and how far a computation may be from it."""

    value: Array
    error: Array


@dataclass(frozen=True)
class Problem:
    """Rows of logits with their target and options, all as exact numbers."""

    logits: Array  # (rows, classes)
    logit_error: Array  # of a matrix product, else 0
    target: Array  # (rows,) class indices, or (rows, classes)
    arithmetic: str
    weight: Array | None = None
    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    logit_scale: float = 1.0
    reduction: str = "mean"
    denominator: float | None = None
    option_eps: tuple[tuple[str, float], ...] = ()  # the spacing of the dtypes of options that are tensors
    parts: bool = False  # whether the gradients of options are added up from parts, of positions or of input and bias

    @property
    def soft(self) -> bool:
        return self.target.ndim == 2

    @property
    def valid(self) -> Array:
        return np.ones(len(self.target), bool) if self.soft else self.target != self.ignore_index

    @property
    def unit(self) -> float:
        return eps(self.arithmetic)


@dataclass(frozen=True)
class Softmax:
    """z and what follows from it alone; masked classes have z = 0 here and q = 0."""

    z: Array
    z_error: Array
    masked: Array
    slope: Array  # dz/dx
    slope_error: Array
    lse: Array
    lse_error: Array
    surprisal: Array  # lse - z; 0 for masked classes
    q: Array
    q_error: Array


@np.errstate(invalid="ignore")  # rows with NaN
def softmax(problem: Problem) -> Softmax:
    """z = c tanh(s x / c), and its softmax, relative to the greatest z so that nothing cancels."""
    masked, unit = problem.logits == -np.inf, problem.unit
    x, scale, cap = np.where(masked, LONG(0), problem.logits), LONG(problem.logit_scale), problem.softcap
    if cap is None:
        z, slope = scale * x, np.full(x.shape, scale)
        roundings, spread = (SCALE_ROUNDINGS if scale != 1 else 0), np.zeros(x.shape)
    else:
        u = scale * x / LONG(cap)
        # 1 / cosh(u)^2 without the overflow of cosh; the derivative of its logarithm is -2 tanh(u).
        decay = np.exp(-2 * np.abs(u))
        z, slope = LONG(cap) * np.tanh(u), scale * 4 * decay / (1 + decay) ** 2
        roundings = CAP_ROUNDINGS
        spread = 2 * np.abs(np.tanh(u)) * (np.abs(u) * 4 * unit + scale * problem.logit_error / LONG(cap))
    steepest = np.minimum(scale, slope * np.exp(np.minimum(spread, 100)))
    z_error = steepest * problem.logit_error + roundings * unit * np.abs(z)
    slope_error = slope * np.expm1(np.minimum(spread + roundings * unit, 100))
    # Minus infinity stays where it is: a softcap is flat there, a scale is not.
    slope = np.where(masked, scale if cap is None else LONG(0), slope)
    z_error, slope_error = (np.where(masked, LONG(0), a) for a in (z_error, slope_error))

    greatest = np.where(masked, -np.inf, z).max(axis=1, keepdims=True)
    exponentials = np.where(masked, LONG(0), np.exp(np.where(masked, LONG(0), z - greatest)))
    relative = np.log(exponentials.sum(axis=1, keepdims=True))
    q = exponentials / exponentials.sum(axis=1, keepdims=True)
    lse = greatest + relative
    size = np.abs(lse) + np.abs(z).max(axis=1, keepdims=True)
    lse_error = (q * z_error).sum(1, keepdims=True) + summation(problem) * unit + 2 * eps("float64") * size
    surprisal = np.where(masked, LONG(0), relative - (z - greatest))
    exponent = lse_error + z_error + unit * (ROUNDINGS + np.abs(surprisal))
    # Products of two exponentials become 0 somewhat above the smallest normal number.
    q_error = np.minimum(q * np.expm1(np.minimum(exponent, 100)), 1) + 16 * np.finfo(problem.arithmetic).tiny * ~masked
    return Softmax(z, z_error, masked, slope, slope_error, lse, lse_error, surprisal, q, q_error)


def summation(problem: Problem) -> float:
    """Roundings of a sum over the classes of a row: lanes of a block of 2048, by the usual square root."""
    count = min(problem.logits.shape[1], 2048) / LANES[problem.arithmetic]
    return ROUNDINGS + 2 * float(np.sqrt(count))


class Rows(NamedTuple):
    """Losses of the rows, and their derivatives by the transformed logits; ignored rows are 0."""

    softmax: Softmax
    smoothed: Array  # p'
    target: Array  # t = w p'
    loss: Bounded
    by_z: Bounded
    size: Array  # of the terms of by_z


@np.errstate(invalid="ignore")
def rows_of(problem: Problem) -> Rows:
    """loss = sum t (lse - z) + a lse^2, and its derivative (sum t + 2 a lse) q - t."""
    m, unit, a, e = softmax(problem), problem.unit, LONG(problem.z_loss), LONG(problem.label_smoothing)
    count, classes = problem.logits.shape
    valid = problem.valid[:, None]
    if problem.soft:
        p = problem.target
    else:
        p = np.zeros((count, classes), LONG)
        p[np.arange(count)[problem.valid], problem.target[problem.valid]] = 1
    smoothed = valid * ((1 - e) * p + e / classes)
    t = smoothed if problem.weight is None else problem.weight * smoothed
    mass = t.sum(axis=1, keepdims=True)

    k = summation(problem) if problem.soft or e else ROUNDINGS
    loss = (t * m.surprisal).sum(1) + valid[:, 0] * a * m.lse[:, 0] ** 2
    loss_error = (t * (m.z_error + m.lse_error + k * unit * m.surprisal)).sum(1)
    loss_error += (a * (2 * np.abs(m.lse) * m.lse_error + m.lse_error**2 + ROUNDINGS * unit * m.lse**2))[:, 0]
    loss = np.where(((t > 0) & m.masked).any(axis=1), np.inf, loss)

    pull = valid * (mass + 2 * a * m.lse)
    pull_size = mass + 2 * a * np.abs(m.lse)
    pull_error = 2 * a * m.lse_error + k * unit * pull_size
    by_z = pull * m.q - t
    size = valid * (pull_size * m.q + t)
    by_z_error = valid * (np.abs(pull) * m.q_error + pull_error * (m.q + m.q_error)) + ROUNDINGS * unit * size

    broken = (problem.valid & ~(problem.logits < np.inf).all(axis=1))[:, None]
    loss = np.where(problem.valid, np.where(broken[:, 0], np.nan, loss), 0)
    by_z = np.where(valid, np.where(broken, np.nan, by_z), 0)
    return Rows(m, smoothed, t, Bounded(loss, np.where(problem.valid, loss_error, 0)), Bounded(by_z, by_z_error), size)


class Result(NamedTuple):
    """What a call returns, by name, and the derivative of upstream times loss by the logits, for every row."""

    values: dict[str, Bounded]
    gradients: dict[str, Bounded]
    by_logits: Bounded


def divisor_of(problem: Problem) -> LONG:
    """What a mean divides by."""
    if problem.reduction != "mean":
        return LONG(1)
    if problem.denominator is not None:
        return LONG(problem.denominator)
    if problem.soft or problem.weight is None:
        return LONG(problem.valid.sum())
    return problem.weight[problem.target[problem.valid]].sum()


@np.errstate(invalid="ignore")
def loss_of(problem: Problem, upstream: Array) -> Result:
    """The reduced loss; `upstream` has a number for each row, or one."""
    rows, unit = rows_of(problem), problem.unit
    divisor = divisor_of(problem)
    empty = divisor == 0
    factor = (
        np.zeros(len(problem.target), LONG) if empty else np.broadcast_to(upstream / divisor, problem.target.shape[:1])
    )
    loss, loss_error = rows.loss
    if problem.reduction == "none":
        values = {"loss": rows.loss}
        total, total_error = loss, loss_error
    else:
        total = LONG("nan") if empty else loss.sum() / divisor
        scale = LONG(1) if empty else divisor
        finite_sum = np.where(np.isfinite(loss), np.abs(loss), 0).sum()
        total_error = (loss_error.sum() + ROUNDINGS * unit * finite_sum) / scale
        values = {"loss": Bounded(np.asarray(total), np.asarray(total_error))}
    scaled = Bounded(
        _times(factor[:, None], rows.by_z.value),
        np.abs(factor)[:, None] * (rows.by_z.error + ROUNDINGS * unit * rows.size),
    )
    gradients = _option_gradients(problem, rows, factor, scaled)
    if problem.denominator is not None:
        amount = upstream * total / divisor
        error = np.abs(upstream) * (total_error + ROUNDINGS * unit * np.abs(total)) / divisor
        gradients["denominator"] = Bounded(np.asarray(-amount), np.asarray(error))
    elif problem.reduction == "mean" and problem.weight is not None and not problem.soft and not empty:
        # The default denominator is a sum of weights itself.
        counted = np.bincount(problem.target[problem.valid], minlength=len(problem.weight)) / divisor
        value, error = gradients["weight"]
        second = _times(upstream * counted, total)
        # Each of the two parts may be rounded to the dtype of the weight.
        rounding = ROUNDINGS * unit + max(dict(problem.option_eps).get("weight", 0), unit)
        error = error + _times(np.abs(upstream) * counted, total_error) + rounding * (np.abs(value) + np.abs(second))
        gradients["weight"] = Bounded(value - second, error)
    return Result(values, gradients, _by_logits(rows.softmax, scaled, problem.arithmetic))


def _times(factor: Array, value: Array) -> Array:
    """A factor of 0 leaves nothing, not even of NaN."""
    return np.where(factor == 0, LONG(0), factor * np.where(factor == 0, 0, value))


def _by_logits(m: Softmax, by_z: Bounded, arithmetic: str) -> Bounded:
    """The chain rule through softcap and scale. Below the smallest normal number a product may become 0."""
    value = _times(by_z.value, m.slope)
    error = by_z.error * (m.slope + m.slope_error) + np.abs(by_z.value) * m.slope_error
    return Bounded(value, error + float(np.finfo(arithmetic).tiny))


def _option_gradients(problem: Problem, rows: Rows, factor: Array, by_z: Bounded) -> dict[str, Bounded]:
    """Gradients by logit_scale, class weights and class probabilities."""
    m, unit, size = rows.softmax, problem.unit, np.abs(factor)[:, None]
    coarse = {name: spacing * problem.parts for name, spacing in problem.option_eps}
    k = summation(problem)
    x = np.where(m.masked, LONG(0), problem.logits) * m.slope / LONG(problem.logit_scale)
    terms = by_z.error * np.abs(x) + (k * unit + _relative(m.slope_error, m.slope)) * size * rows.size * np.abs(x)
    terms = terms + size * np.finfo(problem.arithmetic).tiny * np.where(m.masked, 0, np.abs(problem.logits))
    terms = terms + coarse.get("logit_scale", 0) * size * rows.size * np.abs(x)
    found = {"logit_scale": Bounded(np.asarray((by_z.value * x).sum()), np.asarray(terms.sum()))}
    surprisal = np.where(m.masked, np.inf, m.surprisal)
    # lse - z is a difference of rounded numbers here; the loss makes it from differences to the greatest logit.
    surprisal_error = m.lse_error + m.z_error + unit * (np.abs(m.lse) + ROUNDINGS * m.surprisal)
    if problem.weight is not None:
        share = rows.smoothed
        found["weight"] = Bounded(
            (factor[:, None] * np.where(share > 0, share * surprisal, 0)).sum(0),
            (size * share * (surprisal_error + (ROUNDINGS * unit + coarse.get("weight", 0)) * m.surprisal)).sum(0),
        )
    if problem.soft:
        share = (1 - LONG(problem.label_smoothing)) * (1 if problem.weight is None else problem.weight)
        found["target"] = Bounded(
            factor[:, None] * np.where(share > 0, share * surprisal, 0),
            size * share * (surprisal_error + ROUNDINGS * unit * m.surprisal),
        )
    return found


def _relative(error: Array, value: Array) -> Array:
    return np.divide(error, value, out=np.zeros_like(error), where=value > 0)


@np.errstate(invalid="ignore")
def statistics_of(problem: Problem, upstream: Array) -> Result:
    """log_prob, entropy and lse; the gradient is that of their sum with the three factors `upstream` (3, rows)."""
    m, unit, valid = softmax(problem), problem.unit, problem.valid
    count = len(problem.target)
    k = summation(problem)
    label = np.where(valid, problem.target, 0)
    at_label = np.arange(count), label
    log_prob = np.where(valid, np.where(m.masked[at_label], -np.inf, -m.surprisal[at_label]), 0)
    log_prob_error = valid * (m.lse_error[:, 0] + m.z_error[at_label] + ROUNDINGS * unit * m.surprisal[at_label])
    entropy = (m.q * m.surprisal).sum(1)
    entropy_error = (m.q_error * m.surprisal + m.q * (m.z_error + m.lse_error + k * unit * (1 + m.surprisal))).sum(1)
    lse_error = m.lse_error[:, 0] + ROUNDINGS * unit * np.abs(m.lse[:, 0])
    broken = ~(problem.logits < np.inf).all(axis=1)
    values = {
        "log_prob": Bounded(np.where(broken & valid, np.nan, log_prob), log_prob_error),
        "entropy": Bounded(np.where(broken, np.nan, entropy), entropy_error),
        "lse": Bounded(np.where(broken, np.nan, m.lse[:, 0]), lse_error),
    }
    by_log_prob, by_entropy, by_lse = (g[:, None] for g in upstream)
    one_hot = np.zeros(m.q.shape, LONG)
    one_hot[at_label] = valid
    deviation = m.surprisal - entropy[:, None]
    taken = by_log_prob * valid[:, None]
    value = taken * (one_hot - m.q) + by_entropy * m.q * deviation + by_lse * m.q
    factors = np.abs(taken) + np.abs(by_lse) + np.abs(by_entropy) * np.abs(deviation)
    error = factors * (m.q_error + ROUNDINGS * unit * m.q) + ROUNDINGS * unit * np.abs(taken) * one_hot
    own = m.lse_error + m.z_error + entropy_error[:, None] + ROUNDINGS * unit * (m.surprisal + entropy[:, None])
    error += np.abs(by_entropy) * (m.q + m.q_error) * own
    by_z = Bounded(np.where(broken[:, None], np.nan, value), error)
    return Result(values, {}, _by_logits(m, by_z, problem.arithmetic))


def contract(subscripts: str, *operands: Array) -> Array:
    """np.einsum, which leaves longdouble sums over nothing as it found the memory (NumPy 2.4)."""
    if all(operand.size for operand in operands):
        return np.einsum(subscripts, *operands)
    inputs, output = subscripts.split("->")
    pairs = zip(inputs.split(","), operands, strict=True)
    sizes = {axis: size for axes, operand in pairs for axis, size in zip(axes, operand.shape, strict=True)}
    return np.zeros([sizes[axis] for axis in output], LONG)


class Linear(NamedTuple):
    """A linear layer: input (rows, features), weight (classes, positions, features), bias (classes, positions)."""

    input: Array
    weight: Array
    bias: Array | None
    dtype: str
    scaled: bool = False
    """Whether a scale that is a tensor multiplied input and bias, which rounds them to their dtype once more."""
    repeated: bool = False
    """Whether numbers repeat, so that roundings of a sum have one sign; else they grow as a random walk does."""

    def logits(self) -> Bounded:
        """Logits (rows * positions, classes), with the rounding of products and, in 16 bits, of the logits."""
        value = contract("nf,cjf->njc", self.input, self.weight)
        size = contract("nf,cjf->njc", np.abs(self.input), np.abs(self.weight))
        unit = eps("float64" if self.dtype == "float64" else "float32")
        error = (self.input.shape[1] + 2) * unit * size
        if eps(self.dtype) > unit:
            error = error + eps(self.dtype) / 2 * np.abs(value) + least(self.dtype)
        if self.bias is not None:
            bias = self.bias.T[None]
            value = value + bias
            known = np.where(np.isfinite(value), np.abs(value), 0)
            error = error + (eps(self.dtype) / 2 if eps(self.dtype) > unit else unit) * known
        if self.scaled:
            bias_size = 0 if self.bias is None else np.abs(self.bias.T[None])
            error = error + eps(self.dtype) / 2 * (size + bias_size)
        return Bounded(value.reshape(-1, value.shape[-1]), error.reshape(-1, value.shape[-1]))

    def gradients(self, by_logits: Bounded) -> dict[str, Bounded]:
        """d W, d^T h and sum d; in 16 bits d is rounded before it is multiplied."""
        rows, (classes, positions, _) = len(self.input), self.weight.shape
        d, error = (a.reshape(rows, positions, classes) for a in by_logits)
        unit = eps("float64" if self.dtype == "float64" else "float32")
        if eps(self.dtype) > unit:
            error = error + eps(self.dtype) / 2 * np.abs(d) + least(self.dtype)
        terms = max(rows, classes)
        k = ROUNDINGS + (terms / 2 if self.repeated else 2 * float(np.sqrt(terms)))
        error = error + k * unit * np.abs(d) + float(np.finfo("float64" if self.dtype == "float64" else "float32").tiny)
        h, w = np.abs(self.input), np.abs(self.weight)
        found = {
            "input": Bounded(contract("njc,cjf->nf", d, self.weight), contract("njc,cjf->nf", error, w)),
            "linear_weight": Bounded(contract("njc,nf->cjf", d, self.input), contract("njc,nf->cjf", error, h)),
        }
        if self.bias is not None:
            found["linear_bias"] = Bounded(d.sum(0).T, error.sum(0).T)
        if self.scaled:
            sizes = {"linear_weight": contract("njc,nf->cjf", np.abs(d), h)}
            sizes |= {name: np.abs(found[name].value) for name in ("input", "linear_bias") if name in found}
            for name, size in sizes.items():
                found[name] = found[name]._replace(error=found[name].error + eps(self.dtype) / 2 * size)
        return found

    def rounded_scale(self, gradients: dict[str, Bounded], scale: float) -> Bounded:
        """The gradient of the scale as a sum over input and bias, whose gradients are rounded before."""
        parts = [(gradients["input"], self.input)]
        if self.bias is not None:
            parts.append((gradients["linear_bias"], np.where(np.isfinite(self.bias), self.bias, 0)))
        found, unit = gradients["logit_scale"], eps(self.dtype) / 2
        error = sum(((part.error + unit * np.abs(part.value)) * np.abs(of)).sum() for part, of in parts)
        return found._replace(error=found.error + error / abs(scale))


def rounded(result: Bounded, dtype: str) -> Any:
    """The bound with the rounding to the dtype in which the result is returned."""
    known = np.where(np.isfinite(result.value), np.abs(result.value), 0)
    error = np.where(np.isfinite(result.error), result.error, 0)
    return error + 0.5 * (1 + 1e-6) * eps(dtype) * known + least(dtype)
