"""How the work of a linear loss is cut so that it fits the workspace.

The rows are visited in chunks: the logits of a chunk lie in the workspace, become their own gradient there, and are
multiplied away before the next chunk. The workspace holds, all at once,

    chunk_rows * row_bytes        logits of a chunk, and a copy of its soft targets where they need another dtype
    slab * slab_bytes             a few classes of the weight or of its gradient, in another dtype or for a sum
    part * sum_bytes              lower halves of the gradient of the weight, where its own dtype cannot hold the sum
    fixed_bytes                   whatever does not depend on the cut

and is as small as its user likes, down to one row. Chunks are of equal size, give or take one unit, because the last
chunk of a greedy cut could be one row, for which a matrix product is slow. Where the lower halves of the whole
gradient would leave fewer than GOOD_ROWS, the classes of that gradient are cut into parts, and the logits are made
again for each part.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from itertools import pairwise

from xent.errors import ArgumentError, message

DEFAULT_WORKSPACE = "auto"
AUTOMATIC = {"cpu": "128MB", "gpu": "1GB"}
"""The default. On a GPU the sums for a 16-bit weight, which lie beside the workspace, are read and written with every
chunk, beside products that take a few milliseconds: few chunks pay there (benchmarks/results/cuda/linear.json)."""
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}

ALIGNMENT = 64
PADDING = 10 * ALIGNMENT
"""What aligning the arrays of a workspace can cost."""
ROW_UNIT = 16
"""Chunks are multiples of this many rows if they can be: what the inner loops of matrix products like."""
GOOD_ROWS = 128
"""Rows of a chunk from which on adding up the gradient of the weight costs little beside the products."""
MAX_PARTS = 16
SLAB_BYTES = 2**23
"""Of a slab: enough classes for a fast product (bfloat16 widened, 50257 classes: 2.6 s; 2.9 s with half of that)."""


@dataclass(frozen=True)
class Sizes:
    """What a call needs memory for; the module's text says what for."""

    rows: int
    classes: int
    row_bytes: int
    slab_bytes: int = 0
    sum_bytes: int = 0
    fixed_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """The cut: ranges of rows, ranges of classes of the weight's gradient, and the classes of a slab."""

    chunks: tuple[tuple[int, int], ...]
    parts: tuple[tuple[int, int], ...]
    slab: int
    summed: bool
    """Whether the gradient of the weight needs lower halves: not if there is only one chunk."""
    slab_bytes: int
    """Of a slab."""
    bytes: int

    @property
    def chunk_rows(self) -> int:
        """The rows of the largest chunk."""
        return max((last - first for first, last in self.chunks), default=0)

    @property
    def part_classes(self) -> int:
        """The classes of the largest part."""
        return max((last - first for first, last in self.parts), default=0)


def parse_bytes(call: str, workspace: int | str, device: str = "cpu") -> int:
    """Return the bytes of a workspace given as a number or as text: 10**6 to the MB, 2**20 to the MiB.

    >>> parse_bytes("call", "128MB"), parse_bytes("call", "1.5 GiB"), parse_bytes("call", 4096)
    (128000000, 1610612736, 4096)
    >>> parse_bytes("call", "auto"), parse_bytes("call", "auto", "cuda")
    (128000000, 1000000000)
    """
    if isinstance(workspace, str) and workspace == DEFAULT_WORKSPACE:
        workspace = AUTOMATIC["cpu" if device == "cpu" else "gpu"]
    if isinstance(workspace, int) and not isinstance(workspace, bool) and workspace > 0:
        return workspace
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", workspace) if isinstance(workspace, str) else None
    if found and found[2].lower() in UNITS and float(found[1]) > 0:
        return int(float(found[1]) * UNITS[found[2].lower()])
    remedy = "Pass a number of bytes above 0, text such as '128MB' or '1.5GiB', or 'auto'"
    raise ArgumentError(message(call, "workspace", f"found {workspace!r}, which is no amount of memory", remedy))


def make_plan(call: str, sizes: Sizes, workspace: int) -> Plan:
    """Cut the work, in as few parts and chunks as fit; ArgumentError naming the least workspace if nothing does."""
    good = _slab(sizes, workspace)
    for slab, least_rows in ((good, min(GOOD_ROWS, sizes.rows)), (good, 1), (1, 1)):
        fixed = sizes.fixed_bytes + aligned(slab * sizes.slab_bytes) + PADDING
        free = workspace - fixed
        if sizes.rows * sizes.row_bytes <= free:
            return _plan(sizes, slab, sizes.rows, 1, summed=False)
        for parts in range(1, (MAX_PARTS if sizes.sum_bytes else 1) + 1):
            rows = (free - math.ceil(sizes.classes / parts) * sizes.sum_bytes) // max(sizes.row_bytes, 1)
            if rows >= max(least_rows, 1):
                return _plan(sizes, slab, rows, parts, summed=sizes.sum_bytes > 0)
    raise ArgumentError(
        message(
            call,
            "workspace",
            f"{workspace} bytes do not hold one row of {sizes.classes} classes",
            f"Pass at least {least_workspace(sizes)} bytes; speed needs room for a few hundred rows",
        )
    )


def make_shared_plans(call: str, parts: tuple[Sizes, Sizes], workspace: int) -> tuple[Plan, Plan]:
    """Cut the work of two layers alike, so that both together fit; only the first one's weight may need sums."""
    first, second = parts
    both = replace(
        first,
        row_bytes=first.row_bytes + second.row_bytes,
        slab_bytes=first.slab_bytes + second.slab_bytes,
        fixed_bytes=first.fixed_bytes + second.fixed_bytes + PADDING + ALIGNMENT,
    )
    plan = make_plan(call, both, workspace)
    whole = replace(plan, parts=((0, second.classes),), summed=False)
    return _sized(plan, first), _sized(whole, second)


def plan_of_rows(sizes: Sizes, chunk_rows: int) -> Plan:
    """The cut into chunks of so many rows, whatever memory that takes: for measurements of what chunks do."""
    slab = _slab(sizes, 8 * SLAB_BYTES)
    return _plan(sizes, slab, chunk_rows, 1, summed=sizes.sum_bytes > 0 and chunk_rows < sizes.rows)


def least_workspace(sizes: Sizes) -> int:
    """The fewest bytes with which `make_plan` succeeds."""
    in_chunks = sizes.row_bytes + math.ceil(sizes.classes / MAX_PARTS) * sizes.sum_bytes
    whole = sizes.rows * sizes.row_bytes
    return sizes.fixed_bytes + aligned(sizes.slab_bytes) + PADDING + min(whole, in_chunks)


def aligned(count: int) -> int:
    """The count, rounded up to whole cache lines."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def balanced(size: int, most: int, unit: int = 1) -> tuple[tuple[int, int], ...]:
    """Cut range(size) into as few pieces of at most `most` as there can be, of equal size up to one unit.

    >>> balanced(10, 4), balanced(100, 60, unit=16)
    (((0, 3), (3, 6), (6, 10)), ((0, 48), (48, 100)))
    >>> balanced(2048, 636, unit=16)
    ((0, 512), (512, 1024), (1024, 1536), (1536, 2048))
    """
    if size == 0:
        return ()
    pieces = -(-size // most)
    units = size // unit
    bounds = [units * piece // pieces * unit for piece in range(pieces)] + [size]
    if unit > 1 and max(last - first for first, last in pairwise(bounds)) > most:
        return balanced(size, most)
    return tuple(pairwise(bounds))


def _slab(sizes: Sizes, workspace: int) -> int:
    """Classes of a slab: about SLAB_BYTES, at most an eighth of the workspace, at least one."""
    if not sizes.slab_bytes:
        return sizes.classes
    return max(1, min(sizes.classes, min(SLAB_BYTES, workspace // 8) // sizes.slab_bytes))


def _plan(sizes: Sizes, slab: int, most: int, parts: int, *, summed: bool) -> Plan:
    chunks = balanced(sizes.rows, max(most, 1), ROW_UNIT) or ((0, 0),)
    cut = balanced(sizes.classes, math.ceil(sizes.classes / parts)) if summed else ((0, sizes.classes),)
    return _sized(Plan(chunks, cut, slab, summed, 0, 0), sizes)


def _sized(plan: Plan, sizes: Sizes) -> Plan:
    """The plan with the bytes that a layer needs under it."""
    slab_bytes = plan.slab * sizes.slab_bytes
    fixed = sizes.fixed_bytes + aligned(slab_bytes) + PADDING
    used = fixed + plan.chunk_rows * sizes.row_bytes + (plan.part_classes * sizes.sum_bytes if plan.summed else 0)
    return replace(plan, slab_bytes=slab_bytes, bytes=used)
