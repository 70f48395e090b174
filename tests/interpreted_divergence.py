"""What only the GPU's implementation has, for the divergences; on_device.py says where this runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_within, eps
from divergence_cases import KINDS, OPTIONS, check, divergence, loss_of, pairs
from implementations import DEVICE, array
from on_device import SMALL, placed, random

import xent.torch
from xent.backends.choice import choose_divergence
from xent.backends.gpu.divergence_kernel import GpuDivergence

__all__ = ["placed"]


@pytest.mark.parametrize(("tile", "options"), [*((None, name) for name in OPTIONS), (SMALL, "plain")])
@pytest.mark.parametrize("kind", ["forward", "reverse", "tenth"])
def test_the_kernels_agree_with_the_reference(kind, tile, options):
    chosen, rows = divergence(kind, OPTIONS[options]), list(pairs(7).values())
    rows = rows if tile is None else rows[1:4:2]
    for dtype in ("float64", "float32"):
        s, t = (np.concatenate([pair[side] for pair in rows]).astype(dtype) for side in (0, 1))
        tensors = [torch.from_numpy(x).to(DEVICE) for x in (s, t)]
        losses, gradient = GpuDivergence(tile).forward_backward(*tensors, None, 1.0, chosen)
        check(s, t, chosen, array(losses), array(gradient), dtype)
        alone = GpuDivergence(tile).forward(*tensors, None, chosen)
        assert_within(alone, array(losses), 8 * eps(dtype) * np.nan_to_num(array(losses), posinf=0.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_of_equal_logits_it_is_exactly_0(kind, dtype):
    x = random(3, 11, dtype=dtype)
    for options in ({"temperature": 0.3}, {"softcap": 5.0, "logit_scale": 1.7}):
        losses, gradient = GpuDivergence().forward_backward(x, x.clone(), None, 1.0, divergence(kind, options))
        assert losses.tolist() == [0.0] * 3
        assert not gradient.any()


@pytest.mark.parametrize("kind", KINDS)
def test_strides_rows_and_scales(kind):
    """Positions on the last axis, transposed ones, ignored rows, a number for each row, and logits that become it."""
    s, t = random(2, 3, 5).permute(0, 2, 1), random(2, 5, 3, seed=1)
    labels = (torch.arange(6) % 4).reshape(2, 3)
    chosen, scale = divergence(kind, {"ignore_index": 2}), torch.linspace(1.0, -2.0, 6)
    losses, gradient = GpuDivergence(SMALL).forward_backward(s, t, labels, scale, chosen)
    flat = [x.permute(0, 2, 1).reshape(6, 5).contiguous() for x in (s, t)]
    wanted, slope = GpuDivergence(None).forward_backward(*flat, labels.reshape(-1), scale, chosen, out=flat[0].clone())
    assert_within(losses, array(wanted), 64 * eps("float64"))
    assert_within(gradient.permute(0, 2, 1).reshape(6, 5), array(slope), 64 * eps("float64"))
    ignored = labels.reshape(-1) == 2
    assert not losses[ignored].any()
    copy = flat[0].clone()
    GpuDivergence(SMALL).forward_backward(copy, flat[1], labels.reshape(-1), scale, chosen, out=copy)
    assert_within(copy, array(slope), 64 * eps("float64"))


def test_if_the_upstream_gradient_is_1_nothing_is_done():
    s, t, out = random(3, 7), random(3, 7, seed=1), torch.full((3, 7), 5.0, dtype=torch.float64)
    GpuDivergence().forward_backward(s, t, None, 1.0, divergence("forward"), out=out, finished=torch.ones(()))
    assert (out == 5.0).all()


@pytest.mark.parametrize(("kind", "dtype"), [("forward", torch.float64), ("tenth", torch.float32)])
def test_the_front_and_the_linear_front_take_them(kind, dtype):
    assert isinstance(choose_divergence(torch.device(DEVICE)), GpuDivergence)
    h, w = random(9, 6, dtype=dtype).requires_grad_(), random(11, 6, seed=1, dtype=dtype).requires_grad_()
    g, v = random(9, 4, seed=2, dtype=dtype).requires_grad_(), random(11, 4, seed=3, dtype=dtype).requires_grad_()
    options: dict[str, Any] = {**KINDS[kind], "temperature": 4.0, "labels": torch.arange(9), "ignore_index": 3}
    linear = getattr(xent.torch, f"linear_{loss_of(kind)}")(h, w, g, v, **options, workspace=1700)
    plain = getattr(xent.torch, loss_of(kind))(h @ w.T, g @ v.T, **options)
    unit = 256 * torch.finfo(dtype).eps
    assert_within(linear.detach(), array(plain), unit * plain.item())
    for factor in (1.0, 0.5):
        pairs_of = (torch.autograd.grad(factor * loss, (h, w, g, v), retain_graph=True) for loss in (linear, plain))
        for one, other in zip(*pairs_of, strict=True):
            assert_within(one, array(other), unit * other.abs().max().item())
