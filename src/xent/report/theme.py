"""The style of all charts. Colours are variables of the page's style sheet, which has a light and a dark scheme.

A chart is a single view as wide as its container. Interactive choices are ordinary controls of the page, to which
charts are bound: charts bound to the same control change together.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, cast

import altair as alt

INK, MUTED, FAINT, RULE, PAPER = "var(--ink)", "var(--muted)", "var(--faint)", "var(--rule)", "var(--paper)"
CROSS_ENTROPY, SQUARED_ERROR, DIVERGENCE = "var(--cross-entropy)", "var(--squared-error)", "var(--divergence)"
COLOR_OF = {"cross-entropy": CROSS_ENTROPY, "squared error": SQUARED_ERROR}
SHAPE_OF = {"cross-entropy": "circle", "squared error": "triangle-up"}
DASH_OF = {"cross-entropy": [1, 0], "squared error": [6, 3]}
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif'
HEIGHT = 260

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

Layers = alt.Chart | alt.LayerChart


def config() -> dict[str, Any]:
    """Return the configuration that all charts share."""
    axis = {
        "labelColor": MUTED,
        "titleColor": MUTED,
        "domainColor": RULE,
        "tickColor": RULE,
        "gridColor": FAINT,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelPadding": 6,
        "tickSize": 4,
    }
    return {
        "background": None,
        "font": FONT,
        "padding": 2,
        "view": {"stroke": None, "continuousHeight": HEIGHT},
        "axis": axis,
        "axisX": {"grid": False, "titlePadding": 8, "labelFlush": True},
        "axisY": {
            "domain": False,
            "ticks": False,
            "titleAngle": 0,
            "titleAlign": "left",
            "titleBaseline": "bottom",
            "titleAnchor": "start",
            "titleX": -4,
            "titleY": -12,
        },
        "text": {"fontSize": 12, "color": INK},
        "rule": {"color": RULE},
        "line": {"strokeCap": "round", "strokeJoin": "round"},
    }


def inline(rows_: list[dict[str, Any]]) -> alt.InlineData:
    """Return rows as inline data, in JSON: Altair copies nested lists many times while it builds a chart."""
    text = json.dumps(rows_, allow_nan=False, separators=(",", ":"))
    return alt.InlineData(values=text, format=alt.JsonDataFormat(type="json"))


def rows(**columns: Iterable[Any]) -> alt.Chart:
    """Return a chart of inline columns of equal length, without marks and encodings."""
    data = {name: list(column) for name, column in columns.items()}
    return alt.Chart(inline([data])).transform_flatten(list(data))


def power(exponent: int) -> str:
    """Return a power of ten in superscript characters; short numbers in full."""
    plain = {-3: "0.001", -2: "0.01", -1: "0.1", 0: "1", 1: "10"}
    return plain.get(exponent, "10" + str(exponent).translate(SUPERSCRIPT))


def ticks(labels: Mapping[float, str], **axis: Any) -> alt.Axis:
    """Return an axis with labelled ticks at these values."""
    step = min((abs(a - b) for a, b in pairwise(sorted(labels))), default=1.0)
    near = 1e-6 * step
    text = "''"
    for value, written in labels.items():
        text = f"abs(datum.value - {value!r}) <= {near!r} ? '{written}' : {text}"
    return alt.Axis(values=list(labels), labelExpr=text, **axis)


def x_axis(field: str, title: str | None, domain: list[float] | None = None, **axis: Any) -> alt.X:
    """Return an x channel with an axis and, if it is not to follow the data, a domain."""
    return alt.X(field, scale=_scale(domain), axis=alt.Axis(title=title, **axis))


def y_axis(field: str, title: str | None, domain: list[float] | None = None, **axis: Any) -> alt.Y:
    """Return a y channel, as `x_axis` does."""
    return alt.Y(field, scale=_scale(domain), axis=alt.Axis(title=title, **axis))


def _scale(domain: list[float] | None) -> Any:
    return alt.Undefined if domain is None else alt.Scale(domain=domain)


def tooltips(**columns: tuple[str, str]) -> list[alt.Tooltip]:
    """Return tooltips of quantities: the title and the format of each column."""
    return [alt.Tooltip(f"{name}:Q", title=title, format=form) for name, (title, form) in columns.items()]


def control(name: str, element: str, value: str) -> alt.Parameter:
    """Return a parameter with the value, as text, of the page's control with this id; `value` is the initial one."""
    return alt.param(name=name, value=value, bind=alt.BindDirect(element=f"#{element}"))


def nearest(
    name: str, field: str, start: str | float, view: str, *, element: str | None = None, drag: bool = False
) -> alt.Parameter:
    """Return a selection, by a field, of the mark nearest to the pointer; it moves a control if one is named."""
    cells = f"@{view}_voronoi"
    moved = f"[{cells}:pointerdown, window:pointerup] > {cells}:pointermove" if drag else f"{cells}:pointermove"
    bind: Any = {field: alt.BindDirect(element=f"#{element}")} if element else alt.Undefined
    return alt.selection_point(
        name=name,
        fields=[field],
        value=[{field: start}],
        on=f"{cells}:pointerdown, {moved}",
        nearest=True,
        clear=False,
        toggle="false",
        empty=False,
        bind=bind,
    )


def layered(*parts: Any) -> alt.LayerChart:
    """Layer charts, and lists of charts, the last on top."""
    return cast(alt.LayerChart, alt.layer(*_flat(parts)))


def _flat(parts: Iterable[Any]) -> Iterator[alt.Chart]:
    for part in parts:
        yield from _flat(part) if isinstance(part, list) else (part,)


def label(chart: alt.Chart, **mark: Any) -> list[alt.Chart]:
    """Return text with a halo in the colour of the paper, readable on top of lines."""
    halo = {**mark, "stroke": PAPER, "strokeWidth": 5, "strokeJoin": "round", "color": PAPER, "aria": False}
    return [chart.mark_text(**halo), chart.mark_text(**mark)]


def beside_bars(chart: alt.Chart, color: str, fits_outside: str) -> list[alt.Chart]:
    """Return the text of a bar beyond its end or, where an expression is false, inside it; `chart` encodes the end."""
    inside: dict[str, Any] = {"align": "right", "dx": -6, "color": PAPER, "fontWeight": 600}
    return [
        *label(chart.transform_filter(fits_outside), align="left", dx=6, color=color, fontWeight=600),
        chart.transform_filter(f"!({fits_outside})").mark_text(**inside),
    ]


def finished(chart: Layers, name: str, description: str, height: int = HEIGHT) -> Layers:
    """Return a chart as wide as its container, with a description for screen readers."""
    return chart.properties(width="container", height=height, description=description, name=name)
