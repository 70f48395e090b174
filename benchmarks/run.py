"""Measure, and write the records that the tables of README.md and docs/performance.md are made from.

python benchmarks/run.py                              everything, half an hour or more; replaces results/cpu/*.json
python benchmarks/run.py logits                       one record
python benchmarks/run.py --quick                      a first look, less than a minute; shows, and writes nothing
python benchmarks/run.py --shape gpt2 --out one.json  some shapes only; writes where it is told to
python benchmarks/run.py --device cuda                logits and linear loss on a GPU; replaces results/cuda/*.json
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tables as documents
import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from xent.benchmark import DEVICES, run
from xent.benchmark.first_call import run_first_call
from xent.benchmark.gpu import run_gpu
from xent.benchmark.scaling import run_scaling
from xent.benchmark.scoring import missed as missed_scores
from xent.benchmark.scoring import run_scoring
from xent.benchmark.shapes import checked_device
from xent.benchmark.show import disturbed, missed, tables
from xent.benchmark.tables import linear as linear_table
from xent.benchmark.threads import run_threads
from xent.benchmark.timing import Settings
from xent.errors import XentError

HERE = Path(__file__).parent
Part = Literal["logits", "logits_huge_pages", "scaling", "threads", "first_call", "accuracy", "linear", "scoring"]
PARTS: tuple[Part, ...] = get_args(Part)
GPU_PARTS: tuple[Literal["logits", "linear"], ...] = ("logits", "linear")
LARGE = ("gpt2", "segmentation")
messages = Console(stderr=True)


def main(
    part: Annotated[Part | None, typer.Argument(help="One record only.")] = None,
    shape: Annotated[list[str] | None, typer.Option(help="Some shapes only; with --out or --quick.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A first look; writes nothing without --out.")] = False,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    device: Annotated[str, typer.Option(help=f"One of: {', '.join(DEVICES)}, cuda.")] = "cpu",
    memory: Annotated[bool, typer.Option(help="Measure peak memory too.")] = True,
    out: Annotated[Path | None, typer.Option(help="Write the record to this file, and leave the tables alone.")] = None,
) -> None:
    try:
        if device == "cuda":
            _on_gpu(part, tuple(shape or ()), quick, out)
            return
        checked_device(device)
        if part is None and not (quick or shape or out):
            _everything(threads, device)
            return
        if shape and not (quick or out):
            raise typer.BadParameter("some shapes would replace the record of all: add --out FILE, or --quick.")
        part = part or "logits"
        record = _measured(part, tuple(shape or ()), quick, threads, device, memory)
    except XentError as error:
        messages.print(f"[bold red]bench:[/] {error}", soft_wrap=True)
        raise typer.Exit(2) from None
    if part.startswith("logits"):
        _show(record)
    if part == "linear":
        Console().print(Markdown(linear_table(record)), *missed(record), sep="\n")
    if part == "scoring":
        for sentence in missed_scores(record):
            messages.print(f"[red]missed[/] {sentence}", soft_wrap=True)
    if out is not None or not quick:
        _write(record, out or documents.results(device) / f"{part}.json")
    if out is None and not quick:
        documents.write(device)


def _on_gpu(part: Part | None, shapes: tuple[str, ...], quick: bool, out: Path | None) -> None:
    """One record or both; with --quick few rounds."""
    if part is not None and part not in GPU_PARTS:
        raise typer.BadParameter(f"{part} is not measured on a GPU.")
    if (shapes or quick or out) and (part is None or out is None):
        raise typer.BadParameter("some shapes, or a quick run, would replace the record of all: name a part and --out.")
    command = " ".join(["python", "benchmarks/run.py", *sys.argv[1:]])
    for name in GPU_PARTS:
        if part in (None, name):
            with _progress() as progress:
                settings = Settings(minimum_s=0.05).quick() if quick else None
                record = run_gpu(name, shapes, settings=settings, command=command, progress=progress)
            for sentence in missed(record):
                messages.print(f"[red]missed[/] {sentence}", soft_wrap=True)
            _write(record, out or documents.results("cuda") / f"{name}.json")
    if out is None:
        documents.write()


def _write(record: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_json(record) + "\n", encoding="utf-8")
    messages.print(f"Written: {path}")


def _everything(threads: int, device: str) -> None:
    """Each part in a process of its own: torch reads its allocator's setting once."""
    for part in PARTS:
        command = [sys.executable, __file__, part, "--threads", str(threads), "--device", device]
        if (code := subprocess.run(command).returncode) != 0:
            raise typer.Exit(code)


def _measured(
    part: Part, shapes: tuple[str, ...], quick: bool, threads: int, device: str, memory: bool
) -> dict[str, Any]:
    command = " ".join(["python", "benchmarks/run.py", *sys.argv[1:]])
    if part == "linear" and shapes:
        raise typer.BadParameter("linear has one shape: leave out --shape.")
    if part in ("scaling", "threads", "first_call", "accuracy", "scoring") and (shapes or quick):
        raise typer.BadParameter(f"{part} has sizes of its own: leave out --shape and --quick.")
    # Not at the top: these import torch, which would then no longer ask for huge pages.
    if part == "accuracy":
        from xent.benchmark.accuracy import run_accuracy
    if part == "linear":
        from xent.benchmark import linear
    with _progress() as progress:
        if part == "accuracy":
            return run_accuracy(command=command, progress=progress)
        if part == "scoring":
            return run_scoring(threads=threads, command=command, progress=progress)
        if part == "scaling":
            return run_scaling(threads=threads, device=device, command=command, progress=progress)
        if part == "threads":
            return run_threads(threads=threads, command=command, progress=progress)
        if part == "first_call":
            return run_first_call(threads=threads, command=command, progress=progress)
        if part == "linear":
            size = linear.SHAPES["quick" if quick else "gpt2"]
            return linear.run(
                size, threads=threads, measure_memory=memory and not quick, command=command, progress=progress
            )
        huge = part == "logits_huge_pages"
        return run(
            shapes or (LARGE if huge else ()),
            quick=quick,
            threads=threads,
            device=device,
            measure_memory=memory and not huge,
            huge_pages=huge,
            command=command,
            progress=progress,
        )


def _show(record: dict[str, Any]) -> None:
    console = Console()
    for table in tables(record):
        console.print(table, "")
    for sentence in missed(record):
        console.print(f"[red]missed[/] {sentence}", soft_wrap=True)
    for sentence in disturbed(record):
        console.print(f"[yellow]disturbed[/] {sentence}", soft_wrap=True)


def _json(value: Any, indent: str = "") -> str:
    """JSON with one line for whatever contains only plain values: small, and readable in a diff."""
    items = list(value.values() if isinstance(value, dict) else value) if isinstance(value, dict | list) else []
    if not any(isinstance(item, dict | list) for item in items):
        return json.dumps(value)
    inner = indent + " "
    names = [f"{json.dumps(name)}: " for name in value] if isinstance(value, dict) else [""] * len(items)
    lines = [f"{inner}{name}{_json(item, inner)}" for name, item in zip(names, items, strict=True)]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return "\n".join([opening, ",\n".join(lines), indent + closing])


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=messages, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield report


if __name__ == "__main__":
    typer.run(main)
