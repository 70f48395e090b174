"""Dask and Spark: their workers turn partitions into states, which return as text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import polars as pl

from xent import errors
from xent.errors import DataError, message
from xent.scoring.form import CALL, ONE_ROW_PER_ID, Plan, Request
from xent.scoring.readers import to_polars
from xent.scoring.state import ScoreState, add_all

PARTITION = 2**40
"""The rows of partition k are numbered from k * PARTITION until the rows of all partitions have been counted."""


def dask_state(frame: Any, request: Request) -> ScoreState:
    """Return the state of a Dask frame, made by one task for each partition."""
    from dask.base import compute
    from dask.delayed import delayed

    plan = request.plan(list(frame.columns), _dtypes_of_pandas(frame._meta))
    tasks = [delayed(_of_pandas)(part, plan, number) for number, part in enumerate(frame[plan.needed].to_delayed())]
    if request.id is not None:
        _refuse_repeated(int((frame[request.id].value_counts() > 1).sum().compute()))
    (parts,) = compute(tasks)  # type: ignore[no-untyped-call]
    return _sum_of_partitions([part for part in parts if part is not None])


def spark_state(frame: Any, request: Request) -> ScoreState:
    """Return the state of a Spark frame, made by `mapInArrow` over its partitions."""
    from pyspark.errors import PySparkException
    from pyspark.sql import functions

    try:
        import pyarrow  # noqa: F401  in which the workers return the states
    except ModuleNotFoundError as error:
        raise errors.missing_package(error, CALL, "spark") from None
    plan = request.plan(frame.columns, _dtypes_of_spark(frame))
    if request.id is not None:
        counts = frame.groupBy(request.id).count()
        _refuse_repeated(counts.filter(functions.col("count") > 1).count())
    states = frame.select(*plan.needed).mapInArrow(_of_arrow(plan), "number long, state string")
    try:
        collected = states.collect()
    except PySparkException as error:
        raise _own_error(error) from None
    return _sum_of_partitions([(row["number"], row["state"]) for row in collected])


STATES: dict[str, Callable[[Any, Request], ScoreState]] = {"dask": dask_state, "pyspark": spark_state}


def _sum_of_partitions(parts: list[tuple[int, str]]) -> ScoreState:
    """Add the states of numbered partitions, and number their rows as those of one table."""
    first, states = 0, []
    for number, text in sorted(parts):
        state = ScoreState.from_json(text)
        states.append(state.moved(first - number * PARTITION))
        first += state.rows_read
    if not states:
        raise DataError(message(CALL, "data", "there are no rows", "Check the filter before it"))
    return add_all(states)


def _own_error(error: Exception) -> Exception:
    """Return the XentError that a worker raised, which Spark reports as text; otherwise Spark's own error."""
    match = re.search(r"^xent\.errors\.(\w+): (.*)$", str(error), re.MULTILINE)
    kind = getattr(errors, match[1], None) if match else None
    return kind(match[2]) if match and kind else error


def _of_pandas(part: Any, plan: Plan, number: int) -> tuple[int, str] | None:
    if not len(part):
        return None
    frame = pl.from_pandas(part.reset_index(drop=True))
    return number, ScoreState.from_batch(**plan.arguments(frame, number * PARTITION)).to_json()


def _of_arrow(plan: Plan) -> Callable[[Iterator[Any]], Iterator[Any]]:
    """Return the function that a Spark worker applies to the Arrow batches of a partition."""

    def states(batches: Iterator[Any]) -> Iterator[Any]:
        import pyarrow
        from pyspark import TaskContext

        context = TaskContext.get()
        number = context.partitionId() if context is not None else 0
        parts, first = [], number * PARTITION
        for batch in batches:
            if batch.num_rows:
                parts.append(ScoreState.from_batch(**plan.arguments(to_polars(batch), first)))
                first += batch.num_rows
        if parts:
            text = add_all(parts).to_json()
            yield pyarrow.RecordBatch.from_pydict({"number": [number], "state": [text]})

    return states


def _refuse_repeated(repeated: int) -> None:
    if repeated:
        raise DataError(message(CALL, "id", f"{repeated:,} ids name several rows each", ONE_ROW_PER_ID))


def _dtypes_of_pandas(meta: Any) -> dict[str, Any]:
    """Return the columns that may hold lists: pandas calls such columns objects."""
    may_be_lists = [name for name, dtype in meta.dtypes.items() if "list" in str(dtype) or dtype.kind == "O"]
    return {str(name): pl.List(pl.Float64) for name in may_be_lists}


def _dtypes_of_spark(frame: Any) -> dict[str, Any]:
    lists = [f.name for f in frame.schema.fields if f.dataType.typeName() == "array"]
    return {name: pl.List(pl.Float64) for name in lists}
