"""Why cross-entropy and not squared error: the experiment behind `xent why`, on real data.

data.py loads and prepares a table, gradient_descent.py trains models on the gradients of `xent.numpy`, experiment.py
compares the two losses fairly, record.py is what it returns (and what `why.json` holds).
"""

from xent.why.data import BUILT_IN, Dataset, load
from xent.why.experiment import run
from xent.why.record import Record, Settings

__all__ = ["BUILT_IN", "Dataset", "Record", "Settings", "load", "run"]
