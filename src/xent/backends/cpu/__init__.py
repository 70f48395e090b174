"""The CPU kernels, written in Python and compiled by Numba when they are first called.

    backend.py             the calls: forward, backward, forward_backward, statistics
    statistics_gradient.py the gradient of the statistics
    shards.py              the calls for one shard of the classes
    accumulation.py        sums of partial results that are rounded once
    kernels.py             what a thread does with its rows, tile by tile
    along_classes.py       the loops when the classes of a row are enough to fill the vector registers
    across_positions.py    the loops when they are not, and when the class axis is not the last
    tile.py                the data of the rows that are processed together, for both
    blocks.py              the steps that both share: one pass over a block in the first-level cache
    binary*.py, logistic.py  the binary cross-entropy: elements in blocks, softplus and sigmoid
    primitives.py          exp, log, tanh, softcap and its derivative, of one number
    formats.py             bfloat16 and float16 in memory
    streaming.py           prefetching, and stores that bypass the caches
    transposition.py       matrices of a few columns, transposed in registers
    threads.py             which threads share the rows of a call, and how many
    team.py                `row_kernel`, the decorator of kernels whose rows threads share
    compilation.py         `kernel`, `device`, `sequence`: the decorators of all other functions
    disk_cache.py          compiled kernels on disk
    _numba/                every use of the internals of Numba and llvmlite

Kernels neither validate nor reduce (targets.py and reduction.py do).
"""
