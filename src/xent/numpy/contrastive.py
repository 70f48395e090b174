"""The contrastive loss of two batches of embeddings, and its gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from xent.backends.cpu.products import side_by_side
from xent.backends.cpu.tile import computing_dtype
from xent.checks import as_numpy
from xent.errors import ShapeError, message
from xent.linear.driver import Layer, Wanted
from xent.linear.plan import DEFAULT_WORKSPACE, parse_bytes
from xent.numpy.backends import KERNELS
from xent.numpy.linear import common_dtype, floating
from xent.numpy.rows import Array, as_bits
from xent.objective import Objective, Reduction
from xent.reduction import gradient_scale, reduce


class PairGradients(NamedTuple):
    """The gradients by both batches of embeddings."""

    a: Array
    b: Array


def contrastive_loss(
    a: ArrayLike,
    b: ArrayLike,
    *,
    logit_scale: float = 1.0,
    symmetric: bool = True,
    reduction: Reduction = "mean",
    workspace: int | str = DEFAULT_WORKSPACE,
) -> Array:
    """Contrastive loss of two batches of embeddings: InfoNCE, and with both directions the loss of CLIP.

    *Definition*: with the similarities ``z = logit_scale * a @ b.T`` the loss of pair i is
    ``(cross_entropy(z[i, :], i) + cross_entropy(z[:, i], i)) / 2``: each embedding has to find its partner among all
    of the other batch. Not `symmetric`: the first of the two alone.

    Parameters
    ----------
    a, b : arrays (N, features): row i of both is a pair. For cosine similarities divide rows by their norms before.
    logit_scale : a number above 0, the inverse of the temperature.
    symmetric : whether embeddings of `b` have to find theirs in `a`, too.
    reduction : "mean" or "sum" over the pairs, or "none".
    workspace : bytes, or text such as "128MB": the memory for similarities, and all else that the call needs beside
        arguments and gradients. "auto" is 128 MB.

    Returns
    -------
    a number in nats, or with `reduction="none"` an array (N,), in the dtype that both have together (float32 for 16
    bits).

    Raises
    ------
    ShapeError, DTypeError, ObjectiveError
    ArgumentError
        The workspace holds not even one row of similarities; the message has the least that will do.

    Notes
    -----
    *Memory*: the similarities are not held as a whole, unless the workspace has room for them. *Numerics*: as
    `linear_cross_entropy`.

    Examples
    --------
    >>> float(contrastive_loss([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], logit_scale=2.0).round(4))
    0.1269

    References
    ----------
    van den Oord et al. (2018), Representation Learning with Contrastive Predictive Coding; Radford et al. (2021),
    Learning Transferable Visual Models From Natural Language Supervision
    """
    layer, objective, _ = _layer("contrastive_loss", a, b, workspace, logit_scale, reduction)
    return _reduced(KERNELS.linear.contrast(layer, objective.logit_scale, symmetric=symmetric), layer, objective)


def contrastive_loss_value_and_grad(
    a: ArrayLike,
    b: ArrayLike,
    *,
    logit_scale: float = 1.0,
    symmetric: bool = True,
    reduction: Reduction = "mean",
    workspace: int | str = DEFAULT_WORKSPACE,
) -> tuple[Array, PairGradients]:
    """`contrastive_loss`, and its gradients with respect to both batches (of the sum of the losses for "none").

    Returns
    -------
    loss as `contrastive_loss` gives it, and `PairGradients(a, b)` in the shapes and dtypes of the arguments.

    Examples
    --------
    >>> loss, gradients = contrastive_loss_value_and_grad([[1.0], [0.0]], [[1.0], [0.0]])
    >>> gradients.a.round(4)
    array([[-0.1345],
           [ 0.1922]])
    """
    layer, objective, dtypes = _layer("contrastive_loss_value_and_grad", a, b, workspace, logit_scale, reduction)
    scale = gradient_scale(float(layer.rows), objective)
    if symmetric:
        wanted = Wanted(bias=False)
        found, made = KERNELS.linear.contrast_with_gradients(layer, objective.logit_scale, scale / 2, wanted)
        loss = _reduced(found, layer, objective)
    else:
        losses, _, made = KERNELS.linear.forward_backward(layer, scale, objective, Wanted(bias=False))
        loss = _of_losses(losses, layer, objective)
    dtype = np.result_type(*dtypes) if layer.input.dtype == np.uint16 else layer.input.dtype
    da, db = (array.view(dtype).astype(own, copy=False) for array, own in zip(made[:2], dtypes, strict=True))
    return loss, PairGradients(da, db)


def _layer(
    call: str, a: ArrayLike, b: ArrayLike, workspace: int | str, logit_scale: float, reduction: Reduction
) -> tuple[Layer, Objective, list[np.dtype[Any]]]:
    """The pairs as a layer, the options, and the dtypes of the gradients."""
    objective = Objective(logit_scale=logit_scale, reduction=reduction, call=call)
    given = [as_numpy(call, "a", a), as_numpy(call, "b", b)]
    if given[0].ndim != 2 or given[0].shape != given[1].shape:
        found = f"found shapes {given[0].shape} and {given[1].shape}"
        raise ShapeError(message(call, "b", found, "Pass two arrays (pairs, features), row i of both being a pair"))
    dtypes = [floating(array.dtype) for array in given]
    dtype = common_dtype(dtypes)
    x, w = (as_bits(side_by_side(array.astype(dtype, copy=False))) for array in given)
    labels = np.arange(len(x), dtype=np.int64)
    return Layer(call, x, w, None, labels, w.dtype, parse_bytes(call, workspace)), objective, dtypes


def _reduced(contrast: Any, layer: Layer, objective: Objective) -> Array:
    losses = (contrast.row_loss + contrast.column_loss) / 2
    return _of_losses(losses.astype(computing_dtype(layer.input.dtype)), layer, objective)


def _of_losses(losses: Array, layer: Layer, objective: Objective) -> Array:
    if objective.reduction == "none":
        return losses
    return np.asarray(reduce(KERNELS.rows.total(losses), float(layer.rows), objective), dtype=losses.dtype)[()]
