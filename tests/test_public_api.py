"""What the package shows: names, docstrings, and what an import costs."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import xent

SOURCE = Path(xent.__file__).parent
PUBLIC = [
    "errors",
    "information",
    "likelihood",
    "numpy",
    "objective",
    "reference",
    "scoring",
    "torch",
    "torch.parallel",
]
# Their functions are documented for callers; those of `reference` by the equations at the top of their modules.
DOCUMENTED = ["information", "likelihood", "numpy", "scoring", "torch", "torch.parallel"]
SECTIONS = ("Parameters", "Returns", "Raises", "Examples")


def module(name: str) -> ModuleType:
    return importlib.import_module(f"xent.{name}")


def public_names(of: ModuleType) -> set[str]:
    """Functions and classes without an underscore that the module, or a module below it, defines."""
    kinds = (inspect.isfunction, inspect.isclass)
    here = re.compile(re.escape(of.__name__) + r"(\.|$)")
    return {
        name
        for name, value in vars(of).items()
        if not name.startswith("_") and any(kind(value) for kind in kinds) and here.match(value.__module__)
    }


@pytest.mark.parametrize("name", PUBLIC)
def test_all_lists_exactly_the_public_names(name):
    of = module(name)
    assert hasattr(of, "__all__"), f"xent.{name} has no __all__"
    assert len(set(of.__all__)) == len(of.__all__)
    missing = [listed for listed in of.__all__ if not hasattr(of, listed)]
    assert not missing
    elsewhere = {listed for listed in of.__all__ if listed not in public_names(of)}
    assert public_names(of) <= set(of.__all__), public_names(of) - set(of.__all__)
    # A name from another module of xent may be shown on purpose, such as numpy.Gradients.
    assert all(getattr(of, listed).__module__.startswith("xent.") for listed in elsewhere)


def test_the_package_shows_its_modules_and_loads_them_when_asked():
    assert set(dir(xent)) == set(xent.__all__)
    for name in xent.__all__:
        assert getattr(xent, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        xent.nonsense  # noqa: B018


FUNCTIONS = [
    (name, listed)
    for name in DOCUMENTED
    for listed in getattr(module(name), "__all__", ())
    if inspect.isfunction(getattr(module(name), listed))
]
EVERYTHING = [(name, listed) for name in PUBLIC for listed in getattr(module(name), "__all__", ())]


@pytest.mark.parametrize(("name", "listed"), EVERYTHING, ids=lambda value: value)
def test_every_public_name_has_a_docstring(name, listed):
    doc = getattr(module(name), listed).__doc__ or ""
    assert len(doc) > 20
    assert doc.splitlines()[0].endswith((".", ":")), "the first line is a sentence"


def sections(doc: str) -> set[str]:
    return {section for section in SECTIONS if re.search(rf"^{section}\n-+$", doc, re.MULTILINE)}


def with_references(name: str, listed: str, seen: tuple[str, ...] = ()) -> list[str]:
    """A docstring and those of the module that it refers to: twins of a function do not repeat its parameters."""
    doc = inspect.getdoc(getattr(module(name), listed)) or ""
    docs = [doc]
    for other in re.findall(r"`(\w+)`", doc):
        if other in module(name).__all__ and other not in (*seen, listed):
            docs += with_references(name, other, (*seen, listed))
    return docs


@pytest.mark.parametrize(("name", "listed"), FUNCTIONS, ids=lambda value: value)
def test_every_public_function_documents_parameters_returns_errors_and_an_example(name, listed):
    docs = with_references(name, listed)
    assert "Examples" in sections(docs[0])
    assert set().union(*map(sections, docs)) == set(SECTIONS)


@pytest.mark.parametrize(("name", "listed"), FUNCTIONS, ids=lambda value: value)
def test_every_parameter_is_documented(name, listed):
    doc = "\n".join(with_references(name, listed))
    for parameter in inspect.signature(getattr(module(name), listed)).parameters:
        assert re.search(rf"\b{parameter}\b", doc), f"{listed}: {parameter} is not documented"


def test_public_functions_are_annotated():
    for name, listed in FUNCTIONS:
        signature = inspect.signature(getattr(module(name), listed))
        assert signature.return_annotation is not inspect.Signature.empty, listed
        for parameter in signature.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty, (listed, parameter)


# What an import costs.


def imported(statement: str) -> tuple[set[str], float]:
    """The modules that a fresh interpreter loads for the statement, and the seconds that xent itself takes."""
    command = [sys.executable, "-X", "importtime", "-c", statement]
    environment = {"PYTHONPATH": str(SOURCE.parent)}
    log = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr
    lines = [line.removeprefix("import time:").split("|") for line in log.splitlines() if line.count("|") == 2]
    cumulative = {name.strip(): microseconds.strip() for _, microseconds, name in lines}
    return set(cumulative), int(cumulative["xent"]) / 1e6


HEAVY = {"torch", "numba", "triton", "polars", "jax", "scipy", "sklearn"}


def test_importing_xent_is_quick_and_loads_no_framework():
    runs = [imported("import xent") for _ in range(3)]
    assert not runs[0][0] & (HEAVY | {"numpy"})
    assert min(seconds for _, seconds in runs) < 0.25


@pytest.mark.parametrize("name", ["errors", "objective", "information", "likelihood", "reference"])
def test_the_definitions_load_no_framework(name):
    assert not imported(f"import xent.{name}")[0] & HEAVY


def test_the_numpy_front_does_not_load_torch():
    assert not imported("import xent.numpy")[0] & {"torch", "triton", "polars", "jax"}
