"""The divergences of two rows of logits: what execution_modes.py does not see of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparison import ULPS, assert_within, eps
from divergence_cases import INF, KINDS, OPTIONS, by_mpmath, check, divergence, loss_of, pairs
from torch.utils.flop_counter import FlopCounterMode

import xent.information
import xent.numpy
import xent.torch
from xent import reference
from xent.backends.cpu.divergence_kernel import CpuDivergence
from xent.errors import ArgumentError, DTypeError, ObjectiveError, ShapeError
from xent.torch.deferred import DeferredLogits, defer_logits

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def call(kind: str, *logits: torch.Tensor, **options: Any) -> torch.Tensor:
    return getattr(xent.torch, loss_of(kind))(*logits, **KINDS[kind], **options)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# ------------------------------------------------------------------------------------------------------ the definitions


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_textbook_in_60_digits(kind, options):
    chosen = divergence(kind, OPTIONS[options])
    for name, (s, t) in pairs().items():
        found = reference.divergence(s, t, None, chosen), reference.divergence_gradient(s, t, None, chosen)
        for i in range(len(s)):
            wanted, slope = by_mpmath(s[i], t[i], chosen)
            size = np.abs(np.where(np.isfinite(s), s, 0)).max() + np.abs(np.where(np.isfinite(t), t, 0)).max()
            unit = ULPS * eps(np.float64) * (1 + size * (options != "plain"))
            reach = np.abs(slope).sum() / chosen.logit_scale  # of rounded logits on the loss
            assert_within(found[0][i], wanted, unit * (min(wanted, 1e300) + reach), f"{name} loss")
            assert_within(found[1][i], slope, unit * (np.abs(slope) + chosen.factor), f"{name} gradient")


def test_a_divergence_of_1e_13_has_its_digits():
    """The textbook's sum of p log(p / q) cancels there: in float64 its error is 1e-3 of the value, or below 0."""
    s, _ = pairs()["far"]
    t = s + 1e-6 * np.cos(np.arange(s.size)).reshape(s.shape)
    for kind in KINDS:
        chosen = divergence(kind)
        found = reference.divergence(s, t, None, chosen)
        wanted = np.array([by_mpmath(*rows, chosen)[0] for rows in zip(s, t, strict=True)])
        assert_within(found, wanted, 1e-9 * wanted)


@pytest.mark.parametrize("base", [math.e])
def test_it_is_the_divergence_of_the_probabilities(base):
    s, t = pairs()["far"]
    p, q = (np.exp(-reference.negative_log_softmax(x)[0]) for x in (s, t))
    of_logits = xent.numpy.kl_divergence(s, t, reduction="none")
    assert_within(of_logits, xent.information.kl_divergence(q, p, base=base), 64 * eps(np.float64) * of_logits)
    js = xent.numpy.js_divergence(s, t, reduction="none")
    assert_within(js, xent.information.js_divergence(q, p, base=base), 64 * eps(np.float64) * js)


# --------------------------------------------------------------------------------------------- kernels against them


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_kernels_agree_with_the_reference(kind, options, dtype):
    chosen = divergence(kind, OPTIONS[options])
    for classes in (1, 9, 2500):  # of 2500 a row has three blocks
        for s, t in pairs(max(classes, 3)).values():
            rows = s[:, :classes].astype(dtype), t[:, :classes].astype(dtype)
            losses, gradient = CpuDivergence().forward_backward(*rows, None, 1.0, chosen)
            assert np.array_equal(losses, CpuDivergence().forward(*rows, None, chosen))
            check(*rows, chosen, losses, gradient, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_16_bit_logits_are_computed_in_float32(kind, dtype):
    s, t = random(4, 300, dtype=dtype), random(4, 300, seed=1, dtype=dtype)
    x = s.clone().requires_grad_()
    losses = call(kind, x, t, reduction="none")
    losses.sum().backward()
    assert (losses.dtype, x.grad.dtype) == (torch.float32, dtype)
    arrays = s.double().numpy(), t.double().numpy()
    check(*arrays, divergence(kind), losses.detach().numpy(), x.grad.double(), np.float32, torch.finfo(dtype))


def written_out(kind: str, s: torch.Tensor, t: torch.Tensor, temperature: float) -> torch.Tensor:
    """By F.kl_div, and the JSD of Agarwal et al., as libraries write it."""
    log_p, log_q = F.log_softmax(s / temperature, 1), F.log_softmax(t / temperature, 1)
    log_target: dict[str, Any] = {"log_target": True, "reduction": "none"}
    if kind == "forward":
        return F.kl_div(log_p, log_q, **log_target).sum(1)
    if kind == "reverse":
        return F.kl_div(log_q, log_p, **log_target).sum(1)
    beta = KINDS[kind]["beta"]
    mixture = torch.logsumexp(torch.stack([log_q + math.log(beta), log_p + math.log1p(-beta)]), 0)
    terms = beta * F.kl_div(mixture, log_q, **log_target) + (1 - beta) * F.kl_div(mixture, log_p, **log_target)
    return terms.sum(1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_torch_says_on_random_options(kind, seed):
    draw = np.random.default_rng(seed)
    temperature, reduction = float(draw.uniform(0.5, 4)), ("none", "sum", "mean")[seed % 3]
    labels = torch.tensor(draw.integers(0, 3, 6)) if seed % 2 else None
    weights = torch.tensor(draw.uniform(0, 2, 6)) if seed > 1 else None
    s, t = random(6, 11, seed=seed).requires_grad_(), random(6, 11, seed=seed + 10).requires_grad_()
    options = {"temperature": temperature, "reduction": reduction, "labels": labels, "ignore_index": 1}
    found = call(kind, s, t, sample_weight=weights, **options)
    counted = torch.ones(6, dtype=torch.float64) if labels is None else (labels != 1).double()
    counted = counted if weights is None else counted * weights
    rows = written_out(kind, s, t, temperature) * counted
    wanted = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / counted.sum()}[reduction]
    upstream = torch.tensor(draw.uniform(0.5, 2, tuple(wanted.shape)))
    bound = 64 * eps(np.float64) * (1 + float(wanted.detach().abs().max()))
    assert_within(found.detach(), wanted.detach(), bound)
    pairs_of = zip(
        torch.autograd.grad(found, (s, t), upstream), torch.autograd.grad(wanted, (s, t), upstream), strict=True
    )
    for one, other in pairs_of:
        assert_within(one, other, bound)


def test_a_mean_is_torchs_batchmean():
    s, t = random(5, 7), random(5, 7, seed=1)
    wanted = F.kl_div(F.log_softmax(s, 1), F.log_softmax(t, 1), log_target=True, reduction="batchmean")
    assert_within(xent.torch.kl_divergence(s, t), wanted, 64 * eps(np.float64) * float(wanted))


@pytest.mark.parametrize("kind", ["forward", "reverse", "tenth"])
def test_gradcheck_and_gradgradcheck(kind):
    s, t = random(2, 5).requires_grad_(), random(2, 5, seed=1).requires_grad_()
    options: dict[str, Any] = {**OPTIONS["everything"], "reduction": "none"}
    assert torch.autograd.gradcheck(lambda *x: call(kind, *x, **options), (s, t))
    assert torch.autograd.gradgradcheck(lambda *x: call(kind, *x, **options), (s, t))


# ---------------------------------------------------------------------------------------------------- what it promises


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_of_equal_logits_it_is_exactly_0_and_so_is_the_gradient(kind, dtype):
    for options in ({}, {"temperature": 0.3}, {"softcap": 5.0, "logit_scale": 1.7}):
        for scale in (0.01, 1.0, 30.0):
            x = (random(3, 1500) * scale).to(dtype)
            x[1, 3] = -INF
            s, t = x.clone().requires_grad_(), x.clone().requires_grad_()
            losses = call(kind, s, t, reduction="none", **options)
            losses.sum().backward()
            assert losses.tolist() == [0.0] * 3
            assert not s.grad.any()
            assert not t.grad.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_never_negative(kind, dtype):
    """Of logits that are the same up to a unit in the last place, or up to an offset, and of very different ones."""
    x = random(40, 300, dtype=dtype)
    last = torch.finfo(dtype).eps * x.abs() * torch.randint(-1, 2, x.shape)
    for y in (x + last.to(dtype), x + 8, -x, 20 * x, torch.zeros_like(x)):
        for one, other in ((x, y), (y, x)):
            assert (call(kind, one, other, reduction="none") >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_bits_do_not_depend_on_threads_or_strides(kind):
    s, t = random(64, 3000, dtype=torch.float32).numpy(), random(64, 3000, seed=1, dtype=torch.float32).numpy()
    found = [CpuDivergence(lambda n=n: n).forward_backward(s, t, None, 1.0, divergence(kind)) for n in (1, 2, 3)]
    apart = np.concatenate([s, s], 1)[:, :3000]
    found.append(CpuDivergence(lambda: 2).forward_backward(apart, t, None, 1.0, divergence(kind)))
    found.append(CpuDivergence(lambda: 2).forward_backward(s, np.asfortranarray(t), None, 1.0, divergence(kind)))
    copy = s.copy()
    found.append(CpuDivergence(lambda: 2).forward_backward(copy, t, None, 1.0, divergence(kind), out=copy))
    for losses, gradient in found[1:]:
        assert np.array_equal(losses, found[0][0])
        assert np.array_equal(gradient, found[0][1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_infinite_and_missing_numbers_stay_in_their_rows(kind, dtype):
    s, t = random(7, 5, dtype=dtype), random(7, 5, seed=1, dtype=dtype)
    s[0, 1], t[1, 1] = -INF, -INF
    s[2, 3] = t[2, 3] = -INF
    s[3, 0], t[4, 0], s[5] = torch.nan, INF, -INF
    x, y = s.clone().requires_grad_(), t.clone().requires_grad_()
    losses = call(kind, x, y, reduction="none")
    losses.sum().backward()
    impossible = {"forward": 0, "reverse": 1}.get(kind)
    assert [i for i in range(7) if losses[i].isinf()] == ([] if impossible is None else [impossible])
    assert losses.isnan().tolist() == [False] * 3 + [True] * 3 + [False]
    for gradient in (x.grad, y.grad):
        assert gradient.isfinite().all(1).tolist() == [True] * 3 + [False] * 3 + [True]
    keep = [j for j in range(5) if j != 3]  # a class that both mask is none
    alone = call(kind, s[2:3, keep], t[2:3, keep], reduction="none")
    assert_within(losses[2:3].detach(), alone, 8 * eps(str(dtype).split(".")[1]) * alone.numpy())


def test_ignored_rows_count_for_nothing_whatever_is_in_them(by_kernels):
    s, t = random(4, 5), random(4, 5, seed=1)
    labels = torch.tensor([0, -100, 99, -100])  # 99 is no class, and means nothing
    s[1], t[3] = torch.nan, torch.nan
    x = s.clone().requires_grad_()
    loss = xent.torch.kl_divergence(x, t, labels=labels)
    loss.backward()
    wanted = xent.torch.kl_divergence(s[::2], t[::2])
    assert_within(loss.detach(), wanted, 4 * eps(np.float64) * float(wanted))
    assert x.grad[1::2].tolist() == [[0.0] * 5] * 2
    value, gradient = xent.numpy.kl_divergence_value_and_grad(s.numpy(), t.numpy(), labels=labels.numpy())
    assert value == loss.item()
    assert np.array_equal(gradient, x.grad.numpy())
    none = xent.torch.kl_divergence(x, t, labels=torch.full((4,), -100))
    assert none.isnan()
    assert xent.torch.kl_divergence(x, t, labels=torch.full((4,), -100), denominator=3.0) == 0


def test_a_frozen_teacher_costs_nothing_and_a_scaled_loss_no_second_visit(monkeypatch):
    visits = []
    real = CpuDivergence.forward_backward
    monkeypatch.setattr(
        CpuDivergence, "forward_backward", lambda *a, **k: (visits.append(a[1].shape), real(*a, **k))[1]
    )
    s, t = random(300, 500, dtype=torch.float32).requires_grad_(), random(300, 500, seed=1, dtype=torch.float32)
    (xent.torch.kl_divergence(s, t) * 0.25).backward()
    assert len(visits) == 1
    t.requires_grad_()
    (xent.torch.kl_divergence(s, t) * 0.25).backward()
    assert len(visits) == 3
    (xent.torch.kl_divergence(s.detach(), t) * 0.25).backward()
    assert len(visits) == 4


def test_mixed_dtypes_are_widened_and_gradients_come_back_narrow():
    s, t = random(3, 6, dtype=torch.bfloat16).requires_grad_(), random(3, 6, seed=1, dtype=torch.float32)
    loss = xent.torch.js_divergence(s, t)
    loss.backward()
    assert (loss.dtype, s.grad.dtype) == (torch.float32, torch.bfloat16)
    assert loss == xent.torch.js_divergence(s.detach().float(), t)


def test_deferred_logits_are_made_for_it():
    head = torch.nn.Linear(4, 9)
    model, x, t = defer_logits(torch.nn.Sequential(head), "0"), torch.randn(3, 4), torch.randn(3, 9)
    logits = model(x)
    assert isinstance(logits, DeferredLogits)
    assert torch.equal(
        xent.torch.kl_divergence(logits, t), xent.torch.kl_divergence(head(x).as_subclass(torch.Tensor), t)
    )


# ----------------------------------------------------------------------------------------------------- broken variants


def broken(change: str, s: np.ndarray, t: np.ndarray, kind: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """Losses and gradients with one fault."""
    good = divergence(kind, options)
    other = {name: value for name, value in options.items() if name != "temperature_squared"}
    loss, gradient = reference.divergence, reference.divergence_gradient
    match change:
        case "exchanged":
            return loss(s, t, None, good.of_teacher), gradient(s, t, None, good.of_teacher)
        case "teacher at temperature 1":
            return loss(s, t / good.logit_scale, None, good), gradient(s, t / good.logit_scale, None, good)
        case "not squared":
            return loss(s, t, None, divergence(kind, other)), gradient(s, t, None, divergence(kind, other))
        case "gradient of the logits, not of x":
            return loss(s, t, None, good), gradient(s, t, None, good) / good.logit_scale
        case "one class in a thousand lost":
            cut = np.where(np.arange(s.shape[1]) == 4, 0.0, 1.0)
            return loss(s, t, None, good), gradient(s, t, None, good) * cut
    log_p, log_q = (-reference.negative_log_softmax(reference.softcapped_logits(x, good))[0] for x in (s, t))
    with np.errstate(all="ignore"):  # the textbook in float32, whose terms cancel
        terms = np.exp(log_q).astype(np.float32) * (log_q.astype(np.float32) - log_p.astype(np.float32))
    return good.factor * np.nansum(terms, axis=1), gradient(s, t, None, good)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("change", "kind", "options"),
    [
        ("exchanged", "forward", {}),
        ("exchanged", "tenth", {}),
        ("teacher at temperature 1", "reverse", OPTIONS["temperature"]),
        ("not squared", "js", OPTIONS["temperature"]),
        ("gradient of the logits, not of x", "forward", OPTIONS["temperature"]),
        ("one class in a thousand lost", "js", {}),
        ("textbook", "forward", {}),
    ],
)
def test_the_comparison_rejects(change, kind, options, dtype):
    caught = 0
    for s, t in pairs(1000).values():
        rows = s.astype(dtype).astype(np.float64), t.astype(dtype).astype(np.float64)
        right = reference.divergence(*rows, None, divergence(kind, options))
        check(
            *rows,
            divergence(kind, options),
            right,
            reference.divergence_gradient(*rows, None, divergence(kind, options)),
            dtype,
        )
        try:
            check(*rows, divergence(kind, options), *broken(change, *rows, kind, options), dtype)
        except AssertionError:
            caught += 1
    assert caught


# --------------------------------------------------------------------------------------------------------------- linear


def layers(dtype: torch.dtype, rows: int = 50, classes: int = 70) -> dict[str, torch.Tensor]:
    shapes = {
        "input": (rows, 8),
        "linear_weight": (classes, 8),
        "target_input": (rows, 12),
        "target_weight": (classes, 12),
    }
    shapes |= {"linear_bias": (classes,), "target_bias": (classes,)}
    return {name: random(*shape, seed=i, dtype=dtype) / 3 for i, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize("workspace", ["auto", 60_000])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["forward", "tenth"])
def test_a_linear_divergence_is_that_of_the_logits(kind, dtype, workspace):
    tensors = {name: tensor.requires_grad_() for name, tensor in layers(dtype).items()}
    labels, weights = torch.arange(50) % 7 - 1, torch.linspace(0, 2, 50)
    options: dict[str, Any] = {**OPTIONS["temperature"], "labels": labels, "ignore_index": -1, "sample_weight": weights}
    found = getattr(xent.torch, f"linear_{loss_of(kind)}")(**tensors, **KINDS[kind], **options, workspace=workspace)
    wide = {name: tensor.detach().double().requires_grad_() for name, tensor in tensors.items()}
    s, t = (F.linear(*(wide[name] for name in names)) for names in (
        ("input", "linear_weight", "linear_bias"), ("target_input", "target_weight", "target_bias")
    ))  # fmt: skip
    wanted = call(kind, s, t, **options)
    unit = 64 * torch.finfo(dtype if dtype != torch.float16 else torch.float32).eps
    assert_within(found.detach(), wanted.detach(), unit * wanted.item())
    gradients = zip(
        torch.autograd.grad(found, list(tensors.values())),
        torch.autograd.grad(wanted, list(wide.values())),
        strict=True,
    )
    for one, other in gradients:
        assert one.dtype == dtype
        stored = torch.finfo(dtype).eps
        assert_within(one.double(), other, (unit / 4 + stored) * other.abs().max().item())


def test_the_numpy_fronts_agree_with_torch(by_kernels):
    tensors = layers(torch.float64)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    for name in ("linear_kl_divergence", "linear_js_divergence"):
        loss, gradients = getattr(xent.numpy, f"{name}_value_and_grad")(**arrays, temperature=2.0)
        assert getattr(xent.numpy, name)(**arrays, temperature=2.0) == loss
        wanted = {key: tensor.clone().requires_grad_() for key, tensor in tensors.items()}
        value = getattr(xent.torch, name)(**wanted, temperature=2.0)
        value.backward()
        assert_within(loss, value.item(), 16 * eps(np.float64) * float(loss))
        for key, gradient in gradients._asdict().items():
            other = wanted[key].grad
            assert_within(gradient, other, 64 * eps(np.float64) * other.abs().max().item())
    for kind in KINDS:
        s, t = random(4, 6), random(4, 6, seed=1)
        x = s.clone().requires_grad_()
        value = call(kind, x, t, **OPTIONS["everything"])
        value.backward()
        options = {**KINDS[kind], **OPTIONS["everything"]}
        loss, gradient = getattr(xent.numpy, f"{loss_of(kind)}_value_and_grad")(s.numpy(), t.numpy(), **options)
        assert loss == value.item()
        assert np.array_equal(gradient, x.grad.numpy())


def test_it_takes_four_products_and_four_more_if_the_teacher_learns():
    tensors = layers(torch.float32, rows=16, classes=32)
    student, teacher = 2 * 16 * 32 * 8, 2 * 16 * 32 * 12
    frozen = ("target_input", "target_weight", "target_bias")
    for learns, wanted in ((False, 3 * student + teacher), (True, 4 * student + 4 * teacher)):
        given = {name: t.clone().requires_grad_(learns or name not in frozen) for name, t in tensors.items()}
        with FlopCounterMode(display=False) as counter:
            xent.torch.linear_kl_divergence(**given).backward()
        assert counter.get_total_flops() == wanted


def test_a_workspace_that_is_too_small_names_the_least():
    tensors = layers(torch.float32)
    with pytest.raises(ArgumentError, match=r"linear_kl_divergence.*Pass at least (\d+) bytes") as error:
        xent.torch.linear_kl_divergence(**tensors, workspace=100)
    least = int(str(error.value).split("at least ")[1].split(" ")[0])
    whole = xent.torch.linear_kl_divergence(**tensors)
    found = xent.torch.linear_kl_divergence(**tensors, workspace=least)
    assert_within(found, whole, 64 * eps(np.float32) * float(whole))


# --------------------------------------------------------------------------------------------------- modules and errors


def test_modules_are_their_functions():
    s, t = random(4, 6), random(4, 6, seed=1)
    labels = torch.tensor([0, -100, 1, 2])
    module = xent.torch.KLDivergenceLoss(direction="reverse", temperature=2.0)
    assert torch.equal(
        module(s, t, labels), xent.torch.kl_divergence(s, t, direction="reverse", temperature=2.0, labels=labels)
    )
    module.temperature = 3.0
    assert torch.equal(module(s, t), xent.torch.kl_divergence(s, t, direction="reverse", temperature=3.0))
    assert repr(module) == "KLDivergenceLoss(direction='reverse', temperature=3.0)"
    assert torch.equal(xent.torch.JSDivergenceLoss(beta=0.2)(s, t), xent.torch.js_divergence(s, t, beta=0.2))
    tensors = layers(torch.float32)
    for kind, options in ((xent.torch.LinearKLDivergenceLoss, {}), (xent.torch.LinearJSDivergenceLoss, {"beta": 0.2})):
        linear = kind(8, 70, bias=True, z_loss=0.01, **options)
        function = xent.torch.linear_js_divergence if options else xent.torch.linear_kl_divergence
        layer = {"linear_weight": linear.linear.weight, "linear_bias": linear.linear.bias}
        wanted = function(**{**tensors, **layer}, z_loss=0.01, **options)
        found = linear(*(tensors[name] for name in ("input", "target_input", "target_weight", "target_bias")))
        assert torch.equal(found, wanted)
    with pytest.raises(ObjectiveError, match="temperature"):
        xent.torch.KLDivergenceLoss(temperature=-1.0)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"beta": 0.5}, ObjectiveError, "Use js_divergence"),
        ({"label_smoothing": 0.1}, ObjectiveError, "higher temperature"),
        ({"weight": torch.ones(6)}, ObjectiveError, "sample_weight"),
        ({"focal_gamma": 2.0}, ObjectiveError, "sample_weight"),
        ({"temperature": 0.0}, ObjectiveError, "above 0"),
        ({"temperature": "hot"}, ObjectiveError, "above 0"),
        ({"temperature": 1e200, "temperature_squared": True}, ObjectiveError, "square"),
        ({"direction": "sideways"}, ObjectiveError, "direction.*'forward' or 'reverse'"),
        ({"reduction": "batchmean"}, ObjectiveError, "'none', 'sum' or 'mean'"),
        ({"temprature": 2.0}, ObjectiveError, "The options are direction, temperature"),
        ({"labels": torch.ones(4)}, DTypeError, "torch.where"),
        ({"labels": torch.ones(3, dtype=torch.int64)}, ShapeError, "one label for each row"),
        ({"sample_weight": torch.ones(3)}, ShapeError, "one weight for each loss"),
    ],
)
def test_what_has_no_meaning_is_an_error_with_a_remedy(options, error, says):
    with pytest.raises(error, match=rf"kl_divergence\(.*{says}"):
        xent.torch.kl_divergence(random(4, 6), random(4, 6), **options)


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.5, float("nan")])
def test_the_ends_of_beta_point_to_the_kl_divergence(beta):
    for front, x in ((xent.torch, random(4, 6)), (xent.numpy, random(4, 6).numpy())):
        with pytest.raises(ObjectiveError, match=r"beta.*kl_divergence"):
            front.js_divergence(x, x, beta=beta)


def test_shapes_have_to_fit():
    with pytest.raises(ShapeError, match="one for each of the student's"):
        xent.torch.kl_divergence(random(4, 6), random(4, 5))
    with pytest.raises(ShapeError, match="single number"):
        xent.torch.kl_divergence(torch.tensor(1.0), torch.tensor(1.0))
    tensors = layers(torch.float32)
    for name, wrong in (
        ("target_weight", random(69, 12)),
        ("target_input", random(49, 12)),
        ("target_bias", random(3)),
    ):
        with pytest.raises(ShapeError, match=name):
            xent.torch.linear_kl_divergence(**{**tensors, name: wrong.float()})
        with pytest.raises(ShapeError, match=name):
            xent.numpy.linear_kl_divergence(**{k: t.numpy() for k, t in {**tensors, name: wrong.float()}.items()})
    with pytest.raises(DTypeError, match="target_input"):
        xent.torch.linear_kl_divergence(**{**tensors, "target_input": tensors["target_input"].double()})
