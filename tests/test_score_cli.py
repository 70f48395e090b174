"""`xent score` and `xent compare` as their user meets them: results, messages, exit codes, and nothing half-written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, brier_score_loss, d2_log_loss_score, log_loss
from sklearn.model_selection import train_test_split
from typer.testing import CliRunner

from xent.cli import load


def invoke(*arguments: str):
    return CliRunner().invoke(load(), list(map(str, arguments)))


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


def model_of(load, features=slice(None)):
    x, y = load(return_X_y=True)
    x = x[:, features] / x[:, features].max(axis=0).clip(1)
    x_train, x_test, y_train, y_test = train_test_split(x, y, random_state=0)
    return y_test, LogisticRegression(max_iter=2000).fit(x_train, y_train).predict_proba(x_test)


@pytest.fixture(scope="module")
def digits():
    return model_of(load_digits)


@pytest.fixture(scope="module")
def cancer():
    return model_of(load_breast_cancer)


def wide(labels, p, **columns):
    return pl.DataFrame({"y": labels, **{f"p_{k}": p[:, k] for k in range(p.shape[1])}, **columns})


# Real predictions, against scikit-learn.


def test_digits_score_as_scikit_learn_says(digits):
    labels, p = digits
    wide(labels, p).write_parquet("digits.parquet")
    result = invoke("score", "digits.parquet", "--label", "y", "--proba", "p_*", "--json", "-")
    assert result.exit_code == 0, result.stderr
    figures = {name: f["value"] for name, f in json.loads(result.stdout)["figures"].items()}
    assert figures["cross_entropy_nats"] == pytest.approx(log_loss(labels, p), rel=1e-13)
    assert figures["brier"] == pytest.approx(brier_score_loss(labels, p, scale_by_half=False), rel=1e-13)
    assert figures["accuracy"] == accuracy_score(labels, p.argmax(axis=1))
    assert figures["explained"] == pytest.approx(d2_log_loss_score(labels, p), rel=1e-13)


def test_breast_cancer_scores_as_scikit_learn_says_from_one_column_of_a_csv_file(cancer):
    labels, p = cancer
    names = np.array(["malignant", "benign"])[labels]
    pl.DataFrame({"diagnosis": names, "p": p[:, 1]}).write_csv("cancer.csv")
    arguments = ["--label", "diagnosis", "--proba", "p", "--classes", "malignant,benign", "--json", "out.json"]
    result = invoke("score", "cancer.csv", *arguments)
    assert result.exit_code == 0, result.stderr
    assert "nats per row" in result.stdout
    record = json.loads(Path("out.json").read_text())
    assert record["figures"]["cross_entropy_nats"]["value"] == pytest.approx(log_loss(labels, p), rel=1e-13)
    assert [c["name"] for c in record["classes"]] == ["malignant", "benign"]


# What is printed and written.


def test_the_summary_has_units_the_worst_rows_and_segments(digits):
    labels, p = digits
    part = np.where(np.arange(len(labels)) % 3, "one", "two")
    wide(labels, p, name=[f"image {i}" for i in range(len(labels))], part=part).write_parquet("a.parquet")
    result = invoke("score", "a.parquet", "--label", "y", "--proba", "p_*", "--id", "name", "--by", "part")
    assert result.exit_code == 0, result.stderr
    worst = int((-np.log(p[np.arange(len(labels)), labels])).argmax())
    for words in ("bits per row", "perplexity", "log C", "by part", "share of loss", f"image {worst}"):
        assert words in result.stdout


def test_json_has_the_source_and_html_is_a_report(digits):
    labels, p = digits
    wide(labels, p).write_parquet("a.parquet")
    result = invoke("score", "a.parquet", "--label", "y", "--proba", "p_*", "--json", "a.json", "--html", "a.html")
    assert result.exit_code == 0, result.stderr
    source = json.loads(Path("a.json").read_text())["source"]
    assert source["bytes"] == Path("a.parquet").stat().st_size
    assert len(source["sha256"]) == 64
    assert source["sha256"] in Path("a.html").read_text()
    assert sorted(p.name for p in Path().iterdir()) == ["a.html", "a.json", "a.parquet"]


def test_a_clip_is_in_every_output(digits):
    labels, p = digits
    p = p.copy()
    p[0] = np.roll(np.eye(10)[labels[0]], 1)
    wide(labels, p).write_parquet("a.parquet")
    infinite = invoke("score", "a.parquet", "--label", "y", "--proba", "p_*")
    assert infinite.exit_code == 0
    assert "infinite" in infinite.stdout
    assert "impossible" in infinite.stderr
    clipped = invoke(
        "score", "a.parquet", "--label", "y", "--proba", "p_*", "--clip", "1e-6", "--json", "a.json", "--html", "a.html"
    )
    assert "clipped at 1e-06" in clipped.stdout
    assert "1e-06" in clipped.stderr
    record = json.loads(Path("a.json").read_text())
    assert record["figures"]["clip"]["value"] == record["form"]["clip"] == 1e-6
    assert "1e-06" in Path("a.html").read_text()


def test_compare_prints_and_writes_the_difference(digits):
    labels, p = digits
    ids = np.arange(len(labels))
    other = np.full_like(p, 0.1)
    wide(labels, p, id=ids).write_parquet("a.parquet")
    wide(labels, other, id=ids).tail(400).write_parquet("b.parquet")
    arguments = ["compare", "a.parquet", "b.parquet", "--id", "id", "--label", "y", "--proba", "p_*"]
    result = invoke(*arguments, "--json", "c.json")
    assert result.exit_code == 0, result.stderr
    assert "a is better" in result.stdout
    found = json.loads(Path("c.json").read_text())
    expected = -np.log(p[np.arange(len(p)), labels])[-400:].mean() - np.log(10)
    assert found["difference"]["nats"] == pytest.approx(expected, rel=1e-12)
    assert found["only_in_a"] == len(labels) - 400
    printed = invoke(*arguments, "--json", "-")
    assert json.loads(printed.stdout) == found


# Bad input.

GOOD = "id,y,p_0,p_1\n1,0,0.5,0.5\n2,1,0.25,0.75\n"
BAD_INPUT = {
    "no such file": ("other.csv", GOOD, [], ["a.csv", "no such file"]),
    "an empty file": ("a.csv", "", [], ["a.csv", "empty"]),
    "no rows": ("a.csv", "id,y,p_0,p_1\n", [], ["no rows"]),
    "a truncated Parquet file": ("a.parquet", "truncated", ["a.parquet"], ["a.parquet", "cannot be read"]),
    "no Parquet inside": ("a.parquet", GOOD.encode(), ["a.parquet"], ["a.parquet", "cannot be read"]),
    "mixed types": ("a.csv", GOOD + "3,1,many,0.5\n", [], ["a.csv, line 4", "'p_0'", "'many' is not a number"]),
    "mixed types, far down": (
        "a.csv",
        GOOD + "3,1,0.5,0.5\n" * 20_000 + "4,1,many,0.5\n",
        ["--id="],
        ["a.csv, line 20004", "many"],
    ),
    "ragged lines": ("a.csv", GOOD + "1,0,0.5,0.5,9\n", [], ["a.csv", "cannot be read"]),
    "NaN": ("a.csv", GOOD + "3,1,NaN,0.5\n", [], ["row 2 (id 3)", "not a probability"]),
    "a sum of 1.1": ("a.csv", GOOD + "3,1,0.6,0.5\n", [], ["row 2 (id 3)", "a sum of 1.1", "--skip-invalid"]),
    "a repeated id": ("a.csv", GOOD + "2,1,0.5,0.5\n", [], ["repeat the id"]),
    "a pattern without a match": ("a.csv", GOOD, ["--proba=q_*"], ["'q_*'", "p_0, p_1"]),
    "an unseen label": ("a.csv", GOOD + "3,7,0.5,0.5\n", [], ["7", "row 2", "0, 1"]),
    "another kind of file": ("a.doc", GOOD, ["a.doc"], ["a.doc", ".parquet"]),
    "a clip of 2": ("a.csv", GOOD, ["--clip=2"], ["clip", "2.0"]),
    "a folder as a report": ("a.csv", GOOD, ["--html=."], ["cannot be written"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_named_with_exit_code_2_and_nothing_is_written(case):
    name, content, given, words = BAD_INPUT[case]
    if content == "truncated":
        pl.DataFrame({"y": [0, 1] * 5000}).write_parquet(name)
        content = Path(name).read_bytes()[:-100]
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    data = next((g for g in given if not g.startswith("--")), "a.csv")
    options = {"--label": "y", "--proba": "p_*", "--id": "id", "--json": "out.json", "--html": "out.html"}
    options |= dict(g.split("=") for g in given if g.startswith("--"))
    arguments = [text for option, value in options.items() if value for text in (option, value)]
    result = invoke("score", data, *arguments)
    assert result.exit_code == 2, result.stdout
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr
    assert [p.name for p in Path().iterdir()] == [name]


def test_rows_that_cannot_be_scored_can_be_skipped():
    Path("a.csv").write_text(GOOD + "3,1,0.6,0.5\n")
    arguments = ["--label", "y", "--proba", "p_*", "--skip-invalid", "--json", "-"]
    record = json.loads(invoke("score", "a.csv", *arguments).stdout)
    assert record["figures"]["invalid_rows"]["value"] == 1
    assert record["invalid"][0]["row"] == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_found_out_before_the_work():
    Path("a.csv").write_text(GOOD)
    Path("closed").mkdir(mode=0o500)
    result = invoke("score", "a.csv", "--label", "y", "--proba", "p_*", "--html", "closed/a.html")
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


def test_narrow_rows_from_the_command_line():
    losses = np.random.default_rng(0).exponential(size=1000)
    pl.DataFrame({"logp": -losses, "doc": np.arange(1000) // 100}).write_parquet("a.parquet")
    result = invoke("score", "a.parquet", "--log-prob", "logp", "--by", "doc", "--json", "-")
    record = json.loads(result.stdout)
    assert record["figures"]["cross_entropy_nats"]["value"] == pytest.approx(losses.mean(), rel=1e-14)
    assert record["figures"]["perplexity"]["value"] == pytest.approx(np.exp(losses.mean()), rel=1e-13)
    assert len(record["segments"]["doc"]) == 10


def test_help_teaches_with_examples():
    assert "xent score predictions.parquet --label y --proba 'p_*'" in invoke("score", "--help").stdout
    assert "xent compare old.parquet new.parquet" in invoke("compare", "--help").stdout


def test_why_replays_both_gradients_on_own_predictions(digits):
    labels, p = digits
    p = p.copy()
    wrong = np.arange(20)
    p[wrong] = 1e-4 / 9
    p[wrong, (labels[wrong] + 1) % 10] = 1 - 1e-4
    wide(labels, p).write_parquet("a.parquet")
    arguments = ["why", "--predictions", "a.parquet", "--label", "y", "--proba", "p_*", "--out", "out"]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.stderr
    assert "0% to 1%" in result.stdout
    record = json.loads(Path("out/predictions.json").read_text())
    worst = record["bands"][0]
    one_hot = np.eye(10)[labels[wrong]]
    residual = p[wrong] - one_hot
    inner = (p[wrong] * residual).sum(axis=1, keepdims=True)
    assert worst["rows"] == 20
    assert worst["cross_entropy"] == pytest.approx(np.linalg.norm(residual, axis=1).mean(), rel=1e-9)
    squared = np.linalg.norm(2 * p[wrong] * (residual - inner), axis=1).mean()
    assert worst["squared_error"] == pytest.approx(squared, rel=1e-6)
    assert sum(band["rows"] for band in record["bands"]) == record["rows"] == len(labels)
    assert Path("out/predictions.html").stat().st_size < 1_500_000
    assert json.loads(invoke(*arguments, "--json").stdout)["bands"] == record["bands"]


def test_why_with_columns_and_no_predictions_is_refused():
    result = invoke("why", "iris", "--proba", "p_*")
    assert result.exit_code == 2
    assert "--predictions" in result.stderr


def test_clusters_lengths_and_several_labels_are_options(tmp_path):
    rng = np.random.default_rng(0)
    rows = {"logp": -rng.exponential(size=60), "doc": np.arange(60) // 5, "bytes": rng.integers(1, 9, 60)}
    pl.DataFrame(rows).write_csv("tokens.csv")
    roles = ["--log-prob", "logp", "--cluster", "doc", "--bytes", "bytes", "--characters", "bytes"]
    shown = invoke("score", "tokens.csv", *roles)
    assert shown.exit_code == 0, shown.stderr
    for words in ("clusters", "12", "bits per byte", "bits per character"):
        assert words in shown.stdout
    labels, q = rng.integers(0, 2, (60, 2)), rng.random((60, 2))
    columns = {f"{name}_{k}": values[:, k] for name, values in (("t", labels), ("p", q)) for k in range(2)}
    pl.DataFrame(columns).write_csv("tags.csv")
    many = ["--label", "t_*", "--proba", "p_*", "--multilabel"]
    found = invoke("score", "tags.csv", *many, "--json", "-", "--html", "tags.html")
    assert found.exit_code == 0, found.stderr
    record = json.loads(found.stdout)
    assert record["figures"]["clusters"]["value"] == 60
    expected = -(labels * np.log(q) + (1 - labels) * np.log1p(-q)).mean()
    assert record["figures"]["cross_entropy_nats"]["value"] == pytest.approx(expected, rel=1e-12)
    assert [s["value"] for s in record["segments"]["label"]] in (["0", "1"], ["1", "0"])


def test_compare_says_which_impossible_rows_decide():
    rows = {"id": list("abcd"), "p": [0.5, 0.6, 0.7, 0.8], "y": [1, 1, 1, 1]}
    pl.DataFrame(rows).write_csv("a.csv")
    pl.DataFrame({**rows, "p": [0.4, 0.0, 0.7, 0.9]}).write_csv("b.csv")
    found = invoke("compare", "a.csv", "b.csv", "--id", "id", "--label", "y", "--proba", "p")
    assert found.exit_code == 0, found.stderr
    shown = " ".join(found.stdout.split())
    assert "a minus b -infinite" in shown
    assert "a is better: 1 row is impossible in b only (id b). The mean difference of the other rows is" in shown
    assert "neither" not in shown
