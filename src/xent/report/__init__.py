"""Records as reports: one HTML file that works offline, and a JSON file with all of its numbers.

page.py makes a page from a template, texts and charts. why_text.py, why_answer.py, why_tables.py, why_thread.py and
why_charts/ have those of `xent why`, and why_story.py its scripts with their data; score_text.py, score_charts.py and
score_confusion.py have those of `xent score`, comparison_page.py those of `xent compare`, and replay_page.py those of
`xent why --predictions`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xent.errors import DataError, XentError, message, missing_package
from xent.files import make_folder, write_text, write_together
from xent.names import shown_name

try:
    from jinja2 import TemplateError

    from xent.report.page import render
except ModuleNotFoundError as error:
    raise missing_package(error, "xent.report", "cli") from None

if TYPE_CHECKING:
    from xent.why.record import Record

__all__ = ["write_comparison", "write_replay", "write_score", "write_why"]

SCHEMA = 1
"""Of all kinds of records."""
REMEDY = "Pass the JSON that this version of xent wrote"
DAMAGE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, TemplateError)


def write_why(record: Record | Mapping[str, Any], directory: Path) -> Path:
    """Write why.html, the report, and why.json, its numbers, into the directory; return the path of why.html.

    Both files are prepared in memory and written together at the end: a failure leaves neither.

    Parameters
    ----------
    record : the result of `xent.why.run`, or the dictionary of its `to_dict` (and of why.json)
    directory : created if it does not exist; existing files of the two names are replaced
    """
    from xent.report.why_charts import charts
    from xent.report.why_story import script, story
    from xent.report.why_text import texts

    plain: dict[str, Any] = dict(record) if isinstance(record, Mapping) else record.to_dict()
    _check_head("write_why", plain, "xent why")
    with _damage_named("write_why"):
        numbers = json.dumps(plain, allow_nan=False, indent=1)
        page = render("why.html.jinja", charts(plain), texts(plain), script(), story(plain))
    return _written(directory, "why", numbers, page)


def write_score(record: Mapping[str, Any], path: Path) -> Path:
    """Write the report of a score, one HTML file, completely or not at all; return its path.

    Parameters
    ----------
    record : the result of `Score.to_record`; an optional "source" has the input, its SHA-256 and the versions
    path : path of the file; an existing file is replaced
    """
    from xent.report.score_charts import charts
    from xent.report.score_text import SEARCH, texts

    _check_head("write_score", record, "xent score")
    with _damage_named("write_score"):
        page = render("score.html.jinja", charts(record), texts(record), SEARCH)
    return write_text(path, page)


def write_comparison(record: Mapping[str, Any], path: Path) -> Path:
    """Write the page of a comparison, one HTML file, completely or not at all; return its path.

    Parameters
    ----------
    record : the result of `Comparison.to_record`; optional "sources" have the inputs of a and b
    path : path of the file; an existing file is replaced
    """
    from xent.report.comparison_page import charts, texts

    _check_head("write_comparison", record, "xent compare")
    with _damage_named("write_comparison"):
        page = render("comparison.html.jinja", charts(record), texts(record))
    return write_text(path, page)


def write_replay(record: Mapping[str, Any], directory: Path) -> Path:
    """Write predictions.html, and predictions.json with its numbers, into the directory; return the HTML's path.

    Parameters
    ----------
    record : the result of `GradientReplay.to_dict`
    directory : created if it does not exist; existing files of the two names are replaced
    """
    from xent.report.replay_page import charts, texts

    _check_head("write_replay", record, "xent why --predictions")
    with _damage_named("write_replay"):
        page = render("replay.html.jinja", charts(record), texts(record))
        numbers = json.dumps(record, allow_nan=False, indent=1)
    return _written(directory, "predictions", numbers, page)


def _check_head(call: str, record: Mapping[str, Any], kind: str) -> None:
    """DataError unless this is a record of that kind, in the schema that the page is made from."""
    found = (record.get("record"), record.get("schema")) if isinstance(record, Mapping) else type(record).__name__
    if found != (kind, SCHEMA):
        problem = f"found {shown_name(found)}, expected a record of {kind!r} in schema {SCHEMA}"
        raise DataError(message(call, "record", problem, REMEDY))


@contextmanager
def _damage_named(call: str) -> Iterator[None]:
    """DataError for whatever a record of another shape does to the making of a page; nothing is written."""
    try:
        yield
    except XentError:
        raise
    except DAMAGE as error:
        problem = f"its parts are not those of a record: {type(error).__name__}, {shown_name(str(error))}"
        raise DataError(message(call, "record", problem, REMEDY)) from error


def _written(directory: Path, name: str, numbers: str, page: str) -> Path:
    """Write both files into the directory, which is made if need be; return the path of the page."""
    make_folder(directory)
    html = directory / f"{name}.html"
    write_together({directory / f"{name}.json": numbers, html: page})
    return html
