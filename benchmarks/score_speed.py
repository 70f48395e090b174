"""`xent.score` beside a bare Polars mean log loss and `sklearn.metrics.log_loss`: time, and peak memory.

    python -m benchmarks.score_speed PATH LABEL PROBA       scores a file, and prints its peak memory as JSON

The whole score is measured, with histograms, decomposition and temperature; its peers compute one mean. Memory is the
peak of a process of its own (Linux), imports and compiled code included.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.processes import answer_of, process_bytes
from xent.bench.machine import OtherProcesses, describe, limited_threads
from xent.bench.run import Progress
from xent.bench.timing import Settings, Spread, interleaved, ratios, rounded

SCHEMA = 1
ROWS, CLASSES = 4_000_000, 10
ARRAYS = ((1_000_000, 10), (10_000, 10_000))
NARROW = (10_000_000, 100_000_000)
OURS, POLARS, SKLEARN = "xent.score", "Polars, mean only", "sklearn.metrics.log_loss"
MEAN = "xent.scoring.sklearn.log_loss"
"""The mean alone, as in scikit-learn."""
READING = "Polars, reading only"
CSV_ROWS = 1_000_000
BARS = {
    "parquet": ((OURS, POLARS, "at most", 2.2), (OURS, SKLEARN, "at least", 6.0)),
    "csv": ((OURS, READING, "at most", 1.5),),
    "arrays": ((MEAN, SKLEARN, "at least", 10.0), (OURS, SKLEARN, "at least", 6.0)),
}
"""(ours, peer, direction, bar): "at most" bounds our time over the peer's, "at least" the peer's over ours."""
MEMORY_BAR = 420_000_000


def run_scoring(
    *, threads: int = 2, command: str = "", progress: Progress = lambda *_: None, scale: float = 1.0
) -> dict[str, Any]:
    """Measure all cases; `scale` below 1 makes them smaller, for tests."""
    start = time.perf_counter()
    # The first calls, which compare the losses, are the warm-up.
    settings = Settings(rounds=5, least_rounds=3, seconds_per_case=15.0, warm_ups=0)
    with tempfile.TemporaryDirectory() as folder, limited_threads(threads):
        rows = int(ROWS * scale)
        path = Path(folder) / "predictions.parquet"
        _write_predictions(path, rows)
        cases = [_case("parquet", rows, CLASSES, _of_file(path), settings)]
        progress("scoring", 1, 5)
        cases[0]["peak_bytes"] = _peak(path, "y", "p_*")
        path.unlink()
        rows = int(CSV_ROWS * scale)
        cases.append(_case("csv", rows, CLASSES, _of_csv(Path(folder) / "predictions.csv", rows), settings))
        progress("scoring", 2, 5)
        for done, (n, classes) in enumerate(ARRAYS, 3):
            cases.append(_case("arrays", int(n * scale), classes, _of_arrays(int(n * scale), classes), settings))
            progress("scoring", done, 5)
        narrow = [_narrow(Path(folder), int(n * scale)) for n in NARROW]
        progress("scoring", 5, 5)
    return {
        "record": "xent bench scoring",
        "schema": SCHEMA,
        "device": "cpu",
        **describe(command, threads),
        "seconds": round(time.perf_counter() - start, 1),
        "settings": asdict(settings),
        "polars": pl.__version__,
        "cases": cases,
        "narrow": narrow,
    }


def missed(record: Mapping[str, Any]) -> list[str]:
    """A sentence for each figure that misses its bar."""
    sentences = []
    for case in record["cases"]:
        for ratio in case["ratios"]:
            if not ratio["met"]:
                size = f"{case['kind']} {case['rows']} x {case['classes']}"
                measured = f"{ratio['ours']} against {ratio['peer']}: {ratio['median']:.2f}"
                sentences.append(f"{size}: {measured}, required {ratio['direction']} {ratio['bar']:g}")
        if case.get("peak_bytes", 0) > MEMORY_BAR:
            peak, bar = (f"{count / 1e6:.0f}" for count in (case["peak_bytes"], MEMORY_BAR))
            sentences.append(f"parquet: {peak} MB, required at most {bar}")
    return sentences


def _case(
    kind: str, rows: int, classes: int, calls: Mapping[str, Callable[[], float]], settings: Settings
) -> dict[str, Any]:
    """Interleaved times of all implementations, which have to agree on the loss."""
    losses = {name: call() for name, call in calls.items()}
    if not all(math.isclose(loss, losses[OURS], rel_tol=1e-9) for loss in losses.values()):
        raise RuntimeError(f"implementations do not compute the same: {losses}")
    others = OtherProcesses()
    seconds = interleaved(dict(calls), settings)
    return {
        "kind": kind,
        "rows": rows,
        "classes": classes,
        "loss": losses[OURS],
        "share_of_others": others.share(),
        "seconds": {name: asdict(Spread.of(samples)) for name, samples in seconds.items()},
        "samples": {name: [rounded(s) for s in samples] for name, samples in seconds.items()},
        "ratios": [_ratio(seconds, *bar) for bar in BARS[kind]],
    }


def _ratio(seconds: Mapping[str, list[float]], ours: str, peer: str, direction: str, bar: float) -> dict[str, Any]:
    """The ratio of a bar, formed round by round, and whether it is met."""
    sides = (seconds[ours], seconds[peer]) if direction == "at most" else (seconds[peer], seconds[ours])
    spread = Spread.of(ratios(*sides))
    met = spread.median <= bar if direction == "at most" else spread.median >= bar
    return {"ours": ours, "peer": peer, "direction": direction, "bar": bar, "met": met, **asdict(spread)}


def _of_file(path: Path) -> dict[str, Callable[[], float]]:
    from sklearn.metrics import log_loss

    from xent.scoring import score

    columns = [f"p_{k}" for k in range(CLASSES)]

    def polars() -> float:
        of_label: Any = pl.when(pl.col("y") == 0).then(pl.col(columns[0]))
        for k, name in enumerate(columns[1:], 1):
            of_label = of_label.when(pl.col("y") == k).then(pl.col(name))
        mean = pl.scan_parquet(path).select((0.0 - of_label.log()).mean()).collect(engine="streaming")
        return float(mean.item())

    def sklearn() -> float:
        table = pl.read_parquet(path)
        return float(log_loss(table["y"].to_numpy(), table.select(columns).to_numpy()))

    return {OURS: lambda: score(path, "y", proba="p_*").cross_entropy.nats, POLARS: polars, SKLEARN: sklearn}


def _of_csv(path: Path, rows: int) -> dict[str, Callable[[], float]]:
    """A text of all digits; what Polars reads of it has no loss, so that the call returns ours."""
    from xent.scoring import score

    labels, p = _predictions(rows, CLASSES, 0)
    pl.DataFrame({"y": labels, **{f"p_{k}": p[:, k] for k in range(CLASSES)}}).write_csv(path)
    loss = score(path, "y", proba="p_*").cross_entropy.nats

    def reading() -> float:
        pl.read_csv(path)
        return loss

    return {OURS: lambda: score(path, "y", proba="p_*").cross_entropy.nats, READING: reading}


def _of_arrays(rows: int, classes: int) -> dict[str, Callable[[], float]]:
    from sklearn.metrics import log_loss

    from xent.scoring import score
    from xent.scoring.sklearn import log_loss as mean_only

    labels, p = _predictions(rows, classes, 0)
    names = list(range(classes))
    return {
        MEAN: lambda: mean_only(labels, p, labels=names),
        OURS: lambda: score(p, labels).cross_entropy.nats,
        SKLEARN: lambda: float(log_loss(labels, p, labels=names)),
    }


def _predictions(rows: int, classes: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    p = rng.standard_normal((rows, classes))
    np.exp(p, out=p)
    p /= p.sum(axis=1, keepdims=True)
    return rng.integers(0, classes, rows), p


def _write_predictions(path: Path, rows: int) -> None:
    labels, p = _predictions(rows, CLASSES, 0)
    pl.DataFrame({"y": labels, **{f"p_{k}": p[:, k] for k in range(CLASSES)}}).write_parquet(path)


def _narrow(folder: Path, rows: int) -> dict[str, Any]:
    """Rows with nothing but a log-probability: time, and peak memory, which should not grow with the rows."""
    path = folder / "narrow.parquet"
    losses = np.random.default_rng(0).standard_exponential(rows)
    pl.DataFrame({"logp": np.negative(losses, out=losses)}).write_parquet(path)
    answer = _scored(path, "", "logp")
    path.unlink()
    return {"rows": rows, "seconds": answer["seconds"], "peak_bytes": answer["peak_bytes"]}


def _peak(path: Path, label: str, proba: str) -> int:
    return int(_scored(path, label, proba)["peak_bytes"])


def _scored(path: Path, label: str, columns: str) -> dict[str, Any]:
    """Score a file in a process of its own."""
    return answer_of("score_speed", str(path), label, columns, description=f"scoring {path}")


def _main(path: str, label: str, columns: str) -> None:
    from xent.scoring import score

    start = time.perf_counter()
    if label:
        score(path, label, proba=columns)
    else:
        score(path, log_prob=columns)
    seconds = time.perf_counter() - start
    # Not ru_maxrss, which a process inherits from its parent.
    peak = process_bytes("VmHWM")
    print(json.dumps({"seconds": round(seconds, 3), "peak_bytes": peak}))


if __name__ == "__main__":
    _main(*sys.argv[1:4])
