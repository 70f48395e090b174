"""Drawing a configuration of the losses from a seed, and its numbers. What no call has is taken out of the draw."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

import differential_modes as modes
import numpy as np
import torch
from differential_reference import LONG
from torch import Tensor

Array = np.ndarray


@dataclass(frozen=True)
class Configuration:
    """One drawn call. Sizes are those of the logits: `leading` axes of rows, classes, `inner` axes of positions."""

    seed: int
    call: str = "cross_entropy"
    mode: str = "eager"
    dtype: str = "float64"
    leading: tuple[int, ...] = (3,)
    classes: int = 4
    inner: tuple[int, ...] = ()
    features: int = 3
    bias: bool = False
    layout: str = "contiguous"
    target: str = "labels"
    label_dtype: str = "int64"
    contents: str = "normal"
    spread: float = 3.0
    weight: str = "none"
    ignore_index: int | None = None
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    logit_scale: str = "none"
    scale: float = 1.0
    reduction: str = "mean"
    denominator: str = "none"
    upstream: float = 1.0
    workspace: int | None = None

    @property
    def linear(self) -> bool:
        return self.call.startswith("linear")

    @property
    def statistics(self) -> bool:
        return self.call.endswith("statistics")

    @property
    def arithmetic(self) -> str:
        return "float64" if self.dtype == "float64" else "float32"

    def __str__(self) -> str:
        changed = [f for f in dataclasses.fields(self) if f.name == "seed" or getattr(self, f.name) != f.default]
        return "Configuration(" + ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in changed) + ")"


# ------------------------------------------------------------------------------------------- drawing a configuration

MODES = {
    "eager": 30, "backward twice": 5, "no_grad": 4, "create_graph": 8, "func.grad": 8, "vmap(grad)": 8, "forward_ad": 8,
    "is_grads_batched": 8, "compile": 2, "checkpoint": 3, "subclass": 6, "numpy": 12, "deferred": 6, "parallel": 2,
}  # fmt: skip
LABEL_DTYPES = ["int64", "int64", "int32", "int16", "int8", "uint8"]


def configuration(seed: int) -> Configuration:
    """The configuration of a seed."""
    generator = np.random.default_rng([seed, 0])

    def pick(*choices: Any) -> Any:
        return choices[generator.integers(len(choices))]

    def maybe(probability: float, value: Any, otherwise: Any) -> Any:
        return value if generator.random() < probability else otherwise

    mode = str(generator.choice(list(MODES), p=np.array(list(MODES.values())) / sum(MODES.values())))
    drawn = Configuration(
        seed=seed,
        call=pick("cross_entropy", "cross_entropy", "linear_cross_entropy", "linear_cross_entropy", "statistics",
                  "linear_statistics"),
        mode=mode,
        dtype=pick("float64", "float32", "float32", "bfloat16", "float16"),
        leading=pick((), (1,), (2,), (3,), (7,), (17,), (0,)),
        classes=maybe(0.15, pick(127, 128, 129, 2047, 2048, 2049, 5000), pick(1, 2, 3, 5, 10, 21, 33)),
        inner=maybe(0.3, pick((1,), (3,), (2, 2), (8,), (0,)), ()),
        features=pick(1, 3, 8, 17),
        bias=pick(True, False),
        layout=maybe(0.5, pick("transposed", "sliced", "expanded", "negative"), "contiguous"),
        target=maybe(0.35, pick("probabilities", "probabilities with gradient"), "labels"),
        label_dtype=pick(*LABEL_DTYPES),
        contents=maybe(0.5, pick("masked", "masked", "offset", "confident", "ignored", "nan"), "normal"),
        spread=pick(0.1, 3.0, 3.0, 30.0),
        weight=maybe(0.5, pick("given", "given", "zeros", "with gradient", "with gradient"), "none"),
        ignore_index=maybe(0.5, pick(-100, -1, 0, 1, 250), None),
        label_smoothing=maybe(0.4, pick(0.0, 0.1, 0.3, 1.0), 0.0),
        z_loss=maybe(0.3, pick(1e-4, 0.01), 0.0),
        softcap=maybe(0.3, pick(2.0, 30.0), None),
        logit_scale=maybe(0.4, pick("number", "tensor", "with gradient"), "none"),
        scale=pick(0.5, 0.7, 1.3),
        reduction=pick("none", "sum", "mean", "mean"),
        denominator=maybe(0.3, pick("number", "tensor", "integer tensor", "with gradient"), "none"),
        upstream=pick(1.0, 1.0, 3.0, 1 / 7, 2.0 ** int(generator.integers(-3, 9))),
        workspace=maybe(0.4, 300_000, None),
    )  # fmt: skip
    return allowed(drawn)


def allowed(drawn: Configuration) -> Configuration:
    """The same without what the call, the mode or the sizes do not have."""
    if drawn.mode == "numpy" and drawn.call == "statistics":
        drawn = replace(drawn, call="cross_entropy")
    if drawn.mode == "deferred":
        drawn = replace(drawn, call="linear_cross_entropy", inner=(), workspace=None)
    if drawn.linear:
        drawn = _allowed_linear(drawn)
    else:
        drawn = replace(
            drawn, features=1, bias=False, workspace=None, leading=drawn.leading or ((1,) if drawn.inner else ())
        )
    if drawn.statistics:
        plain = dict.fromkeys(("weight", "denominator"), "none")
        drawn = replace(drawn, target="labels", label_smoothing=0.0, z_loss=0.0, reduction="none", **plain)
        drawn = replace(drawn, logit_scale="none" if drawn.logit_scale == "none" else "number")
    if drawn.reduction != "mean":
        drawn = replace(drawn, denominator="none")
    drawn = _allowed_mode(drawn)
    if drawn.logit_scale == "none":
        drawn = replace(drawn, scale=1.0)
    if drawn.target != "labels":
        drawn = replace(drawn, ignore_index=None, label_dtype="int64")
    return _allowed_contents(drawn)


def _allowed_linear(drawn: Configuration) -> Configuration:
    """Positions of a K-dimensional layer are `inner`; leading axes of the rows may be several."""
    if drawn.inner:
        leading = drawn.leading or (2,)
        drawn = replace(drawn, leading=leading, mode="eager" if drawn.mode in ("numpy", "parallel") else drawn.mode)
        return replace(drawn, call="linear_cross_entropy")
    if drawn.leading == (7,) and drawn.mode != "deferred":
        return replace(drawn, leading=(2, 3))
    return drawn


def _allowed_mode(drawn: Configuration) -> Configuration:
    if drawn.contents == "masked" and drawn.layout == "expanded":
        drawn = replace(drawn, layout="sliced")  # all classes of (C,) would be the same one
    if drawn.mode == "numpy":
        options = ("weight", "logit_scale", "denominator")
        numbers = {o: "given" if o == "weight" else "number" for o in options if getattr(drawn, o) != "none"}
        if drawn.weight == "zeros":
            numbers["weight"] = "zeros"
        dtype = "float32" if drawn.dtype == "bfloat16" else drawn.dtype
        target = "labels" if drawn.target == "labels" else "probabilities"
        return replace(drawn, dtype=dtype, target=target, **numbers)
    if drawn.mode == "parallel":
        plain = {o: "none" for o in ("weight", "logit_scale", "denominator") if "gradient" in getattr(drawn, o)}
        if drawn.target == "probabilities with gradient":
            plain["target"] = "probabilities"
        return replace(drawn, layout="contiguous", **plain)
    if drawn.mode == "vmap(grad)" or (drawn.mode == "forward_ad" and drawn.layout == "expanded"):
        # Batches are stacked; torch makes no dual tensor of an expanded one.
        return replace(drawn, layout="contiguous")
    return drawn


def _allowed_contents(drawn: Configuration) -> Configuration:
    """Labels that fit their dtype; masks and NaN where the definitions say what they give."""
    if drawn.ignore_index == 250 and drawn.label_dtype == "int8":
        drawn = replace(drawn, ignore_index=-1)
    if drawn.ignore_index in (-100, -1, None) and drawn.label_dtype == "uint8":
        drawn = replace(drawn, ignore_index=250)
    if drawn.contents == "ignored" and drawn.target != "labels":
        drawn = replace(drawn, contents="normal")
    if drawn.contents == "nan":
        told = drawn.target == "labels" and not drawn.linear and drawn.mode != "forward_ad"
        told = told and (drawn.weight == "none" or drawn.reduction != "mean")  # or a mean over nothing but NaN
        if not told or drawn.label_smoothing or "with gradient" in (drawn.weight, drawn.logit_scale, drawn.denominator):
            drawn = replace(drawn, contents="normal")
    if drawn.contents == "masked" and drawn.linear and not drawn.bias:
        drawn = replace(drawn, contents="normal")
    if drawn.contents == "masked" and drawn.mode == "forward_ad" and drawn.target != "labels":
        drawn = replace(drawn, target="probabilities")  # the derivative by the share of a masked class is infinite
    if drawn.contents == "offset" and drawn.linear and not drawn.bias:
        drawn = replace(drawn, contents="normal")
    return drawn


# ------------------------------------------------------------------------------------------------ drawing the numbers


def dtype_of(name: str) -> torch.dtype:
    return getattr(torch, name)


def long(values: Tensor) -> Array:
    """The exact numbers of a tensor."""
    return values.detach().resolve_neg().double().numpy().astype(LONG)


def laid_out(values: Array, dtype: str, layout: str) -> Tensor:
    """A tensor of these numbers, rounded, with the strides of `layout`."""
    plain = torch.from_numpy(values).to(dtype_of(dtype))
    if plain.ndim == 0 or layout == "contiguous":
        return plain
    if layout == "transposed":
        return plain.permute(*reversed(range(plain.ndim))).contiguous().permute(*reversed(range(plain.ndim)))
    if layout == "sliced":
        wide = torch.zeros(*plain.shape[:-1], 2 * plain.shape[-1] + 1, dtype=plain.dtype)
        wide[..., 1::2] = plain
        return wide[..., 1::2]
    if layout == "expanded":
        return plain[:1].expand(plain.shape)
    if plain.dtype not in (torch.float32, torch.float64):
        return plain
    return torch.complex(torch.zeros_like(plain), -plain).conj().imag


@dataclass
class Numbers:
    """The tensors of one call, and the upstream gradient of each of its differentiable results."""

    arguments: dict[str, Tensor]
    target: Tensor
    options: dict[str, Any]
    upstream: list[Tensor]

    def leaves(self, given: Configuration) -> dict[str, Tensor]:
        """What gets a gradient, as tensors that require one."""
        found = dict(self.arguments)
        if given.target == "probabilities with gradient":
            found["target"] = self.target
        found.update({o: self.options[o] for o in modes.OPTIONS if getattr(given, o) == "with gradient"})
        return {name: tensor.detach().requires_grad_() for name, tensor in found.items()}


def numbers(given: Configuration, member: int = 0) -> Numbers:
    """The numbers of a configuration, for a member of the batch of vmap; all members have the same options."""
    generator = np.random.default_rng([given.seed, 1 + member])
    labels = _labels(given, generator)
    logits = _logits(given, generator, labels)
    if given.linear:
        arguments = _layer(given, generator, logits)
    else:
        arguments = {"input": laid_out(logits, given.dtype, given.layout)}
    if given.target == "labels":
        target = torch.from_numpy(labels).to(dtype_of(given.label_dtype))
    else:
        masked = np.isneginf(logits) & (not given.linear)
        scores = np.exp(2 * generator.standard_normal(logits.shape)) * (generator.random(logits.shape) < 0.8) * ~masked
        scores = np.where(scores.sum(axis=len(given.leading), keepdims=True) == 0, 1.0 * ~masked, scores)
        total = scores.sum(axis=len(given.leading), keepdims=True)
        target = laid_out(scores / total, given.dtype, "contiguous")
    return Numbers(arguments, target, _options(given), _upstream(given, labels.shape))


def _labels(given: Configuration, generator: np.random.Generator) -> Array:
    """Labels, some of them ignored."""
    ignore = -100 if given.ignore_index is None else given.ignore_index
    highest = min(given.classes, np.iinfo(given.label_dtype).max + 1)
    labels = generator.integers(0, highest, (*given.leading, *given.inner))
    labels = np.asarray(np.where(generator.random(labels.shape) < 0.2, ignore, labels))
    return np.full_like(labels, ignore) if given.contents == "ignored" else labels


def _logits(given: Configuration, generator: np.random.Generator, labels: Array) -> Array:
    """Logits of shape (*leading, classes, *inner); of a linear layer only the shape and the masks count."""
    axis, contents = len(given.leading), given.contents
    x = given.spread * generator.standard_normal((*given.leading, given.classes, *given.inner))
    is_label = np.expand_dims(labels, axis) == np.arange(given.classes).reshape(-1, *[1] * len(given.inner))
    if contents == "offset":
        x = x + generator.choice([-1e4, 0, 1e4], np.expand_dims(labels, axis).shape)
    elif contents == "confident":
        x = x + 50 * is_label
    elif contents == "masked":
        x = np.where((generator.random(x.shape) < 0.3) & (np.arange(x.size).reshape(x.shape) % 2 == 0), -np.inf, x)
        kept = np.arange(given.classes).reshape(-1, *[1] * len(given.inner)) == given.seed % given.classes
        often = is_label & (given.mode == "forward_ad" or given.seed % 4 != 0)
        x = np.where(np.isneginf(x) & (kept | often), 0.25, x)
    elif contents == "nan" and x.size:
        x.reshape(-1)[generator.integers(x.size)] = generator.choice([np.nan, np.inf])
    return x


def _layer(given: Configuration, generator: np.random.Generator, logits: Array) -> dict[str, Tensor]:
    """Input, weight and bias, whose logits have about the spread of the configuration."""
    spread = np.sqrt(given.spread)
    hidden = spread * generator.standard_normal((*given.leading, given.features))
    weight = spread * generator.standard_normal((given.classes, *given.inner, given.features)) / np.sqrt(given.features)
    found = {
        "input": laid_out(hidden, given.dtype, given.layout),
        "linear_weight": laid_out(weight, given.dtype, given.layout),
    }
    if given.bias:
        bias = generator.standard_normal((given.classes, *given.inner))
        if given.contents == "offset":
            bias = bias + generator.choice([-1e4, 1e4])
        if given.contents == "masked":
            bias[(np.arange(given.classes) % 3 == 1)] = -np.inf
        found["linear_bias"] = laid_out(bias, given.dtype, given.layout)
    return found


def _options(given: Configuration) -> dict[str, Any]:
    """The keywords of the call."""
    generator = np.random.default_rng([given.seed, 100])
    dtypes = ["float32", "float64"] + ([] if given.mode == "numpy" else [given.dtype])

    def tensor(values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).to(dtype_of(generator.choice(dtypes)))

    found: dict[str, Any] = {}
    if given.weight != "none":
        drawn = generator.uniform(0.1, 2, given.classes) * (generator.random(given.classes) < 0.85)
        found["weight"] = tensor(drawn * (given.weight != "zeros"))
    if given.logit_scale != "none":
        found["logit_scale"] = given.scale if given.logit_scale == "number" else tensor(given.scale)
    if given.denominator != "none":
        makers = {"number": lambda: 3.7, "integer tensor": lambda: torch.tensor(5)}
        found["denominator"] = makers.get(given.denominator, lambda: tensor(3.7))()
    names = ("ignore_index", "label_smoothing", "z_loss", "softcap", "workspace")
    found.update({n: getattr(given, n) for n in names if getattr(given, n) not in (None, 0.0) or n == "ignore_index"})
    if found["ignore_index"] is None:
        del found["ignore_index"]
    return found if given.statistics else found | {"reduction": given.reduction}


def _upstream(given: Configuration, shape: tuple[int, ...]) -> list[Tensor]:
    """A number for a reduced loss, one for each row for others; 1 in the NumPy front, which has none."""
    generator = np.random.default_rng([given.seed, 200])
    dtype = dtype_of(given.arithmetic)
    if given.reduction != "none":
        return [torch.tensor(1.0 if given.mode == "numpy" else given.upstream, dtype=dtype)]
    count = 3 if given.statistics else 1
    if given.mode == "numpy":
        return [torch.ones(shape, dtype=dtype)] * count
    return [
        torch.from_numpy(np.asarray(given.upstream * generator.standard_normal(shape))).to(dtype) for _ in range(count)
    ]
