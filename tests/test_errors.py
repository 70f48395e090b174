"""Bad input: an error names the call, the argument and the row, what was found and expected, and the remedy."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch

import xent
import xent.information as information
import xent.numpy
from xent.errors import ArgumentError, DistributionError, DTypeError, LabelError, ObjectiveError, ShapeError
from xent.likelihood import Likelihood, likelihood, log_likelihood, negative_log_likelihood

LOGITS = np.zeros((2, 3))
LABELS = [0, 1]
HALF = [0.5, 0.5]


def refuse(error: type[Exception], parts: list[str], call, *arguments, **options) -> None:
    """The call raises that error, which is a XentError, and whose message has all the parts and ends with a remedy."""
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    assert isinstance(caught.value, xent.XentError)
    text = str(caught.value)
    for part in parts:
        assert part in text, f"{part!r} is not in: {text}"
    assert ". " in text, f"no remedy in: {text}"
    assert type(caught.value) is error, f"{type(caught.value)} is not {error}"


TARGETS = {
    "label too large": (LabelError, [0, 3], ["target=", "3", "row 1", "[0, 3)", "ignore_index=3"]),
    "label negative": (LabelError, [-1, 0], ["target=", "-1", "row 0", "[0, 3)", "ignore_index=-1"]),
    "too many labels": (ShapeError, [0, 1, 2], ["target=", "(3,)", "(2, 3)", "(2,)"]),
    "labels as a column": (ShapeError, [[0], [1]], ["target=", "(2, 1)", "(2, 3)"]),
    "labels as floats": (DTypeError, [0.0, 1.0], ["target=", "float", "integers"]),
    "labels as text": (DTypeError, ["cat", "dog"], ["target=", "<U3"]),
    "booleans": (DTypeError, [True, False], ["target=", "bool"]),
    "integer distributions": (DTypeError, [[1, 0, 0], [0, 1, 0]], ["target=", "probabilities"]),
    "sum": (DistributionError, [[1, 0, 0], [0.5, 0.5, 0.5]], ["target=", "row 1", "1.5", "to 1"]),
    "negative": (DistributionError, [[1, 0, 0], [-0.5, 0.5, 1.0]], ["target=", "-0.5", "(1, 0)"]),
    "nan": (DistributionError, [[1, 0, 0], [math.nan, 0.5, 0.5]], ["target=", "nan", "(1, 0)"]),
    "classes": (ShapeError, [HALF, HALF], ["target=", "(2, 2)", "(2, 3)"]),
}


@pytest.mark.parametrize("call", ["cross_entropy", "squared_error", "cross_entropy_value_and_grad"])
@pytest.mark.parametrize(("error", "target", "parts"), TARGETS.values(), ids=TARGETS)
def test_bad_targets_are_refused(call, error, target, parts):
    refuse(error, [f"{call}(", *parts], getattr(xent.numpy, call), LOGITS, target)


BAD_LOGITS = {
    "a number": (ShapeError, 1.0, 0, ["logits=", "single number"]),
    "text": (DTypeError, [["a", "b"]], [0], ["logits=", "<U1"]),
    "nothing": (DTypeError, None, [0], ["logits=", "object"]),
    "complex": (DTypeError, LOGITS * 1j, LABELS, ["logits=", "complex128"]),
    "ragged": (DTypeError, [[1.0, 2.0], [1.0]], LABELS, ["logits="]),
    "no classes": (ShapeError, np.zeros((2, 0)), LABELS, ["logits=", "(2, 0)", "class"]),
}


@pytest.mark.parametrize(("error", "logits", "target", "parts"), BAD_LOGITS.values(), ids=BAD_LOGITS)
def test_bad_logits_are_refused(error, logits, target, parts):
    refuse(error, ["cross_entropy(", *parts], xent.numpy.cross_entropy, logits, target)


@pytest.mark.parametrize("empty", [[], (), np.array([], int)], ids=str)
def test_an_empty_list_is_no_labels(empty):
    """NumPy makes floating point numbers of it, which are no labels; an array of them is refused as any other."""
    loss, gradient = xent.numpy.cross_entropy_value_and_grad(np.zeros((0, 3)), empty)
    assert math.isnan(loss)
    assert gradient.shape == (0, 3)
    assert xent.numpy.squared_error(np.zeros((0, 3)), empty, reduction="sum") == 0
    assert xent.numpy.cross_entropy(np.zeros((2, 3, 0)), [empty, empty], reduction="none").shape == (2, 0)
    assert xent.numpy.linear_cross_entropy(np.zeros((0, 2)), np.zeros((3, 2)), empty, reduction="sum") == 0
    assert xent.numpy.cross_entropy(np.zeros((2, 3, 0)), [[[]] * 3] * 2, reduction="none").shape == (2, 0)
    refuse(DTypeError, ["target=", "integers"], xent.numpy.cross_entropy, np.zeros((0, 3)), np.array([]))
    refuse(ShapeError, ["target=", "(0,)", "(2, 3)"], xent.numpy.cross_entropy, LOGITS, empty)


OPTIONS = {
    "smoothing above 1": ({"label_smoothing": 1.5}, ["1.5", "[0, 1]"]),
    "smoothing below 0": ({"label_smoothing": -0.1}, ["-0.1", "[0, 1]"]),
    "smoothing nan": ({"label_smoothing": math.nan}, ["nan"]),
    "smoothing text": ({"label_smoothing": "0.1"}, ["'0.1'"]),
    "z-loss negative": ({"z_loss": -1.0}, ["-1.0", "0 or more"]),
    "z-loss infinite": ({"z_loss": math.inf}, ["inf"]),
    "z-loss none": ({"z_loss": None}, ["None"]),
    "softcap zero": ({"softcap": 0.0}, ["0.0", "above 0"]),
    "softcap negative": ({"softcap": -30.0}, ["-30.0"]),
    "softcap infinite": ({"softcap": math.inf}, ["inf"]),
    "scale zero": ({"logit_scale": 0.0}, ["0.0", "above 0"]),
    "scale negative": ({"logit_scale": -1.0}, ["-1.0"]),
    "scale nan": ({"logit_scale": math.nan}, ["nan"]),
    "unknown reduction": ({"reduction": "average"}, ["'average'", "'mean'"]),
    "reduction none": ({"reduction": None}, ["None", "'none'"]),
    "denominator zero": ({"denominator": 0.0}, ["0.0", "above 0"]),
    "denominator nan": ({"denominator": math.nan}, ["nan"]),
    "ignore_index fraction": ({"ignore_index": 1.5}, ["1.5", "integer"]),
}


@pytest.mark.parametrize(("options", "parts"), OPTIONS.values(), ids=OPTIONS)
def test_options_out_of_range_are_refused(options, parts):
    (name,) = options
    refuse(ObjectiveError, [f"cross_entropy({name}=", *parts], xent.numpy.cross_entropy, LOGITS, LABELS, **options)
    refuse(ObjectiveError, [f"Objective({name}=", *parts], xent.Objective, **options)


def test_an_option_out_of_range_is_told_in_the_name_of_the_call():
    x, w, y, wrong = torch.zeros(2, 3), torch.zeros(4, 3), torch.tensor([0, 1]), {"softcap": -1.0}
    for call in (xent.torch.cross_entropy, xent.torch.statistics, xent.torch.CrossEntropyLoss):
        arguments = () if call is xent.torch.CrossEntropyLoss else (x, y)
        refuse(ObjectiveError, [f"{call.__name__}(softcap="], call, *arguments, **wrong)
    for call in (xent.torch.linear_cross_entropy, xent.torch.linear_statistics, xent.numpy.linear_statistics):
        refuse(ObjectiveError, [f"{call.__name__}(softcap="], call, x, w, y, **wrong)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_denominator_goes_with_a_mean_only(reduction):
    parts = ["cross_entropy(denominator=", f"'{reduction}'", "mean"]
    refuse(ObjectiveError, parts, xent.numpy.cross_entropy, LOGITS, LABELS, denominator=2.0, reduction=reduction)


@pytest.mark.parametrize("option", ["smoothing", "class_weights", "size_average", "ignore_idx"])
def test_an_unknown_option_is_named_with_those_that_exist(option):
    parts = [f"cross_entropy({option}=", "label_smoothing", "ignore_index", "weight", "denominator"]
    refuse(ObjectiveError, parts, xent.numpy.cross_entropy, LOGITS, LABELS, **{option: 0.1})


WEIGHTS = {
    "too short": (ShapeError, [1.0, 2.0], ["(2,)", "(3,)"]),
    "a number": (ShapeError, 1.0, ["()", "(3,)"]),
    "a table": (ShapeError, [[1.0, 2.0, 3.0]], ["(1, 3)"]),
    "negative": (ObjectiveError, [1.0, 2.0, -1.0], ["negative"]),
    "nan": (ObjectiveError, [1.0, math.nan, 1.0], ["not finite"]),
    "infinite": (ObjectiveError, [1.0, math.inf, 1.0], ["not finite"]),
    "text": (DTypeError, ["a", "b", "c"], ["<U1"]),
}


@pytest.mark.parametrize(("error", "weight", "parts"), WEIGHTS.values(), ids=WEIGHTS)
def test_bad_class_weights_are_refused(error, weight, parts):
    refuse(error, ["cross_entropy(weight=", *parts], xent.numpy.cross_entropy, LOGITS, LABELS, weight=weight)


@pytest.mark.parametrize("option", [{"weight": [1.0, 1.0, 1.0]}, {"z_loss": 0.1}], ids=str)
def test_the_squared_error_has_no_weight_and_no_z_loss(option):
    refuse(ObjectiveError, [f"squared_error({next(iter(option))}="], xent.numpy.squared_error, LOGITS, LABELS, **option)


LINEAR = {
    "features": (ShapeError, (LOGITS, np.zeros((4, 2)), LABELS), {}, ["linear_weight=", "(4, 2)", "(2, 3)"]),
    "weight vector": (ShapeError, (LOGITS, np.zeros(3), LABELS), {}, ["linear_weight=", "(3,)"]),
    "bias": (ShapeError, (LOGITS, np.zeros((4, 3)), LABELS), {"linear_bias": [0.0]}, ["linear_bias=", "(1,)", "(4,)"]),
    "label": (LabelError, (LOGITS, np.zeros((4, 3)), [0, 4]), {}, ["target=", "4", "row 1", "[0, 4)"]),
    "rows": (ShapeError, (LOGITS, np.zeros((4, 3)), [0]), {}, ["target=", "(1,)"]),
    "input": (DTypeError, ([["a"]], np.zeros((4, 1)), [0]), {}, ["input=", "<U1"]),
}


@pytest.mark.parametrize(("error", "arguments", "options", "parts"), LINEAR.values(), ids=LINEAR)
def test_bad_linear_arguments_are_refused(error, arguments, options, parts):
    refuse(error, ["linear_cross_entropy(", *parts], xent.numpy.linear_cross_entropy, *arguments, **options)


DISTRIBUTIONS = {
    "sum": (DistributionError, [HALF, [0.5, 0.6]], ["p=", "row 1", "1.1", "to 1", "softmax"]),
    "sum of one": (DistributionError, [0.5, 0.6], ["p=", "1.1"]),
    "negative": (DistributionError, [HALF, [-0.5, 1.5]], ["p=", "-0.5", "(1, 0)", "softmax"]),
    "nan": (DistributionError, [HALF, [math.nan, 1.0]], ["p=", "nan", "(1, 0)"]),
    "above one": (DistributionError, [[math.inf, 0.0]], ["p=", "inf"]),
    "logits": (DistributionError, [[2.0, -1.0]], ["p=", "xent.numpy"]),
    "empty": (DistributionError, [], ["p=", "sums to 0"]),
    "a number": (ShapeError, 0.5, ["p=", "()", "axis"]),
    "text": (DTypeError, ["a", "b"], ["p=", "<U1"]),
    "complex": (DTypeError, [1j, 0], ["p=", "complex128"]),
}


@pytest.mark.parametrize("call", ["entropy", "perplexity"])
@pytest.mark.parametrize(("error", "p", "parts"), DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_what_is_no_distribution_is_refused(call, error, p, parts):
    refuse(error, [f"{call}(", *parts], getattr(information, call), p)


@pytest.mark.parametrize("call", ["cross_entropy", "kl_divergence", "js_divergence", "perplexity"])
def test_both_distributions_are_checked(call):
    f = getattr(information, call)
    refuse(DistributionError, [f"{call}(", "q=", "1.1"], f, HALF, [0.5, 0.6])
    refuse(DistributionError, [f"{call}(", "p=", "1.1"], f, [0.5, 0.6], HALF)
    refuse(ShapeError, [f"{call}(", "(2,)", "(3,)", "classes"], f, HALF, [0.2, 0.3, 0.5])
    refuse(ShapeError, [f"{call}(", "(1,)", "(2,)"], f, [1.0], HALF)  # no broadcasting of the classes
    refuse(ShapeError, [f"{call}("], f, [HALF] * 2, [HALF] * 3)
    refuse(ShapeError, [f"{call}(", "axis 2"], f, HALF, HALF, axis=2)


def test_two_array_libraries_in_one_call_are_refused():
    refuse(DTypeError, ["cross_entropy("], information.cross_entropy, torch.tensor(HALF), np.array(HALF))


@pytest.mark.parametrize("p", [1.5, -0.1, math.nan, [0.5, 2.0]])
def test_information_content_takes_probabilities_only(p):
    refuse(DistributionError, ["information_content(", "p=", "not a probability"], information.information_content, p)


@pytest.mark.parametrize("base", [1, 0, -2, math.nan, math.inf, "2", None, [2], 1j])
def test_a_base_is_a_positive_number_other_than_one(base):
    refuse(ArgumentError, ["base=", str(base)], information.entropy, HALF, base=base)


@pytest.mark.parametrize("axis", ["x", None, 1.5, (0,), [0]], ids=str)
def test_an_axis_is_a_whole_number(axis):
    for call in (information.entropy, information.perplexity, information.softmax, information.log_softmax):
        refuse(ArgumentError, [f"{call.__name__}(axis=", str(axis)], call, HALF, axis=axis)


@pytest.mark.parametrize("call", [information.softmax, information.log_softmax], ids=lambda call: call.__name__)
def test_a_softmax_needs_classes_along_its_axis(call):
    refuse(ShapeError, [f"{call.__name__}(logits=", "no axis 1"], call, HALF, axis=1)
    refuse(ShapeError, [f"{call.__name__}(logits=", "()", "no axis"], call, 0.5)
    refuse(ShapeError, [f"{call.__name__}(logits=", "(2, 0)", "no classes"], call, np.zeros((2, 0)))
    assert call(np.zeros((0, 2))).shape == (0, 2)


@pytest.mark.parametrize("q", [None, "text", {}, [None], [[0.5], [0.2, 0.3]]], ids=str)
def test_what_makes_no_array_of_the_other_arguments_library_is_refused(q):
    refuse(DTypeError, ["cross_entropy(", "q="], information.cross_entropy, HALF, q)
    refuse(DTypeError, ["cross_entropy(", "q="], information.cross_entropy, torch.tensor(HALF), q)


@pytest.mark.parametrize("impossible", ["x", None, [1, 2]], ids=str)
def test_the_information_of_an_impossible_event_is_a_number(impossible):
    parts = ["information_content(impossible=", str(impossible)]
    refuse(ArgumentError, parts, information.information_content, HALF, impossible=impossible)


def test_one_hot_labels_are_integers_in_range():
    refuse(LabelError, ["one_hot(", "labels=", "5", "row 1", "[0, 3)"], information.one_hot, [0, 5], 3)
    refuse(LabelError, ["one_hot(", "-1", "row 0"], information.one_hot, [-1], 3)
    refuse(DTypeError, ["one_hot(", "labels=", "float64"], information.one_hot, [0.0, 1.0], 3)
    for classes in (0, -1, 2.5, "3", None, math.nan, math.inf, [3]):
        refuse(ArgumentError, ["one_hot(classes=", str(classes), "1 or more"], information.one_hot, [0], classes)
    refuse(DTypeError, ["one_hot(dtype=", "nonsense"], information.one_hot, [0], 3, dtype="nonsense")


LIKELIHOODS = {
    "label": (LabelError, [0, 2], [HALF, HALF], ["y_true=", "2", "row 1", "[0, 2)"]),
    "negative label": (LabelError, [0, -1], [HALF, HALF], ["y_true=", "-1", "row 1"]),
    "rows": (ShapeError, [0], [HALF, HALF], ["y_true=", "(1,)", "2 rows"]),
    "one-hot": (ShapeError, [[1, 0], [0, 1]], [HALF, HALF], ["y_true=", "(2, 2)"]),
    "a column": (ShapeError, [0, 1], HALF, ["y_proba=", "(2,)", "1 - p"]),
    "floats": (DTypeError, [0.0, 1.0], [HALF, HALF], ["y_true=", "float64"]),
    "sum": (DistributionError, [0, 1], [HALF, [0.5, 0.6]], ["y_proba=", "row 1", "1.1"]),
    "nan": (DistributionError, [0, 1], [HALF, [0.5, math.nan]], ["y_proba=", "nan"]),
}


@pytest.mark.parametrize("call", [likelihood, log_likelihood, negative_log_likelihood], ids=lambda call: call.__name__)
@pytest.mark.parametrize(("error", "y_true", "y_proba", "parts"), LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_bad_likelihood_arguments_are_refused(call, error, y_true, y_proba, parts):
    refuse(error, [f"{call.__name__}(", *parts], call, y_true, y_proba)


def test_an_unknown_reduction_of_the_likelihood_is_refused():
    parts = ["negative_log_likelihood(reduction=", "'max'", "'mean'"]
    refuse(ObjectiveError, parts, negative_log_likelihood, [0], [HALF], reduction="max")


@pytest.mark.parametrize("log", ["x", None, [1.0]], ids=str)
def test_a_likelihood_is_made_from_a_number(log):
    refuse(ArgumentError, ["Likelihood.from_log(log=", str(log)], Likelihood.from_log, log)
    assert str(Likelihood.from_log(math.inf)) == "inf"


def test_without_the_check_nothing_is_refused():
    """check=False is for tracing: wrong values give what the formula gives, and still the right shapes."""
    assert math.isnan(information.entropy([math.nan, 1.0], check=False))
    assert information.entropy([0.5, 0.6], check=False) > 0
    assert negative_log_likelihood([0], [[0.5, 0.6]], check=False) == pytest.approx(math.log(2), rel=1e-15)


def test_errors_survive_pickling():
    """They cross process borders, in pytest-xdist as in a cluster."""
    for error in (ArgumentError, DistributionError, DTypeError, LabelError, ObjectiveError, ShapeError):
        again = pickle.loads(pickle.dumps(error("what happened")))
        assert type(again) is error
        assert str(again) == "what happened"
