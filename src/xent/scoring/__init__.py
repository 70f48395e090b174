"""How good predictions are, in which units, and which rows are to blame.

A batch of rows becomes a `ScoreState` (batch.py, with the loops of kernels.py), states are added, and their sum says all
that a `Score` reports (score.py, calibration.py). frames.py and files.py find the batches: in files, in frames of many
libraries, and in the partitions of a cluster.
"""

from xent.scoring.score import Score
from xent.scoring.state import ScoreState

__all__ = ["Score", "ScoreState"]
