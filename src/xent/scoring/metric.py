"""`Metric`: a score that is collected batch by batch in a loop of one's own, with the methods of torchmetrics.

metric = Metric(logits=True)
for batch in batches:
    metric.update(model(batch.x), batch.y)
metric.compute().cross_entropy
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from xent.errors import ArgumentError, DataError, DistributionError, message
from xent.names import shown_name
from xent.scoring import loops
from xent.scoring.score import Score
from xent.scoring.state import ScoreState

__all__ = ["Metric"]


class Metric:
    """Scores batches as they come: `update` adds a batch, `compute` returns the `Score` of all batches so far.

    Between processes, `merge_state` adds what others have collected: their metrics, or their states, which can be sent
    as text (``state.to_json()``). The result is that of all rows in one process, in whatever order they are merged.

    Parameters
    ----------
    logits : whether predictions are logits; otherwise they are probabilities
    classes : names of the classes in the order of the columns
    clip : smallest probability that a label is scored with; by default an impossible label costs +inf
    tolerance : how far from 1 probabilities may sum; by default what the rounding of their dtype explains
    multilabel : whether labels and predictions have a column for each label, and rows any number of them
    worst, sample : how many of the most surprising and of the randomly sampled rows are kept whole
    invalid : "raise" raises an error for rows that cannot be scored; "skip" leaves them out and counts them

    Examples
    --------
    >>> metric = Metric()
    >>> metric.update([[0.5, 0.5], [0.25, 0.75]], [0, 1])
    >>> metric.update([[0.75, 0.25]], [1])
    >>> round(metric.compute().cross_entropy.bits, 4)
    1.1383
    >>> other = Metric()
    >>> other.update([[0.5, 0.5]], [0])
    >>> metric.merge_state(other)
    >>> metric.compute().rows
    4
    """

    def __init__(
        self,
        *,
        logits: bool = False,
        classes: Sequence[Any] | None = None,
        clip: float | None = None,
        tolerance: float | None = None,
        multilabel: bool = False,
        worst: int = 50,
        sample: int = 5_000,
        invalid: Literal["raise", "skip"] = "raise",
    ) -> None:
        if invalid not in ("raise", "skip"):
            raise ArgumentError(message("Metric", "invalid", f"found {invalid!r}", "It is 'raise' or 'skip'"))
        self.logits, self.invalid, self.tolerance = logits, invalid, tolerance
        self.multilabel = multilabel
        self.options: dict[str, Any] = {"classes": classes, "clip": clip, "worst": worst, "sample": sample}
        self._state: ScoreState | None = None

    def update(
        self,
        preds: Any,
        target: Any,
        *,
        weight: Any = None,
        ids: Any = None,
        by: Mapping[str, Any] | None = None,
        cluster: Any = None,
        bytes: Any = None,
        characters: Any = None,
    ) -> None:
        """Add a batch.

        Parameters
        ----------
        preds : array or tensor (rows, classes), or (rows,) of class 1 of two, on any device, with or without gradient
        target : integer array or tensor (rows,) of class indices, or (rows, classes) of distributions
        weight, ids, by, cluster, bytes, characters : as in `ScoreState.from_batch`; in all batches or in none

        Raises
        ------
        DistributionError
            A row is not a probability distribution, and `invalid` is "raise". The batch is not added then.
        LabelError, ShapeError, DTypeError, ArgumentError, DataError
            As in `ScoreState.from_batch`.
        """
        self._add(self._state_of(preds, target, weight, ids, by, cluster, bytes, characters))

    def __call__(self, preds: Any, target: Any, **columns: Any) -> Score:
        """Add a batch, as `update` does, and return the score of this batch alone."""
        names = ("weight", "ids", "by", "cluster", "bytes", "characters")
        unknown = set(columns) - set(names)
        if unknown:
            problem = f"there is no argument {', '.join(sorted(unknown))}"
            raise ArgumentError(message("Metric.__call__", "", problem, f"The arguments are {', '.join(names)}"))
        state = self._state_of(preds, target, *map(columns.get, names))
        self._add(state)
        return state.finalize()

    def compute(self) -> Score:
        """Return the score of all batches; DataError if there were no rows."""
        if self._state is None or not self._state.rows:
            raise DataError(message("Metric.compute", "", "there are no rows", "Call update first"))
        return self._state.finalize()

    def merge_state(self, others: Metric | ScoreState | Iterable[Metric | ScoreState]) -> None:
        """Add what other metrics, or their states, have collected; their rows are numbered after those of this one.

        Raises
        ------
        ArgumentError
            Something else, or states that were made with other options or of other classes.
        """
        for other in [others] if isinstance(others, Metric | ScoreState) else others:
            if not isinstance(other, Metric | ScoreState):
                problem = f"found a {type(other).__name__}"
                raise ArgumentError(message("Metric.merge_state", "others", problem, "Pass metrics or their states"))
            state = other if isinstance(other, ScoreState) else other._state
            if state is not None:
                self._add(state.moved(self._rows_read))

    def reset(self) -> None:
        """Forget all batches."""
        self._state = None

    @property
    def state(self) -> ScoreState:
        """What was collected, to be merged or written as JSON; DataError before the first batch."""
        if self._state is None:
            raise DataError(message("Metric.state", "", "there is no batch", "Call update first"))
        return self._state

    @property
    def _rows_read(self) -> int:
        return 0 if self._state is None else self._state.all_rows

    def _add(self, state: ScoreState) -> None:
        self._state = state if self._state is None else self._state + state

    def _state_of(
        self, preds: Any, target: Any, weight: Any, ids: Any, by: Any, cluster: Any, bytes: Any, characters: Any
    ) -> ScoreState:
        first = self._rows_read // (len(preds[0]) if self.multilabel and len(preds) else 1)
        state = ScoreState.from_batch(
            target,
            proba=None if self.logits else preds,
            logits=preds if self.logits else None,
            weight=weight,
            ids=ids,
            by=by,
            cluster=cluster,
            bytes=bytes,
            characters=characters,
            tolerance=self.tolerance,
            multilabel=self.multilabel,
            first_row=first,
            **self.options,
        )
        if state.invalid_rows and self.invalid == "raise":
            k = int(state.invalid["row"].argmin())
            reason, name = loops.REASONS[int(state.invalid["reason"][k])], state.invalid["id"][k]
            named = f"row {state.invalid['row'][k]}" + ("" if name is None else f" (id {shown_name(name)})")
            problem = f"{state.invalid_rows:,} rows cannot be scored; {named}: {reason}"
            remedy = "Correct them, or pass invalid='skip'; logits=True is for logits"
            raise DistributionError(message("Metric.update", "preds", problem, remedy))
        return state
