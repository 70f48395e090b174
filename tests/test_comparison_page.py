"""The page of `xent compare --html`: what it says, and how it looks in a browser, by two widths and in the dark."""

from __future__ import annotations

import json
import math

import numpy as np
import polars as pl
import pytest

import xent
from xent.errors import DataError
from xent.report import write_comparison
from xent.report.comparison_page import texts

pytest_plugins = ("browser",)


def compared(impossible=False):
    rng = np.random.default_rng(0)
    z, part = rng.normal(size=300), np.array(["</script><script>alert(1)</script>", "\x1b[31mred", "plain"] * 100)
    y = (rng.random(300) < 1 / (1 + np.exp(-z))).astype(int)
    frame = pl.DataFrame({"id": [f"{k} <img src=x onerror=alert(1)>" for k in range(300)], "y": y, "part": part})
    a, b = (frame.with_columns(p=1 / (1 + np.exp(-z - noise * rng.normal(size=300)))) for noise in (0.0, 1.5))
    if impossible:
        a = a.with_columns(p=pl.when(pl.int_range(300) == 5).then(1.0 - pl.col("y")).otherwise("p"))
    return xent.compare(a, b, id="id", label="y", proba="p", by="part")


@pytest.fixture(scope="module")
def record():
    made = compared().to_record()
    source = {"files": 1, "bytes": 1000, "sha256": "0" * 64, "versions": {}}
    return {**made, "sources": [{"name": "<b>old.csv", **source}, {"name": "new.csv", **source}]}


@pytest.fixture(scope="module")
def report(record, tmp_path_factory):
    return write_comparison(json.loads(json.dumps(record)), tmp_path_factory.mktemp("page") / "c.html")


def test_the_page_loads_nothing_runs_nothing_of_the_data_and_draws_its_chart(opened, report):
    assert opened.messages == []
    assert opened.requests == [report.as_uri()]
    assert opened.page.eval_on_selector("#chart-difference svg", "svg => svg.getBBox().width") > 300
    assert opened.page.query_selector("img, b") is None
    assert "<img" in opened.page.inner_text("#difference"), "names are shown as they are"


def test_the_answer_has_the_figures_of_the_record(opened, record):
    lead = opened.page.inner_text(".lead")
    assert lead.startswith("a is better by ")
    assert f"{abs(record['difference']['nats']):.3g}" in lead
    assert "300 rows" in lead
    assert len(opened.page.query_selector_all("table")) == 3


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_a_desk_by_day_and_by_night(open_page, report, width, scheme):
    opened = open_page(report, viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.page.eval_on_selector("#chart-difference svg", "svg => svg.getBoundingClientRect().right") <= width
    paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(int(part) for part in paper.strip("rgb()").split(",")[:3]) < 200
    assert dark == (scheme == "dark")


def test_an_infinite_difference_is_a_page_too(tmp_path):
    found = compared(impossible=True)
    assert math.isinf(found.difference.nats)
    page = write_comparison(found.to_record(), tmp_path / "c.html").read_text(encoding="utf-8")
    assert "infinite" in page
    assert texts(found.to_record())["names"] == ["a", "b"]


def test_nothing_is_left_of_a_page_that_fails(tmp_path, record):
    with pytest.raises(DataError, match="its parts are not those of a record"):
        write_comparison({**record, "drivers": [{}]}, tmp_path / "c.html")
    assert list(tmp_path.iterdir()) == []


def test_impossible_rows_of_both_sides_are_named_and_no_winner_is():
    table = pl.DataFrame({"id": list("abcd"), "y": [1, 1, 1, 1], "p": [0.5, 0.6, 0.7, 0.8]})
    a, b = table.with_columns(p=pl.Series([0.0, 0.6, 0.7, 0.8])), table.with_columns(p=pl.Series([0.5, 0.6, 0.0, 0.9]))
    answer = texts(xent.compare(a, b, id="id", label="y", proba="p").to_record())["answer"]
    assert "The mean difference is undefined: 1 row is impossible in a only (id a)" in answer
    assert "in b only (id c)" in answer
    assert "better" not in answer
