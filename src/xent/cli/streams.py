"""Standard input and pipes as files: read once, to a file that goes away, under a name that says what it holds."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import shutil
import stat
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from xent.errors import DataError
from xent.names import shown_path

BEGINNINGS = {
    b"PAR1": ".parquet",
    b"ARROW1": ".arrow",
    b"\xff\xff\xff\xff": ".arrow",
    b"\x93NUMPY": ".npy",
    b"PK\x03\x04": ".zip",
    b"\x1f\x8b": ".gz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"BZh": ".bz2",
    b"\xfd7zXZ": ".xz",
}
"""How files begin that are no plain text, and the ending of their names."""
COMPRESSIONS = (".zip", ".gz", ".zst", ".bz2", ".xz")
OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@contextmanager
def input_files(*names: str) -> Iterator[list[str]]:
    """Yield the paths of inputs: '-' and pipes are read to files of their own, which go away afterwards."""
    with ExitStack() as stack:
        paths, folder = [], None
        for number, name in enumerate(names):
            if name != "-" and not _is_stream(name):
                paths.append(name)
                continue
            if name == "-" and "-" in names[:number]:
                raise DataError("-: standard input holds one file only. Name the other one.")
            folder = folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="xent-"))
            paths.append(_kept(name, os.path.join(folder, str(number))))
        yield paths


def _is_stream(name: str) -> bool:
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def _kept(name: str, path: str) -> str:
    """Write a stream to a file whose ending says what it holds; return its path."""
    shown = "standard input" if name == "-" else shown_path(name)
    try:
        with open(path, "wb") as file, sys.stdin.buffer if name == "-" else open(name, "rb") as stream:
            shutil.copyfileobj(stream, file)
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise DataError(f"{shown} cannot be read ({error.strerror}). Check what writes it.") from None
    if not start:
        raise DataError(f"{shown} is empty. Check what writes it.")
    kept = path + _ending(path, start)
    os.rename(path, kept)
    return kept


def _ending(path: str, start: bytes) -> str:
    """The ending of a file's name by its first bytes, under a compression by those that are inflated."""
    ending = next((ending for beginning, ending in BEGINNINGS.items() if start.startswith(beginning)), "")
    if not ending:
        return _ending_of_text(start)
    if ending == ".zip":  # a workbook and an archive of arrays are archives too
        return _ending_of_archive(path)
    if ending in OPENERS:
        with contextlib.suppress(OSError, EOFError, ValueError, lzma.LZMAError, zlib.error):
            return _ending_of_text(OPENERS[ending](path).read(512)) + ending
    return f".csv{ending}" if ending in COMPRESSIONS else ending


def _ending_of_text(start: bytes) -> str:
    return {b"[": ".json", b"{": ".jsonl"}.get(start.lstrip()[:1], ".csv")


def _ending_of_archive(path: str) -> str:
    names = [""]
    with contextlib.suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(path) as archive:
        names = archive.namelist() or names
    if "[Content_Types].xml" in names:
        return ".xlsx"
    return ".npz" if names[0].endswith(".npy") else ".csv.zip"
