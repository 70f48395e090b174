"""How good predictions are, in which units, and which rows contribute most to the loss.

    files.py      which files, of which kind                 readers.py      tables and frames, in batches
    tables.py     text by dialect.py, and lazy tables        array_rows.py   arrays; joined.py: labels of their own
    form.py       which column is what                       labels.py       which label is which class
    columns.py    a column as an array                       clusters.py     Dask and Spark; spark_columns.py
    batch.py      the score of each row of a piece           settle.py       what a second look finds out: rounding.py
    diagnosis.py  why rows cannot be scored                  limits.py, ids.py
    state.py      `ScoreState`, a sum over rows              sums.py         compensated sums; selection.py
    rows.py       the compiled loops that score rows         tallies.py      those that add up; one_vs_rest.py, loops.py
    score.py      `Score`, what a state says                 figures.py      computes it; calibration.py
    api.py        `score`; call.py                           compare.py      `compare`; row_table.py
    intervals.py  means and their intervals                  multilabel.py, segments.py, grouped_sums.py
    metric.py     `Metric`, for loops of one's own           sklearn.py      metrics and scorers for scikit-learn
    recalibration.py  `Calibrator`; fitting.py

`score` returns a `Score`, `compare` a `Comparison`; notebooks show both as tables.
"""

from xent.errors import missing_package

try:
    from xent.scoring.api import score
    from xent.scoring.compare import Comparison, compare
    from xent.scoring.metric import Metric
    from xent.scoring.recalibration import Calibrator
    from xent.scoring.score import Score
    from xent.scoring.state import ScoreState
except ModuleNotFoundError as error:
    raise missing_package(error, "xent.scoring", "cli") from None

__all__ = ["Calibrator", "Comparison", "Metric", "Score", "ScoreState", "compare", "score"]
