"""Where rows come from: files, and frames of many libraries, each read in batches that fit in memory.

Tables reach the rest of the package as batches in Polars: files as tables.py reads them, frames through narwhals.
array_rows.py has arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl

from xent.errors import ArgumentError, DataError, DTypeError, message
from xent.names import listed, quoted
from xent.scoring.array_rows import arrays_of_files, is_array
from xent.scoring.batch import as_array
from xent.scoring.columns import id_array, is_lists, is_vector, number_matrix, one_column
from xent.scoring.files import ARRAY_KINDS, CALL, find_files, is_path, reading
from xent.scoring.form import ONE_ROW_PER_ID, Plan, Request
from xent.scoring.joined import with_labels
from xent.scoring.labels import Way, find_way
from xent.scoring.pieces import Piece, Settled
from xent.scoring.selection import keys_of_ids, keys_of_rows, texts
from xent.scoring.sums import Array
from xent.scoring.tables import Layout, LazyTable, Table, table_of_files

BATCH_ROWS = 2**16
BATCH_NUMBERS = 2**20
"""Probabilities per batch: with many classes a batch has fewer rows."""


def batch_rows(columns: int) -> int:
    """Return how many rows a batch with this many columns of predictions has."""
    return max(1024, min(BATCH_ROWS, BATCH_NUMBERS // max(columns, 1)))


@dataclass(frozen=True)
class TableRows:
    """The rows of a table, by a plan of its columns."""

    table: Table
    plan: Plan

    @property
    def again(self) -> bool:
        return self.table.again

    @property
    def has_labels(self) -> bool:
        return len(self.plan.label) == 1 and not is_lists(self.table.dtypes.get(self.plan.label[0]))

    @property
    def notes(self) -> Sequence[str]:
        return tuple(getattr(self.table, "notes", ()))

    def batches(self) -> Iterator[pl.DataFrame]:
        """Yield what the plan needs."""
        yield from self.table.batches(self.plan.needed, self.plan.numbers, batch_rows(len(self.plan.columns)))

    def pieces(self, settled: Settled) -> Iterator[Piece]:
        """Return the batches as pieces."""
        plan, first_row = self.settled(settled), 0
        for batch in self.batches():
            if batch.height:
                ids = None if plan.request.id is None else batch[plan.request.id]
                keys = None if ids is None else _keys(ids, first_row)
                yield batch.height, keys, partial(plan.arguments, batch, first_row)
                first_row += batch.height

    @cached_property
    def classes(self) -> int:
        """The number of classes."""
        if len(self.plan.columns) > 1:
            return len(self.plan.columns)
        first = next(self.table.batches(list(self.plan.columns), self.plan.numbers, 1))
        return len(self.plan.class_names(first) or ())

    @property
    def column_names(self) -> Sequence[str]:
        """The columns of the predictions, or their one column's classes."""
        one_value = self.plan.kind == "log_prob" or self.classes == 2
        return self.plan.columns if one_value or len(self.plan.columns) > 1 else self.plan.classes or ()

    def settled(self, settled: Settled) -> Plan:
        """Return the plan by what was found out."""
        request = replace(self.plan.request, way=settled.way)
        if settled.tolerance is not None:
            request = replace(request, options={**request.options, "tolerance": settled.tolerance})
        return replace(self.plan, request=request)

    def find_way(self) -> Way:
        """Return how the labels stand for the classes; of a stream, those of its first frame."""
        label, rows = self.plan.label[0], batch_rows(len(self.plan.columns)) if self.again else 1
        first = next(self.table.batches(self.plan.needed, self.plan.numbers, rows))
        classes = self.plan.class_names(first) or ()
        labels = (batch[label] for batch in self.table.batches([label], [], rows))
        return find_way(labels, classes, self.plan.columns if len(self.plan.columns) > 1 else ())

    def matrices(self, soft: bool) -> Iterator[Array]:
        """Yield all predictions, or all soft labels, as matrices."""
        columns = list(self.plan.label if soft else self.plan.columns)
        for batch in self.table.batches(columns, columns, batch_rows(len(self.plan.columns))):
            yield one_column(batch, columns[0]) if len(columns) == 1 else number_matrix(batch, columns)


def _keys(ids: pl.Series, first_row: int) -> Array:
    """Return the keys of ids; of missing ones, which are refused or left out later, keys of their own."""
    if not ids.null_count():
        return keys_of_ids(id_array(ids))
    filled = ids.fill_null(0) if ids.dtype.is_integer() else ids.cast(pl.String).fill_null("")
    return np.where(ids.is_null().to_numpy(), keys_of_rows(2**62 + first_row, len(ids)), keys_of_ids(id_array(filled)))


def rows_of(data: Any, request: Request, layout: Layout | None = None, labels: Any = None) -> TableRows:
    """Return the rows of a file or local frame, with labels of their own file if there is one."""
    layout = layout or Layout()
    wanted = wanted_columns(request)
    table = table_of(data, layout, request.id, wanted)
    if labels is not None:
        with reading(labels if is_path(labels) else "the frame of labels"):
            theirs = table_of(labels, replace(layout, separator=None, header=None, explode=()), None, wanted)
        table, request = with_labels(table, theirs, request)
    return TableRows(table, request.plan(table.columns, table.dtypes))


def labels_as_array(data: Any, label: Any, id_name: Any = None, ids: Any = None) -> Array:
    """Return the labels of a file or frame of their own, for arrays of predictions: by order or, with ids, by id."""
    with reading(data if is_path(data) else "the labels"):
        files = find_files(data) if is_path(data) else None
        by_order = is_array(data) or (files is not None and files.kind in ARRAY_KINDS)
        if ids is not None and (by_order or not isinstance(id_name, str)):
            problem = "found it with labels that are arrays, or an array of ids: those are paired by their order"
            raise ArgumentError(message(CALL, "id", problem, "Omit it, or pass frames"))
        if is_array(data):
            return as_array(CALL, "labels", data)
        if files is not None and by_order:
            return np.asarray(arrays_of_files(files, {"label": label if files.kind == "npz" else str(data)})["label"])
        table = table_of(data, Layout(), None)
        others = [name for name in table.columns if name != id_name]
        if label is None and len(others) != 1:
            problem = "which column of the labels holds them?"
            raise ArgumentError(message(CALL, "label", problem, f"Name it; there are {listed(others)}"))
        wanted = {"label": others[0] if label is None else label, **({} if ids is None else {"id": id_name})}
        for role, name in wanted.items():
            if name not in table.columns:
                problem = f"there is no column {quoted(name)} in the labels"
                raise ArgumentError(message(CALL, role, problem, f"There are {listed(table.columns)}"))
        held = pl.concat(list(table.batches(list(wanted.values()), [], BATCH_ROWS)))
        return _as_array(held[wanted["label"]] if ids is None else _labels_of(ids, held, wanted))


def _labels_of(ids: Array, held: pl.DataFrame, wanted: Mapping[str, str]) -> pl.Series:
    """Return the label of each id; DataError unless each has one."""
    theirs = held.select(id=pl.col(wanted["id"]).cast(pl.String), label=pl.col(wanted["label"]))
    if theirs["id"].is_duplicated().any():
        raise DataError(message(CALL, "labels", "rows of the labels share an id", ONE_ROW_PER_ID))
    found = pl.DataFrame({"id": texts(ids)}).join(theirs, on="id", how="left", maintain_order="left")
    alone = found.join(theirs, on="id", how="anti")
    if alone.height:
        problem = f"the id {quoted(alone['id'][0])} of the predictions has no label"
        raise DataError(message(CALL, "labels", problem, "Add it, or leave such rows out"))
    return found["label"]


def _as_array(column: pl.Series) -> Array:
    return column.to_numpy() if column.dtype.is_numeric() and not column.null_count() else _objects(column)


def _objects(column: pl.Series) -> Array:
    array = np.empty(len(column), object)
    array[:] = column.to_list()
    return array


def wanted_columns(request: Request) -> list[str]:
    """Return every name and pattern of a request."""
    r = request
    several = [[v] if isinstance(v, str) else list(v or ()) for v in (r.label, r.proba, r.logits)]
    named = (r.log_prob, r.entropy, r.weight, r.id, r.cluster, *r.amounts.values())
    others = [name for name in named if name is not None]
    return [*(name for names in several for name in names), *others, *r.by, *r.also]


def table_of(data: Any, layout: Layout, id_column: str | None, wanted: Sequence[str] = ()) -> Table:
    """Return the table of a path or of a local frame."""
    if is_path(data):
        return table_of_files(find_files(data), layout, id_column, wanted)
    data = with_text_names(data)
    for role in ("separator", "header"):
        if getattr(layout, role) is not None:
            raise ArgumentError(message(CALL, role, "found it with a frame", "It is for files of text; omit it"))
    engine = engine_of(data)
    if engine in ("dask", "pyspark"):
        problem = f"found a frame of {engine}"
        raise DTypeError(message("compare", "a, b", problem, "Write the predictions to Parquet and pass the path"))
    if engine == "polars lazy":
        return LazyTable(data, layout.explode, id_column, wanted)
    if engine == "local" and (layout.explode or _has_structures(data)):
        return LazyTable(_narwhals(data).to_polars().lazy(), layout.explode, id_column, wanted)
    if layout.explode:
        remedy = "Pass a file, or a frame of Polars, pandas or PyArrow"
        raise ArgumentError(message(CALL, "explode", f"found it with {engine}", remedy))
    return LocalTable(data, engine)


def _has_structures(data: Any) -> bool:
    """Whether a column of a frame has structures or maps, whose fields are columns of a LazyTable."""
    try:
        dtypes = _narwhals(data)[:1].to_polars().schema.values()
    except (pl.exceptions.PolarsError, TypeError, ValueError, ImportError):  # batches will say so
        return False
    return any(isinstance(dtype, pl.Struct | pl.Map) and not is_vector(dtype) for dtype in dtypes)


class LocalTable:
    """A frame in memory, a relation of DuckDB, or a stream of frames."""

    def __init__(self, data: Any, engine: str) -> None:
        self.again = engine != "batches"
        self._columns, self._batches = _local_batches(data, engine)

    @property
    def columns(self) -> list[str]:
        return self._columns

    @property
    def dtypes(self) -> Mapping[str, Any]:
        first = next(self._batches(self._columns, 1), None)
        return {} if first is None else first.schema

    def batches(self, needed: list[str], numbers: list[str], rows: int) -> Iterator[pl.DataFrame]:
        return self._batches(needed, rows)


def engine_of(data: Any) -> str:
    """Return which library reads a frame."""
    if isinstance(data, pl.LazyFrame):
        return "polars lazy"
    if isinstance(data, Iterator):
        return "batches"
    module = type(data).__module__.split(".")[0]
    engines = {"duckdb": "duckdb", "_duckdb": "duckdb", "dask": "dask", "dask_expr": "dask", "pyspark": "pyspark"}
    if module not in engines:
        _narwhals(data)
    return engines.get(module, "local")


def _local_batches(data: Any, engine: str) -> tuple[list[str], Callable[[list[str], int], Iterator[pl.DataFrame]]]:
    """Return the columns of a frame in memory or of a stream, and a function that yields batches of some columns."""
    if engine == "duckdb":

        def of_duckdb(columns: list[str], rows: int) -> Iterator[pl.DataFrame]:
            quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in columns)
            for batch in data.select(quoted).to_arrow_reader(rows):
                yield to_polars(batch)

        return list(data.columns), of_duckdb
    if engine == "batches":
        every = map(to_polars, data)
        head = next(every, None)
        if head is None:
            raise DataError(message(CALL, "data", "there are no batches", "The iterator may have been used before"))

        def of_iterator(columns: list[str], rows: int) -> Iterator[pl.DataFrame]:
            # The first call, for the types, requests one row; it must not advance the iterator.
            yield from (batch.select(columns) for batch in ([head] if rows == 1 else chain([head], every)))

        return head.columns, of_iterator
    frame = _narwhals(data)
    if len(set(frame.columns)) < len(frame.columns):
        raise DataError(
            message(CALL, "data", "found columns of equal names", "Give each column a name of its own, as text")
        )

    def of_frame(columns: list[str], rows: int) -> Iterator[pl.DataFrame]:
        chosen = frame.select(columns)
        for first in range(0, len(frame), rows):
            yield chosen[first : first + rows].to_polars()

    return frame.columns, of_frame


def with_text_names(data: Any) -> Any:
    """Return a frame of pandas or Dask with column names of text: 0 becomes '0', ('p', 'cat') 'p_cat'."""
    if type(data).__module__.split(".")[0] not in ("pandas", "dask", "dask_expr"):
        return data
    columns = getattr(data, "columns", None)
    if columns is None:
        return data
    names = [_text_of(name) for name in columns]
    twice = sorted(name for name in set(names) if names.count(name) > 1)
    if twice:
        problem = f"found columns of equal names: {listed(twice)}"
        raise DataError(message(CALL, "data", problem, "Give each column a name of its own, as text"))
    if all(isinstance(name, str) for name in columns):
        return data
    renamed = data.copy(deep=False) if hasattr(data, "iloc") and not hasattr(data, "dask") else data.copy()
    renamed.columns = names
    return renamed


def _text_of(name: Any) -> str:
    """Return a column's name as text; levels that are not empty are joined by underscores."""
    return "_".join(str(part) for part in name if str(part)) if isinstance(name, tuple) else str(name)


def _narwhals(data: Any) -> nw.DataFrame[Any]:
    try:
        return nw.from_native(data, eager_only=True)
    except TypeError:
        problem = f"found a {type(data).__module__}.{type(data).__name__}"
        remedy = "Pass a path, an array, or a frame of pandas, Polars, PyArrow, DuckDB, Dask or PySpark"
        raise DTypeError(message(CALL, "data", problem, remedy)) from None


def to_polars(batch: Any) -> pl.DataFrame:
    """Convert a frame of any library, or a batch of Arrow."""
    if type(batch).__name__ == "RecordBatch":
        table = pl.from_arrow(batch)
        return table if isinstance(table, pl.DataFrame) else table.to_frame()
    return _narwhals(with_text_names(batch)).to_polars()
