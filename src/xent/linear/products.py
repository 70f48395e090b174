"""Matrix products by the library that does each of them best on this machine, as measured once.

A linear loss makes three products, of which each library is good at some: on one AMD processor NumPy's OpenBLAS did
`input @ weight.T` 1.5 times as fast as torch's MKL, and was slower at `dlogits @ weight`. Which is best for whom is not
known beforehand, so it is measured, in some seconds, when the first large product is asked for. The choice is kept on
disk (`$XDG_CACHE_HOME/xent`, `~/.cache/xent`), so that results of different processes are the same bits; without a
writable folder each process measures anew. Small products are made by the first library of the list without a question.

torch takes part when somebody has imported it already: importing it for one product would cost seconds, and
`xent.numpy` does not need it. NumPy takes part when it may use all processors, since it has no call for the number of
threads. After a fork torch is left alone, whose threads do not survive one.

16-bit products are torch's or nobody's: without them 16-bit numbers are widened to float32, a few classes at a time
(host.py), and that is also what happens where torch's are slower (processors without instructions for them).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import llvmlite.binding
import numpy as np
from numpy.typing import NDArray

from xent.backends.cpu.threads import available_processors
from xent.linear import openblas

Array = NDArray[Any]
Library = Literal["numpy", "torch"]

BFLOAT16 = np.dtype(np.uint16)
LARGE = 10**10
"""Operations of a call from which on it is worth asking which library is best."""
MARGIN = 1.15
"""By which factor the best for each product has to be faster than the usual library to be chosen.

The threads of a library go on waiting for work for a while, which slows the other's down: a product that took 211 ms
among its like took 256 ms between products of the other library.
"""
WIDENING = 1.2
"""How many times as long as its products 16-bit numbers take that are widened first."""
ROWS, FEATURES, CLASSES = 512, 768, 16001
"""Of the products that are measured: with 6001 classes the choice was another than with 50257, and wrong for them."""
BLOCKS, ROUNDS = 2, 2
"""Each library has its rounds in a block, so that no threads of the other wait for work meanwhile."""
PAUSE = 0.05
"""Seconds before a block, after which they have stopped."""


@dataclass(frozen=True)
class Products:
    """The library of each product for one dtype. `native` is False if 16-bit numbers are better widened first."""

    logits: Library = "numpy"
    input_gradient: Library = "numpy"
    weight_gradient: Library = "numpy"
    native: bool = True


def multiply(library: Library, a: Array, b: Array, out: Array, *, add: bool = False) -> None:
    """Write a @ b to out, or add it to what is there (if `adds`). uint16 stands for bfloat16 (torch only)."""
    if library == "numpy":
        if add:
            openblas.add_product(a, b, out)
        else:
            # Infinities and NaN are results like others, which make their own row NaN.
            with np.errstate(over="ignore", invalid="ignore"):
                np.matmul(a, b, out=out)
        return
    torch = sys.modules["torch"]
    with _plainly(torch):
        tensors = _tensor(a), _tensor(b), _tensor(out)
        if add:
            torch.addmm(tensors[2], *tensors[:2], out=tensors[2])
        else:
            torch.mm(*tensors[:2], out=tensors[2])


def side_by_side(array: Array) -> Array:
    """A matrix as BLAS takes it: copied unless its rows or its columns lie side by side, one behind the other."""
    (rows, columns), (down, across), item = array.shape, array.strides, array.itemsize
    fits = (across == item and down >= columns * item) or (down == item and across >= rows * item)
    return array if fits and array.flags.aligned else np.ascontiguousarray(array)


def adds(library: Library, dtype: np.dtype[Any]) -> bool:
    """Whether `multiply` can add to arrays of this dtype."""
    return library == "torch" or openblas.adds(dtype)


def multiply_and_add(a: Array, b: Array, bias: Array, out: Array) -> None:
    """Write a @ b + bias to out, by torch: in 16 bits it is rounded once."""
    torch = sys.modules["torch"]
    with _plainly(torch):
        torch.addmm(_tensor(bias), _tensor(a), _tensor(b), out=_tensor(out))


def products_for(dtype: np.dtype[Any], operations: float, threads: int) -> Products:
    """Return who makes the products of a call with so many operations (multiplications and additions)."""
    libraries = available(threads)
    if dtype.itemsize == 2:
        if dtype == BFLOAT16 and "torch" in libraries and _is_native(operations, threads, tuple(libraries)):
            return Products("torch", "torch", "torch")
        return replace(products_for(np.dtype(np.float32), operations, threads), native=False)
    if operations < LARGE or len(libraries) == 1:
        return Products(libraries[0], libraries[0], libraries[0])
    return _measured(dtype.name, threads, tuple(libraries))


def _is_native(operations: float, threads: int, libraries: tuple[Library, ...]) -> bool:
    """Whether bfloat16 is multiplied as it is: for small products if torch says that the processor can."""
    if operations < LARGE:
        return bool(sys.modules["torch"].ops.mkldnn._is_mkldnn_bf16_supported())
    return _measured(BFLOAT16.name, threads, libraries).native


def available(threads: int) -> list[Library]:
    """The libraries that may be asked, the first being the one for small products."""
    torch = sys.modules.get("torch")
    has_torch = torch is not None and not _forked and hasattr(torch, "addmm")
    all_processors = threads >= available_processors()
    if not has_torch:
        return ["numpy"]
    return ["numpy", "torch"] if all_processors else ["torch"]


# ------------------------------------------------------------------------------------------------------ measured, once


@cache
def _measured(dtype: str, threads: int, libraries: tuple[Library, ...]) -> Products:
    path = _path(dtype, threads, libraries)
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Products(**json.loads(path.read_text(encoding="utf-8")))
    chosen = measure(np.dtype(dtype), libraries)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(asdict(chosen)), encoding="utf-8")
        os.replace(part, path)
    return chosen


def measure(dtype: np.dtype[Any], libraries: Sequence[Library]) -> Products:
    """Measure the products on random numbers; the least of some rounds counts."""
    if dtype == BFLOAT16:
        native = sum(_rounds(BFLOAT16, ["torch"]).values())
        wide = _rounds(np.dtype(np.float32), libraries)
        widened = min(sum(wide[name, library] for name in PRODUCTS) for library in libraries)
        return Products("torch", "torch", "torch", native=native < WIDENING * widened)
    usual = _usual(libraries)
    chosen = _chosen(_rounds(dtype, libraries), libraries)
    # Another choice has to win twice: others may have used the processor.
    return usual if chosen == usual else _chosen(_rounds(dtype, libraries), libraries)


def _usual(libraries: Sequence[Library]) -> Products:
    """torch, if somebody has imported it: the rest of such a program multiplies with its threads."""
    library: Library = "torch" if "torch" in libraries else libraries[0]
    return Products(library, library, library)


def _chosen(seconds: dict[tuple[str, Library], float], libraries: Sequence[Library]) -> Products:
    """The usual library, or the best for each product where that is a good deal faster."""
    best: dict[str, Library] = {}
    for name in PRODUCTS:
        best[name] = min(libraries, key=lambda library: seconds[name, library])
    usual = _usual(libraries)
    least = sum(seconds[name, best[name]] for name in PRODUCTS)
    if least * MARGIN < sum(seconds[name, library] for name, library in asdict(usual).items() if name in PRODUCTS):
        return Products(best["logits"], best["input_gradient"], best["weight_gradient"])
    return usual


def _rounds(dtype: np.dtype[Any], libraries: Sequence[Library]) -> dict[tuple[str, Library], float]:
    """The least seconds of each product by each library."""
    rng = np.random.default_rng(0)
    shapes = {"x": (ROWS, FEATURES), "w": (CLASSES, FEATURES), "g": (ROWS, CLASSES)}
    arrays = {name: _random(rng, shape, dtype) for name, shape in shapes.items()}
    out = {name: np.empty_like(array) for name, array in arrays.items()}
    seconds: dict[tuple[str, Library], float] = {}
    for library in [*libraries] * BLOCKS:
        time.sleep(PAUSE)
        for done in range(ROUNDS + 1):
            for name, product in PRODUCTS.items():
                start = time.perf_counter()
                product(library, arrays, out)
                elapsed = time.perf_counter() - start
                if done:  # the first round wakes threads up and touches memory
                    seconds[name, library] = min(elapsed, seconds.get((name, library), elapsed))
    return seconds


def _random(rng: np.random.Generator, shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
    numbers = rng.standard_normal(shape, np.float32)
    return (numbers.view(np.uint32) >> 16).astype(np.uint16) if dtype == BFLOAT16 else numbers.astype(dtype)


Arrays = dict[str, Array]
PRODUCTS: dict[str, Callable[[Library, Arrays, Arrays], None]] = {
    "logits": lambda library, a, out: multiply(library, a["x"], a["w"].T, out["g"]),
    "input_gradient": lambda library, a, out: multiply(library, a["g"], a["w"], out["x"]),
    "weight_gradient": lambda library, a, out: multiply(library, a["g"].T, a["x"], out["w"]),
}


def _path(dtype: str, threads: int, libraries: Sequence[Library]) -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xent"
    versions = [f"{name} {sys.modules[name].__version__}" for name in libraries]
    about = json.dumps([5, llvmlite.binding.get_host_cpu_name(), dtype, threads, *versions])
    return folder / f"products.{hashlib.sha256(about.encode()).hexdigest()[:16]}.json"


# ------------------------------------------------------------------------------------------------------ torch's memory


class _Writable:
    """The memory of an array without its mark that it is read-only, about which torch would warn."""

    def __init__(self, array: Array) -> None:
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def _tensor(array: Array) -> Any:
    torch = sys.modules["torch"]
    tensor = torch.from_numpy(array if array.flags.writeable else np.asarray(_Writable(array)))
    return tensor.view(torch.bfloat16) if array.dtype == BFLOAT16 else tensor


def _plainly(torch: Any) -> contextlib.AbstractContextManager[Any]:
    """Without autocast, which would round float32 products to 16 bits."""
    if torch.is_autocast_enabled("cpu"):
        off: contextlib.AbstractContextManager[Any] = torch.autocast("cpu", enabled=False)
        return off
    return contextlib.nullcontext()


_forked = False


def _left_alone() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_left_alone)
