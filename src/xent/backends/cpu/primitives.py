"""The functions of one number that every kernel is built from: exp, log, softcap and its derivative.

Each is defined once, for float32 and float64, and becomes vector instructions inside a loop: no branches, no calls, no
tables. The argument's type selects the precision. -inf and NaN are legal arguments, and no flag lets the compiler
assume otherwise.

| primitive | domain | results too small to represent |
|---|---|---|
| exp, float32 | x <= 88.3 | from -87.6 down the result is 0 |
| exp, float64 | x <= 709.4 | from -708.7 down the result is 0 |
| log, float64 | x positive and normal | |
| tanh, float32 and float64 | all | |
| 1 - tanh**2, float32 and float64 | all | a result under 1e-38 (1e-307) is 0 |

docs/accuracy.md has their errors, as measured.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from xent.backends.cpu._numba import bits_float, float_bits, fused_multiply_add, maximum
from xent.backends.cpu.compilation import OPTIONS, device

__all__ = [
    "add_in_any_order",
    "bits_float",
    "exp",
    "float_bits",
    "fused_multiply_add",
    "log",
    "log1p",
    "maximum",
    "raise_maximum",
    "softcap_and_derivative",
    "tanh_and_derivative",
]


@njit(error_model="numpy", fastmath={"reassoc", "nsz"})
def add_in_any_order(x: Any, y: Any) -> Any:
    """x + y as a step of a sum over a loop: the only addition whose order the compiler may choose.

    It is a function of its own because the same freedom elsewhere (`reassoc`) cancels the rounding constants of `exp`.
    """
    return x + y


# ------------------------------------------------------------------------------------------------------------------ exp
#
#     exp(x) = 2**n * exp(r)      n = round(x / log 2),  r = x - n log 2,  |r| <= log(2) / 2
#     exp(r) = 1 + r P(r)         P: minimax for (exp(r) - 1) / r; relative error 1.1e-8 (degree 5), 1.8e-17 (degree 10)
#
# Adding 1.5 * 2**23 (2**52 in float64) rounds x / log 2 to an integer in the low bits of the sum; the exponent's bias
# is added with it, so that a shift of the bits makes 2**n. At n = -127 (-1023) the bits are those of 0: an x that is
# clamped there, such as -inf, gives exactly 0.

F32_LOWEST, F32_HIGHEST = np.float32(-88.0), np.float32(88.3)
F32_PER_LOG2 = np.float32(1 / math.log(2))
F32_ROUND = np.float32(1.5 * 2**23 + 127)
F32_LOG2_HIGH = np.float32(math.log(2))
F32_LOG2_LOW = np.float32(math.log(2) - float(F32_LOG2_HIGH))
F32_MANTISSA = np.int32(23)
F32_P = tuple(
    np.float32(c)
    for c in (1.00000001066, 0.499999981191, 0.166665058981, 0.0416671370749, 0.00836910439334, 0.00138888792305)
)

F64_LOWEST, F64_HIGHEST = -709.1, 709.4
F64_PER_LOG2 = 1 / math.log(2)
F64_ROUND = 1.5 * 2.0**52 + 1023
F64_LOG2_HIGH = math.log(2)
F64_LOG2_LOW = 2.3190468138462996e-17
F64_MANTISSA = np.int64(52)
F64_P = (
    1.0000000000000000026,
    0.50000000000000055739,
    0.16666666666666562833,
    0.041666666666573559315,
    0.0083333333333982446073,
    0.0013888888932382451675,
    0.00019841269706650747305,
    0.000024801504443926123391,
    2.7557415416241851928e-6,
    2.7626329134892468811e-7,
    2.5051941991742497813e-8,
)


def _split_exp(x: Any) -> Any:
    """Return (s, y) with exp(x) = s + s * y, s a power of two: exp and exp - 1 are both accurate from them."""
    raise NotImplementedError("for compiled code")


@overload(_split_exp, jit_options=OPTIONS, strict=False)
def _(x: Any) -> Any:
    if x == types.float32:

        def split(x: Any) -> Any:
            x = F32_LOWEST if x < F32_LOWEST else x  # false for NaN, which therefore stays
            x = F32_HIGHEST if x > F32_HIGHEST else x
            rounded = fused_multiply_add(x, F32_PER_LOG2, F32_ROUND)
            n = rounded - F32_ROUND
            r = fused_multiply_add(n, -F32_LOG2_HIGH, x)
            r = fused_multiply_add(n, -F32_LOG2_LOW, r)
            p = fused_multiply_add(F32_P[5], r, F32_P[4])
            p = fused_multiply_add(p, r, F32_P[3])
            p = fused_multiply_add(p, r, F32_P[2])
            p = fused_multiply_add(p, r, F32_P[1])
            p = fused_multiply_add(p, r, F32_P[0])
            return bits_float(np.int32(float_bits(rounded) << F32_MANTISSA)), p * r

        return split

    def split(x: Any) -> Any:
        x = F64_LOWEST if x < F64_LOWEST else x
        x = F64_HIGHEST if x > F64_HIGHEST else x
        rounded = fused_multiply_add(x, F64_PER_LOG2, F64_ROUND)
        n = rounded - F64_ROUND
        r = fused_multiply_add(n, -F64_LOG2_HIGH, x)
        r = fused_multiply_add(n, -F64_LOG2_LOW, r)
        p = fused_multiply_add(F64_P[10], r, F64_P[9])
        p = fused_multiply_add(p, r, F64_P[8])
        p = fused_multiply_add(p, r, F64_P[7])
        p = fused_multiply_add(p, r, F64_P[6])
        p = fused_multiply_add(p, r, F64_P[5])
        p = fused_multiply_add(p, r, F64_P[4])
        p = fused_multiply_add(p, r, F64_P[3])
        p = fused_multiply_add(p, r, F64_P[2])
        p = fused_multiply_add(p, r, F64_P[1])
        p = fused_multiply_add(p, r, F64_P[0])
        return bits_float(float_bits(rounded) << F64_MANTISSA), p * r

    return split


@device
def exp(x: Any) -> Any:
    """e**x; exactly 0 at -inf, and the value at 88.3 (float32) or 709.4 (float64) for any larger x."""
    s, y = _split_exp(x)
    return fused_multiply_add(s, y, s)


# ------------------------------------------------------------------------------------------------------------------ log
#
#     log(x) = k log 2 + log(1 + f),   x = 2**k (1 + f),  sqrt(1/2) < 1 + f < sqrt(2)
#     log(1 + f) = f - h + s (h + R),  h = f**2 / 2,  s = f / (2 + f),  R a polynomial in s**2
#
# Coefficients: FreeBSD msun, e_log.c. It is used for sums of exponentials only, one for each row, in float64.

LOG_SQRT_HALF = np.int64(0x3FE6A09E00000000)
LOG_ONE = np.int64(0x3FF0000000000000)
LOG_MANTISSA_BITS = np.int64(0x000FFFFFFFFFFFFF)
LOG2_HIGH = 6.93147180369123816490e-01
LOG2_LOW = 1.90821492927058770002e-10


@device
def log(x: float) -> float:
    """Natural logarithm of a positive, normal float64; NaN for NaN and for inf."""
    bits = float_bits(x) + (LOG_ONE - LOG_SQRT_HALF)
    k = float((bits >> F64_MANTISSA) - np.int64(1023))
    f = bits_float((bits & LOG_MANTISSA_BITS) + LOG_SQRT_HALF) - 1.0
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    odd = z * (
        6.666666666666735130e-01
        + w * (2.857142874366239149e-01 + w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01))
    )
    even = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01))
    h = 0.5 * f * f
    return k * LOG2_HIGH + ((s * (h + odd + even) + k * LOG2_LOW) - h + f) + (x - x)


@device
def log1p(x: float) -> float:
    """log(1 + x) of a float64 of 0 or more, as accurate as x: what 1 + x rounds away is added back."""
    u = 1.0 + x
    return log(u) + (x - (u - 1.0)) / u


# -------------------------------------------------------------------------------------------------------------- softcap
#
#     softcap(x)         = cap * tanh(scale * x / cap)
#     softcap_derivative = scale * (1 - tanh(scale * x / cap)**2)
#
# With E = exp(-2|u|), both follow without cancellation: tanh|u| = (1 - E) / (1 + E), 1 - tanh(u)**2 = 4 E / (1 + E)**2.


@device
def tanh_and_derivative(u: Any) -> Any:
    """tanh(u), and 1 - tanh(u)**2 accurate to its own last digits; 0 at both infinities."""
    one = type(u)(1)
    s, y = _split_exp(-abs(u + u))
    e = fused_multiply_add(s, y, s)
    e_less_one = fused_multiply_add(s, y, s - one)  # accurate for small u
    inverse = one / (one + e)
    t = -e_less_one * inverse
    return (-t if u < 0 else t), type(u)(4) * e * inverse * inverse


@device
def softcap_and_derivative(x: Any, scale: Any, cap: Any) -> Any:
    """Return the softcapped logit cap * tanh(scale * x / cap), within (-cap, cap), and its derivative by x.

    Infinite logits are returned unchanged, with derivative 0: -inf is a masked class and must not become -cap; +inf is
    an invalid logit and must make the loss NaN.
    """
    t, derivative = tanh_and_derivative(scale * x / cap)
    return (x if abs(x) == np.inf else cap * t), scale * derivative


# ----------------------------------------------------------------------------------------------------- log-sum-exp
#
#     highest' = max(highest, m),   total' = total * exp(highest - highest'),   then total' += sum(exp(z - highest'))
#     lse = highest + log(total)


@device
def raise_maximum(highest: Any, total: float, m: Any) -> Any:
    """Return the running maximum after a block with maximum m, and the sum of the exponentials so far relative to it.

    A NaN changes nothing here; it reaches the result through the sum.
    """
    if m > highest:
        return m, (total * exp(np.float64(highest) - np.float64(m)) if total != 0.0 else 0.0)
    return highest, total
