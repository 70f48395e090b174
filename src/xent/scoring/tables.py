"""Tables that can be read more than once, in batches: text with separators, and what Polars scans lazily.

A `Table` knows its columns before it is read, and yields batches of those that a plan needs. Of a text all columns are
text but those that the plan takes for numbers, so that the label 1.10 stays what it is, and no type depends on which
rows come first. In tables with types of their own, a dotted name reaches into a structure (`logprobs.content`), a map
has a column for each key, and `explode` makes one row of each item of a list.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import msgspec
import polars as pl

from xent.errors import ArgumentError, DataError, message, missing_package, option
from xent.names import first_line, listed, quoted, shown_name, shown_path
from xent.scoring.columns import is_vector
from xent.scoring.dialect import PEEKED_LINES, Dialect, checked_separator, find_dialect
from xent.scoring.files import CALL, Files, compression_of, no_table, reading
from xent.scoring.limits import BZIP2, GZIP, XZ, ZIP, ZLIB, ZSTD, check_archive, check_inflated, inflated

NOT_A_NUMBER = "NA"
"""How R writes a missing number; the label NA stays text."""
PEEKED_BYTES = 2**16
MOST_FIELDS = 10_000
MOST_KEYS = 1_000
POLARS_INFLATES = (GZIP, ZSTD, *ZLIB)
Source = Path | str | bytes


@dataclass(frozen=True)
class Layout:
    """How the caller says that files are laid out; None has it found out."""

    separator: str | None = None
    header: bool | None = None
    explode: tuple[str, ...] = ()


class Table(Protocol):
    """Rows that can be read in batches."""

    again: bool
    """Whether they can be read more than once."""

    @property
    def columns(self) -> list[str]: ...

    @property
    def dtypes(self) -> Mapping[str, Any]: ...

    def batches(self, needed: list[str], numbers: list[str], rows: int) -> Iterator[pl.DataFrame]:
        """Yield the columns that are needed, up to this many rows at a time; `numbers` are no text."""


def table_of_files(files: Files, layout: Layout, id_column: str | None, wanted: Sequence[str]) -> Table:
    """Return the table that files hold; `wanted` are the columns that the caller named."""
    if files.kind in ("npy", "npz"):
        raise no_table(files)
    if files.kind == "text":
        if layout.explode:
            problem = "a text with separators has no lists"
            raise ArgumentError(message(CALL, "explode", problem, "Lists are in Parquet, JSON and Arrow files"))
        return TextTable(files, layout)
    if layout.separator is not None or layout.header is not None:
        role = "separator" if layout.separator is not None else "header"
        problem = f"found it with a file that is no text with separators ({files.kind})"
        raise ArgumentError(message(CALL, role, problem, "Omit it"))
    return LazyTable(scan_files(files), layout.explode, id_column, wanted)


# What Polars scans.


def scan_files(files: Files) -> pl.LazyFrame:
    """Return files with types of their own as one lazy table."""
    if files.address is not None:
        return _scan(files.kind, [files.address])
    if not files.partitions:
        return _scan(files.kind, list(files.paths))
    groups: dict[tuple[tuple[str, str | None], ...], list[Path]] = {}
    for path in files.paths:
        values = files.partitions.get(path, {})
        groups.setdefault(tuple((name, values.get(name)) for name in files.partition_columns), []).append(path)
    return pl.concat([_scan(files.kind, list(paths)).with_columns(**_literals(dict(g))) for g, paths in groups.items()])


def _literals(values: Mapping[str, str | None]) -> dict[str, pl.Expr]:
    return {name: pl.lit(value, dtype=pl.String) for name, value in values.items()}


def _scan(kind: str, paths: list[Path] | list[str]) -> pl.LazyFrame:
    """Return files of one kind and equal columns."""
    sources: list[Source] = list(paths)
    sources = [_opened(path, kind) for path in sources]
    if kind == "parquet":
        return pl.scan_parquet(_streams(sources), glob=False)
    if kind == "excel":
        return pl.concat([_excel(source) for source in sources])
    if kind == "arrow":
        return pl.concat([_arrow(source) for source in sources])
    return pl.scan_ndjson([_lines_of_json(source) for source in sources], infer_schema_length=None)


def _lines_of_json(source: Source) -> Any:
    """Return a source with an object in each line; one JSON array of objects is turned into lines."""
    if isinstance(source, str) or _start(source).lstrip()[:1] != b"[":
        return source
    text = source if isinstance(source, bytes) else source.read_bytes()
    try:
        rows = msgspec.json.decode(text, type=list[msgspec.Raw])
        return b"\n".join(msgspec.json.format(bytes(row), indent=-1) for row in rows)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        problem = f"a JSON array cannot be read ({first_line(error)})"
        raise DataError(
            message(CALL, "data", problem, "Write an array of objects, or an object in each line")
        ) from None


def _opened(source: Source, inside: str) -> Source:
    """Return a source that Polars reads: of a compression that it does not know, the contents.

    A text is compressed if it begins so, whatever its name says.
    """
    if not isinstance(source, Path):
        return source
    if inside in ("text", "json"):
        start = _start(source)
        if start.startswith(POLARS_INFLATES) and not (inside == "json" and _is_array_name(source)):
            check_inflated(source)
            return source
        return inflated(source) if start.startswith((*POLARS_INFLATES, BZIP2, XZ, ZIP)) else source
    return source if compression_of(source) is None else inflated(source)


def _is_array_name(path: Path) -> bool:
    """Whether a compressed file may be one JSON array, which is not read line by line."""
    return ".json" in (suffix.lower() for suffix in path.suffixes)


def _streams(sources: list[Source]) -> Any:
    return [io.BytesIO(source) if isinstance(source, bytes) else source for source in sources]


def _beginning(source: Source) -> Source:
    """Return the first lines of a plain text on disk if they are short: before it stops, Polars reads for 10 ms."""
    if not isinstance(source, Path):
        return source
    with source.open("rb") as opened:
        start = opened.read(PEEKED_BYTES)
    is_short = start.count(b"\n") > PEEKED_LINES and not start.startswith(POLARS_INFLATES)
    return start[: start.rindex(b"\n") + 1] if is_short else source


def _start(source: Source) -> bytes:
    if isinstance(source, bytes):
        return source[:64]
    with Path(source).open("rb") as opened:
        return opened.read(64)


def _arrow(source: Source) -> pl.LazyFrame:
    """Return an Arrow file, or a stream under its name, as Hugging Face's datasets have it."""
    if isinstance(source, str) or _start(source).startswith(b"ARROW1"):
        return pl.scan_ipc(source, glob=False)
    return pl.read_ipc_stream(source).lazy()


def _excel(source: Source) -> pl.LazyFrame:
    """Return the first sheet of a workbook."""
    if isinstance(source, Path):
        check_archive(source)
    try:
        return pl.read_excel(source, infer_schema_length=None).lazy()
    except ModuleNotFoundError:  # Polars' own, which does not name the package
        raise missing_package(ModuleNotFoundError(name="fastexcel"), CALL, "excel") from None


class LazyTable:
    """A lazy table of Polars, with the fields of structures and maps as columns, and lists made into rows."""

    again = True

    def __init__(
        self, frame: pl.LazyFrame, explode: tuple[str, ...] = (), id_column: str | None = None,
        wanted: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.wanted = tuple(wanted)
        self.frame = frame
        self.expressions, self._dtypes = self._found(frame)
        if explode:
            self.frame = self._exploded(explode, id_column)
            self.expressions, self._dtypes = self._found(self.frame)

    @property
    def columns(self) -> list[str]:
        return list(self._dtypes)

    @property
    def dtypes(self) -> Mapping[str, Any]:
        return self._dtypes

    def batches(self, needed: list[str], numbers: list[str], rows: int) -> Iterator[pl.DataFrame]:
        chosen = self.frame.select([self.expressions[name].alias(name) for name in needed])
        return chosen.collect_batches(chunk_size=rows, maintain_order=True)

    def _found(self, frame: pl.LazyFrame) -> tuple[dict[str, pl.Expr], dict[str, Any]]:
        """Return the columns and what lies inside of them, as expressions and as types."""
        expressions: dict[str, pl.Expr] = {}
        dtypes: dict[str, Any] = {}
        inside: list[tuple[str, pl.Expr, Any]] = []
        for name, dtype in frame.collect_schema().items():
            expressions[name], dtypes[name] = pl.col(name), dtype
            inside += self._parts(frame, name, pl.col(name), dtype)
        while inside and len(expressions) < MOST_FIELDS:
            name, expression, dtype = inside.pop(0)
            if name not in expressions:  # a column of that name comes first
                expressions[name], dtypes[name] = expression, dtype
                inside += self._parts(frame, name, expression, dtype)
        for name, dtype in dtypes.items():
            if isinstance(dtype, pl.Map):  # in its place, a structure with the keys that occur
                fields = [
                    pl.Field(n.removeprefix(f"{name}."), d) for n, d in dtypes.items() if n.startswith(f"{name}.")
                ]
                dtypes[name] = pl.Struct(fields) if fields else dtype
        return expressions, dtypes

    def _parts(self, frame: pl.LazyFrame, name: str, expression: pl.Expr, dtype: Any) -> list[tuple[str, pl.Expr, Any]]:
        if isinstance(dtype, pl.Struct) and not is_vector(dtype):
            return [(f"{name}.{f.name}", expression.struct.field(f.name), f.dtype) for f in dtype.fields]
        if isinstance(dtype, pl.Map) and any(w == name or w.startswith(f"{name}.") for w in self.wanted):
            keys = frame.select(expression.map.keys().explode().unique()).collect(engine="streaming").to_series()
            if len(keys) > MOST_KEYS:
                problem = f"the maps of column {quoted(name)} have more than {MOST_KEYS:,} keys"
                raise DataError(message(CALL, "data", problem, "Write a column of lists, with a number for each class"))
            found = sorted(keys.drop_nulls().to_list(), key=str)
            dtypes = frame.select(
                [expression.map.get(key).alias(str(k)) for k, key in enumerate(found)]
            ).collect_schema()
            return [
                (f"{name}.{key}", expression.map.get(key), d) for key, d in zip(found, dtypes.dtypes(), strict=True)
            ]
        return []

    def _exploded(self, explode: tuple[str, ...], id_column: str | None) -> pl.LazyFrame:
        """Return a row for each item of these lists; an id gets the item's place, as in 'doc[3]'."""
        for name in explode:
            if not isinstance(self._dtypes.get(name), pl.List | pl.Array):
                found = (
                    "there is no such column"
                    if name not in self._dtypes
                    else f"it holds {shown_name(self._dtypes[name])}"
                )
                lists = [n for n, dtype in self._dtypes.items() if isinstance(dtype, pl.List | pl.Array)]
                problem = f"column {quoted(name)} has no lists: {found}"
                raise ArgumentError(message(CALL, "explode", problem, f"Columns of lists: {listed(lists) or 'none'}"))
        frame = self.frame.with_columns(
            [self.expressions[name].alias(name) for name in explode if "." in name and name in self.expressions]
        )
        lengths = pl.col(explode[0]).list.len() if isinstance(self._dtypes[explode[0]], pl.List) else None
        if lengths is not None:
            frame = frame.filter(lengths > 0)
        place = "xent: place in the list"
        width = lengths if lengths is not None else pl.lit(self._dtypes[explode[0]].shape[0])
        frame = frame.with_columns(pl.int_ranges(0, width).alias(place)).explode([*explode, place])
        if id_column is not None and id_column in self._dtypes and id_column not in explode:
            parts = [
                self.expressions[id_column].cast(pl.String),
                pl.lit("["),
                pl.col(place).cast(pl.String),
                pl.lit("]"),
            ]
            frame = frame.with_columns(pl.concat_str(parts).alias(id_column))
        return frame.drop(place)


# Text with separators.


class TextTable:
    """Files of text with separators, which have the same columns in any order."""

    again = True

    def __init__(self, files: Files, layout: Layout) -> None:
        self.files = files
        self.sources: list[Source] = [files.address] if files.address else [_opened(p, "text") for p in files.paths]
        self.names = [files.address] if files.address else list(files.paths)
        separator = checked_separator(layout.separator)
        self.dialect = Dialect()
        for source, name in zip(self.sources, self.names, strict=True):
            with reading(name):
                first = _beginning(source)
                lines = pl.scan_lines(first, n_rows=PEEKED_LINES, **self._no_glob(first)).collect()["line"]
            self.dialect = find_dialect(lines.to_list(), separator, layout.header)
            if len(lines) > 1:
                break
        with reading(self.names[0]):
            self._columns = self._scanned(0, []).collect_schema().names()

    @staticmethod
    def _no_glob(source: Source) -> dict[str, Any]:
        return {} if isinstance(source, bytes) else {"glob": False}

    @property
    def columns(self) -> list[str]:
        return [*self._columns, *(name for name in self.files.partition_columns if name not in self._columns)]

    @property
    def dtypes(self) -> Mapping[str, Any]:
        return dict.fromkeys(self.columns, pl.String)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What was found out about the file that a reader should know."""
        if self.dialect.header:
            return ()
        return (
            "The first line is all numbers: the file was taken to have no header, and columns column_1, column_2, ...",
        )

    def _scanned(self, k: int, numbers: Sequence[str], missing: bool = False, **options: Any) -> pl.LazyFrame:
        """Return one file lazily: these columns as numbers, of which some may be missing, and all others as text."""
        dialect, source = self.dialect, self.sources[k]
        names: dict[str, Any] = {"has_header": dialect.header}
        if dialect.names is not None:
            names = {"has_header": False, "skip_lines": int(dialect.header), "new_columns": list(dialect.names)}
        return pl.scan_csv(
            source,
            separator=dialect.separator,
            decimal_comma=dialect.decimal_comma,
            infer_schema=False,
            schema_overrides=dict.fromkeys(numbers, pl.Float64),
            null_values=(dict.fromkeys(numbers, NOT_A_NUMBER) or None) if missing else None,
            **names,
            **self._no_glob(source),
            **options,
        )

    def batches(self, needed: list[str], numbers: list[str], rows: int) -> Iterator[pl.DataFrame]:
        if repeated := sorted(self.dialect.repeated.intersection(needed)):
            problem = f"several columns are named {quoted(repeated[0])}"
            raise DataError(message(CALL, "data", problem, "Give each column a name of its own"))
        for k, name in enumerate(self.names):
            partition = self.files.partitions.get(name, {}) if isinstance(name, Path) else {}
            inside = [column for column in needed if column not in self.files.partition_columns]
            typed = [column for column in numbers if column in inside]
            with reading(name):
                there = self._scanned(k, []).collect_schema().names()
            if absent := [column for column in inside if column not in there]:
                problem = f"{shown_path(name)} has no column {quoted(absent[0])}"
                raise DataError(message(CALL, "data", problem, f"It has {listed(there)}"))
            # A column of a partition is read as well, when nothing else is, to know how many rows there are.
            yield from self._of_file(k, inside or there[:1], typed, needed, partition, rows)

    def _of_file(
        self, k: int, columns: list[str], numbers: list[str], needed: list[str],
        partition: Mapping[str, str | None], rows: int,
    ) -> Iterator[pl.DataFrame]:  # fmt: skip
        """Yield the batches of one file.

        To look for missing numbers (NA) costs a tenth of the time, so that it is done from the first field that is no
        number on.
        """
        first = 0
        for missing in (False, True):
            try:
                chosen = self._scanned(k, numbers, missing=missing).select(columns)
                chosen = chosen.slice(first) if first else chosen
                for batch in chosen.collect_batches(chunk_size=rows, maintain_order=True):
                    first += batch.height
                    yield self._whole_lines(k, batch, first - batch.height, needed, partition)
                return
            except pl.exceptions.ComputeError as error:
                if "could not parse" not in str(error):
                    raise
                if missing:
                    raise self._no_number(k, numbers) or error from None

    def _whole_lines(
        self, k: int, batch: pl.DataFrame, first: int, needed: list[str], partition: Mapping[str, str | None]
    ) -> pl.DataFrame:
        """Return a batch without blank lines, and with the columns that the folder stands for."""
        if batch.height and all(batch[column].null_count() for column in batch.columns):
            blank = pl.int_range(first, first + batch.height, eager=True).is_in(self._blank_lines(k).implode())
            batch = batch.filter(~blank)
        names = {name: partition.get(name) for name in needed if name in self.files.partition_columns}
        return batch.with_columns(**_literals(names)).select(needed) if names else batch

    def _blank_lines(self, k: int) -> pl.Series:
        """Return the numbers of the rows in which every column is empty."""
        frame = self._scanned(k, [], row_index_name="xent: row")
        everything = pl.all_horizontal(pl.all().exclude("xent: row").is_null())
        return (
            frame.filter(everything).select(pl.col("xent: row").cast(pl.Int64)).collect(engine="streaming").to_series()
        )

    def _no_number(self, k: int, numbers: Sequence[str]) -> DataError | None:
        """Return the error that names the first line with a field that is not a number; None if there is none."""
        frame = self._scanned(k, [], row_index_name="xent: row")
        for column in numbers:
            text = pl.col(column).str.strip_chars()
            parsed = text.str.replace(",", ".", literal=True) if self.dialect.decimal_comma else text
            wrong = parsed.cast(pl.Float64, strict=False).is_null() & text.is_not_null() & (text != NOT_A_NUMBER)
            found = frame.filter(wrong).select("xent: row", column).head(1).collect(engine="streaming")
            if found.height:
                line = int(found["xent: row"][0]) + 1 + int(self.dialect.header)
                where = f"{shown_path(self.names[k])}, line {line}, column {quoted(column)}"
                problem = f"{where}: {quoted(found[column][0])} is not a number"
                return DataError(message(CALL, "data", problem, self._remedy(column, found[column][0])))
        return None

    def _remedy(self, column: str, value: str) -> str:
        if "," in value:
            return f"A decimal comma needs another separator than ',' ({option('separator', ';')})"
        exclude = option("exclude", shown_name(column))
        return f"Correct it; a column that holds no numbers is kept out of a pattern by {exclude}"
