"""What the modes of execution_modes.py do with other kinds of tensors, and with logits that lie elsewhere."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from execution_answers import Answer
from execution_cases import BY_ROWS, CONTRASTIVE, DIVERGENCES, STUDENT, TEACHER, Case, Problem, problem
from execution_transforms import Run, wanting, with_gradients
from implementations import DEVICE
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from xent.torch import parallel
from xent.torch.deferred import DeferredLogits, defer_logits


class Sub(Tensor):
    """A subclass that changes nothing."""


class Wrapper(Tensor):
    """A subclass that holds a tensor, and sees the operators."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:
        found: Any = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=inner.device
        )
        found.inner = inner.detach()
        return found

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Wrapper, lambda wrapper: wrapper.inner, (args, kwargs or {}))
        return tree_map_only(Tensor, Wrapper, func(*args, **kwargs))


def subclass(of: Problem) -> Answer:
    tensors = {name: tensor.clone().as_subclass(Sub) for name, tensor in of.tensors.items()}
    variables = wanting(tuple(tensors[name] for name in of.variables))
    value = of.values(tensors)
    assert isinstance(value, Sub), f"the value is a {type(value).__name__}"
    value.backward(of.upstream)
    return Answer(value.detach().as_subclass(Tensor), tuple(variable.grad for variable in variables))


def wrapper_subclass(of: Problem) -> Answer:
    tensors = {name: Wrapper(tensor.clone()) for name, tensor in of.tensors.items()}
    variables = wanting(tuple(tensors[name] for name in of.variables))
    value = of.values(tensors)
    assert isinstance(value, Wrapper), f"the value is a {type(value).__name__}"
    value.backward(Wrapper(of.upstream))
    gradients: Any = tuple(variable.grad for variable in variables)
    return Answer(value.inner, tuple(g if g is None else g.inner for g in gradients))


def meta(of: Problem) -> Answer:
    return _shapes({name: tensor.to("meta") for name, tensor in of.tensors.items()}, of)


def fake(of: Problem) -> Answer:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as fake:
        return _shapes({name: fake.from_tensor(tensor) for name, tensor in of.tensors.items()}, of)


def _shapes(tensors: dict[str, Tensor], of: Problem) -> Answer:
    variables = wanting(tuple(tensors[name] for name in of.variables))
    value = of.values(tensors)
    value.backward(torch.ones_like(value))
    return Answer(value.detach(), tuple(variable.grad for variable in variables), has_numbers=False)


# ------------------------------------------------------------------------------ whose logits lie elsewhere


def has_a_head(of: Problem) -> bool:
    """Whether the logits may be deferred: classes last, and an output layer that fits in the logits' dtype."""
    rows = torch.tensor(of.case.labels).ndim == 1 and of.call not in (*DIVERGENCES, CONTRASTIVE)
    return rows and not of.is_linear and of.case.dtype == torch.float32 and not of.case.frozen_logits


def layer_of(case: Case, call: str) -> Problem:
    """The problem whose logits are deferred: that of the layer."""
    return problem(case, call if call.startswith("linear") else f"linear_{call}")


def deferred(of: Problem) -> Answer:
    head = nn.Linear(*reversed(of.tensors["linear_weight"].shape), device=DEVICE)
    parameters = {"weight": of.tensors["linear_weight"], "bias": of.tensors["linear_bias"]}
    head.load_state_dict({name: tensor.clone() for name, tensor in parameters.items()})
    model = defer_logits(nn.Sequential(head), "0")
    logits_call = Problem(of.case, of.call.removeprefix("linear_"), of.tensors, of.variables)
    tensors = {name: tensor.clone() for name, tensor in of.tensors.items()}
    tensors["linear_weight"], tensors["linear_bias"] = model[0].weight, model[0].bias
    variables = wanting(tuple(tensors[name] for name in of.variables))
    others = {name: tensor for name, tensor in tensors.items() if not name.startswith("linear")}
    logits = model(others["input"])
    assert isinstance(logits, DeferredLogits)
    value = logits_call.values({**others, "input": logits})
    value.backward(of.upstream)
    return Answer(value.detach(), tuple(variable.grad for variable in variables))


def one_rank(of: Problem) -> Answer:
    return with_gradients(of.function(parallel, group=dist.group.WORLD), of)


def distributed(cut: str) -> Run:
    """DTensors on one rank: replicated, or cut along the rows or the classes."""

    def run(of: Problem) -> Answer:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import DTensor, Replicate, Shard

        axes, mesh = _axes(of)[cut], init_device_mesh(DEVICE, (1,))
        tensors: dict[str, Tensor] = {
            name: DTensor.from_local(tensor.clone(), mesh, [Shard(axes[name]) if name in axes else Replicate()])
            for name, tensor in of.tensors.items()
        }
        variables = wanting(tuple(tensors[name] for name in of.variables))
        value: Any = of.values(tensors)
        value.backward(DTensor.from_local(of.upstream, mesh, [Replicate()]))
        gradients: Any = tuple(variable.grad for variable in variables)
        return Answer(value.detach().full_tensor(), tuple(g if g is None else g.full_tensor() for g in gradients))

    return run


def _axes(of: Problem) -> dict[str, dict[str, int]]:
    """Along which axis the tensors are cut."""
    classes = {name: 0 for name in (*STUDENT[1:], *TEACHER[1:]) if name in of.tensors}
    if of.call == CONTRASTIVE:
        return {"rows": {"a": 0, "b": 0}, "classes": {"a": 1, "b": 1}, "nothing": {}}
    if not of.is_linear:
        classes = {"input": min(1, of.tensors["input"].ndim - 1)}
    if of.call in DIVERGENCES and not of.is_linear:
        classes["target"] = classes["input"]
    elif "target" in of.tensors and of.tensors["target"].is_floating_point():
        classes["target"] = of.tensors["target"].ndim - 1 if of.is_linear else min(1, of.tensors["target"].ndim - 1)
    if "weight" in of.tensors:
        classes["weight"] = 0
    rows = {name: 0 for name in BY_ROWS if name in of.tensors}
    return {"rows": rows, "classes": classes, "nothing": {}}
