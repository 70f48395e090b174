"""Arrays in, arrays out: the linear loss of rows on the CPU, for the fronts. Neither validation nor reduction.

*Arguments*: input (rows, features), weight (classes, features) and bias (classes,) of one dtype: float64, float32,
float16 or bfloat16 as the uint16 of its bits; see `host.Problem`. A `workspace` in bytes.

*Results*: losses in float32 (float64 for float64) and log-sum-exps in float64, (rows,); gradients of sum(row_scale *
loss).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xent.backends.cpu.threads import get_num_threads
from xent.linear import driver
from xent.linear.driver import NOTHING, Wanted
from xent.linear.host import Host, Method, Problem, sizes_of
from xent.linear.plan import Plan, make_plan
from xent.linear.products import products_for

Array = NDArray[Any]


class Gradients(NamedTuple):
    """Of the arguments, each in its dtype; None where it was not wanted."""

    input: Array | None
    weight: Array | None
    bias: Array | None


def forward(call: str, problem: Problem, workspace: int, *, threads: int | None = None) -> tuple[Array, Array]:
    """Return the loss and the log-sum-exp of each row. `call` is named in the error about a small workspace."""
    host = prepared(Host, call, problem, NOTHING, workspace, threads)
    driver.forward(host, host.plan)
    return host.losses, host.lse


def forward_backward(
    call: str,
    problem: Problem,
    row_scale: Array | float,
    wanted: Wanted,
    workspace: int,
    *,
    threads: int | None = None,
) -> tuple[Array, Array, Gradients]:
    """Return losses, log-sum-exps and gradients. `row_scale` is a number, or one per row in the loss's dtype."""
    host = prepared(Host, call, problem, wanted, workspace, threads)
    host.row_scale = row_scale
    return host.losses, host.lse, gradients(host, wanted)


def gradients(host: Host, wanted: Wanted) -> Gradients:
    """Run the driver with gradients, and hand them out."""
    wanted = wanted._replace(bias=wanted.bias and host.problem.bias is not None)
    host.want(input=wanted.input, weight=wanted.weight, bias=wanted.bias)
    driver.forward_backward(host, host.plan, wanted)
    if not host.plan.chunks:
        for empty in (host.of_input, host.of_weight, host.sums):
            if empty is not None:
                empty[...] = 0
    return Gradients(host.of_input, host.of_weight, None if host.sums is None else _bias(host))


def prepared(
    kind: type[Host], call: str, problem: Problem, wanted: Wanted, workspace: int, threads: int | None
) -> Host:
    """Choose who multiplies, cut the work, and get the memory for it."""
    threads = threads or get_num_threads()
    made = 1 + wanted.input + wanted.weight
    operations = 2.0 * made * problem.rows * problem.features * problem.classes
    method = Method.of(problem, products_for(problem.input.dtype, operations, threads))
    return kind(problem, method, plan_of(call, problem, method, wanted, workspace), threads)


def plan_of(call: str, problem: Problem, method: Method, wanted: Wanted, workspace: int) -> Plan:
    """How a call is cut."""
    has_bias = wanted.bias and problem.bias is not None
    return make_plan(call, sizes_of(problem, method, with_weight=wanted.weight, with_bias=has_bias), workspace)


def _bias(host: Host) -> Array:
    """The sums in the dtype of the bias."""
    assert host.sums is not None
    assert host.problem.bias is not None
    dtype = host.problem.bias.dtype
    if dtype != np.uint16:
        return host.sums.astype(dtype)
    # To bfloat16 by way of float32, rounding to nearest even by adding half of what is dropped.
    bits = host.sums.astype(np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(host.sums), np.uint16(0x7FC0), rounded)
