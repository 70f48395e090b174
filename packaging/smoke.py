"""Call everything public once, with the xent that is installed: functions against known numbers, and each command.

    python packaging/smoke.py

Nothing of a checkout is used. A part whose extra is not installed has to say so in one line, with the command that
installs it; everything else is called. A public name that is not called here is a failure.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

P, Q = [0.0, 0.0, 1.0], [0.6, 0.2, 0.2]
HALF, FIFTH = math.log(2), math.log(5)
X = np.zeros((4, 2))
Y = np.array([0, 1, 0, 1])
HIDDEN, WEIGHT = np.ones((4, 3)), np.zeros((2, 3))
PROBA = np.array([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1], [0.4, 0.6]])
PROBA_LOSS = -math.log(0.5 * 0.8 * 0.9 * 0.6) / 4

Calls = Mapping[str, Callable[[Any], Any]]
"""Names of a module, and what each is called with: an expression that is true, given the module."""


def near(found: Any, wanted: Any) -> bool:
    """Whether numbers agree to 1e-6, which float32 does."""
    return bool(np.allclose(np.asarray(found, dtype=float), wanted, rtol=1e-6, atol=1e-6))


def require(condition: Any, otherwise: str) -> None:
    """Stop with this text unless the condition holds."""
    if not condition:
        raise SystemExit(f"smoke.py: {otherwise}")


INFORMATION: Calls = {
    "cross_entropy": lambda m: near(m.cross_entropy(P, Q), FIFTH),
    "entropy": lambda m: near(m.entropy([0.5, 0.5], base=2), 1),
    "information_content": lambda m: near(m.information_content(0.5), HALF),
    "js_divergence": lambda m: near(m.js_divergence(P, P), 0),
    "kl_divergence": lambda m: near(m.kl_divergence(P, Q), FIFTH),
    "log_softmax": lambda m: near(m.log_softmax(X), -HALF),
    "one_hot": lambda m: near(m.one_hot(Y, 2)[:, 1], Y),
    "perplexity": lambda m: near(m.perplexity(P, Q), 5),
    "softmax": lambda m: near(m.softmax(X), 0.5),
}
LIKELIHOOD: Calls = {
    "Likelihood": lambda m: near(m.Likelihood(0.0, 1.0, 0).log, 0),
    "likelihood": lambda m: near(m.likelihood(Y, PROBA).log, -4 * PROBA_LOSS),
    "log_likelihood": lambda m: near(m.log_likelihood(Y, PROBA), -4 * PROBA_LOSS),
    "negative_log_likelihood": lambda m: near(m.negative_log_likelihood(Y, PROBA, reduction="mean"), PROBA_LOSS),
}
NUMPY: Calls = {
    "cross_entropy": lambda m: near(m.cross_entropy(X.astype(np.float32), Y), HALF),
    "cross_entropy_value_and_grad": lambda m: near(m.cross_entropy_value_and_grad(X, Y)[1][0], [-0.125, 0.125]),
    "linear_cross_entropy": lambda m: near(m.linear_cross_entropy(HIDDEN, WEIGHT, Y), HALF),
    "linear_cross_entropy_value_and_grad": lambda m: near(
        m.linear_cross_entropy_value_and_grad(HIDDEN, WEIGHT, Y)[1].linear_weight, 0
    ),
    "linear_statistics": lambda m: near(m.linear_statistics(HIDDEN, WEIGHT, Y).entropy, HALF),
    "squared_error": lambda m: near(m.squared_error(X, Y), 0.5),
    "squared_error_value_and_grad": lambda m: near(m.squared_error_value_and_grad(X, Y)[1][0], [-0.125, 0.125]),
    "Gradients": lambda m: "linear_weight" in m.Gradients._fields,
    "Statistics": lambda m: "log_prob" in m.Statistics._fields,
}
SCORING: Calls = {
    "score": lambda m: near(m.score(PROBA, Y).cross_entropy.nats, PROBA_LOSS),
    "compare": lambda m: near(
        m.compare(frame(PROBA), frame(PROBA), id="row", label="y", proba="p*").difference.nats, 0
    ),
    "Comparison": lambda m: isinstance(m.Comparison, type),  # returned by `compare`
    "Score": lambda m: isinstance(m.score(PROBA, Y), m.Score),
    "ScoreState": lambda m: near(m.ScoreState.from_batch(Y, PROBA).finalize().cross_entropy.nats, PROBA_LOSS),
}


def frame(proba: Any) -> Any:
    """A table of predictions."""
    import polars

    return polars.DataFrame({"row": range(4), "y": Y, "p0": proba[:, 0], "p1": proba[:, 1]})


def scikit_learn() -> Calls:
    """Metric and scorers, of a classifier that knows the frequencies alone."""
    from sklearn.dummy import DummyClassifier

    model = DummyClassifier(strategy="prior").fit(X, Y)
    return {
        "log_loss": lambda m: near(m.log_loss(Y, PROBA), PROBA_LOSS),
        "neg_log_loss": lambda m: near(m.neg_log_loss(model, X, Y), -HALF),
        "neg_brier_score": lambda m: near(m.neg_brier_score(model, X, Y), -0.5),
        "explained_log_loss": lambda m: near(m.explained_log_loss(model, X, Y), 0),
    }


def tensors() -> tuple[Any, Any, Any, Any]:
    """Logits, labels, and a layer's input and weight."""
    import torch

    return tuple(torch.from_numpy(array) for array in (X, Y, HIDDEN, WEIGHT))  # type: ignore[return-value]


def torch_calls() -> Calls:
    """The torch front."""
    x, y, hidden, weight = tensors()

    def differentiated(m: Any) -> bool:
        leaf = x.clone().requires_grad_()
        m.cross_entropy(leaf, y).backward()
        return near(leaf.grad[0], [-0.125, 0.125])

    return {
        "cross_entropy": differentiated,
        "CrossEntropyLoss": lambda m: near(m.CrossEntropyLoss()(x, y), HALF),
        "LinearCrossEntropyLoss": lambda m: m.LinearCrossEntropyLoss(3, 2)(hidden.float(), y).item() > 0,
        "linear_cross_entropy": lambda m: near(m.linear_cross_entropy(hidden, weight, y), HALF),
        "linear_statistics": lambda m: near(m.linear_statistics(hidden, weight, y).entropy, HALF),
        "statistics": lambda m: near(m.statistics(x, y).log_prob, -HALF),
        "Statistics": lambda m: isinstance(m.statistics(x, y), m.Statistics),
    }


def parallel_calls() -> Calls:
    """The sharded losses, in a group of one process."""
    from torch import distributed as dist

    x, y, hidden, weight = tensors()
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=vars(dist)["HashStore"](), rank=0, world_size=1)
    return {
        "cross_entropy": lambda m: near(m.cross_entropy(x, y), HALF),
        "linear_cross_entropy": lambda m: near(m.linear_cross_entropy(hidden, weight, y), HALF),
        "linear_statistics": lambda m: near(m.linear_statistics(hidden, weight, y).entropy, HALF),
        "statistics": lambda m: near(m.statistics(x, y).log_prob, -HALF),
        "traffic": lambda m: m.traffic().forward_per_row > 0,
        "Traffic": lambda m: isinstance(m.traffic(), m.Traffic),
    }


def deferred_calls() -> Calls:
    """A model whose logits are never made."""
    import torch

    x, y, _, _ = tensors()
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))

    def loss(m: Any) -> bool:
        before = torch.nn.functional.cross_entropy(model(x.float()), y).item()
        m.defer_logits(model, "0")
        logits = model(x.float())
        return isinstance(logits, m.DeferredLogits) and near(
            torch.nn.functional.cross_entropy(logits, y).item(), before
        )

    return {
        "defer_logits": loss,
        "DeferredLogits": lambda m: True,  # checked above
        "DeferredLinear": lambda m: isinstance(model[0], m.DeferredLinear),
        "restore_logits": lambda m: not isinstance(m.restore_logits(model)[0], m.DeferredLinear),
    }


PARTS: dict[str, tuple[str, str, Callable[[], Calls]]] = {
    "xent.information": ("", "", lambda: INFORMATION),
    "xent.likelihood": ("", "", lambda: LIKELIHOOD),
    "xent.numpy": ("", "", lambda: NUMPY),
    "xent.scoring": ("polars", "cli", lambda: SCORING),
    "xent.scoring.sklearn": ("polars", "cli", scikit_learn),
    "xent.torch": ("torch", "torch", torch_calls),
    "xent.torch.parallel": ("torch", "torch", parallel_calls),
    "xent.torch.deferred": ("torch", "torch", deferred_calls),
}
"""For each module the package that it needs, the extra that has it, and the calls."""


def try_part(name: str) -> str:
    """Call all names of a module, or see that it names its extra; return what was done."""
    package, extra, calls = PARTS[name]
    if package and importlib.util.find_spec(package) is None:
        try:
            importlib.import_module(name)
        except ImportError as error:
            text = str(error)
            require(f"pip install 'xent[{extra}]'" in text and "\n" not in text, f"{name}: {text}")
            return f"says: {text}"
        raise SystemExit(f"smoke.py: {name} was imported without {package}")
    module, expressions = importlib.import_module(name), calls()
    require(set(module.__all__) == set(expressions), f"{name}: not tried {set(module.__all__) ^ set(expressions)}")
    for called, expression in expressions.items():
        require(expression(module), f"{name}.{called} is wrong")
    return f"{len(expressions)} names"


def run(*arguments: str) -> str:
    """Return what a command prints."""
    command = [sys.executable, "-m", "xent", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    require(done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout


def try_commands(folder: Path) -> None:
    """Each command with a small table, and the files that it writes."""
    if importlib.util.find_spec("typer") is None:
        done = subprocess.run([sys.executable, "-m", "xent"], check=False, capture_output=True, text=True)
        require(done.returncode == 2 and "pip install 'xent[cli]'" in done.stderr, done.stderr)
        print(f"{'xent':24} says: {done.stderr.strip()}")
        return
    import xent

    require(run("--version").strip() == f"xent {xent.__version__}", "the version of the command")
    require(json.loads(run("doctor", "--json"))["versions"]["xent"] == xent.__version__, "the version in xent doctor")
    print(run("doctor"))
    table = folder / "predictions.parquet"
    frame(PROBA).write_parquet(table)
    record, page = folder / "score.json", folder / "score.html"
    run("score", str(table), "--label", "y", "--proba", "p*", "--json", str(record), "--html", str(page))
    require(
        near(json.loads(record.read_text())["figures"]["cross_entropy_nats"]["value"], PROBA_LOSS),
        "the record of xent score",
    )
    require("<html" in page.read_text(encoding="utf-8"), "the report of xent score")
    run("compare", str(table), str(table), "--id", "row", "--label", "y", "--proba", "p*")
    run("why", "iris", "--quick", "--epochs", "3", "--out", str(folder))
    require("<html" in (folder / "why.html").read_text(encoding="utf-8"), "the report of xent why")
    run("why", "--predictions", str(table), "--label", "y", "--proba", "p*", "--out", str(folder))
    require((folder / "predictions.html").exists(), "the report of xent why --predictions")
    require("--threads" in run("bench", "--help"), "the help of xent bench")
    print(f"{'xent':24} score, compare, why, doctor, --help, --version")


def main() -> None:
    """Try all parts and commands, and print what was called."""
    import xent

    where = Path(xent.__file__).parent
    print(f"xent {xent.__version__} in {where}")
    require((where / "py.typed").is_file(), "the package has no type information")
    for name in PARTS:
        print(f"{name:24} {try_part(name)}")
    with tempfile.TemporaryDirectory() as folder:
        try_commands(Path(folder))


if __name__ == "__main__":
    main()
