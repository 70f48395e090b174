"""Seconds of the first call: in a new process with empty caches, where kernels are compiled, and in the next one.

    python -m benchmarks.first_call IMPLEMENTATION DTYPE THREADS     prints the seconds as JSON

A process measures the forward of 600 x 1000 logits without a gradient, then forward + backward, after all imports and
after a loss of torch's own.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks.processes import answer_of
from xent.bench import machine
from xent.bench.peers import EAGER, NUMPY, OURS
from xent.bench.run import SCHEMA, Progress
from xent.bench.timing import rounded

COMPILED = f"{EAGER}, compiled"
EMPTY, FILLED = CACHES = ("empty", "filled")
DTYPES = ("float32", "bfloat16")
ROWS, CLASSES = 600, 1000


def run_first_call(
    *,
    implementations: tuple[str, ...] = (OURS, COMPILED, NUMPY),
    dtypes: tuple[str, ...] = DTYPES,
    threads: int = 2,
    command: str = "",
    progress: Progress = lambda description, done, total: None,
) -> dict[str, Any]:
    """Measure the first calls of these implementations twice, the second time with the caches of the first."""
    machine.require_torch()
    record = {
        "record": "xent bench first call",
        "schema": SCHEMA,
        "device": "cpu",
        **machine.describe(command, threads),
    }
    start, others, points = time.perf_counter(), machine.OtherProcesses(), []
    runs = [
        (implementation, dtype) for dtype in dtypes for implementation in implementations if implementation != NUMPY
    ]
    runs += [(NUMPY, "float64")] if NUMPY in implementations else []
    for done, (implementation, dtype) in enumerate(runs):
        progress("first call", done, len(runs))
        with tempfile.TemporaryDirectory() as folder:
            for cache in CACHES:
                seconds = _in_a_process(implementation, dtype, threads, folder)
                points.append({"contestant": implementation, "dtype": dtype, "cache": cache, **seconds})
    progress("first call", len(runs), len(runs))
    seconds_in_all = round(time.perf_counter() - start, 1)
    return {**record, "seconds": seconds_in_all, "share_of_others": others.share(), "points": points}


def _in_a_process(implementation: str, dtype: str, threads: int, folder: str) -> dict[str, Any]:
    arguments = (implementation, dtype, str(threads))
    caches = {"NUMBA_CACHE_DIR": folder, "TORCHINDUCTOR_CACHE_DIR": folder}
    description = f"the first call of {implementation}"
    return answer_of("first_call", *arguments, description=description, environment=caches)


def _measure(implementation: str, dtype: str) -> dict[str, float]:
    import torch
    import torch.nn.functional as F

    import xent.numpy
    from xent.torch import cross_entropy

    logits = torch.randn(ROWS, CLASSES).to(getattr(torch, dtype)).requires_grad_()
    labels = torch.randint(0, CLASSES, (ROWS,))
    torch.autograd.grad(F.cross_entropy(logits, labels), logits)
    if implementation == NUMPY:
        arrays = logits.detach().numpy(), labels.numpy()
        forward = _seconds(lambda: xent.numpy.cross_entropy(*arrays))
        both = _seconds(lambda: xent.numpy.cross_entropy_value_and_grad(*arrays))
        return {"forward": forward, "forward_backward": both}
    loss: Callable[..., torch.Tensor] = cross_entropy if implementation == OURS else torch.compile(F.cross_entropy)
    with torch.no_grad():
        forward = _seconds(lambda: loss(logits, labels))
    return {"forward": forward, "forward_backward": _seconds(lambda: torch.autograd.grad(loss(logits, labels), logits))}


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return rounded(time.perf_counter() - start)


if __name__ == "__main__":
    with machine.limited_threads(int(sys.argv[3])):
        print(json.dumps(_measure(*sys.argv[1:3])))
