"""The softmax cross-entropy on the GPU: loss, gradient and statistics of each row, without validation or reduction.

    z    = softcap * tanh(logit_scale * x / softcap)                        (no softcap: z = logit_scale * x)
    t[j] = weight[j] * ((1 - label_smoothing) * p[j] + label_smoothing / classes)
    lse  = log(sum(exp(z)))
    loss = sum(t * (lse - z)) + z_loss * lse**2
    dx   = ((sum(t) + 2 * z_loss * lse) * exp(z - lse) - t) * dz/dx

*Logits*: (rows, classes), or (outer, classes, inner) with a row for each pair (outer, inner), strided at will. float32,
float64, float16 or bfloat16. Logits are not written to, unless they are handed in again as `out`.

*Target*: class indices of any integer dtype, one for each row; or distributions shaped like the logits, of any floating
dtype. `objective.weight` is a tensor (classes,). All tensors are on one device.

*Results*: losses in the computing dtype (float32; float64 for float64) and the log-sum-exp in float64, both of shape
(rows,); gradients shaped and typed like the logits. They may be handed in with `out`.

A row whose label is `ignore_index` has loss, log-sum-exp and gradient 0, whatever its logits; any other label outside
[0, classes) gives NaN, and no memory is touched for it. NaN or +inf among the logits make that row NaN, and so do
logits that are all -inf.

Nothing here makes the host wait for the device. A `tile` other than that of shapes.py can be asked for.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from xent.backends.gpu import kernels, shapes
from xent.backends.gpu.shapes import Tile
from xent.backends.gpu.tile import ABSENT, Inputs, Strided, Switches
from xent.objective import Objective


class Statistics(NamedTuple):
    """What one visit to the logits tells about each row; nats.

    `log_prob` is that of the label, `entropy` that of the softmax. `argmax` is the first largest logit. `rank` counts
    the logits strictly above the label's; it is -1 without a label (`ignore_index`: log_prob 0; out of range: NaN).
    """

    log_prob: Tensor
    entropy: Tensor
    lse: Tensor
    argmax: Tensor
    rank: Tensor


def forward(
    logits: Tensor,
    target: Tensor,
    objective: Objective,
    *,
    loss: Tensor | None = None,
    lse: Tensor | None = None,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the loss and the log-sum-exp of each row."""
    call = Call(logits, target, objective, tile)
    loss, lse = call.rows_of(loss, call.dtype), call.rows_of(lse, torch.float64)
    call.run(kernels.forward, (loss, lse))
    return loss, lse


def backward(
    logits: Tensor,
    target: Tensor,
    lse: Tensor,
    row_scale: Tensor | float,
    objective: Objective,
    *,
    out: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """Return the gradient of sum(row_scale * loss) from the log-sum-exp that `forward` gave.

    `row_scale` is one number, or a tensor of one number or of one for each row.
    """
    call = Call(logits, target, objective, tile)
    out = torch.empty_like(logits, memory_format=torch.contiguous_format) if out is None else out
    scale = call.scales(row_scale)
    call.run(kernels.backward, (lse, scale, strided(out)), in_place=out is logits, PER_ROW=scale.numel() > 1)
    return out


def forward_backward(
    logits: Tensor,
    target: Tensor,
    row_scale: Tensor | float,
    objective: Objective,
    *,
    loss: Tensor | None = None,
    lse: Tensor | None = None,
    out: Tensor | None = None,
    finished: Tensor | None = None,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, log-sum-exp and gradient in one visit: `forward`, then `backward`, each row while it is in a cache.

    With `out=logits` the gradient takes the place of the logits. If the number in `finished` is 1, nothing is done: the
    device decides, and the host need not know.
    """
    call = Call(logits, target, objective, tile)
    loss, lse = call.rows_of(loss, call.dtype), call.rows_of(lse, torch.float64)
    in_place = out is not None and out.data_ptr() == logits.data_ptr()
    out = torch.empty_like(logits, memory_format=torch.contiguous_format) if out is None else out
    scale = call.scales(row_scale)
    results = (scale, finished, loss, lse, strided(out))
    call.run(kernels.forward_backward, results, in_place=in_place, PER_ROW=scale.numel() > 1)
    return loss, lse, out


def statistics(logits: Tensor, labels: Tensor, objective: Objective, *, tile: Tile | None = None) -> Statistics:
    """Return log-probability and rank of the label, entropy, log-sum-exp and argmax of each row, in one visit.

    Of the objective, `logit_scale`, `softcap` and `ignore_index` count.
    """
    call = Call(logits, labels, objective, tile)
    dtypes = (call.dtype, call.dtype, torch.float64, torch.int64, torch.int64)
    found = Statistics(*(call.rows_of(None, dtype) for dtype in dtypes))
    call.run(kernels.statistics, tuple(found))
    return found


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of losses: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def options_of(objective: Objective, classes: int, *, soft: bool) -> tuple[tuple[Any, ...], Switches]:
    """The options as kernels take them: as numbers, and as switches."""
    smoothing, weight = objective.label_smoothing if classes > 1 else 0.0, objective.weight
    mean_weight = weight.double().mean() if weight is not None and smoothing and not soft else None
    cap, scale = objective.softcap, objective.logit_scale
    numbers = (smoothing, scale, cap or 0.0, objective.z_loss, objective.ignore_index, mean_weight)
    return numbers, Switches(
        dense=soft or smoothing > 0.0,
        scaled=scale != 1.0,
        capped=cap is not None,
        normalised=objective.z_loss != 0.0,
    )


class Call:
    """The arguments of a call as kernels take them."""

    __slots__ = ("dtype", "inputs", "key", "logits", "numbers", "rows", "switches", "tile", "wide")

    def __init__(self, logits: Tensor, target: Tensor, objective: Objective, tile: Tile | None) -> None:
        shape = logits.shape
        classes, inner = shape[1], 1 if len(shape) == 2 else shape[2]
        self.logits, self.rows, self.dtype = logits, shape[0] * inner, compute_dtype(logits.dtype)
        soft, weight = target.is_floating_point(), objective.weight
        labels = None if soft else target.reshape(-1).contiguous()
        self.inputs = Inputs(
            *strided(logits), self.rows, classes, inner, labels, *(strided(target) if soft else ABSENT), weight
        )
        self.numbers, self.switches = options_of(objective, classes, soft=soft)
        self.wide = tl.float64 if self.dtype == torch.float64 else tl.float32
        self.tile = tile or shapes.tile_for(self.rows, classes, inner, logits.element_size())
        self.key = (logits.device, logits.dtype, shape, soft, weight is None, *self.switches, tile)

    def run(self, kernel: Any, results: tuple[Any, ...], *, in_place: bool = False, **switches: bool) -> None:
        """Run a kernel over all rows."""
        if self.rows == 0:
            return

        def launch(tile: Tile) -> None:
            grid = (-(-self.rows // tile.rows),)
            kernel[grid](
                self.inputs,
                *self.numbers,
                *results,
                **switches,
                SWITCHES=self.switches,
                WIDE=self.wide,
                ROWS=tile.rows,
                BLOCK=tile.block,
                num_warps=tile.warps,
                enable_fp_fusion=True,
            )

        with current(self.logits.device):
            if shapes.autotuned() and not in_place:
                key = (kernel.__name__, *self.key)
                launch(shapes.fastest(key, shapes.neighbours(self.tile), launch, self.logits.device))
            else:
                launch(self.tile)

    def rows_of(self, given: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Room for one number per row."""
        return torch.empty(self.rows, dtype=dtype, device=self.logits.device) if given is None else given

    def scales(self, row_scale: Tensor | float) -> Tensor:
        """Row scales as a kernel takes them: one, or one for each row, side by side."""
        if isinstance(row_scale, Tensor):
            return row_scale.reshape(-1).contiguous()
        return torch.full((1,), row_scale, dtype=torch.float64, device=self.logits.device)


def strided(tensor: Tensor) -> Strided:
    """A tensor with its strides."""
    strides = tensor.stride()
    return Strided(tensor, strides[0], strides[1], strides[2] if len(strides) == 3 else 0)


def current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make the device the current one, where the kernel is launched."""
    if device.type == "cpu":
        return contextlib.nullcontext()
    current: contextlib.AbstractContextManager[Any] = torch.get_device_module(device.type).device(device)
    return current
