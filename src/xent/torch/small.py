"""The mean loss of a few plain rows on the CPU: torch's own, where it is faster (`choice.LIMIT`) and as good.

A call through an autograd function written in Python takes 100 microseconds, however little there is to compute;
torch's takes 30. What it computes is what we promise but for two things:

- A confident loss is taken from a sum that was rounded to float32. Below `CONFIDENT` kernels compute it.
- An ignored row whose logits have a NaN gets a gradient of NaN. So torch is told of no label to ignore, and refuses
  what it then takes for a label out of range.

What torch refuses goes the way of all other calls, which has the errors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xent.backends import choice
from xent.backends.cpu.tile import CONFIDENT
from xent.torch._torch_private import PLAIN, cross_entropy_loss, dispatch_modes, interpreter_stack, tracing_state

NO_LABEL = -0x4E1D_93A7_58C2_06BF
"""What torch is told to ignore: a number without a meaning, since it has to be some."""


def loss_of_few(input: Tensor, target: Any) -> Tensor | None:
    """The mean loss by torch; None where this is not for it, or for an error that is ours to raise."""
    if (
        type(input) not in PLAIN
        or type(target) not in PLAIN
        or tracing_state() is not None  # first, since a recorded size is a tensor
        or input.ndim != target.ndim + 1
        or input.numel() + choice.OF_A_ROW * target.numel() > choice.LIMIT
        or input.dtype not in choice.COMPUTED
        or target.dtype is not torch.int64
        or not input.is_cpu
        or interpreter_stack() is not None
        or dispatch_modes()
    ):
        return None
    try:
        loss = cross_entropy_loss(input, target, None, 1, NO_LABEL, 0.0)
    except (IndexError, RuntimeError, ValueError):
        return None
    return loss if loss.item() >= CONFIDENT else None
