"""Every way in which torch executes a call, as one table.

A mode takes a problem (execution_cases.py) to an answer (execution_answers.py): the value, and the derivatives that
the mode is there for. test_execution_modes.py runs the table; docs/execution_modes.md is made from it
(execution_page.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import execution_tensors as tensors
import execution_transforms as transforms
import torch
import torch.distributed as dist
from execution_answers import check
from execution_cases import CONTRASTIVE, DIVERGENCES, Problem, problem
from execution_transforms import Run


@dataclass(frozen=True, eq=False)
class Mode:
    name: str
    says: str
    run: Run
    runs: Callable[[Problem], bool] = lambda of: True
    problem: Callable[..., Problem] = problem
    arithmetic: torch.dtype | None = None  # of layers, where it is not that of their tensors
    quick: tuple[str, ...] | None = None  # the cases that always run, where all of them take minutes

    def __repr__(self) -> str:
        return self.name

    def check(self, of: Problem) -> None:
        """Run the problem of that case and call, and compare with the definition."""
        of = self.problem(of.case, of.call)
        check(of, self.run(of), self.arithmetic if of.multiplies else None)


@contextmanager
def process_group() -> Iterator[None]:
    """A process group of this process alone, for the modes that want one."""
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{Path(folder) / 'store'}"
        dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def has_blocks(of: Problem) -> bool:
    """Whole Jacobians and Hessians have 0 * NaN where other rows meet a row of NaN, and torch makes none of no rows."""
    return of.case.nan_row is None and of.case.labels != []


def has_rows(of: Problem) -> bool:
    return torch.tensor(of.case.labels).ndim > 0


def has_several_rows(of: Problem) -> bool:
    """A compiler makes other code for one row than for several."""
    return has_rows(of) and torch.tensor(of.case.labels).numel() != 1


def can_be_parallel(of: Problem) -> bool:
    """Ranks always look at labels, and have no option for it; they have classes in common, and no other loss."""
    return "check" not in of.case.options and not of.is_binary and of.call not in (*DIVERGENCES, CONTRASTIVE)


def is_float32(of: Problem) -> bool:
    return of.case.dtype == torch.float32


_FORWARD = "forward-mode"
_DYNAMIC = ("everything", "several-dimensions", "soft-everything", "learned-scale", "reverse-everything", "listed")
# Of eager code's cases those that make another graph; the numbers of the others are those of the same operators.
_GRAPHS = (
    *_DYNAMIC,
    *("plain", "softcap-and-scale", "none", "ignored", "soft-learned", "all-weigh-nothing", "masked-class"),
    *("uint8-weight", "checked", "no-rows", "tensor-denominator", "learned-weight", "bfloat16", "confident"),
)

MODES = [
    Mode("eager", "The call as it stands, and backward.", transforms.eager),
    Mode(
        "eager, kernels alone",
        "The same without torch's own loss, which serves for a few plain rows.",
        transforms.eager_by_kernels,
        lambda of: of.call == "cross_entropy",
    ),
    Mode("inference_mode", "Under `torch.inference_mode()`, with tensors made there.", transforms.inference_mode),
    Mode(
        "autocast",
        "Under `torch.autocast` to bfloat16, backward outside of it.",
        transforms.autocast,
        is_float32,
        transforms.rounded_to_bfloat16,
        torch.bfloat16,
    ),
    Mode("create_graph", "Backward with `create_graph=True`, and backward of that.", transforms.double_backward),
    Mode("is_grads_batched", "`torch.autograd.grad(..., is_grads_batched=True)`.", transforms.batched_gradients),
    Mode("checkpoint", "`torch.utils.checkpoint`, `use_reentrant=False`.", transforms.checkpoint(False)),
    Mode("checkpoint, reentrant", "`torch.utils.checkpoint`, `use_reentrant=True`.", transforms.checkpoint(True)),
    # torch.func
    Mode("func.grad", "`torch.func.grad`.", transforms.func_grad),
    Mode("func.grad of func.grad", "`torch.func.grad` of a function of it.", transforms.grad_of_grad),
    Mode("func.vmap", "`torch.func.vmap` over problems, and backward through the batch.", transforms.vmap),
    Mode("func.vmap, shared labels", "The same over logits or models alone.", transforms.vmap_of_variables),
    Mode("func.vmap of func.grad", "Gradients per sample.", transforms.vmap_of_grad),
    Mode("func.jacrev", "`torch.func.jacrev`.", transforms.jacrev, has_blocks),
    Mode("func.jacfwd", "`torch.func.jacfwd`.", transforms.jacfwd, has_blocks),
    Mode("func.jvp", "`torch.func.jvp`.", transforms.func_jvp),
    Mode("func.hessian", "`torch.func.hessian`.", transforms.func_hessian, has_blocks),
    # forward mode, torch.autograd.functional
    Mode("forward_ad", "`torch.autograd.forward_ad`: dual tensors.", transforms.forward_mode),
    Mode("forward_ad, backward", "Dual tensors that require a gradient, too.", transforms.forward_mode_and_backward),
    Mode("jacobian", "`torch.autograd.functional.jacobian`.", transforms.jacobian(), has_blocks),
    Mode("jacobian, vectorized", "The same with `vectorize=True`.", transforms.jacobian(vectorize=True), has_blocks),
    Mode(
        "jacobian, forward",
        'The same with `strategy="forward-mode"`.',
        transforms.jacobian(vectorize=True, strategy=_FORWARD),
        has_blocks,
    ),
    Mode("hessian", "`torch.autograd.functional.hessian`.", transforms.hessian(), has_blocks),
    Mode("hessian, vectorized", "The same with `vectorize=True`.", transforms.hessian(vectorize=True), has_blocks),
    Mode(
        "hessian, forward",
        'The same with `outer_jacobian_strategy="forward-mode"`.',
        transforms.hessian(vectorize=True, outer_jacobian_strategy=_FORWARD),
        has_blocks,
    ),
    # compilers
    Mode(
        "compile, aot_eager",
        '`torch.compile(fullgraph=True, backend="aot_eager")`, and backward.',
        transforms.compiled("aot_eager"),
        quick=_GRAPHS,
    ),
    Mode(
        "compile, inductor",
        "`torch.compile(fullgraph=True)` with its usual backend, and backward.",
        transforms.compiled("inductor"),
        quick=("everything", "softcap-and-scale", "soft-everything", "learned-weight-smoothing", "reverse-everything"),
    ),
    Mode(
        "compile, dynamic",
        "`torch.compile(fullgraph=True, dynamic=True)`, and other numbers of rows.",
        transforms.compiled_for_any_shape,
        has_several_rows,
        quick=_DYNAMIC,
    ),
    Mode(
        "compile of func.vmap of func.grad",
        "Gradients per sample, compiled with `fullgraph=True`.",
        transforms.compiled_transform,
        quick=_DYNAMIC,
    ),
    Mode("export", "`torch.export.export(strict=False)`, and backward of the module.", transforms.exported),
    Mode("jit.trace", "`torch.jit.trace`, and backward of the trace.", transforms.traced),
    # kinds of tensors
    Mode("subclass", "Tensors of a `class Sub(torch.Tensor)` that changes nothing.", tensors.subclass),
    Mode("wrapper subclass", "Tensors of a class with `__torch_dispatch__`.", tensors.wrapper_subclass),
    Mode("meta", "Tensors on the meta device: shapes and dtypes.", tensors.meta),
    Mode("FakeTensorMode", "Fake tensors: shapes and dtypes.", tensors.fake),
    # logits that lie elsewhere
    Mode("deferred", "Logits of a layer that defers them.", tensors.deferred, tensors.has_a_head, tensors.layer_of),
    Mode("parallel", "`xent.torch.parallel` on the one rank of a group.", tensors.one_rank, can_be_parallel),
    Mode("DTensor, rows", "DTensors whose rows are sharded.", tensors.distributed("rows"), has_rows),
    Mode("DTensor, classes", "DTensors whose classes are sharded.", tensors.distributed("classes")),
    Mode("DTensor, replicated", "DTensors that are whole on each rank.", tensors.distributed("nothing")),
]
