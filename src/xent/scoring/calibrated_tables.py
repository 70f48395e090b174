"""A file of predictions with the probabilities that a `Calibrator` makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from xent.errors import ArgumentError, DataError, message
from xent.names import listed, quoted, shown_path
from xent.scoring.files import reading
from xent.scoring.form import Names, Plan, Request, names_of
from xent.scoring.readers import BATCH_ROWS, table_of, wanted_columns
from xent.scoring.recalibration import Calibrator
from xent.scoring.sums import Array
from xent.scoring.tables import Layout

CALL = "calibrate"

WRITERS: dict[str, Callable[[pl.DataFrame, Any], Any]] = {
    ".parquet": pl.DataFrame.write_parquet,
    ".csv": pl.DataFrame.write_csv,
    ".arrow": pl.DataFrame.write_ipc,
    ".feather": pl.DataFrame.write_ipc,
}


def check_output(path: str) -> None:
    """DataError unless the name ends like a table or like the JSON of a calibrator."""
    kinds = [".json", *WRITERS]
    if Path(path).suffix.lower() not in kinds:
        problem = f"{shown_path(path)} has none of the endings {', '.join(kinds)}"
        raise DataError(message(CALL, "OUT", problem, "A calibrator is written to .json, predictions to a table"))


def calibrated_table(
    calibrator: Calibrator,
    data: str | Path,
    *,
    proba: Names | None = None,
    logits: Names | None = None,
    classes: Sequence[Any] | None = None,
) -> pl.DataFrame:
    """Return the table of a file with calibrated probabilities in the place of its own.

    Parameters
    ----------
    calibrator : its classes have to be those of the columns, in any order
    data, proba, logits, classes : as in `xent.score`. Logits stay as they are, and columns named p_<class> are added.

    Returns
    -------
    polars.DataFrame: all columns of the file.

    Raises
    ------
    ArgumentError, DataError, DistributionError
        Other classes than those of the calibrator, or as in `xent.score`.
    """
    names = None if classes is None else names_of("classes", classes)
    request = Request(proba=proba, logits=logits, classes=names, labelled=False)
    with reading(data):
        source = table_of(data, Layout(), None, wanted_columns(request))
        plan = request.plan(source.columns, source.dtypes)
        table = pl.concat(list(source.batches(source.columns, plan.numbers, BATCH_ROWS)))
    found = plan.row_arguments(table)[plan.kind]
    own = plan.class_names(table) or ()
    if set(own) != set(calibrator.classes):
        problem = f"the classes are {listed(own)}, those of the calibrator {listed(calibrator.classes)}"
        raise ArgumentError(message(CALL, "classes", problem, "Name the classes as they were named in the fit"))
    if found.ndim == 1:
        calibrated = calibrator.transform(found, logits=plan.kind == "logits")
    else:
        places = [own.index(name) for name in calibrator.classes]
        calibrated = np.empty(found.shape)
        calibrated[:, places] = calibrator.transform(found[:, places], logits=plan.kind == "logits")
    return table.with_columns(_columns(plan, own, calibrated, table.columns))


def _columns(plan: Plan, classes: tuple[str, ...], p: Array, existing: list[str]) -> list[pl.Series]:
    """Return the calibrated probabilities as columns: in the place of probabilities, or beside logits."""
    if plan.kind == "proba":
        if len(plan.columns) == 1:
            return [pl.Series(plan.columns[0], p)]
        return [pl.Series(name, p[:, k]) for k, name in enumerate(plan.columns)]
    names = [f"p_{name}" for name in (classes if p.ndim == 2 else classes[1:])]
    taken = set(names) & set(existing)
    if taken:
        problem = f"there is a column {quoted(min(taken))} already"
        raise ArgumentError(message(CALL, "logits", problem, "Rename it: calibrated probabilities go there"))
    return [pl.Series(name, column) for name, column in zip(names, p.reshape(len(p), -1).T, strict=True)]


def table_bytes(table: pl.DataFrame, path: str) -> bytes:
    """Return the contents of a file of this name."""
    buffer = BytesIO()
    WRITERS[Path(path).suffix.lower()](table, buffer)
    return buffer.getvalue()
