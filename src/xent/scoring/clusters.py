"""Dask and Spark: states are made where the partitions are, and come back as text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import polars as pl

from xent import errors
from xent.errors import DataError, message
from xent.scoring.columns import Plan, Request
from xent.scoring.frames import ONE_ROW_PER_ID, PARTITION, add_partitions
from xent.scoring.state import ScoreState, add_all

CALL = "score"


def dask_state(frame: Any, request: Request) -> ScoreState:
    """The state of a Dask frame: one task for each partition."""
    from dask.base import compute
    from dask.delayed import delayed

    plan = request.plan(list(map(str, frame.columns)), _dtypes_of_pandas(frame._meta))
    tasks = [delayed(_of_pandas)(part, plan, number) for number, part in enumerate(frame[plan.needed].to_delayed())]
    if request.id is not None:
        _refuse_repeated(int((frame[request.id].value_counts() > 1).sum().compute()))
    (parts,) = compute(tasks)  # type: ignore[no-untyped-call]
    return add_partitions([part for part in parts if part is not None])


def spark_state(frame: Any, request: Request) -> ScoreState:
    """The state of a Spark frame: `mapInArrow` over its partitions."""
    from pyspark.errors import PySparkException
    from pyspark.sql import functions

    plan = request.plan(frame.columns, _dtypes_of_spark(frame))
    if request.id is not None:
        counts = frame.groupBy(request.id).count()
        _refuse_repeated(counts.filter(functions.col("count") > 1).count())
    states = frame.select(*plan.needed).mapInArrow(_of_arrow(plan), "number long, state string")
    try:
        collected = states.collect()
    except PySparkException as error:
        raise _own_error(error) from None
    return add_partitions([(row["number"], row["state"]) for row in collected])


def _own_error(error: Exception) -> Exception:
    """The error of ours that a worker raised, which Spark brings back as text; else Spark's own."""
    found = re.search(r"^xent\.errors\.(\w+): (.*)$", str(error), re.MULTILINE)
    kind = getattr(errors, found[1], None) if found else None
    return kind(found[2]) if found and kind else error


def _of_pandas(part: Any, plan: Plan, number: int) -> tuple[int, str] | None:
    if not len(part):
        return None
    return number, plan.state(pl.from_pandas(part.reset_index(drop=True)), number * PARTITION).to_json()


def _of_arrow(plan: Plan) -> Callable[[Iterator[Any]], Iterator[Any]]:
    """What a Spark worker does with the Arrow batches of a partition."""

    def states(batches: Iterator[Any]) -> Iterator[Any]:
        import pyarrow
        from pyspark import TaskContext

        context = TaskContext.get()
        number = context.partitionId() if context is not None else 0
        found, first = [], number * PARTITION
        for batch in batches:
            if batch.num_rows:
                table = pl.from_arrow(batch)
                found.append(plan.state(table if isinstance(table, pl.DataFrame) else table.to_frame(), first))
                first += batch.num_rows
        if found:
            text = add_all(found).to_json()
            yield pyarrow.RecordBatch.from_pydict({"number": [number], "state": [text]})

    return states


def _refuse_repeated(repeated: int) -> None:
    if repeated:
        raise DataError(message(CALL, "id", f"{repeated:,} ids name several rows each", ONE_ROW_PER_ID))


def _dtypes_of_pandas(meta: Any) -> dict[str, Any]:
    """Enough to know a column of lists, which pandas calls objects, from one of numbers."""
    found = {}
    for name, dtype in meta.dtypes.items():
        if "list" in str(dtype) or dtype.kind == "O":
            found[str(name)] = pl.List(pl.Float64)
    return found


def _dtypes_of_spark(frame: Any) -> dict[str, Any]:
    lists = [f.name for f in frame.schema.fields if f.dataType.typeName() == "array"]
    return {name: pl.List(pl.Float64) for name in lists}
