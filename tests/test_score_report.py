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
