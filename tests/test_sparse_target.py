"""Targets that list a few classes of each row: what they mean, what they cost, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import tracemalloc
from unittest import mock

import mpmath
import numpy as np
import pytest
import torch
from comparison import assert_within, eps

import xent.numpy
import xent.torch
from xent.backends import sparse_rows
from xent.errors import DistributionError, DTypeError, LabelError, ObjectiveError, ShapeError
from xent.sparse import SparseTarget

TAILS = ["drop", "renormalise", "uniform"]
ROWS, CLASSES, LISTED = 40, 300, 6
EVERYTHING = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 5.0, "logit_scale": 0.7}
OPTIONS = [{}, {"softcap": 5.0, "logit_scale": 0.7}, {"weight": True}, EVERYTHING, {**EVERYTHING, "weight": True}]


def logits(dtype: str = "float64", rows: int = ROWS) -> np.ndarray:
    return (3 * np.random.default_rng(1).standard_normal((rows, CLASSES))).astype(dtype)


def lists(rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    """Class indices, and probabilities of 0.6 to 1 in all."""
    rng = np.random.default_rng(2)
    ids = np.stack([rng.choice(CLASSES, LISTED, replace=False) for _ in range(rows)])
    p = rng.random((rows, LISTED)) + 0.05
    return ids, p / p.sum(axis=1, keepdims=True) * np.linspace(0.6, 1.0, rows)[:, None]


def written_out(ids: np.ndarray, p: np.ndarray, tail: str) -> np.ndarray:
    """All class probabilities."""
    total = p.sum(axis=1, keepdims=True)
    whole = np.zeros((len(ids), CLASSES))
    if tail == "uniform":
        whole += (1 - total) / (CLASSES - ids.shape[1])
    for row, (classes, shares) in enumerate(zip(ids, p / total if tail == "renormalise" else p, strict=True)):
        whole[row, classes] = shares
    return whole


def given(options: dict) -> dict:
    """The options of a call."""
    return {**options, "weight": np.linspace(0.5, 2.0, CLASSES)} if "weight" in options else options


def torchs(options: dict) -> dict:
    return {name: torch.tensor(value) if name == "weight" else value for name, value in options.items()}


def defined(x: torch.Tensor, t: np.ndarray, options: dict) -> torch.Tensor:
    """The loss of rows, by the equation of xent/objective.py in float64."""
    z = options.get("logit_scale", 1.0) * x
    if "softcap" in options:
        z = options["softcap"] * torch.tanh(z / options["softcap"])
    smoothing = options.get("label_smoothing", 0.0)
    t = options.get("weight", 1.0) * ((1 - smoothing) * t + smoothing / CLASSES)
    lse = z.logsumexp(1)
    return (torch.tensor(t) * (lse[:, None] - z)).sum(1) + options.get("z_loss", 0.0) * lse**2


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("options", OPTIONS)
def test_the_loss_is_that_of_all_class_probabilities(dtype, tail, options):
    x, (ids, p), options = logits(dtype), lists(), given(options)
    wide = torch.tensor(x.astype(np.float64), requires_grad=True)
    losses = defined(wide, written_out(ids, p, tail), options)
    wanted = torch.autograd.grad(losses.sum(), wide)[0].numpy()
    target = SparseTarget(ids, p, tail=tail)
    arithmetic = "float64" if dtype == "float64" else "float32"
    # A loss of order 10 is a sum of six terms, rounded a few times; a gradient's entries are at most its mass of 2.
    of_loss, of_gradient = 32 * eps(arithmetic) * 10, 2 * (16 * eps(arithmetic) + eps(dtype))
    found = xent.numpy.cross_entropy(x, target, reduction="none", **options)
    value, gradient = xent.numpy.cross_entropy_value_and_grad(x, target, reduction="sum", **options)
    assert_within(found, losses.detach(), of_loss, "losses")
    assert_within(value, losses.detach().sum(), ROWS * of_loss, "sum")
    assert_within(gradient, wanted, of_gradient, "gradient")
    assert gradient.dtype == x.dtype
    tensor = torch.tensor(x, requires_grad=True)
    target = SparseTarget(torch.tensor(ids), log_probs=torch.tensor(p).log(), tail=tail)
    found = xent.torch.cross_entropy(tensor, target, reduction="none", **torchs(options))
    assert_within(found.detach(), losses.detach(), of_loss, "losses of torch")
    assert_within(torch.autograd.grad(found.sum(), tensor)[0], wanted, of_gradient, "gradient of torch")


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("workspace", ["1MB", "40kB"])
def test_a_layer_has_the_loss_of_its_logits(tail, workspace):
    rng = np.random.default_rng(3)
    hidden, head, bias = rng.standard_normal((ROWS, 8)), rng.standard_normal((CLASSES, 8)), rng.standard_normal(CLASSES)
    target = SparseTarget(*lists(), tail=tail)
    value, gradient = xent.numpy.cross_entropy_value_and_grad(hidden @ head.T + bias, target)
    fused = xent.numpy.linear_cross_entropy_value_and_grad(hidden, head, target, linear_bias=bias, workspace=workspace)
    bound = 400 * eps("float64")
    assert_within(fused[0], value, bound)
    for found, wanted in zip(fused[1], (gradient @ head, gradient.T @ hidden, gradient.sum(axis=0)), strict=True):
        assert_within(found, wanted, bound)


def test_a_certain_row_keeps_the_digits_of_its_loss():
    """All of the target's mass, and nearly all of the prediction's, on the classes that are listed."""
    x = np.zeros((1, CLASSES), np.float32)
    x[0, 7] = 40.0
    target = SparseTarget(np.array([[7, 9]]), np.array([[1.0, 0.0]]))
    with mpmath.workdps(40):
        wanted = float(mpmath.log1p((CLASSES - 1) * mpmath.exp(-40)))
    assert_within(xent.numpy.cross_entropy(x, target), wanted, 8 * eps("float32") * wanted)


@pytest.mark.parametrize("options", [{}, {"z_loss": 0.01}])
def test_masked_classes(options):
    """A listed class that is masked makes the loss infinite, unless its probability is 0; the gradient is finite."""
    x = np.zeros((3, CLASSES))
    x[:, 5] = -np.inf
    x[2, 6] = np.nan
    target = SparseTarget(np.array([[5, 1]] * 3), np.array([[0.0, 1.0], [0.5, 0.5], [0.0, 1.0]]))
    losses = xent.numpy.cross_entropy(x, target, reduction="none", **options)
    _, gradient = xent.numpy.cross_entropy_value_and_grad(x, target, reduction="sum", **options)
    lse = np.log(CLASSES - 1)
    assert_within(losses[0], lse + options.get("z_loss", 0.0) * lse**2, 40 * eps("float64"))
    assert losses[1] == np.inf
    assert np.isfinite(gradient[:2]).all()
    assert np.isnan(losses[2])
    assert np.isnan(gradient[2]).all()


def test_shapes(by_kernels):
    ids, p = (array.reshape(5, 2, 4, LISTED) for array in lists())
    x = logits().reshape(5, 2, 4, CLASSES)
    flat = xent.numpy.cross_entropy(logits(), SparseTarget(*lists()), reduction="none")
    moved = SparseTarget(np.moveaxis(ids, -1, 1), np.moveaxis(p, -1, 1))
    losses, gradient = xent.numpy.cross_entropy_value_and_grad(np.moveaxis(x, -1, 1), moved, reduction="none")
    assert_within(losses, flat.reshape(5, 2, 4), 0.0)
    assert gradient.shape == (5, CLASSES, 2, 4)
    tensors = SparseTarget(torch.tensor(moved.ids), torch.tensor(moved.probs))
    of_torch = xent.torch.cross_entropy(torch.tensor(x).movedim(-1, 1), tensors, reduction="none")
    assert_within(of_torch, losses, 0.0)
    one = xent.numpy.cross_entropy(logits()[0], SparseTarget(lists()[0][0], lists()[1][0]))
    assert_within(one, flat[0], 0.0)


def test_nothing_of_the_logits_size_is_made():
    """Of 400 x 20000 float32 they are 32 MB."""
    rows, classes = 400, 20000
    x = np.zeros((rows, classes), np.float32)
    rng = np.random.default_rng(0)
    ids = np.stack([rng.choice(classes, 8, replace=False) for _ in range(rows)])
    for tail, least in (("drop", 1e6), ("uniform", 1e6 + 2 * 4 * sparse_rows.CELLS)):
        target = SparseTarget(ids, np.full(ids.shape, 0.1), tail=tail)
        xent.numpy.cross_entropy(x[:8], SparseTarget(ids[:8], np.full((8, 8), 0.1), tail=tail))
        tracemalloc.start()
        xent.numpy.cross_entropy(x, target)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < least, tail


def test_derivatives_by_probabilities():
    x = torch.tensor(logits()[:4, :7].copy()).requires_grad_()
    ids = torch.tensor([[1, 2], [0, 6], [3, 4], [5, 1]])
    p = torch.tensor([[0.5, 0.25], [0.125, 0.5], [0.25, 0.25], [0.75, 0.125]], dtype=torch.float64)
    for tail in TAILS:
        for name in ("probs", "log_probs"):
            of = (p if name == "probs" else p.log()).requires_grad_()

            def loss(x, of, tail=tail, name=name):
                target = SparseTarget(ids, **{name: of}, tail=tail)
                return xent.torch.cross_entropy(x, target, reduction="none", softcap=4.0)

            assert torch.autograd.gradcheck(loss, (x, of))
            assert torch.autograd.gradgradcheck(loss, (x, of))
            of = of.detach()


@pytest.mark.parametrize(
    ("ids", "p", "error", "text"),
    [
        ([[0, 300]], [[0.5, 0.2]], LabelError, r"class index 300 at \(0, 1\) is outside \[0, 300\)"),
        ([[0, -1]], [[0.5, 0.2]], LabelError, "class index -1"),
        ([[4, 1], [7, 7]], [[0.5, 0.2]] * 2, LabelError, "class 7 occurs twice in row 1"),
        ([[0, 1]], [[0.5, -0.2]], DistributionError, "is not a probability"),
        ([[0, 1]], [[0.5, np.nan]], DistributionError, "is not a probability"),
        ([[0, 1]], [[0.8, 0.7]], DistributionError, r"row 0 lists sum to 1\.5, which is more than 1"),
        ([[0.0, 1.0]], [[0.8, 0.1]], DTypeError, "Pass integers"),
        ([[0, 1]], [[1, 0]], DTypeError, "Pass floating point numbers"),
        ([[0, 1]], [[0.2, 0.2, 0.2]], ShapeError, "one probability for each class"),
        ([0, 1], [0.2, 0.2], ShapeError, "List one class or more"),
    ],
)
def test_what_is_wrong_with_a_target(ids, p, error, text):
    ids, p = np.array(ids), np.array(p)
    x = logits(rows=len(ids) if ids.ndim > 1 else 1)
    with pytest.raises(error, match=text):
        xent.numpy.cross_entropy(x, SparseTarget(ids, p))
    with pytest.raises(error, match=text):
        xent.torch.cross_entropy(torch.tensor(x), SparseTarget(torch.tensor(ids), torch.tensor(p)))
    head, target = torch.zeros(CLASSES, 2), SparseTarget(torch.tensor(ids), torch.tensor(p))
    with pytest.raises(error, match=text):
        xent.torch.linear_cross_entropy(torch.zeros(len(x), 2), head, target)


def test_what_is_wrong_with_options():
    ids, p = lists()
    with pytest.raises(ObjectiveError, match="found both"):
        SparseTarget(ids, p, np.log(p))
    with pytest.raises(ObjectiveError, match="found neither"):
        SparseTarget(ids)
    with pytest.raises(ObjectiveError, match="'drop', 'renormalise', 'uniform'"):
        SparseTarget(ids, p, tail="renormalize")
    with pytest.raises(ObjectiveError, match="class probabilities"):
        xent.numpy.cross_entropy(logits(), SparseTarget(ids, p), focal_gamma=2.0)
    with pytest.raises(DistributionError, match="nothing to renormalise"):
        xent.numpy.cross_entropy(logits(), SparseTarget(ids, 0 * p, tail="renormalise"))
    with pytest.raises(ShapeError, match="K dimensions"):
        xent.torch.linear_cross_entropy(
            torch.zeros(2, 3), torch.zeros(5, 4, 3), SparseTarget(torch.zeros(2, 1).long(), torch.ones(2, 1))
        )


def test_a_wrong_row_is_nan_where_numbers_are_not_looked_at():
    ids, p = torch.tensor([[0, 3], [1, 2]]), torch.full((2, 2), 0.25)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()

    @torch.compile(backend="eager", fullgraph=True)
    def losses(x):
        return xent.torch.cross_entropy(x, SparseTarget(ids, p), reduction="none")

    found = losses(x)
    assert found.isnan().tolist() == [True, False]
    gradient = torch.autograd.grad(found.sum(), x)[0]
    assert gradient.isnan().all(1).tolist() == [True, False]


@pytest.mark.parametrize("broken", ["mass", "shares", "label"])
def test_broken_kernels_are_rejected(broken):
    x, (ids, p) = logits(), lists()
    wide = torch.tensor(x, requires_grad=True)
    wanted = torch.autograd.grad(defined(wide, written_out(ids, p, "drop"), {}).sum(), wide)[0]
    right = sparse_rows._Listed.of

    def wrong(*arguments):
        found = right(*arguments)
        if broken == "mass":
            return dataclasses.replace(found, mass=np.ones_like(found.mass))
        if broken == "shares":
            return dataclasses.replace(found, t=found.t * (1 + 1e-12))
        return dataclasses.replace(found, ids=found.label[:, None] + 0 * found.ids)

    with mock.patch.object(sparse_rows._Listed, "of", wrong):
        _, gradient = xent.numpy.cross_entropy_value_and_grad(x, SparseTarget(ids, p), reduction="sum")
    with pytest.raises(AssertionError):
        assert_within(gradient, wanted, 2 * 17 * eps("float64"))


# --------------------------------------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 2.0, "temperature_squared": True}, {"softcap": 4.0, "z_loss": 0.01}]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_divergence_from_a_list_is_that_of_all_class_probabilities(tail, options, weighted):
    """sum(t * (log t - log p_s)), of the rows that count, plain and of a layer, of both fronts."""
    rng = np.random.default_rng(4)
    hidden, head = rng.standard_normal((ROWS, 8)), rng.standard_normal((CLASSES, 8))
    ids, p = lists()
    t = written_out(ids, p, tail)
    labels = np.where(np.arange(ROWS) % 7 == 3, -100, 0) if weighted else None
    weights = np.linspace(0.5, 2.0, ROWS) if weighted else None
    counts = np.ones(ROWS) if weights is None else np.where(labels == -100, 0.0, weights)
    h, w = (torch.tensor(array, requires_grad=True) for array in (hidden, head))
    z = h @ w.T / options.get("temperature", 1.0)
    if "softcap" in options:
        z = 4.0 * torch.tanh(z / 4.0)
    with np.errstate(divide="ignore"):
        log_t = torch.tensor(np.where(t == 0, 0.0, np.log(t)))
    log_q = z.log_softmax(1)
    rows = (torch.tensor(t) * (log_t - log_q)).sum(1)
    rows = (4.0 if "temperature" in options else 1.0) * rows + options.get("z_loss", 0.0) * z.logsumexp(1) ** 2
    loss = (rows * torch.tensor(counts)).sum() / counts.sum()
    wanted = [g.numpy() for g in torch.autograd.grad(loss, (h, w))]
    target, given = SparseTarget(ids, p, tail=tail), {**options, "labels": labels, "sample_weight": weights}
    bound = 400 * eps("float64")
    value, gradient = xent.numpy.kl_divergence_value_and_grad(hidden @ head.T, target, **given)
    assert_within(value, loss.detach(), bound)
    assert_within(gradient @ head, wanted[0], bound)
    assert_within(xent.numpy.kl_divergence(hidden @ head.T, target, **given), value, 0.0)
    value, gradients = xent.numpy.linear_kl_divergence_value_and_grad(hidden, head, target, **given)
    assert_within(value, loss.detach(), bound)
    for found, right in zip(gradients[:2], wanted, strict=True):
        assert_within(found, right, bound)
    target = SparseTarget(torch.tensor(ids), torch.tensor(p), tail=tail)
    tensors = {
        name: None if value is None else torch.tensor(value) for name, value in given.items() if name not in options
    }
    for found in (
        xent.torch.kl_divergence(h @ w.T, target, **options, **tensors),
        xent.torch.linear_kl_divergence(h, w, target, **options, **tensors),
    ):
        assert_within(found.detach(), loss.detach(), bound)
        for one, right in zip(torch.autograd.grad(found, (h, w)), wanted, strict=True):
            assert_within(one, right, bound)


def test_the_divergence_of_a_student_that_agrees():
    """Of all classes listed, it is 0 but for rounding, and never less."""
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = SparseTarget(torch.arange(6).expand(50, 6), log_probs=x.detach().log_softmax(1), tail="renormalise")
    losses = xent.torch.kl_divergence(x, target, reduction="none")
    assert (losses >= 0).all()
    assert losses.max() < 8 * eps("float32")
    assert torch.autograd.grad(losses.sum(), x)[0].abs().max() < 8 * eps("float32")
    with pytest.raises(ObjectiveError, match="no reverse divergence"):
        xent.torch.kl_divergence(x, target, direction="reverse")
