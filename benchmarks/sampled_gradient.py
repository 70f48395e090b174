"""The linear loss with sampled gradients beside its exact one and beside three matrix products, on a trained layer.

    python -m benchmarks.sampled_gradient NAME DTYPE THREADS     the peak memory of one implementation, as JSON

2048 rows, 768 features, 50257 classes. Input and weight are those of the example's language model, with that many
words and after some steps of training, turned from its 128 features into 768 by an orthonormal map, which leaves the
logits what they are. Times are of the loss and its gradients by input and weight; the limit is the three products that
an exact gradient needs (logits, gradient of the input, gradient of the weight), each as one product by torch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from benchmarks.bars import verdict
from benchmarks.processes import answer_of, peak_of
from xent.bench import machine
from xent.bench.run import SCHEMA, Progress
from xent.bench.timing import Settings, interleaved, ratios, summary

if TYPE_CHECKING:
    from torch import Tensor

ROWS, FEATURES, CLASSES, STEPS = 2048, 768, 50257, 200
WORKSPACE, ALLOWANCE = 128_000_000, 16_000_000
EXACT, PRODUCTS = "exact", "three products"
OURS = (EXACT, "sampled", "sampled input", "sampled weight")
BOUNDS = {("sampled", "float32"): 0.55, ("sampled", "bfloat16"): 0.65, (EXACT, "float32"): 1.08}
"""At most so many times the three products."""

Layer = tuple["Tensor", "Tensor", "Tensor"]


def run_sampled(
    *,
    threads: int = 2,
    measure_memory: bool = True,
    command: str = "",
    progress: Progress = lambda description, done, total: None,
) -> dict[str, Any]:
    """Measure and return the record."""
    machine.require_torch()
    settings = Settings(rounds=9, least_rounds=5, seconds_per_case=120.0, minimum_s=0.0)
    record = {"record": "xent bench sampled", "schema": SCHEMA, "device": "cpu", **machine.describe(command, threads)}
    start, cases = time.perf_counter(), []
    with machine.limited_threads(threads):
        layer = trained_layer(progress)
        for dtype in ("float32", "bfloat16"):
            cases.append(_case(layer, dtype, settings, progress))
    for case in cases if measure_memory else ():
        of = {
            name: answer_of("sampled_gradient", name, case["dtype"], str(threads), description=name)["bytes"]
            for name in OURS[:2]
        }
        case["memory"] = of
        bound = WORKSPACE + ALLOWANCE
        bar = {"implementation": "sampled", "measure": "memory beside the gradients", "kind": "at most", "bound": bound}
        case["bars"].append(bar | {"median": of["sampled"]} | verdict(of["sampled"], bound, at_most=True))
    return {**record, "seconds": round(time.perf_counter() - start, 1), "settings": asdict(settings), "cases": cases}


def trained_layer(progress: Progress, steps: int = STEPS) -> Layer:
    """Input, weight and labels of a batch of the example's model after some steps of training."""
    import torch

    from benchmarks.sampled_training import example
    from xent.torch import linear_cross_entropy

    torch.manual_seed(0)
    source = example(CLASSES)
    text, model, context = torch.tensor(source.tokens()), source.language_model(), source.CONTEXT
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def batch(size: int) -> tuple[Tensor, Tensor]:
        places = torch.randint(len(text) - context - 1, (size, 1))
        words = text[places + torch.arange(context + 1)]
        return words[:, :-1], words[:, 1:]

    for step in range(steps):
        x, y = batch(4)
        optimizer.zero_grad(set_to_none=True)
        linear_cross_entropy(model(x), model.words.weight, y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        progress("training the layer", step, steps)
    x, y = batch(ROWS // context)
    with torch.no_grad():
        turned = torch.linalg.qr(torch.randn(FEATURES, source.WIDTH))[0]
        return model(x).flatten(0, 1) @ turned.T, model.words.weight.detach() @ turned.T, y.flatten()


def calls_of(layer: Layer) -> dict[str, Callable[[], Any]]:
    """Loss and gradients by our calls, and the products."""
    import torch

    from xent.torch import linear_cross_entropy

    x, w, y = layer
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    z, dx, dw = torch.empty(len(x), len(w), dtype=x.dtype), torch.empty_like(x), torch.empty_like(w)
    a, b, gradient = x.detach(), w.detach(), torch.full_like(z, 1e-5)

    def loss(gradient: Any) -> Any:
        seed = None if gradient == EXACT else 0
        value = linear_cross_entropy(x, w, y, gradient=gradient, seed=seed, workspace=WORKSPACE)
        return torch.autograd.grad(value, (x, w))

    def products() -> None:
        torch.mm(a, b.t(), out=z)
        torch.mm(gradient, b, out=dx)
        torch.mm(gradient.t(), a, out=dw)

    return {name: lambda name=name: loss(name) for name in OURS} | {PRODUCTS: products}


def _case(layer: Layer, dtype: str, settings: Settings, progress: Progress) -> dict[str, Any]:
    import torch

    from xent.torch import GradientReport, linear_cross_entropy

    x, w, y = layer
    layer = x.to(getattr(torch, dtype)), w.to(getattr(torch, dtype)), y
    report, others = GradientReport(), machine.OtherProcesses()
    loss = linear_cross_entropy(
        layer[0].clone().requires_grad_(), *layer[1:], gradient="sampled", seed=0, report=report
    )
    loss.backward()  # type: ignore[no-untyped-call]
    seconds = interleaved(calls_of(layer), settings, after_round=lambda n: progress(dtype, n, settings.rounds))
    over = {name: summary(ratios(seconds[name], seconds[PRODUCTS])) for name in OURS}
    bars = []
    for (name, of), bound in BOUNDS.items():
        if of == dtype:
            bar = {"implementation": name, "measure": "times three products", "kind": "at most", "bound": bound}
            bars.append(bar | over[name] | verdict(over[name]["median"], bound, at_most=True))
    return {
        "size": [ROWS, FEATURES, CLASSES],
        "dtype": dtype,
        "loss": loss.item(),
        "density": report.density,
        "dense_rows": float(report.is_dense.mean()),
        "share_of_others": others.share(),
        "seconds": {name: summary(times) for name, times in seconds.items()},
        "over_products": over,
        "exact_over_sampled": summary(ratios(seconds[EXACT], seconds["sampled"])),
        "bars": bars,
    }


def peak(name: Any, dtype: str, threads: int) -> dict[str, int]:
    """The bytes that one call needs beside its arguments and its gradients."""
    import torch

    from xent.torch import linear_cross_entropy

    generator = torch.Generator().manual_seed(0)
    kind = getattr(torch, dtype)
    x = torch.randn(ROWS, FEATURES, generator=generator).to(kind).requires_grad_()
    w = torch.randn(CLASSES, FEATURES, generator=generator).mul_(0.1).to(kind).requires_grad_()
    y = torch.randint(CLASSES, (ROWS,), generator=generator)
    gradients = sum(tensor.numel() * tensor.element_size() for tensor in (x, w))

    def call(rows: int, classes: int) -> None:
        layer = x[:rows], w[:classes]
        value = linear_cross_entropy(*layer, y[:rows] % classes, gradient=name, workspace=WORKSPACE)
        torch.autograd.grad(value, layer)

    with machine.limited_threads(threads):
        call(512, 32768)  # loads kernels and libraries
        return {"bytes": peak_of(lambda: call(ROWS, CLASSES)) - gradients}


if __name__ == "__main__":
    print(json.dumps(peak(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
