"""Log-probability, entropy, log-sum-exp, argmax and rank of the rows of a linear layer, in a fixed workspace.

xent.linear.statistics again: the driver of the loss with another visit to the logits of a chunk. The logits are made
again for the gradient: what arrives from above is known only then.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xent.backends.gpu import cross_entropy as gpu
from xent.backends.gpu.linear import Device
from xent.backends.gpu.statistics_gradient import statistics_gradient


class StatisticsDevice(Device):
    """The steps for the statistics and their gradients."""

    found: gpu.Statistics
    """Of all rows, written by `visit`; its log-sum-exps are `lse`."""
    entropy: Tensor
    upstream: tuple[Tensor, Tensor, Tensor]
    """(d_log_prob, d_entropy, d_lse): like `lse` and `entropy` read by `visit_with_gradient`."""

    def make_room(self) -> gpu.Statistics:
        """Room for the statistics of all rows."""
        real, rows = self.problem.compute, len(self.problem.input)
        new = self.problem.input.new_empty
        log_prob, entropy, argmax, rank = (new(rows, dtype=kind) for kind in (real, real, torch.int64, torch.int64))
        self.found = gpu.Statistics(log_prob, entropy, self.lse, argmax, rank)
        return self.found

    def visit(self, first: int, last: int) -> None:
        """Write the statistics of these rows."""
        logits, labels = self._logits[: last - first], self.problem.target[first:last]
        for whole, part in zip(self.found, gpu.statistics(logits, labels, self.problem.objective), strict=True):
            whole[first:last] = part

    def visit_with_gradient(self, first: int, last: int) -> None:
        """The logits become the gradient of their statistics."""
        logits, rows = self._logits[: last - first], slice(first, last)
        d_log_prob, d_entropy, d_lse = (tensor[rows] for tensor in self.upstream)
        statistics_gradient(
            logits,
            self.problem.target[rows],
            self.lse[rows],
            self.entropy[rows],
            (d_log_prob, d_entropy, d_lse),
            self.problem.objective,
            out=logits,
        )
