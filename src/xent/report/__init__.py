"""Records as pages: one HTML file that opens anywhere, offline, and a JSON file with every number of it.

page.py makes a page out of a template, texts and charts; why_text.py and why_charts/ hold those of `xent why`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xent.report.page import render, write_together

if TYPE_CHECKING:
    from xent.why.record import Record

__all__ = ["write_why"]


def write_why(record: Record | Mapping[str, Any], directory: Path) -> Path:
    """Write why.html, the report, and why.json, its numbers, into the directory; return the path of why.html.

    Both files are made in memory first and take their names together at the end: a failure leaves neither.

    Parameters
    ----------
    record : what `xent.why.run` returned, or the dictionary that its `to_dict` (or why.json) holds
    directory : made if it is missing; files of the two names are replaced
    """
    from xent.report.why_charts import charts
    from xent.report.why_text import texts

    plain: dict[str, Any] = dict(record) if isinstance(record, Mapping) else record.to_dict()
    numbers = json.dumps(plain, allow_nan=False, indent=1)
    page = render("why.html.jinja", charts(plain), texts(plain))
    written = write_together(directory, {"why.json": numbers, "why.html": page})
    return written["why.html"]
