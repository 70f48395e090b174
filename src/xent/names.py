"""Names from data as they are shown: column names, labels, ids, segments, classes, file names.

A name is text that somebody else chose. Before it reaches a terminal, an error or a page, `shown_name` has seen it:
control characters, escape sequences, marks that change the direction of writing, lone surrogates and whatever else has
no glyph become visible escapes, and the length is bounded. What a name could mean to Rich or to a browser is not undone
here: the consoles of xent.cli interpret no markup, and the templates of xent.report escape every variable.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any

LONGEST = 60
"""Characters of a name that are shown."""
LONGEST_PATH = 240
"""Characters of a file name that are shown: folders included, so that it can still be found."""
MOST_LISTED = 20
"""Names of a list that are shown."""

JOINERS = "\u200c\u200d"
"""Zero-width characters that Persian, the scripts of India and emoji are written with."""
UNSHOWN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Categories of Unicode: control, format (bidi overrides too), surrogate, private, unassigned, line separators."""


def visible(text: str) -> str:
    r"""Return the text with visible escapes for what has no glyph.

    >>> print(visible("\x1b[31mred\u202e"))
    \x1b[31mred\u202e
    """
    return text if text.isprintable() else "".join(map(_visible_character, text))


def shown_name(name: object, longest: int = LONGEST) -> str:
    r"""Return a name as it is shown: with visible escapes, and with an ellipsis in place of what is too long.

    >>> print(shown_name("tab\there"), shown_name("a" * 100, 10))
    tab\x09here aaaaaaaaa…
    """
    text = str(name)
    text = visible(text[: longest + 1])
    return text if len(text) <= longest else text[: longest - 1] + "…"


def shown_path(path: object) -> str:
    """Return the name of a file, folders included, as it is shown."""
    return shown_name(path, LONGEST_PATH)


def quoted(name: object) -> str:
    """Return a name between quotation marks if it is text, for the middle of a sentence."""
    return f"'{shown_name(name)}'" if isinstance(name, str) else shown_name(repr(name))


def listed(names: Iterable[Any]) -> str:
    """Return names as one text, the first 20 of them, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - MOST_LISTED} more" if len(every) > MOST_LISTED else ""
    return ", ".join(map(shown_name, every[:MOST_LISTED])) + more


def first_line(error: BaseException) -> str:
    """Return what an error of another library says: its first line, or else the name of its class."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    return shown_name(lines[0], LONGEST_PATH)


def _visible_character(character: str) -> str:
    if character in JOINERS or unicodedata.category(character) not in UNSHOWN:
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
