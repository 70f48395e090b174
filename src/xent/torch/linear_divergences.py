"""The public calls of the divergences of two linear layers: checks, and what computes, as in linear.py."""

from __future__ import annotations

from functools import partial
from typing import Any, Never, cast

from torch import Tensor

from xent.backends.choice import choose, choose_linear_divergence
from xent.checks import Layout, check_linear_shapes, check_teacher_layer
from xent.linear.plan import DEFAULT_WORKSPACE, parse_bytes
from xent.objective import Objective
from xent.sparse import SparseTarget
from xent.torch import linear_divergence_autograd, linear_divergence_formula, linear_divergence_operators
from xent.torch._torch_private import is_watched
from xent.torch.divergence_options import check_row_labels, divergence_of
from xent.torch.functional import has_to_be_formula
from xent.torch.linear import layout_of, linear_cross_entropy, product_dtype
from xent.torch.listed_divergence import kl_divergence_from_list
from xent.torch.reduced import reduced_by_formula
from xent.torch.rows import Call, PairRows, check_tensors, int64, refuse_recording, sample_weights
from xent.torch.sharding import is_distributed


def linear_kl_divergence(
    input: Tensor,
    linear_weight: Tensor,
    target_input: Tensor | SparseTarget,
    target_weight: Tensor | None = None,
    *,
    linear_bias: Tensor | None = None,
    target_bias: Tensor | None = None,
    direction: str = "forward",
    labels: Tensor | None = None,
    ignore_index: int = -100,
    temperature: float = 1.0,
    temperature_squared: bool = False,
    softcap: float | None = None,
    logit_scale: float | Tensor = 1.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    denominator: float | Tensor | None = None,
    sample_weight: Tensor | None = None,
    workspace: int | str = DEFAULT_WORKSPACE,
    **unknown: Never,
) -> Tensor:
    """KL divergence of a student's linear layer from its teacher's, without the logits of either: distillation.

    *Definition*: ``kl_divergence(input @ linear_weight.T + linear_bias, target_input @ target_weight.T +
    target_bias)``: the output layers of two language models and the loss between them in one call.

    Parameters
    ----------
    input : tensor (..., features): the student's hidden states, of dtype float64, float32, bfloat16 or float16.
    linear_weight : tensor (C, features) of the same dtype, as in `torch.nn.Linear`.
    target_input : tensor (..., features of the teacher), of the same dtype: the teacher's hidden states, whose width
        may be another. Or a `SparseTarget`, the top k of a teacher, in place of its layer: three products.
    target_weight : tensor (C, features of the teacher).
    linear_bias, target_bias : tensors (C,), optional.
    labels : integers (...), optional: a row labelled `ignore_index` counts for nothing; see `kl_divergence`.
    direction, ignore_index, temperature, temperature_squared, softcap, logit_scale, z_loss, reduction, denominator,
        sample_weight : see `kl_divergence`.
    workspace : see `linear_cross_entropy`; it holds the logits of both for a chunk of rows.
    **unknown : none; a misspelt option is answered with the names of those that exist.

    Returns
    -------
    tensor () in nats, or with `reduction="none"` of shape (...); float32 for 16-bit arguments, else of their dtype.

    Raises
    ------
    ArgumentError
        The workspace holds not even one row; the message has the least that will do.
    ShapeError, DTypeError, ObjectiveError

    Notes
    -----
    *Speed*: four matrix products (two logits, the gradients of input and weight), one less for each of the two that is
    frozen. A teacher that learns takes four more. A sum or a mean makes its gradients with the loss; with
    `reduction="none"`, backward makes the logits once more. *Memory*, *Numerics*: as `linear_cross_entropy` and
    `kl_divergence`. Logits in 16 bits are rounded alike for both. Second derivatives and other devices hold the logits.

    Examples
    --------
    >>> import torch
    >>> hidden, head = torch.ones(2, 3, requires_grad=True), torch.zeros(5, 3, requires_grad=True)
    >>> loss = linear_kl_divergence(hidden, head, torch.ones(2, 4), torch.eye(5, 4))
    >>> loss.backward()
    >>> round(loss.item(), 4), head.grad.shape
    (0.0509, torch.Size([5, 3]))

    References
    ----------
    Hinton, Vinyals, Dean (2015), arXiv:1503.02531; Wijmans et al. (2024), Cut Your Losses in Large-Vocabulary Language
    Models
    """
    options: dict[str, Any] = {"direction": direction, "ignore_index": ignore_index, "temperature": temperature}
    options |= {"temperature_squared": temperature_squared, "softcap": softcap, "logit_scale": logit_scale}
    options |= {"z_loss": z_loss, "reduction": reduction, "denominator": denominator}
    if isinstance(target_input, SparseTarget):
        name, target = "linear_kl_divergence", target_input
        how = layout_of(name, input, linear_weight, linear_bias, target, None, Objective())
        layer: dict[str, Any] = {"linear_bias": linear_bias, "workspace": workspace}
        loss = partial(linear_cross_entropy, input, linear_weight, **layer)
        return kl_divergence_from_list(name, loss, target, how, labels, sample_weight, options | unknown)
    tensors = (input, linear_weight, linear_bias, target_input, target_weight, target_bias, labels)
    return _divergence("kl_divergence", tensors, sample_weight, workspace, options | unknown)


def linear_js_divergence(
    input: Tensor,
    linear_weight: Tensor,
    target_input: Tensor,
    target_weight: Tensor,
    *,
    linear_bias: Tensor | None = None,
    target_bias: Tensor | None = None,
    beta: float = 0.5,
    labels: Tensor | None = None,
    ignore_index: int = -100,
    temperature: float = 1.0,
    temperature_squared: bool = False,
    softcap: float | None = None,
    logit_scale: float | Tensor = 1.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    denominator: float | Tensor | None = None,
    sample_weight: Tensor | None = None,
    workspace: int | str = DEFAULT_WORKSPACE,
    **unknown: Never,
) -> Tensor:
    """Generalised Jensen-Shannon divergence of two linear layers, without the logits of either.

    *Definition*: `js_divergence` of the logits of `linear_kl_divergence`.

    Parameters
    ----------
    beta : the teacher's share of the mixture; see `js_divergence`.
    input, linear_weight, target_input, target_weight, linear_bias, target_bias, labels, ignore_index, temperature,
        temperature_squared, softcap, logit_scale, z_loss, reduction, denominator, sample_weight, workspace,
        **unknown : see `linear_kl_divergence`.

    Returns
    -------
    as `linear_kl_divergence`.

    Raises
    ------
    ArgumentError, ShapeError, DTypeError, ObjectiveError
        As `linear_kl_divergence`.

    Examples
    --------
    >>> import torch
    >>> layers = torch.ones(2, 3), torch.zeros(5, 3), torch.ones(2, 4), torch.eye(5, 4)
    >>> round(linear_js_divergence(*layers).item(), 4)
    0.0141
    """
    options: dict[str, Any] = {"beta": beta, "ignore_index": ignore_index, "temperature": temperature}
    options |= {"temperature_squared": temperature_squared, "softcap": softcap, "logit_scale": logit_scale}
    options |= {"z_loss": z_loss, "reduction": reduction, "denominator": denominator}
    tensors = (input, linear_weight, linear_bias, target_input, target_weight, target_bias, labels)
    return _divergence("js_divergence", tensors, sample_weight, workspace, options | unknown)


Tensors = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor | None]


def _divergence(
    loss_of: str, tensors: Tensors, sample_weight: Tensor | None, workspace: int | str, options: dict[str, Any]
) -> Tensor:
    """The divergence of that name for two layers."""
    name = f"linear_{loss_of}"
    refuse_recording(name)
    input, linear_weight, linear_bias, target_input, target_weight, target_bias, labels = tensors
    layers = {"input": input, "linear_weight": linear_weight, "linear_bias": linear_bias}
    layers |= {"target_input": target_input, "target_weight": target_weight, "target_bias": target_bias}
    divergence, learned = divergence_of(name, loss_of, options)
    how = _layout_of(name, layers, labels)
    dtype = product_dtype(name, **layers)
    rows = [
        *_as_rows(*learned.scaled_layer(input, linear_bias), linear_weight, how),
        *_as_rows(*learned.scaled_layer(target_input, target_bias), cast(Tensor, target_weight), how),
    ]
    kept = None if labels is None else int64(labels.reshape(-1))
    pair = PairRows._make([*rows, kept])
    weights, _ = sample_weights(name, sample_weight, None, pair.target, how, divergence)
    linear: Any = None if has_to_be_formula() else choose_linear_divergence(input.device)
    room = parse_bytes(name, workspace, input.device.type)
    # No label is looked at but for whether its row is ignored.
    parts = {"labels_are_checked": True, "sample_weight": weights}
    call = Call(name, divergence, choose(input.device), linear, room, dtype, **parts)  # type: ignore[arg-type]
    if linear is None:
        losses = linear_divergence_formula.losses(pair.to(dtype), divergence)
        loss = reduced_by_formula(losses, pair.target, None, divergence, weights)
    elif is_watched(*pair, weights):
        by_rows = is_distributed(name, **layers, labels=labels)
        loss = linear_divergence_operators.linear_divergence(call, pair, by_rows=by_rows)
    else:
        loss = linear_divergence_autograd.linear_divergence(call, pair)
    return loss.reshape(how.loss_shape) if divergence.reduction == "none" else learned.divided(loss)


def _as_rows(input: Tensor, bias: Tensor | None, weight: Tensor, how: Layout) -> tuple[Tensor, Tensor, Tensor | None]:
    """Input as rows, weight and bias."""
    x = input if input.ndim == 2 else input.reshape(how.rows, input.shape[-1])
    return x.resolve_neg(), weight.resolve_neg(), bias


def _layout_of(name: str, layers: dict[str, Tensor | None], labels: Tensor | None) -> Layout:
    """Check shapes and places; return how the rows lie."""
    tensors: dict[str, Any] = dict(layers)
    check_tensors(name, **tensors)
    shapes: Any = {argument: None if tensor is None else tuple(tensor.shape) for argument, tensor in layers.items()}
    check_linear_shapes(name, shapes["input"], shapes["linear_weight"], shapes["linear_bias"])
    check_teacher_layer(name, shapes)
    logits_shape = (*shapes["input"][:-1], shapes["linear_weight"][0])
    how = Layout(logits_shape, len(logits_shape) - 1, soft=True)
    place: Any = layers["input"]
    check_row_labels(name, labels, how, place.device)
    return how
