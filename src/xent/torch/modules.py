"""The losses as modules, for models that are written as lists of modules.

All are subclasses of torch's modules of the same name. Every option is an attribute under its own name and nowhere
else: setting it later is the same as passing it, and `forward` checks what it finds there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Never, NoReturn

import torch
from torch import Tensor, nn

from xent.checks import BINARY_OPTIONS, binary_options, check_weight_shape
from xent.errors import ArgumentError, DTypeError, XentError, message
from xent.linear.plan import DEFAULT_WORKSPACE, parse_bytes
from xent.linear.sampling import GradientOption, sampling_of
from xent.objective import TEXT, Objective
from xent.torch.binary import binary_cross_entropy_with_logits
from xent.torch.functional import cross_entropy
from xent.torch.linear import linear_cross_entropy
from xent.torch.linear_positions import check_chunking, ignored_label

if TYPE_CHECKING:
    from torch.nn import LinearCrossEntropyLoss as TorchLinearCrossEntropyLoss
else:
    # The oldest torch that we support has no such module.
    TorchLinearCrossEntropyLoss = getattr(nn, "LinearCrossEntropyLoss", nn.Module)


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """`xent.torch.cross_entropy` as a module: a `torch.nn.CrossEntropyLoss` with more options.

    Parameters
    ----------
    weight : tensor (C,), optional
        Class weights; a buffer, so that it moves with the module and is saved with it.
    size_average, reduce : torch's older names of a reduction; they override it, with torch's warning.
    ignore_index, reduction, label_smoothing : as in torch.
    z_loss, softcap, logit_scale, denominator, focal_gamma : beyond it; see `xent.Objective`.
    check : look at labels and weights also where that makes the host wait for the device.

    Each is an attribute that may be set later, `size_average` and `reduce` as `reduction`.

    Raises
    ------
    ObjectiveError, DTypeError
        An option is out of its range: here, or in the next call if it was set later.

    Examples
    --------
    >>> import torch
    >>> loss = CrossEntropyLoss(label_smoothing=0.1, reduction="sum")
    >>> loss
    CrossEntropyLoss(label_smoothing=0.1, reduction='sum')
    >>> round(loss(torch.zeros(2, 4), torch.tensor([0, 3])).item(), 4)
    2.7726
    >>> loss.reduction = "none"
    >>> loss(torch.zeros(2, 4), torch.tensor([0, 3])).shape
    torch.Size([2])
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        denominator: float | None = None,
        focal_gamma: float = 0.0,
        check: bool = False,
        **unknown: Never,
    ) -> None:
        _check_weight("CrossEntropyLoss", weight)
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.z_loss = z_loss
        self.softcap = softcap
        self.logit_scale = logit_scale
        self.denominator = denominator
        self.focal_gamma = focal_gamma
        self.check = check
        given: Any = _options(self) | unknown
        Objective.of("CrossEntropyLoss", given)  # a wrong option is found here, and not in the first step

    def forward(self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss of logits (N, C, ...) and class indices or probabilities; rows may have weights."""
        options = _options(self)
        return cross_entropy(input, target, self.weight, sample_weight=sample_weight, check=self.check, **options)

    def extra_repr(self) -> str:
        """The options that differ from their defaults."""
        return ", ".join(_changed(self))

    def __prepare_scriptable__(self) -> NoReturn:
        """Called by torch.jit.script, also for a model that contains this module."""
        raise not_scriptable("CrossEntropyLoss")


class BCEWithLogitsLoss(nn.BCEWithLogitsLoss):
    """`xent.torch.binary_cross_entropy_with_logits` as a module: a `torch.nn.BCEWithLogitsLoss` with more options.

    Parameters
    ----------
    weight, pos_weight : tensors that broadcast to the logits' shape, optional
        Buffers, so that they move with the module and are saved with it.
    size_average, reduce : torch's older names of a reduction; they override it, with torch's warning.
    reduction : as in torch.
    ignore_index, label_smoothing, softcap, logit_scale, denominator, focal_gamma : beyond it; see the function.
    check : look at targets and weights also where that makes the host wait for the device.

    Each is an attribute that may be set later, `size_average` and `reduce` as `reduction`.

    Raises
    ------
    ObjectiveError, DTypeError
        An option is out of its range: here, or in the next call if it was set later.

    Examples
    --------
    >>> import torch
    >>> loss = BCEWithLogitsLoss(pos_weight=torch.tensor([3.0, 1.0]), reduction="sum")
    >>> loss
    BCEWithLogitsLoss(reduction='sum')
    >>> round(loss(torch.zeros(1, 2), torch.tensor([[1, 0]])).item(), 4)
    2.7726
    """

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        denominator: float | None = None,
        focal_gamma: float = 0.0,
        check: bool = False,
        **unknown: Never,
    ) -> None:
        name = "BCEWithLogitsLoss"
        _check_weight(name, weight)
        _check_weight(name, pos_weight, "pos_weight")
        super().__init__(weight, size_average, reduce, reduction, pos_weight)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.softcap = softcap
        self.logit_scale = logit_scale
        self.denominator = denominator
        self.focal_gamma = focal_gamma
        self.check = check
        binary_options(name, unknown)
        given: Any = _options(self, BINARY_OPTIONS)
        Objective.of(name, given)  # a wrong option is found here, and not in the first step

    def forward(self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss of logits and targets of one shape; rows may have weights."""
        return binary_cross_entropy_with_logits(
            input,
            target,
            self.weight,
            pos_weight=self.pos_weight,
            sample_weight=sample_weight,
            check=self.check,
            **_options(self, BINARY_OPTIONS),
        )

    def extra_repr(self) -> str:
        """The options that differ from their defaults."""
        return ", ".join(_changed(self, BINARY_OPTIONS))

    def __prepare_scriptable__(self) -> NoReturn:
        """Called by torch.jit.script, also for a model that contains this module."""
        raise not_scriptable("BCEWithLogitsLoss")


class LinearCrossEntropyLoss(TorchLinearCrossEntropyLoss):
    """`xent.torch.linear_cross_entropy` as a module: a `torch.nn.LinearCrossEntropyLoss` with more options.

    Parameters
    ----------
    in_features, num_classes : the sizes of the layer `linear`, an `nn.Linear`.
    out_features : the sizes (d_1, ..., d_K) of a K-dimensional loss; the layer has a row for each class and position.
    bias : whether the layer has a bias.
    device, dtype : of its parameters.
    weight : tensor (C,), optional
        Class weights; a buffer, so that it moves with the module and is saved with it.
    reduction, ignore_index, label_smoothing, options : as in torch; see `linear_cross_entropy`.
    z_loss, softcap, logit_scale, denominator, focal_gamma : beyond it; see `xent.Objective`.
    workspace, check, gradient, threshold : see `linear_cross_entropy`. A sampled gradient draws its seed from torch's
        generator.

    Each option is an attribute that may be set later. To tie the layer to an embedding:
    ``loss.linear.weight = embedding.weight``. With a torch that has no `nn.LinearCrossEntropyLoss` this is an
    `nn.Module`.

    Raises
    ------
    ObjectiveError, ArgumentError, ShapeError, DTypeError
        An argument is out of its range: here, or in the next call if it was set later.

    Examples
    --------
    >>> loss = LinearCrossEntropyLoss(8, 4, label_smoothing=0.1)
    >>> loss(torch.zeros(2, 8), torch.tensor([0, 3])).shape
    torch.Size([])
    >>> loss
    LinearCrossEntropyLoss(
      in_features=8, num_classes=4, label_smoothing=0.1
      (linear): Linear(in_features=8, out_features=4, bias=False)
    )
    """

    weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: Any = None,
        z_loss: float = 0.0,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        denominator: float | None = None,
        focal_gamma: float = 0.0,
        workspace: int | str = DEFAULT_WORKSPACE,
        check: bool = False,
        gradient: GradientOption = "exact",
        threshold: float | None = None,
        **unknown: Never,
    ) -> None:
        name = "LinearCrossEntropyLoss"
        _check_weight(name, weight)
        if weight is not None:
            check_weight_shape(name, tuple(weight.shape), num_classes)
        # Not torch's own: it may be missing, and its checks are those above with other errors.
        nn.Module.__init__(self)
        self.register_buffer("weight", weight)
        self.num_classes = num_classes
        self.out_features = _sizes(name, out_features)
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.options = options
        self.z_loss = z_loss
        self.softcap = softcap
        self.logit_scale = logit_scale
        self.denominator = denominator
        self.focal_gamma = focal_gamma
        self.workspace = workspace
        self.check = check
        self.gradient = gradient
        self.threshold = threshold
        given: Any = _options(self) | {"ignore_index": ignored_label(ignore_index)} | unknown
        Objective.of(name, given)  # a wrong option is found here, and not in the first step
        parse_bytes(name, workspace)
        sampling_of(name, gradient, threshold, None, None)
        check_chunking(name, options)
        rows = math.prod(self.out_features, start=num_classes)
        self.linear = nn.Linear(in_features, rows, bias=bias, device=device, dtype=dtype)

    def forward(self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss of input (..., features) and class indices (...) or probabilities (..., C).

        With `out_features` of input (N, features) and class indices (N, d_1, ..., d_K) or probabilities
        (N, C, d_1, ..., d_K). Each loss may have a weight.
        """
        layer: Tensor = self.linear.weight
        bias: Tensor | None = self.linear.bias
        if self.out_features:
            shape = (self.num_classes, *self.out_features)
            layer = layer.reshape(*shape, self.linear.in_features)
            bias = None if bias is None else bias.reshape(shape)
        return linear_cross_entropy(
            input,
            layer,
            target,
            linear_bias=bias,
            weight=self.weight,
            options=self.options,
            sample_weight=sample_weight,
            workspace=self.workspace,
            check=self.check,
            gradient=self.gradient,
            threshold=self.threshold,
            **_options(self),
        )

    def extra_repr(self) -> str:
        """The sizes, and the options that differ from their defaults."""
        parts = [f"in_features={self.linear.in_features}", f"num_classes={self.num_classes}"]
        parts += [f"out_features={self.out_features}"] if self.out_features else []
        parts += _changed(self)
        defaults = {"workspace": DEFAULT_WORKSPACE, "gradient": "exact", "threshold": None}
        values = {name: getattr(self, name) for name in defaults}
        parts += [f"{name}={value!r}" for name, value in values.items() if value != defaults[name]]
        return ", ".join(parts)

    def __prepare_scriptable__(self) -> NoReturn:
        """Called by torch.jit.script, also for a model that contains this module."""
        raise not_scriptable("LinearCrossEntropyLoss")


def _options(module: nn.Module, names: Iterable[str] = TEXT) -> dict[str, Any]:
    """The options of the loss by name, as they are set now."""
    return {name: getattr(module, name) for name in names}


def _changed(module: nn.Module, names: Iterable[str] = TEXT) -> list[str]:
    """The options that differ from their defaults; compared as text, since a wrong value may be anything."""
    defaults = {**{name: getattr(Objective, name) for name in names}, "check": False}
    values = {name: getattr(module, name) for name in defaults}
    return [
        f"{name}={value!r}"
        for name, value in values.items()
        if value is not None and repr(value) != repr(defaults[name])
    ]


def _check_weight(call: str, weight: Any, name: str = "weight") -> None:
    """Raise DTypeError if weights are no tensor: as a buffer they have to be one."""
    if weight is not None and not isinstance(weight, Tensor):
        found = f"found a {type(weight).__name__}, expected a tensor (classes,)"
        raise DTypeError(message(call, name, found, f"Convert it with torch.tensor({name})"))


def _sizes(call: str, out_features: Any) -> tuple[int, ...]:
    """The sizes of a K-dimensional loss, checked."""
    if isinstance(out_features, tuple | list) and all(isinstance(size, int) and size >= 0 for size in out_features):
        return tuple(out_features)
    found = f"found {out_features!r}, expected a tuple of sizes"
    raise ArgumentError(message(call, "out_features", found, "Pass () for one loss for each row of the input"))


def not_scriptable(call: str) -> XentError:
    """What `torch.jit.script` is told."""
    found = "torch.jit.script cannot compile this module"
    return XentError(message(call, "", found, "Use torch.compile or torch.export"))
