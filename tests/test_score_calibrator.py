"""`Calibrator`: each kind is what its definition says, gains on rows that it has not seen, and comes back from JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import polars as pl
import pytest
from scipy import optimize, special
from sklearn.isotonic import IsotonicRegression
from typer.testing import CliRunner

import xent
from xent.cli import load
from xent.errors import ArgumentError, DataError, DistributionError, LabelError, ShapeError
from xent.information import softmax
from xent.scoring import Calibrator

KINDS = ("temperature", "vector", "isotonic")
CLASSES = 3


def rows(number=3000, seed=0, classes=CLASSES):
    """Predictions that are too confident and favour class 1, with labels drawn from calibrated ones."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(number, classes))
    labels = (z + rng.gumbel(size=z.shape)).argmax(axis=1)
    return softmax(2 * z + 0.7 * (np.arange(classes) == 1)), labels


P, Y = rows()
TEST_P, TEST_Y = rows(seed=1)
WEIGHT = np.random.default_rng(2).exponential(size=len(Y))


def loss(p, y, weight=None):
    return np.average(-np.log(p[np.arange(len(y)), y]), weights=weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["even", "weighted"])
def test_it_improves_rows_that_it_has_not_seen_by_about_the_gain_it_states(kind, weight):
    found = Calibrator.fit(P, Y, kind=kind, weight=weight)
    calibrated = found.transform(TEST_P)
    assert calibrated.sum(axis=1) == pytest.approx(1.0, rel=1e-14)
    gain = loss(TEST_P, TEST_Y) - loss(calibrated, TEST_Y)
    assert gain > 0.05
    assert found.gain_low_nats < found.gain_nats < found.gain_high_nats
    # Two samples of equal size: their difference is within 4 standard errors of it.
    width = (found.gain_high_nats - found.gain_low_nats) / (2 * 1.96)
    assert abs(gain - found.gain_nats) < 4 * math.sqrt(2) * width
    assert found.rows == len(Y)


def test_a_temperature_minimises_the_loss():
    found = Calibrator.fit(P, Y, weight=WEIGHT)
    best = optimize.minimize_scalar(
        lambda t: loss(special.softmax(np.log(P) / t, axis=1), Y, WEIGHT), bounds=(0.1, 10), method="bounded"
    )
    assert found.temperature == pytest.approx(best.x, rel=1e-4)
    assert found.transform(P) == pytest.approx(special.softmax(np.log(P) / found.temperature, axis=1), rel=1e-12)
    assert (found.transform(P).argmax(axis=1) == P.argmax(axis=1)).all()


def test_at_the_optimum_of_a_vector_the_residuals_are_orthogonal_to_scale_and_bias():
    found = Calibrator.fit(P, Y, kind="vector", weight=WEIGHT)
    residual = (found.transform(P) - np.eye(CLASSES)[Y]) * (WEIGHT / WEIGHT.sum())[:, np.newaxis]
    assert np.abs(residual.sum(axis=0)).max() < 1e-6
    assert np.abs((residual * np.log(P)).sum(axis=0)).max() < 1e-6
    assert found.parameters.bias[1] < min(found.parameters.bias[0], found.parameters.bias[2])
    assert math.fsum(found.parameters.bias) == pytest.approx(0, abs=1e-12)
    expected = special.softmax(np.array(found.parameters.scale) * np.log(P) + found.parameters.bias, axis=1)
    assert found.transform(P) == pytest.approx(expected, rel=1e-12)


def test_isotonic_is_scikit_learns_with_a_row_at_each_end():
    found = Calibrator.fit(P, Y, kind="isotonic")
    columns = []
    for c in range(CLASSES):
        x, y = np.r_[P[:, c], 0.0, 1.0], np.r_[c == Y, True, False].astype(float)
        columns.append(IsotonicRegression(out_of_bounds="clip").fit(x, y).predict(TEST_P[:, c]))
    expected = np.stack(columns, axis=1)
    assert found.transform(TEST_P) == pytest.approx(expected / expected.sum(axis=1, keepdims=True), rel=1e-12)
    plain = IsotonicRegression(out_of_bounds="clip").fit(P[:, 0], (Y == 0).astype(float)).predict(TEST_P[:, 0])
    assert (plain == 0).any() or (plain == 1).any(), "otherwise the rows at the ends are not needed"
    assert found.transform(TEST_P).min() > 0


def test_an_impossible_class_stays_impossible_but_for_isotonic():
    p, y = P.copy(), Y.copy()
    p[:500, 2] = 0.0
    p /= p.sum(axis=1, keepdims=True)
    wrong = (y[:500] == 2).sum()
    for kind in ("temperature", "vector"):
        found = Calibrator.fit(p, y, kind=kind)
        assert found.rows == len(y) - wrong
        assert (found.transform(p)[:500, 2] == 0).all()
        assert np.isfinite(found.transform(p)).all()
    isotonic = Calibrator.fit(p, y, kind="isotonic")
    assert isotonic.transform(p).min() > 0
    assert isotonic.gain_nats is None, "the loss was infinite before"
    with pytest.raises(DataError, match="isotonic"):
        Calibrator.fit([[0.0, 1.0]] * 3, [0, 0, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_logits_a_table_and_distributions_say_the_same(kind, tmp_path):
    expected = Calibrator.fit(P, Y, kind=kind)
    score = xent.score(P, Y)
    assert Calibrator.fit(score, kind=kind).transform(TEST_P) == pytest.approx(expected.transform(TEST_P), rel=1e-5)
    from_logits = Calibrator.fit(np.log(P) + 5, Y, kind=kind, logits=True)
    assert from_logits.transform(TEST_P) == pytest.approx(expected.transform(TEST_P), rel=1e-6)
    assert expected.transform(np.log(TEST_P) - 3, logits=True) == pytest.approx(expected.transform(TEST_P), rel=1e-9)
    soft = Calibrator.fit(P, np.eye(CLASSES)[Y], kind=kind)
    assert soft.transform(TEST_P) == pytest.approx(expected.transform(TEST_P), rel=1e-6)
    table = pl.DataFrame({"y": Y, **{f"p_{k}": P[:, k] for k in range(CLASSES)}})
    table.write_parquet(tmp_path / "p.parquet")
    for data in (table, tmp_path / "p.parquet"):
        assert Calibrator.fit(data, "y", proba="p_*", kind=kind) == expected


def test_a_column_of_one_class_is_calibrated_as_a_column():
    p, y = P[:, 0] / (P[:, 0] + P[:, 2]), (Y == 0).astype(int)
    for kind in KINDS:
        found = Calibrator.fit(p, y, kind=kind)
        wide = found.transform(np.c_[1 - p, p])
        assert found.transform(p) == pytest.approx(wide[:, 1], rel=1e-12)
        assert loss(wide, y) < loss(np.c_[1 - p, p], y)


@pytest.mark.parametrize("kind", KINDS)
def test_json_both_ways_is_the_same_calibrator(kind):
    names = ["a", "b", "</script>"]
    found = Calibrator.fit(P, np.array(names)[Y], kind=kind, classes=names)
    again = Calibrator.from_json(found.to_json())
    assert again == found
    assert again.classes == ["a", "b", "</script>"]
    np.testing.assert_array_equal(again.transform(TEST_P), found.transform(TEST_P))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["record"], "xent score"),
        (["schema"], 2),
        (["kind"], "other"),
        (["classes"], ["a"]),
        (["rows"], -1),
        (["extra"], 1),
        (["parameters", "scale"], [1.0]),
        (["parameters", "scale"], [-1.0, 1.0, 1.0]),
        (["parameters", "scale"], [1e300, 1.0, 1.0]),
        (["parameters", "bias"], ["x"] * 3),
        (["parameters", "steps"], [{"x": [0.0], "y": [0.5]}]),
    ],
)
def test_what_is_no_calibrator_is_refused(path, value):
    written = json.loads(Calibrator.fit(P[:50], Y[:50], kind="vector").to_json())
    entry = written
    for name in path[:-1]:
        entry = entry[name]
    entry[path[-1]] = value
    for text in (json.dumps(written), "", "[" * 100_000, "{}"):
        with pytest.raises(DataError, match="to_json"):
            Calibrator.from_json(text)


@pytest.mark.parametrize("steps", [{"x": [], "y": []}, {"x": [0.0, 1.0], "y": [0.9, 0.1]}, {"x": [0.5], "y": [0.0]}])
def test_steps_that_are_no_function_to_probabilities_are_refused(steps):
    written = json.loads(Calibrator.fit(P[:50], Y[:50], kind="isotonic").to_json())
    written["parameters"]["steps"][0] = steps
    with pytest.raises(DataError, match="non-decreasing"):
        Calibrator.from_json(json.dumps(written))


def test_few_rows_have_no_gain():
    found = Calibrator.fit(P[:15], Y[:15])
    assert (found.gain_nats, found.gain_low_nats, found.gain_high_nats) == (None, None, None)
    assert Calibrator.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (ArgumentError, "kind", lambda: Calibrator.fit(P, Y, kind="sigmoid")),
        (ArgumentError, "beside a Score", lambda: Calibrator.fit(xent.score(P, Y), Y)),
        (ArgumentError, "probability for each class", lambda: Calibrator.fit(xent.score([-1.0], log_prob=True))),
        (ArgumentError, "logits=True", lambda: Calibrator.fit(P, Y, logits="z_*")),
        (LabelError, "9", lambda: Calibrator.fit(P, np.full(len(Y), 9))),
        (
            DistributionError,
            "row 2: a sum of 6",
            lambda: Calibrator.fit(np.where(np.arange(3000)[:, None] == 2, 2.0, P), Y),
        ),
        (DataError, "weight 0", lambda: Calibrator.fit(P, Y, weight=np.zeros(len(Y)))),
        (ShapeError, "3 classes", lambda: Calibrator.fit(P, Y).transform(P[:, :2])),
        (DistributionError, "row 0 .*logits=True", lambda: Calibrator.fit(P, Y).transform(np.log(P))),
    ],
)
def test_what_cannot_be_calibrated_is_named(error, words, call):
    with pytest.raises(error, match=words):
        call()


# The command.


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrate")
    names = np.array(list("abc"))
    for name, p, y in (("fit.parquet", P, Y), ("new.parquet", TEST_P, TEST_Y)):
        columns = {"id": np.arange(len(y)), "y": names[y], **{f"p_{c}": p[:, k] for k, c in enumerate(names)}}
        pl.DataFrame(columns).write_parquet(folder / name)
    return folder


def run(*arguments):
    return CliRunner().invoke(load(), ["calibrate", *map(str, arguments)])


@pytest.mark.parametrize("suffix", ["parquet", "csv", "arrow"])
def test_the_command_writes_a_calibrator_and_applies_it(files, suffix):
    saved, out = files / f"{suffix}.json", files / f"out.{suffix}"
    fitted = run(files / "fit.parquet", saved, "--label", "y", "--proba", "p_*", "--kind", "vector")
    assert fitted.exit_code == 0, fitted.output
    assert "class b" in fitted.output
    applied = run(files / "new.parquet", out, "--proba", "p_*", "--calibrator", saved)
    assert applied.exit_code == 0, applied.output
    calibrator = Calibrator.from_json(saved.read_text())
    reader = {"parquet": pl.read_parquet, "csv": pl.read_csv, "arrow": pl.read_ipc}[suffix]
    table = reader(out)
    assert table.columns == ["id", "y", "p_a", "p_b", "p_c"]
    assert table.select("p_a", "p_b", "p_c").to_numpy() == pytest.approx(calibrator.transform(TEST_P), rel=1e-14)
    before, after = (xent.score(file, "y", proba="p_*").cross_entropy.nats for file in (files / "new.parquet", out))
    assert after < before - 0.05


def test_the_command_fits_and_applies_at_once_and_matches_classes_by_name(files):
    table = pl.read_parquet(files / "fit.parquet")
    table.select("id", "y", "p_c", "p_a", "p_b").write_parquet(files / "other.parquet")
    assert run(files / "fit.parquet", files / "t.json", "--label", "y", "--proba", "p_*").exit_code == 0
    assert run(files / "fit.parquet", files / "one.csv", "--label", "y", "--proba", "p_*").exit_code == 0
    done = run(files / "other.parquet", files / "two.csv", "--proba", "p_*", "--calibrator", files / "t.json")
    assert done.exit_code == 0, done.output
    one, two = (pl.read_csv(files / name) for name in ("one.csv", "two.csv"))
    assert two.select(one.columns).equals(one)


def test_logits_stay_and_probabilities_come_beside_them(files):
    z = pl.DataFrame({"y": Y, **{f"z_{k}": np.log(P[:, k]) for k in range(CLASSES)}})
    z.write_parquet(files / "z.parquet")
    assert run(files / "z.parquet", files / "z.csv", "--label", "y", "--logits", "z_*").exit_code == 0
    found = pl.read_csv(files / "z.csv")
    assert found.columns == ["y", "z_0", "z_1", "z_2", "p_0", "p_1", "p_2"]
    expected = Calibrator.fit(np.log(P), Y, logits=True).transform(P)
    assert found.select("p_0", "p_1", "p_2").to_numpy() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("endings", ["fit.parquet", "out.xlsx", "--label", "y", "--proba", "p_*"]),
        ("this is", ["fit.parquet", "fit.parquet", "--label", "y", "--proba", "p_*"]),
        ("kind", ["fit.parquet", "k.json", "--label", "y", "--proba", "p_*", "--kind", "x"]),
        ("to_json", ["fit.parquet", "k.csv", "--proba", "p_*", "--calibrator", "fit.json"]),
        ("cannot be read", ["fit.parquet", "k.csv", "--proba", "p_*", "--calibrator", "none.json"]),
        ("classes", ["fit.parquet", "k.csv", "--proba", "p_a", "--calibrator", "good.json"]),
    ],
)
def test_the_command_names_what_is_wrong_and_writes_nothing(files, words, arguments):
    (files / "fit.json").write_text("{}")
    (files / "good.json").write_text(Calibrator.fit(P, np.array(list("abc"))[Y], classes=list("abc")).to_json())
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    found = run(*(files / a if "." in a else a for a in arguments))
    assert found.exit_code == 2, found.output
    assert words in " ".join(found.stderr.split())
    assert {path.name: path.read_bytes() for path in files.iterdir()} == before
