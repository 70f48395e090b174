"""Tensors of any shape as rows of classes, and back; the checks that are about tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xent.backends.formula import weights_of_valid
from xent.backends.protocol import Backend
from xent.checks import Layout, check_labels, check_sample_weight
from xent.errors import ArgumentError, DTypeError, message
from xent.linear.divergence import Pair
from xent.linear.driver import Layer
from xent.linear.sampling import Sampling
from xent.objective import Objective
from xent.sparse import SparseTarget, is_sparse, packed
from xent.torch._torch_private import (
    PLAIN,
    assert_on_device,
    is_recorded,
    is_transformed,
    without_numbers,
    without_transforms,
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Of logits, class probabilities and layers."""


OPTIONAL = ("weight", "linear_bias", "pos_weight", "sample_weight", "target_bias")


def check_tensors(call: str, *, place: torch.device | None = None, **arguments: Any) -> None:
    """Raise DTypeError if an argument is no dense tensor, ArgumentError if it is elsewhere: not where the first one is.

    None stands for an optional argument that was not given. `place` is where the first one belongs, if it is not there
    itself.
    """
    first = ""
    for name, value in arguments.items():
        if value is None and name in OPTIONAL:
            continue
        if not isinstance(value, Tensor):
            found = f"found a {type(value).__name__}, expected a tensor"
            raise DTypeError(message(call, name, found, "For NumPy arrays and lists use xent.numpy"))
        if value.layout is not torch.strided or value.is_nested:
            kind, remedy = ("nested", "to_padded_tensor") if value.is_nested else (value.layout, "to_dense")
            found = f"found a tensor of layout {kind}, expected a dense one"
            raise DTypeError(message(call, name, found, f"Convert it with {name}.{remedy}(...)"))
        if not first:
            first, place = name, place or value.device
        elif value.device != place:
            found = f"found a tensor on {value.device}, while {first} is on {place}"
            raise ArgumentError(message(call, name, found, f"Move it with {name}.to({first}.device)"))


def check_floating(call: str, name: str, tensor: Tensor) -> None:
    """Raise DTypeError unless a tensor holds numbers of a dtype that the kernels compute with."""
    if tensor.dtype not in DTYPES:
        found = f"found dtype {tensor.dtype}, expected float64, float32, bfloat16 or float16"
        raise DTypeError(message(call, name, found, f"Convert it with {name}.float()"))


WITHOUT_AUTOCAST = ("meta", "lazy", "vulkan")
"""Kinds of devices that torch refuses to be asked about. Its own question whether there is autocast is one that its
compiler cannot trace before torch 2.13."""


def autocast_dtype(device: torch.device, dtypes: Iterable[torch.dtype]) -> torch.dtype | None:
    """The dtype in which autocast makes products of such tensors; None where it is off, and for float64."""
    if device.type in WITHOUT_AUTOCAST or not torch.is_autocast_enabled(device.type) or torch.float64 in dtypes:
        return None
    return torch.get_autocast_dtype(device.type)


def is_soft(call: str, target: Tensor) -> bool:
    """Whether a target holds class probabilities rather than class indices."""
    if target.is_floating_point():
        check_floating(call, "target", target)
        return True
    if target.dtype is torch.bool or target.is_complex():
        found = f"found dtype {target.dtype}, expected integers or class probabilities"
        raise DTypeError(message(call, "target", found, "Convert class indices with target.long()"))
    return False


def check_labels_now(call: str, labels: Tensor, classes: int, ignore_index: int, *, check: bool) -> None:
    """Look at labels before a backend does: where that costs nothing, and where `check` asks for it.

    Under `torch.func` the numbers are there, below the wrappers, and no error can be raised later. A compiler has none,
    nor have fake and meta tensors: an operator of torch checks where there are any.
    """
    if torch.compiler.is_compiling() or without_numbers(labels):
        if check and not is_transformed():  # a batch in a graph cannot raise: there such a row is NaN
            valid = ((labels >= 0) & (labels < classes)) | (labels == ignore_index)
            assert_on_device(valid.all(), f"{call}: a label is neither in [0, {classes}) nor {ignore_index}")
        return
    labels = without_transforms(labels) if is_transformed() else labels
    if check or (is_transformed() and labels.device.type == "cpu" and type(labels) in PLAIN):
        check_labels(call, int64(labels), classes, ignore_index)


def refuse_recording(call: str) -> None:
    """Raise DTypeError under `torch.jit.trace`, which would keep the loss of these rows as a constant."""
    if is_recorded():
        found = "torch.jit.trace would record the loss as a constant"
        raise DTypeError(message(call, "", found, "Use torch.compile or torch.export, which see the operator"))


def as_matrix(tensor: Tensor, class_axis: int) -> Tensor:
    """View (or copy) logits of any shape as (rows, C)."""
    return tensor.resolve_neg().movedim(class_axis, -1).reshape(-1, tensor.shape[class_axis])


def as_rows(tensor: Tensor) -> Tensor:
    """View (or copy) logits or class probabilities as (N, C), or (N, C, S) with all positions on the last axis."""
    tensor = tensor.resolve_neg()  # kernels read memory, which does not know of a pending sign
    if tensor.ndim == 1:
        return tensor.unsqueeze(0)
    return tensor if tensor.ndim == 2 else tensor.flatten(2)


def int64(labels: Tensor) -> Tensor:
    """Class indices in 64 bits: in 8 bits -100 would be the class 156. Those beyond int64 are its greatest number."""
    if labels.dtype is torch.int64:
        return labels
    wide = labels.to(torch.int64)
    return torch.where(wide < 0, torch.iinfo(torch.int64).max, wide) if labels.dtype is torch.uint64 else wide


def sparse_as_rows(call: str, target: SparseTarget, layout: Layout, *, check: bool) -> Tensor:
    """A target that lists a few classes as rows; a row that is wrong is NaN where numbers are not looked at."""
    seen = check or target.ids.device.type == "cpu"
    if torch.compiler.is_compiling() or without_numbers(target.ids) or is_transformed():
        seen = False
    rows: Tensor = packed(call, target, layout, check=seen)
    return rows


def labels_as_rows(labels: Tensor, layout: Layout) -> Tensor:
    """View (or copy) class indices as (N,) or (N, S)."""
    labels = int64(labels)
    if len(layout.logits_shape) > 2:
        return labels.flatten(1)
    return labels if labels.ndim == 1 else labels.reshape(1)


def sample_weights(
    call: str,
    given: Tensor | None,
    class_weight: Tensor | None,
    target: Tensor,
    layout: Layout,
    objective: Objective,
) -> tuple[Tensor | None, Tensor | None]:
    """Check weights of rows; return them as rows, (N,) or (N, S), with 0 for ignored ones, and the class weights.

    A focal loss takes class weights as weights of rows, so that kernels need not. `target` lies as rows.
    """
    rows = None if given is None else _checked_weights(call, given, target, layout, objective)
    if not objective.focal_gamma or class_weight is None:
        return rows, class_weight
    known = target != objective.ignore_index
    of_labels = weights_of_valid(class_weight.double(), (target * known).clip(0, len(class_weight) - 1), known)
    return of_labels if rows is None else of_labels * rows, None


def _checked_weights(call: str, given: Tensor, target: Tensor, layout: Layout, objective: Objective) -> Tensor:
    check_tensors(call, place=target.device, sample_weight=given)
    check_floating(call, "sample_weight", given)
    check_sample_weight(call, tuple(given.shape), layout)
    if is_sparse(target):
        return given.reshape(target.shape[0])
    if target.is_floating_point():
        return given.reshape(*target.shape[:1], *target.shape[2:])
    return torch.where(target == objective.ignore_index, 0.0, given.reshape(target.shape))


def weighted(losses: Tensor, sample_weight: Tensor | None) -> Tensor:
    """The losses of rows times their weights; nothing of weight 0 is infinite."""
    if sample_weight is None:
        return losses
    weights = sample_weight.reshape(losses.shape).to(losses.dtype)
    return losses.masked_fill(losses.isinf() & (weights == 0), 0.0) * weights


def times(logits: Tensor, scale: Tensor) -> Tensor:
    """Logits times a scale that is a tensor, in float32 for 16 bits; infinite ones have no part in its gradient."""
    wide = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    masked, scale = logits.isinf(), scale.to(wide.dtype)
    return wide.masked_fill(masked, 0.0) * scale + wide.masked_fill(~masked, 0.0) * scale.detach()


def from_rows(numbers: Tensor, layout: Layout) -> Tensor:
    """Put one number per row into the shape of the target."""
    return numbers.reshape(layout.loss_shape)


class Call(NamedTuple):
    """What a call is beside its tensors."""

    name: str
    objective: Objective
    backend: Backend
    """Of the rows of logits."""
    linear: Any = None
    """The `LinearBackend` of a call with a linear layer."""
    workspace: int = 0
    dtype: torch.dtype = torch.float32
    """In which a layer multiplies."""
    labels_are_checked: bool = False
    sample_weight: Tensor | None = None
    """A factor of the loss of each row, (N,) or (N, S), which needs no gradient here."""
    sampling: Sampling | None = None
    """How the gradients of a layer are rounded at random."""

    def scaled(self, row_scale: Any) -> Any:
        """`row_scale` times the weights of the rows."""
        return row_scale if self.sample_weight is None else self.sample_weight.double() * row_scale


class LinearRows(NamedTuple):
    """The tensors of a call with a linear layer, as rows; `linear_weight` and so on in the public calls."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor
    class_weight: Tensor | None

    def to(self, dtype: torch.dtype) -> LinearRows:
        """Input, weight and bias in the dtype that they are multiplied in."""
        bias = None if self.bias is None else self.bias.to(dtype)
        return self._replace(input=self.input.to(dtype), weight=self.weight.to(dtype), bias=bias)

    def layer(self, call: Call) -> Layer:
        """The layer that a linear backend takes."""
        own = LinearRows._make(None if tensor is None else tensor.detach() for tensor in self).to(call.dtype)
        of_layer = (own.input, own.weight, own.bias, own.target, self.weight.dtype)
        return Layer(call.name, *of_layer, call.workspace, call.sampling)


class PairRows(NamedTuple):
    """The tensors of a divergence of two linear layers, as rows: the student's, and the teacher's as `target_*`."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    target_input: Tensor
    target_weight: Tensor
    target_bias: Tensor | None
    labels: Tensor | None

    @property
    def exchanged(self) -> PairRows:
        """The same with the roles exchanged."""
        return PairRows(*self[3:6], *self[:3], self.labels)

    @property
    def target(self) -> Tensor:
        """What says how many rows there are that count: the labels, or where there are none the teacher's input."""
        return self.target_input if self.labels is None else self.labels

    @property
    def class_weight(self) -> None:
        """Classes have no weights here."""

    def to(self, dtype: torch.dtype) -> PairRows:
        """Both layers in the dtype that they are multiplied in."""
        layers = [None if tensor is None else tensor.to(dtype) for tensor in self[:6]]
        return PairRows._make([*layers, self.labels])

    def layer(self, call: Call) -> Pair:
        """The pair of layers that a linear backend takes."""
        own = PairRows._make(None if tensor is None else tensor.detach() for tensor in self).to(call.dtype)
        none = own.input.new_empty(0, dtype=torch.int64)  # a layer's own target
        student = Layer(call.name, *own[:3], none, self.weight.dtype, call.workspace)
        teacher = Layer(call.name, *own[3:6], none, self.target_weight.dtype, call.workspace)
        return Pair(student, teacher, own.labels)
