"""Make the tables and the plots in README.md and docs/ anew from benchmarks/results/, or check that they are not stale.

python benchmarks/tables.py           writes them
python benchmarks/tables.py --check   exits with 1 if one of them is stale, and says which
"""

from __future__ import annotations

import sys
from pathlib import Path

from xent.benchmark import tables

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "docs/performance.md", "docs/accuracy.md")
PLOTS = {"docs/scaling.svg": "scaling", "docs/linear_error.svg": "linear"}
"""The record that each is drawn from."""


def results(device: str, root: Path = ROOT) -> Path:
    return root / "benchmarks" / "results" / device


def stale(device: str = "cpu", root: Path = ROOT) -> list[str]:
    from xent.benchmark.plots import made_from

    records = tables.load(results(device, root))
    found = [str(path.relative_to(root)) for path in tables.stale([root / name for name in DOCUMENTS], records)]
    for name, record in PLOTS.items():
        plot = root / name
        drawn = plot.read_text(encoding="utf-8") if plot.exists() else ""
        if record in records and not drawn.startswith(made_from(records[record])):
            found.append(name)
    return found


def write(device: str = "cpu", root: Path = ROOT) -> None:
    from xent.benchmark.plots import linear_error_svg, scaling_svg

    draw = {"scaling": scaling_svg, "linear": linear_error_svg}
    records = tables.load(results(device, root))
    for name in DOCUMENTS:
        path = root / name
        path.write_text(tables.fill(path.read_text(encoding="utf-8"), records), encoding="utf-8")
    for name, record in PLOTS.items():
        if record in records:
            (root / name).write_text(draw[record](records[record]), encoding="utf-8")


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        found = stale()
        for name in found:
            print(f"{name} is stale: python benchmarks/tables.py", file=sys.stderr)
        sys.exit(1 if found else 0)
    write()
