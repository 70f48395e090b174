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
from xent.names import quoted
from xent.scoring import clusters, loops
from xent.scoring.batch import checked_clip, checked_count
from xent.scoring.call import Call, checked_switch
from xent.scoring.diagnosis import explain_selected
from xent.scoring.files import CALL, is_path, reading
from xent.scoring.form import ONE_ROW_PER_ID, Request, names_of
from xent.scoring.ids import RepeatedIds
from xent.scoring.labels import UnknownLabelError
from xent.scoring.multilabel import pairs
from xent.scoring.pieces import Pieces, Settled
from xent.scoring.readers import engine_of, with_text_names
from xent.scoring.score import Score
from xent.scoring.settle import check_rows, scored_again, settled_result
from xent.scoring.state import ScoreState, add_all
from xent.scoring.sums import Array
from xent.scoring.tables import Layout

Progress = Callable[[int], None]
"""Called with the number of rows scored so far."""
Result = TypeVar("Result")
SHARE = 4
"""A sum of states is added to the one before it when it keeps this share of the rows that the other keeps."""


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
    labels: Any = None,
    exclude: Any = (),
    classes: Sequence[Any] | None = None,
    clip: float | None = None,
    tolerance: float | None = None,
    renormalise: bool = False,
    worst: int = 50,
    invalid: Literal["raise", "skip"] = "raise",
    explode: Any = (),
    separator: str | None = None,
    header: bool | None = None,
    progress: Progress | None = None,
) -> Score:
    """Score predictions: mean cross-entropy and what explains it, of a file, a frame or arrays.

    *Definition*: the loss of a row is ``-log q[label]``, for soft labels ``-sum(t * log q)``, in nats; a score is the
    weighted mean over the rows, with the sums and histograms that explain it.

    Parameters
    ----------
    data : path, directory, pattern or address of Parquet, CSV, TSV, JSON lines, Arrow, Excel, npz or npy files, the
        text files also compressed; a frame of pandas, Polars, PyArrow, DuckDB, Dask or PySpark; an iterator of such
        frames; or an array (rows, classes) of probabilities, or (rows,) or (rows, 1) of those of class 1 of two, of
        NumPy, torch (also bfloat16, on any device, with or without gradient), JAX or CuPy
    label : the column of the labels; a list or pattern of columns for soft labels; with an array, an array
    proba : columns of probabilities: a pattern ('p_*'), a list of names, one column of lists, or one column with the
        probability of class 1 of two
    logits : the same, of logits; True says that an array in memory holds logits
    log_prob : in place of both, the column with the natural logarithm of each label's probability (nats); True says
        that an array (rows,) in memory holds those
    entropy : with `log_prob`, the column with the entropy of each prediction (nats)
    weight, id, by : columns of weights, of names of the rows, and of segments (one or several)
    cluster : the column whose equal values mark rows that may depend on each other (of one user, one document):
        intervals are those of independent clusters; 80 bytes of memory for each cluster
    bytes, characters : columns with the length of each row's text, for bits per byte and per character
    multilabel : label and predictions have a column for each label, and a row any number of labels: each pair of a row
        and a label is scored as a row of two classes, with the label as a segment and the row as a cluster
    labels : a file or frame of labels, joined by `id` or, without it, by their order
    exclude : columns that patterns do not match
    classes : names of the classes in the order of the columns of `proba`; the star of a pattern names them as well
    clip : smallest probability that a label is scored with; by default an impossible label costs +inf
    tolerance : how far from 1 probabilities may sum; by default what the rounding of the dtype explains or, if all
        probabilities have few digits, that of these digits, which a warning says
    renormalise : divide the probabilities of each row by their sum
    worst : how many of the most surprising rows are kept
    invalid : "raise" raises an error for rows that cannot be scored; "skip" leaves them out, counts and names them
    explode : columns of lists of which each item becomes a row: the tokens of a document
    separator, header : of a CSV file, if not to be found out: its separator, and whether its first line has names
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
    if multilabel and renormalise:
        problem = "found it with multilabel, where the probabilities of a row need not sum to 1"
        raise ArgumentError(message(CALL, "renormalise", problem, "Omit it"))
    if invalid not in ("raise", "skip"):
        raise ArgumentError(message(CALL, "invalid", f"found {invalid!r}", "It is 'raise' or 'skip'"))
    names = None if classes is None else names_of("classes", classes)
    options = {
        "clip": checked_clip(CALL, clip),
        "tolerance": tolerance,
        "renormalise": checked_switch("renormalise", renormalise),
        "worst": checked_count(CALL, "worst", worst),
        **({"multilabel": True} if checked_switch("multilabel", multilabel) else {}),
    }
    of_rows = {"cluster": cluster, "bytes": bytes, "characters": characters}
    request = Call(
        roles={"label": label, "weight": weight, "id": id, "entropy": entropy, **of_rows},
        predictions={"proba": proba, "logits": logits, "log_prob": log_prob},
        labels=labels,
        by=by,
        exclude=names_of("exclude", exclude),
        classes=names,
        options=options,
        layout=Layout(separator, header, names_of("explode", explode)),
        skip=invalid == "skip",
    )
    with reading(data if is_path(data) else f"the {type(data).__name__}"):
        rows = request.rows(data)
        if isinstance(rows, Request):
            return _finished(*_of_cluster(data, rows))
        may_round, skip = tolerance is None and not (renormalise or multilabel), request.skip
        (state, remarks), notes = settled_result(
            rows, skip, may_round, lambda settled, rounding: _sum_of(rows, settled, skip, rounding, progress)
        )
        return _finished(state, [*notes, *remarks])


def _of_cluster(data: Any, request: Request) -> tuple[ScoreState, list[str]]:
    """Return the state of a frame of Dask or Spark, and remarks on its labels."""
    make, frame = clusters.STATES[engine_of(data)], with_text_names(data)
    way = clusters.way_of_labels(frame, request) if request.skip else None
    try:
        state = make(frame, replace(request, way=way))
    except UnknownLabelError:
        if (way := clusters.way_of_labels(frame, request)) is None:
            raise
        state = make(frame, replace(request, way=way))
    if state.invalid_rows and not request.skip:
        raise DistributionError(explain_selected(state.invalid.columns, state.invalid_rows))
    return state, [way.note] if way is not None and way.note else []


def _sum_of(
    rows: Pieces, settled: Settled, skip: bool, may_round: bool, progress: Progress | None
) -> tuple[ScoreState, list[str]]:
    """Return the sum of the states of all pieces, and remarks on ids.

    Pieces that keep few rows are added to each other before they are added to the many rows that the first ones keep.
    """
    sums: list[ScoreState] = []
    count_of_rows, repeated = 0, RepeatedIds(skip)

    def state_of(count: int, arguments: Callable[[], dict[str, Any]], again: Array | None) -> tuple[int, ScoreState]:
        found = arguments()
        if again is not None:
            reasons = found.get("reasons")
            before = np.zeros(count, np.int8) if reasons is None else reasons
            found["reasons"] = np.where(again & (before == loops.VALID), loops.REPEATED_ID, before)
        state = ScoreState.from_batch(**found, within=sums[0] if sums else None)
        if state.invalid_rows:
            judged = pairs(CALL, found) if found.get("multilabel") else found
            check_rows(scored_again(judged), judged, rows, skip, may_round)
        return count, state

    def jobs() -> Iterator[Callable[[], tuple[int, ScoreState]]]:
        for count, keys, arguments in rows.pieces(settled):
            yield partial(state_of, count, arguments, None if keys is None else repeated.add(keys))

    with closing(in_threads(jobs())) as states:
        for count, state in states:
            sums.append(state)
            while len(sums) > 1 and SHARE * len(sums[-1].sample) >= len(sums[-2].sample):
                sums[-2:] = [sums[-2] + sums[-1]]
            count_of_rows += count
            if progress is not None:
                progress(count_of_rows)
    notes = repeated.check()
    if not sums:
        raise DataError(message(CALL, "data", "there are no rows", "Check the file or the filter before it"))
    return add_all(sums), notes


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


def _finished(state: ScoreState, notes: list[str]) -> Score:
    """Return the score of at least one valid row."""
    if state.all_rows == 0:
        raise DataError(message(CALL, "data", "there are no rows", "Check the file or the filter before it"))
    if state.rows == 0:
        if not state.invalid_rows:
            raise DataError(message(CALL, "weight", "all weights are 0", "Check the column; 0 leaves a row out"))
        raise DistributionError(explain_selected(state.invalid.columns, state.invalid_rows))
    if state.form.identified:
        ids = [str(name) for name in state.sample["id"].tolist()]
        if len(set(ids)) < len(ids):
            first = next(name for name in ids if ids.count(name) > 1)
            raise DataError(message(CALL, "id", f"the id {quoted(first)} names several rows", ONE_ROW_PER_ID))
    return replace(state.finalize(), notes=tuple(notes))
