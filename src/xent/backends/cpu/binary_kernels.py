"""The kernels of the binary cross-entropy: blocks of elements from `first` to `last`, on one thread.

    loss = factor * (pos_weight * y' * softplus(-z) + (1 - y') * softplus(z))
    dx   = scale * dloss/dz * dz/dx

Arrays are of one dimension, and an element is worked on where it lies: rows and classes matter only to the weights,
which are read with strides of their own (`Broadcast`), a block at a time. The losses of a block are added up in the
computing dtype over the lanes of the vector registers, the blocks in float64, so that losses need not be written.

The usual loss, without weights and with z = x, is one loop (`plain_block`). Anything else is done step by step on
scratch of one block (`block`), as in blocks.py; a kernel is compiled for dtypes, and not for options.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from xent.backends.cpu.blocks import multiply, transform
from xent.backends.cpu.compilation import allocator, device
from xent.backends.cpu.formats import decode, encode, scratch, store
from xent.backends.cpu.logistic import binary_loss_and_slope, focal_loss_and_slope
from xent.backends.cpu.primitives import add_in_any_order
from xent.backends.cpu.streaming import staging_for, stream, streams_done
from xent.backends.cpu.team import row_kernel

BLOCK = 1024
"""Elements of a block: scratch of six such arrays in float32 lies in a first-level cache of 32 KB."""

IGNORED = -1.0
"""What stands for a smoothed target that is ignored; the others are in [0, 1], or NaN where they should be."""


class Broadcast(NamedTuple):
    """Weights that are broadcast over the elements: numbers side by side, and sizes and strides of the axes.

    Axes over which they are the same have stride 0. Without numbers the weights are 1.
    """

    numbers: Any
    sizes: Any
    strides: Any


class BinaryTerms(NamedTuple):
    """The options of the loss: y' = on * y + off. `plain`: y' = y and z = x, without focal factor."""

    plain: bool
    scale: float
    softcap: float
    on: float
    off: float
    gamma: float
    after: float


class Scratch(NamedTuple):
    """Arrays of one block."""

    z: Any
    derivative: Any
    y: Any
    positive: Any
    factor: Any
    more: Any


@allocator
def scratch_for(logits: Any) -> Any:
    """Return the scratch of a thread."""
    return Scratch(
        scratch(logits, BLOCK),
        scratch(logits, BLOCK),
        scratch(logits, BLOCK),
        scratch(logits, BLOCK),
        scratch(logits, BLOCK),
        scratch(logits, BLOCK),
    )


@device
def terms_of(options: Any) -> Any:
    """The numbers of `binary_backend.flattened`."""
    scale, softcap, on, off, gamma, after = options[0], options[1], options[2], options[3], options[4], options[5]
    plain = scale == 1.0 and softcap == 0.0 and on == 1.0 and gamma == 0.0
    return BinaryTerms(plain, scale, softcap, on, off, gamma, after)


@device
def fill(out: Any, weights: Any, start: int) -> None:
    """out = the weights of the elements from `start` on; 1 without weights."""
    if len(weights.numbers) == 0:
        for i in range(len(out)):
            out[i] = 1
        return
    axes, done = len(weights.sizes), 0
    inner, step = weights.sizes[axes - 1], weights.strides[axes - 1]
    while done < len(out):
        rest = (start + done) // inner
        at = start + done - rest * inner
        size, place = min(inner - at, len(out) - done), at * step
        for axis in range(axes - 2, -1, -1):
            next_rest = rest // weights.sizes[axis]
            place += (rest - next_rest * weights.sizes[axis]) * weights.strides[axis]
            rest = next_rest
        part = out[done : done + size]
        if step == 0:
            for i in range(size):
                part[i] = weights.numbers[place]
        elif step == 1:
            numbers = weights.numbers[place : place + size]
            for i in range(size):
                part[i] = numbers[i]
        else:
            for i in range(size):
                part[i] = weights.numbers[place + i * step]
        done += size


@device
def read_targets(target: Any, ignore: Any, y: Any, terms: Any) -> int:
    """y = the smoothed targets, NaN outside [0, 1], IGNORED where they are `ignore`; returns how many are.

    With a focal factor a target is 0 or 1, and NaN in between.
    """
    on, off = y.dtype.type(terms.on), y.dtype.type(terms.off)
    none, nan, ignored = y.dtype.type(IGNORED), y.dtype.type(np.nan), np.int32(0)
    for i in range(len(y)):
        t = decode(target[i])
        inside = on * y.dtype.type(t) + off if (t >= 0) & (t <= 1) else nan
        y[i] = none if t == ignore else inside
        ignored += np.int32(t == ignore)
    if terms.gamma != 0.0:
        for i in range(len(y)):
            y[i] = nan if (y[i] > 0) & (y[i] < 1) else y[i]
    return np.int64(ignored)


@device
def load(logits: Any, y: Any, z: Any) -> None:
    """z = logits in the computing type; 0 where the target is ignored."""
    for i in range(len(z)):
        z[i] = decode(logits[i])
    for i in range(len(z)):
        z[i] = z[i] if y[i] != IGNORED else z.dtype.type(0)


@device
def losses_and_slopes(z: Any, y: Any, positive: Any) -> None:
    """positive = the losses, z = their derivatives by z."""
    one = z.dtype.type(1)
    for i in range(len(z)):
        positive[i], z[i] = binary_loss_and_slope(z[i], positive[i] * y[i], one - y[i])


@device
def focal_losses_and_slopes(z: Any, y: Any, positive: Any, gamma: float) -> None:
    """The same of the focal loss, in float64: its exponent magnifies roundings."""
    for i in range(len(z)):
        is_one = y[i] == 1
        share, sign = np.float64(positive[i]) if is_one else 1.0, 1.0 if is_one else -1.0
        loss, slope = focal_loss_and_slope(sign * np.float64(z[i]), gamma)
        nan = np.float64(y[i]) * 0.0  # 0 for a target of 0 or 1
        positive[i] = (0.0 if (share == 0.0) & (loss == np.inf) else share * loss) + nan
        z[i] = share * sign * slope + nan


@device
def weigh(losses: Any, slopes: Any, y: Any, factor: Any) -> Any:
    """Multiply both by the weights; 0 for ignored elements, and for infinite losses of weight 0. Returns the sum."""
    total, zero = losses.dtype.type(0), losses.dtype.type(0)
    for i in range(len(losses)):
        infinite = (factor[i] == 0) & (losses[i] == np.inf)
        loss = zero if infinite else losses[i] * factor[i]
        losses[i] = zero if y[i] == IGNORED else loss
        total = add_in_any_order(total, losses[i])
    for i in range(len(slopes)):
        slopes[i] = zero if y[i] == IGNORED else slopes[i] * factor[i]
    return total


@device
def scaled_by(slopes: Any, y: Any, scale: Any) -> None:
    """slopes = slopes * scale; ignored elements stay 0, whatever comes from above."""
    zero = slopes.dtype.type(0)
    for i in range(len(slopes)):
        slopes[i] = zero if y[i] == IGNORED else slopes[i] * scale[i]


@device
def block(
    logits: Any,
    target: Any,
    ignore: Any,
    weight: Any,
    pos_weight: Any,
    sample_weight: Any,
    terms: Any,
    room: Any,
    g: int,
) -> Any:
    """The elements from g on: losses in room.positive, dloss/dx but for a factor in room.z.

    Returns the sum of the losses, and how many elements are ignored.
    """
    size = len(logits)
    z, derivative, y = room.z[:size], room.derivative[:size], room.y[:size]
    positive, factor, more = room.positive[:size], room.factor[:size], room.more[:size]
    ignored = read_targets(target, ignore, y, terms)
    load(logits, y, z)
    if terms.scale != 1.0 or terms.softcap != 0.0:
        transform(z, derivative, terms)
    fill(positive, pos_weight, g)
    if terms.gamma != 0.0:
        focal_losses_and_slopes(z, y, positive, terms.gamma)
    else:
        losses_and_slopes(z, y, positive)
    fill(factor, weight, g)
    if len(sample_weight.numbers):
        fill(more, sample_weight, g)
        multiply(factor, more)
    total = weigh(positive, z, y, factor)
    if terms.softcap != 0.0:
        multiply(z, derivative)
    return np.float64(total), ignored


@device
def plain_block(logits: Any, target: Any, ignore: Any, zero: Any, scale: Any, after: Any, out: Any) -> Any:
    """The loss without options in one loop: returns the sum of the losses, and how many elements are ignored.

    `out` takes the gradients, times `scale` and then `after`; without any it is empty.
    """
    total, ignored, one, nan = zero, np.int32(0), type(zero)(1), type(zero)(np.nan)
    if len(out):
        for i in range(len(out)):
            x, t = decode(logits[i]), decode(target[i])
            y = type(zero)(t) if (t >= 0) & (t <= 1) else nan
            loss, slope = binary_loss_and_slope(x, y, one - y)
            total = add_in_any_order(total, zero if t == ignore else loss)
            ignored += np.int32(t == ignore)
            out[i] = encode(after * (scale * (zero if t == ignore else slope)), out)
    else:
        for i in range(len(logits)):
            x, t = decode(logits[i]), decode(target[i])
            y = type(zero)(t) if (t >= 0) & (t <= 1) else nan
            loss, _ = binary_loss_and_slope(x, y, one - y)
            total = add_in_any_order(total, zero if t == ignore else loss)
            ignored += np.int32(t == ignore)
    return np.float64(total), np.int64(ignored)


@row_kernel
def visit(
    logits: Any,
    target: Any,
    ignore: Any,
    weight: Any,
    weight_sizes: Any,
    weight_strides: Any,
    pos_weight: Any,
    pos_weight_sizes: Any,
    pos_weight_strides: Any,
    sample_weight: Any,
    sample_weight_sizes: Any,
    sample_weight_strides: Any,
    options: Any,
    scale: Any,
    losses: Any,
    sums: Any,
    ignored: Any,
    out: Any,
    first: int,
    last: int,
) -> None:
    """For each block the sum of the losses and how many elements are ignored; losses and gradients if there is room.

    `scale` multiplies the gradients: one number, or one for each element.
    """
    terms = terms_of(options)
    weights = Broadcast(weight, weight_sizes, weight_strides)
    pos_weights = Broadcast(pos_weight, pos_weight_sizes, pos_weight_strides)
    sample_weights = Broadcast(sample_weight, sample_weight_sizes, sample_weight_strides)
    weighted = len(weight) + len(pos_weight) + len(sample_weight) > 0
    plain = terms.plain and not weighted and len(losses) == 0 and len(scale) == 1
    room, staging = scratch_for(logits), staging_for(logits, out, BLOCK)
    zero, after = room.z.dtype.type(0), room.z.dtype.type(terms.after)
    # The derivative of the softcap has the logit scale in it.
    factor = room.z.dtype.type(np.float64(scale[0]) * (1.0 if terms.softcap != 0.0 else terms.scale))
    for b in range(first, last):
        start = b * BLOCK
        stop = min(start + BLOCK, len(logits))
        x, y, gradient = logits[start:stop], target[start:stop], out[start:stop]
        ready = staging[: stop - start] if len(staging) else gradient
        if plain:
            sums[b], ignored[b] = plain_block(x, y, ignore, zero, factor, after, ready)
        else:
            sums[b], ignored[b] = block(x, y, ignore, weights, pos_weights, sample_weights, terms, room, start)
            if len(losses):
                copy(losses[start:stop], room.positive)
            if len(out):
                slopes, each = room.z[: stop - start], factor
                if len(scale) > 1:
                    scaled_by(slopes, room.y, scale[start:stop])
                    each = room.z.dtype.type(1.0 if terms.softcap != 0.0 else terms.scale)
                store(ready, slopes, each, -1, zero, terms.after)
        if len(staging):
            stream(gradient, ready)
    streams_done()


@device
def copy(out: Any, numbers: Any) -> None:
    """out = the first of the numbers."""
    for i in range(len(out)):
        out[i] = numbers[i]


@row_kernel
def count(
    target: Any,
    ignore: Any,
    sample_weight: Any,
    sample_weight_sizes: Any,
    sample_weight_strides: Any,
    sums: Any,
    first: int,
    last: int,
) -> None:
    """For each block the sum of the sample weights of the elements that count; without weights their number."""
    weights = Broadcast(sample_weight, sample_weight_sizes, sample_weight_strides)
    room = scratch_for_count(sample_weight)
    for b in range(first, last):
        start = b * BLOCK
        y = target[start : start + BLOCK]
        numbers = room[: len(y)]
        fill(numbers, weights, start)
        sums[b] = sum_of_known(y, ignore, numbers)


@allocator
def scratch_for_count(sample_weight: Any) -> Any:
    """Return room for the weights of a block."""
    return np.empty(BLOCK, sample_weight.dtype)


@device
def sum_of_known(target: Any, ignore: Any, numbers: Any) -> float:
    """Return the sum of the numbers whose target is not ignored."""
    total = 0.0
    for i in range(len(target)):
        total = add_in_any_order(total, 0.0 if decode(target[i]) == ignore else np.float64(numbers[i]))
    return total
