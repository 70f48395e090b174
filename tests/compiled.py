"""Compile every Triton kernel for a GPU that need not be there: python compiled.py cuda 90 32, or hip gfx942 64.

Through the calls themselves, on CPU tensors, with launches replaced by compilations. For each kernel the widest load
and store of each compilation are printed; test_gpu.py reads that.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from xent.backends.binary_protocol import Elements
from xent.backends.gpu import binary_kernels, contrast_kernel, divergence_kernel, kernels
from xent.backends.gpu.backend import GpuBackend
from xent.backends.gpu.binary_backend import GpuBinary
from xent.backends.gpu.divergence_kernel import GpuDivergence
from xent.backends.protocol import Statistics
from xent.divergence import Divergence
from xent.linear.contrast import Side
from xent.objective import Objective

EVERYTHING = Objective(
    label_smoothing=0.1, softcap=30.0, z_loss=1e-4, logit_scale=0.5, weight=torch.ones(32000), ignore_index=3
)
NAMES = ("forward", "backward", "forward_backward", "statistics", "statistics_gradient", "scale")


class Driver:
    """As much of a driver as compiling takes."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def is_active(self) -> bool:
        return True


def main(backend: str, architecture: str, warp: str) -> None:
    driver.set_active(
        Driver(GPUTarget(backend, int(architecture) if architecture.isdigit() else architecture, int(warp)))
    )
    found: dict[str, list[str]] = {}
    own = [getattr(kernels, name) for name in NAMES]
    for name, kernel in zip((*NAMES, "divergence"), (*own, divergence_kernel.divergence), strict=True):
        kernel.run = compiling(kernel.run, found.setdefault(name, []))
    binary_kernels.visit.run = compiling(binary_kernels.visit.run, found.setdefault("binary", []))
    binary_kernels.count.run = compiling(binary_kernels.count.run, found.setdefault("count", []))
    for name in ("columns", "gradient"):
        kernel = getattr(contrast_kernel, name)
        kernel.run = compiling(kernel.run, found.setdefault(name, []))
    gpu = GpuBackend()
    labels, lse = torch.zeros(8, dtype=torch.int64), torch.zeros(8, dtype=torch.float64)
    for dtype in (torch.bfloat16, torch.float64):
        x, soft = torch.zeros(8, 32000, dtype=dtype), torch.zeros(8, 32000, dtype=dtype)
        for objective, target in ((Objective(), labels), (EVERYTHING, soft if dtype == torch.bfloat16 else labels)):
            gpu.forward(x, target, objective)
            gpu.forward_backward(x, target, 1.0, objective, finished=torch.ones(()))
            gpu.backward(x, target, lse, torch.ones(8), objective)
        gpu.statistics(x, labels, Objective(softcap=30.0))
        statistics = Statistics(None, lse, lse, None, None)
        gpu.statistics_gradient(x, labels, statistics, (lse, lse, lse), Objective(softcap=30.0))
        gpu.forward_backward(
            torch.zeros(2, 21, 64, dtype=dtype), torch.zeros(2, 64, dtype=torch.int64), 1.0, Objective()
        )
        compile_binary(dtype)
        sides = (Side(lse, lse, lse), Side(*[torch.zeros(32000, dtype=torch.float64)] * 3))
        gpu.column_lse(x, 0, 2.0)
        gpu.contrast_gradient(x, 0, *sides, 2.0)
        pair = (x, torch.zeros(8, 32000, dtype=dtype), labels)
        if dtype == torch.bfloat16:
            GpuDivergence().forward_backward(*pair, 1.0, Divergence(), finished=torch.ones(()))
            GpuDivergence().forward_backward(*pair, 1.0, Divergence(kind="js"))
        else:
            GpuDivergence().forward(*pair, Divergence(kind="reverse", softcap=30.0, z_loss=1e-4))
    gpu.scale(torch.zeros(100), torch.ones(()))
    print(json.dumps(found))


def compile_binary(dtype: torch.dtype) -> None:
    """The usual loss with its gradient; losses without one, of integers; a focal loss; gradients of elements."""
    x, labels = torch.zeros(8, 32000, dtype=dtype), torch.zeros(8, 32000, dtype=torch.uint8)
    binary, scale, weight = GpuBinary(), torch.ones(8, 32000), torch.ones(32000)
    binary.count(Elements(x, x, Objective()))
    binary.count(Elements(x, labels, Objective()))
    everything = Objective(label_smoothing=0.1, softcap=30.0, logit_scale=0.5, ignore_index=3)
    binary.visit(Elements(x, x, Objective()), 1.0, finished=torch.ones(()))
    binary.visit(Elements(x, labels, everything, weight, weight, torch.ones(8, 1)), losses=True)
    binary.visit(Elements(x, x, Objective(focal_gamma=2.0, logit_scale=0.5)), scale)


def compiling(run: Any, codes: list[str]) -> Any:
    """What a launch becomes: the kernel is compiled, and its widest load and store are noted down."""

    def compile(*arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        code = run(*arguments, grid=grid, warmup=True, **options).asm
        text = code.get("ptx") or code["amdgcn"]
        loads = re.findall(r"(?:ld\.global|global_load|buffer_load)\S*", text)
        stores = re.findall(r"(?:st\.global|global_store|buffer_store)\S*", text)
        codes.append(f"{widest(loads)} {widest(stores)}")

    return compile


def widest(instructions: list[str]) -> int:
    """Bits of the widest of these memory instructions."""
    widths = [0]
    for name in instructions:
        count, bits = re.search(r"\.v(\d)", name), re.search(r"\.[bfsu](\d+)", name)
        amd = re.search(r"dwordx(\d)|_b(\d+)|dword\b", name)
        if bits:
            widths.append(int(bits[1]) * int(count[1] if count else 1))
        elif amd:
            widths.append(int(amd[2]) if amd[2] else 32 * int(amd[1] or 1))
    return max(widths)


if __name__ == "__main__":
    main(*sys.argv[1:])
