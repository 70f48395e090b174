"""`xent why`: the experiment, or both gradients on predictions of the user's own."""

from __future__ import annotations

import dataclasses
import json
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from xent.cli.app import (
    column_names,
    new_table,
    print_written,
    progress,
    reported_errors,
    require_folder,
    row_progress,
    source_of,
    terminal,
)
from xent.errors import ArgumentError
from xent.names import shown_name, shown_path

if TYPE_CHECKING:
    from xent.why.record import Comparison, Record, Spread


def why(
    data: Annotated[
        str, typer.Argument(help="digits, iris, wine or breast_cancer, or the path of a .csv or .parquet file.")
    ] = "digits",
    label: Annotated[str | None, typer.Option(help="The column to predict. Needed for a file.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="A column to leave out; can be given more than once.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two seeds and a third of the epochs: a first look.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="The first of the five seeds.")] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training rows [default: 30].")] = None,
    out: Annotated[str, typer.Option(help="Folder for why.html and why.json.")] = "xent-why",
    image: Annotated[
        str | None,
        typer.Option(metavar="ROWSxCOLUMNS", help="The columns are pixels of a picture of this size, row by row."),
    ] = None,
    share: Annotated[bool, typer.Option("--share", help="Leave the rows of the data out of the report.")] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
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

    - `xent why` : handwritten digits, some ten seconds
    - `xent why iris --quick` : a first look in seconds
    - `xent why customers.csv --label churned --drop id --out report`
    - `xent why pictures.parquet --label kind --image 28x28 --open`
    - `xent why --predictions scored.parquet --label y --proba 'p_*'` : on predictions that you have
    """
    with reported_errors():
        if predictions is not None:
            if image or share:
                raise ArgumentError("--image, --share: the report of --predictions has no row of the data. Omit them.")
            _open(_replay(predictions, label, proba, logits, out, as_json), open_)
            return
        if proba or logits:
            raise ArgumentError("--proba, --logits: they name columns of --predictions FILE, which is not given.")
        from xent.report import write_why
        from xent.why import Settings, load, run

        dataset = load(data, label, tuple(drop or ()), image)
        settings = Settings(seeds=tuple(range(seed, seed + 5)))
        if epochs is not None:
            settings = dataclasses.replace(settings, epochs=epochs)
        if quick:
            settings = settings.quick()
        require_folder(out, "why.html", "why.json")
        with progress() as report:
            record = run(dataset, settings, report)
        record = record.without_rows() if share else record
        page = write_why(record, Path(out))
        if as_json:
            print(json.dumps(record.to_dict()))
            _open(page, open_)
            return
        _print_comparisons(record)
        print("* the ranges over the seeds touch\n")
        numbers = page.with_suffix(".json")
        names = ("The report: ", (shown_path(page), "bold"), f", every number in {shown_path(numbers)}")
        terminal().print(Text.assemble(*names), soft_wrap=True)
        _open(page, open_)


def _open(page: Path, is_wanted: bool) -> None:
    """Open the page in the reader's browser; where there is none, say so, which is no failure of the work."""
    if is_wanted and not webbrowser.open(page.resolve().as_uri()):
        print(f"--open: no browser was found; the report is {shown_path(page)}.", file=sys.stderr)


def _print_comparisons(record: Record) -> None:
    data = record.data
    sampled = f" sampled from {data.rows_in_source}" if data.rows != data.rows_in_source else ""
    console = terminal()
    summary = (
        f": {data.rows} rows{sampled}, {data.features} features, {len(data.classes)} "
        f"classes; {data.rows_train} rows to train, {data.rows_validation} to choose learning rates, "
        f"{data.rows_test} to test; median (range) of {len(record.settings.seeds)} seeds"
    )
    console.print(Text.assemble((shown_name(data.name), "bold"), summary))
    for start, model in dict.fromkeys((c.start, c.model) for c in record.comparisons):
        comparisons = [c for c in record.comparisons if (c.start, c.model) == (start, model)]
        console.print(_comparison_table(start, model, comparisons))


def _comparison_table(start: str, model: str, comparisons: list[Comparison]) -> Table:
    """One start and model, narrow enough for 80 columns."""
    table = Table(title=f"{start} start, {model}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("on the test rows", no_wrap=True)
    table.add_column("cross-entropy", justify="right", min_width=15)
    table.add_column("squared error", justify="right", min_width=15)
    table.add_column("better", min_width=15)
    for c in comparisons:
        winner = "tie" if c.winner == "tie" else c.winner + ("" if c.clear else " *")
        unit = " (nats)" if "nats" in c.unit else ""
        measure = Text.assemble(c.measure.replace("test ", ""), (unit, "dim"))
        table.add_row(measure, _spread(c.cross_entropy, c.unit), _spread(c.squared_error, c.unit), winner)
    return table


def _spread(spread: Spread, unit: str) -> str | Text:
    def number(value: float) -> str:
        if value == float("inf"):
            return "never"
        return f"{value:g}" if unit == "steps" else f"{value:.3f}"

    if spread.low == spread.high:
        return number(spread.median)
    return Text.assemble(number(spread.median), (f" ({number(spread.low)}–{number(spread.high)})", "dim"))


def _replay(
    data: str, label: str | None, proba: list[str] | None, logits: list[str] | None, out: str, as_json: bool
) -> Path:
    """`--predictions`: both gradients on the rows of a table of predictions. Return the path of the report."""
    from xent.report import write_replay
    from xent.report.replay_page import bands
    from xent.scoring import score
    from xent.why.predictions import replay

    require_folder(out, "predictions.html", "predictions.json")
    with row_progress(data) as report:
        predictions = score(data, label, proba=column_names(proba), logits=column_names(logits), progress=report)
        replayed = replay(predictions)
    record: dict[str, Any] = {**replayed.to_dict(), "source": source_of(data)}
    page = write_replay(record, Path(out))
    if as_json:
        print(json.dumps(record))
        return page
    gradients = new_table(
        "mean length of the gradient by the logits", "probability of the label", "rows", "cross-entropy",
        "squared error", "part of CE's", "part of SE's",
    )  # fmt: skip
    for row in bands(record):
        gradients.add_row(*row)
    terminal().print(gradients)
    print_written([page, page.with_suffix(".json")])
    return page
