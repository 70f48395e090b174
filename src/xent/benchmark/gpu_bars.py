"""What the kernels have to reach on a GPU, measured on an H200, and how a case of a record compares with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xent.benchmark.bars import entry
from xent.benchmark.gpu_peers import ON_CHIP
from xent.benchmark.peers import EAGER, OURS
from xent.benchmark.timing import Spread, ratios

COPY, PRODUCTS = "copy", "products"
LEAST_CLASSES = 32_000
OF_COPY, OF_PRODUCTS = 1 / 0.85, 1.15
"""Times as long as a copy of the logits (85 % of its bandwidth), and as the three matrix products."""
PRODUCTS_SIZE = [16384, 128256, 4096]
"""Rows, classes and features of the linear layer whose loss is compared with the products."""
PEERS = (EAGER, "Liger", "CCE")
MEMORY = 10
"""Times less memory than eager torch."""


def judged(case: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The bars of this case: what was required and measured, whether it is met, else by what factor missed."""
    rows, classes, features = case["size"]
    found = {contestant["name"]: contestant for contestant in case["contestants"] if contestant.get("samples")}
    if classes < LEAST_CLASSES or OURS not in found:
        return []
    if not features:
        limit = [_at_most(found, COPY, OF_COPY)]
        return limit + [_at_least(found, name) for name, peer in found.items() if peer["role"] == "peer"]
    if case["dtype"] != "bfloat16":
        return []
    limit = [_at_most(found, PRODUCTS, OF_PRODUCTS)] if [rows, classes, features] == PRODUCTS_SIZE else []
    memory = [_memory(found)] if EAGER in found and found[OURS]["memory"] else []
    on_chip = [_at_least(found, OURS, "forward", ON_CHIP)] if ON_CHIP in found else []
    return limit + [_at_least(found, peer) for peer in PEERS if peer in found] + memory + on_chip


def _at_most(found: Mapping[str, Any], limit: str, bound: float) -> dict[str, Any]:
    """So many times as long as the limit."""
    times = (found[name]["samples"]["forward_backward"] for name in (OURS, limit))
    return entry("forward_backward", limit, bound, Spread.of(ratios(*times)), at_most=True)


def _at_least(
    found: Mapping[str, Any], peer: str, measure: str = "forward_backward", ours: str = OURS
) -> dict[str, Any]:
    """As fast as the peer."""
    times = (found[name]["samples"][measure] for name in (peer, ours))
    name = measure if ours == OURS else f"{measure}, {ours}"
    return entry(name, peer, 1.0, Spread.of(ratios(*times)), at_most=False)


def _memory(found: Mapping[str, Any]) -> dict[str, Any]:
    times = found[EAGER]["memory"] / found[OURS]["memory"]
    return entry("times less memory", EAGER, MEMORY, Spread.of([times]), at_most=False)
