"""Every exception that xent raises on purpose.

    XentError
    ├── ArgumentError(ValueError)        a value that no call can work with
    │   ├── DistributionError            not a probability distribution
    │   ├── LabelError                   a class index outside [0, classes)
    │   ├── ShapeError                   arrays whose shapes do not fit together
    │   └── ObjectiveError               an option out of its range, or options that exclude each other
    ├── DTypeError(TypeError)            an array of a kind that the call does not take
    ├── DataError(ValueError)            a file or table that cannot be read as what was asked for
    ├── RankError(RuntimeError)          another process of a group failed, or does something else
    └── MissingDependencyError(ImportError)

A message names the call and the argument, says what was found and what was expected, and ends with the remedy.
`message` below puts these parts together, so that every module words them the same way.
"""

from __future__ import annotations

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
]


class XentError(Exception):
    """Base class: `except xent.XentError` catches whatever xent raises on purpose."""


class ArgumentError(XentError, ValueError):
    """A value that no call can work with."""


class DistributionError(ArgumentError):
    """A vector that is not a probability distribution."""


class LabelError(ArgumentError):
    """A class index outside the range of the classes."""


class ShapeError(ArgumentError):
    """Arrays whose shapes do not fit together."""


class ObjectiveError(ArgumentError):
    """An option out of its range, or options that exclude each other."""


class DTypeError(XentError, TypeError):
    """An array of a kind that the call does not take."""


class DataError(XentError, ValueError):
    """A file or table that cannot be read as what was asked for."""


class RankError(XentError, RuntimeError):
    """Another process of a group failed, did not answer, or does something else."""


class MissingDependencyError(XentError, ImportError):
    """An optional package is needed and not installed."""


def message(call: str, argument: str, found: str, remedy: str) -> str:
    """Word an error: which call and argument, what was found against what was expected, and what to do."""
    where = f"{call}({argument}=...)" if argument else call
    return f"{where}: {found}. {remedy}"
