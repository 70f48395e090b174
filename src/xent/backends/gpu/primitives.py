"""The functions of one number that every kernel is built from: exp, log, softcap and its derivative.

Each stands here once; the argument's type picks the precision. -inf and NaN are legal arguments.

| primitive | error |
|---|---|
| exp, float32 | 2**-22 + |x| * 2**-24, relative, in the special function unit; below 2**-126 it is 0 |
| exp, float64 | 1 ulp (libdevice) |
| log, float64 | 1 ulp (libdevice) |
| tanh, 1 - tanh**2 | a few roundings, relative |
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def exp(x):
    """e**x; exactly 0 at -inf.

    Triton's own exp makes this product too, but takes three more instructions for what is below 2**-126.
    """
    if x.dtype == tl.float32:
        return tl.exp2(x * 1.4426950408889634)
    return tl.exp(x)


@triton.jit
def log(x):
    """Natural logarithm, of sums of exponentials: one number per row, in float64."""
    return tl.log(x)


@triton.jit
def divide(x, y):
    """x / y, correctly rounded: Triton's own division of float32 is off by 2 ulp."""
    if x.dtype == tl.float32:
        return tl.div_rn(x, y)
    return x / y


# -------------------------------------------------------------------------------------------------------------- softcap
#
#     softcap(x)         = cap * tanh(scale * x / cap)
#     softcap_derivative = scale * (1 - tanh(scale * x / cap)**2)
#
# With E = exp(-2|u|):  tanh|u| = (1 - E) / (1 + E),  1 - tanh(u)**2 = 4 E / (1 + E)**2, the latter without cancelling
# anything. Where 1 - E cancels, below 0.625, tanh(u) = u + u**3 P(u**2) / Q(u**2) (coefficients: Cephes, tanh.c).


@triton.jit
def tanh_and_derivative(u):
    """tanh(u), and 1 - tanh(u)**2 accurate to its own last digits; 0 at both infinities."""
    magnitude = tl.abs(u)
    e = exp(-2.0 * magnitude)
    inverse = divide(tl.zeros_like(e) + 1.0, 1.0 + e)
    square = magnitude * magnitude
    p = (-9.64399179425052238628e-1 * square - 9.92877231001918586564e1) * square - 1.61468768441708447952e3
    q = ((square + 1.12811678491632931402e2) * square + 2.23548839060100448583e3) * square + 4.84406305325125486048e3
    near = magnitude + magnitude * square * divide(p, q)
    t = tl.where(magnitude < 0.625, near, (1.0 - e) * inverse)
    return tl.where(u < 0, -t, t), 4.0 * e * inverse * inverse


@triton.jit
def softcap_and_derivative(x, scale, cap):
    """Bend scale * x smoothly into (-cap, cap), and the derivative of that.

    Infinite logits stay as they are: -inf is a masked class and may not come back as -cap, +inf is an error that has to
    show as NaN in the loss. Their derivative is 0.
    """
    t, derivative = tanh_and_derivative(divide(scale * x, tl.zeros_like(x) + cap))
    return tl.where(tl.abs(x) == float("inf"), x, cap * t), scale * derivative


# ---------------------------------------------------------------------------------------------------------- log-sum-exp
#
#     highest' = max(highest, m),   total' = total * exp(highest - highest')   then   total' += sum(exp(z - highest'))
#     lse = highest + log(total)


@triton.jit
def raise_maximum(highest, total, m):
    """Return the maxima after a block with maxima m, and the sums of the exponentials so far relative to them.

    A NaN changes nothing here; it enters through the sum.
    """
    raised = tl.where(m > highest, m, highest)
    # The exponential is float64, one per row and slow: most blocks raise no maximum and go without.
    if tl.max(((m > highest) & (total != 0.0)).to(tl.int32), axis=0) > 0:
        down = exp(highest.to(tl.float64) - raised.to(tl.float64))
        total = tl.where(total != 0.0, total * down, 0.0)
    return raised, total
