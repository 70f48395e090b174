"""Text and files from strangers: an error of ours or an answer, and nothing else."""

from __future__ import annotations

import base64
import functools
import gzip
import io
import json
import math
import random
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import xent
from xent.cli import load
from xent.errors import DataError
from xent.report import write_replay, write_score, write_why
from xent.scoring import ScoreState, limits
from xent.why import Settings, run
from xent.why import load as load_data
from xent.why.predictions import replay

SEED = 20261126
MUTATIONS = 2_000


# The JSON text of a state.


def state_text(soft: bool = False) -> str:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), 30)
    labels = rng.dirichlet(np.ones(3), 30) if soft else rng.integers(0, 3, 30)
    p[3] *= 2  # an invalid row
    ids = np.array([f"row {i}" for i in range(30)])
    segments = {"country": np.array(["é", "b", "</script>"] * 10)}
    weight = rng.exponential(size=30)
    state = ScoreState.from_batch(labels, p, weight=weight, ids=ids, by=segments, classes=("x", "y", "z"), worst=4)
    return state.to_json()


VALUES = [
    None, True, False, 0, -1, 1, 1.5, -0.0, 1e308, 1e400, 2**53, 2**63, 2**64, -(2**70), 10**400, "", "x", "\0", "💥",
    "\ud800", [], {}, [[]], [None], {"shape": [2], "list": [1, 2]}, "AAAA", "<f8", "O", "<U1000000000",
    {"dtype": "<f8", "shape": [10**12, 10**12], "base64": ""}, {"dtype": "<f8", "shape": [-1, 2], "base64": ""},
]  # fmt: skip


def places(value, path=()):
    """Every place in nested JSON."""
    yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from places(item, (*path, key))


def replaced(tree, path, change):
    if not path:
        return change(tree)
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = replaced(copy[path[0]], path[1:], change)
    return copy


def noise(rng, text):
    """Base64 whose numbers are no longer those of rows: some bits, or NaN, infinities, negative and huge numbers."""
    try:
        data = bytearray(base64.b64decode(text))
    except ValueError:  # changed before
        return text
    if len(data) < 8:
        return text
    at = 8 * rng.randrange(len(data) // 8)
    if rng.random() < 0.5:
        data[at + rng.randrange(8)] ^= 1 << rng.randrange(8)
    else:
        numbers = [math.nan, math.inf, -math.inf, -1.0, -1e-300, 0.5, 1e300, 2.0**60, 1e-320]
        data[at : at + 8] = struct.pack("<d", rng.choice(numbers))
    return base64.b64encode(bytes(data)).decode()


def mutated(rng: random.Random, text: str) -> str:
    """The text with one to three changes: of its characters, its structure, its values or its numbers."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        kind = rng.choice(
            ["characters", "cut", "value", "value", "numbers", "numbers", "numbers", "key", "twice", "deep"]
        )
        if kind == "characters":
            at = rng.randrange(len(text))
            new = rng.choice(
                ['"', "{", "}", "[", "]", ",", ":", "\\", "0", "-", "e", "é", "\0", "\u202e", "\ud800", ""]
            )
            text = text[:at] + new + text[at + rng.randrange(3) :]
            continue
        if kind == "cut":
            at = rng.randrange(len(text))
            text = text[:at] if rng.random() < 0.5 else text + text[at:]
            continue
        try:
            tree = json.loads(text)
            every = [path for path in places(tree) if path]
            path = rng.choice(every)
        except (ValueError, IndexError, RecursionError):
            continue
        if kind == "value":
            tree = replaced(tree, path, lambda _: rng.choice(VALUES))
        elif kind == "numbers":
            encoded = [path for path in every if path[-1] == "base64"]
            if encoded:
                tree = replaced(tree, rng.choice(encoded), lambda old: noise(rng, old) if isinstance(old, str) else old)
        elif kind == "key":
            objects = [path for path in places(tree) if isinstance(at_path(tree, path), dict)]
            tree = replaced(tree, rng.choice(objects), lambda old: with_other_keys(rng, old)) if objects else tree
        elif kind == "twice":
            written = json.dumps(tree)
            key = json.dumps(str(path[-1]))
            text = written.replace(f"{key}:", f"{key}: {json.dumps(rng.choice(VALUES))}, {key}:", 1)
            continue
        else:
            depth = rng.choice([10, 100, 1_000, 10_000])
            text = json.dumps(replaced(tree, path, lambda _: "DEEP")).replace('"DEEP"', "[" * depth + "]" * depth, 1)
            continue
        text = json.dumps(tree)
    return text


def at_path(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def with_other_keys(rng, old):
    new = dict(old)
    if new and rng.random() < 0.7:
        value = new.pop(rng.choice(list(new)))
        if rng.random() < 0.5:
            new[rng.choice(["", "x", "é", "\0", "shape", "list", "p"])] = value
    else:
        new[rng.choice(["extra", "list", "target"])] = rng.choice(VALUES)
    return new


@pytest.mark.parametrize("soft", [False, True], ids=["hard labels", "soft labels"])
def test_mutations_of_a_state_are_a_data_error_or_a_state_that_works(soft):
    """A state that passes is used: added, written, read again and turned into figures and a record."""
    rng, text = random.Random(SEED + soft), state_text(soft)
    original = ScoreState.from_json(text)
    refused, longest = 0, 0
    for number in range(MUTATIONS // 2):
        changed = mutated(rng, text)
        try:
            state = ScoreState.from_json(changed)
        except DataError as error:
            refused += 1
            longest = max(longest, len(str(error)))
            continue
        except BaseException as error:
            raise AssertionError(f"mutation {number}: {changed[:2000]}") from error
        try:
            with np.errstate(all="ignore"):
                json.dumps(state.finalize().to_record(), allow_nan=False)
                if state.form == original.form:
                    (state + original).finalize()
                assert ScoreState.from_json(state.to_json()) == state
        except BaseException as error:
            raise AssertionError(f"mutation {number}: {changed}") from error
    assert longest < 1_000, "an error is a line, whatever it is about"
    assert refused > MUTATIONS // 4, "otherwise hardly anything was mutated"
    assert refused < MUTATIONS // 2, "otherwise no state was used"


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"state":', '{"form":{"classes":['])
@pytest.mark.parametrize("depth", [10_000, 1_000_000])
def test_deep_nesting_is_refused(opening, depth):
    for text in (opening * depth, opening * depth + "]" * depth):
        with pytest.raises(DataError, match="to_json"):
            ScoreState.from_json(text)


def test_every_truncation_is_refused():
    text = state_text()
    for end in range(0, len(text), 97):
        with pytest.raises(DataError):
            ScoreState.from_json(text[:end])


def changed_array(name, change):
    written = json.loads(state_text())
    entry = written
    *parents, last = name.split(".")
    for parent in parents:
        entry = entry[parent]
    array = np.frombuffer(base64.b64decode(entry[last]["base64"]), entry[last]["dtype"]).reshape(entry[last]["shape"])
    array = array.copy()
    change(array)
    entry[last]["base64"] = base64.b64encode(array.tobytes()).decode()
    return json.dumps(written)


def assign(place, value):
    def change(array):
        array[place] = value

    return change


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("totals", (0, 0), -1.0),
        ("totals", (0, 0), 2.5),
        ("totals", (1, 0), 1e6),
        ("totals", (3, 0), math.nan),
        ("totals", (6, 0), -5.0),
        ("totals", (6, 1), 1e3),
        ("classes", (0, 0, 0), math.inf),
        ("one_vs_rest", (0, 5, 0), -1.0),
        ("confidence", (3, 0), math.nan),
        ("losses", (3, 0), -1.0),
        ("segments.country.b", (0, 0), 0.5),
        ("sample.p", (0, slice(None)), 0.0),
        ("sample.p", (0, 0), math.nan),
        ("sample.weight", 0, -1.0),
        ("surprising.loss", 0, math.nan),
        ("surprising.row", 0, -5),
    ],
)
def test_numbers_that_no_rows_add_up_to_are_refused(name, place, value):
    with pytest.raises(DataError, match="to_json"):
        ScoreState.from_json(changed_array(name, assign(place, value)))


@pytest.mark.parametrize(
    "record",
    [
        {},
        [],
        None,
        5,
        "text",
        {"record": "xent score"},
        {"record": "\x1b" * 10_000, "schema": 1},
        {"record": 1, "schema": 1},
    ],
    ids=lambda record: str(record)[:20],
)
def test_what_is_no_record_makes_no_page(record, tmp_path):
    for write, path in ((write_score, tmp_path / "a.html"), (write_why, tmp_path), (write_replay, tmp_path)):
        if write is write_why and not isinstance(record, dict):
            continue  # it takes the result of an experiment, too
        with pytest.raises(DataError, match="expected a record of") as caught:
            write(record, path)
        assert len(str(caught.value)) < 500
    assert list(tmp_path.iterdir()) == []


@functools.cache
def records() -> dict[str, tuple[Any, str]]:
    """How each kind of record becomes a page, and the text of one."""
    rng = np.random.default_rng(0)
    score = xent.score(rng.dirichlet(np.ones(3), 60), rng.integers(0, 3, 60), by={"place": np.array(["n", "s"] * 30)})
    experiment = run(load_data("iris"), Settings(seeds=(0,), epochs=2, learning_rates=(0.1, 1.0)))
    replayed = replay(score).to_dict()
    parts = {"score": (write_score, score.to_record()), "why": (write_why, experiment.to_dict())}
    parts["replay"] = (write_replay, replayed)
    return {kind: (write, json.dumps(record)) for kind, (write, record) in parts.items()}


@pytest.mark.parametrize("kind", ["score", "why", "replay"])
@pytest.mark.parametrize("count", [10, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
def test_mutations_of_a_record_are_a_data_error_or_a_page(kind, count, tmp_path):
    write, text = records()[kind]
    rng, refused = random.Random(SEED), []
    for number in range(count):
        try:
            record = json.loads(mutated(rng, text))
        except (ValueError, RecursionError):
            continue
        if write is write_why and not isinstance(record, dict):
            continue
        path = tmp_path / f"{number}"
        try:
            write(record, path)
        except DataError as error:
            refused.append((len(str(error)), path.exists()))
    assert refused, "nothing was refused"
    assert all(length < 500 and not exists for length, exists in refused)


# Files of arrays.


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def header(shape, descr="'<f8'", version=(1, 0)) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    text += b" " * (63 - len(text) % 64) + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(text)) + text


def npz(path, **members: bytes):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)


def npy_bytes(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


LABELS = npy_bytes(np.array([0, 1]))
HOSTILE_ARRAYS = {
    "a header of 12.8 GB": header("(800000000, 2)") + b"\0" * 32,
    "a header of 10^24 bytes": header("(1000000000000, 1000000000000)") + b"\0" * 32,
    "objects": npy_bytes(np.array([{"a": 1}, None], object)),
    "a negative shape": header("(-1, 2)") + b"\0" * 32,
    "text as a shape": header("'x'") + b"\0" * 32,
    "a type that is none": header("(2, 2)", "'nothing'") + b"\0" * 32,
    "named fields": header("(2,)", "[('a', '<f8')]") + b"\0" * 16,
    "a header that is no dictionary": b"\x93NUMPY\x01\x00\x10\x00(((((((((((((((\n",
    "a header without an end": b"\x93NUMPY\x01\x00\xff\xff{'descr'",
    "another version": header("(2, 2)", version=(9, 9)) + b"\0" * 32,
    "half of the numbers": header("(2, 2)") + b"\0" * 16,
    "no array": b"PK\x03\x04 and so on",
    "nothing": b"",
}


def score(*arguments):
    return CliRunner().invoke(load(), ["score", *arguments])


@pytest.mark.parametrize("case", HOSTILE_ARRAYS)
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_hostile_arrays_are_one_line_and_allocate_nothing(case, kind, folder, monkeypatch):
    monkeypatch.setattr(np, "ndarray", NoLargeArrays)
    data = HOSTILE_ARRAYS[case]
    np.save("labels.npy", np.array([0, 1]))
    if kind == "npz":
        npz("a.npz", p=data, y=LABELS)
        result = score("a.npz", "--proba", "p", "--label", "y")
    else:
        Path("a.npy").write_bytes(data)
        result = score("a.npy", "--label", "labels.npy")
    monkeypatch.undo()
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stderr.count("\n") == 1
    assert f"a.{kind}" in result.stderr or "proba" in result.stderr


class NoLargeArrays(np.ndarray):
    """An array type that refuses what a header of a few bytes announces."""

    def __new__(cls, shape, *arguments, **options):
        assert np.prod(np.atleast_1d(shape).astype(float)) < 1e8, "a large array was made"
        return np.zeros(shape, *arguments[:1], **options).view(np.ndarray)


def test_objects_are_named_as_what_is_not_read(folder):
    npz("a.npz", p=HOSTILE_ARRAYS["objects"], y=LABELS)
    assert "Python objects" in score("a.npz", "--proba", "p", "--label", "y").stderr


def test_a_header_that_announces_more_than_there_is_says_both(folder):
    npz("a.npz", p=HOSTILE_ARRAYS["a header of 12.8 GB"], y=LABELS)
    stderr = score("a.npz", "--proba", "p", "--label", "y").stderr
    assert "12,800,000,000 bytes" in stderr
    assert "and 32 are there" in stderr


def test_an_inflated_array_is_bounded_and_the_limit_is_named(folder, monkeypatch):
    monkeypatch.setattr(limits, "MOST_INFLATED", 10_000)
    p = np.full((1000, 2), 0.5)
    np.savez_compressed("a.npz", p=p, y=np.zeros(1000, int))
    result = score("a.npz", "--proba", "p", "--label", "y")
    assert result.exit_code == 2
    assert "more than 10,000" in result.stderr
    np.savez("b.npz", p=p, y=np.zeros(1000, int))
    assert score("b.npz", "--proba", "p", "--label", "y").exit_code == 0


def test_a_damaged_archive_is_one_line(folder):
    np.savez_compressed("whole.npz", p=np.full((500, 2), 0.5), y=np.arange(500) % 2)
    whole = Path("whole.npz").read_bytes()
    rng = random.Random(SEED)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        Path("a.npz").write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        try:
            found = xent.score("a.npz", "y", proba="p")
        except xent.XentError:
            continue
        assert found.rows == 500


# Text that inflates.


def write_bomb(path, size):
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(b"y,p_0,p_1\n")
        for _ in range(size // 1_000_000):
            file.write(b"0,0.50,0.50\n" * (1_000_000 // 12))


@pytest.mark.parametrize("command", ["score", "why"])
def test_a_gzip_that_calls_itself_csv_is_bounded_and_the_limit_is_named(command, folder, monkeypatch):
    write_bomb("a.csv", 3_000_000)
    arguments = ["score", "a.csv", "--label", "y", "--proba", "p_*"]
    if command == "why":
        arguments = ["why", "a.csv", "--label", "y"]
    else:
        assert CliRunner().invoke(load(), arguments).exit_code == 0, "below the limit it is read"
    monkeypatch.setattr(limits, "MOST_INFLATED", 1_000_000)
    result = CliRunner().invoke(load(), arguments)
    assert result.exit_code == 2
    assert "more than 1,000,000 bytes" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"\x28\xb5\x2f\xfd", "a.csv"),
        (b"\x78\x9c", "Decompress it first"),
        (b"BZh91AY", "a.csv cannot be decompressed"),
        (b"\xfd7zXZ", "a.csv cannot be decompressed"),
        (b"PK\x03\x04", "a.csv cannot be decompressed"),
    ],
)
def test_damaged_compressed_text_is_refused(start, words, folder):
    Path("a.csv").write_bytes(start + bytes(100))
    result = score("a.csv", "--label", "y", "--proba", "p_*")
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_bomb_is_left_as_soon_as_it_is_known_for_one(folder, monkeypatch):
    monkeypatch.setattr(limits, "MOST_INFLATED", 2**22)
    read = []
    monkeypatch.setattr(limits.gzip, "open", lambda path: Counted(read))
    Path("a.csv").write_bytes(b"\x1f\x8b and much more")
    with pytest.raises(DataError, match="4,194,304"):
        limits.check_inflated(Path("a.csv"))
    assert sum(read) <= 2**22 + limits.PIECE


class Counted(io.BytesIO):
    """A file without an end."""

    def __init__(self, read):
        self.seen = read

    def read(self, size):
        self.seen.append(size)
        return bytes(size)


# Names of files.


@pytest.mark.parametrize("name", ["[a].csv", "*.csv", "a?.csv", "{a}.csv", "[a].parquet", "~.csv", "a b.csv", "ü.csv"])
def test_a_name_that_looks_like_a_pattern_is_found(name, folder):
    table = pl.DataFrame({"y": [0, 1], "p_0": [0.5, 0.5], "p_1": [0.5, 0.5]})
    table.write_csv(name) if name.endswith(".csv") else table.write_parquet(name)
    pl.DataFrame({"other": [1]}).write_csv("another.csv")
    result = score(name, "--label", "y", "--proba", "p_*")
    assert result.exit_code == 0, result.stderr
    rows = pl.DataFrame({"y": ["a", "b"] * 20, "x": range(40)})
    rows.write_csv(name) if name.endswith(".csv") else rows.write_parquet(name)
    from xent.why import load as load_table

    assert load_table(name, "y").rows_in_source == 40


@pytest.mark.parametrize(
    "name", ["n" * 300 + ".csv", "a\0b.csv", "", "a.csv/b.csv", "link.csv", ".", "**/*", "[", "\ud800.csv"]
)
@pytest.mark.parametrize("command", [["score"], ["why"], ["compare", "good.csv"], ["why", "--predictions"]])
def test_names_that_lead_nowhere_are_one_line(name, command, folder):
    Path("good.csv").write_text("id,y,p_0,p_1\n1,0,0.5,0.5\n")
    Path("a.csv").write_text("id,y,p_0,p_1\n1,0,0.5,0.5\n")
    Path("link.csv").symlink_to("nowhere.csv")
    options = ["--label", "y"]
    options += ["--id", "id", "--proba", "p_*"] if command[0] == "compare" else []
    options += ["--proba", "p_*"] if command == ["score"] or (len(command) == 2 and command[0] == "why") else []
    result = CliRunner().invoke(load(), [*command, name, *options])
    if name == "**/*" and result.exit_code == 0:
        return
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stderr.count("\n") == 1, result.stderr


# Many columns, segments and long ids.


def seconds(call) -> float:
    """The shortest of five."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def wide(columns, rows=4):
    p = np.full((rows, columns), 1 / columns)
    return pl.DataFrame(
        {"y": ["0", "1"] * (rows // 2), "id": range(rows)} | {f"p_{k}": p[:, k] for k in range(columns)}
    )


@pytest.mark.parametrize("how", ["pattern", "names", "classes", "compare"])
def test_time_is_linear_in_the_number_of_columns(how):
    def call(table):
        names = [name for name in table.columns if name.startswith("p_")]
        classes = [name[2:] for name in names]
        if how == "compare":
            return lambda: xent.compare(table, table, id="id", label="y", proba="p_*")
        if how == "names":
            return lambda: xent.score(table, "y", proba=names, classes=classes)
        return lambda: xent.score(table, "y", proba="p_*", classes=classes[::-1] if how == "classes" else None)

    small, large = call(wide(1_000)), call(wide(8_000))
    small()
    ratio = seconds(large) / seconds(small)
    assert ratio < 24, f"{ratio:.1f} times the time for eight times the columns; 64 is quadratic"


def test_the_plan_of_100_000_columns_takes_less_than_seconds():
    from xent.scoring.form import Request

    names = [f"p_{k}" for k in range(100_000)]
    for request in (Request("y", proba="p_*"), Request("y", proba=names), Request(names, proba=names)):
        start = time.perf_counter()
        request.plan([*names, "y"], {})
        assert time.perf_counter() - start < 5


def test_too_many_segments_are_refused_and_the_limit_is_named():
    for rows in (10_001, 200_000):
        table = pl.DataFrame({"logp": np.full(rows, -1.0), "id": range(rows)}).with_columns(s=pl.col("id"))
        with pytest.raises(DataError, match="'s' has more than 10000 values"):
            xent.score(table, log_prob="logp", by="s")
        with pytest.raises(DataError, match="'s' has more than 10000 values"):
            xent.compare(table, table, id="id", log_prob="logp", by="s")


def test_the_segments_of_a_comparison_are_found_in_one_visit():
    def call(count):
        rows = 20 * count
        table = pl.DataFrame({"logp": np.linspace(-2, -1, rows), "id": range(rows), "s": np.arange(rows) % count})
        return lambda: xent.compare(table, table.with_columns(pl.col("logp") * 1.1), id="id", log_prob="logp", by="s")

    few, many = call(1_000), call(4_000)
    ratio = seconds(many) / seconds(few)
    assert ratio < 8, (
        f"{ratio:.1f} times the time for four times the segments and rows; 16 is what a visit for each takes"
    )
    found = call(1_000)()
    assert len(found.segments) == 1_000
    assert {s.rows for s in found.segments} == {20}
    assert math.isclose(math.fsum(s.share for s in found.segments), 1.0)


def test_long_ids_and_labels_are_scored_and_shown_short():
    ids = [f"{i:04}" + "i" * 1024 for i in range(3_000)]
    table = pl.DataFrame({"id": ids, "y": ["a" * 1024, "b" * 1024] * 1_500, "p": np.full(3_000, 0.5)})
    found = xent.score(table, "y", proba="p", id="id", classes=["a" * 1024, "b" * 1024])
    assert found.rows == 3_000
    assert found.surprising[0].id in set(ids)
    with pytest.raises(xent.XentError) as caught:
        xent.score(table, "y", proba="p", classes=["c" * 100_000, "d"])
    assert len(str(caught.value)) < 1_000
