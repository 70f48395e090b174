"""Names from data wherever they are shown: one list of hostile strings, fed to every place that prints a name.

On a terminal, in an error, in a progress bar and on a page a name is inert text: control characters and marks that
change the direction of writing are visible escapes, markup and emoji codes stand as they are, the length is bounded.
"""

from __future__ import annotations

import dataclasses
import html
import json
import os
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.table import Table
from typer.testing import CliRunner

import xent
from xent.cli import load
from xent.cli.app import progress, terminal
from xent.names import LONGEST, LONGEST_PATH, UNSHOWN, first_line, listed, quoted, shown_name, shown_path, visible
from xent.report import write_replay, write_score, write_why
from xent.report.page import _json_for_html
from xent.scoring import ScoreState
from xent.scoring.sklearn import log_loss
from xent.why import Settings, run
from xent.why import load as load_table

HOSTILE = [
    "\x1b[31mred\x1b[0m",  # a colour
    "\x1b]0;title\x07",  # the title of the window
    "\x1b]8;;http://example.org\x1b\\link\x1b]8;;\x1b\\",  # a hyperlink
    "\x9b2J",  # clears the screen, in one character
    "back\x08\x08\x08\x08space",
    "two\nlines\r\nand\rreturns",
    "nul\0byte",
    "\u202egnp.exe",  # right-to-left override
    "\u2066isolate\u2069\u200f",
    "soft\u00adhyphen\ufeff",
    "\u2028line\u2029paragraph",
    "non\ufffe\U0010ffffcharacter",
    "[/]",
    "\\[/]",
    "[red]red[/red]",
    "[link=http://example.org]click[/link]",
    "[bold",
    ":x: :warning:",
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "<img src=x onerror=alert(1)>",
    "&lt;b&gt; \"'`",
    "{{ 7 * 7 }}{% raw %}",
    "%s %d {0} {name}",
    "long " * 1000,
    "e\u0301\u0301\u0301\u0301",
    "👩‍👩‍👧 میخواهم",
]
SURROGATES = ["lone \ud800 surrogate", os.fsdecode(b"\xff\xfe")]
CHUNKS = [HOSTILE[first : first + 7] for first in range(0, len(HOSTILE), 7)]
chunks = pytest.mark.parametrize("chunk", CHUNKS, ids=range(len(CHUNKS)))
STYLES = re.compile(r"\x1b\[[0-9;]*m")
CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # what a progress bar moves the cursor with, too


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "2000")


def invoke(*arguments: str):
    return CliRunner().invoke(load(), list(map(str, arguments)))


def check_inert(text: str) -> None:
    """Nothing in it but characters with a glyph, ends of lines and what joins letters."""
    raw = {c for c in text if unicodedata.category(c) in UNSHOWN and c not in "\n\u200c\u200d"}
    assert not raw, f"{[hex(ord(c)) for c in raw]} in {text[:2000]!r}"
    assert "\u274c" not in text, "an emoji code became an emoji"


def check_shown(names, text: str) -> None:
    check_inert(text)
    for name in names:
        assert shown_name(name) in text, f"{shown_name(name)!r} is not in {text!r}"


def table_of(names):
    """A row for each name: its id, label, segment and, in a column of that name, a segment again."""
    n = len(names)
    p = np.full((n, n), 0.5 / max(n - 1, 1))
    np.fill_diagonal(p, 0.5)
    columns = {"id": names, "y": names} | {f"p_{name}": p[:, k] for k, name in enumerate(names)}
    return pl.DataFrame(columns | {name: [name] * n for name in names})


SCORE = ["--label", "y", "--proba", "p_*", "--id", "id"]


# The functions themselves.


@pytest.mark.parametrize("name", HOSTILE + SURROGATES, ids=range(len(HOSTILE + SURROGATES)))
def test_a_shown_name_is_inert_and_bounded(name):
    for show, longest in ((shown_name, LONGEST), (shown_path, LONGEST_PATH), (quoted, LONGEST + 2)):
        text = show(name)
        check_inert(text)
        assert "\n" not in text
        assert len(text) <= longest
        text.encode()
    check_inert(visible(name))
    assert len(first_line(ValueError(name))) <= LONGEST_PATH


def test_harmless_names_stay_as_they_are():
    for name in (
        "p_cat",
        "naïve",
        "東京 大阪",
        "a\u3000b",
        "👍🏽",
        "re\u0301sume\u0301",
        "x" * LONGEST,
        "back\\slash",
        "",
    ):
        assert shown_name(name) == name
    assert shown_name("x" * (LONGEST + 1)) == "x" * (LONGEST - 1) + "…"
    assert shown_name("\x1b[2J\u202e") == "\\x1b[2J\\u202e"
    assert shown_name("\U000e0001") == "\\U000e0001"
    assert quoted(5) == "5"


def test_a_list_of_names_is_bounded():
    assert listed(["a", "b"]) == "a, b"
    text = listed(["n" * 10_000] * 100_000)
    assert len(text) < 21 * (LONGEST + 2)
    assert text.endswith("and 99980 more")


# Tables on a terminal.


@chunks
@pytest.mark.parametrize("colored", [False, True])
def test_the_tables_of_a_score(chunk, colored, monkeypatch):
    if colored:
        monkeypatch.setenv("FORCE_COLOR", "1")
    table_of(chunk).write_parquet("a.parquet")
    by = [f"--by={name}" for name in chunk]
    result = invoke("score", "a.parquet", *SCORE, *by)
    assert result.exit_code == 0, result.stderr
    text = STYLES.sub("", result.stdout)
    assert ("\x1b" in result.stdout) == colored, "otherwise this test shows nothing"
    check_shown(chunk, text)
    check_inert(CONTROLS.sub("", result.stderr).replace("\r", ""))
    for name in chunk:
        assert f"by {shown_name(name)}, the worst first" in text
        assert text.count(shown_name(name)) >= 6, "id, label, predicted, likeliest, class, column and segment"


@chunks
def test_the_tables_of_a_comparison(chunk):
    table = table_of(chunk).with_columns(**{name: pl.lit(name) for name in chunk})
    table.write_parquet("a.parquet")
    table.with_columns(pl.all().reverse()).write_parquet("b.parquet")
    by = [f"--by={name}" for name in chunk]
    result = invoke("compare", "a.parquet", "b.parquet", *SCORE, *by)
    assert result.exit_code == 0, result.stderr
    check_shown(chunk, result.stdout)
    for name in chunk:
        assert result.stdout.count(shown_name(name)) >= 3, "column, segment and id"


FILES = [name for name in HOSTILE if not set(name) & set("/\0") and len(name) < 200]


@pytest.mark.parametrize("name", FILES, ids=range(len(FILES)))
def test_a_file_name_in_tables_errors_and_pages(name):
    name = f"{name}.parquet"
    table_of(["a", "b"]).write_parquet("plain.parquet")
    os.rename("plain.parquet", name)
    result = invoke("score", name, *SCORE, "--json", f"{name}.json", "--html", f"{name}.html")
    assert result.exit_code == 0, result.stderr
    check_inert(result.stdout)
    assert result.stdout.count(shown_path(name)) == 3
    page = Path(f"{name}.html").read_text(encoding="utf-8")
    assert html.escape(shown_path(name)).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page
    assert json.loads(Path(f"{name}.json").read_text())["source"]["name"] == name
    assert invoke("compare", name, name, *SCORE).stdout.count(shown_path(name)) == 2
    for arguments in (["score", f"no {name}", *SCORE], ["why", f"no {name}", "--label", "y"], ["why", name]):
        error = invoke(*arguments)
        assert error.exit_code == 2
        assert error.stderr.count("\n") == 1
        check_inert(error.stderr)
        assert shown_path(name) in error.stderr


@pytest.mark.parametrize("command", [["score"], ["why"], ["why", "--predictions"]])
def test_a_file_name_that_is_no_text_is_one_line(command):
    """Polars opens files whose names are UTF-8."""
    name = os.fsdecode(b"\xff\xfe.parquet")
    Path(name).write_bytes(b"PAR1")
    result = invoke(*command, name, "--label", "y", *([] if command == ["why"] else ["--proba", "p_*"]))
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert shown_path(name) in result.stderr


@pytest.fixture(scope="module")
def record():
    return run(load_table("iris"), Settings(seeds=(0,), epochs=1, learning_rates=(0.1,)))


@pytest.mark.parametrize("name", HOSTILE + SURROGATES, ids=range(len(HOSTILE + SURROGATES)))
def test_the_tables_of_the_experiment(name, record, capsys):
    from xent.cli.why import _print_comparisons

    _print_comparisons(dataclasses.replace(record, data=dataclasses.replace(record.data, name=name)))
    check_shown([name], capsys.readouterr().out)


@pytest.mark.parametrize("name", HOSTILE + SURROGATES, ids=range(len(HOSTILE + SURROGATES)))
def test_a_progress_bar(name, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress() as report:
        report(name, 0, 2)
        report(name, 2, 2)
    shown = CONTROLS.sub("", capsys.readouterr().err)
    assert shown_name(name) in shown
    check_inert(shown.replace("\r", ""))


def test_a_console_of_ours_interprets_nothing(capsys, monkeypatch):
    """Even text that went through no function of names: no markup, no emoji, no link."""
    table = Table("[red]head[/]", title="[/]")
    for text in ("[/]", ":x:", "[link=http://example.org]a[/link]"):
        table.add_row(text)
        terminal().print(text)
    terminal().print(table)
    out = capsys.readouterr().out
    for text in ("[/]", ":x:", "[link=http://example.org]a[/link]", "[red]head[/]"):
        assert text in out


# Errors.


def errors_of(name):
    """Calls that fail, by what the name is in them: everything that puts a name into an error."""
    one = table_of(["a", "b"])
    p = [[0.5, 0.5], [0.5, 0.5]]
    text = name.encode("utf-8", "replace").decode()  # what a column of text can hold
    ids = one.with_columns(id=pl.lit(text))
    wrong = one.with_columns(p_a=pl.lit(9.0), id=pl.Series([text, "x"]))
    yield "a column that is missing", lambda: xent.score(one, name, proba="p_*")
    yield "a pattern without a match", lambda: xent.score(one, "y", proba=f"{name}*")
    yield "an id column that is missing", lambda: xent.score(one, "y", proba="p_*", id=name)
    yield "a segment column that is missing", lambda: xent.score(one, "y", proba="p_*", by=name)
    yield "the columns that there are", lambda: xent.score(one.select("y", pl.col("a").alias(text)), "z", proba="p_*")
    yield "an unknown label", lambda: xent.score(one.with_columns(y=pl.lit(text)), "y", proba="p_*")
    yield "the classes", lambda: xent.score(one, "y", proba=["p_a", "p_b"], classes=[name, "z"])
    yield "a class twice", lambda: xent.score(one, "y", proba=["p_a", "p_b"], classes=[name, name])
    yield "classes that are no columns", lambda: xent.score(one, "y", proba="p_*", classes=[name, "z"])
    yield "a column of text", lambda: xent.score(one.rename({"a": text}), "y", proba=[text, "p_a"])
    yield "an id of an invalid row", lambda: xent.score(wrong, "y", proba="p_*", id="id")
    yield "an id twice, compared", lambda: xent.compare(ids, ids, id="id", label="y", proba="p_*")
    yield "an id of an invalid row, compared", lambda: xent.compare(wrong, wrong, id="id", label="y", proba="p_*")
    other = one.with_columns(y=pl.Series(["b", "a"]), id=pl.Series([text, "x"]))
    yield (
        "an id with another label",
        lambda: xent.compare(other.with_columns(y=one["y"]), other, id="id", label="y", proba="p_*"),
    )
    yield "a label of scikit-learn's", lambda: log_loss([text, "b"], p, labels=["b", "c"])
    yield "the classes of scikit-learn's", lambda: log_loss(["x", "b"], p, labels=["b", text])
    yield "a segment with arrays", lambda: ScoreState.from_batch([0, 1], p, by={name: [1]})
    yield (
        "other forms",
        lambda: (
            ScoreState.from_batch([0, 1], p, classes=[name, "b"]) + ScoreState.from_batch([0, 1], p, classes=["a", "b"])
        ),
    )


WHY_ERRORS = {
    "a missing label": ("{name},x\n" + "a,1\n" * 20, ["--label", "none"]),
    "one class": ("y,x\n" + '"{name}",1\n' * 20, ["--label", "y"]),
    "a rare class": ("y,x\n" + '"{name}",1\n' + "a,1\nb,2\n" * 20, ["--label", "y"]),
    "a missing value": ("y,{name}\n" + "a,\nb,1\n" * 20, ["--label", "y"]),
    "a column of text": ("y,{name}\n" + "\n".join(f"a,word {i}\nb,more {i}" for i in range(60)), ["--label", "y"]),
}

EVERY = HOSTILE + SURROGATES
KINDS = [kind for kind, _ in errors_of("name")]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_the_library(kind):
    for name in EVERY:
        call = dict(errors_of(name))[kind]
        with pytest.raises(xent.XentError) as caught:
            call()
        text = str(caught.value)
        check_inert(text)
        assert "\n" not in text
        assert len(text) < 3_000
        known = [shown_name(name), shown_name(name.encode("utf-8", "replace").decode()), shown_name(f"{name}*")]
        # Two names of a form are shown as one text.
        assert any(k[:20] in text for k in known), text


@pytest.mark.parametrize("kind", WHY_ERRORS)
def test_an_error_of_the_experiment(kind):
    content, options = WHY_ERRORS[kind]
    for name in HOSTILE:
        if set(name) & set('",\n\r\0'):
            continue  # no CSV, or another one
        Path("a.csv").write_text(content.replace("{name}", name), encoding="utf-8")
        result = invoke("why", "a.csv", *options)
        assert result.exit_code == 2, (name, result.output, result.exception)
        check_inert(result.stderr)
        assert result.stderr.count("\n") == 1
        assert shown_name(name) in result.stderr, kind


@pytest.mark.parametrize("option", ["--label", "--proba", "--id", "--by", "--weight", "--classes", "--logits"])
def test_an_error_on_the_command_line(option):
    table_of(["a", "b"]).write_parquet("a.parquet")
    for name in EVERY:
        if option == "--classes":
            name = name.replace(",", ";")
        options = {"--label": "y", "--proba": "p_*", "--id": "id", option: name}
        arguments = [f"{key}={value}" for key, value in options.items()]
        result = invoke("score", "a.parquet", *arguments)
        assert result.exit_code == 2, (name, result.output)
        assert result.stdout == ""
        check_inert(result.stderr)
        assert result.stderr.count("\n") == 1


# Pages.


class Structure(HTMLParser):
    """The elements and attributes of a page, and its text without scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        kept = tuple((key, value) for key, value in attributes if key != "content")
        self.elements.append((tag, kept))

    def handle_comment(self, data):
        self.elements.append(("!--", ()))

    def handle_data(self, data):
        inside = self.elements[-1][0] if self.elements else ""
        (self.scripts if inside == "script" else self.text).append(data)


def check_page(path: Path, harmless: Path, names) -> None:
    """The page has the elements of one with harmless names, and the names are text on it."""
    page, other = (Structure(file.read_text(encoding="utf-8")) for file in (path, harmless))
    assert page.elements == other.elements
    text = "".join(page.text)
    check_inert(text)
    for name in names:
        assert shown_name(name) in text
    data = [text for text in page.scripts if text.startswith("{")]
    assert all(json.loads(text) for text in data)
    code, code_of_other = ([t for t in found.scripts if not t.startswith("{")] for found in (page, other))
    assert code == code_of_other
    assert len(page.scripts) - len(code) == len(data) in (1, 2)


@chunks
def test_the_page_of_a_score(chunk):
    harmless = [f"name {k}" for k in range(len(chunk))]
    for names, page in ((chunk, "hostile.html"), (harmless, "harmless.html")):
        result = xent.score(table_of(names), "y", proba="p_*", id="id", by=names)
        source = {"name": names[0], "files": 1, "bytes": 1, "sha256": "0", "versions": {"xent": "1"}}
        write_score({**result.to_record(), "source": source}, Path(page))
    check_page(Path("hostile.html"), Path("harmless.html"), chunk)


@pytest.mark.parametrize("name", SURROGATES)
def test_the_page_of_a_score_with_lone_surrogates(name):
    """They come from the command line and from names of files, and from records made elsewhere."""
    record = xent.score([[0.5, 0.5]] * 4, [0, 1, 0, 1], by={"s": ["a", "a", "b", "b"]}).to_record()
    for text, page in ((name, "hostile.html"), ("name", "harmless.html")):
        classes = [{**c, "name": text} for c in record["classes"]]
        write_score({**record, "classes": classes, "segments": {text: record["segments"]["s"]}}, Path(page))
    check_page(Path("hostile.html"), Path("harmless.html"), [name])


@chunks
def test_the_pages_of_the_experiment_and_of_the_replay(chunk, record):
    from xent.why.predictions import replay

    plain = record.to_dict()
    replayed = replay(xent.score([[0.5, 0.5]] * 4, [0, 1, 0, 1])).to_dict()
    for names, folder in ((chunk, "hostile"), ([f"name {k}" for k in range(len(chunk))], "harmless")):
        data = {**plain["data"], "name": names[0], "source": names[1], "label": names[2], "classes": names[:3]}
        write_why({**plain, "data": data}, Path(folder))
        write_replay({**replayed, "source": {"name": names[0]}}, Path(folder))
    check_page(Path("hostile/why.html"), Path("harmless/why.html"), [chunk[0]])
    check_page(Path("hostile/predictions.html"), Path("harmless/predictions.html"), [])


def test_json_inside_of_a_script_ends_no_script():
    text = str(_json_for_html({name: name for name in EVERY}))
    assert not set(text) & set("<>&")
    assert json.loads(text) == {name: name for name in EVERY}


# The record keeps names as they are.


@chunks
def test_a_record_has_the_names_themselves(chunk):
    record = xent.score(table_of(chunk), "y", proba="p_*", id="id", by=chunk).to_record()
    again = json.loads(json.dumps(record, allow_nan=False))
    assert again["form"]["classes"] == chunk
    assert {row["id"] for row in again["surprising"]} == set(chunk)
    assert list(again["segments"]) == chunk
