"""Gradients of a linear layer from entries rounded at random: unbiased, of the variance that is told, the same however
they are computed.

With the unit matrix as input the gradient of the weight is the gradient of the logits, transposed: most tests look at
that.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import xent
from xent.backends.cpu import sampled_steps
from xent.errors import ArgumentError
from xent.linear.sampling import THRESHOLD
from xent.torch import GradientReport, LinearCrossEntropyLoss, linear_cross_entropy
from xent.torch.deferred import defer_logits

ROWS, CLASSES = 24, 600
SEEDS = 4096
EPS = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}


def layer(rows=ROWS, classes=CLASSES, dtype=torch.float64, spread=3.0):
    """A unit matrix as input, logits as weight, and labels of which one is ignored."""
    generator = torch.Generator().manual_seed(7)
    logits = spread * torch.randn(classes, rows, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (rows,), generator=generator)
    labels[3] = -100
    return torch.eye(rows, dtype=dtype), logits.to(dtype).requires_grad_(), labels


def of_logits(x, w, y, **options):
    """The gradient of the logits, (rows, classes)."""
    return torch.autograd.grad(linear_cross_entropy(x, w, y, **options), w)[0].T.double().numpy()


def by_definition(exact, limits, labels, seed):
    """The rounded gradient in plain Python, number by number, from the documented hash."""
    word, half, found = 2**64 - 1, 2**32 - 1, exact.copy()
    for r, j in itertools.product(*map(range, exact.shape)):
        g = exact[r, j]
        if abs(g) >= limits[r] or labels[r] == j:
            continue
        key = (seed * 0x94D049BB133111EB + (r + 1) * 0x9E3779B97F4A7C15) & word
        key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & word
        key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & word
        key ^= key >> 31
        draw = ((j * 0x9E3779B1) & half) ^ (key >> 32)
        draw = ((draw ^ (draw >> 16)) * 0x7FEB352D) & half
        draw = ((draw ^ (draw >> 15)) + (key & half)) & half
        draw = ((draw ^ (draw >> 13)) * 0x846CA68B) & half
        draw = (draw ^ (draw >> 16)) >> 1
        found[r, j] = np.sign(g) * limits[r] if draw < abs(g) / limits[r] * 2.0**31 else 0.0
    return found


def rounding(exact, limit, labels):
    """Of each entry: whether it is rounded, and the variance of that."""
    small = np.abs(exact) < limit
    if labels is not None:
        small[np.arange(len(exact)), labels.clip(0)] = False
    return small, np.where(small, np.abs(exact) * (limit - np.abs(exact)), 0.0)


def assert_unbiased(mean, exact, limit, labels, count):
    """The mean of so many draws is the exact gradient within its standard error: of each row, and on the whole."""
    small, variance = rounding(exact, limit, labels)
    np.testing.assert_allclose(mean[~small], exact[~small], rtol=1e-11)
    share = np.abs(exact[small & (exact != 0)]) / limit
    squares = (mean - exact)[small & (exact != 0)] ** 2 / (variance[small & (exact != 0)] / count)
    # The sum of squares of means of so many draws of 0 or 1, whose excess kurtosis is that of a binomial number.
    spread = np.sqrt((2 + (1 / (share * (1 - share)) - 6) / count).sum())
    assert squares.size > 1000
    assert abs(squares.sum() - squares.size) < 5 * spread
    of_rows = (mean - exact).sum(1) / np.sqrt(np.maximum(variance.sum(1), 1e-300) / count)
    assert np.abs(of_rows).max() < 5


@pytest.mark.parametrize("threshold", [2.0**-5, THRESHOLD])
def test_entries_are_those_of_the_definition(threshold):
    x, w, y = layer()
    exact = of_logits(x, w, y, reduction="sum")
    found = of_logits(x, w, y, reduction="sum", gradient="sampled", threshold=threshold, seed=11)
    limits = np.full(ROWS, threshold)
    assert np.array_equal(found, by_definition(exact, limits, y.numpy(), 11))
    small = (np.abs(exact) < threshold) & (exact != 0)
    small[np.arange(ROWS), y.clip(0)] = False
    assert small.sum() > 1000
    assert 0 < (found[small] != 0).mean() < 1
    assert set(np.unique(found[small])) <= {0.0, threshold, -threshold}


@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_the_mean_over_seeds_is_the_exact_gradient_and_dropping_is_found_out(spread):
    x, w, y = layer(rows=8, spread=spread)
    exact = of_logits(x, w, y, reduction="sum")
    limit = 2.0**-9
    small, variance = rounding(exact, limit, y.numpy())
    drawn = np.zeros((2, *exact.shape))
    for seed in range(SEEDS):
        found = of_logits(x, w, y, reduction="sum", gradient="sampled", threshold=limit, seed=seed)
        drawn += found, (found - exact) ** 2
    mean, squares = drawn / SEEDS
    assert_unbiased(mean, exact, limit, y.numpy(), SEEDS)
    # The formula of the variance against the draws, within the standard error of their squares.
    g = np.where(small, np.abs(exact), 0.0)
    fourth = (g / limit * (limit - g) ** 4 + (1 - g / limit) * g**4).sum(1)
    assert np.all(np.abs(squares.sum(1) - variance.sum(1)) <= 5 * np.sqrt(fourth / SEEDS) + 1e-18)
    with pytest.raises(AssertionError):
        assert_unbiased(np.where(small, 0.0, exact), exact, limit, y.numpy(), SEEDS)
    with pytest.raises(AssertionError):  # a hundredth of the small entries is missing
        assert_unbiased(mean - 0.01 * g * np.sign(exact), exact, limit, y.numpy(), SEEDS)


def test_the_report_has_what_is_left_and_the_variance():
    x, w, y = layer()
    exact = of_logits(x, w, y)
    report = GradientReport()
    found = of_logits(x, w, y, gradient="sampled", threshold=2.0**-8, seed=5, report=report)
    variance = rounding(exact, 2.0**-8 / (ROWS - 1), y.numpy())[1].sum(1)
    counted = (found != 0).sum(1)
    assert np.array_equal(report.kept[y >= 0], counted[y >= 0])
    assert report.kept[3] == counted[3] == 0
    np.testing.assert_allclose(report.variance, variance, rtol=1e-12)
    assert report.density == pytest.approx(report.kept.sum() / exact.size)
    assert report.classes == CLASSES


def test_the_loss_and_the_gradient_of_the_bias_are_exact():
    generator = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(n, generator=generator).requires_grad_() for n in ((40, 8), (500, 8), (500,)))
    y = torch.randint(500, (40,), generator=generator)
    losses, gradients = [], []
    for how in ("exact", "sampled"):
        loss = linear_cross_entropy(x, w, y, linear_bias=b, gradient=how, z_loss=0.01, label_smoothing=0.1)
        losses.append(loss.item())
        gradients.append(torch.autograd.grad(loss, (x, w, b)))
    assert losses[0] == losses[1]
    assert torch.equal(gradients[0][2], gradients[1][2])
    assert not torch.equal(gradients[0][0], gradients[1][0])
    assert not torch.equal(gradients[0][1], gradients[1][1])


def random_layer(dtype=torch.float32, rows=200, features=48, classes=4000, spread=1.0):
    """Of which few entries are left at the usual threshold."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, features, generator=generator).to(dtype).requires_grad_()
    w = (spread * torch.randn(classes, features, generator=generator)).to(dtype).requires_grad_()
    return x, w, torch.randint(classes, (rows,), generator=generator)


def gradients(x, w, y, **options):
    return torch.autograd.grad(linear_cross_entropy(x, w, y, **options), (x, w))


def assert_close(found, wanted, dtype):
    """Apart by rounding: that of logits, which here are below 60, is a relative one of 60 eps in their exponentials."""
    for one, other in zip(found, wanted, strict=True):
        bound = 64 * EPS[dtype] * other.double().abs().max()
        assert (one.double() - other.double()).abs().max() <= bound


@pytest.mark.parametrize("dtype", list(EPS))
@pytest.mark.parametrize("workspace", ["128MB", "2MB", 300_000])
def test_neither_chunks_nor_threads_nor_the_kind_of_products_matter(dtype, workspace, monkeypatch):
    x, w, y = random_layer(dtype)
    report, threads = GradientReport(), torch.get_num_threads()
    wanted = gradients(x, w, y, gradient="sampled", seed=9, report=report)
    assert not report.is_dense.any()
    assert report.density < 1 / 8
    try:
        torch.set_num_threads(1)
        again = gradients(x, w, y, gradient="sampled", seed=9, workspace=workspace)
    finally:
        torch.set_num_threads(threads)
    assert_close(again, wanted, dtype)
    monkeypatch.setattr(sampled_steps, "MOST_ROWS", 0)
    dense = GradientReport()
    assert_close(gradients(x, w, y, gradient="sampled", seed=9, workspace=workspace, report=dense), wanted, dtype)
    assert dense.is_dense.all()
    assert np.array_equal(dense.kept, report.kept)
    np.testing.assert_allclose(dense.variance, report.variance, rtol=1e-4 if dtype != torch.float64 else 1e-12)


def test_products_are_dense_where_many_entries_are_left_or_a_matrix_lies_across():
    x, w, y = random_layer(classes=300)
    report = GradientReport()
    found = gradients(x, w, y, gradient="sampled", seed=1, threshold=2.0**-16, report=report)
    assert report.is_dense.all()
    x, w, y = random_layer()
    across = w.detach().T.contiguous().T.requires_grad_()
    found = gradients(x, across, y, gradient="sampled", seed=1, report=report)
    assert report.is_dense.all()
    assert_close(found, gradients(x, w, y, gradient="sampled", seed=1), torch.float32)


@pytest.mark.parametrize("dtype", list(EPS))
def test_parts_of_a_weight_repeat_their_entries(dtype):
    x, w, y = random_layer(dtype, rows=600, classes=1000, features=64, spread=2.0)
    wanted = gradients(x, w, y, gradient="sampled", seed=2)
    assert_close(gradients(x, w, y, gradient="sampled", seed=2, workspace=230_000), wanted, dtype)


@pytest.mark.parametrize(("how", "is_exact"), [("sampled input", 1), ("sampled weight", 0)])
@pytest.mark.parametrize("classes", [300, 4000])
def test_one_of_the_gradients_alone_can_be_sampled(how, is_exact, classes):
    x, w, y = random_layer(torch.float64, classes=classes)
    exact, both = gradients(x, w, y), gradients(x, w, y, gradient="sampled", seed=4)
    found = gradients(x, w, y, gradient=how, seed=4)
    other = 1 - is_exact
    assert_close(found[is_exact : is_exact + 1], exact[is_exact : is_exact + 1], torch.float64)
    assert_close(found[other : other + 1], both[other : other + 1], torch.float64)


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_part_has_no_gradient_and_changes_nothing(frozen):
    x, w, y = random_layer()
    wanted = gradients(x, w, y, gradient="sampled", seed=4)[1 - frozen]
    (x, w)[frozen].requires_grad_(False)
    found = torch.autograd.grad(linear_cross_entropy(x, w, y, gradient="sampled", seed=4), (x, w)[1 - frozen])[0]
    assert_close((found,), (wanted,), torch.float32)


def test_limits_follow_the_scale_of_each_row():
    x, w, y = layer()
    weights = torch.linspace(0.25, 3.0, ROWS, dtype=torch.float64)
    classes = torch.linspace(0.5, 2.0, CLASSES, dtype=torch.float64)
    for options, scale in (
        ({"sample_weight": weights, "reduction": "sum"}, weights.numpy()),
        ({"weight": classes, "reduction": "sum"}, classes[y.clip(0)].numpy()),
        ({"logit_scale": 0.5, "reduction": "sum"}, np.full(ROWS, 0.5)),
        ({"denominator": 8.0}, np.full(ROWS, 0.125)),
    ):
        report = GradientReport()
        exact = of_logits(x, w, y, **options)
        found = of_logits(x, w, y, gradient="sampled", seed=6, threshold=2.0**-7, report=report, **options)
        wanted = by_definition(exact, 2.0**-7 * scale, y.numpy(), 6)
        # A limit is the product of numbers in another order: equal to rounding, and rarely on the other side of a draw.
        assert (np.abs(found - wanted) > 1e-15).mean() < 1e-3
    losses = linear_cross_entropy(x, w, y, reduction="none", gradient="sampled", seed=6, threshold=2.0**-7)
    by_rows = torch.autograd.grad((losses * weights).sum(), w)[0].T.numpy()
    together = of_logits(x, w, y, sample_weight=weights, reduction="sum", gradient="sampled", seed=6, threshold=2.0**-7)
    np.testing.assert_allclose(by_rows, together, rtol=1e-13, atol=1e-18)


def test_the_focal_factor_and_an_upstream_gradient_scale_the_limits():
    x, w, y = layer()
    options = {"gradient": "sampled", "seed": 6, "threshold": 2.0**-7}
    exact = of_logits(x, w, y, focal_gamma=2.0, reduction="sum")
    found = of_logits(x, w, y, focal_gamma=2.0, reduction="sum", **options)
    assert (found == 0).sum() > (exact == 0).sum()
    loss = linear_cross_entropy(x, w, y, **options)
    scaled = torch.autograd.grad(1024.0 * loss, w)[0]
    assert torch.equal(scaled, 1024.0 * torch.autograd.grad(linear_cross_entropy(x, w, y, **options), w)[0])


@pytest.mark.parametrize("kind", ["probabilities", "sparse"])
def test_other_targets_are_rounded_without_bias(kind):
    x, w, _ = layer(rows=8)
    p = torch.softmax(torch.linspace(0, 3, CLASSES, dtype=torch.float64), 0).expand(8, CLASSES)
    target = p if kind == "probabilities" else xent.torch.SparseTarget(torch.arange(16).expand(8, 16), probs=p[:, -16:])
    exact = of_logits(x, w, target, reduction="sum")
    limit, mean = 2.0**-6, np.zeros_like(exact)
    for seed in range(512):
        mean += of_logits(x, w, target, reduction="sum", gradient="sampled", threshold=limit, seed=seed) / 512
    assert_unbiased(mean, exact, limit, None, 512)


# ------------------------------------------------------------------------------------------------ seeds and ways to run


def test_a_seed_repeats_its_gradient_and_none_draws_from_the_generator():
    x, w, y = random_layer()
    first, again, other = (gradients(x, w, y, gradient="sampled", seed=seed) for seed in (1, torch.tensor(1), 2))
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    torch.manual_seed(5)
    first, second = (gradients(x, w, y, gradient="sampled") for _ in range(2))
    torch.manual_seed(5)
    again = gradients(x, w, y, gradient="sampled")
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, second))
    state = torch.get_rng_state()
    with torch.no_grad():
        linear_cross_entropy(x, w, y, gradient="sampled")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_code_gives_the_same_gradient_for_every_seed_without_compiling_again(reduction):
    torch._dynamo.reset()
    x, w, y = random_layer(rows=40, classes=1000)
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    def loss(x, w, y, seed):
        return linear_cross_entropy(x, w, y, gradient="sampled", seed=seed, reduction=reduction).sum()

    run = torch.compile(loss, backend=backend, fullgraph=True)
    for seed in (3, 4, 5):
        found = torch.autograd.grad(run(x, w, y, torch.tensor(seed)), (x, w))
        wanted = torch.autograd.grad(loss(x, w, y, seed), (x, w))
        assert_close(found, wanted, torch.float32)
    assert len(compiled) == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["aot_eager"])
def test_a_whole_compiler_keeps_the_operator(backend):
    torch._dynamo.reset()
    x, w, y = random_layer(rows=40, classes=1000)
    run = torch.compile(lambda x, w, y: linear_cross_entropy(x, w, y, gradient="sampled", seed=3), backend=backend)
    assert_close(
        torch.autograd.grad(run(x, w, y), (x, w)), gradients(x, w, y, gradient="sampled", seed=3), torch.float32
    )
    torch._dynamo.reset()


def test_a_checkpoint_repeats_its_draws():
    x, w, y = random_layer()
    torch.manual_seed(1)
    wanted = gradients(x, w, y, gradient="sampled")
    torch.manual_seed(1)
    loss = checkpoint(lambda x, w: linear_cross_entropy(x, w, y, gradient="sampled"), x, w, use_reentrant=False)
    assert all(map(torch.equal, torch.autograd.grad(loss, (x, w)), wanted))


def test_module_and_deferred_logits_take_the_option():
    x, w, y = random_layer()
    torch.manual_seed(2)
    wanted = gradients(x, w, y, gradient="sampled", threshold=2.0**-11)
    module = LinearCrossEntropyLoss(48, 4000, gradient="sampled", threshold=2.0**-11)
    assert "gradient='sampled', threshold=0.00048828125" in repr(module)
    head = torch.nn.Linear(48, 4000, bias=False)
    model = defer_logits(torch.nn.Sequential(head), "0", gradient="sampled", threshold=2.0**-11)
    for parameter, loss in (
        (module.linear.weight, lambda: module(x, y)),
        (head.weight, lambda: torch.nn.functional.cross_entropy(model(x), y)),
    ):
        with torch.no_grad():
            parameter.copy_(w)
        torch.manual_seed(2)
        assert all(map(torch.equal, torch.autograd.grad(loss(), (x, parameter)), wanted))


def test_numpy_gives_the_same():
    x, w, y = random_layer(torch.float64)
    report, of_numpy = GradientReport(), xent.numpy.GradientReport()
    wanted = gradients(x, w, y, gradient="sampled", seed=8, report=report)
    arrays = x.detach().numpy(), w.detach().numpy(), y.numpy()
    call = xent.numpy.linear_cross_entropy_value_and_grad
    loss, found = call(*arrays, gradient="sampled", seed=8, report=of_numpy)
    assert loss == pytest.approx(linear_cross_entropy(x, w, y).item(), rel=1e-14)
    assert_close([torch.from_numpy(g) for g in found[:2]], wanted, torch.float64)
    assert np.array_equal(of_numpy.kept, report.kept)
    np.random.seed(3)  # noqa: NPY002
    first, second = (call(*arrays, gradient="sampled")[1].input for _ in range(2))
    np.random.seed(3)  # noqa: NPY002
    assert np.array_equal(call(*arrays, gradient="sampled")[1].input, first)
    assert not np.array_equal(first, second)


# -------------------------------------------------------------------------------------------------------------- errors


def test_what_cannot_be_sampled_says_so():
    x, w, y = layer()
    for options, words in (
        ({"gradient": "rounded"}, "expected one of 'exact', 'sampled', 'sampled input', 'sampled weight'"),
        ({"threshold": 0.1}, "an exact gradient has none"),
        ({"seed": 0}, "gradient='sampled'"),
        ({"report": GradientReport()}, "gradient='sampled'"),
        ({"gradient": "sampled", "threshold": 0.0}, "above 0"),
        ({"gradient": "sampled", "threshold": "small"}, "above 0"),
        ({"gradient": "sampled", "seed": -1}, "0 or more"),
        ({"gradient": "sampled", "seed": torch.tensor(-1)}, "0 or more"),
        ({"gradient": "sampled", "seed": 1.5}, "expected an integer"),
        ({"gradient": "sampled", "seed": torch.zeros(2)}, "one integer"),
        ({"gradient": "sampled", "report": {}}, "GradientReport"),
    ):
        with pytest.raises(ArgumentError, match=words):
            linear_cross_entropy(x, w, y, **options)
    with pytest.raises(ArgumentError, match="expected an integer"):
        xent.numpy.linear_cross_entropy_value_and_grad(x, w.detach(), y, gradient="sampled", seed="1")
    with pytest.raises(ArgumentError, match="threshold"):
        LinearCrossEntropyLoss(4, 4, gradient="sampled", threshold=2.0)
    with pytest.raises(ArgumentError, match="gradient"):
        defer_logits(torch.nn.Sequential(torch.nn.Linear(4, 4)), "0", gradient="none")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_gradients_that_are_differentiated_or_transformed_are_refused():
    x, w, y = layer()

    def loss(w):
        return linear_cross_entropy(x, w, y, gradient="sampled", seed=1)

    with pytest.raises(ArgumentError, match="gradient='exact'"):
        torch.autograd.grad(loss(w), w, create_graph=True)
    with pytest.raises(ArgumentError, match="gradient='exact'"):
        torch.func.grad(loss)(w.detach())
    with pytest.raises(ArgumentError, match="gradient='exact'"):
        torch.func.jvp(loss, (w.detach(),), (torch.ones_like(w),))
    with pytest.raises(ArgumentError, match="gradient='exact'"):
        torch.autograd.functional.jacobian(lambda w: loss(w).expand(2) * 1.0, w.detach(), vectorize=True)
    with pytest.raises(ArgumentError, match="K dimensions"):
        linear_cross_entropy(
            torch.ones(2, 3, requires_grad=True), torch.ones(4, 5, 3), torch.zeros(2, 5, dtype=int), gradient="sampled"
        )
    with pytest.raises(ArgumentError, match="on this device"):
        linear_cross_entropy(x.to("meta"), w.to("meta"), y.to("meta"), gradient="sampled")
