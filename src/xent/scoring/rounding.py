"""How many digits rounded probabilities have, and how far from 1 they may therefore sum.

    decimals      every value is a multiple of 10^-d: n of them are off by at most n/2 x 10^-d together
    significant   every value has s digits: each is off by 0.5 x 10^(1 - s) of its leading digit, and all together,
                  since they sum to 1, by no more than that

The digits are those of all rows: one row of 0.5 and 0.4 says nothing about a file with six decimals elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from xent.errors import option
from xent.scoring.sums import Array

FEWEST, MOST = 2, 12
MOST_SIGNIFICANT = 7
LARGEST_TOLERANCE = 0.5
"""A row whose probabilities sum to less than half of 1, or more than one and a half, is no distribution."""


@dataclass(frozen=True)
class Rounding:
    """To how many digits numbers were rounded: decimals or, failing that, significant digits."""

    digits: int
    significant: bool

    def tolerance(self, classes: int) -> float:
        """How far from 1 as many numbers may sum."""
        exact = 0.5 * 10.0 ** (1 - self.digits) if self.significant else classes / 2 * 10.0**-self.digits
        return min(exact, LARGEST_TOLERANCE) * (1 + 1e-9) + 1e-12

    def note(self, classes: int, soft: bool = False) -> str:
        """What a reader should know about rounded probabilities, or soft labels."""
        tolerance = self.tolerance(classes)
        if self.significant:
            found, bound = f"{self.digits} significant digits", f"0.5 x 10^-{self.digits - 1}"
        else:
            found, bound = f"{self.digits} decimals", f"{classes}/2 x 10^-{self.digits}"
        if soft:
            what, effect = "soft labels", f"{tolerance / (1 - tolerance):.2g} of itself"
        else:
            what, effect = "probabilities", f"{-np.log1p(-tolerance):.2g} nats"
        text = (
            f"The {what} were rounded to {found}: sums off by up to {bound} = {tolerance:.2g} were taken for 1, "
            f"which changes the mean by at most {effect}."
        )
        if not soft:
            text += f" {option('renormalise', True)} divides by the sums."
        if not self.significant and not soft:
            text += f" A 0 stands for anything below {0.5 * 10.0**-self.digits:g}."
        return text


def find_rounding(matrices: Iterable[Array]) -> Rounding | None:
    """Return to how many digits all of these numbers were rounded; None if they were not."""
    decimals, significant = FEWEST, FEWEST
    for matrix in matrices:
        values = matrix.astype(np.float64)
        values = np.unique(values[np.isfinite(values) & (values > 0)])
        most = 6 if matrix.dtype == np.float32 else MOST
        slack = 2.0**-24 if matrix.dtype == np.float32 else 2.0**-50
        while decimals <= most and not _fits(values, np.full(len(values), decimals), slack):
            decimals += 1
        if decimals > most:
            decimals = MOST + 1
        places = -np.floor(np.log10(values, where=values > 0, out=np.zeros(len(values)))).astype(np.int64)
        while significant <= MOST_SIGNIFICANT and not _fits(values, places + significant - 1, slack):
            significant += 1
        if decimals > MOST and significant > MOST_SIGNIFICANT:
            return None
    return Rounding(decimals, False) if decimals <= MOST else Rounding(significant, True)


def _fits(values: Array, decimals: Array, slack: float) -> bool:
    """Whether rounding to this many decimals leaves the values as they are, but for the rounding of their dtype."""
    with np.errstate(over="ignore", invalid="ignore"):
        scale = 10.0 ** np.minimum(decimals, 300)
        return bool((np.abs(np.rint(values * scale) / scale - values) <= slack * values).all())
