"""`Divergence`: every option of the divergences between two rows of logits, in one frozen value like `Objective`.

With student logits s, teacher logits t, and z of each as below (docs/definitions.md):

    z      = softcap * tanh(u / softcap),  u = logit_scale * x / temperature    (softcap=None: z = u)
    p_s    = softmax(z of s),  p_t = softmax(z of t)
    KL     = sum(p_t * (log p_t - log p_s))                     direction="reverse": sum(p_s * (log p_s - log p_t))
    JS     = beta * KL(p_t || m) + (1 - beta) * KL(p_s || m),   m = beta * p_t + (1 - beta) * p_s
    loss   = factor * (KL or JS) + z_loss * lse(z of s)**2,     factor = temperature**2 or 1

A temperature is a logit_scale, and is kept as one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypedDict, get_args

from xent.errors import ObjectiveError, message
from xent.objective import Objective, Reduction
from xent.options import check_option

__all__ = ["Direction", "Divergence", "DivergenceOptions", "Kind"]

Direction = Literal["forward", "reverse"]
Kind = Literal["forward", "reverse", "js"]


class DivergenceOptions(TypedDict, total=False):
    """The keyword arguments that every divergence takes; `Divergence` documents them."""

    temperature: float
    temperature_squared: bool
    softcap: float | None
    logit_scale: float
    z_loss: float
    ignore_index: int
    reduction: Reduction
    denominator: float | None


OPTIONS = tuple(DivergenceOptions.__annotations__)
TEXT = ("kind", "beta", "factor", "softcap", "logit_scale", "z_loss", "ignore_index", "reduction", "denominator")
"""What travels as text."""
OF_KIND = {"kl_divergence": ("direction", *OPTIONS), "js_divergence": ("beta", *OPTIONS)}
"""The options of each divergence."""

_REMEDIES = {
    "weight": "Weigh rows with sample_weight",
    "label_smoothing": "A softer teacher has a higher temperature",
    "focal_gamma": "Weigh rows with sample_weight",
    "beta": "Use js_divergence, which has it",
    "direction": "Use kl_divergence, which has it",
    "log_target": "Both arguments are logits here, and their softmax is made with the loss",
}


def _is_inside(beta: Any) -> bool:
    return bool(0.0 < beta < 1.0)


_RANGES: dict[str, tuple[Any, str, str]] = {
    "kind": (lambda k: k in get_args(Kind), "'forward', 'reverse' or 'js'", "See help(xent.torch.kl_divergence)"),
    "beta": (
        _is_inside,
        "a number between 0 and 1, without these",
        "At its ends the divergence over beta or 1 - beta becomes kl_divergence: forward at 0, reverse at 1",
    ),
    "factor": (lambda f: 0.0 < f < math.inf, "a temperature whose square is finite", "Pass a lower temperature"),
}
_TEMPERATURE = (lambda t: 0.0 < t < math.inf, "a finite number above 0")


@dataclass(frozen=True, eq=False)
class Divergence(Objective):
    """The options of a divergence between rows of logits, checked once. Made by `Divergence.of_loss`.

    Parameters
    ----------
    kind : "forward", "reverse" or "js"
        KL(p_t || p_s), KL(p_s || p_t), or the generalised Jensen-Shannon divergence.
    beta : float in (0, 1)
        The teacher's share of the mixture, of "js".
    factor : float above 0
        Of the divergence, not of the z-loss.
    softcap, logit_scale : as of `Objective`, for both; a temperature is in the scale.
    z_loss : as of `Objective`, of the student's log-sum-exp.
    ignore_index, reduction, denominator : as of `Objective`.

    Raises
    ------
    ObjectiveError
        An option is out of its range, or has no meaning here.

    Examples
    --------
    >>> Divergence.of_loss("call", "kl_divergence", {"temperature": 2.0, "temperature_squared": True}).factor
    4.0
    """

    kind: Kind = "forward"
    beta: float = 0.5
    factor: float = 1.0
    text: ClassVar[tuple[str, ...]] = TEXT

    def __post_init__(self, call: str) -> None:
        super().__post_init__(call)
        for option, (holds, expected, remedy) in _RANGES.items():
            check_option(self, call, option, holds, expected, remedy)

    @classmethod
    def of_loss(cls, call: str, loss: str, options: Mapping[str, Any]) -> Divergence:
        """Build the options of a call from its keyword arguments; `loss` is "kl_divergence" or "js_divergence"."""
        known = OF_KIND[loss]
        for option in options:
            if option not in known:
                found = f"{'this divergence has' if option in _REMEDIES else 'there is'} no option {option!r}"
                remedy = _REMEDIES.get(option, f"The options are {', '.join(known)}")
                raise ObjectiveError(message(call, option, found, remedy))
        given = dict(options)
        kind: Any = given.pop("direction", "forward") if loss == "kl_divergence" else "js"
        if loss == "kl_divergence" and kind not in get_args(Direction):
            found = f"found {kind!r}, expected 'forward' or 'reverse'"
            raise ObjectiveError(message(call, "direction", found, "What lies between them is js_divergence"))
        temperature = Temperature(given.pop("temperature", 1.0))
        check_option(temperature, call, "temperature", *_TEMPERATURE)
        squared = given.pop("temperature_squared", False)
        scale = given.pop("logit_scale", 1.0)
        plain = cls(**given, logit_scale=scale, kind=kind, call=call)
        t = temperature.temperature
        factor = t * t if squared else 1.0
        return plain if t == 1.0 else replace(plain, logit_scale=plain.logit_scale / t, factor=factor, call=call)

    @property
    def of_teacher(self) -> Divergence:
        """The same divergence with the roles exchanged: its gradient by its student is this one's by its teacher."""
        kinds: dict[Kind, Kind] = {"forward": "reverse", "reverse": "forward", "js": "js"}
        return replace(self, kind=kinds[self.kind], beta=1.0 - self.beta, z_loss=0.0)


@dataclass
class Temperature:
    """What both logits are divided by, before it has become a part of their scale."""

    temperature: Any
