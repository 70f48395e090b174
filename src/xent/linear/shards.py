"""The linear loss of a shard of the classes: the driver of this folder, with an exchange in each visit to a chunk.

The loss of a row needs the log-sum-exp of all shards, and the gradient needs it too. There are two places to ask for
it: once for all rows, after which the logits of every chunk have to be made again for the gradient (four products
instead of three); or chunk by chunk, while its logits lie in the workspace. We ask chunk by chunk. The same numbers
travel, in more but smaller messages: for 1000 rows, 4096 features and 32000 classes the product that is saved has
2.6e11 operations, half a millisecond on a device that does 500 TFLOP/s, and two messages cost a fraction of that.

So the ranks have to cut the rows in the same way. The plan is that of the largest shard: each field of `Sizes` is the
maximum over the ranks, and each rank cuts its own gradient of the weight into as many parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xent.backends.cpu import shards as cpu
from xent.backends.cpu.shards import Local, LocalStatistics, Shard
from xent.linear import driver
from xent.linear.calls import Gradients, gradients
from xent.linear.driver import NOTHING, Wanted
from xent.linear.host import Host, Method, Problem, sizes_of
from xent.linear.plan import Plan, Sizes, balanced, make_plan
from xent.linear.products import products_for

Array = NDArray[Any]


def method_and_sizes(problem: Problem, wanted: Wanted, threads: int) -> tuple[Method, list[int]]:
    """Choose who multiplies on this rank, and what the plan has to know of it."""
    operations = 2.0 * (1 + wanted.input + wanted.weight) * problem.rows * problem.features * problem.classes
    method = Method.of(problem, products_for(problem.input.dtype, operations, threads))
    has_bias = wanted.bias and problem.bias is not None
    return method, list(astuple(sizes_of(problem, method, with_weight=wanted.weight, with_bias=has_bias)))


def common_plan(call: str, sizes: Sequence[Sequence[int]], classes: int, workspace: int) -> Plan:
    """The plan of a rank with so many classes, from the sizes of all ranks: every rank has the same chunks."""
    plan = make_plan(call, Sizes(*(max(numbers) for numbers in zip(*sizes, strict=True))), workspace)
    parts = balanced(classes, -(-classes // len(plan.parts))) if classes else ()
    return replace(plan, parts=parts or ((0, 0),))


class ShardHost(Host):
    """The steps for the losses on a shard."""

    shard: Shard
    exchange: Callable[[Local, int, int], Local]
    """Combine what the shards tell about the rows from first to last."""
    found: Local
    """Of all shards, for the rows up to `exchanged`."""
    exchanged = 0
    numbers = 1
    """Of the first message about a row, which the others wait for."""

    def visit(self, first: int, last: int) -> None:
        """Losses, log-sum-exps and masses."""
        if last <= self.exchanged:  # in an earlier part, or an earlier call
            return
        logits, target, objective = self._chunk(first, last), self._target(first, last), self.problem.objective
        local = cpu.forward(logits, target, objective, self.shard, threads=self.threads)
        self.exchanging = True
        for whole, part in zip(self.found, self.exchange(local, first, last), strict=True):
            whole[first:last] = part
        self.exchanging, self.exchanged = False, last

    def visit_with_gradient(self, first: int, last: int) -> None:
        """The same; the logits become their gradient."""
        self.visit(first, last)
        logits, scale = self._chunk(first, last), self.row_scale
        cpu.backward(
            logits,
            self._target(first, last),
            self.found.lse[first:last],
            self.found.mass[first:last],
            scale[first:last] if isinstance(scale, np.ndarray) else np.full(last - first, scale),
            self.problem.objective,
            self.shard,
            out=logits,
            threads=self.threads,
        )

    def input_gradient(self, first: int, last: int) -> None:
        """The share of this shard in dinput."""
        if self.problem.classes:
            super().input_gradient(first, last)
        elif self.of_input is not None:
            self.of_input[first:last] = 0

    def weight_gradient(self, first: int, last: int, part: tuple[int, int]) -> None:
        """Nothing to do on a shard without classes."""
        if self.problem.classes:
            super().weight_gradient(first, last, part)

    def make_logits(self, first: int, last: int) -> None:
        """Nothing to do on a shard without classes."""
        if self.problem.classes:
            super().make_logits(first, last)

    exchanging = False

    def awaited(self) -> int | None:
        """How many rows the other ranks wait for, if this one fails now; None if they do not wait."""
        if self.exchanging:
            return None
        return next((last - first for first, last in self.plan.chunks if last > self.exchanged), None)


class ShardStatisticsHost(ShardHost):
    """The steps for the statistics and their gradients on a shard."""

    exchange_statistics: Callable[[LocalStatistics, Callable[[Array], Array], int, int], Sequence[Array]]
    statistics: Sequence[Array]
    """log_prob, entropy, lse, argmax, rank of all rows; entropy and lse float64."""
    write_gradient: Callable[[Array, int, int], None]
    numbers = 3

    def visit(self, first: int, last: int) -> None:
        """Statistics of these rows."""
        logits, objective = self._chunk(first, last), self.problem.objective
        local = cpu.statistics(logits, self._target(first, last), objective, self.shard, threads=self.threads)
        self.exchanging = True
        values = self.exchange_statistics(local, lambda x: cpu.above(logits, x, threads=self.threads), first, last)
        for whole, part in zip(self.statistics, values, strict=True):
            whole[first:last] = part
        self.exchanging, self.exchanged = False, last

    def visit_with_gradient(self, first: int, last: int) -> None:
        """The logits become the gradient of their statistics."""
        self.write_gradient(self._chunk(first, last), first, last)


def run(host: ShardHost, wanted: Wanted) -> Gradients:
    """Losses, and the gradients that are wanted."""
    if wanted == NOTHING:
        driver.forward(host, host.plan)
        return Gradients(None, None, None)
    return gradients(host, wanted)
