"""The loss of rows whose target lists a few classes (xent/sparse.py), by the kernels for class indices.

With t of the listed classes, m = sum(t), and y the listed class with the greatest logit,

    loss = sum(t[k] * (lse - z[k])) = m * (lse - z[y]) + sum(t[k] * (z[y] - z[k]))
    dx   = row_scale * (m * q - t) * dz/dx

The kernel of y gives `lse - z[y]` with all its digits, and all terms of the sum are positive. Its gradient, with
row_scale * m, is right for every class that is not listed; those that are, k of each row, are written over. So nothing
of the logits' size is made.

Where all classes have a share (a uniform tail, label smoothing) or a share of the log-sum-exp (z-loss), class
probabilities are made for a few rows at a time, and the kernels for those serve.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xent.arrays import Array, rounded, widened
from xent.objective import Objective
from xent.sparse import dense, namespace, unpacked

CELLS = 2**20
"""Of the class probabilities that are made at once, on the CPU; a GPU is for larger ones."""
CELLS_ON_DEVICE = 2**26


def forward(backend: Any, logits: Array, target: Array, objective: Objective) -> tuple[Array, Array]:
    """`Backend.forward` of packed rows."""
    if _needs_all_classes(target, objective):
        parts = [backend.forward(x, p, objective) for x, p, _ in _blocks(logits, target)]
        losses, saved = (_joined(numbers) for numbers in zip(*parts, strict=True))
        return losses, saved
    listed = _Listed.of(logits, target, objective)
    loss, saved = backend.forward(logits, listed.label, listed.objective)
    return listed.loss(loss), saved


def backward(
    backend: Any,
    logits: Array,
    target: Array,
    saved: Array,
    row_scale: Array | float,
    objective: Objective,
    *,
    out: Array | None = None,
) -> Array:
    """`Backend.backward` of packed rows."""
    if _needs_all_classes(target, objective):
        out = _new(logits) if out is None else out
        for x, p, place in _blocks(logits, target):
            backend.backward(x, p, saved[place], _of(row_scale, place), objective, out=out[place])
        return out
    listed = _Listed.of(logits, target, objective)
    scale = listed.scaled(row_scale)
    gradient = backend.backward(logits, listed.label, saved, scale, listed.objective, out=out)
    listed.put(gradient, saved, row_scale)
    return gradient


def forward_backward(
    backend: Any,
    logits: Array,
    target: Array,
    row_scale: Array | float,
    objective: Objective,
    *,
    out: Array | None = None,
    **more: Any,
) -> tuple[Array, Array, Array]:
    """`Backend.forward_backward` of packed rows."""
    if _needs_all_classes(target, objective):
        out = _new(logits) if out is None else out
        parts = [
            backend.forward_backward(x, p, _of(row_scale, place), objective, out=out[place], **more)
            for x, p, place in _blocks(logits, target)
        ]
        losses, saved = (_joined(numbers) for numbers in zip(*(part[:2] for part in parts), strict=True))
        return losses, saved, out
    listed = _Listed.of(logits, target, objective)
    scale = listed.scaled(row_scale)
    loss, saved, gradient = backend.forward_backward(logits, listed.label, scale, listed.objective, out=out, **more)
    listed.put(gradient, saved, row_scale, **more)
    return listed.loss(loss), saved, gradient


@dataclass(frozen=True)
class _Listed:
    """The classes that rows list: indices, logits, their derivative dz/dx and shares t in float64, each (rows, k)."""

    xp: Any
    ids: Array
    z: Array
    slope: Array | float
    t: Array
    mass: Array
    label: Array
    label_z: Array
    dtype: Any
    """Of losses and arithmetic."""
    objective: Objective
    """Of the kernel for class indices."""

    @classmethod
    def of(cls, logits: Array, target: Array, objective: Objective) -> _Listed:
        xp = namespace(target)
        ids, t, _ = unpacked(target)
        if objective.weight is not None:
            weight = xp.astype(objective.weight, xp.float64)
            t = t * xp.reshape(weight[xp.reshape(ids, (-1,))], ids.shape)
        x = _picked(logits, ids)
        dtype = xp.float64 if x.dtype == xp.float64 else xp.float32
        z, slope = _bent(xp, xp.astype(x, xp.float64), objective)
        counts = xp.where(t == 0, -xp.inf, z)
        place = xp.argmax(counts, axis=1)[:, None]
        label, label_z = (xp.take_along_axis(numbers, place, axis=1)[:, 0] for numbers in (ids, z))
        plain = replace(objective, weight=None, ignore_index=-100)
        return cls(xp, ids, z, slope, t, xp.sum(t, axis=1), label, label_z, dtype, plain)

    def loss(self, of_label: Array) -> Array:
        """The losses of the rows, from those of their labels."""
        xp, above = self.xp, self.label_z[:, None]
        is_zero = (self.t == 0) | (self.z == above)  # 0 times infinity, and infinity less infinity
        terms = xp.where(is_zero, 0.0, self.t * (above - xp.where(is_zero, 0.0, self.z)))
        of_label = xp.where(self.mass == 0, 0.0, self.mass * xp.astype(of_label, xp.float64))
        return xp.astype(of_label + xp.sum(terms, axis=1), self.dtype)

    def scaled(self, row_scale: Array | float) -> Array:
        """The factors of the gradient of the labels' losses."""
        scale = row_scale * self.mass
        return self.xp.astype(scale, self.dtype)

    def put(self, gradient: Array, lse: Array, row_scale: Any, **more: Any) -> None:
        """Write the gradient of the classes that are listed.

        `after` multiplies what was rounded, and `finished` is the number that says, if it is 1, that nothing is wanted.
        """
        xp = self.xp
        scale = row_scale[:, None] if getattr(row_scale, "ndim", 0) else row_scale
        q = xp.exp(self.z - lse.reshape(-1)[:, None])
        found = scale * (self.mass[:, None] * q - self.t) * self.slope
        if more.get("after", 1.0) != 1.0:
            found = xp.astype(xp.astype(found, self.dtype), xp.float64) * more["after"]
        finished = more.get("finished")
        if finished is not None:
            found = xp.where(finished == 1, xp.astype(_picked(gradient, self.ids), xp.float64), found)
        _put(gradient, self.ids, found)


def _needs_all_classes(target: Array, objective: Objective) -> bool:
    return bool(target.shape[2] > 2 or objective.label_smoothing or objective.z_loss)


def _bent(xp: Any, x: Array, objective: Objective) -> tuple[Array, Array | float]:
    """z = softcap * tanh(logit_scale * x / softcap), and its derivative; minus infinity stays."""
    scale, cap = objective.logit_scale, objective.softcap
    if cap is None:
        return x * scale, scale
    u = xp.where(x == -xp.inf, 0.0, x) * (scale / cap)
    z = xp.where(x == -xp.inf, x, cap * xp.tanh(u))
    e = xp.exp(-2.0 * xp.abs(u))
    return z, xp.where(x == -xp.inf, 0.0, scale * 4.0 * e / (1.0 + e) ** 2)


def _blocks(logits: Array, target: Array) -> Any:
    """Some rows of logits, their class probabilities, and their place, one block after the other."""
    rows, classes = logits.shape
    is_numpy = isinstance(target, np.ndarray)
    is_on_cpu = is_numpy or target.device.type == "cpu"
    count = max(1, (CELLS if is_on_cpu else CELLS_ON_DEVICE) // classes)
    xp = namespace(target)
    dtype = xp.float64 if logits.dtype == xp.float64 else xp.float32
    for first in range(0, max(rows, 1), count):
        place = slice(first, first + count)
        yield logits[place], dense(target[place], classes, dtype), place


def _of(row_scale: Any, place: slice) -> Any:
    return row_scale[place] if getattr(row_scale, "ndim", 0) else row_scale


def _joined(parts: Any) -> Array:
    return namespace(parts[0]).concat(list(parts), axis=0)


def _new(logits: Array) -> Array:
    if isinstance(logits, np.ndarray):
        return np.empty(logits.shape, logits.dtype)
    return logits.new_empty(logits.shape)


def _picked(logits: Array, ids: Array) -> Array:
    """The logits of some classes, in the computing dtype."""
    if not isinstance(logits, np.ndarray):
        found = logits.gather(1, ids)
        return found if found.dtype.itemsize > 2 else found.float()
    picked = widened(np.take_along_axis(logits, ids, axis=1))
    return picked if picked.dtype.itemsize > 2 else picked.astype(np.float32)


def _put(gradient: Array, ids: Array, found: Array) -> None:
    if not isinstance(gradient, np.ndarray):
        gradient.scatter_(1, ids, found.to(gradient.dtype))
        return
    np.put_along_axis(gradient, ids, rounded(found, gradient.dtype), axis=1)
