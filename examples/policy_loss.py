"""A policy trained by reinforcement learning in the manner of GRPO, on log-probabilities without logits.

    python examples/policy_loss.py [--steps 60]

For each of a few prompts the policy writes a group of answers. An answer's advantage is its reward measured against the
others of its group. With the log-probability of each token under the policy now, when it was sampled, and under a
frozen reference, the loss of a token is

    -min(r * A, clip(r, 1 - e, 1 + e) * A) + beta * kl - gamma * entropy,    r = exp(log p - log p_sampled)
    kl = exp(log p_reference - log p) - (log p_reference - log p) - 1

`linear_statistics` gives log p and the entropy, both with gradients, in a fixed workspace: the logits of 8000 classes
for all tokens of all answers never exist while training. Here an answer is rewarded for its share of small even words.
Takes about half a minute on two cores.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
from torch import Tensor, nn

from xent.torch import linear_statistics

CLASSES, WIDTH, PROMPTS, GROUP, LENGTH = 8000, 32, 8, 16, 6
CLIP, BETA, GAMMA = 0.2, 0.02, 1e-3


class Policy(nn.Module):
    """The next word from the last one and the place; a plain tensor is the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(CLASSES, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.mix = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.LayerNorm(WIDTH))
        self.head = nn.Parameter(torch.randn(CLASSES, WIDTH) * WIDTH**-0.5)

    def forward(self, words: Tensor) -> Tensor:
        """Hidden states (answers, LENGTH, WIDTH)."""
        return self.mix(self.words(words) + self.places.weight)


class Answers(NamedTuple):
    """What was read before each word, and the words that were written; (answers, LENGTH)."""

    read: Tensor
    written: Tensor


@torch.no_grad()
def sample(policy: Policy, prompts: Tensor) -> Answers:
    """Write a group of answers to each prompt, word by word."""
    read = torch.zeros(len(prompts) * GROUP, LENGTH, dtype=torch.long)
    written = torch.empty_like(read)
    read[:, 0] = prompts.repeat_interleave(GROUP)
    for place in range(LENGTH):
        logits = policy(read)[:, place] @ policy.head.T
        written[:, place] = torch.multinomial(logits.softmax(dim=1), 1)[:, 0]
        if place + 1 < LENGTH:
            read[:, place + 1] = written[:, place]
    return Answers(read, written)


def reward(answers: Answers) -> Tensor:
    """The share of even words, small ones counting more."""
    even = (answers.written % 2 == 0).float()
    return (even * (1 + (answers.written < CLASSES // 2))).mean(dim=1)


def statistics(policy: Policy, answers: Answers) -> tuple[Tensor, Tensor]:
    """Log-probability of each written word, and the entropy of the choice."""
    found = linear_statistics(policy(answers.read), policy.head, answers.written, workspace="16MB")
    return found.log_prob, found.entropy


def policy_loss(policy: Policy, answers: Answers, advantage: Tensor, sampled: Tensor, reference: Tensor) -> Tensor:
    """The mean over all tokens of the loss at the top of this file."""
    log_prob, entropy = statistics(policy, answers)
    ratio = (log_prob - sampled).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
    behind = reference - log_prob
    kl = behind.exp() - behind - 1
    return (-gain + BETA * kl - GAMMA * entropy).mean()


def main(steps: int) -> None:
    """Train, and print the mean reward."""
    torch.manual_seed(0)
    policy, frozen = Policy(), Policy()
    frozen.load_state_dict(policy.state_dict())
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-2)
    first = None
    for step in range(steps):
        answers = sample(policy, torch.arange(PROMPTS))
        rewards = reward(answers).view(PROMPTS, GROUP)
        deviation = rewards.std(dim=1, keepdim=True)
        advantage = ((rewards - rewards.mean(dim=1, keepdim=True)) / (deviation + 1e-4)).view(-1, 1)
        with torch.no_grad():
            sampled, entropy = statistics(policy, answers)
            reference, _ = statistics(frozen, answers)
        for _ in range(2):  # two updates for each batch of answers: from the second on the ratio is not 1
            optimizer.zero_grad()
            policy_loss(policy, answers, advantage, sampled, reference).backward()
            optimizer.step()
        first = rewards.mean().item() if first is None else first
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step:3d}   reward {rewards.mean():.3f}   entropy {entropy.mean():.2f} nats", flush=True)
    print(f"mean reward {first:.3f} before and {rewards.mean():.3f} after")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    main(parser.parse_args().steps)
