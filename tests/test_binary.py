"""The binary cross-entropy: what the table of execution modes does not see of it."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from binary_oracle import GRIDS, Grid, check, exact
from comparison import assert_within, eps
from torch import nn

import xent.numpy
import xent.reference
import xent.torch
from xent.backends.binary_protocol import Elements
from xent.backends.cpu.binary_backend import CpuBinary
from xent.backends.definitions_binary import DefinitionsBinary
from xent.backends.formula_binary import FORMULA_BINARY
from xent.errors import ArgumentError, DTypeError, LabelError, ObjectiveError, ShapeError
from xent.information import binary_entropy, cross_entropy
from xent.objective import Objective

loss_of = xent.torch.binary_cross_entropy_with_logits
with_gradient = xent.numpy.binary_cross_entropy_with_logits_value_and_grad

REFERENCE_ULPS, KERNEL_ULPS = 6, 8


@pytest.fixture(autouse=True)
def _kernels_compute(by_kernels):
    """Also where NumPy would, for so few logits (test_small.py)."""


BINARY = ("softcap", "logit_scale", "label_smoothing", "focal_gamma", "ignore_index")


def reference(logits: Any, target: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    objective = Objective(**{name: value for name, value in options.items() if name in BINARY})
    arrays = np.asarray(logits, np.float64), np.asarray(target, np.float64)
    weights = options.get("weight", 1.0), options.get("pos_weight", 1.0)
    with np.errstate(all="ignore"):
        losses = xent.reference.binary_cross_entropy(*arrays, objective, *weights)
        return losses, xent.reference.binary_cross_entropy_gradient(*arrays, objective, *weights)


def by_torch(logits: Any, target: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = {
        name: torch.from_numpy(np.asarray(options.pop(name))) for name in ("weight", "pos_weight") if name in options
    }
    x = torch.tensor(logits, requires_grad=True)
    losses = loss_of(x, torch.tensor(target), **tensors, **options)
    losses.sum().backward()
    return losses.detach(), x.grad


def by_formula(logits: Any, target: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    weights = {
        name: torch.from_numpy(np.asarray(options.pop(name))) for name in ("weight", "pos_weight") if name in options
    }
    found = FORMULA_BINARY.visit(
        Elements(torch.tensor(logits), torch.tensor(target), Objective(**options), **weights), 1.0, losses=True
    )
    return found.losses, found.gradient


def by_definitions(logits: Any, target: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    weights = {name: options.pop(name) for name in ("weight", "pos_weight") if name in options}
    found = DefinitionsBinary().visit(Elements(logits, target, Objective(**options), **weights), 1.0, losses=True)
    return found.losses, found.gradient


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_the_definition_is_right_to_its_last_digits(grid):
    check(reference, grid, "float64", REFERENCE_ULPS)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("grid", GRIDS, ids=repr)
@pytest.mark.parametrize("call", [with_gradient, by_torch, by_formula, by_definitions], ids=lambda call: call.__name__)
def test_losses_and_gradients_are_those_of_60_digits(call, grid, dtype):
    check(call, grid, dtype, KERNEL_ULPS)


BROKEN = {
    "log of 1 + exp": lambda x, y: np.log(1 + np.exp(-np.abs(x))) + np.maximum(x, 0) - x * y,
    "pos_weight for both": lambda x, y: 3.0 * reference(x, y)[0],
    "smoothed to 0": lambda x, y: reference(x, 0.75 * y)[0],
    "cap forgotten": lambda x, y: reference(x, y, label_smoothing=0.25, logit_scale=0.5, pos_weight=3.0)[0],
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_losses_are_rejected(name):
    grids = {
        "log of 1 + exp": GRIDS[0],
        "pos_weight for both": Grid("pos", pos_weight=3.0),
        "smoothed to 0": Grid("smoothed", {"label_smoothing": 0.25}),
        "cap forgotten": GRIDS[6],
    }

    def broken(logits: np.ndarray, target: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(all="ignore"):
            return BROKEN[name](logits.astype(float), target.astype(float)), reference(logits, target, **options)[1]

    with pytest.raises(AssertionError, match="losses of"):
        check(broken, grids[name], "float32", KERNEL_ULPS)


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("without the factor's slope", lambda g: {"options": {"focal_gamma": 0.0}}),
        ("without pos_weight", lambda g: {"pos_weight": 1.0}),
    ],
)
def test_broken_gradients_are_rejected(name, broken):
    grid = Grid("focal", {"focal_gamma": 2.0}, (0.0, 1.0), pos_weight=3.0)
    other = Grid("broken", **{"options": grid.options, "targets": grid.targets, "pos_weight": 3.0, **broken(grid)})

    def call(logits: np.ndarray, target: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        return reference(logits, target, **options)[0], exact(other, "float64", 0).gradient

    with pytest.raises(AssertionError, match="gradient of"):
        check(call, grid, "float64", KERNEL_ULPS)


# ----------------------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("options", [{}, {"softcap": 3.0, "logit_scale": 0.5}, {"focal_gamma": 1.5}], ids=str)
def test_it_is_the_softmax_of_two_classes_one_of_which_has_logit_0(options, dtype):
    rng = np.random.default_rng(0)
    x, y = (6 * rng.normal(size=400)).astype(dtype), rng.integers(0, 2, 400)
    two = np.stack([np.zeros_like(x), x], axis=1)
    binary, gradient = with_gradient(x, y, reduction="none", **options)
    softmax, both = xent.numpy.cross_entropy_value_and_grad(two, y, reduction="none", **options)
    # In the softmax q - p cancels where it is nearly 0, and so does lse - x in float64.
    assert_within(binary, softmax, 8 * eps(dtype) * (1 + np.abs(softmax)))
    assert_within(gradient, both[:, 1], 8 * eps(dtype))


def test_it_is_the_cross_entropy_of_the_probabilities_and_at_its_least_their_entropy():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=50), rng.random(50)
    q = 1 / (1 + np.exp(-x))
    found = xent.numpy.binary_cross_entropy_with_logits(x, y, reduction="none")
    assert_within(found, cross_entropy(np.stack([y, 1 - y], -1), np.stack([q, 1 - q], -1)), 1e-14)
    least = xent.numpy.binary_cross_entropy_with_logits(np.log(y) - np.log1p(-y), y, reduction="none")
    assert_within(least, binary_entropy(y), 1e-15)


# ------------------------------------------------------------------------------------------------- torch's own function


def _random_call(rng: np.random.Generator) -> tuple[Any, ...]:
    shape = tuple(rng.integers(1, 6, rng.integers(0, 5)))
    dtype = (torch.float64, torch.float32, torch.bfloat16, torch.float16)[rng.integers(4)]

    def some(kind: str) -> torch.Tensor | None:
        if rng.random() < 0.4:
            return None
        sizes = [1 if rng.random() < 0.4 else size for size in shape]
        return torch.from_numpy(np.asarray(3 * rng.random(sizes[rng.integers(len(sizes) + 1) :]))).to(dtype)

    x = torch.from_numpy(np.asarray(4 * rng.normal(size=shape))).to(dtype)
    y = torch.from_numpy(np.asarray(rng.random(shape))).to(dtype)
    if rng.random() < 0.5:
        y = y.round()
    if x.ndim > 1 and rng.random() < 0.3:
        x, y = x.transpose(0, 1).contiguous().transpose(0, 1), y.flip(0)
    return x, y, some("weight"), some("pos_weight"), ("none", "sum", "mean")[rng.integers(3)]


def _answers(call: Any, given: Any, reduction: str, target_learns: bool) -> list[torch.Tensor]:
    logits, target = given[0].clone().requires_grad_(), given[1].clone().requires_grad_(target_learns)
    loss = call(logits, target, given[2], reduction=reduction, pos_weight=given[3])
    loss.backward(torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).reshape(loss.shape))
    return [loss.detach(), logits.grad, *([target.grad] if target_learns else [])]


@pytest.mark.parametrize("seed", range(8))
def test_it_agrees_with_torch_on_random_calls(seed):
    rng = np.random.default_rng(seed)
    for _ in range(25):
        *given, reduction = _random_call(rng)
        how = reduction, bool(rng.random() < 0.3)
        wide = [None if t is None else t.double() for t in given]
        ours, theirs = _answers(loss_of, given, *how), _answers(F.binary_cross_entropy_with_logits, wide, *how)
        is_double = given[0].dtype == torch.float64
        assert ours[0].dtype == (torch.float64 if is_double else torch.float32)
        for one, other in zip(ours, theirs, strict=True):
            unit = eps("float64" if is_double else "float32") * 16 + torch.finfo(one.dtype).eps
            size = max(other.abs().max().item(), 0.25) if other.numel() else 0.0  # terms of up to 9 cancel
            assert_within(one.double(), other, unit * size)


# ---------------------------------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("options", [{"label_smoothing": 0.1, "softcap": 3.0}, {"focal_gamma": 1.5}], ids=str)
def test_first_and_second_derivatives_by_everything(options, reduction):
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return (0.1 + torch.rand(shape, generator=generator, dtype=torch.float64)).requires_grad_()

    x, weight, pos_weight, rows, scale = some(3, 4), some(4), some(3, 1), some(3), some()
    y = some(3, 4).detach().clamp(max=1.0)
    y = y.round() if "focal_gamma" in options else y.requires_grad_()

    def call(x: Any, y: Any, weight: Any, pos_weight: Any, rows: Any, scale: Any) -> torch.Tensor:
        more = {"sample_weight": rows, "logit_scale": scale, "reduction": reduction, **options}
        return loss_of(x, y, weight, pos_weight=pos_weight, **more)

    arguments = (x, y, weight, pos_weight, rows, scale)
    assert torch.autograd.gradcheck(call, arguments)
    assert torch.autograd.gradgradcheck(call, arguments)
    assert torch.autograd.gradcheck(lambda x: loss_of(x, y.detach(), reduction=reduction, **options), (x,))
    assert torch.autograd.gradgradcheck(lambda x: loss_of(x, y.detach(), reduction=reduction, **options), (x,))


def test_a_scaled_loss_has_the_bits_of_the_scaled_gradient_and_visits_the_logits_once():
    x, y = torch.randn(400, 500, requires_grad=True), torch.rand(400, 500).round()
    loss_of(x, y).backward()
    plain, x.grad = x.grad, None
    for _ in range(4):  # the factor is expected from the third time on
        loss = loss_of(x, y) * 0.3125
        with torch.no_grad():
            x.add_(0.0)  # a gradient that is ready needs no logits
        loss.backward()
        assert torch.equal(x.grad, plain * 0.3125)
        x.grad = None


def test_16_bit_gradients_are_rounded_once_for_any_factor():
    x, y = torch.randn(40, 50).bfloat16().requires_grad_(), torch.rand(40, 50).round()
    (loss_of(x, y, reduction="sum") / 3).backward()
    _, wanted = reference(x.detach().double(), y)
    assert_within(x.grad.double(), wanted / 3, np.abs(wanted / 3) * (2.0**-8 + 1e-6))


def test_logits_that_were_written_to_are_noticed_where_they_are_needed():
    x, y = torch.randn(4, 5, requires_grad=True), torch.rand(4, 5)
    losses = loss_of(x, y, reduction="none")
    with torch.no_grad():
        x.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()


# ------------------------------------------------------------------------------------------------------------- elements


def test_ignored_elements_count_for_nothing_in_every_dtype_of_targets():
    x = np.array([[0.5, -1.0, np.nan], [2.0, np.inf, -0.25]], np.float32)
    y = np.array([[1, 0, -100], [0, -100, 1]])
    wanted, slopes = with_gradient(x[[0, 0, 1, 1], [0, 1, 0, 2]], [1, 0, 0, 1])
    for dtype in (np.int8, np.int16, np.int32, np.int64, np.float16, np.float32, np.float64, ml_dtypes.bfloat16):
        value, gradient = with_gradient(x, y.astype(dtype))
        assert value == wanted
        assert (gradient[[0, 0, 1, 1], [0, 1, 0, 2]] == slopes).all()
        assert (gradient[[0, 1], [2, 1]] == 0).all()
    for dtype in (torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64):
        for softcap in (None, 1e6):
            t = torch.tensor(x, requires_grad=True)
            loss = loss_of(t, torch.tensor(y).to(dtype), softcap=softcap)
            loss.backward(torch.tensor(np.float32(1.0)))
            assert abs(loss.item() - wanted) <= 1e-6
            assert (t.grad[[0, 1], [2, 1]] == 0).all()


def test_only_exactly_the_ignored_number_is_ignored():
    x = torch.zeros(2, 2)
    for near in (-100.00000762939453, -99.99999237060547):
        with pytest.raises(LabelError, match=r"-100 at \(1, 0\)|-100.* at \(1, 0\) is neither"):
            loss_of(x, torch.tensor([[0.0, 1.0], [near, 1.0]]))
    with pytest.raises(LabelError):
        loss_of(x, torch.tensor([[0, 1], [156, 1]], dtype=torch.uint8))  # -100 in 8 bits
    with pytest.raises(LabelError):  # float32 has no 2**24 + 1, and 2**24 is another number
        loss_of(x, torch.full((2, 2), 2.0**24), ignore_index=2**24 + 1)
    assert loss_of(x, torch.full((2, 2), 2**24 + 1), ignore_index=2**24 + 1, denominator=1.0) == 0
    assert loss_of(x, torch.tensor([[1.0, 0.0], [1.0, 1.0]]), ignore_index=1).item() == pytest.approx(np.log(2))


def test_the_gradient_does_not_depend_on_whether_ignored_elements_were_expected():
    x, y = torch.randn(30, 71), torch.rand(30, 71).round()
    some = y.clone()
    some[3, 7:11] = -100
    found = []
    for target in (some, some, y, y, some):
        logits = x.clone().requires_grad_()
        loss = loss_of(logits, target)
        loss.backward()
        found.append((loss.item(), logits.grad))
    assert torch.equal(found[0][1], found[1][1])
    assert torch.equal(found[1][1], found[4][1])
    assert torch.equal(found[2][1], found[3][1])
    assert found[0][0] == found[1][0] == found[4][0]
    assert len({value for value, _ in found}) == 2


@pytest.mark.parametrize("wrong", [-0.5, 1.0 + 2.0**-20, float("nan"), -1.0, 2.0])
def test_targets_outside_of_0_and_1_are_named(wrong):
    x, y = torch.randn(3, 4), torch.zeros(3, 4)
    y[2, 1] = wrong
    for reduction in ("none", "sum", "mean"):
        for learns in (False, True):
            with pytest.raises(LabelError, match=r"target=.*at \(2, 1\) is neither in \[0, 1\] nor ignore_index=-100"):
                loss_of(x.clone().requires_grad_(learns), y, reduction=reduction)
        with pytest.raises(LabelError, match=r"at \(2, 1\) is neither"):
            with_gradient(x.numpy(), y.numpy(), reduction=reduction)
    with pytest.raises(LabelError):
        torch.func.grad(lambda x: loss_of(x, y))(x)
    assert FORMULA_BINARY.visit(Elements(x, y, Objective()), losses=True).losses.isnan().sum() == 1


def test_infinite_logits_are_certain():
    x = torch.tensor([-np.inf, -np.inf, np.inf, np.inf], requires_grad=True)
    y = torch.tensor([0.0, 1.0, 1.0, 0.0])
    for more in ({}, {"softcap": 5.0}, {"focal_gamma": 2.0}):
        losses = loss_of(x, y, reduction="none", **more)
        assert losses.tolist() == [0.0, np.inf, 0.0, np.inf]
        (gradient,) = torch.autograd.grad(losses.sum(), x)
        assert gradient.tolist() == ([0.0] * 4 if "softcap" in more else [0.0, -1.0, 0.0, 1.0])
    assert loss_of(x, y, torch.tensor([1.0, 0.0, 1.0, 0.0]), reduction="sum") == 0  # 0 times infinity
    assert loss_of(x, y, sample_weight=torch.tensor([1.0, 0.0, 1.0, 0.0])) == 0
    losses = loss_of(torch.tensor([np.nan, 0.0]), torch.tensor([0.0, 0.0]), reduction="none")
    assert losses.isnan().tolist() == [True, False]


def test_sample_weights_multiply_rows_and_are_what_a_mean_divides_by():
    x, y, s = np.random.default_rng(2).normal(size=(4, 3, 5)), np.zeros((4, 3, 5)), np.arange(12.0).reshape(4, 3)
    y[1, 2, :3] = -100
    losses = xent.numpy.binary_cross_entropy_with_logits(x, y, reduction="none")
    value, gradient = with_gradient(x, y, sample_weight=s)
    count = (s[..., None] * (y != -100)).sum()
    assert value == pytest.approx((losses * s[..., None]).sum() / count, rel=1e-14)
    plain = with_gradient(x, y, reduction="sum")[1]
    assert_within(gradient, plain * s[..., None] / count, 1e-16)
    found = loss_of(torch.tensor(x), torch.tensor(y), sample_weight=torch.tensor(s))
    assert found.item() == pytest.approx(value, rel=1e-14)
    one = xent.numpy.binary_cross_entropy_with_logits(x[0, 0], y[0, 0], sample_weight=s[0, :1].repeat(5) + 1)
    assert one == pytest.approx(losses[0, 0].mean(), rel=1e-14)


SHAPE = (3, 4, 5, 300)


@pytest.mark.parametrize("axes", list(itertools.product([False, True], repeat=4)), ids=str)
def test_weights_of_any_axes_are_read_in_their_places(axes):
    """Blocks of 1024 elements begin and end anywhere in the innermost axis."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=SHAPE), rng.integers(0, 2, SHAPE)
    sizes = [size if axis else 1 for size, axis in zip(SHAPE, axes, strict=True)]
    weight, pos_weight = rng.random(sizes), rng.random(sizes[1:])
    losses, gradient = with_gradient(x, y, weight=weight, pos_weight=pos_weight, reduction="none")
    wanted, slopes = reference(x, y, weight=weight, pos_weight=pos_weight)
    assert_within(losses, wanted, 1e-14)
    assert_within(gradient, slopes, 1e-15)


def test_results_do_not_depend_on_the_number_of_threads():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(700, 301)).astype(np.float32), rng.integers(0, 2, (700, 301)).astype(np.float32)
    for weight in (None, rng.random(301)):
        elements = Elements(x, y, Objective(), weight)
        one, three = (CpuBinary(threads=lambda n=n: n).visit(elements, 0.5, losses=True) for n in (1, 3))
        assert one.total == three.total
        assert (one.losses == three.losses).all()
        assert (one.gradient == three.gradient).all()


def test_the_sum_is_as_accurate_as_the_losses():
    """Of 2e6 equal losses: the blocks are added in float64."""
    x = np.full((2000, 1000), 1.5, np.float32)
    total = xent.numpy.binary_cross_entropy_with_logits(x, np.ones_like(x), reduction="sum")
    assert total == pytest.approx(2e6 * np.log1p(np.exp(-1.5)), rel=4 * eps("float32"))


def test_confident_right_predictions_have_a_loss_above_0():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.tensor([30.0, -40.0, 60.0]).to(dtype)
        losses = loss_of(x, torch.tensor([1.0, 0.0, 1.0]), reduction="none").double()
        wanted = torch.log1p(torch.exp(-x.double().abs()))
        assert ((losses - wanted).abs() <= 4 * eps("float32") * wanted).all()


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "text", "arguments"),
    [
        (ShapeError, r"target=.*\(2,\), while input has shape \(2, 3\)\. Pass one target", {"target": torch.zeros(2)}),
        (ShapeError, r"weight=.*\(2,\), which does not broadcast to \(2, 3\)", {"weight": torch.ones(2)}),
        (ShapeError, r"pos_weight=.*does not broadcast", {"pos_weight": torch.ones(1, 2, 3)}),
        (ShapeError, r"sample_weight=.*expected \(2,\)", {"sample_weight": torch.ones(3)}),
        (ObjectiveError, "pos_weight=.*negative", {"pos_weight": torch.tensor([-1.0])}),
        (ObjectiveError, "weight=.*not finite", {"weight": torch.tensor([np.inf])}),
        (ObjectiveError, r"z_loss=.*no log-sum-exp.*option of cross_entropy", {"z_loss": 0.1}),
        (ObjectiveError, r"no option 'smoothing'\. The options are ignore_index", {"smoothing": 0.1}),
        (ObjectiveError, "Leave out label_smoothing", {"focal_gamma": 1.0, "label_smoothing": 0.1}),
        (ObjectiveError, "between 0 and 1. Pass labels", {"focal_gamma": 1.0, "target": torch.full((2, 3), 0.5)}),
        (ObjectiveError, r"Pass target\.detach", {"focal_gamma": 1.0, "target": torch.zeros(2, 3, requires_grad=True)}),
        (ObjectiveError, "denominator", {"denominator": 2.0, "reduction": "sum"}),
        (DTypeError, r"Pass target\.real", {"target": torch.zeros(2, 3, dtype=torch.complex64)}),
        (DTypeError, "Convert it with input.float", {"input": torch.zeros(2, 3, dtype=torch.int64)}),
        (DTypeError, "use xent.numpy", {"target": [[0, 1, 0]] * 2}),
        (ArgumentError, r"Move it with weight\.to", {"weight": torch.ones(3, device="meta")}),
    ],
)
def test_errors_name_the_argument_and_the_remedy(error, text, arguments):
    given = {"input": torch.zeros(2, 3), "target": torch.zeros(2, 3), **arguments}
    with pytest.raises(error, match=text):
        loss_of(**given)


def test_the_old_names_of_a_reduction_are_understood():
    with pytest.warns(UserWarning, match="size_average"):
        assert loss_of(torch.zeros(2), torch.zeros(2), None, False).item() == pytest.approx(2 * np.log(2))


# --------------------------------------------------------------------------------------------------------------- module


@pytest.mark.filterwarnings("ignore:`torch.jit.script")
def test_the_module_is_torchs_with_attributes_that_count():
    pos_weight = torch.tensor([2.0, 0.5, 1.0])
    module = xent.torch.BCEWithLogitsLoss(pos_weight=pos_weight, label_smoothing=0.1)
    assert isinstance(module, nn.BCEWithLogitsLoss)
    assert set(module.state_dict()) == {"pos_weight"}
    x, y = torch.randn(4, 3), torch.rand(4, 3)
    assert module(x, y) == loss_of(x, y, pos_weight=pos_weight, label_smoothing=0.1)
    module.reduction, module.label_smoothing, module.weight = "none", 0.0, torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(module(x, y), loss_of(x, y, module.weight, reduction="none", pos_weight=pos_weight))
    module.reduction, rows = "mean", torch.tensor([1.0, 0.0, 2.0, 1.0])
    assert module(x, y, rows) == loss_of(x, y, module.weight, pos_weight=pos_weight, sample_weight=rows)
    assert repr(xent.torch.BCEWithLogitsLoss(focal_gamma=2.0)) == "BCEWithLogitsLoss(focal_gamma=2.0)"
    module.label_smoothing = 2.0
    with pytest.raises(ObjectiveError, match="label_smoothing"):
        module(x, y)
    for wrong in ({"z_loss": 0.1}, {"focal_gamma": -1.0}, {"smoothing": 0.1}):
        with pytest.raises(ObjectiveError):
            xent.torch.BCEWithLogitsLoss(**wrong)
    with pytest.raises(DTypeError, match=r"pos_weight=.*torch\.tensor\(pos_weight\)"):
        xent.torch.BCEWithLogitsLoss(pos_weight=[1.0])
    with pytest.raises(xent.XentError, match=r"jit\.script"):
        torch.jit.script(module)


def test_the_module_trains_as_torchs_does():
    torch.manual_seed(0)
    x, y = torch.randn(60, 5), (torch.randn(60, 3) > 0.5).float()
    found = []
    for kind in (nn.BCEWithLogitsLoss, xent.torch.BCEWithLogitsLoss):
        torch.manual_seed(1)
        layer, loss = nn.Linear(5, 3), kind(pos_weight=torch.tensor([3.0, 1.0, 2.0]))
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        for _ in range(20):
            optimizer.zero_grad()
            loss(layer(x), y).backward()
            optimizer.step()
        found.append(layer.weight.detach())
    assert_within(found[1].double(), found[0].double(), 1e-5)
