"""The losses for torch: drop-ins for those of `torch.nn.functional` and the modules of `torch.nn`.

functional.py and linear.py have the calls, modules.py the modules. Behind them autograd.py and kernels.py run the CPU
kernels on tensors, gpu_autograd.py those of the GPU, operators.py registers both with torch, and composed.py has the
same losses as formulas of torch operations for every other device; backends.py says which is for which.
linear_autograd.py, linear_kernels.py, linear_operators.py and linear_composed.py are the same for the loss of a linear
layer.
"""

from xent.torch.functional import Statistics, cross_entropy, statistics
from xent.torch.linear import linear_cross_entropy, linear_statistics
from xent.torch.modules import CrossEntropyLoss, LinearCrossEntropyLoss

__all__ = [
    "CrossEntropyLoss",
    "LinearCrossEntropyLoss",
    "Statistics",
    "cross_entropy",
    "linear_cross_entropy",
    "linear_statistics",
    "statistics",
]
