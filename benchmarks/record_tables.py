"""A Markdown table from a record, for each name that a marker in a document can have (markdown.py)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import markdown, sampled_tables
from benchmarks.markdown import megabytes, table, without_repetition
from xent.bench.machine import HUGE_PAGES
from xent.bench.peers import EAGER, OURS, REUSED
from xent.bench.show import number, ratio_of

Record = Mapping[str, Any]
Records = Mapping[str, Record]
"""Records by the name of their file: logits, logits_huge_pages, scaling."""

MEASURE_NAMES = {"forward_backward": "forward + backward", "forward": "forward", "memory": "memory"}
LINEAR_MEASURES = {"forward_backward": "forward + backward", "frozen": "frozen weight", "forward": "forward"}
LINEAR_PEERS = (
    "products",
    "F.cross_entropy(F.linear)",
    "F.linear_cross_entropy, chunked",
    "F.cross_entropy, deferred logits",
)


def load(folder: Path) -> dict[str, Any]:
    """The records of one device, by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def fill(text: str, records: Records) -> str:
    """The text of a document with every marked table made anew."""
    return markdown.fill(text, TABLES, lambda name: _make(name, records))


def stale(documents: Iterable[Path], records: Records) -> list[Path]:
    """The documents whose tables are not those of the records."""
    texts = {path: path.read_text(encoding="utf-8") for path in documents}
    return [path for path, text in texts.items() if fill(text, records) != text]


def digest(record: Record) -> str:
    """A short name for the content of a record."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def _make(name: str, records: Records) -> str:
    source, make = TABLES[name]
    if source in records:
        return make(records[source])
    if source.startswith("cuda_"):
        part = source.removeprefix("cuda_").replace("other", "options")
        command = f"python benchmarks/run.py {part} --device cuda"
        return f"*GPU figures are not measured yet: `{command}` measures them.*"
    return f"*Not measured yet: `python benchmarks/run.py {source}` does.*"


# ----------------------------------------------------------------------------------------------------------- the tables


def summary(record: Record) -> str:
    """The short table: ours against F.cross_entropy and the copy, a line for each case."""
    rows = []
    for case in record["cases"]:
        both = [_times(case, "forward_backward"), _times(case, "forward")]
        milliseconds = [_milliseconds(case, name, "forward_backward") for name in (OURS, EAGER)]
        copy = ratio_of(case, "forward_backward", OURS, REUSED)
        rows.append([_size(case), case["dtype"], *milliseconds, *both, copy and number(copy["median"])])
    head = ["logits", "dtype", f"`{OURS}`, ms", f"`{EAGER}`, ms", "times as fast", "forward alone", "times a copy"]
    return table(head, rows, left=2)


def headline(record: Record) -> str:
    """How long `F.cross_entropy` takes over ours, forward and backward: where it is slower, and where it is faster."""
    medians = []
    for case in record["cases"]:
        ratio = ratio_of(case, "forward_backward", EAGER, OURS)
        if ratio is not None:
            medians.append((ratio["median"], " x ".join(map(str, case["size"]))))
    slower, faster = [m for m in medians if m[0] > 1], [m for m in medians if m[0] <= 1]
    sentences = []
    if slower:
        low, high = min(slower)[0], max(slower)[0]
        sentences.append(
            f"Forward and backward, `{EAGER}` takes {number(low)} to {number(high)} times as long as `{OURS}` "
            "on the processor named below."
        )
    if faster:
        low, high, sizes = min(faster)[0], max(faster)[0], " and ".join(dict.fromkeys(size for _, size in faster))
        sentences.append(
            f"On small batches ({sizes}) it takes {number(low)} to {number(high)} times as long: there torch's "
            "own loss serves, after a microsecond of questions."
        )
    return " ".join(sentences)


def bars(record: Record) -> str:
    """What was required and what was measured."""
    rows = []
    for case in record["cases"]:
        for bar in case["bars"]:
            rows.append([_size(case), case["dtype"], *_requirement(bar), _measured(bar), _verdict(bar)])
    return table(["logits", "dtype", "measure", "required", "measured", "met"], rows, left=4)


def implementations(record: Record) -> str:
    """Every implementation on every case: milliseconds, times as long as ours, times as long as a copy."""
    rows = []
    for case in record["cases"]:
        for entry in case["contestants"]:
            rows.append([_size(case), case["dtype"], f"`{entry['name']}`", *_figures(case, entry)])
    head = ["logits", "dtype", "implementation", "forward + backward, ms", "forward, ms", "over ours", "over a copy"]
    return table(head, without_repetition(rows, 2), left=3)


def notes(record: Record) -> str:
    """The implementations, and what has to be known about them."""
    seen = {c["name"]: c["note"] for case in record["cases"] for c in case["contestants"]}
    return table(["implementation", "what it is"], [[f"`{name}`", note] for name, note in seen.items()], left=2)


def memory(record: Record) -> str:
    """Peak memory of forward and backward beside the logits, and the part that is not the gradient."""
    rows = []
    for case in record["cases"]:
        for entry in case["contestants"]:
            used = entry.get("memory") or {}
            if used:
                cells = [megabytes(used.get(measure)) for measure in ("forward_backward", "forward")]
                peak = used.get("forward_backward")
                beside = "" if peak is None else megabytes(max(0, peak - case["logits_bytes"]))
                logits = megabytes(case["logits_bytes"])
                rows.append([_size(case), case["dtype"], logits, f"`{entry['name']}`", *cells, beside])
    head = [
        "logits",
        "dtype",
        "MB",
        "implementation",
        "forward + backward, MB",
        "forward, MB",
        "beside the gradient, MB",
    ]
    return table(head, without_repetition(rows, 3), left=2)


def scaling(record: Record) -> str:
    """Nanoseconds for each logit: constant when time is linear."""
    names = list(dict.fromkeys(point["contestant"] for point in record["points"]))
    keys = list(dict.fromkeys((p["grows"], p["rows"], p["classes"], p["elements"]) for p in record["points"]))
    points = {(p["grows"], p["elements"], p["contestant"]): p for p in record["points"]}
    rows = []
    for grows, row_count, classes, elements in keys:
        cells = [_per_logit(points.get((grows, elements, name))) for name in names]
        rows.append([f"{row_count} x {classes}", f"{elements:.0e}".replace("e+0", "e"), *cells])
    left_out = sorted({f"{entry['elements']:.0e} logits: {entry['reason']}" for entry in record["left_out"]})
    after = f"\n\nLeft out: {'; '.join(left_out)}." if left_out else ""
    return table(["logits", "elements", *[f"`{name}`" for name in names]], rows, left=1) + after


def threads(record: Record) -> str:
    """Milliseconds of a forward on each kind of threads."""
    ways = list(dict.fromkeys(point["way"] for point in record["points"]))
    points = {(point["rows"], point["way"]): point for point in record["points"]}
    rows = []
    for count, classes in dict.fromkeys((point["rows"], point["classes"]) for point in record["points"]):
        cells = [number(1e3 * points[count, way]["median"]) for way in ways]
        rows.append([f"{count} x {classes}", *cells])
    return table(["logits", *[f"{way}, ms" for way in ways]], rows, left=1)


def first_call(record: Record) -> str:
    """Seconds of the first calls in a process, with caches empty and filled."""
    rows = [
        [
            p["dtype"],
            f"`{p['contestant']}`",
            p["cache"],
            *(number(p[measure]) for measure in ("forward", "forward_backward")),
        ]
        for p in record["points"]
    ]
    head = ["logits", "implementation", "caches", "forward, s", "then forward + backward, s"]
    return table(head, without_repetition(rows, 1), left=3)


def accuracy(record: Record) -> str:
    """Greatest errors of loss and gradient, ours beside torch's, in units of rounding."""
    rows = []
    for case in record["cases"]:
        cells = []
        for what, unit in (("loss", case["epsilon"]), ("gradient", case["gradient_epsilon"])):
            cells += [number(case[name][what] / unit) if name in case else "" for name in ("xent", "torch")]
        rows.append([case["dtype"], case["shape"], case["option"], *cells])
    head = ["logits", "classes", "options", f"`{OURS}` loss", "torch", f"`{OURS}` gradient", "torch"]
    return table(head, without_repetition(rows, 2), left=3)


def gpu(record: Record) -> str:
    """Every implementation on a GPU: time, share of the limit's speed, memory, and errors against float64."""
    rows = []
    for case in record["cases"]:
        (limit,) = (c["seconds"]["forward_backward"]["median"] for c in case["contestants"] if c["role"] == "limit")
        for entry in case["contestants"]:
            cells = [entry["not_available"] or "", *[""] * 5]
            if not entry["not_available"]:
                both, alone = (
                    entry["seconds"].get(measure, {}).get("median") for measure in ("forward_backward", "forward")
                )
                errors = [entry.get("loss_error"), max(entry.get("gradient_errors", ()), default=0.0)]
                cells = ["" if seconds is None else number(1e3 * seconds) for seconds in (both, alone)]
                cells += ["" if both is None else f"{limit / both:.0%}"]
                cells += [megabytes(entry.get("memory")), *[f"{e:.1e}" if e else "" for e in errors]]
            rows.append([case["shape"], case["dtype"], f"`{entry['name']}`", *cells])
    head = ["shape", "dtype", "implementation", "forward + backward, ms", "forward, ms", "of the limit", "memory, MB"]
    return (
        table([*head, "loss error", "gradient error"], without_repetition(rows, 2), left=3)
        + f"\n\nOn: {record['device']}."
    )


def gpu_bars(record: Record) -> str:
    """What was required on a GPU and what was measured."""
    rows = [
        [
            *(case["shape"], case["dtype"], bar["measure"].replace("_", " + ", 1) + f", over {bar['against']}"),
            *(f"{bar['kind']} {number(bar['bound'])}", _with_quartiles(bar), _verdict(bar)),
        ]
        for case in record["cases"]
        for bar in case["bars"]
    ]
    return table(["shape", "dtype", "measure", "required", "measured", "met"], without_repetition(rows, 2), left=3)


def primitives(record: Record) -> str:
    """Greatest errors of the functions of one number."""
    rows = [
        [
            f"`{p['name']}`",
            p["dtype"],
            f"{p['from']} to {p['to']}",
            number(p["units_in_the_last_place"]),
            f"{p['at']:.8g}",
        ]
        for p in record["primitives"]
    ]
    head = ["function", "dtype", "arguments", "greatest error, units in the last place", "at"]
    return table(head, rows, left=3)


def linear(record: Record) -> str:
    """The loss of a linear layer: milliseconds, times the products, and times as fast as the peers."""
    rows = []
    for case in record["cases"]:
        for measure, ratios in case["ratios"].items():
            seconds = case["seconds"]
            cells = [number(1e3 * seconds[f"{name}, {measure}"]["median"]) for name in (OURS, "products")]
            over = [_with_quartiles(ratios[peer]) if peer in ratios else "" for peer in LINEAR_PEERS]
            rows.append([_size(case), case["dtype"], LINEAR_MEASURES[measure], *cells, *over])
    head = ["rows x features x classes", "dtype", "measure", f"`{OURS}`, ms", "products, ms", "times the products"]
    head += [f"times as fast as `{peer}`" for peer in LINEAR_PEERS[1:]]
    return table(head, without_repetition(rows, 2), left=3)


def linear_bars(record: Record) -> str:
    """What was required of the linear loss and what was measured."""
    rows = []
    for case in record["cases"]:
        for bar in case["bars"]:
            if bar["measure"] == "memory":
                what, cells = bar["against"], [megabytes(bar["bound"]) + " MB", megabytes(bar["median"]) + " MB"]
            else:
                what = f"{LINEAR_MEASURES[bar['measure']]}, over {bar['against']}"
                cells = [f"{bar['bound']:g}", _with_quartiles(bar)]
            rows.append([case["dtype"], what, f"{bar['kind']} {cells[0]}", cells[1], _verdict(bar)])
    return table(["dtype", "measure", "required", "measured", "met"], rows, left=3)


def machine(record: Record) -> str:
    """One paragraph: where, when, with what."""
    about, versions = record["machine"], ", ".join(f"{name} {v}" for name, v in record["versions"].items())
    setting = f" with {HUGE_PAGES}=1" if about["torch_asks_for_huge_pages"] else ""
    code = f" (of xent and of torch, code for {about['code_for']} only)" if "code_for" in about else ""
    return (
        f"Measured on {record['date'][:10]}: {about['processor']}{code}, {about['cores']} cores, "
        f"{(about['memory_bytes'] or 0) / 2**30:.0f} GiB, {about['system']}, {record['threads']} threads; {versions}; "
        f"huge pages: {about['huge_pages']}; {_disturbed(record)}; "
        f"`{record['command']}`{setting}, {record['seconds']:.0f} seconds."
    )


def sharded(record: Record) -> str:
    """The sharded linear loss by the number of ranks."""
    rows = []
    for case in record["cases"]:
        measured = case["measured"]
        rows.append(
            [
                str(case["ranks"]),
                "measured" if measured else "computed",
                str(case["classes"]),
                f"{case['weight_and_gradient'] / 1e6:.1f}",
                f"{measured['peak'] / 1e6:.0f}" if measured else "",
                f"{case['handed_per_row']}",
                f"{measured['handed_per_row']:.1f}" if measured else "",
                f"{case['sent_per_row']:.0f}",
            ]
        )
    head = ["ranks", "", "classes of a rank", "weight and gradient, MB", "peak of a step, MB", "handed to sums"]
    return table([*head, "the same, counted", "sent by a ring"], rows, left=0)


def divergence(record: Record) -> str:
    """What was required of the divergences and measured."""
    (case,) = record["cases"]
    rows = []
    for bar in case["bars"]:
        is_memory = bar["measure"].startswith("memory")
        bound, found = (megabytes(bar[key]) + " MB" if is_memory else number(bar[key]) for key in ("bound", "median"))
        rows.append([bar["measure"], f"{bar['kind']} {bound}", found, "yes" if bar["met"] else "no"])
    other = case["ratios"]["JSD by log_softmax / js_divergence"]
    rows.append(["JSD by log_softmax / js_divergence", "", number(other["median"]), ""])
    return table(["median of ratios", "required", "measured", "met"], rows, left=2)


def bars_of(record: Record) -> str:
    """What was measured of each piece of work, what was required, and whether it is met."""
    rows = []
    for bar in record["cases"][0]["bars"]:
        found = _with_quartiles(bar) if "low" in bar else number(bar["median"])
        required = f"{bar['kind']} {bar['bound']:g}" if bar["bound"] is not None else ""
        rows.append([bar["measure"], found, required, _verdict(bar) if required else ""])
    return table(["", "measured", "required", "met"], rows, left=1)


def on_a_gpu(record: Record) -> str:
    """The other losses on a GPU beside torch's formulas."""
    rows = []
    for case in record["cases"]:
        milliseconds = [number(1e3 * case["seconds"][name]["median"]) for name in (OURS, "torch")]
        memory = [megabytes(case["memory"][name]) for name in (OURS, "torch")]
        size = " x ".join(map(str, case["size"]))
        rows.append([case["name"], size, case["dtype"], *milliseconds, _with_quartiles(case["times_as_fast"]), *memory])
    head = ["loss", "size", "dtype", f"`{OURS}`, ms", "torch, ms", "times as fast", f"`{OURS}`, MB", "torch, MB"]
    return table(head, rows, left=3)


def scoring(record: Record) -> str:
    """`xent.score` beside the mean of Polars and of scikit-learn, and what was required."""
    rows = []
    for case in record["cases"]:
        size = f"{case['kind']} {case['rows']:,} x {case['classes']:,}"
        for ratio in case["ratios"]:
            seconds = [number(case["seconds"][ratio[role]]["median"]) for role in ("ours", "peer")]
            what = "times its time" if ratio["direction"] == "at most" else "times as fast"
            measured = f"{number(ratio['median'])} ({number(ratio['low'])}–{number(ratio['high'])}) {what}"
            names = [f"`{ratio['ours']}`", ratio["peer"]]
            required = f"{ratio['direction']} {ratio['bar']:g}"
            rows.append([size, *names, *seconds, measured, required, "yes" if ratio["met"] else "no"])
    head = ["rows x classes", "ours", "against", "ours, s", "it, s", "ours is", "required", "met"]
    return table(head, rows, left=3)


def scoring_memory(record: Record) -> str:
    """Peak memory of a process that scores a file, everything included."""
    wide = [(f"parquet {c['rows']:,} x {c['classes']}", c["peak_bytes"]) for c in record["cases"] if "peak_bytes" in c]
    narrow = [(f"narrow {n['rows']:,}", n["peak_bytes"], n["seconds"]) for n in record["narrow"]]
    rows = [[name, megabytes(peak), ""] for name, peak in wide]
    rows += [[name, megabytes(peak), number(seconds)] for name, peak, seconds in narrow]
    return table(["file", "peak memory of the process, MB", "first call in it, s"], rows, left=1)


def binary(record: Record) -> str:
    """The binary loss beside torch's, and what was required."""
    rows = []
    for case in record["cases"]:
        (bar,) = case["bars"]
        milliseconds = [_milliseconds(case, name, "forward_backward") for name in (OURS, bar["against"])]
        forward = ratio_of(case, "forward", bar["against"], OURS)
        copy = ratio_of(case, "forward_backward", OURS, REUSED)
        cells = [_with_quartiles(bar), f"{bar['kind']} {bar['bound']:g}", _verdict(bar)]
        cells += [_with_quartiles(forward) if forward else "", number(copy["median"]) if copy else ""]
        rows.append([_size(case), case["dtype"], *milliseconds, *cells])
    head = ["logits", "dtype", f"`{OURS}`, ms", "torch's, ms", "times as fast", "required", "met", "forward alone"]
    return table([*head, "times a copy"], rows, left=2)


TABLES: dict[str, tuple[str, Callable[[Record], str]]] = {
    "headline": ("logits", headline),
    "summary": ("logits", summary),
    "bars": ("logits", bars),
    "implementations": ("logits", implementations),
    "notes": ("logits", notes),
    "memory": ("logits", memory),
    "machine": ("logits", machine),
    "xeon": ("xeon_logits", summary),
    "xeon machine": ("xeon_logits", machine),
    "avx2": ("logits_avx2", summary),
    "avx2 bars": ("logits_avx2", bars),
    "avx2 machine": ("logits_avx2", machine),
    "huge pages": ("logits_huge_pages", implementations),
    "scaling": ("scaling", scaling),
    "threads": ("threads", threads),
    "first call": ("first_call", first_call),
    "accuracy": ("accuracy", accuracy),
    "cuda logits": ("cuda_logits", gpu),
    "cuda logits bars": ("cuda_logits", gpu_bars),
    "cuda linear": ("cuda_linear", gpu),
    "cuda linear bars": ("cuda_linear", gpu_bars),
    "primitives": ("accuracy", primitives),
    "linear": ("linear", linear),
    "linear bars": ("linear", linear_bars),
    "linear machine": ("linear", machine),
    "sampled": ("sampled", sampled_tables.speed),
    "sampled machine": ("sampled", machine),
    "sampled xeon": ("xeon_sampled", sampled_tables.speed),
    "sampled xeon machine": ("xeon_sampled", machine),
    "sampled errors": ("sampled_training", sampled_tables.errors),
    "sampled training": ("sampled_training", sampled_tables.training),
    "sampled training machine": ("sampled_training", sampled_tables.processors),
    "sampled errors of fewer words": ("sampled_training", sampled_tables.errors_of_fewer),
    "binary": ("binary", binary),
    "binary machine": ("binary", machine),
    "divergence": ("divergence", divergence),
    "divergence machine": ("divergence", machine),
    "contrastive": ("contrastive", bars_of),
    "contrastive machine": ("contrastive", machine),
    "options": ("options", bars_of),
    "options machine": ("options", machine),
    "cuda other": ("cuda_other", on_a_gpu),
    "scoring": ("scoring", scoring),
    "scoring memory": ("scoring", scoring_memory),
    "scoring machine": ("scoring", machine),
    "parallel": ("parallel", sharded),
}
"""By the name of a marker: the record that the table needs, and the function that makes it."""


# ------------------------------------------------------------------------------------------------------------ the cells


def _disturbed(record: Record) -> str:
    shares = [case["share_of_others"] for case in record.get("cases", ()) if case["share_of_others"] is not None]
    return f"other processes used at most {max(shares):.1%} of the processor" if shares else "other processes unknown"


def _size(case: Record) -> str:
    return f"{case['shape']} {' x '.join(str(length) for length in case['size'])}"


def _with_quartiles(ratio: Record) -> str:
    return f"{number(ratio['median'])} ({number(ratio['low'])}–{number(ratio['high'])})"


def _times(case: Record, measure: str) -> str:
    ratio = ratio_of(case, measure, EAGER, OURS)
    return _with_quartiles(ratio) if ratio else ""


def _milliseconds(case: Record, name: str, measure: str) -> str:
    (entry,) = (each for each in case["contestants"] if each["name"] == name)
    spread = entry["seconds"].get(measure)
    return number(1e3 * spread["median"]) if spread else ""


def _figures(case: Record, entry: Record) -> list[str]:
    """The last four columns of `implementations`; if it is not available, the reason."""
    if entry["not_available"]:
        return [entry["not_available"], "", "", ""]
    name = entry["name"]
    if entry["role"] == "limit":
        return [_milliseconds(case, name, "copy"), "", "", ""]
    measure = "forward_backward" if "forward_backward" in entry["seconds"] else "forward"
    ours, copy = ratio_of(case, measure, name, OURS), ratio_of(case, measure, name, REUSED)
    cells = [_milliseconds(case, name, "forward_backward"), _milliseconds(case, name, "forward")]
    return [*cells, _with_quartiles(ours) if ours else "", number(copy["median"]) if copy else ""]


def _requirement(bar: Record) -> list[str]:
    if bar["measure"] == "memory":
        return [f"memory: {bar['against']}", f"at most {megabytes(bar['bound'])} MB"]
    what = f"{MEASURE_NAMES[bar['measure']]}, "
    if bar["kind"] == "at most":
        aim = f" (aim: {bar['aim']:g})" if bar["aim"] else ""
        return [what + "times a copy", f"at most {bar['bound']:g}{aim}"]
    return [what + f"times as fast as `{bar['against']}`", f"at least {bar['bound']:g}"]


def _verdict(bar: Record) -> str:
    return "yes" if bar["met"] else f"no, by {number(bar['missed_by'])}x"


def _measured(bar: Record) -> str:
    return f"{megabytes(bar['median'])} MB" if bar["measure"] == "memory" else _with_quartiles(bar)


def _per_logit(point: Record | None) -> str:
    return "" if point is None else number(1e9 * point["median"] / point["elements"])
