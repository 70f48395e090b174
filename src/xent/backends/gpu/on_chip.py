"""The losses of a linear layer whose logits never leave the chip, for when no gradient is wanted.

    loss, log-sum-exp  by the kernels of on_chip_kernels.py: float32 logits in registers, a tile at a time

Beside xent.backends.gpu.linear, where torch's matrix product writes logits into a workspace and a kernel reads them again: this
needs no workspace and a few numbers for each row, but Triton's matrix products instead of cuBLAS's. Which of them is
faster no measurement has said yet (`benchmarks/run.py linear --device cuda` has both). `XENT_GPU_ON_CHIP=1` takes this.

For training it is no help: gradients need the logits once more, which costs a product.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from xent.backends.gpu import on_chip_kernels as kernels
from xent.backends.gpu import shapes
from xent.backends.gpu.cross_entropy import current, options_of, strided
from xent.backends.gpu.linear import Problem
from xent.backends.gpu.on_chip_kernels import Parts
from xent.backends.gpu.tile import ABSENT, Inputs

PROGRAMS = 2048
"""As many programs as keep a GPU busy to the end, at least if there are enough classes."""
MOST_PARTS = 64
SHARED = 2**24
"""Bytes of input rows that programs running at the same time share: a part of the second cache."""


ROWS = 128
"""Of a program that puts the parts of rows together."""


class ProductTile(NamedTuple):
    """Rows, classes and features at a time (powers of two), warps, and tiles that are on their way at once."""

    rows: int
    block: int
    depth: int
    warps: int
    stages: int


TILES = {2: ProductTile(128, 256, 64, 8, 3), 4: ProductTile(64, 64, 32, 4, 3)}
"""For the bytes of a number: by rule of thumb, for matrix units and for plain float32 arithmetic."""
ALTERNATIVES = {
    2: (ProductTile(128, 128, 64, 8, 4), ProductTile(128, 128, 64, 4, 4), ProductTile(64, 256, 64, 4, 4)),
    4: (ProductTile(128, 64, 32, 8, 3), ProductTile(128, 128, 32, 8, 3)),
}
"""What `XENT_GPU_AUTOTUNE=1` tries besides."""


_chosen = os.environ.get("XENT_GPU_ON_CHIP", "") not in ("", "0")


def is_chosen(problem: Problem) -> bool:
    """Whether the forward of such a problem is computed here; there are no float64 logits."""
    return _chosen and problem.compute == torch.float32


@contextlib.contextmanager
def chosen() -> Iterator[None]:
    """Compute forwards here, whatever the environment says: to compare the two."""
    global _chosen
    before, _chosen = _chosen, True
    try:
        yield
    finally:
        _chosen = before


def forward(problem: Problem, *, tile: ProductTile | None = None, parts: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the loss (float32) and the log-sum-exp (float64) of each row."""
    rows, classes = problem.input.shape[0], problem.weight.shape[0]
    new, target, objective = problem.input.new_empty, problem.target, problem.objective
    loss, lse = new(rows, dtype=torch.float32), new(rows, dtype=torch.float64)
    if rows == 0:
        return loss, lse
    soft, size = target.is_floating_point(), problem.input.element_size()
    labels = None if soft else target.contiguous()
    inputs = Inputs(*ABSENT, rows, classes, 1, labels, *(strided(target) if soft else ABSENT), objective.weight)
    bias = None if problem.bias is None else problem.bias.contiguous()
    layer = (strided(problem.input), strided(problem.weight), bias, problem.input.shape[1])
    numbers, switches = options_of(objective, classes, soft=soft)
    precision = "ieee" if size == 2 or torch.get_float32_matmul_precision() == "highest" else "tf32"

    def launch(tile: ProductTile) -> None:
        across = -(-rows // tile.rows)
        cut = _cut(classes, tile.block, parts or min(max(PROGRAMS // across, 1), MOST_PARTS))
        count = -(-classes // cut)
        tiles = min(max(SHARED // (tile.rows * max(problem.input.shape[1], 1) * size), 1), across)
        found = _parts(problem.input, count, cut, rows, dense=switches.dense)
        kernels.linear_parts[(-(-across // tiles) * tiles * count,)](
            inputs, *numbers, *layer, found, tiles, SWITCHES=switches, PRECISION=precision,
            WIDENED=triton.knobs.runtime.interpret, ROWS=tile.rows, BLOCK=tile.block, DEPTH=tile.depth,
            num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
        )  # fmt: skip
        kernels.linear_losses[(-(-rows // ROWS),)](
            inputs, *numbers, found, loss, lse, SWITCHES=switches, ROWS=ROWS, num_warps=4, enable_fp_fusion=True
        )

    with current(problem.input.device):
        if tile is None:
            tile = TILES[size]
            if shapes.autotuned():
                key = ("on chip", problem.input.dtype, problem.input.shape, classes, precision, *switches)
                tile = shapes.fastest(key, (tile, *ALTERNATIVES[size]), launch, problem.input.device)
        launch(tile)
    return loss, lse


def _cut(classes: int, block: int, parts: int) -> int:
    """The classes of a part: whole blocks."""
    return -(-classes // (parts * block)) * block


def _parts(like: Tensor, count: int, classes: int, rows: int, *, dense: bool) -> Parts:
    """Room for what the parts find."""
    highest, label_z = (like.new_empty(shape, dtype=torch.float32) for shape in ((count, rows), rows))
    total, *others = (like.new_empty((count, rows), dtype=torch.float64) for _ in range(3 if dense else 1))
    target, mass = others if dense else (None, None)
    return Parts(count, classes, highest, total, target, mass, label_z)
