"""The softmax cross-entropy on the GPU: loss, gradient and statistics of each row, without validation or reduction.

    z    = softcap * tanh(logit_scale * x / softcap)                        (no softcap: z = logit_scale * x)
    t[j] = weight[j] * ((1 - label_smoothing) * p[j] + label_smoothing / classes)
    lse  = log(sum(exp(z)))
    loss = sum(t * (lse - z)) + z_loss * lse**2
    dx   = ((sum(t) + 2 * z_loss * lse) * exp(z - lse) - t) * dz/dx

*Logits*: (rows, classes), or (outer, classes, inner) with a row for each pair (outer, inner), with arbitrary strides;
float32, float64, float16 or bfloat16. Logits are not written to, unless they are handed in again as `out`.

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
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from xent.backends import sparse_rows
from xent.backends.gpu import contrast_kernel, kernels, shapes
from xent.backends.gpu.shapes import Tile
from xent.backends.gpu.tile import ABSENT, Inputs, Strided, flattened
from xent.backends.protocol import Statistics
from xent.objective import Objective
from xent.reduction import weighted_count
from xent.sparse import is_sparse


@dataclass(frozen=True)
class GpuBackend:
    """The kernels of this folder (`xent.backends.Backend`), with the tiles of shapes.py or one of your own."""

    tile: Tile | None = None
    reads_values = False
    one_visit = True
    has_second_derivatives = True

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of losses: float64 for float64, float32 for everything narrower."""
        return torch.float64 if dtype == torch.float64 else torch.float32

    def forward(self, logits: Tensor, target: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
        """Return the loss and the log-sum-exp of each row."""
        if is_sparse(target):
            return sparse_rows.forward(self, logits, target, objective)
        call = Call(logits, target, objective, self.tile)
        loss, lse = call.new_rows(call.dtype), call.new_rows(torch.float64)
        call.run(kernels.forward, (loss, lse))
        return loss, lse

    def backward(
        self,
        logits: Tensor,
        target: Tensor,
        saved: Tensor,
        row_scale: Tensor | float,
        objective: Objective,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return the gradient of sum(row_scale * loss) from the log-sum-exps that `forward` returned.

        In float64 it is made without them: a log-sum-exp of 100 has lost 7 bits of exp(z - lse), which float32
        gradients do not notice.
        """
        if is_sparse(target):
            made: Tensor = sparse_rows.backward(self, logits, target, saved, row_scale, objective, out=out)
            return made
        if logits.dtype == torch.float64:
            return self.forward_backward(logits, target, row_scale, objective, out=out)[2]
        call = Call(logits, target, objective, self.tile)
        out = torch.empty_like(logits, memory_format=torch.contiguous_format) if out is None else out
        scale = call.scales(row_scale)
        call.run(kernels.backward, (saved, scale, strided(out)), in_place=out is logits, PER_ROW=scale.numel() > 1)
        return out

    def forward_backward(
        self,
        logits: Tensor,
        target: Tensor,
        row_scale: Tensor | float,
        objective: Objective,
        *,
        out: Tensor | None = None,
        finished: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, log-sum-exp and gradient in one call: each row's gradient while the row is in a cache.

        If the number in `finished` is 1, nothing is done: the device decides, and the host need not know.
        """
        if is_sparse(target):
            more = (self, logits, target, row_scale, objective)
            return sparse_rows.forward_backward(*more, out=out, finished=finished)
        call = Call(logits, target, objective, self.tile)
        loss, lse = call.new_rows(call.dtype), call.new_rows(torch.float64)
        in_place = out is not None and out.data_ptr() == logits.data_ptr()
        out = torch.empty_like(logits, memory_format=torch.contiguous_format) if out is None else out
        scale = call.scales(row_scale)
        results = (scale, finished, loss, lse, strided(out))
        call.run(kernels.forward_backward, results, in_place=in_place, PER_ROW=scale.numel() > 1)
        return loss, lse, out

    def contrast_gradient(self, logits: Tensor, first: int | None, rows: Any, columns: Any, logit_scale: float) -> None:
        """Replace the similarities of a contrastive loss by their gradient."""
        with current(logits.device):
            contrast_kernel.contrast_gradient(logits, first, rows, columns, logit_scale)

    def column_lse(self, logits: Tensor, first: int | None, logit_scale: float) -> Tensor:
        """Return the log-sum-exps of the columns of similarities, without the positives."""
        with current(logits.device):
            return contrast_kernel.column_lse(logits, first, logit_scale)

    def statistics(self, logits: Tensor, labels: Tensor, objective: Objective) -> Statistics:
        """Return log-probability and rank of the label, entropy, log-sum-exp and argmax of each row, in one visit."""
        call = Call(logits, labels, objective, self.tile)
        dtypes = (call.dtype, call.dtype, torch.float64, torch.int64, torch.int64)
        statistics = Statistics(*map(call.new_rows, dtypes))
        call.run(kernels.statistics, tuple(statistics))
        return statistics

    def statistics_gradient(
        self,
        logits: Tensor,
        labels: Tensor,
        statistics: Statistics,
        upstream: tuple[Tensor, Tensor, Tensor],
        objective: Objective,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return the gradient of sum(d_log_prob * log_prob + d_entropy * entropy + d_lse * lse)."""
        call = Call(logits, labels, objective, self.tile)
        in_place = out is not None and out.data_ptr() == logits.data_ptr()
        out = torch.empty_like(logits, memory_format=torch.contiguous_format) if out is None else out
        numbers = (x.reshape(-1).contiguous() for x in (statistics.lse, statistics.entropy, *upstream))
        call.run(kernels.statistics_gradient, (*numbers, strided(out)), in_place=in_place)
        return out

    def count(
        self, labels: Tensor, weight: Tensor | None, ignore_index: int, sample_weight: Tensor | None = None
    ) -> Tensor:
        """Return the weighted count of the labels that are not `ignore_index`, on the device."""
        if weight is None and sample_weight is None:
            return (labels != ignore_index).sum(dtype=torch.float64)
        wide = None if weight is None else weight.double()
        found: Tensor = weighted_count(labels, wide, ignore_index, sample_weight)
        return found

    def total(self, losses: Tensor) -> Tensor:
        """Return the sum of the losses, on the device."""
        return losses.sum(dtype=torch.float64)

    def scale(self, gradient: Tensor, factor: Tensor) -> None:
        """Multiply a gradient, in place, by an upstream gradient; the device looks whether that is 1."""
        if gradient.numel():
            blocks = -(-gradient.numel() // SCALED)
            with current(gradient.device):
                kernels.scale[(blocks,)](
                    gradient, factor, gradient.numel(), BLOCK=SCALED, num_warps=4, enable_fp_fusion=True
                )


SCALED = 4096
"""Numbers that one program of `scale` multiplies."""


class Call:
    """The arguments of a call as kernels take them."""

    __slots__ = ("dtype", "inputs", "key", "logits", "options", "rows", "switches", "tile", "wide")

    def __init__(self, logits: Tensor, target: Tensor, objective: Objective, tile: Tile | None) -> None:
        shape = logits.shape
        classes, inner = shape[1], 1 if len(shape) == 2 else shape[2]
        self.logits, self.rows = logits, shape[0] * inner
        self.dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        soft = target.is_floating_point()
        weight, *self.options, self.switches = flattened(objective, self.dtype, classes, logits.device, soft=soft)
        labels = None if soft else target.reshape(-1).contiguous()
        self.inputs = Inputs(
            *strided(logits), self.rows, classes, inner, labels, *(strided(target) if soft else ABSENT), weight
        )
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
                *self.options,
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

    def new_rows(self, dtype: torch.dtype) -> Tensor:
        """Room for one number per row."""
        return torch.empty(self.rows, dtype=dtype, device=self.logits.device)

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
