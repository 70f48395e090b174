"""The losses as modules, for models that are written as lists of modules."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from xent.linear.plan import DEFAULT_WORKSPACE, parse_bytes
from xent.objective import Objective, UnweightedOptions
from xent.torch.functional import cross_entropy
from xent.torch.linear import linear_cross_entropy


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


class LinearCrossEntropyLoss(nn.Module):
    """`xent.torch.linear_cross_entropy` as a module: a drop-in for `torch.nn.LinearCrossEntropyLoss`.

    Parameters
    ----------
    in_features, num_classes : the sizes of the layer `linear`, an `nn.Linear`.
    bias : whether it has a bias.
    device, dtype : of its parameters.
    weight : tensor (C,), optional
        Class weights; a buffer, so that it moves with the module and is saved with it.
    workspace, check : see `linear_cross_entropy`.
    **options : see `xent.Objective`.

    To tie the layer to an embedding: ``loss.linear.weight = embedding.weight``.

    Examples
    --------
    >>> loss = LinearCrossEntropyLoss(8, 4, label_smoothing=0.1)
    >>> loss(torch.zeros(2, 8), torch.tensor([0, 3])).shape
    torch.Size([])
    >>> loss
    LinearCrossEntropyLoss(
      label_smoothing=0.1, workspace='128MB'
      (linear): Linear(in_features=8, out_features=4, bias=False)
    )
    """

    weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        weight: Tensor | None = None,
        workspace: int | str = DEFAULT_WORKSPACE,
        check: bool = False,
        **options: Unpack[UnweightedOptions],
    ) -> None:
        super().__init__()
        Objective.of("LinearCrossEntropyLoss", options)  # a wrong option is found here, and not in the first step
        parse_bytes("LinearCrossEntropyLoss", workspace)
        self.linear = nn.Linear(in_features, num_classes, bias=bias, device=device, dtype=dtype)
        self.register_buffer("weight", weight)
        self.workspace = workspace
        self.check = check
        self.options: dict[str, Any] = dict(options)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of input (..., features) and class indices (...) or probabilities (..., C)."""
        return linear_cross_entropy(
            input,
            self.linear.weight,
            target,
            linear_bias=self.linear.bias,
            weight=self.weight,
            workspace=self.workspace,
            check=self.check,
            **self.options,
        )

    def extra_repr(self) -> str:
        """The options that were given."""
        return ", ".join(f"{name}={value!r}" for name, value in {**self.options, "workspace": self.workspace}.items())
