"""Rows that are scored piece by piece, and what had to be found out about them before that.

Most tables are read once. Where labels are not called as the classes are, or sums are not 1, the answer depends on all
rows, and must not depend on how they are divided: the labels, or the digits of the probabilities, are read in a pass of
their own, and the rows are scored again by what it found (`Settled`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from xent.scoring.labels import Way
from xent.scoring.sums import Array

Piece = tuple[int, Array | None, Callable[[], dict[str, Any]]]
"""Number of rows, keys of their ids, and a function that returns the arguments of `ScoreState.from_batch`."""


@dataclass(frozen=True)
class Settled:
    """What was found out about rows; None is not asked yet."""

    way: Way | None = None
    """How labels stand for classes."""
    tolerance: float | None = None
    """How far from 1 the sums of rounded probabilities may be."""
    notes: tuple[str, ...] = ()


class Pieces(Protocol):
    """Rows that are scored piece by piece."""

    @property
    def again(self) -> bool:
        """Whether they can be read more than once."""

    @property
    def classes(self) -> int:
        """The number of classes."""

    @property
    def column_names(self) -> Sequence[str]:
        """What the columns of the predictions are called in messages."""

    @property
    def has_labels(self) -> bool:
        """Whether a column of labels names classes."""

    @property
    def notes(self) -> Sequence[str]:
        """Remarks on how the data were read."""

    def pieces(self, settled: Settled) -> Iterator[Piece]:
        """Yield the rows as pieces."""

    def find_way(self) -> Way:
        """Return how the labels stand for the classes."""

    def matrices(self, soft: bool) -> Iterator[Array]:
        """Yield all predictions, or all soft labels, as matrices."""
