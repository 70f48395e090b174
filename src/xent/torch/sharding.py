"""The operators for DTensors: which placements of their arguments they take, and what the results are then.

Rows may be sharded. Classes and features may not: DTensor gathers them first, and whoever has classes on several
processes calls `xent.torch.parallel`, which exchanges a few numbers for each row. Registered when the first DTensor
comes, since torch.distributed takes its time to import.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Any

from torch import Tensor

from xent.errors import ArgumentError, message
from xent.torch import (
    binary_operators,
    contrastive_operators,
    divergence_operators,
    linear_divergence_operators,
    linear_operators,
    operators,
)
from xent.torch.dispatch import Operator


def is_distributed(call: str, weight_may_learn: bool = False, /, **tensors: Tensor | None) -> bool:
    """Whether the tensors are DTensors; ArgumentError if only some are.

    Weights of classes get no gradient there; those of elements, which torch multiplies with, do.
    """
    module = sys.modules.get("torch.distributed.tensor")
    if module is None:
        return False
    kinds = {name: isinstance(tensor, module.DTensor) for name, tensor in tensors.items() if tensor is not None}
    if not any(kinds.values()):
        return False
    if not all(kinds.values()):
        name, other = next(n for n, is_one in kinds.items() if not is_one), next(n for n in kinds if kinds[n])
        found = f"found an ordinary tensor, while {other} is a DTensor"
        raise ArgumentError(message(call, name, found, f"Distribute {name} with distribute_tensor, over the same mesh"))
    weight = tensors.get("weight")
    if weight is not None and weight.requires_grad and not weight_may_learn:
        found = "class weights that are DTensors get no gradient"
        remedy = "Pass weight.detach(), or multiply the losses of reduction='none' by the weights of their labels"
        raise ArgumentError(message(call, "weight", found, remedy))
    _register()
    return True


@cache
def _register() -> None:
    from torch.distributed.tensor import Partial, Replicate, Shard

    rows, whole = Shard(0), Replicate()
    _register_rows(operators.LOSS, operators.LOSS.by_rows, lambda _: [rows] * 2)
    _register_rows(operators.LOSS_BACKWARD, operators.LOSS_BACKWARD.by_rows, lambda _: [rows])
    _register_rows(operators.STATISTICS, operators.STATISTICS.by_rows, lambda _: [rows] * 6)
    _register_rows(operators.STATISTICS_BACKWARD, operators.STATISTICS_BACKWARD.by_rows, lambda _: [rows])
    _register_rows(binary_operators.LOSS, binary_operators.LOSS.by_rows, lambda _: [rows])
    _register_rows(binary_operators.LOSS_BACKWARD, binary_operators.LOSS_BACKWARD.by_rows, lambda _: [rows])
    # Columns are spread over all rows, which DTensor gathers first.
    _register_rows(contrastive_operators.LOSS, (), lambda _: [whole] * 2)
    _register_rows(contrastive_operators.LOSS_BACKWARD, (), lambda _: [whole] * 2)
    divergence, of_two = divergence_operators, linear_divergence_operators
    _register_rows(divergence.LOSS, divergence.LOSS.by_rows, lambda _: [rows])
    _register_rows(divergence.LOSS_BACKWARD, divergence.LOSS_BACKWARD.by_rows, lambda _: [rows])
    _register_rows(of_two.LOSS, of_two.LOSS.by_rows, lambda _: [rows, whole, whole, whole])
    # The loss comes row by row then, and its gradients later: empty here.
    _register_rows(linear_operators.LOSS, linear_operators.LOSS.by_rows, lambda _: [rows, whole, whole, whole])
    _register_rows(linear_operators.STATISTICS, linear_operators.STATISTICS.by_rows, lambda _: [rows] * 6)

    def of_layer(given: Sequence[Any]) -> list[Any]:
        """Gradients of weight and bias are sums over the rows."""
        wanted = next(value for value in given if isinstance(value, list | tuple))
        places = (rows, Partial(), Partial())
        return [place if want else whole for place, want in zip(places, wanted, strict=True)]

    _register_rows(linear_operators.LOSS_BACKWARD, {0, 1, 4}, of_layer)
    _register_rows(of_two.LOSS_BACKWARD, {0, 1, 4, 7}, of_layer)
    _register_rows(linear_operators.STATISTICS_BACKWARD, {0, 1, 2, 3, 6, 7, 8}, of_layer)


def _register_rows(operator: Operator, by_rows: Collection[int], results: Callable[[Sequence[Any]], list[Any]]) -> None:
    """Let an operator take all tensors whole, or those of these places in shards of rows, with these results."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    @register_sharding(operator.overload)  # type: ignore[untyped-decorator]
    def _(*given: Any) -> list[tuple[list[Any], list[Any]]]:
        def placed(rows: Any) -> list[Any]:
            is_tensor = [hasattr(value, "placements") for value in given]
            return [(rows if i in by_rows else Replicate()) if there else None for i, there in enumerate(is_tensor)]

        sharded = results(given)
        return [([Replicate()] * len(sharded), placed(Replicate())), (sharded, placed(Shard(0)))]
