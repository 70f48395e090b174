"""A loss that is scaled before backward: gradient accumulation, loss scales, weighted sums.

The gradient of 1 is ready by then. Whatever the factor, and whether it was expected or not, the result is the same
bits, lies in the same memory, and is right; nothing is handed out twice.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparison import ULPS, assert_within, eps
from torch import Tensor

import xent.torch
from xent.torch import autograd

FACTORS = [1 / 3, 3.0, 0.25, 65536.0, -2.0, 0.0]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ROWS, CLASSES = 200, 700  # enough numbers for a factor to be expected


@pytest.fixture(autouse=True)
def _nothing_is_expected(by_kernels):
    autograd.EXPECTED.seen.clear()


def logits(dtype=torch.float32, rows=ROWS, classes=CLASSES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(rows, classes, generator=generator)
    return x.to(dtype).requires_grad_(), torch.randint(0, classes, (rows,), generator=generator)


def gradient(x: Tensor, y: Tensor, factor: float, **options) -> Tensor:
    x.grad = None
    (xent.torch.cross_entropy(x, y, **options) * factor).backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"z_loss": 0.01, "softcap": 20.0}], ids=str)
def test_gradient_is_the_factor_times_the_definition(dtype, factor, options):
    x, y = logits(dtype, rows=20, classes=50)
    exact, _ = logits(dtype, rows=20, classes=50)
    wide = exact.detach().double().requires_grad_()
    xent.torch.cross_entropy(wide, y, **options).backward()
    found = gradient(x, y, factor, **options)
    dtype_of_numpy = {torch.float64: np.float64, torch.float32: np.float32}.get(dtype, np.float16)
    unit = float(torch.finfo(dtype).eps) if dtype in (torch.bfloat16, torch.float16) else eps(dtype_of_numpy)
    size = abs(factor) * (1.0 if "reduction" in options else 1 / 20)
    smallest = float(torch.finfo(dtype).smallest_normal)
    bound = ULPS * (unit * np.abs(factor * wide.grad.numpy()) + eps(np.float32) * size * (1 + 0.02 * 12)) + smallest
    wanted = (factor * wide.grad).numpy()
    rounded = (factor * wide.grad).to(dtype).double().numpy()
    wanted[np.isinf(rounded)] = rounded[np.isinf(rounded)]  # float16 has no number for it
    assert_within(found.double().numpy(), wanted, bound, f"{dtype} {factor}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("shape", [(ROWS, CLASSES), (4000, 40), (4, 40, 1000)], ids=str)
def test_an_expected_factor_has_the_bits_of_an_unexpected_one(dtype, factor, shape):
    generator = torch.Generator().manual_seed(1)
    x = (3 * torch.randn(shape, generator=generator)).to(dtype).requires_grad_()
    y = torch.randint(0, shape[1], shape[:1] + shape[2:], generator=generator)
    found = [gradient(x, y, factor).clone() for _ in range(4)]
    kind = autograd.EXPECTED.kind(x)
    assert autograd.EXPECTED.factor(kind) == (factor if dtype == torch.float64 else np.float32(factor))
    assert all(torch.equal(found[0], other) for other in found[1:])
    # An expectation that is disappointed is made good.
    assert torch.equal(gradient(x, y, 7.0), gradient(x.detach().clone().requires_grad_(), y, 7.0))


def test_small_losses_leave_no_trace():
    x, y = logits(rows=3, classes=5)
    gradient(x, y, 3.0)
    assert not autograd.EXPECTED.seen


def test_kinds_of_logits_are_forgotten_before_they_are_many():
    for classes in range(autograd.Expected.KINDS + 5):
        autograd.EXPECTED.came((classes, torch.float32), 2.0)
    assert len(autograd.EXPECTED.seen) <= autograd.Expected.KINDS


def test_a_scaled_gradient_lies_where_the_first_one_did():
    x, y = logits()
    loss = xent.torch.cross_entropy(x, y)
    ready = loss.grad_fn.ready.data_ptr()
    (loss * 0.3).backward()
    assert x.grad.data_ptr() == ready


@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_a_graph_that_is_kept_gives_the_same_gradient_again(factor):
    x, y = logits()
    loss = xent.torch.cross_entropy(x, y) * factor
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, x, retain_graph=True)
    assert torch.equal(kept, second)
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, kept), "what was handed out is written to no more"


def test_gradients_accumulate_and_hooks_see_the_scaled_one():
    x, y = logits()
    seen = []
    x.register_hook(lambda gradient: seen.append(gradient.clone()))
    for _ in range(3):
        (xent.torch.cross_entropy(x, y) / 3).backward()
    plain, _ = logits()
    F.cross_entropy(plain, y).backward()
    assert len(seen) == 3
    assert torch.equal(seen[0], seen[2])
    torch.testing.assert_close(x.grad, plain.grad, rtol=1e-4, atol=1e-8)


def test_logits_may_be_written_to_once_the_gradient_is_ready():
    """As with torch, which keeps the softmax: a softmax in place, or a mask, after the loss."""
    x, y = logits()
    for factor in (1.0, 0.3):
        x.grad = None
        inner = x * 1
        loss = xent.torch.cross_entropy(inner, y)
        inner.mul_(2)
        (loss * factor).backward()
        assert torch.equal(x.grad, gradient(logits()[0], y, factor))


def test_logits_that_were_written_to_and_are_needed_are_an_error():
    x, y = logits()
    inner = x * 1
    losses = xent.torch.cross_entropy(inner, y, reduction="none")
    inner.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()


def test_linear_arguments_may_be_written_to_once_the_gradients_are_ready():
    h, w = torch.randn(6, 4), torch.randn(9, 4).requires_grad_()
    y = torch.arange(6)
    found = []
    for change in (False, True):
        w.grad, inner = None, (h.clone().requires_grad_() * 1)
        loss = xent.torch.linear_cross_entropy(inner, w, y)
        if change:
            inner.data.mul_(1)
            with torch.no_grad():
                inner.mul_(2)
        (loss * 3).backward()
        found.append(w.grad)
    assert torch.equal(*found)


def test_peak_memory_of_a_scaled_step_is_one_gradient():
    x, y = logits(rows=64, classes=4000)
    gradient(x, y, 0.3)
    tracemalloc.start()
    try:
        gradient(x, y, 0.3)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Gradients lie in kept memory or NumPy's, which is traced; torch's own is not, and makes none here.
    assert peak < 1.2 * x.numel() * x.element_size()
