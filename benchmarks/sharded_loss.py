"""The sharded linear loss over some processes of this machine: what each holds, and what it passes to collectives.

    python -m benchmarks.sharded_loss RANK RANKS STORE     one of the processes; prints JSON

It is measured for up to four processes, and computed for more from formulas that the measured part has to confirm.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.processes import command_of, environment_of, process_bytes, release_memory, reset_peak
from xent.bench.machine import describe
from xent.bench.run import Progress

CLASSES, FEATURES, ROWS, WORKSPACE = 50257, 256, 1024, 32_000_000
MEASURED, COMPUTED = (1, 2, 4), (8, 16, 32, 64, 128, 256, 512, 1024)
"""Numbers of processes."""


def run_sharded_loss(
    *, command: str = "", progress: Progress = lambda description, done, total: None
) -> dict[str, Any]:
    """Measure and compute all cases."""
    start = time.perf_counter()
    record, cases = describe(command, 1), []
    for done, ranks in enumerate(MEASURED):
        progress("sharded loss", done, len(MEASURED))
        cases.append({"ranks": ranks, "measured": _measured(ranks), **computed(ranks)})
    progress("sharded loss", len(MEASURED), len(MEASURED))
    cases += [{"ranks": ranks, "measured": None, **computed(ranks)} for ranks in COMPUTED]
    shape = {"classes": CLASSES, "features": FEATURES, "rows": ROWS, "workspace": WORKSPACE}
    return {**record, "seconds": time.perf_counter() - start, "shape": shape, "cases": cases}


def computed(ranks: int) -> dict[str, Any]:
    """Of the largest shard: its classes, bytes of weight and gradient, and bytes per row."""
    from xent.torch.parallel import traffic

    classes = -(-CLASSES // ranks)
    expected = traffic(features=FEATURES)
    return {
        "classes": classes,
        "weight_and_gradient": 2 * 4 * FEATURES * classes,
        "logits_and_gradient": 2 * 4 * ROWS * CLASSES,
        "handed_per_row": expected.forward_per_row + expected.backward_per_row,
        "sent_per_row": expected.sent_per_row(ranks),
    }


def _measured(ranks: int) -> dict[str, Any]:
    """Run the processes; the largest of their figures."""
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        processes = [
            subprocess.Popen(
                command_of("sharded_loss", str(rank), str(ranks), store),
                stdout=subprocess.PIPE,
                env=environment_of(),
            )
            for rank in range(ranks)
        ]
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"one of {ranks} processes failed")
    answers = [json.loads(output.splitlines()[-1]) for output in outputs]
    return {name: max(answer[name] for answer in answers) for name in answers[0]}


def _measure(rank: int, ranks: int, store: str) -> dict[str, Any]:
    """Peak memory beside the arguments, and the bytes per row that are passed to collectives."""
    import torch
    import torch.distributed as dist

    from xent.torch.parallel import linear_cross_entropy

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    hidden, labels = torch.randn(ROWS, FEATURES).requires_grad_(), torch.randint(0, CLASSES, (ROWS,))
    classes = CLASSES * (rank + 1) // ranks - CLASSES * rank // ranks
    head = torch.randn(classes, FEATURES).requires_grad_()

    def step() -> None:
        hidden.grad = head.grad = None
        linear_cross_entropy(hidden, head, labels, group=dist.group.WORLD, workspace=WORKSPACE).backward()  # type: ignore[no-untyped-call]

    step()
    hidden.grad = head.grad = None
    passed = 0
    all_reduce = dist.all_reduce

    def counting(numbers: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        nonlocal passed
        passed += numbers.nbytes
        return all_reduce(numbers, *arguments, **options)

    release_memory()
    reset_peak()
    before = process_bytes("VmRSS") or 0
    with mock.patch.object(dist, "all_reduce", counting):
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
    peak = (process_bytes("VmHWM") or 0) - before
    dist.destroy_process_group()
    return {"peak": peak, "handed_per_row": passed / ROWS, "seconds": seconds}


if __name__ == "__main__":
    print(json.dumps(_measure(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
