"""What a reader does with the page of `xent why`: guess, train, click, drag, swap, and all of it with the keyboard."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from xent import information
from xent.report import write_why
from xent.report.numbers import magnitude
from xent.report.why_story import SCRIPTS, script
from xent.report.why_thread import TAKE_AWAY
from xent.why import Settings, load, run
from xent.why.data import Split
from xent.why.gradient_descent import Descent, train
from xent.why.record import LOSSES

pytest_plugins = ("browser",)

SMALL = Settings(seeds=(0,), epochs=2, learning_rates=(0.1, 1.0))
LARGEST = 1_800_000


@pytest.fixture(scope="module")
def record():
    return run(load("iris"), SMALL)


@pytest.fixture(scope="module")
def digits():
    return run(load("digits"), SMALL)


@pytest.fixture(scope="module")
def report(record, tmp_path_factory):
    return write_why(record, tmp_path_factory.mktemp("why"))


def shown(opened, name):
    """What the page says where it names a value."""
    return opened.page.inner_text(f"[data-shows='{name}'] >> nth=0")


def number(text):
    """The first number of a text of the page."""
    if text.startswith("∞"):
        return np.inf
    return float(re.search(r"−?[\d,.]+", text)[0].replace("−", "-").replace(",", ""))


def state(opened, part, *names):
    return [opened.page.evaluate(f"xent.{part}.state.{name}") for name in names]


def until(opened, condition):
    """Wait for an expression. Playwright's own way evaluates text in the page, which the page's policy forbids."""
    for _ in range(100):
        if opened.page.evaluate(condition):
            return
        opened.page.wait_for_timeout(50)
    pytest.fail(f"never true: {condition}")


def middle_of(page, selector):
    """The middle of an element, once the page has scrolled there."""
    page.locator(selector).scroll_into_view_if_needed()
    before, box = None, page.locator(selector).bounding_box()
    while box != before:
        page.wait_for_timeout(60)
        before, box = box, page.locator(selector).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


# The race of the head.


def test_the_race_is_drawn_as_it_ran_and_can_be_stopped(opened):
    page = opened.page
    width = "Number(document.querySelector('#race-clip rect').getAttribute('width'))"
    if page.inner_text("#race-again") != "Pause":
        page.click("#race-again")
    until(opened, f"{width} > 60")
    page.click("#race-again")
    stopped = page.evaluate(width)
    opened.settle()
    assert page.evaluate(width) == stopped
    assert page.inner_text("#race-again") == "Play"
    page.click("#race-again")
    until(opened, f"{width} > {stopped} + 20")
    assert opened.messages == []


# The rows.


def test_the_reader_guesses_first_and_sees_the_answer_then(opened, record):
    page = opened.page
    rows = [row for row in record.examples.rows if row.kind == "disputed"]
    assert not page.is_visible("#row-answer")
    assert shown(opened, "row-verdict") == ""
    wrong = next(label for label in rows[0].classes if label != rows[0].label)
    page.click(f"#row-guesses button >> nth={rows[0].classes.index(wrong)}")
    assert shown(opened, "row-verdict").startswith("Not this time")
    assert page.is_visible("#row-answer")
    assert number(shown(opened, "row-ce-nats")) == pytest.approx(rows[0].by_cross_entropy.cross_entropy_nats, rel=0.01)
    assert number(shown(opened, "row-se-squared")) == pytest.approx(rows[0].by_squared_error.squared_error, rel=0.01)
    assert page.locator("#row-probabilities tr").count() == 3
    page.click("#row-next")
    assert not page.is_visible("#row-answer")
    page.focus(f"#row-guesses button >> nth={rows[1].classes.index(rows[1].label)}")
    page.keyboard.press("Enter")
    assert shown(opened, "row-verdict").startswith("Right")
    assert "of 2: you 1," in shown(opened, "row-tally")
    page.select_option("#rows-kind", "best")
    best = next(row for row in record.examples.rows if row.kind == "best")
    assert page.inner_text("#row-name") == f"Row {best.row}"
    values = page.locator("#row-values td").all_inner_texts()
    np.testing.assert_allclose([float(value) for value in values], best.values, rtol=1e-5)
    assert opened.messages == []


def test_digits_are_drawn_as_pictures(open_page, digits, tmp_path):
    opened = open_page(write_why(digits, tmp_path), color_scheme="light")
    assert (tmp_path / "why.html").stat().st_size < LARGEST
    row = next(row for row in digits.examples.rows if row.kind == "disputed")
    drawn = opened.page.evaluate(
        """() => { const canvas = document.querySelector("#row-picture");
          return [canvas.width, canvas.height, ...canvas.getContext("2d").getImageData(0, 0, 8, 8).data]; }"""
    )
    assert drawn[:2] == [8, 8]
    darkness = 255 - np.array(drawn[2:]).reshape(64, 4)[:, 0].astype(float)
    assert np.corrcoef(darkness, row.pixels)[0, 1] > 0.9999
    assert opened.page.locator("canvas.thread-picture").count() == 5
    assert f"Row {row.row:,}, of class {row.label}." in opened.page.inner_text("#information .follow")
    opened.page.select_option("#lab-data", "own")
    assert opened.page.is_visible("#lab-across")
    assert opened.messages == []


# Training in the page.


def test_play_step_reset_and_click(opened):
    page = opened.page
    page.locator("#lab-play").scroll_into_view_if_needed()
    page.click("#lab-reset")
    start = state(opened, "lab", "step", "nets['cross-entropy'].weights.map(w => [...w])")
    assert start[0] == 0
    page.click("#lab-step")
    after = state(opened, "lab", "step", "nets['cross-entropy'].weights.map(w => [...w])")
    assert after[0] == 1
    assert after[1] != start[1]
    page.focus("#lab-play")
    page.keyboard.press("Space")
    until(opened, "xent.lab.state.step > 12")
    page.keyboard.press("Space")
    paused = state(opened, "lab", "step")[0]
    opened.settle()
    assert state(opened, "lab", "step")[0] == paused
    assert f"Step {paused}: cross-entropy" in shown(opened, "lab-status")
    assert int(shown(opened, "lab-step")) == paused
    # From the wrong start cross-entropy is ahead, and by far.
    page.evaluate("xent.lab.advance(300)")
    page.click("#lab-step")
    ce, se = (number(shown(opened, f"lab-accuracy-{loss}")) for loss in ("ce", "se"))
    assert ce > 90
    assert se < 75

    x, y = page.evaluate("xent.lab.views['squared error'].placeOf(xent.lab.state.data, 17)")
    page.click("#lab-field-se", position={"x": x, "y": y})
    assert state(opened, "lab", "chosen") == [17]
    assert page.input_value("#lab-point") == "17"
    assert shown(opened, "point-name") == "point 18, triangle"
    page.focus("#lab-point")
    page.keyboard.press("ArrowRight")
    assert state(opened, "lab", "chosen") == [18]
    nats, squared, length = (number(shown(opened, f"point-se-{name}")) for name in ("ce", "se", "se-gradient"))
    z = page.evaluate("[...xent.inspect.logitsOf(xent.lab.state.nets['squared error'], xent.lab.state.data, 18)]")
    q = information.softmax(np.array(z))
    label = state(opened, "lab", "data.labels[18]")[0]
    difference = q - np.eye(3)[label]
    gradient = 2 * q * (difference - (q * difference).sum())
    expected = [-np.log(q[label]), (difference**2).sum(), np.linalg.norm(gradient)]
    np.testing.assert_allclose([nats, squared, length], expected, rtol=0.01, atol=2e-3)
    page.click("#lab-worst-ce button >> nth=1")
    assert state(opened, "lab", "chosen")[0] != 18
    page.click("#lab-reset")
    assert state(opened, "lab", "step", "nets['cross-entropy'].weights.map(w => [...w])") == start
    assert opened.messages == []


def test_the_page_trains_as_numpy_does(opened):
    """200 steps of both networks from the start of the page, on its points: weights within 1e-9."""
    opened.page.click("#lab-reset")
    x, labels, origin = state(opened, "lab", "data.x", "data.labels", "origin.weights.map(w => [...w])")
    opened.page.evaluate("xent.lab.advance(200)")
    shapes = [(16, 2), (16,), (3, 16), (3,)]
    start = [np.array(w, dtype=float).reshape(shape) for w, shape in zip(origin, shapes, strict=True)]
    rows = Split(np.array(x).reshape(-1, 2), np.array(labels))
    for loss in LOSSES:
        rate = opened.page.evaluate(f"xent.lab.rate('{loss}')")
        (found,) = state(opened, "lab", f"nets['{loss}'].weights.map(w => [...w])")
        (trained,) = train([Descent(start, loss, rate, 0)], rows, None, epochs=200, batch_size=len(labels))
        for weights, expected, before in zip(found, trained.parameters, start, strict=True):
            np.testing.assert_allclose(np.array(weights).reshape(expected.shape), expected, rtol=0, atol=1e-9)
            assert np.abs(expected - before).max() > 1e-3
    opened.page.click("#lab-reset")


def test_the_lab_has_its_data_starts_layers_and_rates(opened, record):
    page = opened.page
    for choice in ("blobs", "spirals", "own"):
        page.select_option("#lab-data", choice)
        assert state(opened, "lab", "step") == [0]
    assert state(opened, "lab", "data.axes") == [[column.name for column in record.plane.columns[:2]]]
    found = np.array(page.evaluate("[...xent.lab.state.data.x]")).reshape(-1, 2)
    np.testing.assert_array_equal(found[:, 1], record.plane.columns[1].values)
    page.select_option("#lab-start", "ordinary")
    assert number(shown(opened, "lab-accuracy-ce")) > 15
    page.uncheck("#lab-hidden")
    assert state(opened, "lab", "nets['squared error'].weights.length") == [2]
    page.focus("#lab-rate-se")
    page.keyboard.press("ArrowRight")
    assert shown(opened, "lab-rate-se-value") == "3"
    page.click("#lab-best")
    until(opened, "document.querySelector('[data-shows=lab-status]').textContent.startsWith('The best rates')")
    for loss, short in (("cross-entropy", "ce"), ("squared error", "se")):
        scores = page.evaluate(f"xent.lab.RATES.map((rate) => xent.lab.scoreOf('{loss}', rate))")
        assert int(page.input_value(f"#lab-rate-{short}")) == int(np.argmax(scores))
    assert opened.messages == []


# Information.


def numbers_of_areas(opened):
    return [number(shown(opened, f"area-{name}")) for name in ("entropy", "divergence", "cross", "reversed")]


def expected_areas(opened, base):
    p, q = (np.array(values) for values in state(opened, "areas", "p", "q"))
    return [
        information.entropy(p, base=base),
        information.kl_divergence(p, q, base=base),
        information.cross_entropy(p, q, base=base),
        information.kl_divergence(q, p, base=base),
    ]


def test_areas_are_dragged_swapped_and_counted_in_bits_and_nats(opened):
    page = opened.page
    page.locator("#areas-picture").scroll_into_view_if_needed()
    np.testing.assert_allclose(numbers_of_areas(opened), expected_areas(opened, 2), rtol=6e-3)
    p, q = state(opened, "areas", "p", "q")
    x, y = middle_of(page, "#areas-picture .handle.x >> nth=0")
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 80, y, steps=4)
    page.mouse.up()
    after_p, after_q = state(opened, "areas", "p", "q")
    assert after_p[0] < p[0] - 0.05
    assert after_p[0] + after_p[1] == pytest.approx(p[0] + p[1])
    assert after_q == q
    page.focus("#areas-picture .handle.y >> nth=1")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("PageUp")
    (longer,) = state(opened, "areas", "q")
    assert -np.log2(longer[1]) == pytest.approx(-np.log2(q[1]) + 1.1)
    assert sum(longer) == pytest.approx(1)
    before = state(opened, "areas", "p", "q")
    np.testing.assert_allclose(numbers_of_areas(opened), expected_areas(opened, 2), rtol=6e-3)
    page.click("#areas-swap")
    until(opened, "document.querySelector('[data-shows=area-status]').textContent !== ''")
    assert state(opened, "areas", "p", "q") == before[::-1]
    page.click("label[for=unit-nats]")
    np.testing.assert_allclose(numbers_of_areas(opened), expected_areas(opened, np.e), rtol=6e-3)
    assert "nats" in shown(opened, "area-cross")
    page.select_option("#areas-set", "label")
    assert numbers_of_areas(opened)[:3] == [0.0, 1.61, 1.61]
    page.click("label[for=unit-bits]")
    assert opened.messages == []


def test_each_demand_is_broken_by_its_slider(opened):
    page = opened.page

    def broken():
        return [k for k in (1, 2, 3) if "fails" in shown(opened, f"demand-{k}-verdict")]

    assert broken() == []
    for slider, value, fails in (("offset", "0.5", [1, 3]), ("sign", "-0.5", [2]), ("bend", "1", [3])):
        page.fill(f"#demand-{slider}", value)
        assert broken() == fails
        page.click("#demands-reset")
        assert broken() == []
    assert "I(1/8) = 3.00, I(1/2) + I(1/4) = 3.00" in shown(opened, "demand-3-verdict")


@pytest.mark.parametrize(("button", "is_forward"), [("cover", True), ("seek", False)])
def test_a_bell_is_fitted_in_both_directions(opened, button, is_forward):
    page = opened.page
    page.click(f"#fit-{button}")
    word = "covers" if is_forward else "seeks"
    until(opened, f"document.querySelector('[data-shows=fit-status]').textContent.includes('{word}')")
    places, p = (np.array(page.evaluate(f"[...xent.fit.{name}]")) for name in ("PLACES", "target()"))

    def cost(parameters):
        q = np.maximum(np.exp(-0.5 * ((places - parameters[0]) / parameters[1]) ** 2), 1e-300)
        q /= q.sum()
        return information.kl_divergence(p, q) if is_forward else information.kl_divergence(q, p)

    best = min(
        (minimize(cost, start, method="Nelder-Mead") for start in ((-1.5, 0.6), (1.5, 0.6), (0.0, 1.5))),
        key=lambda result: result.fun,
    )
    found = [float(page.input_value(f"#fit-{name}")) for name in ("mean", "width")]
    np.testing.assert_allclose(found, best.x, atol=0.011)
    shown_cost = number(shown(opened, "fit-forward" if is_forward else "fit-reverse"))
    assert shown_cost == pytest.approx(best.fun / np.log(2), rel=0.01)


# Likelihood.


def test_the_likelihood_peaks_at_the_frequencies_and_its_product_vanishes(opened):
    page = opened.page
    page.locator("#game-bars").scroll_into_view_if_needed()
    q = np.array([0.2, 0.8])
    assert number(shown(opened, "game-sum")) == pytest.approx(13 * np.log(q[0]) + 7 * np.log(q[1]), rel=1e-3)
    x, y = middle_of(page, "#game-bars .handle >> nth=0")
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y - 60, steps=3)
    page.mouse.up()
    (dragged,) = state(opened, "game", "q")
    assert dragged[0] > 0.4
    assert sum(dragged) == pytest.approx(1)
    page.keyboard.press("ArrowDown")
    assert state(opened, "game", "q")[0][0] == pytest.approx(dragged[0] - 0.01)
    f = np.array([13, 7]) / 20
    expected = information.cross_entropy(f, np.array(state(opened, "game", "q")[0]))
    assert number(shown(opened, "game-mean")) == pytest.approx(expected, rel=1e-3)
    page.click("#game-peak")
    assert shown(opened, "game-mean") == shown(opened, "game-floor")
    assert shown(opened, "game-verdict").startswith("This is the peak")
    page.select_option("#game-times", "1000")
    assert shown(opened, "game-product").startswith("0,")
    assert number(shown(opened, "game-sum")) == pytest.approx(-20_000 * information.entropy(f), rel=1e-3)
    page.select_option("#game-kind", "die")
    assert page.locator("#game-bars .handle").count() == 6
    assert opened.messages == []


def test_numbers_are_written_as_python_writes_them(opened):
    rng = np.random.default_rng(5)
    values = [0.0, 1.0, *(10 ** rng.uniform(-12, 9, 300)).tolist()]
    found = opened.page.evaluate("values => values.map((value) => xent.format.magnitude(value))", values)
    written = [re.sub(r"<sup>(.*?)</sup>", r"\1", str(magnitude(value))).replace("−", "-") for value in values]
    power = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    assert [text.translate(power).replace("−", "-") for text in found] == written


# The page as a whole.


def moves_nothing(opened):
    """The race is at its end, training jumps, and what is swapped is swapped at once."""
    page = opened.page
    width = page.get_attribute("#race-clip rect", "width")
    opened.settle()
    assert page.get_attribute("#race-clip rect", "width") == width
    assert float(width) > 0.9 * page.locator("#race-picture").bounding_box()["width"] - 150
    assert page.inner_text("#lab-play") == "Train 100 steps"
    page.click("#lab-play")
    assert state(opened, "lab", "step", "isPlaying") == [100, False]
    p, q = state(opened, "areas", "p", "q")
    page.click("#areas-swap")
    assert state(opened, "areas", "p", "q") == [q, p]


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), pytest.param(1280, "light", marks=pytest.mark.slow)])
def test_still_and_accessible_in_every_width_and_scheme(open_page, report, axe, width, scheme):
    """No finding of axe is serious; nothing is wider than the window; nothing was asked for, and no error."""
    opened = open_page(report, viewport={"width": width, "height": 844}, color_scheme=scheme, reduced_motion="reduce")
    page = opened.page
    moves_nothing(opened)
    page.click("#row-guesses button >> nth=0")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.requests == [report.as_uri()]
    assert opened.messages == []
    page.evaluate(axe())
    found = page.evaluate("axe.run({ resultTypes: ['violations'] })")
    assert len(found["passes"]) > 20
    serious = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
    assert [(v["id"], v["nodes"][0]["target"]) for v in serious] == []


def without_new_parts(record):
    """The record as version 0.2 wrote it."""
    return {key: value for key, value in record.to_dict().items() if key not in ("examples", "plane")}


def test_a_record_of_the_version_before_is_a_page(record, tmp_path):
    page = write_why(without_new_parts(record), tmp_path).read_text()
    assert "1.6094 nats" in page
    assert 'data-shows="row-verdict"' not in page
    assert 'value="own"' not in page


@pytest.mark.slow
def test_a_record_of_the_version_before_is_a_page_that_trains(open_page, record, tmp_path):
    opened = open_page(write_why(without_new_parts(record), tmp_path))
    opened.page.click("#lab-step")
    assert state(opened, "lab", "step") == [1]
    assert opened.page.locator("#race-picture svg").count() == 1
    assert opened.messages == []


def test_a_record_to_be_shared_has_no_rows(record, tmp_path):
    page = write_why(record.without_rows(), tmp_path)
    found = json.loads(page.with_name("why.json").read_text())
    assert (found["examples"], found["plane"]) == (None, None)
    assert "This report was made without rows of the data." in page.read_text()
    assert 'data-shows="row-verdict"' not in page.read_text()


@pytest.mark.slow
def test_areas_are_dragged_by_a_finger(open_page, report):
    opened = open_page(report, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    x, y = middle_of(opened.page, "#areas-picture .handle.x >> nth=0")
    finger = opened.page.context.new_cdp_session(opened.page)
    seen = [state(opened, "areas", "p")[0][0]]
    for kind, across in (("touchStart", 0), ("touchMove", -20), ("touchMove", -40), ("touchMove", -60)):
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x + across, "y": y}]})
        opened.settle()
        seen.append(state(opened, "areas", "p")[0][0])
    assert seen[0] == seen[1] > seen[2] > seen[3] > seen[4]


@pytest.mark.slow
def test_names_of_the_data_are_text_in_the_scripts_too(open_page, digits, tmp_path):
    hostile = digits.to_dict()
    hostile["data"]["classes"] = [f"<img src=x onerror=alert({k})>" for k in range(10)]
    hostile["plane"]["columns"][0]["name"] = "</script><script>alert(1)</script>"
    opened = open_page(write_why(hostile, tmp_path))
    opened.page.click("#row-guesses button >> nth=0")
    opened.page.select_option("#lab-data", "own")
    assert opened.page.locator("img").count() == 0
    assert "<img" in opened.page.inner_text("#row-guesses")
    assert opened.messages == []


@pytest.mark.parametrize("part", TAKE_AWAY)
def test_three_lines_of_python_compute_what_their_comments_say(part):
    _, lines = TAKE_AWAY[part]
    assert len(lines) == 3
    names = {}
    for line in lines:
        expression, _, comment = line.partition("  # ")
        if comment:
            assert eval(expression, names) == pytest.approx(number(comment), abs=5.1e-5)
        else:
            exec(expression, names)
    if part == "race":
        assert names["record"].comparisons


def test_scripts_are_small_and_ask_for_nothing():
    folder = Path(write_why.__code__.co_filename).parent / "scripts"
    assert sorted(path.stem for path in folder.glob("*.js")) == sorted(SCRIPTS)
    for path in folder.glob("*.js"):
        text = path.read_text()
        assert len(text.splitlines()) < 400
        assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|eval|innerHTML|outerHTML|document\.write)\b", text), (
            path
        )
    assert "</script" not in script()
