"""`xent.compare`: two sets of predictions of the same rows, paired by id.

difference   d = loss of a - loss of b, for each row, in nats; below 0 a is better
interval     mean(d) +- t * s / sqrt(n); unlike in two separate intervals, how difficult the rows are cancels
cluster      rows of one cluster (a user, a document) are not independent: s from the clusters' sums (CR1)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import polars as pl

from xent.errors import ArgumentError, DataError, message, option
from xent.names import listed, shown_name
from xent.scoring import loops
from xent.scoring.batch import checked_clip, checked_count
from xent.scoring.call import Call, checked_switch
from xent.scoring.form import Names, check_segments, names_of
from xent.scoring.intervals import Estimate, mean_and_interval, numbered, weighted_mean, weighted_sum
from xent.scoring.row_table import row_table, usable
from xent.scoring.score import plain
from xent.scoring.sums import Array
from xent.scoring.tables import Layout

__all__ = ["Comparison", "RowDifference", "SegmentDifference", "compare"]

CALL = "compare"
MOST_MISSING = 20
SCHEMA = 1


@dataclass(frozen=True)
class SegmentDifference:
    """The rows with one value of a segment column. `share` is their share of the summed difference."""

    column: str
    value: str
    rows: int
    difference: Estimate
    share: float


@dataclass(frozen=True)
class RowDifference:
    """One of the rows with the largest differences; losses in nats."""

    id: str
    loss_a: float
    loss_b: float
    difference: float


@dataclass(frozen=True)
class Comparison:
    """How the losses of a differ from those of b, in nats per row. A difference below 0 means that a is better."""

    rows: int
    clusters: int | None
    difference: Estimate
    p_value: float
    """Of the hypothesis of no difference: paired t-test, two-sided, over clusters if there are any."""
    cross_entropy_a: float
    cross_entropy_b: float
    accuracy_a: float
    accuracy_b: float
    better_a: int
    better_b: int
    impossible_a: int
    impossible_b: int
    """Rows whose label had probability 0. Where it had on both sides, the row counts as no difference."""
    infinite_a: int
    infinite_b: int
    """Rows that are impossible on this side only: their differences are infinite, and decide."""
    deciding: Mapping[str, tuple[str, ...]]
    """The first ids of such rows."""
    difference_possible: Estimate
    """The mean difference of the rows that are possible on both sides."""
    rows_without_weight: int
    only_in_a: int
    only_in_b: int
    missing: Mapping[str, tuple[str, ...]]
    """The first ids that are on one side only."""
    segments: tuple[SegmentDifference, ...]
    drivers: tuple[RowDifference, ...]
    clip: float | None
    invalid_a: int = 0
    """Rows of both that could not be scored in a, and were left out."""
    invalid_b: int = 0
    notes: tuple[str, ...] = ()
    """Remarks on the data from the time when they were read."""

    @property
    def winner(self) -> str:
        """'a' or 'b' if the interval excludes 0, else 'neither'.

        A row that is impossible on one side only decides, for its loss is infinitely larger there. If there are such
        rows on both sides, the mean difference is undefined, and so is the winner: 'undefined'.
        """
        if self.infinite_a or self.infinite_b:
            return "undefined" if self.infinite_a and self.infinite_b else "b" if self.infinite_a else "a"
        if self.difference.high < 0:
            return "a"
        return "b" if self.difference.low > 0 else "neither"

    @property
    def verdict(self) -> str:
        """The winner and why, in a sentence or two."""
        if not (self.infinite_a or self.infinite_b):
            found = {"neither": "The interval includes 0: neither is better."}
            return found.get(self.winner, f"{self.winner} is better.")
        by_side = {"a": self.infinite_a, "b": self.infinite_b}
        rows = ", and ".join(
            f"{count:,} {'row is' if count == 1 else 'rows are'} impossible in {side} only "
            f"(id {listed(ids[:5])}{', ...' if count > 5 else ''})"
            for (side, count), ids in zip(by_side.items(), self.deciding.values(), strict=True)
            if count
        )
        rest = self.difference_possible
        other = "" if math.isnan(rest.nats) else f" The mean difference of the other rows is {rest.nats:.4g} nats"
        ends = "" if math.isnan(rest.low) else f" ({rest.low:.4g} to {rest.high:.4g})"
        start = "The mean difference is undefined" if self.winner == "undefined" else f"{self.winner} is better"
        return f"{start}: {rows}.{other}{ends}{'.' if other else ''}"

    def to_dict(self) -> dict[str, float]:
        """Flat floats, named with their units."""
        d = self.difference
        figures = {
            "difference_nats": d.nats,
            "difference_bits": d.bits,
            "difference_low_nats": d.low,
            "difference_high_nats": d.high,
            "difference_standard_error_nats": d.standard_error,
            "p_value": self.p_value,
            "cross_entropy_a_nats": self.cross_entropy_a,
            "cross_entropy_b_nats": self.cross_entropy_b,
            "difference_possible_nats": self.difference_possible.nats,
            "accuracy_a": self.accuracy_a,
            "accuracy_b": self.accuracy_b,
            "impossible_a": self.impossible_a,
            "impossible_b": self.impossible_b,
            "infinite_a": self.infinite_a,
            "infinite_b": self.infinite_b,
            "rows_without_weight": self.rows_without_weight,
            "rows": self.rows,
            "only_in_a": self.only_in_a,
            "only_in_b": self.only_in_b,
        }
        return {name: float(value) for name, value in figures.items() if not math.isnan(value)}

    def to_record(self) -> dict[str, Any]:
        """Everything as plain JSON: infinite numbers as "inf", NaN as null."""
        parts = {field.name: plain(getattr(self, field.name)) for field in fields(self)}
        return {"record": "xent compare", "schema": SCHEMA, "winner": self.winner, "verdict": self.verdict, **parts}

    def _repr_html_(self) -> str:
        """A few small tables, which notebooks show."""
        from xent.scoring.notebook import comparison_html

        return comparison_html(self.to_record())


def compare(
    a: Any,
    b: Any,
    *,
    id: str | None = None,
    order: bool = False,
    label: Names | None = None,
    proba: Names | None = None,
    logits: Names | None = None,
    log_prob: str | None = None,
    proba_b: Names | None = None,
    weight: str | None = None,
    by: str | Sequence[str] = (),
    cluster: str | None = None,
    labels: Any = None,
    exclude: str | Sequence[str] = (),
    classes: Sequence[Any] | None = None,
    clip: float | None = None,
    tolerance: float | None = None,
    renormalise: bool = False,
    worst: int = 20,
    invalid: Literal["raise", "skip"] = "raise",
    explode: str | Sequence[str] = (),
    separator: str | None = None,
    header: bool | None = None,
) -> Comparison:
    """Compare two sets of predictions of the same rows: which is better, by how much, and where.

    *Definition*: the mean over the rows, paired by `id`, of ``loss of a - loss of b`` in nats, with Student's interval.

    Parameters
    ----------
    a, b : paths, frames or arrays, as in `xent.score`, but not Dask or Spark frames
    id : the column that names the rows on both sides
    order : in its place, that rows are paired by their order, of which both have to have as many
    label, proba, logits, log_prob, weight, labels, exclude, classes, clip, tolerance, renormalise, explode, separator,
        header : as in `xent.score`, for both sides; weights are those of a
    invalid : "skip" leaves out rows that cannot be scored in a or in b, and counts them
    proba_b : the columns of b's probabilities, if their names differ
    by : columns of a: segments
    cluster : column of a; rows with the same value may depend on each other
    worst : how many of the rows with the largest differences are kept

    Returns
    -------
    Comparison

    Raises
    ------
    DataError
        No id is on both sides, an id is repeated on one side, labels differ, or all weights are 0.
    DistributionError, LabelError, ArgumentError, DTypeError
        As in `xent.score`.

    Notes
    -----
    A row that is impossible on one side only has an infinite difference, and decides the comparison; `deciding` names
    such rows, and `difference_possible` is the mean of the others. Rows of weight 0 are left out.

    *Numerics*: differences in float64 with NumPy's pairwise summation; 40 bytes of memory per row.

    Examples
    --------
    >>> a = pl.DataFrame({"id": [1, 2, 3], "y": [0, 1, 1], "p": [0.2, 0.7, 0.9]})
    >>> b = pl.DataFrame({"id": [3, 2, 1], "y": [1, 1, 0], "p": [0.6, 0.6, 0.5]})
    >>> result = compare(a, b, id="id", label="y", proba="p")
    >>> round(result.difference.nats, 4), result.winner
    (-0.3432, 'neither')

    References
    ----------
    Student (1908), The probable error of a mean; Cameron and Miller (2015), A Practitioner's Guide to Cluster-Robust
    Inference
    """
    if (id is None) != checked_switch("order", order):
        problem = (
            "found neither a column of ids nor that rows are paired by their order" if id is None else "found both"
        )
        remedy = f"Name the column by {option('id')}, or pass {option('order', True)} for files in the same order"
        raise ArgumentError(message(CALL, "id", problem, remedy))
    if invalid not in ("raise", "skip"):
        raise ArgumentError(message(CALL, "invalid", f"found {invalid!r}", "It is 'raise' or 'skip'"))
    segments, clip = names_of("by", by), checked_clip(CALL, clip)
    worst = checked_count(CALL, "worst", worst)
    of_b = Call(
        roles={"label": label, "weight": None, "id": id, "entropy": None},
        predictions={"proba": proba if proba_b is None else proba_b, "logits": logits, "log_prob": log_prob},
        labels=labels,
        by=(),
        exclude=names_of("exclude", exclude),
        classes=None if classes is None else names_of("classes", classes),
        options={"tolerance": tolerance, "renormalise": checked_switch("renormalise", renormalise)},
        layout=Layout(separator, header, names_of("explode", explode)),
        skip=invalid == "skip",
    )
    of_a = replace(
        of_b,
        roles={**of_b.roles, "weight": weight},
        predictions={**of_b.predictions, "proba": proba},
        by=tuple(dict.fromkeys((*segments, *(() if cluster is None else (cluster,))))),
    )
    left, notes = row_table("a", a, of_a)
    right, notes_b = row_table("b", b, of_b)
    if id is None and left.height != right.height:
        problem = f"a has {left.height:,} rows and b {right.height:,}, which are to be paired by their order"
        raise DataError(message(CALL, "order", problem, f"Pair them by a column of ids ({option('id')})"))
    paired = left.join(right, on="id", how="inner", suffix="_b", maintain_order="left")
    if not paired.height:
        problem = f"no id of {left.height} rows in a is among the {right.height} in b"
        raise DataError(message(CALL, "id", problem, "Choose the column that names the same rows on both sides"))
    both, invalid_a, invalid_b = usable(paired)
    if not both.height:
        problem = "no row can be scored on both sides" if invalid_a or invalid_b else "all weights are 0"
        raise DataError(message(CALL, "data" if invalid_a or invalid_b else "weight", problem, "Check the columns"))
    if "label" in both.columns and not (both["label"] == both["label_b"]).all():
        wrong = both.filter(pl.col("label") != pl.col("label_b"))
        problem = (
            f"{wrong.height} rows have other labels in b than in a, the first with id {shown_name(wrong['id'][0])}"
        )
        raise DataError(message(CALL, "label", problem, "Both have to predict the same"))
    found = _compared(left, right, both, segments, cluster, worst, clip)
    without = int((paired["status"] == loops.NO_WEIGHT).sum())
    remarks = tuple(dict.fromkeys((*notes, *notes_b)))
    return replace(found, rows_without_weight=without, invalid_a=invalid_a, invalid_b=invalid_b, notes=remarks)


def _compared(
    left: pl.DataFrame,
    right: pl.DataFrame,
    both: pl.DataFrame,
    by: tuple[str, ...],
    cluster: str | None,
    worst: int,
    clip: float | None,
) -> Comparison:
    limit = math.inf if clip is None else 0.0 - math.log(clip)
    loss_a, loss_b = (np.minimum(both[name].to_numpy(), limit) for name in ("loss", "loss_b"))
    weight = both["weight"].to_numpy() if "weight" in both.columns else np.ones(both.height)
    # inf - inf is NaN: a row that is impossible on both sides counts as no difference, and is counted as impossible.
    with np.errstate(invalid="ignore"):
        difference = np.where(np.isinf(loss_a) & np.isinf(loss_b), 0.0, loss_a - loss_b)
    groups = None if cluster is None else both[f"by {cluster}"].rank("dense").to_numpy() - 1
    estimate, p_value = mean_and_interval(difference, weight, groups)
    only_a, only_b = left.join(right, on="id", how="anti"), right.join(left, on="id", how="anti")
    order = np.argsort(-np.abs(difference), kind="stable")[:worst]
    ids = both["id"].to_list()
    correct_a, correct_b = (
        both[name].to_numpy() if name in both.columns else None for name in ("correct", "correct_b")
    )
    return Comparison(
        rows=both.height,
        clusters=None if groups is None else int(groups.max()) + 1,
        difference=estimate,
        p_value=p_value,
        cross_entropy_a=weighted_mean(loss_a, weight),
        cross_entropy_b=weighted_mean(loss_b, weight),
        accuracy_a=weighted_mean(correct_a, weight),
        accuracy_b=weighted_mean(correct_b, weight),
        better_a=int((difference < 0).sum()),
        better_b=int((difference > 0).sum()),
        impossible_a=int(np.isinf(both["loss"].to_numpy()).sum()),
        impossible_b=int(np.isinf(both["loss_b"].to_numpy()).sum()),
        infinite_a=int((difference == math.inf).sum()),
        infinite_b=int((difference == -math.inf).sum()),
        deciding={
            side: tuple(ids[i] for i in np.flatnonzero(difference == sign)[:MOST_MISSING])
            for side, sign in (("a", math.inf), ("b", -math.inf))
        },
        difference_possible=_of_possible(difference, weight, groups),
        rows_without_weight=0,
        only_in_a=only_a.height,
        only_in_b=only_b.height,
        missing={side: tuple(t["id"].head(MOST_MISSING)) for side, t in (("a", only_a), ("b", only_b))},
        segments=_segments(both, difference, weight, groups, by),
        drivers=tuple(RowDifference(ids[i], float(loss_a[i]), float(loss_b[i]), float(difference[i])) for i in order),
        clip=clip,
    )


def _of_possible(difference: Array, weight: Array, groups: Array | None) -> Estimate:
    """Return the mean of the finite differences."""
    rows = np.isfinite(difference)
    return mean_and_interval(difference[rows], weight[rows], None if groups is None else numbered(groups[rows]))[0]


def _segments(
    both: pl.DataFrame, difference: Array, weight: Array, groups: Array | None, by: tuple[str, ...]
) -> tuple[SegmentDifference, ...]:
    total = weighted_sum(difference, weight)
    segments = []
    for column in by:
        values = both[f"by {column}"]
        codes = values.rank("dense").to_numpy()
        order = np.argsort(codes, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
        check_segments(CALL, column, len(parts))
        for rows in parts:
            inside = None if groups is None else numbered(groups[rows])
            estimate, _ = mean_and_interval(difference[rows], weight[rows], inside)
            part = weighted_sum(difference[rows], weight[rows])
            share = part / total if total and math.isfinite(total) and math.isfinite(part) else math.nan
            segments.append(SegmentDifference(column, values[int(rows[0])], len(rows), estimate, share))
    return tuple(sorted(segments, key=_order))


def _order(segment: SegmentDifference) -> tuple[bool, float, str, str]:
    """Segments with infinite differences come first, then those with the largest shares."""
    share = 0.0 if math.isnan(segment.share) else abs(segment.share)
    return math.isfinite(segment.difference.nats), -share, segment.column, segment.value
