"""Whether the parts of a state that was read from JSON fit each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xent.scoring import stored
from xent.scoring.selection import MOST_INVALID, SELECTIONS, check_columns


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
