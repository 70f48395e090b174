"""The array libraries that xent.information has to work with, with the few things that the standard leaves out."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np

MODULES = {"numpy": "numpy", "torch": "torch", "jax": "jax.numpy", "array_api_strict": "array_api_strict"}
LIBRARIES = list(MODULES)


@dataclass(frozen=True)
class Library:
    name: str
    module: Any
    narrow: tuple[str, ...]  # the 16-bit floating dtypes
    smallest: dict[str, float]  # below this the library's arithmetic may flush to zero

    def asarray(self, values: Any, dtype: str = "float64") -> Any:
        return self.module.asarray(values, dtype=getattr(self.module, dtype))

    def integers(self, values: Any) -> Any:
        return self.module.asarray(values, dtype=self.module.int64)

    def numpy(self, array: Any) -> np.ndarray:
        if self.name == "torch":
            return array.detach().cpu().numpy()
        return np.from_dlpack(array) if self.name == "array_api_strict" else np.asarray(array)

    def is_native(self, array: Any) -> bool:
        return type(array) is type(self.asarray([0.0])) or (self.name == "numpy" and isinstance(array, np.floating))


@functools.cache
def load(name: str) -> Library:
    if name == "jax":
        importlib.import_module("jax").config.update("jax_enable_x64", True)
    narrow = {"numpy": ("float16",), "array_api_strict": ()}.get(name, ("float16", "bfloat16"))
    # XLA's CPU code treats subnormal numbers as zero.
    smallest = {d: float(np.finfo(d).tiny if name == "jax" else np.finfo(d).smallest_subnormal) for d in FLOATS}
    return Library(name, importlib.import_module(MODULES[name]), narrow, smallest)


FLOATS = ("float32", "float64")
