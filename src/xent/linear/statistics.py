"""Log-probability, entropy, log-sum-exp, argmax and rank of the rows of a linear layer, in a fixed workspace.

The same driver as for the loss, with another visit to the logits of a chunk: `cross_entropy.statistics` for the values,
and `statistics_gradient` for their gradients, which needs the log-sum-exps and entropies of the first visit. The logits
are made again for the gradient: what arrives from above is known only then.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xent.backends.cpu import cross_entropy as cpu
from xent.backends.cpu.statistics_gradient import statistics_gradient
from xent.linear import driver
from xent.linear.calls import Gradients, gradients, prepared
from xent.linear.driver import NOTHING, Wanted
from xent.linear.host import Host, Problem

Array = NDArray[Any]


class StatisticsHost(Host):
    """The steps for the statistics and their gradients."""

    found: cpu.Statistics
    """Of all rows: written by `visit`, read by `visit_with_gradient`."""
    upstream: tuple[Array, Array, Array]
    """(d_log_prob, d_entropy, d_lse), float64."""

    def visit(self, first: int, last: int) -> None:
        """Write the statistics of these rows."""
        logits, labels = self._chunk(first, last), self._target(first, last)
        for whole, part in zip(
            self.found, cpu.statistics(logits, labels, self.problem.objective, threads=self.threads), strict=True
        ):
            whole[first:last] = part

    def visit_with_gradient(self, first: int, last: int) -> None:
        """The logits become the gradient of their statistics."""
        logits = self._chunk(first, last)
        d_log_prob, d_entropy, d_lse = (array[first:last] for array in self.upstream)
        statistics_gradient(
            logits,
            self._target(first, last),
            self.found.lse[first:last],
            self.found.entropy[first:last],
            (d_log_prob, d_entropy, d_lse),
            self.problem.objective,
            out=logits,
            threads=self.threads,
        )


def forward(call: str, problem: Problem, workspace: int, *, threads: int | None = None) -> cpu.Statistics:
    """Return the statistics of each row. Of the objective, `logit_scale`, `softcap` and `ignore_index` count."""
    host = prepared(StatisticsHost, call, problem, NOTHING, workspace, threads)
    assert isinstance(host, StatisticsHost)
    real, whole = (problem.rows, problem.compute), (problem.rows, np.int64)
    host.found = cpu.Statistics(
        np.empty(*real), np.empty(*real), np.empty(problem.rows), np.empty(*whole), np.empty(*whole)
    )
    driver.forward(host, host.plan)
    return host.found


def backward(
    call: str,
    problem: Problem,
    found: cpu.Statistics,
    upstream: tuple[Array, Array, Array],
    wanted: Wanted,
    workspace: int,
    *,
    threads: int | None = None,
) -> Gradients:
    """Return the gradients of sum(d_log_prob * log_prob + d_entropy * entropy + d_lse * lse)."""
    host = prepared(StatisticsHost, call, problem, wanted, workspace, threads)
    assert isinstance(host, StatisticsHost)
    host.found, host.upstream = found, upstream
    return gradients(host, wanted)
