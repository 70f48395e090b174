"""The Typer application and what its commands share: errors, the progress bar, tables, reading and writing files.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done; 1 interrupted, or whoever read
standard output is gone; 2 the input, the options or an output cannot be used, with a message that says why and what to
do. Names from data go through xent.names and then to consoles without markup, of which `terminal` is the only source.
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
from rich.text import Text

from xent import __version__
from xent.errors import DataError, XentError, words_of_the_command_line
from xent.files import check_writable, is_standard_output, make_folder, write_text
from xent.names import shown_name, shown_path, visible

app = typer.Typer(
    name="xent",
    help="Cross-entropy: compute it, train with it, score with it, and see why it works.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)


def terminal(*, stderr: bool = False) -> Console:
    """A console that prints what it gets: text from data is neither markup nor an emoji nor a link."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


errors = terminal(stderr=True)

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
    """Turn an error of ours into one line, in the words of the command line, and exit code 2."""
    try:
        with words_of_the_command_line():
            yield
    except XentError as error:
        print_error("xent", error)
        raise typer.Exit(2) from None


def print_error(command: str, error: Exception) -> None:
    """Print an error as one line."""
    errors.print(Text.assemble((f"{command}:", "bold red"), " ", visible(str(error))), soft_wrap=True)


@contextmanager
def progress(*, transient: bool = False) -> Iterator[Report]:
    """Yield a function that takes a description, what is done and the total; None makes a bar without an end."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    unseen = transient and not errors.is_terminal  # a bar that goes away leaves an empty line in a file
    with Progress(*columns, console=errors, transient=transient, disable=unseen) as bars:
        tasks: dict[str, TaskID] = {}
        before: dict[str, int] = {}

        def report(description: str, done: int, total: int | None) -> None:
            if description not in tasks:
                tasks[description] = bars.add_task(shown_name(description), total=None)
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

    from xent.scoring.files import find_files, reading
    from xent.scoring.tables import scan_files

    found = find_files(data)
    if found.kind != "parquet" or found.address is not None:
        return None
    with reading(data):
        return int(scan_files(found).select(pl.len()).collect(engine="streaming").item())


# ----------------------------------------------------------------------------------------------------- text and tables


def styled(text: str, style: str) -> Text:
    """Text in a style; there is no markup on our consoles."""
    return Text(text, style=style)


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
    return ("-" if value < 0 else "") + "infinite" if math.isinf(value) else f"{value:.4g}"


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


def require_folder(out: str, *names: str) -> None:
    """Make the folder of a report before the work; DataError if that fails or its files cannot be written."""
    make_folder(out, "--out")
    for name in names:
        check_writable(os.path.join(out, name), "--out")


def require_outputs(as_json: str | None, html: str | None = None, *, inputs: Sequence[str] = ()) -> bool:
    """DataError before the work if a file cannot be written or would replace an input or another one.

    Return whether standard output is taken by one of them, and has no place for tables.
    """
    outputs = {"--json": None if as_json == "-" else as_json, "--html": html}
    taken = {str(path.resolve()): "the input" for data in inputs for path in files_of(data)}
    for option, path in outputs.items():
        if path is None:
            continue
        check_writable(path, option)
        whole = os.path.realpath(path)
        is_stream = os.path.exists(whole) and not os.path.isfile(whole)
        if whole in taken and not is_stream:
            raise DataError(f"{option} {shown_path(path)}: this is {taken[whole]}. Name another file.")
        taken[whole] = f"also {option}"
    return as_json == "-" or any(is_standard_output(path) for path in outputs.values() if path is not None)


def require_inputs_kept(out: str, *inputs: str | None) -> None:
    """DataError before the work if an output would replace one of the inputs."""
    for data in inputs:
        paths = [] if data is None else [Path(data)] if os.path.isfile(data) else files_of(data)
        if data is not None and os.path.isfile(out) and Path(out).resolve() in {path.resolve() for path in paths}:
            raise DataError(f"OUT {shown_path(out)}: this is {shown_path(data)}. Name another file.")


def files_of(data: str) -> list[Path]:
    """The files that an argument stands for."""
    from xent.scoring.files import find_files

    return list(find_files(data).paths)


def write_json(record: dict[str, Any], as_json: str | None) -> list[Path]:
    """Write the record to a file, or print it for "-"; return what was written."""
    if as_json is None:
        return []
    text = json.dumps(record, allow_nan=False)
    if as_json == "-":
        print(text)
        return []
    return [write_text(as_json, text)]


def print_written(paths: Sequence[Path]) -> None:
    """Name the files that were written."""
    for path in paths:
        terminal().print(Text.assemble("Written: ", (shown_path(path), "bold")), soft_wrap=True)


def source_of(data: str, name: str | None = None) -> dict[str, Any]:
    """The name, size and SHA-256 of the input, and the versions that scored it."""
    import numpy
    import polars

    from xent.scoring.files import digest as digest_of
    from xent.scoring.files import reading

    with reading(data):
        paths = files_of(data)
        size = sum(path.stat().st_size for path in paths)
        digest = digest_of(tuple(paths)) if paths else None  # an address is not read twice
    return {
        "name": name or data,
        "files": len(paths),
        "bytes": size,
        "sha256": digest,
        "versions": {"xent": __version__, "polars": polars.__version__, "numpy": numpy.__version__},
    }
