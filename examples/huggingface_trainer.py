"""A Hugging Face model trained by `Trainer`, with and without deferred logits: the same curve, less memory.

    python examples/huggingface_trainer.py [--short]

One line is added, `defer_logits(model)`; model, Trainer and arguments are those of any other program. The model is a
small Llama made from its configuration, the text is the standard library that runs this file; nothing is downloaded.
Each way runs in a process of its own, so that its memory can be told. Takes about a minute on two cores.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
CONTEXT, BATCH, ACCUMULATE = 128, 8, 2


def texts(vocabulary: int) -> list[list[int]]:
    """The standard library as rows of word numbers: the most frequent words in order, 0 for every other one."""
    folder = Path(sysconfig.get_path("stdlib"))
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*.py"))[:80])
    words = re.findall(r"\w+|[^\w\s]+|\s+", text)
    known = {word: number for number, (word, _) in enumerate(Counter(words).most_common(vocabulary - 1), start=1)}
    numbers = [known.get(word, 0) for word in words]
    return [numbers[start : start + CONTEXT] for start in range(0, len(numbers) - CONTEXT, CONTEXT)]


def train(deferred: bool, short: bool) -> dict[str, Any]:
    """Train for a few steps; return the losses, and the megabytes at the peak above those before the training."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

    from xent.torch.deferred import defer_logits

    set_seed(0)
    vocabulary = 2000 if short else 32000
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=CONTEXT, tie_word_embeddings=True,
        )
    )  # fmt: skip
    if deferred:
        defer_logits(model, workspace="16MB")
    rows = [{"input_ids": row, "labels": row} for row in texts(vocabulary)]

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        return {name: torch.tensor([row[name] for row in batch]) for name in batch[0]}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=BATCH, gradient_accumulation_steps=ACCUMULATE,
            max_steps=3 if short else 8, learning_rate=2e-3, logging_steps=1, report_to=[], save_strategy="no",
            use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
        before = memory("VmRSS")
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"losses": [float(loss) for loss in losses], "megabytes": memory("VmHWM") - before}


def memory(name: str) -> float:
    """Megabytes that this process holds (VmRSS) or held at most (VmHWM), where the system tells it (Linux), else 0."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) / 1e3  # type: ignore[index]


def in_own_process(way: str, short: list[str]) -> dict[str, Any]:
    """Run `train` in a process of its own."""
    print(f"training with {way} logits ...", flush=True)
    command = [sys.executable, __file__, "--train", way, *short]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(short: list[str]) -> None:
    """Train both ways and compare."""
    runs = {way: in_own_process(way, short) for way in ("ordinary", "deferred")}
    for way, run in runs.items():
        first, last = run["losses"][0], run["losses"][-1]
        print(f"{way} logits: loss {first:.3f} -> {last:.3f}, peak {run['megabytes']:.0f} MB above the start")
    apart = max(abs(a - b) for a, b in zip(*(run["losses"] for run in runs.values()), strict=True))
    print(f"the curves are at most {apart:.1e} nats apart")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] == ["--train"]:
        print(json.dumps(train(arguments[1] == "deferred", "--short" in arguments)))
    else:
        main([argument for argument in arguments if argument == "--short"])
