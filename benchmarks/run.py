"""Measure, and write the records that the tables of README.md and docs/ are made from.

python benchmarks/run.py                              everything, half an hour or more; replaces results/cpu/*.json
python benchmarks/run.py logits                       one record
python benchmarks/run.py --quick                      a first look, less than a minute; shows, and writes nothing
python benchmarks/run.py --shape gpt2 --out one.json  some shapes only; writes to that file
python benchmarks/run.py --device cuda                logits and linear loss on a GPU; replaces results/cuda/*.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

if __package__ in (None, ""):  # run as a script: import this folder as the package `benchmarks`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape

from benchmarks import avx2, bars, binary_loss, logits_loss, record_tables, sampled_tables, tables
from benchmarks.first_call import run_first_call
from benchmarks.gpu_losses import run_gpu
from benchmarks.scaling import run_scaling
from benchmarks.sharded_loss import run_sharded_loss
from benchmarks.thread_sharing import run_threads
from xent.bench import show
from xent.bench.peers import IMPLEMENTATIONS
from xent.bench.timing import Settings
from xent.cli.app import print_error, progress
from xent.errors import XentError

Part = Literal[
    "logits",
    "logits_avx2",
    "logits_huge_pages",
    "scaling",
    "threads",
    "first_call",
    "accuracy",
    "linear",
    "sampled",
    "binary",
    "divergence",
    "contrastive",
    "options",
    "scoring",
    "parallel",
]
PARTS: tuple[Part, ...] = get_args(Part)
GPU_PARTS: tuple[Literal["logits", "linear"], ...] = ("logits", "linear")
OTHER = "options"
"""The part that has a record of its own on a GPU: the other losses beside torch's formulas."""
LARGE = ("gpt2", "segmentation")
messages = Console(stderr=True)


def main(
    part: Annotated[Part | None, typer.Argument(help="One record only.")] = None,
    shape: Annotated[list[str] | None, typer.Option(help="Some shapes only; with --out or --quick.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="bfloat16 or float32 only; on a GPU, with --out.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A first look; writes nothing without --out.")] = False,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    device: Annotated[Literal["cpu", "cuda"], typer.Option()] = "cpu",
    memory: Annotated[bool, typer.Option(help="Measure peak memory too.")] = True,
    out: Annotated[Path | None, typer.Option(help="Write the record to this file, and leave the tables alone.")] = None,
) -> None:
    """Measure, and replace records, tables and plots."""
    shapes = tuple(shape or ())
    if part == "logits_avx2" and not avx2.is_asked_for():  # read by Numba and torch when they are imported
        again = subprocess.run([sys.executable, *sys.argv], env={**os.environ, **avx2.environment()})
        raise typer.Exit(again.returncode)
    try:
        if device == "cuda":
            _on_gpu(part, shapes, tuple(dtype or ()), quick, out)
            return
        if dtype:
            raise typer.BadParameter("the parts for the CPU have dtypes of their own: leave out --dtype.")
        if part is None and not (quick or shapes or out):
            _everything(threads)
            return
        if shapes and not (quick or out):
            raise typer.BadParameter("some shapes would replace the record of all: add --out FILE, or --quick.")
        part = part or "logits"
        record = _measure(part, shapes, quick, threads, memory)
    except XentError as error:
        print_error("bench", error)
        raise typer.Exit(2) from None
    _show(part, record)
    if out is not None or not quick:
        _write(record, out or tables.results("cpu") / f"{part}.json")
    if out is None and not quick:
        tables.write()


def _everything(threads: int) -> None:
    """Each part in a process of its own: torch reads its allocator's setting once."""
    for part in PARTS:
        command = [sys.executable, __file__, part, "--threads", str(threads)]
        if (code := subprocess.run(command).returncode) != 0:
            raise typer.Exit(code)


def _measure(part: Part, shapes: tuple[str, ...], quick: bool, threads: int, memory: bool) -> dict[str, Any]:
    if part == "linear" and shapes:
        raise typer.BadParameter("linear has one shape: leave out --shape.")
    if part == "binary" and shapes:
        raise typer.BadParameter("binary has shapes of its own: leave out --shape.")
    if part in ("sampled", "divergence", "contrastive", "options") and shapes:
        raise typer.BadParameter(f"{part} has one shape: leave out --shape.")
    if part not in ("logits", "logits_avx2", "logits_huge_pages", "linear", "binary", "divergence", "options") and (
        shapes or quick
    ):
        raise typer.BadParameter(f"{part} has sizes of its own: leave out --shape and --quick.")
    with progress(transient=True) as report:
        common: dict[str, Any] = {"command": _command(), "progress": report}
        # Not imported at the top: what imports torch, which would then no longer ask for huge pages.
        if part == "accuracy":
            from benchmarks.accuracy import run_accuracy

            return run_accuracy(**common)
        if part == "linear":
            from benchmarks import linear_loss

            size = linear_loss.SHAPES["quick" if quick else "gpt2"]
            return linear_loss.run(size, threads=threads, measure_memory=memory and not quick, **common)
        if part == "sampled":
            from benchmarks import sampled_gradient

            return sampled_gradient.run_sampled(threads=threads, measure_memory=memory, **common)
        if part == "binary":
            return binary_loss.run(quick=quick, threads=threads, **common)
        if part == "divergence":
            from benchmarks import divergence_loss

            return divergence_loss.run_divergence(quick=quick, threads=threads, measure_memory=memory, **common)
        if part == "contrastive":
            from benchmarks import contrastive

            return contrastive.run_contrastive(threads=threads, measure_memory=memory, **common)
        if part == "options":
            from benchmarks import loss_options

            return loss_options.run_options(quick=quick, threads=threads, **common)
        if part == "parallel":
            return run_sharded_loss(**common)
        if part == "scoring":
            from benchmarks import score_speed  # imports polars, which no other part needs

            return score_speed.run_scoring(threads=threads, **common)
        if part == "scaling":
            return run_scaling(threads=threads, **common)
        if part == "threads":
            return run_threads(threads=threads, **common)
        if part == "first_call":
            return run_first_call(threads=threads, **common)
        huge_pages = part == "logits_huge_pages"
        return logits_loss.run(
            shapes or (LARGE if huge_pages else ()),
            quick=quick,
            threads=threads,
            measure_memory=memory and part == "logits",
            huge_pages=huge_pages,
            implementations=avx2.MEASURED if part == "logits_avx2" else IMPLEMENTATIONS,
            **common,
        )


def _on_gpu(part: Part | None, shapes: tuple[str, ...], dtypes: tuple[str, ...], quick: bool, out: Path | None) -> None:
    """One record or both; with --quick few rounds."""
    if part == OTHER:
        from benchmarks.gpu_other import run_other

        with progress(transient=True) as report:
            record = run_other(settings=Settings(minimum_s=0.05).quick(), command=_command(), progress=report)
        _write(record, out or tables.results("cuda") / "other.json")
        return
    if part is not None and part not in GPU_PARTS:
        raise typer.BadParameter(f"{part} is not measured on a GPU.")
    if (shapes or dtypes or quick or out) and (part is None or out is None):
        raise typer.BadParameter("some shapes, or a quick run, would replace the record of all: name a part and --out.")
    for name in GPU_PARTS:
        if part in (None, name):
            with progress(transient=True) as report:
                settings = Settings(minimum_s=0.05).quick() if quick else None
                record = run_gpu(name, shapes, dtypes, settings=settings, command=_command(), progress=report)
            _print("[red]missed[/]", bars.missed(record))
            _write(record, out or tables.results("cuda") / f"{name}.json")
    if out is None:
        tables.write()


def _command() -> str:
    return " ".join(["python", "benchmarks/run.py", *sys.argv[1:]])


def _show(part: Part, record: dict[str, Any]) -> None:
    console = Console()
    if part.startswith("logits") or part == "binary":
        for table in show.tables(record):
            console.print(table, "")
        _print("[red]missed[/]", bars.missed(record))
        _print("[yellow]disturbed[/]", show.disturbed(record))
    if part == "linear":
        console.print(Markdown(record_tables.linear(record)))
        _print("[red]missed[/]", bars.missed(record))
    if part == "divergence":
        console.print(Markdown(record_tables.divergence(record)))
    if part == "sampled":
        console.print(Markdown(sampled_tables.speed(record)))
    if part == "scoring":
        from benchmarks import score_speed

        _print("[red]missed[/]", score_speed.missed(record))


def _print(mark: str, sentences: Iterable[str]) -> None:
    for sentence in sentences:
        messages.print(f"{mark} {escape(sentence)}", soft_wrap=True)


def _write(record: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_json(record) + "\n", encoding="utf-8")
    messages.print(f"Written: {path}")


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


if __name__ == "__main__":
    typer.run(main)
