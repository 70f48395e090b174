"""Peak memory of one contestant, in a process of its own.

    python -m xent.benchmark.memory REQUEST     REQUEST is JSON, and so is the answer

The process makes the inputs, calls once (which loads and compiles), gives back to the system what is free, and notes
the memory that it holds. Then it calls again: its peak minus what it held before is what the call needs beside the
logits, its result included. Linux forgets earlier peaks when asked (clear_refs); where that is not allowed, the peak of
the whole process is all there is, and `method` says so.
"""

from __future__ import annotations

import ctypes
import json
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xent.benchmark.machine import answer_of, limited, process_bytes
from xent.benchmark.peers import CONTESTANTS, NotAvailableError, make_inputs
from xent.benchmark.shapes import Shape
from xent.memory import release

PEAK_SINCE_RESET, PEAK_OF_PROCESS = "peak since inputs and warm-up", "peak of the process"


def peak_bytes(contestant: str, shape: Shape, dtype: str, threads: int) -> dict[str, Any]:
    """Bytes that each measure of the contestant needs beside the inputs; empty if it cannot take part."""
    request = {"contestant": contestant, "shape": asdict(shape), "dtype": dtype, "threads": threads}
    what = f"measuring the memory of {contestant} on {shape.name}"
    return answer_of("xent.benchmark.memory", json.dumps(request), what=what)


def _measured(request: dict[str, Any]) -> dict[str, Any]:
    shape = Shape(**request["shape"])
    (contestant,) = (c for c in CONTESTANTS if c.name == request["contestant"])
    inputs = make_inputs(shape, request["dtype"])
    with limited(request["threads"]):
        try:
            calls = contestant.prepare(inputs)
        except NotAvailableError:
            return {}
        for call in calls.values():
            call()
        can_reset = _reset_peak()
        answer: dict[str, Any] = {measure: _peak_of(call, can_reset) for measure, call in calls.items()}
    return {**answer, "method": PEAK_SINCE_RESET if can_reset else PEAK_OF_PROCESS}


def _peak_of(call: Callable[[], Any], can_reset: bool) -> int:
    _give_back()
    if can_reset:
        _reset_peak()
        before = process_bytes("VmRSS") or 0
        call()
        return max(0, (process_bytes("VmHWM") or 0) - before)
    held = process_bytes("VmRSS") or _process_peak()
    call()
    return max(0, _process_peak() - held)


def _process_peak() -> int:
    """ru_maxrss, which Linux counts in kilobytes and macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _reset_peak() -> bool:
    """Ask Linux to forget the peak so far."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _give_back() -> None:
    """Free memory that xent and the C library keep for later goes to the system, so that it counts when it is used."""
    release()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


if __name__ == "__main__":
    print(json.dumps(_measured(json.loads(sys.argv[1]))))
