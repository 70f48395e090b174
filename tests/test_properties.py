"""Identities that hold for whatever Hypothesis finds: distributions with zeros and subnormals, any logits."""

from __future__ import annotations

import math

import numpy as np
from cases import WEIGHT
from comparison import ULPS, assert_within, eps
from hypothesis import assume, example, given
from hypothesis import strategies as st

from xent.information import (
    cross_entropy,
    entropy,
    information_content,
    js_divergence,
    kl_divergence,
    one_hot,
    perplexity,
)

EPS = eps(np.float64)
dtypes = st.sampled_from(["float32", "float64"])
# Zeros, subnormals, ordinary and huge numbers, with zeros often; normalised they may be anything.
masses = st.one_of(st.just(0.0), st.floats(0, 1), st.floats(0, 5e-310), st.floats(0, 1e300))


def normalised(values: list[float], dtype: str) -> np.ndarray:
    v = np.array(values)
    v = v / v.max()
    with np.errstate(under="ignore"):
        return (v / v.sum()).astype(dtype)


@st.composite
def distributions(draw, count: int = 1, greatest: int = 8):
    """`count` distributions over the same classes, in float32 or float64."""
    classes, dtype = draw(st.integers(1, greatest)), draw(dtypes)
    rows = st.lists(masses, min_size=classes, max_size=classes).filter(lambda row: max(row) > 0)
    return [normalised(draw(rows), dtype) for _ in range(count)]


def rounding(*arrays: np.ndarray) -> float:
    """One unit of the dtype for each class: by that much a distribution's sum may miss 1, and a sum of C terms."""
    return eps(arrays[0].dtype) * (arrays[0].size + 4)


def smallest(array: np.ndarray) -> float:
    """Among subnormal numbers rounding is absolute."""
    return 4 * array.size * float(np.finfo(array.dtype).smallest_subnormal)


@given(distributions(2))
@example([np.array([1 / 3] * 3), np.array([5e-324, 1.0, 3e-310])])
def test_cross_entropy_is_entropy_plus_divergence(pair):
    p, q = pair
    cross, own, divergence = (float(v) for v in (cross_entropy(p, q), entropy(p), kl_divergence(p, q)))
    if math.isinf(cross):
        assert divergence == math.inf
        assert ((q == 0) & (p > 0)).any()
    else:
        assert_within(cross, own + divergence, rounding(p) * (1 + own + divergence))


@given(distributions(2))
def test_divergences_are_not_negative_and_zero_for_equals(pair):
    p, q = pair
    assert kl_divergence(p, q) >= 0
    assert kl_divergence(p, p) == 0
    assert js_divergence(p, p) == 0
    mixed = float(js_divergence(p, q))
    assert 0 <= mixed <= math.log(2) + rounding(p)
    # JS adds p + q, which is rounded; swapping the two changes the order of a sum.
    assert_within(mixed, js_divergence(q, p), rounding(p) * mixed + smallest(p))
    if (p != q).any() and np.abs(p - q).max() > 1e-3:
        assert kl_divergence(p, q) > 0
        assert mixed > 0


@given(distributions())
def test_entropy_lies_between_zero_and_that_of_the_uniform(one):
    (p,) = one
    own = float(entropy(p))
    assert 0 <= own <= math.log(p.size) + rounding(p) * (1 + math.log(p.size))
    assert 1 <= perplexity(p) <= p.size * (1 + 2 * rounding(p) * (1 + math.log(p.size)))
    assert float(cross_entropy(p, p)) == own


@given(distributions(2))
def test_no_prediction_beats_the_truth(pair):
    p, q = pair
    own = float(entropy(p))
    assert float(cross_entropy(p, q)) >= own - rounding(p) * (1 + own)


@given(distributions(), st.data())
def test_one_hot_labels_make_four_quantities_one(one, data):
    (q,) = one
    label = data.draw(st.integers(0, q.size - 1))
    p = one_hot(np.array(label), q.size, dtype=q.dtype)
    assert entropy(p) == 0
    wanted = float(information_content(q[label]))
    assert_within(cross_entropy(p, q), wanted, 2 * eps(q.dtype) * wanted if math.isfinite(wanted) else 0)
    limit = 2 * rounding(q) * (1 + wanted) if math.isfinite(wanted) else 0.0
    assert_within(kl_divergence(p, q), wanted, limit)


@given(distributions(2), st.data())
def test_the_order_of_the_classes_does_not_matter(pair, data):
    p, q = pair
    order = np.array(data.draw(st.permutations(range(p.size))))
    for f in (cross_entropy, kl_divergence, js_divergence):
        value = float(f(p, q))
        limit = rounding(p) * value + smallest(p) if math.isfinite(value) else 0.0
        assert_within(f(p[order], q[order]), value, limit)


@given(st.floats(5e-324, 1), st.floats(5e-324, 1))
def test_information_adds_for_independent_events_and_falls_with_probability(a, b):
    assume(a * b > 2.3e-308)  # a subnormal product has lost digits
    both, apart = float(information_content(a * b)), float(information_content(a) + information_content(b))
    assert_within(both, apart, 2 * EPS * (1 + apart))
    assert (information_content(a) <= information_content(b)) == (a >= b) or abs(a - b) <= 2 * EPS * b
    assert information_content(1.0) == 0


@given(distributions(), st.sampled_from([2.0, 10.0, 3.0]))
def test_a_base_is_a_unit(one, base):
    (p,) = one
    own = float(entropy(p))
    assert_within(entropy(p, base=base), own / math.log(base), 4 * rounding(p) * own + smallest(p))


# The loss.

# Multiples of 1/64 below 2^9: adding a shift of the same kind is exact, so nothing but the loss itself can change.
dyadic = st.integers(-(2**15), 2**15).map(lambda n: n / 64)


@st.composite
def rows(draw, greatest: int = 6):
    """Logits (rows, classes) and labels."""
    count, classes = draw(st.integers(1, 4)), draw(st.integers(1, greatest))
    logits = draw(st.lists(st.lists(dyadic, min_size=classes, max_size=classes), min_size=count, max_size=count))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    return np.array(logits), np.array(labels)


def size_of(logits: np.ndarray) -> float:
    """The absolute error of lse - x[label] is a few roundings of this."""
    return ULPS * EPS * (1 + 2 * np.abs(logits).max())


@given(data=rows(), shift=dyadic)
def test_a_shift_of_the_logits_changes_nothing(implementation, data, shift):
    logits, labels = data
    losses, gradient = implementation.loss_and_gradient(logits, labels, {"label_smoothing": 0.1})
    shifted, shifted_gradient = implementation.loss_and_gradient(logits + shift, labels, {"label_smoothing": 0.1})
    limit = size_of(np.abs(logits) + abs(shift))
    assert_within(shifted, losses, limit)
    assert_within(shifted_gradient, gradient, limit)


@given(data=rows(), order=st.randoms(use_true_random=False))
def test_the_order_of_classes_and_rows_does_not_matter(implementation, data, order):
    logits, labels = data
    classes = list(range(logits.shape[1]))
    order.shuffle(classes)
    weight = np.resize(WEIGHT, logits.shape[1])
    options = {"weight": weight, "label_smoothing": 0.2}
    losses, gradient = implementation.loss_and_gradient(logits, labels, options)
    moved = {**options, "weight": weight[classes]}
    new_labels = np.argsort(classes)[labels]
    found, found_gradient = implementation.loss_and_gradient(logits[::-1, classes], new_labels[::-1], moved)
    limit = size_of(logits) * weight.sum()
    assert_within(found[::-1], losses, limit)
    assert_within(found_gradient[::-1], gradient[:, classes], limit)


@given(data=rows(), factor=st.sampled_from([0.0, 0.5, 2.0, 1024.0]))
def test_weights_enter_linearly(implementation, data, factor):
    logits, labels = data
    weight = np.resize(WEIGHT, logits.shape[1])
    once = implementation.loss_and_gradient(logits, labels, {"weight": weight})
    more = implementation.loss_and_gradient(logits, labels, {"weight": weight * factor})
    unweighted = implementation.loss_and_gradient(logits, labels, {})
    limit = size_of(logits) * 4 * max(1, factor)
    for found, wanted, plain in zip(more, once, unweighted, strict=True):
        assert_within(found, factor * wanted, limit)
        per_row = weight[labels] if plain.ndim == 1 else weight[labels][:, None]
        assert_within(wanted, per_row * plain, limit)


@given(data=rows())
def test_gradient_rows_sum_to_zero(implementation, data):
    logits, labels = data
    _, gradient = implementation.loss_and_gradient(logits, labels, {"label_smoothing": 0.3})
    assert_within(gradient.sum(axis=1), np.zeros(len(logits)), size_of(logits))
    _, gradient = implementation.loss_and_gradient(logits, labels, {})
    assert (gradient[np.arange(len(labels)), labels] <= 0).all()
    assert ((gradient >= 0) | (np.arange(logits.shape[1]) == labels[:, None])).all()


@given(data=rows(), smoothing=st.floats(0, 1))
def test_smoothing_is_a_mixture_of_losses(implementation, data, smoothing):
    """(1 - e) times the label's loss plus e times the mean over all labels; the same for gradients."""
    logits, labels = data
    classes = logits.shape[1]
    smooth = implementation.loss_and_gradient(logits, labels, {"label_smoothing": smoothing})
    plain = implementation.loss_and_gradient(logits, labels, {})
    all_labels = [implementation.loss_and_gradient(logits, np.full_like(labels, j), {}) for j in range(classes)]
    for i in range(2):
        mean = sum(one[i] for one in all_labels) / classes
        assert_within(smooth[i], (1 - smoothing) * plain[i] + smoothing * mean, 4 * size_of(logits))


@given(data=rows())
def test_one_hot_distributions_are_labels(implementation, data):
    logits, labels = data
    hard = implementation.loss_and_gradient(logits, labels, {"label_smoothing": 0.1})
    soft = implementation.loss_and_gradient(logits, np.eye(logits.shape[1])[labels], {"label_smoothing": 0.1})
    for found, wanted in zip(soft, hard, strict=True):
        assert_within(found, wanted, size_of(logits))


@given(data=rows(), denominator=st.floats(1e-3, 1e6))
def test_a_denominator_divides_the_sum(front, data, denominator):
    logits, labels = data
    total, gradient = front.call(logits, labels, reduction="sum")
    mean, mean_gradient = front.call(logits, labels, denominator=denominator)
    assert_within(mean, total / denominator, 4 * EPS * abs(total) / denominator + 5e-324)
    # q and the target are of size 1 before they are subtracted.
    assert_within(mean_gradient, gradient / denominator, 4 * EPS / denominator)


@given(data=rows())
def test_the_mean_is_the_mean(front, data):
    logits, labels = data
    losses, _ = front.call(logits, labels, reduction="none")
    mean, gradient = front.call(logits, labels)
    total, total_gradient = front.call(logits, labels, reduction="sum")
    assert_within(mean, losses.mean(), 8 * EPS * losses.mean())
    assert_within(total, losses.sum(), 8 * EPS * losses.sum())
    assert_within(gradient, total_gradient / len(labels), 4 * EPS)
