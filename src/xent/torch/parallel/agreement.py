"""The processes of a group, which have to do the same thing at the same time: agreement, sums, and errors for all.

Before anything else each rank tells what it is about to do, in a header of 32 numbers. Whatever a rank found wrong with
its arguments, and whatever differs between ranks, is raised by all of them, as the same error that names the rank. A
rank that fails later, between two collectives, says so in the next one (`failed`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from xent import errors
from xent.errors import DTypeError, LabelError, ObjectiveError, RankError, ShapeError, XentError, message

Made = TypeVar("Made")

HEADER = 32
"""Numbers of 8 bytes that each rank sends to each other one before a call."""
TEXT = 2048
"""Bytes of an error that travels; it is sent only if there is one."""

DIFFERS: dict[str, tuple[type[XentError], str]] = {
    "call": (RankError, "All ranks of a group make the same calls in the same order"),
    "rows": (ShapeError, "Each rank of the class group passes the same rows, with its own classes"),
    "features": (ShapeError, "Each rank of the class group passes the same input"),
    "labels": (LabelError, "Each rank of the class group passes the same target; broadcast it from one of them"),
    "dtype": (DTypeError, "Pass the same dtypes on every rank"),
    "gradients": (RankError, "Arguments require gradients on all ranks of the class group or on none"),
}
"""What has to be equal, with the error if it is not; anything else is an option."""


class Ranks:
    """A process group as one call uses it. `device` is where its numbers lie."""

    def __init__(self, call: str, group: dist.ProcessGroup | None, device: torch.device) -> None:
        self.call, self.group, self.device = call, group, device
        with self._answers("the process group"):
            self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            found = "this process is not a member of the group"
            raise RankError(message(call, "group", found, "Call it on the members only"))

    # ------------------------------------------------------------------------------------------------------ agreement

    def agree(
        self,
        prepare: Callable[[], Made],
        equal: Callable[[Made], Mapping[str, float]],
        own: Callable[[Made], list[int]],
    ) -> tuple[Made, list[list[int]]]:
        """Prepare the call on each rank; return what was made, and the `own` numbers of every rank.

        Raises on every rank what went wrong on one of them, or what differs among the `equal` numbers.
        """
        made, error = None, None
        numbers = [0] * HEADER
        names: list[str] = []
        try:
            made = prepare()
            facts = equal(made)
            names = list(facts)
            bits = torch.tensor(list(facts.values()), dtype=torch.float64).view(torch.int64).tolist()
            told = [1, _code(self.call), *bits, *own(made)]
            numbers[: len(told)] = told
            assert len(numbers) == HEADER, "the header is too small for what it has to tell"
        except Exception as problem:
            error = problem
        headers = self._gathered(torch.tensor(numbers)).tolist()
        if not all(header[0] for header in headers):
            raise self._first_of(error)
        assert made is not None
        self.compare("call", [header[1] for header in headers], str)
        for place, name in enumerate(names, start=2):
            self.compare(name, [header[place] for header in headers], _float)
        return made, [header[2 + len(names) :] for header in headers]

    def name(self, rank: int) -> str:
        """A rank as the launcher numbers it."""
        return f"rank {dist.get_global_rank(self.group, rank) if self.group is not None else rank}"

    def compare(self, fact: str, values: Sequence[int], show: Callable[[int], str] = str) -> None:
        """Raise on every rank if a fact is not the same for all of them."""
        common = Counter(values).most_common(1)[0][0]
        for rank, value in enumerate(values):
            if value != common:
                error, remedy = DIFFERS.get(fact, (ObjectiveError, "Pass the same options on every rank"))
                other = self.name(values.index(common))
                if fact in ("call", "labels"):
                    found = f"{self.name(rank)} has another {fact.removesuffix('s')} than {other}"
                else:
                    found = f"{self.name(rank)} has {fact} {show(value)} where {other} has {show(common)}"
                raise error(message(self.call, "", found, remedy))

    def _first_of(self, error: Exception | None) -> Exception:
        """The error of the first rank that has one, as this rank raises it."""
        text = f"{type(error).__name__}\n{error}" if error is not None else ""
        encoded = text.encode()[:TEXT]
        padded = torch.zeros(TEXT, dtype=torch.uint8)
        padded[: len(encoded)] = torch.tensor(list(encoded), dtype=torch.uint8)
        texts = [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in self._gathered(padded).tolist()]
        rank, first = next((rank, text) for rank, text in enumerate(texts) if text)
        kind, _, words = first.partition("\n")
        cls = getattr(errors, kind, None) if kind in errors.__all__ else None
        raised = (cls or RankError)(f"On {self.name(rank)}: {words if cls else f'{kind}: {words}'}")
        raised.__cause__ = error
        return raised

    # ------------------------------------------------------------------------------------------------------ reductions

    def maximum(self, numbers: Tensor) -> Tensor:
        """The greatest of each number over the ranks. One number more says whether somebody has failed."""
        return self._maximum(numbers, 0)

    def failed(self, shape: Sequence[int], error: Exception) -> Exception:
        """Take part in the `maximum` of that shape that the others are in, and tell them; returns what to raise."""
        try:
            self._maximum(torch.zeros(*shape, dtype=torch.float64, device=self.device), self.rank + 1, error)
        except Exception as raised:
            return raised
        raise AssertionError("unreachable")

    def _maximum(self, numbers: Tensor, flag: int, error: Exception | None = None) -> Tensor:
        flat = torch.cat([numbers.reshape(-1), numbers.new_full((1,), flag)])
        self._all_reduce(flat, dist.ReduceOp.MAX)
        if flat[-1].item():
            raise self._first_of(error)
        return flat[:-1].view(numbers.shape)

    def total(self, numbers: Tensor) -> Tensor:
        """The sum of each number over the ranks, in place."""
        self._all_reduce(numbers, dist.ReduceOp.SUM)
        return numbers

    def done(self, work: Callable[[], Made]) -> Made:
        """Do some work on which the ranks do not wait for each other; raises on all of them if it fails on one."""
        try:
            made = work()
        except Exception as error:
            raise self.failed((0,), error) from error
        self.maximum(torch.zeros(0, dtype=torch.float64, device=self.device))
        return made

    def _all_reduce(self, numbers: Tensor, operation: dist.ReduceOp.RedOpType) -> None:
        with self._answers("a sum over the ranks"):
            dist.all_reduce(numbers, operation, group=self.group)

    def _gathered(self, numbers: Tensor) -> Tensor:
        numbers = numbers.to(self.device)
        found = [torch.empty_like(numbers) for _ in range(self.size)]
        with self._answers("an exchange between the ranks"):
            dist.all_gather(found, numbers, group=self.group)
        return torch.stack(found).cpu()

    @contextmanager
    def _answers(self, what: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            found = f"{what} was not completed: {error}"
            remedy = "A process of the group has ended, or waits elsewhere; its own log says why"
            raise RankError(message(self.call, "group", found, remedy)) from error


def _code(text: str) -> int:
    """A text as a number that is the same in every process."""
    return int.from_bytes(text.encode()[-7:], "big")


def _float(bits: int) -> str:
    return f"{torch.tensor(bits).view(torch.float64).item():g}"
