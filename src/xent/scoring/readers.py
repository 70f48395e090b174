"""Where rows come from: files, frames of many libraries, and arrays, each read in pieces that fit in memory.

Tables reach the rest of the package as batches in Polars: Parquet, CSV and Arrow files through Polars' streaming
engine, frames through narwhals. Arrays are sliced; npy files are memory-mapped.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl

from xent.errors import ArgumentError, DataError, DTypeError, ShapeError, message
from xent.names import first_line, listed, quoted, shown_path
from xent.scoring.batch import as_array
from xent.scoring.form import CALL, Plan, Request, class_indices, id_array
from xent.scoring.limits import check_inflated, load_arrays
from xent.scoring.selection import keys_of_ids
from xent.scoring.sums import Array

SCANNERS: dict[str, Callable[..., pl.LazyFrame]] = {
    ".parquet": partial(pl.scan_parquet, glob=False),
    ".csv": partial(pl.scan_csv, glob=False, infer_schema_length=10_000, null_values=[""]),
    ".arrow": partial(pl.scan_ipc, glob=False),
    ".feather": partial(pl.scan_ipc, glob=False),
    ".ipc": partial(pl.scan_ipc, glob=False),
}
"""Readers of a list of files. Patterns were resolved before: a file may be named `[a].csv`."""
ARRAY_FILES = (".npy", ".npz")
KINDS = ", ".join([*SCANNERS, *ARRAY_FILES])
LIBRARIES = ("polars", "narwhals", "pyarrow", "pandas", "duckdb", "_duckdb", "dask", "pyspark", "py4j", "zipfile")
KNOWN = (OSError, UnicodeError, pl.exceptions.PanicException)
"""Errors of files, whoever raises them; a panic is how Polars fails at files that break its assumptions."""
BATCH_ROWS = 2**16
BATCH_NUMBERS = 2**20
"""Probabilities per batch: with many classes a batch has fewer rows."""

Piece = tuple[int, Array | None, Callable[[], dict[str, Any]]]
"""Number of rows, keys of their ids, and a function that returns the arguments of `ScoreState.from_batch`."""


@contextmanager
def reading(name: Any) -> Iterator[None]:
    """Turn an error of the system or of another library into a DataError that names the input."""
    try:
        yield
    except (Exception, pl.exceptions.PanicException) as error:
        if not isinstance(error, KNOWN) and type(error).__module__.split(".")[0] not in LIBRARIES:
            raise
        remedy = "Check that the file is whole and that each column holds one type"
        problem = f"{shown_path(name)} cannot be read ({first_line(error)})"
        raise DataError(message(CALL, "data", problem, remedy)) from None


# Files.


def is_path(data: Any) -> bool:
    """Whether this names files."""
    return isinstance(data, str | Path)


def find_files(data: str | Path) -> list[Path]:
    """Return the files that a path, a directory or a pattern stands for, all of one kind and sorted by name."""
    name, path = shown_path(data), Path(data)
    try:
        files, is_folder = _matches(data), path.is_dir()
        sizes = {p: p.stat().st_size for p in files}
        "".join(map(str, files)).encode()  # Polars opens files whose names are UTF-8
    except (OSError, ValueError) as error:  # a name too long, a NUL byte, a folder that may not be read
        problem = f"{name} cannot be read ({first_line(error)})"
        raise DataError(
            message(CALL, "data", problem, f"Pass a file, a folder or a pattern of {KINDS} files")
        ) from None
    if not files:
        problem = f"there is no table in the folder {name}" if is_folder else f"no such file, and no match: {name}"
        raise DataError(message(CALL, "data", problem, f"Pass a file, a folder or a pattern of {KINDS} files"))
    suffixes = {p.suffix.lower() for p in files}
    if len(suffixes) > 1:
        problem = f"{name} has files of different kinds: {listed(sorted(suffixes))}"
        raise DataError(message(CALL, "data", problem, "Pass a pattern that matches one kind"))
    if not suffixes <= {*SCANNERS, *ARRAY_FILES}:
        problem = f"found {name}, expected one of {KINDS}"
        raise DataError(message(CALL, "data", problem, "Convert the file, or rename it"))
    for p, size in sizes.items():
        if size == 0:
            raise DataError(message(CALL, "data", f"{shown_path(p)} is empty", "Check that it was written to its end"))
    return files


def _matches(data: str | Path) -> list[Path]:
    """Return the files of a folder, the file of that name or, if there is none, those that match the pattern."""
    path = Path(data)
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.suffix.lower() in SCANNERS and not _is_hidden(p, path))
    return [path] if path.exists() else sorted(Path(name) for name in glob.glob(str(data), recursive=True))


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.relative_to(root).parts)


def scan_files(files: list[Path]) -> pl.LazyFrame:
    """Return the files as one lazy table."""
    suffix = files[0].suffix.lower()
    if suffix in ARRAY_FILES:
        problem = f"{shown_path(files[0])} is a file of arrays, expected a table"
        raise DataError(message(CALL, "data", problem, "Write the predictions to Parquet, with an id for each row"))
    if suffix == ".csv":
        for file in files:
            check_inflated(file)
    return SCANNERS[suffix](files)


def digest(files: list[Path]) -> str:
    """SHA-256 over the contents of the files, in their order."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


# Frames.


def frame_pieces(plan: Plan, batches: Iterable[pl.DataFrame]) -> Iterator[Piece]:
    """Return the batches of a table as pieces."""
    first_row = 0
    for batch in batches:
        if batch.height:
            ids = None if plan.request.id is None else batch[plan.request.id]
            keys = None if ids is None or ids.null_count() else keys_of_ids(id_array(ids))
            yield batch.height, keys, partial(plan.arguments, batch, first_row)
            first_row += batch.height


def batches_of(data: Any, request: Request) -> tuple[Plan, Iterable[pl.DataFrame]]:
    """Return the plan of a file or local frame, and its batches."""
    if is_path(data):
        data = scan_files(find_files(data))
    engine = engine_of(data)
    if engine in ("dask", "pyspark"):
        problem = f"found a frame of {engine}"
        raise DTypeError(message("compare", "a, b", problem, "Write the predictions to Parquet and pass the path"))
    if engine == "polars lazy":
        schema = data.collect_schema()
        plan = request.plan(schema.names(), schema)
        rows = batch_rows(len(plan.columns))
        return plan, data.select(plan.needed).collect_batches(chunk_size=rows, maintain_order=True)
    columns, batches = _local_batches(data, engine)
    first = next(batches(columns, 1), None)
    plan = request.plan(columns, {} if first is None else first.schema)
    return plan, batches(plan.needed, batch_rows(len(plan.columns)))


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


def batch_rows(columns: int) -> int:
    """Return how many rows a batch with this many columns of predictions has."""
    return max(1024, min(BATCH_ROWS, BATCH_NUMBERS // max(columns, 1)))


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

    def of_frame(columns: list[str], rows: int) -> Iterator[pl.DataFrame]:
        chosen = frame.select(columns)
        for first in range(0, len(frame), rows):
            yield chosen[first : first + rows].to_polars()

    return frame.columns, of_frame


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
    return _narwhals(batch).to_polars()


# Arrays.


def is_array(data: Any) -> bool:
    """Whether this is an array of some library, or lists that make one."""
    libraries = ("torch", "jax", "jaxlib", "cupy")
    return isinstance(data, np.ndarray | list) or (
        hasattr(data, "__array_namespace__") or type(data).__module__.split(".")[0] in libraries
    )


def arrays_of_files(files: list[Path], roles: dict[str, Any]) -> dict[str, Array | None]:
    """Return the arrays that the roles name, from an npz file or from npy files."""
    if len(files) > 1:
        problem = f"found {len(files)} files of arrays in {shown_path(files[0].parent)}"
        raise DataError(message(CALL, "data", problem, "Pass one npz file, or one npy file"))
    arrays = load_arrays(files[0])

    def array_of(role: str, name: Any) -> Array | None:
        if name is None:
            return None
        if isinstance(name, str) and name in arrays:
            return arrays[name]()
        if isinstance(name, str) and name.endswith(".npy"):
            return load_arrays(find_files(name)[0])["proba"]()
        problem = f"there is no array {quoted(name)} in {shown_path(files[0].name)}"
        raise ArgumentError(message(CALL, role, problem, f"It has {listed(arrays)}; other files are named *.npy"))

    named = {role: array_of(role, name) for role, name in roles.items()}
    if all(named[kind] is None for kind in ("proba", "logits", "log_prob")) and "proba" in arrays:
        named["proba"] = arrays["proba"]()
    return named


def array_pieces(
    arrays: Mapping[str, Any],
    columns: Mapping[str, Any],
    by: Any,
    classes: tuple[str, ...] | None,
    options: Mapping[str, Any],
) -> Iterator[Piece]:
    """Slice arrays of predictions (by their kind), of labels, weights, ids, entropies and segments into pieces."""
    present = {kind: array for kind, array in arrays.items() if array is not None}
    if len(present) != 1:
        problem = f"found {' and '.join(present) or 'none of them'}"
        raise ArgumentError(message(CALL, "proba, logits, log_prob", problem, "Name exactly one array of predictions"))
    ((kind, array),) = present.items()
    predictions = as_array(CALL, kind, array)
    rows = predictions.shape[0] if predictions.ndim else 0
    if not rows:
        raise DataError(message(CALL, "data", "there are no rows", "Pass at least one"))
    if kind != "log_prob" and columns["label"] is None:
        raise ArgumentError(message(CALL, "label", "there are no labels", "Pass an array of class indices or names"))
    if by is not None and not isinstance(by, Mapping) and (not hasattr(by, "__len__") or len(by)):
        problem = f"found a {type(by).__name__}"
        raise ArgumentError(message(CALL, "by", problem, "With arrays, pass a mapping from a name to an array"))
    whole: dict[str, Any] = {name: _column(name, column, rows) for name, column in columns.items()}
    segments: dict[str, Any] = {name: _column(f"by[{quoted(name)}]", c, rows) for name, c in dict(by or {}).items()}
    number = 2 if predictions.ndim == 1 else predictions.shape[1]
    if predictions.ndim > 2 or not number:
        problem = f"found shape {predictions.shape}, expected (rows, classes) or (rows,)"
        raise ShapeError(message(CALL, kind, problem, "Pass one row per prediction"))
    names = classes or tuple(map(str, range(number)))

    def arguments(first: int, last: int) -> dict[str, Any]:
        part: dict[str, Any] = {name: None if c is None else c[first:last] for name, c in whole.items()}
        if kind == "log_prob":
            part["label"] = None
        elif part["label"].ndim == 1:
            part["label"] = class_indices(_series("label", part["label"]), names, first)
        return {
            kind: predictions[first:last],
            "labels": part["label"],
            "entropy": part["entropy"],
            "weight": part["weight"],
            "ids": part["id"],
            **{name: part[name] for name in ("bytes", "characters", "cluster") if name in part},
            "by": {name: column[first:last] for name, column in segments.items()},
            "classes": None if kind == "log_prob" else names,
            "first_row": first,
            **options,
        }

    size = max(1024, BATCH_NUMBERS // number)
    for first in range(0, rows, size):
        last = min(first + size, rows)
        keys = None if whole["id"] is None else keys_of_ids(whole["id"][first:last])
        yield last - first, keys, partial(arguments, first, last)


def _column(name: str, values: Any, rows: int) -> Array | None:
    if values is None:
        return None
    column = as_array(CALL, name, values)
    if column.shape[:1] != (rows,):
        problem = f"found shape {column.shape} for {rows} rows"
        raise ShapeError(message(CALL, name, problem, "Pass one value per row"))
    return column


def _series(argument: str, values: Array) -> pl.Series:
    try:
        series = pl.Series(values)
        if series.dtype == pl.Object:
            raise TypeError("objects of other kinds")
        return series
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        problem = f"found values that make no column ({error})"
        raise DTypeError(message(CALL, argument, problem, "Pass integers, booleans or text, all of one kind")) from None
