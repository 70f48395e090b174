"""Kernels of the CPU, written in Python and compiled by Numba when they are first called.

    cross_entropy.py       the calls: forward, backward, forward_backward, statistics
    statistics_gradient.py the gradient of the statistics
    shards.py              the calls for some of the classes of a row, while the others lie elsewhere
    accumulation.py        sums of partial results that are rounded once
    kernels.py             what a thread does with its rows, tile by tile
    along_classes.py       the loops when the classes of a row are enough to fill the vector registers
    across_positions.py    the loops when they are not, and when the class axis is not the last
    tile.py                what both keep for the rows they are working on
    blocks.py              the steps that both share: one pass over a block that lies in the first-level cache
    primitives.py          exp, log, tanh, softcap and its derivative, in one register
    formats.py             bfloat16 and float16 in memory
    streaming.py           reading ahead of the work, and stores past the caches
    transposition.py       matrices of a few columns, transposed in registers
    threads.py             row ranges over the cores: whose threads, and how many
    team.py                `row_kernel`, the decorator of kernels whose rows threads share
    compilation.py         `kernel`, of other kernels: what is compiled how, and where it is kept on disk

Kernels neither validate nor reduce (targets.py and reduction.py do).
"""
