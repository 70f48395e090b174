"""Which combinations of execution_modes.py and execution_cases.py do not give an answer, and why.

Keys are patterns of the names of mode, call and case, with | between alternatives.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from execution_cases import Problem
from execution_modes import Mode

# What cannot be had: the error's text, which names a remedy. Keys: patterns of mode, call and case, with | between
# alternatives. The page docs/execution_modes.md shows these errors.
REFUSED: dict[tuple[str, str, str], str] = {}

# What does not hold yet, and why. An entry goes when all that it matches passes; then the test fails that still has it.
_TENSORS, _LEARNED = "tensor-*|learned-*", "learned-*|tensor-denominator"
_SCALES = "tensor-*|learned-*scale*"
_NO_JVP = "T7: our Functions have no jvp"
SYMBOLIC = "the text of an objective has no symbolic numbers"
_NO_REMEDY = "options without numbers are refused by an error that names neither mode nor remedy"
NOT_YET: dict[tuple[str, str, str], str] = {
    (
        "eager|autocast|create_graph|checkpoint*|jacobian|hessian|hessian, vectorized|deferred|parallel",
        "*",
        _LEARNED,
    ): "T6: options get no gradient; a 0-dimensional denominator makes NumPy warn",
    ("inference_mode", "*", "tensor-denominator"): "a 0-dimensional denominator makes NumPy warn",
    ("is_grads_batched|jacobian, vectorized", "*", "*"): "T8: backward looks at the upstream gradient",
    ("forward_ad*|hessian, forward", "*", "*"): _NO_JVP,
    ("jacobian, forward", "*", "[!aco]*|checked|one-row"): f"{_NO_JVP}, and the loss loses its tangent",
    ("func.*|compile of func.*", "*", "all-weigh-nothing"): "T9: NaN gradients",
    ("func.jacfwd|func.jvp", "*cross_entropy", "all-ignored|no-rows"): "T9: NaN tangents",
    ("func.vmap|func.vmap of func.grad", "*", _SCALES): _NO_REMEDY,
    ("func.vmap, shared labels", "*", "learned-*scale*"): _NO_REMEDY,
    ("func.vmap|func.vmap of func.grad|meta|FakeTensorMode", "*", "checked"): "labels without numbers: another's error",
    ("compile, [ai]*|export", "*", "checked"): "T13: check=True breaks the graph",
    ("compile, [ai]*|export", "*", _TENSORS): "T6, T13: tensors as options break the graph, or get no gradient",
    ("compile, [ai]*|export|*subclass", "cross_entropy", "all-weigh-nothing"): "T9: NaN gradients",
    ("compile, dynamic", "*statistics", "*"): SYMBOLIC,
    ("compile, dynamic", "cross_entropy", "[!ns]*|soft*|several*"): SYMBOLIC,
    ("compile, dynamic", "linear_cross_entropy", f"*everything|{_TENSORS}"): SYMBOLIC,
    ("compile of func.*", "*", f"{_SCALES}|checked"): "T13: tensors as options break the graph, and so does check=True",
    ("jit.trace", "*cross_entropy", "*"): "T13: the loss is a constant of the trace",
    ("jit.trace", "*statistics", f"{_TENSORS}|bfloat16"): "T13: options are constants of the trace",
    ("*subclass", "*", _TENSORS): "T6; and the text of an objective has no tensors",
    ("subclass", "statistics", "*"): "R9: the five statistics come back as one argument",
    ("wrapper subclass", "linear_cross_entropy", "soft-learned*"): "AttributeError: dtype",
    ("meta|FakeTensorMode", "*", _SCALES): _NO_REMEDY,
    ("FakeTensorMode", "linear_cross_entropy", "learned-weight*"): "T6: options get no gradient",
    ("parallel", "linear_cross_entropy", "no-rows"): "RankError: chunks are the same for every part",
    ("DTensor*", "*", "*"): "T12: no sharding strategy registered",
}


def matches(key: tuple[str, str, str], mode: Mode, of: Problem) -> bool:
    names = (mode.name, of.call, of.case.name)
    return all(
        any(fnmatchcase(name, one) for one in pattern.split("|")) for name, pattern in zip(names, key, strict=True)
    )


def found_in(table: dict[tuple[str, str, str], str], mode: Mode, of: Problem) -> str | None:
    return next((text for key, text in table.items() if matches(key, mode, of)), None)
