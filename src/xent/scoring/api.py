"""`xent.score`: predictions are scored where they are stored, and only states are brought together.

Files, local frames and arrays are read in pieces, which threads turn into states; Dask and Spark make the states in
their own workers. A score is what the sum of all states says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np

from xent.backends.cpu.threads import get_num_threads
from xent.errors import ArgumentError, DataError, DistributionError, message
from xent.names import quoted, shown_name
from xent.scoring import clusters, loops
from xent.scoring.batch import checked_clip, checked_count, tolerance_of
from xent.scoring.form import CALL, ONE_ROW_PER_ID, Request, names_of
from xent.scoring.readers import (
    ARRAY_FILES,
    Piece,
    array_pieces,
    arrays_of_files,
    batches_of,
    engine_of,
    find_files,
    frame_pieces,
    is_array,
    is_path,
    reading,
)
from xent.scoring.score import Score
from xent.scoring.state import ScoreState
from xent.scoring.sums import Array

MOST_CHECKED_IDS = 2**24

Progress = Callable[[int], None]
"""Called with the number of rows scored so far."""
Result = TypeVar("Result")


def score(
    data: Any,
    label: Any = None,
    *,
    proba: Any = None,
    logits: Any = None,
    log_prob: Any = None,
    entropy: Any = None,
    weight: Any = None,
    id: Any = None,
    by: Any = (),
    cluster: Any = None,
    bytes: Any = None,
    characters: Any = None,
    multilabel: bool = False,
    classes: Sequence[Any] | None = None,
    clip: float | None = None,
    tolerance: float | None = None,
    worst: int = 50,
    invalid: Literal["raise", "skip"] = "raise",
    progress: Progress | None = None,
) -> Score:
    """Score predictions: mean cross-entropy and what explains it, of a file, a frame or arrays.

    *Definition*: the loss of a row is ``-log q[label]``, for soft labels ``-sum(t * log q)``, in nats; a score is the
    weighted mean over the rows, with the sums and histograms that explain it.

    Parameters
    ----------
    data : path, directory or pattern of Parquet, CSV, Arrow, npz or npy files; a frame of pandas, Polars, PyArrow,
        DuckDB, Dask or PySpark; an iterator of such frames; or an array (rows, classes) of probabilities, or (rows,)
        with the probability of class 1 of two, of NumPy, torch (also bfloat16, on any device, with or without
        gradient), JAX or CuPy
    label : the column of the labels; a list or pattern of columns for soft labels; with an array, an array
    proba : columns of probabilities: a pattern ('p_*'), a list of names, one column of lists, or one column with the
        probability of class 1 of two
    logits : the same, of logits; with an array, True if it holds logits
    log_prob : in place of both, the column with the natural logarithm of each label's probability (nats); with an
        array (rows,) of those, True
    entropy : with `log_prob`, the column with the entropy of each prediction (nats)
    weight, id, by : columns of weights, of names of the rows, and of segments (one or several)
    cluster : the column whose equal values mark rows that may depend on each other (of one user, one document):
        intervals are those of independent clusters; 80 bytes of memory for each cluster
    bytes, characters : columns with the length of each row's text, for bits per byte and per character
    multilabel : label and predictions have a column for each label, and a row any number of labels: each pair of a row
        and a label is scored as a row of two classes, with the label as a segment and the row as a cluster
    classes : names of the classes in the order of the columns of `proba`; the star of a pattern names them as well
    clip : smallest probability that a label is scored with; by default an impossible label costs +inf
    tolerance : how far from 1 probabilities may sum; by default what the rounding of the dtype explains
    worst : how many of the most surprising rows are kept
    invalid : "raise" raises an error for rows that cannot be scored; "skip" leaves them out, counts and names them
    progress : called with the number of rows scored so far

    Returns
    -------
    Score

    Raises
    ------
    DataError
        The data cannot be read, has no rows, or has two rows with one id.
    DistributionError
        A row is not a probability distribution.
    LabelError
        A label is none of the classes.
    ArgumentError, DTypeError, ShapeError
        A column that does not exist, or options, types or shapes that do not fit.

    Notes
    -----
    *Numerics*: compensated float64 sums; the same to 1e-15 for any division of the rows. Memory does not grow with the
    number of rows, except for 8 bytes per id, up to 16 million ids.

    Examples
    --------
    >>> import polars as pl
    >>> table = pl.DataFrame({"y": ["cat", "dog"], "p_cat": [0.5, 0.25], "p_dog": [0.5, 0.75]})
    >>> result = score(table, label="y", proba="p_*")
    >>> round(result.cross_entropy.nats, 4), round(result.perplexity, 4)
    (0.4904, 1.633)

    References
    ----------
    Good (1952), Rational Decisions; Gneiting and Raftery (2007), Strictly Proper Scoring Rules
    """
    if invalid not in ("raise", "skip"):
        raise ArgumentError(message(CALL, "invalid", f"found {invalid!r}", "It is 'raise' or 'skip'"))
    names = None if classes is None else names_of("classes", classes)
    options = {"clip": checked_clip(CALL, clip), "tolerance": tolerance, "worst": checked_count(CALL, "worst", worst)}
    if multilabel:
        options["multilabel"] = True
    roles = {"label": label, "weight": weight, "id": id, "entropy": entropy}
    roles |= {"cluster": cluster, "bytes": bytes, "characters": characters}
    predictions = {"proba": proba, "logits": logits, "log_prob": log_prob}
    pieces: Iterable[Piece]
    with reading(data if is_path(data) else f"the {type(data).__name__}"):
        files = find_files(data) if is_path(data) else []
        if files and files[0].suffix.lower() in ARRAY_FILES:
            columns: dict[str, Any] = arrays_of_files(files, {**predictions, **roles})
            arrays = {kind: columns.pop(kind) for kind in predictions}
            pieces = array_pieces(arrays, columns, by, names, options)
        elif not files and is_array(data):
            options["tolerance"] = tolerance if tolerance is not None else tolerance_of(data)
            pieces = array_pieces({_kind_of_array(predictions): data}, roles, by, names, options)
        else:
            segments = names_of("by", by)
            request = Request(**predictions, **roles, by=segments, classes=names, options=options)
            engine = "file" if files else engine_of(data)
            if engine in clusters.STATES:
                state = _checked(clusters.STATES[engine](data, request), invalid == "skip")
                return _finished(state, [])
            pieces = frame_pieces(*batches_of(data, request))
        return _finished(*_sum_of(pieces, invalid == "skip", progress))


def _kind_of_array(predictions: dict[str, Any]) -> str:
    """Return what an array in memory holds: probabilities, or what is True of the arguments `logits` and `log_prob`."""
    kinds = {kind: value for kind, value in predictions.items() if value is not None and value is not False}
    if not kinds:
        return "proba"
    if len(kinds) > 1 or next(iter(kinds.values())) is not True:
        problem = f"found {', '.join(f'{kind}={quoted(value)}' for kind, value in kinds.items())} beside an array"
        remedy = "Pass columns with a frame or file, and with an array logits=True or log_prob=True if it holds those"
        raise ArgumentError(message(CALL, "proba, logits, log_prob", problem, remedy))
    return next(iter(kinds))


def _sum_of(pieces: Iterable[Piece], skip_invalid: bool, progress: Progress | None) -> tuple[ScoreState, list[str]]:
    """Return the sum of the states of all pieces, and remarks on the data."""
    total: ScoreState | None = None
    rows, repeated = 0, _RepeatedIds()

    def state_of(count: int, arguments: Callable[[], dict[str, Any]]) -> tuple[int, ScoreState]:
        return count, ScoreState.from_batch(**arguments())

    def jobs() -> Iterator[Callable[[], tuple[int, ScoreState]]]:
        for count, keys, arguments in pieces:
            if keys is not None:
                repeated.add(keys)
            yield partial(state_of, count, arguments)

    with closing(in_threads(jobs())) as states:
        for count, state in states:
            _checked(state, skip_invalid)
            total = state if total is None else total + state
            rows += count
            if progress is not None:
                progress(rows)
    notes = repeated.check()
    if total is None:
        raise DataError(message(CALL, "data", "there are no rows", "Check the file or the filter before it"))
    return total, notes


def in_threads(jobs: Iterable[Callable[[], Result]]) -> Generator[Result]:
    """Run jobs in threads and yield their results in order; jobs are taken as threads become free."""
    threads = get_num_threads()
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="xent-score") as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(job))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _checked(state: ScoreState, skip_invalid: bool) -> ScoreState:
    """Return the state; DistributionError if it has invalid rows that should not be skipped."""
    if state.invalid_rows and not skip_invalid:
        raise DistributionError(_invalid_message(state))
    return state


def _finished(state: ScoreState, notes: list[str]) -> Score:
    """Return the score of at least one valid row."""
    if state.rows_read == 0:
        raise DataError(message(CALL, "data", "there are no rows", "Check the file or the filter before it"))
    if state.rows == 0:
        if not state.invalid_rows:
            problem = f"all {state.rows_without_weight:,} rows have weight 0"
            raise DataError(message(CALL, "weight", problem, "A row of weight 0 is left out; choose another column"))
        raise DistributionError(_invalid_message(state))
    if state.form.identified:
        ids = [str(name) for name in state.sample["id"].tolist()]
        if len(set(ids)) < len(ids):
            first = next(name for name in ids if ids.count(name) > 1)
            raise DataError(message(CALL, "id", f"the id {quoted(first)} names several rows", ONE_ROW_PER_ID))
    return replace(state.finalize(), notes=tuple(notes))


class _RepeatedIds:
    """Finds repeated ids by 64-bit keys; with too many ids to remember, it reports that not all were checked."""

    def __init__(self) -> None:
        self.keys: list[Array] = []
        self.count = 0

    def add(self, keys: Array) -> None:
        self.count += len(keys)
        if self.count <= MOST_CHECKED_IDS:
            self.keys.append(keys)
        else:
            self.keys.clear()

    def check(self) -> list[str]:
        if self.count > MOST_CHECKED_IDS:
            return [f"More than {MOST_CHECKED_IDS:,} ids: only those of kept rows were checked for repetition."]
        if self.keys:
            together = np.sort(np.concatenate(self.keys))
            repeated = int((together[1:] == together[:-1]).sum())
            if repeated:
                raise DataError(message(CALL, "id", f"{repeated:,} rows repeat the id of another", ONE_ROW_PER_ID))
        return []


def _invalid_message(state: ScoreState) -> str:
    invalid = state.invalid
    columns = (invalid[name].tolist() for name in ("row", "id", "reason", "total"))
    first = sorted(zip(*columns, strict=True), key=lambda columns: columns[0])[:3]
    named = [
        f"row {row}" + ("" if name is None else f" (id {shown_name(name)})") + f": {_reason(reason, total)}"
        for row, name, reason, total in first
    ]
    problem = f"{state.invalid_rows:,} of the first rows cannot be scored; {'; '.join(named)}"
    remedy = "Correct them; invalid='skip' (--skip-invalid) leaves them out; tolerance= allows sums of rounded numbers"
    return message(CALL, "data", problem, remedy)


def _reason(reason: int, total: float) -> str:
    return f"a sum of {total:.6g}" if reason == loops.WRONG_SUM else loops.REASONS[reason]
