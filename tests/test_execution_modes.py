"""Every execution mode gives the same answer: the definition's, in value and derivatives, for every call and option."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from execution_answers import check
from execution_cases import BY_NAME, LOSSES, PROBLEMS, Case, Problem, problem
from execution_gaps import NOT_YET, REFUSED, found_in
from execution_modes import MODES, Mode, process_group
from execution_page import PAGE, expected_outcome, page
from execution_transforms import by_all_tensors, with_all_tensors
from torch import Tensor
from torch._dynamo.testing import AotEagerAndRecordGraphs

import xent.torch
from xent.errors import XentError

SEEN_EVERYWHERE = ("eager", "create_graph", "compile, aot_eager")
"""Modes that always run every case, or those that are quick there."""


def combinations() -> Iterator[Any]:
    for mode in MODES:
        for of in PROBLEMS:
            if mode.runs(of):
                is_slow = mode.quick is not None and of.case.name not in mode.quick
                is_slow = is_slow or not (of.case.everywhere or mode.name in SEEN_EVERYWHERE)
                yield pytest.param(mode, of, marks=[pytest.mark.slow] if is_slow else [], id=f"{mode}-{of}")


def xfail(reason: str, run: Callable[[], object]) -> None:
    """Strictly expect a failure. Not by a mark, which would format a thousand long tracebacks."""
    with suppress(Exception):
        run()
        pytest.fail(f"this works: take it out of NOT_YET ({reason})")
    pytest.xfail(reason)


@pytest.fixture(scope="module", autouse=True)
def _group() -> Iterator[None]:
    with process_group():
        yield


# torch's own: of its compiler, and of what it loads for forward mode.
@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd", "ignore:`torch.jit.script")
@pytest.mark.parametrize(("mode", "of"), list(combinations()))
def test_every_mode_gives_the_definitions_answer(mode: Mode, of: Problem) -> None:
    reason, refused = found_in(NOT_YET, mode, of), found_in(REFUSED, mode, of)
    if reason is not None:
        xfail(reason, lambda: mode.check(of))
    if refused is None:
        mode.check(of)
        return
    with pytest.raises(XentError, match=refused) as error:
        mode.check(of)
    assert re.match(r"(On rank \d+: )?\w+(\(\w+=\.\.\.\))?: .+\. [A-Z].+", str(error.value), re.DOTALL), (
        "no call, problem and remedy"
    )


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
FORMULAS = {"log_softmax", "_log_softmax", "softmax", "_softmax", "logsumexp", "log_sigmoid_forward", "sigmoid"}
PRODUCTS = {"mm", "addmm", "matmul", "linear", "bmm"}


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
@pytest.mark.parametrize("of", [of for of in PROBLEMS if of.case.name in IN_GRAPHS], ids=str)
def test_compiled_graphs_have_our_operators_and_no_formulas(of: Problem) -> None:
    for found in operators_in_graphs(of):
        assert any(name.startswith("xent.") for name in found), found
        others = {name.split(".")[1] for name in found if name.startswith("aten.")}
        assert not others & (FORMULAS | PRODUCTS if of.is_linear else FORMULAS), found


@pytest.mark.parametrize("option", ["denominator", "logit_scale", "label_smoothing", "z_loss", "softcap"])
@pytest.mark.parametrize("call", LOSSES)
def test_a_number_may_change_with_every_compiled_step(call: str, option: str) -> None:
    """As the number of tokens of a batch does, or a temperature that a schedule lowers."""
    of = problem(BY_NAME["ignored"], call)
    torch._dynamo.reset()

    def step(number: float, *tensors: Tensor) -> Tensor:
        arguments = dict(zip(of.tensors, tensors, strict=True))
        return getattr(xent.torch, of.call)(**arguments, **{option: number})

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for number in (0.25, 0.5, 0.75):
        one = replace(of, case=Case("step", {option: number}, labels=of.case.labels))
        check(one, with_all_tensors(functools.partial(compiled, number), one))


MODES_OF_MODULES = ["eager", "func.grad", "func.vmap of func.grad", "compile, aot_eager", "export", "subclass"]


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.name in MODES_OF_MODULES], ids=str)
def test_modules_give_the_answer_of_the_call(mode: Mode) -> None:
    """Class weights are a buffer of the module, and no tensor of the call."""
    call = problem(BY_NAME["everything"], "cross_entropy")
    module = xent.torch.CrossEntropyLoss(call.tensors["weight"], **call.case.options)
    tensors = {name: tensor for name, tensor in call.tensors.items() if name != "weight"}
    if reason := found_in(NOT_YET, mode, call):
        xfail(reason, lambda: mode.run(replace(call, tensors=tensors, module=module)))
    check(call, mode.run(replace(call, tensors=tensors, module=module)))


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
def test_the_page_says_what_the_tests_hold() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(expected_outcome), "python tests/execution_page.py --write"


def test_every_gap_is_one_of_a_combination() -> None:
    """A pattern that matches nothing has a typing error, or is left over."""
    for name, gaps in {"REFUSED": REFUSED, "NOT_YET": NOT_YET}.items():
        used = {found_in({key: repr(key) for key in gaps}, mode, of) for mode in MODES for of in PROBLEMS}
        assert {repr(key) for key in gaps} <= used, name
