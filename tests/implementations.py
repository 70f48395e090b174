"""What the tests run: every implementation of softmax cross-entropy behind one small interface.

To add one (a device, a front), append an Implementation to the list at the end; no test names an implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import xent.numpy
import xent.reference
from xent.objective import Objective

Array = np.ndarray
Options = dict[str, Any]


@dataclass(frozen=True)
class Implementation:
    """Per-row loss and gradient, `run(logits, target, options, row_scale)`, as NumPy arrays.

    The gradient is that of sum(row_scale * loss). `call(logits, target, **options)` is the front's own call, which
    checks and reduces: value and gradient; None for what only computes rows.
    """

    name: str
    dtypes: tuple[str, ...]
    run: Callable[[Array, Array, Options, Array | None], tuple[Array, Array]]
    call: Callable[..., tuple[Any, Array]] | None = None
    kernel: bool = True  # the accuracy of an ordinary computation in that dtype; False: that of the reference

    def arithmetic(self, dtype: str) -> str:
        """The dtype in which logits of this dtype are computed."""
        return "float64" if dtype == "float64" or not self.kernel else "float32"

    def loss_and_gradient(
        self, logits: Array, target: Array, objective_options: Options, row_scale: Array | None = None
    ) -> tuple[Array, Array]:
        return self.run(logits, target, objective_options, row_scale)


def _reference(logits: Array, target: Array, options: Options, row_scale: Array | None) -> tuple[Array, Array]:
    weight = options.get("weight")
    objective = Objective(**{**options, "weight": None if weight is None else np.asarray(weight, dtype=np.float64)})
    gradient = xent.reference.cross_entropy_gradient(logits, target, objective)
    loss, _ = xent.reference.cross_entropy(logits, target, objective)
    return loss, gradient if row_scale is None else gradient * row_scale[:, None]


def _numpy(logits: Array, target: Array, options: Options, row_scale: Array | None) -> tuple[Array, Array]:
    loss, gradient = xent.numpy.cross_entropy_value_and_grad(logits, target, **{**options, "reduction": "none"})
    return loss, gradient if row_scale is None else gradient * row_scale[:, None].astype(gradient.dtype)


REFERENCE = Implementation("reference", ("float64",), _reference, kernel=False)
NUMPY = Implementation("numpy", ("float64", "float32", "float16"), _numpy, call=xent.numpy.cross_entropy_value_and_grad)

IMPLEMENTATIONS = [REFERENCE, NUMPY]
FRONTS = [implementation for implementation in IMPLEMENTATIONS if implementation.call is not None]
