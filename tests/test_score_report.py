"""The report of `xent score`: what is in the file, and what a reader can do with it in a browser."""

from __future__ import annotations

import json
import math

import numpy as np
import polars as pl
import pytest

import xent
from xent.errors import DataError
from xent.report import write_score
from xent.report.score_charts import charts
from xent.report.score_text import texts
from xent.scoring import ScoreState

pytest_plugins = ("browser",)

LARGEST = 1_500_000
SOURCE = {"name": "a.parquet", "files": 1, "bytes": 10, "sha256": "ab" * 32, "versions": {"xent": "0"}}
HOSTILE = "<script>alert(1)</script>"


def predictions(rows=600, classes=4, seed=0, temperature=0.5):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, classes)) * 2
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    p = np.exp(logits / temperature)
    return labels, p / p.sum(axis=1, keepdims=True)


def record_of(score):
    return {**score.to_record(), "source": SOURCE}


@pytest.fixture(scope="module")
def record():
    labels, p = predictions()
    names = [HOSTILE, "ant", "bee", "cow"]
    ids = np.array([f"id-{i}" for i in range(len(p))])
    by = {"place": np.where(labels > 1, "north", HOSTILE)}
    return record_of(xent.score(p, np.array(names)[labels], classes=names, id=ids, by=by))


def impossible():
    labels, p = predictions(60)
    p[3] = np.roll(np.eye(4)[labels[3]], 1)
    return xent.score(p, labels)


OTHERS = {
    "impossible rows": impossible,
    "narrow": lambda: xent.score(pl.DataFrame({"l": -np.random.default_rng(0).exponential(size=99)}), log_prob="l"),
    "one row": lambda: xent.score(np.array([[0.5, 0.5]]), [1]),
    "one class": lambda: xent.score(np.ones((30, 1)), [0] * 30),
    "certain": lambda: xent.score(np.eye(3)[[0, 1, 2] * 20], [0, 1, 2] * 20),
    "soft": lambda: ScoreState.from_batch(np.full((40, 2), 0.5), np.full((40, 2), 0.5)).finalize(),
    "every row impossible": lambda: xent.score(np.tile([0.0, 1.0], (9, 1)), [0] * 9),
    "two classes": lambda: xent.score(predictions(99, 2)[1], predictions(99, 2)[0], cluster=np.arange(99) // 3),
    "text": lambda: xent.score(-np.linspace(0, 3, 60), log_prob=True, bytes=np.ones(60), by={"s": np.arange(60) % 2}),
    "several labels": lambda: xent.score(predictions(60)[1], np.eye(4)[predictions(60)[0]], multilabel=True),
    "sixty classes": lambda: xent.score(predictions(300, 60)[1], predictions(300, 60)[0]),
    "many classes": lambda: xent.score(predictions(500, 300)[1], predictions(500, 300)[0]),
    "clipped": lambda: xent.score(predictions(60)[1], predictions(60)[0], clip=1e-3),
    "skipped": lambda: xent.score(
        predictions(60)[1] * np.r_[1.2, np.ones(59)][:, None], predictions(60)[0], invalid="skip"
    ),
}


@pytest.fixture(scope="module")
def report(record, tmp_path_factory):
    return write_score(record, tmp_path_factory.mktemp("score") / "score.html")


def test_the_page_is_one_small_file_that_names_its_input(record, report):
    text = report.read_text()
    assert report.stat().st_size < LARGEST
    assert record["source"]["sha256"] in text
    assert HOSTILE not in text


def test_a_billion_rows_make_no_larger_page_than_a_thousand(record, tmp_path):
    """ydata-profiling #1579, #253: a report of 80 MB. States of many rows are of the same size as those of few."""
    labels, p = predictions(1000)
    state = ScoreState.from_batch(labels, p)
    small = write_score(record_of(state.finalize()), tmp_path / "a.html").stat().st_size
    for k in range(20):
        state = state + state.moved(1000 * 2**k)
    score = state.finalize()
    assert score.rows == 1000 * 2**20 > 10**9
    assert write_score(record_of(score), tmp_path / "b.html").stat().st_size < 1.1 * small


@pytest.mark.parametrize("case", OTHERS)
def test_every_kind_of_score_makes_a_page(case, tmp_path, open_page):
    record = record_of(OTHERS[case]())
    json.dumps(record, allow_nan=False)
    path = write_score(record, tmp_path / "score.html")
    assert path.stat().st_size < LARGEST
    page = open_page(path)
    assert page.requests == [path.as_uri()]
    assert page.messages == []
    for name in charts(record):
        assert page.page.query_selector(f"#chart-{name} svg"), name


def test_the_charts_are_drawn_without_a_word_on_the_console_or_a_request(opened, report, record):
    assert opened.requests == [report.as_uri()]
    assert opened.messages == []
    assert set(charts(record)) >= {"scale", "reliability", "decomposition", "concentration", "log-loss-brier"}
    for name in charts(record):
        assert opened.page.eval_on_selector(f"#chart-{name} svg", "svg => svg.getBBox().width") > 200, name


def test_the_answer_has_the_figures_of_the_record(opened, record):
    lead = opened.page.inner_text(".lead")
    nats = record["figures"]["cross_entropy_nats"]["value"]
    assert f"{nats:.4g}"[:5] in lead
    assert "bits" in lead
    rows = opened.page.query_selector_all("#figures .figures tbody tr")
    assert len(rows) == len(record["figures"])


def test_the_confusion_matrix_has_the_shares_of_the_record_and_names_as_they_are(opened, record):
    matrix = np.array(record["confusion"])
    shares = 100 * matrix / matrix.sum(axis=1, keepdims=True)
    expected = sorted(f"{share:.0f}" for share in shares.flat if share >= 0.5)
    marks = "#chart-confusion svg .mark-text:not(.role-axis-label):not(.role-axis-title) text"
    found = opened.page.eval_on_selector_all(marks, "all => all.map(text => text.textContent)")
    assert sorted(text for text in found if text) == expected
    axes = opened.page.eval_on_selector_all(
        "#chart-confusion .role-axis-label text", "all => all.map(t => t.textContent)"
    )
    assert axes.count("bee") == 2
    assert sum(name.startswith("<script>") for name in axes) == 2
    # The commonest mistake is in the text, and on top of the table.
    off = np.where(np.eye(4) == 1, 0, matrix)
    label, predicted = np.unravel_index(off.argmax(), off.shape)
    names = [c["name"] for c in record["classes"]]
    top = opened.page.inner_text("#trust .scrolled tbody tr:first-child").split("\t")
    assert top[:2] == [names[label], names[predicted]]
    assert top[2] == f"{off.max():.1%}"


def test_two_classes_have_the_reliability_of_class_1_and_parts_have_their_intervals(open_page, tmp_path):
    record = record_of(OTHERS["two classes"]())
    page = open_page(write_score(record, tmp_path / "two.html"))
    assert page.page.query_selector("#chart-reliability-class-1 svg")
    points = page.page.query_selector_all("#chart-reliability-class-1 svg .mark-symbol path")
    assert len(points) == len(record["reliability_class_1"])
    figures = record["figures"]
    for part in ("uncertainty", "discrimination", "miscalibration"):
        assert f"({figures[f'{part}_low_nats']['value']:.3g}"[:5] in page.page.inner_text("#trust")
    assert len(page.page.query_selector_all("#chart-decomposition svg .mark-rule.role-mark line")) == 6
    assert "33: intervals are theirs" in page.page.inner_text("header")


def test_bits_per_byte_are_in_the_answer_and_by_segment(open_page, tmp_path):
    record = record_of(OTHERS["text"]())
    page = open_page(write_score(record, tmp_path / "text.html")).page
    assert f"In bits per byte, that is {record['figures']['bits_per_byte']['value']:.3f}" in page.inner_text(".lead")
    assert "Bits per byte" in page.inner_text("#where")


def test_a_record_without_the_newer_parts_makes_a_page(record, tmp_path):
    newer = ("confusion", "reliability_class_1", "decomposition")
    older = {name: part for name, part in record.items() if name not in newer}
    older["form"] = {
        n: v for n, v in record["form"].items() if n not in ("bytes", "characters", "clustered", "multilabel")
    }
    write_score(older, tmp_path / "older.html")


def test_the_most_surprising_rows_can_be_searched(opened, record):
    def shown():
        return opened.page.eval_on_selector_all("#surprising-rows tbody tr", "all => all.filter(r => !r.hidden).length")

    wanted = record["surprising"][2]["id"]
    assert shown() == len(record["surprising"]) == 50
    opened.page.fill("#search", wanted)
    assert shown() == sum(wanted in row["id"] for row in record["surprising"])
    opened.page.fill("#search", "nothing like it")
    assert shown() == 0
    opened.page.fill("#search", "")
    assert shown() == 50


def test_a_phone_needs_no_sideways_scrolling(open_page, report):
    page = open_page(report, viewport={"width": 390, "height": 800}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_warnings_stand_at_the_top(tmp_path):
    said = " ".join(map(str, texts(record_of(impossible()))["answer"]))
    assert "infinite" in said
    assert "1 row" in said
    assert math.isinf(float(record_of(impossible())["figures"]["cross_entropy_nats"]["value"]))


def test_nothing_is_left_of_a_report_that_fails(tmp_path, record):
    with pytest.raises(DataError, match="its parts are not those of a record: KeyError"):
        write_score({**record, "reliability": [{}]}, tmp_path / "score.html")
    assert list(tmp_path.iterdir()) == []


def test_the_page_of_replayed_gradients_is_drawn(tmp_path, open_page):
    from xent.report import write_replay
    from xent.why.predictions import replay

    labels, p = predictions()
    path = write_replay(replay(xent.score(p, labels)).to_dict(), tmp_path)
    page = open_page(path)
    assert page.messages == []
    assert page.requests == [path.as_uri()]
    assert page.page.eval_on_selector("#chart-gradients svg", "svg => svg.getBBox().width") > 200
    assert len(page.page.query_selector_all("#gradients .figures tbody tr")) == 6
