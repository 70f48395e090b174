"""Small HTML tables, which notebooks show in place of a `repr`.

Every cell is shown as a name from data is (names.py) and escaped; captions and sentences are escaped, and not cut.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from xent.names import shown_name, visible


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]], texts: int = 1) -> str:
    """Return a table; the first `texts` columns are aligned to the left, the others, of numbers, to the right.

    >>> table("two", ["name", "nats"], [["<b>", 0.5]])[:60]
    '<table><caption style="text-align:left">two</caption><thead>'
    """
    lines = [
        f'<table><caption style="text-align:left">{html.escape(visible(caption))}</caption>',
        f"<thead>{_row('th', head, texts)}</thead><tbody>",
        *(_row("td", cells, texts) for cells in rows),
        "</tbody></table>",
    ]
    return "".join(lines)


def paragraph(sentence: str) -> str:
    """Return a sentence as a paragraph."""
    return f"<p>{html.escape(visible(sentence))}</p>"


def number(value: float | str | None, digits: int = 4) -> str:
    """Return a number with four significant digits; nothing for NaN and None. In records infinities are text.

    >>> number(0.30685), number("inf"), number(None)
    ('0.3069', 'infinite', '')
    """
    value = math.nan if value is None else float(value)
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "infinite" if value > 0 else "\N{MINUS SIGN}infinite"
    return f"{value:.{digits}g}".replace("-", "\N{MINUS SIGN}")


def share(value: float | str | None) -> str:
    """Return a share in percent; nothing if it is not finite."""
    value = math.nan if value is None else float(value)
    return f"{value:.1%}" if math.isfinite(value) else ""


def _row(tag: str, cells: Sequence[object], texts: int) -> str:
    sides = ["left" if column < texts else "right" for column in range(len(cells))]
    parts = [
        f'<{tag} style="text-align:{side}">{html.escape(shown_name(cell))}</{tag}>'
        for side, cell in zip(sides, cells, strict=True)
    ]
    return f"<tr>{''.join(parts)}</tr>"
