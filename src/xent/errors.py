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
no glyph.
"""

from __future__ import annotations

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
]


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
    where = f"{call}({argument}=...)" if argument else call
    return visible(f"{where}: {problem}. {remedy}")
