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
    ("parallel", "*", "learned-*scale*"): r"logit_scale=.* requires a gradient.*\. Pass logit_scale\.item\(\)",
}

# What does not hold yet, and why. When all that an entry matches passes, the test fails until the entry goes.
_HAVE_NO_FUNC = "AttributeError: torch's disabled __torch_function__ is a builtin and has no __func__"
NOT_YET: dict[tuple[str, str, str], str] = {
    (
        "compile, dynamic",
        "cross_entropy",
        "plain|several-dimensions",
    ): "an objective's text has no symbolic numbers",
    ("compile of func.*", "*", "learned-scale"): "Dynamo cannot trace how a transformed logit_scale is found",
    ("export", "cross_entropy", "*"): _HAVE_NO_FUNC,
    ("export", "statistics", "*"): _HAVE_NO_FUNC,
    ("export", "linear_cross_entropy", "learned-weight*"): "the gradient misses that of the mean's denominator",
    ("meta|FakeTensorMode", "*", "checked"): "labels without numbers: torch's error, without a remedy",
    ("parallel", "linear_cross_entropy", "no-rows"): "RankError: chunks are the same for every part",
    ("DTensor*", "*", "learned-weight*"): "class weights that learn meet a plain tensor",
    ("DTensor, rows", "*", "no-rows"): "the labels of no rows cannot be reshaped",
}


def matches(key: tuple[str, str, str], mode: Mode, of: Problem) -> bool:
    names = (mode.name, of.call, of.case.name)
    return all(
        any(fnmatchcase(name, one) for one in pattern.split("|")) for name, pattern in zip(names, key, strict=True)
    )


def found_in(table: dict[tuple[str, str, str], str], mode: Mode, of: Problem) -> str | None:
    return next((text for key, text in table.items() if matches(key, mode, of)), None)
