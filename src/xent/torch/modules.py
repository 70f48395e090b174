"""The losses as modules, for models that are written as lists of modules."""

from __future__ import annotations

from typing import Any, Unpack

from torch import Tensor, nn

from xent.objective import Objective, UnweightedOptions
from xent.torch.functional import cross_entropy


class CrossEntropyLoss(nn.Module):
    """`xent.torch.cross_entropy` as a module: a drop-in for `torch.nn.CrossEntropyLoss`.

    Parameters
    ----------
    weight : tensor (C,), optional
        Class weights; a buffer, so that it moves with the module and is saved with it.
    check : look at the labels also where that makes the host wait for the device.
    **options : see `xent.Objective`.

    Examples
    --------
    >>> import torch
    >>> loss = CrossEntropyLoss(label_smoothing=0.1, reduction="sum")
    >>> loss
    CrossEntropyLoss(label_smoothing=0.1, reduction='sum')
    >>> round(loss(torch.zeros(2, 4), torch.tensor([0, 3])).item(), 4)
    2.7726
    """

    weight: Tensor | None

    def __init__(
        self, weight: Tensor | None = None, *, check: bool = False, **options: Unpack[UnweightedOptions]
    ) -> None:
        super().__init__()
        Objective.of("CrossEntropyLoss", options)  # a wrong option is found here, and not in the first step
        self.register_buffer("weight", weight)
        self.check = check
        self.options: dict[str, Any] = dict(options)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (N, C, ...) and class indices or probabilities."""
        return cross_entropy(input, target, self.weight, check=self.check, **self.options)

    def extra_repr(self) -> str:
        """The options that were given."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
