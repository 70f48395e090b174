"""The float64 definition of the binary cross-entropy as a backend of NumPy arrays, where nothing may be compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xent import reference
from xent.arrays import widened
from xent.backends.binary_protocol import Elements, Visited
from xent.backends.definitions import dtype_of, like_logits

Array = NDArray[Any]


@dataclass(frozen=True)
class DefinitionsBinary:
    """The definitions of `xent.reference` (`xent.backends.binary_protocol.BinaryBackend`)."""

    reads_values = True
    one_visit = True

    def visit(
        self,
        elements: Elements,
        scale: Array | float | None = None,
        *,
        losses: bool = False,
        out: Array | None = None,
        after: float = 1.0,
    ) -> Visited:
        """Return losses, their sum, and the gradient of sum(scale * loss) if there is a scale."""
        given = self._arguments(elements)
        with np.errstate(all="ignore"):
            found = reference.binary_cross_entropy(*given)
            gradient = None
            if scale is not None:
                slopes = reference.binary_cross_entropy_gradient(*given) * scale * after
                gradient = like_logits(slopes.reshape(1, -1), elements.logits.reshape(1, -1)).reshape(slopes.shape)
                if out is not None:
                    out[...] = gradient
                    gradient = out
        dtype = np.float64 if dtype_of(elements.logits) == np.float64 else np.float32
        ignored = int(reference.ignored_targets(given[1], elements.objective).sum())
        return Visited(found.astype(dtype) if losses else None, float(found.sum()), ignored, gradient)

    def count(self, elements: Elements) -> float:
        """Return the number of elements that count, or the sum of their sample weights."""
        known = ~reference.ignored_targets(_wide(elements.target), elements.objective)
        if elements.sample_weight is None:
            return float(known.sum())
        return float((known * np.broadcast_to(elements.sample_weight, known.shape)).sum())

    def _arguments(self, elements: Elements) -> tuple[Any, ...]:
        weight = 1.0 if elements.weight is None else elements.weight
        weight = weight if elements.sample_weight is None else weight * elements.sample_weight
        pos_weight = 1.0 if elements.pos_weight is None else elements.pos_weight
        return _wide(elements.logits), _wide(elements.target), elements.objective, weight, pos_weight


def _wide(array: Array) -> Array:
    """An array, also of the bits of bfloat16, in float64."""
    return widened(array).astype(np.float64)
