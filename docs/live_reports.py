"""Make the two reports that the site shows, as their commands do: `xent why` on digits, and `xent score`.

.venv-docs/bin/python docs/live_reports.py build/live
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict


def predictions() -> pl.DataFrame:
    """Cross-validated predictions of a logistic regression that is a little too confident, on handwritten digits."""
    images, labels = load_digits(return_X_y=True)
    model = LogisticRegression(C=10.0, max_iter=300)
    probabilities = cross_val_predict(model, images / 16, labels, cv=5, method="predict_proba")
    columns = {f"p_{digit}": probabilities[:, digit] for digit in range(10)}
    part = np.arange(len(labels)) * 3 // len(labels) + 1  # of the data, in its order: other people wrote them
    return pl.DataFrame({"image": np.arange(len(labels)), "digit": labels, "part": part, **columns})


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    table = out / "digits.parquet"
    predictions().write_parquet(table)
    xent = [sys.executable, "-m", "xent"]
    options = ["--label", "digit", "--proba", "p_*", "--id", "image", "--by", "part", "--html", "score.html"]
    subprocess.run([*xent, "score", table.name, *options], cwd=out, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*xent, "why", "--out", "."], cwd=out, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
