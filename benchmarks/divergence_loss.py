"""The divergences of student and teacher beside torch's formula, and beside their limit: four matrix products.

    python -m benchmarks.divergence_loss NAME THREADS     the peak memory of one implementation, as JSON

*Logits*: `xent.torch.kl_divergence` and its gradient by the student's logits, against `F.kl_div` of two log-softmaxes
with `log_target=True`, float32; and the JSD against its formula. *Linear*: `linear_kl_divergence` of hidden states and
weights, with the gradients of the student's, against the products that every implementation needs: two logits, dinput,
dweight, each by the faster of NumPy's and torch's BLAS in that round.
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

ROWS, CLASSES = 2048, 50257
LINEAR_ROWS, FEATURES = 1024, 768
KL, JS, PEER, JS_PEER = "kl_divergence", "js_divergence", "F.kl_div(log_softmax)", "JSD by log_softmax"
LINEAR, PRODUCTS = "linear_kl_divergence", "four products"
MEMORY_ALLOWANCE = 2 << 20
BARS = ((PEER, KL, "at least", 5.0), (LINEAR, PRODUCTS, "at most", 1.15))
"""Whose median time over whose, and the bound."""

Calls = dict[str, Callable[[], Any]]


def run_divergence(
    *,
    quick: bool = False,
    threads: int = 2,
    measure_memory: bool = True,
    command: str = "",
    progress: Progress = lambda description, done, total: None,
) -> dict[str, Any]:
    """Measure and return the record. `quick`: an eighth of the rows, and no memory."""
    machine.require_torch()
    settings = Settings(rounds=9, least_rounds=5, seconds_per_case=60.0, warm_ups=1, minimum_s=0.0)
    rows, linear_rows = (ROWS // 8, LINEAR_ROWS // 8) if quick else (ROWS, LINEAR_ROWS)
    record = {"record": "xent bench divergence", "schema": SCHEMA, "device": "cpu"}
    record |= machine.describe(command, threads)
    start, others = time.perf_counter(), machine.OtherProcesses()
    with machine.limited_threads(threads):
        of_logits = interleaved(logits_calls(rows), settings, after_round=lambda n: progress("logits", n, 9))
        of_layers = interleaved(linear_calls(linear_rows), settings, after_round=lambda n: progress("linear", n, 9))
    best = [
        [min(times) for times in zip(*(of_layers.pop(f"{library} {name}") for library in LIBRARIES), strict=True)]
        for name in PRODUCT_NAMES
    ]
    seconds = {**of_logits, **of_layers, PRODUCTS: [sum(times) for times in zip(*best, strict=True)]}
    case: dict[str, Any] = {
        "size": [rows, CLASSES],
        "linear_size": [linear_rows, FEATURES, CLASSES],
        "dtype": "float32",
        "share_of_others": others.share(),
        "seconds": {name: summary(times) for name, times in seconds.items()},
        "ratios": {
            f"{one} / {other}": summary(ratios(seconds[one], seconds[other]))
            for one, other in ((PEER, KL), (JS_PEER, JS), (LINEAR, PRODUCTS))
        },
    }
    if measure_memory and not quick:
        case["memory"] = {
            name: answer_of("divergence_loss", name, str(threads), description=name)["bytes"] for name in (KL, PEER)
        }
    case["bars"] = judge(case)
    return {**record, "seconds": round(time.perf_counter() - start, 1), "settings": asdict(settings), "cases": [case]}


def judge(case: dict[str, Any]) -> list[dict[str, Any]]:
    """The bars, what was measured, and whether it is met."""
    found = []
    for one, other, kind, bound in BARS:
        ratio = case["ratios"][f"{one} / {other}"]
        head = {"kind": kind, "measure": f"{one} / {other}", "bound": bound, **ratio}
        found.append({**head, **verdict(ratio["median"], bound, at_most=kind == "at most")})
    if "memory" in case:
        bound, used = 4 * ROWS * CLASSES + MEMORY_ALLOWANCE, case["memory"][KL]
        head = {"kind": "at most", "measure": "memory: one gradient + 2 MB", "bound": bound, "median": used}
        found.append({**head, **verdict(used, bound, at_most=True)})
    return found


def logits_of(rows: int) -> tuple[Tensor, Tensor]:
    """A student's logits and those of a teacher a little apart."""
    import torch

    generator = torch.Generator().manual_seed(0)
    student = torch.randn(rows, CLASSES, generator=generator)
    teacher = torch.randn(rows, CLASSES, generator=generator).add_(student)
    return student.requires_grad_(), teacher


def logits_calls(rows: int) -> Calls:
    """Loss and gradient by the student's logits, by implementation."""
    import torch
    import torch.nn.functional as F

    from xent.torch import js_divergence, kl_divergence

    s, t = logits_of(rows)

    def kl_by_torch() -> Any:
        return F.kl_div(F.log_softmax(s, 1), F.log_softmax(t, 1), log_target=True, reduction="batchmean")

    def js_by_torch() -> Any:
        log_p, log_q = F.log_softmax(s, 1), F.log_softmax(t, 1)
        mixture = torch.logsumexp(torch.stack([log_p, log_q]), 0) - 0.6931471805599453
        parts = [F.kl_div(mixture, one, log_target=True, reduction="batchmean") for one in (log_p, log_q)]
        return (parts[0] + parts[1]) / 2

    losses: Calls = {
        KL: lambda: kl_divergence(s, t),
        PEER: kl_by_torch,
        JS: lambda: js_divergence(s, t),
        JS_PEER: js_by_torch,
    }
    return {name: lambda loss=loss: torch.autograd.grad(loss(), s) for name, loss in losses.items()}  # type: ignore[misc]


PRODUCT_NAMES = ("logits", "target", "dinput", "dweight")
LIBRARIES = ("torch", "numpy")


def linear_calls(rows: int) -> Calls:
    """The linear divergence, and each of its products by each library."""
    import numpy as np
    import torch

    from xent.torch import linear_kl_divergence

    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(rows, FEATURES, generator=generator) for _ in range(2))
    w, v = (torch.randn(CLASSES, FEATURES, generator=generator) * FEATURES**-0.5 for _ in range(2))
    logits, dinput, dweight = torch.empty(rows, CLASSES), torch.empty_like(x), torch.empty_like(w)
    gradient = torch.full_like(logits, 1e-5)
    products = {"logits": (x, w.t(), logits), "target": (y, v.t(), logits)}
    products |= {"dinput": (gradient, w, dinput), "dweight": (gradient.t(), x, dweight)}
    calls: Calls = {}
    for name, (a, b, out) in products.items():
        calls[f"torch {name}"] = lambda a=a, b=b, out=out: torch.mm(a, b, out=out)  # type: ignore[misc]
        arrays = a.numpy(), b.numpy(), out.numpy()
        calls[f"numpy {name}"] = lambda arrays=arrays: np.matmul(arrays[0], arrays[1], out=arrays[2])  # type: ignore[misc]
    student = x.clone().requires_grad_(), w.clone().requires_grad_()
    calls[LINEAR] = lambda: torch.autograd.grad(linear_kl_divergence(*student, y, v), student)
    return calls


def main(name: str, threads: str) -> None:
    """Print the bytes that one implementation needs beside the logits, its gradient included."""
    with machine.limited_threads(int(threads)):
        call = logits_calls(ROWS)[name]
        call()
        print(json.dumps({"bytes": peak_of(call)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
