"""Make the tables and plots in README.md and docs/ anew from benchmarks/results/, or check that they are not stale.

python benchmarks/tables.py           writes them
python benchmarks/tables.py --check   exits with 1 if one of them is stale, and names it
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import this folder as the package `benchmarks`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import record_tables

ROOT = Path(__file__).resolve().parents[1]
HOW_TO = tuple(f"how-to/{name}" for name in ("contrastive", "distillation", "imbalanced", "multi_label"))
NAMES = ("performance", "accuracy", "scoring", "parallel", "sampled", *HOW_TO)
DOCUMENTS = ("README.md", *(f"docs/{name}.md" for name in NAMES))
PLOTS = {
    "docs/contrastive.svg": ("contrastive", "beside_torch_svg"),
    "docs/distillation.svg": ("divergence", "beside_torch_svg"),
    "docs/imbalanced.svg": ("options", "options_svg"),
    "docs/multi_label.svg": ("binary", "beside_torch_svg"),
    "docs/sampled_curves.svg": ("sampled_training", "sampled_curves_svg"),
    "docs/sampled_densities.svg": ("sampled_training", "sampled_densities_svg"),
    "docs/speed.svg": ("logits", "speed_svg"),
    "docs/scaling.svg": ("scaling", "scaling_svg"),
    "docs/threads.svg": ("threads", "threads_svg"),
    "docs/linear_error.svg": ("linear", "linear_error_svg"),
}
"""By the path of a plot: the record that it is drawn from, and the function of plots.py that draws it."""


def results(device: str, root: Path = ROOT) -> Path:
    """The folder of a device's records."""
    return root / "benchmarks" / "results" / device


def records_of(device: str, root: Path) -> dict[str, Any]:
    """The records of the device, and those of a GPU and of a Xeon as "cuda_" or "xeon_" and their name."""
    found = record_tables.load(results(device, root))
    for prefix, folder in (("cuda", "cuda"), ("xeon", "cpu-xeon")):
        if folder != device:
            others = record_tables.load(results(folder, root))
            found |= {f"{prefix}_{name}": record for name, record in others.items()}
    return found


def stale(device: str = "cpu", root: Path = ROOT) -> list[str]:
    """The documents and plots that are not those of the records."""
    from benchmarks.plots import made_from

    records = records_of(device, root)
    documents = record_tables.stale([root / name for name in DOCUMENTS], records)
    names = [str(path.relative_to(root)) for path in documents]
    for name, (record, _) in PLOTS.items():
        plot = root / name
        drawn = plot.read_text(encoding="utf-8") if plot.exists() else ""
        if record in records and not drawn.startswith(made_from(records[record])):
            names.append(name)
    return names


def write(device: str = "cpu", root: Path = ROOT) -> None:
    """Replace the tables and plots."""
    from benchmarks import plots

    records = records_of(device, root)
    for name in DOCUMENTS:
        path = root / name
        path.write_text(record_tables.fill(path.read_text(encoding="utf-8"), records), encoding="utf-8")
    for name, (record, draw) in PLOTS.items():
        if record in records:
            (root / name).write_text(getattr(plots, draw)(records[record]), encoding="utf-8")


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        stale_names = stale()
        for name in stale_names:
            print(f"{name} is stale: python benchmarks/tables.py", file=sys.stderr)
        sys.exit(1 if stale_names else 0)
    write()
