"""The options of a sampled gradient (xent/linear/sampling.py) for tensors: where there is one, and its seed."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from xent.backends.choice import choose_linear
from xent.errors import ArgumentError, message
from xent.linear.sampling import SEEDS, GradientReport, Sampling, refuse_sampling, sampling_of
from xent.torch._torch_private import is_transformed
from xent.torch.functional import has_to_be_formula


def sampling(
    call: str,
    gradient: str,
    threshold: float | None,
    seed: int | Tensor | None,
    report: GradientReport | None,
    *tensors: Tensor | None,
) -> Sampling | None:
    """How the gradients of these tensors (input, weight, bias) are rounded at random; None if they are exact.

    Without a seed it is drawn from torch's generator, as for dropout, and only where there is a gradient to make.
    """
    found = sampling_of(call, gradient, threshold, seed, report)
    if found is None:
        return None
    device = next(tensor for tensor in tensors if tensor is not None).device
    if device.type != "cpu" or choose_linear(device) is None:
        refuse_sampling(call, found, f"on this device ({device})")
    if is_transformed() or has_to_be_formula():
        refuse_sampling(call, found, "under torch.func and in forward mode, which differentiate a formula")
    if report is not None and torch.compiler.is_compiling():
        problem = "compiled code cannot fill in a report"
        raise ArgumentError(message(call, "report", problem, "Leave it out, or make the call outside of torch.compile"))
    if not (torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)):
        return None
    return replace(found, seed=_seed(call, found.seed))


def _seed(call: str, seed: int | Tensor | None) -> int | Tensor:
    if seed is None:
        return torch.randint(SEEDS - 1, (), dtype=torch.int64)
    if isinstance(seed, Tensor):
        if seed.numel() != 1 or seed.dtype.is_floating_point or seed.dtype.is_complex:
            found = f"found a tensor {tuple(seed.shape)} of {seed.dtype}, expected one integer"
            raise ArgumentError(message(call, "seed", found, "Pass a number, or torch.tensor(step)"))
        return seed.detach().reshape(()).to("cpu", torch.int64)
    return seed
