"""What computes the losses: one implementation of `Backend` for each kind of device.

protocol.py        what a backend offers
cpu/               Numba kernels: NumPy arrays, and torch tensors in the CPU's memory
gpu/               Triton kernels: torch tensors on CUDA, ROCm and XPU
binary_protocol.py what a backend offers for binary targets, in cpu/, gpu/ and formula_binary.py
formula.py         torch operations, for every other device and wherever torch has to see through
divergence_protocol.py  the same for divergences of two rows of logits; divergence_formula.py has their formulas
choice.py          which of them computes for a tensor
shard.py           the part of a loss whose classes are sharded over processes; formula_shards.py has its formulas
tensor_steps.py    the matrix products of the linear loss, for all devices but the CPU
"""

from xent.backends.protocol import Backend, Statistics

__all__ = ["Backend", "Statistics"]
