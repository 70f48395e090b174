"""How long the first call takes: in a new process with empty caches, where kernels are compiled, and in the next one.

    python -m xent.benchmark.first_call CONTESTANT DTYPE THREADS     prints the seconds as JSON

Of each contestant a process measures the forward of 600 x 1000 logits without a gradient, then forward + backward.
Everything is imported before, and torch has made a loss of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from xent.benchmark import machine
from xent.benchmark.peers import EAGER, OURS
from xent.benchmark.run import SCHEMA, Progress

COMPILED = f"{EAGER}, compiled"
EMPTY, FILLED = CACHES = ("empty", "filled")
DTYPES = ("float32", "bfloat16")
ROWS, CLASSES = 600, 1000


def run_first_call(
    *,
    contestants: tuple[str, ...] = (OURS, COMPILED),
    dtypes: tuple[str, ...] = DTYPES,
    threads: int = 2,
    command: str = "",
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Measure the first calls of these contestants, twice each, the second time with the caches of the first."""
    machine.require_torch()
    record = {
        "record": "xent bench first call",
        "schema": SCHEMA,
        "device": "cpu",
        **machine.describe(command, threads),
    }
    start, others, points = time.perf_counter(), machine.Others(), []
    runs = [(contestant, dtype) for dtype in dtypes for contestant in contestants]
    for done, (contestant, dtype) in enumerate(runs):
        progress("first call", done, len(runs))
        with tempfile.TemporaryDirectory() as folder:
            for cache in CACHES:
                seconds = _in_a_process(contestant, dtype, threads, folder)
                points.append({"contestant": contestant, "dtype": dtype, "cache": cache, **seconds})
    progress("first call", len(runs), len(runs))
    seconds_in_all = round(time.perf_counter() - start, 1)
    return {**record, "seconds": seconds_in_all, "share_of_others": others.share(), "points": points}


def _in_a_process(contestant: str, dtype: str, threads: int, folder: str) -> dict[str, Any]:
    arguments = (contestant, dtype, str(threads))
    caches = {"NUMBA_CACHE_DIR": folder, "TORCHINDUCTOR_CACHE_DIR": folder}
    what = f"the first call of {contestant}"
    return machine.answer_of("xent.benchmark.first_call", *arguments, what=what, environment=caches)


def _measured(contestant: str, dtype: str) -> dict[str, float]:
    import torch
    import torch.nn.functional as F

    from xent.torch import cross_entropy

    logits = torch.randn(ROWS, CLASSES).to(getattr(torch, dtype)).requires_grad_()
    labels = torch.randint(0, CLASSES, (ROWS,))
    torch.autograd.grad(F.cross_entropy(logits, labels), logits)
    loss: Callable[..., torch.Tensor] = cross_entropy if contestant == OURS else torch.compile(F.cross_entropy)
    with torch.no_grad():
        forward = _seconds(lambda: loss(logits, labels))
    return {"forward": forward, "forward_backward": _seconds(lambda: torch.autograd.grad(loss(logits, labels), logits))}


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return float(f"{time.perf_counter() - start:.4g}")


if __name__ == "__main__":
    with machine.limited(int(sys.argv[3])):
        print(json.dumps(_measured(*sys.argv[1:3])))
