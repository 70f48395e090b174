"""The plots, each from one record: bars against peers (logits), time against elements (scaling), threads, and errors
against chunks (linear).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import sampled_tables
from benchmarks.record_tables import digest
from xent.bench.peers import EAGER, OURS, REUSED
from xent.bench.show import number, ratio_of
from xent.errors import MissingDependencyError, message

NAMES = {OURS: OURS, EAGER: EAGER, REUSED: "a copy of the logits"}
COLORS = {OURS: "#0b6e99", EAGER: "#c2571a", REUSED: "#808080"}
PEERS = {EAGER: "#c2571a", f"{EAGER}, compiled": "#e0a33e", "NumPy formula": "#808080"}
SHOWN = ("xent.torch", "torch")
EAGER_OF = {"F.binary_cross_entropy_with_logits": "torch"}
PAIRS = {
    "contrastive loss, both directions": ("contrastive_loss", "F.cross_entropy(z) + F.cross_entropy(z.T)"),
    "KL divergence of logits": ("kl_divergence", "F.kl_div(log_softmax)"),
    "JS divergence of logits": ("js_divergence", "JSD by log_softmax"),
}
"""By the work of a record without contestants: our call, and what torch is written as."""
WAYS = {"OpenMP": "torch's OpenMP threads", "pool": "threads of a pool"}


def speed_svg(record: Mapping[str, Any]) -> str:
    """Horizontal bars as SVG: the time of each peer over ours, forward + backward, for each case."""
    alt, _ = _libraries()
    values = []
    for case in record["cases"]:
        for peer in PEERS:
            ratio = ratio_of(case, "forward_backward", peer, OURS)
            if ratio is not None:
                size = " x ".join(str(length) for length in case["size"])
                text = number(ratio["median"])
                label = f"{size}, {case['dtype']}"
                beside = max(ratio["median"], 1)  # a number inside of the line at 1 could not be read
                values.append({"case": label, "peer": peer, "ratio": ratio["median"], "beside": beside, "text": text})
    cases = list(dict.fromkeys(value["case"] for value in values))
    y = alt.Y("case:N", sort=cases, title=None, scale=alt.Scale(paddingInner=0.3), axis=alt.Axis(labelLimit=200))
    offset = alt.YOffset("peer:N", sort=list(PEERS))
    title = "time over that of xent.torch, forward + backward"
    x = alt.X("ratio:Q", title=title, axis=alt.Axis(tickCount=6, format="~g"), scale=alt.Scale(nice=True))
    legend = alt.Legend(orient="top", symbolType="square")
    scale = alt.Scale(domain=list(PEERS), range=list(PEERS.values()))
    base = alt.Chart(alt.InlineData(values=values)).encode(x=x, y=y, yOffset=offset)
    bars = base.mark_bar().encode(color=alt.Color("peer:N", title=None, scale=scale, legend=legend))
    texts = base.mark_text(align="left", dx=3, fontSize=9, color="#555555").encode(x="beside:Q", text="text:N")
    one = (
        alt.Chart(alt.InlineData(values=[{"ratio": 1}]))
        .mark_rule(color=COLORS[OURS], strokeWidth=2)
        .encode(x="ratio:Q")
    )
    chart = alt.layer(bars, texts, one).properties(width=300, height=alt.Step(11))
    return _drawn(record, chart)


def threads_svg(record: Mapping[str, Any]) -> str:
    """Lines as SVG: how many times as fast as one thread each kind of threads is, against the rows."""
    alt, _ = _libraries()
    alone = {p["rows"]: p["median"] for p in record["points"] if p["way"] == "one thread"}
    values = [
        {"rows": p["rows"], "faster": alone[p["rows"]] / p["median"], "threads": WAYS[p["way"]]}
        for p in record["points"]
        if p["way"] in WAYS
    ]
    scale = alt.Scale(domain=list(WAYS.values()), range=[COLORS[OURS], COLORS[EAGER]])
    legend = alt.Legend(orient="bottom", symbolType="stroke")
    lines = (
        alt.Chart(alt.InlineData(values=values))
        .mark_line(point=alt.OverlayMarkDef(size=36))
        .encode(
            x=alt.X("rows:Q", title="rows of 1000 classes", scale=alt.Scale(type="log"), axis=_axis("~s")),
            y=alt.Y("faster:Q", title="times as fast as one thread", scale=alt.Scale(domainMin=0)),
            color=alt.Color("threads:N", title=None, scale=scale, legend=legend),
        )
    )
    one = (
        alt.Chart(alt.InlineData(values=[{"faster": 1}]))
        .mark_rule(color="#808080", strokeDash=[4, 3])
        .encode(y="faster:Q")
    )
    return _drawn(record, alt.layer(one, lines).properties(width=380, height=230))


def scaling_svg(record: Mapping[str, Any]) -> str:
    """Two log-log panels as SVG: the rows grow, the classes grow."""
    alt, _ = _libraries()
    values = [
        {
            "elements": point["elements"],
            "milliseconds": 1e3 * point["median"],
            "implementation": NAMES[point["contestant"]],
            "panel": _panel(point["grows"]),
        }
        for point in record["points"]
    ]
    present = {value["implementation"] for value in values}
    scale = alt.Scale(
        domain=[NAMES[name] for name in COLORS if NAMES[name] in present],
        range=[color for name, color in COLORS.items() if NAMES[name] in present],
    )
    chart = (
        alt.Chart(alt.InlineData(values=values))
        .mark_line(point=alt.OverlayMarkDef(size=36))
        .encode(
            x=alt.X("elements:Q", title="logits (rows times classes)", scale=alt.Scale(type="log"), axis=_axis("~s")),
            y=alt.Y("milliseconds:Q", title="milliseconds", scale=alt.Scale(type="log"), axis=_axis(",~g")),
            color=alt.Color(
                "implementation:N", title=None, scale=scale, legend=alt.Legend(orient="bottom", symbolType="stroke")
            ),
        )
        .properties(width=330, height=280)
        .facet(column=alt.Column("panel:N", title=None, sort=[_panel("rows"), _panel("classes")]))
    )
    return _drawn(record, chart)


def linear_error_svg(record: Mapping[str, Any]) -> str:
    """Relative errors in bfloat16 against the number of chunks: the loss, and both gradients."""
    alt, _ = _libraries()
    names = {"loss": "loss", "input": "gradient of the input", "weight": "gradient of the weight"}
    values = [
        {"chunks": point["chunks"], "error": point[quantity], "implementation": point["contestant"], "panel": panel}
        for point in record["errors"]
        for quantity, panel in names.items()
    ]
    scale = alt.Scale(
        domain=list(dict.fromkeys(value["implementation"] for value in values)), range=list(COLORS.values())
    )
    chart = (
        alt.Chart(alt.InlineData(values=values))
        .mark_line(point=alt.OverlayMarkDef(size=36))
        .encode(
            x=alt.X("chunks:Q", title="chunks", scale=alt.Scale(type="log", base=2)),
            y=alt.Y("error:Q", title="relative error", scale=alt.Scale(type="log"), axis=alt.Axis(format="~g")),
            color=alt.Color(
                "implementation:N", title=None, scale=scale, legend=alt.Legend(orient="bottom", symbolType="stroke")
            ),
        )
        .properties(width=240, height=240)
        .facet(column=alt.Column("panel:N", title=None, sort=list(names.values())))
    )
    return _drawn(record, chart)


def sampled_curves_svg(record: Mapping[str, Any]) -> str:
    """Held-out losses of a training with exact, sampled and filtered gradients."""
    return _drawn(record, sampled_tables.curves(record, _libraries()[0]))


def sampled_densities_svg(record: Mapping[str, Any]) -> str:
    """Entries left and errors of sampled gradients against the threshold."""
    return _drawn(record, sampled_tables.densities(record, _libraries()[0]))


def beside_torch_svg(record: Mapping[str, Any]) -> str:
    """Bars of time, and of memory where the record has it: ours, and torch's function or formula, for each work."""
    alt, _ = _libraries()
    values = [value for case in record["cases"] for value in _beside(case)]
    works = list(dict.fromkeys(value["work"] for value in values))
    names = ["xent.torch", "torch"]
    legend = alt.Legend(orient="top", symbolType="square")
    scale = alt.Scale(domain=names, range=[COLORS[OURS], COLORS[EAGER]])
    panels: list[Any] = []
    for measure in dict.fromkeys(value["measure"] for value in values):
        own = [value for value in values if value["measure"] == measure]
        base = alt.Chart(alt.InlineData(values=own)).encode(
            x=alt.X("value:Q", title=measure, axis=alt.Axis(tickCount=5, format="~s")),
            y=alt.Y("work:N", sort=works, title=None, axis=alt.Axis(labelLimit=240) if not panels else None),
            yOffset=alt.YOffset("name:N", sort=names),
        )
        bars = base.mark_bar().encode(color=alt.Color("name:N", title=None, scale=scale, legend=legend))
        texts = base.mark_text(align="left", dx=3, fontSize=10, color="#555555").encode(text="text:N")
        panels.append(alt.layer(bars, texts).properties(width=260, height=alt.Step(16)))
    return _drawn(record, alt.hconcat(*panels))


def options_svg(record: Mapping[str, Any]) -> str:
    """Bars of time: what a sparse target and options of a linear loss take, beside labels alone."""
    alt, _ = _libraries()
    (case,) = record["cases"]
    values = [
        {"work": work, "seconds": spread["median"], "text": number(spread["median"]), "is_plain": work == "labels"}
        for work, spread in case["seconds"].items()
    ]
    base = alt.Chart(alt.InlineData(values=values)).encode(
        x=alt.X("seconds:Q", title="seconds, forward + backward", axis=alt.Axis(tickCount=5)),
        y=alt.Y("work:N", sort=list(case["seconds"]), title=None, axis=alt.Axis(labelLimit=240)),
    )
    color = alt.condition("datum.is_plain", alt.value(COLORS[REUSED]), alt.value(COLORS[OURS]))
    texts = base.mark_text(align="left", dx=3, fontSize=10, color="#555555").encode(text="text:N")
    bars = base.mark_bar().encode(color=color)
    return _drawn(record, alt.layer(bars, texts).properties(width=340, height=alt.Step(26)))


def _beside(case: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Milliseconds and megabytes of a case, by work and implementation."""
    if "contestants" in case:
        work = f"{' x '.join(str(n) for n in case['size'])}, {case['dtype']}"
        named = {EAGER_OF.get(each["name"], each["name"]): each["seconds"] for each in case["contestants"]}
        seconds = {(work, name): named[name]["forward_backward"]["median"] for name in SHOWN}
        memory: dict[tuple[str, str], float] = {}
    else:
        pairs = [(work, names) for work, names in PAIRS.items() if names[0] in case["seconds"]]
        seconds = {
            (work, shown): case["seconds"][name]["median"]
            for work, names in pairs
            for shown, name in zip(SHOWN, names, strict=True)
        }
        memory = {
            (work, shown): case["memory"][name]
            for work, names in pairs
            for shown, name in zip(SHOWN, names, strict=True)
            if name in case.get("memory", {})
        }
    found = [_bar(key, "milliseconds", 1e3 * value) for key, value in seconds.items()]
    return found + [_bar(key, "megabytes beside the arguments", value / 1e6) for key, value in memory.items()]


def _bar(key: tuple[str, str], measure: str, value: float) -> dict[str, Any]:
    return {"work": key[0], "name": key[1], "measure": measure, "value": value, "text": number(value)}


def _libraries() -> tuple[Any, Any]:
    try:
        import altair
        import vl_convert
    except ImportError:
        problem = "the plot needs altair and vl-convert-python"
        raise MissingDependencyError(message("bench", "", problem, "pip install 'xent[cli]'")) from None
    return altair, vl_convert


def _drawn(record: Mapping[str, Any], chart: Any) -> str:
    chart = (
        chart.configure(background="white", font="Helvetica, Arial, sans-serif", padding=12)
        .configure_view(stroke=None)
        .configure_axis(gridColor="#e8e8e8", domainColor="#999999", tickColor="#999999", titleFontWeight="normal")
        .configure_header(labelFontSize=13, labelFontWeight="bold")
        .configure_legend(labelFontSize=12, labelLimit=260)
    )
    return f"{made_from(record)}\n{_libraries()[1].vegalite_to_svg(chart.to_dict())}\n"


def made_from(record: Mapping[str, Any]) -> str:
    """The first line of a plot, which names its record: a stale plot names another one."""
    return f"<!-- made from the record {digest(record)} -->"


def _panel(grows: str) -> str:
    fixed = {"rows": "1000 classes, more and more rows", "classes": "1000 rows, more and more classes"}
    return fixed[grows]


def _axis(number_format: str) -> Any:
    import altair as alt

    return alt.Axis(values=[10.0**power for power in range(-4, 10)], format=number_format)
