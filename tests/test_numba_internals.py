"""Numba's internals stay in one folder, and where one of them is gone, kernels are slower and right.

hidden_internals.py takes them away, in a process of its own.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import CASES
from comparison import assert_gradient, assert_losses
from hidden_internals import ATTRIBUTES, MODULES, statistics_logits
from implementations import NUMPY
from numba import njit

from xent.backends.cpu import _numba
from xent.backends.cpu._numba import instructions, missing_internals, plain

PROGRAM = Path(__file__).with_name("hidden_internals.py")
SOURCE = Path(importlib.util.find_spec("xent").origin).parent
PRIVATE = {"core", "cpython", "misc", "np", "parfors", "typed"}  # packages of Numba without a promise


def internals_in(text: str) -> set[str]:
    """What a file imports of llvmlite, and of Numba beside its public interface."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = {name: name.split(".") for name in names}
    return {
        name
        for name, (top, *rest) in parts.items()
        if top == "llvmlite" or (top == "numba" and (PRIVATE & set(rest[:1]) or any(p.startswith("_") for p in rest)))
    }


def test_no_other_file_imports_internals():
    fence = SOURCE / "backends" / "cpu" / "_numba"
    imports = {path: internals_in(path.read_text()) for path in SOURCE.rglob("*.py")}
    assert {str(path): names for path, names in imports.items() if names and fence not in path.parents} == {}
    assert sum(bool(names) for path, names in imports.items() if fence in path.parents) == len(MODULES)


INTERNAL_IMPORTS = """
import llvmlite
from llvmlite import ir
from numba import _dynfunc
from numba.core import cgutils
import numba.np.arrayobj
from numba import core
import numba.core.caching as c
"""


def test_the_rule_sees_an_internal():
    for line in INTERNAL_IMPORTS.split("\n")[1:-1]:
        assert internals_in(f"def f():\n    {line}"), line
    assert not internals_in("import numba\nfrom numba import njit, types\nfrom numba.extending import overload")


def run(*arguments: str) -> dict:
    done = subprocess.run([sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_everything_is_there_in_the_version_that_is_pinned():
    assert missing_internals() == []


def test_each_internal_is_missed_when_it_is_gone():
    missing = run("detected")
    assert missing.pop("") == []
    for group, modules in MODULES.items():
        for module in modules:
            assert group in missing[module], module
    for group, places in ATTRIBUTES.items():
        for place in places:
            assert group in missing[f"{group}: {'.'.join(filter(None, place))}"], place


@pytest.mark.slow
@pytest.mark.parametrize("group", MODULES)
def test_kernels_are_shared_by_threads_without_a_group(group):
    answer = run("threads", *MODULES[group])
    assert answer["right"]
    assert not (answer["openmp"] and group == "openmp")


def check_values(modules: list[str], path: Path) -> None:
    """Losses, gradients and statistics without these internals, within the usual bounds."""
    run("values", *modules, str(path))
    results = np.load(path)
    for i, case in enumerate(CASES):
        if case.fits("float32"):
            assert_losses(NUMPY, case, "float32", results[f"loss {i}"])
            assert_gradient(NUMPY, case, "float32", results[f"gradient {i}"])
    for logits in statistics_logits():
        x, classes = logits.astype(np.float64), logits.shape[1]
        lse = np.log(np.exp(x).sum(1))
        q, labels = np.exp(x - lse[:, None]), x.diagonal()
        entropy = -(q * np.where(q > 0, x - lse[:, None], 0)).sum(1)
        expected = {"log_prob": labels - lse, "entropy": entropy, "lse": lse}
        for name, values in expected.items():
            # Of float32 exponentials and their sums; the exponents here are below 20.
            np.testing.assert_allclose(results[f"{name} {classes}"], values, rtol=4e-6, atol=4e-6, err_msg=name)
        np.testing.assert_array_equal(results[f"argmax {classes}"], x.argmax(1))
        np.testing.assert_array_equal(results[f"rank {classes}"], (x > labels[:, None]).sum(1))


EVERYTHING_BUT_THE_CACHE = sorted({module for group, names in MODULES.items() if group != "cache" for module in names})


@pytest.mark.slow
def test_losses_gradients_and_statistics_are_right_by_plain_njit(tmp_path):
    """With the cache, so that only the first run of the tests compiles them: plain njit takes twice as long."""
    check_values(EVERYTHING_BUT_THE_CACHE, tmp_path / "results.npz")


@pytest.mark.slow
@pytest.mark.parametrize("group", MODULES)
def test_losses_gradients_and_statistics_are_right_without_a_group(group, tmp_path):
    check_values(MODULES[group], tmp_path / "results.npz")


def test_the_doctor_says_what_is_missing_and_what_follows():
    told = run("doctor", *EVERYTHING_BUT_THE_CACHE, *MODULES["cache"])
    for consequence in _numba.CONSEQUENCES.values():
        assert consequence in told["compiler"]
    assert told["compiled code"] == "not kept"
    assert run("doctor")["compiler"].startswith("Numba 0.")


# ------------------------------------------------------------------------------------- instructions and their twins

NUMBERS = np.concatenate(
    [
        np.random.default_rng(0).normal(size=2000) * 2.0 ** np.random.default_rng(1).integers(-140, 120, 2000),
        [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e38, 2.0**-149, 65504.0, 65519.996, 65520.0, 2.0**-25],
        np.arange(-50, 50) * 2.0**-26,
    ]
)


def applied(function, results, *arguments):
    """The function of each number, in compiled code."""

    @njit(error_model="numpy")
    def one(x, results):
        for i in range(len(x)):
            results[i] = function(x[i])

    @njit(error_model="numpy")
    def two(x, y, results):
        for i in range(len(x)):
            results[i] = function(x[i], y[i])

    @njit(error_model="numpy")
    def three(x, y, z, results):
        for i in range(len(x)):
            results[i] = function(x[i], y[i], z[i])

    (one, two, three)[len(arguments) - 1](*arguments, results)
    return results


@pytest.mark.parametrize("module", [instructions, plain])
def test_every_half_is_widened_exactly(module):
    bits = np.arange(2**16).astype(np.uint16).view(np.int16)
    results = applied(module.half_to_float, np.empty(2**16, np.float32), bits)
    np.testing.assert_array_equal(results, bits.view(np.float16).astype(np.float32))
    assert (np.signbit(results) == np.signbit(bits.view(np.float16)))[~np.isnan(results)].all()


@pytest.mark.parametrize("module", [instructions, plain])
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_halves_are_rounded_to_nearest_even(module):
    halves = np.arange(2**16).astype(np.uint16).view(np.float16).astype(np.float32)
    ordered = np.sort(halves[np.isfinite(halves)])
    middles = (ordered[1:] + ordered[:-1]) / 2
    numbers = np.concatenate([NUMBERS.astype(np.float32), halves, middles, np.nextafter(middles, np.float32(np.inf))])
    found = applied(module.float_to_half, np.empty(len(numbers), np.int16), numbers).view(np.float16)
    expected = numbers.astype(np.float16)
    np.testing.assert_array_equal(found, expected)
    assert (np.signbit(found) == np.signbit(expected))[~np.isnan(expected)].all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_maximum_is_nan_where_a_number_is(dtype):
    x, y = NUMBERS.astype(dtype), np.roll(NUMBERS, 7).astype(dtype)
    for module in (instructions, plain):
        results = applied(module.maximum, np.empty(len(x), dtype), x, y)
        np.testing.assert_array_equal(results, np.maximum(x, y))


@pytest.mark.parametrize(("dtype", "ulps"), [(np.float32, 0.5), (np.float64, 1.0)])
def test_the_fused_product_in_python_loses_nothing_to_cancellation(dtype, ulps):
    from fractions import Fraction

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 1000)).astype(dtype)
    z = (-(x * y)).astype(dtype) * rng.choice([1, 1, 0.5, 1e-3, 1e3], 1000).astype(dtype)
    results = applied(plain.fused_multiply_add, np.empty(1000, dtype), x, y, z)
    for a, b, c, found in zip(x.tolist(), y.tolist(), z.tolist(), results.tolist(), strict=True):
        exact = Fraction(a) * Fraction(b) + Fraction(c)
        assert abs(Fraction(found) - exact) <= Fraction(ulps * float(np.spacing(dtype(abs(found)))) * 1.001)
    odd = np.array([np.inf, np.nan, 1e300, -np.inf, 0.0]).astype(np.float64)
    results = applied(plain.fused_multiply_add, np.empty(5), odd, np.full(5, 2.0), np.full(5, 1.0))
    np.testing.assert_array_equal(results, odd * 2 + 1)
