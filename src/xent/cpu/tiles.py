"""Kernels for few classes with many rows, and for a class axis that is not the last: the loop runs over positions.

The equations are those of rows.py. A tile holds all classes of up to 256 positions as a (classes, width) scratch in the
first- or second-level cache; each step of blocks.py runs over the positions of one class, and maxima and sums are kept
per position. Logits (N, C, S) lie like that already and are loaded a class at a time. Rows (N, C) are transposed on the
way into and out of the scratch: @TRANSPOSE@
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from xent.cpu.blocks import (
    Inputs,
    load,
    multiply,
    share_of_label,
    target_distribution,
    terms_of,
    transform,
    without_label,
)
from xent.cpu.compilation import allocator, device, kernel
from xent.cpu.formats import decode, encode, scratch, store, streams_done
from xent.cpu.primitives import exp, fused_multiply_add, log, maximum

WIDTH = 256  # positions; 1 kB of float32, and scratch for 64 classes is 64 kB
CELLS = 2**15  # of a tile, unless that leaves fewer than NARROW positions
NARROW = 32
GROUP = 16  # classes whose exponentials are added up before they go to float64


class Scratch(NamedTuple):
    """A tile (z, derivative, t: classes * width numbers), and one number for each of its positions."""

    width: int
    z: Any
    derivative: Any
    t: Any
    staging: Any
    highest: Any
    partial: Any
    total: Any
    log_total: Any
    terms: Any
    mass: Any
    label_z: Any
    factor: Any
    target_factor: Any
    slope: Any
    best: Any
    best_at: Any
    above: Any


@allocator
def scratch_for(inputs: Any, terms: Any) -> Any:
    """Allocate what one thread needs."""
    logits = inputs.logits
    width = max(NARROW, min(WIDTH, CELLS // inputs.classes))
    cells = inputs.classes * width
    return Scratch(
        width,
        scratch(logits, cells),
        scratch(logits, cells if terms.softcap != 0.0 else 0),
        scratch(logits, cells if terms.dense else 0),
        np.empty(width, logits.dtype),
        scratch(logits, width),
        scratch(logits, width),
        np.empty(width, np.float64),
        np.empty(width, np.float64),
        np.empty(width, np.float64),
        np.empty(width, np.float64),
        scratch(logits, width),
        scratch(logits, width),
        scratch(logits, width),
        np.empty(width, np.float64),
        scratch(logits, width),
        np.empty(width, np.int32),
        np.empty(width, np.int32),
    )


# --------------------------------------------------------------------------------------- a tile from memory and back


@device
def tile_size(inputs: Any, own: Any, g: int, last: int) -> int:
    """Number of positions of the tile that begins at position g."""
    size = min(own.width, last - g)
    return min(size, inputs.inner - g % inputs.inner) if is_contiguous(inputs) else size


@device
def is_contiguous(inputs: Any) -> bool:
    """Whether neighbouring positions lie side by side, enough of them for vector loads."""
    return inputs.inner >= NARROW


@device
def load_tile(stored: Any, outer_stride: int, inputs: Any, g: int, size: int, width: int, z: Any) -> None:
    """z[class, position] = the stored numbers of `size` positions from g."""
    classes, inner = inputs.classes, inputs.inner
    if is_contiguous(inputs):
        begin = g // inner * outer_stride + g % inner
        for j in range(classes):
            load(stored[begin + j * inner : begin + j * inner + size], z[j * width : j * width + size])
    else:
        for p in range(size):
            begin = (g + p) // inner * outer_stride + (g + p) % inner
            row = stored[begin : begin + (classes - 1) * inner + 1]
            column = z[p:]
            for j in range(classes):
                column[j * width] = decode(row[j * inner])


@device
def store_tile(out: Any, inputs: Any, g: int, size: int, own: Any, streaming: bool) -> None:
    """Store z as the gradient of `size` positions from g."""
    classes, inner, width = inputs.classes, inputs.inner, own.width
    if is_contiguous(inputs):
        begin = g // inner * classes * inner + g % inner
        for j in range(classes):
            z = own.z[j * width : j * width + size]
            store(out[begin + j * inner : begin + j * inner + size], z, own.staging, streaming)
    else:
        for p in range(size):
            begin = (g + p) // inner * classes * inner + (g + p) % inner
            row = out[begin : begin + (classes - 1) * inner + 1]
            column = own.z[p:]
            for j in range(classes):
                row[j * inner] = encode(column[j * width], out)


# ---------------------------------------------------------------------------------------------- steps over positions


@device
def raise_to(highest: Any, z: Any) -> None:
    """highest = the larger of highest and z."""
    for p in range(len(z)):
        highest[p] = maximum(highest[p], z[p])


@device
def exponentials_into(partial: Any, z: Any, reference: Any) -> None:
    """z = exp(z - reference), partial = partial + z."""
    for p in range(len(z)):
        z[p] = exp(z[p] - reference[p])
        partial[p] = partial[p] + z[p]


@device
def slope_into(slope: Any, z: Any, reference: Any) -> None:
    """slope = slope + exp(z - reference) * (z - reference); a masked class adds 0."""
    for p in range(len(z)):
        below = z[p] - reference[p]
        below = z.dtype.type(-1000) if below < -1000 else below
        slope[p] = slope[p] + exp(below) * below


@device
def flush(total: Any, partial: Any) -> None:
    """total = total + partial, partial = 0."""
    for p in range(len(partial)):
        total[p] = total[p] + np.float64(partial[p])
        partial[p] = 0


@device
def target_terms_into(terms: Any, mass: Any, z: Any, t: Any, reference: Any) -> None:
    """terms = terms + t * (reference - z), mass = mass + t; without target 0 is added even if z is -inf."""
    for p in range(len(z)):
        term = np.float64(t[p] * (reference[p] - z[p]))
        terms[p] = terms[p] + (term if t[p] != 0 else 0.0)
        mass[p] = mass[p] + np.float64(t[p])


@device
def mass_into(mass: Any, t: Any) -> None:
    """mass = mass + t."""
    for p in range(len(t)):
        mass[p] = mass[p] + np.float64(t[p])


@device
def scaled(z: Any, factor: Any) -> None:
    """z = factor * z."""
    for p in range(len(z)):
        z[p] = factor[p] * z[p]


@device
def scaled_less_target(z: Any, factor: Any, t: Any, target_factor: Any) -> None:
    """z = factor * z - target_factor * t."""
    for p in range(len(z)):
        z[p] = fused_multiply_add(factor[p], z[p], -(target_factor[p] * t[p]))


@device
def order_into(best: Any, best_at: Any, above: Any, z: Any, label_x: Any, j: int) -> None:
    """Count the classes above the label, and keep the first maximum (the first NaN, if there is one)."""
    for p in range(len(z)):
        above[p] = above[p] + np.int32(z[p] > label_x[p])
        better = z[p] > best[p] or (z[p] != z[p] and best[p] == best[p])
        best[p] = z[p] if better else best[p]
        best_at[p] = np.int32(j) if better else best_at[p]


@device
def logarithms(log_total: Any, total: Any) -> None:
    """log_total = log(total)."""
    for p in range(len(total)):
        log_total[p] = log(total[p])


@device
def clear(array: Any, value: Any) -> None:
    """Set every number."""
    for p in range(len(array)):
        array[p] = value


# ---------------------------------------------------------------------------------------------------- steps over tiles


@device
def label_of(inputs: Any, g: int) -> int:
    """Label of position g; -1 for soft targets, -2 if it is no class."""
    if len(inputs.labels) == 0:
        return -1
    return inputs.labels[g] if 0 <= inputs.labels[g] < inputs.classes else -2


@device
def prepare_targets(inputs: Any, terms: Any, g: int, size: int, own: Any) -> None:
    """t of a tile, without the shares of the labels."""
    if not terms.dense:
        return
    if len(inputs.soft):
        load_tile(inputs.soft, inputs.classes * inputs.inner, inputs, g, size, own.width, own.t)
    for j in range(inputs.classes):
        weight = np.float64(inputs.weight[j]) if len(inputs.weight) else 1.0
        t = own.t[j * own.width : j * own.width + size]
        target_distribution(t, t if len(inputs.soft) else t[:0], terms.on * weight, terms.off * weight)


@device
def transform_tile(inputs: Any, terms: Any, size: int, own: Any) -> None:
    """z of a tile, from the logits."""
    if terms.scale != 1.0 or terms.softcap != 0.0:
        for j in range(inputs.classes):
            cells = slice(j * own.width, j * own.width + size)
            transform(own.z[cells], own.derivative[cells], terms)


@device
def pick_labels(picked: Any, inputs: Any, g: int, size: int, own: Any, otherwise: Any) -> None:
    """What z is at the labels."""
    for p in range(size):
        label = label_of(inputs, g + p)
        picked[p] = own.z[label * own.width + p] if label >= 0 else otherwise


@device
def normalisers(inputs: Any, terms: Any, size: int, own: Any) -> None:
    """z = exp(z - highest), and highest, total, terms and mass of each position."""
    highest, partial = own.highest[:size], own.partial[:size]
    total, target, mass = own.total[:size], own.terms[:size], own.mass[:size]
    clear(highest, highest.dtype.type(-np.inf))
    clear(partial, partial.dtype.type(0))
    clear(total, 0.0)
    clear(target, 0.0)
    clear(mass, 0.0)
    for j in range(inputs.classes):
        raise_to(highest, own.z[j * own.width : j * own.width + size])
    for j in range(inputs.classes):
        cells = slice(j * own.width, j * own.width + size)
        if terms.dense:
            target_terms_into(target, mass, own.z[cells], own.t[cells], highest)
        exponentials_into(partial, own.z[cells], highest)
        if j % GROUP == GROUP - 1 or j == inputs.classes - 1:
            flush(total, partial)
    logarithms(own.log_total[:size], total)


@device
def losses(inputs: Any, terms: Any, g: int, size: int, own: Any, loss: Any, lse: Any) -> None:
    """Loss and log-sum-exp of the positions of a tile."""
    for p in range(size):
        log_total = own.log_total[p]
        found = np.float64(own.highest[p]) + log_total
        value = own.terms[p] + own.mass[p] * log_total
        label = label_of(inputs, g + p)
        if label >= 0:
            share = share_of_label(inputs.weight, label, terms)
            if share != 0.0:
                value += share * (log_total + (np.float64(own.highest[p]) - np.float64(own.label_z[p])))
        if terms.z_loss != 0.0:
            value += terms.z_loss * found * found
        if label == -2:
            value = found = without_label(inputs.labels[g + p], terms)
        loss[g + p] = value if found == found else np.nan
        lse[g + p] = found


@device
def gradients(
    inputs: Any, terms: Any, g: int, size: int, own: Any, lse: Any, row_scale: Any, out: Any, streaming: bool
) -> None:
    """out = row_scale * ((sum(t) + 2 * z_loss * lse) * exp(z - highest) / total - t) * dz/dx, from z = exp(z - highest)."""
    number, width = own.z.dtype.type, own.width
    for p in range(size):
        label = label_of(inputs, g + p)
        share = share_of_label(inputs.weight, label, terms) if label >= 0 else 0.0
        scale = row_scale[(g + p) % len(row_scale)]
        own.target_factor[p] = number(scale if terms.softcap != 0.0 else scale * terms.scale)
        outer = np.float64(own.target_factor[p])
        own.factor[p] = number((own.mass[p] + share + 2.0 * terms.z_loss * lse[g + p]) * outer / own.total[p])
    factor, target_factor = own.factor[:size], own.target_factor[:size]
    for j in range(inputs.classes):
        cells = slice(j * width, j * width + size)
        if terms.dense:
            scaled_less_target(own.z[cells], factor, own.t[cells], target_factor)
        else:
            scaled(own.z[cells], factor)
    for p in range(size):
        label = label_of(inputs, g + p)
        if label >= 0:
            share = share_of_label(inputs.weight, label, terms)
            own.z[label * width + p] -= number(share * np.float64(own.target_factor[p]))
        elif label == -2:
            value = number(without_label(inputs.labels[g + p], terms))
            for j in range(inputs.classes):
                own.z[j * width + p] = value
                if terms.softcap != 0.0:
                    own.derivative[j * width + p] = 1
    if terms.softcap != 0.0:
        for j in range(inputs.classes):
            cells = slice(j * width, j * width + size)
            multiply(own.z[cells], own.derivative[cells])
    store_tile(out, inputs, g, size, own, streaming)


@device
def prepare(inputs: Any, terms: Any, g: int, size: int, own: Any) -> None:
    """z and t of a tile."""
    load_tile(inputs.logits, inputs.outer_stride, inputs, g, size, own.width, own.z)
    transform_tile(inputs, terms, size, own)
    prepare_targets(inputs, terms, g, size, own)


@device
def forward_tile(inputs: Any, terms: Any, g: int, size: int, own: Any, loss: Any, lse: Any) -> None:
    """Loss and log-sum-exp of a tile; leaves what its gradient needs."""
    prepare(inputs, terms, g, size, own)
    pick_labels(own.label_z, inputs, g, size, own, own.z.dtype.type(0))
    normalisers(inputs, terms, size, own)
    losses(inputs, terms, g, size, own, loss, lse)


@device
def backward_tile(
    inputs: Any, terms: Any, g: int, size: int, own: Any, lse: Any, row_scale: Any, out: Any, streaming: bool
) -> None:
    """Gradient of a tile from its log-sum-exp."""
    prepare(inputs, terms, g, size, own)
    clear(own.mass, 0.0)
    for p in range(size):
        # exp(z - lse) = exp(z - highest) / total: what lse loses as a float32 goes into total.
        own.highest[p] = own.z.dtype.type(lse[g + p])
        own.total[p] = exp(lse[g + p] - np.float64(own.highest[p]))
    for j in range(inputs.classes):
        cells = slice(j * own.width, j * own.width + size)
        exponentials_into(own.partial[:size], own.z[cells], own.highest[:size])
        if terms.dense:
            mass_into(own.mass[:size], own.t[cells])
    gradients(inputs, terms, g, size, own, lse, row_scale, out, streaming)


@device
def statistics_tile(
    inputs: Any, terms: Any, g: int, size: int, own: Any, log_prob: Any, entropy: Any, lse: Any, argmax: Any, rank: Any
) -> None:
    """Statistics of a tile."""
    load_tile(inputs.logits, inputs.outer_stride, inputs, g, size, own.width, own.z)
    # Order is that of the logits themselves: rounding in scale and softcap could make ties.
    pick_labels(own.label_z, inputs, g, size, own, own.z.dtype.type(np.inf))
    clear(own.best, own.z.dtype.type(-np.inf))
    clear(own.best_at, np.int32(0))
    clear(own.above, np.int32(0))
    for j in range(inputs.classes):
        z = own.z[j * own.width : j * own.width + size]
        order_into(own.best, own.best_at, own.above, z, own.label_z, j)
    transform_tile(inputs, terms, size, own)
    pick_labels(own.label_z, inputs, g, size, own, own.z.dtype.type(0))
    clear(own.slope, 0.0)
    clear(own.highest, own.z.dtype.type(-np.inf))
    for j in range(inputs.classes):
        raise_to(own.highest[:size], own.z[j * own.width : j * own.width + size])
    for j in range(inputs.classes):
        slope_into(own.slope[:size], own.z[j * own.width : j * own.width + size], own.highest[:size])
    normalisers(inputs, terms, size, own)
    for p in range(size):
        label = label_of(inputs, g + p)
        lse[g + p] = np.float64(own.highest[p]) + own.log_total[p]
        entropy[g + p] = own.log_total[p] - own.slope[p] / own.total[p]
        argmax[g + p] = own.best_at[p]
        rank[g + p] = own.above[p] if label >= 0 else -1
        if label >= 0:
            log_prob[g + p] = (np.float64(own.label_z[p]) - np.float64(own.highest[p])) - own.log_total[p]
        else:
            log_prob[g + p] = without_label(inputs.labels[g + p], terms)


# ------------------------------------------------------------------------------------------------------------- kernels


@kernel
def forward(
    logits: Any, outer_stride: int, classes: int, inner: int, labels: Any, soft: Any, weight: Any, options: Any,
    ignore_index: int, loss: Any, lse: Any, first: int, last: int,
) -> None:
    """Loss and log-sum-exp of the positions from first to last."""
    inputs = Inputs(logits, outer_stride, classes, inner, labels, soft, weight)
    terms = terms_of(options, ignore_index, inputs)
    own = scratch_for(inputs, terms)
    g = first
    while g < last:
        size = tile_size(inputs, own, g, last)
        forward_tile(inputs, terms, g, size, own, loss, lse)
        g += size


@kernel
def backward(
    logits: Any, outer_stride: int, classes: int, inner: int, labels: Any, soft: Any, weight: Any, options: Any,
    ignore_index: int, lse: Any, row_scale: Any, out: Any, streaming: bool, first: int, last: int,
) -> None:
    """Gradient of the positions from first to last, from their log-sum-exp."""
    inputs = Inputs(logits, outer_stride, classes, inner, labels, soft, weight)
    terms = terms_of(options, ignore_index, inputs)
    own = scratch_for(inputs, terms)
    g = first
    while g < last:
        size = tile_size(inputs, own, g, last)
        backward_tile(inputs, terms, g, size, own, lse, row_scale, out, streaming)
        g += size
    streams_done()


@kernel
def forward_backward(
    logits: Any, outer_stride: int, classes: int, inner: int, labels: Any, soft: Any, weight: Any, options: Any,
    ignore_index: int, row_scale: Any, loss: Any, lse: Any, out: Any, streaming: bool, first: int, last: int,
) -> None:
    """Loss, log-sum-exp and gradient of the positions from first to last."""
    inputs = Inputs(logits, outer_stride, classes, inner, labels, soft, weight)
    terms = terms_of(options, ignore_index, inputs)
    own = scratch_for(inputs, terms)
    g = first
    while g < last:
        size = tile_size(inputs, own, g, last)
        forward_tile(inputs, terms, g, size, own, loss, lse)
        gradients(inputs, terms, g, size, own, lse, row_scale, out, streaming)
        g += size
    streams_done()


@kernel
def statistics(
    logits: Any, outer_stride: int, classes: int, inner: int, labels: Any, soft: Any, weight: Any, options: Any,
    ignore_index: int, log_prob: Any, entropy: Any, lse: Any, argmax: Any, rank: Any, first: int, last: int,
) -> None:
    """Log-probability and rank of the label, entropy, log-sum-exp and argmax of the positions from first to last."""
    inputs = Inputs(logits, outer_stride, classes, inner, labels, soft, weight)
    terms = terms_of(options, ignore_index, inputs)
    own = scratch_for(inputs, terms)
    g = first
    while g < last:
        size = tile_size(inputs, own, g, last)
        statistics_tile(inputs, terms, g, size, own, log_prob, entropy, lse, argmax, rank)
        g += size
