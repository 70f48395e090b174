"""Every exception that xent raises on purpose.

    XentError
    ├── ArgumentError(ValueError)        an argument with an invalid value
    │   ├── DistributionError            not a probability distribution
    │   ├── LabelError                   a class index outside [0, classes)
    │   ├── ShapeError                   arrays whose shapes do not fit together
    │   └── ObjectiveError               an option out of its range, or options that exclude each other
    ├── DTypeError(TypeError)            an array or argument of a type that the call does not take
    ├── DataError(ValueError)            a file or table that cannot be read as required, or a file not be written
    ├── RankError(RuntimeError)          another process of a group failed, or makes another call
    └── MissingDependencyError(ImportError)

A message names the call and the argument, says what was found and what was expected, and ends with a remedy.
`message` combines these parts, so that all modules word them in the same way, and escapes what has
no glyph. On the command line the same messages name options: `--classes` in place of `classes=`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from xent.names import visible

__all__ = [
    "ArgumentError",
    "DTypeError",
    "DataError",
    "DistributionError",
    "LabelError",
    "MissingDependencyError",
    "ObjectiveError",
    "RankError",
    "ShapeError",
    "XentError",
    "message",
    "missing_package",
    "option",
    "words_of_the_command_line",
]

_COMMANDS = ("score", "compare", "ScoreState.from_batch")
_OPERANDS = ("data", "a", "b", "data, labels", "a, b")
"""Arguments that the command line takes without a name; their messages name the file."""
_SPELLED = {"ids": "--id", "invalid": "--skip-invalid", "order": "--by-order"}
"""Options of the command line that are not named like the argument."""
_SWITCHES = {("invalid", "skip"): "--skip-invalid", ("header", False): "--no-header", ("order", True): "--by-order"}


class _Words:
    """Whether messages are read on a command line; a state of the process, since workers are threads of it."""

    of_the_command_line = False


@contextmanager
def words_of_the_command_line() -> Iterator[None]:
    """Let messages name options in place of arguments."""
    before, _Words.of_the_command_line = _Words.of_the_command_line, True
    try:
        yield
    finally:
        _Words.of_the_command_line = before


def option(name: str, value: object = None) -> str:
    """Return how an option of `score` and `compare` is given, with a value or without.

    >>> option("classes"), option("invalid", "skip")
    ('classes=', "invalid='skip'")
    >>> with words_of_the_command_line():
    ...     option("classes"), option("invalid", "skip"), option("clip", 0.5)
    ('--classes', '--skip-invalid', '--clip 0.5')
    """
    if not _Words.of_the_command_line:
        return f"{name}=" if value is None else f"{name}={value!r}"
    spelled = _SWITCHES.get((name, value)) or _SPELLED.get(name) or f"--{name.replace('_', '-')}"
    return spelled if value is None or (name, value) in _SWITCHES or value is True else f"{spelled} {value}"


class XentError(Exception):
    """Base class: `except xent.XentError` catches everything that xent raises on purpose."""


class ArgumentError(XentError, ValueError):
    """An argument with an invalid value."""


class DistributionError(ArgumentError):
    """A vector that is not a probability distribution."""


class LabelError(ArgumentError):
    """A class index outside the range of the classes."""


class ShapeError(ArgumentError):
    """Arrays whose shapes do not fit together."""


class ObjectiveError(ArgumentError):
    """An option out of its range, or options that exclude each other."""


class DTypeError(XentError, TypeError):
    """An array or argument of a type that the call does not take."""


class DataError(XentError, ValueError):
    """A file or table that cannot be read as required, or a file that cannot be written."""


class RankError(XentError, RuntimeError):
    """Another process of a group failed, did not answer, or makes another call."""


class MissingDependencyError(XentError, ImportError):
    """An optional package is required and not installed."""


def missing_package(error: ModuleNotFoundError, call: str, extra: str) -> ImportError:
    """Return the error that names the extra to install; `error` itself where no other package is what is missing."""
    package = (error.name or "xent").split(".")[0]
    if package == "xent":
        return error
    remedy = f"Install it with: pip install 'xent[{extra}]'"
    return MissingDependencyError(message(call, "", f"needs the package {package!r}, which is not installed", remedy))


def message(call: str, argument: str, problem: str, remedy: str) -> str:
    """Return the text of an error: the call and the argument, what was found and expected, and what to do."""
    return visible(f"{_where(call, argument)}{problem}. {remedy}")


def _where(call: str, argument: str) -> str:
    if _Words.of_the_command_line and call in _COMMANDS:
        spelled = {"labels": "label"} if call == "ScoreState.from_batch" else {}
        names = ", ".join(
            option(spelled.get(name, name)) for name in argument.split(", ") if argument and argument not in _OPERANDS
        )
        return f"{names}: " if names else ""
    return f"{call}({argument}=...): " if argument else f"{call}: "
