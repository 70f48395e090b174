"""Dask and Spark: their workers turn partitions into states, which return as text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import polars as pl

from xent import errors
from xent.errors import DataError, message
from xent.scoring.form import CALL, ONE_ROW_PER_ID, Plan, Request
from xent.scoring.labels import MOST_LABELS, UnknownLabelError, Way, find_way
from xent.scoring.readers import to_polars, wanted_columns
from xent.scoring.spark_columns import escaped, flattened
from xent.scoring.state import ScoreState, add_all

PARTITION = 2**40
"""The rows of partition k are numbered from k * PARTITION until the rows of all partitions have been counted."""


def dask_state(frame: Any, request: Request) -> ScoreState:
    """Return the state of a Dask frame, made by one task for each partition."""
    from dask.base import compute
    from dask.delayed import delayed

    plan = _plan_of_dask(frame, request)
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
    frame, plan = _plan_of_spark(frame, request)
    if request.id is not None:
        counts = frame.groupBy(escaped(request.id)).count()
        _refuse_repeated(counts.filter(functions.col("count") > 1).count())
    # PySpark itself looks the columns up by name, in which a dot would be a path.
    plain = [functions.col(escaped(name)).alias(f"c{k}") for k, name in enumerate(plan.needed)]
    states = frame.select(*plain).mapInArrow(_of_arrow(plan), "number long, state string")
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
        first += state.all_rows
    if not states:
        raise DataError(message(CALL, "data", "there are no rows", "Check the filter before it"))
    return add_all(states)


def _own_error(error: Exception) -> Exception:
    """Return the XentError that a worker raised, which Spark reports as text; otherwise Spark's own error."""
    match = re.search(r"^xent\.[\w.]+\.(\w+): (.*)$", str(error), re.MULTILINE)
    kind = (
        (UnknownLabelError if match[1] == "UnknownLabelError" else getattr(errors, match[1], None)) if match else None
    )
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
                parts.append(ScoreState.from_batch(**plan.arguments(_named(to_polars(batch), plan), first)))
                first += batch.num_rows
        if parts:
            text = add_all(parts).to_json()
            yield pyarrow.RecordBatch.from_pydict({"number": [number], "state": [text]})

    return states


def _named(batch: pl.DataFrame, plan: Plan) -> pl.DataFrame:
    return batch.rename(dict(zip(batch.columns, plan.needed, strict=True)))


def _refuse_repeated(repeated: int) -> None:
    if repeated:
        raise DataError(message(CALL, "id", f"{repeated:,} ids name several rows each", ONE_ROW_PER_ID))


def _dtypes_of_pandas(meta: Any) -> dict[str, Any]:
    """Return the columns that may hold lists: pandas calls such columns objects."""
    may_be_lists = [name for name, dtype in meta.dtypes.items() if "list" in str(dtype) or dtype.kind == "O"]
    return {str(name): pl.List(pl.Float64) for name in may_be_lists}


def way_of_labels(frame: Any, request: Request) -> Way | None:
    """Return how the labels of a frame stand for the classes; None if there are no labels, or no names of classes."""
    is_spark = type(frame).__module__.split(".")[0] == "pyspark"
    frame, plan = _plan_of_spark(frame, request) if is_spark else (frame, _plan_of_dask(frame, request))
    if len(plan.label) != 1 or plan.classes is None:
        return None
    (label,) = plan.label
    if is_spark:
        values = [row[0] for row in frame.select(escaped(label)).distinct().limit(MOST_LABELS).collect()]
        labels = pl.Series(values, strict=False)
    else:
        labels = pl.from_pandas(frame[[label]].drop_duplicates().compute().reset_index(drop=True))[label]
    return find_way([labels], plan.classes, plan.columns if len(plan.columns) > 1 else ())


def _plan_of_dask(frame: Any, request: Request) -> Plan:
    return request.plan(list(frame.columns), _dtypes_of_pandas(frame._meta))


def _plan_of_spark(frame: Any, request: Request) -> tuple[Any, Plan]:
    frame = flattened(frame, wanted_columns(request))
    return frame, request.plan(frame.columns, _dtypes_of_spark(frame))


def _dtypes_of_spark(frame: Any) -> dict[str, Any]:
    lists = [f.name for f in frame.schema.fields if f.dataType.typeName() == "array"]
    structs = {f.name: f.dataType for f in frame.schema.fields if f.dataType.typeName() == "struct"}
    fields = {name: [pl.Field(f.name, pl.Float64) for f in dtype.fields] for name, dtype in structs.items()}
    maps = [f.name for f in frame.schema.fields if f.dataType.typeName() == "map"]
    for name in maps:
        inside = [n.removeprefix(f"{name}.") for n in frame.columns if n.startswith(f"{name}.")]
        fields[name] = [pl.Field(n, pl.Float64) for n in inside]
    lists_of = {name: pl.List(pl.Float64) for name in lists}
    return {**lists_of, **{name: pl.Struct(found) for name, found in fields.items()}}
