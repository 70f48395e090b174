"""The mathematics of the page of `xent why`, which is in JavaScript, against NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import xent.report
from xent import information
from xent.numpy import cross_entropy_value_and_grad, squared_error_value_and_grad
from xent.why.data import Split
from xent.why.gradient_descent import Descent, logits_of, train
from xent.why.losses import gradient_lengths, gradients_of_rows, mean_loss

pytest_plugins = ("browser",)

SCRIPT = Path(xent.report.__file__).parent / "scripts" / "compute.js"
RELATIVE = 1e-12
LOSSES = {"cross-entropy": cross_entropy_value_and_grad, "squared error": squared_error_value_and_grad}


@pytest.fixture(scope="module")
def run(chromium):
    """Evaluates a function of JavaScript with one argument, in an empty page that has `xent.compute`."""
    page = chromium.new_page()
    page.add_script_tag(content="const xent = {};\n" + SCRIPT.read_text())
    yield page.evaluate
    page.close()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [0.1, 3.0, 40.0])
def test_losses_and_gradients_are_those_of_the_library(run, loss, size):
    rng = np.random.default_rng(7)
    logits, labels = size * rng.normal(size=(200, 5)), rng.integers(0, 5, 200)
    body = """([loss, rows, labels]) => rows.map((z, i) => [
        xent.compute.LOSSES[loss].value(z, labels[i]), [...xent.compute.LOSSES[loss].gradient(z, labels[i])]])"""
    found = run(body, [loss, logits.tolist(), labels.tolist()])
    values, gradients = LOSSES[loss](logits, labels, reduction="none")
    # The library's float64 kernel is right to 2.3e-16 where a row is nearly certain; the page has all digits there, as
    # the definitions have them.
    np.testing.assert_allclose([value for value, _ in found], values, rtol=RELATIVE, atol=2.3e-16)
    np.testing.assert_allclose([gradient for _, gradient in found], gradients, rtol=RELATIVE, atol=2.3e-16)
    defined = gradients_of_rows(loss, logits, labels)
    np.testing.assert_allclose([gradient for _, gradient in found], defined, rtol=RELATIVE, atol=1e-300)


def test_softmax_of_large_and_masked_logits(run):
    logits = np.array([[1000.0, 999.0, -1000.0], [0.0, 0.0, 0.0], [-700.0, 3.0, 2.0]])
    found = run("rows => rows.map(z => [...xent.compute.softmax(z)])", logits.tolist())
    np.testing.assert_allclose(found, information.softmax(logits), rtol=RELATIVE)


def test_information_is_that_of_the_library(run):
    rng = np.random.default_rng(3)
    p, q = rng.dirichlet(np.ones(6), 100), rng.dirichlet(np.ones(6), 100)
    p[0], q[1] = np.eye(6)[2], np.eye(6)[1]
    body = """([p, q]) => p.map((row, i) => [xent.compute.entropy(row), xent.compute.cross(row, q[i]),
        xent.compute.divergence(row, q[i]), xent.compute.information(q[i][0])])
        .map(all => all.map(value => Number.isFinite(value) ? value : "infinite"))"""
    found = np.array(run(body, [p.tolist(), q.tolist()]))
    found = np.where(found == "infinite", "inf", found).astype(float)
    expected = [information.entropy(p), information.cross_entropy(p, q), information.kl_divergence(p, q)]
    with np.errstate(divide="ignore"):
        expected.append(information.information_content(q[:, 0]))
    for column, values in enumerate(expected):
        np.testing.assert_allclose(found[:, column], values, rtol=1e-11, atol=1e-15)


TRAIN = """([net, data, loss, rate, steps]) => {
  net.weights = net.weights.map(w => Float64Array.from(w));
  const rows = { x: Float64Array.from(data.x), labels: data.labels };
  for (let step = 0; step < steps; step++) xent.compute.step(net, rows, loss, rate);
  const { accuracy, crossEntropy, squaredError, gradient } = xent.compute.measure(net, rows, loss);
  return { weights: net.weights.map(w => [...w]), accuracy, crossEntropy, squaredError, gradient };
}"""


@pytest.mark.parametrize("hidden", [0, 8])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rate", [0.3, 3.0])
def test_training_reaches_what_numpy_reaches(run, loss, hidden, rate):
    """200 steps from one start; the order of additions differs, and nothing else."""
    rng = np.random.default_rng(11)
    labels = np.arange(150) % 3
    features = rng.normal(size=(150, 2)) + np.array([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])[labels]
    net = run("hidden => { const net = xent.compute.network(2, hidden, 3, 5);"
              " return { ...net, weights: net.weights.map(w => [...w]) }; }", hidden)  # fmt: skip
    shapes = [(hidden, 2), (hidden,), (3, hidden), (3,)] if hidden else [(3, 2), (3,)]
    start = [np.array(w, dtype=float).reshape(shape) for w, shape in zip(net["weights"], shapes, strict=True)]
    data = {"x": features.ravel().tolist(), "labels": labels.tolist()}
    found = run(TRAIN, [net, data, loss, rate, 200])

    rows = Split(features, labels)
    (trained,) = train([Descent(start, loss, rate, 0)], rows, None, epochs=200, batch_size=len(labels))
    for weights, expected, shape, before in zip(found["weights"], trained.parameters, shapes, start, strict=True):
        np.testing.assert_allclose(np.array(weights).reshape(shape), expected, rtol=0, atol=1e-9)
        assert np.abs(expected - before).max() > 0.01
    logits = logits_of(trained.parameters, features)
    assert found["accuracy"] == pytest.approx((logits.argmax(axis=1) == labels).mean())
    assert found["crossEntropy"] == pytest.approx(mean_loss("cross-entropy", logits, labels), rel=1e-9)
    assert found["squaredError"] == pytest.approx(mean_loss("squared error", logits, labels), rel=1e-9)
    lengths = dict(zip(LOSSES, gradient_lengths(logits, labels), strict=True))
    assert found["gradient"] == pytest.approx(lengths[loss].mean(), rel=1e-9)


def test_random_numbers_are_uniform_and_normal(run):
    uniform, normal = run("""() => { const next = xent.compute.random(1), gauss = xent.compute.normal(next);
        return [Array.from({length: 4000}, next), Array.from({length: 4000}, gauss)]; }""")
    assert 0 <= min(uniform) < 0.01
    assert 0.99 < max(uniform) < 1
    assert abs(np.mean(uniform) - 0.5) < 4 * 0.289 / np.sqrt(4000)
    assert abs(np.mean(normal)) < 4 / np.sqrt(4000)
    assert abs(np.std(normal) - 1) < 0.05
