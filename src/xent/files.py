"""The one writer: every file that the package writes for its user.

A regular file appears whole or not at all: its text is written to a temporary file beside it, which then takes its
place. Until then an old file is as it was, also when the disk is full. A symbolic link stays, and what it leads to is
replaced, or made if it is not there yet. An old file keeps its permission bits. What is no file, but a terminal, a
pipe, a null device or an open descriptor (`/dev/stdout`, `/dev/fd/3`, `>(gzip)`), is written to and never replaced.
A file with several names (hard links) is replaced under the one that was given.

`check_writable` is for before the work: it refuses whatever would fail afterwards.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from xent.errors import DataError
from xent.names import shown_path, visible

STANDARD_OUTPUT = 1
MOST_LINKS = 40
"""Symbolic links that are followed, as many as Linux follows."""

REMEDY = "Name a file in a folder that exists and may be written"

PathLike = str | os.PathLike[str]


def check_writable(path: PathLike, option: str = "") -> None:
    """Raise DataError, which says why and names the option, unless this can be written; nothing is changed."""
    with _refused(path, option):
        _destination(path).check()


def make_folder(path: PathLike, option: str = "") -> None:
    """Make a folder, and those above it, unless it is there; DataError if that fails."""
    with _refused(path, option, "made", "Name another folder"):
        os.makedirs(path, exist_ok=True)


def write_text(path: PathLike, text: str) -> Path:
    """Write one file, as `write_together` does."""
    return write_together({path: text})[0]


def write_together(contents: Mapping[PathLike, str | bytes]) -> list[Path]:
    """Write texts as UTF-8 and bytes as they are, all files or none; DataError if that fails. Return their paths."""
    staged: list[tuple[PathLike, str, str]] = []
    streams: list[tuple[PathLike, _Stream, bytes]] = []
    try:
        for path, content in contents.items():
            # A lone surrogate is no reason to lose a report.
            data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
            with _refused(path):
                destination = _destination(path)
                if isinstance(destination, _Stream):
                    streams.append((path, destination, data))
                else:
                    staged.append((path, destination.stage(data), destination.path))
        for path, stream, data in streams:
            with _refused(path):
                stream.write(data)
        while staged:
            path, temporary, target = staged[0]
            with _refused(path):
                os.replace(temporary, target)
            staged.pop(0)
    finally:
        for _, temporary, _ in staged:
            with suppress(OSError):
                os.unlink(temporary)
    return [Path(path) for path in contents]


def is_standard_output(path: PathLike) -> bool:
    """Return whether this names the standard output of this process, as `/dev/stdout` does."""
    try:
        return _descriptor_of(os.fspath(path)) == STANDARD_OUTPUT
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class _File:
    """A regular file, or one that is not there yet; `path` has no symbolic links."""

    path: str
    old: os.stat_result | None

    def check(self) -> None:
        """Make and remove a file in the folder: permissions alone do not say whether that works."""
        if self.old is not None and not os.access(self.path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with tempfile.TemporaryFile(dir=os.path.dirname(self.path)):
            pass

    def stage(self, data: bytes) -> str:
        """Write the temporary file, which nobody may read who may not read the old one; return its path."""
        temporary = os.path.join(os.path.dirname(self.path), f".xent-{secrets.token_hex(8)}.partial")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        descriptor = os.open(temporary, flags, 0o666 if self.old is None else 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
            if self.old is not None:
                if hasattr(os, "chown"):
                    with suppress(PermissionError):  # only root may give files away
                        os.chown(temporary, self.old.st_uid, self.old.st_gid)
                os.chmod(temporary, stat.S_IMODE(self.old.st_mode))
        except BaseException:
            os.unlink(temporary)
            raise
        return temporary


@dataclass(frozen=True)
class _Stream:
    """A terminal, pipe or character device; with `descriptor`, one that is already open."""

    path: str
    descriptor: int | None = None

    def check(self) -> None:
        if self.descriptor is None:
            writable = os.access(self.path, os.W_OK)
        else:
            import fcntl  # only systems with /dev/fd come here, and these have it

            mode = fcntl.fcntl(self.descriptor, fcntl.F_GETFL) & os.O_ACCMODE
            writable = mode != os.O_RDONLY
        if not writable:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def write(self, data: bytes) -> None:
        """Write to it; a descriptor is not opened again, because that would begin at the start of its file."""
        self.check()
        if sys.stdout is not None:
            sys.stdout.flush()  # what was printed before stays before
        descriptor = os.open(self.path, os.O_WRONLY) if self.descriptor is None else os.dup(self.descriptor)
        with open(descriptor, "wb") as file:
            file.write(data)


def _destination(path: PathLike) -> _File | _Stream:
    """Return what a path leads to; OSError or ValueError if it leads nowhere."""
    text = os.fspath(path)
    if not text:
        raise OSError(errno.EINVAL, "the name is empty")
    descriptor = _descriptor_of(text)
    if descriptor is not None:
        return _Stream(text, descriptor)
    try:
        found = os.stat(text)
    except FileNotFoundError:
        if text.endswith(os.sep):
            raise IsADirectoryError(errno.EISDIR, "it names a folder") from None
        return _File(os.path.realpath(text), None)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if stat.S_ISREG(found.st_mode):
        return _File(os.path.realpath(text), found)
    if stat.S_ISFIFO(found.st_mode) or stat.S_ISCHR(found.st_mode):
        return _Stream(text)
    raise OSError(errno.EINVAL, "it is a disk or a socket")


def _descriptor_of(path: str) -> int | None:
    """Return the open descriptor of this process that a path leads to, None for other paths."""
    own = re.compile(rf"/dev/fd|/proc/{os.getpid()}(/task/\d+)?/fd")
    for _ in range(MOST_LINKS):
        folder, name = os.path.split(path)
        if name.isascii() and name.isdecimal() and own.fullmatch(os.path.realpath(folder)):
            return int(name)
        if not os.path.islink(path):
            return None
        path = os.path.join(folder, os.readlink(path))
    return None


@contextmanager
def _refused(path: PathLike, option: str = "", done: str = "written", remedy: str = REMEDY) -> Iterator[None]:
    """Turn an error of the system, or of a name that is none (with a NUL byte), into a DataError."""
    try:
        yield
    except (OSError, ValueError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        name = f"{option} {shown_path(path) or repr('')}".lstrip()
        raise DataError(f"{name}: cannot be {done} ({visible(reason)}). {remedy}.") from error
