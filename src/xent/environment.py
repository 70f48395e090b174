"""Settings from environment variables: one table, read by one function, refused with one line if they are no use.

| variable | what it sets |
|---|---|
| XENT_NUM_THREADS | how many threads a call may use |
| XENT_KEPT_BYTES | how many bytes of memory may be kept for the next call; 0 keeps none |
| XENT_GPU_AUTOTUNE | 1: kernels on a GPU try several tile sizes at the first call with a shape |
| NUMBA_DISABLE_JIT | 1: nothing is compiled, and the float64 definitions serve on the CPU, slowly |

They are read at first use, and not at import, so that a program may still set them. docs/reliability.md has the table;
`xent doctor` shows what is set.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from xent.errors import ArgumentError, message

LARGEST = 2**63 - 1


class Setting(NamedTuple):
    """A variable whose value is a whole number."""

    meaning: str
    least: int
    most: int
    remedy: str


SWITCH = "Set it to 1 or 0, or unset it"
SETTINGS = {
    "XENT_NUM_THREADS": Setting(
        "how many threads a call may use", 1, LARGEST, "Set it to a number of threads, or unset it"
    ),
    "XENT_KEPT_BYTES": Setting(
        "how many bytes of memory may be kept for the next call", 0, LARGEST,
        "Set it to a number of bytes (0 keeps none), or unset it",
    ),
    "XENT_GPU_AUTOTUNE": Setting("whether kernels on a GPU try several tile sizes", 0, 1, SWITCH),
    "NUMBA_DISABLE_JIT": Setting("whether nothing is compiled", 0, 1, SWITCH),
}  # fmt: skip


def setting(variable: str) -> int | None:
    """Return what a variable of the table is set to; None where it is not set."""
    text = os.environ.get(variable)
    if text is None:
        return None
    about = SETTINGS[variable]
    # At most so many digits: int() has an error of its own for thousands of them.
    if not (text.isascii() and text.isdecimal() and len(text) <= 40 and about.least <= int(text) <= about.most):
        range_of = f"at least {about.least}" if about.most == LARGEST else f"{about.least} or {about.most}"
        found = f"found {text[:40]!r}, expected a whole number, {range_of}"
        raise ArgumentError(message(variable, "", found, about.remedy))
    return int(text)
