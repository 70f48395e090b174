"""Peak memory of the linear loss beside its arguments and gradients, in a process of its own.

    python -m xent.benchmark.linear_memory REQUEST     REQUEST is JSON, and so is the answer

The process makes the inputs, calls once on a few rows, which loads, compiles and measures products, and then asks for a
step of the wanted size: its peak minus what it held before, minus the gradients, which any way of computing returns.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from xent.benchmark import memory
from xent.benchmark.machine import answer_of, limited

WARM_UP_ROWS = 2048


def beside_bytes(shape: dict[str, Any], dtype: str, workspace: int | str, threads: int) -> int:
    """Bytes beside arguments and gradients at the peak of one step, loss and gradients by input and weight."""
    request = json.dumps({"shape": shape, "dtype": dtype, "workspace": workspace, "threads": threads})
    answer = answer_of("xent.benchmark.linear_memory", request, what=f"measuring the memory of {shape}")
    return int(answer["beside_bytes"])


def _measured(request: dict[str, Any]) -> dict[str, Any]:
    import torch

    from xent.benchmark.linear import LinearShape, make_inputs
    from xent.torch import linear_cross_entropy

    sizes = {name: request["shape"][name] for name in ("name", "rows", "features", "classes")}
    x, w, y = make_inputs(LinearShape(**sizes), request["dtype"])

    few = min(len(x), WARM_UP_ROWS)
    with limited(request["threads"]):
        small = x.detach()[:few].clone().requires_grad_()
        torch.autograd.grad(linear_cross_entropy(small, w, y[:few], workspace=request["workspace"]), (small, w))
        del small
        peak = memory._peak_of(
            lambda: torch.autograd.grad(linear_cross_entropy(x, w, y, workspace=request["workspace"]), (x, w)),
            memory._reset_peak(),
        )
    gradients = x.numel() * x.element_size() + w.numel() * w.element_size()
    return {"beside_bytes": peak - gradients}


if __name__ == "__main__":
    print(json.dumps(_measured(json.loads(sys.argv[1]))))
