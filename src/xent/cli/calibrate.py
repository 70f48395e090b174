"""`xent calibrate`: learn to correct probabilities from rows with labels, and correct those of other rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from xent.cli.app import (
    column_names,
    new_table,
    number,
    print_written,
    reported_errors,
    require_inputs_kept,
    styled,
    terminal,
)
from xent.cli.score import Classes, Data, Label, Logits, Proba, Tolerance, Weight, class_names
from xent.errors import DataError
from xent.files import check_writable, write_together
from xent.names import first_line, shown_name, shown_path

if TYPE_CHECKING:
    from xent.scoring import Calibrator


def calibrate(
    data: Data,
    out: Annotated[
        str, typer.Argument(help="The calibrator (.json), or the calibrated predictions (.parquet, .csv, .arrow).")
    ],
    label: Label = None,
    proba: Proba = None,
    logits: Logits = None,
    weight: Weight = None,
    classes: Classes = None,
    tolerance: Tolerance = None,
    kind: Annotated[str, typer.Option(help="temperature, vector or isotonic.")] = "temperature",
    calibrator: Annotated[
        str | None, typer.Option(help="A calibrator to apply: nothing is fitted, and labels are not needed.")
    ] = None,
) -> None:
    """Calibrate probabilities: learn a correction from rows with labels, and apply it to others.

    - `xent calibrate validation.parquet calibrator.json --label y --proba 'p_*'`
    - `xent calibrate test.parquet calibrated.parquet --proba 'p_*' --calibrator calibrator.json`
    - `xent calibrate validation.csv corrected.csv --label churned --proba p --kind isotonic`
    """
    with reported_errors():
        from xent.scoring import Calibrator
        from xent.scoring.calibrated_tables import calibrated_table, check_output, table_bytes

        found = None if calibrator is None else _read(calibrator)
        check_output(out)
        check_writable(out, "OUT")
        require_inputs_kept(out, data, calibrator)
        columns = {"proba": column_names(proba), "logits": column_names(logits), "classes": class_names(classes)}
        if found is None:
            options = {"weight": weight, "tolerance": tolerance, "kind": kind}
            found = Calibrator.fit(data, label, **columns, **options)  # type: ignore[arg-type]
        if Path(out).suffix.lower() == ".json":
            contents: str | bytes = found.to_json()
        else:
            contents = table_bytes(calibrated_table(found, data, **columns), out)
        written = write_together({out: contents})
        _print_calibrator(found, calibrator or data)
        print_written(written)


def _read(path: str) -> Calibrator:
    from xent.scoring import Calibrator

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        problem = f"--calibrator {shown_path(path)}: cannot be read ({first_line(error)})"
        raise DataError(f"{problem}. Name a file that xent calibrate wrote.") from None
    return Calibrator.from_json(text)


def _print_calibrator(calibrator: Calibrator, source: str) -> None:
    console = terminal()
    title = f": {calibrator.kind}, fitted on {calibrator.rows:,} rows of {len(calibrator.classes)} classes"
    console.print(Text.assemble((shown_path(source), "bold"), title), soft_wrap=True)
    table = new_table("", "quantity", "value", "unit")
    if not math.isnan(calibrator.temperature):
        too = "the predictions were too confident" if calibrator.temperature > 1 else "they were not confident enough"
        table.add_row("temperature", number(calibrator.temperature), styled(f"1 changes nothing: {too}", "dim"))
    scales, biases = calibrator.parameters.scale, calibrator.parameters.bias
    for name, scale, bias in zip(calibrator.classes if biases else (), scales if biases else (), biases, strict=True):
        table.add_row(f"class {shown_name(name)}", f"{scale:.4g}, {bias:+.4g}", styled("scale, bias of log q", "dim"))
    if calibrator.gain_nats is None:
        table.add_row("gain", "", styled("not known: too few rows, or an infinite loss before", "dim"))
    else:
        low, high = calibrator.gain_low_nats, calibrator.gain_high_nats
        ends = "" if low is None or high is None else f" ({number(low)} to {number(high)})"
        table.add_row("gain", f"{number(calibrator.gain_nats)}{ends}", styled("nats per row, cross-fitted", "dim"))
    console.print(table)
