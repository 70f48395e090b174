"""Every use of torch's private names, each with its reason; nothing else of xent imports one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PLAIN = frozenset((Tensor, torch.nn.Parameter, torch.nn.Buffer))
_BATCHED = torch._C._dispatch_key_parse("Batched")

# Questions of `is_watched`, for the smallest calls, which pay for each name and each function of Python in between.
interpreter_stack, dispatch_modes = torch._C._functorch.peek_interpreter_stack, torch._C._len_torch_dispatch_stack
tracing_state = torch._C._get_tracing_state

cross_entropy_loss: Callable[..., Tensor] = torch._C._nn.cross_entropy_loss
"""`F.cross_entropy` without its Python: of (input, target, weight, 1 for a mean, ignore_index, label_smoothing)."""


def is_transformed() -> bool:
    """Whether a `torch.func` transform (grad, vmap, jacrev ...) is at work: it asks for batching rules.

    torch has no public question for that. Not `is not None`: Dynamo wraps the None in an object, and would take every
    compiled call for a transformed one.
    """
    return not isinstance(torch._C._functorch.peek_interpreter_stack(), type(None))


def is_forward_mode() -> bool:
    """Whether tangents are carried along, by `torch.autograd.forward_ad` or a `torch.func` transform around the call.

    An autograd function without a rule for tangents drops them in silence.
    """
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    if not is_transformed():
        return False
    jvp = torch._C._functorch.TransformType.Jvp
    return any(level.key() == jvp for level in torch._C._functorch.get_interpreter_stack() or ())


def is_batched(tensor: Tensor) -> bool:
    """Whether `is_grads_batched` or `vectorize` asks for many gradients, by a mechanism older than torch.func."""
    return bool(torch._C._dispatch_keys(tensor).has(_BATCHED))


def without_transforms(tensor: Tensor) -> Tensor:
    """The tensor with the numbers, under all wrappers of `torch.func`; a batch has an axis more."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def is_watched(*tensors: Tensor | None) -> bool:
    """Whether anybody looks on: a compiler, a transform, tangents, a mode, a recorder, or a tensor's subclass.

    All the questions of this file at once, since the small calls of eager code pay for each of them.
    """
    if is_traced(*tensors) or is_transformed():
        return True
    return torch.autograd.forward_ad._current_level >= 0 or is_recorded()


def without_numbers(tensor: Tensor) -> bool:
    """Whether a tensor stands for one that is not there: on the meta device, or in a mode that computes shapes."""
    return tensor.is_meta or isinstance(tensor, torch._subclasses.FakeTensor)


def is_traced(*tensors: Tensor | None) -> bool:
    """Whether somebody wants to see operators: a compiler, a dispatch mode, or a tensor's subclass."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return True
    return any(t is not None and type(t) not in PLAIN for t in tensors)


def count_flops(operator: Any, formula: Callable[..., int]) -> None:
    """Tell a `FlopCounterMode` that is at work how an operator counts.

    Its public registry is read when a counter is made, and takes a sixth of a second to import: as long as all of xent.
    """
    if torch._C._len_torch_dispatch_stack():
        for mode in torch.utils._python_dispatch._get_current_dispatch_mode_stack():
            registry = getattr(getattr(mode, "counter", None), "flop_registry", None)
            if registry is not None:
                registry.setdefault(operator, lambda *arguments, out_val=None, **_: formula(*arguments))


def takes_over(*arguments: Any) -> bool:
    """Whether the class of an argument has a `__torch_function__` of its own.

    torch's calls the function once more, which a compiler does not follow, and cannot return a named tuple.
    """
    ordinary = Tensor.__torch_function__.__func__  # type: ignore[attr-defined]
    for argument in arguments:
        function = getattr(type(argument), "__torch_function__", None)
        # That of a class which has disabled it is a builtin, without a function below.
        if function is not None and getattr(function, "__func__", ordinary) is not ordinary:
            return True
    return False


def assert_on_device(condition: Tensor, message: str) -> None:
    """Let the device stop if the condition does not hold, which no host waits for. torch has no public name for it."""
    torch._assert_async(condition, message)


def has_saved_tensors_hooks() -> bool:
    """Whether hooks on saved tensors may be set: inside of `torch.func.grad` torch forbids them."""
    return bool(torch._C._autograd._saved_tensors_hooks_is_enabled())  # type: ignore[attr-defined]


def is_recorded() -> bool:
    """Whether `torch.jit.trace` records the call: `torch.jit.is_tracing` imports the whole of torch.jit."""
    return torch._C._get_tracing_state() is not None


def without_torch_function() -> Any:
    """A context in which `__torch_function__` of subclasses is not called; the public name disables modes too."""
    return torch._C.DisableTorchFunctionSubclass()


def wrapper_subclass(cls: type, like: Tensor, device: torch.device) -> Any:
    """A tensor of a subclass without memory, of the shape, strides and dtype of another: what torch offers for that."""
    return Tensor._make_wrapper_subclass(cls, like.shape, strides=like.stride(), dtype=like.dtype, device=device)


def outside_of_graphs(call: Any) -> Any:
    """Break a compiler's graph at this function. torch.compiler.disable does the same, and takes seconds to import."""
    return torch._disable_dynamo(call)  # type: ignore[attr-defined]


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to, as torch counts it; tensors of inference mode are not counted."""
    return -1 if tensor.is_inference() else tensor._version


def share_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have one storage; storages on the meta device have no address to compare."""
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)


def legacy_reduction(size_average: bool | None, reduce: bool | None) -> str:
    """The reduction that torch's arguments from before version 1.0 stand for, with torch's warning."""
    name: str = torch.nn._reduction.legacy_get_string(size_average, reduce)
    return name
