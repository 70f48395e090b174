"""How fast a layer's logits are multiplied, and what a product of NumPy's costs the one of torch's that follows it.

    python -m benchmarks.layer_products     writes results/cpu/layer_products.json

512 rows of 768 numbers times 50257 classes, float32, two threads: by NumPy, by torch as a whole, and by torch for a few
classes at a time. Then torch's product for the gradient of the input, alone, and each time after NumPy's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.tables import results
from xent.bench import machine
from xent.bench.timing import Settings, interleaved, rounded, summary

ROWS, FEATURES, CLASSES = 512, 768, 50257
STEPS = (512, 1024, 2048, 4096)


def calls() -> dict[str, Callable[[], Any]]:
    """The products by name."""
    import numpy as np
    import torch

    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, FEATURES, generator=generator) for n in (ROWS, CLASSES))
    z, dx, gradient = torch.empty(ROWS, CLASSES), torch.empty(ROWS, FEATURES), torch.full((ROWS, CLASSES), 1e-5)

    def in_steps(step: int) -> None:
        for first in range(0, CLASSES, step):
            torch.mm(x, w[first : first + step].t(), out=z[:, first : first + step])

    def by_numpy() -> None:
        np.matmul(x.numpy(), w.numpy().T, out=z.numpy())

    def of_input() -> None:
        torch.mm(gradient, w, out=dx)

    def of_input_after_numpy() -> None:
        by_numpy()
        of_input()

    found: dict[str, Callable[[], Any]] = {"logits, NumPy": by_numpy, "logits, torch": lambda: in_steps(CLASSES)}
    found |= {f"logits, torch, {n} classes at a time": lambda n=n: in_steps(n) for n in STEPS}  # type: ignore[misc]
    return {**found, "dinput, torch": of_input, "both, NumPy and torch": of_input_after_numpy}


def main() -> None:
    """Measure and write the record."""
    settings = Settings(rounds=15, least_rounds=7, seconds_per_case=40.0, minimum_s=0.0)
    with machine.limited_threads(2):
        seconds = interleaved(calls(), settings)
    rate = {name: rounded(2e-9 * ROWS * FEATURES * CLASSES / min(times)) for name, times in seconds.items()}
    alone = [a + b for a, b in zip(seconds["logits, NumPy"], seconds["dinput, torch"], strict=True)]
    both = seconds["both, NumPy and torch"]
    record = {
        "record": "xent bench layer_products",
        **machine.describe("python -m benchmarks.layer_products", 2),
        "size": [ROWS, FEATURES, CLASSES],
        "seconds": {name: summary(times) for name, times in seconds.items()},
        "gflops_at_best": {name: one for name, one in rate.items() if name != "both, NumPy and torch"},
        "both_over_each_alone": summary([one / other for one, other in zip(both, alone, strict=True)]),
    }
    path = results("cpu") / "layer_products.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record["gflops_at_best"], indent=1), record["both_over_each_alone"], file=sys.stderr)


if __name__ == "__main__":
    main()
