"""Loops across positions, for few classes with many rows and for a class axis that is not the last.

z is a (classes, width) scratch in the first- or second-level cache. Each step runs over the positions of one class;
maxima and sums are kept for each position. Logits (N, C, S) already have this layout and are loaded a class at a time.
Rows (N, C) are transposed on the way into and out of the scratch: in registers (transposition.py), or number by number
if there are so few classes that most of a register would be empty.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xent.backends.cpu._numba import compiles_for
from xent.backends.cpu.blocks import load, multiply, target_distribution, transform
from xent.backends.cpu.compilation import device, sequence
from xent.backends.cpu.formats import decode, encode, store
from xent.backends.cpu.primitives import exp, fused_multiply_add, maximum
from xent.backends.cpu.streaming import store_large
from xent.backends.cpu.tile import CONFIDENT, NARROW, ROW_CLASSES, label_loss_of, without_label
from xent.backends.cpu.transposition import transpose

GROUP = 16  # classes whose exponentials and terms are summed before the sum is added in float64
GATHERED = 4 if compiles_for("avx512f") else ROW_CLASSES
"""Classes up to which rows are transposed number by number.

With AVX2 all are: 8 numbers at a time, of which few are used where there are few classes, 65536 x 10 take half as long
again in registers, forward and backward.
"""
NEAR_ZERO = 40.0  # below it, 0 can replace the maximum as the reference: exponentials and sums stay normal numbers


@sequence
def load_tile(stored: Any, outer_stride: int, inputs: Any, g: int, size: int, tile: Any, z: Any) -> None:
    """z[class, position] = the stored numbers of `size` positions from g."""
    classes, inner, width = inputs.classes, inputs.inner, tile.width
    if inner == 1 and classes <= GATHERED:
        for j in range(classes):
            column, row = stored[g * outer_stride + j :], z[j * width : j * width + size]
            for p in range(size):
                row[p] = decode(column[p * outer_stride])
    elif inner == 1:
        if outer_stride == classes:
            load(stored[g * classes : (g + size) * classes], tile.rows[: size * classes])
        else:
            for p in range(size):
                begin = (g + p) * outer_stride
                load(stored[begin : begin + classes], tile.rows[p * classes : (p + 1) * classes])
        transpose(tile.rows, size, classes, classes, z, width)
    elif inner >= NARROW:
        begin = g // inner * outer_stride + g % inner
        for j in range(classes):
            load(stored[begin + j * inner : begin + j * inner + size], z[j * width : j * width + size])
    else:
        for p in range(size):
            begin = (g + p) // inner * outer_stride + (g + p) % inner
            for j in range(classes):
                z[j * width + p] = decode(stored[begin + j * inner])


@sequence
def store_tile(inputs: Any, g: int, size: int, tile: Any, gradient: Any) -> None:
    """Store after * z as the gradient of `size` positions from g."""
    classes, inner, width, one = inputs.classes, inputs.inner, tile.width, tile.z.dtype.type(1)
    out, last = gradient.out, tile.z.dtype.type(gradient.after)
    if inner == 1 and classes <= GATHERED:
        for j in range(classes):
            column, row = out[g * classes + j :], tile.z[j * width : j * width + size]
            for p in range(size):
                column[p * classes] = encode(last * row[p], out)
    elif inner == 1:
        transpose(tile.z, classes, size, width, tile.rows, classes)
        target, rows = out[g * classes : (g + size) * classes], tile.rows[: size * classes]
        store_large(target, rows, one, -1, one, gradient.after, gradient.staging)
    elif inner >= NARROW:
        begin = g // inner * classes * inner + g % inner
        for j in range(classes):
            z = tile.z[j * width : j * width + size]
            store(out[begin + j * inner : begin + j * inner + size], z, one, -1, one, gradient.after)
    else:
        for p in range(size):
            begin = (g + p) // inner * classes * inner + (g + p) % inner
            for j in range(classes):
                out[begin + j * inner] = encode(last * tile.z[j * width + p], out)


# ---------------------------------------------------------------------------------------------- steps over positions


@device
def raise_to(highest: Any, z: Any) -> None:
    """highest = the larger of highest and z."""
    for p in range(len(z)):
        highest[p] = maximum(highest[p], z[p])


@device
def prefer_zero(reference: Any) -> None:
    """reference = 0 where the maximum is near 0: z - 0 needs no rounding."""
    for p in range(len(reference)):
        reference[p] = 0 if abs(reference[p]) < NEAR_ZERO else reference[p]


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
        shifted = z[p] - reference[p]
        shifted = z.dtype.type(-1000) if shifted < -1000 else shifted
        slope[p] = slope[p] + exp(shifted) * shifted


@device
def flush(total: Any, partial: Any) -> None:
    """total = total + partial, partial = 0."""
    for p in range(len(partial)):
        total[p] = total[p] + np.float64(partial[p])
        partial[p] = 0


@device
def target_terms_into(terms: Any, z: Any, t: Any, reference: Any) -> None:
    """terms = terms + t * (reference - z); where t is 0, 0 is added even if z is -inf."""
    for p in range(len(z)):
        # In float64: the difference of two large float32 numbers may be none.
        term = np.float64(t[p]) * (np.float64(reference[p]) - np.float64(z[p]))
        terms[p] = terms[p] + (term if t[p] != 0 else 0.0)


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
        above[p] = above[p] + np.int64(z[p] > label_x[p])
        better = z[p] > best[p] or (z[p] != z[p] and best[p] == best[p])
        best[p] = z[p] if better else best[p]
        best_at[p] = j if better else best_at[p]


@device
def clear(array: Any, value: float) -> None:
    """Set every number."""
    for p in range(len(array)):
        array[p] = value


# ---------------------------------------------------------------------------------------------------- steps over tiles


@sequence
def prepare(inputs: Any, terms: Any, g: int, size: int, tile: Any) -> None:
    """Set z, and t if the target is more than one label for each position."""
    load_tile(inputs.logits, inputs.outer_stride, inputs, g, size, tile, tile.z)
    if terms is None:
        return
    transform_tile(inputs, terms, size, tile)
    if not terms.dense:
        return
    soft = len(inputs.soft) > 0
    if soft:
        load_tile(inputs.soft, inputs.classes * inputs.inner, inputs, g, size, tile, tile.t)
    for j in range(inputs.classes):
        weight = np.float64(inputs.weight[j]) if len(inputs.weight) else 1.0
        t = tile.t[j * tile.width : j * tile.width + size]
        target_distribution(t, t if soft else t[:0], terms.on * weight, terms.off * weight)


@sequence
def transform_tile(inputs: Any, terms: Any, size: int, tile: Any) -> None:
    """Turn x into z."""
    if terms.scale != 1.0 or terms.softcap != 0.0:
        for j in range(inputs.classes):
            cells = slice(j * tile.width, j * tile.width + size)
            transform(tile.z[cells], tile.derivative[cells], terms)


@device
def pick_labels(size: int, tile: Any) -> None:
    """Set label_z, the z of the label."""
    for p in range(size):
        if tile.label[p] >= 0:
            tile.label_z[p] = tile.z[tile.label[p] * tile.width + p]


@sequence
def take_maximum(inputs: Any, size: int, tile: Any) -> None:
    """Set reference to the maximum of each position."""
    clear(tile.reference, -np.inf)
    for j in range(inputs.classes):
        raise_to(tile.reference[:size], tile.z[j * tile.width : j * tile.width + size])


@sequence
def normalise(inputs: Any, terms: Any, size: int, tile: Any) -> None:
    """Set total, terms and mass of each position; z = exp(z - reference)."""
    reference, partial, total = tile.reference[:size], tile.partial[:size], tile.total[:size]
    partial_terms, partial_mass = tile.partial_terms[:size], tile.partial_mass[:size]
    clear(total, 0.0)
    clear(partial, 0.0)
    if terms is not None:
        clear(tile.terms, 0.0)
        clear(tile.mass, terms.label_mass)
        clear(partial_terms, 0.0)
        clear(partial_mass, 0.0)
    for j in range(inputs.classes):
        cells = slice(j * tile.width, j * tile.width + size)
        if terms is not None and terms.dense:
            target_terms_into(partial_terms, tile.z[cells], tile.t[cells], reference)
            if terms.soft:
                mass_into(partial_mass, tile.t[cells])
        # With nothing but masked classes, -inf - -inf makes the position NaN.
        exponentials_into(partial, tile.z[cells], reference)
        if j % GROUP == GROUP - 1 or j == inputs.classes - 1:
            flush(total, partial)
            if terms is not None and terms.dense:
                flush(tile.terms[:size], partial_terms)
                flush(tile.mass[:size], partial_mass)


@device
def refine_label_losses(inputs: Any, size: int, tile: Any) -> None:
    """Set label_loss once more where it is small, from z = exp(z - reference) of the other classes."""
    for p in range(size):
        if tile.label_loss[p] < CONFIDENT and tile.label[p] >= 0:
            others, at = 0.0, p
            for j in range(inputs.classes):
                others += 0.0 if j == tile.label[p] else np.float64(tile.z[at])
                at += tile.width
            tile.label_loss[p] = label_loss_of(others, p, tile)


@sequence
def exponentials_and_masses(inputs: Any, terms: Any, size: int, tile: Any) -> None:
    """z = exp(z - reference) with the reference that is set already; set mass of each position."""
    if terms is not None:
        clear(tile.mass, terms.label_mass)
        clear(tile.partial_mass, 0.0)
    for j in range(inputs.classes):
        cells = slice(j * tile.width, j * tile.width + size)
        exponentials_into(tile.partial[:size], tile.z[cells], tile.reference[:size])
        if terms is not None and terms.soft:
            mass_into(tile.partial_mass[:size], tile.t[cells])
            if j % GROUP == GROUP - 1 or j == inputs.classes - 1:
                flush(tile.mass[:size], tile.partial_mass[:size])


@sequence
def gradients(inputs: Any, terms: Any, all_known: bool, g: int, size: int, tile: Any, gradient: Any) -> None:
    """out = (factor * exp(z - reference) - target_factor * t) * dz/dx, from z = exp(z - reference)."""
    factor, target_factor, width = tile.factor[:size], tile.target_factor[:size], tile.width
    for j in range(inputs.classes):
        cells = slice(j * width, j * width + size)
        if terms is None:
            scaled(tile.z[cells], factor)
        elif terms.dense:
            scaled_less_target(tile.z[cells], factor, tile.t[cells], target_factor)
        else:
            scaled(tile.z[cells], factor)
    if len(inputs.labels):
        for p in range(size):
            if tile.label[p] >= 0:
                tile.z[tile.label[p] * width + p] -= factor.dtype.type(tile.share[p] * np.float64(target_factor[p]))
    if terms is not None and terms.softcap != 0.0:
        for j in range(inputs.classes):
            cells = slice(j * width, j * width + size)
            multiply(tile.z[cells], tile.derivative[cells])
    if not all_known:
        for p in range(size):
            if tile.label[p] < 0:
                value = without_label(inputs, g + p)
                for j in range(inputs.classes):
                    tile.z[j * width + p] = value
    store_tile(inputs, g, size, tile, gradient)


@sequence
def order_and_slope(inputs: Any, terms: Any, g: int, size: int, tile: Any) -> None:
    """Set reference, total and slope, and of the unsoftcapped logits the first maximum and the rank of the label."""
    load_tile(inputs.logits, inputs.outer_stride, inputs, g, size, tile, tile.z)
    pick_labels(size, tile)
    clear(tile.best, -np.inf)
    clear(tile.slope, 0.0)
    for p in range(size):
        tile.best_at[p] = tile.above[p] = 0
    for j in range(inputs.classes):
        z = tile.z[j * tile.width : j * tile.width + size]
        order_into(tile.best[:size], tile.best_at[:size], tile.above[:size], z, tile.label_z[:size], j)
    if terms is not None:
        transform_tile(inputs, terms, size, tile)
        pick_labels(size, tile)
    take_maximum(inputs, size, tile)
    for j in range(inputs.classes):
        slope_into(tile.slope[:size], tile.z[j * tile.width : j * tile.width + size], tile.reference[:size])
    normalise(inputs, terms, size, tile)
