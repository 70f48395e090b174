"""Measure the sharded linear loss over 1, 2 and 4 processes, write the record, and make the table in docs/ anew.

python benchmarks/parallel.py [FILE]      FILE instead of the committed record, and the table is left alone
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tables

from xent.benchmark.parallel import run_parallel


def main() -> None:
    record = run_parallel(command=" ".join(["python", "benchmarks/parallel.py", *sys.argv[1:]]))
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else tables.results("cpu") / "parallel.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"Written: {path}")
    if len(sys.argv) == 1:
        tables.write("cpu")


if __name__ == "__main__":
    main()
