"""Every execution mode gives the same answer: the definition's, in value and derivatives, for every call and option."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from execution_answers import check
from execution_cases import BY_NAME, PROBLEMS, Case, Problem, problem
from execution_modes import MODES, Mode, process_group
from execution_transforms import by_all_tensors, with_all_tensors
from torch._dynamo.testing import AotEagerAndRecordGraphs

import xent.torch
from xent.errors import XentError

# What cannot be had: the error's text, which names a remedy. Keys: patterns of mode, call and case, with | between
# alternatives. The page docs/execution_modes.md shows these errors.
REFUSED: dict[tuple[str, str, str], str] = {}

# What does not hold yet, and why. An entry goes when all that it matches passes; then the test fails that still has it.
_TENSORS, _LEARNED = "tensor-*|learned-*", "learned-*|tensor-denominator"
_SCALES = "tensor-*|learned-*scale*"
_NO_JVP = "T7: our Functions have no jvp"
_SYMBOLIC = "the text of an objective has no symbolic numbers"
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
    ("func.*", "*", "all-weigh-nothing"): "T9: NaN gradients",
    ("func.jacfwd|func.jvp", "*cross_entropy", "all-ignored|no-rows"): "T9: NaN tangents",
    ("func.vmap|func.vmap of func.grad", "*", _SCALES): _NO_REMEDY,
    ("func.vmap, shared labels", "*", "learned-*scale*"): _NO_REMEDY,
    ("func.vmap|func.vmap of func.grad|meta|FakeTensorMode", "*", "checked"): "labels without numbers: another's error",
    ("compile, aot_eager|export", "*", "checked"): "T13: check=True breaks the graph",
    ("compile, aot_eager|export", "*", _TENSORS): "T6, T13: tensors as options break the graph, or get no gradient",
    ("compile, aot_eager|export|*subclass", "cross_entropy", "all-weigh-nothing"): "T9: NaN gradients",
    ("compile, dynamic", "*statistics", "*"): _SYMBOLIC,
    ("compile, dynamic", "cross_entropy", "[!ns]*|soft*|several*"): _SYMBOLIC,
    ("compile, dynamic", "linear_cross_entropy", f"*everything|{_TENSORS}"): _SYMBOLIC,
    ("compile of func.vmap of func.grad", "*", "learned-scale"): "T13: tensors as options break the graph",
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


def combinations() -> Iterator[Any]:
    for mode in MODES:
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
    refused = found_in(REFUSED, mode, of)
    if refused is None:
        mode.check(of)
        return
    with pytest.raises(XentError, match=refused) as error:
        mode.check(of)
    assert re.match(r"\w+(\(\w+=\.\.\.\))?: .+\. [A-Z].+", str(error.value), re.DOTALL), "no call, problem and remedy"


def operators_in_graphs(of: Problem) -> tuple[set[str], set[str]]:
    """The operators in the graphs of forward and of backward of compiled code."""
    torch._dynamo.reset()
    backend = AotEagerAndRecordGraphs()
    with_all_tensors(torch.compile(by_all_tensors(of), fullgraph=True, backend=backend), of)
    graphs = (backend.fw_graphs, backend.bw_graphs)
    forward, backward = (
        {str(node.target) for graph in found for node in graph.graph.nodes if node.op == "call_function"}
        for found in graphs
    )
    return forward, backward


IN_GRAPHS = ["none", "everything", "soft", "soft-everything", "softcap-and-scale"]
FORMULAS = {"log_softmax", "_log_softmax", "softmax", "_softmax", "logsumexp"}
PRODUCTS = {"mm", "addmm", "matmul", "linear", "bmm"}


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
@pytest.mark.parametrize("of", [of for of in PROBLEMS if of.case.name in IN_GRAPHS], ids=str)
def test_compiled_graphs_have_our_operators_and_no_formulas(of: Problem) -> None:
    for found in operators_in_graphs(of):
        assert any(name.startswith("xent.") for name in found), found
        others = {name.split(".")[1] for name in found if name.startswith("aten.")}
        assert not others & (FORMULAS | PRODUCTS if of.is_linear else FORMULAS), found


@pytest.mark.parametrize(
    "option",
    [
        pytest.param(name, marks=pytest.mark.xfail(reason=_SYMBOLIC, strict=True))
        for name in ("denominator", "logit_scale", "label_smoothing", "z_loss", "softcap")
    ],
)
@pytest.mark.parametrize("call", ["cross_entropy", "linear_cross_entropy"])
def test_a_number_may_change_with_every_compiled_step(call: str, option: str) -> None:
    """As the number of tokens of a batch does, or a temperature that a schedule lowers."""
    torch._dynamo.reset()
    of = problem(BY_NAME["ignored"], call)
    function = torch.compile(
        lambda number, *tensors: getattr(xent.torch, call)(
            **dict(zip(of.tensors, tensors, strict=True)), **{option: number}
        ),
        fullgraph=True,
        backend="aot_eager",
    )
    for number in (0.25, 0.5, 0.75):
        step = Problem(Case("step", {option: number}, labels=of.case.labels), call, of.tensors, of.variables)
        check(step, with_all_tensors(functools.partial(function, number), step))


MODES_OF_MODULES = ["eager", "func.grad", "func.vmap of func.grad", "compile, aot_eager", "export", "subclass"]


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.name in MODES_OF_MODULES], ids=str)
def test_modules_give_the_answer_of_the_call(mode: Mode) -> None:
    """Class weights are a buffer of the module, and no tensor of the call."""
    call = problem(BY_NAME["everything"], "cross_entropy")
    module = xent.torch.CrossEntropyLoss(call.tensors["weight"], **call.case.options)
    tensors = {name: tensor for name, tensor in call.tensors.items() if name != "weight"}
    check(call, mode.run(replace(call, tensors=tensors, module=module)))
