"""The example's language model trained with exact, sampled, dropped and tile-filtered gradients of its last layer.

    python -m benchmarks.sampled_training METHOD WORDS SEED STEPS     one training, as JSON
    python -m benchmarks.sampled_training all [STEPS]                 those that the record lacks; writes it

Two models are trained: the example as it is, of 32768 words, and one of 8192 words with hidden states twice as wide.
Every method starts from the same weights and sees the same batches in the same order, for each of some seeds. Losses
are exact in all of them; what differs are the gradients that the last layer sends to hidden state and weight:

    exact     all entries of the gradient of the logits
    nudged    the same from weights that are apart by 2**-20 of themselves: how far apart equal trainings end
    sampled   entries below 2**-12 of the scale of their row rounded at random: gradient="sampled"
    dropped   the same entries left out
    tiles     tiles of 128 rows x 128 classes left out whose entries are all below 2**-12, as in Cut Cross-Entropy
              (Wijmans et al. 2024, section 4.3), whose blocks these are by default

The held-out loss is that of text that no training sees. With the exact gradient the first seed also measures, on a
batch of its own at some steps, how many entries are left and how wrong the gradients are, for several thresholds.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.processes import ROOT, answer_of
from xent.backends.cpu.threads import available_processors
from xent.bench import machine
from xent.bench.run import SCHEMA
from xent.linear.sampling import THRESHOLD

if TYPE_CHECKING:
    from torch import Tensor

METHODS = ("exact", "nudged", "sampled", "dropped", "tiles")
MODELS = {32768: 128, 8192: 256}
"""The width of the model by the number of its words."""
SEEDS = {32768: 5, 8192: 10}
STEPS, BATCH = 500, 4
"""Of 128 words each: 512 rows."""
EVERY, HELD_OUT = 50, 4
"""Steps between two measurements of the held-out loss, and its batches."""
MEASURED_AT = (0, 10, 50, 100, 200, 500)
THRESHOLDS = tuple(2.0**-k for k in (8, 10, 12, 14, 16))
TILE = 128
RECORD = ROOT / "benchmarks" / "results" / "cpu" / "sampled_training.json"


def example(words: int, width: int = 128) -> Any:
    """The example of the language model as a module, with as many words and as wide."""
    spec = importlib.util.spec_from_file_location("language_model", ROOT / "examples" / "language_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module).update(VOCABULARY=words, WIDTH=width)
    return module


def loss_of(method: str, hidden: Tensor, weight: Tensor, target: Tensor, step: int) -> Tensor:
    """The mean loss, whose gradients by hidden state and weight are those of the method."""
    from xent.torch import linear_cross_entropy

    if method in ("exact", "nudged"):
        return linear_cross_entropy(hidden, weight, target)
    if method == "sampled":
        return linear_cross_entropy(hidden, weight, target, gradient="sampled", seed=step)
    loss: Tensor = _filtered().apply(hidden.flatten(0, -2), weight, target.flatten(), method)
    return loss


def _filtered() -> Any:
    """The mean loss with a gradient of which a rule leaves small entries out."""
    import torch
    import torch.nn.functional as F

    class Filtered(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, rule: str) -> Tensor:
            logits = hidden @ weight.T
            ctx.save_for_backward(hidden, weight, left(rule, logits, target))
            return F.cross_entropy(logits, target)

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
            hidden, weight, gradient = ctx.saved_tensors
            gradient = gradient * (upstream / len(hidden))
            return gradient @ weight, gradient.T @ hidden, None, None

    return Filtered


def left(rule: str, logits: Tensor, target: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """softmax - one-hot without the entries that a rule leaves out; rows and classes are whole tiles."""
    import torch
    import torch.nn.functional as F

    gradient = logits.softmax(1)
    (rows, classes), own = gradient.shape, target[:, None]
    of_label = gradient.gather(1, own) - 1.0
    if rule == "dropped":
        return F.threshold(gradient, threshold, 0.0, inplace=True).scatter_(1, own, of_label)
    gradient.scatter_(1, own, of_label)
    tiles = gradient.view(rows // TILE, TILE, classes // TILE, TILE)
    keep = torch.maximum(tiles.amax((1, 3)), -tiles.amin((1, 3))) >= threshold
    tiles *= keep[:, None, :, None]
    return gradient


def train(method: str, words: int, seed: int, steps: int) -> dict[str, Any]:
    """Train; return the losses of all steps, and the held-out losses."""
    import torch

    torch.manual_seed(seed)
    source = example(words, MODELS[words])
    text, model = torch.tensor(source.tokens()), source.language_model()
    if method == "nudged":
        with torch.no_grad():
            for weight in model.parameters():
                weight *= 1 + 2.0**-20
    training, context = len(text) * 19 // 20, source.CONTEXT
    places = torch.randint(training - context - 1, (steps + 1, BATCH))
    held = training + torch.arange(HELD_OUT * BATCH).reshape(HELD_OUT, -1) * (
        (len(text) - training - context - 1) // (HELD_OUT * BATCH)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def batch(start: Tensor) -> tuple[Tensor, Tensor]:
        found = text[start[:, None] + torch.arange(context + 1)]
        return found[:, :-1], found[:, 1:]

    def held_out() -> float:
        with torch.no_grad():
            losses = [loss_of("exact", model(x), model.words.weight, y, 0) for x, y in map(batch, held)]
        return float(torch.stack(losses).mean())

    losses, of_held_out, measured = [], [(0, held_out())], []
    for step in range(steps + 1):
        if method == "exact" and seed == 0 and step in MEASURED_AT:
            measured.append({"step": step} | measure(model, *batch(places[steps])))
        if step == steps:
            break
        x, y = batch(places[step])
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(method, model(x), model.words.weight, y, step)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(round(loss.item(), 6))
        if (step + 1) % EVERY == 0:
            of_held_out.append((step + 1, round(held_out(), 6)))
    about = {"method": method, "words": words, "seed": seed, "processor": machine.processor()}
    return about | {"losses": losses, "held_out": of_held_out, "measured": measured}


def measure(model: Any, x: Tensor, y: Tensor) -> dict[str, Any]:
    """For each threshold: the share of entries left, and relative errors of the gradients of one batch."""
    import torch

    from xent.torch import GradientReport, linear_cross_entropy

    with torch.no_grad():
        hidden = model(x).flatten(0, 1)
    hidden, weight = hidden.requires_grad_(), model.words.weight.detach().requires_grad_()
    target = y.flatten()

    def gradients(**options: Any) -> list[Tensor]:
        loss = linear_cross_entropy(hidden, weight, target, **options)
        return list(torch.autograd.grad(loss, (hidden, weight)))

    exact = gradients()
    rows = []
    with torch.no_grad():
        logits = hidden @ weight.T
    noise = _noise(hidden, weight, target)
    for threshold in THRESHOLDS:
        report = GradientReport()
        found = {"sampled": gradients(gradient="sampled", seed=1, threshold=threshold, report=report)}
        row: dict[str, Any] = {"threshold": threshold, "density": report.density}
        for rule in ("dropped", "tiles"):
            gradient = left(rule, logits, target, threshold) / len(target)
            row[f"{rule} density"] = float((gradient != 0).float().mean())
            with torch.no_grad():
                found[rule] = [gradient @ weight, gradient.T @ hidden]
        for rule, pair in found.items():
            errors = [_apart(a, b) for a, b in zip(pair, exact, strict=True)]
            mean = _apart(pair[0].mean(0), exact[0].mean(0))
            row[rule] = {"input": errors[0], "mean over rows": mean, "weight": errors[1]}
        rows.append(row)
    return {"loss": float(torch.nn.functional.cross_entropy(logits, target)), "noise": noise, "thresholds": rows}


def _noise(hidden: Tensor, weight: Tensor, target: Tensor) -> float:
    """How far the gradients of the weight of two halves of the batch are from their mean, relative to that."""
    import torch

    from xent.torch import linear_cross_entropy

    halves = []
    for part in (slice(0, None, 2), slice(1, None, 2)):
        loss = linear_cross_entropy(hidden[part], weight, target[part])
        halves.append(torch.autograd.grad(loss, weight)[0])
    return _apart(halves[0], (halves[0] + halves[1]) / 2)


def _apart(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def run_all(steps: int, path: Path = RECORD) -> None:
    """Train with every method and seed, one process for each processor, and write the record after each training.

    Trainings of as many steps that the record has already are not repeated.
    """
    start, runs, earlier = time.perf_counter(), [], 0.0
    if path.exists() and (found := json.loads(path.read_text(encoding="utf-8")))["steps"] == steps:
        runs, earlier = found["runs"], found["seconds"]
    done = {(run["method"], run["words"], run["seed"]) for run in runs}
    wanted = [(method, words, seed) for words in MODELS for seed in range(SEEDS[words]) for method in METHODS]

    def one(method: str, words: int, seed: int) -> dict[str, Any]:
        arguments = (method, str(words), str(seed), str(steps))
        environment = {"OMP_NUM_THREADS": "1"}  # as many trainings at once as there are processors
        return answer_of("sampled_training", *arguments, description=" ".join(arguments), environment=environment)

    record = {"record": "xent bench sampled training", "schema": SCHEMA, "device": "cpu", "steps": steps}
    record |= machine.describe(f"python -m benchmarks.sampled_training all {steps}", 1)
    with ThreadPoolExecutor(available_processors()) as pool:
        for finished in as_completed([pool.submit(one, *which) for which in wanted if which not in done]):
            run = finished.result()
            runs.append(run)
            record |= {"seconds": round(earlier + time.perf_counter() - start, 1), "runs": runs}
            path.write_text(json.dumps(record) + "\n", encoding="utf-8")
            which = f"{run['words']} words, seed {run['seed']}, {run['method']}"
            print(f"{which}: held-out loss {run['held_out'][-1][1]:.4f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "all":
        run_all(int(sys.argv[2]) if len(sys.argv) > 2 else STEPS)
    else:
        print(json.dumps(train(sys.argv[1], *map(int, sys.argv[2:]))))
