"""How large a tile is, and how many warps work on it: by rule, or by trying (`autotune`).

A tile is `rows` positions by `block` classes. A row of many classes is a tile by itself; of rows with few classes, one
program takes as many as make a tile of the same size. Where the class axis is not the last, neighbouring positions are
neighbours in memory, so that a tile is wide across positions and takes few classes at a time.

The rules are what an H200 liked best, or nearly, among blocks of 1024 to 16384 classes and 4 to 32 warps, for 32000 and
128256 classes: a block of 8192, or of a long row 16384, of which a thread holds 64 bytes. `XENT_GPU_AUTOTUNE=1` tries
the neighbours once for each kind of call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch

from xent.environment import setting

PER_THREAD = 64  # bytes
LARGEST_BLOCK, LONG_ROW = 2**13, 2**16  # numbers of a block of one row; twice as many of a longer row
TILE = 2**11  # numbers of a tile of several rows
ACROSS = 128  # positions of a tile across positions: 256 bytes of bfloat16
MOST_WARPS, WARP = 16, 32


class Tile(NamedTuple):
    """Positions, classes at a time (both powers of two), and warps."""

    rows: int
    block: int
    warps: int


def tile_for(rows: int, classes: int, inner: int, itemsize: int) -> Tile:
    """The tile for logits of this shape; `inner` is 1 when the classes lie side by side.

    >>> tile_for(4096, 128256, 1, 2), tile_for(65536, 10, 1, 4)
    (Tile(rows=1, block=16384, warps=16), Tile(rows=128, block=16, warps=4))
    """
    if inner > 1:
        across = min(ACROSS, _power_of_two(inner))
        return _with_warps(across, max(1, min(_power_of_two(classes), TILE // across)), itemsize)
    block = min(_power_of_two(classes), LARGEST_BLOCK if classes < LONG_ROW else 2 * LARGEST_BLOCK)
    return _with_warps(min(max(1, TILE // block), _power_of_two(rows)), block, itemsize)


def neighbours(tile: Tile) -> list[Tile]:
    """What is worth trying besides: blocks of half and twice the size, and half and twice the warps."""
    blocks = [tile.block, max(tile.block // 2, 1), tile.block * 2]
    warps = [tile.warps, max(tile.warps // 2, 1), min(tile.warps * 2, 2 * MOST_WARPS)]
    return list(dict.fromkeys(Tile(tile.rows, block, warp) for block in blocks for warp in warps))


def autotuned() -> bool:
    """Whether tiles are found by trying."""
    return bool(setting("XENT_GPU_AUTOTUNE"))


_best: dict[Hashable, Any] = {}


def fastest(key: Hashable, tiles: Sequence[Any], launch: Callable[[Any], None], device: torch.device) -> Any:
    """The fastest of these tiles, measured at the first call with this key, which launches each of them often."""
    if key not in _best:
        _best[key] = min(tiles, key=lambda tile: _seconds(lambda: launch(tile), device))
    return _best[key]


def _seconds(call: Callable[[], None], device: torch.device, repeats: int = 5) -> float:
    """The least time of a few calls, after one that compiles. The only place here where the host waits."""
    call()
    times = []
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device.type).synchronize(device)


def _with_warps(rows: int, block: int, itemsize: int) -> Tile:
    return Tile(rows, block, min(max(rows * block * itemsize // (WARP * PER_THREAD), 1), MOST_WARPS))


def _power_of_two(count: int) -> int:
    """The least power of two that is not below."""
    return 1 << max(count - 1, 0).bit_length()
