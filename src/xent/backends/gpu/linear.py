"""The steps of the linear cross-entropy on the GPU: matrix products by torch (cuBLAS), the row kernels in between.

    logits  = input @ weight.T + bias        into the workspace, in the dtype of the arguments
    loss, dlogits                            in one visit, dlogits in the place of the logits
    dinput  = dlogits @ weight
    dweight += dlogits.T @ input             added up in float32 (float64), also for 16-bit weights
    dbias   += sum of dlogits over the rows

The order of the steps, chunk by chunk, is that of the driver, which is the same for every device. Nothing here
validates, reduces, or makes the host wait.

Sums of 16-bit gradients: a product of 16-bit matrices with a float32 result (`out_dtype`) is added to float32 sums
where torch has it, which is on CUDA; elsewhere the factors are widened. Rounding each chunk's product to 16 bits would
make the error grow with the number of chunks. A single chunk needs no sums.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xent.backends.gpu import cross_entropy as gpu
from xent.backends.gpu import kernels
from xent.objective import Objective

Range = tuple[int, int]

SCALED = 4096
"""Numbers that one program of `scale` multiplies."""


@dataclass(frozen=True)
class Problem:
    """The arguments of a call: input (rows, features), weight (classes, features), bias (classes,) of one dtype.

    The target is as the row kernels take it; `weight_gradient` is the dtype that the gradient of the weight shall have.
    """

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor
    objective: Objective
    weight_gradient: torch.dtype

    @property
    def compute(self) -> torch.dtype:
        """The dtype of losses and sums."""
        return gpu.compute_dtype(self.input.dtype)

    @property
    def row_bytes(self) -> int:
        """The workspace that one row of a chunk takes: its logits."""
        return self.weight.shape[0] * self.input.element_size()

    @property
    def sum_bytes(self) -> int:
        """What the sums of one class take, where the gradient of the weight is not its own sum."""
        return 0 if self.weight_gradient == self.compute else self.weight.shape[1] * self.compute.itemsize


class Device:
    """The steps (`xent.linear.driver.Steps`), and their results in the attributes `losses` ... `bias_sums`.

    `input`, `weight` and `bias` say which gradients are wanted; the others cost nothing.
    """

    def __init__(
        self,
        problem: Problem,
        chunks: Sequence[Range],
        parts: Sequence[Range],
        row_scale: Tensor | float = 1.0,
        *,
        input: bool = False,
        weight: bool = False,
        bias: bool = False,
    ) -> None:
        self.problem, self.row_scale = problem, row_scale
        rows, classes = problem.input.shape[0], problem.weight.shape[0]
        new = problem.input.new_empty
        self.losses, self.lse = new(rows, dtype=problem.compute), new(rows, dtype=torch.float64)
        self.of_input = torch.empty_like(problem.input) if input else None
        self.of_weight = new(problem.weight.shape, dtype=problem.weight_gradient) if weight else None
        self.bias_sums = torch.zeros(classes, dtype=torch.float64, device=new(0).device) if bias else None
        self._logits = new((_longest(chunks), classes))
        self._single = len(chunks) == 1
        summed = weight and problem.sum_bytes and len(chunks) > 1
        self._sums = new((_longest(parts), problem.weight.shape[1]), dtype=problem.compute) if summed else None
        if not chunks:
            for empty in (self.of_input, self.of_weight):
                if empty is not None:
                    empty.zero_()

    # ----------------------------------------------------------------------------------------------------- the steps

    def make_logits(self, first: int, last: int) -> None:
        """logits = input @ weight.T + bias."""
        problem, logits = self.problem, self._logits[: last - first]
        with _plainly(logits.device):
            if problem.bias is None:
                torch.mm(problem.input[first:last], problem.weight.t(), out=logits)
            else:
                torch.addmm(problem.bias, problem.input[first:last], problem.weight.t(), out=logits)

    def visit(self, first: int, last: int) -> None:
        """Losses and log-sum-exps."""
        rows = slice(first, last)
        logits, target = self._logits[: last - first], self.problem.target[rows]
        gpu.forward(logits, target, self.problem.objective, loss=self.losses[rows], lse=self.lse[rows])

    def visit_with_gradient(self, first: int, last: int) -> None:
        """Losses and log-sum-exps; the logits become their gradient."""
        rows, logits, scale = slice(first, last), self._logits[: last - first], self.row_scale
        gpu.forward_backward(
            logits,
            self.problem.target[rows],
            scale[rows] if isinstance(scale, Tensor) and scale.numel() > 1 else scale,
            self.problem.objective,
            loss=self.losses[rows],
            lse=self.lse[rows],
            out=logits,
        )

    def input_gradient(self, first: int, last: int) -> None:
        """dinput = dlogits @ weight."""
        assert self.of_input is not None
        with _plainly(self._logits.device):
            torch.mm(self._logits[: last - first], self.problem.weight, out=self.of_input[first:last])

    def bias_gradient(self, first: int, last: int) -> None:
        """dbias += column sums of dlogits."""
        assert self.bias_sums is not None
        self.bias_sums += self._logits[: last - first].sum(dim=0, dtype=self.problem.compute)

    def weight_gradient(self, first: int, last: int, part: Range) -> None:
        """dweight += dlogits.T @ input, for the classes of the part."""
        assert self.of_weight is not None
        dlogits, x = self._logits[: last - first, part[0] : part[1]].t(), self.problem.input[first:last]
        gradient = self.of_weight[part[0] : part[1]]
        with _plainly(x.device):
            if self._sums is not None:
                add_product(self._sums[: part[1] - part[0]], dlogits, x, is_first=first == 0)
            elif self._single and gradient.dtype == x.dtype:
                torch.mm(dlogits, x, out=gradient)
            else:
                add_product(gradient, dlogits, x, is_first=first == 0)

    def finish_weight(self, part: Range) -> None:
        """Round the sums to what the gradient of the weight is stored as."""
        if self._sums is not None:
            assert self.of_weight is not None
            self.of_weight[part[0] : part[1]].copy_(self._sums[: part[1] - part[0]])


def scale(gradients: Sequence[Tensor | None], factor: Tensor) -> None:
    """Multiply gradients, in place, by the number that arrives from above; the device looks whether it is 1."""
    for gradient in gradients:
        if gradient is not None and gradient.numel():
            blocks = -(-gradient.numel() // SCALED)
            with gpu.current(gradient.device):
                kernels.scale[(blocks,)](
                    gradient, factor, gradient.numel(), BLOCK=SCALED, num_warps=4, enable_fp_fusion=True
                )


def add_product(total: Tensor, a: Tensor, b: Tensor, *, is_first: bool) -> None:
    """total += a @ b (or total = a @ b for the first), with sums in the dtype of `total`."""
    if a.dtype == total.dtype:
        torch.addmm(total, a, b, beta=0 if is_first else 1, out=total)
    elif a.device.type == "cuda" and torch.version.hip is None:
        torch.addmm(total, a, b, beta=0 if is_first else 1, out_dtype=total.dtype, out=total)
    else:
        torch.addmm(total, a.to(total.dtype), b.to(total.dtype), beta=0 if is_first else 1, out=total)


def _longest(ranges: Sequence[Range]) -> int:
    return max((last - first for first, last in ranges), default=0)


def _plainly(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Without autocast, which would round float32 products to 16 bits."""
    if torch.is_autocast_enabled(device.type):
        off: contextlib.AbstractContextManager[Any] = torch.autocast(device.type, enabled=False)
        return off
    return contextlib.nullcontext()
