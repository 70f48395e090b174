"""Small calls: torch's own loss and NumPy's formula stand in for kernels, by the same contract, and compile nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from implementations import by_kernels as without_small_calls

import xent.numpy
import xent.torch
from xent.backends import choice, few_rows
from xent.errors import DTypeError, LabelError, ShapeError
from xent.numpy import backends
from xent.torch.small import loss_of_few

NOTHING_IS_COMPILED = """
import numpy as np, torch
import xent.numpy, xent.torch
from numba.core.dispatcher import Dispatcher

def compile(self, signature):
    raise AssertionError(f"{self.py_func.__name__} is compiled")

Dispatcher.compile = compile
labels = np.array([0, 1, -100, 2])
for dtype in (np.float64, np.float32, np.float16):
    logits = np.linspace(-2, 2, 20).reshape(4, 5).astype(dtype)
    xent.numpy.cross_entropy(logits, labels)
    xent.numpy.cross_entropy_value_and_grad(logits, labels, reduction="sum")
    xent.numpy.cross_entropy_value_and_grad(logits.T[None], labels[None], reduction="none")
    soft = np.full((4, 5), 0.2)
    for options in (
        {"label_smoothing": 0.1, "z_loss": 1e-3}, {"weight": np.arange(5.0)}, {"focal_gamma": 2.0}, {"softcap": 5.0},
        {"sample_weight": np.arange(4.0)},
    ):
        xent.numpy.cross_entropy(logits, labels, **options)
        xent.numpy.cross_entropy_value_and_grad(logits, labels, **options)
    xent.numpy.cross_entropy_value_and_grad(logits, soft, sample_weight=np.arange(4.0))
    few = xent.numpy.SparseTarget(np.array([[0, 1], [1, 2], [2, 3], [3, 4]]), np.full((4, 2), 0.5))
    xent.numpy.cross_entropy_value_and_grad(logits, few)
    xent.numpy.kl_divergence_value_and_grad(logits, logits[::-1], labels=labels)
    xent.numpy.js_divergence_value_and_grad(logits, logits[::-1], reduction="none")
    xent.numpy.binary_cross_entropy_with_logits(logits, soft)
    if dtype is not np.float16:
        layer, bias = (logits, logits[:3], np.array([0, 1, -100, 2])), logits[0, :3]
        xent.numpy.linear_cross_entropy_value_and_grad(*layer, linear_bias=bias)
        xent.numpy.linear_statistics(*layer)
        xent.numpy.linear_kl_divergence_value_and_grad(logits, logits[:3], logits, logits[1:], linear_bias=bias)
    xent.numpy.binary_cross_entropy_with_logits_value_and_grad(logits, soft, pos_weight=np.ones(5), reduction="none")
x = torch.linspace(-2, 2, 15).reshape(3, 5).requires_grad_()
xent.torch.cross_entropy(x, torch.tensor([0, 1, 2])).backward()
"""


def some(rows=20, classes=30, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, classes, generator=generator, dtype=dtype)
    return x.requires_grad_(), torch.randint(0, classes, (rows,), generator=generator)


def test_small_calls_compile_nothing(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", NOTHING_IS_COMPILED], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# --------------------------------------------------------------------------------------------------------- torch


@pytest.mark.parametrize("shape", [(20, 30), (5,), (2, 7, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_small_plain_mean_is_torchs_own(shape, dtype):
    x = torch.randn(shape, dtype=dtype).requires_grad_()
    y = torch.randint(0, shape[min(1, len(shape) - 1)], shape[:1] + shape[2:] if len(shape) > 1 else ())
    ours, theirs = xent.torch.cross_entropy(x, y), F.cross_entropy(x, y)
    assert torch.equal(ours, theirs)
    assert ours.grad_fn.name() == theirs.grad_fn.name()


def test_every_other_call_is_ours():
    x, y = some()
    others = [
        (x.bfloat16(), y),
        (x, y.int()),
        (x, torch.softmax(x, 1).detach()),
        (x, y.where(y != y[0], -100)),
        (20 * F.one_hot(y, x.shape[1]).float(), y),
        (x * torch.nan, y),
        some(rows=choice.LIMIT // (choice.OF_A_ROW + 30) + 1),
    ]
    assert [loss_of_few(*arguments) for arguments in others] == [None] * len(others)
    for options in ({"reduction": "sum"}, {"label_smoothing": 0.1}, {"ignore_index": 1}, {"z_loss": 0.1}):
        assert xent.torch.cross_entropy(x, y, **options).grad_fn.name() == "CrossEntropyBackward"


def test_a_confident_small_loss_keeps_its_digits():
    x = torch.tensor([[30.0, 0.0]])
    assert F.cross_entropy(x, torch.tensor([0])) == 0
    assert xent.torch.cross_entropy(x, torch.tensor([0])).item() == pytest.approx(np.log1p(np.exp(-30.0)), rel=1e-6)


def test_an_ignored_row_of_nan_has_no_gradient():
    x, y = some()
    with torch.no_grad():
        x[3], y[3] = torch.nan, -100
    xent.torch.cross_entropy(x, y).backward()
    assert not x.grad[3].any()
    assert x.grad[2].isfinite().all()


@pytest.mark.parametrize("label", [30, -1, -(2**63), 2**63 - 1])
def test_a_wrong_label_of_a_small_call_is_our_error(label):
    x, y = some()
    y[7] = label
    with pytest.raises(LabelError, match="row 7"):
        xent.torch.cross_entropy(x, y)


@pytest.mark.parametrize(("logits", "labels"), [((3,), (3,)), ((3,), (1,)), ((2, 3), (3,)), ((2, 3, 4), (2, 3))])
def test_a_wrong_shape_of_a_small_call_is_our_error(logits, labels):
    with pytest.raises((ShapeError, DTypeError), match="target"):
        xent.torch.cross_entropy(torch.randn(logits), torch.zeros(labels, dtype=torch.int64))


# --------------------------------------------------------------------------------------------------------- NumPy


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_numpys_formula_and_the_kernels_agree(dtype, by_kernels):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (40, 30))
    logits[0, 3], logits[1], logits[2, 5], logits[3, 2], logits[4, :29] = -np.inf, -np.inf, np.inf, np.nan, -np.inf
    logits[5] = np.where(np.arange(30) == 7, 60.0, logits[5])
    labels = rng.integers(0, 30, 40)
    labels[[0, 4, 5, 6]], labels[3] = (3, 2, 7, -100), -100
    logits, scale = logits.astype(dtype), rng.uniform(0, 1, 40)
    few, kernels = (
        backend.forward_backward(logits, labels, scale.astype(few_losses(dtype)), xent.Objective())
        for backend in (few_rows.FewRows(), backends.KERNELS.rows)
    )
    accuracy = 1e-12 if dtype is np.float64 else 2e-6
    for ours, theirs, bound in zip(few, kernels, (accuracy, accuracy, max(accuracy, np.finfo(dtype).eps)), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=bound, atol=bound * 1e-2)


def few_losses(dtype):
    return np.float64 if dtype is np.float64 else np.float32


def test_few_rows_are_numpys_and_more_are_the_kernels():
    assert backends.backends_for(few_rows.MOST) is backends.FEW
    assert backends.backends_for(few_rows.MOST + 1) is backends.KERNELS
    with without_small_calls():
        assert backends.backends_for(1) is backends.KERNELS


def calls_of_arrays():
    """Small calls of all kinds, with their arguments and options."""
    rng = np.random.default_rng(0)
    x, t, w, v = (rng.normal(0, 2, shape) for shape in ((12, 7), (12, 7), (7, 5), (7, 5)))
    h, b, y = rng.normal(0, 2, (12, 5)), rng.normal(0, 1, 7), rng.integers(0, 7, 12)
    y[3], x[1, 2] = -100, -np.inf  # a class that the teacher excludes
    soft, weights, positive = rng.dirichlet(np.ones(7), 12), rng.uniform(0, 2, 12), rng.uniform(0, 2, 7)
    several = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 5.0, "logit_scale": 0.7}
    few = xent.numpy.SparseTarget(np.argsort(t, axis=1)[:, :2], np.full((12, 2), 0.4), tail="uniform")
    return {
        "options": ("cross_entropy", (t, y), several),
        "class weights": ("cross_entropy", (x, y), {"weight": positive, "reduction": "sum"}),
        "focal": ("cross_entropy", (t, y), {"focal_gamma": 2.0, "sample_weight": weights}),
        "probabilities": ("cross_entropy", (t, soft), {"reduction": "none"}),
        "a list": ("cross_entropy", (t, few), {}),
        "KL": ("kl_divergence", (t, x), {"labels": y, "temperature": 2.0}),
        "JS": ("js_divergence", (t, x), {"reduction": "none"}),
        "binary": ("binary_cross_entropy_with_logits", (t, soft), {"pos_weight": positive, "label_smoothing": 0.1}),
        "linear": ("linear_cross_entropy", (h, w, y), {"linear_bias": b, **several}),
        "linear, focal": ("linear_cross_entropy", (h, w, y), {"focal_gamma": 2.0, "workspace": 1000}),
        "linear KL": ("linear_kl_divergence", (h, w, h[::-1], v), {"linear_bias": b}),
    }


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("name", calls_of_arrays())
def test_numpy_and_the_kernels_agree_in_every_kind_of_call(name, dtype):
    call, given, options = calls_of_arrays()[name]
    given = [a.astype(dtype) if getattr(a, "dtype", None) == np.float64 else a for a in given]
    if "linear_bias" in options:
        options["linear_bias"] = options["linear_bias"].astype(dtype)

    def found():
        loss, gradients = getattr(xent.numpy, f"{call}_value_and_grad")(*given, **options)
        return [loss, *(gradients if isinstance(gradients, tuple) else [gradients])]

    few = found()
    with without_small_calls():
        kernels = found()
    accuracy = {np.float64: 1e-13, np.float32: 4e-6, np.float16: 2e-3}[dtype]
    for ours, theirs in zip(few, kernels, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            largest = np.abs(theirs[np.isfinite(theirs)]).max()
            np.testing.assert_allclose(ours, theirs, rtol=accuracy, atol=accuracy * largest)
