"""How good predictions are, in which units, and which rows contribute most to the loss.

    readers.py    files, frames and arrays, in pieces        clusters.py   Dask and Spark
    form.py       which column is what                       batch.py      the score of each row of a piece
    state.py      `ScoreState`, a sum over rows              loops.py      the compiled loops; sums.py, selection.py
    score.py      `Score`, what a state says                 figures.py    computes it; calibration.py
    api.py        `score`     compare.py   `compare`         intervals.py  means and their intervals
    recalibration.py  `Calibrator`; fitting.py               sklearn.py    metrics and scorers for scikit-learn
    metric.py     `Metric`, for loops of one's own           multilabel.py, segments.py, grouped_sums.py

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
