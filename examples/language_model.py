"""A language model trained on Python's own library, with torch's loss and with ours: same curve, less memory and time.

    python examples/language_model.py [FOLDER] [--steps N]

A small transformer (torch.nn, 4 million numbers, its embedding is also its last layer) learns to continue Python
source: the text is the standard library that runs this file, and nothing is downloaded. Each loss trains the same
model from the same start in a process of its own. Then both curves, the seconds of a step, and the memory of the
process during one step are compared on the terminal and in FOLDER/language_model.svg. Takes about a minute on two
cores.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import sysconfig
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

VOCABULARY, WIDTH, CONTEXT, BATCH, STEPS = 32768, 128, 128, 12, 30
COLORS = {"F.cross_entropy(F.linear)": "#c2571a", "xent.torch.linear_cross_entropy": "#0b6e99"}
PLAIN, OURS = COLORS


def tokens() -> list[int]:
    """The standard library as word numbers: the most frequent words in order, 0 for every other one."""
    folder = Path(sysconfig.get_path("stdlib"))
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*.py")))
    words = re.findall(r"\w+|[^\w\s]+|\s+", text)
    known = {word: number for number, (word, _) in enumerate(Counter(words).most_common(VOCABULARY - 1), start=1)}
    return [known.get(word, 0) for word in words]


def language_model() -> Any:
    """Embedding, two transformer layers that look back only, and the embedding again (`words`), untrained."""
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
            nn.init.normal_(self.words.weight, std=WIDTH**-0.5)
            layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, batch_first=True, norm_first=True)
            self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
            self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

        def forward(self, words: torch.Tensor) -> torch.Tensor:
            hidden = self.words(words) + self.places.weight
            return self.layers(hidden, mask=self.mask, is_causal=True)

    return Model()


def train(name: str, steps: int) -> dict[str, Any]:
    """Train with one of the losses; return its curve, the seconds of each step, and the memory during one step."""
    import torch
    from torch import nn

    from xent.torch import linear_cross_entropy

    def plain(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(nn.functional.linear(hidden, weight).flatten(0, 1), target.flatten())

    def ours(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy(hidden, weight, target, workspace="32MB")

    torch.manual_seed(0)
    loss_of, text, model = {PLAIN: plain, OURS: ours}[name], torch.tensor(tokens()), language_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    places = torch.randint(len(text) - CONTEXT - 1, (steps + 2, BATCH))

    def step(number: int) -> float:
        batch = text[places[number, :, None] + torch.arange(CONTEXT + 1)]
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model(batch[:, :-1]), model.words.weight, batch[:, 1:])
        loss.backward()
        optimizer.step()
        return loss.item()

    first = step(steps)  # compiles and loads; both losses take it
    losses, seconds = [first], []
    for number in range(steps):
        start = time.perf_counter()
        losses.append(step(number))
        seconds.append(time.perf_counter() - start)
    memory = Memory()
    with memory:
        step(steps + 1)
    return {"name": name, "losses": losses, "seconds": seconds, "memory": memory.samples}


class Memory:
    """While it is open: (seconds, megabytes above the start) of this process, every two milliseconds."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        start, before = time.perf_counter(), resident()
        while not self.done.wait(0.002):
            self.samples.append((time.perf_counter() - start, resident() - before))


def resident() -> float:
    """Megabytes of memory that this process holds, where the system tells it (Linux), else 0."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    except OSError:
        return 0.0
    return pages * 4096 / 1e6


def in_own_process(name: str, steps: int) -> dict[str, Any]:
    """Run `train` in a process of its own."""
    print(f"training with {name} ...", flush=True)
    done = subprocess.run(
        [sys.executable, __file__, "--train", name, "--steps", str(steps)], capture_output=True, text=True
    )
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """Memory against time of one step, and the two curves."""
    import altair as alt
    import vl_convert

    scale = alt.Scale(domain=list(COLORS), range=list(COLORS.values()))
    color = alt.Color("loss:N", title=None, scale=scale, legend=alt.Legend(orient="bottom", labelLimit=300))

    def lines(points: list[dict[str, Any]], x: str, y: str, title: str, **marks: Any) -> Any:
        base = alt.Chart(alt.InlineData(values=points), title=title).mark_line(**marks)
        x_axis, y_axis = alt.X("x:Q", title=x), alt.Y("y:Q", title=y, scale=alt.Scale(zero=False))
        return base.encode(
            x=x_axis, y=y_axis, color=color, strokeDash=alt.StrokeDash("loss:N", legend=None, scale=scale_of)
        )

    scale_of = alt.Scale(domain=list(COLORS), range=[[1, 0], [6, 4]])
    memory = [{"loss": r["name"], "x": t, "y": mb} for r in runs for t, mb in r["memory"]]
    curves = [{"loss": r["name"], "x": i, "y": loss} for r in runs for i, loss in enumerate(r["losses"])]
    chart = alt.hconcat(
        lines(memory, "seconds since the step began", "megabytes above the start", "Memory during one step"),
        lines(curves, "step", "loss (nats per word)", "The curve: one lies upon the other"),
    )
    chart = chart.configure(background="white", font="Helvetica, Arial, sans-serif", padding=12)
    path.write_text(vl_convert.vegalite_to_svg(chart.to_dict()) + "\n", encoding="utf-8")


def main(folder: Path, steps: int) -> None:
    """Train with both losses, compare, and draw."""
    runs = [in_own_process(name, steps) for name in COLORS]
    apart = max(abs(a - b) for a, b in zip(runs[0]["losses"], runs[1]["losses"], strict=True))
    for run in runs:
        median = sorted(run["seconds"])[len(run["seconds"]) // 2]
        peak = max((mb for _, mb in run["memory"]), default=0.0)
        first, last = run["losses"][0], run["losses"][-1]
        print(f"{run['name']:32} loss {first:.3f} -> {last:.3f}, {1e3 * median:.0f} ms a step, peak {peak:.0f} MB")
    print(f"the curves are at most {apart:.1e} nats apart")
    folder.mkdir(parents=True, exist_ok=True)
    plot(runs, folder / "language_model.svg")
    print(f"written: {folder / 'language_model.svg'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent, help="where the plot goes")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training")
    parser.add_argument("--train", choices=list(COLORS), help="train with one loss in this process, and print JSON")
    given = parser.parse_args()
    if given.train:
        print(json.dumps(train(given.train, given.steps)))
    else:
        main(given.folder, given.steps)
