"""Models whose output layer puts off making the logits, so that the loss never needs them.

`defer_logits` gives the output layer of a model another class, `DeferredLinear`, which differs from `torch.nn.Linear`
in what its forward returns: `DeferredLogits`. The model's code stays as it is, and so do parameters, state dict, hooks
and training loop. `restore_logits` takes it back.
"""

from __future__ import annotations

import copyreg
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from xent.errors import ArgumentError, message
from xent.linear.plan import DEFAULT_WORKSPACE, parse_bytes
from xent.linear.sampling import GradientOption, sampling_of
from xent.torch._torch_private import PLAIN, is_recorded, is_transformed, outside_of_graphs
from xent.torch.deferred import rules as rules
from xent.torch.deferred.tensor import DeferredLogits, defer
from xent.torch.rows import autocast_dtype

__all__ = ["DeferredLinear", "DeferredLogits", "defer_logits", "restore_logits"]

Model = TypeVar("Model", bound=nn.Module)


def defer_logits(
    model: Model,
    head: str | nn.Module | None = None,
    *,
    workspace: int | str = DEFAULT_WORKSPACE,
    gradient: GradientOption = "exact",
    threshold: float | None = None,
) -> Model:
    """Make the output layer of a model return `DeferredLogits`, and with that the loss one without logits.

    *Definition*: `torch.nn.functional.cross_entropy` of these logits, which model or training loop call as before,
    becomes ``linear_cross_entropy(hidden, weight, target)``. Everything else that asks for numbers finds the logits.

    Parameters
    ----------
    model : torch.nn.Module, changed in place. Hugging Face models know their output layer; of any other model, name it.
    head : the output layer or its name, such as "lm_head" or "decoder.output": a `torch.nn.Linear`, of a subclass whose
        forward calls `super().forward`, parametrised or not, or one that an adapter is wrapped around (PEFT).
    workspace : bytes, text such as "128MB", or "auto"; see `xent.torch.linear_cross_entropy`.
    gradient, threshold : of the cross-entropy; see there. A sampled gradient draws its seed from torch's generator.

    Returns
    -------
    the model

    Raises
    ------
    ArgumentError
        There is no such layer, or it is not linear; or an option is out of its range.

    Notes
    -----
    *Memory*: the workspace in place of the logits and their gradient. *Precision*: loss and gradients are those of
    `xent.torch.linear_cross_entropy`, which is at least as accurate as the way over 16-bit logits. A softcap
    (``tanh(logits / c) * c``) and a constant factor of the logits go into the loss. The layer of an adapter is joined
    with the layer below for the loss, which takes a copy of the weight. Where the layer cannot defer (inside
    `torch.func`, with tangents of forward mode, during tracing and export, with fake tensors, with weights that are
    sharded or quantised tensors) it returns ordinary logits. `torch.compile` breaks its graph at the layer, which is an
    error with ``fullgraph=True``. A parametrised weight is computed once in each forward. Models can be copied, pickled
    and sent to other processes. The numbers come from hidden state and weight as they are when asked for: if the
    optimizer has changed the weight by then, that is an error, not a silent difference. The gradient of a loss by the
    logits does not exist, unless ``logits.materialize()`` was called before the loss.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Embedding(50, 8), torch.nn.Linear(8, 50))
    >>> logits = defer_logits(model, "1")(torch.tensor([3, 1, 4]))
    >>> type(logits).__name__, logits.shape
    ('DeferredLogits', torch.Size([3, 50]))
    >>> torch.nn.functional.cross_entropy(logits, torch.tensor([1, 4, 1])).backward()
    >>> restore_logits(model)[1]
    Linear(in_features=8, out_features=50, bias=True)
    """
    parse_bytes("defer_logits", workspace)
    sampling_of("defer_logits", gradient, threshold, None, None)
    layers = _linear_layers(model, _head(model, head))
    for layer in layers:
        if "forward" in vars(layer):
            found = "something has replaced the forward of this layer (offloading hooks do that)"
            raise ArgumentError(message("defer_logits", "head", found, "Call defer_logits before it"))
    classes = [_deferred(layer) for layer in layers]
    for layer, deferring in zip(layers, classes, strict=True):
        layer.__class__ = deferring
        layer.logits_workspace = workspace  # type: ignore[assignment]
        layer.logits_gradient = (gradient, threshold)  # type: ignore[assignment]
    return model


def restore_logits(model: Model) -> Model:
    """Undo `defer_logits`: every layer of the model returns ordinary logits again.

    Parameters
    ----------
    model : torch.nn.Module, changed in place.

    Returns
    -------
    the model

    Raises
    ------
    ArgumentError
        The layer got yet another class after `defer_logits`, as by `fully_shard`; build the model anew.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 50))
    >>> restore_logits(defer_logits(model, "0"))
    Sequential(
      (0): Linear(in_features=8, out_features=50, bias=True)
    )
    """
    layers = [layer for layer in model.modules() if isinstance(layer, DeferredLinear)]
    classes = [_restored(layer) for layer in layers]
    for layer, restored in zip(layers, classes, strict=True):
        for name in ("logits_workspace", "logits_gradient"):
            vars(layer).pop(name, None)
        layer.__class__ = restored
    return model


class DeferredLinear(nn.Linear):
    """A `torch.nn.Linear` that returns `DeferredLogits`; `defer_logits` makes one of an output layer."""

    restored: type[nn.Linear] = nn.Linear
    """The class of the layer before."""
    logits_workspace: int | str = DEFAULT_WORKSPACE
    logits_gradient: tuple[GradientOption, float | None] = ("exact", None)
    """How the gradient of a loss is made, and its threshold."""

    def forward(self, input: Tensor) -> Tensor:
        """``input @ weight.T + bias``, not yet made."""
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            logits: Tensor = _break_graph_at_deferred_logits(self, input)
            return logits
        return _logits(self, input)

    def __prepare_scriptable__(self) -> NoReturn:
        """Called by torch.jit.script, also for a model that contains this layer."""
        found = "torch.jit.script cannot compile a layer that defers its logits"
        raise ArgumentError(message("defer_logits", "", found, "Compile restore_logits(copy.deepcopy(model))"))


@outside_of_graphs
def _break_graph_at_deferred_logits(layer: DeferredLinear, input: Tensor) -> Tensor:
    """A compiled model breaks its graph here."""
    return _logits(layer, input)


def _logits(layer: DeferredLinear, input: Tensor) -> Tensor:
    """The logits, deferred where that is possible. A parametrised weight is computed when it is read: once."""
    weight, bias = layer.weight, layer.bias
    dtype = _product_dtype(input, weight, bias)
    if dtype is None:
        return F.linear(input, weight, bias)
    return defer(input, weight, bias, dtype, layer.logits_workspace, *layer.logits_gradient)


# ----------------------------------------------------------------------------------------- the classes that are swapped


class _Deferring(type):
    """The class of classes that `defer_logits` makes: pickle finds none of them by name, and makes them again."""


def _class_again(cls: Any) -> Any:
    """How pickle gets at such a class; one that something else derived from it goes by its name as any other."""
    return (_deferring, (cls.restored,)) if "restored" in vars(cls) else cls.__qualname__


copyreg.pickle(_Deferring, _class_again)


def _deferring(layer: Any) -> type[DeferredLinear]:
    """The class that defers the logits of this class: one, however often it is asked for.

    `DeferredLinear` comes after the class, so that a forward of its own that calls `super().forward` arrives there.
    """
    if layer is nn.Linear:
        return DeferredLinear
    for made in type.__subclasses__(layer):
        if vars(made).get("restored") is layer:
            return made
    metaclass: type = _Deferring
    names: dict[str, Any] = {"restored": layer, "__module__": __name__}
    if not issubclass(_Deferring, type(layer)):
        metaclass = type("_Deferring", (_Deferring, type(layer)), {})
        copyreg.pickle(metaclass, _class_again)
    if layer.forward is nn.Linear.forward:
        names["forward"] = DeferredLinear.forward
    if issubclass(layer, LazyModuleMixin) and layer.cls_to_become is not None:
        names["cls_to_become"] = _deferring(layer.cls_to_become)
    try:
        return cast(type[DeferredLinear], metaclass(f"Deferred{layer.__name__}", (layer, DeferredLinear), names))
    except TypeError as error:
        found = f"{layer.__name__} cannot have a subclass ({error})"
        remedy = "Call xent.torch.linear_cross_entropy where the logits are made"
        raise ArgumentError(message("defer_logits", "head", found, remedy)) from error


def _deferred(layer: nn.Linear) -> Any:
    """The class of a layer with deferred logits."""
    if isinstance(layer, DeferredLinear):
        return type(layer)
    if _is_parametrised(layer):
        return _parametrised(layer, _deferring(type(layer).__base__))
    return _deferring(type(layer))


def _restored(layer: DeferredLinear) -> Any:
    """The class of a layer before its logits were deferred."""
    own = type(layer)
    base: Any = own.__base__ if _is_parametrised(layer) else own
    if base is not DeferredLinear and "restored" not in vars(base):
        found = f"{own.__name__} was made of a deferring layer"
        raise ArgumentError(message("restore_logits", "model", found, "Build the model anew without defer_logits"))
    return base.restored if base is own else _parametrised(layer, base.restored)


def _is_parametrised(layer: nn.Linear) -> bool:
    """Whether the layer's class is the one that torch makes of the class of each parametrised module."""
    if not parametrize.is_parametrized(layer):
        return False
    names: Any = layer.parametrizations
    return all(isinstance(vars(type(layer)).get(name), property) for name in names)


def _parametrised(layer: nn.Linear, base: Any) -> Any:
    """The class that torch made of the layer's, made of another: torch takes the base for the class without it."""
    own = {name: value for name, value in vars(type(layer)).items() if name not in ("__dict__", "__weakref__")}
    return type(base)(f"Parametrized{base.__name__}", (base,), own)


def _product_dtype(input: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype | None:
    """The dtype in which the layer would multiply; None where it has to be an ordinary layer."""
    tensors = [tensor for tensor in (input, weight, bias) if tensor is not None]
    if is_recorded() or torch.compiler.is_exporting() or is_transformed():
        return None
    if any(type(tensor) not in PLAIN or tensor.device != input.device for tensor in tensors):
        return None
    if input.ndim == 0 or input.shape[-1] != weight.shape[1] or input.device.type == "meta":
        return None
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):  # type: ignore[no-untyped-call]
        return None
    dtypes = {tensor.dtype for tensor in tensors}
    if (autocast := autocast_dtype(input.device, dtypes)) is not None:
        return autocast
    return input.dtype if dtypes == {input.dtype} and input.is_floating_point() else None


def _head(model: nn.Module, head: str | nn.Module | None) -> nn.Module:
    """The output layer that was asked for, or that the model itself names."""
    if isinstance(head, nn.Module):
        if not any(module is head for module in model.modules()):
            raise ArgumentError(message("defer_logits", "head", "the layer is not part of the model", _remedy(model)))
        return head
    if isinstance(head, str):
        try:
            return model.get_submodule(head)
        except AttributeError:
            found = f"the model has no module {head!r}"
            raise ArgumentError(message("defer_logits", "head", found, _remedy(model))) from None
    named: Any = getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(named, nn.Module):
        found = f"{type(model).__name__} does not say which is its output layer"
        raise ArgumentError(message("defer_logits", "head", found, _remedy(model)))
    return named


def _linear_layers(model: nn.Module, head: nn.Module) -> list[nn.Linear]:
    """The layers whose logits are deferred: the head, or in an adapter the layers with as many outputs as classes."""
    if _is_linear(head):
        return [head]  # type: ignore[list-item]
    if hasattr(head, "base_layer") or hasattr(head, "modules_to_save"):
        layers = [module for module in head.modules() if isinstance(module, nn.Linear) and _is_linear(module)]
        if layers:
            classes = max(layer.out_features for layer in layers)
            return [layer for layer in layers if layer.out_features == classes]
    expected = "a torch.nn.Linear with its own forward, or one that calls super().forward"
    found = f"found {type(head).__name__}, expected {expected}"
    raise ArgumentError(message("defer_logits", "head", found, _remedy(model)))


def _is_linear(module: nn.Module) -> bool:
    """Whether each forward of the layer's classes hands on to that of `torch.nn.Linear`, which can then defer."""
    if not isinstance(module, nn.Linear):
        return False
    for base in type(module).__mro__:
        forward = vars(base).get("forward")
        if forward in (nn.Linear.forward, DeferredLinear.forward):
            return True
        code = getattr(forward, "__code__", None)
        if forward is not None and (code is None or not {"super", "forward"} <= set(code.co_names)):
            return False
    return False


def _remedy(model: nn.Module) -> str:
    """Name the linear layers with the most outputs: one of them should be it."""
    layers = {name: module.out_features for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    largest = [name for name, size in layers.items() if name and size == max(layers.values())]
    if not largest:
        return "Without a linear output layer, call xent.torch.linear_cross_entropy where the logits are made"
    return f"Linear layers with the most outputs: {', '.join(repr(name) for name in largest[:5])}"
