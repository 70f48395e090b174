"""`xent score` and `xent compare`, on Typer and Rich: arguments, progress, tables. xent.scoring has the figures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from xent.cli.app import _escaped, _refusing, _usable_folder, app, errors
from xent.errors import DataError

if TYPE_CHECKING:
    from xent.scoring import Comparison, Score

__all__ = ["app"]

Path_ = Annotated[str, typer.Argument(help="File, folder or pattern: Parquet, CSV, Arrow, npz or npy.")]
Label = Annotated[str | None, typer.Option(help="Column of the labels; a pattern such as 't_*' for soft labels.")]
Proba = Annotated[
    list[str] | None,
    typer.Option(
        help="Probabilities: a pattern such as 'p_*', a column of lists, one column (of class 1), or repeated."
    ),
]
Logits = Annotated[list[str] | None, typer.Option(help="The same, of logits.")]
LogProb = Annotated[str | None, typer.Option(help="Column with log q[label] (nats), for large vocabularies.")]
Weight = Annotated[str | None, typer.Option(help="Column of weights.")]
Id = Annotated[str | None, typer.Option("--id", help="Column that names the rows.")]
By = Annotated[list[str] | None, typer.Option(help="Column of segments; can be given more than once.")]
Classes = Annotated[str | None, typer.Option(help="Names of the classes, with commas, in the order of the columns.")]
Clip = Annotated[float | None, typer.Option(help="Smallest probability that a label is scored with.")]
Tolerance = Annotated[float | None, typer.Option(help="How far from 1 probabilities may sum.")]
Json = Annotated[str | None, typer.Option("--json", help="Write everything as JSON: to a file, or '-' to print it.")]


@app.command()
def score(
    data: Path_,
    label: Label = None,
    proba: Proba = None,
    logits: Logits = None,
    log_prob: LogProb = None,
    entropy: Annotated[str | None, typer.Option(help="With --log-prob: column of the predictions' entropy.")] = None,
    weight: Weight = None,
    id_: Id = None,
    by: By = None,
    classes: Classes = None,
    clip: Clip = None,
    tolerance: Tolerance = None,
    worst: Annotated[int, typer.Option(min=1, max=1000, help="Most surprising rows to keep.")] = 50,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave out, count and name rows that cannot be scored.")
    ] = False,
    as_json: Json = None,
    html: Annotated[Path | None, typer.Option(help="Write the report, one file that opens offline.")] = None,
) -> None:
    """Say how good predictions are, in nats and bits, against what, why, and which rows are to blame.

    - `xent score predictions.parquet --label y --proba 'p_*'`
    - `xent score churn.csv --label churned --proba p --id customer --by country --html churn.html`
    - `xent score 'tokens/*.parquet' --log-prob logp --json -`
    """
    with _refusing():
        from xent.scoring import score as scored

        _writable(as_json, html)
        with _progress(data) as told:
            found = scored(
                data,
                label,
                proba=_columns(proba),
                logits=_columns(logits),
                log_prob=log_prob,
                entropy=entropy,
                weight=weight,
                id=id_,
                by=tuple(by or ()),
                classes=_names(classes),
                clip=clip,
                tolerance=tolerance,
                worst=worst,
                invalid="skip" if skip_invalid else "raise",
                progress=told,
            )
        record = None
        if as_json is not None or html is not None:
            record = {**found.to_record(), "source": _source(data)}
        written = _write(record, as_json)
        if html is not None and record is not None:
            from xent.report import write_score

            written.append(write_score(record, html))
        if as_json != "-":
            _print_score(found, data)
            _print_written(written)


@app.command()
def compare(
    a: Path_,
    b: Path_,
    id_: Annotated[str, typer.Option("--id", help="Column that names the rows in both.")],
    label: Label = None,
    proba: Proba = None,
    logits: Logits = None,
    log_prob: LogProb = None,
    proba_b: Annotated[list[str] | None, typer.Option(help="The probabilities of B, if named otherwise.")] = None,
    weight: Weight = None,
    by: By = None,
    cluster: Annotated[str | None, typer.Option(help="Column of A: rows of one value depend on each other.")] = None,
    classes: Classes = None,
    clip: Clip = None,
    tolerance: Tolerance = None,
    as_json: Json = None,
) -> None:
    """Say which of two sets of predictions of the same rows is better, by how much, and where.

    - `xent compare old.parquet new.parquet --id row --label y --proba 'p_*' --by country`
    - `xent compare a.csv b.csv --id question --log-prob logp --cluster document`
    """
    with _refusing():
        from xent.scoring import compare as compared

        _writable(as_json, None)
        found = compared(
            a,
            b,
            id=id_,
            label=label,
            proba=_columns(proba),
            logits=_columns(logits),
            log_prob=log_prob,
            proba_b=_columns(proba_b),
            weight=weight,
            by=tuple(by or ()),
            cluster=cluster,
            classes=_names(classes),
            clip=clip,
            tolerance=tolerance,
        )
        written = _write(found.to_record(), as_json)
        if as_json != "-":
            _print_comparison(found, a, b)
            _print_written(written)


def replay_predictions(
    data: str, label: str | None, proba: list[str] | None, logits: list[str] | None, out: Path, as_json: bool
) -> None:
    """`xent why --predictions`: both gradients on the rows of a table of predictions."""
    with _refusing():
        from xent.report import write_replay
        from xent.report.replay_page import bands
        from xent.scoring import score as scored
        from xent.why.predictions import replay

        _usable_folder(out)
        with _progress(data) as told:
            found = replay(scored(data, label, proba=_columns(proba), logits=_columns(logits), progress=told))
        record = {**found.to_dict(), "source": _source(data)}
        page = write_replay(record, out)
        if as_json:
            print(json.dumps(record))
            return
        table = _table(
            "mean length of the gradient by the logits", "probability of the label", "rows", "cross-entropy",
            "squared error", "part of CE's", "part of SE's",
        )  # fmt: skip
        for row in bands(record):
            table.add_row(*row)
        Console().print(table)
        _print_written([page, page.with_suffix(".json")])


def _columns(given: list[str] | None) -> str | list[str] | None:
    return given[0] if given and len(given) == 1 else given or None


def _names(given: str | None) -> list[str] | None:
    return None if given is None else [name.strip() for name in given.split(",")]


def _writable(as_json: str | None, html: Path | None) -> None:
    """Find out before the work that a file cannot be written."""
    for path in (Path(as_json) if as_json not in (None, "-") else None, html):
        if path is not None and (path.is_dir() or not os.access(path.resolve().parent, os.W_OK)):
            raise DataError(f"{path}: cannot be written there. Name a file in a folder that exists.")


def _source(data: str) -> dict[str, Any]:
    """The name, size and SHA-256 of the input, and the versions that scored it."""
    import numpy
    import polars

    from xent import __version__
    from xent.scoring import readers

    found = readers.find_files(data)
    return {
        "name": data,
        "files": len(found),
        "bytes": sum(path.stat().st_size for path in found),
        "sha256": readers.digest(found),
        "versions": {"xent": __version__, "polars": polars.__version__, "numpy": numpy.__version__},
    }


def _write(record: dict[str, Any] | None, as_json: str | None) -> list[Path]:
    if as_json is None or record is None:
        return []
    text = json.dumps(record, allow_nan=False)
    if as_json == "-":
        print(text)
        return []
    from xent.report.page import write_together

    path = Path(as_json)
    return list(write_together(path.parent, {path.name: text}).values())


@contextmanager
def _progress(data: str) -> Iterator[Callable[[int], None]]:
    """A bar of the rows; where the number of rows is not in the file, it has no end."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as bars:
        task = bars.add_task("rows", total=_known_rows(data))
        yield lambda done: bars.update(task, completed=done)


def _known_rows(data: str) -> int | None:
    """The rows that the metadata of Parquet files count."""
    import polars as pl

    from xent.scoring import readers

    found = readers.find_files(data)
    if found[0].suffix.lower() != ".parquet":
        return None
    with readers.reading(data):
        return int(readers.scan_files(found).select(pl.len()).collect(engine="streaming").item())


def _print_score(score: Score, data: str) -> None:
    console = Console()
    clip = "" if score.form.clip is None else f", clipped at {score.form.clip:g}"
    classes = f", {len(score.form.classes)} classes" if score.form.classes else ""
    console.print(f"[bold]{_escaped(data)}[/]: {score.rows:,} rows{classes}{clip}", soft_wrap=True)
    console.print(_headline(score))
    if score.form.classes and len(score.classes) <= 20:
        console.print(_class_table(score))
    for name, segments in score.segments.items():
        table = _table(f"by {name}, the worst first", name, "rows", "nats", "95% interval", "share of loss")
        for s in segments[:15]:
            e = s.cross_entropy
            table.add_row(_escaped(s.value), f"{s.rows:,}", _n(e.nats), _interval(e), _percent(s.share_of_loss))
        console.print(table)
    table = _table("the most surprising rows", "row", "label", "predicted", "bits", "likeliest")
    for row in score.surprising[:8]:
        likeliest = ", ".join(f"{name} {p:.3g}" for name, p in row.likeliest[:3])
        name = row.id if row.id is not None else f"{row.row:,}"
        table.add_row(*(_escaped(t or "") for t in (name, row.label, row.predicted)), _n(row.bits), _escaped(likeliest))
    console.print(table)
    for warning in score.warnings:
        errors.print(f"[yellow]![/] {_escaped(warning)}", soft_wrap=True)


def _headline(score: Score) -> Table:
    """Quantity, value, unit."""
    table = _table("", "quantity", "value", "unit")
    ce, t = score.cross_entropy, score.temperature
    interval = "" if math.isnan(ce.low) else f" ({_n(ce.low)} to {_n(ce.high)})"
    rows = [
        ("cross-entropy", f"[bold]{_n(ce.nats)}[/]{interval}", "nats per row, 95% interval"),
        ("", _n(ce.bits), "bits per row"),
    ]
    if score.impossible_rows and score.form.clip is None:
        rows.append(("  without impossible rows", _n(score.cross_entropy_possible), "nats per row"))
    rows += [
        ("perplexity", _n(score.perplexity), "equally likely classes"),
        ("likelihood", f"{score.likelihood}", "probability of all labels together"),
        ("  per row", _n(score.likelihood_per_row), "probability, geometric mean"),
        ("base rate", _n(score.base_rate.nats), "nats per row: entropy of the labels"),
        ("knowing nothing", _n(score.uniform.nats), "nats per row: log C"),
        ("explained", _percent(score.explained), "of the base rate (D²)"),
        ("entropy", _n(score.entropy.nats), f"nats per row: of the {'labels' if score.form.soft else 'predictions'}"),
        ("Brier score", _n(score.brier), "0 to 2"),
        ("accuracy", _percent(score.accuracy), "of rows"),
        ("calibration error", _n(score.calibration_error), "difference of probabilities (ECE)"),
    ]
    flat = score.to_dict()
    for name in ("miscalibration", "discrimination", "uncertainty"):
        rows.append((name, _n(flat.get(f"{name}_nats", math.nan)), "nats, mean over classes against the rest"))
    if t is not None:
        gain = f"{_n(t.gain)} ({_n(t.gain_low)} to {_n(t.gain_high)})"
        rows.append((f"temperature {t.temperature:.3g} wins", gain, f"nats per row, cross-fitted on {t.rows:,} rows"))
    rows.append(("worst 1% of rows carry", _percent(dict(score.concentration).get(0.01, math.nan)), "of the loss"))
    rows.append(("impossible rows", f"{score.impossible_rows:,}", "rows"))
    for name, value, unit in rows:
        if value != "":
            table.add_row(name, value, f"[dim]{unit}[/]")
    return table


def _class_table(score: Score) -> Table:
    table = _table("by class", "class", "share", "predicted", "nats", "recall", "share of loss", "miscalibration")
    for c in score.classes:
        against = "" if c.against_rest is None else _n(c.against_rest.miscalibration)
        shares = (_percent(c.share), _percent(c.predicted_share))
        table.add_row(_escaped(c.name), *shares, _n(c.loss), _percent(c.recall), _percent(c.share_of_loss), against)
    return table


def _print_comparison(found: Comparison, a: str, b: str) -> None:
    console = Console()
    d = found.difference
    console.print(f"[bold]a[/] {_escaped(a)}\n[bold]b[/] {_escaped(b)}", soft_wrap=True)
    table = _table("", "quantity", "value", "unit")
    clusters = "" if found.clusters is None else f", {found.clusters:,} clusters"
    rows = [
        ("a minus b", f"[bold]{_n(d.nats)}[/]", f"nats per row, {found.rows:,} paired rows{clusters}"),
        ("", _interval(d), "95% interval; below 0, a is better"),
        ("p-value", _n(found.p_value), "of no difference, paired t-test"),
        ("cross-entropy of a", _n(found.cross_entropy_a), "nats per row"),
        ("cross-entropy of b", _n(found.cross_entropy_b), "nats per row"),
        ("accuracy of a, b", f"{_percent(found.accuracy_a)}, {_percent(found.accuracy_b)}", "of rows"),
        ("a better, b better", f"{found.better_a:,}, {found.better_b:,}", "rows"),
        ("only in a, only in b", f"{found.only_in_a:,}, {found.only_in_b:,}", "rows, not compared"),
        ("impossible in a, in b", f"{found.impossible_a:,}, {found.impossible_b:,}", "rows"),
    ]
    for name, value, unit in rows:
        if value not in ("", ", "):
            table.add_row(name, value, f"[dim]{unit}[/]")
    console.print(table)
    if found.segments:
        table = _table("segments that drive it", "column", "value", "rows", "nats", "95% interval", "share")
        for s in found.segments[:15]:
            e = s.difference
            names = (_escaped(s.column), _escaped(s.value))
            table.add_row(*names, f"{s.rows:,}", _n(e.nats), _interval(e), _percent(s.share))
        console.print(table)
    table = _table("rows that drive it", "id", "loss of a", "loss of b", "difference")
    for row in found.drivers[:8]:
        table.add_row(_escaped(row.id), _n(row.loss_a), _n(row.loss_b), _n(row.difference))
    console.print(table)
    verdict = {"a": "a is better.", "b": "b is better.", "neither": "The interval includes 0: neither is better."}
    console.print(verdict[found.winner])


def _print_written(paths: list[Path]) -> None:
    for path in paths:
        Console().print(f"Written: [bold]{_escaped(str(path))}[/]", soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for k, name in enumerate(columns):
        words = name in ("unit", "label", "predicted", "likeliest", "value") and title != "by class"
        table.add_column(name, justify="left" if k == 0 or words else "right", overflow="fold")
    return table


def _n(value: float) -> str:
    if math.isnan(value):
        return ""
    return "infinite" if math.isinf(value) else f"{value:.4g}"


def _percent(value: float) -> str:
    return "" if math.isnan(value) or math.isinf(value) else f"{value:.1%}"


def _interval(e: Any) -> str:
    return "" if math.isnan(e.low) else f"{_n(e.low)} to {_n(e.high)}"
