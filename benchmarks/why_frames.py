"""Frame times of the page of `xent why` while its networks train, in a headless Chromium without a GPU.

.venv/bin/python benchmarks/why_frames.py demo/why.html

For each data set and speed: frames a second, and the time of one frame's own work (training, drawing) in milliseconds.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import sync_playwright

BROWSERS = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu"]
SECONDS = 3
SETS = ("rings", "spirals", "own")
SPEEDS = (1, 4, 20)


def frames(page: Any, data: str, speed: int) -> list[list[float]]:
    """Play for some seconds; return when each frame began and how long its work took, in milliseconds."""
    page.select_option("#lab-data", data)
    page.select_option("#lab-speed", str(speed))
    page.evaluate("xent.lab.state.frames.length = 0")
    page.click("#lab-play")
    page.wait_for_timeout(1000 * SECONDS)
    page.click("#lab-play")
    found: list[list[float]] = page.evaluate("xent.lab.state.frames")
    return found


def main() -> None:
    """Print one line for each data set, speed and width."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, help="a why.html")
    address = parser.parse_args().page.resolve().as_uri()
    executable = next(path for path in map(shutil.which, BROWSERS) if path)
    print("width  points   steps a frame  frames/s  median ms  95% ms  longest gap ms")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        for width in (390, 1280):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.goto(address)
            page.wait_for_selector("html[data-charts=ready]")
            page.locator("#lab-play").scroll_into_view_if_needed()
            page.wait_for_timeout(6000)  # the race of the head is over then
            offered = page.eval_on_selector_all("#lab-data option", "all => all.map(option => option.value)")
            for data in (name for name in SETS if name in offered):
                for speed in SPEEDS:
                    began, work = np.array(frames(page, data, speed)).T
                    gaps = np.diff(began)
                    print(
                        f"{width:5}  {data:8} {speed:13}  {1000 / gaps.mean():8.1f}  {np.median(work):9.2f}  "
                        f"{np.percentile(work, 95):6.2f}  {gaps.max():14.1f}"
                    )
        browser.close()


if __name__ == "__main__":
    main()
