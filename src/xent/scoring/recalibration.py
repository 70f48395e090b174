"""`Calibrator`: a change of probabilities that was learnt from rows with labels, to be applied to others; fitting.py
has its kinds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, get_args

import msgspec
import numpy as np
from scipy import special

from xent.errors import ArgumentError, DataError, DistributionError, DTypeError, ShapeError, message
from xent.names import first_line, quoted
from xent.scoring import loops
from xent.scoring.batch import as_array, row_scores
from xent.scoring.call import Call
from xent.scoring.files import is_path, reading
from xent.scoring.fitting import Parameters, fit
from xent.scoring.form import Request, names_of
from xent.scoring.pieces import Pieces, Settled
from xent.scoring.score import Score
from xent.scoring.selection import keys_of_rows
from xent.scoring.settle import check_rows, scored_again, settled_result
from xent.scoring.sums import Array
from xent.scoring.tables import Layout

__all__ = ["Calibrator"]

Kind = Literal["temperature", "vector", "isotonic"]
KINDS = get_args(Kind)
FIT, TRANSFORM = "Calibrator.fit", "Calibrator.transform"

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


@dataclass(frozen=True)
class Calibrator:
    """What turns the probabilities of a model into calibrated ones.

    Parameters
    ----------
    kind : "temperature", "vector" or "isotonic"
    classes : the names of the classes in the order of the columns
    rows : the number of rows that it was fitted on
    gain_nats, gain_low_nats, gain_high_nats : by how much it lowers the cross-entropy of rows that it was not fitted
        on, in nats per row, with a 95% interval: cross-fitted in five parts, on at most 20,000 rows; None with fewer
        than 20, and where the loss was infinite before
    parameters : scales and biases, or the steps of each class

    Examples
    --------
    >>> import xent
    >>> from xent.information import softmax
    >>> random = np.random.default_rng(0)
    >>> logits = random.normal(size=(3000, 3))
    >>> labels = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    >>> too_confident = softmax(2 * logits)
    >>> calibrator = Calibrator.fit(too_confident[:2000], labels[:2000])
    >>> round(calibrator.temperature, 1)
    1.9
    >>> calibrated = calibrator.transform(too_confident[2000:])
    >>> before, after = (xent.score(p, labels[2000:]).cross_entropy.nats for p in (too_confident[2000:], calibrated))
    >>> bool(after < before)
    True
    >>> Calibrator.from_json(calibrator.to_json()) == calibrator
    True

    References
    ----------
    Guo, Pleiss, Sun and Weinberger (2017), On Calibration of Modern Neural Networks; Zadrozny and Elkan (2002),
    Transforming Classifier Scores into Accurate Multiclass Probability Estimates
    """

    kind: Kind
    classes: list[str]
    rows: Count
    gain_nats: float | None
    gain_low_nats: float | None
    gain_high_nats: float | None
    parameters: Parameters

    @property
    def temperature(self) -> float:
        """The temperature; NaN for the other kinds. Above 1 the predictions were too confident."""
        return 1 / self.parameters.scale[0] if self.kind == "temperature" else math.nan

    @classmethod
    def fit(
        cls,
        data: Any,
        label: Any = None,
        *,
        kind: Kind = "temperature",
        proba: Any = None,
        logits: Any = None,
        weight: Any = None,
        classes: Sequence[Any] | None = None,
        tolerance: float | None = None,
    ) -> Calibrator:
        """Fit a calibrator to rows with labels, which the model was not trained on.

        Parameters
        ----------
        data : a `Score`, whose sample of up to 5,000 rows is used; or what `xent.score` takes, but no Dask or Spark
            frames, of which all rows are used, and held in memory
        label, proba, logits, weight, classes, tolerance : as in `xent.score`; none of them with a `Score`
        kind : "temperature" keeps the order of the classes and needs few rows; "vector" also corrects classes that are
            predicted too often; "isotonic" corrects any monotone distortion and needs thousands of rows

        Returns
        -------
        Calibrator

        Raises
        ------
        ArgumentError, DataError, DistributionError, LabelError, ShapeError, DTypeError
            An unknown kind, no rows, a label for which no row is possible, or as in `xent.score`.

        Notes
        -----
        *Numerics*: float64. Scales are between 1/50 (vector: 0) and 50, biases between -50 and 50, so that a fit exists
        for every sample. Rows whose label has probability 0 have no part in "temperature" and "vector", which keep an
        impossible class impossible.
        """
        if kind not in KINDS:
            remedy = f"It is one of {', '.join(map(repr, KINDS))}"
            raise ArgumentError(message(FIT, "kind", f"found {quoted(kind)}", remedy))
        if isinstance(data, Score):
            named = {"label": label, "proba": proba, "logits": logits, "weight": weight, "classes": classes}
            beside = [name for name, value in named.items() if value is not None]
            if beside:
                problem = "found it beside a Score, which has its rows"
                raise ArgumentError(message(FIT, ", ".join(beside), problem, "Omit it, or pass the data themselves"))
            names, log_p, target, rows_weight, keys = _of_score(data)
        else:
            predictions = {"proba": proba, "logits": logits}
            names, log_p, target, rows_weight = _of_rows(data, label, predictions, weight, classes, tolerance)
            keys = keys_of_rows(0, len(log_p))
        parameters, rows, gain = fit(FIT, kind, log_p, target, rows_weight, keys)
        ends = (math.nan,) * 3 if gain is None else (gain.nats, gain.low, gain.high)
        nats, low, high = (None if math.isnan(end) else end for end in ends)
        return cls(kind, names, rows, nats, low, high, parameters)

    def transform(self, data: Any, *, logits: bool = False) -> Array:
        """Return calibrated probabilities.

        Parameters
        ----------
        data : array (rows, classes) of probabilities, or (rows,) with the probability of class 1 of two
        logits : True for logits in their place

        Returns
        -------
        float64 array of the same shape; rows sum to 1.

        Raises
        ------
        ShapeError, DTypeError, DistributionError
            Another number of classes, no numbers, or rows that are not distributions.
        """
        array = as_array(TRANSFORM, "data", data)
        columns = 2 if array.ndim == 1 else array.shape[-1]
        if array.ndim not in (1, 2) or columns != len(self.classes):
            problem = f"found shape {array.shape} for {len(self.classes)} classes"
            raise ShapeError(message(TRANSFORM, "data", problem, "Pass a column for each class"))
        labels = np.zeros(len(array), np.int64)
        rows = row_scores(labels, logits=array) if logits else row_scores(labels, array)
        wrong = rows.status != loops.VALID
        if wrong.any():
            row = int(wrong.argmax())
            problem = f"row {row} is no distribution: {loops.REASONS[int(rows.status[row])]}"
            raise DistributionError(message(TRANSFORM, "data", problem, "Pass logits=True if it holds logits"))
        p = self.parameters.calibrated(_log_probabilities({"logits": array} if logits else {}, rows.p))
        return np.asarray(p[:, 1] if array.ndim == 1 else p)

    def to_json(self) -> str:
        """Return it as JSON text."""
        written = {"record": "xent calibrator", "schema": 1, **asdict(self)}
        return msgspec.json.encode(written).decode()

    @classmethod
    def from_json(cls, text: str) -> Calibrator:
        """Return the calibrator that `to_json` wrote; DataError for anything else."""
        try:
            written = msgspec.json.decode(text, type=_Written)
            calibrator = cls(**{name: getattr(written, name) for name in cls.__dataclass_fields__})
            calibrator.parameters.check(calibrator.kind, len(calibrator.classes))
        except (ValueError, TypeError, RecursionError, msgspec.MsgspecError) as error:
            problem = f"this is not a calibrator that to_json wrote ({first_line(error)})"
            raise DataError(message("Calibrator.from_json", "text", problem, "Pass the text unchanged")) from None
        return calibrator


class _Written(msgspec.Struct, forbid_unknown_fields=True):
    """A calibrator as JSON has it."""

    record: Literal["xent calibrator"]
    schema: Literal[1]
    kind: Kind
    classes: list[str]
    rows: Count
    gain_nats: float | None
    gain_low_nats: float | None
    gain_high_nats: float | None
    parameters: Parameters


# Rows to fit to.


def _of_score(score: Score) -> tuple[list[str], Array, Array, Array, Array]:
    sample = score.sample
    if "p" not in sample.columns:
        problem = "this Score knows only the probabilities of the labels"
        raise ArgumentError(message(FIT, "data", problem, "Score a probability for each class"))
    target = sample["target"] if "target" in sample.columns else sample["label"]
    names = list(score.form.classes)
    return names, _log_probabilities({}, sample["p"]), target, sample["weight"], sample["key"]


def _of_rows(
    data: Any, label: Any, predictions: dict[str, Any], weight: Any, classes: Any, tolerance: float | None
) -> tuple[list[str], Array, Array, Array]:
    """Return the classes, and the log-probabilities, labels and weights of all rows that have a weight."""
    call = Call(
        roles={"label": label, "weight": weight, "id": None, "entropy": None},
        predictions={**predictions, "log_prob": None},
        labels=None,
        by=(),
        exclude=(),
        classes=None if classes is None else names_of("classes", classes),
        options={"tolerance": tolerance},
        layout=Layout(),
        skip=False,
    )
    with reading(data if is_path(data) else f"the {type(data).__name__}"):
        rows = call.rows(data)
        if isinstance(rows, Request):
            problem = f"found a frame of {type(data).__module__.split('.')[0]}"
            raise DTypeError(message(FIT, "data", problem, "Score it, and pass the Score"))
        found, _ = settled_result(
            rows, False, tolerance is None, lambda settled, rounding: _read(rows, settled, rounding)
        )
    if not found:
        raise DataError(message(FIT, "data", "there are no rows", "Check the file or the filter before it"))
    names = found[0][0]
    log_p, target, rows_weight = (np.concatenate([part[k] for part in found]) for k in (1, 2, 3))
    if not len(log_p):
        raise DataError(message(FIT, "weight", "all rows have weight 0", "Choose another column"))
    return names, log_p, target, rows_weight


def _read(rows: Pieces, settled: Settled, may_round: bool) -> list[tuple[list[str], Array, Array, Array]]:
    """Return the classes, log-probabilities, labels and weights of each piece."""
    parts = []
    for count, _, call in rows.pieces(settled):
        found = call()
        scores = scored_again(found)
        check_rows(scores, found, rows, False, may_round)
        kept = scores.status == loops.VALID
        target = scores.target if scores.target.shape[1] else scores.label
        weight = scores.weight if len(scores.weight) else np.ones(count)
        log_p = _log_probabilities(found, scores.p)
        parts.append((list(found["classes"]), log_p[kept], target[kept], weight[kept]))
    return parts


def _log_probabilities(given: dict[str, Any], p: Array) -> Array:
    """Return log p, from the logits if there are any: a probability that underflows has a finite logarithm."""
    logits = given.get("logits")
    if logits is None:
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(p.astype(np.float64, copy=False)))
    z = as_array(FIT, "logits", logits).astype(np.float64)
    z = np.stack([np.zeros_like(z), z], axis=1) if z.ndim == 1 else z
    return np.asarray(special.log_softmax(z, axis=1))
