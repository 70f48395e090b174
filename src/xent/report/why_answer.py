"""The answer of the report of `xent why` (two sentences, one paragraph, key figures), and facts about the data."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from xent.names import shown_name
from xent.report.numbers import count, magnitude, median, percent, plural, scientific, significant
from xent.report.why_tables import Comparison, headline, level_of, number, score, seeds_there, several_seeds

LONGEST_LIST = 120
MOST_CLASSES = 12
"""Classes named in the report; more are only counted."""


def facts(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Return facts about the data, as pairs of term and description."""
    data = record["data"]
    sampled = data["rows_in_source"] != data["rows"]
    rows_ = plural(data["rows"], "row") + (f" of {count(data['rows_in_source'])}, sampled" if sampled else "")
    shown = [shown_name(name) for name in data["classes"][:MOST_CLASSES]]
    while len(shown) > 1 and sum(map(len, shown)) > LONGEST_LIST:
        shown.pop()
    more = len(data["classes"]) - len(shown)
    names = ", ".join(shown) + (f" and {count(more)} more" if more else "")
    return [
        ("Data", f"{shown_name(data['name'])} ({data['source']})"),
        ("Rows", f"{rows_}; {plural(data['features'], 'feature')}"),
        ("Classes", f"{count(len(data['classes']))}: {names}"),
        (
            "Split",
            f"{count(data['rows_train'])} to train, {count(data['rows_validation'])} to choose learning rates, "
            f"{count(data['rows_test'])} to test",
        ),
        (
            "Baseline",
            f"{percent(data['majority_accuracy'])} accuracy by always predicting the most frequent class; "
            f"{significant(data['label_entropy_nats'])} nats of entropy in the labels",
        ),
    ]


def lead(record: dict[str, Any]) -> list[Markup]:
    """Return the two sentences above the first picture: the idea, and what it did on this data."""
    idea = Markup("Where a model is sure and wrong, {} corrects it most, and {} hardly at all.")
    what = Markup("Here both train one network on {}, from a start that is confidently wrong: {}.")
    return [
        idea.format(*(_named(loss) for loss in ("cross-entropy", "squared error"))),
        what.format(shown_name(record["data"]["name"]), _first(record)),
    ]


def _named(loss: str) -> Markup:
    """Return the name of a loss in its colour."""
    return Markup('<span class="{} whole">{}</span>').format(loss.replace(" ", "-"), loss)


def _first(record: dict[str, Any]) -> Markup:
    """Return which loss came first: to the highest level that both reached, and to the highest that either did.

    The network is the one with a hidden layer, its start the confidently wrong one.
    """
    model = record["comparisons"][-1]["model"] if record["comparisons"] else ""
    top = headline(record, "confidently wrong", model)
    if top is None:
        return Markup("neither loss reached a level of accuracy that was timed")
    both = headline(record, "confidently wrong", model, both=True)
    if both is top:
        return _ahead(both)
    only = Markup("the only one to get {} right").format(level_of(top))
    if both is None or both["winner"] == "tie":
        return Markup("{} is {}").format(_named(top["winner"]), only)
    same = both["winner"] == top["winner"]
    return Markup("{}, and {}{}").format(_ahead(both), "" if same else _named(top["winner"]) + " is ", only)


def _ahead(c: Comparison) -> Markup:
    if c["winner"] == "tie":
        return Markup("both get {} of the test rows right after the same number of steps").format(level_of(c))
    return Markup("{} is the first to get {} of the test rows right").format(_named(c["winner"]), level_of(c))


def answer(record: dict[str, Any]) -> list[Markup]:
    """Return the answer to the question in one paragraph, from the results."""
    seeds = plural(len(record["settings"]["seeds"]), "seed")
    opening = Markup("On {rows} rows of {name}, with a learning rate chosen for each loss on its own, {race}")
    sentences = [
        opening.format(
            rows=count(record["data"]["rows"]),
            name=shown_name(record["data"]["name"]),
            race=_raced(record, "random"),
        ),
        Markup("From a confidently wrong start {}{}").format(_raced(record, "confidently wrong"), _stalls(record)),
    ]
    won = score(record)
    clearly = f", {won['SE clearly'] or 'none'} of them clearly" if won["SE"] and several_seeds(record) else ""
    share = f"{count(won['SE'])} of {count(won['all'])} comparisons{clearly}" if won["SE"] else "no comparison"
    sentences.append(
        Markup("Squared error was better in {}; the tables below have them all. Steps are medians of {}.").format(
            share, seeds
        )
    )
    return sentences


def _raced(record: dict[str, Any], start: str) -> Markup:
    """Return how many steps each loss took to the highest accuracy level that either reached, for both models."""
    models = list(dict.fromkeys(c["model"] for c in record["comparisons"]))
    return Markup("; ").join(_raced_with(record, start, model, model == models[-1]) for model in reversed(models)) + "."


def _raced_with(record: dict[str, Any], start: str, model: str, is_first: bool) -> Markup:
    a_model = f"a model with {model}" if model.startswith("one ") else f"a {model}"
    c = headline(record, start, model)
    if c is None:
        return Markup("with {} neither loss reached a level that was timed").format(a_model)
    steps = {"cross-entropy": c["cross_entropy"]["median"], "squared error": c["squared_error"]["median"]}
    first, second = sorted(steps, key=lambda loss: math.inf if steps[loss] is None else steps[loss])
    pattern = "{who} took {a_model} to {level} test accuracy in {steps}, {rest}"
    if not is_first:
        pattern = "{a_model} got to {level} by {who} in {steps}, {rest}"
    if steps[second] is None:
        there, all_seeds = seeds_there(record, c, second), plural(len(record["settings"]["seeds"]), "seed")
        seeds = f"{count(there)} of {all_seeds}" if there else f"none of {all_seeds}"
        rest = Markup("{} with {}").format(f"{second} got there" if is_first else f"by {second}", seeds)
    else:
        rest = Markup("{}{} in {}").format("" if is_first else "by ", second, _colored(second, count(steps[second])))
    reached = _colored(first, plural(steps[first], "step"))
    return Markup(pattern).format(who=first, a_model=a_model, level=level_of(c), steps=reached, rest=rest)


def _colored(loss: str, text: str) -> Markup:
    return Markup('<strong class="{}">{}</strong>').format(loss.replace(" ", "-"), text)


def _stalls(record: dict[str, Any]) -> Markup:
    """Return the explanation of a stall, if there was one: the gradients measured at that start."""
    lengths = gradient_lengths(record, "confidently wrong")
    if lengths is None or lengths[0] <= 2 * lengths[1]:
        return Markup("")
    return Markup(
        " There the median row’s gradient is {} long for cross-entropy and {} for squared error, which is left with "
        "little to learn from just where it is most wrong."
    ).format(significant(lengths[0]), magnitude(lengths[1]))


def tiles(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the key figures: a label, and one or two numbers with their unit."""
    model = record["comparisons"][-1]["model"] if record["comparisons"] else ""
    figures = []
    for start in ("confidently wrong", "random"):
        c = headline(record, start, model)
        if c is not None:
            seeds = plural(len(record["settings"]["seeds"]), "seed")
            label = f"to {level_of(c)} test accuracy from a {start} start, {model}, median of {seeds}"
            pair = [number(c[key]["median"], "steps") for key in ("cross_entropy", "squared_error")]
            figures.append({"pair": pair, "unit": "steps", "label": label})
    lengths = gradient_lengths(record, "confidently wrong")
    if lengths:
        figures.append(
            {
                "pair": [magnitude(value) for value in lengths],
                "unit": "length of gradient",
                "label": "at the median training row of the confidently wrong start",
            }
        )
    before = record["likelihood"]["before"]
    lost = before["rows_until_underflow"]
    detail = f"a float64 product of it is 0 from row {count(lost)}" if lost else "the product of one factor per row"
    figures.append(
        {
            "single": scientific(before["likelihood"]),
            "unit": "likelihood",
            "label": f"of {count(record['likelihood']['rows'])} rows before training; {detail}",
        }
    )
    return figures


def gradient_lengths(record: dict[str, Any], start: str) -> tuple[float, float] | None:
    """Return the median lengths of both gradients over the sampled rows at a start."""
    samples = [s for s in record["gradients"] if s["start"] == start]
    ce, se = (median([s[f"{loss}_gradient"] for s in samples]) for loss in ("cross_entropy", "squared_error"))
    return None if ce is None or se is None else (ce, se)
