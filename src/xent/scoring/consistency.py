"""Whether the parts of a state fit each other: of one that was read from JSON, names and classes, two forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from xent.errors import ArgumentError, message
from xent.names import listed
from xent.scoring import loops, stored
from xent.scoring.batch import CALL
from xent.scoring.form import Form, names_of
from xent.scoring.selection import MOST_INVALID, SELECTIONS, WEIGHT_OF_ZERO, check_columns


def check_consistency(state: Any, empty: Any, arrays: Sequence[str]) -> None:
    """Raise ValueError if the parts of a state that was read from JSON do not fit each other.

    It is a `ScoreState`; `empty` is the state of no rows of the same form, and `arrays` names the sums of both.
    """
    form = state.form
    pairs = [(getattr(state, name), getattr(empty, name)) for name in arrays]
    pairs += [(totals, empty.totals) for segments in state.segments.values() for totals in segments.values()]
    if set(state.segments) != set(form.by) or any(a.shape != b.shape or a.dtype != b.dtype for a, b in pairs):
        raise ValueError("sums of another shape")
    groups = [groups.whole for groups in (state.clusters, *state.segment_clusters.values())]
    if set(state.segment_clusters) != (set(form.by) if form.clustered else set()):
        raise ValueError("clusters of other segments")
    if any(len(part.key) > state.rows or (len(part.key) and not form.clustered) for part in groups):
        raise ValueError("more clusters than rows")
    if not set(state.left_out) <= {WEIGHT_OF_ZERO, *loops.REASONS[1:]}:
        raise ValueError("rows left out for an unknown reason")
    stored.check_sums(state.totals, "totals")
    for name, segments in state.segments.items():
        if segments:
            stored.check_sums(np.stack(list(segments.values())), name)
    for name in arrays[1:]:
        stored.check_amounts(getattr(state, name), name)
    most = {"surprising": form.worst, "sample": form.sample, "invalid": min(MOST_INVALID, state.invalid_rows)}
    for name in SELECTIONS:
        rows = getattr(state, name)
        check_columns(name, rows, len(form.classes), form.soft, form.clustered)
        stored.check_rows(rows.columns, name)
        if len(rows) > most[name] or (name != "invalid" and len(rows) > state.rows):
            raise ValueError(f"more rows in {name!r} than were scored")


def class_names(classes: Any, number: int) -> tuple[str, ...]:
    """Return the names of the classes; ArgumentError unless there is one for each of them."""
    names = tuple(map(str, range(number))) if classes is None else names_of("classes", classes)
    if number and (len(names) != number or len(set(names)) != number):
        problem = f"found {len(names)} names, {len(set(names))} of them different, for {number} classes"
        raise ArgumentError(message(CALL, "classes", problem, "Name each class once, in the order of the columns"))
    return names if number else ()


def difference(a: Form, b: Form) -> str:
    """Return what distinguishes two forms, in words."""
    one, other = asdict(a), asdict(b)
    shown = {name: [listed(v) if isinstance(v, tuple) else str(v) for v in (one[name], other[name])] for name in one}
    return ", ".join(f"{name} {' and '.join(shown[name])}" for name in one if one[name] != other[name])
