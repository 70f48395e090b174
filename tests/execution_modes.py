"""Every way in which torch executes a call, as one table: each mode runs a problem and says what it found.

A mode is a function of a `Problem` (execution_cases.py) to an `Answer`: the value, and the derivatives that the mode is
there for. `MODES` is the table; test_execution_modes.py runs it, and execution_page.py writes docs/execution_modes.md
from it.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from execution_cases import Answer, Problem, problem
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

from xent.torch import parallel
from xent.torch.deferred import DeferredLogits, defer_logits

Gradients = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Mode:
    name: str
    says: str
    run: Callable[[Problem], Answer]
    runs: Callable[[Problem], bool] = lambda of: True
    quick: tuple[str, ...] | None = None  # the cases that always run, where running all takes minutes
    arithmetic: torch.dtype | None = None  # of linear calls, where it is not that of their tensors
    problem: Callable[..., Problem] = problem

    def __repr__(self) -> str:
        return self.name


MODES: dict[str, Mode] = {}


def mode(name: str, says: str, **more: Any) -> Callable[[Callable[[Problem], Answer]], Callable[[Problem], Answer]]:
    """Put a function into the table."""

    def enter(run: Callable[[Problem], Answer]) -> Callable[[Problem], Answer]:
        MODES[name] = Mode(name, says, run, **more)
        return run

    return enter


@contextmanager
def process_group() -> Iterator[None]:
    """A process group of this process alone, for the modes that want one."""
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{Path(folder) / 'store'}"
        dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def with_gradients(function: Callable[..., Tensor], of: Problem) -> Answer:
    """Value and gradients, by backward."""
    variables = wanting(of.start())
    value = function(*variables)
    value.backward(of.upstream)
    return Answer(value.detach(), tuple(variable.grad for variable in variables))


def wanting(tensors: Gradients) -> Gradients:
    return tuple(tensor.requires_grad_() for tensor in tensors)


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


def has_no_nan(of: Problem) -> bool:
    """Whole Jacobians and Hessians have 0 * NaN where the rows of others meet a row of NaN, as any torch function's."""
    return of.case.nan_row is None


def has_rows(of: Problem) -> bool:
    return torch.tensor(of.case.labels).ndim > 0


def positions(of: Problem) -> tuple[int, ...]:
    return tuple(range(len(of.variables)))


# ------------------------------------------------------------------------------ backward


@mode("eager", "The call as it stands, and backward.")
def _eager(of: Problem) -> Answer:
    return with_gradients(of.function(), of)


@mode("inference_mode", "Under torch.inference_mode(), and with tensors made there.")
def _inference(of: Problem) -> Answer:
    with torch.inference_mode():
        return Answer(of.values({name: tensor.clone() for name, tensor in of.tensors.items()}).clone())


@mode("is_grads_batched", "torch.autograd.grad(..., is_grads_batched=True): several upstream gradients at once.")
def _batched_gradients(of: Problem) -> Answer:
    variables = wanting(of.start())
    value = of.function()(*variables)
    upstreams = torch.stack([torch.ones_like(of.upstream), of.upstream])
    gradients = torch.autograd.grad(value, variables, upstreams, is_grads_batched=True)
    return Answer(value.detach(), tuple(g[1] for g in gradients))


@mode("create_graph", "backward of backward: create_graph=True, and the gradient of the gradient.")
def _double_backward(of: Problem) -> Answer:
    variables = wanting(of.start())
    value = of.function()(*variables)
    gradients = torch.autograd.grad(value, variables, of.upstream, create_graph=True)
    slope = sum((g * d).sum() for g, d in zip(gradients, of.direction, strict=True))
    second = torch.autograd.grad(slope, variables, allow_unused=True, materialize_grads=True)
    return Answer(value.detach(), tuple(g.detach() for g in gradients), second=second)


def _checkpointed(use_reentrant: bool) -> Callable[[Problem], Answer]:
    def run(of: Problem) -> Answer:
        return with_gradients(lambda *v: checkpoint(of.function(), *v, use_reentrant=use_reentrant), of)

    return run


mode("checkpoint, reentrant", "torch.utils.checkpoint around the call, use_reentrant=True.")(_checkpointed(True))
mode("checkpoint", "torch.utils.checkpoint around the call, use_reentrant=False.")(_checkpointed(False))


def _rounded_to_bfloat16(case: Any, call: str) -> Problem:
    """A problem of float32 tensors that bfloat16 has: autocast rounds nothing but what it computes."""
    of = problem(case, call)
    tensors = {name: t.bfloat16().to(t.dtype) if t.is_floating_point() else t for name, t in of.tensors.items()}
    return Problem(case, call, tensors, of.variables)


@mode(
    "autocast",
    "Under torch.autocast to bfloat16, backward outside of it.",
    problem=_rounded_to_bfloat16,
    arithmetic=torch.bfloat16,
    runs=lambda of: of.case.dtype == torch.float32,
)
def _autocast(of: Problem) -> Answer:
    function = of.function()

    def under_autocast(*variables: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return function(*variables)

    return with_gradients(under_autocast, of)


# ------------------------------------------------------------------------------ torch.func


@mode("func.grad", "torch.func.grad_and_value.")
def _func_grad(of: Problem) -> Answer:
    function = of.function()

    def total(*variables: Tensor) -> tuple[Tensor, Tensor]:
        value = function(*variables)
        return (value * of.upstream).sum(), value

    gradients, (_, value) = torch.func.grad_and_value(total, positions(of), has_aux=True)(*of.start())
    return Answer(value, gradients)


def _batch(of: Problem) -> Gradients:
    """Two problems, of which this is the second."""
    return tuple(torch.stack([of.sibling.tensors[name], tensor]) for name, tensor in of.tensors.items())


@mode("func.vmap", "torch.func.vmap over several problems, and backward through all of them.")
def _vmap(of: Problem) -> Answer:
    batch = dict(zip(of.tensors, _batch(of), strict=True))
    variables = wanting(tuple(batch[name] for name in of.variables))
    value = torch.func.vmap(by_all_tensors(of))(*batch.values())
    upstream = torch.stack([torch.ones_like(of.upstream), of.upstream])
    gradients = torch.autograd.grad(value, variables, upstream)
    return Answer(value[1].detach(), tuple(g[1] for g in gradients))


@mode("vmap of grad", "torch.func.vmap of torch.func.grad: gradients per problem, as for gradients per sample.")
def _vmap_of_grad(of: Problem) -> Answer:
    function = by_all_tensors(of)
    places = tuple(list(of.tensors).index(name) for name in of.variables)

    def total(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        value = function(*tensors)
        return (value * of.upstream).sum(), value

    gradients, (_, value) = torch.func.vmap(torch.func.grad_and_value(total, places, has_aux=True))(*_batch(of))
    return Answer(value[1], tuple(g[1] for g in gradients))


@mode("func.jacrev", "torch.func.jacrev.")
def _jacrev(of: Problem) -> Answer:
    return Answer(gradients=contracted(of, torch.func.jacrev(of.function(), positions(of))(*of.start())))


@mode("func.jacfwd", "torch.func.jacfwd: forward mode under vmap.", runs=has_no_nan)
def _jacfwd(of: Problem) -> Answer:
    return Answer(gradients=contracted(of, torch.func.jacfwd(of.function(), positions(of))(*of.start())))


@mode("func.jvp", "torch.func.jvp.")
def _func_jvp(of: Problem) -> Answer:
    value, tangent = torch.func.jvp(of.function(), of.start(), of.direction)
    return Answer(value, tangent=tangent)


@mode("func.hessian", "torch.func.hessian: forward over reverse mode.", runs=has_no_nan)
def _func_hessian(of: Problem) -> Answer:
    return Answer(second=along(torch.func.hessian(of.total(), positions(of))(*of.start()), of.direction))


# ------------------------------------------------------------------------------ forward mode, autograd.functional


@mode("forward_ad", "torch.autograd.forward_ad: dual tensors that need no gradient.")
def _forward_ad(of: Problem) -> Answer:
    with forward_ad.dual_level():
        duals = map(forward_ad.make_dual, of.start(), of.direction)
        value, tangent = forward_ad.unpack_dual(of.function()(*duals))
        assert tangent is not None, "the value has no tangent"
        return Answer(value, tangent=tangent)


@mode("forward_ad and backward", "Dual tensors of tensors that require a gradient, and backward of the value.")
def _forward_ad_and_backward(of: Problem) -> Answer:
    variables = wanting(of.start())
    with forward_ad.dual_level():
        value, tangent = forward_ad.unpack_dual(of.function()(*map(forward_ad.make_dual, variables, of.direction)))
        assert tangent is not None, "the value has no tangent"
        gradients = torch.autograd.grad(value, variables, of.upstream)
    return Answer(value.detach(), gradients, tangent.detach())


def _jacobian(**how: Any) -> Callable[[Problem], Answer]:
    def run(of: Problem) -> Answer:
        jacobians = torch.autograd.functional.jacobian(of.function(), of.start(), **how)
        return Answer(gradients=contracted(of, jacobians))

    return run


def _hessian(**how: Any) -> Callable[[Problem], Answer]:
    def run(of: Problem) -> Answer:
        hessian = torch.autograd.functional.hessian(of.total(), of.start(), **how)
        return Answer(second=along(hessian, of.direction))

    return run


_VECTORIZED, _FORWARD = {"vectorize": True}, {"vectorize": True, "strategy": "forward-mode"}
_OUTER = {"vectorize": True, "outer_jacobian_strategy": "forward-mode"}
mode("jacobian", "torch.autograd.functional.jacobian.")(_jacobian())
mode("jacobian, vectorized", "The same with vectorize=True.")(_jacobian(**_VECTORIZED))
mode("jacobian, forward", 'The same with vectorize=True, strategy="forward-mode".', runs=has_no_nan)(
    _jacobian(**_FORWARD)
)
mode("hessian", "torch.autograd.functional.hessian.", runs=has_no_nan)(_hessian())
mode("hessian, vectorized", "The same with vectorize=True.", runs=has_no_nan)(_hessian(**_VECTORIZED))
mode("hessian, forward", 'The same with vectorize=True, outer_jacobian_strategy="forward-mode".', runs=has_no_nan)(
    _hessian(**_OUTER)
)


# ------------------------------------------------------------------------------ compilers


def _compiled(**how: Any) -> Callable[[Problem], Answer]:
    """Compiled by the first of two problems: its numbers must not stay in the graph, nor others compile it anew."""

    def run(of: Problem) -> Answer:
        torch._dynamo.reset()
        function = torch.compile(by_all_tensors(of), fullgraph=True, **how)
        with_all_tensors(function, of.sibling)
        with torch._dynamo.config.patch(error_on_recompile=True):
            return with_all_tensors(function, of)

    return run


_AOT, _INDUCTOR = {"backend": "aot_eager", "dynamic": False}, {"backend": "inductor", "dynamic": False}
mode("compile, aot_eager", 'torch.compile(fullgraph=True, backend="aot_eager"), and backward.')(_compiled(**_AOT))
mode(
    "compile, inductor",
    "torch.compile(fullgraph=True) with its usual backend, and backward.",
    quick=("everything", "softcap-and-scale"),
)(_compiled(**_INDUCTOR))


@mode(
    "compile, dynamic",
    'torch.compile(fullgraph=True, backend="aot_eager", dynamic=True), compiled with more rows.',
    runs=has_rows,
    quick=(
        "plain",
        "none",
        "everything",
        "softcap-and-scale",
        "several-dimensions",
        "soft-everything",
        "learned-scale",
    ),
)
def _dynamic(of: Problem) -> Answer:
    torch._dynamo.reset()
    function = torch.compile(by_all_tensors(of), fullgraph=True, backend="aot_eager", dynamic=True)
    longer = {**of.tensors, **{name: torch.cat([of.tensors[name]] * 3) for name in ("input", "target")}}
    for name in of.variables:
        longer[name] = longer[name].clone().requires_grad_()
    function(*longer.values()).sum().backward()
    with torch._dynamo.config.patch(error_on_recompile=True):
        return with_all_tensors(function, of)


class _Model(nn.Module):
    """A module of nothing but a loss."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


@mode("export", "torch.export.export (not strict) of a module with the loss; the exported module, and backward.")
def _exported(of: Problem) -> Answer:
    arguments = tuple(of.sibling.tensors[name] for name in of.tensors)
    program = torch.export.export(_Model(by_all_tensors(of)), arguments, strict=False)
    return with_all_tensors(program.module(), of)


@mode("jit.trace", "torch.jit.trace of other numbers, and backward.")
def _traced(of: Problem) -> Answer:
    arguments = tuple(of.sibling.tensors[name] for name in of.tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and questions about shapes are constants
        return with_all_tensors(torch.jit.trace(by_all_tensors(of), arguments, check_trace=False), of)


# ------------------------------------------------------------------------------ kinds of tensors


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


@mode("subclass", "Tensors of a subclass that changes nothing: class Sub(torch.Tensor).")
def _subclass(of: Problem) -> Answer:
    tensors = {name: tensor.clone().as_subclass(Sub) for name, tensor in of.tensors.items()}
    variables = wanting(tuple(tensors[name] for name in of.variables))
    value = of.values(tensors)
    assert isinstance(value, Sub), f"the value is a {type(value).__name__}"
    value.backward(of.upstream)
    return Answer(value.detach().as_subclass(Tensor), tuple(variable.grad for variable in variables))


@mode("wrapper subclass", "Tensors of a subclass with __torch_dispatch__ that holds another tensor.")
def _wrapped(of: Problem) -> Answer:
    tensors = {name: Wrapper(tensor.clone()) for name, tensor in of.tensors.items()}
    variables = wanting(tuple(tensors[name] for name in of.variables))
    value = of.values(tensors)
    assert isinstance(value, Wrapper), f"the value is a {type(value).__name__}"
    value.backward(Wrapper(of.upstream))
    gradients: Any = tuple(variable.grad for variable in variables)
    return Answer(value.inner, tuple(g if g is None else g.inner for g in gradients))


@mode("meta", "Tensors on the meta device: shapes and dtypes.")
def _meta(of: Problem) -> Answer:
    return _shapes({name: tensor.to("meta") for name, tensor in of.tensors.items()}, of)


@mode("FakeTensorMode", "Fake tensors: shapes and dtypes.")
def _fake(of: Problem) -> Answer:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as fake:
        return _shapes({name: fake.from_tensor(tensor) for name, tensor in of.tensors.items()}, of)


def _shapes(tensors: dict[str, Tensor], of: Problem) -> Answer:
    variables = wanting(tuple(tensors[name] for name in of.variables))
    value = of.values(tensors)
    value.backward(torch.ones_like(value))
    return Answer(value.detach(), tuple(variable.grad for variable in variables), has_numbers=False)


# ------------------------------------------------------------------------------ whose logits lie elsewhere


def _has_a_head(of: Problem) -> bool:
    """Whether the logits may be deferred: classes last, and an output layer that fits in the logits' dtype."""
    rows = torch.tensor(of.case.labels).ndim == 1
    return rows and not of.is_linear and of.case.dtype == torch.float32 and not of.case.frozen_logits


def _layer_of(case: Any, call: str) -> Problem:
    """The problem whose logits are deferred: that of the layer."""
    return problem(case, call if call.startswith("linear") else f"linear_{call}")


@mode(
    "deferred",
    "Logits of an output layer that defers them (defer_logits).",
    runs=_has_a_head,
    problem=_layer_of,
)
def _deferred(of: Problem) -> Answer:
    head = nn.Linear(*reversed(of.tensors["linear_weight"].shape))
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


@mode("parallel", "xent.torch.parallel on the one rank of a group.")
def _parallel(of: Problem) -> Answer:
    return with_gradients(of.function(parallel, group=dist.group.WORLD), of)


def _distributed(cut: str) -> Callable[[Problem], Answer]:
    """DTensors on one rank: replicated, or cut along the rows or the classes."""

    def run(of: Problem) -> Answer:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import DTensor, Replicate, Shard

        axes, mesh = _axes(of)[cut], init_device_mesh("cpu", (1,))
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
    classes = {"linear_weight": 0, "linear_bias": 0}
    if not of.is_linear:
        classes = {"input": min(1, of.tensors["input"].ndim - 1)}
    if of.tensors["target"].is_floating_point():
        classes["target"] = 1
    if "weight" in of.tensors:
        classes["weight"] = 0
    return {"rows": {"input": 0, "target": 0}, "classes": classes, "nothing": {}}


mode("DTensor, rows", "DTensors whose rows are sharded: Shard(0).", runs=has_rows)(_distributed("rows"))
mode("DTensor, classes", "DTensors whose classes are sharded: Shard(1), of a layer Shard(0).")(_distributed("classes"))
mode("DTensor, replicated", "DTensors that are whole on each rank: Replicate().")(_distributed("nothing"))
