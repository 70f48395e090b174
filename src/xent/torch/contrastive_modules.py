"""The contrastive loss as a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor, nn

from xent.linear.plan import DEFAULT_WORKSPACE, parse_bytes
from xent.objective import Objective
from xent.torch.contrastive import contrastive_loss
from xent.torch.modules import not_scriptable

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class ContrastiveLoss(nn.Module):
    """`xent.torch.contrastive_loss` as a module.

    Parameters
    ----------
    symmetric, reduction, group, workspace : see `contrastive_loss`. Each is an attribute that may be set later.

    Raises
    ------
    ObjectiveError, ArgumentError
        An argument is out of its range: here, or in the next call if it was set later.

    Examples
    --------
    >>> import torch
    >>> loss = ContrastiveLoss(reduction="sum")
    >>> loss
    ContrastiveLoss(symmetric=True, reduction='sum')
    >>> round(loss(torch.eye(3), torch.eye(3), logit_scale=10.0).item(), 6)
    0.000272
    """

    def __init__(
        self,
        symmetric: bool = True,
        reduction: str = "mean",
        group: ProcessGroup | None = None,
        workspace: int | str = DEFAULT_WORKSPACE,
    ) -> None:
        super().__init__()
        options: Any = {"reduction": reduction}
        Objective.of("ContrastiveLoss", options)
        parse_bytes("ContrastiveLoss", workspace)
        self.symmetric, self.reduction, self.group, self.workspace = symmetric, reduction, group, workspace

    def forward(self, a: Tensor, b: Tensor, logit_scale: float | Tensor = 1.0) -> Tensor:
        """Return the loss of pairs of embeddings; the scale may be a tensor, and gets its gradient."""
        options: dict[str, Any] = {"symmetric": self.symmetric, "reduction": self.reduction, "group": self.group}
        return contrastive_loss(a, b, logit_scale=logit_scale, workspace=self.workspace, **options)

    def extra_repr(self) -> str:
        """The options."""
        return f"symmetric={self.symmetric}, reduction={self.reduction!r}"

    def __prepare_scriptable__(self) -> NoReturn:
        """Called by torch.jit.script, also for a model that contains this module."""
        raise not_scriptable("ContrastiveLoss")
