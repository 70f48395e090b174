"""Peak memory of the linear loss beside its arguments and gradients, in a process of its own.

    python -m benchmarks.linear_memory REQUEST     REQUEST is JSON, and so is the answer

The process makes the inputs, calls once on a few rows, which loads and compiles, and then makes a step of the requested
size: its peak minus what it held before, minus the gradients, which every implementation returns.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks.processes import answer_of, peak_of
from xent.bench.machine import limited_threads

WARM_UP_ROWS = 2048


def beside_bytes(shape: dict[str, Any], dtype: str, workspace: int | str, threads: int) -> int:
    """Bytes beside arguments and gradients at the peak of one step, loss and gradients by input and weight."""
    request = json.dumps({"shape": shape, "dtype": dtype, "workspace": workspace, "threads": threads})
    answer = answer_of("linear_memory", request, description=f"measuring the memory of {shape}")
    return int(answer["beside_bytes"])


def _measure(request: dict[str, Any]) -> dict[str, Any]:
    import torch

    from benchmarks.linear_loss import LinearShape, make_inputs
    from xent.torch import linear_cross_entropy

    sizes = {name: request["shape"][name] for name in ("name", "rows", "features", "classes")}
    x, w, y = make_inputs(LinearShape(**sizes), request["dtype"])

    def step(input: torch.Tensor, target: torch.Tensor) -> Any:
        loss = linear_cross_entropy(input, w, target, workspace=request["workspace"])
        return torch.autograd.grad(loss, (input, w))

    with limited_threads(request["threads"]):
        step(x.detach()[:WARM_UP_ROWS].clone().requires_grad_(), y[:WARM_UP_ROWS])
        peak = peak_of(lambda: step(x, y))
    return {"beside_bytes": peak - x.nbytes - w.nbytes}


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1]))))
