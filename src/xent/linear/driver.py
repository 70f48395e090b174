"""The linear cross-entropy chunk by chunk: the order of the steps, for any device.

    for each chunk of rows
        logits  = input @ weight.T + bias        into the workspace
        loss, dlogits                            in one visit, dlogits in the place of the logits
        dinput  = dlogits @ weight               unless the input is frozen
        dweight += dlogits.T @ input             unless the weight is frozen
        dbias   += sum of dlogits over the rows  unless the bias is frozen

That is three matrix products and one visit to the logits, whatever the number of chunks; a frozen argument is one
product less. A device supplies the steps (`Steps`); host.py has those of the CPU.

Why the gradient is made together with the loss and not in a backward pass of its own: the logits would have to be made
again, a fourth product of three.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from xent.linear.plan import Plan


class Wanted(NamedTuple):
    """Which gradients are asked for; the others cost nothing."""

    input: bool = True
    weight: bool = True
    bias: bool = True


NOTHING = Wanted(input=False, weight=False, bias=False)


class Steps(Protocol):
    """What a device does with one chunk of rows, from `first` to `last`. Each step may rely on those before it."""

    def make_logits(self, first: int, last: int) -> None:
        """Put the logits of these rows into the workspace."""

    def visit(self, first: int, last: int) -> None:
        """Write the losses of the rows (or whatever is wanted of them) from the logits."""

    def visit_with_gradient(self, first: int, last: int) -> None:
        """The same, and replace the logits by their gradient."""

    def input_gradient(self, first: int, last: int) -> None:
        """Write the gradient of these rows of the input."""

    def bias_gradient(self, first: int, last: int) -> None:
        """Add the share of these rows to the gradient of the bias."""

    def weight_gradient(self, first: int, last: int, part: tuple[int, int]) -> None:
        """Add the share of these rows to the gradient of the weight, for the classes of this part."""

    def finish_weight(self, part: tuple[int, int]) -> None:
        """Round the sums of this part to what the gradient of the weight is stored as."""


def forward(steps: Steps, plan: Plan) -> None:
    """Losses alone."""
    for chunk in plan.chunks:
        steps.make_logits(*chunk)
        steps.visit(*chunk)


def forward_backward(steps: Steps, plan: Plan, wanted: Wanted) -> None:
    """Losses, and the gradients that are wanted."""
    for part in plan.parts if wanted.weight else plan.parts[:1]:
        is_first = part == plan.parts[0]
        for chunk in plan.chunks:
            steps.make_logits(*chunk)
            steps.visit_with_gradient(*chunk)
            if wanted.input and is_first:
                steps.input_gradient(*chunk)
            if wanted.bias and is_first:
                steps.bias_gradient(*chunk)
            if wanted.weight:
                steps.weight_gradient(*chunk, part)
        if wanted.weight:
            steps.finish_weight(part)
