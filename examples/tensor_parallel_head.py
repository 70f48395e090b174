"""A language model's last layer over two processes: each has half of its classes, and no logits cross the network.

    torchrun --nproc-per-node 2 examples/tensor_parallel_head.py [--steps 30]

The body of the model is the same on both ranks; the last layer is cut by its classes, unevenly. What the loss needs of
the other rank are three numbers for each token; the gradient of the hidden states is added up over the ranks, so the
body's gradients come out the same on both without another collective. Takes about twenty seconds on two cores.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch import nn

from xent.torch.parallel import linear_cross_entropy, traffic

CLASSES, WIDTH, ROWS = 50257, 64, 256


def main(steps: int) -> None:
    """Learn to continue a sequence in which every word has one successor."""
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # the same body, the same batches on every rank
    embedding = nn.Embedding(CLASSES, WIDTH)
    body = nn.Sequential(embedding, nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.LayerNorm(WIDTH))
    successor = torch.randperm(200)

    # This rank's rows of the last layer. Shards may be of any size, and follow each other in the order of the ranks.
    first, last = CLASSES * rank // ranks + 17 * (rank > 0), CLASSES * (rank + 1) // ranks + 17 * (rank + 1 < ranks)
    head = nn.Parameter(torch.randn(CLASSES, WIDTH)[first:last] * WIDTH**-0.5)

    optimizer = torch.optim.AdamW([*body.parameters(), head], lr=1e-2, weight_decay=0.0)
    for step in range(steps):
        words = torch.randint(0, 200, (ROWS,))
        loss = linear_cross_entropy(
            body(words), head, successor[words], group=dist.group.WORLD, label_smoothing=0.01, workspace="16MB"
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0 and step % 5 == 0:
            print(f"step {step:3d}   loss {loss.item():.3f} nats per token", flush=True)

    # The body has been trained in both processes, by gradients that were the same to the last bit.
    copies = [torch.empty_like(embedding.weight) for _ in range(ranks)]
    dist.all_gather(copies, embedding.weight.detach())
    assert all(torch.equal(copy, copies[0]) for copy in copies), "the ranks have drifted apart"
    if rank == 0:
        told = traffic(features=WIDTH)
        print(f"final loss {loss.item():.3f}; the body is the same on all {ranks} ranks")
        print(
            f"rank 0 holds {last - first} of {CLASSES} classes, and sends {told.sent_per_row(ranks):.0f} bytes per "
            f"token: {told.forward_per_row} for the loss and {told.backward_per_row} for the gradient of the hidden "
            f"state are handed to sums; its logits would be {4 * CLASSES}"
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    main(parser.parse_args().steps)
