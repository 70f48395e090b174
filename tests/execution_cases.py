"""The calls that every execution mode has to answer alike.

execution_answers.py has their answers, execution_modes.py the modes; test_execution_modes.py runs all of them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from implementations import DEVICE
from torch import Tensor, nn

import xent.torch

INF, NAN = float("inf"), float("nan")
FEATURES = 3
LOSSES, STATISTICS = ("cross_entropy", "linear_cross_entropy"), ("statistics", "linear_statistics")
BINARY, CONTRASTIVE = "binary_cross_entropy_with_logits", "contrastive_loss"
KL, JS = ("kl_divergence", "linear_kl_divergence"), ("js_divergence", "linear_js_divergence")
DIVERGENCES = KL + JS
TEACHER_FEATURES = 2
BY_ROWS = ("input", "target", "probs", "a", "b", "target_input", "labels", "sample_weight")
"""Tensors with the rows on their first axis."""
LABELS = [2, 0, 6, 3, 2]
WEIGHT = [0.5, 1.0, 1.25, 2.25, 0.125, 4.0, 0.75]
EVERYTHING: dict[str, Any] = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 4.0, "logit_scale": 0.75}


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
    tail: str = ""  # of a target that lists classes; "" for others
    weight: Any = None
    pos_weight: Any = None
    sample_weight: Any = None  # one for each label
    tensor_options: dict[str, float] = field(default_factory=dict)  # 0-dimensional: logit_scale, log_scale, denominator
    learned: tuple[str, ...] = ()  # tensors that want a gradient, beside those of the logits
    frozen_logits: bool = False
    masked: int | None = None  # a class with logits of minus infinity
    nan_row: int | None = None  # of a divergence the teacher's too
    everywhere: bool = True  # False: quick modes alone always run it
    margin: float = 0.0  # what is added to the logit of the first label, in every row


@dataclass(frozen=True, eq=False)
class Problem:
    """A case as a call of the package."""

    case: Case
    call: str
    tensors: dict[str, Tensor]
    variables: tuple[str, ...]
    module: nn.Module | None = None  # which makes the call, where it is not the function of that name

    def __post_init__(self) -> None:
        # Inside a transform of torch.func these would be wrapped, and outlive it.
        _ = self.upstream, self.direction, self.sibling_tensors

    def __repr__(self) -> str:
        return f"{self.call}-{self.case.name}"

    @property
    def is_linear(self) -> bool:
        return self.call.startswith("linear")

    @property
    def multiplies(self) -> bool:
        """Whether the logits are products, which may be rounded to the dtype of the tensors."""
        return self.is_linear or self.call == CONTRASTIVE

    @property
    def is_statistics(self) -> bool:
        return self.call in STATISTICS

    @property
    def is_binary(self) -> bool:
        return self.call.endswith(BINARY)

    def start(self) -> tuple[Tensor, ...]:
        """The variables, fresh."""
        return tuple(self.tensors[name].clone() for name in self.variables)

    def values(self, tensors: Mapping[str, Tensor], front: Any = xent.torch, **more: Any) -> Tensor:
        """The loss; of statistics all five, one after the other."""
        arguments = {**self.case.options, **tensors, **more}
        if "log_scale" in arguments:  # as models learn a temperature
            arguments["logit_scale"] = arguments.pop("log_scale").exp()
        if self.case.tail:
            arguments["target"] = xent.torch.SparseTarget(
                arguments["target"], arguments.pop("probs"), tail=self.case.tail
            )
        if self.module is not None:
            return self.module(tensors["input"], tensors["target"])
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
        if self.is_binary:
            rows = (*rows, self.case.classes)
        return rows if self.case.options.get("reduction") == "none" else ()

    @functools.cached_property
    def upstream(self) -> Tensor:
        """From 0.75 to 1.5: numbers that every dtype has."""
        numbers = 0.75 + 0.25 * (torch.arange(math.prod(self.shape)) % 4)
        return numbers.reshape(self.shape).to(DEVICE, self.value_dtype)

    @functools.cached_property
    def direction(self) -> tuple[Tensor, ...]:
        """One tensor for each variable, of numbers that its dtype has."""
        return tuple(_waves(self.tensors[name].shape).to(self.tensors[name]) for name in self.variables)

    @property
    def value_dtype(self) -> torch.dtype:
        return torch.float64 if self.case.dtype == torch.float64 else torch.float32

    @functools.cached_property
    def sibling_tensors(self) -> dict[str, Tensor]:
        return {name: _other(name, tensor) for name, tensor in self.tensors.items()}

    @property
    def sibling(self) -> Problem:
        """The same call of other numbers: what a mode must not remember, or mix with this one."""
        return replace(self, tensors=self.sibling_tensors)


def _waves(shape: torch.Size) -> Tensor:
    return torch.cos(torch.arange(shape.numel(), dtype=torch.float64)).reshape(shape)


def _other(name: str, tensor: Tensor) -> Tensor:
    if name in ("target", "labels"):
        return tensor.roll(1, 0) if tensor.ndim else tensor
    if name in ("weight", "pos_weight"):
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
    if case.margin:
        tensors["linear_bias"][labels[0]] += case.margin
    if case.nan_row is not None:
        tensors["input"][case.nan_row, 1] = NAN
    if call == CONTRASTIVE:
        return {"a": tensors["input"], "b": tensors["linear_weight"], **options_of(case)}
    if call in DIVERGENCES:
        return tensors_of_both(case, call, tensors, labels, generator)
    if case.is_soft:
        shares = torch.rand(*labels.shape, case.classes, generator=generator, dtype=torch.float64)
        target = (shares / shares.sum(-1, keepdim=True)).to(case.dtype)
    else:
        target = labels.to(case.label_dtype)
    listed = {}
    if case.tail:
        target = (labels.unsqueeze(-1) + torch.tensor([0, 2, 5])) % case.classes
        shares = torch.rand(*target.shape, generator=generator, dtype=torch.float64)
        listed["probs"] = (0.75 * shares / shares.sum(-1, keepdim=True)).to(case.dtype)
    if call.endswith(BINARY):
        target = binary_target(labels, case, target)
        if not call.startswith("linear"):
            tensors = {"input": layer(tensors).to(case.dtype)}
    elif not call.startswith("linear"):
        logits = layer(tensors)
        tensors = {"input": logits.to(case.dtype)}
        if labels.ndim > 1:  # classes are the second axis
            tensors["input"] = tensors["input"].movedim(-1, 1).contiguous()
            has_classes = case.is_soft or case.tail
            target = target.movedim(-1, 1).contiguous() if has_classes else target
            listed = {name: tensor.movedim(-1, 1).contiguous() for name, tensor in listed.items()}
    return {**tensors, "target": target, **listed, **options_of(case)}


def options_of(case: Case) -> dict[str, Tensor]:
    """The options that are tensors."""
    options = {name: torch.tensor(number) for name, number in case.tensor_options.items()}
    if case.weight is not None:
        options["weight"] = torch.tensor(case.weight)
    if case.pos_weight is not None:
        options["pos_weight"] = torch.tensor(case.pos_weight)
    if case.sample_weight is not None:
        options["sample_weight"] = torch.tensor(case.sample_weight)
    return options


def binary_target(labels: Tensor, case: Case, soft: Tensor) -> Tensor:
    """A target for each logit: 1 for the label and for another class, probabilities if soft.

    Of a row labelled -100 every other element is ignored; a label beyond the classes leaves its row without a 1.
    """
    classes = torch.arange(case.classes)
    hot = (classes == labels.unsqueeze(-1)) | (classes == (2 * labels.unsqueeze(-1) + 1) % case.classes)
    hot &= labels.unsqueeze(-1) < case.classes
    target = soft if case.is_soft else hot.to(case.label_dtype)
    if case.label_dtype is torch.bool:
        return target
    return target.masked_fill(
        (labels.unsqueeze(-1) == -100) & (classes % 2 == 0), case.options.get("ignore_index", -100)
    )


def tensors_of_both(
    case: Case, call: str, student: dict[str, Tensor], labels: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """The tensors of a divergence: student and teacher, and the labels where one of them has a meaning."""
    shapes = {"target_input": (*labels.shape, TEACHER_FEATURES), "target_weight": (case.classes, TEACHER_FEATURES)}
    shapes["target_bias"] = (case.classes,)
    teacher = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(case.dtype)
        for name, shape in shapes.items()
    }
    if case.masked is not None:
        teacher["target_bias"][case.masked] = -INF
    if case.nan_row is not None:
        teacher["target_input"][case.nan_row, 1] = NAN
    ignored = labels == case.options.get("ignore_index", -100)
    kept = {"labels": labels.to(case.label_dtype)} if ignored.any() else {}
    if call.startswith("linear"):
        return {**student, **teacher, **kept, **options_of(case)}
    logits = {"input": layer(student), "target": layer(teacher, TEACHER)}
    if labels.ndim > 1:  # classes are the second axis
        logits = {name: tensor.movedim(-1, 1).contiguous() for name, tensor in logits.items()}
    return {**{name: tensor.to(case.dtype) for name, tensor in logits.items()}, **kept, **options_of(case)}


STUDENT = ("input", "linear_weight", "linear_bias")
TEACHER = ("target_input", "target_weight", "target_bias")


def layer(tensors: Mapping[str, Tensor], names: tuple[str, ...] = STUDENT) -> Tensor:
    """The logits of a layer, with classes last, in float64."""
    x, weight, bias = (tensors[name].double() for name in names)
    return x @ weight.T + bias


@functools.cache
def problem(case: Case, call: str) -> Problem:
    tensors = {name: tensor.to(DEVICE) for name, tensor in tensors_of(case, call).items()}
    of_logits = STUDENT if call.startswith("linear") else ("input",)
    if call == CONTRASTIVE:
        of_logits = ("a", "b")
    learned = case.learned
    if learned == ("teacher",):
        learned = TEACHER if call.startswith("linear") else ("target",)
    return Problem(case, call, tensors, (*(() if case.frozen_logits else of_logits), *learned))


# ------------------------------------------------------------------------------ the table

_BENT = {"softcap": 4.0, "logit_scale": 0.75}
_SOFT = {"is_soft": True}
_SURE: dict[str, Any] = {"labels": [2] * 40, "margin": 25.0}
_SCALE: dict[str, Any] = {"tensor_options": {"logit_scale": 0.75}, "learned": ("logit_scale",)}
_LOG_SCALE: dict[str, Any] = {"tensor_options": {"log_scale": -0.25}, "learned": ("log_scale",)}
_WEIGHED: dict[str, Any] = {"sample_weight": [0.5, 1.5, 0.0, 3.0, 0.25]}
_WARM: dict[str, Any] = {"temperature": 2.0}
_SELDOM: dict[str, Any] = {"everywhere": False}
_ALL = LOSSES + STATISTICS
_DISTILLED: dict[str, Any] = {"temperature": 2.0, "temperature_squared": True, "z_loss": 0.01, "softcap": 4.0}
_FEW = [*LABELS[:3], -100, 4]  # an ignored row

_MULTI: dict[str, Any] = {"calls": (BINARY,), "label_dtype": torch.float32}
_POS = [3.0, 0.5, 1.0, 2.25, 0.0, 4.0, 0.75]
_BINARY_EVERYTHING: dict[str, Any] = {"label_smoothing": 0.1, **_BENT}
_EVERY_WEIGHT: dict[str, Any] = {"weight": WEIGHT, "pos_weight": _POS, **_WEIGHED}

BINARY_CASES = [
    Case("plain", **_MULTI),
    Case("none", {"reduction": "none"}, labels=_FEW, **_MULTI),
    Case("sum", {"reduction": "sum"}, **_MULTI),
    Case("ignored", labels=_FEW, **_MULTI),
    Case("weights", labels=_FEW, weight=WEIGHT, pos_weight=_POS, **_MULTI),
    Case("weights-none", {"reduction": "none"}, **_MULTI, **_EVERY_WEIGHT),
    Case(
        "weights-of-elements",
        weight=[WEIGHT, _POS] * 2 + [WEIGHT],
        pos_weight=[[0.5], [2.0], [1.0], [0.0], [3.0]],
        **_MULTI,
    ),
    Case("everything", _BINARY_EVERYTHING, labels=_FEW, **_MULTI, **_EVERY_WEIGHT),
    Case(
        "float64", _BINARY_EVERYTHING, dtype=torch.float64, **(_MULTI | {"label_dtype": torch.float64}), **_EVERY_WEIGHT
    ),
    Case("bfloat16", dtype=torch.bfloat16, **(_MULTI | {"label_dtype": torch.bfloat16}), pos_weight=_POS),
    Case("float16", dtype=torch.float16, labels=_FEW, **_MULTI),
    Case("bool", **(_MULTI | {"label_dtype": torch.bool})),
    Case("uint8", **(_MULTI | {"label_dtype": torch.uint8})),
    Case("int32", labels=_FEW, **(_MULTI | {"label_dtype": torch.int32})),
    Case("several-dimensions", {"reduction": "sum"}, labels=[[2, 0, 6], [3, -100, 2]], pos_weight=_POS, **_MULTI),
    Case("one-row", labels=3, **_MULTI),
    Case("no-rows", labels=[], **_MULTI),
    Case("checked", {"check": True}, labels=_FEW, **_MULTI),
    Case("number-as-denominator", {"denominator": 2.5}, labels=_FEW, **_MULTI),
    Case("all-ignored", classes=1, labels=[-100] * 5, **_MULTI),
    Case("certain-zero", {"reduction": "sum"}, masked=1, labels=[2, 2, -100, 3, 2], **_MULTI),
    Case("certain-zero-softcap", _BENT, masked=1, labels=[2, 2, -100, 3, 2], **_MULTI),
    Case("nan-row", {"reduction": "none"}, nan_row=1, **_MULTI),
    Case("confident", {"reduction": "none"}, margin=25.0, labels=[2] * 40, **_MULTI),
    Case("soft", is_soft=True, **_MULTI),
    Case("soft-learned", _BINARY_EVERYTHING, is_soft=True, learned=("target",), **_MULTI, **_EVERY_WEIGHT),
    Case("focal", {"focal_gamma": 2.0}, labels=_FEW, pos_weight=_POS, **_MULTI),
    Case(
        "focal-everything", {"focal_gamma": 0.5, **_BENT, "reduction": "none"}, labels=_FEW, **_MULTI, **_EVERY_WEIGHT
    ),
    Case("weights-learned", labels=_FEW, learned=("weight", "pos_weight", "sample_weight"), **_MULTI, **_EVERY_WEIGHT),
    Case("learned-pos-weight-focal", {"focal_gamma": 2.0}, learned=("pos_weight",), pos_weight=_POS, **_MULTI),
    Case("tensor-denominator", tensor_options={"denominator": 2.5}, labels=_FEW, **_MULTI),
    Case("learned-scale", {"softcap": 4.0}, labels=_FEW, pos_weight=_POS, **_MULTI, **_SCALE),
    Case("learned-log-scale-alone", labels=_FEW, frozen_logits=True, **_MULTI, **_LOG_SCALE),
]
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
    Case("no-rows", calls=_ALL, labels=[]),
    Case("checked", {"check": True}, _ALL, labels=_FEW),
    # soft targets
    Case("soft", **_SOFT),
    Case("soft-everything", EVERYTHING, weight=WEIGHT, **_SOFT),
    Case("soft-learned", learned=("target",), **_SOFT),
    Case("soft-learned-everything", EVERYTHING, weight=WEIGHT, learned=("target",), **_SOFT),
    Case("soft-several-dimensions", labels=[[2, 0, 6], [3, 1, 2]], **_SOFT),
    # targets that list classes
    Case("listed", tail="drop"),
    Case("listed-renormalised", {"reduction": "none"}, tail="renormalise"),
    Case("listed-uniform", {"reduction": "sum"}, tail="uniform"),
    Case("listed-everything", EVERYTHING, weight=WEIGHT, tail="uniform", **_WEIGHED),
    Case("listed-bfloat16", _BENT, weight=WEIGHT, dtype=torch.bfloat16, tail="drop"),
    Case("listed-several-dimensions", labels=[[2, 0, 6], [3, 1, 2]], tail="renormalise"),
    Case("listed-learned", learned=("probs",), tail="drop"),
    Case("listed-learned-float64", dtype=torch.float64, learned=("probs",), tail="renormalise"),
    Case("listed-learned-everything", EVERYTHING, weight=WEIGHT, learned=("probs",), tail="uniform"),
    # edges
    Case("one-class", {"reduction": "none"}, labels=[0, 0], classes=1),
    Case("confident", {"reduction": "none"}, **_SURE),
    Case("confident-bfloat16", {"reduction": "none"}, dtype=torch.bfloat16, **_SURE),
    Case("confident-float16", {"reduction": "none"}, dtype=torch.float16, **_SURE),
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
    # a function of the losses of rows
    Case("focal", {"focal_gamma": 2.0}, labels=_FEW),
    Case("focal-none", {"focal_gamma": 0.5, "reduction": "none"}, labels=_FEW),
    Case("focal-everything", {"focal_gamma": 1.5, **_BENT, "denominator": 2.5}, weight=WEIGHT, labels=_FEW, **_WEIGHED),
    Case("focal-bfloat16", {"focal_gamma": 2.0}, dtype=torch.bfloat16),
    Case("focal-several-dimensions", {"focal_gamma": 2.0}, labels=[[2, 0, 6], [3, -100, 2]], weight=WEIGHT),
    Case("learned-weight-focal", {"focal_gamma": 2.0}, weight=WEIGHT, learned=("weight",), labels=_FEW),
    # weights of rows
    Case("sample-weight", labels=_FEW, **_WEIGHED),
    Case("sample-weight-none", {"reduction": "none"}, labels=_FEW, **_WEIGHED),
    Case("sample-weight-everything", EVERYTHING, weight=WEIGHT, **_WEIGHED),
    Case("sample-weight-bfloat16", dtype=torch.bfloat16, **_WEIGHED),
    Case("sample-weight-soft", {"reduction": "sum"}, **_SOFT, **_WEIGHED),
    Case(
        "sample-weight-several-dimensions",
        labels=[[2, 0, 6], [3, -100, 2]],
        sample_weight=[[0.5, 1.5, 1.0], [2.0, 7.0, 0.0]],
    ),
    Case("learned-sample-weight", weight=WEIGHT, learned=("sample_weight",), labels=_FEW, **_WEIGHED),
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
    # divergences of two rows of logits
    Case("forward", calls=KL, **_SELDOM),
    Case("reverse", {"direction": "reverse"}, KL, **_SELDOM),
    Case("half", calls=JS, **_SELDOM),
    Case("forward-everything", _DISTILLED, KL, labels=_FEW, **_WEIGHED, **_SELDOM),
    Case("reverse-everything", {**_DISTILLED, "direction": "reverse"}, KL, labels=_FEW, **_WEIGHED, **_SELDOM),
    Case("tenth-everything", {**_DISTILLED, "beta": 0.125}, JS, labels=_FEW, **_WEIGHED, **_SELDOM),
    Case("both-learn", _WARM, ("kl_divergence", "linear_js_divergence"), labels=_FEW, learned=("teacher",)),
    Case(
        "both-learn-too", _WARM, ("js_divergence", "linear_kl_divergence"), labels=_FEW, learned=("teacher",), **_SELDOM
    ),
    Case("both-learn-reverse", {"direction": "reverse", "z_loss": 0.01}, KL, learned=("teacher",), **_SELDOM),
    Case("teacher-alone", {"z_loss": 0.01}, DIVERGENCES, learned=("teacher",), frozen_logits=True, **_SELDOM),
    Case("none-both-learn", {"reduction": "none"}, DIVERGENCES, labels=_FEW, learned=("teacher",), **_SELDOM),
    Case("sum-weighted", {"reduction": "sum"}, DIVERGENCES, learned=("sample_weight",), **_WEIGHED, **_SELDOM),
    Case("divergence-scale", {"softcap": 4.0}, DIVERGENCES, **_SCALE, **_SELDOM),
    Case("divergence-denominator", calls=KL, tensor_options={"denominator": 2.5}, labels=_FEW, **_SELDOM),
    Case("divergence-float64", _DISTILLED, DIVERGENCES, dtype=torch.float64, **_SELDOM),
    Case("divergence-bfloat16", calls=DIVERGENCES, dtype=torch.bfloat16, **_SELDOM),
    Case("divergence-float16", calls=DIVERGENCES, dtype=torch.float16, **_SELDOM),
    Case(
        "divergence-several-dimensions",
        calls=DIVERGENCES,
        labels=[[2, 0, 6], [3, -100, 2]],
        learned=("teacher",),
        **_SELDOM,
    ),
    Case("divergence-one-row", calls=DIVERGENCES, labels=3, **_SELDOM),
    Case("divergence-no-rows", calls=DIVERGENCES, labels=[], **_SELDOM),
    Case("divergence-one-class", {"reduction": "none"}, DIVERGENCES, labels=[0, 0], classes=1, **_SELDOM),
    Case("divergence-all-ignored", calls=DIVERGENCES, labels=[-100] * 5, **_SELDOM),
    Case("divergence-masked-class", calls=DIVERGENCES, masked=5, learned=("teacher",), **_SELDOM),
    Case("divergence-nan-row", {"reduction": "none"}, DIVERGENCES, nan_row=1, **_SELDOM),
    Case("divergence-int8", calls=KL, labels=_FEW, label_dtype=torch.int8, **_SELDOM),
]
_PAIRS: dict[str, Any] = {"calls": (CONTRASTIVE,), "classes": 5}
CONTRASTIVE_CASES = [
    Case("plain", **_PAIRS),
    Case("none", {"reduction": "none", "logit_scale": 1.5}, **_PAIRS),
    Case("sum-one-direction", {"reduction": "sum", "symmetric": False}, **_PAIRS),
    Case("float64", {"logit_scale": 0.75}, dtype=torch.float64, **_PAIRS),
    Case("bfloat16", dtype=torch.bfloat16, **_PAIRS),
    Case("one-row", {"reduction": "none"}, labels=[0], calls=(CONTRASTIVE,), classes=1),
    Case("learned-scale", **_PAIRS, **_SCALE),
    Case("learned-log-scale-alone", frozen_logits=True, **_PAIRS, **_LOG_SCALE),
]
BY_NAME = {case.name: case for case in CASES}
PROBLEMS = [
    problem(case, call) for call in (*LOSSES, *STATISTICS, *DIVERGENCES) for case in CASES if call in case.calls
]
PROBLEMS += [problem(case, BINARY) for case in BINARY_CASES]
PROBLEMS += [problem(case, CONTRASTIVE) for case in CONTRASTIVE_CASES]
