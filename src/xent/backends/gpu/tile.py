"""A tile: the positions that one program works on together, and the steps on them, a block of classes at a time.

A position is a row of classes: row r of (rows, classes), or one of the outer * inner of (outer, classes, inner). The
steps are those of xent.backends.cpu; where the CPU has two orders of loops for the two layouts, here strides and
the shape of a tile make the difference. Numbers of a position (sums, losses) are float64, those of a class and maxima
are WIDE: float32, or float64 for float64 logits.

Where a gradient follows, a row is visited twice: for its maximum and sum, then for the gradient. The second visit goes
backwards, because the classes that were seen last are the likeliest to be in a cache still.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from xent.backends.gpu.primitives import exp, log, raise_maximum, softcap_and_derivative
from xent.objective import Objective


class Strided(NamedTuple):
    """Numbers that lie at outer_index * outer + class * along + inner_index * inner."""

    pointer: Any
    outer: Any
    along: Any
    inner: Any


ABSENT = Strided(None, 0, 0, 0)


class Inputs(NamedTuple):
    """The arrays of a call: `labels` is None for soft targets, `soft` for labels, `weight` without weights.

    Flat, because Triton 3.6 loses strides of 1 in tuples of tuples.
    """

    logits: Any
    logits_outer: Any
    logits_along: Any
    logits_inner: Any
    rows: Any
    classes: Any
    inner: Any
    labels: Any
    soft: Any
    soft_outer: Any
    soft_along: Any
    soft_inner: Any
    weight: Any


class Switches(NamedTuple):
    """What is in use, known when a kernel is compiled: what is off is left out.

    `dense`: whether t is more than the share of a label; `normalised`: whether there is a z_loss.
    """

    dense: bool
    scaled: bool
    capped: bool
    normalised: bool


class Terms(NamedTuple):
    """What the options mean for every row: t[j] = weight[j] * (on * p[j] + off).

    For labels the share `on` goes to one class and is handled there; `label_mass` is the sum of the rest, the same for
    all rows.
    """

    on: Any
    off: Any
    label_mass: Any
    scale: Any
    softcap: Any
    z_loss: Any
    ignore_index: Any


class Positions(NamedTuple):
    """Which positions; their labels (-1: none, or to be ignored), and the labels' shares of t.

    `readable` says whose logits are read, and `without_label` is loss and gradient of the others: 0 or NaN.
    """

    g: Any
    inside: Any
    readable: Any
    label: Any
    share: Any
    without_label: Any


class Normal(NamedTuple):
    """With reference = max(z): total = sum(exp(z - reference)), terms = sum(t * (reference - z)), mass = sum(t).

    The last two are without the share of the label.
    """

    reference: Any
    total: Any
    terms: Any
    mass: Any


@triton.jit
def logits_of(inputs):
    """The logits with their strides."""
    return Strided(inputs.logits, inputs.logits_outer, inputs.logits_along, inputs.logits_inner)


@triton.jit
def soft_of(inputs):
    """The class probabilities with their strides."""
    return Strided(inputs.soft, inputs.soft_outer, inputs.soft_along, inputs.soft_inner)


def flattened(
    objective: Objective, dtype: torch.dtype, classes: int, device: torch.device, *, soft: bool
) -> tuple[Tensor | None, Tensor, Tensor | None, Switches]:
    """The options as kernels take them: class weights, numbers, the mean of the weights, and switches.

    The numbers are a tensor on the device, so that no value compiles anything; `terms_of` reads them. The mean of the
    weights is there where label smoothing needs it.
    """
    # With one class smoothing changes nothing; leaving it out keeps the gradient exactly 0.
    smoothing = objective.label_smoothing if classes > 1 else 0.0
    weight = None if objective.weight is None else objective.weight.detach().to(dtype).contiguous()
    mean_weight = weight.double().mean() if weight is not None and smoothing and not soft else None
    numbers = (objective.logit_scale, objective.softcap or 0.0, smoothing, objective.z_loss, objective.ignore_index)
    switches = Switches(
        dense=soft or smoothing > 0.0,
        scaled=objective.logit_scale != 1.0,
        capped=objective.softcap is not None,
        normalised=objective.z_loss != 0.0,
    )
    return weight, _on_device(numbers, device), mean_weight, switches


@lru_cache(maxsize=256)
def _on_device(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """The bits of float64 numbers and of an integer, at the end, as int64."""
    bits = torch.tensor(numbers[:-1], dtype=torch.float64).view(torch.int64)
    return torch.cat([bits, torch.tensor(numbers[-1:], dtype=torch.int64)]).to(device)


@triton.jit
def number_of(numbers, place):
    """One of the float64 numbers of `flattened`."""
    return tl.load(numbers + place).to(tl.float64, bitcast=True)


@triton.jit
def terms_of(inputs, numbers, mean_weight):
    """Unpack the numbers of `flattened`."""
    smoothing = number_of(numbers, 2)
    label_mass = smoothing
    if mean_weight is not None:
        label_mass = smoothing * tl.load(mean_weight)
    return Terms(
        1.0 - smoothing,
        smoothing / inputs.classes,
        label_mass,
        number_of(numbers, 0),
        number_of(numbers, 1),
        number_of(numbers, 3),
        tl.load(numbers + 4),
    )


# ------------------------------------------------------------------------------------------------ numbers of a position


@triton.jit
def read_labels(inputs, terms, tile, ROWS: tl.constexpr):
    """The positions of a tile. No label but one in [0, classes) is ever used as an index."""
    g = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = g < inputs.rows
    label = tl.full([ROWS], -1, tl.int64)
    share = tl.zeros([ROWS], tl.float64)
    without_label = tl.zeros([ROWS], tl.float64)
    readable = inside
    if inputs.labels is not None:
        given = tl.load(inputs.labels + g, mask=inside, other=-1).to(tl.int64)
        ignored = given == terms.ignore_index
        readable = inside & (given >= 0) & (given < inputs.classes) & ~ignored
        label = tl.where(readable, given, -1)
        without_label = tl.where(ignored, 0.0, float("nan")).to(tl.float64)
        share = share + terms.on
        if inputs.weight is not None:
            share = share * tl.load(inputs.weight + label, mask=readable, other=0.0).to(tl.float64)
    return Positions(g, inside, readable, label, share, without_label)


@triton.jit
def row_offset(strided, inputs, g):
    """Where the numbers of these positions begin; 64 bits, since there may be more than 2**31."""
    return (g // inputs.inner) * strided.outer + (g % inputs.inner) * strided.inner


@triton.jit
def losses(normal, label_z, terms, at, SWITCHES: tl.constexpr):
    """Loss and log-sum-exp of each position."""
    log_total = log(normal.total)
    reference = normal.reference.to(tl.float64)
    # In this order an offset that all logits have in common cancels. Without a share, 0 * inf is 0.
    of_label = tl.where(at.share != 0.0, at.share * (log_total + (reference - label_z.to(tl.float64))), 0.0)
    lse = reference + log_total
    value = normal.terms + normal.mass * log_total + of_label
    if SWITCHES.normalised:
        value += terms.z_loss * lse * lse
    value = tl.where(lse == lse, value, float("nan"))
    return tl.where(at.readable, value, at.without_label), tl.where(at.readable, lse, at.without_label)


@triton.jit
def from_lse(lse, WIDE: tl.constexpr):
    """reference and total such that exp(z - lse) = exp(z - reference) / total, without losing digits of lse."""
    reference = lse.to(WIDE)
    return reference, exp(lse - reference.to(tl.float64))


@triton.jit
def factors(normal, lse, row_scale, terms, at, PER_ROW: tl.constexpr, SWITCHES: tl.constexpr):
    """factor and target_factor of dz = factor * exp(z - reference) - target_factor * t."""
    if PER_ROW:
        target_factor = tl.load(row_scale + at.g, mask=at.inside, other=0.0).to(tl.float64)
    else:
        target_factor = tl.load(row_scale).to(tl.float64) + tl.zeros_like(at.share)
    if SWITCHES.scaled and not SWITCHES.capped:  # the derivative of the softcap has the logit scale in it
        target_factor = target_factor * terms.scale
    target_sum = normal.mass + at.share
    if SWITCHES.normalised:
        target_sum += 2.0 * terms.z_loss * lse
    return target_sum * target_factor / normal.total, target_factor


# --------------------------------------------------------------------------------------------------- numbers of a class


KEPT: tl.constexpr = tl.constexpr("evict_last")
DONE: tl.constexpr = tl.constexpr("evict_first")


@triton.jit
def load(strided, inputs, g, j, mask, EVICT: tl.constexpr, WIDE: tl.constexpr):
    """The numbers of positions g and classes j; -inf outside the mask.

    The caches are told what will be read again, which made gradients faster on an H200.
    """
    places = row_offset(strided, inputs, g)[:, None] + j.to(tl.int64)[None, :] * strided.along
    return tl.load(strided.pointer + places, mask=mask, other=float("-inf"), eviction_policy=EVICT).to(WIDE)


@triton.jit
def store(strided, inputs, g, j, numbers, mask):
    """Write numbers of positions g and classes j, rounded to what is stored."""
    places = row_offset(strided, inputs, g)[:, None] + j.to(tl.int64)[None, :] * strided.along
    tl.store(strided.pointer + places, numbers.to(strided.pointer.dtype.element_ty), mask=mask, eviction_policy=DONE)


@triton.jit
def load_label(inputs, at, WIDE: tl.constexpr):
    """The logit of each label; -inf without one."""
    places = row_offset(logits_of(inputs), inputs, at.g) + at.label * inputs.logits_along
    mask = at.readable & (at.label >= 0)
    return tl.load(inputs.logits + places, mask=mask, other=float("-inf")).to(WIDE)


@triton.jit
def transform(x, terms, SWITCHES: tl.constexpr):
    """z = softcap * tanh(scale * x / softcap), or scale * x without a softcap, and dz/dx where it varies."""
    if SWITCHES.capped:
        z, derivative = softcap_and_derivative(x, terms.scale.to(x.dtype), terms.softcap.to(x.dtype))
    elif SWITCHES.scaled:
        z, derivative = x * terms.scale.to(x.dtype), x
    else:
        z, derivative = x, x
    return z, derivative


@triton.jit
def target_block(inputs, terms, at, j, mask, EVICT: tl.constexpr, WIDE: tl.constexpr):
    """t of the classes j, without the share of a label; 0 outside the mask."""
    t = tl.zeros(mask.shape, WIDE) + terms.off.to(WIDE)
    if inputs.soft is not None:
        t += terms.on.to(WIDE) * load(soft_of(inputs), inputs, at.g, j, mask, EVICT, WIDE)
    if inputs.weight is not None:
        t *= tl.load(inputs.weight + j, mask=j < inputs.classes, other=0.0).to(WIDE)[None, :]
    return tl.where(mask, t, 0.0)


@triton.jit
def mask_of(inputs, at, j):
    """Which numbers of the block are read."""
    return at.readable[:, None] & (j < inputs.classes)[None, :]


@triton.jit
def last_class(inputs, at):
    """How far a visit has to go: over no class if the logits of no position are read."""
    return tl.where(tl.max(at.readable.to(tl.int32), axis=0) > 0, inputs.classes, 0)


@triton.jit
def no_classes(WIDE: tl.constexpr, ROWS: tl.constexpr):
    """What a visit knows before it has seen a class."""
    none = tl.zeros([ROWS], tl.float64)
    return Normal(tl.full([ROWS], float("-inf"), WIDE), none, none, none)


@triton.jit
def finite(highest):
    """The number that terms and exponentials are relative to: any, while there are none but masked classes."""
    return tl.where(highest == float("-inf"), 0.0, highest)


@triton.jit
def moved_terms(normal, reference):
    """The terms relative to another reference."""
    by = reference.to(tl.float64) - finite(normal.reference).to(tl.float64)
    return normal.terms + tl.where(normal.mass != 0.0, normal.mass * by, 0.0)


@triton.jit
def add_classes(normal, z, inputs, terms, at, j, mask, EVICT: tl.constexpr, SWITCHES: tl.constexpr, WIDE: tl.constexpr):
    """What is known after these classes too; z is -inf outside the mask."""
    highest, total = raise_maximum(normal.reference, normal.total, tl.max(z, axis=1))
    reference = finite(highest)
    target, mass = normal.terms, normal.mass
    if SWITCHES.dense:
        t = target_block(inputs, terms, at, j, mask, EVICT, WIDE)
        # A class without target adds 0 even if it is masked (0 * inf).
        term = tl.where(t != 0.0, t * (reference[:, None] - z), 0.0)
        target = moved_terms(normal, reference) + tl.sum(term, axis=1).to(tl.float64)
        mass += tl.sum(t, axis=1).to(tl.float64)
    total += tl.sum(exp(z - reference[:, None]), axis=1).to(tl.float64)
    return Normal(highest, total, target, mass)


@triton.jit
def all_classes(normal, inputs, terms):
    """Normal after the last class: NaN if all are masked, and the mass of labels is the same for all rows."""
    mass = normal.mass
    if inputs.labels is not None:
        mass = tl.zeros_like(mass) + terms.label_mass
    total = tl.where(normal.reference == float("-inf"), float("nan"), normal.total)
    return Normal(normal.reference, total, normal.terms, mass)


@triton.jit
def normalise(
    inputs,
    terms,
    at,
    EVICT: tl.constexpr,
    SWITCHES: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The first visit: reference, total, terms and mass of each position."""
    normal = no_classes(WIDE, ROWS)
    for start in range(0, last_class(inputs, at), BLOCK):
        j = start + tl.arange(0, BLOCK)
        mask = mask_of(inputs, at, j)
        z, _ = transform(load(logits_of(inputs), inputs, at.g, j, mask, EVICT, WIDE), terms, SWITCHES)
        normal = add_classes(normal, z, inputs, terms, at, j, mask, EVICT, SWITCHES, WIDE)
    return all_classes(normal, inputs, terms)


@triton.jit
def target_masses(inputs, terms, at, WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """mass of each position: what the gradient from a given log-sum-exp needs to know beforehand."""
    mass = tl.zeros([ROWS], tl.float64)
    if inputs.soft is not None:
        for start in range(0, inputs.classes, BLOCK):
            j = start + tl.arange(0, BLOCK)
            t = target_block(inputs, terms, at, j, mask_of(inputs, at, j), KEPT, WIDE)
            mass += tl.sum(t, axis=1).to(tl.float64)
    else:
        mass = mass + terms.label_mass
    return mass


@triton.jit
def gradients(
    inputs,
    terms,
    at,
    reference,
    factor,
    target_factor,
    out,
    SWITCHES: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The second visit: out = (factor * exp(z - reference) - target_factor * t) * dz/dx."""
    share = (at.share * target_factor).to(WIDE)
    # Where no logits are read, all exponentials are 0 and the gradient is 0 times this factor: 0, or NaN.
    factor = tl.where(at.readable, factor, at.without_label).to(WIDE)
    target_factor = tl.where(at.readable, target_factor, at.without_label).to(WIDE)
    reference = tl.where(at.readable, reference, 0.0)
    label = at.label.to(tl.int32)
    blocks = tl.cdiv(inputs.classes, BLOCK)
    for block in range(blocks):
        j = (blocks - 1 - block) * BLOCK + tl.arange(0, BLOCK)
        mask = mask_of(inputs, at, j)
        z, derivative = transform(load(logits_of(inputs), inputs, at.g, j, mask, DONE, WIDE), terms, SWITCHES)
        gradient = factor[:, None] * exp(z - reference[:, None])
        if SWITCHES.dense:
            gradient -= target_factor[:, None] * target_block(inputs, terms, at, j, mask, DONE, WIDE)
        if inputs.labels is not None:
            gradient = tl.where(j[None, :] == label[:, None], gradient - share[:, None], gradient)
        if SWITCHES.capped:
            gradient *= derivative
        store(out, inputs, at.g, j, gradient, at.inside[:, None] & (j < inputs.classes)[None, :])
