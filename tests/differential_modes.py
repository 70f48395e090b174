"""The ways in which a drawn call is executed: what each returns, by name, to be compared with the reference."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import xent
import xent.torch
from xent.torch import parallel
from xent.torch.deferred import defer_logits

Tensors = dict[str, Tensor]
Call = Callable[[Tensors], Tensors]

DIRECTIONS = 2
"""How many upstream gradients, or members of a batch, a batched mode has."""

OPTIONS = ("weight", "logit_scale", "denominator")
STATISTICS = ("log_prob", "entropy", "lse")


class Subclass(torch.Tensor):
    """A tensor subclass that changes nothing."""


def outputs(result: Any) -> Tensors:
    """The results of a call by name: a loss, or statistics."""
    return result._asdict() if isinstance(result, tuple) else {"loss": result}


def differentiable(results: Tensors) -> list[Tensor]:
    return [results[name] for name in (STATISTICS if "lse" in results else ("loss",))]


def gradients(results: Tensors, leaves: Tensors, upstream: list[Tensor], **options: Any) -> Tensors:
    found = torch.autograd.grad(differentiable(results), list(leaves.values()), upstream, allow_unused=True, **options)
    return {f"d {name}": gradient for name, gradient in zip(leaves, found, strict=True)}


def eager(call: Call, leaves: Tensors, upstream: list[Tensor]) -> Tensors:
    results = call(leaves)
    return {**results, **gradients(results, leaves, upstream)}


def backward_twice(call: Call, leaves: Tensors, upstream: list[Tensor]) -> Tensors:
    """The graph is kept, and asked first for another multiple of the gradient."""
    results = call(leaves)
    gradients(results, leaves, [5 * g for g in upstream], retain_graph=True)
    return {**results, **gradients(results, leaves, upstream)}


def no_grad(call: Call, leaves: Tensors, upstream: list[Tensor]) -> Tensors:
    with torch.no_grad():
        return call(leaves)


def create_graph(call: Call, leaves: Tensors, upstream: list[Tensor]) -> Tensors:
    results = call(leaves)
    return {**results, **gradients(results, leaves, upstream, create_graph=True)}


def weighted_sum(call: Call, upstream: list[Tensor], leaves: Tensors) -> tuple[Tensor, Tensors]:
    results = call(leaves)
    return sum((g * y).sum() for g, y in zip(upstream, differentiable(results), strict=True)), results


def func_grad(call: Call, leaves: Tensors, upstream: list[Tensor]) -> Tensors:
    leaves = {name: leaf.detach() for name, leaf in leaves.items()}
    found, results = torch.func.grad(functools.partial(weighted_sum, call, upstream), has_aux=True)(leaves)
    return {**results, **{f"d {name}": gradient for name, gradient in found.items()}}


def vmap_grad(call: Call, leaves: Tensors, upstream: list[Tensor]) -> Tensors:
    """Leaves, with the labels among them, have a leading axis of `DIRECTIONS`; options are the same for all."""
    labels = {name: leaf for name, leaf in leaves.items() if not leaf.is_floating_point()}
    varied = {name: leaf.detach() for name, leaf in leaves.items() if leaf.is_floating_point()}

    def one(varied: Tensors, labels: Tensors) -> tuple[Tensors, Tensors]:
        total = functools.partial(weighted_sum, lambda given: call({**given, **labels}), upstream)
        return torch.func.grad(total, has_aux=True)(varied)

    axes = {name: None if name in OPTIONS else 0 for name in varied}
    found, results = torch.func.vmap(one, in_dims=(axes, 0))(varied, labels)
    return {**results, **{f"d {name}": gradient for name, gradient in found.items()}}


def forward_mode(call: Call, leaves: Tensors, upstream: list[Tensor]) -> Tensors:
    """The derivative along `directions`, of the sum of results times upstream."""
    with forward_ad.dual_level():
        tangents = directions(leaves)
        dual = {name: forward_ad.make_dual(leaf.detach(), tangents[name]) for name, leaf in leaves.items()}
        pairs = {name: forward_ad.unpack_dual(result) for name, result in call(dual).items()}
        results = {name: pair.primal for name, pair in pairs.items()}
        moved = differentiable({name: pair.tangent for name, pair in pairs.items()})
    return {**results, "tangent": sum((g.double() * y.double()).sum() for g, y in zip(upstream, moved, strict=True))}


def directions(leaves: Tensors) -> Tensors:
    generator = torch.Generator().manual_seed(7)
    return {
        name: torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf.dtype)
        for name, leaf in leaves.items()
    }


def batched_gradients(call: Call, leaves: Tensors, upstream: list[Tensor]) -> Tensors:
    """Upstream, and twice upstream, at once."""
    results = call(leaves)
    batch = [torch.stack([g, 2 * g]) for g in upstream]
    return {**results, **gradients(results, leaves, batch, is_grads_batched=True)}


def compiled(call: Call, leaves: Tensors, upstream: list[Tensor]) -> Tensors:
    torch._dynamo.reset()
    results = torch.compile(call, backend="aot_eager")(leaves)
    return {**results, **gradients(results, leaves, upstream)}


def checkpointed(call: Call, leaves: Tensors, upstream: list[Tensor]) -> Tensors:
    results = checkpoint(call, leaves, use_reentrant=False)
    return {**results, **gradients(results, leaves, upstream)}


def subclass(call: Call, leaves: Tensors, upstream: list[Tensor]) -> Tensors:
    found = eager(
        lambda given: call({name: leaf.as_subclass(Subclass) for name, leaf in given.items()}), leaves, upstream
    )
    return {name: tensor.as_subclass(Tensor) for name, tensor in found.items() if tensor is not None}


MODES: dict[str, Callable[[Call, Tensors, list[Tensor]], Tensors]] = {
    "eager": eager,
    "backward twice": backward_twice,
    "no_grad": no_grad,
    "create_graph": create_graph,
    "func.grad": func_grad,
    "vmap(grad)": vmap_grad,
    "forward_ad": forward_mode,
    "is_grads_batched": batched_gradients,
    "compile": compiled,
    "checkpoint": checkpointed,
    "subclass": subclass,
    "deferred": eager,
    "parallel": eager,
}


# ------------------------------------------------------------------------------------------------------- the calls


def through_torch(name: str, mode: str, target: Tensor | None, options: dict[str, Any]) -> Call:
    """The call as a function of its leaves: tensors that require a gradient, and under vmap the labels."""

    def call(leaves: Tensors) -> Tensors:
        given = dict(options)
        given.update(
            {option: leaves[option] for option in ("weight", "logit_scale", "denominator") if option in leaves}
        )
        labels = leaves.get("target", target)
        if not name.startswith("linear"):
            module = parallel if mode == "parallel" else xent.torch
            return outputs(getattr(module, name)(leaves["input"], labels, **given))
        arguments = leaves["input"], leaves["linear_weight"]
        if mode == "deferred":
            return outputs(xent.torch.cross_entropy(deferred(*arguments, leaves.get("linear_bias")), labels, **given))
        module = parallel if mode == "parallel" else xent.torch
        return outputs(getattr(module, name)(*arguments, labels, linear_bias=leaves.get("linear_bias"), **given))

    return call


def deferred(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The logits of an output layer with these parameters, not made yet."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    model = defer_logits(nn.Sequential(layer), "0")
    parameters = {"0.weight": weight} | ({} if bias is None else {"0.bias": bias})
    return torch.func.functional_call(model, parameters, hidden)


def through_numpy(name: str, arguments: Tensors, target: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    """The NumPy front: values, and gradients by logits or by input, weight and bias."""
    arrays = [arguments[a].detach().resolve_neg().numpy() for a in ("input", "linear_weight") if a in arguments]
    if "linear_bias" in arguments:
        options = {**options, "linear_bias": arguments["linear_bias"].detach().resolve_neg().numpy()}
    if name.endswith("statistics"):
        return getattr(xent.numpy, name)(*arrays, target.numpy(), **options)._asdict()
    loss, found = getattr(xent.numpy, f"{name}_value_and_grad")(*arrays, target.numpy(), **options)
    by_name = found._asdict() if isinstance(found, tuple) else {"input": found}
    return {"loss": loss, **{f"d {a}": gradient for a, gradient in by_name.items() if gradient is not None}}


@contextmanager
def one_rank() -> Iterator[None]:
    """A process group of this process alone, which holds all classes."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def as_floats(values: Any) -> np.ndarray:
    """Any result as float64 or int64 numbers."""
    if isinstance(values, Tensor):
        values = values.detach().resolve_neg().double() if values.is_floating_point() else values.detach()
    values = np.asarray(values)
    return values.astype(np.float64) if values.dtype.kind == "f" else values


def dtype_name(values: Any) -> str:
    return str(values.dtype).removeprefix("torch.")
