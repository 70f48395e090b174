"""The columns of a Spark frame as those of a table: vectors are arrays, dots reach into structures and maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xent.errors import DataError, message
from xent.names import quoted
from xent.scoring.tables import MOST_KEYS

CALL = "score"


def flattened(frame: Any, wanted: Sequence[str]) -> Any:
    """Return the frame with what lies inside of its columns; `wanted` are the columns that the caller named."""
    from pyspark.sql import functions

    chosen, names = [], set(frame.columns)
    for field in frame.schema.fields:
        column, kind = functions.col(escaped(field.name)), field.dataType.typeName()
        if field.dataType.simpleString() == "vector":
            from pyspark.ml.functions import vector_to_array

            column = vector_to_array(column)
        chosen.append(column.alias(field.name))
        inside = [f.name for f in field.dataType.fields] if kind == "struct" else []
        if kind == "map" and any(name == field.name or name.startswith(f"{field.name}.") for name in wanted):
            inside = _keys(frame, field.name)
        chosen += [
            column.getItem(name).alias(f"{field.name}.{name}") for name in inside if f"{field.name}.{name}" not in names
        ]
    return frame.select(*chosen)


def escaped(name: str) -> str:
    """Return a column's name as Spark's expressions have it: a dot in it is no path."""
    return "`" + name.replace("`", "``") + "`"


def _keys(frame: Any, name: str) -> list[str]:
    from pyspark.sql import functions

    keys = frame.select(functions.explode(functions.map_keys(functions.col(escaped(name)))).alias("key")).distinct()
    found = [row["key"] for row in keys.limit(MOST_KEYS + 1).collect()]
    if len(found) > MOST_KEYS:
        problem = f"the maps of column {quoted(name)} have more than {MOST_KEYS:,} keys"
        raise DataError(message(CALL, "data", problem, "Write a column of arrays, with a number for each class"))
    return sorted(map(str, found))
