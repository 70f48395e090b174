"""What holds the parts of the report of `xent why` together: one row that goes through all of them, and a sentence to
take away from each with the Python that computes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from xent.names import shown_name
from xent.report.numbers import count, magnitude
from xent.why.losses import gradient_lengths, losses_of_rows

EXAMPLE = (0.6, 0.2, 0.2)
"""The prediction that goes through the parts of a report without rows; its label is the last class."""

TAKE_AWAY: dict[str, tuple[str, tuple[str, ...]]] = {
    "punishment": (
        "Cross-entropy charges for a wrong answer without limit; squared error charges 2 at most.",
        (
            "import xent",
            "xent.numpy.cross_entropy([-4.0, 4.0, -1.0], 0)  # 8.0070 nats",
            "xent.numpy.squared_error([-4.0, 4.0, -1.0], 0)  # 1.9854",
        ),
    ),
    "train": (
        "The gradient of cross-entropy is q − p, as large as the mistake; that of squared error is multiplied by q "
        "again, and vanishes where the mistake is largest.",
        (
            "import numpy as np, xent",
            "loss, gradient = xent.numpy.cross_entropy_value_and_grad([-4.0, 4.0, -1.0], 0)",
            "np.linalg.norm(gradient)  # 1.4090",
        ),
    ),
    "information": (
        "Cross-entropy is the mean length of a message in a code made for q: the entropy, which no code saves, and the "
        "divergence, which a better q saves.",
        (
            "from xent.information import cross_entropy, entropy, kl_divergence",
            "p, q = [1/2, 1/4, 1/8, 1/8], [1/8, 1/2, 1/4, 1/8]",
            "entropy(p, base=2) + kl_divergence(p, q, base=2)  # 2.3750 bits, as cross_entropy(p, q, base=2)",
        ),
    ),
    "likelihood": (
        "Minimum cross-entropy is maximum likelihood: the same sum of logarithms, once divided by the number of rows, "
        "once not.",
        (
            "from xent.likelihood import negative_log_likelihood",
            "labels, q = [0] * 13 + [1] * 7, [[0.65, 0.35]] * 20",
            "negative_log_likelihood(labels, q) / 20  # 0.6474 nats, the entropy of the frequencies",
        ),
    ),
    "race": (
        "Compare losses at their own best learning rates, on rows that were used for no choice, over several seeds; "
        "then believe the result, whichever it is.",
        (
            "from xent.why import Settings, load, run",
            'record = run(load("iris"), Settings().quick())',
            "record.comparisons",
        ),
    ),
}
"""For each part: a sentence, and three lines of Python with their results as comments, which a test checks."""


def followed(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the row that the report follows: the most disputed one. None in a record without rows."""
    examples = record.get("examples")
    rows = examples["rows"] if examples else []
    return next((row for row in rows if row["kind"] == "disputed"), rows[0] if rows else None)


def thread(record: Mapping[str, Any]) -> dict[str, Markup]:
    """Return what each part says of the row that goes through all of them."""
    row = followed(record)
    return _of_example() if row is None else _of_row(record, row)


def _of_row(record: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Markup]:
    start, by_ce, by_se = row["start"], row["by_cross_entropy"], row["by_squared_error"]
    label = shown_name(record["data"]["classes"][row["label"]], 40)
    rows = count(record["likelihood"]["rows"])
    nats = by_ce["cross_entropy_nats"]
    favourite = max(zip(start["probabilities"], row["classes"], strict=True), key=lambda pair: pair[0] or 0.0)[1]
    is_wrong = favourite != row["label"]
    side = "on the wrong side, as the ringed points are here" if is_wrong else "on the right side already"
    name = Markup("<b>Row {}, of class {}.</b> ").format(count(row["row"]), label)
    return {
        "punishment": name
        + Markup(
            "It is the row that both networks dispute most. At their confidently wrong start they gave its label {q}: "
            "{ce} nats by cross-entropy, and {se} by squared error."
        ).format(
            q=_probability(row, start), ce=_nats(start["cross_entropy_nats"]), se=magnitude(start["squared_error"])
        ),
        "train": name
        + Markup(
            "At that start it was {side}. Its gradient by the logits was {ce} long for cross-entropy and {se} for "
            "squared error."
        ).format(
            side=side, ce=magnitude(start["cross_entropy_gradient"]), se=magnitude(start["squared_error_gradient"])
        ),
        "information": name
        + Markup(
            "Its label is one-hot, with entropy 0. Trained with cross-entropy the network gave it {q}: that is {bits} "
            "bits of surprise, of cross-entropy and of divergence alike."
        ).format(q=_probability(row, by_ce), bits=_nats(None if nats is None else nats / np.log(2))),
        "likelihood": name
        + Markup(
            "It is one factor of the likelihood of {rows} rows, {q}; and one term of the log-likelihood, {log} nats."
        ).format(rows=rows, q=_probability(row, by_ce), log=_nats(None if nats is None else -nats)),
        "race": name
        + Markup(
            "At the end of the race its label has {ce} by cross-entropy and {se} by squared error. It is one test row "
            "of {n}."
        ).format(ce=_probability(row, by_ce), se=_probability(row, by_se), n=count(record["data"]["rows_test"])),
    }


def _probability(row: Mapping[str, Any], prediction: Mapping[str, Any]) -> Markup | str:
    """Return the probability that a prediction gives to the row's label."""
    return magnitude(prediction["probabilities"][row["classes"].index(row["label"])])


def _nats(value: float | None) -> Markup | str:
    return "infinitely many" if value is None else magnitude(value)


def _of_example() -> dict[str, Markup]:
    """Return the texts about a worked example."""
    logits, label = np.log([EXAMPLE]), np.array([len(EXAMPLE) - 1])
    nats, squared = (float(losses_of_rows(loss, logits, label)[0]) for loss in ("cross-entropy", "squared error"))
    ce_length, se_length = (float(length[0]) for length in gradient_lengths(logits, label))
    q = EXAMPLE[-1]
    name = Markup("<b>The prediction ({}), of class 3.</b> ").format(", ".join(map(str, EXAMPLE)))
    sentences = {
        "punishment": f"It gave its label {q}: {nats:.4f} nats by cross-entropy, and {squared:.4f} by squared error.",
        "train": f"Its gradient is {ce_length:.3f} long for cross-entropy and {se_length:.3f} for squared error.",
        "information": (
            f"Its label is one-hot, with entropy 0: {nats / np.log(2):.4f} bits of surprise, of cross-entropy and of "
            "divergence alike."
        ),
        "likelihood": f"Its factor of a likelihood is {q}, and its term of a log-likelihood −{nats:.4f} nats.",
        "race": "The experiment trains on rows like it by the hundred, with either loss.",
    }
    return {part: name + text for part, text in sentences.items()}
