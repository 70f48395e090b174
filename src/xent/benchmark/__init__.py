"""Speed and memory of the losses, beside their peers and beside the limit: a copy of the logits.

    shapes.py     what is measured, by name; tests use the same names
    peers.py      who is measured: ours, the peers, the copy
    timing.py     interleaved rounds, medians and quartiles of times and of their ratios
    memory.py     peak memory of each contestant in its own process
    bars.py       the figures that have to be reached
    run.py        all of it for some shapes, as one record that JSON can hold
    scaling.py    time against the number of elements
    threads.py    who shares the rows of a call
    first_call.py how long kernels take to compile
    scoring.py    `xent.score` against a bare mean
    machine.py    the machine and the versions
    tables.py     Markdown tables from records, between markers in the documents
    plots.py      the plot of scaling.py's record
    show.py       a record on the terminal

`benchmarks/run.py` writes the records into benchmarks/results/, and `xent bench` shows one on the terminal.
"""

from xent.benchmark.run import run
from xent.benchmark.shapes import DEVICES, SHAPES, Shape

__all__ = ["DEVICES", "SHAPES", "Shape", "run"]
