"""The checks of shapes, dtypes and ranges that every loss makes, in one place, and how arrays lie as rows of classes.

torch's convention: logits of shape (C,), (N, C) or (N, C, d1, d2, ...) come with class indices of the same shape
without the axis C, or with class probabilities of exactly the logits' shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np

from xent.arrays import Array, check_is_dense, check_soft_target, conversion, first_wrong, is_numpy_bfloat16, native
from xent.errors import DTypeError, LabelError, ObjectiveError, ShapeError, message
from xent.objective import BinaryOptions, Objective

BINARY_OPTIONS = tuple(BinaryOptions.__annotations__)
"""The fields of `Objective` that the binary loss has."""

FLOATING = "efd"
"""NumPy's characters of float16, float32 and float64, the floating dtypes that the kernels take beside bfloat16."""


@dataclass(frozen=True)
class Layout:
    """How logits and target of any shape lie as rows of classes."""

    logits_shape: tuple[int, ...]
    class_axis: int
    soft: bool
    """Whether the target holds class probabilities rather than class indices."""

    @property
    def classes(self) -> int:
        return self.logits_shape[self.class_axis]

    @property
    def loss_shape(self) -> tuple[int, ...]:
        """The shape of the losses before any reduction: one for each row."""
        return self.logits_shape[: self.class_axis] + self.logits_shape[self.class_axis + 1 :]

    @property
    def rows(self) -> int:
        return math.prod(self.loss_shape)


def layout(
    call: str, argument: str, logits_shape: tuple[int, ...], target_shape: tuple[int, ...], *, floating_target: bool
) -> Layout:
    """Return the layout of logits and target by torch's convention, or raise ShapeError or DTypeError."""
    if not logits_shape:
        raise ShapeError(message(call, argument, "found a single number", "Pass logits of shape (classes,) at least"))
    found_layout = Layout(logits_shape, 0 if len(logits_shape) == 1 else 1, soft=target_shape == logits_shape)
    return checked_layout(call, argument, found_layout, target_shape, floating_target=floating_target)


def checked_layout(
    call: str, argument: str, given: Layout, target_shape: tuple[int, ...], *, floating_target: bool
) -> Layout:
    """Return the layout if the target's shape and dtype fit it."""
    if given.classes == 0:
        found = f"found shape {given.logits_shape} with no classes along axis {given.class_axis}"
        raise ShapeError(message(call, argument, found, "Pass at least one class"))
    if not given.soft and target_shape != given.loss_shape:
        found = f"found shape {target_shape} for logits of shape {given.logits_shape}"
        remedy = f"Pass class indices of shape {given.loss_shape} or class probabilities of shape {given.logits_shape}"
        raise ShapeError(message(call, "target", found, remedy))
    if given.soft and not floating_target:
        found = "found integers of the logits' shape"
        remedy = f"Pass class indices of shape {given.loss_shape}, or class probabilities as floating point numbers"
        raise DTypeError(message(call, "target", found, remedy))
    if not given.soft and floating_target:
        found = "found floating point numbers where class indices were expected"
        remedy = f"Convert them to integers, or pass class probabilities of shape {given.logits_shape}"
        raise DTypeError(message(call, "target", found, remedy))
    return given


def check_linear_shapes(
    call: str, input: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...] | None
) -> None:
    """Raise ShapeError unless input (..., features), weight (C, features) and bias (C,) fit together."""
    if not input or len(weight) != 2 or input[-1] != weight[1]:
        found = f"found shape {weight} for an input of shape {input}"
        remedy = "Pass input (..., features) and weight (classes, features), as in torch.nn.Linear"
        raise ShapeError(message(call, "linear_weight", found, remedy))
    if bias is not None and bias != weight[:1]:
        found = f"found shape {bias}, expected {weight[:1]}"
        raise ShapeError(message(call, "linear_bias", found, "Pass one number for each class"))


def check_teacher_layer(call: str, shapes: dict[str, tuple[int, ...] | None]) -> None:
    """Raise ShapeError unless the teacher's layer has rows and classes of the student's, whose layer has been checked.

    `shapes` are those of the arguments by name.
    """
    rows, weight, bias = shapes["target_input"], shapes["target_weight"], shapes["target_bias"]
    student, classes = shapes["input"], shapes["linear_weight"]
    if not rows or not weight or len(weight) != 2 or rows[-1] != weight[1]:
        found = f"found shape {weight} for a target_input of shape {rows}"
        raise ShapeError(message(call, "target_weight", found, "Pass (..., features) and (classes, features)"))
    if student and rows[:-1] != student[:-1]:
        found = f"found shape {rows} for an input of shape {student}"
        raise ShapeError(message(call, "target_input", found, "Only the last sizes, the widths, may differ"))
    if classes and (weight[0] != classes[0] or not weight[0]):
        found = f"found {weight[0]} classes, while the student has {classes[0]}"
        raise ShapeError(message(call, "target_weight", found, "Both need the same classes, at least one"))
    if bias is not None and bias != weight[:1]:
        found = f"found shape {bias}, expected {weight[:1]}"
        raise ShapeError(message(call, "target_bias", found, "Pass one number for each class"))


def check_labels(call: str, labels: Array, classes: int, ignore_index: int) -> None:
    """Raise LabelError if a label is neither a class index nor `ignore_index`."""
    wrong = ((labels < 0) | (labels >= classes)) & (labels != ignore_index)
    if wrong.any():
        raise label_error(call, *first_wrong(wrong, labels), classes)


def label_error(call: str, row: str, label: int, classes: int) -> LabelError:
    """What is wrong with a label that is no class."""
    found = f"class index {label} at row {row} is outside [0, {classes})"
    return LabelError(message(call, "target", found, f"If it marks padding, pass ignore_index={label}"))


def check_target(call: str, target: Array, layout: Layout, objective: Objective) -> None:
    """Check the values of a target: the range of labels, or that probabilities are distributions."""
    check_options_of_labels(call, layout, objective)
    if layout.soft:
        check_soft_target(call, target, layout.class_axis)
    else:
        check_labels(call, target, layout.classes, objective.ignore_index)


def check_options_of_labels(call: str, layout: Layout, objective: Objective) -> None:
    """Raise ObjectiveError if an option that is about labels is given where the target has none."""
    if layout.soft and objective.focal_gamma:
        found = "the focal loss has no meaning with class probabilities"
        raise ObjectiveError(message(call, "focal_gamma", found, "Pass class indices"))
    if layout.soft and objective.ignore_index >= 0:
        found = f"ignore_index={objective.ignore_index} has no meaning with class probabilities"
        raise ObjectiveError(message(call, "ignore_index", found, "Leave such rows out, or pass class indices"))


def check_binary_shapes(call: str, argument: str, shape: tuple[int, ...], **others: tuple[int, ...] | None) -> None:
    """Raise ShapeError unless the target has the logits' shape, weights broadcast to it, and there is one per row."""
    rows = shape[:-1] if len(shape) > 1 else shape
    for name, found_shape in others.items():
        if found_shape is None:
            continue
        if name == "target" and found_shape != shape:
            found = f"found shape {found_shape}, while {argument} has shape {shape}"
            raise ShapeError(
                message(call, name, found, "Pass one target for each logit; class indices go to cross_entropy")
            )
        if name == "sample_weight" and found_shape != rows:
            found = f"found shape {found_shape}, expected {rows}"
            raise ShapeError(
                message(call, name, found, "Pass one weight for each row; weights of elements are `weight`")
            )
        if name in ("weight", "pos_weight") and not _broadcasts(found_shape, shape):
            found = f"found shape {found_shape}, which does not broadcast to {shape}"
            raise ShapeError(
                message(call, name, found, "Pass one number for each label, as the last axis, or for each logit")
            )


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether an array of one shape broadcasts to the other, which stays as it is."""
    if len(shape) > len(to):
        return False
    return all(one in (1, other) for one, other in zip(reversed(shape), reversed(to), strict=False))


def check_binary_target(call: str, target: Array, ignored: Array, objective: Objective) -> None:
    """Raise LabelError if a binary target is outside [0, 1]; ObjectiveError if it is in between with a focal factor."""
    wrong = ~((target >= 0) & (target <= 1)) & ~ignored
    if wrong.any():
        place, value = first_wrong(wrong, target)
        found = f"{value:g} at {place} is neither in [0, 1] nor ignore_index={objective.ignore_index}"
        remedy = "Pass probabilities of 1, or labels 0 and 1; what marks padding is ignore_index"
        raise LabelError(message(call, "target", found, remedy))
    if objective.focal_gamma and ((target != 0) & (target != 1) & ~ignored).any():
        found = "the focal loss has no meaning with targets between 0 and 1"
        raise ObjectiveError(message(call, "focal_gamma", found, "Pass labels 0 and 1"))


def binary_options(call: str, unknown: dict[str, Any]) -> None:
    """Raise ObjectiveError if there is an option that the binary loss does not have."""
    for option in unknown:
        if option == "z_loss":
            found = "the binary loss has no log-sum-exp to keep small"
            raise ObjectiveError(message(call, option, found, "Leave it out; it is an option of cross_entropy"))
        found = f"there is no option {option!r}"
        options = ", ".join((*BINARY_OPTIONS, "weight", "pos_weight", "sample_weight"))
        raise ObjectiveError(message(call, option, found, f"The options are {options}"))


def require_labels(call: str, layout: Layout, loss: str) -> None:
    """Raise DTypeError if the target holds class probabilities; `loss` names the call that takes them."""
    if layout.soft:
        found = "found class probabilities, expected class indices"
        raise DTypeError(message(call, "target", found, f"For probabilities use {loss}"))


def check_sample_weight(call: str, shape: tuple[int, ...], layout: Layout) -> None:
    """Raise ShapeError unless there is one weight for each loss."""
    if shape != layout.loss_shape:
        found = f"found shape {shape}, expected {layout.loss_shape}"
        raise ShapeError(message(call, "sample_weight", found, "Pass one weight for each loss"))


def check_teacher_shape(call: str, layout: Layout, shape: tuple[int, ...]) -> None:
    """Raise ShapeError unless the teacher's logits have the shape of the student's, with a class at least."""
    if layout.classes == 0:
        found = f"found shape {layout.logits_shape} with no classes along axis {layout.class_axis}"
        raise ShapeError(message(call, "input", found, "Pass at least one class"))
    if shape != layout.logits_shape:
        found = f"found shape {shape} for logits of shape {layout.logits_shape}"
        raise ShapeError(message(call, "target", found, "Pass the teacher's logits, one for each of the student's"))


def check_labels_shape(call: str, shape: tuple[int, ...], layout: Layout) -> None:
    """Raise ShapeError unless there is one label for each row."""
    if shape != layout.loss_shape:
        found = f"found shape {shape}, expected {layout.loss_shape}"
        raise ShapeError(message(call, "labels", found, "Pass one label for each row"))


def check_weight_shape(call: str, shape: tuple[int, ...], classes: int) -> None:
    """Raise ShapeError unless there is one weight for each class."""
    if shape != (classes,):
        found = f"found shape {shape}, expected ({classes},), one weight for each class"
        raise ShapeError(message(call, "weight", found, "A weight per row belongs on the losses of reduction='none'"))


def class_weight(call: str, objective: Objective, classes: int) -> np.ndarray | None:
    """Return the class weights as float64, or None without any; ObjectiveError unless there is one for each class."""
    if objective.weight is None:
        return None
    weight = as_numpy(call, "weight", objective.weight).astype(np.float64)
    check_weight_shape(call, weight.shape, classes)
    check_weights(call, weight)
    return weight


def check_weights(call: str, weight: Array, argument: str = "weight") -> None:
    """Raise ObjectiveError if a weight is negative, infinite or NaN."""
    if not ((weight >= 0) & (weight < math.inf)).all():
        found = "found a weight that is negative or not finite"
        raise ObjectiveError(message(call, argument, found, "Weights are finite numbers of 0 or more"))


def as_rows(array: np.ndarray, class_axis: int) -> np.ndarray:
    """View (or copy) an array of any shape as (rows, classes)."""
    return np.moveaxis(array, class_axis, -1).reshape(-1, array.shape[class_axis])


def as_blocks(array: np.ndarray, class_axis: int) -> np.ndarray:
    """View (or copy) an array of any shape as (N, classes), or (N, classes, S) with all positions on the last axis."""
    if class_axis == 0:
        return array[np.newaxis]
    return array if array.ndim == 2 else array.reshape(*array.shape[:2], math.prod(array.shape[2:]))


def from_rows(rows: np.ndarray, layout: Layout) -> np.ndarray:
    """Put (rows, classes) back into the shape of the logits."""
    return np.ascontiguousarray(np.moveaxis(rows.reshape(*layout.loss_shape, layout.classes), -1, layout.class_axis))


def as_numpy(call: str, argument: str, value: Any) -> np.ndarray:
    """Return the argument as a plain NumPy array of real numbers in the machine's byte order.

    A copy is made only of what is not such an array already. longdouble is refused: the kernels compute in float64 at
    most, and would drop digits that the caller has asked for.
    """
    array = value if type(value) is np.ndarray else _converted(call, argument, value)
    dtype = array.dtype
    if dtype.kind not in "iu" and dtype.char not in FLOATING and not is_numpy_bfloat16(dtype):
        found = f"found dtype {dtype}, expected real numbers"
        raise DTypeError(message(call, argument, found, conversion(dtype)))
    return native(array)


def _converted(call: str, argument: str, value: Any) -> np.ndarray:
    """Return what is no plain NumPy array as one."""
    check_is_dense(call, argument, value)
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: torch's conjugates, negatives and gradients
        found = f"found a {type(value).__name__} that does not make an array ({error})"
        is_tensor = array_api_compat.is_torch_array(value)
        remedy = "Use xent.torch, which takes tensors as they are" if is_tensor else "Pass an array of numbers"
        raise DTypeError(message(call, argument, found, remedy)) from None
