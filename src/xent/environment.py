"""Settings from environment variables: read at first use, and refused with one line where they cannot be used.

| variable | what it sets |
|---|---|
| XENT_NUM_THREADS | how many threads a call may use (xent/backends/cpu/threads.py) |
| XENT_KEPT_BYTES | how many bytes of memory may be kept for the next call (xent/memory.py) |
"""

from __future__ import annotations

import os

from xent.errors import ArgumentError, message

LARGEST = 2**63 - 1


def whole_number(variable: str, least: int, remedy: str) -> int | None:
    """Return the whole number that an environment variable is set to; None where it is not set."""
    text = os.environ.get(variable)
    if text is None:
        return None
    # At most so many digits: int() has an error of its own for thousands of them.
    if not (text.isdecimal() and len(text) <= 40 and least <= int(text) <= LARGEST):
        found = f"found {text[:40]!r}, expected a whole number, at least {least}"
        raise ArgumentError(message(variable, "", found, remedy))
    return int(text)
