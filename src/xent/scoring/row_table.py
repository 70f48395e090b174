"""The loss of each row of one set of predictions, as a table that can be paired with another."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from xent.errors import DataError, DTypeError, message
from xent.names import quoted
from xent.scoring import loops
from xent.scoring.batch import Rows
from xent.scoring.call import Call
from xent.scoring.files import is_path, reading
from xent.scoring.form import ONE_ROW_PER_ID, Request
from xent.scoring.pieces import Pieces, Settled
from xent.scoring.selection import texts
from xent.scoring.settle import check_rows, scored_again, settled_result

CALL = "compare"


def row_table(side: str, data: Any, call: Call) -> tuple[pl.DataFrame, list[str]]:
    """Return id, loss, status, correctness, label, weight and segments of each row, and remarks on the data.

    Without an id, rows are called by their numbers. Rows of weight 0 and, to be skipped, invalid rows are there with
    their status, so that they can be left out on both sides.
    """
    with reading(data if is_path(data) else side):
        rows = call.rows(data)
        if isinstance(rows, Request):
            problem = f"found a frame of {type(data).__module__.split('.')[0]}"
            raise DTypeError(message(CALL, "a, b", problem, "Write the predictions to Parquet and pass the path"))
        may_round = call.options.get("tolerance") is None and not call.options.get("renormalise")
        table, notes = settled_result(
            rows, call.skip, may_round, lambda settled, rounding: _all_rows(rows, settled, call.skip, rounding)
        )
    if not table.height:
        raise DataError(message(CALL, side, "there are no rows", "Check the file or the filter before it"))
    repeated = table.filter(pl.col("id").is_duplicated())
    if repeated.height and not call.skip:
        problem = f"{repeated.height} rows share an id, such as {quoted(repeated['id'][0])}"
        raise DataError(message(CALL, side, problem, ONE_ROW_PER_ID))
    return table.unique("id", keep="first", maintain_order=True) if repeated.height else table, notes


def _all_rows(rows: Pieces, settled: Settled, skip: bool, may_round: bool) -> pl.DataFrame:
    parts = []
    for _, _, arguments in rows.pieces(settled):
        found = arguments()
        scores = scored_again(found)
        check_rows(scores, found, rows, skip, may_round)
        parts.append(_frame(scores, found))
    return pl.concat(parts) if parts else pl.DataFrame()


def _frame(rows: Rows, arguments: dict[str, Any]) -> pl.DataFrame:
    count = len(rows.loss)
    first = arguments["first_row"]
    ids = np.arange(first, first + count) if arguments["ids"] is None else arguments["ids"]
    columns: dict[str, Any] = {"id": texts(ids), "loss": rows.loss, "status": rows.status}
    if len(rows.correct):
        columns["correct"] = rows.correct.astype(np.float64)
    if len(rows.label):
        names = arguments["classes"]
        columns["label"] = pl.Series([names[k] for k in rows.label.tolist()], dtype=pl.String)
    if len(rows.weight):
        columns["weight"] = rows.weight
    further = {f"by {name}": texts(column).fill_null("(missing)") for name, column in arguments["by"].items()}
    return pl.DataFrame({**columns, **further})


def usable(table: pl.DataFrame) -> tuple[pl.DataFrame, int, int]:
    """Return the paired rows that are scored on both sides, and how many are invalid on each."""
    invalid = [int((table[name] > loops.VALID).sum()) for name in ("status", "status_b")]
    both = table.filter((pl.col("status") == loops.VALID) & (pl.col("status_b") == loops.VALID))
    return both, invalid[0], invalid[1]
