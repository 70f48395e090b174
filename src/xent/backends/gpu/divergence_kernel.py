"""The divergences of two rows of logits on the GPU: loss and gradient of each row, without validation or reduction.

The equations and the order of visits are those of xent/backends/cpu/divergence_kernel.py: a row of each for its
log-sum-exp, then both together. Logits are (rows, classes), or (outer, classes, inner), with arbitrary strides, both of
one dtype; float32 for 16 bits, float64 for float64. Nothing here makes the host wait.

The kernel is compiled without fused multiply-adds: of equal logits two equal products have to cancel exactly.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from xent.backends.gpu import shapes
from xent.backends.gpu.backend import current, strided
from xent.backends.gpu.divergence_terms import (
    Pair,
    PairSwitches,
    PairTerms,
    Rows,
    kl_term,
    log_ratio,
    mixture_terms,
    shift_between,
    side_of,
    slope_of,
    student_of,
    teacher_of,
)
from xent.backends.gpu.primitives import exp
from xent.backends.gpu.shapes import Tile
from xent.backends.gpu.tile import DONE, KEPT, load, number_of, store, transform
from xent.divergence import Divergence


class GpuDivergence:
    """The divergences of tensors on a GPU (`xent.backends.divergence_protocol.DivergenceBackend`)."""

    def __init__(self, tile: Tile | None = None) -> None:
        self.tile = tile

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor | None, options: Divergence) -> Tensor:
        """Return the loss of each row."""
        return self._run(student, teacher, labels, None, options, None, None)

    def forward_backward(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None,
        row_scale: Tensor | float,
        options: Divergence,
        *,
        out: Tensor | None = None,
        finished: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the losses and the gradient of sum(row_scale * loss) by the student's logits.

        `out` may be the student's logits themselves. If the number in `finished` is 1, nothing is done: the device
        decides, and the host need not know.
        """
        out = torch.empty_like(student, memory_format=torch.contiguous_format) if out is None else out
        if isinstance(row_scale, Tensor):
            scales = row_scale.reshape(-1).contiguous()
        else:
            scales = torch.full((1,), row_scale, dtype=torch.float64, device=student.device)
        return self._run(student, teacher, labels, scales, options, out, finished), out

    def _run(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None,
        scales: Tensor | None,
        options: Divergence,
        out: Tensor | None,
        finished: Tensor | None,
    ) -> Tensor:
        classes, inner = student.shape[1], 1 if student.ndim == 2 else student.shape[2]
        rows, is_wide = len(student) * inner, student.dtype == torch.float64
        loss = torch.empty(rows, dtype=torch.float64 if is_wide else torch.float32, device=student.device)
        if rows == 0:
            return loss
        kept = None if labels is None else labels.reshape(-1).contiguous()
        pair = Pair(*strided(student), *strided(teacher), rows, classes, inner, kept)
        tile = self.tile or shapes.tile_for(rows, classes, inner, student.element_size())
        into = strided(student if out is None else out)
        with current(student.device):
            divergence[(-(-rows // tile.rows),)](
                pair,
                _numbers(options, student.device),
                scales,
                finished,
                loss,
                into,
                GRADIENT=out is not None,
                FIRST=out is None or options.kind != "forward",
                PER_ROW=scales is not None and scales.numel() > 1,
                SWITCHES=_switches(options),
                WIDE=tl.float64 if is_wide else tl.float32,
                ROWS=tile.rows,
                BLOCK=tile.block,
                num_warps=tile.warps,
                enable_fp_fusion=False,
            )
        return loss


def _switches(options: Divergence) -> PairSwitches:
    return PairSwitches(
        reverse=options.kind == "reverse",
        mixture=options.kind == "js",
        scaled=options.logit_scale != 1.0,
        capped=options.softcap is not None,
        normalised=options.z_loss != 0.0,
    )


def _numbers(options: Divergence, device: torch.device) -> Tensor:
    """The bits of the options as int64, on the device, so that no value compiles anything."""
    cap, scale = options.softcap or 0.0, options.logit_scale
    return _on_device((scale, cap, options.z_loss, options.beta, options.factor), options.ignore_index, device)


@lru_cache(maxsize=256)
def _on_device(numbers: tuple[float, ...], ignore_index: int, device: torch.device) -> Tensor:
    bits = torch.tensor(numbers, dtype=torch.float64).view(torch.int64)
    return torch.cat([bits, torch.tensor([ignore_index], dtype=torch.int64)]).to(device)


@triton.jit
def terms_of(numbers):
    """Unpack the numbers of a call."""
    return PairTerms(
        number_of(numbers, 0),
        number_of(numbers, 1),
        number_of(numbers, 2),
        number_of(numbers, 3),
        number_of(numbers, 4),
        tl.load(numbers + 5),
    )


@triton.jit
def rows_of(pair, terms, tile, ROWS: tl.constexpr):
    """The rows of a tile, and which of them count."""
    g = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = g < pair.rows
    readable = inside
    if pair.labels is not None:
        label = tl.load(pair.labels + g, mask=inside, other=-1).to(tl.int64)
        readable = inside & (label != terms.ignore_index)
    return Rows(g, inside, readable)


@triton.jit
def load_both(pair, terms, at, j, EVICT: tl.constexpr, SWITCHES: tl.constexpr, WIDE: tl.constexpr):
    """z of both rows, and dz/dx of the student."""
    mask = at.readable[:, None] & (j < pair.classes)[None, :]
    s, derivative = transform(load(student_of(pair), pair, at.g, j, mask, EVICT, WIDE), terms, SWITCHES)
    t, _ = transform(load(teacher_of(pair), pair, at.g, j, mask, EVICT, WIDE), terms, SWITCHES)
    return s, t, derivative


@triton.jit
def probabilities(z, side):
    """exp(z - lse)."""
    return exp(z - side.reference[:, None]) * side.inverse[:, None]


@triton.jit
def divergence(
    pair,
    numbers,
    row_scale,
    finished,
    loss,
    out,
    GRADIENT: tl.constexpr,
    FIRST: tl.constexpr,
    PER_ROW: tl.constexpr,
    SWITCHES: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Loss, and with GRADIENT the gradient, of a tile of rows. If `finished` holds 1, there is nothing left to do.

    FIRST: whether terms need a visit of their own; those of "forward" are made with the gradient.
    """
    if finished is not None:  # noqa: SIM102
        if tl.load(finished) == 1.0:  # not `and`: without the number there is nothing to compile
            return
    terms = terms_of(numbers)
    at = rows_of(pair, terms, tl.program_id(0), ROWS)
    student = side_of(student_of(pair), pair, terms, at, KEPT, SWITCHES, WIDE, ROWS, BLOCK)
    teacher = side_of(teacher_of(pair), pair, terms, at, KEPT, SWITCHES, WIDE, ROWS, BLOCK)
    high, low = shift_between(student, teacher, WIDE)
    beta = terms.beta.to(WIDE)

    total = tl.zeros([ROWS], tl.float64)
    mean = tl.zeros([ROWS], tl.float64)
    if FIRST:
        for start in range(0, pair.classes, BLOCK):
            s, t, _ = load_both(pair, terms, at, start + tl.arange(0, BLOCK), KEPT, SWITCHES, WIDE)
            p, q, d = probabilities(s, student), probabilities(t, teacher), log_ratio(t, s, high, low)
            if SWITCHES.mixture:
                log_of_student, term = mixture_terms(p, q, d, beta)
                mean += tl.sum(p * log_of_student, axis=1).to(tl.float64)
            elif SWITCHES.reverse:
                term, _ = kl_term(p, q, -d)
                mean += tl.sum(slope_of(p, -d), axis=1).to(tl.float64)
            else:
                term, _ = kl_term(q, p, d)
            total += tl.sum(term, axis=1).to(tl.float64)

    lse = student.reference.to(tl.float64) + student.log_total
    if GRADIENT:
        if PER_ROW:
            scale = tl.load(row_scale + at.g, mask=at.inside, other=0.0).to(tl.float64)
        else:
            scale = tl.load(row_scale).to(tl.float64) + tl.zeros([ROWS], tl.float64)
        if SWITCHES.scaled and not SWITCHES.capped:  # the derivative of the softcap has the logit scale in it
            scale = scale * terms.scale
        factor, middle = (terms.factor * scale).to(WIDE)[:, None], mean.to(WIDE)[:, None]
        blocks = tl.cdiv(pair.classes, BLOCK)
        for block in range(blocks):
            j = (blocks - 1 - block) * BLOCK + tl.arange(0, BLOCK)
            s, t, derivative = load_both(pair, terms, at, j, DONE, SWITCHES, WIDE)
            p, q, d = probabilities(s, student), probabilities(t, teacher), log_ratio(t, s, high, low)
            if SWITCHES.mixture:
                log_of_student, _ = mixture_terms(p, q, d, beta)
                gradient = (1.0 - beta) * p * (log_of_student - middle)
            elif SWITCHES.reverse:
                gradient = slope_of(p, -d) - p * middle
            else:
                term, gradient = kl_term(q, p, d)
                total += tl.sum(term, axis=1).to(tl.float64)
            gradient *= factor
            if SWITCHES.normalised:
                gradient += (2.0 * terms.z_loss * lse * scale).to(WIDE)[:, None] * p
            if SWITCHES.capped:
                gradient *= derivative
            gradient = tl.where(at.readable[:, None], gradient, 0.0)
            store(out, pair, at.g, j, gradient, at.inside[:, None] & (j < pair.classes)[None, :])

    value = terms.factor * total + 0.0 * (student.log_total + teacher.log_total)
    if SWITCHES.normalised:
        value += terms.z_loss * lse * lse
    tl.store(loss + at.g, tl.where(at.readable, value, 0.0).to(WIDE), mask=at.inside)
