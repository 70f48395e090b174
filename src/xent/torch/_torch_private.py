"""Every use of torch's private names, each with its reason; nothing else of xent imports one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)


def is_transformed() -> bool:
    """Whether a `torch.func` transform (grad, vmap, jacrev ...) is at work: it sees through formulas only.

    torch has no public question for that. Not `is not None`: Dynamo wraps the None in an object, and would take every
    compiled call for a transformed one.
    """
    return not isinstance(torch._C._functorch.peek_interpreter_stack(), type(None))


def is_traced(*tensors: Tensor | None) -> bool:
    """Whether a compiler looks through the call, or a tensor is of a subclass that wants to see operators."""
    return torch.compiler.is_compiling() or any(t is not None and type(t) not in PLAIN for t in tensors)


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
