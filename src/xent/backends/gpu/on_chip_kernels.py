"""The kernels of the linear loss whose logits never leave the chip: the log-sum-exp in the epilogue of the product.

    linear_parts   of a tile of rows and a range of classes (a part): logits by blocks of input @ weight.T, in
                   registers, and of them what a visit finds out (`Normal`), and the logit of the label
    linear_losses  log-sum-exp and loss from the parts of a row

Which tile of rows and which part a program takes: programs that run at the same time share their rows, `tiles` tiles of
them, which therefore stay in the second cache while the weight passes by.

The parts of a row are put together in their order, so that results repeat bit for bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from xent.backends.gpu.tile import (
    Normal,
    add_classes,
    all_classes,
    join,
    last_class,
    losses,
    mask_of,
    no_classes,
    read_labels,
    terms_of,
    transform,
)


class Parts(NamedTuple):
    """`Normal` of each part and row, at part * rows + row, and the bent logit of each row's label.

    `target` and `mass` are None where t is nothing but the share of the label.
    """

    count: Any
    classes: Any
    highest: Any
    total: Any
    target: Any
    mass: Any
    label_z: Any


@triton.jit
def product(
    input,
    weight,
    bias,
    features,
    at,
    j,
    mask,
    PRECISION: tl.constexpr,
    WIDENED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """The logits of these rows and classes, in float32, `DEPTH` features at a time: input @ weight.T + bias.

    `WIDENED` is for the interpreter, which multiplies the bits of bfloat16 numbers (triton-lang/triton#11584).
    """
    found = tl.zeros([ROWS, BLOCK], tl.float32)
    rows = input.pointer + (at.g * input.outer)[:, None]
    columns = weight.pointer + (j.to(tl.int64) * weight.outer)[None, :]
    row_there, column_there = at.inside[:, None], mask[None, :]
    for start in range(0, features, DEPTH):
        k = start + tl.arange(0, DEPTH)
        inside, k = k < features, k.to(tl.int64)
        x = tl.load(rows + (k * input.along)[None, :], mask=row_there & inside[None, :], other=0.0)
        w = tl.load(columns + (k * weight.along)[:, None], mask=column_there & inside[:, None], other=0.0)
        if WIDENED:
            x, w = x.to(tl.float32), w.to(tl.float32)
        found = tl.dot(x, w, found, input_precision=PRECISION)
    if bias is not None:
        found += tl.load(bias + j, mask=mask, other=0.0).to(tl.float32)[None, :]
    return found


@triton.jit
def linear_parts(
    inputs,
    smoothing: tl.float64,
    scale: tl.float64,
    softcap: tl.float64,
    z_loss: tl.float64,
    ignore_index: tl.int64,
    mean_weight,
    input,
    weight,
    bias,
    features,
    parts,
    tiles,
    SWITCHES: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDENED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """What each part of the classes contributes to each row."""
    terms = terms_of(inputs, smoothing, scale, softcap, z_loss, ignore_index, mean_weight)
    group, place = tl.program_id(0) // (tiles * parts.count), tl.program_id(0) % (tiles * parts.count)
    part, tile = place // tiles, group * tiles + place % tiles
    at = read_labels(inputs, terms, tile, ROWS)
    first = part * parts.classes
    last = tl.minimum(first + parts.classes, last_class(inputs, at))
    normal = no_classes(tl.float32, ROWS)
    label_z = tl.zeros([ROWS], tl.float32)
    for start in range(first, last, BLOCK):
        j = start + tl.arange(0, BLOCK)
        mask = mask_of(inputs, at, j)
        x = product(input, weight, bias, features, at, j, j < inputs.classes, PRECISION, WIDENED, ROWS, BLOCK, DEPTH)
        z, _ = transform(tl.where(mask, x, float("-inf")), terms, SWITCHES)
        normal = add_classes(normal, z, inputs, terms, at, j, mask, SWITCHES, tl.float32)
        if inputs.labels is not None:
            label_z += tl.sum(tl.where(j[None, :] == at.label[:, None], z, 0.0), axis=1)
    to = part.to(tl.int64) * inputs.rows + at.g
    tl.store(parts.highest + to, normal.reference, mask=at.inside)
    tl.store(parts.total + to, normal.total, mask=at.inside)
    if SWITCHES.dense:
        tl.store(parts.target + to, normal.terms, mask=at.inside)
        tl.store(parts.mass + to, normal.mass, mask=at.inside)
    if inputs.labels is not None:
        tl.store(parts.label_z + at.g, label_z, mask=at.inside & (at.label >= first) & (at.label < last))


@triton.jit
def linear_losses(
    inputs,
    smoothing: tl.float64,
    scale: tl.float64,
    softcap: tl.float64,
    z_loss: tl.float64,
    ignore_index: tl.int64,
    mean_weight,
    parts,
    loss,
    lse,
    SWITCHES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Loss and log-sum-exp from the parts."""
    terms = terms_of(inputs, smoothing, scale, softcap, z_loss, ignore_index, mean_weight)
    at = read_labels(inputs, terms, tl.program_id(0), ROWS)
    normal = no_classes(tl.float32, ROWS)
    to = at.g
    for _ in range(parts.count):
        highest = tl.load(parts.highest + to, mask=at.inside, other=float("-inf"))
        total = tl.load(parts.total + to, mask=at.inside, other=0.0)
        target, mass = tl.zeros_like(total), tl.zeros_like(total)
        if SWITCHES.dense:
            target = tl.load(parts.target + to, mask=at.inside, other=0.0)
            mass = tl.load(parts.mass + to, mask=at.inside, other=0.0)
        normal = join(normal, Normal(highest, total, target, mass))
        to += inputs.rows
    label_z = tl.zeros([ROWS], tl.float32)
    if inputs.labels is not None:
        label_z = tl.load(parts.label_z + at.g, mask=at.readable, other=float("-inf"))
    found_loss, found_lse = losses(all_classes(normal, inputs, terms), label_z, terms, at, SWITCHES)
    tl.store(loss + at.g, found_loss.to(tl.float32), mask=at.inside)
    tl.store(lse + at.g, found_lse, mask=at.inside)
