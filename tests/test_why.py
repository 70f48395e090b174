"""The experiment is fair, repeatable, and says what it measured."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import polars as pl
import pytest

import xent.numpy
from xent.errors import ArgumentError, DataError
from xent.why import Settings, load, run
from xent.why.data import Dataset, Split, prepare
from xent.why.experiment import Lab, _beyond
from xent.why.gradient_descent import Descent, Evaluation, evaluation_steps, initial_parameters, logits_of, train
from xent.why.measures import comparisons, steps_to_reach
from xent.why.record import LOSSES, MODELS, STARTS, Curve, Record, Run

SMALL = Settings(seeds=(0, 1), epochs=3, learning_rates=(0.1, 1.0))


@pytest.fixture(scope="module")
def iris() -> Dataset:
    return load("iris")


@pytest.fixture(scope="module")
def record(iris: Dataset) -> Record:
    return run(iris, SMALL)


# ------------------------------------------------------------------------------------------------------------- the data


BUILT_IN = [("digits", 1797, 10), ("wine", 178, 3), ("breast_cancer", 569, 2)]


@pytest.mark.parametrize(("name", "rows", "classes"), BUILT_IN)
def test_built_in_data_are_whole(name, rows, classes):
    dataset = load(name)
    assert len(dataset.labels) == rows
    assert len(dataset.classes) == classes
    assert set(dataset.labels) == set(range(classes))


def test_split_is_stratified_disjoint_and_scaled_by_the_training_rows(iris):
    splits = prepare(iris)
    assert [len(s.labels) for s in (splits.train, splits.validation, splits.test)] == [90, 30, 30]
    assert (np.bincount(splits.test.labels) == 10).all()
    # Mean 0 and deviation 1 of the training rows alone: the others had no part in the scaling.
    np.testing.assert_allclose(splits.train.features.mean(axis=0), 0, atol=1e-14)
    np.testing.assert_allclose(splits.train.features.std(axis=0), 1, rtol=1e-14)
    assert abs(splits.everything.features.mean(axis=0)).max() > 1e-3


def test_file_columns_become_numbers_and_one_hot_categories(tmp_path):
    path = tmp_path / "table.csv"
    rows = [f"{i},{'red' if i % 3 else 'blue'},{'yes' if i % 2 else 'no'}" for i in range(30)]
    path.write_text("\n".join(["number,colour,answer", *rows]))
    dataset = load(str(path), "answer")
    assert dataset.classes == ("no", "yes")
    assert dataset.numbers[:, 0].tolist() == list(range(30))
    features = prepare(dataset).everything.features
    assert features.shape == (30, 3)
    assert set(features[:, 1:].sum(axis=1)) == {1.0}


@pytest.mark.parametrize("data", [None, 5, b"iris", ["iris"]], ids=str)
def test_what_names_no_data_is_refused(data):
    with pytest.raises(ArgumentError, match="data"):
        load(data)


@pytest.mark.parametrize("data", ["irs", "x" * 300, "a\0b", "."], ids=lambda name: name[:3])
def test_a_file_that_is_not_there_is_named(data):
    with pytest.raises(DataError, match="no such file"):
        load(data)


def test_columns_are_named_by_text_and_one_name_is_one_column(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["size,id,answer", *(f"{i % 7},{i},{i % 2}" for i in range(30))]))
    assert load(path, "answer", "id").numbers.shape == (30, 1)
    for options in ({"label": 5}, {"label": "answer", "drop": 5}, {"label": "answer", "drop": None}):
        with pytest.raises(ArgumentError, match="label"):
            load(path, **options)


@pytest.mark.parametrize(
    ("column", "values"), [("feature", [[1], [2]]), ("answer", [[1], [2]]), ("answer", [{"a": 1}, {"a": 2}])], ids=str
)
def test_columns_of_lists_and_structs_are_refused(tmp_path, column, values):
    columns = {"feature": list(range(30)), "answer": [0, 1] * 15, column: values * 15}
    pl.DataFrame(columns).write_parquet(tmp_path / "table.parquet")
    with pytest.raises(DataError, match=r"table\.parquet"):
        load(str(tmp_path / "table.parquet"), "answer")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("seeds", [(), 5, ("a",), (-1,)]),
        ("epochs", [0, "x", 1.5]),
        ("batch_size", [0, None]),
        ("hidden_units", [0, -1]),
        ("learning_rates", [(), (0,), (-1.0, 1.0), ("x",), 1.0, (math.inf,)]),
    ],
)
def test_settings_that_no_training_can_use_are_refused(name, values):
    for value in values:
        with pytest.raises(ArgumentError, match=name):
            Settings(**{name: value})


def test_the_experiment_runs_on_a_data_set(iris):
    for arguments in (("iris",), (iris, {"epochs": 3})):
        with pytest.raises(ArgumentError, match="dataset, settings"):
            run(*arguments)


# --------------------------------------------------------------------------------------------------------- the training


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("loss", LOSSES)
def test_step_follows_the_finite_difference_of_the_loss(iris, model, loss):
    """One step moves each parameter by -learning_rate times a derivative that is measured, not derived."""
    rows = prepare(iris).train
    batch = Split(rows.features[:7], rows.labels[:7])
    value = xent.numpy.cross_entropy if loss == "cross-entropy" else xent.numpy.squared_error
    start = initial_parameters(model, 4, 3, 5, seed=3)
    (trained,) = train([Descent(start, loss, 1.0, seed=0)], batch, None, epochs=1, batch_size=7)
    after = trained.parameters
    h = 1e-5
    for which, parameter in enumerate(start):
        index = tuple(np.zeros(parameter.ndim, dtype=int))
        values = []
        for sign in (1, -1):
            moved = [p.copy() for p in start]
            moved[which][index] += sign * h
            values.append(float(value(logits_of(moved, batch.features), batch.labels)))
        measured = (values[0] - values[1]) / (2 * h)
        # The central difference errs by h^2 and by rounding / h, both about 1e-10 here.
        assert (start[which] - after[which])[index] == pytest.approx(measured, rel=1e-6, abs=1e-9)


def test_training_depends_on_its_seed_and_start_only(iris):
    rows = prepare(iris).train
    start = initial_parameters("one hidden layer", 4, 3, 5, seed=0)
    kept = [p.copy() for p in start]

    def trained(seed):
        return train([Descent(start, "cross-entropy", 0.3, seed)], rows, None, epochs=2, batch_size=16)[0].parameters

    first, again, other = trained(1), trained(1), trained(2)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))
    assert all((a == b).all() for a, b in zip(start, kept, strict=True)), "the start is shared and must not change"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("seeds", [(1, 1, 1, 1), (1, 2, 1, 3)], ids=["one order", "orders"])
def test_trainings_that_are_done_together_are_those_done_alone(iris, model, seeds):
    """Bit for bit: what else is in the batch changes nothing, and nor does a neighbour that diverges."""
    rows = prepare(iris).train
    descents = [
        Descent(initial_parameters(model, 4, 3, 5, seed=seed), loss, rate, seed)
        for seed, loss, rate in zip(seeds, (*LOSSES, *LOSSES), (0.1, 1.0, 1.7e308, 3.0), strict=True)
    ]

    def measure(step, which, parameters):
        return Evaluation(step, float(logits_of(parameters, rows.features).sum()))

    together = train(descents, rows, measure, epochs=2, batch_size=16)
    for descent, found in zip(descents, together, strict=True):
        (alone,) = train([descent], rows, measure, epochs=2, batch_size=16)
        for a, b in zip(alone.parameters, found.parameters, strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(*([dataclasses.astuple(e) for e in t.evaluations] for t in (alone, found)))
    assert not np.isfinite(together[2].parameters[0]).all(), "this one should have diverged"
    assert [e.step for e in together[0].evaluations] == evaluation_steps(90, 2, 16) == list(range(13))


def test_test_rows_are_used_for_no_choice(iris):
    """Wrong labels and features of all test rows change neither the learning rates tried nor those chosen."""

    def searched(splits):
        lab = Lab(iris, splits, SMALL, lambda what, done, total: None)
        return lab.search("random") + lab.search("confidently wrong")

    splits = prepare(iris)
    spoilt = Split(splits.test.features[::-1] * 7, (splits.test.labels + 1) % 3)
    assert searched(splits) == searched(dataclasses.replace(splits, test=spoilt))


def test_search_for_a_learning_rate_goes_on_while_the_best_is_at_an_end():
    assert _beyond({0.1: 0.5, 1.0: 0.9, 3.0: 0.7}) is None
    assert _beyond({0.1: 0.5, 1.0: 0.9}) == 3.0
    assert _beyond({0.1: 0.5, 0.3: 0.8, 3.0: 0.9}) == 10.0
    assert _beyond({0.1: 0.9, 1.0: 0.5}) == 0.03


def test_an_error_stops_the_trainings_beside_it(iris):
    """Such as that of a progress bar whose terminal is gone: nothing trains on for nobody."""
    calls = []

    def progress(task, done, total):
        calls.append(done)
        if len(calls) > 20:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run(iris, SMALL, progress)
    assert len(calls) < 30


def test_progress_counts_trainings_up_to_their_number(iris):
    reported: dict[str, list[tuple[int, int]]] = {}
    run(iris, SMALL, lambda task, done, total: reported.setdefault(task, []).append((done, total)))
    assert list(reported) == ["learning rates, random start", "learning rates, confidently wrong start", "the race"]
    race = reported["the race"]
    assert race[0] == (0, 16)
    assert max(race) == (16, 16)
    assert len({done for done, _ in race}) > 8, "the bar should move while trainings go on"


# ----------------------------------------------------------------------------------------------------------- the record


def test_record_holds_each_start_model_loss_and_seed_once(record):
    keys = [(r.start, r.model, r.loss, r.seed) for r in record.runs]
    assert len(keys) == len(set(keys)) == len(STARTS) * len(MODELS) * len(LOSSES) * len(SMALL.seeds)


def test_each_run_uses_the_learning_rate_that_its_own_search_chose(record):
    chosen = {(t.start, t.model, t.loss): t for t in record.learning_rates if t.chosen}
    for r in record.runs:
        trial = chosen[r.start, r.model, r.loss]
        assert r.learning_rate == trial.learning_rate
        rivals = [t for t in record.learning_rates if (t.start, t.model, t.loss) == (r.start, r.model, r.loss)]
        assert trial.score == max(t.score for t in rivals)


def test_both_losses_start_from_the_same_parameters(record):
    for start in STARTS:
        for model in MODELS:
            for seed in SMALL.seeds:
                first = {
                    (r.curve.accuracy[0], r.curve.cross_entropy_nats[0], r.curve.squared_error[0])
                    for r in record.runs
                    if (r.start, r.model, r.seed) == (start, model, seed)
                }
                assert len(first) == 1


def test_record_is_json_and_repeats(record, iris):
    again = run(iris, SMALL)
    a, b = json.loads(json.dumps(record.to_dict(), allow_nan=False)), again.to_dict()
    b = json.loads(json.dumps(b, allow_nan=False))
    assert a.pop("seconds") > 0
    b.pop("seconds")
    assert a == b


def test_information_identities_hold_on_the_predictions(record):
    part = record.information
    assert part.largest_residual_nats < 1e-13
    assert part.label_entropy_nats == 0
    assert part.label_cross_entropy_nats == pytest.approx(part.label_mean_surprisal_nats, rel=1e-14)
    assert part.label_kl_divergence_nats == pytest.approx(part.label_mean_surprisal_nats, rel=1e-13)
    assert all(s.kl_divergence >= 0 and s.kl_divergence_reversed >= 0 for s in part.samples)


def test_negative_log_likelihood_is_rows_times_mean_cross_entropy(record):
    for point in record.likelihood.training:
        assert -point.log_likelihood_nats == pytest.approx(150 * point.mean_cross_entropy_nats, rel=1e-5)
    after = record.likelihood.after
    assert after.points[-1].log10 == pytest.approx(after.log_likelihood_nats / math.log(10), rel=1e-5)


# ------------------------------------------------------------------------------------------------------- the comparison


def _run(loss, steps, accuracy):
    curve = Curve((0, 1), (0.0, accuracy), (1.0, 0.5), (1.0, 0.5))
    return Run("random", MODELS[0], loss, 0, 0.1, curve, steps)


def test_comparison_names_the_winner_the_tie_and_the_level_never_reached():
    runs = [_run("cross-entropy", (10, 20, None), 0.9), _run("squared error", (10, None, None), 0.95)]
    found = {c.measure: c for c in comparisons(runs + _others(runs), (0.5, 0.8, 0.9)) if _is_first(c)}
    assert found["steps to 50.0% test accuracy"].winner == "tie"
    assert found["steps to 80.0% test accuracy"].winner == "cross-entropy"
    assert found["steps to 80.0% test accuracy"].squared_error.median == math.inf
    assert found["steps to 90.0% test accuracy"].winner == "tie"
    assert found["final test accuracy"].winner == "squared error"
    assert found["final test accuracy"].clear


def test_a_training_that_diverged_never_wins():
    runs = [_run("cross-entropy", (1,), math.nan), _run("squared error", (1,), 0.1)]
    found = {c.measure: c for c in comparisons(runs + _others(runs), (0.5,)) if _is_first(c)}
    assert found["final test accuracy"].winner == "squared error"


def _is_first(c):
    return (c.start, c.model) == (STARTS[0], MODELS[0])


def _others(runs):
    """The same runs for the other starts and models."""
    return [
        dataclasses.replace(r, start=s, model=m)
        for r in runs
        for s in STARTS
        for m in MODELS
        if (s, m) != (STARTS[0], MODELS[0])
    ]


def test_steps_to_reach_is_the_first_crossing():
    evaluations = [Evaluation(i * 5, 0, a, 0, 0, 0) for i, a in enumerate([0.1, 0.6, 0.4, 0.8])]
    assert steps_to_reach(evaluations, (0.1, 0.5, 0.8, 0.9)) == (0, 5, 15, None)


def test_on_digits_cross_entropy_recovers_from_a_confidently_wrong_start_first():
    """What the default report says, in small: the softmax regression on real digits."""
    found = run(load("digits"), Settings(seeds=(0,), epochs=4, learning_rates=(0.3, 1.0)))
    stalled = [c for c in found.comparisons if c.start == "confidently wrong" and c.unit == "steps"]
    assert stalled
    assert all(c.winner == "cross-entropy" or c.cross_entropy.median == math.inf for c in stalled)
    # Before training the product of 1,797 probabilities of about 0.1 is 10^-1797, and 0 in float64.
    assert found.likelihood.before.float64_product == 0
    assert 300 < found.likelihood.before.rows_until_underflow < 350
    assert "e-1" in found.likelihood.before.likelihood
