"""A browser for the tests of the reports: a plugin, to be named in a test module's `pytest_plugins`.

Without a Chromium these tests are skipped; with XENT_REQUIRE_BROWSER=1 in the environment they fail.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest

NAMES = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Opened:
    """A page that has drawn its charts, with all that it asked the network for and said on the console."""

    page: Any
    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def texts(self, chart: str) -> list[str]:
        """The words and numbers in a chart, without the halos behind them and the labels of its axes."""
        marks = f"#chart-{chart} svg .mark-text:not(.role-axis-label):not(.role-axis-title) text"
        found: list[str] = self.page.eval_on_selector_all(marks, "all => all.map(text => text.textContent)")
        return list(dict.fromkeys(found))

    def drawing(self, chart: str) -> str:
        """All marks of a chart, to be compared."""
        return str(self.page.inner_html(f"#chart-{chart} svg"))

    def settle(self) -> None:
        """Wait until what was moved is drawn."""
        self.page.wait_for_timeout(150)


def unavailable(reason: str) -> NoReturn:
    """Skip, or fail where a browser is required."""
    if os.environ.get("XENT_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{reason}, and XENT_REQUIRE_BROWSER=1")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless Chromium, driven by Playwright."""
    executable = next((path for path in map(shutil.which, NAMES) if path), None)
    if executable is None:
        unavailable(f"no browser: none of {', '.join(NAMES)} is on the PATH")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        unavailable("no browser: Playwright is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def axe() -> Callable[[], str]:
    """The script of axe-core, which looks for what keeps people out of a page. It is asked for when all else passed."""

    def script() -> str:
        specification = find_spec("axe_playwright_python")
        if specification is None or specification.origin is None:
            unavailable("no check of accessibility: axe-playwright-python is not installed")
        return Path(specification.origin).with_name("axe.min.js").read_text(encoding="utf-8")

    return script


@pytest.fixture(scope="module")
def open_page(chromium: Any) -> Iterator[Callable[..., Opened]]:
    """Opens a report from its file, in a context of its own; options are those of Playwright's `new_context`."""
    with ExitStack() as stack:

        def opened(path: Path, *, charts: bool = True, **options: Any) -> Opened:
            context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
            stack.callback(context.close)
            found = Opened(context.new_page())
            found.page.on("request", lambda request: found.requests.append(request.url))
            found.page.on("console", lambda message: found.messages.append(f"{message.type}: {message.text}"))
            found.page.on("pageerror", lambda error: found.messages.append(f"error: {error}"))
            found.page.on("dialog", lambda dialog: (found.messages.append("a dialog"), dialog.dismiss()))
            found.page.goto(path.as_uri())
            if charts:
                found.page.wait_for_selector("html[data-charts=ready]", timeout=30_000)
            return found

        yield opened


@pytest.fixture(scope="module")
def opened(open_page: Callable[..., Opened], report: Path) -> Opened:
    """One page of the module's `report` for all its tests; each compares what it moves with what it found."""
    return open_page(report)
