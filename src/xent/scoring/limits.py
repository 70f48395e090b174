"""What files claim about themselves, held against their bytes and against limits before anything is allocated.

A header of a hundred bytes can announce an array of terabytes, and a megabyte of gzip can hold gigabytes. Arrays are
made only if the bytes for them are there, and what has to be inflated is bounded.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from xent.errors import DataError, message
from xent.names import first_line, quoted, shown_path
from xent.scoring.sums import Array

CALL = "score"
MOST_INFLATED = 2**30
"""Bytes that a compressed file of text, or a compressed array of an npz file, may have when it is inflated."""
PIECE = 2**20
GZIP, ZSTD, BZIP2, XZ, ZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ", b"PK\x03\x04"
ZLIB = (b"\x78\x01", b"\x78\x9c", b"\x78\xda")
"""How compressed files begin."""


def check_inflated(file: Path) -> None:
    """DataError if a text file that Polars inflates is too large when inflated, or of a kind that cannot be bounded."""
    with file.open("rb") as opened:
        start = opened.read(4)
    if start.startswith(ZLIB):
        problem = f"{shown_path(file)} is compressed with zlib"
        raise DataError(message(CALL, "data", problem, "Decompress it first, or compress it with gzip"))
    if start.startswith((GZIP, ZSTD)) and _inflated_bytes(file) > MOST_INFLATED:
        raise _too_large(file)


def inflated(file: Path) -> bytes:
    """Return what a compressed file holds; DataError if that is too much, or an archive of several files."""
    with file.open("rb") as opened:
        start = opened.read(6)
    pieces = []
    with _unreadable(f"{shown_path(file)} cannot be decompressed"), ExitStack() as stack:
        opened = _opened(file, start, stack)
        total = 0
        while piece := opened.read(PIECE):
            total += len(piece)
            if total > MOST_INFLATED:
                raise _too_large(file)
            pieces.append(piece)
    return b"".join(pieces)


def _opened(file: Path, start: bytes, stack: ExitStack) -> Any:
    """Open a compressed file by how it begins."""
    if start.startswith(ZIP):
        archive = stack.enter_context(zipfile.ZipFile(file))
        members = [entry for entry in archive.infolist() if not entry.is_dir() and not entry.filename.startswith("__")]
        if len(members) != 1:
            raise ValueError(f"it has {len(members)} files, expected one")
        return stack.enter_context(archive.open(members[0]))
    if start.startswith(ZSTD):
        return stack.enter_context(_zstd(file))
    openers: dict[bytes, Callable[[Path], Any]] = {GZIP: gzip.open, BZIP2: bz2.open, XZ: lzma.open}
    for beginning, opener in openers.items():
        if start.startswith(beginning):
            return stack.enter_context(opener(file))
    raise ValueError("it is not compressed as its name says")


def _zstd(file: Path) -> Any:
    """Open a zstd file: Python 3.11 has no module for it, and Polars none that can be bounded."""
    try:
        import pyarrow
    except ModuleNotFoundError:
        problem = f"{shown_path(file)} is compressed with zstd, which is unpacked by pyarrow"
        raise DataError(message(CALL, "data", problem, "Install pyarrow, or compress it with gzip")) from None
    return pyarrow.input_stream(str(file), compression="zstd")


def check_archive(file: Path) -> None:
    """DataError if an archive, such as a workbook, announces more than may be inflated."""
    if not zipfile.is_zipfile(file):
        return
    with _unreadable(f"{shown_path(file)} cannot be read"), zipfile.ZipFile(file) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MOST_INFLATED:
            raise _too_large(file)


def _too_large(file: Path) -> DataError:
    problem = f"{shown_path(file)} is compressed and has more than {MOST_INFLATED:,} bytes when it is inflated"
    return DataError(message(CALL, "data", problem, "Decompress it first, or convert it to Parquet"))


def _inflated_bytes(file: Path) -> int:
    """Return how many bytes a file inflates to, as far as it can be read, and up to just above the limit."""
    total = 0
    try:
        with file.open("rb") as opened:
            start = opened.read(4)
        with gzip.open(file) if start.startswith(GZIP) else _zstd(file) as stream:
            while total <= MOST_INFLATED and (piece := stream.read(PIECE)):
                total += len(piece)
    except (OSError, EOFError, zlib.error):
        pass  # damaged: whoever reads it says so
    return total


def load_arrays(file: Path) -> Mapping[str, Callable[[], Array]]:
    """Return the arrays of an npz file by name, or that of an npy file as 'proba', as functions that read them."""
    if file.suffix.lower() == ".npy":
        return {"proba": partial(_map, file)}
    if not zipfile.is_zipfile(file):
        problem = f"{shown_path(file)} is no array file (it is no archive of arrays, or it is truncated)"
        raise DataError(message(CALL, "data", problem, "Write it again"))
    with _unreadable(f"{shown_path(file)} is no array file"), zipfile.ZipFile(file) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
    return {name.removesuffix(".npy"): partial(_inflate, file, name) for name in members}


def _map(file: Path) -> Array:
    with _unreadable(f"{shown_path(file)} is no array file"):
        with file.open("rb") as opened:
            needed = _announced(opened)
            _check_bytes(needed, file.stat().st_size - opened.tell())
        mapped: Array = np.load(file, mmap_mode="r" if needed else None, allow_pickle=False)
        return mapped


def _inflate(file: Path, member: str) -> Array:
    name = quoted(member.removesuffix(".npy"))
    with _unreadable(f"array {name} of {shown_path(file)} cannot be read"), zipfile.ZipFile(file) as archive:
        entry = archive.getinfo(member)
        with archive.open(entry) as opened:
            needed = _announced(opened)
            _check_bytes(needed, entry.file_size - opened.tell())
        if entry.compress_type == zipfile.ZIP_STORED:
            _check_bytes(needed, file.stat().st_size)
        elif needed > MOST_INFLATED:
            raise ValueError(
                f"it is compressed and has {needed:,} bytes when it is inflated, more than {MOST_INFLATED:,}; "
                "an npy file or numpy.savez has no such limit"
            )
        with archive.open(entry) as opened:
            array: Array = npy.read_array(opened, allow_pickle=False)
        return array


def _announced(opened: IO[bytes]) -> int:
    """Return how many bytes of numbers or text the header of an array announces."""
    version = npy.read_magic(opened)
    readers: dict[Any, Any] = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the format, expected 1.0 or 2.0")
    shape, _, dtype = readers[version](opened)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read because they could run code")
    if dtype.names is not None:
        raise ValueError("an array with named fields, expected numbers or text")
    if any(length < 0 for length in shape):
        raise ValueError(f"a shape of {shape}")
    return int(math.prod(shape)) * int(dtype.itemsize)


def _check_bytes(needed: int, there: int) -> None:
    if needed > there:
        raise ValueError(f"its header announces {needed:,} bytes, and {max(there, 0):,} are there")


@contextmanager
def _unreadable(problem: str) -> Iterator[None]:
    """Turn whatever NumPy and zipfile raise for damaged files, which have no class in common, into a DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        remedy = "Write it again, as numbers or text"
        raise DataError(message(CALL, "data", f"{problem} ({first_line(error)})", remedy)) from None
