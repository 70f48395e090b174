"""The binary cross-entropy beside torch's: `xent.bench` on two shapes of labels, with the bars it has to reach.

A target is 1 with a probability of a tenth, and has the dtype of the logits, as torch's function wants it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.bars import entry
from xent.bench import Shape
from xent.bench.peers import (
    FRESH,
    IMPLEMENTATIONS,
    OURS,
    REUSED,
    Calls,
    Implementation,
    Inputs,
    NotAvailableError,
    torch_calls,
)
from xent.bench.run import Progress
from xent.bench.run import run as measure
from xent.bench.shapes import BOTH
from xent.bench.show import ratio_of
from xent.bench.timing import Settings, Spread

if TYPE_CHECKING:
    from torch import Tensor

EAGER = "F.binary_cross_entropy_with_logits"
SHAPES = (
    Shape("tags", 65536, 80, dtypes=BOTH, where="the kinds of things in COCO, many pictures"),
    Shape("topics", 4096, 1000, dtypes=BOTH, where="a thousand labels"),
)
BAR = 3.0
"""How many times as fast as torch's function forward and backward have to be."""


def run(
    *,
    quick: bool = False,
    threads: int = 2,
    command: str = "",
    progress: Progress = lambda description, done, total: None,
    shapes: tuple[Shape, ...] = SHAPES,
) -> dict[str, Any]:
    """Measure as `xent.bench.run` does, and return its record with the bars."""
    settings = Settings().quick() if quick else None
    record = measure(
        shapes, settings=settings, threads=threads, command=command, progress=progress, implementations=CONTESTANTS
    )
    for case in record["cases"]:
        ratio = ratio_of(case, "forward_backward", EAGER, OURS)
        spread = None if ratio is None else Spread(*(ratio[key] for key in ("median", "low", "high")))
        case["bars"] = [] if spread is None else [entry("forward_backward", EAGER, BAR, spread, at_most=False)]
    return record


def _target(inputs: Inputs) -> Tensor:
    import torch

    generator = torch.Generator().manual_seed(1)
    return (torch.rand(inputs.shape.size, generator=generator) < 0.1).to(inputs.logits.dtype)


def _ours(inputs: Inputs) -> Calls:
    import xent.torch

    target = _target(inputs)
    return torch_calls(lambda logits, _: xent.torch.binary_cross_entropy_with_logits(logits, target), inputs)


def _numpy(inputs: Inputs) -> Calls:
    if inputs.dtype == "bfloat16":
        raise NotAvailableError("NumPy has no bfloat16")
    import xent.numpy

    logits, target = inputs.logits.detach().numpy(), _target(inputs).numpy()
    return {
        "forward": lambda: xent.numpy.binary_cross_entropy_with_logits(logits, target),
        "forward_backward": lambda: xent.numpy.binary_cross_entropy_with_logits_value_and_grad(logits, target),
    }


def _eager(inputs: Inputs) -> Calls:
    import torch

    target = _target(inputs)
    function = torch.nn.functional.binary_cross_entropy_with_logits
    return torch_calls(lambda logits, _: function(logits, target), inputs)


CONTESTANTS = (
    Implementation(OURS, "ours", _ours, "`xent.torch.binary_cross_entropy_with_logits`"),
    Implementation("xent.numpy", "ours", _numpy, "`xent.numpy.binary_cross_entropy_with_logits` and its twin"),
    Implementation(EAGER, "peer", _eager, "torch, as it is"),
    *(each for each in IMPLEMENTATIONS if each.name in (FRESH, REUSED)),
)
"""In the order of the tables."""
