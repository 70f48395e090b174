"""The commands themselves, on Typer and Rich. Results go to standard output, progress and errors to standard error.

Exit codes: 0 done; 2 the input or the options cannot be used, with a message that says why and what to do.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from xent import __version__
from xent.errors import XentError

if TYPE_CHECKING:
    from xent.why.record import Comparison, Record, Spread

app = typer.Typer(
    name="xent",
    help="Cross-entropy: compute it, train with it, score with it, and see why it works.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)
errors = Console(stderr=True)


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn what xent raises on purpose into one line and exit code 2."""
    try:
        yield
    except XentError as error:
        errors.print(f"[bold red]xent:[/] {_escaped(str(error))}", soft_wrap=True)
        raise typer.Exit(2) from None


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")


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


@app.command()
def why(
    data: Annotated[
        str, typer.Argument(help="digits, iris, wine or breast_cancer, or the path of a .csv or .parquet file.")
    ] = "digits",
    label: Annotated[str | None, typer.Option(help="The column to predict. Needed for a file.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="A column to leave out; can be given more than once.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two seeds and a third of the epochs: a first look.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="The first of the five seeds.")] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training rows [default: 30].")] = None,
    out: Annotated[Path, typer.Option(help="Folder for why.html and why.json.")] = Path("xent-why"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON in place of the table.")] = False,
    predictions: Annotated[
        str | None, typer.Option(help="Predictions of your own: replay both gradients on them, and train nothing.")
    ] = None,
    proba: Annotated[list[str] | None, typer.Option(help="With --predictions: as in `xent score`.")] = None,
    logits: Annotated[list[str] | None, typer.Option(help="With --predictions: as in `xent score`.")] = None,
) -> None:
    """See why classifiers are trained with cross-entropy and not with squared error.

    Trains two models on your data, with each loss at the learning rate that suits it best, from an ordinary start and
    from one that is confidently wrong; measures which learns faster; and writes an offline report, why.html.

    - `xent why` : handwritten digits, about a minute
    - `xent why iris --quick` : a first look in seconds
    - `xent why customers.csv --label churned --drop id --out report`
    - `xent why --predictions scored.parquet --label y --proba 'p_*'` : on predictions that you have
    """
    if predictions is not None:
        from xent.cli.score import replay_predictions

        replay_predictions(predictions, label, proba, logits, out, as_json)
        return
    with _refusing():
        _refuse_without_predictions(proba, logits)
        from xent.report import write_why
        from xent.why import Settings, load, run

        dataset = load(data, label, tuple(drop or ()))
        settings = Settings(seeds=tuple(range(seed, seed + 5)))
        if epochs is not None:
            settings = dataclasses.replace(settings, epochs=epochs)
        if quick:
            settings = settings.quick()
        _usable_folder(out)
        with _progress() as report_progress:
            record = run(dataset, settings, report_progress)
        page = write_why(record, out)
        if as_json:
            print(json.dumps(record.to_dict()))
            return
        _print_comparisons(record)
        print("* the ranges over the seeds touch\n")
        numbers = page.with_suffix(".json")
        Console().print(
            f"The report: [bold]{_escaped(str(page))}[/], every number in {_escaped(str(numbers))}", soft_wrap=True
        )


@app.command()
def bench(
    shape: Annotated[
        list[str] | None, typer.Option(help="gpt2, imagenet, cifar ...; can be given more than once.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="All contestants and more rounds: minutes.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads for everybody.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON in place of the tables.")] = False,
) -> None:
    """Measure the loss on this machine, beside its peers and beside a copy of the logits.

    - `xent bench` : the quick run, about a minute
    - `xent bench --shape gpt2 --full` : one shape with everybody
    """
    with _refusing():
        from xent.benchmark import run
        from xent.benchmark.show import disturbed, missed, tables

        with _progress() as report_progress:
            record = run(shape or (), quick=not full, threads=threads, command="xent bench", progress=report_progress)
        if as_json:
            print(json.dumps(record))
            return
        for table in tables(record):
            Console().print(table, "")
        for sentence in [*missed(record), *disturbed(record)]:
            errors.print(_escaped(sentence))


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")] = False,
) -> None:
    """Show versions, devices, which kernels would run here and why, and the number of threads."""
    with _refusing():
        from xent.cli.doctor import diagnosis

        found = diagnosis()
    if as_json:
        print(json.dumps(found))
        return
    console = Console()
    for title, rows in found.items():
        table = Table(title=title.capitalize(), title_justify="left", show_header=False, box=None, padding=(0, 2))
        for name, value in rows.items():
            table.add_row(name, _escaped(str(value)))
        console.print(table, "")


def _refuse_without_predictions(proba: list[str] | None, logits: list[str] | None) -> None:
    from xent.errors import ArgumentError

    if proba or logits:
        raise ArgumentError("--proba, --logits: they name columns of --predictions FILE, which is not given.")


def _usable_folder(out: Path) -> None:
    """Find out before the work, and not after it, that the report cannot be written."""
    from xent.errors import DataError

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {out}: cannot make this folder ({error.strerror}). Name another one.") from None


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors) as bars:
        tasks: dict[str, TaskID] = {}
        before: dict[str, int] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            if done == 0:  # a further round of the same work lengthens its bar
                before[what] = int(bars.tasks[tasks[what]].completed)
            bars.update(tasks[what], completed=before[what] + done, total=before[what] + total)

        yield report


def _print_comparisons(record: Record) -> None:
    data = record.data
    sampled = f" sampled from {data.rows_in_source}" if data.rows != data.rows_in_source else ""
    console = Console()
    console.print(
        f"[bold]{_escaped(data.name)}[/]: {data.rows} rows{sampled}, {data.features} features, {len(data.classes)} "
        f"classes; {data.rows_train} rows to train, {data.rows_validation} to choose learning rates, "
        f"{data.rows_test} to test; median (range) of {len(record.settings.seeds)} seeds"
    )
    for start, model in dict.fromkeys((c.start, c.model) for c in record.comparisons):
        console.print(_table(start, model, [c for c in record.comparisons if (c.start, c.model) == (start, model)]))


def _table(start: str, model: str, comparisons: list[Comparison]) -> Table:
    """One start and model, narrow enough for 80 columns."""
    table = Table(title=f"{start} start, {model}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("on the test rows", no_wrap=True)
    table.add_column("cross-entropy", justify="right", min_width=15)
    table.add_column("squared error", justify="right", min_width=15)
    table.add_column("better", min_width=15)
    for c in comparisons:
        winner = "tie" if c.winner == "tie" else c.winner + ("" if c.clear else " *")
        measure = c.measure.replace("test ", "") + (" [dim](nats)[/]" if "nats" in c.unit else "")
        table.add_row(measure, _spread(c.cross_entropy, c.unit), _spread(c.squared_error, c.unit), winner)
    return table


def _spread(spread: Spread, unit: str) -> str:
    def number(value: float) -> str:
        if value == float("inf"):
            return "never"
        return f"{value:g}" if unit == "steps" else f"{value:.3f}"

    if spread.low == spread.high:
        return number(spread.median)
    return f"{number(spread.median)} [dim]({number(spread.low)}–{number(spread.high)})[/]"
