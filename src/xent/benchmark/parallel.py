"""The sharded linear loss over some processes of this machine: what each holds, and what it hands to the network.

    python -m xent.benchmark.parallel RANK RANKS STORE     one of the processes; prints JSON

For one process up to four it is measured; for more it is computed from the same formulas, which the measured part has
to confirm.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from xent.benchmark.machine import describe, process_bytes

CLASSES, FEATURES, ROWS, WORKSPACE = 50257, 256, 1024, 32_000_000
MEASURED, COMPUTED = (1, 2, 4), (8, 16, 32, 64, 128, 256, 512, 1024)
"""Numbers of processes."""


def run_parallel(*, command: str) -> dict[str, Any]:
    """The record."""
    start = time.perf_counter()
    record = describe(command, 1)
    cases = [case for ranks in MEASURED for case in [_together(ranks)]]
    cases += [{"ranks": ranks, "measured": None, **computed(ranks)} for ranks in COMPUTED]
    shape = {"classes": CLASSES, "features": FEATURES, "rows": ROWS, "workspace": WORKSPACE}
    return {**record, "seconds": time.perf_counter() - start, "shape": shape, "cases": cases}


def computed(ranks: int) -> dict[str, Any]:
    """Of the largest shard: its classes, bytes of weight and gradient, and bytes per row."""
    from xent.torch.parallel import traffic

    classes = -(-CLASSES // ranks)
    told = traffic(features=FEATURES)
    return {
        "classes": classes,
        "weight_and_gradient": 2 * 4 * FEATURES * classes,
        "logits_and_gradient": 2 * 4 * ROWS * CLASSES,
        "handed_per_row": told.forward_per_row + told.backward_per_row,
        "sent_per_row": told.sent_per_row(ranks),
    }


def _together(ranks: int) -> dict[str, Any]:
    """Run the processes, and take the largest of what they found."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "xent.benchmark.parallel"]
        processes = [
            subprocess.Popen([*command, str(rank), str(ranks), str(Path(folder) / "store")], stdout=subprocess.PIPE)
            for rank in range(ranks)
        ]
        answers = [process.communicate(timeout=300)[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"one of {ranks} processes failed")
    found = [json.loads(answer.splitlines()[-1]) for answer in answers]
    return {"ranks": ranks, "measured": {name: max(one[name] for one in found) for name in found[0]}, **computed(ranks)}


def _measured(rank: int, ranks: int, store: str) -> dict[str, Any]:
    """Peak memory beside the arguments, and the bytes per row that are handed to collectives."""
    import torch
    import torch.distributed as dist

    from xent.benchmark.memory import _give_back, _reset_peak
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
    handed = 0
    all_reduce = dist.all_reduce

    def counting(numbers: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        nonlocal handed
        handed += numbers.nbytes
        return all_reduce(numbers, *arguments, **options)

    _give_back()
    _reset_peak()
    before = process_bytes("VmRSS") or 0
    with mock.patch.object(dist, "all_reduce", counting):
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
    peak = (process_bytes("VmHWM") or 0) - before
    dist.destroy_process_group()
    return {"peak": peak, "handed_per_row": handed / ROWS, "seconds": seconds}


def table_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """The cells of the table in docs/parallel.md."""
    rows = []
    for case in record["cases"]:
        found = case["measured"]
        rows.append(
            [
                str(case["ranks"]),
                "measured" if found else "computed",
                str(case["classes"]),
                f"{case['weight_and_gradient'] / 1e6:.1f}",
                f"{found['peak'] / 1e6:.0f}" if found else "",
                f"{case['handed_per_row']}",
                f"{found['handed_per_row']:.1f}" if found else "",
                f"{case['sent_per_row']:.0f}",
            ]
        )
    return rows


HEAD = [
    "ranks", "", "classes of a rank", "weight and gradient, MB", "peak of a step, MB", "handed to sums",
    "the same, counted", "sent by a ring",
]  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(_measured(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
