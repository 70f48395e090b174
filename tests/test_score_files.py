"""The files that people have: one table as some forty tools write it, scored as docs/how-to/score_files.md says.

tests/make_score_files.py wrote them. Every file gives the figures of the same arrays to 1e-12.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from make_score_files import CLASSES, DECIMALS, FOLDER, LABEL, NAMES, P
from typer.testing import CliRunner

import xent
from xent.cli import load

TO_1E12 = 1e-12
FIGURES = (
    "cross_entropy_nats", "cross_entropy_low_nats", "cross_entropy_standard_error_nats", "base_rate_nats", "brier",
    "accuracy", "miscalibration_nats", "calibration_error", "rows",
)  # fmt: skip
STARS = ["--label", "animal", "--proba", "p_*"]

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "score_files.md"
COMMANDS = [shlex.split(command) for command in re.findall(r"`xent score ([^`]+)`", PAGE.read_text(encoding="utf-8"))]
"""What the page says, for each file; the files of tokens have tests of their own."""
SAME = {name: options for name, *options in COMMANDS if "--explode" not in options}
TOKENS = {name: options for name, *options in COMMANDS if "--explode" in options}
NEEDS = {".xlsx": "fastexcel", ".zst": "pyarrow"}


def invoke(*arguments):
    return CliRunner().invoke(load(), list(map(str, arguments)))


def figures(*arguments):
    result = invoke("score", *arguments, "--json", "-")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    return {name: figure["value"] for name, figure in record["figures"].items()}, record


def same(found, expected):
    """The figures of two scores, to 1e-12."""
    for name in FIGURES:
        assert found.get(name) == pytest.approx(expected[name], rel=TO_1E12), name


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """The files, in a folder of their own."""
    shutil.copytree(FOLDER, tmp_path / "files")
    monkeypatch.chdir(tmp_path / "files")


def needed(name):
    for ending, package in NEEDS.items():
        if name.endswith(ending) and importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")


@pytest.fixture(scope="module")
def expected():
    return xent.score(P, LABEL).to_dict()


@pytest.mark.parametrize("name", SAME)
def test_a_file_has_the_figures_of_its_arrays(name, expected):
    needed(name)
    found, record = figures(name, *SAME[name])
    same(found, expected)
    assert record["source"]["name"] == name
    if "country" in SAME[name]:
        assert {s["value"]: s["rows"] for s in record["segments"]["country"]} == {"de": 8, "fr": 16}
    if "id" in SAME[name]:
        assert all(row["id"] in DATA_IDS for row in record["surprising"]), "leading zeros are kept"


DATA_IDS = {f"{k:04d}" for k in range(len(LABEL))}


def test_every_file_is_tested():
    others = {"kaggle_solution.csv", "labels_only.txt", "sklearn_y_test.npy"}
    tested = {*SAME, *TOKENS, *others, "pandas_six_decimals.csv", "h2o_binary.csv"}
    assert {path.name for path in FOLDER.iterdir()} == tested


def test_standard_input_is_read_as_the_file(expected):
    names = ("pandas_index.csv", "pandas_lines.jsonl", "pandas_records.json", "pandas.parquet", "pandas.csv.gz")
    for name in (*names, "polars.arrow", "bzip2.csv.bz2", "kaggle_submission.csv.zip"):
        data = Path(name).read_bytes()
        result = CliRunner().invoke(load(), ["score", "-", *SAME[name], "--json", "-"], input=data)
        assert result.exit_code == 0, (name, result.stderr)
        record = json.loads(result.stdout)
        same({key: figure["value"] for key, figure in record["figures"].items()}, expected)
        assert record["source"]["name"] == "-"
        assert record["source"]["bytes"] == len(data)


def test_six_decimals_are_scored_by_their_digits_and_the_output_says_so():
    result = invoke("score", "pandas_six_decimals.csv", *STARS, "--json", "a.json")
    assert result.exit_code == 0, result.stderr
    rounded = np.round(P, DECIMALS)
    found = json.loads(Path("a.json").read_text())["figures"]["cross_entropy_nats"]["value"]
    assert found == pytest.approx(-np.log(rounded[np.arange(len(P)), LABEL]).mean(), rel=TO_1E12)
    assert "6 decimals" in result.stderr
    assert "3/2 x 10^-6" in result.stderr


def test_h2o_of_two_classes_by_one_column_and_by_both():
    yes = (LABEL == 1).astype(int)
    expected = xent.score(P[:, 1], yes).to_dict()["cross_entropy_nats"]
    for options in ("--proba yes --classes no,yes", "--proba no --proba yes", "--proba yes"):
        found, record = figures("h2o_binary.csv", "--label", "bought", *options.split())
        assert found["cross_entropy_nats"] == pytest.approx(expected, rel=TO_1E12)
    assert any("'yes' is class 1" in warning for warning in record["warnings"])


def test_tokens_of_language_models_become_rows(expected):
    found, record = figures("openai_chat.jsonl", *TOKENS["openai_chat.jsonl"])
    for name in ("cross_entropy_nats", "cross_entropy_standard_error_nats", "rows"):
        assert found[name] == pytest.approx(expected[name], rel=TO_1E12)
    worst = int(np.argmin(P[np.arange(len(P)), LABEL]))
    assert record["surprising"][0]["id"] == f"doc{worst // 6}[{worst % 6}]"
    found, _ = figures("vllm_prompt_logprobs.jsonl.gz", *TOKENS["vllm_prompt_logprobs.jsonl.gz"])
    assert found["cross_entropy_nats"] == pytest.approx(expected["cross_entropy_nats"], rel=TO_1E12)


def test_two_files_are_compared_whatever_their_form():
    pairs = [
        ("pandas.parquet r_write_csv2.csv", "--id id --label animal --proba p_*"),
        (
            "kaggle_submission.csv kaggle_submission.csv.zip",
            "--id id --label target --proba Class_* --labels kaggle_solution.csv",
        ),
        ("numpy.npz numpy.npz", "--by-order --label y --proba proba"),
        (
            "sklearn_predict_proba.npy sklearn_predict_proba.npy",
            "--by-order --label sklearn_y_test.npy --classes ant,bee,cow",
        ),
        ("pandas.parquet duckdb_pipe.csv", "--by-order --label animal --proba p_*"),
    ]  # fmt: skip
    for names, options in pairs:
        result = invoke("compare", *names.split(), *options.split(), "--json", "-", "--html", "page.html")
        assert result.exit_code == 0, (names, result.stderr)
        record = json.loads(result.stdout)
        assert record["rows"] == len(LABEL)
        assert abs(record["difference"]["nats"]) < 1e-15
        assert Path("page.html").stat().st_size < 1_500_000


def test_names_stand_for_the_arrays():
    assert [CLASSES[k] for k in LABEL] == NAMES.tolist()
