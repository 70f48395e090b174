"""The machine and the versions behind a record, the number of threads, and the load by other processes."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xent
from xent.errors import ArgumentError, MissingDependencyError, message

PACKAGES = ("torch", "numpy", "numba", "triton", "scikit-learn")
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""With this variable at 1 torch asks the system for huge pages. It reads it once, at its first large tensor."""


def describe(command: str, threads: int, packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """Date, command, machine, versions and threads, the head of every record."""
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
            **{package: installed for package in packages if (installed := _version(package))},
        },
    }


def require_torch() -> None:
    """MissingDependencyError unless torch is installed."""
    if importlib.util.find_spec("torch") is None:
        remedy = "pip install 'xent[torch]'"
        raise MissingDependencyError(message("bench", "", "the benchmark needs torch, which is not installed", remedy))


@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """The same number of threads for torch, for NumPy's libraries and for the kernels; restored at the end."""
    if threads < 1:
        problem = f"found {threads}, expected 1 or more"
        raise ArgumentError(message("bench", "threads", problem, "Take the number of cores"))
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


class OtherProcesses:
    """The share of the processor that other processes used since this object was made: the noise of a measurement.

    The system counts the time of all processes, and of this one with its finished children; the difference is that of
    the others, as a share of all cores.
    """

    def __init__(self) -> None:
        self._start = self._seconds()

    def share(self) -> float | None:
        """A share of the time of all cores, between 0 and 1; None where the system does not count it."""
        now = self._seconds()
        if now is None or self._start is None:
            return None
        total, busy, own = (after - before for after, before in zip(now, self._start, strict=True))
        return round(min(1.0, max(0.0, (busy - own) / total)), 3) if total > 0 else 0.0

    @staticmethod
    def _seconds() -> tuple[float, float, float] | None:
        """Of all cores, of all processes, of this process."""
        try:
            ticks = [int(word) for word in Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:9]]
        except (OSError, ValueError, IndexError):
            return None
        idle = ticks[3] + ticks[4]
        per_second = os.sysconf("SC_CLK_TCK")
        return sum(ticks) / per_second, (sum(ticks) - idle) / per_second, sum(os.times()[:4])


def memory_bytes(field: str) -> int | None:
    """MemTotal or MemAvailable; None where the system has no /proc/meminfo."""
    return kilobytes(Path("/proc/meminfo"), field)


def kilobytes(path: Path, field: str) -> int | None:
    """The bytes in a line `field: 123 kB` of a file of /proc."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":")), None)


def processor() -> str:
    """Name, family and model of the processor, and its widest vectors."""
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
    """The system's rule for huge pages: always, madvise (on request) or never."""
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
