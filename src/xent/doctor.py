"""What is installed here, which devices there are, and which implementation of the loss would run on each."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import xent

PACKAGES = ("numpy", "numba", "array-api-compat", "torch", "triton", "scikit-learn", "polars", "altair", "typer")


def diagnosis() -> dict[str, dict[str, Any]]:
    """Versions, devices, kernels and threads, as names and values."""
    return {
        "versions": {
            "xent": xent.__version__,
            "python": platform.python_version(),
            **{package: _version(package) for package in PACKAGES},
        },
        "devices": {"processor": _processor(), "cores": os.cpu_count(), "gpu": _gpu()},
        "kernels": _kernels(),
        "threads": {name: os.environ.get(name, "not set") for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _gpu() -> str:
    if importlib.util.find_spec("torch") is None:
        return "not looked for: torch is not installed"
    import torch

    if not torch.cuda.is_available():
        return "none that torch can use"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _kernels() -> dict[str, str]:
    """Each front, and what computes it here."""
    return {"xent.numpy": "the float64 reference (NumPy)"}
