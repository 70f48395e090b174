"""The contrastive loss: its definition, its bounds, its memory, and pairs that lie on several processes."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparison import assert_within, eps
from ranks import Failure, Ranks, contrastive, contrastive_alone
from torch import Tensor

import xent.numpy
import xent.torch
from xent import reference
from xent.errors import ArgumentError, DTypeError, ObjectiveError, ShapeError
from xent.linear import contrast
from xent.linear.driver import Layer, Wanted
from xent.numpy.backends import KERNELS

SCALE = 2.5
SIZES = [(1, 3), (2, 1), (37, 8), (700, 16)]


def pairs(count: int, features: int, dtype: str = "float64", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings whose pairs are alike, in numbers that the dtype has."""
    rng = np.random.default_rng([seed, count])
    a = rng.standard_normal((count, features)) / np.sqrt(features)
    b = a + 0.5 * rng.standard_normal((count, features)) / np.sqrt(features)
    return a.astype(dtype), b.astype(dtype)


def written_out(a: Tensor, b: Tensor, scale: float | Tensor, reduction: str, *, symmetric: bool = True) -> Tensor:
    """CLIP's loss as torch writes it."""
    z, labels = scale * a @ b.T, torch.arange(len(a))
    loss = F.cross_entropy(z, labels, reduction=reduction)
    return (loss + F.cross_entropy(z.T, labels, reduction=reduction)) / 2 if symmetric else loss


def entitled(a: np.ndarray, b: np.ndarray, dtype: str) -> tuple[float, float]:
    """Errors of losses, and of gradients by an entry for an upstream gradient of 1, of an ordinary computation.

    A similarity is off by the roundings of a product over the features, which grow like their number's root and are
    bounded here by the number itself; a loss is the difference of two, and a probability off by that factor.
    """
    features, unit = a.shape[1], eps(dtype)
    of_similarity = SCALE * (features + 2) * unit * np.abs(a).max() * np.abs(b).max() * features
    of_loss = 2 * of_similarity + 4 * unit * np.log(2 + len(a)) * (1 + np.abs(SCALE * a @ b.T).max())
    return of_loss, SCALE * (of_loss + (features + len(a)) * unit) * max(np.abs(a).max(), np.abs(b).max())


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_definition_is_the_equation(symmetric):
    a, b = pairs(4, 3)
    with mpmath.workdps(40):
        z = [[mpmath.fdot(map(float, x), map(float, y)) * SCALE for y in b] for x in a]
        lse = [mpmath.log(sum(map(mpmath.exp, row))) for row in z]
        columns = [mpmath.log(sum(map(mpmath.exp, column))) for column in zip(*z, strict=True)]
        rows = [lse[i] - z[i][i] for i in range(4)]
        both = [(rows[i] + columns[i] - z[i][i]) / 2 for i in range(4)]
    wanted = np.array([float(x) for x in (both if symmetric else rows)])
    found = reference.contrastive_loss(a, b, SCALE, symmetric=symmetric)
    np.testing.assert_allclose(found, wanted, rtol=20 * eps("float64"))
    x, y = (torch.tensor(t).requires_grad_() for t in (a, b))
    upstream = torch.linspace(0.5, 1.5, 4, dtype=torch.float64)
    gradients = torch.autograd.grad(written_out(x, y, SCALE, "none", symmetric=symmetric), (x, y), upstream)
    ours = reference.contrastive_gradients(a, b, SCALE, upstream.numpy(), symmetric=symmetric)
    for theirs, own in zip(gradients, ours, strict=True):
        np.testing.assert_allclose(own, theirs.numpy(), rtol=0, atol=40 * eps("float64"))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("workspace", ["8MB", "700kB"])  # of 700 pairs: kept whole, and part of them
def test_losses_and_gradients_of_both_fronts(dtype, symmetric, reduction, size, workspace):
    a, b = pairs(*size, dtype)
    wide = a.astype(np.float64), b.astype(np.float64)
    losses = reference.contrastive_loss(*wide, SCALE, symmetric=symmetric)
    factor = 1 / len(a) if reduction == "mean" else 1.0
    wanted = losses if reduction == "none" else losses.sum() * factor
    gradients = reference.contrastive_gradients(*wide, SCALE, factor, symmetric=symmetric)
    of_loss, of_gradient = entitled(*wide, dtype)
    options = {"logit_scale": SCALE, "symmetric": symmetric, "reduction": reduction, "workspace": workspace}

    def check(loss, da, db):
        assert loss.dtype == da.dtype == db.dtype == a.dtype
        assert_within(loss, wanted, of_loss * (factor * len(a) if reduction != "none" else 1.0), "loss")
        # Each pair's part of a gradient may be off; an entry of db is a sum over all pairs.
        for found, expected in ((da, gradients[0]), (db, gradients[1])):
            assert_within(found, expected, factor * 2 * of_gradient * np.sqrt(len(a)), "gradient")

    x, y = (torch.tensor(t).requires_grad_() for t in (a, b))
    loss = xent.torch.contrastive_loss(x, y, **options)
    check(loss.detach().numpy(), *(g.numpy() for g in torch.autograd.grad(loss.sum(), (x, y))))
    value, found = xent.numpy.contrastive_loss_value_and_grad(a, b, **options)
    check(np.asarray(value), *found)
    assert_within(xent.numpy.contrastive_loss(a, b, **options), np.asarray(value), 0.0, "without gradients")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("workspace", ["8MB", "400kB"])
def test_errors_in_16_bits_are_no_greater_than_torchs(dtype, workspace):
    a, b = (torch.tensor(t).to(dtype) for t in pairs(500, 64))
    exact = [t.double().requires_grad_() for t in (a, b)]
    wanted = written_out(*exact, SCALE, "sum")
    truth = (wanted.detach(), *torch.autograd.grad(wanted, exact))

    def errors(function, **more):
        x, y = (t.clone().requires_grad_() for t in (a, b))
        loss = function(x, y, **more)
        found = (loss.detach(), *torch.autograd.grad(loss, (x, y)))
        assert found[1].dtype == dtype
        return [(f.double() - t).norm() / t.norm() for f, t in zip(found, truth, strict=True)]

    theirs = errors(lambda x, y: written_out(x, y, SCALE, "sum"))
    ours = errors(xent.torch.contrastive_loss, logit_scale=SCALE, reduction="sum", workspace=workspace)
    for own, other in zip(ours, theirs, strict=True):
        assert own <= 1.5 * other + 1e-7, (ours, theirs)


def test_results_do_not_depend_on_the_workspace_beyond_rounding_and_repeat():
    a, b = (torch.tensor(t).requires_grad_() for t in pairs(900, 8, "float32"))
    of_loss, of_gradient = entitled(*pairs(900, 8), "float32")
    found = []
    for workspace in ("16MB", "2MB", "600kB", "100kB", "100kB"):
        loss = xent.torch.contrastive_loss(a, b, logit_scale=SCALE, workspace=workspace)
        found.append((loss.detach(), *torch.autograd.grad(loss, (a, b))))
    for other in found[1:]:
        assert_within(other[0], found[0][0], of_loss)
        for one, two in zip(other[1:], found[0][1:], strict=True):
            assert_within(one, two, of_gradient)
    assert all(torch.equal(x, y) for x, y in zip(*found[3:], strict=True))


def test_a_certain_pair_has_a_loss_above_zero_that_is_right_to_its_digits():
    """exp(-40) is lost beside 1 in float64 and float32; the loss is its log1p."""
    similarity = np.diag(np.full(300, 40.0)).astype(np.float32)
    wanted = np.log1p(299 * np.exp(-40.0))
    losses = xent.torch.contrastive_loss(torch.eye(300), torch.tensor(similarity), reduction="none", workspace="100kB")
    assert_within(losses, np.full(300, wanted), 30 * eps("float32") * wanted)
    a = torch.eye(300).requires_grad_()
    xent.torch.contrastive_loss(a, torch.tensor(similarity), reduction="sum", workspace="100kB").backward()
    # da = dz @ b, of which b is 40 on the diagonal: dz at the positive is expm1(-loss), both directions together
    assert_within(a.grad.diagonal(), np.full(300, 40 * np.expm1(-wanted)), 30 * eps("float32") * 40 * wanted)


def test_an_offset_in_all_similarities_changes_nothing():
    a, b = pairs(200, 4, "float32")
    shifted = (
        np.concatenate([a, np.full((200, 1), 64.0, np.float32)], 1),
        np.concatenate([b, np.full_like(b[:, :1], 64)], 1),
    )
    plain = xent.numpy.contrastive_loss(a, b, reduction="none")
    # similarities of 4096 are rounded to 2^-11 each
    assert_within(xent.numpy.contrastive_loss(*shifted, reduction="none"), plain, 4 * 2.0**-11)


def test_the_learned_scale_gets_its_gradient_and_only_what_is_wanted_is_made():
    a, b = (torch.tensor(t) for t in pairs(20, 4))
    log_scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def both(function):
        return torch.autograd.grad(function(a, b, log_scale.exp()), log_scale)[0]

    ours = both(lambda a, b, scale: xent.torch.contrastive_loss(a, b, logit_scale=scale))
    torch.testing.assert_close(ours, both(lambda a, b, s: written_out(a, b, s, "mean")), rtol=1e-13, atol=0)
    layer = Layer("", *(t.numpy() for t in (a, b)), None, np.arange(20), a.numpy().dtype, 10**6)
    for wanted in (Wanted(True, False, False), Wanted(False, True, False)):
        _, found = KERNELS.linear.contrast_with_gradients(layer, 1.0, 0.5, wanted)
        assert [array is not None for array in found] == list(wanted)


def test_the_similarities_are_never_held():
    """Of 3000 pairs they are 36 MB; the workspace is 2 MB, and the arguments with their gradients less than 1 MB."""
    import tracemalloc

    a, b = pairs(3000, 8, "float32")
    xent.numpy.contrastive_loss_value_and_grad(a[:600], b[:600], workspace="1MB")  # compiled before it is measured
    tracemalloc.start()
    xent.numpy.contrastive_loss_value_and_grad(a, b, workspace="2MB")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


@pytest.mark.parametrize("broken", ["one direction", "positives", "scale", "log-sum-exp of a part"])
def test_broken_kernels_are_rejected(broken):
    a, b = pairs(300, 8)
    wanted = reference.contrastive_gradients(a, b, SCALE, 1.0)
    right = contrast.Differentiate.visit_with_gradient

    def wrong(self, logits, target, rows):
        if broken == "one direction":
            self.columns = None
        if broken == "positives":
            self.own = False
        if broken == "scale":
            self.logit_scale *= 1 + 1e-9
        if broken == "log-sum-exp of a part":
            self.columns = self.columns._replace(lse=self.columns.lse - 1e-9)
        right(self, logits, target, rows)

    with mock.patch.object(contrast.Differentiate, "visit_with_gradient", wrong):
        found = xent.numpy.contrastive_loss_value_and_grad(a, b, logit_scale=SCALE, reduction="sum")[1]
    with pytest.raises(AssertionError):
        assert_within(found.a, wanted[0], 2 * entitled(a, b, "float64")[1] * np.sqrt(300))


def test_derivatives_of_first_and_second_order():
    a, b = (torch.tensor(t).requires_grad_() for t in pairs(5, 3))
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    for reduction in ("mean", "none"):
        for symmetric in (True, False):

            def loss(a, b, s, reduction=reduction, symmetric=symmetric):
                return xent.torch.contrastive_loss(a, b, logit_scale=s, reduction=reduction, symmetric=symmetric)

            assert torch.autograd.gradcheck(loss, (a, b, scale))
            assert torch.autograd.gradgradcheck(loss, (a, b, scale))


def test_without_pairs_and_with_one():
    empty = torch.empty(0, 3, requires_grad=True)
    assert xent.torch.contrastive_loss(empty, empty.detach()).isnan()
    assert xent.torch.contrastive_loss(empty, empty.detach(), reduction="none").shape == (0,)
    loss = xent.torch.contrastive_loss(empty, empty.detach(), reduction="sum")
    assert loss == 0
    loss.backward()
    assert empty.grad.shape == (0, 3)
    one = torch.ones(1, 3, requires_grad=True)
    loss = xent.torch.contrastive_loss(one, torch.ones(1, 3))
    loss.backward()
    assert loss == 0
    assert not one.grad.any()


def test_errors():
    a = torch.ones(3, 2)
    with pytest.raises(ShapeError, match="row i of both"):
        xent.torch.contrastive_loss(a, torch.ones(4, 2))
    with pytest.raises(ShapeError, match="row i of both"):
        xent.numpy.contrastive_loss(np.ones(3), np.ones(3))
    with pytest.raises(DTypeError, match="Convert one of them"):
        xent.torch.contrastive_loss(a, a.double())
    with pytest.raises(ObjectiveError, match="above 0"):
        xent.torch.contrastive_loss(a, a, logit_scale=-1.0)
    with pytest.raises(ObjectiveError, match="'none', 'sum' or 'mean'"):
        xent.numpy.contrastive_loss(a.numpy(), a.numpy(), reduction="batchmean")
    with pytest.raises(ArgumentError, match="at least"):
        xent.torch.contrastive_loss(torch.ones(5000, 2), torch.ones(5000, 2), workspace=1000)


# -------------------------------------------------------------------------------------------------- several processes


@pytest.fixture(scope="module")
def pool() -> Iterator[Ranks]:
    found = Ranks(3)
    yield found
    found.close()


@pytest.mark.parametrize("cuts", [(0, 9), (0, 5, 9), (0, 3, 3, 9)])  # one rank has no pairs
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_pairs_of_several_processes_are_one_batch(pool, cuts, reduction, symmetric):
    """Shares of the loss add up, and gradients are those of the whole; each rank may have its own upstream gradient."""
    arrays, log_scale, members = pairs(9, 4), 0.7, len(cuts) - 1
    upstream = (0.5, 2.0, 1.25)[:members]
    of_pairs = torch.cat([torch.full((n,), u) for u, n in zip(upstream, np.diff(cuts), strict=True)]).double()
    a, b = (torch.tensor(array).requires_grad_() for array in arrays)
    learned = torch.tensor(log_scale, dtype=torch.float64, requires_grad=True)
    losses = written_out(a, b, learned.exp(), "none", symmetric=symmetric) / (9 if reduction == "mean" else 1)
    wanted = torch.autograd.grad((of_pairs * losses).sum(), (a, b, learned))
    options = {"reduction": reduction, "symmetric": symmetric}
    found = pool.run(contrastive, members, arrays, cuts, options, upstream, log_scale)
    assert not [one for one in found if isinstance(one, Failure)], found
    bound = 200 * eps("float64")
    for rank, (loss, da, db, _) in enumerate(found):
        place = slice(cuts[rank], cuts[rank + 1])
        own = losses.detach()[place]
        assert_within(loss, own if reduction == "none" else own.sum(), bound, "loss")
        assert_within(da, wanted[0][place], bound, "a")
        assert_within(db, wanted[1][place], bound, "b")
    assert_within(sum(one[3] for one in found), wanted[2], bound, "scale")


def test_what_is_wrong_on_one_rank_is_raised_on_all(pool):
    found = pool.run(contrastive_alone, 3, 1)
    assert all(isinstance(one, Failure) and one.kind == "ShapeError" for one in found), found
    assert all("rank 1 has features 3 where rank 0 has 4" in one.text for one in found), found
