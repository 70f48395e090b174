"""A page: a Jinja2 template filled with texts, and charts as Vega-Lite specifications, with inlined JavaScript.

The page loads nothing: its Content-Security-Policy forbids it, and lists the scripts that may run by their hashes. Vega
evaluates its expressions with an interpreter, so that `eval` is forbidden as well.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import altair
import jinja2
import vl_convert
from markupsafe import Markup

from xent.names import visible
from xent.report.theme import config

Chart = altair.Chart | altair.LayerChart

EMBED = """
const { config, charts } = JSON.parse(document.getElementById("charts").textContent);
const options = { config, mode: "vega-lite", renderer: "svg", ast: true, actions: false, defaultStyle: false,
  tooltip: { disableDefaultStyle: true, offsetX: 12, offsetY: 12 } };
Promise.all(Object.entries(charts).map(([name, spec]) => vegaEmbed("#chart-" + name, spec, options)))
  .then(() => { document.documentElement.dataset.charts = "ready"; });
// A moving touch releases the mark it touched first, as a mouse pointer does.
document.addEventListener("pointerdown", (event) => {
  if (event.target.hasPointerCapture?.(event.pointerId)) event.target.releasePointerCapture(event.pointerId);
});
"""
"""JavaScript of every page, besides the libraries."""


def render(
    template: str, charts: Mapping[str, Chart], context: Mapping[str, Any], script: str = "", data: Any = None
) -> str:
    """Return the page as text. The template places charts by name; `context` has its other variables.

    `script` is further JavaScript of this page, which finds `data` as JSON in the element "story".
    """
    specs = {name: specification(chart) for name, chart in charts.items()}
    libraries, embed = javascript(), EMBED + script
    return (
        environment()
        .get_template(template)
        .render(
            context,
            chart_names=frozenset(specs),
            charts_json=_json_for_html({"config": config(), "charts": specs}),
            data_json=None if data is None else _json_for_html(data),
            libraries=Markup(libraries),
            embed=Markup(embed),
            policy=content_security_policy(libraries, embed),
            style=style_sheet("style.css"),
        )
    )


def style_sheet(name: str) -> Markup:
    """Return a style sheet of the templates."""
    return Markup((Path(__file__).parent / "templates" / name).read_text(encoding="utf-8"))


def specification(chart: Chart) -> dict[str, Any]:
    """Return a chart as Vega-Lite, without the parts that all charts share. Tests check it against the schema."""
    spec: dict[str, Any] = chart.to_dict(validate=False)
    return {key: value for key, value in spec.items() if key not in ("$schema", "config")}


def environment() -> jinja2.Environment:
    """Return an environment that escapes variables, for HTML and for the eye, and refuses undefined ones."""
    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters["zip"] = zip
    return jinja


@cache
def javascript() -> str:
    """Return Vega, Vega-Lite and vega-embed, in the versions that Altair targets."""
    version = altair.SCHEMA_VERSION.removeprefix("v").rsplit(".", 1)[0]
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def content_security_policy(*scripts: str) -> str:
    """Return a policy under which nothing may be loaded or sent, and only these scripts may run."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _visible(value: Any) -> Any:
    """Return the value of a variable of a template; text that is no markup of ours with visible escapes."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _json_for_html(value: Any) -> Markup:
    """Return JSON that is safe inside a script element, whatever its strings contain."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
