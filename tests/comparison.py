"""How results are compared with what is expected: the bounds, in units of rounding, that every test of the losses uses.

test_sensitivity.py feeds broken implementations to the functions of this file, and requires that they are rejected.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from cases import Case, Expected, expected
from implementations import Implementation, array

# The project's promise for float64 is a relative error below 4e-15: 18 roundings of 2^-52.
ULPS = 18

# For the kernels: exp, its sum in blocks and the product with the target are worth a few roundings of their dtype.
KERNEL_ULPS = 2


def eps(dtype: Any) -> float:
    return float(np.finfo(dtype).eps)


def assert_within(found: Any, wanted: Any, bound: Any, what: str = "") -> None:
    """|found - wanted| <= bound, entry by entry. Infinities and NaN have to be in the same places."""
    found, wanted = (np.asarray(array(values), dtype=np.float64) for values in (found, wanted))
    assert found.shape == wanted.shape, f"{what}: shape {found.shape}, expected {wanted.shape}"
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(found[~finite], wanted[~finite], err_msg=what)
    assert np.isfinite(found[finite]).all(), f"{what}: found {found}, expected {wanted}"
    error = np.abs(found[finite] - wanted[finite])
    bound = np.broadcast_to(bound, wanted.shape)[finite]
    worst = np.argmax(error - bound) if error.size else 0
    assert (error <= bound).all(), (
        f"{what}: found {found[finite][worst]!r}, expected {wanted[finite][worst]!r}, "
        f"which is off by {error[worst]:.3g}; at most {bound[worst]:.3g} is rounding"
    )


def relative(found: Any, wanted: Any, ulps: float = ULPS, dtype: Any = np.float64, floor: float = 0.0) -> None:
    """A relative error of at most so many roundings of the dtype, down to the smallest subnormal (or `floor`)."""
    bound = ulps * eps(dtype) * np.abs(np.where(np.isfinite(wanted), wanted, 0.0))
    assert_within(found, wanted, bound + max(floor, float(np.finfo(dtype).smallest_subnormal)))


def finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, 0.0)


def bent_logits(case: Case) -> np.ndarray:
    """z, to the accuracy that a bound needs; masked classes are 0."""
    scale, cap = case.options.get("logit_scale", 1.0), case.options.get("softcap")
    z = scale * finite(case.logits)
    return z if cap is None else cap * np.tanh(z / cap)


def magnification(case: Case) -> np.ndarray:
    """By how much the rounding of a bent logit is magnified: an absolute error eps * |z| is a relative one of exp(z).

    Logits themselves are exact, so without softcap and scale there is nothing to magnify.
    """
    bent = {"softcap", "logit_scale"} & set(case.options)
    return np.abs(bent_logits(case)).max(axis=1) if bent else np.zeros(len(case.logits))


def slope_magnification(case: Case) -> np.ndarray:
    """dz/dx = s / cosh(u)^2 with u = s x / softcap: the derivative of its logarithm is 2 tanh u, and u is rounded."""
    cap = case.options.get("softcap")
    if cap is None:
        return np.zeros(len(case.logits))
    return 2 * case.options.get("logit_scale", 1.0) * np.abs(finite(case.logits)).max(axis=1) / cap


def reference_bounds(case: Case, wanted: Expected) -> tuple[np.ndarray, np.ndarray]:
    """Relative errors. Where a gradient has to cancel, relative to its terms; for a plain label nothing does."""
    unit, magnified = ULPS * eps(np.float64), magnification(case)
    size = np.abs(wanted.gradient) if case.plain else wanted.sizes
    factor = 1 + magnified + slope_magnification(case)
    return unit * (1 + magnified) * finite(wanted.loss), unit * factor[:, None] * size


def kernel_bounds(case: Case, wanted: Expected, arithmetic: str) -> tuple[np.ndarray, np.ndarray]:
    """What an ordinary computation in `arithmetic` with a float64 log-sum-exp is entitled to.

    The log-sum-exp is off by a few roundings of a sum (relative there, so absolute in its logarithm), by the rounding
    of bent logits, and by its own rounding in float64. The loss lse - z inherits that; a probability exp(z - lse) turns
    it into a relative error and adds the rounding of its exponent. Below the smallest normal number it may become 0.
    """
    unit, tiny = KERNEL_ULPS * eps(arithmetic), float(np.finfo(arithmetic).tiny)
    z, lse, magnified = bent_logits(case), np.abs(wanted.lse), magnification(case)
    lse_error = unit * (1 + magnified) + 2 * eps(np.float64) * (lse + np.abs(z).max(axis=1))
    counts = wanted.total + 2 * case.options.get("z_loss", 0.0) * lse
    loss = counts * lse_error + unit * finite(wanted.loss) + tiny * (wanted.total > 0)
    slope = unit * (1 + slope_magnification(case))[:, None]
    exponent = unit * np.abs(z - wanted.lse[:, None])
    factor = np.minimum(lse_error[:, None] + exponent + slope, 1.0)
    shift = np.divide(2 * case.options.get("z_loss", 0.0) * lse_error, counts, where=counts > 0, out=0 * counts)
    gradient = wanted.pull * (factor + shift[:, None]) + wanted.push * slope
    return loss, gradient + tiny * counts[:, None]


def bounds(implementation: Implementation, case: Case, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """How far losses and gradient may be off before they are rounded to the dtypes in which they are returned."""
    given, wanted = case.rounded(dtype), expected(case, dtype)
    given = replace(given, logits=given.logits.astype(np.float64))
    if not implementation.kernel:
        return reference_bounds(given, wanted)
    return kernel_bounds(given, wanted, implementation.arithmetic(dtype))


def loss_dtype(dtype: str) -> str:
    """16-bit logits have a float32 loss."""
    return "float32" if np.finfo(dtype).bits < 32 else dtype


def rounded_to(dtype: str, wanted: np.ndarray) -> np.ndarray:
    """The rounding of a result to the dtype in which it is returned; absolute among subnormal numbers."""
    return 0.5 * (1 + 1e-6) * eps(dtype) * np.abs(finite(wanted)) + float(np.finfo(dtype).smallest_subnormal)


def assert_losses(implementation: Implementation, case: Case, dtype: str, losses: Any) -> None:
    wanted = expected(case, dtype).loss
    bound = bounds(implementation, case, dtype)[0] + rounded_to(loss_dtype(dtype), wanted)
    assert_within(losses, wanted, bound, f"{case} {dtype} loss")


def assert_gradient(
    implementation: Implementation, case: Case, dtype: str, gradient: Any, row_scale: np.ndarray | None = None
) -> None:
    scale = np.ones((len(case.logits), 1)) if row_scale is None else row_scale[:, None]
    wanted = expected(case, dtype).gradient
    # The factor per row is one more product, and one more rounding.
    bound = bounds(implementation, case, dtype)[1] + (1 if row_scale is None else 2) * rounded_to(dtype, wanted)
    bound = np.abs(scale) * bound + float(np.finfo(dtype).smallest_subnormal)
    assert_within(gradient, wanted * scale, bound, f"{case} {dtype} gradient")


def denominator(case: Case) -> float:
    """What a mean divides by, by torch's rule."""
    if case.soft:
        return float(len(case.logits))
    counted = case.target[case.target != case.options.get("ignore_index", -100)]
    return float(len(counted) if "weight" not in case.options else sum(case.options["weight"][y] for y in counted))


def reduction_divisor(case: Case, reduction: dict[str, Any]) -> float:
    if reduction["reduction"] == "sum":
        return 1.0
    return reduction.get("denominator", denominator(case))


def assert_reduced(front: Implementation, case: Case, dtype: str, reduction: dict[str, Any], value: Any, gradient: Any):
    """The reduced loss and its gradient, from the oracle's rows. Losses are positive, so relative errors stay."""
    divisor = reduction_divisor(case, reduction)
    wanted = expected(case, dtype).loss
    if divisor == 0:
        assert np.isnan(value), f"{case}: a mean over nothing is {value}"
        assert not np.any(gradient), f"{case}: a mean over nothing has a gradient"
        return
    total = wanted.sum() / divisor
    # The rows' own errors; each row's loss may be rounded before it is added, and adding rounds in float64.
    bound = (bounds(front, case, dtype)[0] + rounded_to(loss_dtype(dtype), wanted)).sum() / divisor
    bound = bound + len(wanted) * eps(np.float64) * finite(total) + rounded_to(loss_dtype(dtype), total)
    assert_within(value, total, bound, f"{case} {dtype} {reduction}")
    assert_gradient(front, case, dtype, gradient, np.full(len(wanted), 1 / divisor))


def check_rows(implementation: Implementation, case: Case, dtype: str) -> None:
    """Losses and gradient of each row, alone and with a factor per row."""
    given = case.rounded(dtype)
    losses, gradient = implementation.loss_and_gradient(given.logits, given.target, case.options)
    assert_losses(implementation, case, dtype, losses)
    assert_gradient(implementation, case, dtype, gradient)
    row_scale = np.linspace(2.0, -1.5, len(case.logits))
    _, scaled = implementation.loss_and_gradient(given.logits, given.target, case.options, row_scale)
    assert_gradient(implementation, case, dtype, scaled, row_scale)


def check_reduction(front: Implementation, case: Case, dtype: str, reduction: dict[str, Any]) -> None:
    given = case.rounded(dtype)
    value, gradient = front.call(given.logits, given.target, **{**case.options, **reduction})
    assert_reduced(front, case, dtype, reduction, value, gradient)
