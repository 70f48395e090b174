"""The command line on arbitrary files and options: exit codes 0, 1 and 2 as documented, and never a traceback.

0   a result on standard output, and every file that was asked for
1   interrupted, or whoever read standard output is gone: not in these tests
2   a message on standard error, nothing on standard output, and no file that was not there before
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from xent.cli import load

NUMBERS = st.one_of(
    st.floats(0, 1),
    st.sampled_from([0.0, 1.0, 0.5, -0.1, float("nan"), float("inf"), -float("inf"), 1e308, -1e200, 1e-320, 1 + 2e-16]),
)
CELLS = st.one_of(
    st.sampled_from(
        ["0", "1", "2", "cat", "dog", "", " ", "true", "0.5", "-0.7", "1e400", "nan", "NA", "007", "9" * 30]
    ),
    st.text(max_size=5).filter(lambda text: not {"\ud800"} & set(text)),
)
NAMES = st.sampled_from(["id", "y", "p", "p_0", "p_1", "w", "s", "logp", "t_0", "t_1", "é", "[/]", "\x1b[2J"])
OUTPUTS = st.sampled_from(
    ["-", "out", "out.json", "no/such/out", ".", "", "n" * 300, "/dev/null", "link", "data.csv", "data.parquet", "a\0b"]
)


def good_table(rows, draw):
    """Columns for every option, which all commands can use."""
    p = draw(st.lists(st.sampled_from([0.1, 0.5, 0.9, 1.0, 0.25]), min_size=rows, max_size=rows))
    labels = [k % 2 for k in range(rows)]
    return {
        "id": list(range(rows)),
        "y": labels,
        "p_0": [1 - q for q in p],
        "p_1": p,
        "p": p,
        "w": draw(st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=rows, max_size=rows)),
        "s": ["ab"[k % 2] for k in range(rows)],
        "logp": [-q for q in p],
        "t_0": [1.0 - k for k in labels],
        "t_1": [float(k) for k in labels],
    }


@st.composite
def tables(draw):
    """A good table with a few changes: a cell, a column, other rows, another name."""
    columns = good_table(draw(st.sampled_from([0, 1, 2, 12, 12, 40, 40, 40])), draw)
    for change in draw(st.lists(st.sampled_from(["cell", "cell", "column", "drop", "rename"]), max_size=3)):
        name = draw(st.sampled_from(sorted(columns)))
        rows = len(columns[name])
        if change == "drop" and len(columns) > 1:
            del columns[name]
        elif change == "rename":
            columns = {draw(NAMES) if key == name else key: values for key, values in columns.items()}
        elif change == "column":
            columns[name] = draw(st.lists(draw(st.sampled_from([NUMBERS, CELLS])), min_size=rows, max_size=rows))
        elif rows:
            columns[name] = list(columns[name])
            columns[name][draw(st.integers(0, rows - 1))] = draw(st.one_of(NUMBERS, CELLS))
    return columns


@st.composite
def contents(draw):
    """The bytes of a file and the ending of its name: a table or arrays, whole or damaged, or anything."""
    kind = draw(st.sampled_from(["csv", "csv", "csv", "parquet", "parquet", "arrow", "npz", "npy", "any"]))
    if kind == "any":
        ending = draw(st.sampled_from(["csv", "parquet", "arrow", "npz", "npy", "txt"]))
        return ending, draw(st.binary(max_size=60))
    columns = draw(tables())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a.{kind}")
        if kind in ("npz", "npy"):
            arrays = {name: np.array(values) for name, values in columns.items() if "/" not in name}
            arrays["proba"] = np.array([columns[name] for name in ("p_0", "p_1") if name in columns]).T
            np.savez(path, **arrays) if kind == "npz" else np.save(path, arrays["proba"])
        else:
            frame = pl.DataFrame({name: pl.Series(values, strict=False) for name, values in columns.items()})
            {"csv": frame.write_csv, "parquet": frame.write_parquet, "arrow": frame.write_ipc}[kind](path)
        data = bytearray(path.read_bytes())
    if draw(st.integers(0, 5)) == 0 and data:
        for _ in range(draw(st.integers(1, 3))):
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
        data = data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data
    return kind, bytes(data)


COLUMNS = st.one_of(NAMES, st.sampled_from(["p_*", "t_*", "*", "[", "", "q_*", "?"]), st.text(max_size=4))
GOOD = {
    "score": [
        ["--label=y", "--proba=p_*"],
        ["--label=y", "--logits=p_*", "--by=s", "--id=id", "--html=out.html"],
        ["--log-prob=logp", "--weight=w", "--json=out.json"],
        ["--label=t_*", "--proba=p_*", "--by=s", "--by=y", "--html=out", "--json=-"],
        ["--label=y", "--proba=p", "--clip=1e-6", "--skip-invalid", "--json=/dev/null"],
    ],
    "compare": [
        ["--id=id", "--label=y", "--proba=p_*", "--by=s", "--json=out"],
        ["--id=id", "--log-prob=logp", "--cluster=s", "--weight=w", "--json=-"],
    ],
    "why": [["--label=s", "--epochs=1", "--quick", "--out=out", "--drop=y", "--drop=id"]],
    "why --predictions": [["--label=y", "--proba=p_*", "--out=out"], ["--label=y", "--proba=p", "--json"]],
}
"""Options that fit a good table, for each command."""
OTHERS = {
    "--label": COLUMNS,
    "--proba": COLUMNS,
    "--logits": COLUMNS,
    "--log-prob": COLUMNS,
    "--weight": COLUMNS,
    "--id": COLUMNS,
    "--by": COLUMNS,
    "--cluster": COLUMNS,
    "--entropy": COLUMNS,
    "--drop": COLUMNS,
    "--classes": st.sampled_from(["0,1", "1,0", "cat,dog", "a", "", ",", "0,0", "[/],\x1b"]),
    "--clip": st.sampled_from(["1e-6", "0", "1", "nan", "x", "-1", "1e400"]),
    "--tolerance": st.sampled_from(["0.1", "0", "nan", "inf", "-1", "x"]),
    "--worst": st.sampled_from(["1", "3", "0", "x", "99999999"]),
    "--json": OUTPUTS,
    "--html": OUTPUTS,
    "--out": OUTPUTS,
}
"""Values for options in place of the good ones."""


@st.composite
def calls(draw):
    """A command and what it is called with, and the file."""
    command = draw(st.sampled_from(["score"] * 6 + ["compare"] * 4 + ["why --predictions"] * 2 + ["why"]))
    ending, data = draw(contents())
    name = f"data.{ending}"
    if draw(st.integers(0, 5)) == 0:
        name = draw(st.sampled_from(["data.*", ".", "missing", "", "link", "[a].csv", "n" * 300, "/dev/null", "a\0b"]))
    options = list(draw(st.sampled_from(GOOD[command])))
    for change in draw(st.lists(st.sampled_from(["other", "other", "drop"]), max_size=2)):
        if change == "drop" and options:
            options.remove(draw(st.sampled_from(options)))
        elif change == "other":
            key = draw(st.sampled_from(sorted(OTHERS)))
            options.append(f"{key}={draw(OTHERS[key])}")
    names = [name, f"data.{ending}"] if command == "compare" else [name]
    return [*command.split(), *names, *options], f"data.{ending}", data


ENDED: Counter[int] = Counter()
"""How the calls of this session ended."""


def everything(folder: Path) -> dict[str, bytes | None]:
    """Every name in a folder, with the contents of files."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def check(arguments, name, data, folder):
    Path(name).write_bytes(data)
    Path("link").symlink_to("nowhere/at/all")
    before = everything(folder)
    result = CliRunner().invoke(load(), arguments)
    after = everything(folder)
    assert result.exit_code in (0, 2), (result.exception, result.output)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert after.get(name) == data, "the input was changed"
    assert Path("link").is_symlink()
    assert not [path for path in after if path.endswith(".partial")]
    if result.exit_code == 2:
        made = {path for path in after.keys() - before.keys() if not Path(path).is_dir()}
        assert not made, "an error leaves no file"
        assert result.stdout == ""
        assert result.stderr.strip()
    else:
        given = dict(text.split("=", 1) for text in arguments if text.startswith("--") and "=" in text)
        if given.get("--json") == "-":
            json.loads(result.stdout)
        for key in ("--json", "--html"):
            if given.get(key) not in (None, "-", "/dev/null"):
                assert given[key] in after
    ENDED[result.exit_code] += 1
    raw = {c for c in result.output if ord(c) < 32 and c not in "\n\r\t"}
    assert not raw


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_any_file_and_any_options_end_as_documented():
    ENDED.clear()
    check_calls()
    assert ENDED[0] > 45, "otherwise hardly any call got past its options"
    assert ENDED[2] > 60, "otherwise hardly any call was wrong"


# So many because the draws vary: Hypothesis also draws constants of whatever modules are loaded.
@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(call=calls())
def check_calls(call):
    arguments, name, data = call
    home = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            check(arguments, name, data, Path(folder))
        finally:
            os.chdir(home)


def test_the_check_sees_a_file_that_an_error_leaves_and_a_changed_input(tmp_path, monkeypatch):
    """The test of the test: commands that do what none of ours may do."""
    import typer

    monkeypatch.chdir(tmp_path)
    broken = typer.Typer()

    @broken.command()
    def leaves(name: str) -> None:
        Path("left behind").write_text("x")
        raise typer.Exit(2)

    @broken.command()
    def changes(name: str) -> None:
        Path(name).write_text("changed")

    @broken.command()
    def fails(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr("test_cli_fuzz.load" if __name__ == "test_cli_fuzz" else f"{__name__}.load", lambda: broken)
    for command, words in (("leaves", "leaves no file"), ("changes", "input was changed"), ("fails", "KeyError")):
        for path in tmp_path.iterdir():
            path.unlink()
        with pytest.raises(AssertionError, match=words):
            check([command, "data.csv"], "data.csv", b"data", tmp_path)
