"""The products of the linear loss on the CPU, and the changes of format around them (`xent.linear.driver.Steps`).

Three ways to multiply, by what the arguments are:

- float32 and float64: the products as they are. torch adds to the gradient of the weight in place; NumPy cannot, so
  there the gradient is made for a slab of classes at a time, and added.
- bfloat16 on a processor that multiplies it: logits and their gradient are bfloat16, as they would be without fusion;
  the gradient of the weight is made for a slab of classes at a time and added up in float32 (accumulation.py).
- other 16-bit numbers: input and weight are widened to float32, a slab of classes at a time, and so are the logits.

Logits and their gradient are one array: a row kernel has read all of a row before it writes any of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xent import memory
from xent.arrays import rounded
from xent.backends.cpu import accumulation as kernels
from xent.backends.cpu.formats import bits
from xent.backends.cpu.products import (
    BFLOAT16,
    Library,
    adds,
    multiplies_bfloat16,
    multiply,
    multiply_transposed,
)
from xent.backends.cpu.sampling import entry_bytes, index_bytes
from xent.backends.cpu.threads import over_rows
from xent.backends.cpu.tile import computing_dtype
from xent.backends.few_rows import are_few
from xent.linear.divergence import Pair, PairSteps
from xent.linear.driver import NOTHING, Gradients, Layer, Wanted
from xent.linear.plan import Plan, Sizes, aligned, make_plan, make_shared_plans

Array = NDArray[Any]

SMALL = 2**16
"""Numbers up to which a change of format stays on the calling thread."""


@dataclass(frozen=True)
class Method:
    """How the products of a layer are made; the text of the module says when which."""

    library: Library
    chunk: np.dtype[Any]
    """The dtype of logits and their gradient."""
    widened: bool
    slabs: bool
    """Whether the gradient of the weight is made for a slab of classes at a time, and then added."""
    copies_target: bool
    """Whether soft targets need another dtype or another place for the row kernels."""

    @classmethod
    def of(cls, layer: Layer, library: Library) -> Method:
        dtype, compute = layer.input.dtype, computing_dtype(layer.input.dtype)
        narrow = dtype.itemsize == 2
        widened = narrow and not (dtype == BFLOAT16 and multiplies_bfloat16(library))
        chunk = compute if widened or not narrow else dtype
        in_place = chunk == layer.weight_gradient and not narrow and adds(library)
        copies = layer.soft and (layer.target.dtype != compute or not layer.target.flags.c_contiguous)
        return cls(library, chunk, widened, not in_place, copies)


def sizes_of(layer: Layer, method: Method, wanted: Wanted) -> Sizes:
    """The memory that a call needs, for plan.py."""
    wide, features, classes = computing_dtype(layer.input.dtype).itemsize, layer.features, layer.classes
    row = classes * method.chunk.itemsize
    row += classes * wide if method.copies_target else 0
    row += 2 * features * wide if method.widened else 0
    slab = features * method.chunk.itemsize if method.widened or (method.slabs and wanted.weight) else 0
    sums = 2 * features if wanted.weight and layer.weight_gradient.itemsize == 2 else 0
    fixed = aligned((8 * classes if wanted.bias else 0) + (4 * classes if method.widened else 0))
    if layer.sampling is not None:
        row += entry_bytes(classes, method.chunk) + (0 if method.widened else features * wide)
        fixed += index_bytes(classes)
    return Sizes(layer.rows, classes, row, slab, sums, fixed)


class CpuSteps:
    """The steps of a call, in one block of memory."""

    def __init__(self, layer: Layer, wanted: Wanted, library: Library, threads: int, plan: Plan | None = None) -> None:
        self.method = Method.of(layer, library)
        self.plan = plan or make_plan(layer.call, sizes_of(layer, self.method, wanted), layer.workspace)
        self.layer, self.threads, self.compute = layer, threads, computing_dtype(layer.input.dtype)
        self._memory = memory.empty(self.plan.bytes, np.uint8)
        self._used = -self._memory.ctypes.data % 64
        chunk_rows, method, plan = self.plan.chunk_rows, self.method, self.plan
        self._logits = self._take(chunk_rows * layer.classes, method.chunk)
        self._soft = self._take(chunk_rows * layer.classes if method.copies_target else 0, self.compute)
        wide = chunk_rows * layer.features if method.widened else 0
        self._input, self._sum = self._take(wide, self.compute), self._take(wide, self.compute)
        self._slab = self._take(plan.slab * layer.features if plan.slab_bytes else 0, method.chunk)
        self._lower = self._take(plan.part_classes * layer.features if plan.summed else 0, np.dtype(np.uint16))
        self.bias = layer.bias
        if method.widened and layer.bias is not None:
            self.bias = self._widened(layer.bias, self._take(layer.classes, self.compute))
        self.of_input = memory.empty(layer.input.shape, layer.input.dtype) if wanted.input else None
        self.of_weight = memory.empty(layer.weight.shape, layer.weight_gradient) if wanted.weight else None
        self._bias_sums = self._take(layer.classes, np.dtype(np.float64)) if wanted.bias else None

    def gradients(self) -> Gradients:
        """The finished gradients."""
        sums, bias = self._bias_sums, self.layer.bias
        of_bias = None if sums is None or bias is None else rounded(sums, bias.dtype)
        return Gradients(self.of_input, self.of_weight, of_bias)

    def joined(self, chunks: list[Array]) -> Array:
        """The numbers of all rows."""
        return chunks[0] if len(chunks) == 1 else np.concatenate(chunks, axis=-1)

    # ----------------------------------------------------------------------------------------------------- the steps

    def make_logits(self, first: int, last: int) -> Array:
        """logits = input @ weight.T + bias."""
        logits, x, library = self._chunk(first, last), self._chunk_input(first, last), self.method.library
        if self.method.widened:
            for start, stop in self._slabs((0, self.layer.classes)):
                multiply_transposed(library, x, self._weight(start, stop), logits[:, start:stop])
        else:
            of_torch = self.bias if library == "torch" else None
            multiply_transposed(library, x, self.layer.weight, logits, of_torch)
            if of_torch is not None:
                return logits
        if self.bias is None:
            return logits
        if are_few(logits.size):
            logits += self.bias
        else:
            self._run(kernels.add_bias, (logits.reshape(-1), self.bias), last - first)
        return logits

    def target(self, first: int, last: int) -> Array:
        """The target of these rows as the row kernels take it."""
        target: Array = self.layer.target[first:last]
        if not self.method.copies_target:
            return target
        room = self._soft[: target.size].reshape(target.shape)
        if target.dtype == BFLOAT16:
            self._widened(target, room.reshape(-1))
        else:
            np.copyto(room, target, casting="unsafe")
        return room

    def input_gradient(self, first: int, last: int) -> None:
        """dinput = dlogits @ weight."""
        assert self.of_input is not None
        if not self.layer.classes:  # a shard may have none
            self.of_input[first:last] = 0
            return
        gradient, library = self._chunk(first, last), self.method.library
        if not self.method.widened:
            multiply(library, gradient, self.layer.weight, self.of_input[first:last])
            return
        # The part of a slab goes where the widened input lies, which is made again when it is needed.
        size = (last - first) * self.layer.features
        total, partial = self._sum[:size], self._input[:size]
        for start, stop in self._slabs((0, self.layer.classes)):
            shape = (last - first, self.layer.features)
            multiply(library, gradient[:, start:stop], self._weight(start, stop), partial.reshape(shape))
            self._run(kernels.add, (partial, total, start == 0), size)
        self._run(kernels.convert, (total, bits(self.of_input[first:last].reshape(-1))), size)

    def bias_gradient(self, first: int, last: int) -> None:
        """dbias += column sums of dlogits."""
        assert self._bias_sums is not None
        sums, chunk, is_first = self._bias_sums, self._chunk(first, last), first == 0
        if are_few(chunk.size) and chunk.dtype.kind == "f":
            sums[:] = chunk.sum(axis=0, dtype=np.float64) + (0.0 if is_first else sums)
            return
        arguments = (chunk.reshape(-1), self.layer.classes, sums, is_first)
        self._run(kernels.add_column_sums, arguments, self.layer.classes, size=chunk.size)

    def weight_gradient(self, first: int, last: int, part: tuple[int, int]) -> None:
        """dweight += dlogits.T @ input, for the classes of the part."""
        assert self.of_weight is not None
        gradient, x = self._chunk(first, last), self._chunk_input(first, last)
        library, is_first, features = self.method.library, first == 0, self.layer.features
        at_once = len(self.plan.chunks) == 1 and self.method.chunk == self.layer.weight_gradient
        if at_once or not self.method.slabs:
            multiply(library, gradient.T, x, self.of_weight, add=not is_first)
            return
        for start, stop in self._slabs(part):
            size = (stop - start) * features
            partial, total = self._slab[:size], self.of_weight[start:stop].reshape(-1)
            multiply(library, gradient[:, start:stop].T, x, partial.reshape(stop - start, features))
            if self.plan.summed:
                lower = self._lower[(start - part[0]) * features :][:size]
                self._run(kernels.add_to_halves, (partial, total.view(np.uint16), lower, is_first), size)
            elif total.itemsize == 2:
                self._run(kernels.convert, (partial, bits(total)), size)
            else:
                self._run(kernels.add, (partial, total, is_first), size)

    def finish_weight(self, part: tuple[int, int]) -> None:
        """Round the sums to 16 bits."""
        if self.plan.summed:
            assert self.of_weight is not None
            total = self.of_weight[part[0] : part[1]].reshape(-1)
            lower = self._lower[: total.size]
            self._run(kernels.round_halves, (total.view(np.uint16), lower, bits(total)), total.size)

    # ------------------------------------------------------------------------------------------------------- helpers

    def _take(self, count: int, dtype: np.dtype[Any]) -> Array:
        """Cut the next array out of the workspace."""
        size = count * dtype.itemsize
        array: Array = self._memory[self._used : self._used + size].view(dtype)
        assert array.size == count, "the plan is too small for what it is used for"
        self._used += aligned(size)
        return array

    def _chunk(self, first: int, last: int) -> Array:
        return self._logits[: (last - first) * self.layer.classes].reshape(last - first, self.layer.classes)

    def _chunk_input(self, first: int, last: int) -> Array:
        x = self.layer.input[first:last]
        if not self.method.widened:
            return x
        return self._widened(x, self._input[: x.size]).reshape(x.shape)

    def _weight(self, start: int, stop: int) -> Array:
        """Some classes of the weight, widened into the slab."""
        weight = self.layer.weight[start:stop]
        return self._widened(weight, self._slab[: weight.size]).reshape(weight.shape)

    def _slabs(self, part: tuple[int, int]) -> list[tuple[int, int]]:
        return [(start, min(start + self.plan.slab, part[1])) for start in range(*part, self.plan.slab)]

    def _widened(self, narrow: Array, room: Array) -> Array:
        self._run(kernels.convert, (bits(np.ascontiguousarray(narrow).reshape(-1)), room), room.size)
        return room

    def _run(self, kernel: Any, arguments: tuple[Any, ...], count: int, size: int | None = None) -> None:
        over_rows(kernel, arguments, count, self.threads if (size or count) > SMALL else 1)


def pair_steps(pair: Pair, wanted: Wanted, library: Library, threads: int) -> PairSteps:
    """The steps of two layers, in one workspace."""
    asked = ((pair.student, wanted), (pair.teacher, NOTHING))
    first, second = (sizes_of(layer, Method.of(layer, library), these) for layer, these in asked)
    plans = make_shared_plans(pair.student.call, (first, second), pair.student.workspace)
    made = (CpuSteps(*of, library, threads, plan) for of, plan in zip(asked, plans, strict=True))
    return PairSteps(*made)
