"""The divergences of two linear layers without the logits of either, and their gradients by the student's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike

from xent.backends.cpu.products import side_by_side
from xent.checks import Layout, as_numpy, check_linear_shapes, check_teacher_layer
from xent.divergence import Direction, Divergence, DivergenceOptions
from xent.linear.divergence import Pair
from xent.linear.driver import Layer, Wanted
from xent.linear.plan import DEFAULT_WORKSPACE, parse_bytes
from xent.numpy.divergences import common_dtype, floating, of_rows
from xent.numpy.linear import LayerRows, linear_cross_entropy_value_and_grad
from xent.numpy.listed_divergence import kl_divergence_from_list
from xent.numpy.rows import Array, as_bits
from xent.reference import Gradients
from xent.sparse import SparseTarget


def linear_kl_divergence(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target_input: ArrayLike | SparseTarget,
    target_weight: ArrayLike | None = None,
    *,
    linear_bias: ArrayLike | None = None,
    target_bias: ArrayLike | None = None,
    direction: Direction = "forward",
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    workspace: int | str = DEFAULT_WORKSPACE,
    **options: Unpack[DivergenceOptions],
) -> Array:
    """KL divergence of a student's linear layer from its teacher's, without the logits of either: distillation.

    *Definition*: ``kl_divergence(input @ linear_weight.T + linear_bias, target_input @ target_weight.T +
    target_bias)``.

    Parameters
    ----------
    input, linear_weight, linear_bias : arrays (..., features), (C, features) and (C,): the student's layer.
    target_input, target_weight, target_bias : the teacher's, whose width may be another; or a `SparseTarget`, its top
        k, in place of all three.
    labels : integers (...), optional: a row labelled `ignore_index` counts for nothing; see `kl_divergence`.
    direction, sample_weight, **options : see `kl_divergence`.
    workspace : see `linear_cross_entropy`; it holds the logits of both for a chunk of rows.

    Returns
    -------
    as `kl_divergence`, in the dtype that the arguments have together (float32 for 16 bits).

    Raises
    ------
    ShapeError, DTypeError, ObjectiveError
    ArgumentError
        The workspace holds not even one row; the message has the least that will do.

    Examples
    --------
    >>> float(linear_kl_divergence([[1.0]], [[0.0], [0.0]], [[1.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]).round(4))
    0.3278
    """
    given: dict[str, Any] = {"direction": direction, **options}
    call, layer = "linear_kl_divergence", (input, linear_weight, linear_bias)
    if isinstance(target_input, SparseTarget):
        return _from_list(call, layer, target_input, labels, sample_weight, workspace, given)[0]
    tensors = (*layer, target_input, target_weight, target_bias)
    return _rows(call, "kl_divergence", tensors, labels, sample_weight, workspace, given).value()


def linear_kl_divergence_value_and_grad(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target_input: ArrayLike | SparseTarget,
    target_weight: ArrayLike | None = None,
    *,
    linear_bias: ArrayLike | None = None,
    target_bias: ArrayLike | None = None,
    direction: Direction = "forward",
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    workspace: int | str = DEFAULT_WORKSPACE,
    **options: Unpack[DivergenceOptions],
) -> tuple[Array, Gradients]:
    """`linear_kl_divergence`, and its gradients with respect to the student's input, weight and bias.

    Returns
    -------
    loss as `linear_kl_divergence` gives it, and `Gradients(input, linear_weight, linear_bias)` in the shapes and dtypes
    of the arguments; `linear_bias` is None without a bias.

    Examples
    --------
    >>> layers = [[1.0]], [[0.0], [0.0]], [[1.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]
    >>> linear_kl_divergence_value_and_grad(*layers)[1].linear_weight.round(4)
    array([[-0.3808],
           [ 0.3808]])
    """
    given: dict[str, Any] = {"direction": direction, **options}
    call, layer = "linear_kl_divergence_value_and_grad", (input, linear_weight, linear_bias)
    if isinstance(target_input, SparseTarget):
        return _from_list(call, layer, target_input, labels, sample_weight, workspace, given)
    tensors = (*layer, target_input, target_weight, target_bias)
    return _rows(call, "kl_divergence", tensors, labels, sample_weight, workspace, given).value_and_gradients()


def _from_list(
    call: str,
    layer: tuple[ArrayLike, ArrayLike, ArrayLike | None],
    target: SparseTarget,
    labels: ArrayLike | None,
    sample_weight: ArrayLike | None,
    workspace: int | str,
    options: Mapping[str, Any],
) -> tuple[Array, Gradients]:
    x, w = (as_numpy(call, name, array) for name, array in zip(("input", "linear_weight"), layer[:2], strict=True))
    check_linear_shapes(call, x.shape, w.shape, None)
    of_layer: dict[str, Any] = {"linear_bias": layer[2], "workspace": workspace}
    loss, shape = partial(linear_cross_entropy_value_and_grad, x, w, **of_layer), (*x.shape[:-1], w.shape[0])
    rows = (target, shape, len(shape) - 1, labels, sample_weight, options)
    found, gradients, factor = kl_divergence_from_list(call, loss, *rows)
    if factor == 1.0:
        return found, gradients
    scaled: Any = (None if one is None else (factor * one).astype(one.dtype, copy=False) for one in gradients)
    return found, Gradients(*scaled)


def linear_js_divergence(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target_input: ArrayLike,
    target_weight: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    target_bias: ArrayLike | None = None,
    beta: float = 0.5,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    workspace: int | str = DEFAULT_WORKSPACE,
    **options: Unpack[DivergenceOptions],
) -> Array:
    """Generalised Jensen-Shannon divergence of two linear layers, without the logits of either.

    Parameters
    ----------
    beta : the teacher's share of the mixture; see `js_divergence`.
    input, linear_weight, target_input, target_weight, linear_bias, target_bias, labels, sample_weight, workspace,
        **options : see `linear_kl_divergence`.

    Returns
    -------
    as `linear_kl_divergence`.

    Raises
    ------
    ShapeError, DTypeError, ObjectiveError, ArgumentError

    Examples
    --------
    >>> float(linear_js_divergence([[1.0]], [[0.0], [0.0]], [[1.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]).round(4))
    0.0895
    """
    given: dict[str, Any] = {"beta": beta, **options}
    tensors = (input, linear_weight, linear_bias, target_input, target_weight, target_bias)
    call = "linear_js_divergence"
    return _rows(call, "js_divergence", tensors, labels, sample_weight, workspace, given).value()


def linear_js_divergence_value_and_grad(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target_input: ArrayLike,
    target_weight: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    target_bias: ArrayLike | None = None,
    beta: float = 0.5,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    workspace: int | str = DEFAULT_WORKSPACE,
    **options: Unpack[DivergenceOptions],
) -> tuple[Array, Gradients]:
    """`linear_js_divergence`, and its gradients with respect to the student's input, weight and bias.

    Returns
    -------
    loss as `linear_js_divergence` gives it, and `Gradients` as `linear_kl_divergence_value_and_grad`.

    Examples
    --------
    >>> layers = [[1.0]], [[0.0], [0.0]], [[1.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]
    >>> linear_js_divergence_value_and_grad(*layers)[1].linear_weight.round(4)
    array([[-0.1002],
           [ 0.1002]])
    """
    given: dict[str, Any] = {"beta": beta, **options}
    tensors = (input, linear_weight, linear_bias, target_input, target_weight, target_bias)
    call = "linear_js_divergence_value_and_grad"
    return _rows(call, "js_divergence", tensors, labels, sample_weight, workspace, given).value_and_gradients()


@dataclass(frozen=True)
class _PairRows(LayerRows):
    pair: Pair
    options: Divergence

    def value(self) -> Array:
        """The loss."""
        return self.reduced(self.backends.linear_divergences.forward(self.pair, self.options)[0])

    def value_and_gradients(self) -> tuple[Array, Gradients]:
        """The loss and the gradients by the student's layer."""
        backend = self.backends.linear_divergences
        found = backend.forward_backward(self.pair, self.gradient_scale(), self.options, Wanted())
        return self.reduced(found[0]), self.gradients(found[2])


NAMES = ("input", "linear_weight", "linear_bias", "target_input", "target_weight", "target_bias")


def _rows(
    call: str,
    loss: str,
    tensors: tuple[ArrayLike | None, ...],
    labels: ArrayLike | None,
    sample_weight: ArrayLike | None,
    workspace: int | str,
    options: dict[str, Any],
) -> _PairRows:
    divergence = Divergence.of_loss(call, loss, options)
    arrays = {
        name: None if given is None and name.endswith("bias") else floating(as_numpy(call, name, given))
        for name, given in zip(NAMES, tensors, strict=True)
    }
    shapes: Any = {name: None if array is None else array.shape for name, array in arrays.items()}
    check_linear_shapes(call, shapes["input"], shapes["linear_weight"], shapes["linear_bias"])
    check_teacher_layer(call, shapes)
    logits_shape = (*shapes["input"][:-1], shapes["linear_weight"][0])
    how = Layout(logits_shape, len(logits_shape) - 1, soft=True)
    kept, weights, denominator = of_rows(call, labels, sample_weight, how, divergence)
    given = [array for array in arrays.values() if array is not None]
    dtype = given[0].dtype
    for array in given[1:]:
        dtype = common_dtype(dtype, array.dtype)
    room = parse_bytes(call, workspace)
    student, teacher = (
        _layer(call, arrays, prefix, how, dtype, room) for prefix in (("input", "linear"), ("target_input", "target"))
    )
    own: Any = [arrays[name] for name in NAMES[:3]]
    dtypes = (own[0].dtype, own[1].dtype, own[1 if own[2] is None else 2].dtype)
    shape = shapes["input"]
    common = (student.target, divergence, how, dtype, denominator, weights)
    return _PairRows(*common, shape, dtypes, Pair(student, teacher, kept), divergence)


def _layer(
    call: str, arrays: dict[str, Array | None], names: tuple[str, str], how: Layout, dtype: np.dtype[Any], room: int
) -> Layer:
    """One of the layers as `xent.linear` takes it, without a target of its own."""
    input, weight, bias = arrays[names[0]], arrays[f"{names[1]}_weight"], arrays[f"{names[1]}_bias"]
    assert input is not None
    assert weight is not None
    x, w = (
        as_bits(side_by_side(a.astype(dtype, copy=False))) for a in (input.reshape(how.rows, input.shape[-1]), weight)
    )
    b = None if bias is None else as_bits(np.ascontiguousarray(bias, dtype))
    return Layer(call, x, w, b, np.empty(0, np.int64), w.dtype, room)
