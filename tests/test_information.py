"""xent.information against 50-digit arithmetic, and its identities, over every array library."""

from __future__ import annotations

import itertools
import math

import mpmath
import mpmath_oracle as oracle
import numpy as np
import pytest
from comparison import ULPS, assert_within, eps, relative
from libraries import FLOATS

from xent.information import (
    cross_entropy,
    entropy,
    information_content,
    js_divergence,
    kl_divergence,
    one_hot,
    perplexity,
    softmax,
)


def _dirichlet(concentration: float, *shape: int) -> np.ndarray:
    """Random distributions along the last axis; the same in every run."""
    p = np.random.default_rng(11).dirichlet(np.full(shape[-1], concentration), shape[:-1])
    return p / p.sum(axis=-1, keepdims=True)


TINY = 5e-324
# Of few lengths, since JAX compiles every operation for every shape.
DISTRIBUTIONS = {
    "halves": [0.5, 0.0, 0.5],
    "thirds": [1 / 3] * 3,
    "one-hot": [0.0, 1.0, 0.0],
    "subnormal": [TINY, 1.0, 3e-310],
    "tiny": [1e-300, 1e-30, 1.0],
    "near-one-hot": [1.0 - 2**-53, 2**-53, 0.0],
    "random": _dirichlet(1.0, 300).tolist(),
    "skewed": _dirichlet(0.05, 300).tolist(),
}
PAIRS = [
    (a, b) for a, b in itertools.product(DISTRIBUTIONS, repeat=2) if len(DISTRIBUTIONS[a]) == len(DISTRIBUTIONS[b])
]


def _given(xp, name: str, dtype: str) -> tuple[object, np.ndarray]:
    """The distribution in the library and dtype, without what the library flushes to zero; and as float64 numbers."""
    values = np.asarray(DISTRIBUTIONS[name]).astype(dtype)
    values = np.where(values < xp.smallest[dtype], 0, values).astype(dtype)
    return xp.asarray(values, dtype), values.astype(np.float64)


def _relative(xp, found, wanted, dtype: str, ulps: float = ULPS) -> None:
    with mpmath.workdps(60):
        relative(xp.numpy(found), float(wanted), ulps, dtype, floor=xp.smallest[dtype])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_entropy_and_perplexity_agree_with_the_oracle(xp, name, dtype):
    p, exact = _given(xp, name, dtype)
    with mpmath.workdps(60):
        wanted = oracle.entropy(exact)
        _relative(xp, entropy(p), wanted, dtype)
        # exp turns the absolute error of the entropy into a relative one.
        _relative(xp, perplexity(p), mpmath.exp(wanted), dtype, ULPS * (1 + float(wanted)))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_quantities_of_two_distributions_agree_with_the_oracle(xp, names, dtype):
    (p, exact_p), (q, exact_q) = (_given(xp, name, dtype) for name in names)
    with mpmath.workdps(400):
        cross = oracle.cross_entropy(exact_p, exact_q)
        _relative(xp, cross_entropy(p, q), cross, dtype)
        _relative(xp, kl_divergence(p, q), oracle.kl_divergence(exact_p, exact_q), dtype)
        _relative(xp, js_divergence(p, q), oracle.js_divergence(exact_p, exact_q), dtype)
        magnified = ULPS * (1 + min(float(cross), 1e3))
        if cross < 700 or math.isinf(cross):
            _relative(xp, perplexity(p, q), mpmath.exp(cross), dtype, magnified)


NEAR = [1e-15, 1e-12, 1e-8, 1e-5, 1e-3, 0.1, 0.3, 0.33, 0.34, 0.49, 0.5, 0.51, 0.9]


def _near(difference: float, classes: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """p, and a q that differs by plus and minus `difference` times the smallest p, in turn."""
    p = _dirichlet(1.0, classes)
    change = difference * p.min() * np.resize([1.0, -1.0], classes)
    if classes % 2:
        change[-1] = 0.0
    return p.astype(dtype), (p + change).astype(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("difference", NEAR)
@pytest.mark.parametrize("function", [kl_divergence, js_divergence])
def test_divergence_near_equality_is_accurate_and_not_negative(xp, function, difference, dtype):
    """The textbook sum gives noise of either sign there."""
    for classes in (3, 300):
        p, q = _near(difference, classes, dtype)
        found = function(xp.asarray(p, dtype), xp.asarray(q, dtype))
        assert float(found) >= 0
        with mpmath.workdps(60):
            _relative(xp, found, getattr(oracle, function.__name__)(p, q), dtype)


def test_neighbouring_floats_have_the_smallest_divergence(xp):
    p = np.array([0.5, 0.25, 0.25])
    q = np.array([np.nextafter(0.5, 1), np.nextafter(0.25, 0), np.nextafter(0.25, 0)])
    with mpmath.workdps(60):
        found = kl_divergence(xp.asarray(p), xp.asarray(q))
        assert float(found) > 0
        _relative(xp, found, oracle.kl_divergence(p, q), "float64")
    assert float(kl_divergence(xp.asarray(p), xp.asarray(p))) == 0.0


@pytest.mark.parametrize("dtype", FLOATS)
def test_information_content_agrees_with_the_oracle(xp, dtype):
    p = np.array([1.0, 0.75, 0.5, 0.1, 1e-30, xp.smallest[dtype], 1 - eps(dtype) / 2]).astype(dtype)
    wanted = [float(-mpmath.log(float(v))) for v in p]
    relative(xp.numpy(information_content(xp.asarray(p, dtype))), wanted, 4, dtype)


# The worked numbers, and what defines the quantities.


def test_worked_numbers(xp):
    certain = xp.asarray([0.0, 0.0, 1.0])
    assert round(float(cross_entropy(certain, xp.asarray([0.6, 0.2, 0.2]))), 4) == 1.6094
    assert round(float(information_content(xp.asarray(0.5))), 4) == 0.6931
    assert float(entropy(xp.asarray([0.5, 0.25, 0.25]), base=2)) == 1.5
    assert round(float(kl_divergence(xp.asarray([0.5, 0.5]), xp.asarray([0.9, 0.1]))), 4) == 0.5108


def test_three_properties_of_information(xp):
    """Certain events carry none; less likely events carry more; the information of independent events adds."""
    assert float(information_content(xp.asarray(1.0))) == 0.0
    p = np.sort(np.random.default_rng(1).uniform(size=100))
    information = xp.numpy(information_content(xp.asarray(p)))
    assert (np.diff(information) < 0).all()
    a, b = p, p[::-1].copy()
    both = xp.numpy(information_content(xp.asarray(a * b)))
    apart = information + xp.numpy(information_content(xp.asarray(b)))
    # a * b is rounded, which moves its logarithm by eps / 2.
    assert_within(both, apart, ULPS * eps(np.float64) * (1 + apart))


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_cross_entropy_is_entropy_plus_divergence(xp, names):
    p, q = (_given(xp, name, "float64")[0] for name in names)
    cross, own, divergence = float(cross_entropy(p, q)), float(entropy(p)), float(kl_divergence(p, q))
    # The divergence has - p + q in its sum; two vectors of C floats sum to 1 within C eps.
    classes = len(DISTRIBUTIONS[names[0]])
    bound = eps(np.float64) * (ULPS * (own + divergence) + classes) if math.isfinite(divergence) else 0.0
    assert_within(cross, own + divergence, bound)


def test_cross_entropy_is_least_where_q_is_p(xp):
    """Over a grid of all q with steps of 1/20, p itself gives the least H(p, q), and it is H(p)."""
    grid = np.array([(i, j, 20 - i - j) for i in range(1, 19) for j in range(1, 20 - i)]) / 20
    for p in grid[::17]:
        values = xp.numpy(cross_entropy(xp.asarray(p), xp.asarray(grid)))
        assert (grid[np.argmin(values)] == p).all()
        assert (values >= float(entropy(xp.asarray(p))) * (1 - ULPS * eps(np.float64))).all()


def test_one_hot_labels_make_four_quantities_one(xp):
    q = _dirichlet(1.0, 7, 7)
    labels = one_hot(xp.integers(np.arange(7)), 7, dtype=xp.module.float64)
    wanted = -np.log(np.diagonal(q))
    assert not xp.numpy(entropy(labels)).any()
    for found in (cross_entropy(labels, xp.asarray(q)), information_content(xp.asarray(np.diagonal(q).copy()))):
        relative(xp.numpy(found), wanted, 4)
    # The divergence adds - 1 + 1 term by term, and so rounds like its greatest term.
    assert_within(xp.numpy(kl_divergence(labels, xp.asarray(q))), wanted, ULPS * eps(np.float64) * (1 + wanted))


def test_js_divergence_is_symmetric_and_at_most_one_bit(xp):
    both = _dirichlet(0.2, 2, 50, 5)
    p, q = xp.asarray(both[0].copy()), xp.asarray(both[1].copy())
    there, back = (xp.numpy(js_divergence(*pair, base=2)) for pair in ((p, q), (q, p)))
    relative(there, back, 4)
    assert (there <= 1 + ULPS * eps(np.float64)).all()
    assert float(js_divergence(xp.asarray([1.0, 0.0]), xp.asarray([0.0, 1.0]), base=2)) == 1.0


@pytest.mark.parametrize(("base", "wanted"), [(2, 3.0), (8, 1.0), (10, math.log10(8)), (math.e, math.log(8))])
def test_base_sets_the_unit(xp, base, wanted):
    p = xp.asarray([1 / 8] * 8)
    for found in (entropy(p, base=base), cross_entropy(p, p, base=base), information_content(p, base=base)[0]):
        relative(float(found), wanted, 4)
    far = xp.asarray([1.0] + [0.0] * 7)
    relative(float(kl_divergence(far, p, base=base)), wanted, 8)


def test_powers_of_the_base_are_exact(xp):
    assert xp.numpy(information_content(xp.asarray([1.0, 0.5, 2.0**-1022]), base=2)).tolist() == [0.0, 1.0, 1022.0]


def test_axis_chooses_where_the_distributions_lie(xp):
    p, q = _dirichlet(1.0, 2, 2, 3, 4)
    for f in (perplexity, kl_divergence):
        wanted = xp.numpy(f(xp.asarray(p), xp.asarray(q)))
        assert wanted.shape == (2, 3)
        for axis in (0, 1, -2) if f is perplexity else (0,):
            moved = (xp.asarray(np.ascontiguousarray(np.moveaxis(v, -1, axis))) for v in (p, q))
            relative(xp.numpy(f(*moved, axis=axis)), wanted)
    moved = xp.asarray(np.ascontiguousarray(np.moveaxis(p, -1, 1)))
    relative(xp.numpy(entropy(moved, axis=1)), xp.numpy(entropy(xp.asarray(p))))
    relative(xp.numpy(softmax(moved, axis=1)), np.moveaxis(xp.numpy(softmax(xp.asarray(p))), -1, 1))


def test_the_other_axes_broadcast(xp):
    p, q = _dirichlet(1.0, 5, 1, 4), _dirichlet(2.0, 3, 4)
    for f in (cross_entropy, kl_divergence):
        found = xp.numpy(f(xp.asarray(p), xp.asarray(q)))
        assert found.shape == (5, 3)
        one_by_one = [[float(f(xp.asarray(a[0]), xp.asarray(b))) for b in q] for a in p]
        relative(found, one_by_one)
