"""The lock of a kernel on disk: one process compiles it, others wait and load it, and nobody waits for ever."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from numba.core.errors import TypingError

from xent.backends.cpu import disk_cache
from xent.backends.cpu.compilation import kernel
from xent.backends.cpu.disk_cache import FileLock

needs_locks = pytest.mark.skipif(disk_cache.fcntl is None, reason="this system has no flock")


@kernel
def add_one(row):
    for i in range(len(row)):
        row[i] += 1


@pytest.fixture
def lock(tmp_path):
    return FileLock(tmp_path / "kernel.lock")


# A kernel whose compilation takes a while longer, and a line for each compilation.
PROGRAM = """
import time
import numpy as np
from xent.backends.cpu.accumulation import add
from xent.backends.cpu.disk_cache import KernelFiles
from xent.backends.cpu.threads import over_rows

save = KernelFiles.save
def save_slowly(*arguments):
    print("compiled")
    time.sleep(1)
    save(*arguments)
KernelFiles.save = save_slowly

total = np.full(1000, 0.5)
over_rows(add, (np.arange(1000.0), total, False), len(total), 2)
print(total.sum())
"""


@needs_locks
def test_a_kernel_is_compiled_once_by_processes_that_start_together(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = [process.communicate(timeout=240)[0].split() for process in processes]
    assert sorted(answer[:-1] for answer in answers) == [[], [], ["compiled"]]
    assert {answer[-1] for answer in answers} == {"500000.0"}
    assert not list(tmp_path.rglob("*.lock"))


@needs_locks
def test_the_lock_of_a_process_that_was_killed_is_free(lock):
    program = (
        "import sys, time; from pathlib import Path; from xent.backends.cpu.disk_cache import FileLock\n"
        "print(FileLock(Path(sys.argv[1])).acquire(0), flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(lock.path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "True\n"
    assert not lock.acquire(0.1)
    holder.kill()
    assert lock.acquire(60)
    holder.communicate()
    lock.release()


@needs_locks
def test_waiting_ends(lock):
    other = FileLock(lock.path)
    assert lock.acquire(0)
    start = time.monotonic()
    assert not other.acquire(0.3)
    assert 0.3 <= time.monotonic() - start < 30
    lock.release()
    lock.release()
    assert other.acquire(0)
    other.release()
    assert not lock.path.exists()


@needs_locks
def test_one_at_a_time(lock):
    """Several threads, each with a lock of its own: they never hold it together, and each gets it in the end."""
    inside, turns = [], []

    def work():
        own = FileLock(lock.path)
        for _ in range(5):
            assert own.acquire(60)
            inside.append(own)
            time.sleep(0.002)
            turns.append(len(inside))
            inside.remove(own)
            own.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert turns == [1] * 20


def test_without_locks_each_process_compiles(monkeypatch, lock, tmp_path):
    monkeypatch.setattr(disk_cache, "fcntl", None)
    assert not lock.acquire(0)
    lock.release()
    monkeypatch.setattr(add_one._cache.files, "folder", tmp_path)
    row = np.zeros(3)
    add_one(row)
    assert row.tolist() == [1.0, 1.0, 1.0]


@needs_locks
@pytest.mark.parametrize("error", [OSError, BlockingIOError])
def test_a_file_system_without_locks_is_no_error(monkeypatch, lock, error):
    def refuse(descriptor, operation):
        raise error

    monkeypatch.setattr(disk_cache.fcntl, "flock", refuse)
    assert not lock.acquire(0.1)


def test_a_folder_that_cannot_be_made_has_no_lock(tmp_path):
    (tmp_path / "file").write_text("")
    assert not FileLock(tmp_path / "file" / "kernel.lock").acquire(1)


@needs_locks
def test_a_compilation_that_fails_gives_up_the_lock(monkeypatch, tmp_path):
    monkeypatch.setattr(add_one._cache.files, "folder", tmp_path)
    with pytest.raises(TypingError):
        add_one("text")
    assert not list(tmp_path.iterdir())


@needs_locks
def test_waiting_for_a_process_that_hangs_ends_in_a_compilation(monkeypatch, tmp_path):
    monkeypatch.setattr(add_one._cache.files, "folder", tmp_path)
    monkeypatch.setattr(disk_cache, "PATIENCE", 0.2)
    acquire, held = FileLock.acquire, []

    def acquire_second(lock, patience):
        held.append(FileLock(lock.path))
        assert acquire(held[-1], 0)
        return acquire(lock, patience)

    monkeypatch.setattr(FileLock, "acquire", acquire_second)
    row = np.zeros(3, np.float32)
    add_one(row)
    assert row.tolist() == [1.0, 1.0, 1.0]
    assert len(list(tmp_path.glob("*.nbc"))) == 1
    held[0].release()
