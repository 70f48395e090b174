"""The machine and the versions behind a record, and the number of threads."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xent
from xent.errors import ArgumentError, MissingDependencyError, message

PEERS = ("liger-kernel", "cut-cross-entropy", "quack-kernels")
PACKAGES = ("torch", "numpy", "numba", "triton", "scikit-learn", *PEERS)
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""With this variable at 1 torch asks the system for huge pages. It reads it once, at its first large tensor."""


def describe(command: str, threads: int) -> dict[str, Any]:
    """Date, command, machine, versions and threads, as a record has them at its top."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "threads": threads,
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "memory_bytes": memory_bytes("MemTotal"),
            "system": f"{platform.system()} {platform.release()}",
            "huge_pages": _huge_pages(),
            "torch_asks_for_huge_pages": os.environ.get(HUGE_PAGES) == "1",
        },
        "versions": {
            "python": platform.python_version(),
            "xent": xent.__version__,
            **{package: found for package in PACKAGES if (found := _version(package))},
        },
    }


def require_torch() -> None:
    """MissingDependencyError if there is no torch."""
    if importlib.util.find_spec("torch") is None:
        remedy = "pip install 'xent[torch]'"
        raise MissingDependencyError(message("bench", "", "the benchmark needs torch, which is not installed", remedy))


def answer_of(module: str, *arguments: str, what: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The JSON that `python -m module` prints last, in a process of its own; RuntimeError saying what failed."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if done.returncode != 0:
        raise RuntimeError(f"{what} failed:\n{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def ask_for_huge_pages(wanted: bool) -> None:
    """Let torch allocate with huge pages; possible only before torch is imported."""
    if not wanted or os.environ.get(HUGE_PAGES) == "1":
        return
    if "torch" in sys.modules:
        remedy = f"Set {HUGE_PAGES}=1 in the environment of the process"
        raise ArgumentError(message("bench", "huge_pages", "torch is imported already, and no longer asks", remedy))
    os.environ[HUGE_PAGES] = "1"


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """The same number of threads for torch, for the libraries under NumPy, and for ours; restored at the end."""
    if threads < 1:
        found = f"found {threads}, expected 1 or more"
        raise ArgumentError(message("bench", "threads", found, "Take the number of cores"))
    import torch
    from threadpoolctl import threadpool_limits

    from xent.backends.cpu.threads import get_num_threads, set_num_threads

    before = torch.get_num_threads(), get_num_threads()
    torch.set_num_threads(threads)
    set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(before[0])
        set_num_threads(before[1])


class Others:
    """How much of the processor other processes used since this object was made: what disturbs a measurement.

    The system counts the time that all processes ran, and that this one and its finished children ran; what remains is
    the others', as a share of all cores.
    """

    def __init__(self) -> None:
        self._start = self._counted()

    def share(self) -> float | None:
        """A share of the time of all cores, between 0 and 1; None where the system does not tell."""
        now = self._counted()
        if now is None or self._start is None:
            return None
        everything, busy, own = (after - before for after, before in zip(now, self._start, strict=True))
        return round(min(1.0, max(0.0, (busy - own) / everything)), 3) if everything > 0 else 0.0

    @staticmethod
    def _counted() -> tuple[float, float, float] | None:
        try:
            ticks = [int(word) for word in Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:9]]
        except (OSError, ValueError, IndexError):
            return None
        idle = ticks[3] + ticks[4]
        per_second = os.sysconf("SC_CLK_TCK")
        return sum(ticks) / per_second, (sum(ticks) - idle) / per_second, sum(os.times()[:4])


def memory_bytes(which: str) -> int | None:
    """MemTotal or MemAvailable, where the system tells it."""
    return _kilobytes(Path("/proc/meminfo"), which)


def process_bytes(which: str) -> int | None:
    """VmRSS (memory now) or VmHWM (its peak) of this process, where the system tells it."""
    return _kilobytes(Path("/proc/self/status"), which)


def _kilobytes(path: Path, which: str) -> int | None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(which + ":")), None)


def processor() -> str:
    """Name, family and model of the processor, and the widest vectors that it has."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    name = facts.get("model name", platform.machine())
    if "cpu family" in facts:
        name += f" (family {facts['cpu family']}, model {facts.get('model', '?')})"
    flags = facts.get("flags", "").split()
    widest = next((label for flag, label in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), "")
    return f"{name}, {widest}" if widest else name


def _huge_pages() -> str | None:
    """The system's rule for huge pages: always, madvise (for who asks) or never."""
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="utf-8")
    except OSError:
        return None
    return text.partition("[")[2].partition("]")[0] or None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
