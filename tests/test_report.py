"""The report of `xent why`: what is in the file, and what a reader can do with it in a browser."""

from __future__ import annotations

import copy
import json
import math
import re
from itertools import pairwise

import numpy as np
import pytest

import xent.report
from xent import information
from xent.numpy import cross_entropy_value_and_grad, squared_error_value_and_grad
from xent.report import write_why
from xent.report.numbers import count, listed, magnitude, median, percent, plural, scientific, significant
from xent.report.theme import power
from xent.report.why_answer import answer, lead, tiles
from xent.report.why_charts import charts
from xent.report.why_charts.punishment import two_losses
from xent.report.why_text import texts
from xent.why import Settings, load, run

pytest_plugins = ("browser",)

LARGEST = 1_800_000


@pytest.fixture(scope="session")
def record():
    """A real record, small: one seed, two epochs, two learning rates."""
    return run(load("iris"), Settings(seeds=(0,), epochs=2, learning_rates=(0.1, 1.0)))


@pytest.fixture(scope="session")
def report(record, tmp_path_factory):
    return write_why(record, tmp_path_factory.mktemp("report") / "made on the way")


def plain_text(parts):
    return re.sub(r"<[^>]*>", "", " ".join(map(str, parts)))


def without_results(record):
    """The record of an experiment in which hardly anything came to an end: null where a number can be missing."""
    found = copy.deepcopy(record.to_dict())
    nothing = {"median": None, "low": None, "high": None}
    for c in found["comparisons"]:
        lost = ("cross_entropy", "squared_error") if c["unit"] == "steps" else ("squared_error",)
        c |= dict.fromkeys(lost, nothing) | {"winner": "tie" if c["unit"] == "steps" else "cross-entropy"}
    for one in found["runs"]:
        one["steps_to_reach"] = [None] * len(one["steps_to_reach"])
        if one["loss"] == "squared error":
            for measure in ("cross_entropy_nats", "squared_error"):
                one["curve"][measure] = [None] * len(one["curve"][measure])
    for trial in found["learning_rates"][1:]:
        trial["score"] = None
    for sample in found["gradients"][::2]:
        sample["squared_error_gradient"] = None
    for sample in found["information"]["samples"]:
        sample["kl_divergence_reversed"] = None
    found["information"] |= {"mean_kl_divergence_reversed_nats": None, "label_cross_entropy_nats": None}
    found["likelihood"]["after"] |= {"log_likelihood_nats": None, "likelihood": "0"}
    for point in found["likelihood"]["after"]["points"][9:]:
        point |= {"log10": None, "product": 0.0}
    for point in found["likelihood"]["training"][4:]:
        point |= {"log_likelihood_nats": None, "mean_cross_entropy_nats": None}
    return found


# What is written.


def test_the_numbers_are_those_of_the_record(record, report):
    assert json.loads(report.with_name("why.json").read_text()) == json.loads(json.dumps(record.to_dict()))


def test_a_dictionary_makes_the_same_page(record, report, tmp_path):
    again = write_why(json.loads(report.with_name("why.json").read_text()), tmp_path)
    assert again.read_text() == report.read_text()


def test_the_files_can_be_read_like_any_other(report, tmp_path):
    (tmp_path / "other").write_text("")
    assert report.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_failure_leaves_nothing(record, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="JSON"):
        write_why({**record.to_dict(), "seconds": math.nan}, tmp_path)
    monkeypatch.setattr(xent.report, "render", fail)
    with pytest.raises(OSError, match="full"):
        write_why(record, tmp_path)
    assert list(tmp_path.iterdir()) == []


def fail(*_):
    raise OSError("the disk is full")


def test_small_whatever_the_data(record, tmp_path):
    large = copy.deepcopy(record.to_dict())
    large["data"]["classes"] = [f"class {i} " + "long " * 100 for i in range(1000)]
    large["data"]["name"] = "a long name " * 1000
    large["settings"]["seeds"] = list(range(40))
    steps = list(range(60))
    curve = {"step": steps} | dict.fromkeys(("accuracy", "cross_entropy_nats", "squared_error"), [0.12345] * 60)
    large["runs"] = [{**one, "seed": seed, "curve": curve} for one in large["runs"] for seed in range(40)]
    large["gradients"] = (large["gradients"] * 720)[:720]
    large["information"]["samples"] = (large["information"]["samples"] * 120)[:120]
    assert write_why(large, tmp_path).stat().st_size < LARGEST


def test_charts_follow_the_schema(record):
    for chart in charts(record.to_dict()).values():
        chart.to_dict(validate=True)


def test_no_name_from_the_data_becomes_markup(record, tmp_path, open_page):
    hostile = copy.deepcopy(record.to_dict())
    hostile["data"]["name"] = "</script><script>alert(1)</script>&amp;"
    hostile["data"]["classes"] = ["<img src=x onerror=alert(1)>", "{{ 7 * 7 }}", "--><!--"]
    page = open_page(write_why(hostile, tmp_path))
    assert page.messages == []
    assert page.page.inner_text(".kicker").endswith("</script><script>alert(1)</script>&amp;")
    assert "{{ 7 * 7 }}" in page.page.inner_text(".facts")
    assert page.page.locator("img").count() == 0


def test_a_record_of_failures_is_a_page(record, tmp_path, open_page):
    found = without_results(record)
    page = open_page(write_why(found, tmp_path))
    assert page.messages == []
    assert "not reached" in page.page.inner_text("table.comparison >> nth=0")
    assert "neither loss reached" in page.page.inner_text(".lead")
    for choice in ("cross_entropy_nats", "squared_error"):
        page.page.select_option("#race-measure", choice)
    page.settle()
    assert page.messages == []


# What it says.


def test_numbers_as_words():
    assert [count(1016), count(2.5), count(None)] == ["1,016", "2.5", "not reached"]
    assert [significant(x) for x in (0, 0.18675, 3.0, -4183.76, 123456.7)] == [
        "0.00",
        "0.187",
        "3.00",
        "−4,184",
        "123,457",
    ]
    assert [percent(0.957), percent(None)] == ["95.7%", "none"]
    assert str(scientific("1.039e-1817")) == "1.04\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10<sup>−1817</sup>"
    assert [str(scientific("0")), str(scientific(None))] == ["0", "infinite"]
    assert [magnitude(0.5), magnitude(None)] == ["0.500", "infinite"]
    assert "<sup>−4</sup>" in magnitude(2.56e-4)
    assert [listed(["a"]), listed(["a", "b", "c"]), plural(1, "seed"), plural(2, "seed")] == [
        "a",
        "a, b and c",
        "1 seed",
        "2 seeds",
    ]
    assert [median([1, None, 3]), median([1, None]), median([None, 0.5, 0.7], -math.inf)] == [3, None, 0.5]
    assert [power(-9), power(-2), power(0)] == ["10⁻⁹", "0.01", "1"]


def test_the_answer_comes_from_the_comparisons(record):
    found = copy.deepcopy(record.to_dict())
    for c in found["comparisons"]:
        if c["unit"] == "steps":
            c |= {"cross_entropy": dict.fromkeys(("median", "low", "high"), 12345), "winner": "squared error"}
            c["squared_error"] = dict.fromkeys(("median", "low", "high"), 54)
    said = plain_text(answer(found))
    assert "squared error took a model with one hidden layer" in said
    assert "in 54 steps, cross-entropy in 12,345" in said
    assert tiles(found)[0]["pair"] == ["12,345", "54"]


def test_the_lead_is_two_sentences_that_follow_the_comparisons(record):
    found = copy.deepcopy(record.to_dict())
    timed = [c for c in found["comparisons"] if (c["start"], c["unit"]) == ("confidently wrong", "steps")][-2:]
    for c in timed:
        c |= {
            name: dict.fromkeys(("median", "low", "high"), steps)
            for name, steps in (("cross_entropy", 5), ("squared_error", 9))
        }
        c["winner"] = "cross-entropy"
    low, high = (re.search(r"[\d.]+%", c["measure"])[0] for c in timed)
    assert len(lead(found)) == 2
    assert plain_text(lead(found)).endswith(f"wrong: cross-entropy is the first to get {high} of the test rows right.")
    timed[1] |= {"cross_entropy": dict.fromkeys(("median", "low", "high")), "winner": "squared error"}
    first = f"cross-entropy is the first to get {low} of the test rows right"
    assert plain_text(lead(found)).endswith(f"{first}, and squared error is the only one to get {high} right.")
    timed[0]["winner"] = "tie"
    assert plain_text(lead(found)).endswith(f"wrong: squared error is the only one to get {high} right.")


def test_where_squared_error_won_is_named(record):
    found = copy.deepcopy(record.to_dict())
    for c in found["comparisons"]:
        c |= {"winner": "cross-entropy", "clear": False}
    said = texts(found)
    assert "Squared error was better in no comparison" in plain_text(said["answer"])
    assert said["race"]["squared_error"] == []
    found["comparisons"][-1]["winner"] = "squared error"
    said = texts(found)
    assert f"Squared error was better in 1 of {len(found['comparisons'])} comparisons" in plain_text(said["answer"])
    assert said["race"]["squared_error"] == ["One hidden layer, confidently wrong start: final squared error"]


def test_a_level_not_reached_names_the_seeds(record):
    found = copy.deepcopy(record.to_dict())
    found["settings"]["seeds"] = [0, 1, 2]
    for c in found["comparisons"]:
        if c["unit"] == "steps":
            c["cross_entropy"] = {"median": 3, "low": 3, "high": 3}
            c["squared_error"] = {"median": None, "low": 9, "high": None}
    runs = [one for one in found["runs"] if one["seed"] == 0]
    found["runs"] = [{**one, "seed": seed} for one in runs for seed in (0, 1, 2)]
    for one in found["runs"]:
        one["steps_to_reach"] = [9 if one["seed"] == 2 else None] * len(found["levels"])
    said = plain_text(answer(found))
    assert "in 3 steps, squared error got there with 1 of 3 seeds" in said
    assert "in 3 steps, by squared error with 1 of 3 seeds" in said


def test_the_curves_are_those_of_the_library():
    truth = [1e-6, 0.2, 0.5, 0.9]
    found = two_losses(truth)
    losses, lengths = found["cross-entropy"]
    np.testing.assert_allclose(losses, -np.log(truth), rtol=1e-12)
    np.testing.assert_allclose(lengths, np.sqrt(2) * (1 - np.array(truth)), rtol=1e-9)
    losses, lengths = found["squared error"]
    np.testing.assert_allclose(losses, 2 * (1 - np.array(truth)) ** 2, rtol=1e-9)
    assert lengths[0] < 1e-5


# What a reader sees.


def test_asks_for_nothing_and_has_no_errors(opened, report):
    assert opened.requests == [report.as_uri()]
    assert opened.messages == []


def test_its_policy_forbids_the_network_and_eval(open_page, report):
    page = open_page(report)
    assert page.page.evaluate("fetch('https://example.com').then(() => 'sent', () => 'refused')") == "refused"
    policy = page.page.get_attribute("meta[http-equiv=Content-Security-Policy]", "content")
    scripts = re.search(r"script-src ([^;]*)", policy).group(1)
    assert "default-src 'none'" in policy
    assert "unsafe" not in scripts


def test_can_be_read_by_those_who_do_not_see_it(opened):
    page = opened.page
    assert page.get_attribute("html", "lang") == "en"
    assert page.title().startswith("Why cross-entropy?")
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map(heading => Number(heading.tagName[1]))")
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in pairwise(levels))
    views = page.locator(".view svg").count()
    described = page.eval_on_selector_all(".view", "all => all.map(view => view.getAttribute('aria-label'))")
    assert views == page.locator(".view").count() == 11
    assert all(text and len(text) > 40 for text in described)
    controls = page.locator("main :is(input, select)")
    assert controls.count() == page.locator("main label[for]").count() > 20
    assert page.locator("th:not([scope])").count() == 0
    assert page.locator("table").count() == page.locator("caption").count()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_paper(open_page, report, scheme):
    page = open_page(report, color_scheme=scheme).page
    paper = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (paper < 0.05) if scheme == "dark" else (paper > 0.9)
    texts_in_page = "p, h1, h2, h3, h4, td, th, dt, dd, li, .control label, .key"
    colors = page.eval_on_selector_all(texts_in_page, "all => [...new Set(all.map(e => getComputedStyle(e).color))]")
    marks = ".view svg .mark-text text:not([stroke])"
    colors += page.eval_on_selector_all(
        marks,
        """all => [...new Set(all.filter(e => !e.closest('[aria-hidden=true]')
            && e.getAttribute('fill') !== 'var(--paper)').map(e => getComputedStyle(e).fill))]""",
    )
    assert len(colors) > 4
    for color in colors:
        lighter, darker = sorted((luminance(color), paper), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, color


def luminance(color):
    """Relative luminance of rgb(r, g, b), by WCAG 2."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_fits_a_phone(open_page, report):
    page = open_page(report, viewport={"width": 360, "height": 740}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    widest = page.eval_on_selector_all(
        ".view svg, .view svg text, table", "all => Math.max(...all.map(e => e.getBoundingClientRect().right))"
    )
    assert widest <= 360
    page.set_viewport_size({"width": 900, "height": 740})
    page.wait_for_timeout(300)
    assert page.eval_on_selector("#chart-race svg", "svg => svg.getBoundingClientRect().width") > 600


# What a reader moves.


def shown(opened, name):
    """What the page says where it names a value."""
    return opened.page.inner_text(f"[data-shows='{name}'] >> nth=0")


def as_text(number):
    """A number as the scripts write it, of which Python's own texts have the power as <sup>."""
    return re.sub(r"<sup>(.*?)</sup>", lambda m: power_of_ten(m.group(1)), str(magnitude(float(number))))


def power_of_ten(digits):
    return digits.replace("−", "-").translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def test_text_and_controls_say_the_same_number(open_page, report):
    """The text as Python wrote it is what the scripts make of the sliders' first positions, and it follows them."""
    written = re.findall(r'<span data-shows="(truth-[a-z-]+)">(.*?)</span>', report.read_text())
    assert dict(written)["truth-p"] == "1%"
    assert dict(written)["truth-ce"] == "4.61"
    opened = open_page(report)
    assert [shown(opened, name) for name, _ in written] == [text for _, text in written]
    assert "q = 1%" in opened.texts("loss-curve")
    assert "4.61 nats" in opened.texts("loss-curve")
    for position in (0, 20, 130):
        opened.page.fill("#truth", str(position))
        opened.settle()
        p = opened.page.evaluate(f"xent.page.data.truth[{position}]")
        (ce, ce_length), (se, se_length) = two_losses([p]).values()
        assert shown(opened, "truth-ce") == as_text(ce[0])
        assert shown(opened, "truth-se-gradient") == as_text(se_length[0])
        assert shown(opened, "truth-ratio") == as_text(ce_length[0] / se_length[0]) + " times as long"
        drawn = [float(t.split()[0].replace("−", "-")) for t in opened.texts("loss-curve") if t.endswith("nats")]
        assert drawn[0] == pytest.approx(ce[0], rel=0.006)
        assert shown(opened, "truth-se") == as_text(se[0])


@pytest.mark.parametrize("logits", [(6.0, 4.0, -1.0), (-8.0, 8.0, 8.0)])
def test_sliders_over_the_logits_give_the_numbers_of_the_library(opened, logits):
    before = [opened.drawing(chart) for chart in ("softmax-bars", "gradient-bars")]
    for k, z in enumerate(logits, 1):
        opened.page.fill(f"#logit-{k}", str(z))
    opened.settle()
    assert all(
        opened.drawing(chart) != old for chart, old in zip(("softmax-bars", "gradient-bars"), before, strict=True)
    )
    q = information.softmax(np.array(logits))
    assert set(opened.texts("softmax-bars")) == {f"{value:.4f}" for value in q}
    gradients = set()
    for function, short, unit in (
        (cross_entropy_value_and_grad, "ce", " nats"),
        (squared_error_value_and_grad, "se", " of at most 2"),
    ):
        loss, gradient = function(np.array(logits), 0)
        assert shown(opened, f"logits-{short}") == as_text(loss) + unit
        assert shown(opened, f"logits-{short}-gradient") == as_text(np.linalg.norm(gradient))
        gradients |= {f"{v:+.3f}".replace("-", "−") for v in gradient}
    zero = {"−0.000", "+0.000"}
    assert set(opened.texts("gradient-bars")) - zero == gradients - zero
    assert opened.messages == []


def test_the_probability_of_the_truth_moves_both_curves_and_follows_the_pointer(opened):
    before = {chart: opened.texts(chart) for chart in ("loss-curve", "squared-curve", "gradient-curve")}
    opened.page.fill("#truth", "20")
    opened.settle()
    after = {chart: opened.texts(chart) for chart in before}
    assert all(after[chart] != before[chart] for chart in before)
    opened.page.hover("#chart-loss-curve svg", position={"x": 300, "y": 120})
    opened.settle()
    assert opened.page.input_value("#truth") != "20"
    assert shown(opened, "truth-ce") + " nats" in opened.texts("loss-curve")
    assert opened.texts("gradient-curve")[0] == opened.texts("loss-curve")[0] != after["loss-curve"][0]
    value = opened.page.input_value("#truth")
    opened.page.hover("#chart-loss-curve svg", position={"x": 2, "y": 2})
    opened.settle()
    assert opened.page.input_value("#truth") == value


def test_training_rows_can_be_chosen(opened):
    before = opened.drawing("gradient-curve")
    opened.page.select_option("#rows-at", "random")
    opened.settle()
    assert len(opened.drawing("gradient-curve")) < len(before)


@pytest.mark.parametrize(
    ("menu", "choice", "changed"),
    [
        ("race-start", "confidently wrong", ("race", "rates")),
        ("race-model", "one hidden layer", ("race", "rates")),
        ("race-measure", "squared_error", ("race",)),
    ],
)
def test_menus_change_the_race(opened, menu, choice, changed):
    before = {chart: opened.drawing(chart) for chart in changed}
    opened.page.select_option(f"#{menu}", choice)
    opened.settle()
    assert all(opened.drawing(chart) != before[chart] for chart in changed)
    assert opened.messages == []


def test_the_race_can_be_read_at_any_step(opened):
    opened.page.locator("#chart-race").scroll_into_view_if_needed()
    opened.page.hover("#chart-race svg", position={"x": 100, "y": 150})
    opened.settle()
    before = opened.texts("race")
    opened.page.hover("#chart-race svg", position={"x": 600, "y": 150})
    opened.settle()
    assert opened.texts("race") != before
