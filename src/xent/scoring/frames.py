"""`xent.score`: predictions are scored where they lie, and nothing but states comes back.

Files and local frames give batches of rows, which threads turn into states. Dask and Spark make the states in their own
workers. Whatever the rows came from, they become a batch of a Polars table, and columns.py makes a state of it.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from xent.backends.cpu.threads import get_num_threads
from xent.errors import ArgumentError, DataError, DistributionError, message
from xent.scoring import files, kernels
from xent.scoring.batches import batches_of, engine_of, is_array, is_path
from xent.scoring.columns import Plan, Request
from xent.scoring.kept import keys_of_ids
from xent.scoring.score import Score
from xent.scoring.state import ScoreState, add_all
from xent.scoring.sums import Array

CALL = "score"
MOST_CHECKED_IDS = 2**24
PARTITION = 2**40
"""Numbers of rows that a partition of a cluster's table is given, until all partitions have been counted."""

Progress = Callable[[int], None]
"""Called with the number of rows scored so far."""


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
        DuckDB, Dask or PySpark; an iterator of such frames; or an array (rows, classes) of probabilities, (rows,) of
        those of class 1 of two
    label : the column of the labels; a list or pattern of columns for soft labels; with an array, an array
    proba : columns of probabilities: a pattern ('p_*'), a list of names, one column of lists, or one column with the
        probability of class 1 of two
    logits : the same, of logits
    log_prob : in place of them, the column with the natural logarithm of each label's probability (nats)
    entropy : with `log_prob`, the column with the entropy of each prediction (nats)
    weight, id, by : columns of weights, of names of the rows, and of segments (one or several)
    classes : names of the classes in the order of the columns of `proba`; a pattern's star names them, too
    clip : smallest probability that a label is scored with; without it an impossible label costs +inf
    tolerance : how far from 1 probabilities may sum; without it, what the dtype's rounding explains
    worst : how many of the most surprising rows are kept
    invalid : "skip" leaves out, counts and names rows that cannot be scored; "raise" makes an error of them
    progress : called with the number of rows so far

    Returns
    -------
    Score

    Raises
    ------
    DataError
        The data cannot be read, has no rows, or has two rows with one id.
    DistributionError
        A row is no probability distribution.
    LabelError
        A label is none of the classes.
    ArgumentError
        A column that is not there, options that do not fit.

    Notes
    -----
    *Numerics*: compensated float64 sums; the same to 1e-15 for any division of the rows. Memory does not grow with the
    rows, but for 8 bytes for each id, up to 16 million ids.

    Examples
    --------
    >>> import polars as pl
    >>> table = pl.DataFrame({"y": ["cat", "dog"], "p_cat": [0.5, 0.25], "p_dog": [0.5, 0.75]})
    >>> found = score(table, label="y", proba="p_*")
    >>> round(found.cross_entropy.nats, 4), round(found.perplexity, 4)
    (0.4904, 1.633)

    References
    ----------
    Good (1952), Rational Decisions; Gneiting and Raftery (2007), Strictly Proper Scoring Rules
    """
    if invalid not in ("raise", "skip"):
        raise ArgumentError(message(CALL, "invalid", f"found {invalid!r}", "It is 'raise' or 'skip'"))
    names = None if classes is None else tuple(map(str, classes))
    options = {"clip": clip, "tolerance": tolerance, "worst": worst}
    driver = Driver(invalid == "skip", progress)
    if is_path(data):
        found = files.find(data)
        if found[0].suffix.lower() in files.ARRAYS:
            roles = {"label": label, "proba": proba, "logits": logits, "log_prob": log_prob, "entropy": entropy}
            data, given = _from_array_file(found, {**roles, "weight": weight, "id": id})
            return driver.arrays(data, names, {**options, **given}, by)
    if is_array(data):
        given = {"label": label, "logits": None, "weight": weight, "id": id, "entropy": entropy}
        if logits is not None or proba is not None or log_prob is not None:
            text = "found it beside an array of probabilities"
            raise ArgumentError(message(CALL, "proba, logits, log_prob", text, "Pass columns with a frame or file"))
        return driver.arrays({"proba": data}, names, {**options, **given}, by)
    segments = (by,) if isinstance(by, str) else tuple(by)
    request = Request(label, proba, logits, log_prob, entropy, weight, id, segments, names, options)
    return driver.table(data, request)


class Driver:
    """Turns batches or partitions into one state, and the state into a score."""

    def __init__(self, skip_invalid: bool = False, progress: Progress | None = None) -> None:
        self.skip_invalid, self.progress = skip_invalid, progress
        self.notes: list[str] = []

    def table(self, data: Any, request: Request) -> Score:
        """Score a file or frame."""
        engine = "file" if is_path(data) else engine_of(data)
        if engine in ("dask", "pyspark"):
            from xent.scoring import clusters

            state_of = clusters.dask_state if engine == "dask" else clusters.spark_state
            return self.finished(self.checked(state_of(data, request)))
        with files.reading(data if engine == "file" else f"the {engine} frame"):
            return self.finished(self.folded(*batches_of(data, request)))

    def arrays(self, data: dict[str, Any], classes: Any, given: dict[str, Any], by: Any) -> Score:
        """Score arrays, in pieces."""
        from xent.scoring.arrays import array_pieces

        pieces = array_pieces(data, classes, given, by)
        return self.finished(self.states(pieces))

    def folded(self, plan: Plan, batches: Iterable[pl.DataFrame]) -> ScoreState:
        """Score batches with threads, and add their states in order."""

        def pieces() -> Iterator[tuple[int, Array | None, Callable[[], ScoreState]]]:
            first = 0
            for batch in batches:
                if not batch.height:
                    continue
                ids = None if plan.request.id is None else batch[plan.request.id]
                keys = None if ids is None or ids.null_count() else _keys(ids)
                yield batch.height, keys, _Job(plan, batch, first)
                first += batch.height

        return self.states(pieces())

    def states(self, pieces: Iterable[tuple[int, Array | None, Callable[[], ScoreState]]]) -> ScoreState:
        """The sum of the states of (rows, id keys, job)."""
        total: ScoreState | None = None
        waiting: deque[tuple[int, Future[ScoreState]]] = deque()
        done, duplicates = 0, _Duplicates()
        threads = get_num_threads()

        def take() -> None:
            nonlocal total, done
            rows, future = waiting.popleft()
            state = self.checked(future.result())
            total = state if total is None else total + state
            done += rows
            if self.progress is not None:
                self.progress(done)

        with ThreadPoolExecutor(threads, thread_name_prefix="xent-score") as pool:
            try:
                for rows, keys, job in pieces:
                    if keys is not None:
                        duplicates.add(keys)
                    waiting.append((rows, pool.submit(job)))
                    if len(waiting) > threads:
                        take()
                while waiting:
                    take()
            finally:
                for _, future in waiting:
                    future.cancel()
        self.notes += duplicates.check()
        if total is None:
            raise DataError(message(CALL, "data", "there are no rows", "Check the file or the filter before it"))
        return total

    def checked(self, state: ScoreState) -> ScoreState:
        """The state, unless it has invalid rows that should not be skipped."""
        if state.invalid_rows and not self.skip_invalid:
            raise DistributionError(_invalid_message(state))
        return state

    def finished(self, state: ScoreState) -> Score:
        """The score of at least one row."""
        if state.rows == 0 and state.invalid_rows == 0:
            raise DataError(message(CALL, "data", "there are no rows", "Check the file or the filter before it"))
        if state.rows == 0:
            raise DistributionError(_invalid_message(state))
        _check_sampled_ids(state)
        return dataclasses.replace(state.finalize(), notes=tuple(self.notes))


@dataclasses.dataclass(frozen=True)
class _Job:
    plan: Plan
    batch: pl.DataFrame
    first_row: int

    def __call__(self) -> ScoreState:
        return self.plan.state(self.batch, self.first_row)


class _Duplicates:
    """Finds ids that come twice, by 64-bit keys; gives up, and says so, when there are too many to remember."""

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
            twice = int((together[1:] == together[:-1]).sum())
            if twice:
                raise DataError(message(CALL, "id", f"{twice:,} rows repeat the id of another", ONE_ROW_PER_ID))
        return []


ONE_ROW_PER_ID = "An id names one row; leave id= out, or choose a column without repetitions"


def _check_sampled_ids(state: ScoreState) -> None:
    if state.form.identified:
        ids = [str(name) for name in state.sample["id"].tolist()]
        if len(set(ids)) < len(ids):
            first = next(name for name in ids if ids.count(name) > 1)
            raise DataError(message(CALL, "id", f"the id {first!r} names several rows", ONE_ROW_PER_ID))


def _invalid_message(state: ScoreState) -> str:
    kept = state.invalid
    named = [
        f"row {row}" + ("" if name is None else f" (id {name})") + f": {_reason(int(reason), float(total))}"
        for row, name, reason, total in sorted(
            zip(*(kept[c].tolist() for c in ("row", "id", "reason", "total")), strict=True), key=lambda r: r[0]
        )[:3]
    ]
    found = f"{state.invalid_rows:,} of the first rows cannot be scored; {'; '.join(named)}"
    remedy = "Correct them; invalid='skip' (--skip-invalid) leaves them out; tolerance= allows sums of rounded numbers"
    return message(CALL, "data", found, remedy)


def _reason(reason: int, total: float) -> str:
    return f"a sum of {total:.6g}" if reason == kernels.WRONG_SUM else kernels.REASONS[reason]


def _keys(ids: pl.Series) -> Array:
    return keys_of_ids(ids.to_numpy() if ids.dtype.is_integer() else ids.cast(pl.String).to_numpy())


def _from_array_file(found: list[Path], roles: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays that the roles name, out of an npz file or out of npy files."""
    arrays = files.load_arrays(found)

    def one(role: str, name: Any) -> Any:
        if name is None:
            return None
        if isinstance(name, str) and name in arrays:
            return arrays[name]
        if isinstance(name, str) and name.endswith(".npy"):
            return files.load_arrays(files.find(name))["proba"]
        text = f"there is no array {name!r} in {found[0].name}"
        raise ArgumentError(message(CALL, role, text, f"It has {', '.join(arrays)}; other files are named *.npy"))

    given = {role: one(role, name) for role, name in roles.items()}
    kinds = {kind: given.pop(kind) for kind in ("proba", "logits", "log_prob")}
    data = {kind: array for kind, array in kinds.items() if array is not None}
    if not data and "proba" in arrays:
        data = {"proba": arrays["proba"]}
    return data, given


def add_partitions(parts: list[tuple[int, str]]) -> ScoreState:
    """Add the states of numbered partitions, and number their rows as those of one table."""
    first, states = 0, []
    for number, text in sorted(parts):
        state = ScoreState.from_json(text)
        states.append(state.moved(first - number * PARTITION))
        first += state.rows + state.invalid_rows
    if not states:
        raise DataError(message(CALL, "data", "there are no rows", "Check the filter before it"))
    return add_all(states)
