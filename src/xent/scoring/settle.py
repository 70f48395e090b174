"""What is found out about rows in a pass of its own, when scoring them once has raised the question (pieces.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from xent.errors import DistributionError
from xent.scoring import loops
from xent.scoring.batch import Rows, row_scores
from xent.scoring.diagnosis import explain
from xent.scoring.labels import UnknownLabelError, Way
from xent.scoring.pieces import Pieces, Settled
from xent.scoring.rounding import find_rounding

Result = TypeVar("Result")
OF_ROWS = ("proba", "logits", "log_prob", "entropy", "weight", "tolerance", "renormalise", "reasons")
"""Those arguments of `ScoreState.from_batch` that `row_scores` takes."""


class WrongRowsError(DistributionError):
    """Rows of a batch that cannot be scored, which another tolerance may explain."""

    def __init__(self, text: str, wrong_sums: bool, soft: bool) -> None:
        super().__init__(text)
        self.wrong_sums, self.soft = wrong_sums, soft


def settled_result(
    rows: Pieces, skip: bool, may_round: bool, work: Callable[[Settled, bool], Result]
) -> tuple[Result, list[str]]:
    """Return what `work` makes of all rows, and remarks on how they were read.

    Rows are read once, and again only if their labels or sums need an explanation that depends on all of them: `work`
    raises UnknownLabelError or WrongRowsError then. It gets what is settled, and whether sums may yet be explained.
    """
    settled = Settled() if rows.again else _of_first_frame(rows, skip)
    while True:
        try:
            result = work(settled, may_round)
            return result, [*rows.notes, *settled.notes]
        except UnknownLabelError:
            if settled.way is not None or not rows.again:
                raise
            settled = _with_way(settled, rows.find_way())
        except WrongRowsError as error:
            rounding = (
                find_rounding(rows.matrices(error.soft)) if error.wrong_sums and may_round and rows.again else None
            )
            may_round = False
            if rounding is not None:
                number = rows.classes
                settled = replace(
                    settled,
                    tolerance=rounding.tolerance(number),
                    notes=(*settled.notes, rounding.note(number, error.soft)),
                )
            elif not skip:
                raise DistributionError(*error.args) from None


def _of_first_frame(rows: Pieces, skip: bool) -> Settled:
    """Return what the first frame of a stream, which is read once, says about labels."""
    if not rows.has_labels:
        return Settled()
    way = rows.find_way()
    return Settled() if way.is_by_name and not skip else _with_way(Settled(), way)


def _with_way(settled: Settled, way: Way) -> Settled:
    return replace(settled, way=way, notes=(*settled.notes, *((way.note,) if way.note else ())))


def scored_again(arguments: Mapping[str, Any]) -> Rows:
    """Return the scores of the rows that a state was made from."""
    return row_scores(arguments["labels"], **{name: arguments[name] for name in OF_ROWS if name in arguments})


def check_rows(found: Rows, arguments: Mapping[str, Any], rows: Pieces, skip: bool, may_round: bool) -> None:
    """WrongRowsError for invalid rows of a batch that are not to be skipped, or not before sums are explained."""
    statuses = set(found.status[found.status > loops.VALID].tolist())
    sums = {loops.WRONG_SUM, loops.WRONG_LABEL}
    wrong_sums = bool(sums & statuses) and may_round
    if statuses and not (skip and not wrong_sums):
        text = explain(found, arguments, rows.column_names)
        raise WrongRowsError(text, wrong_sums and (skip or statuses <= sums), loops.WRONG_LABEL in statuses)
