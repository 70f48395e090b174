"""How good predictions are, in which units, and which rows are to blame.

A batch of rows becomes a `ScoreState` (batch.py, with the loops of kernels.py), states are added, and their sum says
all that a `Score` reports (score.py, calibration.py). frames.py adds them up; batches.py gives the batches of files
(files.py) and of frames of many libraries (columns.py knows which column is what), arrays.py those of arrays, and in
clusters.py the workers make the states. compare.py pairs two tables row by row. sklearn.py is a front for scikit-learn.
"""

from xent.scoring.compare import Comparison, compare
from xent.scoring.frames import score
from xent.scoring.score import Score
from xent.scoring.state import ScoreState

__all__ = ["Comparison", "Score", "ScoreState", "compare", "score"]
