"""A gradient of logits rounded at random so that few entries are left, and the two products of such a gradient.

Of the gradient g of a row, with the limit l = threshold * scale of that row, an entry below l becomes

    g'[j] = l sign(g[j])  with probability |g[j]| / l,  else 0         (|g[j]| < l, and j is not the label)

whose expectation is g[j], and whose variance is |g[j]| (l - |g[j]|). Whether an entry is kept depends on a hash of
seed, row and class, and on nothing else: neither on chunks nor on threads.

The entries that are left are collected by class, and multiplied class by class: so rows of the weight and of its
gradient pass once, while inputs and gradients of a chunk of rows stay in the second-level cache. Of the gradient of the
weight a thread has some classes; of that of the input it has some features, so that no two threads add to one number,
and all numbers are added in the order of classes or rows, whoever does it.

Arrays are cut in `device` functions only, which count no references (compilation.py): that took a fifth of a call.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from xent.backends.cpu._numba import atomic_add
from xent.backends.cpu.accumulation import join, put, split
from xent.backends.cpu.compilation import allocator, device
from xent.backends.cpu.formats import decode, encode, scratch
from xent.backends.cpu.primitives import add_in_any_order, fused_multiply_add
from xent.backends.cpu.team import row_kernel
from xent.linear.plan import ALIGNMENT

# The hash of (seed, row, class): a finalizer of 64 bits for seed and row (splitmix64: Steele et al. 2014, Fast
# Splittable Pseudorandom Number Generators), and one of 32 bits for the class, keyed by both halves of the first.
GOLDEN, MIX_1, MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
ODD, SHORT_1, SHORT_2 = np.uint32(0x9E3779B1), np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
DRAWS = 2.0**31
"""A draw is one of so many integers: those that become floats at the speed of signed ones."""

CLASSES_AT_ONCE = 256
"""Whose entries are collected in one visit to the rows of a chunk: some cache lines of each row."""
LANES = 16
"""Numbers of a row that are looked at together: mostly all of them are 0."""
ENTRIES = 4
"""That are added to a row of a gradient at once."""
DENSEST = 1 / 8
"""The share of a chunk's entries up to which sparse products are made: what the lists of entries have room for. These
take 12 bytes an entry in float32, of a chunk that takes 4: more would leave fewer rows to a chunk."""


def entry_bytes(classes: int, dtype: np.dtype[Any]) -> int:
    """The memory that the lists of entries need for each row of a chunk."""
    return math.ceil(classes * DENSEST * (8 + dtype.itemsize))


def index_bytes(classes: int) -> int:
    """The memory that the places of units and classes in these lists need, and what aligning the lists costs."""
    return 8 * classes + 16 * (classes // CLASSES_AT_ONCE + 1) + 8 * ALIGNMENT


class Kept(NamedTuple):
    """The entries of a chunk that are not 0, in units of CLASSES_AT_ONCE classes: of each unit in the order of rows.

    Those of unit u are from units[u, 0] to units[u, 1]; those of class j are order[starts[j]] to order[stops[j] - 1].
    """

    units: Any
    rows: Any
    classes: Any
    """Within the unit."""
    values: Any
    starts: Any
    stops: Any
    order: Any


@device
def _key(seed: Any, row: Any) -> Any:
    """64 bits that depend on all bits of seed and row."""
    x = np.uint64(np.uint64(seed) * MIX_2) + np.uint64(np.uint64(row + 1) * GOLDEN)
    x = np.uint64((x ^ (x >> np.uint64(30))) * MIX_1)
    x = np.uint64((x ^ (x >> np.uint64(27))) * MIX_2)
    return x ^ (x >> np.uint64(31))


@device
def _draw(high: Any, low: Any, place: Any) -> Any:
    """An integer in [0, DRAWS) for the class of that place, class * ODD, of the row with the key (high, low)."""
    x = np.uint32(place ^ high)
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(16))) * SHORT_1)
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(15))) + low)
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(13))) * SHORT_2)
    return np.int32(np.uint32(x ^ (x >> np.uint32(16))) >> np.uint32(1))


@device
def _round(row: Any, limit: Any, key: Any, first_class: int) -> Any:
    """Round some entries of a row; return how many are not 0, and the sum of their variances over limit**2."""
    number = type(limit)
    high, low = np.uint32(key >> np.uint64(32)), np.uint32(key)
    inverse, zero, one, draws = number(1) / limit, number(0), number(1), number(DRAWS)
    kept, variance = np.int32(0), zero
    place = np.uint32(np.uint32(first_class) * ODD)
    for j in range(len(row)):
        g = decode(row[j])
        share = abs(g) * inverse
        is_small = share < one  # not so for NaN, which stays
        size = limit if number(_draw(high, low, place)) < share * draws else zero
        g = (size if g > zero else -size) if is_small else g
        row[j] = encode(g, row)
        place = np.uint32(place + ODD)  # for each class: a multiplication less
        kept += np.int32(g != zero)
        variance = add_in_any_order(variance, share * (one - share) if is_small else zero)
    return np.int64(kept), np.float64(variance)


@device
def _round_row(gradient: Any, classes: int, r: int, label: int, limit: Any, key: Any, first_class: int) -> Any:
    """Round row r; return how many entries are not 0, and the sum of their variances."""
    row = gradient[r * classes : (r + 1) * classes]
    limit = decode(encode(limit, row))  # a number that the gradient can hold
    middle = label if 0 <= label < classes else classes
    before, spread = _round(row[:middle], limit, key, first_class)
    after, spread_after = _round(row[middle + 1 :], limit, key, first_class + middle + 1)
    of_label = 1 if middle < classes else 0
    return before + after + of_label, (spread + spread_after) * np.float64(limit) ** 2


@row_kernel
def round_at_random(
    gradient: Any, classes: int, labels: Any, limits: Any, seed: Any, first_row: int, first_class: int, kept: Any,
    variance: Any, first: int, last: int,
) -> None:  # fmt: skip
    """Round rows of a gradient (rows * classes) where they lie; the entries of labels (rows, or empty) stay.

    `limits` are those of the rows; `first_row` and `first_class` are the numbers of the first ones. `kept`
    and `variance` become the entries of each row that are not 0, and the sum of the variances of its entries.
    """
    for r in range(first, last):
        label = labels[r] - first_class if len(labels) else -1
        key = _key(seed, first_row + r)
        kept[r], variance[r] = _round_row(gradient, classes, r, label, limits[r], key, first_class)


@allocator
def _room_to_collect() -> Any:
    """Room for a count of each class of a unit and, behind them, of each of its lanes."""
    return np.empty(CLASSES_AT_ONCE + CLASSES_AT_ONCE // LANES, np.int32)


@device
def _count(gradient: Any, classes: int, rows: int, start: int, stop: int, counts: Any) -> int:
    """Count the entries of each of these classes that are not 0."""
    counts[:] = 0
    for r in range(rows):
        row = gradient[r * classes + start : r * classes + stop]
        for j in range(stop - start):
            counts[j] += np.int32(decode(row[j]) != 0)
    total = 0
    for j in range(stop - start):
        total += counts[j]
    return total


@device
def _flag_lanes(row: Any, flags: Any) -> None:
    """Count the numbers that are not 0 in each LANES of a row: a loop of its own, which becomes vector code."""
    for lane in range(len(row) // LANES):
        found = np.int32(0)
        for j in range(LANES):
            found += np.int32(decode(row[LANES * lane + j]) != 0)
        flags[lane] = found


@device
def _take(row: Any, first: int, last: int, r: int, start: int, kept: Any, i: int) -> int:
    """Append the entries of row r that are not 0, of the unit's classes from first to last; return where they end."""
    for j in range(first, last):
        if decode(row[j]) != 0:
            kept.rows[i], kept.classes[i], kept.values[i] = r, j, row[j]
            kept.order[kept.stops[start + j]] = i
            kept.stops[start + j] += 1
            i += 1
    return i


@device
def _collect_unit(gradient: Any, classes: int, rows: int, unit: int, cursor: Any, kept: Any, room: Any) -> None:
    """Collect the entries of one unit."""
    counts, flags = room[:CLASSES_AT_ONCE], room[CLASSES_AT_ONCE:]
    start, stop = unit * CLASSES_AT_ONCE, min((unit + 1) * CLASSES_AT_ONCE, classes)
    count = _count(gradient, classes, rows, start, stop, counts)
    i = place = atomic_add(cursor, count)
    kept.units[2 * unit], kept.units[2 * unit + 1] = place, place + count
    for j in range(start, stop):
        kept.starts[j] = kept.stops[j] = place
        place += counts[j - start]
    for r in range(rows):
        row = gradient[r * classes + start : r * classes + stop]
        lanes = (stop - start) // LANES
        _flag_lanes(row, flags)
        for lane in range(lanes):
            if flags[lane] != 0:
                i = _take(row, LANES * lane, LANES * (lane + 1), r, start, kept, i)
        i = _take(row, LANES * lanes, stop - start, r, start, kept, i)


@row_kernel
def collect(gradient: Any, classes: int, rows: int, cursor: Any, kept: Any, first: int, last: int) -> None:
    """Collect the entries of the units from first to last that are not 0.

    Each unit takes the next free part of `kept`, whose place does not matter to anyone.
    """
    room = _room_to_collect()
    for unit in range(first, last):
        _collect_unit(gradient, classes, rows, unit, cursor, kept, room)


@device
def _add(own: Any, g: Any, x: Any) -> None:
    """own += g * x."""
    for f in range(len(own)):
        own[f] = fused_multiply_add(g, decode(x[f]), own[f])


@device
def _add_four(own: Any, g: Any, x0: Any, x1: Any, x2: Any, x3: Any) -> None:
    """own += four rows times four numbers, in this order."""
    g0, g1, g2, g3 = g
    for f in range(len(own)):
        total = fused_multiply_add(g0, decode(x0[f]), own[f])
        total = fused_multiply_add(g1, decode(x1[f]), total)
        total = fused_multiply_add(g2, decode(x2[f]), total)
        own[f] = fused_multiply_add(g3, decode(x3[f]), total)


@device
def _add_class(kept: Any, j: int, x: Any, own: Any) -> None:
    """own += the entries of class j times their rows of x."""
    features = len(own)
    i, stop = kept.starts[j], kept.stops[j]
    while i + ENTRIES <= stop:
        a, b, c, d = kept.order[i], kept.order[i + 1], kept.order[i + 2], kept.order[i + 3]
        g = decode(kept.values[a]), decode(kept.values[b]), decode(kept.values[c]), decode(kept.values[d])
        xa, xb = x[kept.rows[a] * features :], x[kept.rows[b] * features :]
        _add_four(own, g, xa, xb, x[kept.rows[c] * features :], x[kept.rows[d] * features :])
        i += ENTRIES
    while i < stop:
        a = kept.order[i]
        _add(own, decode(kept.values[a]), x[kept.rows[a] * features :])
        i += 1


@device
def _add_class_to(kept: Any, j: int, x: Any, features: int, total: Any, fresh: bool) -> None:
    """Row j of total += the entries of class j times their rows of x."""
    own = total[j * features : (j + 1) * features]
    if fresh:
        own[:] = 0
    _add_class(kept, j, x, own)


@device
def _put_class(kept: Any, j: int, x: Any, own: Any, target: Any) -> None:
    """Row j of target = the entries of class j times their rows of x."""
    own[:] = 0
    _add_class(kept, j, x, own)
    put(target[j * len(own) : (j + 1) * len(own)], own)


@device
def _add_class_to_halves(kept: Any, j: int, x: Any, own: Any, upper: Any, lower: Any, start: int, fresh: bool) -> None:
    """Row j of a sum in halves += the entries of class start + j times their rows of x."""
    place = slice(j * len(own), (j + 1) * len(own))
    if fresh:
        own[:] = 0
    elif kept.starts[start + j] == kept.stops[start + j]:
        return
    else:
        join(upper[place], lower[place], own)
    _add_class(kept, start + j, x, own)
    split(own, upper[place], lower[place])


@row_kernel
def add_to_weight(kept: Any, x: Any, features: int, total: Any, fresh: bool, first: int, last: int) -> None:
    """total += gradient.T @ x for the classes from first to last, or total = that if it is `fresh`."""
    for j in range(first, last):
        _add_class_to(kept, j, x, features, total, fresh)


@row_kernel
def round_to_weight(kept: Any, x: Any, features: int, target: Any, first: int, last: int) -> None:
    """target = gradient.T @ x for the classes from first to last, rounded to the target's type."""
    own = scratch(target, features)
    for j in range(first, last):
        _put_class(kept, j, x, own, target)


@row_kernel
def add_to_weight_halves(
    kept: Any, x: Any, features: int, upper: Any, lower: Any, start: int, fresh: bool, first: int, last: int
) -> None:
    """The same added to float32 sums in halves (accumulation.py) of the classes from `start` on."""
    own = scratch(upper, features)
    for j in range(first, last):
        _add_class_to_halves(kept, j, x, own, upper, lower, start, fresh)


@device
def _add_features(kept: Any, weight: Any, features: int, low: int, high: int, sums: Any, target: Any) -> None:
    """The features from low to high of target = gradient @ weight."""
    rows, size = len(target) // features, high - low
    own_sums = sums[low * rows : high * rows]
    own_sums[:] = 0
    for unit in range(len(kept.units) // 2):
        w = weight[unit * CLASSES_AT_ONCE * features + low :]
        _add_unit(kept, kept.units[2 * unit], kept.units[2 * unit + 1], w, features, own_sums, size)
    for r in range(rows):
        put(target[r * features + low : r * features + high], own_sums[r * size : (r + 1) * size])


@device
def _add_unit(kept: Any, i: int, end: int, w: Any, features: int, sums: Any, size: int) -> None:
    """Rows of sums += the entries from i to end times the weights of their classes."""
    values, classes = kept.values, kept.classes
    while i < end:
        r = np.int64(kept.rows[i])
        own = sums[r * size : (r + 1) * size]
        wa = w[np.int64(classes[i]) * features :]
        if i + ENTRIES <= end and kept.rows[i + 3] == r:
            g = decode(values[i]), decode(values[i + 1]), decode(values[i + 2]), decode(values[i + 3])
            wb, wc = w[np.int64(classes[i + 1]) * features :], w[np.int64(classes[i + 2]) * features :]
            _add_four(own, g, wa, wb, wc, w[np.int64(classes[i + 3]) * features :])
            i += ENTRIES
        else:
            _add(own, decode(values[i]), wa)
            i += 1


@row_kernel
def input_gradient(
    kept: Any, weight: Any, features: int, width: int, sums: Any, target: Any, first: int, last: int
) -> None:
    """target (rows * features) = gradient @ weight, of the features from first to last in units of `width`.

    `sums` has as many numbers, of the computing type. A thread's lie side by side: in lines of the cache that two
    threads write to, or that one fetches ahead while another writes to them, both would wait for each other.
    """
    for block in range(first, last):
        low, high = block * width, min((block + 1) * width, features)
        _add_features(kept, weight, features, low, high, sums, target)
