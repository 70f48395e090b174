"""Tables and plots of sampled gradients: their speed, their errors, and what they do to a training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import log2, sqrt
from statistics import mean, stdev
from typing import Any

from benchmarks.markdown import megabytes, table
from xent.bench.show import number

Record = Mapping[str, Any]

RULES = {"sampled": "sampled", "dropped": "dropped", "tiles": "tiles of 128 x 128"}
METHODS = {"exact": "#808080", "nudged": "#7a5195", "sampled": "#0b6e99", "tiles": "#e0a33e", "dropped": "#c2571a"}
ERRORS = ("input", "mean over rows", "weight")


def speed(record: Record) -> str:
    """Exact and sampled gradients beside three products, and what was required."""
    rows = []
    for case in record["cases"]:
        bounds = {bar["implementation"]: bar for bar in case["bars"] if bar["measure"] == "times three products"}
        for name, over in case["over_products"].items():
            bar = bounds.get(name)
            required = f"at most {bar['bound']:g}" if bar else ""
            measured = f"{number(over['median'])} ({number(over['low'])}–{number(over['high'])})"
            milliseconds = number(1e3 * case["seconds"][name]["median"])
            met = {None: "", True: "yes", False: "no"}[bar and bar["met"]]
            memory = megabytes(case["memory"][name]) if name in case.get("memory", {}) else ""
            rows.append([case["dtype"], name, milliseconds, measured, required, met, memory])
    head = ["dtype", "gradient", "ms", "times three products", "required", "met", "MB beside the gradients"]
    return table(head, rows, left=2)


def errors(record: Record, words: int = 32768) -> str:
    """How many entries are left, and how wrong the gradients are, at steps of a training and the default threshold."""
    rows = []
    for point in _measured(record, words):
        found = next(row for row in point["thresholds"] if log2(row["threshold"]) == -12)
        for rule, name in RULES.items():
            density = found["density" if rule == "sampled" else f"{rule} density"]
            apart = [f"{number(100 * found[rule][where])} %" for where in ERRORS]
            rows.append([str(point["step"]), number(point["loss"]), name, f"{number(100 * density)} %", *apart])
    head = ["step", "loss", "rule", "entries left", "error of d/dinput", "of its mean over rows", "of d/dweight"]
    return table(head, rows, left=3)


def errors_of_fewer(record: Record) -> str:
    """The same for the model of fewer words."""
    return errors(record, 8192)


def training(record: Record) -> str:
    """The held-out loss at the end of each method, and how far it is from that of the exact gradient, seed by seed."""
    rows = []
    for words in _models(record):
        last = {method: [run["held_out"][-1][1] for run in _runs(record, method, words)] for method in METHODS}
        for method, losses in last.items():
            apart = [one - exact for one, exact in zip(losses, last["exact"], strict=True)]
            cells = [f"{mean(losses):.4f}", f"{min(losses):.4f} to {max(losses):.4f}"]
            beside = "" if method == "exact" else f"{mean(apart):+.4f} ± {stdev(apart) / sqrt(len(apart)):.4f}"
            rows.append([str(words), method, str(len(losses)), *cells, beside])
    head = [
        "words",
        "gradient",
        "seeds",
        "held-out loss, nats",
        "lowest to highest",
        "less that of exact, seed by seed",
    ]
    return table(head, rows, left=2)


def processors(record: Record) -> str:
    """Where the trainings ran, and for how long in all."""
    counts = Counter(run["processor"] for run in record["runs"])
    where = "; ".join(f"{count} trainings on {name}" for name, count in counts.items())
    versions = ", ".join(f"{name} {record['versions'][name]}" for name in ("python", "xent", "torch"))
    return f"{where}; one thread each; {versions}; `{record['command']}`, {record['seconds']:.0f} seconds in all."


def curves(record: Record, alt: Any) -> Any:
    """Held-out loss of each method less that of the exact gradient of the same seed: mean and range over the seeds."""
    points = []
    for words in _models(record):
        exact = [dict(map(tuple, run["held_out"])) for run in _runs(record, "exact", words)]
        for method in METHODS:
            runs = [dict(map(tuple, run["held_out"])) for run in _runs(record, method, words)]
            for step in exact[0]:
                losses = [run[step] for run in runs]
                apart = [run[step] - one[step] for run, one in zip(runs, exact, strict=True)]
                points += [
                    _band(method, step, losses, f"{words} words: held-out loss, nats"),
                    _band(method, step, apart, f"{words} words: less that of exact"),
                ]
    color = alt.Color("gradient:N", title=None, scale=alt.Scale(domain=list(METHODS), range=list(METHODS.values())))
    x = alt.X("step:Q", title="step")
    base = alt.Chart(alt.InlineData(values=points))
    scaled = alt.Scale(zero=False)
    band = base.mark_area(opacity=0.25).encode(
        x=x, y=alt.Y("low:Q", title=None, scale=scaled), y2="high:Q", color=color
    )
    line = base.mark_line().encode(x=x, y=alt.Y("mean:Q", title=None, scale=scaled), color=color)
    order = list(dict.fromkeys(point["panel"] for point in points))
    panel = alt.Facet("panel:N", title=None, sort=order)
    panels = alt.layer(band, line).properties(width=320, height=240).facet(panel, columns=2)
    return panels.resolve_scale(y="independent")


def densities(record: Record, alt: Any) -> Any:
    """Entries left and the error of the weight's gradient against the threshold, at some steps of a training."""
    points = []
    for point in _measured(record, 32768):
        for row in point["thresholds"]:
            common = {"threshold": row["threshold"], "step": f"step {point['step']}"}
            points.append({**common, "value": row["density"], "panel": "entries left, sampled"})
            for rule in ("sampled", "dropped"):
                panel = f"relative error of d/dweight, {rule}"
                points.append({**common, "value": row[rule]["weight"], "panel": panel})
    steps = list(dict.fromkeys(point["step"] for point in points))
    log = alt.Scale(type="log")
    chart = (
        alt.Chart(alt.InlineData(values=points))
        .mark_line(point=alt.OverlayMarkDef(size=30))
        .encode(
            x=alt.X("threshold:Q", title="threshold", scale=alt.Scale(type="log", base=2), axis=alt.Axis(format="~g")),
            y=alt.Y("value:Q", title=None, scale=log, axis=alt.Axis(format="~g")),
            color=alt.Color("step:O", title=None, sort=steps, scale=alt.Scale(scheme="viridis")),
        )
        .properties(width=230, height=230)
    )
    return chart.facet(column=alt.Column("panel:N", title=None)).resolve_scale(y="independent")


def _band(method: str, step: int, values: Sequence[float], panel: str) -> dict[str, Any]:
    spread = {"mean": mean(values), "low": min(values), "high": max(values)}
    return {"gradient": method, "step": step, "panel": panel, **spread}


def _models(record: Record) -> list[int]:
    """The numbers of words of the models that were trained, the most first."""
    return sorted({run["words"] for run in record["runs"]}, reverse=True)


def _runs(record: Record, method: str, words: int) -> list[Any]:
    """The trainings of a model by a method, with the seeds that all methods have."""
    of_model = [run for run in record["runs"] if run["words"] == words]
    seeds = [{run["seed"] for run in of_model if run["method"] == name} for name in METHODS]
    runs = (run for run in of_model if run["method"] == method and run["seed"] in set.intersection(*seeds))
    return sorted(runs, key=lambda run: run["seed"])


def _measured(record: Record, words: int) -> list[Any]:
    return [point for run in _runs(record, "exact", words) for point in run["measured"]]
