"""A column of a table as an array: numbers, lists and vectors of numbers, ids.

A missing number is NaN, which no row can be scored with. How exactly a column holds numbers, `rounding_of` says: a
16-bit column is as far from a sum of 1 as its bits make it.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import polars as pl

from xent.errors import DataError, message, option
from xent.names import quoted, shown_name
from xent.scoring.loops import FEW_CLASSES
from xent.scoring.sums import Array

CALL = "score"
VECTOR = {"type", "size", "indices", "values"}
"""Fields of a vector of Spark ML: dense with type 1, otherwise sparse."""
EPS: dict[Any, float] = {pl.Float16: 2.0**-10, pl.Float32: 2.0**-23}


def is_vector(dtype: Any) -> bool:
    """Whether a column holds vectors of Spark ML, as Parquet files have them."""
    return isinstance(dtype, pl.Struct) and {f.name for f in dtype.fields} == VECTOR


def is_lists(dtype: Any) -> bool:
    """Whether a column holds a list of numbers in each row."""
    return isinstance(dtype, pl.List | pl.Array) or is_vector(dtype)


def rounding_of(dtype: Any) -> float:
    """Return the eps of a column of numbers, or of lists of them; 0 for whole and exact numbers."""
    if is_vector(dtype):
        return 2.0**-52
    inner = dtype.inner if isinstance(dtype, pl.List | pl.Array) else dtype
    return EPS.get(inner, 2.0**-52 if inner == pl.Float64 else 0.0)


def number_matrix(frame: pl.DataFrame, columns: list[str]) -> Array:
    """Return columns as a matrix; missing values are NaN.

    Few columns stay one behind the other in memory, as the loops visit them; to interleave them takes time.
    """
    chosen = frame.select(columns)
    for name, dtype in chosen.schema.items():
        if not (dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)):
            problem = f"column {quoted(name)} holds {shown_name(dtype)}, not numbers"
            remedy = f"Convert the column, or leave it out of the pattern ({option('exclude', shown_name(name))})"
            raise DataError(message(CALL, "data", problem, remedy))
    dtypes = set(chosen.dtypes)
    if dtypes != {pl.Float32} and dtypes != {pl.Float64}:
        chosen = chosen.cast(pl.Float64)
    order: Literal["fortran", "c"] = "fortran" if len(columns) <= FEW_CLASSES else "c"
    return chosen.to_numpy(order=order).reshape((frame.height, len(columns)), order="A")


def one_column(frame: pl.DataFrame, name: str) -> Array:
    """Return a column of numbers as (rows,), or one of lists as (rows, classes)."""
    column = frame[name]
    return list_matrix(column) if is_lists(column.dtype) else number_matrix(frame, [name])[:, 0]


def list_matrix(column: pl.Series) -> Array:
    """Return a column of lists or vectors of equal length as a matrix; a missing one is a row of NaN."""
    if column.null_count():
        present = list_matrix(column.drop_nulls())
        matrix = np.full((len(column), present.shape[1]), np.nan, present.dtype)
        matrix[~column.is_null().to_numpy()] = present
        return matrix
    if is_vector(column.dtype):
        return _vectors(column)
    inner = column.dtype.inner  # type: ignore[attr-defined]
    if not inner.is_numeric():
        raise DataError(
            message(
                CALL, "data", f"column {quoted(column.name)} holds lists of {shown_name(inner)}", "Expected numbers"
            )
        )
    if isinstance(column.dtype, pl.List):
        lengths = column.list.len().unique().to_list()
        if len(lengths) > 1:
            raise _uneven(column.name, lengths)
        width = lengths[0] if lengths else 0
    else:
        width = column.dtype.shape[0]  # type: ignore[attr-defined]
    flat = column.explode(empty_as_null=False) if len(column) else pl.Series([], dtype=inner)
    dtype = pl.Float32 if inner == pl.Float32 else pl.Float64
    return flat.cast(dtype).to_numpy().reshape(len(column), width)


def _vectors(column: pl.Series) -> Array:
    """Return vectors of Spark ML, dense or sparse, as a matrix."""
    parts = column.struct.unnest()
    dense = (parts["type"] == 1).to_numpy()
    lengths = np.where(dense, parts["values"].list.len().to_numpy(), parts["size"].fill_null(0).to_numpy())
    if len(set(lengths.tolist())) > 1:
        raise _uneven(column.name, lengths.tolist())
    width = int(lengths[0]) if len(lengths) else 0
    if dense.all():
        return list_matrix(parts["values"])
    matrix = np.zeros((len(column), width))
    for row, (values, places) in enumerate(zip(parts["values"].to_list(), parts["indices"].to_list(), strict=True)):
        if dense[row]:
            matrix[row] = values
        elif len(values) != len(places) or not all(0 <= place < width for place in places):
            problem = f"column {quoted(column.name)} has a vector whose indices are outside of its size {width}"
            raise DataError(message(CALL, "data", problem, "Write it again"))
        else:
            matrix[row, places] = values
    return matrix


def _uneven(name: str, lengths: list[int]) -> DataError:
    problem = f"column {quoted(name)} holds lists of {min(lengths)} to {max(lengths)} numbers"
    remedy = f"Each row needs a number for each class; for lists of tokens, {option('explode', shown_name(name))}"
    return DataError(message(CALL, "data", problem, remedy))


def id_array(ids: pl.Series) -> Array:
    """Return ids as integers of 64 bits or text."""
    short = ids.dtype.is_integer() and ids.dtype not in (pl.UInt64, pl.Int128, pl.UInt128)
    return ids.to_numpy() if short else ids.cast(pl.String).to_numpy()
