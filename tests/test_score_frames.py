"""`xent.score` gives the same figures wherever the predictions lie, and however they are divided."""

from __future__ import annotations

import dataclasses
import math
import os
import sys

import dask.dataframe
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest

import xent
from xent import information
from xent.errors import ArgumentError, DataError, DistributionError, DTypeError, LabelError, ShapeError
from xent.scoring import ids, readers

ROWS, CLASSES = 400, ("bee", "ant", "cow")


def table(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, len(CLASSES))) * 2
    labels = (logits / 1.5 + rng.gumbel(size=logits.shape)).argmax(axis=1)
    p = information.softmax(logits)
    return pl.DataFrame(
        {
            "name": [f"r{i}" for i in range(rows)],
            "animal": [CLASSES[k] for k in labels],
            **{f"p_{name}": p[:, k] for k, name in enumerate(CLASSES)},
            **{f"z_{name}": logits[:, k] for k, name in enumerate(CLASSES)},
            "probabilities": p,
            "weight": rng.exponential(size=rows),
            "where": rng.choice(["north", "south"], rows),
            "log_p": np.log(p[np.arange(rows), labels]),
            "entropy": information.entropy(p),
            "code": labels,
        }
    )


TABLE = table()
ROLES = {"label": "animal", "proba": "p_*", "weight": "weight", "id": "name", "by": "where"}
PLAIN = TABLE.drop("probabilities")


def same(found, expected, ulps=4):
    """To the rounding of the last operations: the sums are compensated."""
    one, other = found.to_dict(), expected.to_dict()
    assert one.keys() == other.keys()
    for name in one:
        assert abs(one[name] - other[name]) <= ulps * 2.0**-52 * abs(other[name]), name
    assert [(r.id, r.loss, r.likeliest) for r in found.surprising] == [
        (r.id, r.loss, r.likeliest) for r in expected.surprising
    ]
    assert [(s.value, s.rows) for s in found.segments["where"]] == [
        (s.value, s.rows) for s in expected.segments["where"]
    ]


@pytest.fixture(scope="module")
def expected():
    """Straight from arrays, by the kernels."""
    return xent.score(
        TABLE["probabilities"].to_numpy(),
        TABLE["animal"].to_numpy(),
        classes=CLASSES,
        weight=TABLE["weight"].to_numpy(),
        id=TABLE["name"].to_numpy(),
        by={"where": TABLE["where"].to_numpy()},
    )


@pytest.fixture(scope="module")
def spark():
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    session = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("OFF")
    yield session
    session.stop()


@pytest.fixture
def in_spark(spark, tmp_path):
    """A table as a Spark frame."""

    def written(frame, partitions=3):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        frame.write_parquet(path)
        return spark.read.parquet(str(path)).repartition(partitions)

    return written


def in_dask(frame, partitions=3):
    return dask.dataframe.from_pandas(frame.to_pandas(), npartitions=partitions)


# The same figures from everywhere.

LOCAL = {
    "polars": lambda t: t,
    "polars lazy": lambda t: t.lazy(),
    "pandas": lambda t: t.to_pandas(),
    "pandas with another index": lambda t: t.to_pandas().set_index("code", drop=False),
    "pyarrow": lambda t: t.to_arrow(),
}


@pytest.mark.parametrize("library", LOCAL)
def test_a_frame_in_memory_scores_as_its_arrays(library, expected):
    same(xent.score(LOCAL[library](PLAIN), **ROLES), expected)


def test_duckdb_scores_as_arrays(expected):
    predictions = PLAIN.to_arrow()
    relation = duckdb.connect().from_arrow(predictions)
    same(xent.score(relation, **ROLES), expected)
    same(xent.score(relation.filter("true"), **ROLES), expected)


def test_an_iterator_of_frames_scores_as_arrays(expected):
    same(xent.score((part for part in PLAIN.iter_slices(90)), **ROLES), expected)
    same(xent.score(iter(PLAIN.to_arrow().to_batches(90)), **ROLES), expected)
    same(xent.score((part.to_pandas() for part in PLAIN.iter_slices(90)), **ROLES), expected)
    with pytest.raises(DataError, match="no batches"):
        xent.score(iter([]), **ROLES)


@pytest.mark.parametrize("partitions", [1, 7])
def test_dask_scores_as_arrays(partitions, expected):
    frame = in_dask(PLAIN, partitions)
    same(xent.score(frame, **ROLES), expected)
    without_ids = xent.score(frame, **{**ROLES, "id": None})
    places = {name: place for place, name in enumerate(PLAIN["name"])}
    assert {r.row for r in without_ids.surprising[:9]} == {places[r.id] for r in expected.surprising[:9]}


@pytest.mark.parametrize("partitions", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_spark_scores_as_arrays(in_spark, partitions, expected):
    same(xent.score(in_spark(PLAIN, partitions), **ROLES), expected)


def test_spark_and_dask_name_rows_that_cannot_be_scored(in_spark):
    broken = PLAIN.with_columns(p_bee=pl.col("p_bee") * 1.1)
    for frame in (in_spark(broken), in_dask(broken)):
        with pytest.raises(DistributionError, match=r"id r\d+\): a sum of 1\.0"):
            xent.score(frame, **ROLES)
    other = PLAIN.with_columns(animal=pl.lit("yak"))
    for frame in (in_spark(other), in_dask(other)):
        with pytest.raises(LabelError, match="yak"):
            xent.score(frame, **ROLES)
    twice = PLAIN.with_columns(name=pl.lit("same"))
    for frame in (in_spark(twice), in_dask(twice)):
        with pytest.raises(DataError, match="several rows"):
            xent.score(frame, **ROLES)


@pytest.mark.slow
def test_spark_columns_of_vectors_maps_and_structures_and_with_dots(spark):
    from pyspark.ml.linalg import Vectors
    from pyspark.sql import functions

    rows = [
        ("cat", Vectors.dense([0.5, 0.5]), {"cat": 0.5, "dog": 0.5}, 0.5, 0.5, "p.cat"),
        ("dog", Vectors.sparse(2, [0, 1], [0.25, 0.75]), {"dog": 0.75, "cat": 0.25}, 0.25, 0.75, "p.dog"),
    ]
    frame = spark.createDataFrame(rows, ["y", "probability", "m", "p.cat", "p.dog", "whole"])
    frame = frame.withColumn("s", functions.struct(frame["m"]["cat"].alias("cat"), frame["m"]["dog"].alias("dog")))
    expected = -math.log(0.5 * 0.75) / 2
    for proba, label in (("probability", "y"), ("m", "y"), ("s.*", "y"), ("p.*", "whole")):
        options = {"classes": ["cat", "dog"]} if proba == "probability" else {}
        found = xent.score(frame, label, proba=proba, **options)
        assert found.cross_entropy.nats == pytest.approx(expected, rel=1e-15), proba


def test_dask_labels_that_are_called_otherwise():
    frame = in_dask(PLAIN.with_columns(animal="p_" + pl.col("animal")))
    assert xent.score(frame, "animal", proba="p_*").rows == ROWS
    skipped = in_dask(PLAIN.with_columns(animal=pl.when(pl.col("code") == 0).then(None).otherwise("animal")))
    found = xent.score(skipped, "animal", proba="p_*", invalid="skip")
    assert found.left_out == {"no label": int((PLAIN["code"] == 0).sum())}


WRITERS = {
    "parquet": lambda t, path: t.write_parquet(path),
    "csv": lambda t, path: t.write_csv(path),
    "arrow": lambda t, path: t.write_ipc(path),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_a_folder_and_a_pattern_score_as_arrays(kind, tmp_path, expected):
    WRITERS[kind](PLAIN, tmp_path / f"all.{kind}")
    same(xent.score(tmp_path / f"all.{kind}", **ROLES), expected)
    parts = tmp_path / "parts"
    parts.mkdir()
    for k, rows in enumerate(np.array_split(np.arange(ROWS), 7)):
        WRITERS[kind](PLAIN[rows], parts / f"part-{k}.{kind}")
    same(xent.score(str(parts), **ROLES), expected)
    same(xent.score(str(parts / f"part-*.{kind}"), **ROLES), expected)


def test_array_files_score_as_arrays(tmp_path, expected):
    p, code = TABLE["probabilities"].to_numpy(), TABLE["code"].to_numpy()
    np.savez(tmp_path / "a.npz", q=p, y=code, w=TABLE["weight"].to_numpy())
    np.save(tmp_path / "p.npy", p)
    np.save(tmp_path / "y.npy", code)
    found = xent.score(tmp_path / "a.npz", label="y", proba="q", weight="w")
    assert found.cross_entropy == expected.cross_entropy
    plain = xent.score(tmp_path / "p.npy", label=str(tmp_path / "y.npy"))
    assert plain.cross_entropy == xent.score(p, code).cross_entropy


@pytest.mark.parametrize("chunks", [1, 7, 200])
def test_the_size_of_batches_does_not_matter(chunks, monkeypatch, tmp_path, expected):
    monkeypatch.setattr(readers, "batch_rows", lambda columns: math.ceil(ROWS / chunks))
    PLAIN.write_parquet(tmp_path / "a.parquet", row_group_size=50)
    same(xent.score(tmp_path / "a.parquet", **ROLES), expected)
    same(xent.score(PLAIN, **ROLES), expected)


# What a column can be.


def test_logits_a_list_column_and_an_array_column_score_as_wide_probabilities():
    wide = xent.score(TABLE, "animal", proba="p_*")
    lists = TABLE.with_columns(pl.col("probabilities").arr.to_list())
    for found in (
        xent.score(TABLE, "animal", proba="probabilities", classes=CLASSES),
        xent.score(lists, "animal", proba="probabilities", classes=CLASSES),
        xent.score(lists.to_arrow(), "animal", proba="probabilities", classes=CLASSES),
        xent.score(lists, "code", proba="probabilities"),
        xent.score(TABLE, "animal", proba=["p_cow", "p_bee", "p_ant"], classes=["cow", "bee", "ant"]),
    ):
        assert found.cross_entropy == wide.cross_entropy
    logits = xent.score(TABLE, "animal", logits="z_*")
    assert logits.cross_entropy.nats == pytest.approx(wide.cross_entropy.nats, rel=1e-14)


def test_the_order_of_the_classes_is_the_one_given_and_labels_find_their_columns_by_name():
    given = ("cow", "ant", "bee")
    found = xent.score(TABLE, "animal", proba="p_*", classes=given)
    assert tuple(c.name for c in found.classes) == given
    assert found.cross_entropy == xent.score(TABLE, "animal", proba="p_*").cross_entropy


def test_a_class_without_rows_is_fine():
    frame = TABLE.filter(pl.col("animal") != "cow")
    found = xent.score(frame, "animal", proba="p_*")
    assert found.classes[2].weight == 0
    assert math.isnan(found.classes[2].loss)
    assert any("cow" in warning for warning in found.warnings)


def test_one_column_is_binary_with_numbers_booleans_or_names():
    p = TABLE["p_bee"]
    y = TABLE["animal"] == "bee"
    frame = pl.DataFrame({"p": p, "bool": y, "int": y.cast(pl.Int8), "float": y.cast(pl.Float64)})
    frame = frame.with_columns(name=pl.when(y).then(pl.lit("yes")).otherwise(pl.lit("no")))
    expected = -np.log(np.where(y, p, 1 - p)).mean()
    for label in ("bool", "int", "float"):
        assert xent.score(frame, label, proba="p").cross_entropy.nats == pytest.approx(expected, rel=1e-14)
    named = xent.score(frame, "name", proba="p", classes=["no", "yes"])
    assert named.cross_entropy.nats == pytest.approx(expected, rel=1e-14)


def test_narrow_rows_know_the_loss_and_nothing_of_the_classes():
    found = xent.score(TABLE, log_prob="log_p", entropy="entropy", by="where")
    wide = xent.score(TABLE, "animal", proba="p_*", by="where")
    assert found.cross_entropy.nats == pytest.approx(wide.cross_entropy.nats, rel=1e-15)
    assert found.entropy.nats == pytest.approx(TABLE["entropy"].mean(), rel=1e-14)
    assert math.isnan(found.brier)
    assert "accuracy" not in found.to_dict()
    assert len(found.segments["where"]) == 2


def test_soft_labels_are_matched_by_name():
    frame = TABLE.with_columns(t_cow=0.25 * pl.lit(1), t_ant=0.5 * pl.lit(1), t_bee=0.25 * pl.lit(1))
    target = np.array([0.25, 0.5, 0.25])
    expected = information.cross_entropy(target, TABLE["probabilities"].to_numpy()).mean()
    assert xent.score(frame, "t_*", proba="p_*").cross_entropy.nats == pytest.approx(expected, rel=1e-14)


def test_float32_probabilities_are_not_turned_away():
    frame = PLAIN.with_columns(pl.selectors.starts_with("p_").cast(pl.Float32))
    found = xent.score(frame, "animal", proba="p_*")
    assert found.cross_entropy.nats == pytest.approx(xent.score(PLAIN, "animal", proba="p_*").cross_entropy.nats, 1e-6)


def test_the_rows_scored_so_far_are_told():
    told = []
    xent.score(TABLE.lazy(), **ROLES, progress=told.append)
    assert told[-1] == ROWS
    assert told == sorted(told)


# What cannot be scored.


def broken(**columns):
    return PLAIN.with_columns(**columns)


BAD = {
    "no such column": (PLAIN, {"label": "nothing"}, ArgumentError, ["'nothing'", "animal"]),
    "no label": (PLAIN, {"label": None}, ArgumentError, ["which column", "animal"]),
    "a pattern without a match": (PLAIN, {"proba": "q_*"}, ArgumentError, ["'q_*'", "p_bee"]),
    "nothing to score": (PLAIN, {"proba": None}, ArgumentError, ["proba, logits, log_prob", "exactly one"]),
    "other classes": (PLAIN, {"classes": ["a", "b", "c"]}, ArgumentError, ["bee, ant, cow", "a, b, c"]),
    "an unseen label": (broken(animal=pl.lit("yak")), {}, LabelError, ["yak", "row 0", "bee, ant, cow"]),
    "a missing label": (broken(animal=pl.lit(None, pl.String)), {}, DataError, ["row 0", "no label"]),
    "a sum of 1.1": (broken(p_bee=pl.col("p_bee") + 0.1), {}, DistributionError, ["sum of 1.1", "id r"]),
    "NaN": (broken(p_bee=pl.lit(math.nan)), {}, DistributionError, ["not a probability"]),
    "a missing probability": (broken(p_bee=pl.lit(None, pl.Float64)), {}, DistributionError, ["not a probability"]),
    "a negative weight": (broken(weight=pl.lit(-1.0)), {}, DistributionError, ["weight"]),
    "text among the numbers": (broken(p_bee=pl.lit("x")), {}, DataError, ["'p_bee'", "String"]),
    "a repeated id": (broken(name=pl.lit("same")), {}, DataError, ["repeat the id"]),
    "a missing id": (broken(name=pl.lit(None, pl.String)), {}, DataError, ["no id"]),
    "no rows": (PLAIN.head(0), {}, DataError, ["no rows"]),
    "lists of two lengths": (
        broken(q=pl.Series([[0.5, 0.5]] * (ROWS - 1) + [[1.0]])),
        {"proba": "q"},
        DataError,
        ["lists of 1 to 2"],
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("lazily", [False, True])
def test_bad_input_is_named(case, lazily):
    frame, changed, error, words = BAD[case]
    with pytest.raises(error) as caught:
        xent.score(frame.lazy() if lazily else frame, **{**ROLES, **changed})
    for word in words:
        assert word in str(caught.value)


OPTIONS = {
    "label": [5, [], ["animal", 5], b"animal"],
    "proba": [5, [], ["p_bee", None]],
    "weight": [5, ["weight"]],
    "id": [5, ["name"]],
    "by": [5, None, "nothing"],
    "classes": [5, "bee", ["bee", "bee", "cow"]],
    "clip": ["x", 0, 2, math.nan, [1]],
    "tolerance": ["x", -1, math.nan],
    "worst": ["x", -1, 1.5, None],
    "invalid": [5, "x"],
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_that_no_call_can_use_are_named(option):
    for value in OPTIONS[option]:
        with pytest.raises(ArgumentError, match=option):
            xent.score(PLAIN, **{**ROLES, option: value})


P = np.array([[0.5, 0.5], [0.25, 0.75]])
BAD_ARRAYS = {
    "no classes": (np.ones((2, 0)), [0, 1], {}, ShapeError, ["proba", "(2, 0)"]),
    "three axes": (np.ones((2, 2, 2)), [0, 1], {}, ShapeError, ["proba", "(2, 2, 2)"]),
    "ragged": ([[0.5, 0.5], [1.0]], [0, 1], {}, DTypeError, ["proba"]),
    "text": (np.array([["a", "b"]] * 2), [0, 1], {}, DTypeError, ["proba", "<U1"]),
    "complex": (P * 1j, [0, 1], {}, DTypeError, ["proba", "complex128"]),
    "ragged labels": (P, [[0, 1], [1]], {}, DTypeError, ["label"]),
    "labels of no kind": (P, [object(), object()], {}, DTypeError, ["label"]),
    "labels that are NaN": (P, [math.nan, 1.0], {}, LabelError, ["NaN", "row 0"]),
    "one label": (P, 5, {}, ShapeError, ["label", "()", "2 rows"]),
    "one weight": (P, [0, 1], {"weight": 5}, ShapeError, ["weight", "()", "2 rows"]),
    "weights as a column": (P, [0, 1], {"weight": [[1], [1]]}, ShapeError, ["weight", "(2, 1)"]),
    "weights of text": (P, [0, 1], {"weight": ["a", "b"]}, DTypeError, ["weight", "<U1"]),
    "ragged ids": (P, [0, 1], {"id": [[1], [2, 3]]}, DTypeError, ["id"]),
    "ids as a table": (P, [0, 1], {"id": [[1, 2], [3, 4]]}, ShapeError, ["ids", "(2, 2)"]),
    "segments without a name": (P, [0, 1], {"by": 5}, ArgumentError, ["by", "mapping"]),
    "a class twice": (P, ["a", "a"], {"classes": ["a", "a"]}, ArgumentError, ["classes", "twice"]),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_named(case):
    data, label, options, error, words = BAD_ARRAYS[case]
    with pytest.raises(error) as caught:
        xent.score(data, label, **options)
    assert isinstance(caught.value, xent.XentError)
    for word in words:
        assert word in str(caught.value)


def test_a_tensor_of_a_kind_that_is_no_probability_is_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(DTypeError, match="Float8"):
        xent.score(torch.tensor(P).to(torch.float8_e4m3fn), [0, 1])


def renamed(names):
    frame = PLAIN.to_pandas()
    frame.columns = names
    return frame


BAD_FRAMES = {
    "a name twice": lambda: renamed(["animal"] * PLAIN.width),
    "text among the numbers": lambda: PLAIN.to_pandas().assign(p_bee=[0.5, "x"] * (ROWS // 2)),
    "text among the numbers, in Dask": lambda: in_dask(PLAIN.with_columns(p_bee=pl.lit("x"))),
    "an iterator of numbers": lambda: iter([5]),
    "an iterator of frames and numbers": lambda: iter([PLAIN, 5]),
    "an iterator of other tables": lambda: iter([PLAIN, PLAIN.drop("p_bee")]),
}


@pytest.mark.parametrize("case", BAD_FRAMES)
def test_frames_that_other_libraries_stumble_over_are_refused(case):
    with pytest.raises((DataError, DTypeError)):
        xent.score(BAD_FRAMES[case](), **ROLES)


def test_broken_files_of_arrays_are_named(tmp_path):
    good = tmp_path / "good.npz"
    np.savez(good, proba=P, y=np.array([0, 1]))
    written = good.read_bytes()
    np.savez(tmp_path / "objects.npz", proba=np.array([None, 1]), y=np.array([0, 1]))
    (tmp_path / "text.npz").write_bytes(b"no array")
    (tmp_path / "short.npz").write_bytes(written[:-30])
    (tmp_path / "inside.npz").write_bytes(written[:100] + bytes(40) + written[140:])
    os.symlink("nowhere", tmp_path / "link.csv")
    for name in ("objects.npz", "text.npz", "short.npz", "inside.npz", "link.csv", "x" * 300):
        with pytest.raises(DataError, match=name[:9]):
            xent.score(tmp_path / name, "y")
    with pytest.raises(ArgumentError, match="no array 5"):
        xent.score(good, 5)


def test_rows_that_cannot_be_scored_are_left_out_and_named_when_asked():
    frame = broken(p_bee=pl.when(pl.col("name") == "r3").then(0.9).otherwise(pl.col("p_bee")))
    found = xent.score(frame, **ROLES, invalid="skip")
    rest = xent.score(PLAIN.filter(pl.col("name") != "r3"), **ROLES)
    assert found.invalid_rows == 1
    assert found.to_record()["invalid"][0]["id"] == "r3"
    assert found.cross_entropy == rest.cross_entropy


def test_too_many_ids_to_remember_are_said_to_be_unchecked(monkeypatch):
    monkeypatch.setattr(ids, "MOST_CHECKED_IDS", 100)
    assert any("checked" in warning for warning in xent.score(PLAIN, **ROLES).warnings)
    # The sample still finds a repetition.
    with pytest.raises(DataError, match="several rows"):
        xent.score(broken(name=pl.lit("same")), **ROLES)


def test_what_is_no_table_is_refused():
    with pytest.raises(DTypeError, match="PySpark"):
        xent.score({"a": 1}, "a", proba="p")
    with pytest.raises(DataError, match="no such file"):
        xent.score("nowhere.parquet", "a", proba="p")


def test_a_pandas_frame_is_not_changed():
    frame = PLAIN.to_pandas()
    before = frame.copy()
    xent.score(frame, **ROLES)
    pd.testing.assert_frame_equal(frame, before)


def test_scores_are_plain_and_frozen():
    found = xent.score(PLAIN, **ROLES)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.rows = 1
