"""The kernels: positions from `first` to `last`, a tile at a time, on one thread.

    forward   lse = log(sum(exp(z))),  loss = sum(t * (lse - z)) + z_loss * lse**2
    backward  dx = row_scale * ((sum(t) + 2 * z_loss * lse) * exp(z - lse) - t) * dz/dx

Of `along` and `across` one is True and the other None: loops along the classes of a row, or across positions. `options`
are the numbers of `tile.flattened`, or None for the plain loss of labels. None has a type of its own, for which Numba
leaves out what is behind `is not None`: so a kernel is compiled for a dtype, for an order of the loops, and for plain
losses or all others, each when it is first used. The numbers of the options are read at run time, once per block. All
arrays are one-dimensional; see `Inputs` for how they lie.
"""

from __future__ import annotations

from typing import Any

from xent.backends.cpu import across_positions, along_classes
from xent.backends.cpu.blocks import target_mass
from xent.backends.cpu.compilation import kernel, sequence
from xent.backends.cpu.streaming import staging_for, streams_done
from xent.backends.cpu.team import row_kernel
from xent.backends.cpu.tile import (
    BLOCK,
    Gradient,
    Inputs,
    factors,
    from_lse,
    in_float32,
    label_losses,
    losses,
    read_labels,
    terms_of,
    tile_for,
    tile_size,
    without_label,
)

SUMMED = 128  # losses that are added without compensation


@sequence
def forward_tile(
    along: Any, across: Any, inputs: Any, terms: Any, g: int, size: int, tile: Any, loss: Any, lse: Any, gradient: bool
) -> bool:
    """Loss and log-sum-exp of a tile; leaves what its gradient needs. Returns whether all labels are valid."""
    all_known = read_labels(inputs, terms, g, size, tile)
    if along is not None:
        along_classes.normalise(inputs, terms, g, size, tile, gradient)
    if across is not None:
        across_positions.prepare(inputs, terms, g, size, tile)
        across_positions.pick_labels(size, tile)
        across_positions.take_maximum(inputs, size, tile)
        if in_float32(tile) and inputs.classes > 1:  # of one class the softmax is exactly 1
            across_positions.prefer_zero(tile.reference[:size])
        across_positions.normalise(inputs, terms, size, tile)
    confident = label_losses(size, tile)
    if confident and in_float32(tile):
        if along is not None:
            along_classes.refine_label_losses(inputs, g, size, tile)
        if across is not None:
            across_positions.refine_label_losses(inputs, size, tile)
    losses(inputs, terms, all_known, g, size, tile, loss, lse)
    return all_known


@sequence
def gradient_tile(
    along: Any,
    across: Any,
    inputs: Any,
    terms: Any,
    all_known: bool,
    g: int,
    size: int,
    tile: Any,
    kept: bool,
    gradient: Any,
) -> None:
    """Gradient of a tile, whose factors are known."""
    if along is not None:
        along_classes.gradients(inputs, terms, g, size, tile, kept, gradient)
    if across is not None:
        across_positions.gradients(inputs, terms, all_known, g, size, tile, gradient)


@sequence
def backward_tile(
    along: Any,
    across: Any,
    inputs: Any,
    terms: Any,
    g: int,
    size: int,
    tile: Any,
    lse: Any,
    row_scale: Any,
    gradient: Any,
) -> None:
    """Gradient of a tile from its log-sum-exp."""
    all_known = read_labels(inputs, terms, g, size, tile)
    from_lse(lse[g : g + size], size, tile)
    if along is not None:
        along_classes.target_masses(inputs, terms, g, size, tile)
    if across is not None:
        across_positions.prepare(inputs, terms, g, size, tile)
        across_positions.exponentials_and_masses(inputs, terms, size, tile)
    factors(row_scale, lse, terms, g, size, tile)
    gradient_tile(along, across, inputs, terms, all_known, g, size, tile, False, gradient)


@sequence
def statistics_tile(
    along: Any,
    across: Any,
    inputs: Any,
    terms: Any,
    g: int,
    size: int,
    tile: Any,
    log_prob: Any,
    entropy: Any,
    lse: Any,
    argmax: Any,
    rank: Any,
) -> None:
    """Statistics of a tile."""
    all_known = read_labels(inputs, terms, g, size, tile)
    if along is not None:
        along_classes.order_and_slope(inputs, terms, g, size, tile)
    if across is not None:
        across_positions.order_and_slope(inputs, terms, g, size, tile)
    for p in range(size):
        argmax[g + p] = tile.best_at[p]
        rank[g + p] = tile.above[p]
    label_losses(size, tile)
    losses(inputs, terms, True, g, size, tile, log_prob, lse)
    for p in range(size):
        log_prob[g + p] = 0.0 - tile.label_loss[p]
        entropy[g + p] = tile.log_total[p] - tile.slope[p] / tile.total[p]
    if not all_known:
        for p in range(size):
            if tile.label[p] < 0:
                log_prob[g + p] = without_label(inputs, g + p)
                rank[g + p] = -1


@row_kernel
def forward(
    along: Any,
    across: Any,
    logits: Any,
    outer_stride: int,
    classes: int,
    inner: int,
    labels: Any,
    ignore_index: int,
    soft: Any,
    weight: Any,
    options: Any,
    row_scale: Any,
    loss: Any,
    lse: Any,
    out: Any,
    after: float,
    first: int,
    last: int,
) -> None:
    """Loss and log-sum-exp, and in `out` (empty: none) each tile's gradient while the tile is in the cache.

    One kernel for both, since every program that trains needs the two, and compiling takes seconds.
    """
    inputs = Inputs(logits, outer_stride, classes, inner, labels, ignore_index, soft, weight)
    terms = terms_of(options, inputs, True)
    tile = tile_for(inputs, terms, along, across, len(out) > 0)
    gradient = Gradient(out, staging_for(logits, out, max(BLOCK, len(tile.rows))), after)
    g = first
    while g < last:
        size = tile_size(inputs, tile, g, last)
        all_known = forward_tile(along, across, inputs, terms, g, size, tile, loss, lse, len(out) > 0)
        if len(out):
            factors(row_scale, lse, terms, g, size, tile)
            gradient_tile(along, across, inputs, terms, all_known, g, size, tile, tile.kept, gradient)
        g += size
    streams_done()


@row_kernel
def backward(
    along: Any,
    across: Any,
    logits: Any,
    outer_stride: int,
    classes: int,
    inner: int,
    labels: Any,
    ignore_index: int,
    soft: Any,
    weight: Any,
    options: Any,
    lse: Any,
    row_scale: Any,
    out: Any,
    first: int,
    last: int,
) -> None:
    """Gradient from the log-sum-exp."""
    inputs = Inputs(logits, outer_stride, classes, inner, labels, ignore_index, soft, weight)
    terms = terms_of(options, inputs, True)
    tile = tile_for(inputs, terms, along, across, False)
    gradient = Gradient(out, staging_for(logits, out, max(BLOCK, len(tile.rows))), 1.0)
    g = first
    while g < last:
        size = tile_size(inputs, tile, g, last)
        backward_tile(along, across, inputs, terms, g, size, tile, lse, row_scale, gradient)
        g += size
    streams_done()


@row_kernel
def statistics(
    along: Any,
    across: Any,
    logits: Any,
    outer_stride: int,
    classes: int,
    inner: int,
    labels: Any,
    ignore_index: int,
    soft: Any,
    weight: Any,
    options: Any,
    log_prob: Any,
    entropy: Any,
    lse: Any,
    argmax: Any,
    rank: Any,
    first: int,
    last: int,
) -> None:
    """Log-probability and rank of the label, entropy, log-sum-exp and argmax."""
    inputs = Inputs(logits, outer_stride, classes, inner, labels, ignore_index, soft, weight)
    terms = terms_of(options, inputs, True)
    tile = tile_for(inputs, terms, along, across, False)
    g = first
    while g < last:
        size = tile_size(inputs, tile, g, last)
        statistics_tile(along, across, inputs, terms, g, size, tile, log_prob, entropy, lse, argmax, rank)
        g += size


@kernel
def total(losses: Any) -> float:
    """Return the sum of the losses in float64, with compensation for the rounding errors of adding sums of pieces."""
    result, lost = 0.0, 0.0
    for start in range(0, len(losses), SUMMED):
        part = target_mass(losses[start : start + SUMMED])
        before, result = result, result + part
        added = result - before
        lost += (before - (result - added)) + (part - added)
    return result + lost if lost == lost else result  # inf - inf is NaN


@kernel
def count_other(labels: Any, ignore_index: int) -> int:
    """Count the labels that are not `ignore_index`."""
    count = 0
    for i in range(len(labels)):
        count += labels[i] != ignore_index
    return count
