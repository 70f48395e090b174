"""What the tests of the Triton kernels share: where they run, numbers to run on, and the CPU's kernels beside them.

Under TRITON_INTERPRET=1 tensors are on the CPU (test_gpu.py starts such processes). Without it they are on a GPU:

    XENT_TEST_IMPLEMENTATIONS=gpu python -m pytest tests/interpreted.py tests/interpreted_linear.py
        tests/interpreted_binary.py tests/test_value.py
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from comparison import eps
from implementations import DEVICE, array

import xent.reference
from xent.backends import choice
from xent.backends.gpu.shapes import Tile
from xent.objective import Objective

SMALL = Tile(2, 4, 1)
EVERYTHING = {"label_smoothing": 0.2, "z_loss": 0.01, "softcap": 20.0, "logit_scale": 0.9}


@pytest.fixture(autouse=True)
def placed() -> Iterator[None]:
    """New tensors are where the kernels run."""
    with on(DEVICE):
        yield


def on(place: str) -> contextlib.AbstractContextManager[object]:
    """New tensors are there. Under the interpreter all are on the CPU, and nothing is done."""
    return contextlib.nullcontext() if DEVICE == "cpu" else torch.device(place)


def random(*shape: int, dtype=torch.float64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return (3 * torch.randn(shape, dtype=torch.float64, generator=generator, device="cpu")).to(DEVICE, dtype)


def labels_for(rows: int, classes: int) -> torch.Tensor:
    return torch.arange(rows) * 5 % classes


def reference(logits: torch.Tensor, target: torch.Tensor, options: dict) -> tuple[np.ndarray, np.ndarray]:
    weight = options.get("weight")
    objective = Objective(**{**options, "weight": None if weight is None else array(weight.double())})
    arrays = array(logits.double()), array(target.double() if target.is_floating_point() else target)
    return xent.reference.cross_entropy(*arrays, objective)[0], xent.reference.cross_entropy_gradient(
        *arrays, objective
    )


def both(compute: Callable[[str], Sequence[torch.Tensor]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What the Triton kernels make of it, and what those of the CPU do: `compute` is told where tensors have to be."""
    found = []
    for triton, place in ((True, DEVICE), (False, "cpu")):
        if DEVICE == "cpu":
            choice.interpret(triton)
        try:
            with on(place):
                found.append([tensor.cpu() for tensor in compute(place)])
        finally:
            if DEVICE == "cpu":
                choice.interpret(True)
    return zip(*found, strict=True)


def moved(arguments: Any, place: str) -> Any:
    """Arguments, lists of them too, with their tensors at this place."""
    if isinstance(arguments, (list, tuple)):
        return type(arguments)(moved(argument, place) for argument in arguments)
    return arguments.to(place) if isinstance(arguments, torch.Tensor) else arguments


def assert_same(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> None:
    """The same dtypes and, in float64, the same numbers, of up to 20."""
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one.cpu(), other, rtol=0, atol=64 * eps("float64") * 20)
