"""What computes the loss of a tensor: the kernels for its device, or formulas of torch operations where there are none.

| device | backend |
|---|---|
| CPU | "numba": xent.backends.cpu |
| CUDA, ROCm, XPU | "triton": xent.backends.gpu, where Triton is installed and knows the device |
| any other | "formula": composed.py |
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Literal

import torch

Backend = Literal["numba", "triton", "formula"]

TRITON_DEVICES = ("cuda", "xpu")
LEAST_CAPABILITY = (8, 0)
"""The oldest NVIDIA devices that Triton compiles for."""

_interpreted = False


def backend_of(device: torch.device) -> Backend:
    """What computes for tensors on this device."""
    if device.type == "cpu":
        return "triton" if _interpreted else "numba"
    return "formula" if why_no_triton(device) else "triton"


@cache
def why_no_triton(device: torch.device) -> str:
    """Why the Triton kernels do not run on this device; empty if they do."""
    if device.type not in TRITON_DEVICES:
        return f"there are no kernels for {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "xpu":
        return "" if torch.xpu.get_device_properties(device).has_fp64 else "the device has no float64"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return "Triton needs compute capability 8.0 or later"
    return ""


def interpret(on: bool) -> None:
    """Send CPU tensors to the Triton kernels too, for tests: under TRITON_INTERPRET=1 they run in NumPy."""
    global _interpreted
    if on:
        import triton

        if not triton.knobs.runtime.interpret:
            raise RuntimeError("set TRITON_INTERPRET=1 before Triton is imported")
    _interpreted = on
