"""The products of the linear loss by torch, for all devices but the CPU (`xent.linear.driver.Steps`).

Nothing here makes the host wait. The workspace holds the logits of a chunk; sums in float32 for a 16-bit weight come
beside it where there are several chunks: a GPU is for workspaces of a gigabyte.

Sums of 16-bit gradients: a product of 16-bit matrices with a float32 result (`out_dtype`) is added to float32 sums
where torch has it, which is on CUDA; elsewhere the factors are widened. Rounding each chunk's product to 16 bits would
make the error grow with the number of chunks. A single chunk needs no sums.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from xent.linear.divergence import Pair, PairSteps
from xent.linear.driver import NOTHING, Gradients, Layer, Wanted
from xent.linear.plan import Plan, Sizes, make_plan, make_shared_plans

Range = tuple[int, int]


def sizes_of(layer: Layer) -> Sizes:
    """The memory that a call needs, for plan.py."""
    return Sizes(layer.rows, layer.classes, layer.classes * layer.input.element_size())


class TensorSteps:
    """The steps of a call."""

    def __init__(self, layer: Layer, wanted: Wanted, plan: Plan | None = None) -> None:
        self.plan = plan or make_plan(layer.call, sizes_of(layer), layer.workspace)
        self.layer, new = layer, layer.input.new_empty
        compute = torch.float64 if layer.input.dtype == torch.float64 else torch.float32
        # Sums in the gradient itself if it can hold them.
        kept = layer.weight_gradient if layer.weight_gradient == compute else layer.input.dtype
        self.of_input = torch.empty_like(layer.input) if wanted.input else None
        self.of_weight = new(layer.weight.shape, dtype=kept) if wanted.weight else None
        self._bias_sums = new(layer.classes, dtype=torch.float64).zero_() if wanted.bias else None
        self._logits = new((self.plan.chunk_rows, layer.classes))
        self._single, self._compute = len(self.plan.chunks) == 1, compute
        summed = wanted.weight and kept != compute and not self._single
        self._sums = new((self.plan.part_classes, layer.features), dtype=compute) if summed else None

    def gradients(self) -> Gradients:
        """The finished gradients."""
        return Gradients(self.of_input, self.of_weight, self._bias_sums)

    def joined(self, chunks: list[Tensor]) -> Tensor:
        """The numbers of all rows."""
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=-1)

    def make_logits(self, first: int, last: int) -> Tensor:
        """logits = input @ weight.T + bias."""
        layer = self.layer
        logits: Tensor = self._logits[: last - first]
        with _without_autocast(logits.device):
            if layer.bias is None:
                torch.mm(layer.input[first:last], layer.weight.t(), out=logits)
            else:
                torch.addmm(layer.bias, layer.input[first:last], layer.weight.t(), out=logits)
        return logits

    def target(self, first: int, last: int) -> Tensor:
        """The target of these rows."""
        target: Tensor = self.layer.target[first:last]
        return target

    def input_gradient(self, first: int, last: int) -> None:
        """dinput = dlogits @ weight."""
        if self.of_input is not None:
            with _without_autocast(self._logits.device):
                torch.mm(self._logits[: last - first], self.layer.weight, out=self.of_input[first:last])

    def bias_gradient(self, first: int, last: int) -> None:
        """dbias += column sums of dlogits."""
        if self._bias_sums is not None:
            self._bias_sums += self._logits[: last - first].sum(dim=0, dtype=self._compute)

    def weight_gradient(self, first: int, last: int, part: Range) -> None:
        """dweight += dlogits.T @ input, for the classes of the part."""
        if self.of_weight is None:
            return
        dlogits, x = self._logits[: last - first, part[0] : part[1]].t(), self.layer.input[first:last]
        gradient = self.of_weight[part[0] : part[1]]
        with _without_autocast(x.device):
            if self._sums is not None:
                add_product(self._sums[: part[1] - part[0]], dlogits, x, is_first=first == 0)
            elif self._single and gradient.dtype == x.dtype:
                torch.mm(dlogits, x, out=gradient)
            else:
                add_product(gradient, dlogits, x, is_first=first == 0)

    def finish_weight(self, part: Range) -> None:
        """Round the sums to what the gradient of the weight is stored as."""
        if self._sums is not None and self.of_weight is not None:
            self.of_weight[part[0] : part[1]].copy_(self._sums[: part[1] - part[0]])


def pair_steps(pair: Pair, wanted: Wanted) -> PairSteps:
    """The steps of two layers, in one workspace."""
    sizes = (sizes_of(pair.student), sizes_of(pair.teacher))
    of_student, of_teacher = make_shared_plans(pair.student.call, sizes, pair.student.workspace)
    return PairSteps(TensorSteps(pair.student, wanted, of_student), TensorSteps(pair.teacher, NOTHING, of_teacher))


def add_product(total: Tensor, a: Tensor, b: Tensor, *, is_first: bool) -> None:
    """total += a @ b (or total = a @ b for the first), with sums in the dtype of `total`."""
    if a.dtype == total.dtype:
        torch.addmm(total, a, b, beta=0 if is_first else 1, out=total)
    elif a.device.type == "cuda" and torch.version.hip is None:
        torch.addmm(total, a, b, beta=0 if is_first else 1, out_dtype=total.dtype, out=total)
    else:
        torch.addmm(total, a.to(total.dtype), b.to(total.dtype), beta=0 if is_first else 1, out=total)


def _without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Autocast would round float32 products to 16 bits."""
    if torch.is_autocast_enabled(device.type):
        off: contextlib.AbstractContextManager[Any] = torch.autocast(device.type, enabled=False)
        return off
    return contextlib.nullcontext()
