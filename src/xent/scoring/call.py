"""A call of `score` or `compare` before any data was read: which columns, how to score them, how to read files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xent.errors import ArgumentError, message
from xent.scoring import clusters
from xent.scoring.array_rows import array_rows, arrays_of_files, is_array
from xent.scoring.files import ARRAY_KINDS, CALL, Files, find_files, is_path
from xent.scoring.form import Request, names_of
from xent.scoring.pieces import Pieces
from xent.scoring.readers import engine_of, labels_as_array, rows_of, with_text_names
from xent.scoring.tables import Layout


@dataclass(frozen=True)
class Call:
    """The arguments of a call of `score`, before any data was read."""

    roles: dict[str, Any]
    predictions: dict[str, Any]
    labels: Any
    by: Any
    exclude: tuple[str, ...]
    classes: tuple[str, ...] | None
    options: dict[str, Any]
    layout: Layout
    skip: bool

    def rows(self, data: Any) -> Pieces | Request:
        """Return the rows of files, arrays or a local frame; of Dask and Spark, the request."""
        files, data = find_files(data) if is_path(data) else None, with_text_names(data)
        if files is not None and files.kind in ARRAY_KINDS:
            roles = self.roles if self.labels is None else {**self.roles, "label": None}
            columns = arrays_of_files(files, {**self.predictions, **roles})
            arrays = {kind: columns.pop(kind) for kind in self.predictions}
            return self._of_arrays(arrays, columns, _segments_of_file(files, self.by))
        if files is None and is_array(data):
            return self._of_arrays(*self._kind_of_array(data))
        segments = names_of("by", self.by)
        request = Request(
            **self.predictions, **self.roles, by=segments, classes=self.classes, options=self.options,
            exclude=self.exclude, skip=self.skip,
        )  # fmt: skip
        if files is None and engine_of(data) in clusters.STATES:
            if self.labels is not None:
                problem = f"found it with a frame of {engine_of(data)}"
                raise ArgumentError(message(CALL, "labels", problem, "Join the labels in the frame itself"))
            return request
        return rows_of(data, request, self.layout, self.labels)

    def _kind_of_array(self, data: Any) -> tuple[dict[str, Any], dict[str, Any], Any]:
        """Return an array in memory by its kind: probabilities, unless `logits=True` or `log_prob=True`."""
        named = {kind: value for kind, value in self.predictions.items() if value is not None}
        if len(named) > 1 or not all(value is True for value in named.values()):
            problem = f"found {' and '.join(named)} beside an array"
            remedy = "Columns are of a frame or file; of an array, logits=True says that it holds logits"
            raise ArgumentError(message(CALL, "proba, logits, log_prob", problem, remedy))
        return {next(iter(named), "proba"): data}, dict(self.roles), self.by

    def _of_arrays(self, arrays: dict[str, Any], columns: dict[str, Any], by: Any) -> Pieces:
        if self.labels is not None:
            columns["label"] = labels_as_array(self.labels, self.roles["label"], self.roles["id"], columns["id"])
        return array_rows(arrays, columns, by, self.classes, self.options, self.skip)


def _segments_of_file(files: Files, by: Any) -> Any:
    """Return the arrays that segments of a file of arrays are named by."""
    if isinstance(by, Mapping):
        return by
    names = names_of("by", by)
    return {name: arrays_of_files(files, {"by": name})["by"] for name in names}


def checked_switch(role: str, value: Any) -> bool:
    """Return whether an option is on; ArgumentError unless it is True or False."""
    if not isinstance(value, bool):
        raise ArgumentError(message(CALL, role, f"found {value!r}", "It is True or False"))
    return value
