"""A table and its label column, from scikit-learn or a file, as features for gradient descent."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn import datasets
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from xent.errors import ArgumentError, DataError, message
from xent.names import first_line, listed, quoted, shown_name, shown_path
from xent.scoring.limits import check_inflated

BUILT_IN = {
    "digits": datasets.load_digits,
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
    "breast_cancer": datasets.load_breast_cancer,
}
MOST_ROWS = 10_000
"""Larger tables are sampled, so that the experiment takes minutes at most; the record says so."""
MOST_CATEGORIES = 100
"""A text column with more distinct values holds names or texts, not categories."""
FEWEST_ROWS_PER_CLASS = 5
"""Each class contributes training, validation and test rows: 3, 1 and 1 of 5."""


@dataclass(frozen=True)
class Dataset:
    """Numeric and categorical features of the rows, and their labels as class indices."""

    name: str
    source: str
    label: str
    numbers: NDArray[np.float64]
    categories: NDArray[Any]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    rows_in_source: int
    columns: tuple[str, ...] = ()
    """Names of the numeric columns, then of the categorical ones."""
    image: tuple[int, int] | None = None
    """Rows and columns of the picture that the numeric columns are, if they are one."""
    row_numbers: NDArray[np.int64] | None = None
    """Of a sample: the place of each row in its source, from 0."""


@dataclass(frozen=True)
class Split:
    """Features and labels of one part of the rows."""

    features: NDArray[np.float64]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Splits:
    train: Split
    validation: Split
    test: Split
    everything: Split
    train_rows: NDArray[np.int64]
    test_rows: NDArray[np.int64]
    """Which rows of the data set these are."""


def load(
    data: str | Path, label: str | None = None, drop: str | Sequence[str] = (), image: str | None = None
) -> Dataset:
    """Load a data set by name, or a CSV or Parquet file by its path.

    `image` says that the columns besides the label are the pixels of a picture, row by row, such as "28x28". The
    digits are one of 8x8 without being told.

    Raises
    ------
    DataError
        The file or column cannot be read as a table of labelled rows without missing values.
    ArgumentError
        An argument is not text.
    """
    dropped = [drop] if isinstance(drop, str) else drop
    if not isinstance(data, str | Path) or not isinstance(dropped, Sequence) or not isinstance(label, str | None):
        values = f"{quoted(data)}, {quoted(label)} and {quoted(drop)}"
        problem = f"found {values}, expected the name of a data set or file, and of columns"
        raise ArgumentError(message("load", "data, label, drop", problem, "Pass text, such as 'iris' or 'table.csv'"))
    return _as_image(_loaded(data, label, dropped), image)


def _loaded(data: str | Path, label: str | None, dropped: Sequence[str]) -> Dataset:
    if data in BUILT_IN and not os.path.isfile(data):
        if label is not None:
            raise DataError(
                f"--label {shown_name(label)}: the built-in data set {quoted(data)} has its own label. Omit --label."
            )
        return _built_in(str(data))
    path = Path(data)
    try:
        return _from_frame(_read(path, str(data)), path, label, dropped)
    except pl.exceptions.PolarsError as error:
        problem = first_line(error)
        raise DataError(
            f"{shown_path(data)}: cannot be used as a table ({problem}). Drop or convert that column."
        ) from None


def _as_image(dataset: Dataset, image: str | None) -> Dataset:
    """Return the data set as pictures of this size, if one is given."""
    if image is None:
        return dataset
    found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", image) if isinstance(image, str) else None
    if not found:
        raise DataError(f"--image {shown_name(image)}: expected ROWSxCOLUMNS, such as 28x28.")
    rows, columns = int(found[1]), int(found[2])
    numeric, others = dataset.numbers.shape[1], dataset.categories.shape[1]
    if rows * columns != numeric or others:
        besides = f" and {others} that are not" if others else ""
        raise DataError(
            f"--image {image}: that is {rows * columns} pixels, and the table has {numeric} numeric columns{besides} "
            "besides the label. Give the size of the picture, or leave out columns that are no pixels with --drop."
        )
    return dataclasses.replace(dataset, image=(rows, columns))


def prepare(dataset: Dataset, seed: int = 0) -> Splits:
    """Split into 60% training, 20% validation and 20% test rows, stratified by class, and standardise the features.

    Means, deviations and categories come from the training rows, so that nothing leaks from the others. The split
    depends on `seed` alone and is the same for all trainings.
    """
    index = np.arange(len(dataset.labels))
    rest, test = train_test_split(index, test_size=0.2, random_state=seed, stratify=dataset.labels)
    train, validation = train_test_split(rest, test_size=0.25, random_state=seed, stratify=dataset.labels[rest])
    parts = []
    if dataset.numbers.shape[1]:
        parts.append(StandardScaler().fit(dataset.numbers[train]).transform(dataset.numbers))
    if dataset.categories.shape[1]:
        encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
        parts.append(encoder.fit(dataset.categories[train]).transform(dataset.categories))
    features = np.ascontiguousarray(np.hstack(parts))
    parts_of_rows = [Split(features[i], dataset.labels[i]) for i in (train, validation, test, index)]
    of_train, of_validation, of_test, everything = parts_of_rows
    return Splits(of_train, of_validation, of_test, everything, train, test)


def _built_in(name: str) -> Dataset:
    bunch = BUILT_IN[name]()
    classes = tuple(str(c) for c in bunch.target_names)
    numbers, rows = np.asarray(bunch.data, dtype=np.float64), len(bunch.target)
    none = np.empty((rows, 0), dtype=object)
    labels = np.asarray(bunch.target, dtype=np.int64)
    columns = tuple(map(str, bunch.feature_names))
    image = (8, 8) if name == "digits" else None
    return Dataset(name, "scikit-learn", "target", numbers, none, labels, classes, rows, columns, image)


def _read(path: Path, name: str) -> pl.DataFrame:
    if not os.path.isfile(path):
        close = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f"Did you mean {close[0]}? " if close else ""
        raise DataError(
            f"{shown_path(name)}: no such file, and no built-in data set of that name. {hint}Give a .csv or .parquet "
            f"file, or one of {', '.join(BUILT_IN)}."
        )
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise DataError(
            f"{shown_path(name)}: expected a file that ends in .csv or .parquet. Convert it, or rename it if it is one."
        )
    try:
        name.encode()  # Polars opens files whose names are UTF-8
        if path.stat().st_size == 0:
            raise DataError(f"{shown_path(name)}: the file is empty. Expected a header line and rows below it.")
        if suffix == ".parquet":
            return pl.read_parquet(path, glob=False)
        with path.open("rb") as file:
            start = file.read(1 << 16)
        check_inflated(path)
        if b"\0" in start:
            problem = "this is a binary file, not CSV text. If it is a Parquet file, name it .parquet"
            raise DataError(f"{shown_path(name)}: {problem}.")
        return pl.read_csv(path, infer_schema_length=None, glob=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, UnicodeError) as error:
        kind = "CSV" if suffix == ".csv" else "Parquet"
        reason = first_line(error)
        raise DataError(
            f"{shown_path(name)}: cannot be read as {kind} ({reason}). Check that the file is whole."
        ) from None


def _from_frame(frame: pl.DataFrame, path: Path, label: str | None, drop: Sequence[str]) -> Dataset:
    columns = listed(frame.columns)
    if label is None:
        raise DataError(
            f"{shown_path(path)}: which column is the label? Name it with --label; the columns are {columns}."
        )
    for option, name in (("--label", label), *(("--drop", name) for name in drop)):
        if name not in frame.columns:
            raise DataError(
                f"{option} {shown_name(name)}: {shown_path(path)} has no such column. The columns are {columns}."
            )
    if label in drop:
        raise DataError(f"--drop {shown_name(label)}: this column is the label. Drop another, or name another --label.")
    frame = frame.drop(drop)
    if frame.is_empty():
        raise DataError(f"{shown_path(path)}: the table has a header and no rows.")
    _refuse_missing(frame, path)
    rows_in_source = frame.height
    row_numbers = None
    if frame.height > MOST_ROWS:
        row_numbers = pl.int_range(frame.height, eager=True).sample(MOST_ROWS, seed=0)
        frame = frame[row_numbers]
    labels, classes = _labels(frame[label], path)
    features = frame.drop(label)
    numeric = [name for name, dtype in features.schema.items() if dtype.is_numeric()]
    others = [name for name, dtype in features.schema.items() if not dtype.is_numeric()]
    if not features.columns:
        raise DataError(f"{shown_path(path)}: there is no column besides the label {quoted(label)} to predict it from.")
    for column in others:
        _refuse_text(features[column], path)
    numbers = features.select(numeric).to_numpy().astype(np.float64).reshape(frame.height, len(numeric))
    categories = features.select(pl.col(others).cast(pl.String)).to_numpy() if others else np.empty((frame.height, 0))
    return Dataset(
        path.stem, path.name, label, numbers, categories.astype(object), labels, classes, rows_in_source,
        columns=(*numeric, *others), row_numbers=None if row_numbers is None else row_numbers.to_numpy(),
    )  # fmt: skip


def _refuse_missing(frame: pl.DataFrame, path: Path) -> None:
    for series in frame.iter_columns():
        column = series.name
        missing = series.is_null()
        if series.dtype.is_float():
            missing = missing | ~series.is_finite().fill_null(False)
        if missing.any():
            first = int(missing.arg_max() or 0)
            raise DataError(
                f"{shown_path(path)}: column {quoted(column)} has {missing.sum()} missing or infinite values, the "
                f"first in row {first + 1}. Fill them, or leave out the rows, or the column with --drop "
                f"{shown_name(column)}."
            )


def _refuse_text(series: pl.Series, path: Path) -> None:
    where = f"{shown_path(path)}: column {quoted(series.name)}"
    distinct = series.n_unique()
    if distinct > min(MOST_CATEGORIES, max(2, len(series) // 2)):
        raise DataError(
            f"{where} holds {distinct} different values in {len(series)} rows: text or names, "
            f"not categories. Leave it out with --drop {shown_name(series.name)}."
        )


def _labels(series: pl.Series, path: Path) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    where = f"{shown_path(path)}: the label {quoted(series.name)}"
    if series.dtype.is_nested():
        raise DataError(f"{where} holds {shown_name(series.dtype)}. Choose a column of classes.")
    distinct = series.unique().sort()
    if len(distinct) < 2:
        raise DataError(f"{where} has one class only ({quoted(distinct[0])}); classification needs two.")
    if len(distinct) > max(2, len(series) // FEWEST_ROWS_PER_CLASS):
        raise DataError(
            f"{where} has {len(distinct)} different values in {len(series)} rows: "
            "not classes. Choose a column of classes, or group the values first."
        )
    counts = series.value_counts().sort("count")
    rarest, fewest = counts.row(0)
    if fewest < FEWEST_ROWS_PER_CLASS:
        raise DataError(
            f"{where} has {fewest} rows of class {quoted(rarest)}, and {FEWEST_ROWS_PER_CLASS} are needed "
            "to train, validate and test. Leave those rows out, or merge the class with another."
        )
    position = {value: i for i, value in enumerate(distinct.to_list())}
    labels = np.array([position[value] for value in series.to_list()], dtype=np.int64)
    return labels, tuple(map(str, position))
