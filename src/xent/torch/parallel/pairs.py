"""The contrastive loss of pairs that lie on several processes.

Each rank has some of the pairs. Its rows of similarities are those of its embeddings in `a` with `b` of all ranks,
which go round in pieces: each rank sends its own to all others, one rank after the other. So the row of a pair is
complete on its rank, and its column is spread over the ranks, from which log-sum-exps are added up: a few numbers for
each pair cross the network. Backward sends the pieces round again, and returns the sum of each piece's gradients to its
rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from xent.backends.choice import choose, choose_linear
from xent.errors import ArgumentError, message
from xent.linear.contrast import Side, Sums
from xent.linear.driver import Layer, Wanted
from xent.linear.plan import parse_bytes
from xent.objective import Objective
from xent.torch.contrastive_operators import NAME, check_pairs
from xent.torch.functional import Learned, objective_of
from xent.torch.linear import product_dtype
from xent.torch.parallel.agreement import Ranks

Two = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Pairs:
    """A call on one rank: the pairs of rank r are those from places[r].start to places[r].stop of the whole batch."""

    ranks: Ranks
    places: list[slice]
    objective: Objective
    symmetric: bool
    workspace: int
    dtype: torch.dtype

    @property
    def total(self) -> int:
        """The pairs of all ranks."""
        return int(self.places[-1].stop)

    @property
    def own(self) -> slice:
        """The pairs of this rank."""
        return self.places[self.ranks.rank]

    @property
    def share(self) -> float:
        """What the loss of one direction of one pair counts for."""
        of_pair = 1.0 / max(self.total, 1) if self.objective.reduction == "mean" else 1.0
        return of_pair / 2 if self.symmetric else of_pair

    def pieces(self, b: Tensor) -> Any:
        """Each rank's number and its embeddings, one rank after the other; ranks without pairs are left out."""
        for rank, place in enumerate(self.places):
            count = place.stop - place.start
            if count:
                piece = b.contiguous() if rank == self.ranks.rank else b.new_empty((count, b.shape[1]))
                self.ranks.broadcast(piece, rank)
                yield rank, piece

    def layer(self, a: Tensor, piece: Tensor, *, own: bool) -> Layer:
        """Embeddings of this rank and a piece as a layer, whose gradients are summed in float32 at least."""
        labels = torch.arange(len(a), device=a.device) if own else a.new_zeros(len(a), dtype=torch.int64)
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        return Layer(NAME, a.to(self.dtype), piece.to(self.dtype), None, labels, wide, self.workspace)


def contrastive_loss_of_group(
    a: Tensor,
    b: Tensor,
    logit_scale: float | Tensor,
    reduction: str,
    group: dist.ProcessGroup,
    workspace: int | str,
    *,
    symmetric: bool,
) -> Tensor:
    """This rank's share of the loss of all pairs (`xent.torch.contrastive_loss`)."""
    ranks = Ranks(NAME, group, a.device)

    def prepare() -> tuple[tuple[Objective, Learned, int, torch.dtype], dict[str, Any], dict[str, Any]]:
        check_pairs(a, b)
        objective, learned = objective_of(NAME, -100, reduction, logit_scale=logit_scale)
        if choose_linear(a.device) is None:
            found = f"there are no kernels for {a.device.type}, and a group needs them"
            raise ArgumentError(message(NAME, "group", found, "Gather the embeddings, and leave the group out"))
        dtype = product_dtype(NAME, a=a, b=b)
        common = {"features": a.shape[1], "product dtype": str(dtype), "symmetric": symmetric, "reduction": reduction}
        common |= {"logit_scale": objective.logit_scale, "device": a.device.type}
        common["gradients"] = str([t.requires_grad and torch.is_grad_enabled() for t in (a, b)])
        return (objective, learned, parse_bytes(NAME, workspace, a.device.type), dtype), common, {"pairs": len(a)}

    (objective, learned, room, dtype), facts = ranks.agree(prepare)
    ends = [sum(fact["pairs"] for fact in facts[: rank + 1]) for rank in range(len(facts))]
    places = [slice(end - fact["pairs"], end) for end, fact in zip(ends, facts, strict=True)]
    call = Pairs(ranks, places, objective, symmetric, room, dtype)
    loss: Tensor = LossOfGroup.apply(learned.scaled_layer(a, None)[0], b, call)  # type: ignore[no-untyped-call]
    return loss


class LossOfGroup(torch.autograd.Function):
    """Of (a, b, call): this rank's share of the loss, or the losses of its pairs."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, call: Pairs) -> Tensor:
        rows, columns = _measured(a.detach(), b.detach(), call)
        ctx.call = call
        ctx.save_for_backward(a, b, *rows, *columns)
        own = call.own
        losses = rows[0] if not call.symmetric else (rows[0] + columns[0][own]) / 2
        dtype = choose(a.device).compute_dtype(call.dtype)
        if call.objective.reduction == "none":
            return losses.to(dtype)
        total = losses.sum()
        return (total / call.total if call.objective.reduction == "mean" else total).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        a, b, *numbers = ctx.saved_tensors
        call, wanted = ctx.call, ctx.needs_input_grad[:2]
        scale = numbers[2].new_zeros(call.total)
        scale[call.own] = upstream.double() * call.share
        scale = call.ranks.total(scale)  # the loss of another rank may have another upstream gradient
        rows = Side(numbers[0], numbers[1], scale[call.own].contiguous())
        return *_gradients(a.detach(), b.detach(), call, rows, Side(numbers[2], numbers[3], scale), wanted), None


def _measured(a: Tensor, b: Tensor, call: Pairs) -> tuple[Two, Two]:
    """Loss and log-sum-exp of this rank's rows; and of all columns, the loss of this rank's alone."""
    linear: Any = choose_linear(a.device)
    rows, columns = Sums(a, len(a)), Sums(a, call.total)
    everything = slice(0, len(a))
    for rank, piece in call.pieces(b):
        if len(a):
            own, place = rank == call.ranks.rank, call.places[rank]
            layer = call.layer(a, piece, own=own)
            part = linear.contrast(layer, call.objective.logit_scale, symmetric=call.symmetric, own=own)
            rows.add(everything, part.row_loss, part.row_lse, has_positives=own)
            if call.symmetric:
                columns.add(place, part.column_loss, part.column_lse, has_positives=own)
    if call.symmetric:
        _add_other_ranks(columns, call)
    return rows.whole(), columns.whole()


def _add_other_ranks(columns: Sums, call: Pairs) -> None:
    """Log-sum-exps of columns over all ranks: with their positive on its own rank, and of the others."""
    reference = call.ranks.maximum(torch.maximum(columns.lse, columns.others))
    others = (columns.others - reference).exp()  # 0 for this rank's own columns, of which it has the positives
    positives = torch.zeros_like(others)
    positives[call.own] = columns.lse[call.own]
    total = call.ranks.total(torch.stack([others, positives]))
    columns.others, columns.lse = reference + total[0].log(), total[1]


def _gradients(
    a: Tensor, b: Tensor, call: Pairs, rows: Side, columns: Side, wanted: tuple[bool, ...]
) -> list[Tensor | None]:
    """The wanted gradients by this rank's embeddings, of the sum of scale * loss over all ranks."""
    linear: Any = choose_linear(a.device)
    wide = torch.float64 if call.dtype == torch.float64 else torch.float32
    of_a = torch.zeros_like(a, dtype=wide) if wanted[0] else None
    of_b: Tensor | None = None
    for rank, piece in call.pieces(b):
        own, place = rank == call.ranks.rank, call.places[rank]
        share = torch.zeros_like(piece, dtype=wide)
        if len(a):
            of_columns = Side(*(numbers[place].contiguous() for numbers in columns)) if call.symmetric else None
            layer, wants = call.layer(a, piece, own=own), Wanted(wanted[0], wanted[1], bias=False)
            made = linear.contrast_gradients(layer, call.objective.logit_scale, rows, of_columns, wants, own=own)
            if of_a is not None:
                of_a += made.input
            if wanted[1]:
                share = made.weight
        if wanted[1]:
            call.ranks.total_on(share, rank)
            of_b = share if own else of_b
    if wanted[1] and of_b is None:  # this rank has no pairs
        of_b = torch.zeros_like(b)
    return [None if found is None else found.to(like.dtype) for found, like in ((of_a, a), (of_b, b))]
