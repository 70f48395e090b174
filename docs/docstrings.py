"""An extension of Griffe, which reads the docstrings for the site: sections become Markdown.

A parameter's line in our docstrings is a sentence, and one line may document several parameters, so that Griffe's own
tables of names, types and descriptions would cut sentences in two and repeat defaults that are not theirs.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTION = re.compile(r"^(?P<name>[A-Z][A-Za-z ]+)\n-{3,}\n", re.MULTILINE)
ENTRIES = ("Parameters", "Raises")
ENTRY = re.compile(r"^(?P<names>[*\w][*\w., ]*?)(?: : (?P<text>.*))?$")


class Sections(griffe.Extension):
    """Rewrites the docstring of every object that Griffe has loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Called once, when the package is loaded."""
        _rewrite(pkg)


def _rewrite(of: griffe.Object) -> None:
    if of.docstring is not None:
        of.docstring.value = markdown(of.docstring.value)
    for member in of.members.values():
        if not member.is_alias:
            _rewrite(member)  # type: ignore[arg-type]


def markdown(docstring: str) -> str:
    """The docstring with bold titles, lists of parameters and errors, and fences around examples."""
    parts = SECTION.split(docstring)
    text = [fenced(parts[0])]
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        text.append(f"**{name}**\n\n{entries(body) if name in ENTRIES else fenced(body)}")
    return "\n\n".join(part.strip("\n") for part in text) + "\n"


def entries(body: str) -> str:
    """Lines `names : text` with indented lines below them, as a list."""
    items: list[str] = []
    for line in body.splitlines():
        match = ENTRY.match(line)
        if line.startswith("    "):
            items[-1] += (" " if "**:" in items[-1] or ": " in items[-1] else ": ") + line.strip()
        elif match:
            names = ", ".join(f"`{name}`" for name in re.split(r", ?", match["names"]))
            items.append(f"- {names}: {match['text']}" if match["text"] else f"- {names}")
        elif line.strip():
            items.append(f"- {line}")
    return "\n".join(items)


def fenced(body: str) -> str:
    """Each block that starts with `>>>`, up to the next empty line, as code."""
    blocks = re.split(r"\n\s*\n", body.strip("\n"))
    return "\n\n".join(f"```pycon\n{block}\n```" if block.lstrip().startswith(">>>") else block for block in blocks)
