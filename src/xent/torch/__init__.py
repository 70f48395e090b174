"""The losses for torch: drop-ins for `torch.nn.functional.cross_entropy` and `torch.nn.CrossEntropyLoss`.

functional.py has the calls, modules.py the modules. Behind them autograd.py and kernels.py run the CPU kernels on
tensors, gpu_autograd.py those of the GPU, operators.py registers both with torch, and composed.py has the same losses
as formulas of torch operations for every other device; backends.py says which is for which.
"""

from xent.torch.functional import Statistics, cross_entropy, statistics
from xent.torch.modules import CrossEntropyLoss

__all__ = ["CrossEntropyLoss", "Statistics", "cross_entropy", "statistics"]
