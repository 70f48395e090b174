"""Draw docs/why.svg, the picture of the README, from the record of the demo.

make demo && .venv/bin/python docs/make_picture.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median

import altair as alt
import vl_convert

HERE = Path(__file__).parent
COLOURS = {"cross-entropy": "#1f5fb8", "squared error": "#c2560c"}
MODEL = "one hidden layer"


def points(record: dict) -> list[dict]:
    """Test accuracy at each recorded step, for each seed and as the median over them."""
    found = []
    for start in ("random", "confidently wrong"):
        for loss in COLOURS:
            runs = [r for r in record["runs"] if (r["start"], r["model"], r["loss"]) == (start, MODEL, loss)]
            curves = [dict(zip(r["curve"]["step"], r["curve"]["accuracy"], strict=True)) for r in runs]
            common = {"start": f"{start} start", "loss": loss}
            for step in sorted(set.intersection(*(set(curve) for curve in curves))):
                values = [curve[step] for curve in curves]
                found += [{**common, "step": step, "accuracy": v, "seed": i} for i, v in enumerate(values)]
                found.append({**common, "step": step, "accuracy": median(values), "seed": "median"})
    return found


def chart(record: dict) -> alt.FacetChart:
    data = alt.Data(values=points(record))
    x = alt.X("step:Q", title="steps of gradient descent", scale=alt.Scale(type="symlog", constant=2)).axis(
        values=[0, 1, 3, 10, 30, 100, 300, 1000], grid=False
    )
    y = alt.Y("accuracy:Q", title="test accuracy").axis(format="%", tickCount=5)
    colour = alt.Color(
        "loss:N", scale=alt.Scale(domain=list(COLOURS), range=list(COLOURS.values())), legend=alt.Legend(title=None)
    )
    dash = alt.StrokeDash("loss:N", scale=alt.Scale(domain=list(COLOURS), range=[[1, 0], [6, 3]]), legend=None)
    base = alt.Chart().encode(x=x, y=y, color=colour)
    seeds = (
        base.mark_line(opacity=0.25, strokeWidth=1).encode(detail="seed:N").transform_filter("datum.seed != 'median'")
    )
    middle = base.mark_line(strokeWidth=3).encode(strokeDash=dash).transform_filter("datum.seed == 'median'")
    facets = alt.Column("start:N", title=None, sort=["random start", "confidently wrong start"])
    panels = alt.layer(seeds, middle, data=data).properties(width=380, height=240)
    return (
        panels.facet(facets)
        .configure(background="white", font="sans-serif")
        .configure_view(stroke=None)
        .configure_header(labelFontSize=15, labelFontWeight="bold")
        .configure_axis(labelFontSize=12, titleFontSize=12, titleFontWeight="normal")
        .configure_legend(labelFontSize=13, orient="bottom", symbolOpacity=1, symbolStrokeWidth=3, symbolSize=400)
    )


def main() -> None:
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "demo" / "why.json"
    picture = vl_convert.vegalite_to_svg(chart(json.loads(source.read_text())).to_json())
    (HERE / "why.svg").write_text(picture + "\n")


if __name__ == "__main__":
    main()
