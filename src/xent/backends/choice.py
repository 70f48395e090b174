"""Which backend computes for a tensor: the only place that asks where a tensor is.

| device | backend |
|---|---|
| CPU | xent.backends.cpu; xent.backends.formula where nothing may be compiled (NUMBA_DISABLE_JIT) |
| CUDA, ROCm, XPU | xent.backends.gpu, where Triton is installed and supports the device |
| any other | xent.backends.formula |
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import torch

from xent.backends.binary_protocol import BinaryBackend
from xent.backends.cpu import binary_tensors, divergence_tensors, tensors
from xent.backends.definitions import NOTHING_IS_COMPILED
from xent.backends.divergence_formula import DIVERGENCE_FORMULA
from xent.backends.divergence_protocol import DivergenceBackend
from xent.backends.formula import FORMULA
from xent.backends.formula_binary import FORMULA_BINARY
from xent.backends.protocol import Backend
from xent.backends.tensor_steps import TensorSteps, pair_steps
from xent.linear.backend import LinearBackend
from xent.linear.divergence import LinearDivergence

TRITON_DEVICES = ("cuda", "xpu")
LEAST_CAPABILITY = (8, 0)
"""The oldest NVIDIA devices that Triton compiles for."""

LIMIT, OF_A_ROW = 2**18, 256
"""torch's own mean loss of labels is the faster one for rows * (classes + OF_A_ROW) <= LIMIT.

Measured on two threads of an EPYC (family 25), for 16 x 10 to 1 x 128256 logits: at 200 x 1000, 512 x 10 and 4 x 50257
both take as long.
"""
COMPUTED = (torch.float32, torch.float64)
"""The dtypes of logits whose loss is of that dtype."""

_interpreted = False


def choose(device: torch.device) -> Backend:
    """Return the backend for logits on this device."""
    if device.type == "cpu" and not _interpreted:
        return FORMULA if NOTHING_IS_COMPILED else tensors.CPU
    return _elsewhere(device)[0]


def choose_linear(device: torch.device) -> Any:
    """Return the backend for a linear layer on this device, or None where formulas have to hold the logits."""
    if device.type == "cpu" and not _interpreted:
        return None if NOTHING_IS_COMPILED else tensors.LINEAR_CPU
    return _elsewhere(device)[1]


def choose_binary(device: torch.device) -> BinaryBackend:
    """Return the backend of the binary cross-entropy for logits on this device."""
    if device.type == "cpu" and not _interpreted:
        return FORMULA_BINARY if NOTHING_IS_COMPILED else binary_tensors.CPU_BINARY
    backend: BinaryBackend = _elsewhere(device)[2]
    return backend


def choose_divergence(device: torch.device) -> DivergenceBackend:
    """Return the backend for divergences of logits on this device."""
    backend = choose(device)
    if backend is tensors.CPU:
        return divergence_tensors.DIVERGENCE_CPU
    if backend is FORMULA:
        return DIVERGENCE_FORMULA
    from xent.backends.gpu.divergence_kernel import GpuDivergence  # loads Triton

    return GpuDivergence()


def choose_linear_divergence(device: torch.device) -> Any:
    """Return the backend for divergences of two layers on this device, or None where formulas hold the logits."""
    backend = choose_linear(device)
    if backend is None or backend is tensors.LINEAR_CPU:
        return None if backend is None else divergence_tensors.LINEAR_DIVERGENCE_CPU
    return LinearDivergence(choose_divergence(device), pair_steps)


def _elsewhere(device: torch.device) -> tuple[Backend, Any, Any]:
    """The backends for a device other than the CPU: of rows, of a linear layer, of binary losses."""
    if device not in _found:
        if device.type != "cpu" and why_no_triton(device):
            _found[device] = FORMULA, None, FORMULA_BINARY
        else:
            from xent.backends.gpu.backend import GpuBackend  # loads Triton
            from xent.backends.gpu.binary_backend import GpuBinary

            backend = GpuBackend()
            _found[device] = backend, LinearBackend(backend, TensorSteps), GpuBinary()
    return _found[device]


# torch's compiler calls it and does not look into it: torch.compiler.assume_constant_result, which loads the compiler.
_elsewhere._dynamo_marked_constant = True  # type: ignore[attr-defined]
_found: dict[torch.device, tuple[Backend, Any, Any]] = {}


@cache
def why_no_triton(device: torch.device) -> str:
    """Why the Triton kernels do not run on this device; empty if they do."""
    if device.type not in TRITON_DEVICES:
        return f"there are no kernels for {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install 'xent[gpu]')"
    if device.type == "xpu":
        return "" if torch.xpu.get_device_properties(device).has_fp64 else "the device has no float64"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return "Triton needs compute capability 8.0 or later"
    return ""


def interpret(on: bool) -> None:
    """Send CPU tensors to the Triton kernels too, for tests: under TRITON_INTERPRET=1 they run in NumPy."""
    global _interpreted, LIMIT
    LIMIT = 0
    if on:
        import triton

        if not triton.knobs.runtime.interpret:
            raise RuntimeError("set TRITON_INTERPRET=1 before Triton is imported")
    _interpreted = on
