"""Collect the pages of the documentation site as Markdown and pictures in one folder, which any site builder takes.

.venv-docs/bin/python docs/pages.py build/pages

The pages in docs/ are copied, with their links changed where these lead out of docs/: each file of the repository that
is linked to gets a page under source/, so that no link leaves the site. What stands in a comment `<!-- site: ... -->`
is shown in the site only: links to pages that a code host does not have. The pages of the command line, the changelog
and the notebooks are made here. The builder itself needs no plugin for any of this.
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LIVE = ROOT / "build" / "live"
LINK = re.compile(r"\]\((?P<path>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")
ONLY_HERE = re.compile(r"<!-- site: (.*?) -->", re.DOTALL)
COPIED = (".md", ".svg", ".css")
WHOLE_PAGES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
LANGUAGES = {".py": "python", ".json": "json"}
LONGEST = 40_000
NOT_SEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"


def main() -> None:
    out = Path(sys.argv[1])
    shutil.rmtree(out, ignore_errors=True)
    pages: dict[str, str] = {}
    for path in sorted(DOCS.rglob("*")):
        name = path.relative_to(DOCS).as_posix()
        if path.suffix == ".md":
            pages[name] = ONLY_HERE.sub(r"\1", path.read_text(encoding="utf-8"))
        elif path.suffix in COPIED:
            copy(path, out / name)
    for name, source in WHOLE_PAGES.items():
        pages[name] = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
    pages["reference/command_line.md"] = command_line()
    for path in sorted((DOCS / "notebooks").glob("*.ipynb")):
        pages[f"notebooks/{path.stem}.md"] = page_of_notebook(path)
    for path in sorted(LIVE.glob("*.html")):
        copy(path, out / "live" / path.name)
    for target in sorted({target for name, text in pages.items() for target in sources(name, text)}):
        pages[place(target)] = page_of_source(target)
    for name, text in pages.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(relinked(name, text), encoding="utf-8")


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


# ---------------------------------------------------------------------------------------------------------------- links


def sources(page: str, text: str) -> set[str]:
    """The files and folders outside docs/ that a page links to."""
    return {target for match in LINK.finditer(text) if (target := outside(page, match["path"]))}


def outside(page: str, link: str) -> str | None:
    """The path in the repository of a link that leads out of docs/; None for other links."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if path.startswith(("docs/", "../")) or not (ROOT / path).exists() else path


def place(target: str) -> str:
    return f"source/{target}.md"


def relinked(page: str, text: str) -> str:
    """The text with links to files of the repository, and to notebooks, pointed at the pages of the site."""

    def moved(match: re.Match[str]) -> str:
        target, anchor = outside(page, match["path"]), match["anchor"] or ""
        if target is not None:
            return f"]({posixpath.relpath(place(target), posixpath.dirname(page) or '.')}{anchor})"
        if match["path"].endswith(".ipynb"):
            return f"]({match['path'].removesuffix('.ipynb')}.md{anchor})"
        return match[0]

    return LINK.sub(moved, text)


# ---------------------------------------------------------------------------------------------------------------- pages


def page_of_source(target: str) -> str:
    """A file as a page, or the list of the files of a folder."""
    path = ROOT / target
    if path.is_dir():
        names = sorted(
            str(p.relative_to(ROOT)) for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts
        )
        listed = "\n".join(f"- `{name}`" for name in names)
        return f"{NOT_SEARCHED}# {target}\n\nFiles in this folder of the repository:\n\n{listed}\n"
    text = path.read_text(encoding="utf-8")
    cut = f"\n\nThe first {LONGEST:,} of {len(text):,} characters.\n" if len(text) > LONGEST else "\n"
    language = LANGUAGES.get(path.suffix, "text")
    return f"{NOT_SEARCHED}# {target}\n\n````{language}\n{text[:LONGEST]}\n````{cut}"


def command_line() -> str:
    """The commands and their options, from the texts of `--help`."""
    os.environ["COLUMNS"] = "200"  # short descriptions are cut at the width of the terminal
    import typer
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from xent.cli import load

    command = get_command(load())
    context = typer.Context(command, info_name="xent")
    return get_docs_for_click(obj=command, ctx=context, name="xent", title="Command line")


def page_of_notebook(path: Path) -> str:
    """A notebook as a page: run anew, with what its cells show."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        else:
            parts += [f"```python\n{cell.source}\n```", *map(shown, cell.outputs)]
    parts.append(f"*This page is the notebook `docs/notebooks/{path.name}`, run when the site was built.*")
    return "\n\n".join(part for part in parts if part) + "\n"


def shown(output: Any) -> str:
    """What a cell shows, as Markdown."""
    if output.output_type == "stream":
        return f"```text\n{output.text.rstrip()}\n```" if output.name == "stdout" else ""
    data = output.get("data", {})
    if "text/html" in data:
        return f'<div class="output">{data["text/html"]}</div>'
    return f"```text\n{data['text/plain']}\n```" if "text/plain" in data else ""


if __name__ == "__main__":
    main()
