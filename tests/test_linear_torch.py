"""The loss of a linear layer through the torch front: every option, dtype, transformation and edge."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import EVERY_REDUCTION, FEW_KEYWORDS, KEYWORDS
from torch import Tensor, nn

import xent
from xent.backends.cpu.linear_steps import CpuSteps
from xent.linear.backend import Losses
from xent.linear.sampling import Sampling
from xent.torch import (
    LinearCrossEntropyLoss,
    cross_entropy,
    linear_cross_entropy,
    linear_statistics,
    statistics,
)

KINDS = ["labels", "probabilities"]
ROWS, FEATURES, CLASSES = 5, 3, 4


def tensors(rows=ROWS, features=FEATURES, classes=CLASSES, dtype=torch.float64, seed=0):
    """Input, weight and bias."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, features), (classes, features), (classes,))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def target_of(kind: str, rows=ROWS, classes=CLASSES) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if kind == "probabilities":
        return torch.softmax(torch.randn(rows, classes, dtype=torch.float64, generator=generator), -1)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    labels[1:2] = -100
    return labels


def unfused(x, w, y, *, linear_bias=None, **options):
    """What the fused loss replaces."""
    return cross_entropy(F.linear(x, w, linear_bias), y, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", FEW_KEYWORDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_of_first_and_second_order_are_those_of_the_loss(kind, options, weighted):
    x, w, b = tensors()
    weight = torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=torch.float64) if weighted else None
    y = target_of(kind)
    y = y.requires_grad_() if kind == "probabilities" else y
    for reduction in EVERY_REDUCTION:

        def loss(x, w, b, y, reduction=reduction):
            given = {"linear_bias": b, "weight": weight, "reduction": reduction, "workspace": 4096}
            return linear_cross_entropy(x, w, y, **given, **KEYWORDS[options])

        assert torch.autograd.gradcheck(loss, (x, w, b, y))
        assert torch.autograd.gradgradcheck(loss, (x, w, b, y))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", KEYWORDS)
@pytest.mark.parametrize("reduction", EVERY_REDUCTION)
@pytest.mark.parametrize("sizes", [(5, 3, 4), (17, 5, 300), (1, 1, 1), (0, 3, 4), (3, 7, 1)])
def test_values_and_gradients_are_those_without_fusion(kind, options, reduction, sizes):
    rows, _, classes = sizes
    results = []
    for function in (unfused, linear_cross_entropy):
        x, w, b = tensors(*sizes)
        more = {"workspace": 40_000} if function is linear_cross_entropy else {}
        y = target_of(kind, rows, classes)
        loss = function(x, w, y, linear_bias=b, reduction=reduction, **KEYWORDS[options], **more)
        upstream = torch.linspace(1, 2, max(1, loss.numel()), dtype=torch.float64)[: loss.numel()].reshape(loss.shape)
        results.append((loss.detach(), *torch.autograd.grad(loss, (x, w, b), 3 * upstream)))
    for theirs, ours in zip(*results, strict=True):
        # Sums over classes and rows in another order: a few dozen roundings of float64.
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13, equal_nan=True)


@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (2, 1, 3), (0, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_any_leading_shape(shape, kind):
    count = int(torch.tensor(shape).prod()) if shape else 1
    x, w, _ = tensors(count)
    y = target_of(kind, count)
    y = y.reshape(*shape, CLASSES) if kind == "probabilities" else y.reshape(shape)
    losses = linear_cross_entropy(x.reshape(*shape, FEATURES), w, y, reduction="none")
    assert losses.shape == shape
    flat = linear_cross_entropy(
        x, w, y.reshape(-1, CLASSES) if kind == "probabilities" else y.reshape(-1), reduction="none"
    )
    assert torch.equal(losses.reshape(-1), flat)
    losses.sum().backward()
    assert x.grad.shape == x.shape


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_dtypes_of_results_and_errors_no_greater_than_without_fusion(dtype, has_bias):
    """At most 1.5 times the error of the unfused computation in the same dtype, for one chunk and for many."""
    sizes = (96, 64, 1000)
    y = target_of("labels", 96, 1000)
    exact_x, exact_w, exact_b = (t.detach().to(dtype).double().requires_grad_() for t in tensors(*sizes))
    exact = F.cross_entropy(F.linear(exact_x, exact_w, exact_b if has_bias else None), y, reduction="sum")
    wanted = (exact_x, exact_w, exact_b) if has_bias else (exact_x, exact_w)
    truth = (exact.detach(), *torch.autograd.grad(exact, wanted))

    def errors(function, **more):
        x, w, b = (t.detach().to(dtype).requires_grad_() for t in tensors(*sizes))
        loss = function(x, w, y, linear_bias=b if has_bias else None, reduction="sum", **more)
        found = (loss.detach(), *torch.autograd.grad(loss, (x, w, b) if has_bias else (x, w)))
        assert [t.dtype for t in found] == [torch.float32, *[dtype] * (len(found) - 1)]
        return [(ours.double() - t).norm().item() / t.norm().item() for ours, t in zip(found, truth, strict=True)]

    def theirs(x, w, y, *, linear_bias, reduction):
        return F.cross_entropy(F.linear(x, w, linear_bias).float(), y, reduction=reduction)

    bars = errors(theirs)
    for workspace in (10**8, 150_000):
        names = ["loss", "input", "weight", "bias"][: len(bars)]
        for name, error, bar in zip(names, errors(linear_cross_entropy, workspace=workspace), bars, strict=True):
            # One number may be lucky: the loss is held to 4 roundings of a float32 sum as well.
            floor = 4 * torch.finfo(torch.float32).eps if name == "loss" else 0.0
            assert error <= max(1.5 * bar, floor), (name, workspace, error, bar)


def test_backward_twice_and_other_upstream_gradients():
    x, w, b = tensors(64, 16, 300, torch.float32)
    y = target_of("labels", 64, 300)
    loss = linear_cross_entropy(x, w, y, linear_bias=b, workspace=60_000)
    first = torch.autograd.grad(loss, (x, w, b), retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    for gradient in first:
        gradient.mul_(0)  # what a caller may do to a gradient that is his
    second = torch.autograd.grad(loss, (x, w, b), retain_graph=True)
    doubled = torch.autograd.grad(loss, (x, w, b), torch.tensor(2.0), retain_graph=True)
    other = torch.autograd.grad(loss, (x, w, b), torch.tensor(0.3))
    for one, two, twice, third in zip(kept, second, doubled, other, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(twice, 2 * one)
        assert torch.equal(third, 0.3 * one)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("upstream", [1.0, 0.25, 0.3, 65536.0])
def test_the_first_backward_may_have_any_upstream_gradient(dtype, upstream):
    results = []
    for function in (linear_cross_entropy, unfused):
        x, w, _ = tensors(32, 16, 200, dtype)
        y = target_of("labels", 32, 200)
        results.append(torch.autograd.grad(function(x, w, y), (x, w), torch.tensor(upstream)))
    for ours, theirs in zip(*results, strict=True):
        size = theirs.double().abs().max().item()
        assert (ours.double() - theirs.double()).abs().max().item() <= 8 * torch.finfo(dtype).eps * size


def test_each_row_has_its_own_upstream_gradient_without_reduction():
    """Liger-Kernel #968 and #678 scaled every row by the first row's."""
    x, w, _ = tensors()
    losses = linear_cross_entropy(x, w, target_of("labels"), reduction="none", workspace=2000)
    upstream = torch.tensor([1.0, 2.0, 0.0, -3.0, 0.5], dtype=torch.float64)
    (ours,) = torch.autograd.grad(losses, x, upstream)
    (theirs,) = torch.autograd.grad(unfused(x, w, target_of("labels"), reduction="none"), x, upstream)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("frozen", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_what_is_frozen_is_not_computed(frozen, reduction, monkeypatch):
    steps = []
    kinds = {"input_gradient": CpuSteps, "weight_gradient": CpuSteps, "bias_gradient": CpuSteps}
    for step, kind in {**kinds, "visit_with_gradient": Losses}.items():
        original = getattr(kind, step)

        def counted(self, *given, step=step, original=original):
            steps.append(step)
            return original(self, *given)

        monkeypatch.setattr(kind, step, counted)
    leaves = tensors()
    for leaf, is_frozen in zip(leaves, frozen, strict=True):
        leaf.requires_grad_(not is_frozen)
    x, w, b = leaves
    loss = linear_cross_entropy(x, w, target_of("labels"), linear_bias=b, reduction=reduction).sum()
    assert loss.requires_grad == (not all(frozen))
    if loss.requires_grad:
        loss.backward()
        names = ("input_gradient", "weight_gradient", "bias_gradient")
        assert set(steps) - {"visit_with_gradient"} == {
            n for n, is_frozen in zip(names, frozen, strict=True) if not is_frozen
        }
    else:
        assert steps == []
    assert [leaf.grad is None for leaf in leaves] == list(frozen)


def test_evaluation_makes_no_gradient(monkeypatch):
    monkeypatch.setattr(Losses, "visit_with_gradient", None)
    x, w, _ = tensors()
    with torch.no_grad():
        assert not linear_cross_entropy(x, w, target_of("labels")).requires_grad
    linear_cross_entropy(x.detach(), w.detach(), target_of("labels"))


def test_tied_weights_get_both_gradients():
    """The embedding is the head: its gradient has two parts, also under a second derivative."""
    tokens = torch.tensor([0, 2, 1, 3])
    for function in (linear_cross_entropy, unfused):
        table = tensors()[1].detach().clone().requires_grad_()
        hidden = torch.tanh(F.embedding(tokens, table))
        (first,) = torch.autograd.grad(function(hidden, table, tokens.roll(1)), table, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), table)
        results = (first, second) if function is linear_cross_entropy else results  # noqa: F821
        if function is unfused:
            for ours, theirs in zip(results, (first, second), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("workspace", ["1MB", 6000])
def test_ignored_rows_may_have_logits_beyond_all_numbers(workspace):
    """Their gradient takes the place of logits that are infinite or NaN, which must not show through."""
    x, w, b = tensors(9, 16, 300, torch.float32)
    y = target_of("labels", 9, 300)
    with torch.no_grad():
        x[1] = 1e30
        w[0] = 1e20
    loss = linear_cross_entropy(x[1:2], w, y[1:2], linear_bias=b, reduction="sum", workspace=workspace)
    assert loss == 0
    for gradient in torch.autograd.grad(loss, (x, w, b)):
        assert torch.count_nonzero(gradient) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_multiplies_in_16_bits_and_sums_in_32(dtype):
    x, w, b = tensors(64, 32, 300, torch.float32)
    y = target_of("labels", 64, 300)
    exact = torch.autograd.grad(unfused(*[t.double() for t in (x, w)], y, linear_bias=b.double()), (x, w, b))
    errors = []
    for function, more in ((linear_cross_entropy, {"workspace": 60_000}), (unfused, {})):
        with torch.autocast("cpu", dtype=dtype):
            loss = function(x, w, y, linear_bias=b, **more)
        gradients = torch.autograd.grad(loss, (x, w, b))
        assert [g.dtype for g in gradients] == [torch.float32] * 3
        errors.append([(g - e).norm().item() for g, e in zip(gradients, exact, strict=True)])
    for ours, theirs in zip(*errors, strict=True):
        assert ours <= 1.5 * theirs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", EVERY_REDUCTION)
def test_compiled_without_a_graph_break(kind, reduction):
    def loss(x, w, b, y):
        options = {"label_smoothing": 0.1, "z_loss": 0.01, "reduction": reduction, "workspace": 4096}
        return linear_cross_entropy(2 * x, w, y, linear_bias=b, **options)

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        x, w, b = tensors()
        value = function(x, w, b, target_of(kind))
        (0.3 * value).sum().backward()
        results.append((value.detach(), x.grad, w.grad, b.grad))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-13, atol=1e-14)


def test_compiled_statistics_and_frozen_weights():
    def total(x, w, y):
        found = linear_statistics(2 * x, w, y, workspace=4096)
        return (found.log_prob + 0.1 * found.entropy - found.lse).sum() + linear_cross_entropy(x, w, y)

    results = []
    for function in (total, torch.compile(total, fullgraph=True, backend="aot_eager")):
        x, w, _ = tensors()
        w = w.detach()
        value = function(x, w, target_of("labels"))
        value.backward()
        results.append((value.detach(), x.grad))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-13, atol=1e-14)


def test_function_transforms():
    x, w, b = (t.detach() for t in tensors())
    y = target_of("labels")
    for argument in range(3):
        ours, theirs = (
            torch.func.grad(lambda x, w, b, f=f: f(x, w, y, linear_bias=b), argnums=argument)(x, w, b)
            for f in (linear_cross_entropy, unfused)
        )
        torch.testing.assert_close(ours, theirs)
    per_row = torch.func.vmap(torch.func.grad(lambda v, t: linear_cross_entropy(v, w, t, reduction="sum")))(x, y)
    jacobian = torch.autograd.functional.jacobian(lambda v: linear_cross_entropy(v, w, y, reduction="none"), x)
    torch.testing.assert_close(per_row, jacobian.sum(0))


def test_other_devices_run_the_formula():
    x, w = (
        torch.empty(shape, device="meta", dtype=torch.bfloat16, requires_grad=True) for shape in ((2, 3, 8), (5, 8))
    )
    y = torch.empty(2, 3, device="meta", dtype=torch.int64)
    loss = linear_cross_entropy(x, w, y, label_smoothing=0.1, softcap=2.0)
    gradients = torch.autograd.grad(loss, (x, w))
    assert loss.dtype == torch.float32
    assert [(g.shape, g.dtype) for g in gradients] == [(t.shape, t.dtype) for t in (x, w)]
    assert linear_statistics(x, w, y).entropy.shape == y.shape


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
def test_statistics_are_those_of_the_logits(softcap, dtype):
    x, w, b = tensors(37, 8, 2100, dtype)
    y = target_of("labels", 37, 2100)
    ours = linear_statistics(x, w, y, linear_bias=b, softcap=softcap, logit_scale=0.5, workspace=400_000)
    logits = F.linear(x, w, b)
    theirs = statistics(logits, y, softcap=softcap, logit_scale=0.5)
    eps = torch.finfo(dtype).eps
    for mine, other in zip(ours[:3], theirs[:3], strict=True):
        assert mine.dtype == other.dtype
        torch.testing.assert_close(mine, other, rtol=8 * eps, atol=40 * eps)
    if dtype == torch.float64:
        assert torch.equal(ours.argmax, theirs.argmax)
        assert torch.equal(ours.rank, theirs.rank)
    upstream = [torch.linspace(-1, 1, 37).to(ours.lse.dtype) * k for k in (1.0, 0.5, 0.25)]
    wide = [t.detach().double().requires_grad_() for t in (x, w, b)]
    exact = statistics(F.linear(*wide), y, softcap=softcap, logit_scale=0.5)[:3]
    truth = torch.autograd.grad(exact, wide, [u.double() for u in upstream])
    gradients = [torch.autograd.grad(found[:3], (x, w, b), upstream) for found in (ours, theirs)]
    for mine, other, true in zip(*gradients, truth, strict=True):
        assert (mine.double() - true).norm() <= 1.5 * (other.double() - true).norm() + 16 * eps * true.norm()


def test_statistics_are_differentiable_twice_and_by_each_alone():
    x, w, b = tensors()
    y = target_of("labels")

    def real(x, w, b):
        return linear_statistics(x, w, y, linear_bias=b, softcap=2.0, workspace=4096)[:3]

    assert torch.autograd.gradcheck(real, (x, w, b))
    assert torch.autograd.gradgradcheck(real, (x, w, b))
    for index in range(3):  # the other two get no gradient from above
        (ours,) = torch.autograd.grad(real(x, w, b)[index].sum(), x)
        (theirs,) = torch.autograd.grad(statistics(F.linear(x, w, b), y, softcap=2.0)[index].sum(), x)
        torch.testing.assert_close(ours, theirs)


def test_masked_classes_have_no_entropy_and_no_gradient():
    """TRL returned an entropy without its gradient; TRL #7252 and SkyRL #2259 made it NaN with masked classes."""
    x, w, b = tensors()
    with torch.no_grad():
        b[2] = -torch.inf
    found = linear_statistics(x, w, torch.tensor([0, 1, 3, 0, 1]), linear_bias=b)
    assert torch.isfinite(found.entropy).all()
    found.entropy.sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in (x, w, b))
    assert w.grad[2].abs().max() == 0
    assert w.grad.abs().max() > 0


def test_training_follows_the_unfused_loss_step_by_step():
    torch.manual_seed(0)
    tokens = torch.randint(0, 50, (40, 9))
    start = nn.Sequential(nn.Embedding(50, 16), nn.Tanh()).double()
    curves = []
    for function in (linear_cross_entropy, unfused):
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
        losses = []
        for _ in range(60):
            optimizer.zero_grad()
            loss = function(model(tokens[:, :-1]).reshape(-1, 16), model[0].weight, tokens[:, 1:].reshape(-1))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0][-1] < 0.9 * curves[0][0]
    # Rounding differs by some 1e-16 and the steps of training amplify it.
    assert curves[0] == pytest.approx(curves[1], rel=1e-9)


def test_module_owns_its_layer_and_can_be_tied():
    loss = LinearCrossEntropyLoss(FEATURES, CLASSES, bias=True, weight=torch.ones(CLASSES), label_smoothing=0.1)
    assert sorted(loss.state_dict()) == ["linear.bias", "linear.weight", "weight"]
    embedding = nn.Embedding(CLASSES, FEATURES)
    loss.linear.weight = embedding.weight
    loss(embedding(torch.tensor([[0, 1]])), torch.tensor([[1, 2]])).backward()
    assert embedding.weight.grad.shape == (CLASSES, FEATURES)
    with pytest.raises(xent.XentError, match="label_smothing"):
        LinearCrossEntropyLoss(3, 4, label_smothing=0.1)
    with pytest.raises(xent.XentError, match="workspace"):
        LinearCrossEntropyLoss(3, 4, workspace="much")


def _bad(**changes):
    given = {"input": torch.ones(2, 3), "linear_weight": torch.ones(4, 3), "target": torch.tensor([0, 1])}
    return {**given, **changes}


BAD = {
    "not a tensor": (_bad(input=[[0.0]]), "input.*list.*xent.numpy"),
    "features": (_bad(linear_weight=torch.ones(4, 2)), r"linear_weight.*\(4, 2\).*\(2, 3\)"),
    "bias": (_bad(linear_bias=torch.ones(3)), r"linear_bias.*\(3,\).*\(4,\)"),
    "label too great": (_bad(target=torch.tensor([0, 4])), r"class index 4 at row 1 .*0, 4.*ignore_index=4"),
    "target's shape": (_bad(target=torch.tensor([0])), r"target.*\(1,\).*\(2, 4\)"),
    "integer input": (_bad(input=torch.ones(2, 3, dtype=torch.int64)), "input.*int64.*float"),
    "dtypes differ": (_bad(linear_weight=torch.ones(4, 3).bfloat16()), "linear_weight.*bfloat16.*float32.*autocast"),
    "wrong weight": (_bad(weight=torch.ones(2)), r"weight.*\(2,\).*\(4,\)"),
    "unknown option": (_bad(smoothing=1), "smoothing.*label_smoothing"),
    "ignored probabilities": (_bad(target=torch.ones(2, 4) / 4, ignore_index=1), "ignore_index=1"),
    "no workspace": (_bad(workspace="a lot"), "workspace.*'a lot'.*128MB"),
    "negative workspace": (_bad(workspace=-1), "workspace.*-1"),
    "small workspace": (_bad(workspace=100), "workspace.*100 bytes.*at least"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument_and_the_remedy(case):
    arguments, pattern = BAD[case]
    with pytest.raises(xent.XentError, match=pattern):
        linear_cross_entropy(**arguments)


def test_labels_are_checked_where_gradients_are_made():
    x, w, _ = tensors()
    y = torch.tensor([0, 1, 2, 9, 0])
    for call in (linear_cross_entropy, linear_statistics):
        with pytest.raises(xent.errors.LabelError, match=rf"{call.__name__}.*class index 9 at row 3"):
            call(x, w, y)


def test_operators_pass_torchs_own_checks():
    x, w, b = tensors()
    y, objective = target_of("labels"), xent.Objective(label_smoothing=0.1)
    tail = (objective.to_text(), 4096, torch.float64)
    for sampling in ((), (torch.tensor(3), Sampling(2.0**-4, None).to_text())):
        arguments = (x, w, b, y, None, *tail, [True, True, True], *sampling)
        torch.library.opcheck(torch.ops.xent.linear_cross_entropy, arguments)
    torch.library.opcheck(torch.ops.xent.linear_statistics, (x, w, b, y, *tail))
