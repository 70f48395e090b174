"""The public call of the contrastive loss, and how torch differentiates it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xent.backends.choice import choose, choose_linear
from xent.linear.driver import Wanted
from xent.linear.plan import DEFAULT_WORKSPACE, parse_bytes
from xent.torch._torch_private import is_watched
from xent.torch.autograd import differentiated, is_seen
from xent.torch.contrastive_operators import (
    NAME,
    check_pairs,
    contrastive_gradients,
    contrastive_pairs,
    formula,
    layer_of,
    losses_of,
)
from xent.torch.functional import has_to_be_formula, objective_of
from xent.torch.linear import linear_cross_entropy, product_dtype
from xent.torch.linear_passes import multiplied
from xent.torch.reduced import denominator_of, reduced, reduced_by_formula, scale_of
from xent.torch.rows import Call, refuse_recording
from xent.torch.sharding import is_distributed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def contrastive_loss(
    a: Tensor,
    b: Tensor,
    *,
    logit_scale: float | Tensor = 1.0,
    symmetric: bool = True,
    reduction: str = "mean",
    group: ProcessGroup | None = None,
    workspace: int | str = DEFAULT_WORKSPACE,
) -> Tensor:
    """Contrastive loss of two batches of embeddings: InfoNCE, and with both directions the loss of CLIP.

    *Definition*: with the similarities ``z = logit_scale * a @ b.T`` the loss of pair i is
    ``(cross_entropy(z[i, :], i) + cross_entropy(z[:, i], i)) / 2``: each embedding has to find its partner among all
    of the other batch. Not `symmetric`: the first of the two alone.

    Parameters
    ----------
    a, b : tensors (N, features), of one dtype: float64, float32, bfloat16 or float16. Row i of both is a pair. For
        cosine similarities normalise them (`torch.nn.functional.normalize`) before.
    logit_scale : number or tensor of one number: the inverse of the temperature, which models learn (CLIP: the
        exponential of a parameter that starts at log(1 / 0.07)).
    symmetric : whether embeddings of `b` have to find theirs in `a`, too.
    reduction : "mean" or "sum" over the pairs, or "none".
    group : processes, each with some of the pairs, whose embeddings are all one batch. The ranks may have different
        numbers of pairs. The loss is this rank's share: those of all ranks add up to the loss of the whole batch, and
        so do gradients of shared parameters. DDP and FSDP take their mean: multiply the loss by the number of ranks.
    workspace : bytes, or text such as "128MB": how much memory the call may use beside arguments and gradients. "auto"
        is 128 MB, and on a GPU 1 GB.

    Returns
    -------
    tensor () in nats, or with `reduction="none"` (N,); float32 for 16-bit embeddings, else of their dtype.

    Raises
    ------
    ShapeError, DTypeError, ObjectiveError
    ArgumentError
        The workspace holds not even one row of similarities; the message has the least that will do.

    Notes
    -----
    *Memory*: the similarities are never held as a whole, unless the workspace has room for them: two visits, the second
    of which makes the gradient of both directions at once. *Speed*: four matrix products, three of them for what the
    workspace keeps from the first visit to the second. With `reduction="none"`, compiled, and over a group all
    similarities are made twice. Not `symmetric` it is `linear_cross_entropy`: three products. *Numerics*: as
    `linear_cross_entropy`. *Group*: embeddings of `b` go round in pieces; a rank holds its own and those of one other.
    Second derivatives and forward mode hold the similarities.

    Examples
    --------
    >>> images = torch.nn.functional.normalize(torch.eye(3, 4), dim=1).requires_grad_()
    >>> loss = contrastive_loss(images, torch.eye(3, 4), logit_scale=10.0)
    >>> loss.backward()
    >>> round(loss.item(), 6), images.grad.shape
    (9.1e-05, torch.Size([3, 4]))

    References
    ----------
    van den Oord et al. (2018), Representation Learning with Contrastive Predictive Coding; Radford et al. (2021),
    Learning Transferable Visual Models From Natural Language Supervision
    """
    refuse_recording(NAME)
    if group is not None:
        from xent.torch.parallel.pairs import contrastive_loss_of_group  # loads torch.distributed

        return contrastive_loss_of_group(a, b, logit_scale, reduction, group, workspace, symmetric=symmetric)
    check_pairs(a, b)
    if not symmetric:
        labels = positives_of(a)
        options: dict[str, Any] = {"logit_scale": logit_scale, "reduction": reduction, "workspace": workspace}
        return linear_cross_entropy(a, b, labels, **options)
    objective, learned = objective_of(NAME, -100, reduction, logit_scale=logit_scale)
    dtype, room = product_dtype(NAME, a=a, b=b), parse_bytes(NAME, workspace, a.device.type)
    a = learned.scaled_layer(a, None)[0]
    linear: Any = None if has_to_be_formula() else choose_linear(a.device)
    if linear is not None and not is_watched(a, b):
        loss: Tensor = Contrastive.apply(a, b, Call(NAME, objective, choose(a.device), linear, room, dtype))  # type: ignore[no-untyped-call]
        return loss
    if linear is None:
        losses = formula(a, b, objective.logit_scale, dtype)
    else:
        is_distributed(NAME, a=a, b=b)
        losses = contrastive_pairs(a, b, objective.logit_scale, room, dtype)
    return reduced_by_formula(losses, positives_of(a), None, objective)


def positives_of(a: Tensor) -> Tensor:
    """Which row of `b` belongs to each of `a`; made of `a`, so that it is whatever kind of tensor that is."""
    return a.new_ones(a.shape[:1], dtype=torch.int64).cumsum(0) - 1


class Contrastive(torch.autograd.Function):
    """Of (a, b, call): the reduced loss of both directions, or the losses of the pairs."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, call: Call) -> Tensor:
        layer, scale = layer_of(a, b, call.workspace, call.dtype), call.objective.logit_scale
        wanted = Wanted(*ctx.needs_input_grad[:2])._replace(bias=False)
        denominator = denominator_of(call, layer.target, None)
        ctx.call, ctx.ready, ctx.scale = call, None, scale_of(denominator, call.objective)
        is_late = call.objective.reduction == "none" or (call.dtype == torch.float16 and not call.backend.reads_values)
        if is_late or not any(wanted):
            contrast = call.linear.contrast(layer, scale, symmetric=True)
        else:
            contrast, made = call.linear.contrast_with_gradients(layer, scale, ctx.scale / 2, wanted)
            tensors = zip(made[:2], (a, b), strict=True)
            ctx.ready = [None if gradient is None else gradient.to(t.dtype) for gradient, t in tensors]
        ctx.save_for_backward(a, b, torch.stack(contrast))
        return reduced(call, losses_of(contrast, call.dtype), denominator, layer.target, len(b), call.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return differentiated(ctx, _gradients, upstream)


def _gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    call, wanted = ctx.call, ctx.needs_input_grad[:2]
    ready, ctx.ready = ctx.ready, None
    gradients = None if ready is None or is_seen(upstream) else multiplied(call, ready, upstream)
    if gradients is None:
        *tensors, saved = ctx.saved_tensors
        rows = upstream if upstream.ndim else (upstream * ctx.scale).expand(len(tensors[0]))
        parts = (call.objective.logit_scale, call.workspace, call.dtype)
        gradients = contrastive_gradients(rows, (*tensors, saved), parts, wanted)
    return *gradients, None
