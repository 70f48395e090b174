"""Compiled kernels on disk: one file for each kernel and signature, and a lock so that one process compiles it.

The name of a file is a hash of all that its content depends on, so a file is never stale, and two signatures never
share one. It is written under a temporary name and then renamed: readers see all of it or nothing.

What is loaded is run as machine code. So a file counts only if it belongs to this user (or to root) and nobody else may
write to it, and if its content has the checksum at its head; files are made with the rights 0600, whatever the umask
says. Any other file is ignored, and replaced by what is compiled in its place; `untrusted` names those that cannot be.

A process that finds no file takes the lock of that file before it compiles; others that need the same kernel wait for
it and then load the result. The lock is the operating system's (`flock`), which releases it when a process dies, and a
process waits for PATIENCE seconds at most, after which it compiles the kernel itself. Where there is no such lock
(Windows, some network file systems, a folder that cannot be written) each process compiles for itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import stat
import time
import uuid
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

HEAD = b"xent kernel 1\n"
"""The first bytes of a file; the SHA-256 of the rest follows."""
DIGEST_SIZE = 32
OTHERS_MAY_WRITE = 0o022

PATIENCE = 300.0  # seconds; a kernel takes 5 to 60 to compile
PAUSE = 0.05  # seconds between two attempts to take a lock


@cache
def _digest_of_sources(folders: tuple[Path, ...]) -> bytes:
    digest = hashlib.sha256()
    for source in sorted({source for folder in folders for source in folder.glob("*.py")}):
        digest.update(source.read_bytes())
    return digest.digest()


class KernelFiles:
    """The files of one kernel. Whatever is wrong with one costs a compilation, and it is replaced.

    `sources` are the folders of the Python files that the machine code depends on, and `compiler` says what made it.
    """

    def __init__(self, folder: Path, prefix: str, sources: tuple[Path, ...], compiler: str) -> None:
        self.folder = folder
        self.prefix = prefix
        self.sources = sources
        self.compiler = compiler

    def path(self, key: object) -> Path:
        """Return the file of an entry, named after all that its content depends on."""
        depends_on = f"{self.compiler} {key!r}".encode() + _digest_of_sources(self.sources)
        return self.folder / f"{self.prefix}.{hashlib.sha256(depends_on).hexdigest()[:20]}.nbc"

    def load(self, key: object) -> Any:
        """Return the entry, or None when there is none that can be trusted and read."""
        with contextlib.suppress(Exception):  # unpickling can raise any
            content = _content(self.path(key))
            return None if content is None else pickle.loads(content)
        return None

    def save(self, key: object, data: object) -> None:
        """Write the entry."""
        path = self.path(key)
        part = path.with_suffix(f".{uuid.uuid4().hex[:16]}")
        content = pickle.dumps(data)
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(HEAD + hashlib.sha256(content).digest() + content)
            os.replace(part, path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def flush(self) -> None:
        """Delete the entries of this kernel."""
        for path in self.folder.glob(f"{self.prefix}.*.nbc"):
            path.unlink(missing_ok=True)


def untrusted(folder: Path) -> dict[str, str]:
    """Return the compiled kernels of a folder that are ignored, and why."""
    found = {}
    for path in sorted(folder.glob("*.nbc")):
        with contextlib.suppress(OSError):
            reason = _distrust(path.lstat())
            if reason:
                found[path.name] = reason
    return found


def make_private(folder: Path) -> None:
    """Take the rights of others to a folder that was made for kernels alone, whatever the umask said."""
    with contextlib.suppress(OSError):
        about = folder.stat()
        is_own = hasattr(os, "getuid") and about.st_uid == os.getuid() and folder.name != "__pycache__"
        if is_own and about.st_mode & 0o077:
            folder.chmod(0o700)


def _content(path: Path) -> bytes | None:
    """Return what was saved to a file; None if there is no such file, or it is not what was saved."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        if _distrust(os.fstat(descriptor)):
            return None
        data = file.read()
    digest, content = data[len(HEAD) : len(HEAD) + DIGEST_SIZE], data[len(HEAD) + DIGEST_SIZE :]
    if not data.startswith(HEAD) or hashlib.sha256(content).digest() != digest:
        return None
    return content


def _distrust(about: os.stat_result) -> str:
    """Why a file is not loaded; empty if it may be."""
    if not stat.S_ISREG(about.st_mode):
        return "it is no regular file"
    if hasattr(os, "getuid") and about.st_uid not in (os.getuid(), 0):
        return "it belongs to another user"
    if os.name == "posix" and about.st_mode & OTHERS_MAY_WRITE:
        return "others may write to it"
    return ""


class FileLock:
    """An exclusive lock on a file that is made for it, held by one process at a time.

    `acquire` returns whether it was taken within `patience` seconds; if not, the caller works without it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, patience: float) -> bool:
        """Wait for the lock; False if it cannot be had."""
        until = time.monotonic() + patience
        while fcntl is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            except OSError:
                return False
            if not _locked(descriptor, until):
                os.close(descriptor)
                return False
            if _is_file(self.path, descriptor):
                self._descriptor = descriptor
                return True
            os.close(descriptor)  # whoever held the lock before has deleted this file
        return False

    def release(self) -> None:
        """Give the lock up, and delete its file; nothing happens if it is not held."""
        if self._descriptor is None or fcntl is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        with contextlib.suppress(OSError):
            self.path.unlink()
        with contextlib.suppress(OSError):
            # Not by closing alone: a process forked in the meantime has the file open too.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _locked(descriptor: int, until: float) -> bool:
    """Lock an open file, as soon as it is free; False at the time `until`, or where files cannot be locked."""
    assert fcntl is not None
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(PAUSE)
        except OSError:  # a file system without locks
            return False
        else:
            return True


def _is_file(path: Path, descriptor: int) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False
