"""The contrastive loss by the Triton kernels: columns and gradients, with and without positives in the chunk."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_within, eps
from implementations import DEVICE, array
from on_device import placed as placed

import xent.torch
from xent.backends.gpu.backend import GpuBackend
from xent.backends.gpu.contrast_kernel import column_lse
from xent.linear.contrast import Side


def pairs(count: int, features: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator("cpu").manual_seed(count)
    a = torch.randn(count, features, generator=generator, dtype=torch.float64, device="cpu")
    b = a + torch.randn(count, features, generator=generator, dtype=torch.float64, device="cpu")
    return [(t / features**0.5).to(DEVICE, dtype).requires_grad_() for t in (a, b)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("workspace", ["1MB", "60kB"])  # 130 pairs: kept whole, and in pieces
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_losses_and_gradients_are_the_definitions(dtype, workspace, reduction):
    count = 130
    given = pairs(count, 8, dtype)
    loss = xent.torch.contrastive_loss(*given, logit_scale=2.0, reduction=reduction, workspace=workspace)
    exact = [t.detach().double().requires_grad_() for t in given]
    z, labels = 2.0 * exact[0] @ exact[1].T, torch.arange(count)
    wanted = (F.cross_entropy(z, labels, reduction=reduction) + F.cross_entropy(z.T, labels, reduction=reduction)) / 2
    found = torch.autograd.grad(3 * loss.sum(), given)
    right = torch.autograd.grad(3 * wanted.sum(), exact)
    unit = eps("float64" if dtype == torch.float64 else "float32") if dtype != torch.bfloat16 else 2.0**-8
    # Similarities of order 10 are rounded; a loss is the difference of two of them, a gradient that times 2.
    assert_within(array(loss.detach().double()), array(wanted.detach()), 40 * unit)
    scale = 1.0 if reduction == "none" else 1 / count
    for one, other in zip(found, right, strict=True):
        assert_within(array(one.double()), array(other), scale * 100 * unit)


@pytest.mark.parametrize("first", [None, 0, 7])
@pytest.mark.parametrize("rows", [1, 40, 600])
def test_columns_and_gradient_of_a_chunk(first, rows):
    generator = torch.Generator("cpu").manual_seed(rows)
    x = (3 * torch.randn(rows, 650, generator=generator, dtype=torch.float64, device="cpu")).to(DEVICE)
    z = 0.5 * x
    is_positive = torch.zeros_like(z, dtype=torch.bool)
    if first is not None:
        is_positive[torch.arange(rows), first + torch.arange(rows)] = True
    wanted = z.masked_fill(is_positive, -torch.inf).logsumexp(0)
    assert_within(array(column_lse(x, first, 0.5)), array(wanted), 100 * eps("float64"))
    rows_lse, columns_lse = z.logsumexp(1), z.logsumexp(0) + 1.0
    loss = torch.rand(rows, dtype=torch.float64), torch.rand(650, dtype=torch.float64)
    scales = torch.rand(rows, dtype=torch.float64), torch.rand(650, dtype=torch.float64)
    sides = Side(loss[0], rows_lse, scales[0]), Side(loss[1], columns_lse, scales[1])
    wanted = scales[0][:, None] * (z - rows_lse[:, None]).exp() + scales[1] * (z - columns_lse).exp()
    if first is not None:
        places = slice(first, first + rows)
        of_positives = scales[0] * torch.expm1(-loss[0]) + scales[1][places] * torch.expm1(-loss[1][places])
        wanted[is_positive] = of_positives
    GpuBackend().contrast_gradient(x, first, *sides, 0.5)
    assert_within(array(x), array(0.5 * wanted), 100 * eps("float64"))
