"""Agreement between the processes of a group, their sums and maxima, and errors that all of them raise.

Every call begins with one exchange: each rank sends a `Report`, a small dictionary that says which call it makes, with
which shapes, dtypes and options, and what was wrong with its arguments if anything was. Then every rank knows the same,
and an error of one rank, or a difference between two, is raised by all of them as the same error, which names the rank.
A rank that fails later, between two collectives, reports it in the next one (`Ranks.failed`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, TypedDict, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from xent import errors
from xent.errors import ArgumentError, DTypeError, LabelError, ObjectiveError, RankError, ShapeError, XentError, message

T = TypeVar("T")

REPORT_BYTES = 1024
"""Upper bound of what a rank hands to the exchange before a call: its pickled report, with 8 bytes for the size."""


class Report(TypedDict):
    """What a rank sends before a call: plain Python values only."""

    call: str
    error: tuple[str, str] | None
    """What this rank raised while it prepared the call, as its type's name and its text."""
    common: dict[str, Any]
    """Facts that have to be equal on all ranks, by name."""
    own: dict[str, Any]
    """Facts of this rank that the others need."""


class Difference(NamedTuple):
    """How a difference between two ranks is worded, and the error that it is."""

    verb: str
    noun: str
    error: type[XentError]
    remedy: str
    is_presence: bool = False
    """Whether the values are True and False: something is there, or is not."""


_ROWS = "Each rank of the class group passes the same rows, with its own classes"
_INPUT = "Each rank of the class group passes the same input"
_OPTIONS = "Pass the same options on every rank"
_LABELS = "Each rank of the class group passes the same target; broadcast it from one of them"

DIFFERENCES = {
    "call": Difference("calls", "", RankError, "All ranks of a group make the same calls in the same order"),
    "device": Difference("has", "tensors on", RankError, "Use the same kind of device on every rank"),
    "rows": Difference("has", "rows", ShapeError, _ROWS),
    "loss shape": Difference("has", "losses of shape", ShapeError, _ROWS),
    "features": Difference("has", "features", ShapeError, _INPUT),
    "label": Difference("has", "label", LabelError, _LABELS),
    "dtype": Difference("has", "dtype", DTypeError, "Pass the same dtypes on every rank"),
    "product dtype": Difference("has", "products in", DTypeError, "Use torch.autocast on all ranks or on none"),
    "target": Difference("has", "a target of", ObjectiveError, "Pass the same kind of target on every rank"),
    "class weights": Difference("has", "class weights", ObjectiveError, _OPTIONS, is_presence=True),
    "sample_weight": Difference("has", "a sample_weight", ShapeError, _ROWS),
    "linear_bias": Difference("has", "linear_bias", ObjectiveError, _OPTIONS, is_presence=True),
    "gradients": Difference(
        "requires gradients of",
        "",
        RankError,
        "An argument requires a gradient on all ranks of the class group or on none",
    ),
}
"""The common facts that are not options, by name."""


class Ranks:
    """The processes of a group during one call. `device` is where the numbers lie that they exchange."""

    def __init__(
        self, call: str, group: dist.ProcessGroup | None, device: torch.device, argument: str = "group"
    ) -> None:
        check_group(call, argument, group)
        self.call, self.group, self.device, self.argument = call, group, device, argument
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def name(self, rank: int) -> str:
        """A rank of the group by its number among all processes, which is how the launcher numbers it."""
        return f"rank {self._global(rank)}"

    # ------------------------------------------------------------------------------------------------------ agreement

    def agree(self, prepare: Callable[[], tuple[T, dict[str, Any], dict[str, Any]]]) -> tuple[T, list[dict[str, Any]]]:
        """Prepare a call on every rank; return what was prepared on this one, and the `own` facts of all ranks.

        `prepare` returns what it has prepared and the facts `common` and `own` of a `Report`. What it raises on one
        rank, or a common fact that differs, is raised on every rank.
        """
        prepared: T | None = None
        error: Exception | None = None
        report = Report(call=self.call, error=None, common={}, own={})
        try:
            prepared, report["common"], report["own"] = prepare()
        except Exception as caught:
            error, report["error"] = caught, _described(caught)
        reports: list[Report] = self.exchanged(report)
        for rank, received in enumerate(reports):
            if not isinstance(received, dict) or received.keys() != Report.__annotations__.keys():
                found = f"{self.name(rank)} sent something that is not the report of a call"
                raise RankError(message(self.call, self.argument, found, DIFFERENCES["call"].remedy))
        self._raise_first([received["error"] for received in reports], error)
        self.compare("call", [received["call"] for received in reports])
        for fact in dict.fromkeys(fact for received in reports for fact in received["common"]):
            self.compare(fact, [received["common"].get(fact) for received in reports])
        assert prepared is not None
        return prepared, [received["own"] for received in reports]

    def compare(self, fact: str, values: Sequence[Any]) -> None:
        """Raise on every rank if a fact is not the same on all of them; the odd one out is named with both values."""
        common = Counter(values).most_common(1)[0][0]
        for rank, value in enumerate(values):
            if value == common:
                continue
            verb, noun, error, remedy, is_presence = DIFFERENCES.get(
                fact, Difference("has", fact, ObjectiveError, _OPTIONS)
            )
            one, other = self.name(rank), self.name(values.index(common))
            # Options are shown as they are written in a call.
            shown, expected = (str(v) if fact in DIFFERENCES else repr(v) for v in (value, common))
            if is_presence:
                found = f"{one} has {noun} where {other} has none" if value else f"{one} has no {noun}, {other} has"
            else:
                words = (one, verb, noun, shown, "where", other, verb.split()[0], expected)
                found = " ".join(word for word in words if word)
            raise error(message(self.call, "", found, remedy))

    def _raise_first(self, reported: Sequence[tuple[str, str] | None], here: Exception | None) -> None:
        """Raise the error of the first rank that has one; `here` is that of this rank."""
        for rank, error in enumerate(reported):
            if error is None:
                continue
            kind, text = error
            known = getattr(errors, kind, None) if kind in errors.__all__ else None
            if isinstance(known, type) and issubclass(known, XentError):
                raise known(f"On {self.name(rank)}: {text}") from here
            found = f"On {self.name(rank)}: {kind}: {text}"
            raise RankError(message(self.call, "", found, "The log of that rank has the traceback")) from here

    # ------------------------------------------------------------------------------------------------------ reductions

    def maximum(self, numbers: Tensor) -> Tensor:
        """The maximum of each number over the ranks; one number is added, which says whether a rank has failed."""
        return self._maximum(numbers, None)

    def failed(self, shape: Sequence[int], error: Exception) -> Exception:
        """Join the `maximum` of this shape that the other ranks are in, and report an error; returns what to raise."""
        try:
            self._maximum(torch.zeros(*shape, dtype=torch.float64, device=self.device), error)
        except Exception as raised:
            return raised
        raise AssertionError("unreachable")

    def _maximum(self, numbers: Tensor, error: Exception | None) -> Tensor:
        flat = torch.cat([numbers.reshape(-1), numbers.new_full((1,), error is not None)])
        self._all_reduce(flat, dist.ReduceOp.MAX)
        if flat[-1].item():
            self._raise_first(self.exchanged(None if error is None else _described(error)), error)
        return flat[:-1].view(numbers.shape)

    def total(self, numbers: Tensor) -> Tensor:
        """The sum of each number over the ranks, in place."""
        self._all_reduce(numbers, dist.ReduceOp.SUM)
        return numbers

    def total_on(self, numbers: Tensor, rank: int) -> None:
        """The sum of each number over the ranks, in place, on one of them; elsewhere the numbers are lost."""
        with self._completed("a sum over the ranks"):
            dist.reduce(numbers, self._global(rank), group=self.group)

    def broadcast(self, numbers: Tensor, rank: int) -> None:
        """The numbers of one rank, in place, on all of them."""
        with self._completed("sending from one rank to the others"):
            dist.broadcast(numbers, self._global(rank), group=self.group)

    def _global(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

    # ----------------------------------------------------------------------------------------------------- collectives

    def _all_reduce(self, numbers: Tensor, operation: dist.ReduceOp.RedOpType) -> None:
        with self._completed("a sum or maximum over the ranks"):
            dist.all_reduce(numbers, operation, group=self.group)

    def exchanged(self, item: Any) -> list[Any]:
        """This item of every rank.

        all_gather_object pickles, and unpickling can run code: all that comes in here was sent by the processes of this
        job, which run the same program and are trusted as the program is.
        """
        items: list[Any] = [None] * self.size
        with self._completed("an exchange between the ranks"), self._current_device():
            dist.all_gather_object(items, item, group=self.group)
        return items

    def _current_device(self) -> AbstractContextManager[None]:
        """NCCL sends objects by way of the current GPU, which need not be the one that holds the tensors."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    @contextmanager
    def _completed(self, what: str) -> Iterator[None]:
        """Any error of a collective, and of unpickling what another program sent, is a RankError."""
        try:
            yield
        except Exception as error:
            found = f"{what} was not completed: {error}"
            remedy = "A process of the group has ended, or is in another call; its own log says why"
            raise RankError(message(self.call, self.argument, found, remedy)) from error


def _described(error: Exception) -> tuple[str, str]:
    """An error as other ranks receive it."""
    return type(error).__name__, str(error)


def check_group(call: str, argument: str, group: Any) -> None:
    """Raise ArgumentError if this is not a process group, RankError if this process is not a member of it."""
    is_group = isinstance(group, dist.ProcessGroup) or group is dist.GroupMember.NON_GROUP_MEMBER
    if group is not None and not is_group:
        found = f"found a {type(group).__name__}, expected a process group"
        remedy = "Pass what torch.distributed.new_group or DeviceMesh.get_group returns"
        raise ArgumentError(message(call, argument, found, remedy))
    try:
        is_member = dist.get_rank(group) >= 0
    except (RuntimeError, ValueError) as error:
        found = f"the process group cannot be used: {error}"
        raise RankError(message(call, argument, found, "Call torch.distributed.init_process_group first")) from error
    if not is_member:
        found = "this process is not a member of the group"
        raise RankError(message(call, argument, found, "Make the call on its members only"))
