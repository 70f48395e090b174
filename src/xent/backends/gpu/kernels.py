"""The kernels: one program, one tile of positions.

    forward   lse = log(sum(exp(z))),  loss = sum(t * (lse - z)) + z_loss * lse**2
    backward  dx = row_scale * ((sum(t) + 2 * z_loss * lse) * exp(z - lse) - t) * dz/dx

All kernels begin with the arrays (`Inputs`) and the options as numbers, and end with the options as switches: what is
off is left out when a kernel is compiled, and numbers are read when it runs, so that no value costs a compilation.
`mean_weight` is the mean of the class weights, where label smoothing needs it. The last arguments are the tile's shape.

No program waits for another or adds to what another wrote: results repeat bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from xent.backends.gpu.order import order_and_slope
from xent.backends.gpu.primitives import exp, log
from xent.backends.gpu.tile import (
    DONE,
    KEPT,
    Normal,
    factors,
    from_lse,
    gradients,
    load,
    load_label,
    logits_of,
    losses,
    normalise,
    read_labels,
    store,
    target_masses,
    terms_of,
    transform,
)


@triton.jit
def forward(
    inputs,
    numbers,
    mean_weight,
    loss,
    lse,
    SWITCHES: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Loss and log-sum-exp."""
    terms = terms_of(inputs, numbers, mean_weight)
    at = read_labels(inputs, terms, tl.program_id(0), ROWS)
    label_z, _ = transform(load_label(inputs, at, WIDE), terms, SWITCHES)
    normal = normalise(inputs, terms, at, DONE, SWITCHES, WIDE, ROWS, BLOCK)
    found_loss, found_lse = losses(normal, label_z, terms, at, SWITCHES)
    tl.store(loss + at.g, found_loss.to(WIDE), mask=at.inside)
    tl.store(lse + at.g, found_lse, mask=at.inside)


@triton.jit
def backward(
    inputs,
    numbers,
    mean_weight,
    lse,
    row_scale,
    out,
    PER_ROW: tl.constexpr,
    SWITCHES: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient from the log-sum-exp."""
    terms = terms_of(inputs, numbers, mean_weight)
    at = read_labels(inputs, terms, tl.program_id(0), ROWS)
    found_lse = tl.load(lse + at.g, mask=at.inside, other=0.0)
    reference, total = from_lse(found_lse, WIDE)
    mass = target_masses(inputs, terms, at, WIDE, ROWS, BLOCK)
    normal = Normal(reference, total, mass, mass)
    factor, target_factor = factors(normal, found_lse, row_scale, terms, at, PER_ROW, SWITCHES)
    gradients(inputs, terms, at, reference, factor, target_factor, out, SWITCHES, WIDE, BLOCK)


@triton.jit
def forward_backward(
    inputs,
    numbers,
    mean_weight,
    row_scale,
    finished,
    loss,
    lse,
    out,
    PER_ROW: tl.constexpr,
    SWITCHES: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Loss, log-sum-exp and gradient. If `finished` holds 1, there is nothing left to do."""
    if finished is not None:  # noqa: SIM102
        if tl.load(finished) == 1.0:  # not `and`: without the number there is nothing to compile
            return
    terms = terms_of(inputs, numbers, mean_weight)
    at = read_labels(inputs, terms, tl.program_id(0), ROWS)
    label_z, _ = transform(load_label(inputs, at, WIDE), terms, SWITCHES)
    normal = normalise(inputs, terms, at, KEPT, SWITCHES, WIDE, ROWS, BLOCK)
    found_loss, found_lse = losses(normal, label_z, terms, at, SWITCHES)
    tl.store(loss + at.g, found_loss.to(WIDE), mask=at.inside)
    tl.store(lse + at.g, found_lse, mask=at.inside)
    factor, target_factor = factors(normal, found_lse, row_scale, terms, at, PER_ROW, SWITCHES)
    gradients(inputs, terms, at, normal.reference, factor, target_factor, out, SWITCHES, WIDE, BLOCK)


@triton.jit
def statistics(
    inputs,
    numbers,
    mean_weight,
    log_prob,
    entropy,
    lse,
    argmax,
    rank,
    SWITCHES: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Log-probability and rank of the label, entropy, log-sum-exp and argmax."""
    terms = terms_of(inputs, numbers, mean_weight)
    at = read_labels(inputs, terms, tl.program_id(0), ROWS)
    label_x = load_label(inputs, at, WIDE)
    label_z, _ = transform(label_x, terms, SWITCHES)
    order = order_and_slope(inputs, terms, at, label_x, SWITCHES, WIDE, ROWS, BLOCK)
    reference, log_total = order.normal.reference.to(tl.float64), log(order.normal.total)
    found = label_z.to(tl.float64) - reference - log_total
    tl.store(log_prob + at.g, tl.where(at.readable, found, at.without_label).to(WIDE), mask=at.inside)
    tl.store(entropy + at.g, (log_total - order.slope / order.normal.total).to(WIDE), mask=at.inside)
    tl.store(lse + at.g, reference + log_total, mask=at.inside)
    tl.store(argmax + at.g, order.best_at, mask=at.inside)
    tl.store(rank + at.g, tl.where(at.readable, order.above, -1), mask=at.inside)


@triton.jit
def statistics_gradient(
    inputs,
    numbers,
    mean_weight,
    lse,
    entropy,
    d_log_prob,
    d_entropy,
    d_lse,
    out,
    SWITCHES: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient of the statistics, from the log-sum-exp and the entropy that `statistics` found.

        dx = (d_log_prob * (one_hot - q) - d_entropy * q * (log q + H) + d_lse * q) * dz/dx

    A masked class has gradient 0. A row without a label keeps the shares of entropy and log-sum-exp.
    """
    terms = terms_of(inputs, numbers, mean_weight)
    at = read_labels(inputs, terms, tl.program_id(0), ROWS)
    found_lse = tl.load(lse + at.g, mask=at.inside, other=0.0)
    # In two numbers of the width of the logits, so that no digit of the log-sum-exp is lost.
    reference = found_lse.to(WIDE)
    rest = (found_lse - reference.to(tl.float64)).to(WIDE)
    of_label = tl.load(d_log_prob + at.g, mask=at.readable, other=0.0).to(tl.float64)
    plain = (tl.load(d_lse + at.g, mask=at.inside, other=0.0).to(tl.float64) - of_label).to(WIDE)
    sloped = tl.load(d_entropy + at.g, mask=at.inside, other=0.0).to(WIDE)
    shift = tl.load(entropy + at.g, mask=at.inside, other=0.0).to(WIDE)
    for start in range(0, inputs.classes, BLOCK):
        j = start + tl.arange(0, BLOCK)
        mask = at.inside[:, None] & (j < inputs.classes)[None, :]
        z, derivative = transform(load(logits_of(inputs), inputs, at.g, j, mask, DONE, WIDE), terms, SWITCHES)
        log_q = (z - reference[:, None]) - rest[:, None]
        shifted = tl.where(log_q == float("-inf"), 0.0, log_q + shift[:, None])
        gradient = exp(log_q) * (plain[:, None] - sloped[:, None] * shifted)
        gradient += tl.where(j[None, :] == at.label[:, None], of_label.to(WIDE)[:, None], 0.0)
        if SWITCHES.capped:
            gradient *= derivative
        elif SWITCHES.scaled:
            gradient *= terms.scale.to(WIDE)
        store(out, inputs, at.g, j, gradient, mask)


@triton.jit
def scale(numbers, factor, size, BLOCK: tl.constexpr):
    """Multiply numbers that lie side by side by one factor, unless that is 1."""
    by = tl.load(factor)
    if by != 1.0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(numbers + at, mask=at < size)
        tl.store(numbers + at, (x * by).to(x.dtype), mask=at < size)
