"""The command line as its user meets it: results, messages, exit codes, and nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import xent
from xent.cli import load

XENT = [sys.executable, "-m", "xent"]


def invoke(*arguments: str):
    return CliRunner().invoke(load(), list(arguments))


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Write a file into an empty working directory and return its name."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, content: str | bytes) -> str:
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    return write


def rows(pattern: str, count: int = 40) -> str:
    return "\n".join(pattern.format(i=i, parity="odd" if i % 2 else "even") for i in range(count))


BAD_INPUT = {
    "empty file": ("a.csv", "", ["--label", "y"], ["a.csv", "empty"]),
    "no rows": ("a.csv", "x,y\n", ["--label", "y"], ["a.csv", "no rows"]),
    "no such column": ("a.csv", "x,y\n" + rows("{i},{parity}"), ["--label", "z"], ["--label z", "x, y"]),
    "no label named": ("a.csv", "x,y\n" + rows("{i},{parity}"), [], ["--label", "x, y"]),
    "a column of text only": ("a.csv", "x,y\n" + rows("word {i},{parity}"), ["--label", "y"], ["'x'", "--drop x"]),
    "one class only": ("a.csv", "x,y\n" + rows("{i},1"), ["--label", "y"], ["'y'", "one class"]),
    "a missing value": ("a.csv", "x,y\n1,odd\n,even\n" + rows("{i},{parity}"), ["--label", "y"], ["'x'", "row 2"]),
    "NaN": ("a.csv", "x,y\n1.5,odd\nNaN,even\n" + rows("{i},{parity}"), ["--label", "y"], ["'x'", "row 2"]),
    "a label that is a number": ("a.csv", "x,y\n" + rows("{i},{i}.5"), ["--label", "y"], ["'y'", "not classes"]),
    "a rare class": ("a.csv", "x,y\n1,rare\n" + rows("{i},{parity}"), ["--label", "y"], ["'rare'", "1 rows"]),
    "a binary file named .csv": ("a.csv", bytes(range(256)) * 9, ["--label", "y"], ["a.csv", "binary", ".parquet"]),
    "no Parquet inside": ("a.parquet", "x,y\n1,2\n", ["--label", "y"], ["a.parquet", "Parquet"]),
    "ragged lines": ("a.csv", "x,y\n1,2\n1,2,3\n", ["--label", "y"], ["a.csv", "CSV"]),
    "another kind of file": ("a.txt", "x,y\n1,2\n", ["--label", "y"], ["a.txt", ".csv or .parquet"]),
    "no other column": ("a.csv", "y\n" + rows("{parity}"), ["--label", "y"], ["no column beside"]),
    "an unknown drop": ("a.csv", "x,y\n" + rows("{i},{parity}"), ["--label", "y", "--drop", "q"], ["--drop q"]),
    "the label dropped": ("a.csv", "x,y\n" + rows("{i},{parity}"), ["--label", "y", "--drop", "y"], ["--drop y"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_named_with_exit_code_2_and_nothing_is_written(table, case):
    name, content, arguments, words = BAD_INPUT[case]
    table(name, content)
    result = invoke("why", name, *arguments, "--out", "report")
    assert result.exit_code == 2
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr
    assert [p.name for p in Path().iterdir()] == [name]


def test_unknown_data_set_suggests_the_nearest(table):
    result = invoke("why", "digit")
    assert result.exit_code == 2
    assert "Did you mean digits?" in result.stderr


def test_folder_that_cannot_be_made_is_found_out_before_the_work(table):
    table("taken", "a file")
    result = invoke("why", "iris", "--out", "taken")
    assert result.exit_code == 2
    assert "--out taken" in result.stderr


def test_why_prints_a_table_and_writes_the_report(table):
    path = table("a.csv", "x,y\n" + rows("{i},{parity}"))
    result = invoke("why", path, "--label", "y", "--quick", "--epochs", "3", "--out", "report")
    assert result.exit_code == 0, result.stderr
    assert "final cross-entropy (nats)" in result.stdout
    assert "report/why.html" in result.stdout
    assert sorted(p.name for p in Path("report").iterdir()) == ["why.html", "why.json"]
    assert json.loads(Path("report/why.json").read_text())["data"]["classes"] == ["even", "odd"]


def test_json_on_standard_output_is_the_record_and_nothing_else(table):
    result = subprocess.run(
        [*XENT, "why", "iris", "--quick", "--epochs", "3", "--seed", "7", "--json"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["settings"]["seeds"] == [7, 8]
    assert record["settings"]["epochs"] == 1
    assert record == json.loads(Path("xent-why/why.json").read_text())


def test_doctor_names_versions_devices_kernels_threads_and_settings():
    found = json.loads(invoke("doctor", "--json").stdout)
    assert set(found) == {"versions", "devices", "kernels", "threads", "environment"}
    assert found["versions"]["xent"] == xent.__version__
    assert found["devices"]["cores"] >= 1
    assert "xent.numpy" in found["kernels"]
    assert "Versions" in invoke("doctor").stdout


def test_bench_prints_a_record_of_the_shape():
    result = invoke("bench", "--shape", "tiny", "--threads", "1", "--json")
    assert result.exit_code == 0, result.stderr
    (case,) = json.loads(result.stdout)["cases"]
    assert case["size"] == [128, 10]
    assert {"xent.torch", "F.cross_entropy"} <= {entry["name"] for entry in case["contestants"]}


def test_bench_refuses_an_unknown_shape():
    result = invoke("bench", "--shape", "gpt9")
    assert result.exit_code == 2
    assert "xent: bench(shape=...): there is no shape 'gpt9'" in result.stderr


def test_help_teaches_with_examples():
    text = invoke("why", "--help").stdout
    assert "xent why iris --quick" in text
    assert "xent why customers.csv --label churned" in text


def test_version():
    assert invoke("--version").stdout.strip() == f"xent {xent.__version__}"


def test_command_line_without_its_packages_says_what_to_install(tmp_path):
    """Typer hidden from a fresh process: an honest message and exit code 2."""
    program = "import sys; sys.modules['typer'] = None; from xent.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 2
    assert "pip install 'xent[cli]'" in result.stderr


@pytest.mark.parametrize("variable", ["XENT_KEPT_BYTES", "XENT_NUM_THREADS"])
def test_a_wrong_setting_is_one_line_and_exit_code_2(variable):
    environment = {**os.environ, variable: "a lot"}
    done = subprocess.run([sys.executable, "-m", "xent", "doctor"], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("xent: ")
    assert f"{variable}: found 'a lot'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
