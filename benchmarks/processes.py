"""Measurements in a process of their own, and the memory of a process."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xent.bench.machine import kilobytes
from xent.memory import release

ROOT = Path(__file__).parents[1]


def command_of(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this folder."""
    return [sys.executable, "-m", f"benchmarks.{module}", *arguments]


def environment_of(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of such a command, in which this folder can be imported."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **(extra or {})}


def answer_of(
    module: str, *arguments: str, description: str, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The last line that a module of this folder prints, which is JSON; RuntimeError if the process fails."""
    command = command_of(module, *arguments)
    done = subprocess.run(command, capture_output=True, text=True, env=environment_of(environment))
    if done.returncode != 0:
        raise RuntimeError(f"{description} failed:\n{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def process_bytes(field: str) -> int | None:
    """VmRSS (memory now) or VmHWM (its peak) of this process; None where the system has no /proc."""
    return kilobytes(Path("/proc/self/status"), field)


def peak_of(call: Callable[[], Any]) -> int:
    """Bytes at the peak of a call beside what the process held before it, the result included.

    Where the peak cannot be reset, it is that of the whole process, which is less than the truth if an earlier one was
    higher.
    """
    release_memory()
    if reset_peak():
        before = process_bytes("VmRSS") or 0
        call()
        return max(0, (process_bytes("VmHWM") or 0) - before)
    before = process_bytes("VmRSS") or _process_peak()
    call()
    return max(0, _process_peak() - before)


def reset_peak() -> bool:
    """Reset the peak memory of this process (Linux); whether that is allowed."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def release_memory() -> None:
    """Return to the system what xent and the C library keep for later, so that its next use counts."""
    release()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _process_peak() -> int:
    """ru_maxrss, in kilobytes on Linux and in bytes on macOS."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
