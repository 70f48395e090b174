"""Kernels of the GPU, written in Python and compiled by Triton when they are first called.

    backend.py     the `Backend`: forward, backward, forward_backward, statistics, statistics_gradient
    kernels.py     the kernels: what one program does with its tile, from labels to results
    tile.py        the options as numbers, and the steps on a tile: a few positions, a block of classes at a time
    binary_backend.py, binary_kernels.py  the binary cross-entropy: elements in blocks
    order.py       maximum, rank and entropy, for the statistics
    primitives.py  exp, log, tanh, softcap and its derivative, the running maximum
    shapes.py      how large a tile is, and how many warps work on it

Names and order are those of xent.backends.cpu (docs/design.md compares the two). Kernels neither validate nor reduce
(checks.py and reduction.py do), and never make the host wait. With TRITON_INTERPRET=1 they run on CPU tensors, in
NumPy.
"""
