"""Files from strangers, in every form that is read: refused in a line, or shown harmlessly."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from make_score_files import FOLDER
from typer.testing import CliRunner

import xent
from xent.cli import load
from xent.scoring import limits

EVIL = [
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\x1b[31mred\x1b[0m", "\x1b]8;;http://x\x07y",
    "[bold]x[/bold]", "[/]", "=cmd|' /C calc'!A0", "\u202eevil", "{{ 7 * 7 }}", "a\tb", "'; DROP TABLE x", "x" * 300,
]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def invoke(*arguments):
    return CliRunner().invoke(load(), list(map(str, arguments)))


def evil_table():
    """Labels, ids, segments and columns of classes that are called badly."""
    classes = EVIL[:4]
    p = np.random.default_rng(0).dirichlet(np.ones(4), 24)
    names = [classes[k % 4] for k in range(24)]
    columns = {f"p_{name}": p[:, k] for k, name in enumerate(classes)}
    ids = [f"{k} {EVIL[k % len(EVIL)]}" for k in range(24)]
    return pl.DataFrame({"id": ids, "y": names, "</title><u>seg": [EVIL[k % 5 + 4] for k in range(24)], **columns})


WRITERS = {
    "csv": lambda t, path: t.write_csv(path),
    "tsv": lambda t, path: t.write_csv(path, separator="\t"),
    "jsonl": lambda t, path: t.write_ndjson(path),
    "json": lambda t, path: t.write_json(path),
    "parquet": lambda t, path: t.write_parquet(path),
}


class Scripts(HTMLParser):
    """The elements of a page that could do something."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        leaves = any(name in ("href", "src") and not value.startswith(("#", "data:,")) for name, value in attributes)
        if tag in ("img", "u", "iframe", "object") or leaves or any(name.startswith("on") for name, _ in attributes):
            self.found.append((tag, attributes))


@pytest.mark.parametrize("kind", WRITERS)
def test_names_are_shown_harmlessly_from_every_kind_of_file(kind):
    WRITERS[kind](evil_table(), f"a.{kind}")
    options = ["--label", "y", "--proba", "p_*", "--id", "id", "--by", "</title><u>seg"]
    scored = invoke("score", f"a.{kind}", *options, "--html", "a.html", "--json", "out.json")
    compared = invoke("compare", f"a.{kind}", f"a.{kind}", *options, "--html", "c.html")
    for result, page in ((scored, "a.html"), (compared, "c.html")):
        assert result.exit_code == 0, result.stderr
        for sign in ("\x1b]", "\x1b[31m", "\u202e", "\x07"):
            assert sign not in result.stdout + result.stderr
        parser = Scripts()
        parser.feed(Path(page).read_text(encoding="utf-8"))
        assert parser.found == []
        assert "<script>alert(1)" not in Path(page).read_text(encoding="utf-8")
    worst = json.loads(Path("out.json").read_text())["surprising"]
    assert {row["id"] for row in worst} == set(evil_table()["id"]), "the record has them as they are"


@pytest.mark.parametrize("name", EVIL[:9])
def test_names_in_errors_are_one_harmless_line(name):
    frame = pl.DataFrame({"y": [0], name: ["text"], "p": [0.5]})
    frame.write_csv("a.csv")
    for options in (["--proba", name], ["--proba", "p", "--by", name + "?"], ["--proba", "p", "--labels", name]):
        result = invoke("score", "a.csv", "--label", "y", *options)
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
        assert not set("\x1b\x07\u202e") & set(result.stderr)


BOMBS = {
    "csv.gz": gzip.compress,
    "jsonl.gz": gzip.compress,
    "json.gz": gzip.compress,
    "csv.bz2": bz2.compress,
    "csv.xz": lzma.compress,
    "parquet.gz": gzip.compress,
}


@pytest.mark.parametrize("ending", [*BOMBS, "csv.zip", "csv.zst", "xlsx"])
def test_what_inflates_without_end_is_refused(ending, monkeypatch):
    monkeypatch.setattr(limits, "MOST_INFLATED", 1_000_000)
    bomb = b"y,p\n" + b"0,0.5\n" * 500_000
    if ending in BOMBS:
        Path(f"a.{ending}").write_bytes(BOMBS[ending](bomb))
    elif ending == "csv.zst":
        pa = pytest.importorskip("pyarrow")
        with pa.CompressedOutputStream("a.csv.zst", "zstd") as stream:
            stream.write(bomb)
    else:
        with zipfile.ZipFile(f"a.{ending}", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("xl/worksheets/sheet1.xml", bomb)
    result = invoke("score", f"a.{ending}", "--label", "y", "--proba", "p")
    assert result.exit_code == 2
    assert "more than 1,000,000 bytes" in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_archive_of_several_files_is_refused_and_nothing_is_unpacked():
    with zipfile.ZipFile("a.csv.zip", "w") as archive:
        archive.writestr("../../evil.csv", "y,p\n1,0.5\n")
    assert invoke("score", "a.csv.zip", "--label", "y", "--proba", "p").exit_code == 0
    assert [path.name for path in Path().iterdir()] == ["a.csv.zip"]
    with zipfile.ZipFile("b.csv.zip", "w") as archive:
        archive.writestr("a.csv", "y,p\n1,0.5\n")
        archive.writestr("b.csv", "y,p\n1,0.5\n")
    result = invoke("score", "b.csv.zip", "--label", "y", "--proba", "p")
    assert result.exit_code == 2
    assert "2 files" in result.stderr


@pytest.mark.parametrize("depth", [100, 500, 5_000, 200_000])
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_deep_json_is_read_or_refused(depth, kind):
    for opening, inside, closing in (("[", "", "]"), ('{"b":', "1", "}")):
        text = '{"y":1,"p":0.5,"a":' + opening * depth + inside + closing * depth + "}"
        Path(f"a.{kind}").write_text(text if kind == "jsonl" else f"[{text}]")
        result = invoke("score", f"a.{kind}", "--label", "y", "--proba", "p", "--json", "-")
        assert result.exit_code == (0 if depth <= 500 else 2), result.stderr


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.iterdir() if path.is_file()))
def test_damaged_files_are_an_error_of_ours_or_a_score(name):
    """A few changed bytes, or a file cut short: in eight ways for each of the forty files."""
    data, rng = (FOLDER / name).read_bytes(), random.Random(name)
    options = {"label": "animal", "proba": "p_*"} if name.startswith(("p", "r", "d")) else {"label": "y", "proba": "*"}
    if ".np" in name:
        options = {"label": "y"}
    for _ in range(8):
        changed = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        Path(name).write_bytes(changed[: rng.choice([len(changed), rng.randrange(1, len(changed))])])
        try:
            assert xent.score(name, **options).rows > 0
        except (xent.XentError, ImportError) as error:
            said = str(error)
        else:
            continue
        assert len(said) < 3_000
        assert said.isprintable()
