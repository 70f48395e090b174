"""Files as tables or arrays: Parquet, CSV and Arrow through Polars' streaming engine, npy and npz memory-mapped."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from xent.errors import DataError, message
from xent.scoring.sums import Array

CALL = "score"
READERS: dict[str, Callable[..., pl.LazyFrame]] = {
    ".parquet": pl.scan_parquet,
    ".csv": pl.scan_csv,
    ".arrow": pl.scan_ipc,
    ".feather": pl.scan_ipc,
    ".ipc": pl.scan_ipc,
}
ARRAYS = (".npy", ".npz")
KINDS = ", ".join([*READERS, *ARRAYS])


def find(given: str | Path) -> list[Path]:
    """The files that a path, a directory or a pattern stands for, in order of their names; all of one kind."""
    path = Path(given)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in READERS and not _hidden(p, path))
    elif path.exists():
        found = [path]
    else:
        found = sorted(Path(name) for name in glob.glob(str(given), recursive=True))
    if not found:
        text = "there is no such file, and no file that matches" if not path.is_dir() else "no table is in this folder"
        raise DataError(message(CALL, str(given), text, f"Give a file, a folder or a pattern of {KINDS} files"))
    suffixes = {p.suffix.lower() for p in found}
    if len(suffixes) > 1:
        text = f"found files of different kinds: {', '.join(sorted(suffixes))}"
        raise DataError(message(CALL, str(given), text, "Give a pattern that matches one kind"))
    if not suffixes <= {*READERS, *ARRAYS}:
        raise DataError(message(CALL, str(given), f"expected one of {KINDS}", "Convert the file, or rename it"))
    for p in found:
        if p.stat().st_size == 0:
            raise DataError(message(CALL, str(p), "the file is empty", "Check that it was written to its end"))
    return found


def scan(files: list[Path]) -> pl.LazyFrame:
    """A lazy table of the files."""
    suffix = files[0].suffix.lower()
    if suffix == ".csv":
        return pl.scan_csv(files, infer_schema_length=10_000, null_values=[""])
    return READERS[suffix](files)


def load_arrays(files: list[Path]) -> Mapping[str, Array]:
    """The arrays of an npz file by their names, or of an npy file as 'proba'. They are read when they are used."""
    if len(files) > 1:
        text = f"found {len(files)} files of arrays"
        raise DataError(message(CALL, str(files[0].parent), text, "Give one npz file, or one npy file"))
    try:
        loaded = np.load(files[0], mmap_mode="r" if files[0].suffix.lower() == ".npy" else None, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(message(CALL, str(files[0]), f"this is no array file ({error})", "Write it anew")) from None
    return {"proba": loaded} if isinstance(loaded, np.ndarray) else loaded


@contextmanager
def reading(given: Any) -> Iterator[None]:
    """Turn what Polars says about a broken file into an error that names the file."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError, UnicodeError) as error:
        lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
        text = f"it cannot be read ({lines[0]})"
        remedy = "Check that the file is whole and that each column holds one type"
        raise DataError(message(CALL, str(given), text, remedy)) from None


def digest(files: list[Path]) -> str:
    """SHA-256 over the contents of the files, in their order."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.relative_to(root).parts)
