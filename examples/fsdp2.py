"""FSDP2: the last layer is sharded between steps, gathered once in a step, and its loss is made without logits.

    torchrun --nproc-per-node 2 examples/fsdp2.py [--steps 20]

The loss belongs into the forward of the module that holds the weight: FSDP has gathered it there, as a plain tensor,
and takes its gradient from there. Called from outside, the weight would be a DTensor of which each rank has a part.
With `reshard_after_forward=False` the weight stays gathered until its gradient has been used: one all-gather in a
step, whatever the number of chunks. Each rank has rows of its own, some of them padding, and the mean is over the
tokens of all ranks. Takes about twenty seconds on two cores.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.profiler import profile

from xent.torch.parallel import linear_cross_entropy

CLASSES, WIDTH, ROWS, PADDING = 32000, 64, 256, -100


class LossHead(nn.Linear):
    """The last layer together with its loss."""

    def forward(self, hidden: Tensor, target: Tensor) -> Tensor:
        """Return this rank's share of the mean over the tokens of all ranks."""
        return linear_cross_entropy(hidden, self.weight, target, denominator="global", workspace="8MB")


class Model(nn.Module):
    """Words to hidden states to loss."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Embedding(200, WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.LayerNorm(WIDTH))
        self.head = LossHead(WIDTH, CLASSES, bias=False)

    def forward(self, words: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        return self.head(self.body(words), target)


def main(steps: int) -> None:
    """Learn to continue a sequence in which every word has one successor."""
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model, successor = Model(), torch.randperm(200)
    mesh = init_device_mesh("cpu", (ranks,))
    fully_shard(model.head, mesh=mesh, reshard_after_forward=False)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)

    torch.manual_seed(1 + rank)  # rows of its own
    for step in range(steps):
        words = torch.randint(0, 200, (ROWS,))
        target = successor[words].masked_fill(torch.rand(ROWS) < 0.3 * rank, PADDING)
        with profile() if step == steps - 1 else nullcontext() as seen:
            share = model(words, target)
            # FSDP divides the sum of the gradients by the number of ranks, the loss has its denominator already.
            (share * ranks).backward()
        optimizer.step()
        optimizer.zero_grad()
        loss = share.detach().clone()
        dist.all_reduce(loss)
        if rank == 0 and step % 5 == 0:
            print(f"step {step:3d}   loss {loss.item():.3f} nats per token", flush=True)

    if rank == 0:
        gathers = sum(event.name.startswith("c10d::") and "allgather" in event.name for event in seen.events())
        held = model.head.weight.to_local().shape[0]
        print(f"final loss {loss.item():.3f}; between steps a rank holds {held} of {CLASSES} classes")
        print(f"all-gathers in a step: {gathers}, one for the head and one for the rest of the model")
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    main(parser.parse_args().steps)
