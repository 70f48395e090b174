"""The kernel of the binary cross-entropy: one program, one block of elements that lie side by side.

    loss = factor * (pos_weight * y' * softplus(-z) + (1 - y') * softplus(z))
    dx   = scale * dloss/dz * dz/dx

The steps are those of xent.backends.cpu.binary_kernels and logistic. Weights are read with strides of their own
(`Broadcast`). Options are numbers on the device, and switches say which of them are in use. Each program writes the sum
of its losses to a place of its own, so that results repeat bit for bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from xent.backends.gpu.primitives import divide, exp, softcap_and_derivative
from xent.backends.gpu.tile import number_of


class Broadcast(NamedTuple):
    """Weights of up to three axes, whose last two have `middle` and `inner` elements; a stride is 0 where they repeat.

    Without weights the pointer is None.
    """

    pointer: Any
    middle: Any
    inner: Any
    outer_stride: Any
    middle_stride: Any
    inner_stride: Any


class BinarySwitches(NamedTuple):
    """What is in use, known when a kernel is compiled: what is off is left out.

    `per_element`: there is a scale for each element; `wide`: there are 2**31 elements or more; `floating`: the target
    has a floating dtype.
    """

    scaled: bool
    capped: bool
    smoothed: bool
    focal: bool
    per_element: bool
    wide: bool
    floating: bool


@triton.jit
def exp_of_distance(x):
    """e**x for x of 0 or less, accurate to its last digits: what the product with log2(e) rounds away is put back."""
    if x.dtype == tl.float32:
        x = tl.where(x < -150.0, -150.0, x)
        y = x * 1.44269502162933349609375
        rest = tl.fma(x, tl.full(x.shape, 1.44269502162933349609375, tl.float32), -y) + x * 1.925963033500011e-08
        e = tl.exp2(y)
        return e + e * (rest * 0.6931471805599453)
    return exp(x)


@triton.jit
def log1p_of_share(e):
    """log(1 + e) of a number in [0, 1]; the coefficients are those of xent.backends.cpu.logistic."""
    if e.dtype == tl.float32:
        p = 0.00203010594455 * e - 0.0134072158274
        p = p * e + 0.0414784459164
        p = p * e - 0.0824432219771
        p = p * e + 0.124186419009
        p = p * e - 0.161058353005
        p = p * e + 0.198908035302
        p = p * e - 0.249872827515
        p = p * e + 0.333325608812
        p = p * e - 0.499999814848
        p = p * e + 0.99999999926
        return p * e
    s = divide(e, 2.0 + e)
    t = s * s
    p = 0.085300300084251676671 * t + 0.041578447873287112605
    p = p * t + 0.060561233548812824042
    p = p * t + 0.066500514786199714011
    p = p * t + 0.076933177028944715025
    p = p * t + 0.09090869895412950195
    p = p * t + 0.11111112055827905402
    p = p * t + 0.14285714272463818669
    p = p * t + 0.20000000000095149286
    p = p * t + 0.33333333333333067173
    p = p * t + 1.0000000000000000012
    return (s + s) * p


@triton.jit
def binary_loss_and_slope(z, positive, negative):
    """positive * softplus(-z) + negative * softplus(z), where 0 * inf is 0, and its derivative by z."""
    distance = tl.abs(z)
    e = exp_of_distance(-distance)
    near, far = tl.where(z > 0, positive, negative), tl.where(z > 0, negative, positive)
    loss = (near + far) * log1p_of_share(e) + tl.where(far != 0, far * distance, 0.0)
    slope = divide(far - near * e, 1.0 + e)
    return loss, tl.where(z > 0, slope, -slope)


@triton.jit
def focal_loss_and_slope(z, gamma):
    """(1 - p)**gamma * -log(p) of the probability p = sigmoid(z), and its derivative by z; in float64."""
    distance = tl.abs(z)
    e = exp_of_distance(-distance)
    log1p, inverse = log1p_of_share(e), 1.0 / (1.0 + e)
    surprise = tl.where(z > 0, log1p, distance + log1p)
    p, other = tl.where(z > 0, inverse, e * inverse), tl.where(z > 0, e * inverse, inverse)
    share = tl.where(surprise == float("inf"), 0.0, p * surprise)
    factor = exp(-gamma * tl.where(z > 0, distance + log1p, log1p))
    return factor * surprise, -factor * (gamma * share + other)


@triton.jit
def weights_of(weights, at, inside, WIDE: tl.constexpr):
    """The weights of these elements."""
    rest = at // weights.inner
    place = (
        (rest // weights.middle) * weights.outer_stride
        + (rest % weights.middle) * weights.middle_stride
        + (at % weights.inner) * weights.inner_stride
    )
    return tl.load(weights.pointer + place, mask=inside, other=0.0).to(WIDE)


@triton.jit
def ignored_of(target, at, inside, numbers, FLOATING: tl.constexpr):
    """The targets of these elements, and which of them are ignored."""
    if FLOATING:
        t = tl.load(target + at, mask=inside, other=0.0)
        t = t if t.dtype == tl.float64 else t.to(tl.float32)
        ignored = t == number_of(numbers, 5).to(t.dtype)
    else:
        t = tl.load(target + at, mask=inside, other=0).to(tl.int64)
        ignored = t == tl.load(numbers + 6)
    return t, ignored


@triton.jit
def count(target, numbers, size, counts, WIDE: tl.constexpr, FLOATING: tl.constexpr, BLOCK: tl.constexpr):
    """The elements of each block that are not ignored. (torch's sum would convert a tensor of their size first.)"""
    if WIDE:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    else:
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    _, ignored = ignored_of(target, at, inside, numbers, FLOATING)
    tl.store(counts + tl.program_id(0), tl.sum((inside & (ignored == 0)).to(tl.int32), axis=0))


@triton.jit
def visit(
    logits,
    target,
    weight,
    pos_weight,
    sample_weight,
    numbers,
    size,
    scale,
    finished,
    losses,
    sums,
    out,
    SWITCHES: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sum of the losses of each block; losses and gradients for which there is room. Nothing if `finished` is 1."""
    if finished is not None:  # noqa: SIM102
        if tl.load(finished) == 1.0:  # not `and`: without the number there is nothing to compile
            return
    if SWITCHES.wide:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    else:
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    t, ignored = ignored_of(target, at, inside, numbers, SWITCHES.floating)
    known = ignored == 0
    valid = (t >= 0) & (t <= 1)
    if SWITCHES.focal:
        valid = (t == 0) | (t == 1)
    y = tl.where(valid, t.to(WIDE), float("nan"))
    if SWITCHES.smoothed:
        y = number_of(numbers, 2).to(WIDE) * y + number_of(numbers, 3).to(WIDE)
    x = tl.load(logits + at, mask=inside, other=0.0).to(WIDE)
    z, derivative = x, tl.zeros_like(x) + 1.0
    if SWITCHES.capped:
        z, derivative = softcap_and_derivative(x, number_of(numbers, 0).to(WIDE), number_of(numbers, 1).to(WIDE))
    elif SWITCHES.scaled:
        derivative = tl.zeros_like(x) + number_of(numbers, 0).to(WIDE)
        z = x * derivative
    positive = tl.zeros_like(x) + 1.0
    if pos_weight.pointer is not None:
        positive = weights_of(pos_weight, at, inside, WIDE)
    if SWITCHES.focal:
        sign = tl.where(y == 1, 1.0, -1.0).to(tl.float64)
        share = tl.where(y == 1, positive, 1.0).to(tl.float64)
        loss64, slope64 = focal_loss_and_slope(sign * z.to(tl.float64), number_of(numbers, 4))
        loss64 = tl.where((share == 0) & (loss64 == float("inf")), 0.0, share * loss64)
        loss = loss64.to(WIDE) + y * 0.0  # NaN for a target that is neither 0 nor 1
        slope = (share * sign * slope64).to(WIDE) + y * 0.0
    else:
        loss, slope = binary_loss_and_slope(z, positive * y, 1.0 - y)
    factor = tl.zeros_like(x) + 1.0
    if weight.pointer is not None:
        factor = weights_of(weight, at, inside, WIDE)
    if sample_weight.pointer is not None:
        factor = factor * weights_of(sample_weight, at, inside, WIDE)
    counts = inside & known
    loss = tl.where(counts, tl.where((factor == 0) & (loss == float("inf")), 0.0, loss * factor), 0.0)
    tl.store(sums + tl.program_id(0), tl.sum(loss, axis=0).to(tl.float64))
    if losses is not None:
        tl.store(losses + at, loss, mask=inside)
    if out is not None:
        if SWITCHES.per_element:
            factor = factor * tl.load(scale + at, mask=inside, other=0.0).to(WIDE)
        else:
            factor = factor * tl.load(scale).to(WIDE)
        gradient = tl.where(counts, slope * factor * derivative, 0.0)
        tl.store(out + at, gradient.to(out.dtype.element_ty), mask=inside)
