"""Draw the figures of the tutorials.

python docs/tutorials/figures.py           writes the SVG files beside this file
python docs/tutorials/figures.py --check   exits with 1 if one of them was drawn of other numbers, and names it
"""

from __future__ import annotations

import doctest
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import vl_convert

import xent
from xent.information import entropy, information_content, kl_divergence, softmax
from xent.likelihood import log_likelihood

HERE = Path(__file__).parent
AXIS = {"titleFontWeight": "normal", "titleFontSize": 12, "labelFontSize": 12, "tickCount": 6}
BLUE, ORANGE, GREEN = "#1f5fb8", "#c2560c", "#2b7a3d"


def rows(**columns: Any) -> list[dict[str, Any]]:
    """Columns as the rows of a chart, with numbers rounded to what can be seen."""
    lists = [c.tolist() if isinstance(c, np.ndarray) else list(c) for c in columns.values()]
    plain = [[float(f"{v:.4g}") if isinstance(v, float) else v for v in values] for values in lists]
    return [dict(zip(columns, row, strict=True)) for row in zip(*plain, strict=True)]


def lines(curves: dict[str, tuple[Any, Any]], x: alt.X, y: alt.Y, colors: list[str]) -> alt.Chart:
    """One line for each curve, by its name in the legend; a single curve has no legend."""
    data = [row for name, (xs, ys) in curves.items() for row in rows(x=xs, y=ys, curve=[name] * len(xs))]
    legend = None if len(curves) == 1 else alt.Legend(title=None, orient="bottom", labelLimit=300)
    scale = alt.Scale(domain=list(curves), range=colors)
    dash = alt.Scale(domain=list(curves), range=[[1, 0], [6, 3], [2, 2]][: len(curves)])
    return (
        alt.Chart(alt.InlineData(values=data))
        .mark_line(strokeWidth=2.5)
        .encode(x=x, y=y, color=alt.Color("curve:N", scale=scale, legend=legend))
        .encode(strokeDash=alt.StrokeDash("curve:N", scale=dash, legend=legend))
    )


def axis(cls: Any, title: str, domain: list[float] | None = None, **options: Any) -> Any:
    scale = alt.Undefined if domain is None else alt.Scale(domain=domain)
    return cls("x:Q" if cls is alt.X else "y:Q", title=title, scale=scale, axis=alt.Axis(**options))


def information() -> alt.Chart:
    p = np.geomspace(1 / 256, 1, 120)
    x, y = axis(alt.X, "probability of the event", [0, 1]), axis(alt.Y, "information, bits", [0, 8])
    return lines({"information": (p, information_content(p, base=2))}, x, y, [BLUE])


def entropy_of_a_coin() -> alt.Chart:
    p = np.linspace(0, 1, 101)
    coins = np.stack([p, 1 - p], axis=1)
    x, y = axis(alt.X, "probability of heads", [0, 1]), axis(alt.Y, "entropy, bits", [0, 1])
    return lines({"entropy": (p, entropy(coins, base=2))}, x, y, [BLUE])


def divergences() -> alt.Chart:
    heads = np.linspace(0.02, 0.98, 97)
    q = np.stack([heads, 1 - heads], axis=1)
    p = np.broadcast_to(np.array([0.3, 0.7]), q.shape)
    curves = {
        "KL(p || q)": (heads, kl_divergence(p, q, base=2)),
        "KL(q || p)": (heads, kl_divergence(q, p, base=2)),
    }
    x, y = axis(alt.X, "probability of heads under q; under p it is 0.3", [0, 1]), axis(alt.Y, "bits")
    return lines(curves, x, y, [BLUE, GREEN])


def likelihood_of_a_coin() -> alt.Chart:
    throws = np.array([1, 1, 0, 1, 1, 0, 1, 1, 0, 1])
    heads = np.linspace(0.1, 0.98, 89)
    values = np.array([float(log_likelihood(throws, np.tile([1 - c, c], (10, 1)))) for c in heads])
    x, y = axis(alt.X, "probability of heads", [0, 1]), axis(alt.Y, "log-likelihood, nats")
    return lines({"log-likelihood": (heads, values)}, x, y, [BLUE])


def softmax_of_two() -> alt.Chart:
    difference = np.linspace(-6, 6, 121)
    curves = {
        f"temperature {t:g}": (difference, softmax(np.stack([difference, 0 * difference], axis=1) / t)[:, 0])
        for t in (0.5, 1.0, 2.0)
    }
    x = axis(alt.X, "difference of the logits", [-6, 6])
    return lines(curves, x, axis(alt.Y, "probability", [0, 1]), [GREEN, BLUE, ORANGE])


def gradients() -> alt.Chart:
    q = np.linspace(0.001, 0.999, 200)
    logits = np.stack([np.log(q), np.log1p(-q)], axis=1)
    labels = np.zeros(len(q), np.int64)
    losses = {
        "cross-entropy": xent.numpy.cross_entropy_value_and_grad,
        "squared error": xent.numpy.squared_error_value_and_grad,
    }
    lengths = {name: np.linalg.norm(f(logits, labels, reduction="sum")[1], axis=1) for name, f in losses.items()}
    x = axis(alt.X, "probability of the label, of two classes", [0, 1])
    curves = {name: (q, length) for name, length in lengths.items()}
    return lines(curves, x, axis(alt.Y, "length of the gradient by the logits"), [BLUE, ORANGE])


def training() -> alt.Chart:
    """The losses that the examples of network.md compute."""
    text = (HERE / "network.md").read_text(encoding="utf-8")
    test = doctest.DocTestParser().get_doctest(text, {}, "network.md", "network.md", 0)
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, clear_globs=False)
    losses = test.globs["losses"][::5]
    values = [float(f"{loss:.3g}") for loss in losses]
    x, y = axis(alt.X, "step", [0, 600]), axis(alt.Y, "cross-entropy, nats", [0, 1.4])
    return lines({"loss": (list(range(0, 600, 5)), values)}, x, y, [BLUE])


FIGURES: dict[str, Callable[[], alt.Chart]] = {
    "information.svg": information,
    "entropy.svg": entropy_of_a_coin,
    "kl_divergence.svg": divergences,
    "likelihood.svg": likelihood_of_a_coin,
    "softmax.svg": softmax_of_two,
    "squared_error.svg": gradients,
    "network.svg": training,
}


def drawn(chart: alt.Chart) -> str:
    """The figure as SVG. The first line names the specification that it was drawn from."""
    specification = (
        chart.properties(width=400, height=230)
        .configure(background="white", font="Helvetica, Arial, sans-serif", padding=12)
        .configure_view(stroke=None)
        .configure_axis(gridColor="#e8e8e8", domainColor="#999999", tickColor="#999999", **AXIS)
        .configure_legend(labelFontSize=13, symbolStrokeWidth=3)
        .to_dict()
    )
    svg = vl_convert.vegalite_to_svg(specification)
    return f"{first_line(specification)}\n{svg}\n"


def first_line(specification: dict[str, Any]) -> str:
    plain = {key: value for key, value in specification.items() if key != "$schema"}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
    return f"<!-- made from the chart {digest} -->"


def stale() -> list[str]:
    """The figures that are not those of their functions."""
    names = []
    for name, chart in FIGURES.items():
        path = HERE / name
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if text.splitlines()[:1] != drawn(chart()).splitlines()[:1]:
            names.append(name)
    return names


def main() -> None:
    if "--check" in sys.argv[1:]:
        names = stale()
        for name in names:
            print(f"docs/tutorials/{name} is stale: python docs/tutorials/figures.py", file=sys.stderr)
        sys.exit(1 if names else 0)
    for name, chart in FIGURES.items():
        (HERE / name).write_text(drawn(chart()), encoding="utf-8")


if __name__ == "__main__":
    main()
