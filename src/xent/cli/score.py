"""`xent score`: options, table and files; xent.scoring has the figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from xent.cli.app import (
    column_names,
    errors,
    interval,
    new_table,
    number,
    percent,
    print_written,
    reported_errors,
    require_outputs,
    row_progress,
    source_of,
    styled,
    terminal,
    write_json,
)
from xent.cli.streams import input_files
from xent.names import shown_name, shown_path, visible

if TYPE_CHECKING:
    from xent.scoring import Score

Data = Annotated[
    str,
    typer.Argument(
        help="File, folder, pattern or address: Parquet, CSV, TSV, JSON lines, Arrow, Excel, npz or npy; CSV and JSON "
        "also as gz, zst, bz2, xz or zip. '-' is standard input."
    ),
]
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
Cluster = Annotated[str | None, typer.Option(help="Column: rows of one value depend on each other.")]
By = Annotated[list[str] | None, typer.Option(help="Column of segments; can be given more than once.")]
Classes = Annotated[str | None, typer.Option(help="Names of the classes, with commas, in the order of the columns.")]
Clip = Annotated[float | None, typer.Option(help="Smallest probability that a label is scored with.")]
Tolerance = Annotated[
    float | None,
    typer.Option(help="How far from 1 probabilities may sum; by default as far as their rounding explains."),
]
Renormalise = Annotated[bool, typer.Option("--renormalise", help="Divide the probabilities of each row by their sum.")]
SkipInvalid = Annotated[
    bool, typer.Option("--skip-invalid", help="Leave out, count and name rows that cannot be scored.")
]
Labels = Annotated[
    str | None,
    typer.Option(help="File of the labels, if it is another: joined by --id or, without it, by the order of the rows."),
]
Exclude = Annotated[list[str] | None, typer.Option(help="Column that no pattern matches; can be given more than once.")]
Explode = Annotated[
    list[str] | None,
    typer.Option(help="Column of lists, each item of which is a row (tokens); dots reach into structures."),
]
Separator = Annotated[
    str | None, typer.Option(help="What separates the fields of a CSV file, if it is not to be found out: ';', tab.")
]
NoHeader = Annotated[
    bool, typer.Option("--no-header", help="The CSV file has no header: columns are column_1, column_2, ...")
]
Json = Annotated[str | None, typer.Option("--json", help="Write everything as JSON: to a file, or '-' to print it.")]


def score(
    data: Data,
    label: Label = None,
    proba: Proba = None,
    logits: Logits = None,
    log_prob: LogProb = None,
    entropy: Annotated[str | None, typer.Option(help="With --log-prob: column of the predictions' entropy.")] = None,
    weight: Weight = None,
    id_: Id = None,
    by: By = None,
    cluster: Cluster = None,
    bytes_: Annotated[str | None, typer.Option("--bytes", help="Column: bytes of each row's text.")] = None,
    characters: Annotated[str | None, typer.Option(help="Column: characters of each row's text.")] = None,
    multilabel: Annotated[
        bool, typer.Option("--multilabel", help="Rows have any number of labels, each with a column of 0 and 1.")
    ] = False,
    labels: Labels = None,
    exclude: Exclude = None,
    classes: Classes = None,
    clip: Clip = None,
    tolerance: Tolerance = None,
    renormalise: Renormalise = False,
    worst: Annotated[int, typer.Option(min=1, max=1000, help="Most surprising rows to keep.")] = 50,
    skip_invalid: SkipInvalid = False,
    explode: Explode = None,
    separator: Separator = None,
    no_header: NoHeader = False,
    as_json: Json = None,
    html: Annotated[str | None, typer.Option(help="Write the report, one file that opens offline.")] = None,
) -> None:
    """Say how good predictions are, in nats and bits, against what, why, and which rows are to blame.

    - `xent score predictions.parquet --label y --proba 'p_*'`
    - `xent score churn.csv --label churned --proba p --id customer --by country --html churn.html`
    - `xent score 'tokens/*.parquet' --log-prob logp --cluster document --bytes bytes --json -`
    - `xent score tags.parquet --label 't_*' --proba 'p_*' --multilabel`
    - `xent score submission.csv --labels solution.csv --id id --label target --proba 'Class_*'`
    - `xent score log.jsonl --explode logprobs.content --log-prob logprobs.content.logprob --id request`
    """
    with reported_errors(), input_files(data, *([] if labels is None else [labels])) as paths:
        from xent.scoring import score as score_predictions

        silent = require_outputs(as_json, html, inputs=paths)
        with row_progress(paths[0]) as report:
            result = score_predictions(
                paths[0],
                label,
                proba=column_names(proba),
                logits=column_names(logits),
                log_prob=log_prob,
                entropy=entropy,
                weight=weight,
                id=id_,
                by=tuple(by or ()),
                cluster=cluster,
                bytes=bytes_,
                characters=characters,
                multilabel=multilabel,
                labels=None if labels is None else paths[1],
                exclude=tuple(exclude or ()),
                classes=class_names(classes),
                clip=clip,
                tolerance=tolerance,
                renormalise=renormalise,
                worst=worst,
                invalid="skip" if skip_invalid else "raise",
                explode=tuple(explode or ()),
                separator=separator,
                header=False if no_header else None,
                progress=report,
            )
        written = []
        if as_json is not None or html is not None:
            record = {**result.to_record(), "source": source_of(paths[0], data)}
            if labels is not None:
                record["labels"] = source_of(paths[1], labels)
            written = write_json(record, as_json)
            if html is not None:
                from xent.report import write_score

                written.append(write_score(record, Path(html)))
        if not silent:
            _print_score(result, data)
            print_written(written)


def class_names(text: str | None) -> list[str] | None:
    """The names in a text with commas."""
    return None if text is None else [name.strip() for name in text.split(",")]


def _print_score(score: Score, data: str) -> None:
    console = terminal()
    clip = "" if score.form.clip is None else f", clipped at {score.form.clip:g}"
    clip += ", renormalised" if score.form.renormalised else ""
    classes = f", {len(score.form.classes)} classes" if score.form.classes else ""
    console.print(
        Text.assemble(
            ("standard input" if data == "-" else shown_path(data), "bold"), f": {score.rows:,} rows{classes}{clip}"
        ),
        soft_wrap=True,
    )
    console.print(_headline(score))
    if score.form.classes and len(score.classes) <= 20:
        console.print(_class_table(score))
    for name, segments in score.segments.items():
        table = new_table(
            f"by {shown_name(name)}, the worst first", shown_name(name), "rows", "nats", "95% interval", "share of loss"
        )
        for s in segments[:15]:
            e = s.cross_entropy
            table.add_row(shown_name(s.value), f"{s.rows:,}", number(e.nats), interval(e), percent(s.share_of_loss))
        console.print(table)
    table = new_table("the most surprising rows", "row", "label", "predicted", "bits", "likeliest")
    for row in score.surprising[:8]:
        likeliest = ", ".join(f"{shown_name(name)} {p:.3g}" for name, p in row.likeliest[:3])
        name = row.id if row.id is not None else f"{row.row:,}"
        table.add_row(*(shown_name(t or "") for t in (name, row.label, row.predicted)), number(row.bits), likeliest)
    console.print(table)
    for warning in score.warnings:
        errors.print(Text.assemble(("!", "yellow"), " ", visible(warning)), soft_wrap=True)


def _headline(score: Score) -> Table:
    """Quantity, value, unit."""
    table = new_table("", "quantity", "value", "unit")
    ce, t = score.cross_entropy, score.temperature
    ends = "" if math.isnan(ce.low) else f" ({interval(ce)})"
    rows: list[tuple[str, str | Text, str]] = [
        ("cross-entropy", Text.assemble((number(ce.nats), "bold"), ends), "nats per row, 95% interval"),
        ("", number(ce.bits), "bits per row"),
    ]
    if score.clusters is not None:
        rows.append(("  clusters", f"{score.clusters:,}", "independent of each other: every interval is theirs"))
    for name, estimate in (("byte", score.per_byte), ("character", score.per_character)):
        low, high = (math.nan if math.isnan(end) else end / math.log(2) for end in (estimate.low, estimate.high))
        ends = "" if math.isnan(low) else f" ({number(low)} to {number(high)})"
        if not math.isnan(estimate.nats):
            rows.append((f"bits per {name}", f"{number(estimate.bits)}{ends}", "of all rows together, 95% interval"))
    if score.impossible_rows and score.form.clip is None:
        rows.append(("  without impossible rows", number(score.cross_entropy_possible), "nats per row"))
    rows += [
        ("perplexity", number(score.perplexity), "equally likely classes"),
        ("likelihood", f"{score.likelihood}", "probability of all labels together"),
        ("  per row", number(score.likelihood_per_row), "probability, geometric mean"),
        ("base rate", number(score.base_rate.nats), "nats per row: entropy of the labels"),
        ("knowing nothing", number(score.uniform.nats), "nats per row: log C"),
        ("explained", percent(score.explained), "of the base rate (D²)"),
        ("normalised entropy", number(score.normalised_entropy), "cross-entropy / base rate"),
        (
            "entropy",
            number(score.entropy.nats),
            f"nats per row: of the {'labels' if score.form.soft else 'predictions'}",
        ),
        ("Brier score", number(score.brier), "0 to 2"),
        ("accuracy", percent(score.accuracy), "of rows"),
        ("calibration error", number(score.calibration_error), "difference of probabilities (ECE)"),
        ("  of each class", number(score.classwise_error), "mean over classes against the rest"),
        ("  in equal parts", number(score.adaptive_error), "the same, bins of equal weight"),
    ]
    for name, part in score.decomposition.items():
        ends = "" if math.isnan(part.low) else f" ({interval(part)})"
        shown = "" if math.isnan(part.nats) else f"{number(part.nats)}{ends}"
        rows.append((name, shown, "nats, mean over classes against the rest"))
    if t is not None:
        gain = f"{number(t.gain)} ({number(t.gain_low)} to {number(t.gain_high)})"
        rows.append((f"temperature {t.temperature:.3g} wins", gain, f"nats per row, cross-fitted on {t.rows:,} rows"))
    rows.append(("worst 1% of rows carry", percent(dict(score.concentration).get(0.01, math.nan)), "of the loss"))
    rows.append(("impossible rows", f"{score.impossible_rows:,}", "rows"))
    for name, value, unit in rows:
        if value != "":
            table.add_row(name, value, styled(unit, "dim"))
    return table


def _class_table(score: Score) -> Table:
    table = new_table("by class", "class", "share", "predicted", "nats", "recall", "share of loss", "miscalibration")
    for c in score.classes:
        against = "" if c.against_rest is None else number(c.against_rest.miscalibration)
        shares = (percent(c.share), percent(c.predicted_share))
        table.add_row(shown_name(c.name), *shares, number(c.loss), percent(c.recall), percent(c.share_of_loss), against)
    return table
