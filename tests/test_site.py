"""The documentation site in a browser: every page, every internal link, both widths, light and dark; `make test-docs`.

`make docs` builds build/site, and without it these tests are skipped (with XENT_REQUIRE_SITE=1 they fail).
"""

from __future__ import annotations

import functools
import html
import http.server
import importlib
import os
import re
import threading
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest

pytest_plugins = ("browser",)
pytestmark = pytest.mark.slow

SITE = Path(__file__).parents[1] / "build" / "site"
WIDTHS = {"phone": 390, "desk": 1280}
TEXTS = {
    "": "Cross-entropy is the loss",
    "reference/torch/": "linear_cross_entropy",
    "reference/scoring/": "How good some predictions are",
    "reference/command_line/": "xent compare",
    "notebooks/scoring/": "The most surprising rows",
    "source/examples/huggingface_trainer.py/": "defer_logits",
    "live/why.html": "squared error",
    "live/score.html": "reliability",
}
"""Words that a page must show, by its address."""


REFERENCE = ("torch", "torch.deferred", "torch.parallel", "numpy", "information", "likelihood", "scoring", "errors")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def address():
    if not (SITE / "index.html").exists():
        (pytest.fail if os.environ.get("XENT_REQUIRE_SITE") == "1" else pytest.skip)("no site: make docs")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def pages():
    """The addresses of all pages, relative to the site."""
    files = (path.relative_to(SITE).as_posix() for path in sorted(SITE.rglob("*.html")))
    return [re.sub(r"(^|/)index\.html$", r"\1", name) for name in files if name != "404.html"]


class Visitor:
    """A tab that remembers what went wrong: words on the console, failed and foreign requests."""

    def __init__(self, browser, address, **options):
        self.context = browser.new_context(**options)
        self.page, self.address, self.wrong = self.context.new_page(), address, []
        self.page.on("console", lambda message: self.wrong.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("response", lambda r: r.status >= 400 and self.wrong.append(f"{r.status}: {r.url}"))
        self.page.on("request", lambda r: r.url.startswith(("http", "ws")) and self.asked(r.url))

    def asked(self, url):
        if not url.startswith(self.address):
            self.wrong.append(f"a request to another machine: {url}")

    def open(self, name):
        self.page.goto(self.address + name, wait_until="load")
        if name.startswith("live/"):
            self.page.wait_for_selector("html[data-charts=ready]", timeout=30_000)


@pytest.fixture
def visit(chromium, address):
    visitors = []

    def opened(**options):
        visitors.append(Visitor(chromium, address, **options))
        return visitors[-1]

    yield opened
    for visitor in visitors:
        visitor.context.close()


def test_no_page_complains_or_loads_anything_from_elsewhere_and_every_link_leads_somewhere(visit):
    visitor = visit(viewport={"width": WIDTHS["desk"], "height": 900})
    links, anchors = {}, {}
    for name in pages():
        visitor.open(name)
        here = visitor.address + name
        anchors[here] = set(visitor.page.eval_on_selector_all("[id]", "all => all.map(e => e.id)"))
        hrefs = visitor.page.eval_on_selector_all("a[href]", "all => all.map(a => a.getAttribute('href'))")
        links[here] = {urljoin(here, href) for href in hrefs}
    assert len(links) > 40
    assert visitor.wrong == []
    dead = []
    for here, targets in links.items():
        for target in targets:
            page, anchor = urldefrag(target)
            if not page.startswith(visitor.address):
                continue
            path = SITE / unquote(urlsplit(page).path.lstrip("/"))
            exists = (path / "index.html").exists() if path.is_dir() else path.exists()
            # Material writes an anchor for its own "skip to content" and for each line of code that is copied.
            if not exists or (anchor and page in anchors and unquote(anchor) not in anchors[page]):
                dead.append(f"{here}: {target}")
    assert dead == []


@pytest.mark.parametrize("name", TEXTS, ids=lambda name: name or "start")
def test_pages_show_what_they_are_for(name, visit):
    visitor = visit()
    visitor.open(name)
    assert TEXTS[name] in visitor.page.inner_text("body")


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_the_screen_and_pictures_stay_legible(width, visit):
    visitor = visit(viewport={"width": WIDTHS[width], "height": 844})
    wide, small = [], []
    for name in pages():
        visitor.open(name)
        if visitor.page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            wide.append(name)
        widths = visitor.page.eval_on_selector_all("article img", "all => all.map(i => i.clientWidth)")
        small += [name for pixels in widths if pixels < 270]
    assert wide == []
    assert small == []


def test_the_dark_scheme_follows_the_system_and_text_is_readable(visit):
    for scheme, is_dark in (("dark", True), ("light", False)):
        visitor = visit(color_scheme=scheme)
        visitor.open("")
        background, ink = (
            visitor.page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color")
        )
        brightness = [sum(map(float, re.findall(r"[\d.]+", color)[:3])) / 3 for color in (background, ink)]
        assert (brightness[0] < 60) is is_dark, background
        assert abs(brightness[0] - brightness[1]) > 100 or "rgba" in ink
        picture = visitor.page.eval_on_selector("article img", "image => getComputedStyle(image).filter")
        assert ("invert" in picture) is is_dark


def test_the_search_finds_a_function(visit):
    visitor = visit(viewport={"width": WIDTHS["desk"], "height": 900})
    visitor.open("")
    visitor.page.fill("input.md-search__input", "kl_divergence")
    visitor.page.wait_for_selector(".md-search-result__item", timeout=15_000)
    assert "information" in visitor.page.inner_text(".md-search-result__list").lower()
    assert visitor.wrong == []


@pytest.mark.parametrize("module", REFERENCE)
def test_the_reference_has_every_public_name(module, address):
    page = (SITE / "reference" / module.split(".")[-1] / "index.html").read_text()
    here = importlib.import_module(f"xent.{module}")
    # `xent.scoring.score` is a function and a module: the function stands under the module that defines it.
    homes = {name: {here.__name__, getattr(here, name).__module__} for name in here.__all__}
    absent = [name for name, at in homes.items() if not any(f'id="{home}.{name}"' in page for home in at)]
    assert absent == []


def test_the_reference_keeps_the_sentences_of_docstrings_and_their_examples(address):
    page = (SITE / "reference" / "torch" / "index.html").read_text()
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    assert "----" not in text
    assert "input: tensor (C,), (N, C) or (N, C, d1, ...): logits of dtype float64" in text
    assert "ignore_index, reduction, label_smoothing: as in torch; see xent.Objective." in text
    assert "LabelError: A label is out of range." in text
    assert ">>> loss = cross_entropy(logits, torch.tensor([0, 1]))" in text
    assert page.count('<div class="highlight">') >= 6
