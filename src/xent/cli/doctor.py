"""`xent doctor`: what is installed here, which devices there are, and which implementation of the loss runs on each."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer
from rich.table import Table

import xent
from xent.cli.app import reported_errors, terminal
from xent.environment import SETTINGS, setting
from xent.names import visible

PACKAGES = ("numpy", "numba", "array-api-compat", "torch", "triton", "scikit-learn", "polars", "altair", "typer")


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")] = False,
) -> None:
    """Show versions, devices, which kernels would run here and why, and the number of threads."""
    with reported_errors():
        sections = diagnosis()
    if as_json:
        print(json.dumps(sections))
        return
    console = terminal()
    for title, rows in sections.items():
        table = Table(title=title.capitalize(), title_justify="left", show_header=False, box=None, padding=(0, 2))
        for name, value in rows.items():
            table.add_row(name, visible(str(value)))
        console.print(table, "")


def diagnosis() -> dict[str, dict[str, Any]]:
    """Versions, devices, kernels and threads, as names and values."""
    from xent.bench.machine import processor

    return {
        "versions": {
            "xent": xent.__version__,
            "python": platform.python_version(),
            **{package: _version(package) for package in PACKAGES},
        },
        "devices": {"processor": processor(), "cores": os.cpu_count(), "gpu": _gpu()},
        "kernels": _kernels(),
        "threads": _threads(),
        "environment": _settings(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _gpu() -> str:
    if importlib.util.find_spec("torch") is None:
        return "not looked for: torch is not installed"
    import torch

    if not torch.cuda.is_available():
        return "none that torch can use"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _kernels() -> dict[str, str]:
    """Which implementation each front uses here."""
    if importlib.util.find_spec("torch") is None:
        torch_front = "not available: torch is not installed; pip install 'xent[torch]'"
    else:
        torch_front = "CPU tensors: Numba kernels; " + _gpu_kernels()
    return {
        "xent.numpy": "cross_entropy, linear_cross_entropy: Numba kernels; squared_error: the float64 reference",
        "xent.torch": torch_front,
        "compiler": _compiler(),
        "compiled code": _cache(),
        "large results": _kept(),
    }


def _gpu_kernels() -> str:
    """What computes on each GPU, and why; without a GPU, what would."""
    import torch

    from xent.backends.choice import TRITON_DEVICES, why_no_triton

    modules = {name: torch.get_device_module(name) for name in TRITON_DEVICES}
    devices = [torch.device(name, index) for name, module in modules.items() for index in range(module.device_count())]
    if not devices:
        if importlib.util.find_spec("triton") is None:
            return "a GPU would get formulas of torch operations, because triton is not installed"
        return "a GPU would get the Triton kernels; other devices formulas of torch operations"
    lines = []
    for device in devices:
        reason = why_no_triton(device)
        lines.append(
            f"{device}: formulas of torch operations, because {reason}" if reason else f"{device}: Triton kernels"
        )
    return "; ".join(lines)


def _compiler() -> str:
    """How kernels are compiled, and what this version of Numba does not allow."""
    from xent.backends.cpu._numba import missing_internals

    return "; ".join(missing_internals()) or f"Numba {_version('numba')}, by pipelines of xent's own"


def _cache() -> str:
    """Where compiled kernels are cached, or why they are not."""
    from xent.backends.cpu._numba import FAILURES
    from xent.backends.cpu.compilation import cache_folder
    from xent.backends.cpu.disk_cache import untrusted

    folder = cache_folder()
    if folder:
        ignored = untrusted(folder)
        names = ", ".join(f"{name} ({reason})" for name, reason in list(ignored.items())[:3])
        return f"kept in {folder}" + (f"; {len(ignored)} files ignored: {names}" if ignored else "")
    return "not kept" if "cache" in FAILURES else "not kept: no writable folder; set NUMBA_CACHE_DIR to one"


def _kept() -> str:
    """Whether the memory of large results is reused."""
    from xent import memory

    if not memory.HAS_PRIVATE_PAGES:
        return "new memory each time: this system has no MADV_FREE"
    return f"up to {memory.limit()} bytes kept for the next call; {memory.VARIABLE} sets another limit"


def _threads() -> dict[str, Any]:
    from xent.backends.cpu.threads import get_num_threads, uses_openmp

    source = "torch's, of its OpenMP runtime" if uses_openmp() else "a pool of xent's own"
    return {"kernels use": get_num_threads(), "the threads are": source}


def _settings() -> dict[str, str]:
    """The environment variables that change something here."""
    others = ("NUMBA_CACHE_DIR", "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    for name in SETTINGS:
        setting(name)  # refuses what is no use
    return {name: os.environ.get(name, "not set") for name in (*SETTINGS, *others)}
