"""The JSON text of a `ScoreState`, which may come from anywhere: its schema, and what else has to hold.

msgspec decodes and checks in one pass, so that text of another shape is refused where it is, without objects for the
rest of it. What a schema cannot say is checked behind it: that arrays have the bytes and shapes that the form asks for,
that sums are finite and of things that are 0 or more, that counts are whole. A state that passes can be added to
others, written again and finalized.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType

from xent.scoring import loops
from xent.scoring.batch import MOST_WEIGHT
from xent.scoring.form import MOST_SEGMENTS, Form
from xent.scoring.grouped_sums import GroupedSums, Groups
from xent.scoring.sums import Array, values
from xent.scoring.tallies import GROUP_FIELDS

MOST_CLASSES = 10_000_000
MOST_ROWS = 2**53
"""Counts of rows are floats: above this they are not whole numbers any more."""
ROUNDING = 1e-9
"""How far below 0 a sum of numbers of 0 or more may be, relative to the largest of its kind."""

COUNTS = [loops.ROWS, loops.IMPOSSIBLE_ROWS, loops.CLIPPED_ROWS, loops.ROWS_WITHOUT_WEIGHT]
SIGNED_OR_SQUARED = [
    loops.ENTROPY,  # below 0 for soft labels that sum to more than 1, as a tolerance allows
    loops.WEIGHT_SQUARED,  # squares of large numbers are infinite
    loops.LOSS_SQUARED,
    loops.WEIGHTED_LOSS,
    loops.WEIGHTED_LOSS_SQUARED,
    *range(loops.BYTES, loops.FIELDS),  # squares as well; the amounts themselves are checked apart
]
LARGEST = math.nextafter(math.inf, 0)
RANGES = {
    "loss": (0.0, math.inf),
    "weight": (0.0, MOST_WEIGHT),
    "p": (0.0, 10.0),
    "probabilities": (0.0, 10.0),
    "target": (0.0, LARGEST),
    "brier": (0.0, LARGEST),
    "row": (0, 2**62),
}
"""Of the columns of rows that are kept whole. How far from 1 probabilities may sum was the caller's choice,
within a factor of ten."""

Length = Annotated[int, Meta(ge=0, le=2**53)]
Shape = Annotated[tuple[Length, ...], Meta(max_length=4)]
Probability = Annotated[float, Meta(gt=0, lt=1)]


class Numbers(msgspec.Struct, forbid_unknown_fields=True):
    """Numbers in base64."""

    dtype: Literal["<f8", "<i8", "<u8", "|i1"]
    shape: Shape
    base64: str

    def array(self) -> Array:
        stored = np.frombuffer(base64.b64decode(self.base64, validate=True), np.dtype(self.dtype))
        return stored.astype(stored.dtype.newbyteorder("=")).reshape(self.shape)


class Texts(msgspec.Struct, forbid_unknown_fields=True):
    """Ids, or None where rows have none."""

    shape: Shape
    texts: list[str | None] = msgspec.field(name="list")

    def array(self) -> Array:
        array = np.empty(len(self.texts), object)
        array[:] = self.texts
        return array.reshape(self.shape)


class Rows(msgspec.Struct, forbid_unknown_fields=True):
    """The columns of rows that are kept whole, in the order in which they are written."""

    key: Numbers
    row: Numbers | UnsetType = UNSET
    id: Texts | UnsetType = UNSET
    loss: Numbers | UnsetType = UNSET
    weight: Numbers | UnsetType = UNSET
    label: Numbers | UnsetType = UNSET
    predicted: Numbers | UnsetType = UNSET
    likeliest: Numbers | UnsetType = UNSET
    probabilities: Numbers | UnsetType = UNSET
    p: Numbers | UnsetType = UNSET
    brier: Numbers | UnsetType = UNSET
    target: Numbers | UnsetType = UNSET
    cluster: Numbers | UnsetType = UNSET
    reason: Numbers | UnsetType = UNSET
    total: Numbers | UnsetType = UNSET

    def arrays(self) -> dict[str, Array]:
        columns = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: column.array() for name, column in columns.items() if column is not UNSET}


class StoredGroups(msgspec.Struct, forbid_unknown_fields=True):
    """The sums of clusters."""

    key: Numbers
    part: Numbers
    sums: Numbers

    def sums_of_groups(self) -> GroupedSums:
        """Return the sums; ValueError unless there are some for each key, and the keys ascend."""
        groups = Groups(self.key.array(), self.part.array(), self.sums.array())
        count = len(groups.key)
        kinds = [part.dtype.kind for part in (groups.key, groups.part, groups.sums)]
        if kinds != ["u", "u", "f"] or groups.key.ndim != 1 or groups.part.shape != (count,):
            raise ValueError("clusters of another shape")
        if groups.sums.shape != (count, GROUP_FIELDS, 2) or (groups.key[1:] <= groups.key[:-1]).any():
            raise ValueError("clusters of another shape, or not in order")
        check_amounts(groups.sums, "clusters")
        return GroupedSums((groups,) if count else ())


class StoredForm(msgspec.Struct, forbid_unknown_fields=True):
    classes: Annotated[tuple[str, ...], Meta(max_length=MOST_CLASSES)]
    soft: bool
    clip: Probability | None
    weighted: bool
    by: tuple[str, ...]
    identified: bool
    entropy: bool
    bytes: bool
    characters: bool
    clustered: bool
    multilabel: bool
    worst: Length
    sample: Length
    renormalised: bool = False


class StoredState(msgspec.Struct, forbid_unknown_fields=True):
    state: Literal["xent score"]
    schema: Literal[2]
    form: StoredForm
    totals: Numbers
    classes: Numbers
    one_vs_rest: Numbers
    confidence: Numbers
    positive: Numbers
    confusion: Numbers
    losses: Numbers
    clipped: Numbers
    segments: dict[str, Annotated[dict[str, Numbers], Meta(max_length=MOST_SEGMENTS)]]
    surprising: Rows
    sample: Rows
    invalid: Rows
    invalid_rows: Length
    clusters: StoredGroups
    segment_clusters: dict[str, StoredGroups]
    left_out: dict[str, Length] = {}


DECODER = msgspec.json.Decoder(StoredState)


def decode(text: str) -> StoredState:
    """Return the parts of a state; an error of msgspec, or ValueError, for what has another shape."""
    return DECODER.decode(text)


def form_of(stored: StoredForm) -> Form:
    """Return the form; ValueError for names that occur twice."""
    form = Form(**msgspec.structs.asdict(stored))
    if len(set(form.classes)) < len(form.classes) or len(set(form.by)) < len(form.by):
        raise ValueError("names that occur twice")
    return form


def check_sums(totals: Array, name: str) -> None:
    """ValueError unless the sums over rows (or an array of them, one for each segment) are what rows can add up to."""
    counts, sums = totals[..., COUNTS, :], values(totals)
    if (np.floor(counts) != counts).any() or (counts[..., 0] > MOST_ROWS).any() or counts[..., 1].any():
        raise ValueError(f"counts in {name!r} that are not whole")
    if (sums[..., COUNTS[:3]] > sums[..., [loops.ROWS]]).any():
        raise ValueError(f"counts in {name!r} of more rows than there are")
    check_amounts(np.delete(totals, SIGNED_OR_SQUARED, axis=-2), name)
    check_amounts(totals[..., loops.BYTES :: loops.PER_AMOUNT, :], name)
    if not np.isfinite(totals[..., loops.ENTROPY, :]).all():
        raise ValueError(f"numbers in {name!r} that are not finite")


def check_amounts(pairs: Array, name: str) -> None:
    """ValueError unless all sums of an array are finite and, but for rounding, 0 or more."""
    if not np.isfinite(pairs).all():
        raise ValueError(f"numbers in {name!r} that are not finite")
    sums = pairs[..., 0]
    if sums.size and sums.min() < -ROUNDING * max(1.0, float(sums.max())):
        raise ValueError(f"numbers in {name!r} below 0")
    if (np.abs(pairs[..., 1]) > ROUNDING * np.maximum(1.0, np.abs(sums))).any():
        raise ValueError(f"low words in {name!r} above the rounding of the high ones")


def check_rows(columns: Mapping[str, Array], name: str) -> None:
    """ValueError unless the rows that are kept whole have losses, weights and probabilities."""
    for column, (low, high) in RANGES.items():
        found: Any = columns.get(column)
        if found is not None and found.size and not (low <= found.min() and found.max() <= high):
            raise ValueError(f"column {column!r} of {name!r} out of range")
    p = columns.get("p")
    if p is not None and p.size and not ((total := p.sum(axis=1)).min() >= 0.1 and total.max() <= 10):
        raise ValueError(f"a row of {name!r} that is no distribution by any tolerance")
