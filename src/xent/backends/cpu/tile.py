"""A tile: the positions that are processed together, and the scratch for each of them.

A position is a row of classes: row r of (rows, classes), or one of the outer * inner of (outer, classes, inner). A tile
holds up to 256 of them. The steps on one number per position are here; those over the classes of a tile are in
along_classes.py and across_positions.py, which differ in the order of their loops.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xent.backends.cpu._numba import compiles_for
from xent.backends.cpu.blocks import target_mass
from xent.backends.cpu.compilation import allocator, device
from xent.backends.cpu.formats import as_kernel_array, scratch
from xent.backends.cpu.primitives import exp, log, log1p
from xent.objective import Objective

Array = NDArray[Any]

WIDTH = 256  # positions of a tile; less if the cells of a tile, width * classes, would be more than CELLS
CELLS = 2**13
CELLS_ACROSS = 2**15
NARROW = 32
BLOCK = 2048  # classes that a step along the classes processes
KEPT = 2**19  # classes up to which the exponentials of a row are kept for its gradient

CONFIDENT = 1 / 16
"""The loss below which a float32 row is given its relative accuracy back; see `losses`."""

ROW_CLASSES = 32 if compiles_for("avx512f") else 16
"""Classes from which on loops run along the classes of a row: two vector registers of float32.

On an EPYC (family 25) 40 classes take 20 ns along the row and 34 across positions, with AVX2 23 and 60 (forward).
"""

PARALLEL_SIZE = 2**17  # logits below which a call stays on the calling thread

FLOAT32_MAX, FLOAT64_MAX = float(np.finfo(np.float32).max), float(np.finfo(np.float64).max)

NO_LABELS = np.empty(0, np.int64)
FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


class Inputs(NamedTuple):
    """The arrays of a call, each of one dimension.

    `soft` is empty for labels, `labels` for soft targets, `weight` without weights. The logit of position g and class j
    has the index (g // inner) * outer_stride + j * inner + g % inner; `inner` is 1 for rows, and otherwise the number
    of positions after the class axis. Soft targets and gradients have the same layout, contiguous.
    """

    logits: Any
    outer_stride: int
    classes: int
    inner: int
    labels: Any
    ignore_index: int
    soft: Any
    weight: Any


class Terms(NamedTuple):
    """What the options mean for every row: t[j] = weight[j] * (on * p[j] + off).

    For a label, the share `on` goes to one class and is added separately; `dense` says whether t has other terms, and
    `label_mass` is their sum, the same for all rows. `soft`: the targets are distributions.

    The plain loss of labels, without any option, has None in place of this. That is a type of its own, for which Numba
    leaves out the branches behind `terms is not None`: most programs never compile what they do not use.
    """

    dense: bool
    soft: bool
    on: float
    off: float
    label_mass: float
    scale: float
    softcap: float
    z_loss: float


class Gradient(NamedTuple):
    """Where a gradient goes: its array, scratch to stream it from (`staging_for`), and what multiplies it at the end.

    `after` multiplies what is rounded already, so that an upstream gradient that was expected changes no bit.
    """

    out: Any
    staging: Any
    after: float


class Tile(NamedTuple):
    """Scratch of one thread: z and derivative of `width` positions (or of one block), and numbers for each position.

    With reference = max(z):  total = sum(exp(z - reference)),  terms = sum(t * (reference - z)),  mass = sum(t),  the
    last two without the share of the label;  lse = reference + log_total;  label_loss = lse - label_z;  slope =
    sum(exp(z - reference) * (z - reference)).  `elsewhere` is the total less that of the piece with the label, or -1.
    """

    kept: bool
    width: int
    z: Any
    derivative: Any
    t: Any
    rows: Any
    block_reference: Any
    label: Any
    share: Any
    label_z: Any
    label_loss: Any
    reference: Any
    total: Any
    elsewhere: Any
    log_total: Any
    terms: Any
    mass: Any
    partial: Any
    partial_terms: Any
    partial_mass: Any
    factor: Any
    target_factor: Any
    slope: Any
    best: Any
    best_at: Any
    above: Any


def computing_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of losses, and of the arithmetic of the kernels: float64 for float64, float32 for anything narrower."""
    return FLOAT64 if dtype == FLOAT64 else FLOAT32


def flattened(objective: Objective, dtype: np.dtype[Any], classes: int) -> tuple[Array, Array]:
    """The options of a row's loss as kernels take them: class weights (empty: none), and numbers for `terms_of`.

    `classes` are all classes, also where a shard has some of them only.
    """
    weight = (
        np.empty(0, dtype)
        if objective.weight is None
        else as_kernel_array(np.asarray(objective.weight).astype(dtype, copy=False))
    )
    smoothing, z_loss = objective.label_smoothing, objective.z_loss
    return weight, np.array((objective.logit_scale, objective.softcap or 0.0, smoothing, z_loss, classes))


@device
def terms_of(options: Any, inputs: Any, whole: bool) -> Any:
    """Unpack the numbers of `flattened`. Not `whole`: a shard, the mass of whose rows is that of its own classes."""
    if options is None:
        return None
    # With one class smoothing changes nothing; leaving it out keeps the gradient exactly 0.
    smoothing = options[2] if options[4] > 1 else 0.0
    soft = len(inputs.soft) > 0
    mean_weight = target_mass(inputs.weight) / inputs.classes if len(inputs.weight) else 1.0
    return Terms(
        soft or smoothing > 0.0,
        soft or not whole,
        1.0 - smoothing,
        smoothing / options[4],
        0.0 if soft or not whole else smoothing * mean_weight,
        options[0],
        options[1],
        options[3],
    )


@allocator
def tile_for(inputs: Any, terms: Any, along: Any, across: Any, gradient: bool) -> Any:
    """Allocate what one thread needs; `along` and `across` are those of kernels.py."""
    logits, classes = inputs.logits, inputs.classes
    width, kept, cells, target_cells, rows = 0, True, 0, 0, 0
    if along is not None:
        width = max(1, min(WIDTH, CELLS // classes)) if classes <= BLOCK else 1
        kept = classes <= BLOCK or (gradient and classes <= KEPT)
        cells = width * classes if kept else BLOCK
        target_cells = min(classes, BLOCK)
    if across is not None:
        width = max(NARROW, min(WIDTH, CELLS_ACROSS // classes))
        cells = target_cells = width * classes
        rows = cells if inputs.inner == 1 else 0
    derivatives = width
    if terms is None:
        target_cells = 0
    else:
        derivatives = max(cells if terms.softcap != 0.0 else 0, width)
        target_cells = target_cells if terms.dense else 0
    return Tile(
        kept,
        width,
        scratch(logits, cells),
        scratch(logits, derivatives),
        scratch(logits, target_cells),
        scratch(logits, rows),
        scratch(logits, classes // BLOCK + 1),
        np.empty(width, np.int64),
        np.empty(width, np.float64),
        scratch(logits, width),
        np.empty(width, np.float64),
        scratch(logits, width),
        np.empty(width, np.float64),
        np.empty(width, np.float64),
        np.empty(width, np.float64),
        np.empty(width, np.float64),
        np.empty(width, np.float64),
        scratch(logits, width),
        np.empty(width, np.float64),
        np.empty(width, np.float64),
        scratch(logits, width),
        scratch(logits, width),
        np.empty(width, np.float64),
        scratch(logits, width),
        np.empty(width, np.int64),
        np.empty(width, np.int64),
    )


@device
def tile_size(inputs: Any, tile: Any, g: int, last: int) -> int:
    """Number of positions of the tile that begins at position g: side by side in memory, if there are enough."""
    size = min(tile.width, last - g)
    return min(size, inputs.inner - g % inputs.inner) if inputs.inner >= NARROW else size


@device
def without_label(inputs: Any, g: int) -> float:
    """Loss and gradient of a row without a valid label: 0 if it is `ignore_index`, else NaN (no logit is read)."""
    return 0.0 if inputs.labels[g] == inputs.ignore_index else np.nan


@device
def in_float32(tile: Any) -> bool:
    """Whether rows are computed in float32 and only their sums in float64.

    Then the loss may be taken relative to 0, so that z - reference is not rounded: log(total) - z[label] in float64
    loses nothing that float32 could show. With everything in float64 it would lose the digits of log(total).
    """
    return tile.z.itemsize == 4


@device
def read_labels(inputs: Any, terms: Any, g: int, size: int, tile: Any) -> bool:
    """Set label (-1: not valid) and its share of t; return whether every position that has a label has a valid one."""
    unknown = 0
    if len(inputs.labels):
        labels = inputs.labels[g : g + size]
        for p in range(size):
            label = labels[p]
            known = 0 <= label < inputs.classes and label != inputs.ignore_index
            tile.label[p] = label if known else -1
            tile.share[p] = np.float64(known)
            unknown += np.int64(not known)
        if terms is not None:
            for p in range(size):
                tile.share[p] = tile.share[p] * terms.on
            if len(inputs.weight):
                for p in range(size):
                    tile.share[p] = tile.share[p] * (inputs.weight[tile.label[p]] if tile.label[p] >= 0 else 0.0)
    else:
        for p in range(size):
            tile.label[p], tile.share[p] = -1, 0.0
    for p in range(size):
        tile.label_z[p] = 0
    return unknown == 0


@device
def label_losses(size: int, tile: Any) -> int:
    """Set log_total and label_loss of each position; return how many positions have a label_loss below CONFIDENT."""
    confident = 0
    for p in range(size):
        tile.log_total[p] = log(tile.total[p])
    for p in range(size):
        # In this order an offset common to all logits cancels.
        tile.label_loss[p] = tile.log_total[p] + (np.float64(tile.reference[p]) - np.float64(tile.label_z[p]))
        confident += np.int64(tile.label_loss[p] < CONFIDENT)
    return confident


@device
def label_loss_of(others: float, p: int, tile: Any) -> float:
    """The label_loss from the exponentials of the other classes: log(1 + others / exp(label_z - reference)).

    A total of float32 exponentials is off by 1e-7 of the label's own, which the loss of a confident row is not much
    larger than: it could be below 0. Here everything is positive, and the loss is as accurate as its terms.
    """
    return log1p(others * exp(np.float64(tile.reference[p]) - np.float64(tile.label_z[p])))


@device
def losses(inputs: Any, terms: Any, all_known: bool, g: int, size: int, tile: Any, loss: Any, lse: Any) -> None:
    """Loss and log-sum-exp of each position, from what `label_losses` set."""
    loss, lse = loss[g : g + size], lse[g : g + size]
    # With labels the terms of a smoothed target, taken relative to 0, may round to less than nothing.
    lowest = 0.0 if len(inputs.labels) else -np.inf
    for p in range(size):
        log_total, share = tile.log_total[p], tile.share[p]
        found = np.float64(tile.reference[p]) + log_total
        # Where the share is 0, 0 * inf counts as 0.
        value = share * tile.label_loss[p] if share != 0.0 else 0.0
        if terms is not None:
            value += tile.terms[p] + tile.mass[p] * log_total
            value += terms.z_loss * found * found
        value = lowest if value < lowest else value
        loss[p] = value if found == found else np.nan
        lse[p] = found
    if not all_known:
        for p in range(size):
            if tile.label[p] < 0:
                loss[p] = lse[p] = without_label(inputs, g + p)


@device
def from_lse(lse: Any, size: int, tile: Any) -> None:
    """Set reference and total such that exp(z - lse) = exp(z - reference) / total, without losing digits of lse."""
    for p in range(size):
        tile.reference[p] = lse[p]
        tile.total[p] = exp(lse[p] - np.float64(tile.reference[p]))


@device
def factors(row_scale: Any, lse: Any, terms: Any, g: int, size: int, tile: Any) -> None:
    """Set factor and target_factor of dz = factor * exp(z - reference) - target_factor * t."""
    scale = 1.0
    if terms is not None:
        # The derivative of the softcap has the logit scale in it.
        scale = 1.0 if terms.softcap != 0.0 else terms.scale
    if len(row_scale) == 1:
        for p in range(size):
            tile.target_factor[p] = np.float64(row_scale[0]) * scale
    else:
        scales = row_scale[g : g + size]
        for p in range(size):
            tile.target_factor[p] = np.float64(scales[p]) * scale
    lse = lse[g : g + size]
    largest = FLOAT32_MAX if in_float32(tile) else FLOAT64_MAX
    for p in range(size):
        target_sum = tile.share[p]
        if terms is not None:
            # Without a z-loss its term is 0, not 0 * lse.
            normal = 2.0 * terms.z_loss * lse[p] if terms.z_loss != 0.0 else 0.0
            target_sum = (tile.mass[p] + target_sum) + normal
        factor = target_sum * np.float64(tile.target_factor[p]) / tile.total[p]
        # An overflow, which a z-loss can cause, would be NaN at the classes of probability 0.
        tile.factor[p] = min(max(factor, -largest), largest) if factor == factor else factor
