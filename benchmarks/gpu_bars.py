"""The figures that the kernels have to reach on an H200, and how a case of a record compares with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.bars import entry
from xent.bench.peers import EAGER, OURS
from xent.bench.timing import Spread, ratios

COPY, PRODUCTS = "copy", "products"
LEAST_CLASSES = 32_000
OF_COPY, OF_PRODUCTS = 1 / 0.85, 1.15
"""Times as long as a copy of the logits (85 % of its bandwidth), and as the three matrix products."""
PRODUCTS_SIZE = [16384, 128256, 4096]
"""Rows, classes and features of the linear layer whose loss is compared with the products."""
PEERS = (EAGER, "Liger", "CCE")
MEMORY = 10
"""Times less memory than eager torch."""


def judge(case: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The bars of this case: what was required and measured, whether it is met, else the factor that is missing."""
    classes, features = case["size"][1:]
    entries = {each["name"]: each for each in case["contestants"] if each.get("samples")}
    if classes < LEAST_CLASSES or OURS not in entries:
        return []
    if not features:
        limit = [_at_most(entries, COPY, OF_COPY)]
        return limit + [_at_least(entries, name) for name, peer in entries.items() if peer["role"] == "peer"]
    if case["dtype"] != "bfloat16":
        return []
    limit = [_at_most(entries, PRODUCTS, OF_PRODUCTS)] if case["size"] == PRODUCTS_SIZE else []
    memory = [_memory(entries)] if EAGER in entries and entries[OURS]["memory"] else []
    return limit + [_at_least(entries, peer) for peer in PEERS if peer in entries] + memory


def _at_most(entries: Mapping[str, Any], limit: str, bound: float) -> dict[str, Any]:
    """So many times as long as the limit."""
    times = (entries[name]["samples"]["forward_backward"] for name in (OURS, limit))
    return entry("forward_backward", limit, bound, Spread.of(ratios(*times)), at_most=True)


def _at_least(entries: Mapping[str, Any], peer: str) -> dict[str, Any]:
    """As fast as the peer."""
    times = (entries[name]["samples"]["forward_backward"] for name in (peer, OURS))
    return entry("forward_backward", peer, 1.0, Spread.of(ratios(*times)), at_most=False)


def _memory(entries: Mapping[str, Any]) -> dict[str, Any]:
    times = entries[EAGER]["memory"] / entries[OURS]["memory"]
    return entry("times less memory", EAGER, MEMORY, Spread.of([times]), at_most=False)
