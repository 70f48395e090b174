"""The binary cross-entropy on the GPU: losses and gradients of elements, without validation or reduction.

The equations are in binary_kernels.py, the contract in xent/backends/binary_protocol.py. Logits and targets that are
not contiguous are copied; weights are read with strides, of three axes at most, and expanded if they need more. Nothing
here makes the host wait for the device.
"""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from xent.backends.binary_protocol import Elements, Visited, smoothing_of
from xent.backends.formula_binary import FORMULA_BINARY, ignored_number
from xent.backends.gpu import binary_kernels
from xent.backends.gpu.backend import current
from xent.backends.gpu.binary_kernels import BinarySwitches, Broadcast
from xent.backends.gpu.tile import _on_device

BLOCK = 2048
"""Elements of a program of four warps: of bfloat16 32 bytes for each thread, so that 128 bits are read at a time."""
AXES = 3
ABSENT = Broadcast(None, 1, 1, 0, 0, 0)


class GpuBinary:
    """The kernel of binary_kernels.py (`xent.backends.binary_protocol.BinaryBackend`)."""

    reads_values = False
    one_visit = True

    def visit(
        self,
        elements: Elements,
        scale: Tensor | float | None = None,
        *,
        losses: bool = False,
        out: Tensor | None = None,
        finished: Tensor | None = None,
        block: int = BLOCK,
    ) -> Visited:
        """Return losses, their sum, and the gradient of sum(scale * loss) if there is a scale.

        If the number in `finished` is 1, nothing is done: the device decides, and the host need not know.
        """
        logits, target, objective = elements.logits.contiguous(), elements.target.contiguous(), elements.objective
        shape, size, device = logits.shape, logits.numel(), logits.device
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        each = torch.empty(shape, dtype=dtype, device=device) if losses else None
        if scale is not None and out is None:
            out = torch.empty_like(logits)
        sums = torch.empty(-(-size // block), dtype=torch.float64, device=device)
        per_element = isinstance(scale, Tensor) and scale.ndim > 0
        if size:
            weights = (elements.weight, elements.pos_weight, elements.sample_weight)
            with current(device):
                binary_kernels.visit[(len(sums),)](
                    logits,
                    target,
                    *(_broadcast(weight, shape) for weight in weights),
                    _numbers(objective, target.dtype, device),
                    size,
                    None if scale is None else _scales(scale, shape, device),
                    finished,
                    each,
                    sums,
                    None if scale is None else out,
                    SWITCHES=_switches(objective, target, per_element, size),
                    WIDE=tl.float64 if dtype == torch.float64 else tl.float32,
                    BLOCK=block,
                    num_warps=4,
                    enable_fp_fusion=True,
                )
        return Visited(each, sums.sum(), -1, None if scale is None else out)

    def count(self, elements: Elements) -> Tensor:
        """Return the number of elements that count, or the sum of their sample weights, on the device."""
        if elements.sample_weight is not None or not elements.target.numel():
            return FORMULA_BINARY.count(elements)
        target, size = elements.target.contiguous(), elements.target.numel()
        counts = torch.empty(-(-size // BLOCK), dtype=torch.int32, device=target.device)
        with current(target.device):
            binary_kernels.count[(len(counts),)](
                target,
                _numbers(elements.objective, target.dtype, target.device),
                size,
                counts,
                WIDE=size >= 2**31 - BLOCK,
                FLOATING=target.is_floating_point(),
                BLOCK=BLOCK,
                num_warps=4,
            )
        return counts.sum().double()


def _switches(objective: Any, target: Tensor, per_element: bool, size: int) -> BinarySwitches:
    return BinarySwitches(
        scaled=objective.logit_scale != 1.0,
        capped=objective.softcap is not None,
        smoothed=objective.label_smoothing > 0.0,
        focal=objective.focal_gamma > 0.0,
        per_element=per_element,
        wide=size >= 2**31 - BLOCK,
        floating=target.is_floating_point(),
    )


def _numbers(objective: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The options as numbers: those of `terms_of`, and what an ignored target is, in float64 and as an integer."""
    on, off = smoothing_of(objective)
    ignored = ignored_number(objective, dtype) if dtype.is_floating_point else 0.0
    numbers = (objective.logit_scale, objective.softcap or 0.0, on, off, objective.focal_gamma, ignored)
    return _on_device((*numbers, objective.ignore_index), device)


def _scales(scale: Tensor | float, shape: torch.Size, device: torch.device) -> Tensor:
    """Scales as the kernel takes them: one, or one for each element, side by side."""
    if not isinstance(scale, Tensor):
        return torch.full((1,), scale, dtype=torch.float64, device=device)
    return scale.expand(shape).contiguous() if scale.ndim else scale.reshape(1)


def _broadcast(weight: Tensor | None, shape: torch.Size) -> Broadcast:
    """Weights with sizes and strides of their axes, as few as there are different ones."""
    if weight is None:
        return ABSENT
    axes: list[tuple[int, int]] = []
    for size, stride in zip(shape, weight.expand(shape).stride(), strict=True):
        if size == 1:
            continue
        if axes and axes[-1][1] == stride * size:  # one axis, that the last two make
            axes[-1] = (axes[-1][0] * size, stride)
        else:
            axes.append((size, stride))
    if len(axes) > AXES:
        return Broadcast(weight.expand(shape).contiguous(), 1, 1, 1, 0, 0)
    if len(axes) < 2:
        return Broadcast(weight, 1, 1, axes[0][1] if axes else 0, 0, 0)
    (middle, middle_stride), (inner, inner_stride) = axes[-2], axes[-1]
    if len(axes) == 2:
        return Broadcast(weight, 1, inner, middle_stride, 0, inner_stride)
    return Broadcast(weight, middle, inner, axes[0][1], middle_stride, inner_stride)
