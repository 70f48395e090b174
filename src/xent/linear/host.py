"""The steps of the linear loss on the CPU: products.py multiplies, the kernels of xent.backends.cpu do the rest.

Three ways to multiply, by what the arguments are:

- float32 and float64: the products as they are, which add to the gradient of the weight in place. A NumPy without
  OpenBLAS cannot (openblas.py): there it is made for a slab of classes at a time, and added.
- bfloat16 with fast 16-bit products: logits and their gradient are bfloat16, as they would be without fusion; the
  gradient of the weight is made for a slab of classes at a time and added up in float32 (cpu/accumulation.py).
- other 16-bit numbers: input and weight are widened to float32, a slab of classes at a time, and so are the logits.

Logits and their gradient are one array: a row kernel has read all of a row before it writes any of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xent import memory
from xent.backends.cpu import accumulation as kernels
from xent.backends.cpu import cross_entropy as cpu
from xent.backends.cpu.formats import bits
from xent.backends.cpu.threads import over_rows
from xent.linear.plan import Plan, Sizes, aligned
from xent.linear.products import BFLOAT16, Products, adds, multiply, multiply_and_add
from xent.objective import Objective

Array = NDArray[Any]

SMALL = 2**16
"""Numbers up to which a change of format stays on the calling thread."""


@dataclass(frozen=True)
class Problem:
    """The arguments of a call: input (rows, features), weight (classes, features), bias (classes,) of one dtype.

    bfloat16 comes as the uint16 of its bits. The target is as the row kernels take it, except that soft targets may
    have any floating dtype; `weight_gradient` is the dtype in which the gradient of the weight is wanted.
    """

    input: Array
    weight: Array
    bias: Array | None
    target: Array
    objective: Objective
    weight_gradient: np.dtype[Any]

    @property
    def rows(self) -> int:
        return len(self.input)

    @property
    def classes(self) -> int:
        return len(self.weight)

    @property
    def features(self) -> int:
        return int(self.weight.shape[1])

    @property
    def soft(self) -> bool:
        return self.target.ndim == 2

    @property
    def compute(self) -> np.dtype[Any]:
        """The dtype of losses and sums."""
        return np.dtype(np.float64 if self.input.dtype == np.float64 else np.float32)

    @property
    def copies_target(self) -> bool:
        """Whether soft targets need another dtype or another place for the row kernels."""
        return self.soft and (self.target.dtype != self.compute or not self.target.flags.c_contiguous)


@dataclass(frozen=True)
class Method:
    """How the products of a call are made; the text of the module says when which."""

    products: Products
    chunk: np.dtype[Any]
    """The dtype of logits and their gradient."""
    widened: bool
    slabs: bool
    """Whether the gradient of the weight is made for a slab of classes at a time, and then added."""

    @classmethod
    def of(cls, problem: Problem, products: Products) -> Method:
        narrow = problem.input.dtype.itemsize == 2
        widened = narrow and not products.native
        chunk = problem.compute if widened or not narrow else problem.input.dtype
        in_place = chunk == problem.weight_gradient and not narrow and adds(products.weight_gradient, chunk)
        return cls(products, chunk, widened, not in_place)


def sizes_of(problem: Problem, method: Method, *, with_weight: bool, with_bias: bool) -> Sizes:
    """The memory that a call needs, for plan.py."""
    wide, features = problem.compute.itemsize, problem.features
    row = problem.classes * method.chunk.itemsize
    row += problem.classes * wide if problem.copies_target else 0
    row += 2 * features * wide if method.widened else 0
    slab = features * method.chunk.itemsize if method.widened or (method.slabs and with_weight) else 0
    sums = 2 * features if with_weight and problem.weight_gradient.itemsize == 2 else 0
    fixed = (8 * problem.classes if with_bias else 0) + (4 * problem.classes if method.widened else 0)
    return Sizes(problem.rows, problem.classes, row, slab, sums, aligned(fixed))


class Host:
    """The steps for the losses (`driver.Steps`), and the results in the attributes `losses` ... `bias_gradient`."""

    def __init__(self, problem: Problem, method: Method, plan: Plan, threads: int) -> None:
        self.problem, self.method, self.plan, self.threads = problem, method, plan, threads
        self.row_scale: Array | float = 1.0
        self.losses = np.empty(problem.rows, problem.compute)
        self.lse = np.empty(problem.rows, np.float64)
        self.of_input: Array | None = None
        self.of_weight: Array | None = None
        self.sums: Array | None = None
        self._memory = memory.empty(plan.bytes, np.uint8)
        self._used = -self._memory.ctypes.data % 64
        self._logits = self._take(plan.chunk_rows * problem.classes, method.chunk)
        self._soft = self._take(plan.chunk_rows * problem.classes if problem.copies_target else 0, problem.compute)
        wide = plan.chunk_rows * problem.features if method.widened else 0
        self._input, self._sum = self._take(wide, problem.compute), self._take(wide, problem.compute)
        self._slab = self._take(plan.slab * problem.features if plan.slab_bytes else 0, method.chunk)
        self._lower = self._take(plan.part_classes * problem.features if plan.summed else 0, np.dtype(np.uint16))
        self.bias = problem.bias
        if method.widened and problem.bias is not None:
            self.bias = self._widened(problem.bias, self._take(problem.classes, problem.compute))

    def want(self, *, input: bool, weight: bool, bias: bool) -> None:
        """Make room for gradients."""
        problem = self.problem
        self.of_input = memory.empty(problem.input.shape, problem.input.dtype) if input else None
        self.of_weight = memory.empty(problem.weight.shape, problem.weight_gradient) if weight else None
        self.sums = self._take(problem.classes, np.dtype(np.float64)) if bias else None

    # ----------------------------------------------------------------------------------------------------- the steps

    def make_logits(self, first: int, last: int) -> None:
        """logits = input @ weight.T + bias."""
        logits, x = self._chunk(first, last), self._chunk_input(first, last)
        library = self.method.products.logits
        if self.method.widened:
            for start, stop in self._slabs((0, self.problem.classes)):
                multiply(library, x, self._weight(start, stop).T, logits[:, start:stop])
        elif library == "torch" and self.bias is not None:
            multiply_and_add(x, self.problem.weight.T, self.bias, logits)
            return
        else:
            multiply(library, x, self.problem.weight.T, logits)
        if self.bias is not None:
            self._run(kernels.add_bias, (logits.reshape(-1), self.bias), last - first)

    def visit(self, first: int, last: int) -> None:
        """Losses and log-sum-exps."""
        cpu.forward(
            self._chunk(first, last),
            self._target(first, last),
            self.problem.objective,
            loss=self.losses[first:last],
            lse=self.lse[first:last],
            threads=self.threads,
        )

    def visit_with_gradient(self, first: int, last: int) -> None:
        """Losses and log-sum-exps; the logits become their gradient."""
        logits, scale = self._chunk(first, last), self.row_scale
        cpu.forward_backward(
            logits,
            self._target(first, last),
            scale[first:last] if isinstance(scale, np.ndarray) else scale,
            self.problem.objective,
            loss=self.losses[first:last],
            lse=self.lse[first:last],
            out=logits,
            threads=self.threads,
        )

    def input_gradient(self, first: int, last: int) -> None:
        """dinput = dlogits @ weight."""
        assert self.of_input is not None
        gradient, library = self._chunk(first, last), self.method.products.input_gradient
        if not self.method.widened:
            multiply(library, gradient, self.problem.weight, self.of_input[first:last])
            return
        # The part of a slab goes where the widened input lies, which is made again when it is needed.
        size = (last - first) * self.problem.features
        total, partial = self._sum[:size], self._input[:size]
        for start, stop in self._slabs((0, self.problem.classes)):
            shape = (last - first, self.problem.features)
            multiply(library, gradient[:, start:stop], self._weight(start, stop), partial.reshape(shape))
            self._run(kernels.add, (partial, total, start == 0), size)
        self._run(kernels.convert, (total, bits(self.of_input[first:last].reshape(-1))), size)

    def bias_gradient(self, first: int, last: int) -> None:
        """dbias += column sums of dlogits."""
        gradient, classes = self._chunk(first, last).reshape(-1), self.problem.classes
        self._run(kernels.add_column_sums, (gradient, classes, self.sums, first == 0), classes, size=gradient.size)

    def weight_gradient(self, first: int, last: int, part: tuple[int, int]) -> None:
        """dweight += dlogits.T @ input, for the classes of the part."""
        assert self.of_weight is not None
        gradient, x = self._chunk(first, last), self._chunk_input(first, last)
        library, is_first, features = self.method.products.weight_gradient, first == 0, self.problem.features
        at_once = len(self.plan.chunks) == 1 and self.method.chunk == self.problem.weight_gradient
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
        return self._logits[: (last - first) * self.problem.classes].reshape(last - first, self.problem.classes)

    def _chunk_input(self, first: int, last: int) -> Array:
        x = self.problem.input[first:last]
        if not self.method.widened:
            return x
        return self._widened(x, self._input[: x.size]).reshape(x.shape)

    def _weight(self, start: int, stop: int) -> Array:
        """Some classes of the weight, widened into the slab."""
        weight = self.problem.weight[start:stop]
        return self._widened(weight, self._slab[: weight.size]).reshape(weight.shape)

    def _slabs(self, part: tuple[int, int]) -> list[tuple[int, int]]:
        return [(start, min(start + self.plan.slab, part[1])) for start in range(*part, self.plan.slab)]

    def _target(self, first: int, last: int) -> Array:
        target = self.problem.target[first:last]
        if not self.problem.copies_target:
            return target
        room = self._soft[: target.size].reshape(target.shape)
        if target.dtype == BFLOAT16:
            self._widened(target, room.reshape(-1))
        else:
            np.copyto(room, target, casting="unsafe")
        return room

    def _widened(self, narrow: Array, room: Array) -> Array:
        self._run(kernels.convert, (bits(np.ascontiguousarray(narrow).reshape(-1)), room), room.size)
        return room

    def _run(self, kernel: Any, arguments: tuple[Any, ...], count: int, size: int | None = None) -> None:
        over_rows(kernel, arguments, count, self.threads if (size or count) > SMALL else 1)
