"""`ScoreState`: what has to be known about some rows to score them together with others.

A state is made from a batch of rows, states are added, and the sum of all is turned into a `Score`. However the rows
were divided, the sum is the same: sums are compensated (sums.py), histograms have fixed bins, and which rows are kept
whole depends on the rows alone (kept.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from xent.errors import ArgumentError, DataError, message
from xent.scoring import kernels
from xent.scoring.kept import Kept
from xent.scoring.sums import Array, from_json, merged, to_json, zeros

if TYPE_CHECKING:
    from xent.scoring.score import Score

__all__ = ["Form", "ScoreState"]

SCHEMA = 1
ONE_VS_REST_CLASSES = 100
"""Up to so many classes each has a reliability histogram of its own; with more there is that of the predicted class."""
MOST_SEGMENTS = 10_000
MOST_INVALID = 50


@dataclass(frozen=True)
class Form:
    """What kind of rows a state is about, and by which rules they were scored; states of one form can be added."""

    classes: tuple[str, ...] = ()
    """Empty if only the log-probability of each label is known."""
    soft: bool = False
    clip: float | None = None
    """Probabilities of labels below it were scored as it. None: an impossible label costs +inf."""
    weighted: bool = False
    by: tuple[str, ...] = ()
    identified: bool = False
    entropy: bool = False
    worst: int = 50
    sample: int = 5_000

    @property
    def clip_loss(self) -> float:
        return math.inf if self.clip is None else 0.0 - math.log(self.clip)

    @property
    def one_vs_rest(self) -> bool:
        return 0 < len(self.classes) <= ONE_VS_REST_CLASSES


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
    """kernels.TOTALS, as pairs."""
    classes: Array
    """kernels.CLASS_TOTALS of each class."""
    one_vs_rest: Array
    """(weight, probability, label) for each class and bin of its probability."""
    confidence: Array
    """(weight, probability, correct) for each bin of the predicted class's probability."""
    losses: Array
    """(weight, weight * loss) for each bin of the loss."""
    clipped: Array
    """(weight, weight * loss) of the rows below each of kernels.CLIPS; infinite losses count with their weight."""
    segments: Mapping[str, Mapping[str, Array]]
    """kernels.TOTALS for each value of each segment column."""
    surprising: Kept
    sample: Kept
    invalid_rows: int
    invalid: Kept

    @classmethod
    def from_batch(cls, labels: Any, proba: Any = None, **options: Any) -> ScoreState:
        """Score a batch of rows.

        *Definition*: the loss of a row is ``-log q[label]`` in nats, ``-sum(t * log q)`` for a soft label t.

        Parameters
        ----------
        labels : integer array (rows,) of class indices, or (rows, classes) of distributions; None with `log_prob`
        proba : array (rows, classes) of distributions, or (rows,) with the probability of class 1 of two
        logits : array (rows, classes), in place of `proba`
        log_prob : array (rows,), natural log of the label's probability, in place of `proba`
        entropy : array (rows,), with `log_prob`: the entropy of the prediction in nats
        weight : array (rows,), 0 or more
        ids : array (rows,) that names the rows
        by : mapping from a name to an array (rows,): segments
        classes : names of the classes
        clip : smallest probability of a label
        tolerance : how far from 1 a sum may be; without it, what the dtype's rounding explains (xent.arrays)
        first_row : the number of the batch's first row, which names rows without ids
        worst, sample : how many rows are kept whole

        Returns
        -------
        ScoreState

        Raises
        ------
        LabelError, ShapeError, ArgumentError
            Labels outside the classes, shapes that do not fit. Rows that are no distributions are counted and named
            in `invalid`; `xent.score` makes errors of them.
        """
        from xent.scoring.batch import state_of

        return state_of(labels, proba, **options)

    @classmethod
    def empty(cls, form: Form) -> ScoreState:
        """The state of no rows, which changes nothing when it is added."""
        classes = len(form.classes)
        each = classes if form.one_vs_rest else 0
        nothing = Kept({"key": np.empty(0, np.uint64)})
        return cls(
            form=form,
            totals=zeros(kernels.FIELDS),
            classes=zeros(classes, kernels.CLASS_FIELDS),
            one_vs_rest=zeros(each, kernels.PROBABILITY_BINS, 3),
            confidence=zeros(kernels.CONFIDENCE_BINS if classes else 0, 3),
            losses=zeros(kernels.LOSS_BINS, 2),
            clipped=zeros(len(kernels.CLIPS), 2),
            segments={name: {} for name in form.by},
            surprising=nothing,
            sample=nothing,
            invalid_rows=0,
            invalid=nothing,
        )

    @property
    def rows(self) -> int:
        """Valid rows."""
        return int(self.totals[kernels.ROWS, 0])

    def __add__(self, other: ScoreState) -> ScoreState:
        if self.form != other.form:
            found = f"found states of different forms: {_difference(self.form, other.form)}"
            raise ArgumentError(message("ScoreState.__add__", "", found, "Make all batches with the same options"))
        form = self.form
        sums: dict[str, Any] = {name: merged(getattr(self, name), getattr(other, name)) for name in ARRAYS}
        return ScoreState(
            form=form,
            **sums,
            segments={name: _segments(name, self.segments[name], other.segments[name]) for name in form.by},
            surprising=(self.surprising + other.surprising).most_surprising(form.worst),
            sample=(self.sample + other.sample).sampled(form.sample),
            invalid_rows=self.invalid_rows + other.invalid_rows,
            invalid=(self.invalid + other.invalid).sampled(MOST_INVALID),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScoreState) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]

    def moved(self, rows: int) -> ScoreState:
        """The state of the same rows, when others come before them: the numbers of kept rows begin later."""
        kept = {name: getattr(self, name).moved(rows) for name in KEPT if len(getattr(self, name))}
        return replace(self, **kept)

    def finalize(self) -> Score:
        """Turn the sums into what is reported."""
        from xent.scoring.score import score_of

        return score_of(self)

    def to_json(self) -> str:
        """The state as JSON text, bit for bit."""
        written: dict[str, Any] = {"state": "xent score", "schema": SCHEMA, "form": asdict(self.form)}
        written |= {name: to_json(getattr(self, name)) for name in ARRAYS}
        written["segments"] = {
            name: {value: to_json(found[value]) for value in sorted(found)} for name, found in self.segments.items()
        }
        written |= {name: getattr(self, name).to_json() for name in KEPT}
        return json.dumps({**written, "invalid_rows": self.invalid_rows})

    @classmethod
    def from_json(cls, text: str) -> ScoreState:
        """The state that `to_json` wrote; DataError for anything else."""
        try:
            written = json.loads(text)
            if (written["state"], written["schema"]) != ("xent score", SCHEMA):
                raise ValueError(f"schema {written['schema']}")
            form: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in written["form"].items()}
            stored: dict[str, Any] = {name: from_json(written[name]) for name in ARRAYS}
            stored |= {name: Kept.from_json(written[name]) for name in KEPT}
            return cls(
                form=Form(**form),
                **stored,
                segments={
                    name: {value: from_json(sums) for value, sums in found.items()}
                    for name, found in written["segments"].items()
                },
                invalid_rows=written["invalid_rows"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            found = f"this is not a state that to_json wrote ({error!r})"
            raise DataError(message("ScoreState.from_json", "text", found, "Pass the text unchanged")) from None


ARRAYS = ("totals", "classes", "one_vs_rest", "confidence", "losses", "clipped")
KEPT = ("surprising", "sample", "invalid")


def add_all(states: list[ScoreState]) -> ScoreState:
    """The sum of one or more states."""
    return reduce(ScoreState.__add__, states)


def _segments(name: str, a: Mapping[str, Array], b: Mapping[str, Array]) -> dict[str, Array]:
    found = {**a, **{value: merged(a[value], sums) if value in a else sums for value, sums in b.items()}}
    if len(found) > MOST_SEGMENTS:
        remedy = "Segments are for columns with few values; a column that names each row is an id"
        raise DataError(message("score", "by", f"column {name!r} has more than {MOST_SEGMENTS} values", remedy))
    return found


def _difference(a: Form, b: Form) -> str:
    one, other = asdict(a), asdict(b)
    return ", ".join(f"{name} {one[name]!r} and {other[name]!r}" for name in one if one[name] != other[name])
