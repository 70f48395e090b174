"""`xent compare`: options and tables; xent.scoring has the figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
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
    source_of,
    styled,
    terminal,
    write_json,
)
from xent.cli.score import (
    By,
    Classes,
    Clip,
    Data,
    Exclude,
    Explode,
    Json,
    Label,
    Labels,
    Logits,
    LogProb,
    NoHeader,
    Proba,
    Renormalise,
    Separator,
    SkipInvalid,
    Tolerance,
    Weight,
    class_names,
)
from xent.cli.streams import input_files
from xent.names import shown_name, shown_path, visible

if TYPE_CHECKING:
    from xent.scoring import Comparison


def compare(
    a: Data,
    b: Data,
    id_: Annotated[str | None, typer.Option("--id", help="Column that names the rows in both.")] = None,
    by_order: Annotated[
        bool, typer.Option("--by-order", help="In place of --id: both have the same rows in the same order.")
    ] = False,
    label: Label = None,
    proba: Proba = None,
    logits: Logits = None,
    log_prob: LogProb = None,
    proba_b: Annotated[list[str] | None, typer.Option(help="The probabilities of B, if named otherwise.")] = None,
    weight: Weight = None,
    by: By = None,
    cluster: Annotated[str | None, typer.Option(help="Column of A: rows of one value depend on each other.")] = None,
    labels: Labels = None,
    exclude: Exclude = None,
    classes: Classes = None,
    clip: Clip = None,
    tolerance: Tolerance = None,
    renormalise: Renormalise = False,
    skip_invalid: SkipInvalid = False,
    explode: Explode = None,
    separator: Separator = None,
    no_header: NoHeader = False,
    as_json: Json = None,
    html: Annotated[
        str | None, typer.Option(help="Write the comparison as a page, one file that opens offline.")
    ] = None,
) -> None:
    """Say which of two sets of predictions of the same rows is better, by how much, and where.

    - `xent compare old.parquet new.parquet --id row --label y --proba 'p_*' --by country`
    - `xent compare a.csv b.csv --id question --log-prob logp --cluster document`
    - `xent compare mine.csv yours.csv --labels solution.csv --id id --label target --proba 'Class_*' --html page.html`
    - `xent compare old.npz new.npz --by-order --label y --proba p`
    """
    with reported_errors(), input_files(a, b, *([] if labels is None else [labels])) as paths:
        from xent.scoring import compare as compare_predictions

        silent = require_outputs(as_json, html, inputs=paths)
        comparison = compare_predictions(
            paths[0],
            paths[1],
            id=id_,
            order=by_order,
            label=label,
            proba=column_names(proba),
            logits=column_names(logits),
            log_prob=log_prob,
            proba_b=column_names(proba_b),
            weight=weight,
            by=tuple(by or ()),
            cluster=cluster,
            labels=None if labels is None else paths[2],
            exclude=tuple(exclude or ()),
            classes=class_names(classes),
            clip=clip,
            tolerance=tolerance,
            renormalise=renormalise,
            invalid="skip" if skip_invalid else "raise",
            explode=tuple(explode or ()),
            separator=separator,
            header=False if no_header else None,
        )
        record = comparison.to_record()
        if as_json is not None or html is not None:
            record["sources"] = [source_of(path, name) for path, name in zip(paths, (a, b), strict=False)]
        written = write_json(record, as_json)
        if html is not None:
            from xent.report import write_comparison

            written.append(write_comparison(record, Path(html)))
        if not silent:
            _print_comparison(comparison, a, b)
            print_written(written)


def _print_comparison(comparison: Comparison, a: str, b: str) -> None:
    console = terminal()
    d = comparison.difference
    names = (("a", "bold"), f" {shown_path(a)}\n", ("b", "bold"), f" {shown_path(b)}")
    console.print(Text.assemble(*names), soft_wrap=True)
    table = new_table("", "quantity", "value", "unit")
    clusters = "" if comparison.clusters is None else f", {comparison.clusters:,} clusters"
    rows: list[tuple[str, str | Text, str]] = [
        ("a minus b", styled(number(d.nats), "bold"), f"nats per row, {comparison.rows:,} paired rows{clusters}"),
        ("", interval(d), "95% interval; below 0, a is better"),
        ("p-value", number(comparison.p_value), "of no difference, paired t-test"),
        ("cross-entropy of a", number(comparison.cross_entropy_a), "nats per row"),
        ("cross-entropy of b", number(comparison.cross_entropy_b), "nats per row"),
        ("accuracy of a, b", f"{percent(comparison.accuracy_a)}, {percent(comparison.accuracy_b)}", "of rows"),
        ("a better, b better", f"{comparison.better_a:,}, {comparison.better_b:,}", "rows"),
        ("only in a, only in b", f"{comparison.only_in_a:,}, {comparison.only_in_b:,}", "rows, not compared"),
        ("impossible in a, in b", f"{comparison.impossible_a:,}, {comparison.impossible_b:,}", "rows"),
    ]
    if comparison.invalid_a or comparison.invalid_b:
        invalid = f"{comparison.invalid_a:,}, {comparison.invalid_b:,}"
        rows.append(("invalid in a, in b", invalid, "rows, left out"))
    for name, value, unit in rows:
        if value not in ("", ", "):
            table.add_row(name, value, styled(unit, "dim"))
    console.print(table)
    if comparison.segments:
        table = new_table("segments that drive it", "column", "value", "rows", "nats", "95% interval", "share")
        for s in comparison.segments[:15]:
            e = s.difference
            pair = (shown_name(s.column), shown_name(s.value))
            table.add_row(*pair, f"{s.rows:,}", number(e.nats), interval(e), percent(s.share))
        console.print(table)
    table = new_table("rows that drive it", "id", "loss of a", "loss of b", "difference")
    for row in comparison.drivers[:8]:
        table.add_row(shown_name(row.id), number(row.loss_a), number(row.loss_b), number(row.difference))
    console.print(table)
    console.print(visible(comparison.verdict), soft_wrap=True)
    for note in comparison.notes:
        errors.print(Text.assemble(("!", "yellow"), " ", visible(note)), soft_wrap=True)
