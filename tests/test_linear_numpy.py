"""The loss of a linear layer through the driver and the NumPy front, against the float64 reference."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xent
import xent.numpy
from xent import reference
from xent.backends.cpu import products
from xent.backends.cpu.backend import CpuBackend
from xent.backends.cpu.linear_steps import CpuSteps, Method, sizes_of
from xent.linear.backend import LinearBackend
from xent.linear.driver import Layer, Wanted
from xent.linear.plan import GOOD_ROWS, MAX_PARTS, Sizes, balanced, least_workspace, make_plan, parse_bytes
from xent.objective import Objective

OPTIONS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "everything": {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 5.0, "logit_scale": 0.7},
}
DTYPES = ["float64", "float32", "float16", "bfloat16"]


@pytest.fixture(autouse=True)
def _kernels_compute(by_kernels):
    """Also where NumPy would, for so few logits (test_small.py)."""


def to_bits(x: np.ndarray) -> np.ndarray:
    """Float32 rounded to bfloat16, to nearest even."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def stored(x: np.ndarray, dtype: str) -> np.ndarray:
    return to_bits(x) if dtype == "bfloat16" else x.astype(dtype)


def wide(x: np.ndarray) -> np.ndarray:
    return (
        (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        if x.dtype == np.uint16
        else x.astype(np.float64)
    )


def arguments(rows, features, classes, dtype, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((rows, features), (classes, features), (classes,))
    x, w, b = (stored(rng.normal(size=shape), dtype) for shape in shapes)
    y = rng.integers(0, classes, rows)
    y[1:2] = -100
    return x, w, b, y


def layer_of(x, w, b, y, workspace: int = 10**7) -> Layer:
    return Layer("test", x, w, b, y, w.dtype, workspace)


def solved(layer: Layer, library: str, objective: Objective | None = None):
    """Losses, plan and gradients with the products of a library."""
    used = []

    def steps(layer: Layer, wanted: Wanted) -> CpuSteps:
        used.append(CpuSteps(layer, wanted, library, 2))
        return used[-1]

    losses, _, found = LinearBackend(CpuBackend(), steps).forward_backward(
        layer, 0.5, objective or Objective(), Wanted()
    )
    return losses, used[0].plan, found


METHODS = [(dtype, library, False, False) for dtype in DTYPES for library in ("numpy", "torch")]
METHODS += [("bfloat16", "torch", True, False), ("float32", "torch", False, True), ("bfloat16", "torch", True, True)]


def bound(dtype: str, features: int) -> float:
    """Roundings of the results, and of what they are made of where that is 16 bits too; logits here are of size 10."""
    half = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtype)
    return 4 * half if half else 40 * float(np.finfo(dtype).eps)


@pytest.mark.parametrize(("dtype", "library", "native", "is_amd"), METHODS, ids=str)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("soft", [False, True])
def test_every_way_to_multiply_gives_the_reference(dtype, library, native, is_amd, options, soft, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(products, "_has_bfloat16_instructions", lambda: native)
    monkeypatch.setattr(products, "_is_amd", lambda: is_amd)
    rows, features, classes = 37, 13, 301
    x, w, b, y = arguments(rows, features, classes, dtype)
    if soft:
        y = np.random.default_rng(3).dirichlet(np.ones(classes), rows)
    objective = Objective(**OPTIONS[options])
    target = y.astype(np.float32) if soft and dtype != "float64" else y
    losses, _ = reference.linear_cross_entropy(wide(x), wide(w), wide(b), wide(target) if soft else y, objective)
    truth = reference.linear_cross_entropy_gradients(
        wide(x), wide(w), wide(b), wide(target) if soft else y, 0.5, objective
    )
    for workspace in (10**7, 25_000 if native else 40_000):
        ours_losses, plan, found = solved(layer_of(x, w, b, target, workspace), library, objective)
        assert (len(plan.chunks) == 1) == (workspace == 10**7)
        tolerance = bound(dtype, features) if native else bound(dtype, features) / 2
        for ours, true in zip((ours_losses, *found), (losses, *truth), strict=True):
            error = np.linalg.norm(wide(np.asarray(ours)) - true) / np.linalg.norm(true)
            assert error <= tolerance, (workspace, error)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_several_parts_give_what_one_gives(dtype):
    """Where the sums of the weight's gradient do not fit, the logits are made again for each part of them."""
    x, w, b, y = arguments(400, 640, 500, dtype)
    losses, whole, found = solved(layer_of(x, w, b, y, 5_000_000), "numpy")
    others, parts, again = solved(layer_of(x, w, b, y, 1_300_000), "numpy")
    assert len(whole.parts) == 1 < len(parts.parts)
    assert len(whole.chunks) == 1 < len(parts.chunks)
    error = np.linalg.norm(wide(found.weight) - wide(again.weight)) / np.linalg.norm(wide(found.weight))
    assert error <= 2.0**-8
    np.testing.assert_allclose(losses, others, rtol=1e-5)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 40),
    features=st.integers(1, 9),
    classes=st.integers(1, 300),
    share=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
    soft=st.booleans(),
)
def test_the_workspace_changes_nothing_but_rounding(rows, features, classes, share, dtype, soft):
    """Chunk invariance, for rows and classes that nothing divides."""
    x, w, b, y = arguments(rows, features, classes, dtype, seed=rows)
    if soft:
        y = (
            np.random.default_rng(3)
            .dirichlet(np.ones(classes), rows)
            .astype(np.float64 if dtype == "float64" else np.float32)
        )
    layer = layer_of(x, w, b, y)
    sizes = sizes_of(layer, Method.of(layer, "numpy"), Wanted())
    least = least_workspace(sizes)
    most = least + rows * sizes.row_bytes + classes * (sizes.sum_bytes + sizes.slab_bytes)
    losses, plan, found = solved(layer_of(x, w, b, y, int(least + share * (most - least))), "numpy")
    assert plan.bytes <= least + share * (most - least)
    whole, _, together = solved(layer_of(x, w, b, y, 10 * most), "numpy")
    eps = {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(dtype) or 64 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(
        losses,
        whole,
        rtol=64 * np.finfo(losses.dtype).eps,
        atol=1e-5 if dtype != "float64" else 1e-13,
    )
    for one, other in zip(found, together, strict=True):
        scale = np.abs(wide(other)).max(initial=0.0)
        # Entries that cancel are rounded relative to what they are made of: rows of size 1/2 each.
        assert np.abs(wide(one) - wide(other)).max(initial=0.0) <= eps * max(scale, 0.5)


@settings(max_examples=200)
@given(
    rows=st.integers(0, 5000),
    classes=st.integers(1, 5000),
    row=st.integers(1, 10**5),
    slab=st.integers(0, 5000),
    sums=st.integers(0, 5000),
    more=st.integers(0, 10**8),
)
def test_a_plan_covers_everything_and_fits(rows, classes, row, slab, sums, more):
    sizes = Sizes(rows, classes, row, slab, sums)
    workspace = least_workspace(sizes) + more
    plan = make_plan("test", sizes, workspace)
    assert plan.bytes <= workspace
    assert [r for first, last in plan.chunks for r in range(first, last)] == list(range(rows))
    assert [c for first, last in plan.parts for c in range(first, last)] == list(range(classes))
    assert len(plan.parts) <= MAX_PARTS + 1
    if len(plan.chunks) > 1 and plan.chunk_rows >= GOOD_ROWS:
        lengths = [last - first for first, last in plan.chunks]
        assert max(lengths) - min(lengths) <= 31


def test_a_workspace_one_byte_short_names_the_least_that_will_do():
    sizes = Sizes(100, 50257, 50257 * 4, 3072, 1536)
    least = least_workspace(sizes)
    make_plan("call", sizes, least)
    with pytest.raises(
        xent.errors.ArgumentError, match=rf"call\(workspace=.*{least - 1} bytes.*one row.*{least} bytes"
    ):
        make_plan("call", sizes, least - 1)


def test_amounts_of_memory():
    assert parse_bytes("call", "64 kB") == 64_000
    assert parse_bytes("call", "2MiB") == 2 * 2**20
    for wrong in ("", "MB", "12 parsecs", 0, -3, 1.5, None, True):
        with pytest.raises(xent.errors.ArgumentError, match="workspace"):
            parse_bytes("call", wrong)


def test_pieces_are_balanced():
    assert balanced(2048, 636, 16) == ((0, 512), (512, 1024), (1024, 1536), (1536, 2048))
    assert balanced(0, 5) == ()
    assert balanced(17, 16, 16) == ((0, 8), (8, 17))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_numpy_front(dtype, reduction):
    x, w, b, y = arguments(12, 5, 30, dtype)
    options = {"reduction": reduction, "label_smoothing": 0.1, "weight": np.linspace(0.5, 2, 30)}
    shaped, labels = x.reshape(3, 4, 5), y.reshape(3, 4)
    alone = xent.numpy.linear_cross_entropy(shaped, w, labels, linear_bias=b, workspace=10_000, **options)
    loss, found = xent.numpy.linear_cross_entropy_value_and_grad(
        shaped, w, labels, linear_bias=b, workspace=10_000, **options
    )
    np.testing.assert_allclose(alone, loss, rtol=1e-6 if dtype != "float64" else 1e-14)
    logits = wide(x) @ wide(w).T + wide(b)
    truth, dlogits = xent.numpy.cross_entropy_value_and_grad(logits, y, **options)
    rtol = 1e-13 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(loss, truth.reshape(loss.shape), rtol=rtol, atol=rtol)
    eps = 4 * float(np.finfo(dtype).eps)
    for ours, true in zip(found, (dlogits @ wide(w), dlogits.T @ wide(x), dlogits.sum(0)), strict=True):
        assert ours.dtype == dtype
        assert np.linalg.norm(ours.reshape(true.shape) - true) <= eps * np.linalg.norm(true)


def test_numpy_front_takes_lists_integers_mixed_dtypes_and_any_memory_layout():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(6, 4)), rng.integers(-2, 3, (7, 4))
    y = [0, 1, 2, 3, 4, 6]
    loss, found = xent.numpy.linear_cross_entropy_value_and_grad(x.tolist(), w, y)
    assert found.linear_weight.dtype == np.float64
    assert found.linear_bias is None
    every_second = np.repeat(np.repeat(x, 2, axis=0), 2, axis=1)[::2, ::2]
    frozen = np.asfortranarray(w)
    frozen.flags.writeable = False
    other, again = xent.numpy.linear_cross_entropy_value_and_grad(every_second, frozen, y)
    np.testing.assert_allclose(loss, other, rtol=1e-14)
    np.testing.assert_allclose(found.input, again.input, rtol=1e-12, atol=1e-15)
    mixed, narrow = xent.numpy.linear_cross_entropy_value_and_grad(x.astype(np.float32), w.astype(np.float16), y)
    assert (mixed.dtype, narrow.linear_weight.dtype, narrow.input.dtype) == (np.float32, np.float16, np.float32)


def test_numpy_front_takes_bfloat16_arrays():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x, w, _, y = arguments(6, 4, 9, "float64")
    x, w = x.astype(ml_dtypes.bfloat16), w.astype(ml_dtypes.bfloat16)
    loss, found = xent.numpy.linear_cross_entropy_value_and_grad(x, w, y)
    assert (loss.dtype, found.linear_weight.dtype) == (np.float32, ml_dtypes.bfloat16)
    truth, _ = xent.numpy.linear_cross_entropy_value_and_grad(x.astype(float), w.astype(float), y)
    assert abs(loss - truth) < 0.02


def test_no_rows_and_errors():
    empty, found = xent.numpy.linear_cross_entropy_value_and_grad(
        np.ones((0, 3)), np.ones((4, 3)), np.empty(0, int), reduction="sum"
    )
    assert empty == 0
    assert not found.linear_weight.any()
    assert found.linear_weight.shape == (4, 3)
    with pytest.raises(xent.errors.LabelError, match="class index 4 at row 1"):
        xent.numpy.linear_cross_entropy(np.ones((2, 3)), np.ones((4, 3)), [0, 4])
    with pytest.raises(xent.errors.ArgumentError, match=r"linear_cross_entropy\(workspace=.*10 bytes"):
        xent.numpy.linear_cross_entropy(np.ones((2, 3)), np.ones((4, 3)), [0, 1], workspace=10)


def test_results_do_not_depend_on_what_else_is_imported():
    """`xent.numpy` multiplies with NumPy, whether torch has been imported or not: the same bits."""
    code = """
import sys
if sys.argv[1] == "torch":
    import torch, xent.torch
import hashlib, numpy as np, xent.numpy
rng = np.random.default_rng(0)
x, w = rng.normal(size=(300, 40)).astype(np.float32), rng.normal(size=(2001, 40)).astype(np.float32)
loss, found = xent.numpy.linear_cross_entropy_value_and_grad(x, w, rng.integers(0, 2001, 300), workspace="1MB")
print(hashlib.sha256(b"".join(a.tobytes() for a in (loss, found.input, found.linear_weight))).hexdigest())
"""
    outputs = [
        subprocess.run([sys.executable, "-c", code, name], check=True, capture_output=True, text=True).stdout
        for name in ("torch", "nothing")
    ]
    assert outputs[0] == outputs[1]


def test_without_torch_numpy_makes_all_products():
    code = """
import sys, numpy as np, xent.numpy
x, w = np.ones((4, 3), np.float16), np.zeros((5, 3), np.float16)
loss, found = xent.numpy.linear_cross_entropy_value_and_grad(x, w, [0, 1, 2, 3])
assert abs(loss - np.log(5)) < 1e-6 and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


MEMORY = """
import sys, torch
from benchmarks.processes import process_bytes, release_memory, reset_peak
from xent.torch.linear import linear_cross_entropy
rows, features, classes, dtype = int(sys.argv[1]), 64, 30001, getattr(torch, sys.argv[2])
x = torch.randn(rows, features).to(dtype).requires_grad_()
w = torch.randn(classes, features).to(dtype).requires_grad_()
y = torch.randint(classes, (rows,))
def step():
    linear_cross_entropy(x, w, y, workspace="20MB").backward()
    x.grad = w.grad = None
step()
release_memory()
if not reset_peak():
    sys.exit(77)
before = process_bytes("VmRSS")
step()
print(process_bytes("VmHWM") - before - (x.numel() + w.numel()) * x.element_size())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are reset through /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [500, 4000])
def test_memory_stays_within_the_workspace(rows, dtype):
    """Beside arguments and gradients: the workspace and 16 MB, in a process of its own, whatever the number of rows."""
    pytest.importorskip("torch")
    command = [sys.executable, "-c", MEMORY, str(rows), dtype]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("the system does not reset peaks")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 20e6 + 16e6
