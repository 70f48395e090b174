"""The divergences as modules. Every option is an attribute of its own name, which may be set later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Never, NoReturn

import torch
from torch import Tensor, nn

from xent.divergence import OF_KIND, Divergence
from xent.errors import ArgumentError, message
from xent.linear.plan import DEFAULT_WORKSPACE, parse_bytes
from xent.torch.divergences import js_divergence, kl_divergence
from xent.torch.linear_divergences import linear_js_divergence, linear_kl_divergence
from xent.torch.modules import not_scriptable


class _DivergenceLoss(nn.Module):
    """What the four have in common."""

    loss: str

    def _set(self, options: dict[str, Any], unknown: dict[str, Any]) -> None:
        for name, value in options.items():
            setattr(self, name, value)
        Divergence.of_loss(type(self).__name__, self.loss, options | unknown)  # wrong options are found here

    def options(self) -> dict[str, Any]:
        """The options of the loss by name, as they are set now."""
        return {name: getattr(self, name) for name in OF_KIND[self.loss]}

    def extra_repr(self) -> str:
        """The options that differ from their defaults."""
        changed = {name: value for name, value in self.options().items() if value != DEFAULTS[name]}
        return ", ".join(f"{name}={value!r}" for name, value in changed.items())

    def __prepare_scriptable__(self) -> NoReturn:
        """Called by torch.jit.script, also for a model that contains this module."""
        raise not_scriptable(type(self).__name__)


DEFAULTS: dict[str, Any] = {"direction": "forward", "beta": 0.5, "temperature": 1.0, "temperature_squared": False}
DEFAULTS |= {"softcap": None, "logit_scale": 1.0, "z_loss": 0.0, "ignore_index": -100, "reduction": "mean"}
DEFAULTS |= {"denominator": None}


class KLDivergenceLoss(_DivergenceLoss):
    """`xent.torch.kl_divergence` as a module.

    Parameters
    ----------
    direction, temperature, temperature_squared, softcap, logit_scale, z_loss, ignore_index, reduction, denominator :
        see `kl_divergence`. Each is an attribute that may be set later.

    Raises
    ------
    ObjectiveError
        An option is out of its range: here, or in the next call if it was set later.

    Examples
    --------
    >>> import torch
    >>> loss = KLDivergenceLoss(temperature=2.0)
    >>> loss
    KLDivergenceLoss(temperature=2.0)
    >>> round(loss(torch.zeros(1, 2), torch.tensor([[4.0, 0.0]])).item(), 4)
    0.3278
    """

    loss = "kl_divergence"

    def __init__(
        self,
        *,
        direction: str = "forward",
        temperature: float = 1.0,
        temperature_squared: bool = False,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        z_loss: float = 0.0,
        ignore_index: int = -100,
        reduction: str = "mean",
        denominator: float | None = None,
        **unknown: Never,
    ) -> None:
        super().__init__()
        own: dict[str, Any] = {"direction": direction, "temperature": temperature, "softcap": softcap}
        own |= {"temperature_squared": temperature_squared, "logit_scale": logit_scale, "z_loss": z_loss}
        own |= {"ignore_index": ignore_index, "reduction": reduction, "denominator": denominator}
        self._set(own, unknown)

    def forward(
        self, input: Tensor, target: Tensor, labels: Tensor | None = None, sample_weight: Tensor | None = None
    ) -> Tensor:
        """Return the divergence of the student's logits from the teacher's."""
        return kl_divergence(input, target, labels=labels, sample_weight=sample_weight, **self.options())


class JSDivergenceLoss(_DivergenceLoss):
    """`xent.torch.js_divergence` as a module.

    Parameters
    ----------
    beta, temperature, temperature_squared, softcap, logit_scale, z_loss, ignore_index, reduction, denominator :
        see `js_divergence`. Each is an attribute that may be set later.

    Raises
    ------
    ObjectiveError
        An option is out of its range: here, or in the next call if it was set later.

    Examples
    --------
    >>> import torch
    >>> loss = JSDivergenceLoss(beta=0.1, reduction="sum")
    >>> round(loss(torch.zeros(1, 2), torch.tensor([[2.0, 0.0]])).item(), 4)
    0.0299
    """

    loss = "js_divergence"

    def __init__(
        self,
        *,
        beta: float = 0.5,
        temperature: float = 1.0,
        temperature_squared: bool = False,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        z_loss: float = 0.0,
        ignore_index: int = -100,
        reduction: str = "mean",
        denominator: float | None = None,
        **unknown: Never,
    ) -> None:
        super().__init__()
        own: dict[str, Any] = {"beta": beta, "temperature": temperature, "temperature_squared": temperature_squared}
        own |= {"softcap": softcap, "logit_scale": logit_scale, "z_loss": z_loss, "ignore_index": ignore_index}
        self._set(own | {"reduction": reduction, "denominator": denominator}, unknown)

    def forward(
        self, input: Tensor, target: Tensor, labels: Tensor | None = None, sample_weight: Tensor | None = None
    ) -> Tensor:
        """Return the divergence of the student's logits and the teacher's."""
        return js_divergence(input, target, labels=labels, sample_weight=sample_weight, **self.options())


class _LinearDivergenceLoss(_DivergenceLoss):
    """A divergence with the student's layer; the class behind it in the method resolution order has the options."""

    function: Callable[..., Tensor]

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        workspace: int | str = DEFAULT_WORKSPACE,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        name = type(self).__name__
        if num_classes < 1:
            raise ArgumentError(message(name, "num_classes", f"found {num_classes}", "Pass at least one class"))
        parse_bytes(name, workspace)
        self.workspace = workspace
        self.linear = nn.Linear(in_features, num_classes, bias=bias, device=device, dtype=dtype)

    def forward(
        self,
        input: Tensor,
        target_input: Tensor,
        target_weight: Tensor,
        target_bias: Tensor | None = None,
        labels: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Return the divergence of this layer of the student's hidden states and the teacher's layer of its own."""
        return type(self).function(
            input,
            self.linear.weight,
            target_input,
            target_weight,
            linear_bias=self.linear.bias,
            target_bias=target_bias,
            labels=labels,
            sample_weight=sample_weight,
            workspace=self.workspace,
            **self.options(),
        )


class LinearKLDivergenceLoss(_LinearDivergenceLoss, KLDivergenceLoss):  # type: ignore[misc]
    """`xent.torch.linear_kl_divergence` as a module, which has the student's layer; the teacher's is an argument.

    Parameters
    ----------
    in_features, num_classes : the sizes of the student's layer `linear`, an `nn.Linear`.
    bias : whether it has a bias.
    device, dtype : of its parameters.
    workspace : see `linear_kl_divergence`.
    **options : those of `KLDivergenceLoss`.

    To tie the layer to an embedding: ``loss.linear.weight = embedding.weight``.

    Raises
    ------
    ObjectiveError, ArgumentError
        An argument is out of its range: here, or in the next call if it was set later.

    Examples
    --------
    >>> import torch
    >>> loss = LinearKLDivergenceLoss(8, 4, temperature=2.0)
    >>> loss(torch.zeros(2, 8), torch.zeros(2, 16), torch.zeros(4, 16)).item()
    0.0
    """

    function = staticmethod(linear_kl_divergence)


class LinearJSDivergenceLoss(_LinearDivergenceLoss, JSDivergenceLoss):  # type: ignore[misc]
    """`xent.torch.linear_js_divergence` as a module, which has the student's layer; the teacher's is an argument.

    Parameters
    ----------
    in_features, num_classes, bias, device, dtype, workspace : see `LinearKLDivergenceLoss`.
    **options : those of `JSDivergenceLoss`.

    Raises
    ------
    ObjectiveError, ArgumentError
        An argument is out of its range: here, or in the next call if it was set later.

    Examples
    --------
    >>> import torch
    >>> loss = LinearJSDivergenceLoss(8, 4, beta=0.1)
    >>> loss(torch.zeros(2, 8), torch.zeros(2, 16), torch.zeros(4, 16)).item()
    0.0
    """

    function = staticmethod(linear_js_divergence)
