"""Every execution mode gives the same answer: the definition's, in value and derivatives, for every call and option."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import pytest
from execution_cases import PROBLEMS, Problem, check
from execution_modes import MODES, Mode, process_group

from xent.errors import XentError

# What cannot be had: the error's text, which names a remedy. Keys: patterns of mode, call and case, with | between
# alternatives. The page docs/execution_modes.md shows these errors.
REFUSED: dict[tuple[str, str, str], str] = {}

# What does not hold yet, and why. An entry goes when all that it matches passes; then the test fails that still has it.
_OPTIONS = "learned-*|tensor-denominator"
NOT_YET: dict[tuple[str, str, str], str] = {
    (
        "eager|create_graph|checkpoint*|autocast|jacobian|hessian|hessian, vectorized|deferred|parallel",
        "*",
        _OPTIONS,
    ): "T6: no gradient of options; a 0-dimensional denominator is a NumPy warning",
    ("inference_mode", "*", "tensor-denominator"): "a 0-dimensional denominator is a NumPy warning",
    (
        "is_grads_batched|jacobian, vectorized",
        "*",
        "*",
    ): "T8: the backward of our Functions looks at the upstream gradient",
    ("forward_ad*|hessian, forward", "*", "*"): "T7: our Functions have no jvp",
    ("jacobian, forward", "*", "[!a]*"): "T7: our Functions have no jvp, and lose tangents",
    ("func.grad|func.vmap|vmap of grad|func.jacrev|func.hessian", "*", "all-weigh-nothing"): "T9: NaN gradients",
    ("func.jacfwd|func.jvp", "*", "all-weigh-nothing|all-ignored"): "T9: NaN gradients",
    ("func.vmap|vmap of grad", "*", "tensor-*|learned-*scale*"): "a batch of options is refused, without a remedy",
    (
        "compile, aot_eager|export",
        "*",
        "tensor-*|learned-*",
    ): "T6, T13: options as tensors break the graph, or lose gradients",
    ("compile, aot_eager|export|*subclass", "cross_entropy", "all-weigh-nothing"): "T9: NaN gradients",
    ("compile, dynamic", "*statistics", "*"): "the text of the objective cannot have symbolic numbers",
    (
        "compile, dynamic",
        "cross_entropy",
        "[!ns]*|soft*|number*|several*",
    ): "the text of the objective cannot have symbolic numbers",
    (
        "compile, dynamic",
        "linear_cross_entropy",
        "ignored-none|*everything|number*|float64|all-ignored|masked-class-softcap|tensor-*|learned-*",
    ): "the text of the objective cannot have symbolic numbers",
    ("compile, dynamic", "linear_cross_entropy", "soft-learned"): "~ of a symbolic truth value",
    ("jit.trace", "*cross_entropy", "*"): "T13: the loss is a constant of the trace",
    ("jit.trace", "*statistics", "tensor-*|learned-*|bfloat16"): "options are constants of the trace",
    ("*subclass", "*", "tensor-*|learned-*"): "T6, and options of subclasses as text",
    ("subclass", "statistics", "*"): "R9: the five statistics come back as one argument",
    ("wrapper subclass", "linear_cross_entropy", "soft-learned*"): "AttributeError: dtype",
    ("meta", "*", "tensor-*|learned-*scale*"): "options without numbers are refused, without a remedy",
    ("FakeTensorMode", "*", "tensor-*|learned-*scale*"): "options without numbers are refused, without a remedy",
    ("FakeTensorMode", "linear_cross_entropy", "learned-weight*"): "T6: no gradient of options",
    ("DTensor*", "*", "*"): "T12: no sharding strategy registered",
}


def matches(key: tuple[str, str, str], mode: Mode, of: Problem) -> bool:
    names = (mode.name, of.call, of.case.name)
    return all(
        any(fnmatchcase(name, one) for one in pattern.split("|")) for name, pattern in zip(names, key, strict=True)
    )


def found_in(table: dict[tuple[str, str, str], str], mode: Mode, of: Problem) -> str | None:
    return next((text for key, text in table.items() if matches(key, mode, of)), None)


def combinations() -> Iterator[Any]:
    for mode in MODES.values():
        for of in PROBLEMS:
            if mode.runs(of):
                reason = found_in(NOT_YET, mode, of)
                marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
                if mode.quick is not None and of.case.name not in mode.quick:
                    marks.append(pytest.mark.slow)
                yield pytest.param(mode, of, marks=marks, id=f"{mode}-{of}")


@pytest.fixture(scope="module", autouse=True)
def _group() -> Iterator[None]:
    with process_group():
        yield


# torch's own: of its compiler, and of what it loads for forward mode.
@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd", "ignore:`torch.jit.script")
@pytest.mark.parametrize(("mode", "of"), list(combinations()))
def test_every_mode_gives_the_definitions_answer(mode: Mode, of: Problem) -> None:
    of = mode.problem(of.case, of.call)
    refused = found_in(REFUSED, mode, of)
    if refused is None:
        check(of, mode.run(of), mode.arithmetic if of.is_linear else None)
        return
    with pytest.raises(XentError, match=refused) as error:
        mode.run(of)
    assert re.match(r"\w+(\(\w+=\.\.\.\))?: .+\. [A-Z].+", str(error.value), re.DOTALL), "no call, problem and remedy"
