"""Two versions of the package side by side: alternating processes, in one run on one machine.

python benchmarks/two_versions.py OLD/src NEW/src --rounds 2 --out record.json

Shows the time of the new version over that of the old one, the median of the rounds and the ratio of the least times.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

SHAPES = {
    "gpt2 float32": ((2048, 50257), "float32"),
    "gpt2 bfloat16": ((2048, 50257), "bfloat16"),
    "imagenet float32": ((4096, 1000), "float32"),
    "imagenet bfloat16": ((4096, 1000), "bfloat16"),
    "cifar float32": ((65536, 10), "float32"),
    "segmentation float32": ((8, 21, 256, 256), "float32"),
    "tiny float32": ((128, 10), "float32"),
    "small float32": ((32, 1000), "float32"),
}
LINEAR = (2048, 768, 50257)


def least_seconds(call: Callable[[], object], rounds: int = 5, seconds: float = 0.06) -> float:
    """The least mean time of a few rounds, each of some calls."""
    call()
    means = []
    for _ in range(rounds):
        count, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds or not count:
            call()
            count += 1
        means.append(elapsed / count)
    return min(means)


def measured() -> dict[str, float]:
    """The times of whatever version this process imports."""
    import torch

    import xent.torch

    torch.set_num_threads(2)
    torch.manual_seed(0)
    times = {}
    for name, (shape, dtype) in SHAPES.items():
        x = torch.randn(shape).to(getattr(torch, dtype)).requires_grad_()
        y = torch.randint(shape[1], shape[:1] + shape[2:])

        def both(x: Any = x, y: Any = y) -> None:
            x.grad = None
            torch.autograd.backward(xent.torch.cross_entropy(x, y))

        with torch.no_grad():
            times[f"{name}, forward"] = least_seconds(lambda x=x, y=y: xent.torch.cross_entropy(x, y))  # type: ignore[misc]
        times[f"{name}, forward + backward"] = least_seconds(both)
    s, t = (torch.randn(SHAPES["cifar float32"][0], requires_grad=needs) for needs in (True, False))

    def divergence() -> None:
        s.grad = None
        torch.autograd.backward(xent.torch.kl_divergence(s, t))

    times["KL of cifar float32, forward + backward"] = least_seconds(divergence)
    rows, features, classes = LINEAR
    h = torch.randn(rows, features, requires_grad=True)
    w = (torch.randn(classes, features) / features**0.5).requires_grad_()
    y = torch.randint(classes, (rows,))

    def layer() -> None:
        h.grad = w.grad = None
        torch.autograd.backward(xent.torch.linear_cross_entropy(h, w, y))

    with torch.no_grad():
        times["linear float32, forward"] = least_seconds(lambda: xent.torch.linear_cross_entropy(h, w, y), 2)
    times["linear float32, forward + backward"] = least_seconds(layer, 2)
    return times


def main(
    old: Annotated[Path, typer.Argument(help="The src folder of one version.")],
    new: Annotated[Path, typer.Argument(help="The src folder of the other.")],
    rounds: Annotated[int, typer.Option(min=1)] = 2,
    out: Annotated[Path | None, typer.Option(help="Write the record to this file.")] = None,
) -> None:
    """Measure both versions, and show the ratios."""
    times: dict[str, list[dict[str, float]]] = {"old": [], "new": []}
    sources = {"old": old, "new": new}
    for number in range(rounds):
        for version in ("old", "new") if number % 2 == 0 else ("new", "old"):
            environment = {**os.environ, "PYTHONPATH": str(sources[version].resolve())}
            command = [sys.executable, __file__, "--measure"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            times[version].append(json.loads(done.stdout.splitlines()[-1]))
    for name in times["old"][0]:
        before, after = ([one[name] for one in times[version]] for version in ("old", "new"))
        ratio = statistics.median(b / a for a, b in zip(before, after, strict=True))
        print(f"{name:40s} {min(before) * 1e3:10.3f} ms {min(after) * 1e3:10.3f} ms  {ratio:.3f}")
    if out is not None:
        out.write_text(json.dumps({"record": "two versions", "seconds": times}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--measure"]:
        print(json.dumps(measured()))
    else:
        typer.run(main)
