"""The Typer application and what its commands share: errors, the progress bar, tables, reading and writing files.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done; 2 the input or the options
cannot be used, with a message that says why and what to do.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from xent import __version__
from xent.errors import DataError, XentError

app = typer.Typer(
    name="xent",
    help="Cross-entropy: compute it, train with it, score with it, and see why it works.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)
errors = Console(stderr=True)

Report = Callable[[str, int, int | None], None]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"xent {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    pass


# ------------------------------------------------------------------------------------------------- errors and progress


@contextmanager
def reported_errors() -> Iterator[None]:
    """Turn an error of ours into one line and exit code 2."""
    try:
        yield
    except XentError as error:
        errors.print(f"[bold red]xent:[/] {escaped(str(error))}", soft_wrap=True)
        raise typer.Exit(2) from None


@contextmanager
def progress(*, transient: bool = False) -> Iterator[Report]:
    """Yield a function that takes a description, what is done and the total; None makes a bar without an end."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=transient) as bars:
        tasks: dict[str, TaskID] = {}
        before: dict[str, int] = {}

        def report(description: str, done: int, total: int | None) -> None:
            if description not in tasks:
                tasks[description] = bars.add_task(description, total=None)
                before[description] = 0
            task = tasks[description]
            if done == 0:  # another round of the same work lengthens its bar
                before[description] = int(bars.tasks[task].completed)
            end = None if total is None else before[description] + total
            bars.update(task, completed=before[description] + done, total=end)

        yield report


@contextmanager
def row_progress(data: str) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the number of rows read so far."""
    total = _known_rows(data)
    with progress(transient=True) as report:
        report("rows", 0, total)
        yield lambda done: report("rows", done, total)


def _known_rows(data: str) -> int | None:
    """The number of rows in the metadata of Parquet files; None for other formats."""
    import polars as pl

    from xent.scoring import readers

    paths = readers.find_files(data)
    if paths[0].suffix.lower() != ".parquet":
        return None
    with readers.reading(data):
        return int(readers.scan_files(paths).select(pl.len()).collect(engine="streaming").item())


# ----------------------------------------------------------------------------------------------------- text and tables


def escaped(text: str) -> str:
    """The text without Rich's markup."""
    return text.replace("[", r"\[")


def new_table(title: str, *columns: str) -> Table:
    """An empty table; the first column and columns of words are left-aligned."""
    result = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for k, name in enumerate(columns):
        words = name in ("unit", "label", "predicted", "likeliest", "value") and title != "by class"
        result.add_column(name, justify="left" if k == 0 or words else "right", overflow="fold")
    return result


def number(value: float) -> str:
    """Four significant digits; nothing for NaN."""
    if math.isnan(value):
        return ""
    return "infinite" if math.isinf(value) else f"{value:.4g}"


def percent(value: float) -> str:
    """A share in percent; nothing if it is not finite."""
    return "" if math.isnan(value) or math.isinf(value) else f"{value:.1%}"


def interval(estimate: Any) -> str:
    """The ends of a confidence interval."""
    return "" if math.isnan(estimate.low) else f"{number(estimate.low)} to {number(estimate.high)}"


# ------------------------------------------------------------------------------------------------------- files, columns


def column_names(values: list[str] | None) -> str | list[str] | None:
    """A repeatable option as the library takes it: one pattern, or a list of names."""
    return values[0] if values and len(values) == 1 else values or None


def require_folder(out: Path) -> None:
    """Make the folder of a report before the work; DataError if that fails."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {out}: cannot make this folder ({error.strerror}). Name another one.") from None


def require_writable(as_json: str | None, html: Path | None = None) -> None:
    """DataError before the work if one of these files cannot be written."""
    for path in (Path(as_json) if as_json not in (None, "-") else None, html):
        if path is not None and (path.is_dir() or not os.access(path.resolve().parent, os.W_OK)):
            raise DataError(f"{path}: cannot be written there. Name a file in a folder that exists.")


def write_json(record: dict[str, Any], as_json: str | None) -> list[Path]:
    """Write the record to a file, or print it for "-"; return what was written."""
    if as_json is None:
        return []
    text = json.dumps(record, allow_nan=False)
    if as_json == "-":
        print(text)
        return []
    from xent.report.page import write_together

    path = Path(as_json)
    return list(write_together(path.parent, {path.name: text}).values())


def print_written(paths: Sequence[Path]) -> None:
    """Name the files that were written."""
    for path in paths:
        Console().print(f"Written: [bold]{escaped(str(path))}[/]", soft_wrap=True)


def source_of(data: str) -> dict[str, Any]:
    """The name, size and SHA-256 of the input, and the versions that scored it."""
    import numpy
    import polars

    from xent.scoring import readers

    paths = readers.find_files(data)
    return {
        "name": data,
        "files": len(paths),
        "bytes": sum(path.stat().st_size for path in paths),
        "sha256": readers.digest(paths),
        "versions": {"xent": __version__, "polars": polars.__version__, "numpy": numpy.__version__},
    }
