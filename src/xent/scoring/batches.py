"""Where batches of rows come from: a file, a frame of some library, a stream of frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl

from xent.errors import DataError, DTypeError, message
from xent.scoring import files
from xent.scoring.columns import Plan, Request

CALL = "score"
BATCH_ROWS = 2**16
BATCH_NUMBERS = 2**20
"""Probabilities in a batch: with many classes it has fewer rows."""


def batches_of(data: Any, request: Request) -> tuple[Plan, Iterable[pl.DataFrame]]:
    """The plan of a file or local frame, and its batches."""
    if is_path(data):
        data = files.scan(files.find(data))
    engine = engine_of(data)
    if engine in ("dask", "pyspark"):
        text = f"found a frame of {engine}"
        raise DTypeError(message("compare", "a, b", text, "Write the predictions to Parquet and pass the path"))
    if engine == "polars lazy":
        schema = data.collect_schema()
        plan = request.plan(schema.names(), schema)
        rows = batch_rows(len(plan.columns))
        return plan, data.select(plan.needed).collect_batches(chunk_size=rows, maintain_order=True)
    columns, batches = local_batches(data, engine)
    plan = request.plan(columns, _dtypes(batches(columns, 1)))
    return plan, batches(plan.needed, batch_rows(len(plan.columns)))


def local_batches(data: Any, engine: str) -> tuple[list[str], Callable[[list[str], int], Iterator[pl.DataFrame]]]:
    """The columns of a frame in memory or of a stream, and a function that gives batches of chosen columns."""
    if engine == "duckdb":

        def of_duckdb(columns: list[str], rows: int) -> Iterator[pl.DataFrame]:
            quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in columns)
            for batch in data.select(quoted).to_arrow_reader(rows):
                yield _frame(pl.from_arrow(batch))

        return list(data.columns), of_duckdb
    if engine == "batches":
        every = (_polars(item) for item in data)
        head = next(every, None)
        if head is None:
            raise DataError(message(CALL, "data", "there are no batches", "The iterator may have been used before"))

        def of_iterator(columns: list[str], rows: int) -> Iterator[pl.DataFrame]:
            # The first look, for the types, takes one row and leaves the rest.
            yield from (batch.select(columns) for batch in ([head] if rows == 1 else chain([head], every)))

        return head.columns, of_iterator
    frame = nw.from_native(data, eager_only=True)

    def of_frame(columns: list[str], rows: int) -> Iterator[pl.DataFrame]:
        chosen = frame.select(columns)
        for first in range(0, len(frame), rows):
            yield chosen[first : first + rows].to_polars()

    return frame.columns, of_frame


def _polars(batch: Any) -> pl.DataFrame:
    """A frame of any library, or a batch of Arrow."""
    if type(batch).__name__ == "RecordBatch":
        return _frame(pl.from_arrow(batch))
    found: pl.DataFrame = nw.from_native(batch, eager_only=True).to_polars()
    return found


def _frame(found: pl.DataFrame | pl.Series) -> pl.DataFrame:
    return found if isinstance(found, pl.DataFrame) else found.to_frame()


def _dtypes(batches: Iterator[pl.DataFrame]) -> dict[str, Any]:
    """Types as Polars sees them, from the first row."""
    first = next(batches, None)
    return {} if first is None else dict(first.schema)


def batch_rows(columns: int) -> int:
    """How many rows a batch of so many columns has."""
    return max(1024, min(BATCH_ROWS, BATCH_NUMBERS // max(columns, 1)))


def is_path(data: Any) -> bool:
    """Whether this names files."""
    return isinstance(data, str | Path)


def is_array(data: Any) -> bool:
    """Whether this is an array of some library, or lists that make one."""
    return isinstance(data, np.ndarray | list) or (hasattr(data, "__array_namespace__") or _is_tensor(data))


def _is_tensor(data: Any) -> bool:
    return type(data).__module__.split(".")[0] in ("torch", "jax", "jaxlib", "cupy")


def engine_of(data: Any) -> str:
    """Whose frame this is."""
    if isinstance(data, pl.LazyFrame):
        return "polars lazy"
    if isinstance(data, Iterator):
        return "batches"
    module = type(data).__module__.split(".")[0]
    if module in ("duckdb", "_duckdb"):
        return "duckdb"
    if module in ("dask", "dask_expr"):
        return "dask"
    if module == "pyspark":
        return "pyspark"
    try:
        nw.from_native(data, eager_only=True)
    except TypeError:
        text = f"found a {type(data).__module__}.{type(data).__name__}"
        remedy = "Pass a path, an array, or a frame of pandas, Polars, PyArrow, DuckDB, Dask or PySpark"
        raise DTypeError(message(CALL, "data", text, remedy)) from None
    return "local"
