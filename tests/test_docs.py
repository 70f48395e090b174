"""Every example in the documents runs, every link leads somewhere, and the figures are those of their scripts."""

from __future__ import annotations

import doctest
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"(?<!`)\]\((?P<path>[^)#\s]*)(?:#(?P<anchor>[^)\s]*))?\)")
ONLY_IN_THE_SITE = re.compile(r"<!-- site: .*? -->", re.DOTALL)
"""Links to pages that a code host does not have; docs/pages.py shows them in the site, where tests/test_site.py is."""


def name_of(path):
    return str(path.relative_to(ROOT))


def anchors(path):
    """The anchors of a page's headings, as code hosts and MkDocs make them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def dead_links(path):
    """The links of a document, without those to other machines, that lead nowhere."""
    found = []
    for match in LINK.finditer(ONLY_IN_THE_SITE.sub("", path.read_text())):
        if match["path"].startswith(("http:", "https:")):
            continue
        target = (path.parent / match["path"]).resolve() if match["path"] else path
        is_dead = not target.exists() or (match["anchor"] and match["anchor"] not in anchors(target))
        found += [match[0]] if is_dead else []
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_examples_run(path):
    result = doctest.testfile(str(path), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_definitions_readme_start_page_and_tutorials_have_examples():
    tutorials = [name_of(path) for path in (ROOT / "docs" / "tutorials").glob("*.md") if path.stem != "index"]
    assert len(tutorials) == 8
    for name in ("README.md", "docs/index.md", "docs/definitions.md", *tutorials):
        assert doctest.DocTestParser().get_examples((ROOT / name).read_text()), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_to_files_and_headings(path):
    assert dead_links(path) == []


def test_a_dead_link_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A heading\n[a](#a-heading) [b](#another) [c](page.md) [d](other.md#a-heading)\n")
    assert dead_links(page) == ["](#another)", "](other.md#a-heading)"]


def test_figures_of_the_tutorials_are_those_of_their_script():
    command = [sys.executable, "docs/tutorials/figures.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_page_is_in_the_navigation_of_the_site():
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    named = set(re.findall(r"[\w/-]+\.md", navigation))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in DOCUMENTS[1:]}
    made = {"changelog.md", "contributing.md", "reference/command_line.md"}
    notebooks = {f"notebooks/{path.stem}.md" for path in (ROOT / "docs" / "notebooks").glob("*.ipynb")}
    assert named == pages | made | notebooks


def test_the_site_rewrites_what_leads_out_of_it_and_shows_what_a_code_host_does_not_have():
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    text = "[a](../examples/fsdp2.py) [b](scoring.md#speed) [c](../notebooks/x.ipynb) [d](https://a.org/) [e](#x)"
    moved = "[a](source/examples/fsdp2.py.md) [b](scoring.md#speed) [c](../notebooks/x.md) [d](https://a.org/) [e](#x)"
    assert pages.relinked("training.md", text) == moved
    assert pages.sources("training.md", text) == {"examples/fsdp2.py"}
    assert pages.relinked("how-to/a.md", "[a](../../LICENSE)") == "[a](../source/LICENSE.md)"
    assert pages.ONLY_HERE.sub(r"\1", "a <!-- site: [b](c.md) --> <!-- table: d -->") == "a [b](c.md) <!-- table: d -->"
    assert "# examples/fsdp2.py" in pages.page_of_source("examples/fsdp2.py")
    assert "`benchmarks/results/cpu/logits.json`" in pages.page_of_source("benchmarks/results")
