"""The gradient of the statistics of each row (`cross_entropy.statistics`), without validation.

    dx = (d_log_prob * (one_hot - q) - d_entropy * q * (log q + H) + d_lse * q) * dz/dx,   q = softmax(z), H its entropy

in one visit, from the log-sum-exp and the entropy that the statistics gave: xent.backends.cpu.statistics_gradient again, which
has the derivation. A masked class has gradient 0. A row without a label (`ignore_index`, or out of range) keeps the
shares of entropy and log-sum-exp.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from xent.backends.gpu.cross_entropy import Call, strided
from xent.backends.gpu.primitives import exp
from xent.backends.gpu.shapes import Tile
from xent.backends.gpu.tile import load, logits_of, read_labels, store, terms_of, transform
from xent.objective import Objective


def statistics_gradient(
    logits: Tensor,
    labels: Tensor,
    lse: Tensor,
    entropy: Tensor,
    upstream: tuple[Tensor, Tensor, Tensor],
    objective: Objective,
    *,
    out: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """Return the gradient of sum(d_log_prob * log_prob + d_entropy * entropy + d_lse * lse) by the logits.

    `upstream` is (d_log_prob, d_entropy, d_lse), one number for each row. `out` may be the logits themselves.
    """
    call = Call(logits, labels, objective, tile)
    in_place = out is not None and out.data_ptr() == logits.data_ptr()
    out = torch.empty_like(logits, memory_format=torch.contiguous_format) if out is None else out
    of_rows = (tensor.reshape(-1).contiguous() for tensor in (lse, entropy, *upstream))
    call.run(_kernel, (*of_rows, strided(out)), in_place=in_place)
    return out


@triton.jit
def _kernel(
    inputs,
    smoothing: tl.float64,
    scale: tl.float64,
    softcap: tl.float64,
    z_loss: tl.float64,
    ignore_index: tl.int64,
    mean_weight,
    lse,
    entropy,
    d_log_prob,
    d_entropy,
    d_lse,
    out,
    SWITCHES: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    terms = terms_of(inputs, smoothing, scale, softcap, z_loss, ignore_index, mean_weight)
    at = read_labels(inputs, terms, tl.program_id(0), ROWS)
    found_lse = tl.load(lse + at.g, mask=at.inside, other=0.0)
    # In two numbers of the width of the logits, so that no digit of the log-sum-exp is lost.
    reference = found_lse.to(WIDE)
    rest = (found_lse - reference.to(tl.float64)).to(WIDE)
    of_label = tl.load(d_log_prob + at.g, mask=at.readable, other=0.0).to(tl.float64)
    plain = (tl.load(d_lse + at.g, mask=at.inside, other=0.0).to(tl.float64) - of_label).to(WIDE)
    sloped = tl.load(d_entropy + at.g, mask=at.inside, other=0.0).to(WIDE)
    shift = tl.load(entropy + at.g, mask=at.inside, other=0.0).to(WIDE)
    for start in range(0, inputs.classes, BLOCK):
        j = start + tl.arange(0, BLOCK)
        mask = at.inside[:, None] & (j < inputs.classes)[None, :]
        z, derivative = transform(load(logits_of(inputs), inputs, at.g, j, mask, WIDE), terms, SWITCHES)
        log_q = (z - reference[:, None]) - rest[:, None]
        shifted = tl.where(log_q == float("-inf"), 0.0, log_q + shift[:, None])
        gradient = exp(log_q) * (plain[:, None] - sloped[:, None] * shifted)
        gradient += tl.where(j[None, :] == at.label[:, None], of_label.to(WIDE)[:, None], 0.0)
        if SWITCHES.capped:
            gradient *= derivative
        elif SWITCHES.scaled:
            gradient *= terms.scale.to(WIDE)
        store(out, inputs, at.g, j, gradient, mask)
