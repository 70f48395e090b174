"""The loss of a linear layer without its logits, its gradients, and the statistics of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike

from xent.backends.cpu.products import side_by_side
from xent.backends.definitions import NOTHING_IS_COMPILED
from xent.backends.protocol import Statistics
from xent.checks import Layout, as_numpy, as_rows, check_linear_shapes, checked_layout, require_labels
from xent.linear.driver import Gradients as LayerGradients
from xent.linear.driver import Layer, Wanted
from xent.linear.plan import DEFAULT_WORKSPACE, parse_bytes
from xent.linear.sampling import SEEDS, GradientOption, GradientReport, Sampling, refuse_sampling, sampling_of
from xent.numpy.rows import Array, Rows, as_bits, as_target, checked, sparse_target
from xent.objective import Objective, Options
from xent.reference import Gradients
from xent.sparse import SparseTarget


def linear_cross_entropy(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike | SparseTarget,
    *,
    linear_bias: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    workspace: int | str = DEFAULT_WORKSPACE,
    **options: Unpack[Options],
) -> Array:
    """Softmax cross-entropy of a linear layer without its logits: the output layer and the loss in one.

    *Definition*: ``cross_entropy(input @ linear_weight.T + linear_bias, target)``, `F.linear_cross_entropy` of torch.

    Parameters
    ----------
    input : array (..., features)
    linear_weight : array (C, features)
    target : class indices of shape (...), or class probabilities of shape (..., C); or a `SparseTarget` that lists
        classes (..., k)
    linear_bias : array (C,), optional
    sample_weight : one weight for each loss; see `cross_entropy`.
    workspace : bytes, or text such as "128MB": the memory for a chunk of the logits, and all else that the call needs
        beside arguments and gradients. More is a little faster, until all rows fit. "auto" is 128 MB.
    **options : see `xent.Objective`.

    Returns
    -------
    as `cross_entropy`, in the dtype that `input` and `linear_weight` have together (float32 for 16 bits).

    Raises
    ------
    LabelError, DistributionError, ShapeError, DTypeError, ObjectiveError
    ArgumentError
        The workspace holds not even one row; the message has the least that will do.

    Notes
    -----
    *Numerics*: the products are made in the dtype that the arguments have together, by the best library at hand, and
    16-bit ones are added up in float32; then as `cross_entropy`. *Memory*: the workspace and a few numbers per row;
    arguments of several dtypes are converted as a whole.

    Examples
    --------
    >>> float(linear_cross_entropy([[1.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]], [0]).round(4))
    0.6931

    References
    ----------
    Wijmans et al. (2024), Cut Your Losses in Large-Vocabulary Language Models
    """
    tensors = (input, linear_weight, linear_bias, target)
    rows = _linear_rows("linear_cross_entropy", *tensors, workspace, options, sample_weight)
    return rows.reduced(rows.backends.linear.forward(rows.layer("linear_cross_entropy"), rows.of_rows)[0])


def linear_cross_entropy_value_and_grad(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike | SparseTarget,
    *,
    linear_bias: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    workspace: int | str = DEFAULT_WORKSPACE,
    gradient: GradientOption = "exact",
    threshold: float | None = None,
    seed: int | None = None,
    report: GradientReport | None = None,
    **options: Unpack[Options],
) -> tuple[Array, Gradients]:
    """`linear_cross_entropy`, and its gradients with respect to input, weight and bias.

    Parameters
    ----------
    gradient : "exact"; or "sampled", which rounds small entries of the logits' gradient at random, so that few are left
        and both products with them are fast. Its expectation is the exact gradient; the loss, the entries of labels and
        the gradient of the bias are exact. "sampled input" and "sampled weight" round for one of the two.
    threshold : an entry below threshold * (scale of its row) is rounded. None is 2**-12.
    seed : integer, such as the number of the step. None draws one from NumPy's global generator (`numpy.random.seed`).
    report : a `GradientReport` to fill in: what is left of each row, and the variance that the rounding adds.

    The others are those of `linear_cross_entropy`.

    Returns
    -------
    loss as `linear_cross_entropy` gives it, and `Gradients(input, linear_weight, linear_bias)` in the shapes and dtypes
    of the arguments; `linear_bias` is None without a bias.

    Examples
    --------
    >>> loss, gradients = linear_cross_entropy_value_and_grad([[1.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]], [0])
    >>> gradients.linear_weight
    array([[-0.5,  0. ],
           [ 0.5,  0. ]])
    """
    call = "linear_cross_entropy_value_and_grad"
    sampling = _sampling(call, gradient, threshold, seed, report)
    rows = _linear_rows(call, input, linear_weight, linear_bias, target, workspace, options, sample_weight)
    layer = replace(rows.layer(call), sampling=sampling)
    backend = rows.backends.linear
    if rows.objective.focal_gamma:
        losses, saved = backend.forward(layer, rows.of_rows)
        gradients = backend.backward(layer, saved, rows.gradient_scale(losses), rows.of_rows, Wanted())
    else:
        losses, _, gradients = backend.forward_backward(layer, rows.gradient_scale(), rows.objective, Wanted())
    return rows.reduced(losses), rows.gradients(gradients)


def linear_statistics(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    workspace: int | str = DEFAULT_WORKSPACE,
) -> Statistics:
    """Log-probability and rank of the labels, entropy, log-sum-exp and argmax of a linear layer, without its logits.

    *Definition*: with the softcapped logits z (`xent.Objective`) of ``input @ linear_weight.T + linear_bias`` and
    q = softmax(z), ``log_prob = log q[label]``, ``entropy = -sum(q * log q)``, ``lse = log(sum(exp(z)))``; ``argmax``
    is the first class with the greatest logit, and ``rank`` the number of classes whose logit is greater than the
    label's.

    Parameters
    ----------
    input, linear_weight, linear_bias, workspace : see `linear_cross_entropy`.
    target : class indices of shape (...), in [0, C) or equal to `ignore_index`.
    ignore_index, softcap, logit_scale : see `xent.Objective`.

    Returns
    -------
    `Statistics`: five arrays of the target's shape. log_prob, entropy and lse are in nats, of the dtype that a loss
    would have. An ignored row has log_prob 0 and rank -1.

    Raises
    ------
    LabelError, ShapeError, DTypeError, ObjectiveError, ArgumentError
        As `linear_cross_entropy`.

    Examples
    --------
    >>> found = linear_statistics([[1.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]], [1])
    >>> found.entropy.round(4), found.rank
    (array([0.6931]), array([0]))
    """
    call = "linear_statistics"
    options = Options(ignore_index=ignore_index, softcap=softcap, logit_scale=logit_scale)
    rows = _linear_rows(call, input, linear_weight, linear_bias, target, workspace, options)
    require_labels(call, rows.layout, "linear_cross_entropy")
    statistics = rows.backends.linear.statistics(rows.layer(call), rows.objective)
    statistics = statistics._replace(lse=statistics.lse.astype(statistics.entropy.dtype))
    return Statistics(*(array.reshape(rows.layout.loss_shape) for array in statistics))


def _sampling(
    call: str, gradient: GradientOption, threshold: float | None, seed: int | None, report: GradientReport | None
) -> Sampling | None:
    found = sampling_of(call, gradient, threshold, seed, report)
    if found is None:
        return None
    if NOTHING_IS_COMPILED:
        refuse_sampling(call, found, "where nothing is compiled (NUMBA_DISABLE_JIT)")
    return replace(found, seed=np.random.randint(SEEDS - 1)) if seed is None else found  # noqa: NPY002


@dataclass(frozen=True)
class LayerRows(Rows):
    """Rows of a linear layer, and the way back to the caller's shapes and dtypes."""

    input_shape: tuple[int, ...]
    dtypes: tuple[np.dtype[Any], np.dtype[Any], np.dtype[Any]]
    """Of input, weight and bias as the caller gave them."""

    def gradients(self, arrays: LayerGradients) -> Gradients:
        """Gradients in the shapes and dtypes of the arguments."""
        dinput, dweight, dbias = (
            None if array is None else array.view(self.dtype).astype(dtype, copy=False)
            for array, dtype in zip(arrays, self.dtypes, strict=True)
        )
        assert dinput is not None
        assert dweight is not None
        return Gradients(dinput.reshape(self.input_shape), dweight, dbias)


@dataclass(frozen=True)
class _LinearRows(LayerRows):
    input: Array
    weight: Array
    bias: Array | None
    workspace: int

    def layer(self, call: str) -> Layer:
        """The arguments as `xent.linear` takes them: of one dtype, bfloat16 as the integers of its bits."""
        input, weight = as_bits(self.input), as_bits(self.weight)
        bias = None if self.bias is None else as_bits(self.bias)
        target = as_bits(self.target) if self.layout.soft else self.target
        return Layer(call, input, weight, bias, target, weight.dtype, self.workspace)


def _linear_rows(
    call: str,
    input: ArrayLike,
    linear_weight: ArrayLike,
    linear_bias: ArrayLike | None,
    target: ArrayLike | SparseTarget,
    workspace: int | str,
    options: Options,
    sample_weight: ArrayLike | None = None,
) -> _LinearRows:
    objective = Objective.of(call, options)
    x, w = as_numpy(call, "input", input), as_numpy(call, "linear_weight", linear_weight)
    b = None if linear_bias is None else as_numpy(call, "linear_bias", linear_bias)
    shape = x.shape
    check_linear_shapes(call, x.shape, w.shape, None if b is None else b.shape)
    logits_shape = (*x.shape[:-1], w.shape[0])
    if isinstance(target, SparseTarget):
        y, how = sparse_target(call, target, logits_shape, len(logits_shape) - 1)
    else:
        y = as_target(call, target, logits_shape)
        how = Layout(logits_shape, class_axis=len(logits_shape) - 1, soft=y.shape == logits_shape)
        checked_layout(call, "linear_weight", how, y.shape, floating_target=y.dtype.kind not in "iu")
    dtypes = (floating(x.dtype), floating(w.dtype), floating((w if b is None else b).dtype))
    dtype = common_dtype(dtypes)
    arrange = None if isinstance(target, SparseTarget) else as_rows
    common = checked(call, y, how, objective, dtype, arrange, sample_weight)
    x, w = (side_by_side(array.astype(dtype, copy=False)) for array in (x.reshape(how.rows, x.shape[-1]), w))
    b = None if b is None else np.ascontiguousarray(b, dtype)
    return _LinearRows(*common, shape, dtypes, x, w, b, parse_bytes(call, workspace))


def floating(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of an argument's gradient."""
    return dtype if dtype.kind in "fV" else np.dtype(np.float64)


def common_dtype(dtypes: Sequence[np.dtype[Any]]) -> np.dtype[Any]:
    """The dtype in which arguments of these dtypes are multiplied."""
    return np.result_type(*dtypes) if all(dtype.itemsize <= 4 for dtype in dtypes) else np.dtype(np.float64)
