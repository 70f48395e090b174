"""The rows of the data that the report of `xent why` shows, and the options that are about them."""

from __future__ import annotations

import dataclasses
import json
import webbrowser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn import datasets
from typer.testing import CliRunner

from xent.cli import load as load_cli
from xent.errors import DataError
from xent.report.why_story import rows as page_rows
from xent.why import Settings, load, run
from xent.why.data import prepare
from xent.why.examples import LARGEST_SIDE, LONGEST_VALUE, examples, plane, separation

SMALL = Settings(seeds=(0,), epochs=2, learning_rates=(0.1, 1.0))


def invoke(*arguments):
    return CliRunner().invoke(load_cli(), list(arguments))


@pytest.fixture(scope="module")
def iris():
    return load("iris")


@pytest.fixture(scope="module")
def record(iris):
    return run(iris, SMALL)


def test_examples_are_test_rows_with_their_labels_and_values(iris, record):
    features = datasets.load_iris().data
    test_rows = {int(row) for row in prepare(iris).test_rows}
    rows = record.examples.rows
    assert [row.kind for row in rows] == ["worst"] * 6 + ["disputed"] * 6 + ["best"] * 6
    assert len({row.row for row in rows}) == 18
    for row in rows:
        assert row.row - 1 in test_rows
        assert row.label == iris.labels[row.row - 1]
        np.testing.assert_allclose(row.values, features[row.row - 1], rtol=1e-6)
        assert row.classes == (0, 1, 2)


def test_predictions_of_examples_agree_with_their_losses(record):
    for row in record.examples.rows:
        for found in (row.start, row.by_cross_entropy, row.by_squared_error):
            q = np.array(found.probabilities)
            assert q.sum() == pytest.approx(1, abs=1e-5)
            place = row.classes.index(row.label)
            assert found.cross_entropy_nats == pytest.approx(-np.log(q[place]), rel=1e-3, abs=1e-5)
            difference = q - np.eye(3)[place]
            assert found.squared_error == pytest.approx((difference**2).sum(), rel=1e-3, abs=1e-9)
            assert found.cross_entropy_gradient == pytest.approx(np.linalg.norm(difference), rel=1e-3, abs=1e-6)
            slope = 2 * q * (difference - (q * difference).sum())
            assert found.squared_error_gradient == pytest.approx(np.linalg.norm(slope), rel=1e-3, abs=1e-6)


def test_kinds_are_ordered_by_what_they_are_named_for(record):
    rows = record.examples.rows
    cost = [row.by_cross_entropy.cross_entropy_nats + row.by_squared_error.cross_entropy_nats for row in rows]
    assert cost[:6] == sorted(cost[:6], reverse=True)
    assert cost[12:] == sorted(cost[12:])
    assert max(cost) == cost[0]
    apart = [
        np.abs(np.subtract(r.by_cross_entropy.probabilities, r.by_squared_error.probabilities)).sum()
        for r in rows[6:12]
    ]
    np.testing.assert_array_less(np.diff(apart), 1e-5)


def test_many_classes_and_long_values_stay_small(iris):
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 40
    many = dataclasses.replace(
        iris,
        labels=labels,
        classes=tuple(f"class {k}" for k in range(40)),
        numbers=rng.normal(size=(400, 30)) + labels[:, None] * np.arange(30),
        categories=np.array([["long " * 50], ["short"]] * 200, dtype=object),
        columns=(*(f"x{k}" for k in range(30)), "text"),
    )
    splits = prepare(many)
    parameters = [rng.normal(size=(40, splits.test.features.shape[1])), np.zeros(40)]
    found = examples(parameters, {"cross-entropy": parameters, "squared error": parameters}, many, splits)
    assert len(found.columns) == 12
    assert found.columns_in_source == 31
    for row in found.rows:
        assert len(row.classes) == len(row.start.probabilities) == 10
        assert row.label in row.classes
        assert all(len(value) <= LONGEST_VALUE for value in row.values if isinstance(value, str))
    drawn = plane(many, splits)
    assert len(drawn.classes) == 3
    assert len(drawn.columns) == 6
    assert set(drawn.labels) == {0, 1, 2}


def test_separation_is_the_share_of_the_variance_between_classes():
    labels = np.array([0, 0, 1, 1])
    columns = np.array([[0.0, 5.0, 1.0], [0.0, 5.0, 3.0], [1.0, 5.0, 1.0], [1.0, 5.0, 3.0]])
    np.testing.assert_allclose(separation(columns, labels), [1.0, 0.0, 0.0], atol=1e-12)


def test_a_plane_needs_two_numeric_columns(iris):
    one = dataclasses.replace(iris, numbers=iris.numbers[:, :1], columns=("x",))
    assert plane(one, prepare(one)) is None


def test_rows_of_a_sample_are_numbered_as_in_their_source(tmp_path):
    source = pl.DataFrame({"x": range(12_000), "y": ["a", "b"] * 6_000})
    source.write_parquet(tmp_path / "long.parquet")
    found = load(tmp_path / "long.parquet", "y")
    assert len(found.labels) == 10_000
    np.testing.assert_array_equal(found.numbers[:, 0], found.row_numbers)


def pictures(tmp_path, rows, columns):
    rng = np.random.default_rng(1)
    table = pl.DataFrame(rng.integers(0, 256, (60, rows * columns)), schema=[f"p{k}" for k in range(rows * columns)])
    path = tmp_path / "pictures.parquet"
    table.with_columns(kind=pl.Series(["a", "b"] * 30)).write_parquet(path)
    return path, table.to_numpy()


def test_pictures_are_pixels_in_the_order_of_the_columns(tmp_path):
    path, values = pictures(tmp_path, 4, 6)
    record = run(load(path, "kind", image="4x6"), SMALL)
    assert record.examples.image == (4, 6)
    low, high = values.min(), values.max()
    for row in record.examples.rows:
        expected = ((values[row.row - 1] - low) * (255 / (high - low))).round()
        np.testing.assert_array_equal(row.pixels, expected)
        assert row.values == ()
    assert [column.name for column in record.plane.columns[:2]] == ["principal component 1", "principal component 2"]
    assert page_rows(record.to_dict())["image"] == [4, 6]


def test_large_pictures_are_averaged_down(tmp_path):
    path, values = pictures(tmp_path, 40, 64)
    record = run(load(path, "kind", image="40x64"), SMALL)
    assert record.examples.image == (LARGEST_SIDE, LARGEST_SIDE)
    row = record.examples.rows[0]
    low, high = values.min(), values.max()
    expected = (values[row.row - 1].reshape(40, 64)[0:1, 0:2].mean() - low) * 255 / (high - low)
    assert row.pixels[0] == pytest.approx(expected, abs=0.51)


@pytest.mark.parametrize(
    ("image", "words"),
    [("8by8", "ROWSxCOLUMNS"), ("0x4", "ROWSxCOLUMNS"), ("3x3", "9 pixels, and the table has 4 numeric columns")],
)
def test_what_is_no_picture_is_refused(image, words):
    with pytest.raises(DataError, match=words):
        load("iris", image=image)


def test_options_share_and_open(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    result = invoke("why", "iris", "--quick", "--epochs", "3", "--share", "--open", "--out", "report")
    assert result.exit_code == 0, result.output
    assert opened == [(tmp_path / "report" / "why.html").as_uri()]
    found = json.loads(Path("report/why.json").read_text())
    assert (found["examples"], found["plane"]) == (None, None)
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    result = invoke("why", "iris", "--quick", "--epochs", "3", "--open", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["examples"]["columns_in_source"] == 4
    assert "no browser was found" in result.stderr


def test_a_picture_of_another_size_is_exit_code_2(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke("why", "iris", "--image", "5x5")
    assert result.exit_code == 2
    assert "--image 5x5" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_documents_describe_each_part_of_the_record(record):
    text = (Path(__file__).parents[1] / "docs" / "reference" / "why.md").read_text()
    for key in record.to_dict():
        assert f"`{key}`" in text, key
