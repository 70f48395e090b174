"""Processes that stay for all tests of a file and run tasks together: `xent.torch.parallel` on a rank."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SECONDS = 120
"""After which a rank that does not answer hangs; the first call of a session may have to compile."""


class Failure(NamedTuple):
    """What a rank raised, and after how many seconds."""

    kind: str
    text: str
    seconds: float


class Ranks:
    """A few processes joined by gloo. `run` gives a task to the first `members` of them, and returns what each made."""

    def __init__(self, size: int) -> None:
        self.broken = False
        context = multiprocessing.get_context("spawn")
        self.folder = tempfile.TemporaryDirectory()
        store = str(Path(self.folder.name) / "store")
        self.results = context.Queue()
        self.tasks = [context.Queue() for _ in range(size)]
        self.processes = [
            context.Process(target=_serve, args=(rank, size, store, self.tasks[rank], self.results), daemon=True)
            for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def run(self, task: Any, members: int, *arguments: Any, answers: int | None = None) -> list[Any]:
        assert not self.broken, "a rank did not answer in an earlier test"
        for tasks in self.tasks[:members]:
            tasks.put((task.__name__, members, arguments))
        found: dict[int, Any] = {}
        self.broken = True
        for _ in range(members if answers is None else answers):
            rank, result = self.results.get(timeout=SECONDS)
            found[rank] = result
        self.broken = False
        return [found[rank] for rank in sorted(found)]

    def close(self) -> None:
        for tasks in self.tasks:
            tasks.put(None)
        for process in self.processes:
            process.join(20)
            if process.is_alive():
                process.kill()
        self.folder.cleanup()


def _serve(rank: int, size: int, store: str, tasks: Any, results: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=120)
    )
    groups = {members: dist.new_group(range(members)) for members in range(1, size + 1)}
    dist.barrier()  # or a rank that ends at once would end while another still connects to it
    while (task := tasks.get()) is not None:
        name, members, arguments = task
        start = time.perf_counter()
        try:
            result = globals()[name](rank, groups[members], *arguments)
        except Exception as error:
            result = Failure(type(error).__name__, str(error), time.perf_counter() - start)
        results.put((rank, result))
    dist.destroy_process_group()


# ------------------------------------------------------------------------------------------------------------ the tasks


class Given(NamedTuple):
    """A call: its tensors as arrays, each with the axis along which its classes lie, or None."""

    call: str
    arrays: dict[str, tuple[np.ndarray, int | None]]
    cuts: tuple[int, ...]
    options: dict[str, Any]
    dtype: str = "float32"
    upstream: Any = 1.0


def _tensors(rank: int, given: Given, changed: dict[int, dict[str, Any]] | None = None) -> dict[str, Any]:
    """This rank's part of the arguments; `changed` replaces arrays or options of some ranks."""
    import torch

    tensors: dict[str, Any] = {}
    for name, (array, axis) in given.arrays.items():
        if axis is not None:
            array = np.take(array, range(given.cuts[rank], given.cuts[rank + 1]), axis)
        tensor = torch.tensor(array)
        if tensor.is_floating_point():
            tensor = tensor.to(getattr(torch, given.dtype)).requires_grad_(name not in ("weight", "sample_weight"))
        tensors[name] = tensor
    for name, value in (changed or {}).get(rank, {}).items():
        tensors[name] = torch.tensor(value) if isinstance(value, np.ndarray) else value
    return tensors


def evaluate(rank: int, group: Any, given: Given, changed: dict[int, dict[str, Any]] | None = None) -> dict[str, Any]:
    """The value and the gradients on this rank."""
    import torch

    from xent.torch import parallel

    tensors = _tensors(rank, given, changed)
    value = getattr(parallel, given.call)(**{**given.options, **tensors}, group=group)
    values = list(value) if isinstance(value, tuple) else [value]
    upstream = given.upstream if isinstance(given.upstream, tuple) else (given.upstream,)
    total = sum((v * torch.as_tensor(u)).sum() for v, u in zip(values, upstream, strict=False))
    found: dict[str, Any] = {"value": [v.detach().numpy() for v in values]}
    if getattr(total, "requires_grad", False):
        total.backward()
        for name, tensor in tensors.items():
            if getattr(tensor, "grad", None) is not None:
                found[name] = tensor.grad.double().numpy()
    return found


def contrastive(
    rank: int, group: Any, arrays: tuple[np.ndarray, np.ndarray], cuts: tuple[int, ...], options: dict[str, Any],
    upstream: tuple[float, ...], log_scale: float,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    """The contrastive loss of this rank's pairs, and its gradients by them and by the logarithm of the scale."""
    import torch

    import xent.torch

    place = slice(cuts[rank], cuts[rank + 1])
    a, b = (torch.tensor(array[place]).requires_grad_() for array in arrays)
    learned = torch.tensor(log_scale, dtype=a.dtype, requires_grad=True)
    loss = xent.torch.contrastive_loss(a, b, logit_scale=learned.exp(), group=group, **options)
    gradients = torch.autograd.grad(upstream[rank] * loss.sum(), (a, b, learned))
    return tuple(tensor.detach().numpy() for tensor in (loss, *gradients))


def contrastive_alone(rank: int, group: Any, wrong: int) -> Any:
    """A call in which one rank has embeddings of another width."""
    import torch

    import xent.torch

    features = 3 if rank == wrong else 4
    return xent.torch.contrastive_loss(torch.ones(2, features), torch.ones(2, features), group=group).item()


def evaluate_formulas(rank: int, group: Any, given: Given) -> dict[str, Any]:
    """`evaluate` by what other devices than the CPU compute with."""
    from unittest import mock

    from xent.torch.parallel import combine as shards

    with mock.patch.object(shards, "has_kernels", return_value=False):
        return evaluate(rank, group, given)


def counted(rank: int, group: Any, given: Given) -> dict[str, int]:
    """The bytes that this rank hands to collectives, by collective, in forward and backward."""
    from unittest import mock

    import torch
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    handed = {"all_reduce": 0, "all_gather": 0, "calls": 0}
    all_reduce, all_gather = dist.all_reduce, dist.all_gather

    def reduce(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        handed["all_reduce"] += tensor.nbytes
        handed["calls"] += 1
        return all_reduce(tensor, *arguments, **options)

    def gather(found: Any, tensor: torch.Tensor, **options: Any) -> Any:
        handed["all_gather"] += tensor.nbytes
        return all_gather(found, tensor, **options)

    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("a collective that nobody counts")

    others = [
        "all_to_all",
        "all_to_all_single",
        "broadcast",
        "reduce",
        "reduce_scatter",
        "reduce_scatter_tensor",
        "send",
    ]
    others += ["all_gather_into_tensor", "gather", "scatter", "recv", "isend", "irecv"]
    # all_gather_object is two calls of all_gather, by its name in its own module.
    with (
        mock.patch.multiple(dist, all_reduce=reduce, all_gather=gather, **dict.fromkeys(others, forbidden)),
        mock.patch.object(distributed_c10d, "all_gather", gather),
    ):
        evaluate(rank, group, given)
    return handed


def dtensors(rank: int, group: Any, given: Given) -> dict[str, Any]:
    """The call with DTensors over all ranks, cut as torch cuts them, and no group."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    from xent.torch import parallel

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    tensors: dict[str, Any] = {}
    for name, (array, axis) in given.arrays.items():
        tensor = distribute_tensor(torch.tensor(array), mesh, [Replicate() if axis is None else Shard(axis)])
        if tensor.is_floating_point() and name != "weight":
            tensor.requires_grad_()
        tensors[name] = tensor
    value = getattr(parallel, given.call)(**tensors, **given.options)
    value.backward()
    grads = {name: t.grad.full_tensor().numpy() for name, t in tensors.items() if t.grad is not None}
    return {"value": [value.detach().numpy()], **grads}


def rows_and_classes(
    rank: int, group: Any, logits: np.ndarray, labels: np.ndarray, weight: Any, sample_weight: Any
) -> dict[str, Any]:
    """Ranks 0, 1 have the classes of the first rows, ranks 2, 3 those of the others; the mean is over all rows."""
    import torch
    import torch.distributed as dist

    from xent.torch import parallel

    classes = [dist.new_group([0, 1]), dist.new_group([2, 3])][rank // 2]
    rows = [dist.new_group(pair) for pair in ([0, 2], [1, 3])][rank % 2]
    part = np.array_split(np.arange(len(labels)), [2])[rank // 2]
    half = logits.shape[1] // 3
    here = slice(0, half) if rank % 2 == 0 else slice(half, None)
    x = torch.tensor(logits[part][:, here]).requires_grad_()
    w = None if weight is None else torch.tensor(weight[here])
    y = torch.tensor(labels[part])
    of_rows = None if sample_weight is None else torch.tensor(sample_weight[part])
    both: Any = {"denominator": "global", "denominator_group": rows, "sample_weight": of_rows}
    value = parallel.cross_entropy(x, y, w, group=classes, **both)
    value.backward()
    # Without sharded classes, rows alone.
    whole = parallel.cross_entropy(
        torch.tensor(logits[part]),
        y,
        None if weight is None else torch.tensor(weight),
        **both,
    )
    return {"value": value.item(), "whole": whole.item(), "gradient": x.grad.numpy(), "rows": part, "classes": here}


def fails_in_a_chunk(rank: int, group: Any, given: Given, bad: int) -> Any:
    """One rank runs out of memory in its second chunk."""
    from unittest import mock

    from xent.backends.cpu.shards import CpuShards

    forward, count = CpuShards.forward, itertools.count(1)

    def failing(*arguments: Any, **options: Any) -> Any:
        if rank == bad and next(count) == 2:
            raise MemoryError("no room for the second chunk")
        return forward(*arguments, **options)

    with mock.patch.object(CpuShards, "forward", failing):
        return evaluate(rank, group, given)


def fails_in_a_product(rank: int, group: Any, given: Given, bad: int) -> Any:
    """One rank fails where the gradient of the weight is made, after all exchanges of forward."""
    from unittest import mock

    from xent.backends.cpu.linear_steps import CpuSteps

    weight_gradient = CpuSteps.weight_gradient

    def failing(*arguments: Any) -> Any:
        if rank == bad:
            raise MemoryError("no room for gradients")
        return weight_gradient(*arguments)

    with mock.patch.object(CpuSteps, "weight_gradient", failing):
        return evaluate(rank, group, given)


def ends(rank: int, group: Any, given: Given, bad: int) -> Any:
    """One process is no more."""
    if rank == bad:
        os._exit(3)
    return evaluate(rank, group, given)


def evaluate_each(rank: int, group: Any, given: Given, others: dict[int, Given]) -> Any:
    """Some ranks make another call."""
    return evaluate(rank, group, others.get(rank, given))


def under_autocast(rank: int, group: Any, given: Given, ranks: tuple[int, ...]) -> Any:
    """Some ranks make the call under autocast."""
    import torch

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=rank in ranks):
        return evaluate(rank, group, given)


def without_gradients(rank: int, group: Any, given: Given, ranks: tuple[int, ...]) -> Any:
    """Some ranks make the call under no_grad."""
    import torch

    with torch.set_grad_enabled(rank not in ranks):
        return evaluate(rank, group, given)


def sends_something_else(rank: int, group: Any, given: Given, bad: int, item: Any) -> Any:
    """One rank is in an exchange of objects that is not ours."""
    import torch.distributed as dist

    if rank != bad:
        return evaluate(rank, group, given)
    dist.all_gather_object([None] * dist.get_world_size(group), item, group=group)
    return None


def replicated(rank: int, group: Any, given: Given, bad: int) -> Any:
    """One rank passes logits as a DTensor that is not sharded over the classes."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate

    from xent.torch import parallel

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    tensors = _tensors(rank, given)
    if rank == bad:
        tensors["input"] = DTensor.from_local(tensors["input"], mesh, [Replicate()])
    return getattr(parallel, given.call)(**tensors, **given.options, group=group)
