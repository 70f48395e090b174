"""Where other libraries went wrong: each public report about a loss is a case, its thread in the docstring.

Cases of one front or tool stand with its other tests; `THREADS` lists them all, and a test looks for each.
"""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import BY_NAME, WEIGHT
from comparison import ULPS, assert_within, check_rows, eps

import xent.numpy
from xent.errors import LabelError
from xent.information import cross_entropy, entropy, softmax
from xent.likelihood import negative_log_likelihood

EPS = eps(np.float64)

THREADS = {
    "Liger-Kernel": (968, 678, 243, 1338, 512, 827, 830, 1391, 177, 237, 1441, 802),
    "Megatron-LM": (737, 7464),
    "Modalities": (464,),
    "OLMo-core": (702,),
    "SkyRL": (2259,),
    "TRL": (7252, 7076, 5890),
    "TransformerEngine": (2139, 2476),
    "lm-evaluation-harness": (3831,),
    "ml-cross-entropy": (52, 59, 37),
    "mljar": (749,),
    "optax": (1185,),
    "pytorch": (185167, 116349, 75181, 85786, 111484, 190139),
    "scikit-learn": (17399, 24315, 24515, 28851, 30910, 4033, 18523),
    "torchtune": (2341,),
    "transformers": (35203,),
    "unsloth": (10616, 5002),
    "verl": (2899, 2656),
    "ydata-profiling": (1579, 253),
}
"""The reports about losses and scores, by project: the numbers of issues and pull requests."""

WITHOUT_THREAD = (
    "tokamax, chunked path",
    "tokamax: log-sum-exp",
    "flash-attention",
    "TRL: entropy",
    "torch 2.13",
    "Liger-Kernel, fused linear",
    "torch gives NaN",
    "CCE divides by zero",
    "dask-ml",
    "evaluate averages",
    "torchmetrics",
)
"""What was seen in a library, without a report: the words by which its test names it."""


def told_by_tests() -> list[str]:
    """Name and docstring of every test of all files; threads in a name are written as in a docstring."""
    found = []
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                name = re.sub(r"_(\d{3,})", r" #\1", node.name.replace("sklearn", "scikit-learn"))
                found.append(f"{name}: {ast.get_docstring(node)}")
    return found


def test_every_report_has_a_test():
    told = told_by_tests()
    missing = [words for words in WITHOUT_THREAD if not any(words in text for text in told)]
    for project, numbers in THREADS.items():
        of_project = [text for text in told if project in text]
        missing += [
            f"{project} #{n}" for n in numbers if not any(re.search(rf"#{n}(?!\d)", text) for text in of_project)
        ]
    assert not missing


def _rows(rows: int = 6, classes: int = 10, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 3, (rows, classes)), rng.integers(0, classes, rows)


# Wrong value or gradient.


def test_each_row_has_its_own_upstream_gradient(implementation):
    """Liger-Kernel #968, #678: reduction="none" scaled every gradient by the first row's upstream gradient."""
    logits, labels = _rows()
    scale = np.array([1.0, 0.0, -2.0, 0.5, 4.0, 8.0])
    _, gradient = implementation.loss_and_gradient(logits, labels, {})
    _, scaled = implementation.loss_and_gradient(logits, labels, {}, scale)
    assert_within(scaled, gradient * scale[:, None], 4 * EPS * np.abs(scale)[:, None])
    assert not scaled[1].any()


@pytest.mark.parametrize(
    "option",
    [{"label_smoothing": 0.2}, {"z_loss": 0.1}, {"softcap": 2.0}, {"logit_scale": 0.5}, {"weight": [0.5] * 9 + [3.0]}],
    ids=str,
)
def test_every_option_reaches_value_and_gradient(implementation, option):
    """Liger-Kernel #243: an option (label_smoothing) accepted but not passed on."""
    logits, _ = _rows()
    labels = np.full(6, 9)
    plain = implementation.loss_and_gradient(logits, labels, {})
    changed = implementation.loss_and_gradient(logits, labels, option)
    for before, after in zip(plain, changed, strict=True):
        assert (np.abs(after - before).max(axis=-1) > 1e-6).all()


def test_every_option_reaches_the_linear_loss():
    """Liger-Kernel #243, in the fused layer: it gives what the plain loss gives for the same logits."""
    rng = np.random.default_rng(1)
    h, w, b = rng.integers(-3, 4, (4, 5)), rng.integers(-3, 4, (6, 5)), rng.integers(-3, 4, 6)
    for case in (BY_NAME["smoothing-weight"], BY_NAME["z-loss-large"], BY_NAME["everything"]):
        labels = np.array([0, case.options.get("ignore_index", 1), 3, 5])
        linear = xent.numpy.linear_cross_entropy(h, w, labels, linear_bias=b, **case.options)
        # Whole numbers: the logits are exact, so it is the loss alone that is compared.
        assert_within(linear, xent.numpy.cross_entropy(h @ w.T + b, labels, **case.options), ULPS * EPS * linear)


@pytest.mark.parametrize("classes", [10, 300])
@pytest.mark.parametrize("found", [1e30, np.nan])
def test_ignored_rows_do_not_show_uninitialised_memory(implementation, classes, found):
    """Liger-Kernel #1338: ignored rows left uninitialised memory in the loss."""
    logits, labels = _rows(rows=400, classes=classes)
    labels[::2] = -100
    for _ in range(3):
        garbage = np.full((400, classes), found)  # to be found again by whoever does not write, or reads first
        del garbage
        losses, gradient = implementation.loss_and_gradient(logits, labels, {})
        assert not losses[::2].any()
        assert not gradient[::2].any()


def test_the_bias_of_a_linear_layer_counts():
    """ml-cross-entropy #52: wrong result with a bias."""
    h, w, b = np.array([[1.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([8.0, 0.0, -8.0])
    value, gradients = xent.numpy.linear_cross_entropy_value_and_grad(h, w, [1], linear_bias=b)
    q = np.exp([9.0, 2.0, -5.0]) / np.exp([9.0, 2.0, -5.0]).sum()
    assert_within(value, -math.log(q[1]), ULPS * EPS * value)
    assert_within(gradients.linear_bias, q - np.array([0.0, 1.0, 0.0]), ULPS * EPS)
    without = xent.numpy.linear_cross_entropy(h, w, [1])
    assert abs(float(without) - float(value)) > 1


@pytest.mark.parametrize("sentinel", [10, 11, 12, 16, 128, -1, -(2**63)])
def test_a_sentinel_beyond_the_classes_matches_no_column(implementation, sentinel):
    """ml-cross-entropy #59: a sentinel label matched a padded column of a shard and gave inf."""
    logits, labels = _rows()
    wanted, wanted_gradient = implementation.loss_and_gradient(logits, labels, {})
    labels[2] = sentinel
    losses, gradient = implementation.loss_and_gradient(logits, labels, {"ignore_index": sentinel})
    kept = np.arange(6) != 2
    np.testing.assert_array_equal(losses[kept], wanted[kept])
    np.testing.assert_array_equal(gradient[kept], wanted_gradient[kept])
    assert losses[2] == 0
    assert not gradient[2].any()


@pytest.mark.parametrize("ignore_index", range(10))
def test_a_class_can_be_the_one_that_is_ignored(implementation, ignore_index):
    """Its rows lose nothing, and every other label stays itself (torch allows this)."""
    logits, _ = _rows(rows=10)
    labels = np.arange(10)
    plain, _ = implementation.loss_and_gradient(logits, labels, {})
    losses, gradient = implementation.loss_and_gradient(logits, labels, {"ignore_index": ignore_index})
    np.testing.assert_array_equal(losses, np.where(labels == ignore_index, 0.0, plain))
    assert not gradient[ignore_index].any()


def test_the_gradient_is_there_when_the_upstream_gradient_is_one(implementation):
    """TransformerEngine #2139: gradients vanished, unseen as backward was skipped for an upstream gradient of 1."""
    logits, labels = _rows()
    _, gradient = implementation.loss_and_gradient(logits, labels, {})
    _, by_one = implementation.loss_and_gradient(logits, labels, {}, np.ones(6))
    np.testing.assert_array_equal(by_one, gradient)
    assert (np.abs(gradient).sum(axis=1) > 1e-3).all()


def test_losses_are_compared_with_something_else(implementation):
    """TransformerEngine #2476: a test compared the loss with itself. Here torch computes the other side."""
    logits, labels = _rows()
    losses, _ = implementation.loss_and_gradient(logits, labels, {})
    by_torch = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels), reduction="none").numpy()
    assert by_torch is not losses
    assert_within(losses, by_torch, ULPS * EPS * (1 + np.abs(logits).max()))


@pytest.mark.parametrize("classes", [3, 33, 1000, 2500])
def test_classes_that_no_block_divides(implementation, classes):
    """verl #2899, #2656: such a number of classes gave a wrong log-sum-exp.

    tokamax, chunked path: zero-padded columns counted in it (+0.49 nats at 2500 classes).
    """
    rng = np.random.default_rng(classes)
    logits, labels = rng.normal(-3, 1, (2, classes)), np.array([0, classes - 1])
    losses, gradient = implementation.loss_and_gradient(logits, labels, {})
    lse = np.array([math.log(math.fsum(math.exp(v) for v in row)) for row in logits])
    assert_within(losses, lse - logits[[0, 1], labels], ULPS * EPS * (1 + np.abs(logits).max()))
    assert_within(gradient.sum(axis=1), np.zeros(2), ULPS * EPS)


def test_a_masked_class_stays_masked_under_softcap(implementation):
    """unsloth #10616: softcap turned -inf padding into -softcap."""
    check_rows(implementation, BY_NAME["softcap-tight-masked"], "float64")
    logits = np.array([[1.0, -math.inf, 2.0]])
    capped, _ = implementation.loss_and_gradient(logits, np.array([2]), {"softcap": 2.0})
    alone, _ = implementation.loss_and_gradient(logits[:, [0, 2]], np.array([1]), {"softcap": 2.0})
    assert_within(capped, alone, ULPS * EPS)


def test_the_logits_survive(implementation):
    """unsloth #5002: backward destroyed the logits."""
    for dtype in implementation.dtypes:
        logits, labels = _rows(rows=40, classes=300)
        logits = logits.astype(dtype)
        before = logits.copy()
        first = implementation.loss_and_gradient(logits, labels, {"softcap": 5.0})
        again = implementation.loss_and_gradient(logits, labels, {"softcap": 5.0})
        np.testing.assert_array_equal(logits, before)
        np.testing.assert_array_equal(first[1], again[1])
        assert not np.shares_memory(first[1], logits)


def test_a_z_loss_that_is_off_adds_nothing(implementation):
    """OLMo-core #702: z-loss folded in although off."""
    logits, labels = _rows()
    losses, gradient = implementation.loss_and_gradient(logits + 100, labels, {"z_loss": 0.0})
    plain, plain_gradient = implementation.loss_and_gradient(logits + 100, labels, {})
    np.testing.assert_array_equal(losses, plain)
    np.testing.assert_array_equal(gradient, plain_gradient)
    assert (losses < 50).all()


def test_a_weighted_mean_over_shards_is_that_of_the_batch(front):
    """pytorch #185167: weighted mean wrong on a batch-sharded tensor. A common denominator makes shards add up."""
    logits, labels = _rows(rows=9, classes=6)
    labels[4] = -100
    whole, gradient = front.call(logits, labels, weight=WEIGHT)
    common = sum(WEIGHT[y] for y in labels if y != -100)
    shards = [front.call(logits[i], labels[i], weight=WEIGHT, denominator=common) for i in (slice(0, 2), slice(2, 9))]
    assert_within(sum(value for value, _ in shards), whole, ULPS * EPS * (1 + whole))
    assert_within(np.concatenate([part for _, part in shards]), gradient, ULPS * EPS)


@pytest.mark.parametrize("label", [10, 11, 1_000_000, -1, -100])
def test_a_label_that_does_not_exist_is_an_error(front, label):
    """optax #1185: a label beyond the classes gives a silent NaN, and -100 silently means class C - 100.

    flash-attention: it gives loss 0 and a gradient; ml-cross-entropy: loss = lse; Liger-Kernel: reads out of bounds.
    """
    logits, labels = _rows()
    labels[3] = label
    with pytest.raises(LabelError, match="row 3"):
        front.call(logits, labels, ignore_index=-7)


def test_a_label_that_does_not_exist_is_an_error_of_the_linear_loss():
    """Liger-Kernel, fused linear: no check of labels, reads and writes out of bounds."""
    with pytest.raises(LabelError, match="row 1"):
        xent.numpy.linear_cross_entropy_value_and_grad(np.ones((2, 3)), np.ones((4, 3)), [0, 4])


def test_the_entropy_has_a_gradient():
    """TRL: entropy returned without its gradient."""
    logits = torch.tensor([[1.0, 2.0, 0.5]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(entropy(softmax(logits)).sum(), logits)
    q = np.exp([1.0, 2.0, 0.5]) / np.exp([1.0, 2.0, 0.5]).sum()
    own = -(q * np.log(q)).sum()
    assert_within(gradient.numpy()[0], -q * (np.log(q) + own), ULPS * EPS)
    assert gradient.abs().sum() > 0.1


def test_masked_classes_leave_the_entropy_a_number():
    """SkyRL #2259, TRL #7252: 0 * -inf made the entropy NaN with masked classes."""
    logits = torch.tensor([[0.0, -math.inf, 0.0, -math.inf]], dtype=torch.float64, requires_grad=True)
    value = entropy(softmax(logits))
    assert_within(value.detach().numpy(), [math.log(2)], 4 * EPS)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert torch.isfinite(gradient).all()


# Precision.


def test_a_16_bit_mean_is_not_added_up_in_16_bits(front):
    """torch 2.13, chunked linear_cross_entropy in bfloat16: 9.75 for 9.516, and 4.0 for 7.402 with small chunks."""
    logits, labels = _rows(rows=512, classes=300)
    logits = (logits * 3).astype(np.float16)
    value, _ = front.call(logits, labels)
    exact, _ = front.call(logits.astype(np.float64), labels)
    assert value.dtype == np.float32
    assert_within(value, exact, 4 * eps(np.float32) * exact)


def test_the_loss_of_16_bit_logits_does_not_move_in_steps(front):
    """Modalities #464: a bfloat16 scalar loss moves in steps of 0.25. A step of 1/128 in a logit has to be seen."""
    values = [float(front.call(np.array([[40 + i / 32, 0.0]], np.float16), [1])[0]) for i in range(8)]
    assert_within(np.diff(values), np.full(7, 1 / 32), 80 * eps(np.float32))


def test_a_log_sum_exp_of_many_classes_is_not_added_up_in_16_bits(front):
    """tokamax: log-sum-exp accumulated in bfloat16, 11.125 for 11.764."""
    classes = 50_000
    losses, _ = front.call(np.zeros((1, classes), np.float16), [0])
    assert_within(losses, math.log(classes), 2 * eps(np.float32) * math.log(classes))


# Edges.


def test_all_labels_ignored_has_a_zero_gradient(front):
    """torch gives NaN gradients on one path; CCE divides by zero.

    Liger-Kernel #177, torchtune #2341, pytorch #116349, #75181.
    """
    logits, _ = _rows()
    value, gradient = front.call(logits, np.full(6, -100))
    assert np.isnan(value)
    assert not gradient.any()


def test_micro_batches_with_one_denominator_are_the_batch(front):
    """Gradient accumulation: Liger-Kernel #802, TRL #5890, transformers #35203. The mean of means is another number."""
    logits, labels = _rows(rows=12)
    labels[[0, 1, 2, 7]] = -100
    whole, gradient = front.call(logits, labels)
    parts = [slice(0, 4), slice(4, 5), slice(5, 12)]
    micro = [front.call(logits[part], labels[part], denominator=8) for part in parts]
    assert_within(sum(value for value, _ in micro), whole, ULPS * EPS * whole)
    assert_within(np.concatenate([part for _, part in micro]), gradient, ULPS * EPS)
    assert abs(np.mean([front.call(logits[part], labels[part])[0] for part in parts]) - whole) > 1e-3


# Scoring, as far as it is a matter of the definitions.


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_an_impossible_event_costs_infinity_in_every_dtype(dtype):
    """scikit-learn #17399, #24315, #24515, #28851: clipping: 36.04 in float64, 15.94 in float32, 6.93 in float16."""
    q = np.array([[1.0, 0.0], [0.5, 0.5]], dtype)
    assert negative_log_likelihood([1, 0], q) == math.inf
    assert cross_entropy(np.array([0.0, 1.0], dtype), q[0]) == math.inf
    # And a small probability is not an impossible one.
    tiny = float(np.finfo(dtype).tiny)
    small = np.array([[1.0 - tiny, tiny]]).astype(dtype)
    assert_within(negative_log_likelihood([1], small), -math.log(tiny), 8 * eps(np.float32) * -math.log(tiny))


def test_a_class_that_is_missing_from_the_labels_is_still_a_class():
    """scikit-learn #4033, #18523: a class missing from a batch, one class only."""
    assert_within(negative_log_likelihood([0, 0], [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]), math.log(8), 4 * EPS)
    assert negative_log_likelihood([0, 0], [[1.0], [1.0]]) == 0


def test_float32_probabilities_pass_the_sum_check():
    """mljar #749: float32 probabilities fail a sum-to-one check."""
    rng = np.random.default_rng(2)
    q = torch.softmax(torch.tensor(rng.normal(size=(20, 30_000)), dtype=torch.float32), dim=1).numpy()
    assert np.abs(q.sum(axis=1, dtype=np.float64) - 1).max() > 0
    for given in (q, q.astype(np.float64)):
        assert np.isfinite(entropy(given)).all()
        assert np.isfinite(negative_log_likelihood(rng.integers(0, 30_000, 20), given))


def test_the_loss_of_a_data_set_is_not_the_mean_of_its_blocks():
    """dask-ml: log_loss averages block means without weights (1.159 instead of 0.056 on chunks of 2 and 98 rows)."""
    q = np.concatenate([np.full((2, 2), [0.1, 0.9]), np.full((98, 2), [0.99, 0.01])])
    labels = np.zeros(100, dtype=int)
    whole = negative_log_likelihood(labels, q, reduction="mean")
    blocks = sum(negative_log_likelihood(labels[part], q[part]) for part in (slice(0, 2), slice(2, 100))) / 100
    assert_within(whole, blocks, ULPS * EPS * whole)
    assert round(float(whole), 3) == 0.056
