"""Peak memory of one implementation of the loss of logits, in a process of its own.

    python -m benchmarks.logits_memory REQUEST     REQUEST is JSON, and so is the answer

The process makes the inputs, calls once (which loads and compiles), releases free memory and notes what it holds. Then
it calls again: its peak minus that is what the call needs beside the logits, its result included. Linux resets peaks on
request (clear_refs); where that is not allowed, `method` says that the peak is the process's.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from benchmarks.processes import answer_of, peak_of, reset_peak
from xent.bench.machine import limited_threads
from xent.bench.peers import IMPLEMENTATIONS, NotAvailableError, make_inputs
from xent.bench.shapes import Shape

PEAK_SINCE_RESET, PEAK_OF_PROCESS = "peak since inputs and warm-up", "peak of the process"


def peak_bytes(implementation: str, shape: Shape, dtype: str, threads: int) -> dict[str, Any]:
    """Bytes that each measure of the implementation needs beside the inputs; empty if it is not available."""
    request = {"implementation": implementation, "shape": asdict(shape), "dtype": dtype, "threads": threads}
    description = f"measuring the memory of {implementation} on {shape.name}"
    return answer_of("logits_memory", json.dumps(request), description=description)


def _measure(request: dict[str, Any]) -> dict[str, Any]:
    (implementation,) = (each for each in IMPLEMENTATIONS if each.name == request["implementation"])
    inputs = make_inputs(Shape(**request["shape"]), request["dtype"])
    with limited_threads(request["threads"]):
        try:
            calls = implementation.prepare(inputs)
        except NotAvailableError:
            return {}
        for call in calls.values():
            call()
        answer: dict[str, Any] = {measure: peak_of(call) for measure, call in calls.items()}
    return {**answer, "method": PEAK_SINCE_RESET if reset_peak() else PEAK_OF_PROCESS}


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1]))))
