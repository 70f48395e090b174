"""A Lightning module trained with and without deferred logits: the same curve, from the same training_step.

    python examples/lightning_training.py [--short]

The module calls `F.cross_entropy` on the logits of its model, as modules do. `defer_logits(module, "head")` is all that
changes. The text is the standard library that runs this file; nothing is downloaded. Takes about a minute on two cores.
"""

from __future__ import annotations

import re
import sys
import sysconfig
import warnings
from collections import Counter
from pathlib import Path

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from xent.torch.deferred import defer_logits

SHORT = "--short" in sys.argv
VOCABULARY, CONTEXT, BATCH, STEPS = (2000, 32, 4, 4) if SHORT else (32000, 128, 8, 30)


def text() -> Tensor:
    """The standard library as rows of word numbers: the most frequent words in order, 0 for every other one."""
    folder = Path(sysconfig.get_path("stdlib"))
    source = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*.py"))[:80])
    words = re.findall(r"\w+|[^\w\s]+|\s+", source)
    known = {word: number for number, (word, _) in enumerate(Counter(words).most_common(VOCABULARY - 1), start=1)}
    numbers = torch.tensor([known.get(word, 0) for word in words])
    return numbers[: len(numbers) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)


class Module(lightning.LightningModule):
    """A recurrent language model and its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.body = nn.Embedding(VOCABULARY, 128), nn.GRU(128, 128, batch_first=True)
        self.head = nn.Linear(128, VOCABULARY)
        self.losses: list[float] = []

    def forward(self, words: Tensor) -> Tensor:
        """The logits of the next word."""
        return self.head(self.body(self.words(words))[0])

    def training_step(self, rows: Tensor) -> Tensor:
        """Cross-entropy of the next word, in torch's words."""
        logits = self(rows[:, :-1])
        loss = F.cross_entropy(logits.reshape(-1, VOCABULARY), rows[:, 1:].reshape(-1))
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def train(rows: Tensor, *, deferred: bool) -> list[float]:
    """The losses of all steps."""
    torch.manual_seed(0)
    module = Module()
    if deferred:
        defer_logits(module, "head", workspace="16MB")
    trainer = lightning.Trainer(
        max_steps=STEPS, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(rows, batch_size=BATCH))  # type: ignore[arg-type]
    return module.losses


def main() -> None:
    """Train both ways and compare."""
    warnings.filterwarnings("ignore", module="lightning")
    rows = text()
    plain, ours = train(rows, deferred=False), train(rows, deferred=True)
    for name, losses in (("ordinary", plain), ("deferred", ours)):
        print(f"{name} logits: loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")
    print(f"the curves are at most {max(abs(a - b) for a, b in zip(plain, ours, strict=True)):.1e} nats apart")


if __name__ == "__main__":
    main()
