"""The calls that every execution mode has to answer alike: their tensors, their answers in float64, and the bounds.

The answers come from torch operations written down here (log-sum-exp, and torch's own derivatives of it), never from
the package. execution_modes.py has the modes, test_execution_modes.py runs the cases in them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from comparison import assert_within
from torch import Tensor

import xent.torch

INF, NAN = float("inf"), float("nan")
FEATURES = 3
LOSSES, STATISTICS = ("cross_entropy", "linear_cross_entropy"), ("statistics", "linear_statistics")
LABELS = [2, 0, 6, 3, 2]
WEIGHT = [0.5, 1.0, 1.25, 2.25, 0.125, 4.0, 0.75]
EVERYTHING: dict[str, Any] = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 4.0, "logit_scale": 0.75}


class Answer(NamedTuple):
    """What a mode found. `upstream` and `direction` of the problem make vectors of its derivatives:

    the gradients of sum(upstream * value), the tangent of value in the direction of the variables, and `second`, the
    gradients of sum(direction * gradients). A mode answers what it is for, and leaves the rest out.
    """

    value: Tensor | None = None
    gradients: tuple[Tensor, ...] | None = None
    tangent: Tensor | None = None
    second: tuple[Tensor, ...] | None = None
    has_numbers: bool = True  # False: shapes and dtypes only


@dataclass(frozen=True, eq=False)
class Case:
    """The arguments of a call, for each of `calls`. Tensors are made from the numbers here by `tensors_of`."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    calls: tuple[str, ...] = LOSSES
    dtype: torch.dtype = torch.float32
    labels: Any = field(default_factory=lambda: LABELS)
    label_dtype: torch.dtype = torch.int64
    classes: int = 7
    is_soft: bool = False
    weight: Any = None
    tensor_options: dict[str, float] = field(default_factory=dict)  # 0-dimensional: logit_scale, log_scale, denominator
    learned: tuple[str, ...] = ()  # tensors that want a gradient, beside those of the logits
    frozen_logits: bool = False
    masked: int | None = None  # a class with logits of minus infinity
    nan_row: int | None = None


@dataclass(frozen=True, eq=False)
class Problem:
    """A case as a call of the package."""

    case: Case
    call: str
    tensors: dict[str, Tensor]
    variables: tuple[str, ...]

    def __repr__(self) -> str:
        return f"{self.call}-{self.case.name}"

    @property
    def is_linear(self) -> bool:
        return self.call.startswith("linear")

    @property
    def is_statistics(self) -> bool:
        return self.call in STATISTICS

    def start(self) -> tuple[Tensor, ...]:
        """The variables, fresh."""
        return tuple(self.tensors[name].clone() for name in self.variables)

    def values(self, tensors: Mapping[str, Tensor], front: Any = xent.torch, **more: Any) -> Tensor:
        """The loss; of statistics all five, one after the other."""
        arguments = {**self.case.options, **tensors, **more}
        if "log_scale" in arguments:  # as models learn a temperature
            arguments["logit_scale"] = arguments.pop("log_scale").exp()
        found = getattr(front, self.call)(**arguments)
        return found if isinstance(found, Tensor) else stacked(found, self.case)

    def function(self, front: Any = xent.torch, **more: Any) -> Callable[..., Tensor]:
        """The values as a function of the variables."""

        def function(*variables: Tensor) -> Tensor:
            return self.values({**self.tensors, **dict(zip(self.variables, variables, strict=True))}, front, **more)

        return function

    def total(self) -> Callable[..., Tensor]:
        """sum(upstream * values), as a function of the variables."""
        function = self.function()
        return lambda *variables: (function(*variables) * self.upstream).sum()

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the values."""
        rows = tuple(torch.tensor(self.case.labels).shape)
        if self.is_statistics:
            return (3 if self.case.nan_row is not None else 5, *rows)
        return rows if self.case.options.get("reduction") == "none" else ()

    @functools.cached_property
    def upstream(self) -> Tensor:
        """From 0.75 to 1.5: numbers that every dtype has."""
        return (0.75 + 0.25 * (torch.arange(math.prod(self.shape)) % 4)).reshape(self.shape).to(self.value_dtype)

    @functools.cached_property
    def direction(self) -> tuple[Tensor, ...]:
        """One tensor for each variable, of numbers that its dtype has."""
        return tuple(_waves(self.tensors[name].shape).to(self.tensors[name].dtype) for name in self.variables)

    @property
    def value_dtype(self) -> torch.dtype:
        return torch.float64 if self.case.dtype == torch.float64 else torch.float32

    @functools.cached_property
    def sibling(self) -> Problem:
        """The same call of other numbers: what a mode must not remember, or mix with this one."""
        other = {name: _other(name, tensor) for name, tensor in self.tensors.items()}
        return Problem(self.case, self.call, other, self.variables)


def _waves(shape: torch.Size) -> Tensor:
    return torch.cos(torch.arange(shape.numel(), dtype=torch.float64)).reshape(shape)


def _other(name: str, tensor: Tensor) -> Tensor:
    if name == "target":
        return tensor.roll(1, 0) if tensor.ndim else tensor
    if name == "weight":
        return tensor.flip(0)
    return tensor * 0.5 if tensor.ndim else tensor * 0.75


def stacked(found: Any, case: Case) -> Tensor:
    """Statistics as one tensor; argmax and rank of a row of NaN are undefined."""
    fields = found[:3] if case.nan_row is not None else found
    return torch.stack([numbers.to(found[0].dtype) for numbers in fields])


def tensors_of(case: Case, call: str) -> dict[str, Tensor]:
    """The tensors of a call: an input of the layer or its logits, labels, and options that are tensors."""
    labels = torch.tensor(case.labels)
    generator = torch.Generator().manual_seed(case.classes)
    shapes = {"input": (*labels.shape, FEATURES), "linear_weight": (case.classes, FEATURES)}
    shapes["linear_bias"] = (case.classes,)
    tensors = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(case.dtype)
        for name, shape in shapes.items()
    }
    if case.masked is not None:
        tensors["linear_bias"][case.masked] = -INF
    if case.nan_row is not None:
        tensors["input"][case.nan_row, 1] = NAN
    if case.is_soft:
        shares = torch.rand(*labels.shape, case.classes, generator=generator, dtype=torch.float64)
        target = (shares / shares.sum(-1, keepdim=True)).to(case.dtype)
    else:
        target = labels.to(case.label_dtype)
    if not call.startswith("linear"):
        logits = layer(tensors)
        tensors = {"input": logits.to(case.dtype)}
        if labels.ndim > 1:  # classes are the second axis
            tensors["input"] = tensors["input"].movedim(-1, 1)
            target = target.movedim(-1, 1) if case.is_soft else target
    options = {name: torch.tensor(number) for name, number in case.tensor_options.items()}
    if case.weight is not None:
        options["weight"] = torch.tensor(case.weight)
    return {**tensors, "target": target, **options}


def layer(tensors: Mapping[str, Tensor]) -> Tensor:
    """The logits of a layer, with classes last, in float64."""
    return tensors["input"].double() @ tensors["linear_weight"].double().T + tensors["linear_bias"].double()


@functools.cache
def problem(case: Case, call: str) -> Problem:
    tensors = tensors_of(case, call)
    of_logits = ("input", "linear_weight", "linear_bias") if call.startswith("linear") else ("input",)
    return Problem(case, call, tensors, (*(() if case.frozen_logits else of_logits), *case.learned))


# ------------------------------------------------------------------------------ the table

_BENT = {"softcap": 4.0, "logit_scale": 0.75}
_SOFT = {"is_soft": True}
_SCALE: dict[str, Any] = {"tensor_options": {"logit_scale": 0.75}, "learned": ("logit_scale",)}
_LOG_SCALE: dict[str, Any] = {"tensor_options": {"log_scale": -0.25}, "learned": ("log_scale",)}
_ALL = LOSSES + STATISTICS
_FEW = [*LABELS[:3], -100, 4]  # an ignored row

CASES = [
    Case("plain", calls=_ALL),
    Case("none", {"reduction": "none"}),
    Case("sum", {"reduction": "sum"}),
    Case("weight", weight=WEIGHT),
    Case("ignored", calls=_ALL, labels=_FEW),
    Case("ignored-none", {"reduction": "none", "ignore_index": 3}, weight=WEIGHT),
    Case("everything", {**EVERYTHING, "ignore_index": 3}, weight=WEIGHT),
    Case("softcap-and-scale", _BENT, STATISTICS, labels=_FEW),
    Case("number-as-denominator", {"denominator": 2.5, "label_smoothing": 0.1}, labels=_FEW),
    Case("float64", EVERYTHING, weight=WEIGHT, dtype=torch.float64),
    Case("bfloat16", calls=_ALL, dtype=torch.bfloat16),
    Case("float16", calls=_ALL, dtype=torch.float16),
    Case("several-dimensions", calls=_ALL, labels=[[2, 0, 6], [3, -100, 2]]),
    Case("one-row", calls=_ALL, labels=3),
    # soft targets
    Case("soft", **_SOFT),
    Case("soft-everything", EVERYTHING, weight=WEIGHT, **_SOFT),
    Case("soft-learned", learned=("target",), **_SOFT),
    Case("soft-learned-everything", EVERYTHING, weight=WEIGHT, learned=("target",), **_SOFT),
    # edges
    Case("all-ignored", {"label_smoothing": 0.1}, labels=[-100] * 5),
    Case("all-weigh-nothing", labels=[4, 4, -100, 4, 4], weight=[1.0, 2.0, 3.0, 1.0, 0.0, 1.0, 1.0]),
    Case("masked-class", calls=_ALL, masked=5),
    Case("masked-class-softcap", _BENT, _ALL, masked=5),
    Case("nan-row", {"reduction": "none"}, nan_row=1),
    Case("nan-row-statistics", {}, STATISTICS, nan_row=1),
    # labels of every integer dtype: 156 is -100 in 8 bits
    Case("uint8", calls=_ALL, labels=[156, 0, 3, 156, 100], label_dtype=torch.uint8, classes=160),
    Case("uint8-weight", weight=WEIGHT, label_dtype=torch.uint8),
    Case("int8", calls=_ALL, labels=_FEW, label_dtype=torch.int8),
    Case("int16", calls=_ALL, labels=_FEW, label_dtype=torch.int16),
    Case("int32", calls=_ALL, labels=_FEW, label_dtype=torch.int32),
    Case("int32-weight", weight=WEIGHT, labels=_FEW, label_dtype=torch.int32),
    # options that are tensors, most of them with a gradient
    Case("tensor-denominator", tensor_options={"denominator": 2.5}, labels=_FEW),
    Case("tensor-scale", calls=_ALL, tensor_options={"logit_scale": 0.75}),
    Case("learned-weight", weight=WEIGHT, learned=("weight",), labels=_FEW),
    Case("learned-weight-smoothing", {"label_smoothing": 0.1}, weight=WEIGHT, learned=("weight",)),
    Case("learned-weight-alone", weight=WEIGHT, learned=("weight",), frozen_logits=True),
    Case("learned-scale", calls=_ALL, **_SCALE),
    Case("learned-scale-softcap", {"softcap": 4.0}, _ALL, **_SCALE),
    Case("learned-log-scale", calls=_ALL, **_LOG_SCALE),
    Case("learned-log-scale-alone", calls=_ALL, frozen_logits=True, **_LOG_SCALE),
]
BY_NAME = {case.name: case for case in CASES}
PROBLEMS = [problem(case, call) for call in (*LOSSES, *STATISTICS) for case in CASES if call in case.calls]


# ------------------------------------------------------------------------------ the reference


def defined(tensors: Mapping[str, Tensor], options: Mapping[str, Any], call: str) -> Tensor:
    """The definition (docs/definitions.md) in the dtype of the tensors, of logits or of a layer."""
    given: dict[str, Any] = {**options, **tensors}
    x = given["input"]
    if call.startswith("linear"):
        x = x @ given["linear_weight"].T + given["linear_bias"]
    elif x.ndim > 2:
        x = x.movedim(1, -1)
    scale = given["log_scale"].exp() if "log_scale" in given else given.get("logit_scale", 1.0)
    masked = x == -INF
    z = scale * x.masked_fill(masked, 0.0)
    if "softcap" in given:
        z = given["softcap"] * torch.tanh(z / given["softcap"])
    z = z.masked_fill(masked, -INF)
    target = given["target"]
    if call in STATISTICS:
        return defined_statistics(x, z, masked, target.long(), given.get("ignore_index", -100))
    if target.is_floating_point() and target.ndim > 2 and not call.startswith("linear"):
        target = target.movedim(1, -1)
    return defined_loss(z, masked, target, given)


def defined_statistics(x: Tensor, z: Tensor, masked: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    lse, q = z.logsumexp(-1), z.softmax(-1)
    known = labels != ignore_index
    there = labels.where(known, 0).unsqueeze(-1)
    log_prob = torch.where(known, z.gather(-1, there).squeeze(-1) - lse, 0.0)
    entropy = lse - (q * z.masked_fill(masked, 0.0)).sum(-1)
    rank = torch.where(known, (x > x.gather(-1, there)).sum(-1), -1)
    return torch.stack([log_prob, entropy, lse, x.argmax(-1).double(), rank.double()])


def defined_loss(z: Tensor, masked: Tensor, target: Tensor, given: Mapping[str, Any]) -> Tensor:
    classes, weight = z.shape[-1], given.get("weight")
    weight = z.new_ones(classes) if weight is None else weight
    if target.is_floating_point():
        p, known = target, torch.ones(target.shape[:-1], dtype=torch.bool)
        count: Any = known.sum()
    else:
        known = target.long() != given.get("ignore_index", -100)
        labels = target.long().where(known, 0)
        p = torch.nn.functional.one_hot(labels, classes).to(z)
        count = (weight[labels] * known).sum()
    smoothing = given.get("label_smoothing", 0.0)
    t = weight * ((1 - smoothing) * p + smoothing / classes)
    lse = z.logsumexp(-1)
    impossible = masked & (t == 0)  # 0 * infinity
    terms = (t * (lse.unsqueeze(-1) - z.masked_fill(impossible, 0.0))).masked_fill(impossible, 0.0)
    losses = torch.where(known, terms.sum(-1) + given.get("z_loss", 0.0) * lse**2, 0.0)
    match given.get("reduction", "mean"):
        case "none":
            return losses
        case "sum":
            return losses.sum()
    denominator = given.get("denominator")
    return losses.sum() / (count if denominator is None else denominator)


@functools.cache
def expected(of: Problem) -> Answer:
    """The definition's answer in float64. A mean over nothing is NaN, and its derivatives are 0."""
    wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in of.tensors.items()}

    def function(*variables: Tensor) -> Tensor:
        found = defined({**wide, **dict(zip(of.variables, variables, strict=True))}, of.case.options, of.call)
        return found[:3] if of.is_statistics and of.case.nan_row is not None else found

    variables = tuple(wide[name].clone().requires_grad_() for name in of.variables)
    value = function(*variables)
    zeros = tuple(torch.zeros_like(variable) for variable in variables)
    if value.ndim == 0 and value.isnan():
        return Answer(value.detach(), zeros, torch.zeros_like(value), zeros)
    gradients = torch.autograd.grad(value, variables, of.upstream.double(), create_graph=True)
    directions = tuple(direction.double() for direction in of.direction)
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    second = torch.autograd.grad(slope, variables, allow_unused=True, materialize_grads=True)
    _, tangent = torch.autograd.functional.jvp(function, variables, directions)
    return Answer(value.detach(), tuple(g.detach() for g in gradients), tangent.detach(), second)


# ------------------------------------------------------------------------------ the bounds


def check(of: Problem, answer: Answer, arithmetic: torch.dtype | None = None) -> None:
    """What a mode found is the definition's answer, up to the rounding of what it computes in."""
    wanted = expected(of)
    if arithmetic is None:
        # A layer may round its 16-bit logits to 16 bits.
        arithmetic = of.case.dtype if of.is_linear else of.value_dtype
    unit = ROUNDINGS[arithmetic] * torch.finfo(arithmetic).eps
    assert any(part is not None for part in answer[:4]), "an answer without an answer"
    for name in ("value", "tangent"):
        found = getattr(answer, name)
        if found is not None:
            assert found.dtype == of.value_dtype, f"{name} of dtype {found.dtype}, expected {of.value_dtype}"
            _check(name, found, getattr(wanted, name), unit, answer.has_numbers, of.is_statistics)
    for name in ("gradients", "second"):
        found, right = getattr(answer, name), getattr(wanted, name)
        # Second derivatives are sums over the directions of all variables.
        least = max(size_of(tensor).item() for tensor in right) if name == "second" else 0.0
        for variable, one, other in zip(of.variables, found or (), right, strict=found is not None):
            what, dtype = f"{name} of {variable}", of.tensors[variable].dtype
            assert one is not None, f"{what}: None"
            assert one.dtype == dtype, f"{what} of dtype {one.dtype}, expected {dtype}"
            _check(what, one, other, unit + torch.finfo(dtype).eps, answer.has_numbers, least=least)


ROUNDINGS = {torch.float64: 32, torch.float32: 16, torch.bfloat16: 4, torch.float16: 4}
"""How many roundings of its largest number a result may be off: of a few terms that are added up and cancel, in an
ordinary computation; 16-bit results are products of which each is rounded once."""


def size_of(wanted: Tensor, each_first: bool = False) -> Tensor:
    """The largest of the finite numbers; of statistics, of each of them."""
    sizes = wanted.nan_to_num(0.0, 0.0, 0.0).abs()
    if each_first and wanted.ndim > 1:
        return sizes.flatten(1).amax(1).reshape(-1, *[1] * (wanted.ndim - 1))
    return sizes if each_first else sizes.max()


def _check(
    what: str,
    found: Tensor,
    wanted: Tensor,
    unit: float,
    has_numbers: bool,
    each_first: bool = False,
    least: float = 0.0,
) -> None:
    assert tuple(found.shape) == tuple(wanted.shape), f"{what}: shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
    if has_numbers:
        bound = unit * size_of(wanted, each_first).clamp(min=least).expand(wanted.shape)
        assert_within(found.detach().double(), wanted, bound.numpy(), what)
