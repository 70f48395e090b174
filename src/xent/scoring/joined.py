"""Labels in a file or frame of their own, as competitions have them, beside each row of predictions.

By an id that both have, in any order; without an id, by their order. The labels are held in memory, with the columns of
weights and segments that only they have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from xent.errors import ArgumentError, DataError, message, option
from xent.names import listed, quoted
from xent.scoring.files import CALL
from xent.scoring.form import ONE_ROW_PER_ID, Request
from xent.scoring.tables import Table


def with_labels(table: Table, labels: Table, request: Request) -> tuple[Table, Request]:
    """Return predictions with their labels as one table, and the request with the column of the labels.

    The label is looked for among the labels first; weights and segments among the predictions.
    """
    theirs = [name for name in labels.columns if name != request.id]
    if request.label is None and request.log_prob is None:
        if len(theirs) != 1:
            problem = "which column of the labels holds them?"
            raise ArgumentError(message(CALL, "label", problem, f"Name it; there are {listed(theirs)}"))
        request = replace(request, label=theirs[0])
    for side, columns in (("the predictions", table.columns), ("the labels", labels.columns)):
        if request.id is not None and request.id not in columns:
            problem = f"{side} have no column {quoted(request.id)}"
            remedy = f"They have {listed(columns)}. Without an id, rows are paired by their order"
            raise ArgumentError(message(CALL, "id", problem, remedy))
    return JoinedTable(table, labels, request), request


class JoinedTable:
    """The rows of one table, each with the columns of another for the same id or at the same place."""

    def __init__(self, table: Table, labels: Table, request: Request) -> None:
        self.table, self.labels = table, labels
        self.id, self.skip = request.id, request.skip
        self.again = table.again and labels.again
        self.missing = 0
        label = [request.label] if isinstance(request.label, str) else list(request.label or ())
        patterns = [name for name in label if "*" in name]
        ours = set(table.columns)
        self.theirs = [
            name for name in labels.columns
            if name != self.id and (name not in ours or name in label or patterns)
        ]  # fmt: skip
        self._frame: pl.DataFrame | None = None

    @property
    def columns(self) -> list[str]:
        return [*(name for name in self.table.columns if name not in self.theirs), *self.theirs]

    @property
    def dtypes(self) -> Mapping[str, Any]:
        return {**self.table.dtypes, **{name: self.labels.dtypes.get(name) for name in self.theirs}}

    @property
    def notes(self) -> Sequence[str]:
        texts = [*getattr(self.table, "notes", ()), *getattr(self.labels, "notes", ())]
        if self.missing:
            texts.append(f"{self.missing:,} of the labels have no prediction.")
        return tuple(texts)

    def batches(self, needed: list[str], numbers: list[str], rows: int) -> Iterator[pl.DataFrame]:
        theirs = [name for name in needed if name in self.theirs]
        ours = [name for name in needed if name not in self.theirs]
        if self.id is not None:
            ours = list(dict.fromkeys([*ours, self.id]))
        ours = ours or self.table.columns[:1]
        held = self._held(theirs, numbers, rows)
        batches = self.table.batches(ours, [name for name in numbers if name in ours], rows)
        joined = self._by_order(batches, held) if self.id is None else self._by_id(batches, held)
        for batch in joined:
            yield batch.select(needed)

    def _held(self, theirs: list[str], numbers: list[str], rows: int) -> pl.DataFrame:
        """Return all rows of the labels, with the id as text."""
        chosen = theirs if self.id is None else [*theirs, self.id]
        chosen = chosen or self.labels.columns[:1]
        parts = list(self.labels.batches(chosen, [name for name in numbers if name in theirs], rows))
        if not parts:
            raise DataError(message(CALL, "labels", "there are no rows", "Check the file"))
        held = pl.concat(parts)
        if self.id is None:
            return held
        held = held.with_columns(pl.col(self.id).cast(pl.String))
        twice = held.filter(pl.col(self.id).is_duplicated() & pl.col(self.id).is_not_null())
        if twice.height:
            problem = f"{twice.height:,} rows of the labels share an id, such as {quoted(twice[self.id][0])}"
            raise DataError(message(CALL, "labels", problem, ONE_ROW_PER_ID))
        return held

    def _by_order(self, batches: Iterator[pl.DataFrame], held: pl.DataFrame) -> Iterator[pl.DataFrame]:
        first = 0
        for batch in batches:
            part = held.slice(first, batch.height)
            if part.height < batch.height:
                counted = first + batch.height + sum(more.height for more in batches)
                raise self._uneven(counted, held.height)
            first += batch.height
            yield pl.concat([batch.drop(part.columns, strict=False), part], how="horizontal")
        if first != held.height:
            raise self._uneven(first, held.height)

    def _uneven(self, predictions: int, labels: int) -> DataError:
        problem = f"there are {predictions:,} predictions and {labels:,} labels, which are paired by their order"
        return DataError(message(CALL, "labels", problem, f"Name an id that both have, by {option('id')}"))

    def _by_id(self, batches: Iterator[pl.DataFrame], held: pl.DataFrame) -> Iterator[pl.DataFrame]:
        name = str(self.id)
        matched, unmatched, first_without = 0, 0, None
        held = held.with_columns(pl.lit(True).alias("xent: has a label"))
        for batch in batches:
            key = pl.col(name).cast(pl.String).alias("xent: id")
            ours = batch.drop([c for c in held.columns if c != name], strict=False).with_columns(key)
            both = ours.join(held.rename({name: "xent: id"}), on="xent: id", how="left", maintain_order="left")
            alone = both["xent: has a label"].is_null()
            matched += both.height - int(alone.sum())
            unmatched += int(alone.sum())
            if first_without is None and alone.any():
                first_without = both["xent: id"][int(alone.arg_max() or 0)]
            if unmatched and matched and not self.skip:
                break
            yield both
        if not matched and unmatched:
            theirs = held[name][0]
            problem = f"no id is in both: the predictions have {quoted(first_without)}, the labels {quoted(theirs)}"
            raise DataError(message(CALL, "id", problem, "Name the column that is the same in both"))
        if unmatched and not self.skip:
            problem = f"the id {quoted(first_without)} of the predictions has no label"
            raise DataError(
                message(CALL, "labels", problem, f"Add it, or leave such rows out: {option('invalid', 'skip')}")
            )
        self.missing = held.height - matched
        if self.missing > 0 and not self.skip:
            problem = f"{self.missing:,} of {held.height:,} labels have no prediction"
            raise DataError(
                message(CALL, "labels", problem, f"Predict all of them, or pass {option('invalid', 'skip')}")
            )
