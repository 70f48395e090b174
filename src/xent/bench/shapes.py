"""Shapes of logits by name, which tests and benchmarks share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from xent.errors import ArgumentError, message


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
    """Whether it is measured in a quick run."""

    @property
    def size(self) -> tuple[int, ...]:
        return (self.rows, self.classes, *self.positions)

    @property
    def elements(self) -> int:
        return math.prod(self.size)

    @property
    def losses(self) -> int:
        """The number of losses: rows, or rows times positions."""
        return self.elements // self.classes


BOTH = ("float32", "bfloat16")

SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("gpt2", 2048, 50257, dtypes=BOTH, where="the vocabulary of GPT-2", quick=True),
        Shape("llama3", 512, 128256, dtypes=BOTH, where="the vocabulary of Llama 3"),
        Shape("gemma", 512, 256000, dtypes=("bfloat16",), where="the vocabulary of Gemma"),
        Shape("imagenet", 4096, 1000, dtypes=BOTH, where="the classes of ImageNet", quick=True),
        Shape("cifar", 65536, 10, where="ten classes, many rows", quick=True),
        Shape("segmentation", 8, 21, (256, 256), where="classes of pixels, NCHW", quick=True),
        Shape("tiny", 128, 10, where="one batch of a small classifier", quick=True),
        Shape("small", 32, 1000, where="one small batch, 1000 classes", quick=True),
        Shape("one", 1, 1000, where="one row of 1000 classes"),
        Shape("sixteen", 16, 10, where="sixteen rows of ten classes"),
    )
}


def select(names: Iterable[str] = (), *, quick: bool = False) -> list[Shape]:
    """Return the shapes of these names, or without names all of them (with `quick` the quick ones).

    >>> [shape.size for shape in select(["tiny", "segmentation"])]
    [(128, 10), (8, 21, 256, 256)]
    """
    names = list(names)
    for name in names:
        if name not in SHAPES:
            *first, last = SHAPES
            remedy = f"Take {', '.join(first)} or {last}"
            raise ArgumentError(message("bench", "shape", f"there is no shape {name!r}", remedy))
    if names:
        return [SHAPES[name] for name in dict.fromkeys(names)]
    return [shape for shape in SHAPES.values() if shape.quick or not quick]
