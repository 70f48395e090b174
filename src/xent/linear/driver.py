"""The linear cross-entropy chunk by chunk: the order of the steps, for any device.

    for each chunk of rows
        logits  = input @ weight.T + bias        into the workspace
        loss, dlogits                            in one visit, dlogits in the place of the logits
        dinput  = dlogits @ weight               unless the input is frozen
        dweight += dlogits.T @ input             unless the weight is frozen
        dbias   += sum of dlogits over the rows  unless the bias is frozen

Of a layer with `sampling` the gradient of the logits is then rounded at random (sampling.py), and the products of what
is left come after those that are to be exact.

That is three matrix products and one visit to the logits, whatever the number of chunks; a frozen argument is one
product less. A device supplies the products (`Steps`); what happens to the logits of a chunk is a `Visit`.

Why the gradient is made together with the loss and not in a backward pass of its own: the logits would have to be made
again, a fourth product of three.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

from xent.linear.plan import Plan
from xent.linear.sampling import Sampling

Array = Any
"""A NumPy array or a torch tensor."""


class Wanted(NamedTuple):
    """Which gradients are asked for; the others cost nothing."""

    input: bool = True
    weight: bool = True
    bias: bool = True


NOTHING = Wanted(input=False, weight=False, bias=False)


class Gradients(NamedTuple):
    """With respect to input, weight and bias of a layer; None where it was not wanted, or there is no bias."""

    input: Array | None
    weight: Array | None
    bias: Array | None


@dataclass(frozen=True)
class Layer:
    """A linear layer and its rows: input (rows, features), weight (classes, features), bias (classes,) of one dtype.

    The target holds labels (rows,) or class probabilities (rows, classes) of any floating dtype. `weight_gradient` is
    the dtype in which the gradient of the weight is wanted; `call` is named in the error about a small workspace.
    `sampling`: whether, and how, gradients of the logits are rounded at random before they are multiplied.
    """

    call: str
    input: Array
    weight: Array
    bias: Array | None
    target: Array
    weight_gradient: Any
    workspace: int
    sampling: Sampling | None = None

    @property
    def rows(self) -> int:
        return int(self.input.shape[0])

    @property
    def classes(self) -> int:
        return int(self.weight.shape[0])

    @property
    def features(self) -> int:
        return int(self.weight.shape[1])

    @property
    def soft(self) -> bool:
        """Whether the target holds class probabilities."""
        return bool(self.target.ndim == 2)


class Steps(Protocol):
    """The products of a chunk of rows, from `first` to `last`. Each step may rely on those before it."""

    plan: Plan
    layer: Layer

    def make_logits(self, first: int, last: int) -> Array:
        """Put the logits of these rows into the workspace and return them."""

    def target(self, first: int, last: int) -> Array:
        """Return the target of these rows as the row kernels take it."""

    def input_gradient(self, first: int, last: int) -> None:
        """Write the gradient of these rows of the input."""

    def bias_gradient(self, first: int, last: int) -> None:
        """Add the share of these rows to the gradient of the bias."""

    def weight_gradient(self, first: int, last: int, part: tuple[int, int]) -> None:
        """Add the share of these rows to the gradient of the weight, for the classes of this part."""

    def finish_weight(self, part: tuple[int, int]) -> None:
        """Round the sums of this part to what the gradient of the weight is stored as."""

    def gradients(self) -> Gradients:
        """Return the finished gradients."""

    def joined(self, chunks: list[Array]) -> Array:
        """Return arrays (..., rows of a chunk) joined along their last axis."""


class RoundingSteps(Steps, Protocol):
    """The steps of a layer with `sampling`."""

    def round_at_random(self, first: int, last: int, scales: Array) -> None:
        """Round the gradient of these rows of logits, whose scales these are."""


class Visit(Protocol):
    """What is computed from the logits of a chunk."""

    def visit(self, logits: Array, target: Array, rows: slice) -> None:
        """Compute what is wanted of these rows."""

    def visit_with_gradient(self, logits: Array, target: Array, rows: slice) -> None:
        """The same, and replace the logits by their gradient."""


class ScaledVisit(Visit, Protocol):
    """What is computed from the logits of a layer with `sampling`."""

    def scales(self, target: Array, rows: slice) -> Array:
        """The scale of the gradient of each row, or of all."""


def run(steps: Steps, visit: Visit, wanted: Wanted) -> None:
    """Visit the logits of all rows, and make the gradients that are wanted."""
    plan = steps.plan
    if not any(wanted):
        for chunk in plan.chunks:
            visit.visit(steps.make_logits(*chunk), steps.target(*chunk), slice(*chunk))
        return
    sampling = steps.layer.sampling
    for part in plan.parts if wanted.weight else plan.parts[:1]:
        asked = wanted if part == plan.parts[0] else Wanted(input=False, weight=True, bias=False)
        sampled = NOTHING
        if sampling is not None:
            sampled = Wanted(asked.input and sampling.input, asked.weight and sampling.weight, bias=False)
        for chunk in plan.chunks:
            rows = slice(*chunk)
            logits, target = steps.make_logits(*chunk), steps.target(*chunk)
            visit.visit_with_gradient(logits, target, rows)
            _multiply(steps, chunk, part, Wanted(*(a and not s for a, s in zip(asked, sampled, strict=True))))
            if any(sampled):
                scales = cast(ScaledVisit, visit).scales(target, rows)
                cast(RoundingSteps, steps).round_at_random(*chunk, scales)
                _multiply(steps, chunk, part, sampled)
        if wanted.weight:
            steps.finish_weight(part)


def _multiply(steps: Steps, chunk: tuple[int, int], part: tuple[int, int], wanted: Wanted) -> None:
    """Make these gradients of what is now the gradient of the logits."""
    if wanted.input:
        steps.input_gradient(*chunk)
    if wanted.bias:
        steps.bias_gradient(*chunk)
    if wanted.weight:
        steps.weight_gradient(*chunk, part)
