"""Kernels of the GPU, written in Python and compiled by Triton when they are first called.

    cross_entropy.py        the calls: forward, backward, forward_backward, statistics
    kernels.py              the kernels: what one program does with its tile, from labels to results
    tile.py                 the steps on a tile: a few positions, a block of classes at a time
    primitives.py           exp, log, tanh, softcap and its derivative, the running maximum
    shapes.py               how large a tile is, and how many warps work on it
    statistics_gradient.py  the gradient of the statistics, call and kernel
    linear.py               the steps of the linear loss: matrix products by torch, the kernels in between
    linear_statistics.py    the same for the statistics of a linear layer
    on_chip.py              losses of a linear layer whose logits are never in memory
    on_chip_kernels.py      its kernels: log-sum-exps in the epilogue of a matrix product

Names and order are those of xent.backends.cpu (docs/design.md compares the two). Kernels neither validate nor reduce (targets.py
and reduction.py do), and never make the host wait. With TRITON_INTERPRET=1 they run on CPU tensors, in NumPy.
"""
