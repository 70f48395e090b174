"""Ids that name several rows, found by 64-bit keys while rows are read."""

from __future__ import annotations

import numpy as np

from xent.errors import DataError, message
from xent.scoring.files import CALL
from xent.scoring.form import ONE_ROW_PER_ID
from xent.scoring.sums import Array

MOST_CHECKED_IDS = 2**24


class RepeatedIds:
    """Finds repeated ids: all of them at the end or, to leave rows out, those of each batch as it comes.

    With too many ids to remember, it reports that not all were checked.
    """

    def __init__(self, skip: bool = False) -> None:
        self.keys: list[Array] = []
        self.count = 0
        self.skip = skip

    def add(self, keys: Array) -> Array | None:
        """Remember the keys of a batch; return which of its rows repeat an earlier one, if such are to be skipped."""
        self.count += len(keys)
        if self.count > MOST_CHECKED_IDS:
            self.keys.clear()
            return None
        if not self.skip:
            self.keys.append(keys)
            return None
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        repeated = np.zeros(len(keys), bool)
        repeated[order[1:]] = ordered[1:] == ordered[:-1]
        for known in self.keys:
            places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            repeated |= known[places] == keys
        self.keys.append(ordered)
        while len(self.keys) > 1 and len(self.keys[-1]) >= len(self.keys[-2]):  # few arrays of growing lengths
            last = self.keys.pop()
            self.keys[-1] = np.sort(np.concatenate([self.keys[-1], last]))
        return repeated if repeated.any() else None

    def check(self) -> list[str]:
        """Return remarks; DataError if ids are repeated."""
        if self.count > MOST_CHECKED_IDS:
            return [f"More than {MOST_CHECKED_IDS:,} ids: only those of kept rows were checked for repetition."]
        if self.keys and not self.skip:
            together = np.sort(np.concatenate(self.keys))
            repeated = int((together[1:] == together[:-1]).sum())
            if repeated:
                raise DataError(message(CALL, "id", f"{repeated:,} rows repeat the id of another", ONE_ROW_PER_ID))
        return []
