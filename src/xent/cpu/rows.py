"""Kernels for rows whose classes lie side by side, enough of them to fill the vector registers.

    forward   lse = log(sum(exp(z))),  loss = sum(t * (lse - z)) + z_loss * lse**2
    backward  dx = row_scale * ((sum(t) + 2 * z_loss * lse) * exp(z - lse) - t) * dz/dx

A row is visited in blocks of 2048 classes, which stay in the first-level cache while each step of blocks.py runs over
them. The log-sum-exp is kept as a running maximum and the sum of the exponentials relative to it; a block is summed in
float32 over the lanes of the vector registers (a few dozen additions each), the blocks in float64.

`forward_backward` keeps the exponentials of a row, in the second-level cache, for its gradient: 0.23 ns per logit on one
core, against 0.35 when they are computed again (float32, 50257 classes), and 1.33 against 1.47 times a copy of
2048 x 50257. Beyond KEPT classes they are computed again, so that scratch stays small.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from xent.cpu.blocks import (
    Inputs,
    count_above,
    exponentials,
    exponentials_and_slope,
    first_at,
    load,
    load_transformed,
    multiply,
    scaled,
    scaled_less_target,
    share_of_label,
    target_distribution,
    target_terms,
    terms_of,
    transform,
    weighted,
    without_label,
)
from xent.cpu.compilation import allocator, device, kernel
from xent.cpu.formats import decode, encode, scratch, store, streams_done
from xent.cpu.primitives import exp, log, raise_maximum

BLOCK = 2048
KEPT = 2**19


class Row(NamedTuple):
    """The input of one row; `label` is -1 for soft targets."""

    logits: Any
    soft: Any
    weight: Any
    label: int


class Scratch(NamedTuple):
    """One block of each, or one row of z and derivative if they are kept for the gradient."""

    z: Any
    derivative: Any
    t: Any
    staging: Any
    single: Any
    references: Any
    kept: bool


class Normaliser(NamedTuple):
    """lse = reference + log(total); loss = terms + mass * log(total) without the share of a label; mass = sum(t)."""

    reference: Any
    total: float
    terms: float
    mass: float


@allocator
def scratch_for(inputs: Any, terms: Any, kept: bool) -> Any:
    """Allocate what one thread needs."""
    logits, block = inputs.logits, min(inputs.classes, BLOCK)
    size = inputs.classes if kept else block
    return Scratch(
        scratch(logits, size),
        scratch(logits, size if terms.softcap != 0.0 else 0),
        scratch(logits, block if terms.dense else 0),
        np.empty(block, logits.dtype),
        scratch(logits, 2),
        scratch(logits, inputs.classes // BLOCK + 1),
        kept,
    )


@device
def row_of(inputs: Any, r: int) -> Any:
    """Return row r."""
    classes = inputs.classes
    first = r * inputs.outer_stride
    begin, end = (r * classes, (r + 1) * classes) if len(inputs.soft) else (0, 0)
    label = inputs.labels[r] if len(inputs.labels) else -1
    return Row(inputs.logits[first : first + classes], inputs.soft[begin:end], inputs.weight, label)


@device
def has_no_label(row: Any, inputs: Any) -> bool:
    """Whether the label of a row is no class."""
    return len(inputs.labels) > 0 and not 0 <= row.label < inputs.classes


@device
def block_of(own: Any, start: int, stop: int) -> Any:
    """Return z, derivative and t of the classes from start to stop."""
    at, size = (start if own.kept else 0), stop - start
    return own.z[at : at + size], own.derivative[at : at + size], own.t[:size]


@device
def target_block(t: Any, row: Any, start: int, stop: int, terms: Any) -> None:
    """t of the classes from start to stop, without the share of a label."""
    target_distribution(t, row.soft[start:stop], terms.on, terms.off)
    if len(row.weight):
        weighted(t, row.weight[start:stop])


@device
def target_mass(row: Any, terms: Any, own: Any) -> float:
    """sum(t), without the share of a label."""
    mass = 0.0
    if terms.dense:
        for start in range(0, len(row.logits), BLOCK):
            stop = min(start + BLOCK, len(row.logits))
            _, _, t = block_of(own, start, stop)
            target_block(t, row, start, stop, terms)
            mass += target_terms(t, t, t.dtype.type(0))[1]
    return mass


@device
def normaliser(row: Any, terms: Any, own: Any) -> Any:
    """Visit a row once: return what its loss is made of, leave exp(z - reference of the block)."""
    classes = len(row.logits)
    highest = own.z.dtype.type(-np.inf)
    total, target, mass = 0.0, 0.0, 0.0
    for start in range(0, classes, BLOCK):
        stop = min(start + BLOCK, classes)
        z, derivative, t = block_of(own, start, stop)
        before = highest
        m = load_transformed(row.logits[start:stop], z, derivative, terms)
        highest, total = raise_maximum(highest, total, m)
        # Nothing but masked classes so far: any finite reference makes their exponentials 0.
        reference = highest if highest != -np.inf else own.z.dtype.type(0)
        if terms.dense:
            if mass != 0.0:
                target += mass * (np.float64(highest) - np.float64(before))
            target_block(t, row, start, stop, terms)
            block_target, block_mass = target_terms(z, t, reference)
            target += block_target
            mass += block_mass
        total += np.float64(exponentials(z, reference))
        own.references[start // BLOCK] = reference
    return Normaliser(highest, total if highest != -np.inf else np.nan, target, mass)


@device
def label_logit(row: Any, terms: Any, own: Any) -> float:
    """z of the label."""
    one = row.logits[row.label : row.label + 1]
    return np.float64(load_transformed(one, own.single[:1], own.single[1:], terms))


@device
def row_loss(row: Any, found: Any, terms: Any, own: Any) -> Any:
    """Return the loss and the log-sum-exp."""
    log_total = log(found.total)
    lse = np.float64(found.reference) + log_total
    loss = found.terms + found.mass * log_total
    if row.label >= 0:
        share = share_of_label(row.weight, row.label, terms)
        if share != 0.0:
            # In this order a common offset of all logits cancels exactly.
            loss += share * (log_total + (np.float64(found.reference) - label_logit(row, terms, own)))
    if terms.z_loss != 0.0:
        loss += terms.z_loss * lse * lse
    return (loss if lse == lse else np.nan), lse


@device
def row_gradient(row: Any, found: Any, lse: float, row_scale: Any, terms: Any, own: Any, out: Any, streaming: bool) -> None:
    """out = row_scale * ((sum(t) + 2 * z_loss * lse) * exp(z - lse) - t) * dz/dx."""
    number = own.z.dtype.type
    share = share_of_label(row.weight, row.label, terms) if row.label >= 0 else 0.0
    # The derivative of the softcap has the logit scale in it.
    target_factor = number(row_scale if terms.softcap != 0.0 else row_scale * terms.scale)
    outer = np.float64(target_factor)
    factor = (found.mass + share + 2.0 * terms.z_loss * lse) * outer / found.total
    label_share = number(share * outer)
    for start in range(0, len(out), BLOCK):
        stop = min(start + BLOCK, len(out))
        z, derivative, t = block_of(own, start, stop)
        reference = own.references[start // BLOCK] if own.kept else found.reference
        if not own.kept:
            load_transformed(row.logits[start:stop], z, derivative, terms)
            exponentials(z, reference)
        block_factor = number(factor * exp(np.float64(reference) - np.float64(found.reference)))
        if terms.dense:
            target_block(t, row, start, stop, terms)
            scaled_less_target(z, block_factor, t, target_factor)
        else:
            scaled(z, block_factor)
        if start <= row.label < stop:
            z[row.label - start] -= label_share
        if terms.softcap != 0.0:
            multiply(z, derivative)
        store(out[start:stop], z, own.staging, streaming)


@device
def fill(out: Any, value: float) -> None:
    """Fill a row of the gradient."""
    out[0] = 0  # whatever the memory held: its bits times 0 could be NaN
    stored = encode(decode(out[0]) + value, out)
    for i in range(len(out)):
        out[i] = stored


@device
def forward_row(r: int, inputs: Any, terms: Any, own: Any, loss: Any, lse: Any) -> None:
    """One row of `forward`."""
    row = row_of(inputs, r)
    if has_no_label(row, inputs):
        loss[r] = lse[r] = without_label(row.label, terms)
    else:
        loss[r], lse[r] = row_loss(row, normaliser(row, terms, own), terms, own)


@device
def backward_row(
    r: int, inputs: Any, terms: Any, own: Any, lse: Any, row_scale: Any, out: Any, streaming: bool
) -> None:
    """One row of `backward`."""
    row = row_of(inputs, r)
    if has_no_label(row, inputs):
        fill(out, without_label(row.label, terms))
    else:
        # exp(z - lse) = exp(z - reference) / total: what lse loses as a float32 goes into total.
        reference = own.z.dtype.type(lse[r])
        total = exp(lse[r] - np.float64(reference))
        found = Normaliser(reference, total, 0.0, target_mass(row, terms, own))
        row_gradient(row, found, lse[r], row_scale[r % len(row_scale)], terms, own, out, streaming)


@device
def forward_backward_row(
    r: int, inputs: Any, terms: Any, own: Any, row_scale: Any, loss: Any, lse: Any, out: Any, streaming: bool
) -> None:
    """One row of `forward_backward`."""
    row = row_of(inputs, r)
    if has_no_label(row, inputs):
        loss[r] = lse[r] = without_label(row.label, terms)
        fill(out, loss[r])
    else:
        found = normaliser(row, terms, own)
        loss[r], lse[r] = row_loss(row, found, terms, own)
        row_gradient(row, found, lse[r], row_scale[r % len(row_scale)], terms, own, out, streaming)


@device
def statistics_row(
    r: int, inputs: Any, terms: Any, own: Any, log_prob: Any, entropy: Any, lse: Any, argmax: Any, rank: Any
) -> None:
    """One row of `statistics`."""
    row = row_of(inputs, r)
    classes = len(row.logits)
    known = not has_no_label(row, inputs)
    label_x = decode(row.logits[row.label]) if known else own.z.dtype.type(np.inf)
    highest = best = own.z.dtype.type(-np.inf)
    total, slope, above, best_at = 0.0, 0.0, 0, 0
    for start in range(0, classes, BLOCK):
        stop = min(start + BLOCK, classes)
        z, derivative, _ = block_of(own, start, stop)
        m = load(row.logits[start:stop], z)
        # Order is that of the logits themselves: rounding in scale and softcap could make ties.
        above += count_above(z, label_x)
        if m > best or (m != m and best == best):
            best, best_at = m, start + first_at(z, m)
        if terms.scale != 1.0 or terms.softcap != 0.0:
            m = transform(z, derivative, terms)
        before = highest
        highest, total = raise_maximum(highest, total, m)
        if total != 0.0:
            down = np.float64(before) - np.float64(highest)
            slope = slope * exp(down) + total * down
        block_total, block_slope = exponentials_and_slope(z, highest if highest != -np.inf else z.dtype.type(0))
        total += block_total
        slope += block_slope
    log_total = log(total) if highest != -np.inf else np.nan
    lse[r] = np.float64(highest) + log_total
    entropy[r] = log_total - slope / total
    argmax[r] = best_at
    if known:
        log_prob[r] = (label_logit(row, terms, own) - np.float64(highest)) - log_total
        rank[r] = above
    else:
        log_prob[r] = without_label(row.label, terms)
        rank[r] = -1


@kernel
def forward(
    logits: Any, outer_stride: int, classes: int, inner: int, labels: Any, soft: Any, weight: Any, options: Any,
    ignore_index: int, loss: Any, lse: Any, first: int, last: int,
) -> None:
    """Loss and log-sum-exp of the rows from first to last."""
    inputs = Inputs(logits, outer_stride, classes, inner, labels, soft, weight)
    terms = terms_of(options, ignore_index, inputs)
    own = scratch_for(inputs, terms, False)
    for r in range(first, last):
        forward_row(r, inputs, terms, own, loss, lse)


@kernel
def backward(
    logits: Any, outer_stride: int, classes: int, inner: int, labels: Any, soft: Any, weight: Any, options: Any,
    ignore_index: int, lse: Any, row_scale: Any, out: Any, streaming: bool, first: int, last: int,
) -> None:
    """Gradient of the rows from first to last, from their log-sum-exp."""
    inputs = Inputs(logits, outer_stride, classes, inner, labels, soft, weight)
    terms = terms_of(options, ignore_index, inputs)
    own = scratch_for(inputs, terms, False)
    for r in range(first, last):
        row_out = out[r * classes : (r + 1) * classes]
        backward_row(r, inputs, terms, own, lse, row_scale, row_out, streaming)
    streams_done()


@kernel
def forward_backward(
    logits: Any, outer_stride: int, classes: int, inner: int, labels: Any, soft: Any, weight: Any, options: Any,
    ignore_index: int, row_scale: Any, loss: Any, lse: Any, out: Any, streaming: bool, first: int, last: int,
) -> None:
    """Loss, log-sum-exp and gradient of the rows from first to last, each row while it is in the cache."""
    inputs = Inputs(logits, outer_stride, classes, inner, labels, soft, weight)
    terms = terms_of(options, ignore_index, inputs)
    own = scratch_for(inputs, terms, classes <= KEPT)
    for r in range(first, last):
        row_out = out[r * classes : (r + 1) * classes]
        forward_backward_row(r, inputs, terms, own, row_scale, loss, lse, row_out, streaming)
    streams_done()


@kernel
def statistics(
    logits: Any, outer_stride: int, classes: int, inner: int, labels: Any, soft: Any, weight: Any, options: Any,
    ignore_index: int, log_prob: Any, entropy: Any, lse: Any, argmax: Any, rank: Any, first: int, last: int,
) -> None:
    """Log-probability and rank of the label, entropy, log-sum-exp and argmax of the rows from first to last."""
    inputs = Inputs(logits, outer_stride, classes, inner, labels, soft, weight)
    terms = terms_of(options, ignore_index, inputs)
    own = scratch_for(inputs, terms, False)
    for r in range(first, last):
        statistics_row(r, inputs, terms, own, log_prob, entropy, lse, argmax, rank)
