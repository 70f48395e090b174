"""What the modes of execution_modes.py do: backward, torch.func, forward mode, compilers.

Each function takes a problem to an answer; those that take options return such a function.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from execution_answers import Answer
from execution_cases import BY_ROWS, Case, Problem, problem
from implementations import DEVICE, by_kernels
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils import checkpoint as checkpoints

Gradients = tuple[Tensor, ...]
Run = Callable[[Problem], Answer]


def wanting(tensors: Gradients) -> Gradients:
    return tuple(tensor.requires_grad_() for tensor in tensors)


def with_gradients(function: Callable[..., Tensor], of: Problem) -> Answer:
    """Value and gradients of a function of the variables, by backward."""
    variables = wanting(of.start())
    value = function(*variables)
    value.backward(of.upstream)
    return Answer(value.detach(), tuple(variable.grad for variable in variables))


def by_all_tensors(of: Problem) -> Callable[..., Tensor]:
    """The values as a function of every tensor of the call, labels and options included."""
    return lambda *tensors: of.values(dict(zip(of.tensors, tensors, strict=True)))


def with_all_tensors(function: Callable[..., Tensor], of: Problem) -> Answer:
    """Value and gradients of a function of every tensor of the call."""

    def of_variables(*variables: Tensor) -> Tensor:
        return function(*{**of.tensors, **dict(zip(of.variables, variables, strict=True))}.values())

    return with_gradients(of_variables, of)


def contracted(of: Problem, jacobians: Any) -> Gradients:
    """The gradients of sum(upstream * value), from the Jacobians by the variables.

    Those of forward mode have the dtype of the value, those of reverse mode that of the variable.
    """
    upstream = of.upstream
    gradients = (torch.tensordot(upstream.to(j.dtype), j, upstream.ndim) for j in jacobians)
    return tuple(g.to(d.dtype) for g, d in zip(gradients, of.direction, strict=True))


def along(hessian: Any, direction: Gradients) -> Gradients:
    """Hessian times direction, from the blocks of all pairs of variables."""
    pairs = ((torch.tensordot(block, d, d.ndim) for block, d in zip(row, direction, strict=True)) for row in hessian)
    return tuple(sum(row) for row in pairs)  # type: ignore[misc]


def positions(of: Problem) -> tuple[int, ...]:
    return tuple(range(len(of.variables)))


def valued_total(of: Problem, function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """sum(upstream * values), and the values."""

    def total(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        value = function(*tensors)
        return (value * of.upstream).sum(), value

    return total


# ------------------------------------------------------------------------------ backward


def eager(of: Problem) -> Answer:
    return with_gradients(of.function(), of)


def eager_by_kernels(of: Problem) -> Answer:
    with by_kernels():
        return eager(of)


def inference_mode(of: Problem) -> Answer:
    with torch.inference_mode():
        return Answer(of.values({name: tensor.clone() for name, tensor in of.tensors.items()}).clone())


def batched_gradients(of: Problem) -> Answer:
    variables = wanting(of.start())
    value = of.function()(*variables)
    upstreams = torch.stack([torch.ones_like(of.upstream), of.upstream])
    gradients = torch.autograd.grad(value, variables, upstreams, is_grads_batched=True)
    return Answer(value.detach(), tuple(g[1] for g in gradients))


def double_backward(of: Problem) -> Answer:
    variables = wanting(of.start())
    value = of.function()(*variables)
    gradients = torch.autograd.grad(value, variables, of.upstream, create_graph=True)
    slope = sum((g * d).sum() for g, d in zip(gradients, of.direction, strict=True))
    second = torch.autograd.grad(slope, variables, allow_unused=True, materialize_grads=True)
    return Answer(value.detach(), tuple(g.detach() for g in gradients), second=second)


def checkpoint(use_reentrant: bool) -> Run:
    again = checkpoints.checkpoint
    return lambda of: with_gradients(lambda *v: again(of.function(), *v, use_reentrant=use_reentrant), of)


def rounded_to_bfloat16(case: Case, call: str) -> Problem:
    """A problem of float32 tensors that bfloat16 has: autocast rounds nothing but what it computes."""
    of = problem(case, call)
    tensors = {name: t.bfloat16().to(t.dtype) if t.is_floating_point() else t for name, t in of.tensors.items()}
    return Problem(case, call, tensors, of.variables)


def autocast(of: Problem) -> Answer:
    function = of.function()

    def under_autocast(*variables: Tensor) -> Tensor:
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            return function(*variables)

    return with_gradients(under_autocast, of)


# ------------------------------------------------------------------------------ torch.func


def func_grad(of: Problem) -> Answer:
    total = valued_total(of, of.function())
    gradients, (_, value) = torch.func.grad_and_value(total, positions(of), has_aux=True)(*of.start())
    return Answer(value, gradients)


def grad_of_grad(of: Problem) -> Answer:
    def slope(*variables: Tensor) -> Tensor:
        gradients = torch.func.grad(of.total(), positions(of))(*variables)
        return sum((g * d).sum() for g, d in zip(gradients, of.direction, strict=True))  # type: ignore[return-value]

    return Answer(second=torch.func.grad(slope, positions(of))(*of.start()))


def _batch(of: Problem) -> Gradients:
    """Two problems, of which this is the second."""
    return tuple(torch.stack([of.sibling.tensors[name], tensor]) for name, tensor in of.tensors.items())


def vmap(of: Problem) -> Answer:
    """Over all tensors, and backward through the batch."""
    batch = dict(zip(of.tensors, _batch(of), strict=True))
    return _vmapped(torch.func.vmap(by_all_tensors(of)), tuple(batch.values()), of)


def vmap_of_variables(of: Problem) -> Answer:
    """Over the variables, as for several models on the same labels."""
    batch = dict(zip(of.tensors, _batch(of), strict=True))
    tensors = tuple(batch[name] if name in of.variables else tensor for name, tensor in of.tensors.items())
    axes = tuple(0 if name in of.variables else None for name in of.tensors)
    return _vmapped(torch.func.vmap(by_all_tensors(of), axes), tensors, of)


def _vmapped(function: Callable[..., Tensor], tensors: Gradients, of: Problem) -> Answer:
    variables = wanting(tuple(t for name, t in zip(of.tensors, tensors, strict=True) if name in of.variables))
    value = function(*tensors)
    value.backward(torch.stack([torch.ones_like(of.upstream), of.upstream]))
    ordered = [name for name in of.tensors if name in of.variables]
    gradients: Any = {name: variable.grad for name, variable in zip(ordered, variables, strict=True)}
    return Answer(
        value[1].detach(), tuple(None if gradients[name] is None else gradients[name][1] for name in of.variables)
    )


def _gradients_per_problem(of: Problem) -> Callable[..., Any]:
    places = tuple(list(of.tensors).index(name) for name in of.variables)
    total = valued_total(of, by_all_tensors(of))
    return torch.func.vmap(torch.func.grad_and_value(total, places, has_aux=True))


def vmap_of_grad(of: Problem) -> Answer:
    gradients, (_, value) = _gradients_per_problem(of)(*_batch(of))
    return Answer(value[1], tuple(g[1] for g in gradients))


def jacrev(of: Problem) -> Answer:
    return Answer(gradients=contracted(of, torch.func.jacrev(of.function(), positions(of))(*of.start())))


def jacfwd(of: Problem) -> Answer:
    return Answer(gradients=contracted(of, torch.func.jacfwd(of.function(), positions(of))(*of.start())))


def func_jvp(of: Problem) -> Answer:
    value, tangent = torch.func.jvp(of.function(), of.start(), of.direction)
    return Answer(value, tangent=tangent)


def func_hessian(of: Problem) -> Answer:
    return Answer(second=along(torch.func.hessian(of.total(), positions(of))(*of.start()), of.direction))


# ------------------------------------------------------------------------------ forward mode, torch.autograd.functional


def forward_mode(of: Problem) -> Answer:
    with forward_ad.dual_level():
        duals = map(forward_ad.make_dual, of.start(), of.direction)
        value, tangent = forward_ad.unpack_dual(of.function()(*duals))
        assert tangent is not None, "the value has no tangent"
        return Answer(value, tangent=tangent)


def forward_mode_and_backward(of: Problem) -> Answer:
    variables = wanting(of.start())
    with forward_ad.dual_level():
        value, tangent = forward_ad.unpack_dual(of.function()(*map(forward_ad.make_dual, variables, of.direction)))
        assert tangent is not None, "the value has no tangent"
        value.backward(of.upstream)
    return Answer(value.detach(), tuple(variable.grad for variable in variables), tangent.detach())


def jacobian(**how: Any) -> Run:
    found = torch.autograd.functional.jacobian
    return lambda of: Answer(gradients=contracted(of, found(of.function(), of.start(), **how)))


def hessian(**how: Any) -> Run:
    found = torch.autograd.functional.hessian
    return lambda of: Answer(second=along(found(of.total(), of.start(), **how), of.direction))


# ------------------------------------------------------------------------------ compilers


def compiled(backend: str) -> Run:
    """Compiled by the first of two problems: its numbers must not stay in the graph, nor others compile it anew."""

    def run(of: Problem) -> Answer:
        torch._dynamo.reset()
        function = torch.compile(by_all_tensors(of), fullgraph=True, backend=backend, dynamic=False)
        with_all_tensors(function, of.sibling)
        with torch._dynamo.config.patch(error_on_recompile=True):
            return with_all_tensors(function, of)

    return run


def is_of_elements(of: Problem, tensor: Tensor) -> bool:
    """Whether weights of a binary loss have a row for each of the logits."""
    shape = of.tensors["input"].shape if of.is_binary else ()
    return tensor.ndim == len(shape) > 0 and len(tensor) == shape[0]


def compiled_for_any_shape(of: Problem) -> Answer:
    """Compiled by a problem with more rows."""
    torch._dynamo.reset()
    function = torch.compile(by_all_tensors(of), fullgraph=True, backend="aot_eager", dynamic=True)
    rows = [name for name, tensor in of.tensors.items() if name in BY_ROWS or is_of_elements(of, tensor)]
    longer = {**of.tensors, **{name: torch.cat([of.tensors[name]] * 3) for name in rows}}
    for name in of.variables:
        longer[name] = longer[name].clone().requires_grad_()
    function(*longer.values()).sum().backward()
    with torch._dynamo.config.patch(error_on_recompile=True):
        return with_all_tensors(function, of)


def compiled_transform(of: Problem) -> Answer:
    """`vmap_of_grad` under a compiler."""
    torch._dynamo.reset()
    function = torch.compile(_gradients_per_problem(of), fullgraph=True, backend="aot_eager")
    gradients, (_, value) = function(*_batch(of))
    return Answer(value[1], tuple(g[1] for g in gradients))


class _Model(nn.Module):
    """A module of nothing but a loss."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


def exported(of: Problem) -> Answer:
    arguments = tuple(of.sibling.tensors[name] for name in of.tensors)
    program = torch.export.export(_Model(by_all_tensors(of)), arguments, strict=False)
    return with_all_tensors(program.module(), of)


def traced(of: Problem) -> Answer:
    """Traced with other numbers."""
    arguments = tuple(of.sibling.tensors[name] for name in of.tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and questions about shapes are constants
        return with_all_tensors(torch.jit.trace(by_all_tensors(of), arguments, check_trace=False), of)
