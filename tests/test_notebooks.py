"""What notebooks show for results, whatever the names in the data are; and the notebooks in docs/ run."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import xent
from xent import markup
from xent.names import LONGEST
from xent.why import Settings, load, run

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
HOSTILE = "<script>alert(1)</script>"
ALLOWED = {"table", "caption", "thead", "tbody", "tr", "th", "td", "p"}


class Page(HTMLParser):
    """The tags, attributes and cells of a piece of HTML; AssertionError if a tag is not closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.cells = set(), set(), [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def predictions(seed=0, names=(HOSTILE, "dog & cat", '" onload="x')):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(80, 3))
    labels = (logits + np.random.default_rng(9).gumbel(size=(80, 3))).argmax(axis=1)
    p = xent.information.softmax(logits)
    columns = {f"p_{name}": p[:, k] for k, name in enumerate(names)}
    ids = [f"{HOSTILE}{row}" for row in range(80)]
    by = [HOSTILE if row % 2 else "even" for row in range(80)]
    return pl.DataFrame({"id": ids, HOSTILE: by, "y": [names[k] for k in labels], **columns})


@pytest.fixture(scope="module")
def score():
    return xent.score(predictions(), "y", proba="p_*", id="id", by=HOSTILE)


@pytest.fixture(scope="module")
def comparison():
    a = predictions()
    b = a.with_columns(
        pl.col(f"p_{HOSTILE}") * 0 + 0.4, pl.col("p_dog & cat") * 0 + 0.3, pl.lit(0.3).alias('p_" onload="x')
    )
    return xent.compare(a, b, id="id", label="y", proba="p_*", by=HOSTILE)


@pytest.fixture(scope="module")
def experiment():
    table = load("iris")
    settings = Settings(seeds=(0,), epochs=1, learning_rates=(0.1, 1.0))
    record = run(table, settings)
    return dataclasses.replace(record, data=dataclasses.replace(record.data, name=HOSTILE))


@pytest.mark.parametrize("name", ["score", "comparison", "experiment"])
def test_results_are_tables_without_a_tag_or_an_attribute_from_the_data(name, request):
    text = request.getfixturevalue(name)._repr_html_()
    page = Page(text)
    assert page.tags <= ALLOWED
    assert page.attributes == {"style"}
    assert HOSTILE not in text
    assert "&lt;script&gt;" in text
    assert len(text) < 20_000


def test_a_score_shows_its_figures_and_its_worst_rows(score):
    cells = Page(score._repr_html_()).cells
    assert f"{score.cross_entropy.nats:.4g}" in cells
    assert f"{score.accuracy:.1%}" in cells
    assert f"{score.surprising[0].bits:.4g}" in cells
    assert score.surprising[0].id in cells
    assert [s.value for s in score.segments[HOSTILE]] == [c for c in cells if c in (HOSTILE, "even")][1:3]


def test_an_infinite_score_says_so():
    text = xent.score(np.array([[1.0, 0.0], [0.5, 0.5]]), [1, 1])._repr_html_()
    assert "infinite" in Page(text).cells
    assert "without impossible rows" in Page(text).cells
    assert "called impossible" in text


@pytest.mark.parametrize("rows", [1, 2])
def test_scores_of_few_rows_and_of_one_column_are_shown(rows):
    narrow = xent.score(pl.DataFrame({"l": [-0.5] * rows}), log_prob="l")
    assert Page(narrow._repr_html_()).cells.count("0.5") >= 1


def test_a_comparison_shows_difference_and_verdict(comparison):
    text = comparison._repr_html_()
    assert markup.number(comparison.difference.nats) in Page(text).cells
    assert {"a": "a is better", "b": "b is better", "neither": "neither is better"}[comparison.winner] in text


def test_an_experiment_shows_each_measure_of_both_losses(experiment):
    cells = Page(experiment._repr_html_()).cells
    for c in experiment.comparisons:
        assert f"{c.measure} ({c.unit})" in cells
    assert cells.count("cross-entropy") >= 1


@pytest.mark.parametrize("front", ["numpy", "torch"])
@pytest.mark.parametrize("rows", [0, 3, 40])
def test_statistics_show_their_first_rows(front, rows):
    logits, labels = np.random.default_rng(0).normal(size=(rows, 30_000)), np.arange(rows)
    if front == "numpy":
        statistics = xent.numpy.Statistics(*(np.arange(rows) + 0.5 for _ in range(3)), labels + 29_000, labels)
    else:
        statistics = xent.torch.statistics(torch.tensor(logits, requires_grad=True), torch.tensor(labels))
    cells = Page(statistics._repr_html_()).cells
    assert len(cells) == 6 * (1 + min(rows, 10))
    assert cells[:6] == ["row", "log_prob", "entropy", "lse", "argmax", "rank"]
    if rows:
        assert cells[10] == str(int(statistics.argmax[0]))
        assert cells[7] == markup.number(statistics.log_prob[0].item())


def test_statistics_of_one_row_of_an_image_and_without_numbers():
    one = xent.torch.statistics(torch.zeros(4), torch.tensor(2))
    assert Page(one._repr_html_()).cells[6:] == ["0", "−1.386", "1.386", "1.386", "0", "0"]
    image = xent.torch.statistics(torch.zeros(2, 4, 3, 3), torch.zeros(2, 3, 3, dtype=torch.int64))
    assert "the first 10 of 18 rows" in image._repr_html_()
    meta = xent.torch.statistics(torch.zeros(2, 4, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta"))
    assert meta._repr_html_() is None


def test_long_names_are_cut_and_signs_without_a_glyph_are_visible():
    cells = Page(markup.table("a \u202e caption", ["name"], [["x" * 1000], ["\x1b[31m\u202e<b>"]])).cells
    assert len(cells[1]) == LONGEST
    assert cells[2] == r"\x1b[31m\u202e<b>"
    assert "\u202e" not in markup.table("a \u202e caption", [], [])


def test_there_are_three_notebooks_without_outputs():
    nbformat = pytest.importorskip("nbformat")
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code"), path


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_and_show_tables(path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=250, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs
    if path.stem == "scoring":
        tables = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
        assert len(tables) == 2
        assert "cross-entropy" in tables[0]
