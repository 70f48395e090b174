"""The losses on a GPU: all implementations on some shapes, as one record of plain numbers.

Times are between device events, in interleaved rounds as on the CPU; memory is the peak of torch's allocator beside the
inputs; errors of the loss, and of the gradient of the first rows (and classes), are against float64.

The limits: for logits a copy, which reads and writes as many bytes as a loss with its gradient; for the linear loss its
three matrix products, without anything between them.

With TRITON_INTERPRET=1 the same runs on CPU tensors, for tests; its times are meaningless, and the record says so.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.gpu_bars import judge
from benchmarks.gpu_peers import LINEAR, LOGITS, PACKAGES, Implementation, Inputs
from benchmarks.internals import interpret_triton_kernels
from xent.bench import machine
from xent.bench.peers import NotAvailableError
from xent.bench.run import SCHEMA, Progress
from xent.bench.timing import Settings, Spread, interleaved, rounded
from xent.errors import ArgumentError, MissingDependencyError, message

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Part = Literal["logits", "linear"]
COMPARED = 64
"""Rows, and classes, whose gradients are compared with float64."""
CHUNK = 1024
DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True)
class Shape:
    """Logits (rows, classes), or with features a linear layer before them."""

    name: str
    rows: int
    classes: int
    features: int = 0


def shapes(part: Part) -> dict[str, Shape]:
    """The shapes of a part, by name; `tiny` is for tests.

    >>> shapes("logits")["4096x32000"]
    Shape(name='4096x32000', rows=4096, classes=32000, features=0)
    """
    sizes = [(n, v) for n in (4096, 16384) for v in (32000, 128256, 256000)]
    if part == "logits":
        large = [Shape(f"{n}x{v}", n, v) for n, v in sizes]
    else:
        large = [Shape(f"{n}x{v}x{d}", n, v, d) for n, v in sizes for d in (2048, 4096)]
    return {shape.name: shape for shape in [*large, Shape("tiny", 4, 24, 8 if part == "linear" else 0)]}


def run_gpu(
    part: Part,
    names: Iterable[str] = (),
    dtypes: Iterable[str] = (),
    *,
    settings: Settings | None = None,
    command: str = "",
    progress: Progress = lambda description, done, total: None,
) -> dict[str, Any]:
    """Measure all implementations on the shapes of these names (without any: all but `tiny`), and return the record.

    Raises
    ------
    ArgumentError
        There is no such shape, or no GPU.
    MissingDependencyError
        torch or triton is not installed.
    """
    known = shapes(part)
    names = list(names) or [name for name in known if name != "tiny"]
    for name in names:
        if name not in known:
            raise ArgumentError(message("bench", "shape", f"there is no shape {name!r}", f"Take {', '.join(known)}"))
    dtypes = tuple(dtypes) or DTYPES
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise ArgumentError(message("bench", "dtype", f"{dtype!r} is not measured", f"Take {', '.join(DTYPES)}"))
    device, about = device_and_name()
    settings = settings or Settings(minimum_s=0.05)
    start = time.perf_counter()
    cases = []
    for name in names:
        for dtype in dtypes:
            report = partial(_report, progress, f"{name} {dtype}", settings.rounds)
            cases.append(_case(known[name], dtype, device, settings, report))
    return {
        "record": f"xent bench {part}",
        "schema": SCHEMA,
        "device": about,
        **machine.describe(command, 1, (*machine.PACKAGES, *PACKAGES)),
        "seconds": round(time.perf_counter() - start, 1),
        "settings": dataclasses.asdict(settings),
        "cases": cases,
    }


def _report(progress: Progress, description: str, rounds: int, done: int) -> None:
    progress(description, done, rounds)


def device_and_name() -> tuple[torch.device, str]:
    """Where to measure, and its name."""
    machine.require_torch()
    import torch

    try:
        import triton
    except ImportError:
        remedy = "pip install 'xent[gpu]'"
        raise MissingDependencyError(message("bench", "", "the GPU's kernels need triton", remedy)) from None
    if triton.knobs.runtime.interpret:
        interpret_triton_kernels()
        return torch.device("cpu"), "interpreted: times are meaningless"
    if not torch.cuda.is_available():
        raise ArgumentError(message("bench", "device", "torch finds no GPU here", "Run it on a machine that has one"))
    return torch.device("cuda"), torch.cuda.get_device_name()


def _case(
    shape: Shape, dtype: str, device: torch.device, settings: Settings, progress: Callable[[int], None]
) -> dict[str, Any]:
    import torch

    inputs = _inputs(shape, dtype, device)
    exact = reference(inputs)
    entries: list[dict[str, Any]] = []
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for implementation in LINEAR if shape.features else LOGITS:
        entry: dict[str, Any] = {**implementation.describe(), "not_available": None, "seconds": {}}
        entries.append(entry)
        try:
            prepared = implementation.prepare(inputs.copied() if implementation.overwrites else inputs)
            if implementation.role != "limit":
                entry.update(_compared(implementation, inputs, exact))
        except NotAvailableError as error:
            entry["not_available"] = str(error)
            continue
        except torch.cuda.OutOfMemoryError:
            entry["not_available"] = "runs out of memory"
            continue
        except Exception as error:
            if implementation.role != "peer":
                raise
            entry["not_available"] = f"refuses {dtype}: {str(error) or type(error).__name__}"
            continue
        calls |= {(implementation.name, measure): call for measure, call in prepared.items()}
    seconds = interleaved(calls, settings, device_clock(device), progress)
    for entry in entries:
        for (name, measure), times in seconds.items():
            if name == entry["name"]:
                entry["seconds"][measure] = dataclasses.asdict(Spread.of(times))
                entry.setdefault("samples", {})[measure] = [rounded(t) for t in times]
    case = {"shape": shape.name, "size": list(dataclasses.astuple(shape)[1:]), "dtype": dtype, "contestants": entries}
    return {**case, "bars": judge(case)}


def _inputs(shape: Shape, dtype: str, device: torch.device) -> Inputs:
    """Logits of standard deviation 2, or the input and the weight of a linear layer whose logits have about that."""
    import torch

    generator = torch.Generator(device).manual_seed(0)
    options: dict[str, Any] = {"generator": generator, "device": device, "dtype": getattr(torch, dtype)}
    target = torch.randint(shape.classes, (shape.rows,), generator=generator, device=device)
    if not shape.features:
        return Inputs(torch.randn(shape.rows, shape.classes, **options).mul_(2).requires_grad_(), None, target)
    x = torch.randn(shape.rows, shape.features, **options)
    weight = torch.randn(shape.classes, shape.features, **options).mul_(2 / shape.features**0.5)
    return Inputs(x.requires_grad_(), weight.requires_grad_(), target)


def reference(inputs: Inputs) -> tuple[float, list[Tensor]]:
    """Mean loss and gradients in float64, chunk by chunk: of the first rows, and for a weight of its first classes."""
    import torch

    x, rows = inputs.x.detach(), len(inputs.target)
    weight = None if inputs.weight is None else inputs.weight.detach().double()
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    by_x: list[Tensor] = []
    by_weight = None if weight is None else torch.zeros_like(weight[:COMPARED])
    for first in range(0, rows, CHUNK):
        chunk, target = x[first : first + CHUNK].double(), inputs.target[first : first + CHUNK]
        logits = chunk if weight is None else chunk @ weight.t()
        log_q = torch.log_softmax(logits, 1)
        labels = target.unsqueeze(1)
        total -= log_q.gather(1, labels).sum()
        gradient = log_q.exp_().scatter_add_(1, labels, torch.full_like(labels, -1, dtype=torch.float64)) / rows
        if first == 0:
            by_x.append(gradient[:COMPARED] if weight is None else gradient[:COMPARED] @ weight)
        if by_weight is not None:
            by_weight += gradient[:, :COMPARED].t() @ chunk
    return float(total) / rows, by_x if by_weight is None else [*by_x, by_weight]


def _compared(implementation: Implementation, inputs: Inputs, exact: tuple[float, list[Tensor]]) -> dict[str, Any]:
    """Errors (of the gradients relative to their greatest entry) and peak memory of one call, on inputs of its own."""
    import torch

    own = inputs.copied() if implementation.overwrites else inputs
    calls = implementation.prepare(own)
    call = calls["forward_backward"]
    if not implementation.overwrites:
        call()  # compiles
    on_gpu = own.x.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    loss, *gradients = call()
    peak = torch.cuda.max_memory_allocated() - before if on_gpu else None
    errors = [
        float((gradient[:COMPARED].double() - expected).abs().max() / expected.abs().max())
        for gradient, expected in zip(gradients, exact[1], strict=True)
    ]
    return {"loss_error": abs(float(loss) - exact[0]), "gradient_errors": errors, "memory": peak}


def device_clock(device: torch.device) -> Callable[[], float]:
    """Seconds on the device: an event is recorded in the stream and waited for."""
    if device.type != "cuda":
        return time.perf_counter
    import torch

    def event() -> Any:
        recorded = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        recorded.record()
        return recorded

    begin = event()

    def now() -> float:
        end = event()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    return now
