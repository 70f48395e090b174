"""Loops along the classes of a row, for rows (N, C) with enough classes to fill the vector registers.

Rows of up to 2048 classes are processed several at a time, step by step: while the maximum of one is reduced to a
single number, the next is being loaded.

Longer rows are processed in blocks of 2048 classes, which stay in the first-level cache while each step runs over them.
The log-sum-exp is then a running maximum and the sum of the exponentials relative to it. A block is summed in float32
over the lanes of the vector registers (a few dozen additions each), the blocks in float64.

Where the gradient follows, the exponentials of a row are kept for it: 0.23 ns per logit on one core, against 0.35 when
they are computed again (float32, 50257 classes), and 1.33 against 1.47 times a copy of 2048 x 50257. Beyond 2**19
classes they are computed again, so that scratch stays small.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xent.backends.cpu.blocks import (
    count_above,
    exponentials,
    exponentials_and_slope,
    first_at,
    load,
    load_exponentials,
    load_transformed,
    multiply,
    scaled,
    scaled_less_target,
    sum_of_exponentials,
    target_distribution,
    target_mass,
    target_terms,
    transform,
    weighted,
)
from xent.backends.cpu.compilation import device, sequence
from xent.backends.cpu.formats import decode, encode
from xent.backends.cpu.primitives import exp, raise_maximum
from xent.backends.cpu.streaming import PIECE, is_large, read_ahead, store_large
from xent.backends.cpu.tile import BLOCK, CONFIDENT, in_float32, label_loss_of, without_label

# Between these the sum of exp(z) is used without a reference: its terms are normal numbers, or too small to matter.
LOWEST_TOTAL, HIGHEST_TOTAL = 1e-10, 1e20


@device
def logits_of(inputs: Any, g: int, start: int, stop: int) -> Any:
    """Return (in a tuple) the logits of row g from class start to class stop."""
    first = g * inputs.outer_stride
    return (inputs.logits[first + start : first + stop],)


@device
def block_of(inputs: Any, tile: Any, p: int, start: int, stop: int) -> Any:
    """Return z, derivative and t of the classes from start to stop of the tile's row p."""
    at, size = (p * inputs.classes + start if tile.kept else 0), stop - start
    return tile.z[at : at + size], tile.derivative[at : at + size], tile.t[:size]


@sequence
def target_block(t: Any, inputs: Any, g: int, start: int, stop: int, terms: Any) -> None:
    """t of the classes from start to stop of row g, without the share of a label."""
    first = g * inputs.classes if len(inputs.soft) else 0
    target_distribution(t, inputs.soft[first + start : first + stop], terms.on, terms.off)
    if len(inputs.weight):
        weighted(t, inputs.weight[start:stop])


@device
def skipped(inputs: Any, tile: Any, p: int) -> bool:
    """Whether row p has no valid label; its logits are then not read."""
    return len(inputs.labels) > 0 and tile.label[p] < 0


@sequence
def normalise(inputs: Any, terms: Any, g: int, size: int, tile: Any, gradient: bool) -> None:
    """Set reference, total, terms, mass and label_z of each row; for a gradient, leave exp(z - reference)."""
    untransformed = in_float32(tile)
    if terms is not None:
        untransformed = untransformed and not terms.dense and terms.scale == 1.0 and terms.softcap == 0.0
    for p in range(size):
        tile.reference[p], tile.total[p], tile.elsewhere[p] = 0, 1.0, -1.0
        if terms is not None:
            tile.terms[p], tile.mass[p] = 0.0, terms.label_mass
        if not skipped(inputs, tile, p) and not (untransformed and normalise_at_zero(inputs, g, p, tile, gradient)):
            normalise_at_maximum(inputs, terms, g, p, tile)


@sequence
def normalise_at_zero(inputs: Any, g: int, p: int, tile: Any, gradient: bool) -> bool:
    """`normalise` for one row in one step, with reference 0; whether the sum is far from overflow and underflow."""
    total, elsewhere, zero = 0.0, 0.0, tile.z.dtype.type(0)
    for start in range(0, inputs.classes, PIECE):
        stop = min(start + PIECE, inputs.classes)
        (logits,) = logits_of(inputs, g + p, start, stop)
        if is_large(inputs.logits):
            read_ahead(logits)
        if gradient and tile.kept:
            z, _, _ = block_of(inputs, tile, p, start, stop)
            part = np.float64(load_exponentials(logits, z))
        else:
            part = np.float64(sum_of_exponentials(logits, zero))
        total += part
        elsewhere += 0.0 if start <= tile.label[p] < stop else part
        tile.block_reference[start // BLOCK] = zero
        if not total < HIGHEST_TOTAL:
            return False
    tile.total[p] = total
    if tile.label[p] >= 0:
        tile.label_z[p] = decode(inputs.logits[(g + p) * inputs.outer_stride + tile.label[p]])
    if total > LOWEST_TOTAL:
        tile.elsewhere[p] = elsewhere
        return True
    return False


@sequence
def refine_label_losses(inputs: Any, g: int, size: int, tile: Any) -> None:
    """Set label_loss once more where it is small and the reference is 0: the piece with the label is summed again."""
    for p in range(size):
        if tile.label_loss[p] < CONFIDENT and tile.label[p] >= 0 and tile.elsewhere[p] >= 0.0:
            label, zero = tile.label[p], tile.z.dtype.type(0)
            start = label // PIECE * PIECE
            (before,) = logits_of(inputs, g + p, start, label)
            (after,) = logits_of(inputs, g + p, label + 1, min(start + PIECE, inputs.classes))
            beside = np.float64(sum_of_exponentials(before, zero)) + np.float64(sum_of_exponentials(after, zero))
            tile.label_loss[p] = label_loss_of(tile.elsewhere[p] + beside, p, tile)


@sequence
def normalise_at_maximum(inputs: Any, terms: Any, g: int, p: int, tile: Any) -> None:
    """`normalise` for one row whatever its logits, with the maximum as the reference."""
    highest = tile.z.dtype.type(-np.inf)
    total, target, mass = 0.0, 0.0, 0.0
    for start in range(0, inputs.classes, BLOCK):
        stop = min(start + BLOCK, inputs.classes)
        z, derivative, t = block_of(inputs, tile, p, start, stop)
        before = highest
        (logits,) = logits_of(inputs, g + p, start, stop)
        highest, total = raise_maximum(highest, total, load_transformed(logits, z, derivative, terms))
        if start <= tile.label[p] < stop:
            tile.label_z[p] = z[tile.label[p] - start]
        # Only masked classes so far: any finite reference makes their exponentials 0.
        reference = highest if highest != -np.inf else tile.z.dtype.type(0)
        if terms is not None and terms.dense:
            if mass != 0.0 and highest != before:
                target += mass * (np.float64(highest) - np.float64(before))
            target_block(t, inputs, g + p, start, stop, terms)
            target += target_terms(z, t, reference)
            mass += target_mass(t)
        total += np.float64(exponentials(z, reference))
        tile.block_reference[start // BLOCK] = reference
    tile.reference[p], tile.total[p] = highest, total if highest != -np.inf else np.nan
    if terms is not None:
        tile.terms[p], tile.mass[p] = target, mass if terms.soft else terms.label_mass


@sequence
def target_masses(inputs: Any, terms: Any, g: int, size: int, tile: Any) -> None:
    """Set mass of each row, which a gradient from a saved log-sum-exp needs first."""
    if terms is None:
        return
    for p in range(size):
        tile.mass[p] = terms.label_mass
        if terms.soft:
            for start in range(0, inputs.classes, BLOCK):
                stop = min(start + BLOCK, inputs.classes)
                _, _, t = block_of(inputs, tile, p, start, stop)
                target_block(t, inputs, g + p, start, stop, terms)
                tile.mass[p] += target_mass(t)


@sequence
def gradients(inputs: Any, terms: Any, g: int, size: int, tile: Any, kept: bool, gradient: Any) -> None:
    """out = (factor * exp(z - reference) - target_factor * t) * dz/dx; `kept`: `normalise` left the exponentials."""
    classes = inputs.classes
    for p in range(size):
        row_out = gradient.out[(g + p) * classes : (g + p + 1) * classes]
        if skipped(inputs, tile, p):
            fill(row_out, tile.z.dtype.type(without_label(inputs, g + p)))
            continue
        label_share = tile.z.dtype.type(tile.share[p] * np.float64(tile.target_factor[p]))
        for start in range(0, classes, BLOCK):
            stop = min(start + BLOCK, classes)
            # Scratch of its own for each row only if the exponentials were kept: less of it evicts less from the cache.
            z, derivative, t = block_of(inputs, tile, p if kept else 0, start, stop)
            factor = tile.factor[p]
            if not kept:
                (logits,) = logits_of(inputs, g + p, start, stop)
                load_transformed(logits, z, derivative, terms)
                exponentials(z, tile.reference[p])
            elif classes > BLOCK:
                factor = factor * exp(tile.block_reference[start // BLOCK] - tile.reference[p])
            at = tile.label[p] - start if start <= tile.label[p] < stop else -1
            if terms is not None and (terms.dense or terms.softcap != 0.0):
                if terms.dense:
                    target_block(t, inputs, g + p, start, stop, terms)
                    scaled_less_target(z, factor, t, tile.target_factor[p])
                else:
                    scaled(z, factor)
                if at >= 0:
                    z[at] -= label_share
                if terms.softcap != 0.0:
                    multiply(z, derivative)
                at, factor = -1, tile.z.dtype.type(1)
            store_large(row_out[start:stop], z, factor, at, label_share, gradient.after, gradient.staging)


@device
def fill(out: Any, value: Any) -> None:
    """Fill a row of the gradient."""
    stored = encode(value, out)
    for i in range(len(out)):
        out[i] = stored


@sequence
def order_and_slope(inputs: Any, terms: Any, g: int, size: int, tile: Any) -> None:
    """Set reference, total and slope, and of the unsoftcapped logits the first maximum and the rank of the label."""
    for p in range(size):
        highest = best = tile.z.dtype.type(-np.inf)
        total, slope, above, best_at = 0.0, 0.0, 0, 0
        label_x = highest
        if tile.label[p] >= 0:
            label_x = decode(inputs.logits[(g + p) * inputs.outer_stride + tile.label[p]])
        for start in range(0, inputs.classes, BLOCK):
            stop = min(start + BLOCK, inputs.classes)
            z, derivative, _ = block_of(inputs, tile, p, start, stop)
            (logits,) = logits_of(inputs, g + p, start, stop)
            m = load(logits, z)
            above += count_above(z, label_x)
            if m > best or (m != m and best == best):
                best, best_at = m, start + first_at(z, m)
            if terms is not None and (terms.scale != 1.0 or terms.softcap != 0.0):
                m = transform(z, derivative, terms)
            if start <= tile.label[p] < stop:
                tile.label_z[p] = z[tile.label[p] - start]
            before = highest
            highest, total = raise_maximum(highest, total, m)
            if total != 0.0:
                shift = np.float64(before) - np.float64(highest)
                slope = slope * exp(shift) + total * shift
            block_total, block_slope = exponentials_and_slope(z, highest if highest != -np.inf else z.dtype.type(0))
            total += block_total
            slope += block_slope
        tile.reference[p], tile.slope[p], tile.above[p], tile.best_at[p] = highest, slope, above, best_at
        tile.total[p] = total if highest != -np.inf else np.nan
