"""What the benchmarks use of xent beyond its public names, so that a change inside of xent changes one file here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def without_openmp() -> AbstractContextManager[None]:
    """Share rows with a pool of plain threads in place of torch's OpenMP threads."""
    from xent.backends.cpu import threads

    return threads.without_openmp()


def interpret_triton_kernels() -> None:
    """Let the GPU's kernels take CPU tensors, under TRITON_INTERPRET=1."""
    from xent.backends import choice

    choice.interpret(True)


@contextmanager
def rows_in_a_chunk(count: int) -> Iterator[None]:
    """Let the linear loss on the CPU visit chunks of so many rows, whatever memory that takes."""
    from xent.backends.cpu import linear_steps
    from xent.linear import plan

    with mock.patch.object(linear_steps, "make_plan", lambda call, sizes, workspace: plan.plan_of_rows(sizes, count)):
        yield


def primitives() -> dict[str, Callable[[Array], Array]]:
    """The functions of one number that the CPU kernels are built from, by name, as functions of arrays."""
    from xent.backends.cpu import primitives as of_numbers
    from xent.backends.cpu.compilation import kernel

    @kernel
    def exp(x: Any, out: Any) -> None:
        for i in range(len(x)):
            out[i] = of_numbers.exp(x[i])

    @kernel
    def log(x: Any, out: Any) -> None:
        for i in range(len(x)):
            out[i] = of_numbers.log(x[i])

    @kernel
    def tanh(x: Any, out: Any) -> None:
        for i in range(len(x)):
            out[i], _ = of_numbers.tanh_and_derivative(x[i])

    @kernel
    def tanh_derivative(x: Any, out: Any) -> None:
        for i in range(len(x)):
            _, out[i] = of_numbers.tanh_and_derivative(x[i])

    def of_arrays(compiled: Callable[[Array, Array], None]) -> Callable[[Array], Array]:
        def call(x: Array) -> Array:
            out = np.empty_like(x)
            compiled(x, out)
            return out

        return call

    kernels = {"exp": exp, "log": log, "tanh": tanh, "1 - tanh**2": tanh_derivative}
    return {name: of_arrays(compiled) for name, compiled in kernels.items()}
