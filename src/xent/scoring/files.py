"""Which files a path stands for, of which kind they are, and what their folders say about them.

kind         from the ending of the name: Parquet, text with separators, JSON, Arrow, Excel, arrays
compression  a second ending: gz and zst, which Polars reads; bz2, xz and zip, which are unpacked first
partitions   folders named column=value, as Spark and Hive write them, are columns of text
addresses    s3://, https:// and what else Polars opens, one file each
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import polars as pl

from xent.errors import DataError, message
from xent.names import first_line, listed, quoted, shown_path

CALL = "score"
KIND_OF_ENDING = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "text",
    ".tsv": "text",
    ".tab": "text",
    ".psv": "text",
    ".txt": "text",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".xlsx": "excel",
    ".xlsm": "excel",
    ".xlsb": "excel",
    ".xls": "excel",
    ".ods": "excel",
    ".npy": "npy",
    ".npz": "npz",
}
COMPRESSIONS = {".gz": "gz", ".gzip": "gz", ".zst": "zst", ".zstd": "zst", ".bz2": "bz2", ".xz": "xz", ".zip": "zip"}
ARRAY_KINDS = ("npy", "npz")
KINDS = "Parquet, CSV, TSV, JSON lines, Arrow, Excel, npz or npy"
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
LIBRARIES = (
    *("polars", "narwhals", "pyarrow", "pandas", "duckdb", "_duckdb", "dask", "pyspark", "py4j", "zipfile"),
    *("fastexcel", "_fastexcel"),
)
KNOWN = (OSError, UnicodeError, pl.exceptions.PanicException)
"""Errors of files, whoever raises them; a panic is how Polars fails at files that break its assumptions."""


@dataclass(frozen=True)
class Files:
    """The files of one kind that a path stands for, or one address."""

    paths: tuple[Path, ...]
    kind: str
    partitions: Mapping[Path, Mapping[str, str | None]] = field(default_factory=dict)
    """The columns that the folders of a file stand for."""
    address: str | None = None

    @property
    def partition_columns(self) -> list[str]:
        return list(dict.fromkeys(name for values in self.partitions.values() for name in values))


@contextmanager
def reading(name: Any) -> Iterator[None]:
    """Turn an error of the system or of another library into a DataError that names the input."""
    try:
        yield
    except (Exception, pl.exceptions.PanicException) as error:
        if not isinstance(error, KNOWN) and type(error).__module__.split(".")[0] not in LIBRARIES:
            raise
        problem = f"{shown_path(name)} cannot be read ({first_line(error)})"
        raise DataError(message(CALL, "data", problem, _remedy(str(error)))) from None


def _remedy(said: str) -> str:
    if "utf-8" in said.lower() or "utf8" in said.lower():
        return "Save it as UTF-8 (iconv -f LATIN1 -t UTF-8; in Excel: 'CSV UTF-8')"
    if "more fields than" in said:
        return "Check that each line has as many fields as the header, and which separator the file has"
    if "at character" in said and said.partition("('")[2][:1] in ("N", "I"):
        return "JSON has no NaN and no Infinity, which Python's json module writes all the same: write null instead"
    if "object-store" in said:
        return "Check the address, the network and the access rights"
    return "Check that the file is whole and that each column holds one type"


def is_path(data: Any) -> bool:
    """Whether this names files."""
    return isinstance(data, str | Path)


def is_address(data: Any) -> bool:
    """Whether this is an address such as s3://bucket/a.parquet."""
    return isinstance(data, str) and "://" in data and data.partition("://")[0].isalnum()


def kind_of(path: Path) -> str | None:
    """Return the kind of a file by the ending of its name, under that of a compression; None if it is no data."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return KIND_OF_ENDING.get(suffixes[-1]) if suffixes else None


def compression_of(path: Path) -> str | None:
    """Return the compression that the ending of a name stands for."""
    return COMPRESSIONS.get(path.suffix.lower())


def find_files(data: str | Path) -> Files:
    """Return the files that a path, a directory or a pattern stands for, all of one kind and sorted by name."""
    if is_address(data):
        return _address(str(data))
    name, path, pass_one = shown_path(data), Path(data), f"Pass a file, a folder or a pattern of {KINDS} files"
    try:
        files, is_folder = _matches(data), path.is_dir()
        sizes = {p: p.stat().st_size for p in files}
        "".join(map(str, files)).encode()  # Polars opens files whose names are UTF-8
        is_delta = is_folder and (path / "_delta_log").is_dir()
    except (OSError, ValueError) as error:  # a name too long, a NUL byte, a folder that may not be read
        problem = f"{name} cannot be read ({first_line(error)})"
        raise DataError(message(CALL, "data", problem, pass_one)) from None
    if is_delta:
        problem = f"{name} is a Delta table, whose log says which of its files count"
        raise DataError(message(CALL, "data", problem, "Read it with polars.scan_delta and pass the frame"))
    if not files:
        problem = f"there is no table in the folder {name}" if is_folder else f"no such file, and no match: {name}"
        raise DataError(message(CALL, "data", problem, pass_one))
    kinds = {kind_of(p) for p in files}
    if None in kinds:
        other = next(p for p in files if kind_of(p) is None)
        problem = f"found {shown_path(other)}, whose name does not say what it is; expected one of {KINDS} files"
        raise DataError(message(CALL, "data", problem, f"Rename it; the endings are {', '.join(KIND_OF_ENDING)}"))
    if len(kinds) > 1:
        endings = listed(sorted({p.suffix.lower() for p in files}))
        problem = f"{name} has files of different kinds: {endings}"
        raise DataError(message(CALL, "data", problem, "Pass a pattern that matches one kind"))
    filled = [p for p in files if sizes[p]]  # Hadoop leaves empty parts behind
    if not filled:
        problem = f"{shown_path(files[0])} is empty"
        raise DataError(message(CALL, "data", problem, "Check that it was written to its end"))
    partitions = {p: _partition(p, path if is_folder else None) for p in filled} if len(files) > 1 or is_folder else {}
    return Files(tuple(filled), str(kinds.pop()), {p: values for p, values in partitions.items() if values})


def _address(data: str) -> Files:
    kind = kind_of(Path(urlsplit(data).path))
    if kind is None or kind in (*ARRAY_KINDS, "excel"):
        problem = f"{shown_path(data)} is no address of a Parquet, CSV, JSON lines or Arrow file"
        raise DataError(message(CALL, "data", problem, "Download it first"))
    return Files((), kind, address=data)


def _matches(data: str | Path) -> list[Path]:
    """Return the files of a folder, the file of that name or, if there is none, those that match the pattern."""
    path = Path(data)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if not _is_hidden(p, path) and not p.is_dir() and _is_table(p))
        # A text beside tables is no part of them: a README.txt, a dataset_info.json.
        tables = [p for p in found if p.suffix.lower() not in (".txt", ".json")]
        return tables or found
    if path.exists():
        return [path]
    return sorted(p for name in glob.glob(str(data), recursive=True) if (p := Path(name)).name[:1] not in "._")


def _is_table(path: Path) -> bool:
    return kind_of(path) not in (None, *ARRAY_KINDS, "excel")


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.relative_to(root).parts)


def _partition(path: Path, root: Path | None) -> dict[str, str | None]:
    """Return the columns that the folders of a file under `root` stand for; of a pattern's match, all its folders."""
    folders = (path if root is None else path.relative_to(root)).parent.parts
    pairs = [folder.partition("=") for folder in folders if "=" in folder]
    return {unquote(name): None if value == NO_VALUE else unquote(value) for name, _, value in pairs if name}


def digest(files: tuple[Path, ...]) -> str:
    """SHA-256 over the contents of the files, in their order."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def no_table(files: Files) -> DataError:
    """The error for arrays where a table is needed."""
    problem = f"{shown_path(files.paths[0])} is a file of arrays, expected a table"
    return DataError(message(CALL, "data", problem, "Write the predictions to Parquet, with an id for each row"))


def quoted_file(path: Path) -> str:
    """The name of a file, without its folders, between quotation marks."""
    return quoted(path.name)
