"""Why cross-entropy and not squared error: the experiment behind `xent why`, on real data.

data.py loads and prepares a table, gradient_descent.py trains models with the gradients of losses.py, experiment.py
compares the two losses (measures.py, explain.py), examples.py picks rows to show, and record.py is the result, which
`why.json` holds. predictions.py computes both gradients on the predictions of another model.
"""

from xent.errors import missing_package

try:
    from xent.why.data import BUILT_IN, Dataset, load
    from xent.why.experiment import run
    from xent.why.record import Record, Settings
except ModuleNotFoundError as error:
    raise missing_package(error, "xent.why", "cli") from None

__all__ = ["BUILT_IN", "Dataset", "Record", "Settings", "load", "run"]
