"""Which combinations of execution_modes.py and execution_cases.py do not give an answer, and why.

Keys are patterns of the names of mode, call and case, with | between alternatives.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from execution_cases import Problem
from execution_modes import Mode

# What cannot be had: a pattern of the error's text, whose remedy is below the table of docs/execution_modes.md.
REFUSED: dict[tuple[str, str, str], str] = {
    ("jit.trace", "*", "*"): r"torch\.jit\.trace would record the loss as a constant\. Use torch\.compile or",
    (
        "DTensor*",
        "*",
        "learned-weight*",
    ): r"class weights that are DTensors get no gradient\. Pass weight\.detach",
    ("parallel", "*", "listed*"): r"sharded classes do not take yet\. Pass class probabilities",
    ("parallel", "*", "learned-weight-focal"): r"weights of a focal loss get no gradient here\. Pass weight\.detach",
    ("parallel", "*", "learned-*scale*"): r"logit_scale=.* requires a gradient.*\. Pass logit_scale\.item\(\)",
}

# What does not hold yet, and why. When all that an entry matches passes, the test fails until the entry goes.
NOT_YET: dict[tuple[str, str, str], str] = {}


def matches(key: tuple[str, str, str], mode: Mode, of: Problem) -> bool:
    names = (mode.name, of.call, of.case.name)
    return all(
        any(fnmatchcase(name, one) for one in pattern.split("|")) for name, pattern in zip(names, key, strict=True)
    )


def found_in(table: dict[tuple[str, str, str], str], mode: Mode, of: Problem) -> str | None:
    return next((text for key, text in table.items() if matches(key, mode, of)), None)
