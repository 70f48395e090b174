"""Classes sharded over the processes of a group: the losses and statistics of xent.torch, with `group=`."""

from xent.torch.parallel.api import (
    Traffic,
    cross_entropy,
    linear_cross_entropy,
    linear_statistics,
    statistics,
    traffic,
)

__all__ = ["Traffic", "cross_entropy", "linear_cross_entropy", "linear_statistics", "statistics", "traffic"]
