"""`xent.compare`: two sets of predictions of the same rows, paired by id.

difference   d = loss of a - loss of b, for each row; below 0 a is better; nats
interval     mean(d) +- t * s / sqrt(n): the rows' common difficulty drops out, which two separate intervals keep
cluster      rows of one cluster (a user, a document) are not independent: s from the clusters' sums (CR1)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy import special

from xent.errors import ArgumentError, DataError, DistributionError, message
from xent.scoring import files, frames, kernels
from xent.scoring.batches import batches_of
from xent.scoring.columns import Names, Plan, Request
from xent.scoring.score import Estimate
from xent.scoring.sums import Array
from xent.scoring.text import plain

__all__ = ["Comparison", "RowDifference", "SegmentDifference", "compare"]

CALL = "compare"
MOST_MISSING = 20
SCHEMA = 1


@dataclass(frozen=True)
class SegmentDifference:
    """The rows with one value of a segment column. `share` is the part of the summed difference that they bring."""

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
    """How a's losses differ from b's: nats per row. A difference below 0 means that a is better."""

    rows: int
    clusters: int | None
    difference: Estimate
    p_value: float
    """Of no difference: paired t-test, two-sided; of clusters if there are any."""
    cross_entropy_a: float
    cross_entropy_b: float
    accuracy_a: float
    accuracy_b: float
    better_a: int
    better_b: int
    impossible_a: int
    impossible_b: int
    only_in_a: int
    only_in_b: int
    missing: Mapping[str, tuple[str, ...]]
    """The first ids that only one side has."""
    segments: tuple[SegmentDifference, ...]
    drivers: tuple[RowDifference, ...]
    clip: float | None

    @property
    def winner(self) -> str:
        """'a' or 'b' if the interval excludes 0, else 'neither'."""
        if self.difference.high < 0:
            return "a"
        return "b" if self.difference.low > 0 else "neither"

    def to_dict(self) -> dict[str, float]:
        """Flat floats, named with their units."""
        d = self.difference
        found = {
            "difference_nats": d.nats,
            "difference_bits": d.bits,
            "difference_low_nats": d.low,
            "difference_high_nats": d.high,
            "difference_standard_error_nats": d.standard_error,
            "p_value": self.p_value,
            "cross_entropy_a_nats": self.cross_entropy_a,
            "cross_entropy_b_nats": self.cross_entropy_b,
            "accuracy_a": self.accuracy_a,
            "accuracy_b": self.accuracy_b,
            "rows": self.rows,
            "only_in_a": self.only_in_a,
            "only_in_b": self.only_in_b,
        }
        return {name: float(value) for name, value in found.items() if not math.isnan(value)}

    def to_record(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        fields = {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {"record": "xent compare", "schema": SCHEMA, "winner": self.winner, **fields}


def compare(
    a: Any,
    b: Any,
    *,
    id: str,
    label: Names | None = None,
    proba: Names | None = None,
    logits: Names | None = None,
    log_prob: str | None = None,
    proba_b: Names | None = None,
    weight: str | None = None,
    by: str | Sequence[str] = (),
    cluster: str | None = None,
    classes: Sequence[Any] | None = None,
    clip: float | None = None,
    tolerance: float | None = None,
    worst: int = 20,
) -> Comparison:
    """Compare two sets of predictions of the same rows: which is better, by how much, and where.

    *Definition*: the mean over the rows, paired by `id`, of ``loss of a - loss of b`` in nats, with Student's interval.

    Parameters
    ----------
    a, b : paths or frames, as in `xent.score`; Dask and Spark frames are not taken
    id : the column that names the rows on both sides
    label, proba, logits, log_prob, weight, classes, clip, tolerance : as in `xent.score`, for both sides; weights are
        those of a
    proba_b : the columns of b's probabilities where they have other names
    by : columns of a: segments
    cluster : column of a: rows with one value may depend on each other
    worst : how many of the rows with the largest differences are kept

    Returns
    -------
    Comparison

    Raises
    ------
    DataError
        No id is on both sides, or one is twice on one side; labels differ.
    DistributionError, LabelError, ArgumentError
        As in `xent.score`.

    Notes
    -----
    *Numerics*: differences in float64, summed by pairs (NumPy); 40 bytes for each row are kept.

    Examples
    --------
    >>> a = pl.DataFrame({"id": [1, 2, 3], "y": [0, 1, 1], "p": [0.2, 0.7, 0.9]})
    >>> b = pl.DataFrame({"id": [3, 2, 1], "y": [1, 1, 0], "p": [0.6, 0.6, 0.5]})
    >>> found = compare(a, b, id="id", label="y", proba="p")
    >>> round(found.difference.nats, 4), found.winner
    (-0.3432, 'neither')

    References
    ----------
    Student (1908), The probable error of a mean; Cameron and Miller (2015), A Practitioner's Guide to Cluster-Robust
    Inference
    """
    segments = (by,) if isinstance(by, str) else tuple(by)
    names = None if classes is None else tuple(map(str, classes))
    options = {"tolerance": tolerance}
    extra = tuple(dict.fromkeys((*segments, *(() if cluster is None else (cluster,)))))
    request = Request(label, proba, logits, log_prob, None, weight, id, (), names, options, extra)
    others = dataclasses.replace(request, weight=None, also=())
    if proba_b is not None:
        others = dataclasses.replace(others, proba=proba_b)
    left, right = row_table("a", a, request), row_table("b", b, others)
    both = left.join(right, on="id", how="inner", suffix="_b", maintain_order="left")
    if not both.height:
        text = f"no id of {left.height} rows in a is among the {right.height} in b"
        raise DataError(message(CALL, "id", text, "Choose the column that names the same rows on both sides"))
    if "label" in both.columns and not (both["label"] == both["label_b"]).all():
        wrong = both.filter(pl.col("label") != pl.col("label_b"))
        text = f"{wrong.height} rows have other labels in b than in a, the first with id {wrong['id'][0]}"
        raise DataError(message(CALL, "label", text, "Both have to predict the same"))
    limit = math.inf if clip is None else 0.0 - math.log(_checked_clip(clip))
    return _compared(left, right, both, limit, segments, cluster, worst, clip)


def row_table(side: str, data: Any, request: Request) -> pl.DataFrame:
    """The id, loss, correctness, label and further columns of each row."""
    parts = []
    with files.reading(data if isinstance(data, str) else side):
        plan, batches = batches_of(data, request)
        first = 0
        for batch in batches:
            parts.append(_rows_of(side, plan, batch, first))
            first += batch.height
    if not parts or not sum(part.height for part in parts):
        raise DataError(message(CALL, side, "there are no rows", "Check the file or the filter before it"))
    table = pl.concat(parts)
    if table["id"].n_unique() < table.height:
        repeated = table.filter(pl.col("id").is_duplicated())
        text = f"{repeated.height} rows share an id, such as {repeated['id'][0]!r}"
        raise DataError(message(CALL, side, text, frames.ONE_ROW_PER_ID))
    return table


def _rows_of(side: str, plan: Plan, batch: pl.DataFrame, first: int) -> pl.DataFrame:
    scored, request = plan.rows(batch, first), plan.request
    if (scored.status != kernels.VALID).any():
        row = int((scored.status != kernels.VALID).argmax())
        reason = kernels.REASONS[int(scored.status[row])]
        text = f"row {first + row} (id {batch[request.id or ''][row]}) cannot be scored: {reason}"
        raise DistributionError(message(CALL, side, text, "Correct it, or leave it out"))
    columns: dict[str, Any] = {"id": batch[request.id or ""].cast(pl.String), "loss": scored.loss}
    if columns["id"].null_count():
        raise DataError(message(CALL, side, "a row has no id", "Choose a column that names every row"))
    if len(scored.correct):
        columns["correct"] = scored.correct
    if len(scored.label):
        names = plan.names(batch)
        columns["label"] = pl.Series([names[k] for k in scored.label.tolist()], dtype=pl.String)
    if len(scored.weight):
        columns["weight"] = scored.weight
    further = {f"by {name}": batch[name].cast(pl.String).fill_null("(missing)") for name in request.also}
    return pl.DataFrame({**columns, **further})


def _compared(
    left: pl.DataFrame,
    right: pl.DataFrame,
    both: pl.DataFrame,
    limit: float,
    by: tuple[str, ...],
    cluster: str | None,
    worst: int,
    clip: float | None,
) -> Comparison:
    loss_a, loss_b = (np.minimum(both[name].to_numpy(), limit) for name in ("loss", "loss_b"))
    weight = both["weight"].to_numpy() if "weight" in both.columns else np.ones(both.height)
    # Rows that both sides call impossible differ by nothing that a number could say; they are counted.
    with np.errstate(invalid="ignore"):
        difference = np.where(np.isinf(loss_a) & np.isinf(loss_b), 0.0, loss_a - loss_b)
    groups = None if cluster is None else both[f"by {cluster}"].rank("dense").to_numpy() - 1
    estimate, p_value = mean_difference(difference, weight, groups)
    only_a, only_b = left.join(right, on="id", how="anti"), right.join(left, on="id", how="anti")
    order = np.argsort(-np.abs(difference), kind="stable")[:worst]
    ids = both["id"].to_list()
    correct = [both[name].to_numpy() if name in both.columns else None for name in ("correct", "correct_b")]
    accuracy = [math.nan if c is None else float(np.average(c, weights=weight)) for c in correct]
    return Comparison(
        rows=both.height,
        clusters=None if groups is None else int(groups.max()) + 1,
        difference=estimate,
        p_value=p_value,
        cross_entropy_a=float(np.average(loss_a, weights=weight)),
        cross_entropy_b=float(np.average(loss_b, weights=weight)),
        accuracy_a=accuracy[0],
        accuracy_b=accuracy[1],
        better_a=int((difference < 0).sum()),
        better_b=int((difference > 0).sum()),
        impossible_a=int(np.isinf(both["loss"].to_numpy()).sum()),
        impossible_b=int(np.isinf(both["loss_b"].to_numpy()).sum()),
        only_in_a=only_a.height,
        only_in_b=only_b.height,
        missing={side: tuple(t["id"].head(MOST_MISSING)) for side, t in (("a", only_a), ("b", only_b))},
        segments=_segments(both, difference, weight, groups, by),
        drivers=tuple(RowDifference(ids[i], float(loss_a[i]), float(loss_b[i]), float(difference[i])) for i in order),
        clip=clip,
    )


def mean_difference(difference: Array, weight: Array, groups: Array | None = None) -> tuple[Estimate, float]:
    """The weighted mean with its interval and the p-value of 0; with groups, from the sums of each."""
    total = weight.sum()
    if not total or not np.isfinite(difference).all():
        mean = float(np.average(difference, weights=weight)) if total else math.nan
        return Estimate(mean, math.nan, math.nan, math.nan), math.nan
    mean = float(difference @ weight / total)
    residual = weight * (difference - mean)
    if groups is not None:
        residual = np.asarray(np.bincount(groups.astype(np.int64), weights=residual), np.float64)
    units = len(residual)
    if units < 2:
        return Estimate(mean, math.nan, math.nan, math.nan), math.nan
    error = math.sqrt(float(residual @ residual) * units / (units - 1)) / float(total)
    reach = float(special.stdtrit(units - 1, 0.975)) * error
    if error:
        p_value = float(2 * special.stdtr(units - 1, -abs(mean) / error))
    else:
        p_value = 1.0 if mean == 0 else 0.0
    return Estimate(mean, error, mean - reach, mean + reach), p_value


def _segments(
    both: pl.DataFrame, difference: Array, weight: Array, groups: Array | None, by: tuple[str, ...]
) -> tuple[SegmentDifference, ...]:
    total = float(difference @ weight)
    found = []
    for column in by:
        values = both[f"by {column}"]
        for value in values.unique().to_list():
            rows = (values == value).to_numpy()
            inside = None if groups is None else _renumbered(groups[rows])
            estimate, _ = mean_difference(difference[rows], weight[rows], inside)
            part = float(difference[rows] @ weight[rows])
            share = part / total if total and math.isfinite(total) else math.nan
            found.append(SegmentDifference(column, value, int(rows.sum()), estimate, share))
    return tuple(sorted(found, key=lambda s: (-abs(s.share) if not math.isnan(s.share) else 0.0, s.column, s.value)))


def _renumbered(groups: Array) -> Array:
    """The same groups, numbered from 0 without gaps."""
    return np.unique(groups, return_inverse=True)[1]


def _checked_clip(clip: float) -> float:
    if not 0 < clip < 1:
        text = f"found {clip}, expected a probability between 0 and 1"
        raise ArgumentError(message(CALL, "clip", text, "Leave it out to score probabilities as they are"))
    return clip
