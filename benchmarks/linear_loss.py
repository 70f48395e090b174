"""The loss of a linear layer beside its peers and beside its limit: matrix products. One record of plain numbers.

All implementations get the same input, weight and labels; the loss is the mean. "forward_backward" is the loss and
`torch.autograd.grad` of it by input and weight, "frozen" the same by the input alone (the weight does not require a
gradient), "forward" the loss under `no_grad`. The limits are the products that every implementation needs (logits,
dinput, dweight), each by the faster of NumPy's and torch's BLAS in that round, into memory that has been used before.
Peers are measured only where a bar or a table needs them: torch's chunked loss takes many seconds.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks import linear_error, linear_memory
from benchmarks.bars import verdict
from xent.bench import machine
from xent.bench.run import SCHEMA, Progress
from xent.bench.timing import Settings, interleaved, ratios, summary

if TYPE_CHECKING:
    from torch import Tensor

OURS, UNFUSED, CHUNKED = "xent.torch", "F.cross_entropy(F.linear)", "F.linear_cross_entropy, chunked"
DEFERRED = "F.cross_entropy, deferred logits"
LIMITS = {"forward_backward": ("logits", "dinput", "dweight"), "frozen": ("logits", "dinput"), "forward": ("logits",)}
LIMIT = "products"
PEER_MEASURES = {
    UNFUSED: ("forward_backward", "forward"),
    CHUNKED: ("forward_backward",),
    DEFERRED: ("forward_backward",),
}
WORKSPACE, WORKSPACE_BYTES = "128MB", 128_000_000
MEMORY_ALLOWANCE = 16_000_000
MEMORY_ROWS = (2048, 65536)

Calls = dict[tuple[str, str], Callable[[], Any]]


@dataclass(frozen=True)
class LinearShape:
    """Sizes of a linear layer and its loss."""

    name: str
    rows: int
    features: int
    classes: int
    dtypes: tuple[str, ...] = ("float32", "bfloat16")

    @property
    def size(self) -> tuple[int, int, int]:
        return (self.rows, self.features, self.classes)


@dataclass(frozen=True)
class Bar:
    """A ratio of medians in one run: at most so many times the products, or so many times as fast as a peer.

    Deferred logits are an implementation of ours: they may take at most so many times as long as the direct call.
    """

    dtype: str
    measure: str
    against: str
    bound: float

    @property
    def at_most(self) -> bool:
        return self.against in (LIMIT, DEFERRED)


SHAPES = {"gpt2": LinearShape("gpt2", 2048, 768, 50257), "quick": LinearShape("quick", 256, 256, 8009)}
BARS = (
    Bar("float32", "forward_backward", LIMIT, 1.10),
    Bar("float32", "forward_backward", UNFUSED, 1.4),
    Bar("float32", "forward_backward", CHUNKED, 3.5),
    Bar("bfloat16", "forward_backward", LIMIT, 1.20),
    Bar("bfloat16", "forward_backward", UNFUSED, 1.25),
    Bar("bfloat16", "forward_backward", CHUNKED, 7.0),
    *(Bar(dtype, "forward_backward", DEFERRED, 1.03) for dtype in ("float32", "bfloat16")),
    *(Bar(dtype, "forward", LIMIT, 1.08) for dtype in ("float32", "bfloat16")),
    *(Bar(dtype, "frozen", LIMIT, 1.12) for dtype in ("float32", "bfloat16")),
)


def run(
    shape: LinearShape = SHAPES["gpt2"],
    *,
    settings: Settings | None = None,
    threads: int = 2,
    measure_memory: bool = True,
    command: str = "",
    progress: Progress = lambda description, done, total: None,
) -> dict[str, Any]:
    """Measure all implementations on the shape and return the record, which `json.dumps` can write.

    Raises
    ------
    MissingDependencyError
        torch is not installed.
    """
    machine.require_torch()
    settings = settings or Settings(rounds=7, least_rounds=3, seconds_per_case=60.0, warm_ups=0)
    record = {"record": "xent bench linear", "schema": SCHEMA, "device": "cpu", **machine.describe(command, threads)}
    start = time.perf_counter()
    with machine.limited_threads(threads):
        cases = [_case(shape, dtype, settings, progress) for dtype in shape.dtypes]
    for case in cases:
        if measure_memory:
            case["memory"] = _memory(shape, case["dtype"], threads, progress)
        case["bars"] = judge(case) if shape == SHAPES["gpt2"] else []
    with machine.limited_threads(threads):
        errors = linear_error.measure(progress)
    seconds = round(time.perf_counter() - start, 1)
    return {**record, "seconds": seconds, "settings": dataclasses.asdict(settings), "cases": cases, "errors": errors}


def judge(case: dict[str, Any]) -> list[dict[str, Any]]:
    """The bars of a case: what was required and measured, whether it is met, else the factor that is missing."""
    verdicts = []
    for bar in BARS:
        ratio = case["ratios"].get(bar.measure, {}).get(bar.against)
        if bar.dtype == case["dtype"] and ratio:
            kind = "at most" if bar.at_most else "at least"
            head = {"kind": kind, "measure": bar.measure, "against": bar.against, "bound": bar.bound}
            verdicts.append({**head, **ratio, **verdict(ratio["median"], bar.bound, at_most=bar.at_most)})
    for entry in case.get("memory", []):
        bound = entry["workspace_bytes"] + MEMORY_ALLOWANCE
        beside = entry["beside_bytes"]
        head = {"kind": "at most", "measure": "memory", "against": f"workspace + 16 MB, {entry['rows']} rows"}
        verdicts.append({**head, "bound": bound, "median": beside, **verdict(beside, bound, at_most=True)})
    return verdicts


def make_inputs(shape: LinearShape, dtype: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Normal input, a weight that makes logits of standard deviation 1, random labels."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    torch_dtype = getattr(torch, dtype)
    input = torch.randn(shape.rows, shape.features, generator=generator).to(torch_dtype)
    weight = torch.randn(shape.classes, shape.features, generator=generator).mul_(shape.features**-0.5).to(torch_dtype)
    target = torch.randint(shape.classes, (shape.rows,), generator=generator)
    return input.requires_grad_(), torch.nn.Parameter(weight), target


def losses() -> dict[str, Callable[..., Tensor]]:
    """The implementations, as functions of input, weight and target."""
    import torch
    import torch.nn.functional as F

    from xent.torch import linear_cross_entropy
    from xent.torch.deferred import defer_logits

    def deferred(x: Tensor, w: torch.nn.Parameter, y: Tensor) -> Tensor:
        head = torch.nn.Linear(w.shape[1], len(w), bias=False, device="meta")
        head.weight = w
        return F.cross_entropy(defer_logits(torch.nn.Sequential(head), "0")(x), y)

    return {
        OURS: linear_cross_entropy,
        UNFUSED: lambda x, w, y: F.cross_entropy(F.linear(x, w), y),
        CHUNKED: lambda x, w, y: F.linear_cross_entropy(x, w, y, options=torch.nn.LinearCrossEntropyOptions()),
        DEFERRED: deferred,
    }


def _calls(shape: LinearShape, dtype: str) -> Calls:
    import torch

    x, w, y = make_inputs(shape, dtype)
    calls: Calls = {}
    for name, loss in losses().items():

        def forward(loss: Callable[..., Tensor] = loss) -> Tensor:
            with torch.no_grad():
                return loss(x, w, y)

        def both(loss: Callable[..., Tensor] = loss) -> Any:
            return torch.autograd.grad(loss(x, w, y), (x, w))

        def frozen(loss: Callable[..., Tensor] = loss) -> Any:
            return torch.autograd.grad(loss(x, w.detach(), y), x)

        by_measure = {"forward": forward, "forward_backward": both, "frozen": frozen}
        calls |= {(name, measure): by_measure[measure] for measure in PEER_MEASURES.get(name, tuple(LIMITS))}
    return calls | _products(x.detach(), w.detach())


def _products(x: Tensor, w: Tensor) -> Calls:
    """Each product by each library, keyed ("torch", "logits") and so on."""
    import numpy as np
    import torch

    logits, dinput, dweight = torch.empty(len(x), len(w), dtype=x.dtype), torch.empty_like(x), torch.empty_like(w)
    gradient = torch.full_like(logits, 1e-5)
    products = {
        "logits": (x, w.t(), logits),
        "dinput": (gradient, w, dinput),
        "dweight": (gradient.t(), x, dweight),
    }
    calls: Calls = {}
    for name, (a, b, out) in products.items():
        calls["torch", name] = lambda a=a, b=b, out=out: torch.mm(a, b, out=out)  # type: ignore[misc]
        if x.dtype == torch.float32:
            arrays = a.numpy(), b.numpy(), out.numpy()
            calls["numpy", name] = lambda arrays=arrays: np.matmul(arrays[0], arrays[1], out=arrays[2])  # type: ignore[misc]
    return calls


def _case(shape: LinearShape, dtype: str, settings: Settings, progress: Progress) -> dict[str, Any]:
    description = f"{shape.name} {dtype}"
    calls = _calls(shape, dtype)
    values = {name: float(calls[name, "forward"]()) for name in (OURS, UNFUSED)}
    others = machine.OtherProcesses()
    seconds = interleaved(calls, settings, after_round=lambda done: progress(description, done, settings.rounds))
    for measure, names in LIMITS.items():
        best = [
            [min(times) for times in zip(*(seconds[key] for key in calls if key[1] == name), strict=True)]
            for name in names
        ]
        seconds[LIMIT, measure] = [sum(times) for times in zip(*best, strict=True)]
    return {
        "shape": shape.name,
        "size": list(shape.size),
        "dtype": dtype,
        "workspace": WORKSPACE,
        "losses": values,
        "rounds": len(seconds[LIMIT, "forward"]),
        "share_of_others": others.share(),
        "seconds": {f"{name}, {measure}": summary(times) for (name, measure), times in seconds.items()},
        "ratios": {measure: _ratios(seconds, measure) for measure in LIMITS},
    }


def _ratios(seconds: dict[tuple[str, str], list[float]], measure: str) -> dict[str, Any]:
    """Our time over that of the products, and the time of each peer over ours."""
    ours = seconds[OURS, measure]
    peers = {peer: summary(ratios(seconds[peer, measure], ours)) for peer, of in PEER_MEASURES.items() if measure in of}
    return {LIMIT: summary(ratios(ours, seconds[LIMIT, measure])), **peers}


def _memory(shape: LinearShape, dtype: str, threads: int, progress: Progress) -> list[dict[str, Any]]:
    entries = []
    for done, rows in enumerate(MEMORY_ROWS):
        progress(f"{shape.name} {dtype}, memory", done, len(MEMORY_ROWS))
        grown = dataclasses.replace(shape, rows=rows)
        beside = linear_memory.beside_bytes(dataclasses.asdict(grown), dtype, WORKSPACE, threads)
        entries.append({"rows": rows, "workspace_bytes": WORKSPACE_BYTES, "beside_bytes": beside})
    return entries
