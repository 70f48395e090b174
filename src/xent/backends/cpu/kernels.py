"""The kernels: positions from `first` to `last`, a tile at a time, on one thread.

    forward   lse = log(sum(exp(z))),  loss = sum(t * (lse - z)) + z_loss * lse**2
    backward  dx = row_scale * ((sum(t) + 2 * z_loss * lse) * exp(z - lse) - t) * dz/dx

`along` picks the order of the loops: along the classes of a row, or across positions. All arrays are one-dimensional;
see `Inputs` for how they lie. `options` are the numbers of `tile.flattened`. They are read at
run time, once per block: a kernel is compiled for a dtype, and not for a combination of options.
"""

from __future__ import annotations

from typing import Any

from xent.backends.cpu import across_positions, along_classes
from xent.backends.cpu.blocks import target_mass
from xent.backends.cpu.compilation import device, kernel
from xent.backends.cpu.streaming import staging_for, streams_done
from xent.backends.cpu.team import row_kernel
from xent.backends.cpu.tile import (
    BLOCK,
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


@device
def forward_tile(inputs: Any, terms: Any, g: int, size: int, tile: Any, loss: Any, lse: Any, gradient: bool) -> bool:
    """Loss and log-sum-exp of a tile; leaves what its gradient needs. Returns whether all labels are valid."""
    all_known = read_labels(inputs, terms, g, size, tile)
    if tile.along:
        along_classes.normalise(inputs, terms, g, size, tile, gradient)
    else:
        across_positions.prepare(inputs, terms, g, size, tile)
        across_positions.pick_labels(size, tile)
        across_positions.take_maximum(inputs, size, tile)
        if in_float32(tile) and inputs.classes > 1:  # of one class the softmax is exactly 1
            across_positions.prefer_zero(tile.reference[:size])
        across_positions.normalise(inputs, terms, size, tile)
    confident = label_losses(size, tile)
    if confident and in_float32(tile):
        if tile.along:
            along_classes.refine_label_losses(inputs, g, size, tile)
        else:
            across_positions.refine_label_losses(inputs, size, tile)
    losses(inputs, terms, all_known, g, size, tile, loss, lse)
    return all_known


@device
def forward_backward_tile(
    inputs: Any,
    terms: Any,
    g: int,
    size: int,
    tile: Any,
    row_scale: Any,
    loss: Any,
    lse: Any,
    out: Any,
    staging: Any,
) -> None:
    """Loss, log-sum-exp and gradient of a tile."""
    all_known = forward_tile(inputs, terms, g, size, tile, loss, lse, True)
    factors(row_scale, lse, terms, g, size, tile)
    if tile.along:
        along_classes.gradients(inputs, terms, g, size, tile, tile.kept, out, staging)
    else:
        across_positions.gradients(inputs, terms, all_known, g, size, tile, out, staging)


@device
def backward_tile(
    inputs: Any, terms: Any, g: int, size: int, tile: Any, lse: Any, row_scale: Any, out: Any, staging: Any
) -> None:
    """Gradient of a tile from its log-sum-exp."""
    all_known = read_labels(inputs, terms, g, size, tile)
    from_lse(lse[g : g + size], size, tile)
    if tile.along:
        along_classes.target_masses(inputs, terms, g, size, tile)
        factors(row_scale, lse, terms, g, size, tile)
        along_classes.gradients(inputs, terms, g, size, tile, False, out, staging)
    else:
        across_positions.prepare(inputs, terms, g, size, tile)
        across_positions.exponentials_and_masses(inputs, terms, size, tile)
        factors(row_scale, lse, terms, g, size, tile)
        across_positions.gradients(inputs, terms, all_known, g, size, tile, out, staging)


@device
def statistics_tile(
    inputs: Any, terms: Any, g: int, size: int, tile: Any, log_prob: Any, entropy: Any, lse: Any, argmax: Any, rank: Any
) -> None:
    """Statistics of a tile."""
    all_known = read_labels(inputs, terms, g, size, tile)
    if tile.along:
        along_classes.order_and_slope(inputs, terms, g, size, tile)
    else:
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
                log_prob[g + p] = without_label(inputs.labels[g + p], terms)
                rank[g + p] = -1


@row_kernel
def forward(
    along: bool,
    logits: Any,
    outer_stride: int,
    classes: int,
    inner: int,
    labels: Any,
    soft: Any,
    weight: Any,
    options: Any,
    ignore_index: int,
    loss: Any,
    lse: Any,
    first: int,
    last: int,
) -> None:
    """Loss and log-sum-exp."""
    inputs = Inputs(logits, outer_stride, classes, inner, labels, soft, weight)
    terms = terms_of(options, ignore_index, inputs, True)
    tile = tile_for(inputs, terms, along, False)
    g = first
    while g < last:
        size = tile_size(inputs, tile, g, last)
        forward_tile(inputs, terms, g, size, tile, loss, lse, False)
        g += size


@row_kernel
def backward(
    along: bool,
    logits: Any,
    outer_stride: int,
    classes: int,
    inner: int,
    labels: Any,
    soft: Any,
    weight: Any,
    options: Any,
    ignore_index: int,
    lse: Any,
    row_scale: Any,
    out: Any,
    first: int,
    last: int,
) -> None:
    """Gradient from the log-sum-exp."""
    inputs = Inputs(logits, outer_stride, classes, inner, labels, soft, weight)
    terms = terms_of(options, ignore_index, inputs, True)
    tile = tile_for(inputs, terms, along, False)
    staging = staging_for(logits, out, max(BLOCK, len(tile.rows)))
    g = first
    while g < last:
        size = tile_size(inputs, tile, g, last)
        backward_tile(inputs, terms, g, size, tile, lse, row_scale, out, staging)
        g += size
    streams_done()


@row_kernel
def forward_backward(
    along: bool,
    logits: Any,
    outer_stride: int,
    classes: int,
    inner: int,
    labels: Any,
    soft: Any,
    weight: Any,
    options: Any,
    ignore_index: int,
    row_scale: Any,
    loss: Any,
    lse: Any,
    out: Any,
    first: int,
    last: int,
) -> None:
    """Loss, log-sum-exp and gradient: each tile's gradient while the tile is in the cache."""
    inputs = Inputs(logits, outer_stride, classes, inner, labels, soft, weight)
    terms = terms_of(options, ignore_index, inputs, True)
    tile = tile_for(inputs, terms, along, True)
    staging = staging_for(logits, out, max(BLOCK, len(tile.rows)))
    g = first
    while g < last:
        size = tile_size(inputs, tile, g, last)
        forward_backward_tile(inputs, terms, g, size, tile, row_scale, loss, lse, out, staging)
        g += size
    streams_done()


@row_kernel
def statistics(
    along: bool,
    logits: Any,
    outer_stride: int,
    classes: int,
    inner: int,
    labels: Any,
    soft: Any,
    weight: Any,
    options: Any,
    ignore_index: int,
    log_prob: Any,
    entropy: Any,
    lse: Any,
    argmax: Any,
    rank: Any,
    first: int,
    last: int,
) -> None:
    """Log-probability and rank of the label, entropy, log-sum-exp and argmax."""
    inputs = Inputs(logits, outer_stride, classes, inner, labels, soft, weight)
    terms = terms_of(options, ignore_index, inputs, True)
    tile = tile_for(inputs, terms, along, False)
    g = first
    while g < last:
        size = tile_size(inputs, tile, g, last)
        statistics_tile(inputs, terms, g, size, tile, log_prob, entropy, lse, argmax, rank)
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
