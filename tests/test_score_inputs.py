"""Reading as people need it: labels as text, separators, folders, rounding, joins, invalid rows, words."""

from __future__ import annotations

import http.server
import json
import math
import os
import re
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from typer.testing import CliRunner

import xent
from xent.cli import load
from xent.errors import ArgumentError, DataError, DistributionError, LabelError
from xent.scoring import ScoreState
from xent.scoring.rounding import find_rounding


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


def invoke(*arguments, **options):
    return CliRunner().invoke(load(), list(map(str, arguments)), **options)


def nats(data, *arguments, **options):
    return xent.score(data, *arguments, **options).cross_entropy.nats


def write(name, text):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
    return name


# Text: S1, S2, S12.


def test_types_do_not_depend_on_the_first_rows():
    lines = ["1,1,0"] * 12_000 + ["1,0.5,0.5"]
    write("late.csv", "y,p_1,p_2\n" + "\n".join(lines) + "\n")
    assert nats("late.csv", "y", proba="p_*") == pytest.approx(math.log(2) / 12_001, rel=1e-12)
    write("parts/a.csv", "y,p_1,p_2\n")
    write("parts/b.csv", "y,p_1,p_2\n2,0.5,0.5\n")
    write("parts/c.csv", "p_2,p_1,y\n0.25,0.75,1\n")
    assert nats("parts", "y", proba="p_*") == pytest.approx(-math.log(0.5 * 0.75) / 2, rel=1e-14)


def test_labels_and_ids_of_a_text_are_text():
    write("a.csv", "id,v,p_1.1,p_1.10,w\n007,1.10,0.1,0.9,1\n7,1.1,0.9,0.1,1\n18446744073709551617,1.10,0.1,0.9,2\n")
    found = xent.score("a.csv", "v", proba="p_*", id="id", weight="w")
    assert found.cross_entropy.nats == pytest.approx(-math.log(0.9), rel=1e-14)
    assert {row.id for row in found.surprising} == {"007", "7", "18446744073709551617"}
    write("b.csv", "zip,p_02134,p_99999\n02134,0.5,0.5\n")
    assert xent.score("b.csv", "zip", proba="p_*").surprising[0].label == "02134"


def test_ids_beyond_64_bits_in_typed_files():
    frame = pl.DataFrame({"id": [2**63, 2**63 + 1], "y": [0, 1], "p": [0.5, 0.5]}, schema_overrides={"id": pl.UInt64})
    assert {row.id for row in xent.score(frame, "y", proba="p", id="id").surprising} == {str(2**63), str(2**63 + 1)}


def test_missing_numbers_are_found_wherever_they_are(monkeypatch):
    from xent.scoring import readers

    monkeypatch.setattr(readers, "batch_rows", lambda columns: 100)
    lines = [f"{k},1,{0.25 + 0.5 * (k % 2)}" for k in range(50_000)]
    lines[40_000], lines[40_001], lines[49_999] = "40000,1,NA", "", "49999,1,"
    write("a.csv", "id,y,p\n" + "\n".join(lines) + "\n")
    found = xent.score("a.csv", "y", proba="p", id="id", invalid="skip")
    assert found.left_out == {"a value that is not a probability": 2}
    assert found.rows == 49_997
    expected = -(24_999 * math.log(0.25) + 24_998 * math.log(0.75)) / 49_997
    assert found.cross_entropy.nats == pytest.approx(expected, rel=1e-12)


def test_blank_lines_are_no_rows():
    for text in ("y,p\n1,0.5\n\n", "y,p\r\n1,0.5\r\n\r\n\r\n", "y,p\n\n1,0.5\n"):
        write("a.csv", text)
        found = xent.score("a.csv", "y", proba="p")
        assert found.rows == 1
    write("b.csv", "id,y,p\n1,1,0.5\n2,,\n")
    with pytest.raises(DataError, match="row 1 has no label"):
        xent.score("b.csv", "y", proba="p")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("decimal", [".", ","])
def test_separators_and_decimal_commas_are_found_out(separator, decimal):
    if separator == decimal:
        return
    lines = ["name y p q", "a,b 1 0.25 0.75", "c 0 0.5 0.5", "d 1 1e-3 0.999"]
    text = "\n".join(separator.join(line.split(" ")) for line in lines).replace(".", decimal)
    text = text if separator != "," else text.replace("a,b", '"a,b"')
    write("a.csv", text + "\n")
    expected = -math.log(0.75 * 0.5 * 0.999) / 3
    found = xent.score("a.csv", "y", proba=["p", "q"], classes=["0", "1"], id="name" if separator == "," else None)
    assert found.cross_entropy.nats == pytest.approx(expected, rel=1e-14)
    assert nats("a.csv", "y", proba=["p", "q"], classes=["0", "1"], separator=separator) == found.cross_entropy.nats


def test_a_number_with_thousands_is_no_decimal_comma():
    write("a.tsv", "y\tp\tw\n1\t0.5\t1,234\n")
    with pytest.raises(DataError, match="line 2, column 'w': '1,234' is not a number"):
        xent.score("a.tsv", "y", proba="p", weight="w")


def test_a_file_without_a_header_is_said_to_have_none():
    write("a.csv", "1,0.25,0.75\n0,0.5,0.5\n")
    found = xent.score("a.csv", "column_1", proba=["column_2", "column_3"], classes=["0", "1"])
    assert found.rows == 2
    assert any("no header" in warning for warning in found.warnings)
    write("b.csv", "y,0,1\n1,0.25,0.75\n")
    assert xent.score("b.csv", "y", proba=["0", "1"]).rows == 1


def test_text_that_is_not_utf8_names_the_way_out():
    Path("a.csv").write_bytes("y,p\né,0.5\n".encode("latin1"))
    Path("b.csv").write_bytes("y,p\né,0.5\n".encode("utf-16"))
    for name in ("a.csv", "b.csv"):
        result = invoke("score", name, "--label", "y", "--proba", "p")
        assert result.exit_code == 2
        assert "UTF-8" in result.stderr


def test_a_column_name_twice_is_an_error_only_for_a_column_that_is_used():
    write("a.csv", "y,x,x,p\n1,a,b,0.5\n")
    assert xent.score("a.csv", "y", proba="p").rows == 1
    with pytest.raises(DataError, match="several columns are named 'x'"):
        xent.score("a.csv", "y", proba="p", by="x")


# Folders, JSON, structures: S13.


def test_folders_named_by_a_value_are_columns_of_text():
    for country, day in (("de", "01"), ("fr", "1"), ("__HIVE_DEFAULT_PARTITION__", "a%20b")):
        pl.DataFrame({"y": [1], "p": [0.5]}).write_parquet(
            Path("t") / f"c={country}" / f"d={day}" / "x.parquet", mkdir=True
        )
        write(f"u/c={country}/d={day}/x.csv", "y,p\n1,0.5\n")
    Path("t/_SUCCESS").touch()
    for folder in ("t", "t/*/*/*.parquet", "u"):
        found = xent.score(folder, "y", proba="p", by=["c", "d"])
        assert {s.value for s in found.segments["c"]} == {"de", "fr", "(missing)"}
        assert {s.value for s in found.segments["d"]} == {"01", "1", "a b"}


def test_a_delta_table_is_refused_because_its_log_says_which_files_count():
    write("t/_delta_log/0.json", "{}")
    pl.DataFrame({"y": [1], "p": [0.5]}).write_parquet("t/a.parquet")
    with pytest.raises(DataError, match="Delta"):
        xent.score("t", "y", proba="p")


def test_a_missing_part_is_no_smaller_table():
    write("t/a.csv", "y,p\n1,0.5\n")
    Path("t/b.csv").symlink_to("nowhere.csv")
    with pytest.raises(DataError, match="cannot be read"):
        xent.score("t", "y", proba="p")


def test_dots_reach_into_structures_unless_a_column_is_called_so():
    frame = pl.DataFrame({"y": ["a", "b"], "q": [{"a": 0.5, "b": 0.5}, {"a": 0.25, "b": 0.75}]})
    expected = -math.log(0.5 * 0.75) / 2
    for data in (frame, frame.lazy(), frame.to_arrow()):
        for proba in ("q", "q.*", ["q.a", "q.b"]):
            assert nats(data, "y", proba=proba) == pytest.approx(expected, rel=1e-14)
    dotted = frame.with_columns(pl.Series("q.a", [0.25, 0.25]), pl.Series("q.b", [0.75, 0.75]))
    assert nats(dotted, "y", proba="q.*") == pytest.approx(-math.log(0.25 * 0.75) / 2, rel=1e-14)


def test_json_lines_with_what_json_does_not_have_name_it():
    write("a.jsonl", '{"y": 1, "p": 0.5}\n{"y": 0, "p": NaN}\n')
    result = invoke("score", "a.jsonl", "--label", "y", "--proba", "p")
    assert result.exit_code == 2
    assert "write null" in result.stderr


def test_explode_repeats_the_other_columns_and_numbers_the_ids():
    lines = [
        {"doc": "a", "lp": [-1.0, -2.0], "n": [1, 1]},
        {"doc": "b", "lp": [], "n": []},
        {"doc": "c", "lp": [-3.0], "n": [2]},
    ]
    write("a.jsonl", "\n".join(map(json.dumps, lines)))
    found = xent.score("a.jsonl", log_prob="lp", explode="lp", id="doc", by="doc")
    assert found.cross_entropy.nats == 2.0
    assert [row.id for row in found.surprising] == ["c[0]", "a[1]", "a[0]"]
    both = xent.score("a.jsonl", log_prob="lp", weight="n", explode=["lp", "n"])
    assert both.cross_entropy.nats == 9 / 4
    with pytest.raises(ArgumentError, match="'doc' has no lists"):
        xent.score("a.jsonl", log_prob="lp", explode="doc")


@pytest.mark.parametrize("dtype", [pl.Float16, pl.Float32, pl.Decimal(10, 4)])
def test_a_type_of_few_digits_is_held_to_its_own_rounding(dtype):
    """S11: a 16-bit column is off by more than a 32-bit one."""
    p = np.random.default_rng(0).dirichlet(np.ones(10), 200)
    frame = pl.DataFrame({f"p_{k}": p[:, k] for k in range(10)}).select(pl.all().cast(dtype))
    frame = frame.with_columns(y=pl.Series(np.arange(200) % 10))
    assert xent.score(frame, "y", proba="p_*").rows == 200
    frame.write_parquet("a.parquet")
    assert xent.score("a.parquet", "y", proba="p_*").rows == 200


def test_a_probability_a_rounding_above_1_counts_as_1():
    for above in (1 + 2**-52, 1 + 1e-7):
        assert xent.score(np.array([above, 0.5]), [1, 1]).cross_entropy.nats == pytest.approx(math.log(2) / 2)
        assert xent.score(pl.DataFrame({"y": [1], "p": [above]}), "y", proba="p").cross_entropy.nats == 0.0
    with pytest.raises(DistributionError, match=r"has 1\.01"):
        xent.score(np.array([1.01]), [1])


# Arrays: S14, bfloat16, columns.


def test_logits_in_memory_and_what_torch_has():
    z, y = np.random.default_rng(0).normal(size=(50, 3)), np.arange(50) % 3
    expected = -np.log(np.exp(z)[np.arange(50), y] / np.exp(z).sum(axis=1)).mean()
    assert nats(z, y, logits=True) == pytest.approx(expected, rel=1e-14)
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(z, requires_grad=True)
    assert nats(tensor, torch.tensor(y), logits=True) == pytest.approx(expected, rel=1e-14)
    half = torch.softmax(tensor, 1).bfloat16()
    rounded = half.detach().double().numpy()
    assert nats(half, torch.tensor(y)) == pytest.approx(-np.log(rounded[np.arange(50), y]).mean(), rel=1e-14)
    with pytest.raises(ArgumentError, match="logits=True"):
        xent.score(z, y, logits="p_*")


def test_one_column_of_an_array_is_the_probability_of_class_1():
    p, y = np.array([0.25, 0.5, 0.75]), [0, 1, 1]
    assert nats(p[:, None], y) == nats(p, y) == nats(np.stack([1 - p, p], 1), y)
    assert nats(np.ones((3, 1)), [0, 0, 0]) == 0.0, "one class, whose probability is 1 in each row"
    assert nats(np.ones((3, 1)), [1, 1, 1], classes=["0", "1"]) == 0.0
    lists = pl.DataFrame({"y": y, "q": p.reshape(-1, 1).tolist()})
    assert nats(lists, "y", proba="q") == nats(p, y)


def test_columns_of_pandas_that_are_no_text():
    """S4."""
    p = np.array([[0.5, 0.5], [0.25, 0.75]])
    expected = -math.log(0.5 * 0.75) / 2
    frame = pd.DataFrame(p)
    frame["y"] = [0, 1]
    assert nats(frame, "y", proba=["0", "1"]) == pytest.approx(expected, rel=1e-14)
    frame.columns = pd.MultiIndex.from_tuples([("p", "cat"), ("p", "dog"), ("y", "")])
    assert nats(frame.assign(y=["cat", "dog"]), "y", proba="p_*") == pytest.approx(expected, rel=1e-14)
    frame.columns = ["p", "p", "y"]
    with pytest.raises(DataError, match="equal names"):
        xent.score(frame, "y", proba="p")


# Classes: S3.

WAYS = {
    "a stem": ("Class_1", ["Class_1", "Class_2"], "Class_*"),
    "zeros in front": ("1", ["p_00", "p_01"], "p_*"),
    "decimals in the name": ("1", ["p_0.0", "p_1.0"], "p_*"),
    "decimals in the label": ("1.0", ["p_0", "p_1"], "p_*"),
    "listed names": ("1", ["p0", "p1"], ["p0", "p1"]),
    "capitals and blanks": (" dog", ["p_Cat", "p_Dog"], "p_*"),
    "true": ("true", ["p_0", "p_1"], "p_*"),
    "True for yes": ("True", ["p_no", "p_yes"], "p_*"),
    "yes": ("YES", ["p_false", "p_true"], "p_*"),
    "plus one": ("+1", ["p_0", "p_1"], "p_*"),
    "a place": ("1", ["p_cat", "p_dog"], "p_*"),
}
OTHER = {
    "Class_1": "Class_2", "1": "0", "1.0": "0.0", " dog": "CAT",
    "true": "false", "True": "False", "YES": "no", "+1": "-1",
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_labels_find_their_columns(way):
    label, columns, proba = WAYS[way]
    place = 0 if label == "Class_1" else 1
    labels = [OTHER[label], label, label]
    frame = pl.DataFrame({"y": labels, columns[0]: [0.9, 0.2, 0.4], columns[1]: [0.1, 0.8, 0.6]})
    right = [0.1, 0.2, 0.4] if place == 0 else [0.9, 0.8, 0.6]
    expected = -np.log(right).mean()
    frame.write_csv("a.csv")
    for data in (frame, frame.lazy(), frame.to_pandas(), "a.csv", iter([frame])):
        assert nats(data, "y", proba=proba) == pytest.approx(expected, rel=1e-14), data


def test_which_way_it_is_does_not_depend_on_how_rows_are_divided(monkeypatch):
    """The first 2,000 labels fit by name and by place, and only a later one says which it is."""
    from xent.scoring import readers

    monkeypatch.setattr(readers, "batch_rows", lambda columns: 500)
    labels = ["2"] * 2000 + ["3"]
    frame = pl.DataFrame({"y": labels, **{f"p_{n}": [q] * 2001 for n, q in zip("abc", (0.2, 0.3, 0.5), strict=True)}})
    expected = -(2000 * math.log(0.3) + math.log(0.5)) / 2001
    assert nats(frame, "y", proba="p_*") == pytest.approx(expected, rel=1e-12)
    assert any("from 1" in warning for warning in xent.score(frame, "y", proba="p_*").warnings)


def test_two_ways_that_both_fit_are_an_error_that_shows_both():
    frame = pl.DataFrame({"y": [1, 1], "p_a": [0.2, 0.2], "p_b": [0.3, 0.3], "p_c": [0.5, 0.5]})
    with pytest.raises(ArgumentError, match=r"counting from 0, '1' is 'p_b'; counting from 1, 'p_a'.*classes="):
        xent.score(frame, "y", proba="p_*")
    assert nats(frame, "y", proba=["p_a", "p_b", "p_c"], classes=["0", "1", "2"]) == pytest.approx(-math.log(0.3))


def test_names_for_numbered_columns():
    frame = pl.DataFrame({"y": ["dog"], "p_0": [0.25], "p_1": [0.75]})
    assert nats(frame, "y", proba="p_*", classes=["cat", "dog"]) == pytest.approx(-math.log(0.75))
    with pytest.raises(LabelError, match="dog"):
        xent.score(frame, "y", proba="p_*")


def test_other_roles_and_excluded_columns_match_no_pattern():
    frame = pl.DataFrame({"p_y": ["a", "b"], "p_a": [0.5, 0.5], "p_b": [0.5, 0.5], "p_best": ["a", "b"], "p_w": [1, 1]})
    assert xent.score(frame, "p_y", proba="p_*", weight="p_w", exclude="p_best").rows == 2
    with pytest.raises(DataError, match="exclude='p_best'"):
        xent.score(frame, "p_y", proba="p_*", weight="p_w")


# Labels of their own.


def test_labels_are_joined_by_id_in_any_order_and_what_is_missing_is_named():
    p = pl.DataFrame({"id": ["a", "b", "c"], "p": [0.5, 0.25, 0.125]})
    y = pl.DataFrame({"id": ["c", "a", "b"], "y": [1, 1, 1], "w": [1, 0, 1], "s": ["n", "m", "n"]})
    expected = -np.log([0.25, 0.125]).mean()
    for data in (p, p.lazy(), p.to_pandas()):
        found = xent.score(data, "y", proba="p", labels=y, id="id", weight="w", by="s")
        assert found.cross_entropy.nats == pytest.approx(expected, rel=1e-14)
    assert xent.score(p, proba="p", labels=y.select("id", "y"), id="id").rows == 3
    with pytest.raises(DataError, match="the id 'a' of the predictions has no label"):
        xent.score(p, "y", proba="p", labels=y.filter(pl.col("id") != "a"), id="id")
    with pytest.raises(DataError, match="1 of 3 labels have no prediction"):
        xent.score(p.head(2), "y", proba="p", labels=y, id="id")
    with pytest.raises(DataError, match="no id is in both"):
        xent.score(p, "y", proba="p", labels=y.with_columns(id=pl.col("id") + "x"), id="id")
    with pytest.raises(DataError, match="share an id"):
        xent.score(p, "y", proba="p", labels=pl.concat([y, y]), id="id")
    skipped = xent.score(p, "y", proba="p", labels=y.filter(pl.col("id") != "a"), id="id", invalid="skip")
    assert skipped.left_out == {"no label": 1}
    rest = xent.score(p.head(2), "y", proba="p", labels=y, id="id", invalid="skip")
    assert any("1 of the labels have no prediction" in warning for warning in rest.warnings)


def test_labels_in_the_same_order_need_as_many_rows():
    p, y = pl.DataFrame({"p": [0.5, 0.25]}), pl.DataFrame({"y": [1, 0]})
    assert nats(p, "y", proba="p", labels=y) == pytest.approx(-math.log(0.5 * 0.75) / 2)
    for labels in (y.head(1), pl.concat([y, y])):
        with pytest.raises(DataError, match=r"2 predictions and \d labels"):
            xent.score(p, "y", proba="p", labels=labels)
    np.save("p.npy", np.array([[0.5, 0.5], [0.75, 0.25]]))
    y.write_csv("y.csv")
    assert nats("p.npy", labels="y.csv") == pytest.approx(-math.log(0.5 * 0.75) / 2)


def test_labels_of_arrays_are_joined_by_the_ids_that_an_npz_file_has():
    p = np.array([[0.5, 0.5], [0.75, 0.25], [0.1, 0.9]])
    np.savez("p.npz", proba=p, row=np.array(["a", "b", "c"]))
    pl.DataFrame({"row": ["c", "a", "b"], "y": [1, 0, 0]}).write_csv("y.csv")
    assert nats("p.npz", labels="y.csv", id="row") == pytest.approx(-np.log([0.5, 0.75, 0.9]).mean(), rel=1e-14)
    pl.DataFrame({"row": ["c", "a"], "y": [1, 0]}).write_csv("z.csv")
    with pytest.raises(DataError, match="'b' of the predictions has no label"):
        xent.score("p.npz", labels="z.csv", id="row")
    with pytest.raises(ArgumentError, match="'nothing'"):
        xent.score("p.npz", "nothing", labels="y.csv", id="row")
    with pytest.raises(ArgumentError, match="order"):
        xent.score(p, labels=np.array([0, 0, 1]), id=["a", "b", "c"])


# Rounded probabilities: S5.


@pytest.mark.parametrize("decimals", [2, 3, 4, 6])
@pytest.mark.parametrize("kind", ["csv", "parquet", "array", "float32"])
def test_rounded_probabilities_are_scored_by_their_digits(decimals, kind):
    p = np.random.default_rng(decimals).dirichlet(np.ones(8) * 2, 300)
    rounded = np.round(p, decimals)
    y = rounded.argmax(axis=1)
    assert (np.abs(rounded.sum(axis=1) - 1) > 1e-6).any()
    frame = pl.DataFrame({"y": y, **{f"p_{k}": rounded[:, k] for k in range(8)}})
    if kind == "float32":
        found = xent.score(rounded.astype(np.float32), y)
    elif kind == "array":
        found = xent.score(rounded, y)
    else:
        (frame.write_csv if kind == "csv" else frame.write_parquet)("a." + kind)
        found = xent.score(f"a.{kind}", "y", proba="p_*")
    expected = -np.log(rounded[np.arange(300), y]).mean()
    assert found.cross_entropy.nats == pytest.approx(expected, rel=1e-6 if kind == "float32" else 1e-13)
    if kind != "float32" or decimals < 4:
        assert any(f"{decimals} decimals" in warning for warning in found.warnings)


def test_one_row_of_few_digits_does_not_loosen_a_file_of_many():
    p = np.random.default_rng(0).dirichlet(np.ones(3), 50)
    p[7] = [0.5, 0.3, 0.1]
    with pytest.raises(DistributionError, match=r"row 7: a sum of 0\.9 \(0\.5, 0\.3, 0\.1\)"):
        xent.score(p, np.zeros(50, int))


def test_digits_are_those_of_all_values():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), 100)
    for digits in (2, 5, 9):
        assert find_rounding([np.round(p[:50], digits), np.round(p[50:], 2)]).digits == digits
    significant = np.vectorize(lambda v: float(f"{v:.4g}"))(rng.dirichlet(np.ones(40) / 20, 100))
    found = find_rounding([significant])
    assert (found.digits, found.significant) == (4, True)
    assert find_rounding([p]) is None


def test_renormalise_is_explicit_and_recorded():
    p, y = np.array([[2.0, 6.0], [30, 10], [0.5, 0.5]]), [1, 0, 0]
    found = xent.score(p, y, renormalise=True)
    assert found.cross_entropy.nats == pytest.approx(-np.log([0.75, 0.75, 0.5]).mean(), rel=1e-14)
    record = found.to_record()
    assert record["form"]["renormalised"] is True
    assert any("divided by their sum" in warning for warning in record["warnings"])
    with pytest.raises(DistributionError):
        xent.score(np.array([[0.0, 0.0]]), [0], renormalise=True)
    state = ScoreState.from_batch(y, p, renormalise=True)
    assert ScoreState.from_json(state.to_json()).form.renormalised
    with pytest.raises(ArgumentError, match="different forms"):
        state + ScoreState.from_batch([0], [[0.5, 0.5]])


LOOKS = {
    "percentages": (lambda p: 100 * p, "percentages"),
    "logits": (lambda p: np.log(p) + np.random.default_rng(1).normal(size=(len(p), 1)) * 3, "logits"),
    "log-probabilities": (np.log, "log-probabilities"),
    "negative log-likelihoods": (lambda p: -np.log(p), "negative log-likelihoods"),
}


@pytest.mark.parametrize("kind", LOOKS)
def test_other_numbers_than_probabilities_are_recognised(kind):
    p = np.random.default_rng(0).dirichlet(np.ones(4), 100)
    change, words = LOOKS[kind]
    frame = pl.DataFrame({"y": np.arange(100) % 4, **{f"p_{k}": change(p)[:, k] for k in range(4)}})
    frame.write_csv("a.csv")
    with pytest.raises(DistributionError, match=f"look like {words}"):
        xent.score(frame, "y", proba="p_*")
    result = invoke("score", "a.csv", "--label", "y", "--proba", "p_*")
    assert f"look like {words}" in result.stderr
    assert ("--renormalise" if kind == "percentages" else "--logits") in result.stderr


def test_a_message_shows_value_sum_row_and_column_and_the_first_rows():
    p = np.random.default_rng(0).dirichlet(np.ones(3), 9000)
    p[5000, 2], p[7, 1], p[8000, 0] = -0.25, np.nan, p[8000, 0] + 3e-6
    frame = pl.DataFrame({"y": np.zeros(9000, int), **{f"p_{k}": p[:, k] for k in range(3)}})
    with pytest.raises(DistributionError) as caught:
        xent.score(frame, "y", proba="p_*")
    text = str(caught.value)
    assert "row 7: column 'p_1' has no number" in text
    assert "row 5000: column 'p_2' has -0.25" in text
    assert text.index("row 7") < text.index("row 5000") < text.index("row 8000")
    assert "a sum of 1.000003" in text


# Invalid rows and weights: S2, S8.


def test_all_kinds_of_invalid_rows_are_skipped_counted_and_named():
    lines = [
        "1,cat,0.5,0.5,1", "2,,0.5,0.5,1", "3,yak,0.5,0.5,1", "4,dog,NaN,0.5,1", "5,dog,-0.1,1.1,1", "6,dog,0.9,0.5,1",
        "1,dog,0.25,0.75,1", ",dog,0.25,0.75,1", "7,dog,0.25,0.75,-1", "8,dog,0.25,0.75,1", "9,dog,NaN,0.5,0",
        "NA,dog,NA,0.5,1",
    ]  # fmt: skip
    write("a.csv", "id,y,p_cat,p_dog,w\n" + "\n".join(lines) + "\n")
    options = "--label y --proba p_* --id id --weight w --skip-invalid --json a.json"
    result = invoke("score", "a.csv", *options.split(" "))
    assert result.exit_code == 0, result.stderr
    record = json.loads(Path("a.json").read_text())
    assert record["figures"]["cross_entropy_nats"]["value"] == pytest.approx(-np.log([0.5, 0.75]).mean(), rel=1e-14)
    assert record["figures"]["rows"]["value"] == 2
    assert record["figures"]["invalid_rows"]["value"] == 9
    assert record["left_out"] == {
        "a weight of 0": 1, "no label": 1, "a label that is none of the classes": 1,
        "a value that is not a probability": 3, "a sum other than 1": 1, "the id of an earlier row": 1, "no id": 1,
        "a bad weight": 1,
    }  # fmt: skip
    assert [row["row"] for row in record["invalid"]] == [1, 2, 3, 4, 5, 6, 7, 8, 11]
    assert "9 rows could not be scored and were left out" in result.stderr
    assert "1 no label" in result.stderr


def test_repeated_ids_are_found_across_batches(monkeypatch):
    from xent.scoring import readers

    monkeypatch.setattr(readers, "batch_rows", lambda columns: 64)
    ids = np.random.default_rng(0).integers(0, 3000, 2000)
    frame = pl.DataFrame({"id": ids, "y": np.ones(2000, int), "p": np.linspace(0.1, 0.9, 2000)})
    found = xent.score(frame, "y", proba="p", id="id", invalid="skip")
    first = frame.unique("id", keep="first", maintain_order=True)
    assert found.rows == first.height
    assert found.cross_entropy.nats == pytest.approx(-first["p"].log().mean(), rel=1e-12)


def test_a_weight_of_0_leaves_a_row_out_of_every_figure():
    rng = np.random.default_rng(0)
    p, y, w = rng.dirichlet(np.ones(3), 60), rng.integers(0, 3, 60), rng.integers(0, 3, 60).astype(float)
    p[0], y[0], w[0] = [1, 0, 0], 1, 0
    p[1], w[1] = np.nan, 0
    found = xent.score(p, y, weight=w)
    rest = xent.score(p[w > 0], y[w > 0], weight=w[w > 0])
    assert found.to_dict() == pytest.approx(rest.to_dict(), rel=1e-12)
    assert [r.loss for r in found.surprising] == [r.loss for r in rest.surprising]
    assert not any("infinite" in warning for warning in found.warnings)
    assert any("weight of 0" in warning for warning in found.warnings)
    with pytest.raises(DataError, match="all weights are 0"):
        xent.score(p[2:], y[2:], weight=np.zeros(58))
    frame = pl.DataFrame({"id": range(60), "y": y, "w": w, **{f"p_{k}": p[:, k] for k in range(3)}})
    other = frame.with_columns(p_0=pl.lit(1 / 3), p_1=pl.lit(1 / 3), p_2=pl.lit(1 / 3))
    compared = xent.compare(frame, other, id="id", label="y", proba="p_*", weight="w")
    assert compared.rows == int((w > 0).sum())
    assert math.isfinite(compared.difference.nats)


def test_intervals_do_not_depend_on_the_scale_of_the_weights():
    rng = np.random.default_rng(0)
    p, y, w = rng.dirichlet(np.ones(3), 200), rng.integers(0, 3, 200), rng.integers(1, 5, 200).astype(float)
    one, other = xent.score(p, y, weight=w), xent.score(p, y, weight=w / 200)
    assert other.cross_entropy.low == pytest.approx(one.cross_entropy.low, rel=1e-12)
    assert other.cross_entropy.high == pytest.approx(one.cross_entropy.high, rel=1e-12)


# Two files: S10.


def test_compare_of_arrays_by_order_and_by_id():
    p, q, y = np.array([[0.5, 0.5], [0.25, 0.75]]), np.array([[0.75, 0.25], [0.5, 0.5]]), np.array([0, 1])
    np.savez("x.npz", proba=p, y=y, row=np.array([7, 8]))
    np.savez("y.npz", proba=q[::-1], y=y[::-1], row=np.array([8, 7]))
    expected = (np.log([0.75, 0.5]) - np.log([0.5, 0.75])).mean()
    assert xent.compare("x.npz", "y.npz", id="row", label="y").difference.nats == pytest.approx(expected, abs=1e-15)
    with pytest.raises(DataError, match="other labels"):
        xent.compare("x.npz", "y.npz", order=True, label="y")
    result = invoke("compare", "x.npz", "y.npz", "--label", "y")
    assert result.exit_code == 2
    assert "--by-order" in result.stderr
    frame = pl.DataFrame({"y": y, "p_0": p[:, 0], "p_1": p[:, 1]})
    with pytest.raises(DataError, match="2 rows and b 1"):
        xent.compare(frame, frame.head(1), order=True, label="y", proba="p_*")


def test_compare_leaves_out_what_is_invalid_on_either_side():
    a = pl.DataFrame({"id": [1, 2, 3, 4], "y": [1, 1, 1, 1], "p": [0.5, math.nan, 0.5, 0.5]})
    b = a.with_columns(p=pl.Series([0.25, 0.25, 7.0, 0.25]))
    with pytest.raises(DistributionError, match="row 1"):
        xent.compare(a, b, id="id", label="y", proba="p")
    found = xent.compare(a, b, id="id", label="y", proba="p", invalid="skip")
    assert (found.rows, found.invalid_a, found.invalid_b) == (2, 1, 1)
    assert found.difference.nats == pytest.approx(math.log(0.25) - math.log(0.5))


# Words: S15.

COMMANDS = {
    "--label y --proba q_*": ["--proba", "q_*"],
    "--label nam --proba p_*": ["--label", "Did you mean 'name'"],
    "--proba p_*": ["--label", "which column"],
    "--label y": ["--proba, --logits, --log-prob"],
    "--label y --proba p_* --classes a,b,c": ["--proba, --classes"],
    "--label name --proba p_*": ["--classes names them"],
    "--label y --log-prob p_0": ["--label", "beside log-probabilities"],
    "--label y --proba p_* --by name --weight name": ["'name'", "is not a number"],
    "--label y --proba p_* --id name": ["--id", "repeat"],
    "--label y --proba p_* --clip 2": ["--clip"],
    "--label y --proba p_* --separator xx": ["--separator"],
    "--label y --proba p_* --explode name": ["--explode"],
    "--label y --proba p_* --labels b.csv --id nothing": ["--id", "nothing"],
    "--label bad --proba bad": ["--skip-invalid"],
}


@pytest.mark.parametrize("options", COMMANDS)
def test_messages_name_options_and_never_arguments(options):
    write("a.csv", "name,y,p_0,p_1,bad\nx,0,0.5,0.5,7\nx,1,0.25,0.75,3\n")
    write("b.csv", "name,z\nx,1\n")
    result = invoke("score", "a.csv", *options.split(" "))
    assert result.exit_code == 2, result.stdout
    for word in COMMANDS[options]:
        assert word in result.stderr
    assert "score(" not in result.stderr
    for argument in ("classes=", "proba=", "label=", "invalid=", "tolerance=", "id=", "exclude=", "logits="):
        assert argument not in result.stderr


def test_a_file_named_like_a_pattern_is_found():
    write("[a].csv", "y,p\n1,0.5\n")
    assert xent.score("[a].csv", "y", proba="p").rows == 1


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A server of parts of files, as object stores are."""

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, with_body):
        data = Path(self.path[1:]).read_bytes()
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        first, last = 0, len(data) - 1
        if asked:
            first = int(asked[1]) if asked[1] else max(len(data) - int(asked[2]), 0)
            last = min(int(asked[2]), last) if asked[1] and asked[2] else last
        part = data[first : last + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Last-Modified", "Thu, 26 Nov 2026 12:00:00 GMT")
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.end_headers()
        if with_body:
            self.wfile.write(part)

    def log_message(self, *arguments):
        pass


def test_addresses_are_read_by_polars():
    frame = pl.DataFrame({"y": [0, 1], "p": [0.5, 0.75]})
    frame.write_csv("a.csv")
    frame.write_parquet("a.parquet")
    frame.write_ndjson("a.jsonl")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ranges) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in ("a.csv", "a.parquet", "a.jsonl"):
            address = f"http://127.0.0.1:{server.server_port}/{name}"
            result = invoke("score", address, "--label", "y", "--proba", "p", "--json", "-")
            assert result.exit_code == 0, result.stderr
            record = json.loads(result.stdout)
            assert record["figures"]["cross_entropy_nats"]["value"] == pytest.approx(-math.log(0.5 * 0.75) / 2)
            assert record["source"]["name"] == address
        server.shutdown()
    with pytest.raises(DataError, match="Download it first"):
        xent.score("https://localhost/a.npz", "y")


def test_a_pipe_is_read_as_a_file():
    os.mkfifo("pipe")
    thread = threading.Thread(target=lambda: Path("pipe").write_text("y,p\n1,0.5\n"))
    thread.start()
    result = invoke("score", "pipe", "--label", "y", "--proba", "p", "--json", "-")
    thread.join()
    assert json.loads(result.stdout)["figures"]["rows"]["value"] == 1
    empty = invoke("score", "-", "--label", "y", "--proba", "p", input=b"")
    assert empty.exit_code == 2
    assert "standard input is empty" in empty.stderr


def test_the_effect_of_rounding_that_is_said_is_a_bound():
    rng = np.random.default_rng(3)
    p = np.round(rng.dirichlet(np.ones(20), 500), 2)
    y = p.argmax(axis=1)
    found = xent.score(p, y)
    said = next(w for w in found.warnings if "2 decimals" in w)
    bound = float(re.search(r"at most ([\d.]+) nats", said)[1])
    assert "20/2 x 10^-2 = 0.1" in said
    assert abs(found.cross_entropy.nats - nats(p, y, renormalise=True)) <= bound * 1.05
    soft = np.round(rng.dirichlet(np.ones(3), 50), 2)
    soft[0] = [0.33, 0.33, 0.33]
    q = rng.dirichlet(np.ones(3), 50)
    found = xent.score(q, soft)
    said = next(w for w in found.warnings if "soft labels" in w)
    bound = float(re.search(r"at most ([\d.]+) of itself", said)[1])
    exact = nats(q, soft / soft.sum(axis=1, keepdims=True))
    assert abs(found.cross_entropy.nats - exact) <= bound * 1.05 * exact


def test_rows_of_several_labels_are_named_by_row_and_column_and_not_renormalised():
    p, y = np.random.default_rng(0).random((6, 3)), np.eye(3, dtype=int)[[0, 1, 2, 0, 1, 2]]
    p[2, 1] = 1.5
    frame = pl.DataFrame({**{f"p_{k}": p[:, k] for k in range(3)}, **{f"t_{k}": y[:, k] for k in range(3)}})
    with pytest.raises(DistributionError, match=r"row 2: column 'p_1' has 1\.5, not a probability\. Correct"):
        xent.score(frame, "t_*", proba="p_*", multilabel=True)
    with pytest.raises(ArgumentError, match="renormalise"):
        xent.score(frame, "t_*", proba="p_*", multilabel=True, renormalise=True)


def test_one_value_out_of_range_is_no_percentage():
    with pytest.raises(DistributionError, match=r"has 1\.5, not a probability\. Correct"):
        xent.score(np.array([0.5, 1.5, 0.2]), [0, 1, 0])
    with pytest.raises(DistributionError, match="percentages"):
        xent.score(np.array([50.0, 95, 2]), [0, 1, 0])
