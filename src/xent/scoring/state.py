"""`ScoreState`: what has to be known about some rows to score them together with others.

A state is made from a batch of rows, states are added, and the sum of all is turned into a `Score`. The sum does not
depend on how the rows were divided: sums are compensated (sums.py), histograms have fixed bins (loops.py), and which
rows are kept whole depends on the rows alone (selection.py).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from typing import Any

import msgspec
import numpy as np

from xent.errors import ArgumentError, DataError, message
from xent.names import first_line
from xent.scoring import figures, loops, stored, tallies
from xent.scoring.batch import CALL, Rows, as_array, checked_clip, checked_count, one_per_row, row_scores
from xent.scoring.calibration import (
    adaptive_error,
    classwise_error,
    expected_calibration_error,
    reliability,
    temperature,
)
from xent.scoring.consistency import check_consistency, class_names, difference
from xent.scoring.decomposition import Recalibration, mean_parts
from xent.scoring.form import Form
from xent.scoring.grouped_sums import GroupedSums, estimate
from xent.scoring.intervals import Estimate, Information
from xent.scoring.multilabel import pairs
from xent.scoring.one_vs_rest import add_one_vs_rest
from xent.scoring.score import Score
from xent.scoring.segments import (
    add_to_totals,
    amounts_of,
    cluster_hashes,
    clusters_of,
    merged_segments,
    segment_columns,
    segment_totals,
)
from xent.scoring.selection import (
    ANY,
    MOST_INVALID,
    NO_ROWS,
    SELECTIONS,
    Kept,
    SelectedRows,
    counts_of_left_out,
    select,
)
from xent.scoring.sums import Array, merged, to_json, values, zeros

__all__ = ["ScoreState"]

SCHEMA = 2
SAMPLE_NUMBERS = 500_000
"""Probabilities that the sample may hold: with many classes it has fewer rows."""
ARRAYS = ("totals", "classes", "one_vs_rest", "confidence", "positive", "confusion", "losses", "clipped")


@dataclass(frozen=True)
class ScoreState:
    """The score of some rows as a sum: ``state + state`` is the state of both, ``finalize()`` its `Score`.

    Examples
    --------
    >>> a = ScoreState.from_batch([0, 1], [[0.5, 0.5], [0.75, 0.25]])
    >>> b = ScoreState.from_batch([1], [[0.0, 1.0]], first_row=2)
    >>> (a + b).finalize().cross_entropy.nats == (b + a).finalize().cross_entropy.nats
    True
    >>> ScoreState.from_json(a.to_json()) + b == a + b
    True
    """

    form: Form
    totals: Array
    """Sums over the rows, as pairs (loops.py names their places)."""
    classes: Array
    """Sums for each class."""
    one_vs_rest: Array
    """(weight, probability, label) for each class and bin of its probability."""
    confidence: Array
    """(weight, probability, correct, weight squared) for each bin of the predicted class's probability."""
    positive: Array
    """With two classes, the same for class 1: (weight, probability, label, weight squared)."""
    confusion: Array
    """Weight of the rows of each label (first axis) and predicted class."""
    losses: Array
    """(weight, weight * loss) for each bin of the loss."""
    clipped: Array
    """(weight, weight * loss) of the rows below each clip; infinite losses count with their weight only."""
    segments: Mapping[str, Mapping[str, Array]]
    """`totals` for each value of each segment column."""
    surprising: SelectedRows
    sample: SelectedRows
    invalid_rows: int
    invalid: SelectedRows
    clusters: GroupedSums
    segment_clusters: Mapping[str, GroupedSums]
    """By the name of a segment column: the clusters in its segments."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many rows were left out, by the reason: those of weight 0, and invalid ones."""

    @classmethod
    def from_batch(
        cls,
        labels: Any,
        proba: Any = None,
        *,
        logits: Any = None,
        log_prob: Any = None,
        entropy: Any = None,
        weight: Any = None,
        ids: Any = None,
        by: Mapping[str, Any] | None = None,
        cluster: Any = None,
        bytes: Any = None,
        characters: Any = None,
        classes: Any = None,
        multilabel: bool = False,
        clip: float | None = None,
        tolerance: float | None = None,
        renormalise: bool = False,
        reasons: Any = None,
        first_row: int = 0,
        worst: int = 50,
        sample: int = 5_000,
        within: ScoreState | None = None,
    ) -> ScoreState:
        """Score a batch of rows.

        *Definition*: the loss of a row is ``-log q[label]`` in nats, ``-sum(t * log q)`` for a soft label t.

        Parameters
        ----------
        labels : integer array (rows,) of class indices, or (rows, classes) of distributions; None with `log_prob`
        proba : array (rows, classes) of distributions, or (rows,) with the probability of class 1 of two
        logits : array (rows, classes), in place of `proba`
        log_prob : array (rows,), natural log of the label's probability, in place of `proba`
        entropy : array (rows,), with `log_prob`: the entropy of the prediction in nats
        weight : array (rows,), 0 or more; a row of weight 0 is left out of everything
        ids : array (rows,) that names the rows
        by : mapping from a name to an array (rows,): segments
        cluster : array (rows,); rows with the same value may depend on each other
        bytes, characters : arrays (rows,), the length of each row's text
        multilabel : labels and predictions are (rows, labels) of 0 and 1 and of probabilities that need not sum to 1;
            each pair of a row and a label counts as a row of two classes (multilabel.py)
        classes : names of the classes
        clip : smallest probability of a label
        tolerance : how far from 1 a sum may be; by default what the rounding of the dtype explains (xent.arrays)
        renormalise : divide probabilities by their sum, where they are 0 or more
        reasons : integer array (rows,), places in `xent.scoring.loops.REASONS`: why a row is left out; 0 for the others
        first_row : the number of the batch's first row; row numbers name rows without ids
        worst, sample : how many of the most surprising rows, and of randomly sampled rows, are kept whole
        within : a state that this one will be added to: a row that their sum would not keep whole is not kept here

        Returns
        -------
        ScoreState

        Raises
        ------
        LabelError, ShapeError, DTypeError, ArgumentError
            Labels outside the classes, shapes or options that do not fit. Rows that are not distributions are counted
            and named in `invalid`; `xent.score` raises an error for them.
        """
        if multilabel:
            first_row = checked_count(CALL, "first_row", first_row)
            named = {"labels": labels, "proba": proba, "logits": logits, "log_prob": log_prob, "weight": weight}
            named |= {"ids": ids, "by": by, "cluster": cluster, "bytes": bytes, "characters": characters}
            named |= {"reasons": reasons, "classes": classes, "first_row": first_row}
            state = cls.from_batch(**pairs(CALL, named), clip=clip, worst=worst, sample=sample, within=within)
            return replace(state, form=replace(state.form, multilabel=True))
        rows = row_scores(
            labels,
            proba,
            logits=logits,
            log_prob=log_prob,
            entropy=entropy,
            weight=weight,
            tolerance=tolerance,
            renormalise=renormalise,
            reasons=reasons,
            count=True,
        )
        count, number = len(rows.loss), rows.p.shape[1]
        if clip is not None and rows.target.shape[1]:
            problem = "found it with soft labels, whose loss has a term for each class"
            raise ArgumentError(message(CALL, "clip", problem, "Omit it, or raise the probabilities yourself"))
        ids = None if ids is None else one_per_row("ids", as_array(CALL, "ids", ids), count)
        by = segment_columns(by, count)
        first_row = checked_count(CALL, "first_row", first_row)
        form = Form(
            classes=class_names(classes, number),
            soft=rows.target.shape[1] > 0,
            clip=checked_clip(CALL, clip),
            weighted=weight is not None,
            by=tuple(by),
            identified=ids is not None,
            entropy=entropy is not None,
            bytes=bytes is not None,
            characters=characters is not None,
            clustered=cluster is not None,
            worst=checked_count(CALL, "worst", worst),
            sample=min(checked_count(CALL, "sample", sample), SAMPLE_NUMBERS // max(number, 1)),
            renormalised=bool(renormalise and proba is not None),
        )
        state = cls.empty(form)
        if not count:
            return state
        amounts = amounts_of(count, first_row, bytes=bytes, characters=characters)
        state._add(rows, amounts)
        limit, keys = form.clip_loss, None if cluster is None else cluster_hashes(cluster, count)
        kept = ANY if within is None else Kept.of(within.surprising, form.worst, within.sample, form.sample)
        selected: dict[str, Any] = select(rows, ids, first_row, form.worst, form.sample, keys, kept)
        if keys is not None:
            clusters, segment_clusters = clusters_of(rows, amounts, keys, by, limit)
            state = replace(state, clusters=clusters, segment_clusters=segment_clusters)
        return replace(
            state,
            segments={name: segment_totals(name, rows, amounts, column, limit) for name, column in by.items()},
            invalid_rows=int((rows.status > loops.VALID).sum()),
            left_out=counts_of_left_out(rows),
            **selected,
        )

    @classmethod
    def empty(cls, form: Form) -> ScoreState:
        """The state of no rows, which changes nothing when it is added."""
        classes = len(form.classes)
        return cls(
            form=form,
            totals=zeros(loops.FIELDS),
            classes=zeros(classes, loops.CLASS_FIELDS),
            one_vs_rest=zeros(classes if form.one_vs_rest else 0, loops.PROBABILITY_BINS, 3),
            confidence=zeros(loops.CONFIDENCE_BINS if classes else 0, 4),
            positive=zeros(loops.CONFIDENCE_BINS if classes == 2 else 0, 4),
            confusion=zeros(*[classes if form.one_vs_rest else 0] * 2),
            losses=zeros(loops.LOSS_BINS, 2),
            clipped=zeros(len(loops.CLIPS), 2),
            segments={name: {} for name in form.by},
            surprising=NO_ROWS,
            sample=NO_ROWS,
            invalid_rows=0,
            invalid=NO_ROWS,
            clusters=GroupedSums(),
            segment_clusters={name: GroupedSums() for name in form.by if form.clustered},
        )

    @property
    def rows(self) -> int:
        """Number of valid rows."""
        return int(self.totals[loops.ROWS, 0])

    @property
    def rows_without_weight(self) -> int:
        """Number of rows of weight 0, which no figure and no selection of rows contains."""
        return int(self.totals[loops.ROWS_WITHOUT_WEIGHT, 0])

    @property
    def all_rows(self) -> int:
        """Number of rows, those that were left out included."""
        return self.rows + self.rows_without_weight + self.invalid_rows

    def __add__(self, other: ScoreState) -> ScoreState:
        if not isinstance(other, ScoreState):
            return NotImplemented
        form = self.form
        if form != other.form:
            problem = f"found states of different forms: {difference(form, other.form)}"
            raise ArgumentError(message("ScoreState.__add__", "", problem, "Make all batches with the same options"))
        sums: dict[str, Any] = {name: merged(getattr(self, name), getattr(other, name)) for name in ARRAYS}
        return ScoreState(
            form=form,
            **sums,
            segments={name: merged_segments(name, self.segments[name], other.segments[name]) for name in form.by},
            surprising=(self.surprising + other.surprising).most_surprising(form.worst),
            sample=(self.sample + other.sample).sampled(form.sample),
            invalid_rows=self.invalid_rows + other.invalid_rows,
            invalid=(self.invalid + other.invalid).sampled(MOST_INVALID),
            clusters=self.clusters + other.clusters,
            segment_clusters={
                name: groups + other.segment_clusters[name] for name, groups in self.segment_clusters.items()
            },
            left_out=dict(sorted((Counter(self.left_out) + Counter(other.left_out)).items())),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScoreState) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]

    def moved(self, rows: int) -> ScoreState:
        """Return the state of the same rows when `rows` others precede them: their numbers are larger by that."""
        selected: dict[str, Any] = {name: getattr(self, name).moved(rows) for name in SELECTIONS}
        return replace(self, **selected)

    def finalize(self) -> Score:
        """Turn the sums into the figures of a `Score`."""
        form, total = self.form, values(self.totals)
        weight, loss = float(total[loops.WEIGHT]), float(total[loops.LOSS])
        has_classes, has_entropy = bool(form.classes), form.soft or form.entropy
        bins = reliability(self.confidence) if has_classes else ()
        clusters = self.clusters.whole if form.clustered else None
        of_segments = {name: groups.whole for name, groups in self.segment_clusters.items()}
        recalibrations = [Recalibration.of(histogram) for histogram in self.one_vs_rest] if weight else []
        nothing = Estimate.of(math.nan)

        def mean(place: int, known: bool) -> float:
            return figures.ratio(total[place], weight) if known else math.nan

        return Score(
            form=form,
            rows=self.rows,
            weight=weight,
            invalid_rows=self.invalid_rows,
            impossible_rows=int(total[loops.IMPOSSIBLE_ROWS]),
            clipped_rows=int(total[loops.CLIPPED_ROWS]),
            rows_without_weight=self.rows_without_weight,
            clusters=None if clusters is None else len(clusters.key),
            cross_entropy=estimate(self.totals, clusters),
            per_byte=estimate(self.totals, clusters, 0) if form.bytes else nothing,
            per_character=estimate(self.totals, clusters, 1) if form.characters else nothing,
            cross_entropy_possible=figures.ratio(loss, weight - total[loops.IMPOSSIBLE_WEIGHT]),
            base_rate=Information(figures.base_rate(self.classes, weight) if has_classes else math.nan),
            uniform=Information(math.log(len(form.classes)) if has_classes else math.nan),
            entropy=Information(mean(loops.ENTROPY, has_entropy)),
            brier=mean(loops.BRIER, has_classes),
            accuracy=mean(loops.CORRECT, has_classes),
            calibration_error=expected_calibration_error(bins) if has_classes else math.nan,
            classwise_error=classwise_error(self.one_vs_rest),
            adaptive_error=adaptive_error(self.one_vs_rest),
            decomposition=mean_parts(recalibrations, self.sample, weight, float(total[loops.WEIGHT_SQUARED])),
            temperature=temperature(self.sample),
            reliability=bins,
            reliability_class_1=reliability(self.positive),
            confusion=tuple(map(tuple, (values(self.confusion) / (weight or math.nan)).tolist())),
            classes=figures.class_scores(form, self.classes, self.one_vs_rest, recalibrations, weight),
            segments={
                name: figures.segment_scores(form, self.segments[name], of_segments.get(name), loss) for name in form.by
            },
            surprising=figures.surprising_rows(form, self.surprising),
            concentration=figures.concentration(self.losses),
            clip_sensitivity=figures.clip_sensitivity(form, self.clipped, loss, weight),
            losses=figures.loss_bins(self.losses),
            sample=self.sample,
            invalid=self.invalid,
            left_out=self.left_out,
        )

    def to_json(self) -> str:
        """Return the state as JSON text, exact to the bit."""
        written: dict[str, Any] = {"state": "xent score", "schema": SCHEMA, "form": asdict(self.form)}
        written |= {name: to_json(getattr(self, name)) for name in ARRAYS}
        written["segments"] = {
            name: {value: to_json(totals[value]) for value in sorted(totals)} for name, totals in self.segments.items()
        }
        written |= {name: getattr(self, name).to_json() for name in SELECTIONS}
        groups = {name: _written(groups) for name, groups in self.segment_clusters.items()}
        written |= {"clusters": _written(self.clusters), "segment_clusters": groups}
        left_out = dict(sorted(self.left_out.items()))
        return json.dumps({**written, "invalid_rows": self.invalid_rows, "left_out": left_out})

    @classmethod
    def from_json(cls, text: str) -> ScoreState:
        """Return the state that `to_json` wrote; DataError for anything else."""
        try:
            if not isinstance(text, str):
                raise TypeError(f"found a {type(text).__name__}")
            written = stored.decode(text)
            form = stored.form_of(written.form)
            parts: dict[str, Any] = {name: getattr(written, name).array() for name in ARRAYS}
            parts |= {name: SelectedRows(getattr(written, name).arrays()) for name in SELECTIONS}
            parts["segments"] = {
                name: {value: totals.array() for value, totals in segments.items()}
                for name, segments in written.segments.items()
            }
            parts["clusters"] = written.clusters.sums_of_groups()
            groups = {name: groups.sums_of_groups() for name, groups in written.segment_clusters.items()}
            parts |= {"segment_clusters": groups, "left_out": written.left_out}
            state = cls(form=form, **parts, invalid_rows=written.invalid_rows)
            check_consistency(state, cls.empty(form), ARRAYS)
        except (ValueError, TypeError, RecursionError, MemoryError, OverflowError, msgspec.MsgspecError) as error:
            problem = f"this is not a state that to_json wrote ({first_line(error)})"
            raise DataError(message("ScoreState.from_json", "text", problem, "Pass the text unchanged")) from None
        return state

    def _add(self, rows: Rows, amounts: Array) -> None:
        """Add rows to the sums of this state, which must be new: its arrays are changed."""
        form = self.form
        w, status, clip_loss = rows.weight, rows.status, form.clip_loss
        names = ("classes", "losses", "clipped", "confidence", "positive", "one_vs_rest", "confusion")
        classes, losses, clipped, confidence, positive, one_vs_rest, confusion = (
            getattr(self, name).reshape(-1) for name in names
        )
        add_to_totals(rows, amounts, None, clip_loss, self.totals)
        tallies.add_losses(rows.loss, w, status, clip_loss, 0.0 - np.log(loops.CLIPS), losses, clipped)
        if not form.classes:
            return
        whole = not (form.soft or form.weighted)
        tallies.add_confidence(rows.confidence, rows.correct, w, status, whole, confidence)
        if form.soft:
            tallies.add_soft_classes(rows.p, rows.target, rows.predicted, w, status, classes)
        else:
            tallies.add_classes(rows.label, rows.predicted, rows.loss, w, status, clip_loss, classes)
        if form.one_vs_rest:
            if rows.one_vs_rest.size and (status == loops.VALID).all():
                self.one_vs_rest[:] = rows.one_vs_rest
            else:
                add_one_vs_rest(rows.p, rows.label, rows.target, w, status, one_vs_rest)
            tallies.add_confusion(rows.label, rows.target, rows.predicted, w, status, len(form.classes), confusion)
        if len(form.classes) == 2:
            second = np.ascontiguousarray(rows.p[:, 1], np.float64)
            is_second = np.ascontiguousarray(rows.target[:, 1]) if form.soft else (rows.label == 1).astype(np.float64)
            tallies.add_confidence(second, is_second, w, status, whole, positive)


def add_all(states: list[ScoreState]) -> ScoreState:
    """Return the sum of one or more states."""
    return reduce(ScoreState.__add__, states)


def _written(groups: GroupedSums) -> dict[str, Any]:
    whole = groups.whole
    return {name: to_json(getattr(whole, name)) for name in ("key", "part", "sums")}
