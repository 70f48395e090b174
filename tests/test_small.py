"""Small calls: torch's own loss and NumPy's formula stand in for kernels, by the same contract, and compile nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import xent.numpy
import xent.torch
from xent.backends import choice, few_rows
from xent.errors import DTypeError, LabelError, ShapeError
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
x = torch.linspace(-2, 2, 15).reshape(3, 5).requires_grad_()
xent.torch.cross_entropy(x, torch.tensor([0, 1, 2])).backward()
"""


def some(rows=20, classes=30, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, classes, generator=generator, dtype=dtype)
    return x.requires_grad_(), torch.randint(0, classes, (rows,), generator=generator)


def test_small_plain_calls_compile_nothing(tmp_path):
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
        for backend in (few_rows.FewRows(), xent.numpy.rows.CPU)
    )
    accuracy = 1e-12 if dtype is np.float64 else 2e-6
    for ours, theirs, bound in zip(few, kernels, (accuracy, accuracy, max(accuracy, np.finfo(dtype).eps)), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=bound, atol=bound * 1e-2)


def few_losses(dtype):
    return np.float64 if dtype is np.float64 else np.float32


def test_few_rows_are_numpys_and_more_are_the_kernels():
    layout = xent.numpy.rows.Layout((few_rows.MOST // 8, 8), 1, soft=False)
    more = xent.numpy.rows.Layout((few_rows.MOST // 8 + 1, 8), 1, soft=False)
    assert xent.numpy.rows.of_few(layout) is xent.numpy.rows.FEW
    assert xent.numpy.rows.of_few(more) is xent.numpy.rows.CPU
