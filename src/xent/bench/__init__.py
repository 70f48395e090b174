"""`xent bench`: the loss of logits beside its peers and beside the limit, a copy of the logits.

    shapes.py   the shapes, by name
    peers.py    the implementations that are measured
    timing.py   interleaved rounds; medians and quartiles of times and of their ratios
    run.py      all implementations on some shapes, as one record that JSON can hold
    machine.py  the machine, the versions and the number of threads
    show.py     a record on the terminal

The developers' measurements (memory, accuracy, the linear loss, scores, GPUs) are in benchmarks/, outside the package.
"""

from xent.bench.run import run
from xent.bench.shapes import SHAPES, Shape

__all__ = ["SHAPES", "Shape", "run"]
