"""The files of compiled kernels, which are machine code that a process will run: whose they are, and damaged ones."""

from __future__ import annotations

import hashlib
import os
import random
import stat

import numpy as np
import pytest

from xent.backends.cpu import disk_cache
from xent.backends.cpu.compilation import kernel

posix = pytest.mark.skipif(os.name != "posix", reason="rights of files as POSIX has them")


def add_one(row):
    for i in range(len(row)):
        row[i] += 1


class Process:
    """What a new process does: it makes the dispatcher anew, and loads or compiles its machine code."""

    def __init__(self, folder):
        self.function = kernel(add_one)
        self.files = self.function._cache.files
        self.files.folder = folder

    def __call__(self):
        row = np.zeros(5)
        self.function(row)
        return row.tolist()


@pytest.fixture
def folder(tmp_path):
    assert Process(tmp_path)() == [1.0] * 5
    return tmp_path


def only_file(folder):
    (path,) = folder.glob("*.nbc")
    return path


def compilations(process):
    """How many signatures a process has compiled; the others were loaded."""
    return sum(process.function.stats.cache_misses.values())


def test_what_was_saved_is_loaded(folder):
    process = Process(folder)
    assert process() == [1.0] * 5
    assert compilations(process) == 0


def damaged(content: bytes, generator: random.Random) -> bytes:
    """Content with a bit changed, a part cut out, doubled, zeroed or replaced, or none at all."""
    kind = generator.choice(["bit", "truncated", "removed", "doubled", "zeros", "noise", "empty", "another", "head"])
    first = generator.randrange(len(content))
    last = min(len(content), first + generator.randint(1, 200))
    if kind == "bit":
        changed = bytearray(content)
        changed[first] ^= 1 << generator.randrange(8)
        return bytes(changed)
    parts = {
        "truncated": content[:first],
        "removed": content[:first] + content[last:],
        "doubled": content[:last] + content[first:],
        "zeros": content[:first] + bytes(last - first) + content[last:],
        "noise": content[:first] + generator.randbytes(last - first) + content[last:],
        "empty": b"",
        "another": generator.randbytes(500),
        "head": disk_cache.HEAD + generator.randbytes(64),
    }
    return parts[kind]


@pytest.mark.parametrize("damages", [60, pytest.param(400, marks=pytest.mark.slow)])
def test_a_damaged_file_is_made_anew(folder, damages):
    """R7: of 40 calls with one damaged file 8 ended in a crash, 1 in an abort, 9 in errors of other libraries."""
    path = only_file(folder)
    whole, generator = path.read_bytes(), random.Random(damages)
    for _ in range(damages):
        content = damaged(whole, generator)
        path.write_bytes(content)
        process = Process(folder)
        assert process() == [1.0] * 5
        if content != whole:
            assert compilations(process) == 1
        assert path.read_bytes().startswith(disk_cache.HEAD)
        assert disk_cache._content(path) is not None, "the file was not repaired"
    assert not list(folder.glob("*.lock"))


def test_content_that_cannot_be_unpickled_is_made_anew(folder):
    """With the right checksum: what another version has saved, say."""
    path = only_file(folder)
    for content in (b"", b"no pickle", b"\x80\x04cposix\nsystem\n.", b"\x80\x05]\x94."):
        path.write_bytes(disk_cache.HEAD + hashlib.sha256(content).digest() + content)
        assert Process(folder)() == [1.0] * 5


@posix
@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602, 0o777])
def test_a_file_that_others_may_write_to_is_ignored(folder, mode):
    path = only_file(folder)
    path.chmod(mode)
    assert disk_cache.untrusted(folder) == {path.name: "others may write to it"}
    process = Process(folder)
    assert process() == [1.0] * 5
    assert compilations(process) == 1
    assert disk_cache.untrusted(folder) == {}, "it was not replaced"
    assert stat.S_IMODE(only_file(folder).stat().st_mode) == 0o600


@posix
def test_a_file_of_another_user_is_ignored(folder, monkeypatch):
    path = only_file(folder)
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    if owner == 0:  # root may do anything anyway, so that its files count
        assert disk_cache.untrusted(folder) == {}
        os.chown(path, 12345, 12345)
    assert disk_cache.untrusted(folder) == {path.name: "it belongs to another user"}
    process = Process(folder)
    assert process() == [1.0] * 5
    assert compilations(process) == 1


@posix
def test_a_link_is_not_followed(folder, tmp_path):
    path, elsewhere = only_file(folder), tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert disk_cache.untrusted(folder) == {path.name: "it is no regular file"}
    process = Process(folder)
    assert process() == [1.0] * 5
    assert compilations(process) == 1
    assert not only_file(folder).is_symlink()


@posix
@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_files_have_the_rights_of_their_user_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        assert Process(tmp_path)() == [1.0] * 5
    finally:
        os.umask(before)
    if umask != 0o777:
        assert stat.S_IMODE(only_file(tmp_path).stat().st_mode) == 0o600


@posix
def test_folders_of_kernels_are_private_but_for_those_of_python(tmp_path):
    for name, mode in (("kernels", 0o700), ("__pycache__", 0o777)):
        folder = tmp_path / name
        folder.mkdir()
        folder.chmod(0o777)
        disk_cache.make_private(folder)
        assert stat.S_IMODE(folder.stat().st_mode) == mode


def test_the_doctor_names_files_that_are_ignored(monkeypatch, folder):
    from xent.backends.cpu import compilation
    from xent.cli import doctor

    path = only_file(folder)
    path.chmod(0o666)
    monkeypatch.setattr(compilation, "cache_folder", lambda: folder)
    assert f"1 files ignored: {path.name} (others may write to it)" in doctor._cache()
