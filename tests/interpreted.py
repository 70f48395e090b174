"""What only the GPU's implementation has, for logits; on_device.py says where this runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import CASES, INF, expected
from comparison import assert_within, bounds, eps, rounded_to
from implementations import DEVICE, IMPLEMENTATIONS, array
from on_device import EVERYTHING, SMALL, assert_same, both, labels_for, moved, placed, random, reference

import xent.reference
import xent.torch
from xent.backends.choice import choose
from xent.backends.formula import FORMULA
from xent.backends.gpu import shapes
from xent.backends.gpu.backend import GpuBackend
from xent.errors import LabelError
from xent.objective import Objective
from xent.torch import operators

__all__ = ["placed"]


def assert_rows(logits, target, options, loss, gradient, ulps: float = 8.0) -> None:
    """Losses and gradients of up to about 40: a few float32 roundings of what is added up, relative to 40."""
    wanted, wanted_gradient = reference(logits, target, options)
    unit = eps("float64" if logits.dtype == torch.float64 else "float32")
    assert_within(loss.double(), wanted, ulps * unit * 40, "loss")
    rounding = rounded_to("float32", wanted_gradient) if logits.dtype != torch.float64 else 0.0
    assert_within(gradient.double(), wanted_gradient, ulps * unit * 40 + rounding, "gradient")


@pytest.mark.parametrize("tile", [None, SMALL], ids=["usual", "small"])
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
def test_bfloat16_logits_are_computed_in_float32(tile, options, soft):
    """The gradient is asked for in float32: the interpreter truncates to bfloat16 where a GPU rounds."""
    logits = random(5, 11, dtype=torch.bfloat16)
    target = torch.softmax(random(5, 11, seed=1), 1).bfloat16() if soft else labels_for(5, 11)
    out = torch.empty(5, 11)
    loss, _, gradient = GpuBackend(tile).forward_backward(logits, target, 1.0, Objective(**options), out=out)
    assert loss.dtype == torch.float32
    assert_rows(logits, target, options, loss, gradient)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_the_gradient_from_the_log_sum_exp_agrees_with_the_oracle(case):
    """float32; the front does not take this way for float64, which would lose digits."""
    if not case.fits("float32"):
        return
    given, wanted = case.rounded("float32"), expected(case, "float32")
    weight = {"weight": torch.tensor(case.options["weight"])} if "weight" in case.options else {}
    objective = Objective(**{**case.options, **weight})
    x, y = torch.from_numpy(given.logits).to(DEVICE), torch.from_numpy(given.target).to(DEVICE)
    row_scale = torch.linspace(2.0, -1.5, len(x))
    _, lse = GpuBackend(SMALL).forward(x, y, objective)
    gradient = GpuBackend(SMALL).backward(x, y, lse, row_scale, objective)
    scale = array(row_scale.double())[:, None]
    bound = bounds(IMPLEMENTATIONS[1], case, "float32")[1] + 2 * rounded_to("float32", wanted.gradient)
    assert_within(gradient, wanted.gradient * scale, np.abs(scale) * bound + 1e-45, repr(case))


@pytest.mark.parametrize("tile", [None, SMALL], ids=["usual", "small"])
@pytest.mark.parametrize("layout", ["positions", "transposed", "rows apart", "every second", "repeated"])
def test_strides_change_nothing(layout, tile):
    x = random(3, 7, 5)
    logits = {
        "positions": x,
        "transposed": x.permute(0, 2, 1),
        "rows apart": torch.cat([x, x], 1)[:, :7],
        "every second": torch.stack([x, -x], -1)[..., 0],
        "repeated": x[:1].expand(3, 7, 5),
    }[layout]
    shape = logits.shape
    labels = labels_for(shape[0] * shape[2], shape[1]).reshape(shape[0], shape[2])
    loss, _, gradient = GpuBackend(tile).forward_backward(logits, labels, 1.0, Objective(**EVERYTHING))
    rows = logits.permute(0, 2, 1).reshape(-1, shape[1])
    assert gradient.shape == shape
    assert_rows(rows, labels.reshape(-1), EVERYTHING, loss, gradient.permute(0, 2, 1).reshape(rows.shape))


@pytest.mark.parametrize("tile", [None, SMALL], ids=["usual", "small"])
def test_statistics_are_those_of_the_formula(tile):
    logits = random(6, 13)
    logits[1, 3:6] = -INF
    logits[2, 7] = logits[2].max() + 1
    logits[2, 9] = logits[2, 7]
    labels = torch.tensor([0, 12, 9, -100, 13, 4])
    for options in ({}, {"softcap": 5.0, "logit_scale": 0.5}):
        objective = Objective(**options)
        found = GpuBackend(tile).statistics(logits, labels, objective)
        wanted = FORMULA.statistics(logits, labels, objective)
        for one, other in zip(found[:3], wanted[:3], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=32 * eps("float64") * 20, equal_nan=True)
        assert found.argmax.tolist() == wanted[3].tolist()
        assert found.rank.tolist() == wanted[4].tolist()


def test_the_argmax_of_a_row_is_its_first_nan_and_of_a_masked_row_its_first_class():
    logits = random(3, 9)
    logits[0, [4, 7]] = torch.nan
    logits[1] = -INF
    found = GpuBackend(SMALL).statistics(logits, torch.zeros(3, dtype=torch.long), Objective())
    assert found.argmax.tolist() == [4, 0, logits[2].argmax().item()]
    assert found.entropy[:2].isnan().all()


@pytest.mark.parametrize("label", [7, 8, 10**6, -1, -8, -(2**62), 2**62])
def test_a_label_out_of_range_touches_nothing_but_its_row(label):
    """The rows are in the middle of a larger tensor, which shows what is written around them."""
    around = torch.full((5, 7), 123.0)
    around[1:4] = random(3, 7, dtype=torch.float32)
    gradients = torch.full((5, 7), 123.0)
    labels = torch.tensor([1, label, 2])
    weight = torch.arange(1.0, 8.0)
    objective = Objective(weight=weight, label_smoothing=0.1)
    loss, lse, _ = GpuBackend(SMALL).forward_backward(around[1:4], labels, 1.0, objective, out=gradients[1:4])
    assert loss.isnan().tolist() == lse.isnan().tolist() == [False, True, False]
    assert gradients.isnan().any(1).tolist() == [False, False, True, False, False]
    assert (gradients[[0, 4]] == 123.0).all()
    assert GpuBackend(SMALL).backward(around[1:4], labels, lse, 1.0, objective)[1].isnan().all()
    found = GpuBackend(SMALL).statistics(around[1:4], labels, Objective())
    assert found.log_prob.isnan().tolist() == [False, True, False]
    assert found.rank[1] == -1


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {}], ids=["smoothing", "plain"])
def test_blocks_of_masked_classes_before_the_first_finite_one(options):
    """The running maximum is -inf for two blocks; they count for nothing, but with smoothing the loss is +inf."""
    logits = random(1, 12)
    logits[0, :8] = -INF
    loss, _, gradient = GpuBackend(SMALL).forward_backward(logits, torch.tensor([9]), 1.0, Objective(**options))
    wanted, wanted_gradient = reference(logits, torch.tensor([9]), options)
    assert_within(loss, wanted, 8 * eps("float64") * 20)
    assert_within(gradient, wanted_gradient, 8 * eps("float64"))


def test_the_gradient_may_take_the_place_of_the_logits():
    logits, labels, objective = random(5, 11, dtype=torch.float32), labels_for(5, 11), Objective(**EVERYTHING)
    apart = GpuBackend(SMALL).forward_backward(logits, labels, 0.5, objective)
    there = logits.clone()
    together = GpuBackend(SMALL).forward_backward(there, labels, 0.5, objective, out=there)
    for one, other in zip(apart, together, strict=True):
        assert torch.equal(one, other)


def test_nothing_is_done_when_the_gradient_is_ready():
    logits, labels = random(3, 5), labels_for(3, 5)
    for number, touched in ((1.0, False), (2.0, True)):
        out = torch.zeros(3, 5, dtype=torch.float64)
        GpuBackend().forward_backward(logits, labels, 1.0, Objective(), out=out, finished=torch.tensor(number))
        assert out.any() == touched


def test_tiles_found_by_trying_give_the_same(monkeypatch):
    logits, labels = random(4, 20), labels_for(4, 20)
    wanted = GpuBackend().forward_backward(logits, labels, 1.0, Objective())
    monkeypatch.setenv("XENT_GPU_AUTOTUNE", "1")
    found = GpuBackend().forward_backward(logits, labels, 1.0, Objective())
    assert any(key[0] == "forward_backward" for key in shapes._best)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=8 * eps("float64") * 20)


# ------------------------------------------------------------------------------------------------------ the torch front


def gradient_of(x: torch.Tensor, labels: torch.Tensor, factor: float = 1.0, **options) -> torch.Tensor:
    loss = xent.torch.cross_entropy(x, labels, **options)
    (gradient,) = torch.autograd.grad(factor * loss.sum(), x)
    return gradient


@pytest.mark.parametrize(("reduction", "weighted"), [("none", True), ("sum", False), ("mean", True)])
def test_gradcheck_of_first_and_second_order(reduction, weighted):
    x = random(1, 3, 2).requires_grad_()
    labels = torch.tensor([[1, 2]])
    weight = torch.tensor([0.5, 1.0, 2.0]).double() if weighted else None

    def loss(x):
        return xent.torch.cross_entropy(x, labels, weight, reduction=reduction, **EVERYTHING)

    assert torch.autograd.gradcheck(loss, x)
    assert torch.autograd.gradgradcheck(loss, x)


def test_an_upstream_gradient_other_than_one_makes_the_gradient_anew():
    """The gradients for an upstream gradient of 1 are below what float16 holds; a loss scale brings them back."""
    x, labels = random(4, 6, dtype=torch.float16).requires_grad_(), labels_for(4, 6)
    scaled = gradient_of(x, labels, factor=2.0**16, denominator=1e8)
    wanted = reference(x.detach(), labels, {})[1] * 2.0**16 / 1e8
    assert_within(scaled.double(), wanted, rounded_to("float16", wanted) + 8 * eps("float32") * np.abs(wanted))


def test_a_second_backward_has_the_same_bits():
    x, labels = random(4, 6).requires_grad_(), labels_for(4, 6)
    loss = xent.torch.cross_entropy(x, labels)
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()


def test_labels_are_looked_at_when_asked():
    logits, labels = random(3, 5), torch.tensor([0, 5, 1])
    assert xent.torch.cross_entropy(logits, labels).isnan()
    with pytest.raises(LabelError, match=r"class index 5 at row 1 is outside \[0, 5\)"):
        xent.torch.cross_entropy(logits, labels, check=True)
    with pytest.raises(LabelError, match="row 1"):
        xent.torch.statistics(logits, labels, check=True)
    with pytest.raises(LabelError, match="row 1"):
        xent.torch.CrossEntropyLoss(check=True)(logits, labels)


def test_statistics_of_the_front_and_their_gradients():
    x, labels = random(1, 4, 2).requires_grad_(), torch.tensor([[0, 3]])
    assert torch.autograd.gradcheck(lambda x: xent.torch.statistics(x, labels)[:3], x)


def test_operators_for_a_gpu_are_those_of_the_cpu():
    """What torch.compile calls on a GPU, beside what it calls on the CPU."""
    logits, labels, weight = random(2, 5, 3), labels_for(6, 5).reshape(2, 3), random(5, seed=3).abs()
    text, scale = Objective(**EVERYTHING).to_text(), random(2, 3, seed=4)
    _, lse = operators.LOSS(logits, labels, weight, text)
    upstream = [random(2, 3, seed=seed) for seed in (5, 6, 7)]
    statistics = (logits, labels, Objective(softcap=5.0).to_text())
    entropy, double_lse = (operators.STATISTICS(*statistics)[place] for place in (1, 5))

    def computed(place):
        yield from operators.LOSS(*moved((logits, labels, weight, text), place))
        yield operators.LOSS_BACKWARD(*moved((logits, labels, weight, lse, scale, text), place))
        yield from operators.STATISTICS(*moved(statistics, place))
        saved = moved((logits, labels, *upstream, entropy, double_lse, statistics[2]), place)
        yield operators.STATISTICS_BACKWARD(*saved)

    for ours, theirs in both(lambda place: list(computed(place))):
        assert_same([ours], [theirs])


def test_the_kernels_run_what_this_file_is_about():
    """The front sends these tensors to Triton, or all of the above would have been about something else."""
    assert isinstance(choose(random(1, 2).device), GpuBackend)
