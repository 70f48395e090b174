"""Shapes by name, which tests and benchmarks share.

These are logits. A suite with other shapes (input, weight and classes of a linear layer; sizes for a GPU) gets a table
of its own here and the same functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from xent.errors import ArgumentError, message

DEVICES = ("cpu",)


@dataclass(frozen=True)
class Shape:
    """Logits of one size: (rows, classes), or (rows, classes, *positions) as in images."""

    name: str
    rows: int
    classes: int
    positions: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ("float32",)
    where: str = ""
    quick: bool = False
    """Whether it belongs to the subset for a first look."""
    memory: bool = False
    """Whether peak memory is measured as well, which takes a process for each contestant."""

    @property
    def size(self) -> tuple[int, ...]:
        return (self.rows, self.classes, *self.positions)

    @property
    def elements(self) -> int:
        return math.prod(self.size)

    @property
    def losses(self) -> int:
        """How many losses there are: rows, or rows times positions."""
        return self.elements // self.classes


BOTH = ("float32", "bfloat16")

SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("gpt2", 2048, 50257, dtypes=BOTH, where="the vocabulary of GPT-2", quick=True, memory=True),
        Shape("llama3", 512, 128256, dtypes=BOTH, where="the vocabulary of Llama 3"),
        Shape("gemma", 512, 256000, dtypes=("bfloat16",), where="the vocabulary of Gemma"),
        Shape("imagenet", 4096, 1000, dtypes=BOTH, where="the classes of ImageNet", quick=True),
        Shape("cifar", 65536, 10, where="ten classes, many rows", quick=True, memory=True),
        Shape("segmentation", 8, 21, (256, 256), where="classes of pixels, NCHW", quick=True, memory=True),
        Shape("tiny", 128, 10, where="one batch of a small classifier", quick=True),
        Shape("small", 32, 1000, where="one small batch, 1000 classes", quick=True),
    )
}


def chosen(names: Iterable[str] = (), *, quick: bool = False) -> list[Shape]:
    """Return the shapes of these names, or without names all of them (with `quick` the quick ones).

    >>> [shape.size for shape in chosen(["tiny", "segmentation"])]
    [(128, 10), (8, 21, 256, 256)]
    """
    names = list(names)
    for name in names:
        if name not in SHAPES:
            raise ArgumentError(message("bench", "shape", f"there is no shape {name!r}", f"Take {_listed(SHAPES)}"))
    if names:
        return [SHAPES[name] for name in dict.fromkeys(names)]
    return [shape for shape in SHAPES.values() if shape.quick or not quick]


def checked_device(device: str) -> str:
    """Return the device; ArgumentError if nothing is measured on it yet."""
    if device not in DEVICES:
        found = f"there are no measurements on {device!r}"
        raise ArgumentError(message("bench", "device", found, f"Take {_listed(DEVICES)}"))
    return device


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else str(last)
