"""The benchmark measures what it says, and the tables are those of the records."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from benchmarks import (
    accuracy,
    bars,
    first_call,
    logits_memory,
    plots,
    primitive_errors,
    record_tables,
    scaling,
    sharded_loss,
    thread_sharing,
)
from benchmarks.logits_loss import run
from benchmarks.run import main
from xent.bench import SHAPES, Shape, machine, show, timing
from xent.bench.peers import EAGER, IMPLEMENTATIONS, OURS, REUSED, Implementation, NotAvailableError, make_inputs
from xent.bench.shapes import select
from xent.errors import ArgumentError, DataError

ROOT = Path(__file__).parents[1]
SETTINGS = timing.Settings(rounds=3, least_rounds=2, seconds_per_case=1.0, minimum_s=1e-4)
FAST = tuple(implementation for implementation in IMPLEMENTATIONS if "compiled" not in implementation.name)


@pytest.fixture(scope="module")
def record():
    shapes = [replace(SHAPES["tiny"], dtypes=("float32", "bfloat16")), Shape("images", 2, 5, (3, 4))]
    return run(shapes, settings=SETTINGS, threads=1, implementations=FAST, command="a test")


# ------------------------------------------------------------------------------------------------------------ the times


class FakeTime:
    """A clock that moves on only when a call is made."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def call(self, name, durations):
        durations = iter(durations)

        def call():
            self.order.append(name)
            self.now += next(durations)

        return call


def test_ratios_are_formed_within_rounds():
    """Every other round is five times as slow for both: the median of ratios does not see it, medians of times do."""
    time = FakeTime()
    slow = [1, 1, 1, 5, 1, 5, 1, 5]  # a warm-up, a call to find out how long it takes, then the rounds
    calls = {"ours": time.call("ours", slow), "peer": time.call("peer", [3 * s for s in slow])}
    settings = timing.Settings(rounds=6, least_rounds=6, minimum_s=0.5)
    seconds = timing.interleaved(calls, settings, clock=lambda: time.now)
    assert seconds == {"ours": slow[2:], "peer": [3 * s for s in slow[2:]]}
    assert timing.ratios(seconds["peer"], seconds["ours"]) == [3.0] * 6
    assert timing.Spread.of(seconds["ours"]).high == 5


def test_each_round_has_every_call_once_and_neighbours_change():
    time = FakeTime()
    calls = {name: time.call(name, [1] * 99) for name in "abc"}
    timing.interleaved(calls, timing.Settings(rounds=4, least_rounds=4), clock=lambda: time.now)
    rounds = ["".join(time.order[-12:][i : i + 3]) for i in range(0, 12, 3)]
    assert all(sorted(order) == list("abc") for order in rounds)
    assert len({order[0] for order in rounds}) > 1
    assert {pair for order in rounds for pair in pairwise(order)} >= {("a", "b"), ("b", "a")}


def test_short_calls_are_repeated_until_they_can_be_timed():
    time = FakeTime()
    seconds = timing.interleaved(
        {"short": time.call("short", [1e-3] * 9999)},
        timing.Settings(rounds=2, least_rounds=2, minimum_s=0.02),
        clock=lambda: time.now,
    )
    assert seconds["short"] == pytest.approx([1e-3, 1e-3])
    assert len(time.order) >= 1 + 20 + 2 * 20


def test_no_round_begins_after_the_time_is_up():
    time = FakeTime()
    settings = timing.Settings(rounds=50, least_rounds=3, seconds_per_case=10)
    seconds = timing.interleaved({"a": time.call("a", [2.0] * 99)}, settings, clock=lambda: time.now)
    assert len(seconds["a"]) == 6


# ----------------------------------------------------------------------------------------------------------- the record


def test_record_survives_json_and_has_what_the_tables_need(record):
    record = json.loads(json.dumps(record))
    for name, (source, make) in record_tables.TABLES.items():
        if source.startswith("logits"):
            assert make(record), name
    for case in record["cases"]:
        assert {c["name"] for c in case["contestants"]} == {c.name for c in FAST}
        wanted = {("forward", EAGER, OURS), ("forward_backward", EAGER, OURS), ("forward_backward", OURS, REUSED)}
        assert wanted <= {(r["measure"], r["numerator"], r["denominator"]) for r in case["ratios"]}
        assert case["losses"] * case["size"][1] == case["elements"]
    assert record["versions"]["torch"]
    assert record["machine"]["processor"]


def test_ratios_of_the_record_follow_from_its_samples(record):
    for case in record["cases"]:
        samples = {c["name"]: c["samples"] for c in case["contestants"]}
        for ratio in case["ratios"]:
            above = samples[ratio["numerator"]][ratio["measure"]]
            below = samples[ratio["denominator"]]
            rounds = timing.ratios(above, below.get("copy") or below[ratio["measure"]])
            assert ratio["median"] == pytest.approx(np.median(rounds), rel=1e-3)


def test_implementations_that_are_not_available_say_why(record):
    reasons = {
        (case["shape"], case["dtype"], c["name"]): c["not_available"]
        for case in record["cases"]
        for c in case["contestants"]
    }
    assert reasons["tiny", "bfloat16", "NumPy formula"] == "NumPy has no bfloat16"
    assert reasons["images", "float32", "scikit-learn log_loss"] == "takes two-dimensional arrays only"
    assert reasons["tiny", "float32", OURS] is None


def test_implementations_have_to_agree():
    def wrong(inputs):
        return {"forward": lambda: 1e3}

    with pytest.raises(AssertionError, match="do not compute the same"):
        run([Shape("tiny", 4, 3)], settings=SETTINGS, implementations=(*FAST, Implementation("wrong", "peer", wrong)))


def test_compiling_needs_a_compiler(monkeypatch):
    (compiled,) = (each for each in IMPLEMENTATIONS if "compiled" in each.name)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(NotAvailableError, match="needs a C\\+\\+ compiler"):
        compiled.prepare(make_inputs(Shape("tiny", 4, 3), "float32"))


def test_bars_are_those_of_known_shapes_and_dtypes():
    for bar in bars.BARS:
        assert bar.dtype in SHAPES[bar.shape].dtypes
        assert bar.against in {each.name for each in IMPLEMENTATIONS}


@pytest.mark.parametrize(("median", "met", "missed_by"), [(9.0, True, None), (8.0, True, None), (4.0, False, 2.0)])
def test_bar_is_met_or_missed_by_a_factor(median, met, missed_by):
    ratio = {"measure": "forward", "numerator": EAGER, "denominator": OURS, "median": median, "low": 1, "high": 10}
    case = {"shape": "cifar", "size": [65536, 10], "dtype": "float32", "ratios": [ratio], "contestants": []}
    (judged,) = bars.judge(case)
    assert bars.judge({**case, "size": [4, 10]}) == []
    assert (judged["bound"], judged["met"], judged["missed_by"]) == (8, met, missed_by)


def test_peak_memory_is_measured_in_a_process_of_its_own():
    """The gradient of float32 logits takes as much memory as they do, and ours takes little more."""
    shape = Shape("wide", 500, 20_000)
    used = logits_memory.peak_bytes(OURS, shape, "float32", 1)
    assert used["method"] in (logits_memory.PEAK_SINCE_RESET, logits_memory.PEAK_OF_PROCESS)
    if used["method"] == logits_memory.PEAK_SINCE_RESET:
        assert 0.9 < used["forward_backward"] / 40e6 < 1.2
        assert used["forward"] < 4e6


# ----------------------------------------------------------------------------------------------------------- the shapes


def test_unknown_names_are_refused_with_those_there_are():
    with pytest.raises(ArgumentError, match=r"no shape 'gpt9'\. Take gpt2, .* or sixteen"):
        run(["gpt9"])
    with pytest.raises(ArgumentError, match="threads"):
        run(["tiny"], threads=0)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--device", "tpu"], "'tpu' is not one of"),
        (["logits", "--shape", "gpt2"], "would replace the record of all"),
        (["scaling", "--quick"], "has sizes of its own"),
        (["linear", "--shape", "gpt2", "--quick"], "has one shape"),
        (["scaling", "--device", "cuda"], "is not measured on a GPU"),
        (["--quick", "--device", "cuda"], "name a part and --out"),
        (["logits", "--quick", "--shape", "gpt9"], "there is no shape 'gpt9'"),
    ],
)
def test_the_script_refuses_what_it_cannot_measure(arguments, complaint):
    app = typer.Typer()
    app.command()(main)
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, arguments)
    assert result.exit_code == 2
    assert complaint in result.stderr


def test_quick_is_a_subset():
    assert {s.name for s in select(quick=True)} < {s.name for s in select()} == set(SHAPES)
    assert [s.name for s in select(["gemma"], quick=True)] == ["gemma"]


def test_inputs_are_the_same_every_time():
    first, second = (make_inputs(SHAPES["tiny"], "float32") for _ in range(2))
    assert first.logits.equal(second.logits)
    assert first.target.equal(second.target)
    assert first.logits.requires_grad
    assert first.arrays[0].ctypes.data == first.logits.data_ptr()


# ------------------------------------------------------------------------------------------- the tables and the scaling


def test_tables_in_the_documents_are_those_of_the_records():
    done = subprocess.run([sys.executable, "benchmarks/tables.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_stale_table_is_noticed(record, tmp_path):
    document = tmp_path / "page.md"
    document.write_text("Before\n<!-- table: summary -->\nold\n<!-- end -->\nafter\n")
    assert record_tables.stale([document], {"logits": record}) == [document]
    document.write_text(record_tables.fill(document.read_text(), {"logits": record}))
    assert record_tables.stale([document], {"logits": record}) == []
    assert document.read_text().startswith("Before\n<!-- table: summary -->\n| logits |")
    assert document.read_text().endswith("<!-- end -->\nafter\n")
    document.write_text(re.sub(r"\d\.\d", "9.9", document.read_text()))
    assert record_tables.stale([document], {"logits": record}) == [document]


def test_check_exits_with_1_when_stale(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copytree(
        ROOT / "benchmarks", tmp_path / "benchmarks", ignore=shutil.ignore_patterns("results", "__pycache__")
    )
    shutil.copy(ROOT / "README.md", tmp_path)
    page = tmp_path / "docs/performance.md"
    page.write_text(page.read_text() + "\n<!-- table: summary -->\nwritten by hand\n<!-- end -->\n")
    command = [sys.executable, tmp_path / "benchmarks/tables.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "docs/performance.md is stale" in done.stderr


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("<!-- table: sumary -->\n<!-- end -->\n", "names no table"), ("<!-- table: summary -->\n", "is not closed")],
)
def test_wrong_markers_are_refused(text, complaint):
    with pytest.raises(DataError, match=complaint):
        record_tables.fill(text, {})


def test_accuracy_is_measured_against_the_reference_and_beside_torch():
    case = accuracy.measure("bfloat16", "21, positions inside", "label smoothing 0.1")
    # torch rounds each loss to bfloat16, of which a loss above 4 shows; ours stays within float32's rounding.
    assert case["xent"]["loss"] < 40 * case["epsilon"] < case["torch"]["loss"]
    assert case["xent"]["gradient"] <= 0.5 * case["gradient_epsilon"] * case["greatest_gradient"]
    assert "torch" not in accuracy.measure("float32", "10 classes", "softcap 30")
    assert "bfloat16" in record_tables.accuracy({"cases": [case]})


def test_table_without_a_record_says_how_to_make_it():
    assert "benchmarks/run.py logits" in record_tables.fill("<!-- table: bars -->\n<!-- end -->\n", {})


@pytest.mark.slow
def test_scaling_is_measured_tabled_and_drawn():
    settings = timing.Settings(rounds=2, least_rounds=1, minimum_s=1e-4)
    record = scaling.run_scaling(elements=(10**4, 10**5), settings=settings, threads=1)
    assert {(p["grows"], p["rows"], p["classes"]) for p in record["points"]} == {
        ("rows", 10, 1000),
        ("rows", 100, 1000),
        ("classes", 1000, 10),
        ("classes", 1000, 100),
    }
    assert "| 100 x 1000 | 1e5 |" in record_tables.scaling(record)
    svg = plots.scaling_svg(record)
    assert svg.startswith(plots.made_from(record))
    assert "more and more rows" in svg


def test_bars_have_the_number_of_each_peer_that_was_measured(record):
    svg = plots.speed_svg(record)
    assert svg.startswith(plots.made_from(record))
    for case in record["cases"]:
        ratio = show.ratio_of(case, "forward_backward", EAGER, OURS)
        assert f">{show.number(ratio['median'])}</text>" in svg


def test_threads_are_drawn_over_one_thread():
    ways = {"one thread": 4e-3, "OpenMP": 2e-3, "pool": 8e-3}
    points = [{"rows": rows, "way": way, "median": time} for rows in (10, 1000) for way, time in ways.items()]
    svg = plots.threads_svg({"points": points})
    assert "threads of a pool" in svg
    assert "times as fast as one thread: 2; threads: torch's OpenMP threads" in svg.replace("&#39;", "'")
    assert "times as fast as one thread: 0.5; threads: threads of a pool" in svg


@pytest.mark.parametrize(
    ("ratios", "sentences"),
    [
        ({"float32": 8.0, "bfloat16": 2.5, "small": 0.5}, ["2.50 to 8.00 times as long", "On small batches (3)"]),
        ({"float32": 8.0, "bfloat16": 2.5}, ["2.50 to 8.00 times as long"]),
        ({"small": 0.5, "tiny": 0.25}, ["On small batches (3 and 4) it takes 0.250 to 0.500"]),
    ],
)
def test_the_headline_has_the_ends_of_both_ranges(ratios, sentences):
    """Two dtypes of one size are two cases."""
    names = {"measure": "forward_backward", "numerator": EAGER, "denominator": OURS}
    sizes = {"float32": [9, 9], "bfloat16": [9, 9], "small": [3], "tiny": [4]}
    cases = [{"size": sizes[name], "ratios": [{**names, "median": ratio}]} for name, ratio in ratios.items()]
    text = record_tables.headline({"cases": cases})
    assert all(sentence in text for sentence in sentences)
    assert ("small batches" in text) is (min(ratios.values()) < 1)


def test_the_first_call_is_measured_with_empty_and_with_filled_caches(monkeypatch):
    """Here in this process, whose kernels are ready: compiling them twice takes a minute."""
    folders = []

    def measure(implementation, dtype, threads, folder):
        folders.append(folder)
        return first_call._measure(implementation, dtype)

    monkeypatch.setattr(first_call, "_in_a_process", measure)
    record = first_call.run_first_call(implementations=(OURS,), threads=1)
    assert [(p["dtype"], p["cache"]) for p in record["points"]] == [
        (dtype, cache) for dtype in ("float32", "bfloat16") for cache in ("empty", "filled")
    ]
    assert all(p["forward"] > 0 and p["forward_backward"] > 0 for p in record["points"])
    assert folders[0] == folders[1] != folders[2]
    assert not Path(folders[0]).exists()
    assert record_tables.first_call(record).count("\n") == 5


def test_a_first_call_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)the first call of xent.torch failed.*float7"):
        first_call._in_a_process(OURS, "float7", 1, str(tmp_path))


def test_every_kind_of_threads_is_measured_and_tabled():
    settings = timing.Settings(rounds=2, least_rounds=1, minimum_s=1e-4)
    record = thread_sharing.run_threads(rows=(4, 300), settings=settings)
    assert {(point["rows"], point["way"]) for point in record["points"]} == {
        (rows, way) for rows in (4, 300) for way in thread_sharing.WAYS
    }
    assert all(point["median"] > 0 for point in record["points"])
    assert record_tables.threads(record).count("\n") == 3


def test_scaling_leaves_out_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(scaling.machine, "memory_bytes", lambda which: 1_000_000)
    settings = timing.Settings(rounds=1, least_rounds=1, minimum_s=1e-4)
    record = scaling.run_scaling(elements=(10**4, 10**6), settings=settings, threads=1)
    assert {point["elements"] for point in record["points"]} == {10**4}
    assert all("needs 0 GB" in entry["reason"] for entry in record["left_out"])
    assert "Left out: 1e+06 logits" in record_tables.scaling(record)


def test_a_shard_of_the_classes_is_computed_and_tabled():
    case = {"ranks": 8, "measured": None, **sharded_loss.computed(8)}
    assert "| 8 | computed | 6283 |" in record_tables.sharded({"cases": [case]})
    assert case["sent_per_row"] == pytest.approx(2 * 7 / 8 * case["handed_per_row"])


def test_record_on_the_terminal(record):
    from rich.console import Console

    console = Console(width=140)
    with console.capture() as capture:
        console.print(*show.tables(record))
    text = capture.get()
    assert "tiny: 128 x 10 float32" in text
    assert "NumPy has no bfloat16" in text


def test_time_of_other_processes_is_not_ours(monkeypatch):
    """Ten seconds on two cores: busy for twelve of the twenty, eight of which were ours."""
    counted = iter([(100.0, 50.0, 3.0), (120.0, 62.0, 11.0)])
    monkeypatch.setattr(machine.OtherProcesses, "_seconds", staticmethod(lambda: next(counted)))
    assert machine.OtherProcesses().share() == 0.2


def test_disturbed_cases_are_named(record):
    cases = [{**case, "share_of_others": share} for case, share in zip(record["cases"], (0.0, 0.3, None), strict=True)]
    (sentence,) = show.disturbed({"cases": cases})
    assert sentence == "tiny bfloat16: other processes used 30% of the processor"


def test_progress_ends_at_its_total():
    seen = []
    run([Shape("tiny", 4, 3)], settings=SETTINGS, implementations=FAST[:1], progress=lambda *step: seen.append(step))
    assert seen[0] == ("tiny float32", 0, SETTINGS.rounds)
    assert seen[-1] == ("tiny float32", SETTINGS.rounds, SETTINGS.rounds)


# ---------------------------------------------------------------------------------------------------- the primitives


def test_the_primitives_are_accurate_to_their_last_digits():
    """Each step of a primitive rounds once: exp 2 of them, tanh and its derivative up to 5 with their division."""
    most = {"exp": 1.5, "log": 1.5, "tanh": 4.0, "1 - tanh**2": 5.5}
    errors = primitive_errors.measure_primitives(samples=2**14)
    assert {p["name"] for p in errors} == set(most)
    assert all(0.3 < p["units_in_the_last_place"] < most[p["name"]] for p in errors), errors


def test_the_script_leaves_torch_to_be_imported_by_what_it_measures():
    """torch reads whether to ask for huge pages when it is imported."""
    code = "import sys, benchmarks.run; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
