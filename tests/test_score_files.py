"""The files that people have: one table as some forty tools write it, scored with what README and --help offer.

tests/make_score_files.py wrote them. Every file gives the figures of the same arrays to 1e-12.
"""

from __future__ import annotations

import importlib.util
import json
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
STARS = "--label animal --proba p_*"

SAME = {
    "pandas_index.csv": f"{STARS} --id id --by country",
    "pandas.csv.gz": f"{STARS} --id id --by country",
    "pandas_records.json": f"{STARS} --id id --by country",
    "pandas.parquet": f"{STARS} --id id --by country",
    "pandas.xlsx": f"{STARS} --id id --by country",
    "pandas_numbered_columns.csv": "--label y --proba *",
    "pandas_lines.jsonl": f"{STARS} --id id --by country",
    "polars_enum.parquet": STARS,
    "polars.arrow": STARS,
    "polars_lists.parquet": "--label animal --proba probabilities --classes ant,bee,cow",
    "pyarrow_dictionary.parquet": STARS,
    "huggingface_datasets.arrow": STARS,
    "duckdb_pipe.csv": f"{STARS} --by country",
    "numpy.npz": "--label y --proba proba --by where",
    "sklearn_predict_proba.npy": "--label sklearn_y_test.npy --classes ant,bee,cow",
    "numpy_savetxt.txt": "--label column_4 --proba column_1 --proba column_2 --proba column_3 --classes 0,1,2",
    "xgboost_no_header.csv": "--labels labels_only.txt --proba column_* --classes ant,bee,cow",
    "lightgbm_predict_result.txt": "--labels labels_only.txt --proba column_* --classes ant,bee,cow",
    "r_write_csv.csv": f"{STARS} --id id",
    "r_write_csv2.csv": f"{STARS} --id id",
    "r_write_table.tsv": f"{STARS} --id id",
    "r_write_table_blanks.txt": f"{STARS} --id id --separator space",
    "r_caret.csv": "--label obs --proba ant --proba bee --proba cow",
    "excel_german.csv": "--label Tier --proba p\x00* --id Nr",
    "kaggle_submission.csv": "--labels kaggle_solution.csv --id id --label target --proba Class_* --by Usage",
    "kaggle_submission.csv.zip": "--labels kaggle_solution.csv --id id --label target --proba Class_*",
    "spark_partitions": f"{STARS} --id id --by country",
    "spark_csv": f"{STARS} --id id --by country",
    "spark_ml_vectors.parquet": "--label label --proba probability",
    "spark_map.parquet": "--label animal --proba scores",
    "spark_struct.parquet": "--label animal --proba scores.*",
    "h2o.csv": "--labels labels_only.txt --proba p* --exclude predict --classes ant,bee,cow",
    "catboost_eval.tsv": "--label Label --proba Probability:Class=* --id SampleId",
    "knime.csv": "--label animal --proba P\x00(animal=*)",
    "rapidminer.csv": "--label label --proba confidence(*)",
    "matlab_writetable.csv": "--label y --proba p*",
    "bzip2.csv.bz2": STARS,
    "xz.csv.xz": STARS,
    "zstd.csv.zst": STARS,
}
"""Options for each file; a blank inside of a name is written as \\x00 here."""
NEEDS = {".xlsx": "fastexcel", ".zst": "pyarrow"}


def options_of(text):
    return [word.replace("\x00", " ") for word in text.split(" ")]


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
    found, record = figures(name, *options_of(SAME[name]))
    same(found, expected)
    assert record["source"]["name"] == name
    if "--by country" in SAME[name]:
        assert {s["value"]: s["rows"] for s in record["segments"]["country"]} == {"de": 8, "fr": 16}
    if "--id id" in SAME[name]:
        assert all(row["id"] in DATA_IDS for row in record["surprising"]), "leading zeros are kept"


DATA_IDS = {f"{k:04d}" for k in range(len(LABEL))}


def test_every_file_is_tested():
    others = {"kaggle_solution.csv", "labels_only.txt", "sklearn_y_test.npy"}
    tested = {*SAME, *others, "pandas_six_decimals.csv", "h2o_binary.csv", "openai_chat.jsonl"}
    assert {path.name for path in FOLDER.iterdir()} == {*tested, "vllm_prompt_logprobs.jsonl.gz"}


def test_standard_input_is_read_as_the_file(expected):
    names = ("pandas_index.csv", "pandas_lines.jsonl", "pandas_records.json", "pandas.parquet", "pandas.csv.gz")
    for name in (*names, "polars.arrow", "bzip2.csv.bz2", "kaggle_submission.csv.zip"):
        options = SAME[name]
        data = Path(name).read_bytes()
        result = CliRunner().invoke(load(), ["score", "-", *options_of(options), "--json", "-"], input=data)
        assert result.exit_code == 0, (name, result.stderr)
        record = json.loads(result.stdout)
        same({key: figure["value"] for key, figure in record["figures"].items()}, expected)
        assert record["source"]["name"] == "-"
        assert record["source"]["bytes"] == len(data)


def test_six_decimals_are_scored_by_their_digits_and_the_output_says_so():
    result = invoke("score", "pandas_six_decimals.csv", *options_of(STARS), "--json", "a.json")
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
        found, record = figures("h2o_binary.csv", "--label", "bought", *options_of(options))
        assert found["cross_entropy_nats"] == pytest.approx(expected, rel=TO_1E12)
    assert any("'yes' is class 1" in warning for warning in record["warnings"])


def test_tokens_of_language_models_become_rows(expected):
    found, record = figures(
        "openai_chat.jsonl", "--explode", "logprobs.content", "--log-prob", "logprobs.content.logprob",
        "--id", "id", "--by", "logprobs.content.token",
    )  # fmt: skip
    for name in ("cross_entropy_nats", "cross_entropy_standard_error_nats", "rows"):
        assert found[name] == pytest.approx(expected[name], rel=TO_1E12)
    worst = int(np.argmin(P[np.arange(len(P)), LABEL]))
    assert record["surprising"][0]["id"] == f"doc{worst // 6}[{worst % 6}]"
    found, _ = figures("vllm_prompt_logprobs.jsonl.gz", "--explode", "token_logprobs", "--log-prob", "token_logprobs")
    assert found["cross_entropy_nats"] == pytest.approx(expected["cross_entropy_nats"], rel=TO_1E12)


def test_two_files_are_compared_whatever_their_form():
    pairs = [
        ("pandas.parquet r_write_csv2.csv", f"--id id {STARS}"),
        (
            "kaggle_submission.csv kaggle_submission.csv.zip",
            "--id id --label target --proba Class_* --labels kaggle_solution.csv",
        ),
        ("numpy.npz numpy.npz", "--by-order --label y --proba proba"),
        (
            "sklearn_predict_proba.npy sklearn_predict_proba.npy",
            "--by-order --label sklearn_y_test.npy --classes ant,bee,cow",
        ),
        ("pandas.parquet duckdb_pipe.csv", f"--by-order {STARS}"),
    ]  # fmt: skip
    for names, options in pairs:
        result = invoke("compare", *names.split(), *options_of(options), "--json", "-", "--html", "page.html")
        assert result.exit_code == 0, (names, result.stderr)
        record = json.loads(result.stdout)
        assert record["rows"] == len(LABEL)
        assert abs(record["difference"]["nats"]) < 1e-15
        assert Path("page.html").stat().st_size < 1_500_000


def test_names_stand_for_the_arrays():
    assert [CLASSES[k] for k in LABEL] == NAMES.tolist()
