"""The divergences of two rows of logits on the CPU: loss and gradient of each row, without validation or reduction.

    p_s, p_t = softmax(z of s), softmax(z of t)
    forward    loss = sum(p_t * (d - 1 + exp(-d))),  d = log p_t - log p_s     dz = p_s - p_t
    reverse    the same with the roles exchanged                               dz = p_s * (-d - sum(p_s * -d))
    js         loss = beta * KL(p_t || m) + (1 - beta) * KL(p_s || m)          dz = (1 - beta) p_s (log(p_s/m) - mean)

and factor * loss + z_loss * lse**2; xent/reference/divergence.py has all of it. A row of each is visited for its
log-sum-exp, then both together, a block at a time: for "forward" that makes terms and gradient at once, for the others
the mean that the gradient needs comes first. Exponentials are made again in each visit: two rows of 50257 classes and
theirs would not fit the second-level cache.

*Logits*: (rows, classes), both of one dtype: float32, float64, float16, or the bits of bfloat16 as uint16. *Labels*:
int64, one for each row, or None; a row whose label is `ignore_index` has loss and gradient 0, whatever its logits. NaN
or +inf among the logits make their row NaN, and so do logits that are all -inf. Results do not depend on the number of
threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xent import memory
from xent.backends.cpu.blocks import exponentials, load_transformed, multiply, sum_of_exponentials
from xent.backends.cpu.compilation import allocator, device
from xent.backends.cpu.divergence_terms import (
    Side,
    add_probabilities,
    forward_terms,
    mixture_gradient,
    mixture_terms,
    reverse_gradient,
    reverse_terms,
    shift_between,
)
from xent.backends.cpu.formats import as_kernel_array, bits, encode, flat, scratch
from xent.backends.cpu.primitives import log, raise_maximum
from xent.backends.cpu.streaming import staging_for, store_large, streams_done
from xent.backends.cpu.team import row_kernel
from xent.backends.cpu.threads import get_num_threads, over_rows
from xent.backends.cpu.tile import FLOAT32_MAX, FLOAT64_MAX, NO_LABELS, PARALLEL_SIZE, computing_dtype
from xent.divergence import Divergence

Array = NDArray[Any]

BLOCK = 1024  # classes of both rows that a step processes: four blocks of scratch in the first-level cache
KINDS = ("forward", "reverse", "js")
FORWARD, REVERSE = 0, 1

# Between these a sum of exp(z) needs no reference: what is too small for it is too small to matter.
LOWEST_TOTAL, HIGHEST_TOTAL = 1e-10, 1e20


@dataclass(frozen=True)
class CpuDivergence:
    """The divergences of NumPy arrays (`xent.backends.divergence_protocol.DivergenceBackend`)."""

    threads: Callable[[], int] = get_num_threads

    def forward(self, student: Array, teacher: Array, labels: Array | None, options: Divergence) -> Array:
        """Return the loss of each row."""
        nothing = np.empty(0, student.dtype)
        return self._run(student, teacher, labels, np.ones(1), options, nothing, 1.0)

    def forward_backward(
        self,
        student: Array,
        teacher: Array,
        labels: Array | None,
        row_scale: Array | float,
        options: Divergence,
        *,
        out: Array | None = None,
        after: float = 1.0,
    ) -> tuple[Array, Array]:
        """Return the losses and the gradient of sum(row_scale * loss) by the student's logits.

        `out` may be the student's logits themselves. With `after`, which is not for 16 bits, the gradient is that
        number times what it is without, to the last bit.
        """
        out = memory.empty(student.shape, student.dtype) if out is None else out
        scales = row_scale.astype(np.float64, copy=False) if isinstance(row_scale, np.ndarray) else row_scale
        numbers = as_kernel_array(np.atleast_1d(np.asarray(scales, np.float64)))
        return self._run(student, teacher, labels, numbers, options, out.reshape(-1), after), out

    def _run(
        self,
        student: Array,
        teacher: Array,
        labels: Array | None,
        row_scale: Array,
        options: Divergence,
        out: Array,
        after: float,
    ) -> Array:
        rows, classes = student.shape
        loss = np.empty(rows, computing_dtype(student.dtype))
        kept = NO_LABELS if labels is None else as_kernel_array(labels.reshape(-1))
        arguments = (*flat(student), *flat(teacher), classes, kept, flattened(options, after), options.ignore_index)
        threads = 1 if student.size < PARALLEL_SIZE else self.threads()
        over_rows(divergence, (*arguments, row_scale, loss, bits(out)), rows, threads)
        return loss


def flattened(options: Divergence, after: float) -> Array:
    """The options of a row's loss as the kernel takes them."""
    kind = float(KINDS.index(options.kind))
    scale, softcap = options.logit_scale, options.softcap or 0.0
    return np.array((scale, softcap, options.z_loss, kind, options.beta, options.factor, after))


class Terms(NamedTuple):
    """The numbers of `flattened`."""

    scale: float
    softcap: float
    z_loss: float
    kind: int
    beta: float
    factor: float
    after: float


class Room(NamedTuple):
    """Scratch of a thread: z of both rows and the derivative by the student's logits; `spare` is for the teacher's."""

    s: Any
    t: Any
    derivative: Any
    spare: Any


class Rows(NamedTuple):
    """The logits of both rows."""

    student: Any
    teacher: Any


@allocator
def _room(logits: Any) -> Any:
    return Room(scratch(logits, BLOCK), scratch(logits, BLOCK), scratch(logits, BLOCK), scratch(logits, BLOCK))


@device
def side_of(logits: Any, terms: Any, z: Any, derivative: Any) -> Any:
    """What makes probabilities of a row. Float32 rows are relative to 0 where their sum is far from any limit."""
    zero, one = z.dtype.type(0), z.dtype.type(1)
    # Of one class the probability is exactly 1.
    if z.itemsize == 4 and len(logits) > 1 and terms.scale == 1.0 and terms.softcap == 0.0:
        total = 0.0
        for start in range(0, len(logits), BLOCK):
            block = logits[start : start + BLOCK]
            total += np.float64(sum_of_exponentials(block, zero))
        if LOWEST_TOTAL < total < HIGHEST_TOTAL:
            return Side(zero, z.dtype.type(1.0 / total), log(total), 0.0)
    highest, total = z.dtype.type(-np.inf), 0.0
    for start in range(0, len(logits), BLOCK):
        size = min(BLOCK, len(logits) - start)
        block = z[:size]
        m = load_transformed(logits[start : start + size], block, derivative[:size], terms)
        highest, total = raise_maximum(highest, total, m)
        total += np.float64(exponentials(block, highest if highest != -np.inf else zero))
    if highest == -np.inf or total != total:
        return Side(zero, one, 0.0, np.nan)
    return Side(highest, z.dtype.type(1.0 / total), log(total), 0.0)


@device
def load_both(rows: Any, start: int, stop: int, terms: Any, room: Any) -> None:
    """z of both rows, from class start to class stop."""
    size = stop - start
    load_transformed(rows.student[start:stop], room.s[:size], room.derivative[:size], terms)
    load_transformed(rows.teacher[start:stop], room.t[:size], room.spare[:size], terms)


@device
def first_visit(rows: Any, terms: Any, room: Any, student: Any, teacher: Any, shift: Any) -> Any:
    """The divergence of two rows, and the mean that its gradient is relative to."""
    total = mean = 0.0
    for start in range(0, len(rows.student), BLOCK):
        stop = min(start + BLOCK, len(rows.student))
        load_both(rows, start, stop, terms, room)
        s, t = room.s[: stop - start], room.t[: stop - start]
        if terms.kind == FORWARD:
            total += forward_terms(s, t, student, teacher, shift)
        elif terms.kind == REVERSE:
            part, slope = reverse_terms(s, t, student, teacher, shift)
            total += part
            mean += slope
        else:
            part, slope = mixture_terms(s, t, student, teacher, shift, terms.beta)
            total += part
            mean += slope
    return total, mean


@device
def gradient_visit(
    rows: Any, terms: Any, room: Any, student: Any, teacher: Any, shift: Any, mean: float, factors: Any, out: Any,
    staging: Any,
) -> float:  # fmt: skip
    """out = (factors[0] * dz + factors[1] * p_s) * dz/dx; returns the sum of the terms for "forward"."""
    total, number = 0.0, room.s.dtype.type
    for start in range(0, len(rows.student), BLOCK):
        stop = min(start + BLOCK, len(rows.student))
        size = stop - start
        load_both(rows, start, stop, terms, room)
        s, t = room.s[:size], room.t[:size]
        if terms.kind == FORWARD:
            total += forward_terms(s, t, student, teacher, shift)
        elif terms.kind == REVERSE:
            reverse_gradient(s, t, student, shift, number(mean))
        else:
            mixture_gradient(s, t, student, teacher, shift, terms.beta, mean)
        factor = number(factors[0])
        if terms.z_loss != 0.0:
            load_transformed(rows.student[start:stop], t, room.derivative[:size], terms)
            for i in range(size):
                s[i] = s[i] * factor
            add_probabilities(s, t, student, number(factors[1]))
            factor = number(1)
        if terms.softcap != 0.0:
            multiply(s, room.derivative[:size])
        store_large(out[start:stop], s, factor, -1, number(0), terms.after, staging)
    return total


@device
def fill(out: Any, value: Any) -> None:
    """Fill a row of the gradient."""
    stored = encode(value, out)
    for i in range(len(out)):
        out[i] = stored


@device
def divergence_of_row(
    rows: Any, into: Any, ignored: bool, row_scale: float, terms: Any, room: Any, staging: Any
) -> float:
    """Loss, and where `into` has room for it the gradient, of one row."""
    number = room.s.dtype.type
    if ignored:
        fill(into, number(0))
        return 0.0
    s, t = side_of(rows.student, terms, room.s, room.spare), side_of(rows.teacher, terms, room.t, room.spare)
    known, lse = s.known + t.known, np.float64(s.reference) + s.log_total
    if known != known:
        fill(into, number(np.nan))
        return np.nan
    shift = shift_between(s, t)
    total = mean = 0.0
    if not len(into) or terms.kind != FORWARD:
        total, mean = first_visit(rows, terms, room, s, t, shift)
    if len(into):
        # The derivative of the softcap has the logit scale in it.
        scale = row_scale * (1.0 if terms.softcap != 0.0 else terms.scale)
        normal = 2.0 * terms.z_loss * lse * scale if terms.z_loss != 0.0 else 0.0
        largest = FLOAT32_MAX if room.s.itemsize == 4 else FLOAT64_MAX
        factors = (terms.factor * scale, min(max(normal, -largest), largest))
        found = gradient_visit(rows, terms, room, s, t, shift, mean, factors, into, staging)
        total = found if terms.kind == FORWARD else total
    return terms.factor * total + (terms.z_loss * lse * lse if terms.z_loss != 0.0 else 0.0)


@device
def divergence_at(
    student: Any, student_at: int, teacher: Any, teacher_at: int, classes: int, out: Any, r: int, ignored: bool,
    row_scale: float, terms: Any, room: Any, staging: Any,
) -> float:  # fmt: skip
    """The same for row r, whose logits begin there: cut here, where no references are counted (compilation.py)."""
    rows = Rows(student[student_at : student_at + classes], teacher[teacher_at : teacher_at + classes])
    into = out[r * classes : (r + 1) * classes] if len(out) else out
    return divergence_of_row(rows, into, ignored, row_scale, terms, room, staging)


@row_kernel
def divergence(
    student: Any, student_stride: int, teacher: Any, teacher_stride: int, classes: int, labels: Any, options: Any,
    ignore_index: int, row_scale: Any, loss: Any, out: Any, first: int, last: int,
) -> None:  # fmt: skip
    """Loss, and where `out` has room for it the gradient, of the rows from `first` to `last`."""
    terms = Terms(options[0], options[1], options[2], int(options[3]), options[4], options[5], options[6])
    room, staging = _room(student), staging_for(student, out, BLOCK)
    for r in range(first, last):
        ignored = len(labels) > 0 and labels[r] == ignore_index
        scale = np.float64(row_scale[r if len(row_scale) > 1 else 0]) if len(out) else 1.0
        loss[r] = divergence_at(
            student, r * student_stride, teacher, r * teacher_stride, classes, out, r, ignored, scale, terms, room,
            staging,
        )  # fmt: skip
    streams_done()
