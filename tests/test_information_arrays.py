"""What xent.information does with arrays: impossible events, dtypes, devices, gradients, tracing, softmax."""

from __future__ import annotations

import math

import jax
import mpmath
import mpmath_oracle as oracle
import numpy as np
import pytest
import torch
from cases import EXTREME, RANDOM
from comparison import ULPS, assert_within, eps, relative
from libraries import FLOATS, load

from xent.information import (
    cross_entropy,
    entropy,
    information_content,
    js_divergence,
    kl_divergence,
    log_softmax,
    one_hot,
    perplexity,
    softmax,
)

load("jax")  # float64 before the first array is made
OF_TWO = (cross_entropy, kl_divergence, js_divergence, perplexity)


def test_an_event_that_q_calls_impossible_costs_infinity_in_its_row_alone(xp):
    p, q = xp.asarray([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]]), xp.asarray([[1.0, 0.0], [0.5, 0.5], [1.0, 0.0]])
    for f in (cross_entropy, kl_divergence):
        found = xp.numpy(f(p, q))
        assert found[0] == math.inf
        assert math.isfinite(found[1])
        assert found[2] == 0.0
    assert xp.numpy(perplexity(p, q)).tolist()[::2] == [math.inf, 1.0]
    assert np.isfinite(xp.numpy(js_divergence(p, q))).all()


def test_information_of_the_impossible_follows_the_convention_asked_for(xp):
    p = xp.asarray([0.0, 1.0, 0.5])
    assert xp.numpy(information_content(p))[:2].tolist() == [math.inf, 0.0]
    assert xp.numpy(information_content(p, impossible=0.0))[:2].tolist() == [0.0, 0.0]
    assert xp.numpy(information_content(p, impossible=7.5))[0] == 7.5


def test_certainty_is_zero_without_a_sign(xp):
    """-1 log 1 is -0.0, which prints as a negative number."""
    certain = xp.asarray([0.0, 1.0])
    for value in (entropy(certain), cross_entropy(certain, certain), information_content(xp.asarray(1.0))):
        assert math.copysign(1, float(value)) == 1, value


def test_array_type_dtype_and_device_are_kept(xp):
    for dtype in FLOATS:
        p = xp.asarray([[0.5, 0.5], [0.25, 0.75]], dtype)
        results = [entropy(p), information_content(p), softmax(p), log_softmax(p), *(f(p, p) for f in OF_TWO)]
        for result in results:
            assert xp.is_native(result)
            assert result.dtype == p.dtype
            assert getattr(result, "device", None) == getattr(p, "device", None)


def test_16_bit_distributions_are_computed_in_32_bits(xp):
    for dtype in xp.narrow:
        values = np.array([1, 2, 4, 1], dtype=np.float32) / 8
        p = xp.asarray(values, dtype)
        for result in (entropy(p), information_content(p), *(f(p, p) for f in OF_TWO)):
            assert str(result.dtype).endswith("float32")
        relative(float(entropy(p)), float(oracle.entropy(values)), ULPS, np.float32)


def test_integer_one_hot_vectors_follow_the_floating_argument(xp):
    found = cross_entropy(xp.integers([0, 0, 1]), xp.asarray([0.6, 0.2, 0.2], "float32"))
    assert str(found.dtype).endswith("float32")
    assert round(float(found), 4) == 1.6094


def test_plain_lists_become_numpy_arrays():
    assert isinstance(entropy([[0.5, 0.5]]), np.ndarray)
    assert entropy([[0.5, 0.5]]).dtype == np.float64


def test_arguments_are_not_changed(xp):
    p, x = np.array([[0.5, 0.5, 0.0]]), np.array([[1.0, -math.inf, 3.0]])
    given, logits = xp.asarray(p.copy()), xp.asarray(x.copy())
    for f in (*OF_TWO, lambda a, b: softmax(logits), lambda a, b: log_softmax(logits)):
        f(given, given)
    assert (xp.numpy(given) == p).all()
    assert (xp.numpy(logits) == x).all()


def test_one_hot_marks_the_label(xp):
    found = one_hot(xp.integers([[2, 0], [1, 1]]), 3)
    assert xp.numpy(found).tolist() == np.eye(3)[[[2, 0], [1, 1]]].tolist()
    assert xp.numpy(one_hot(xp.integers(1), 2)).tolist() == [0.0, 1.0]
    for dtype in FLOATS:
        assert str(one_hot(xp.integers([0]), 3, dtype=getattr(xp.module, dtype)).dtype).endswith(dtype)


# Softmax, over the logits of the losses' own cases.


def _all_logits(xp, dtype: str) -> np.ndarray:
    """The rows of all cases as one array: masked classes, which change nothing, fill them up to the longest."""
    cases = [case for case in RANDOM + EXTREME if case.fits(dtype) and case.name != "masked-label"]
    longest = max(case.logits.shape[1] for case in cases)
    rows = [np.pad(c.logits, ((0, 0), (0, longest - c.logits.shape[1])), constant_values=-math.inf) for c in cases]
    x = np.concatenate(rows).astype(dtype)
    return np.where(np.abs(x) < xp.smallest[dtype], 0, x).astype(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_softmax_and_its_logarithm_agree_with_the_oracle(xp, dtype):
    x = _all_logits(xp, dtype)
    assert len(x) > 50
    with oracle.exactly():
        wanted = [oracle.floats(oracle.softmax(oracle.numbers(row))[0]) for row in x]
        logs = [oracle.floats(oracle.log_softmax(row)) for row in x]
    relative(xp.numpy(softmax(xp.asarray(x, dtype))), wanted, ULPS, dtype, floor=2 * xp.smallest[dtype])
    relative(xp.numpy(log_softmax(xp.asarray(x, dtype))), logs, ULPS, dtype, floor=2 * xp.smallest[dtype])


@pytest.mark.parametrize("case", RANDOM + EXTREME, ids=repr)
def test_softmax_of_few_classes_is_that_of_many_of_which_the_others_are_masked(case):
    padded = np.pad(case.logits, ((0, 0), (0, 5)), constant_values=-math.inf)
    relative(softmax(padded)[:, :-5], softmax(case.logits))
    relative(log_softmax(padded)[:, :-5], log_softmax(case.logits))


def test_softmax_of_no_logits_at_all_is_nan_in_that_row_alone(xp):
    x = xp.asarray([[-math.inf, -math.inf], [math.inf, 0.0], [math.nan, 0.0], [0.0, 0.0]])
    for f in (softmax, log_softmax):
        found = xp.numpy(f(x))
        assert np.isnan(found[:3]).all()
        assert np.isfinite(found[3]).all()


def test_masked_classes_add_nothing_to_the_entropy(xp):
    q = softmax(xp.asarray([[1.0, 1.0, -math.inf], [-math.inf, 5.0, -math.inf]]))
    relative(xp.numpy(entropy(q)), [math.log(2), 0.0], 4)


# Gradients.

P, Q = np.random.default_rng(12).dirichlet(np.ones(5), 2)
ANALYTIC = {
    "entropy": (lambda p, q: entropy(p, check=False), -np.log(P) - 1, np.zeros(5)),
    "cross-entropy": (lambda p, q: cross_entropy(p, q, check=False), -np.log(Q), -P / Q),
    "divergence": (lambda p, q: kl_divergence(p, q, check=False), np.log(P / Q), 1 - P / Q),
    "js": (
        lambda p, q: js_divergence(p, q, check=False),
        np.log(2 * P / (P + Q)) / 2,
        np.log(2 * Q / (P + Q)) / 2,
    ),
    "information": (lambda p, q: information_content(q, check=False).sum(), np.zeros(5), -1 / Q),
    "perplexity": (lambda p, q: perplexity(p, q, check=False), None, -P / Q * math.exp(-(P @ np.log(Q)))),
}


def _assert_gradient(found, wanted) -> None:
    if wanted is not None:
        assert_within(found, wanted, 2 * ULPS * eps(np.float64) * (1 + np.abs(wanted)))


@pytest.mark.parametrize("name", ANALYTIC)
def test_torch_gradients_are_the_analytic_ones(name):
    f, by_p, by_q = ANALYTIC[name]
    p, q = (torch.tensor(v, requires_grad=True) for v in (P, Q))
    found = torch.autograd.grad(f(p, q), (p, q), allow_unused=True, materialize_grads=True)
    _assert_gradient(found[0].numpy(), by_p)
    _assert_gradient(found[1].numpy(), by_q)


@pytest.mark.parametrize("name", ANALYTIC)
def test_jax_gradients_are_the_analytic_ones_also_when_compiled(name):
    f, by_p, by_q = ANALYTIC[name]
    for gradient in (jax.grad(f, (0, 1)), jax.jit(jax.grad(f, (0, 1)))):
        found = gradient(jax.numpy.asarray(P), jax.numpy.asarray(Q))
        _assert_gradient(np.asarray(found[0]), by_p)
        _assert_gradient(np.asarray(found[1]), by_q)


@pytest.mark.parametrize("function", [softmax, log_softmax])
@pytest.mark.parametrize("rows", [[[0.3, -2.0, 5.0], [1.0, 1.0, 1.0]], [[700.0, -700.0, 699.0]]])
def test_softmax_passes_gradcheck_and_gradgradcheck(function, rows):
    x = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x,))
    assert torch.autograd.gradgradcheck(function, (x,))


@pytest.mark.parametrize("function", [softmax, log_softmax])
def test_softmax_jacobian_agrees_between_libraries(function):
    x = np.array([0.5, 1.5, -3.0, 1.5])
    q = np.exp(x - np.log(np.exp(x).sum()))
    wanted = np.diag(q) - np.outer(q, q) if function is softmax else np.eye(4) - q[None, :]
    by_jax = np.asarray(jax.jacobian(function)(jax.numpy.asarray(x)))
    by_torch = torch.autograd.functional.jacobian(function, torch.tensor(x)).numpy()
    for found in (by_jax, by_torch):
        assert_within(found, wanted, ULPS * eps(np.float64))


def test_gradients_at_zero_probability_are_finite():
    for values in ([0.0, 1.0], [0.0, 0.0, 1.0]):
        p = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        (by_p,) = torch.autograd.grad(entropy(p), p)
        assert by_p.tolist() == [0.0] * (len(values) - 1) + [-1.0]
        by_jax = np.asarray(jax.grad(lambda p: entropy(p, check=False))(jax.numpy.asarray(values)))
        assert by_jax.tolist() == by_p.tolist()
        q = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        (by_q,) = torch.autograd.grad(cross_entropy(torch.tensor(values, dtype=torch.float64), q), q)
        assert by_q.tolist() == [0.0] * (len(values) - 1) + [-1.0]


def test_gradient_through_a_masked_class_is_zero_there_and_finite():
    x = torch.tensor([0.5, -math.inf, 2.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(entropy(softmax(x)), x)
    y = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    (without,) = torch.autograd.grad(entropy(softmax(y)), y)
    assert gradient[1] == 0
    assert_within(gradient[[0, 2]].numpy(), without.numpy(), ULPS * eps(np.float64))
    by_jax = np.asarray(jax.grad(lambda x: entropy(softmax(x), check=False))(jax.numpy.asarray(x.detach().numpy())))
    assert_within(by_jax, gradient.numpy(), ULPS * eps(np.float64))


@pytest.mark.parametrize("function", OF_TWO)
def test_compiled_by_jax_without_the_check_it_is_the_same(function):
    compiled = jax.jit(lambda p, q: function(p, q, check=False))
    p, q = jax.numpy.asarray(P), jax.numpy.asarray(Q)
    relative(np.asarray(compiled(p, q)), np.asarray(function(p, q)))


def test_vmap_of_jax_is_the_batched_call():
    p, q = jax.numpy.asarray(np.random.default_rng(13).dirichlet(np.ones(4), (2, 6)))
    one_by_one = jax.vmap(lambda a, b: kl_divergence(a, b, check=False))(p, q)
    relative(np.asarray(one_by_one), np.asarray(kl_divergence(p, q)))


def test_strided_and_read_only_arrays_are_read():
    p = np.array([[0.5, 9.0, 0.5], [0.25, 9.0, 0.75]])[:, ::2]
    p.flags.writeable = False
    assert float(entropy(p)[0]) == pytest.approx(math.log(2), rel=1e-15)
    by_torch = entropy(torch.tensor([[0.5, 0.25], [0.5, 0.75]], dtype=torch.float64).T)
    np.testing.assert_allclose(by_torch.numpy(), entropy(p), rtol=4 * eps(np.float64))


def test_perplexity_of_a_uniform_distribution_is_the_number_of_classes(xp):
    for classes in (1, 3, 1000):
        found = float(perplexity(xp.asarray(np.full(classes, 1 / classes))))
        relative(found, classes, ULPS * (1 + math.log(classes)))
        assert mpmath.almosteq(found, classes, rel_eps=1e-13)
