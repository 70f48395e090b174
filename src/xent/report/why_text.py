"""The texts of the report of `xent why`; all their numbers are computed, here or in the record."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from xent.information import information_content
from xent.names import shown_name
from xent.report.numbers import count, listed, magnitude, median, plural, scientific, significant
from xent.report.page import style_sheet
from xent.report.theme import power
from xent.report.why_answer import answer, facts, gradient_lengths, lead, tiles
from xent.report.why_charts import information as simplex
from xent.report.why_charts import punishment
from xent.report.why_charts.race import MEASURES, MOST_SEEDS
from xent.report.why_story import plane, rows
from xent.report.why_story import race as race_curves
from xent.report.why_tables import rates, tables, verdict, wins_of_squared_error
from xent.report.why_thread import TAKE_AWAY, thread


def texts(record: dict[str, Any]) -> dict[str, Any]:
    """Return all variables of the template."""
    return {
        "name": shown_name(record["data"]["name"]),
        "facts": facts(record),
        "lead": lead(record),
        "answer": answer(record),
        "tiles": tiles(record),
        "punishment": punishment_text(record),
        "information": information_text(record),
        "likelihood": likelihood_text(record),
        "race": race_text(record),
        "tables": tables(record),
        "controls": controls(record),
        "method": method(record),
        "lab": lab(record),
        "rows": rows_text(record),
        "thread": thread(record),
        "takes": TAKE_AWAY,
        "has_race": race_curves(record) is not None,
        "own_style": style_sheet("why.css"),
    }


def controls(record: dict[str, Any]) -> dict[str, Any]:
    """Return the initial values and the options of the page's sliders and menus."""
    lowest = punishment.lowest_exponent(record)
    return {
        "truth": {"last": punishment.GRID - 1, "start": punishment.grid_start(lowest)},
        "logits": punishment.WRONG_LOGITS,
        "starts": list(dict.fromkeys(r["start"] for r in record["runs"])),
        "models": list(dict.fromkeys(r["model"] for r in record["runs"])),
        "measures": MEASURES,
    }


def punishment_text(record: dict[str, Any]) -> list[Markup]:
    """Return the texts of part 1."""
    p = punishment.START
    values = {name: tuple(float(v[0]) for v in pair) for name, pair in punishment.two_losses([p]).items()}
    (ce, ce_length), (se, se_length) = values["cross-entropy"], values["squared error"]
    paragraphs = [
        Markup(
            "A prediction that gives the true class {p} costs {ce} nats by cross-entropy and {se} by squared error, "
            "which never exceeds 2. Each tenfold decrease of that probability adds {tenth} nats to the former and "
            "almost nothing to the latter."
        ).format(
            p=shows("truth-p", f"{p:.0%}"),
            ce=shows("truth-ce", significant(ce)),
            se=shows("truth-se", significant(se)),
            tenth=significant(math.log(10)),
        ),
        Markup(
            "Training follows the gradient. Its length there is {ce} for cross-entropy and {se} for squared error: "
            "{ratio}, because the chain rule multiplies that of squared error by the probability itself."
        ).format(
            ce=shows("truth-ce-gradient", significant(ce_length)),
            se=shows("truth-se-gradient", significant(se_length)),
            ratio=shows("truth-ratio", f"{significant(ce_length / se_length)} times as long"),
        ),
    ]
    wrong = [s for s in record["gradients"] if s["start"] == "confidently wrong"]
    lengths = gradient_lengths(record, "confidently wrong")
    if wrong and lengths:
        p_median = median([s["probability_of_label"] for s in wrong])
        paragraphs.append(
            Markup(
                "On {name}, at the confidently wrong start, the median training row gives its label {p}; the median "
                "gradients are {ce} and {se}."
            ).format(
                name=shown_name(record["data"]["name"]),
                p=magnitude(p_median),
                ce=significant(lengths[0]),
                se=magnitude(lengths[1]),
            )
        )
    return paragraphs


def caption_of_rows(record: dict[str, Any]) -> str:
    """Return the caption of the chart of gradients."""
    lowest = 10.0 ** punishment.lowest_exponent(record)
    samples = record["gradients"]
    below = sum(s["probability_of_label"] < lowest for s in samples)
    text = f"Points are {plural(len(samples), 'sampled training row')} of {shown_name(record['data']['name'])}"
    if below:
        least = power(punishment.lowest_exponent(record))
        text += f"; {count(below)} with less than {least} for their label are drawn at the left edge"
    if len(record["data"]["classes"]) > 2:
        text += ". Lines: all other probability on one class; shaded down to a uniform distribution over all others"
    return text + "."


def information_text(record: dict[str, Any]) -> dict[str, Any]:
    """Return the texts of part 3."""
    info = record["information"]
    content = Markup(
        "Only −log p meets all three: {one} bit for a probability of one half, {two} for a quarter, none for what is "
        "certain. The base of the logarithm is the unit: 2 for bits, e for nats."
    ).format(one=count(float(information_content(0.5, base=2))), two=count(float(information_content(0.25, base=2))))
    ratio = _asymmetry(info)
    checked = Markup(
        "Let p be the softmax regression’s prediction of a test row and q that of the model with a hidden layer. Over "
        "all {rows} test rows <span>H(p, q)</span> and <span>H(p) + KL(p ‖ q)</span> differ by "
        "at most {residual} nats{rounding}. The divergence is not symmetric: its mean is {forward} nats one "
        "way and {reverse} the other{ratio}."
    ).format(
        rows=count(record["data"]["rows_test"]),
        residual=magnitude(info["largest_residual_nats"]),
        rounding=", which is rounding" if (info["largest_residual_nats"] or 0) < 1e-9 else "",
        forward=magnitude(info["mean_kl_divergence_nats"]),
        reverse=magnitude(info["mean_kl_divergence_reversed_nats"]),
        ratio=ratio,
    )
    one_hot = [
        ("entropy of the labels", info["label_entropy_nats"]),
        ("cross-entropy of p relative to the labels", info["label_cross_entropy_nats"]),
        ("KL divergence of the labels from p", info["label_kl_divergence_nats"]),
        ("mean information content of the labels under p", info["label_mean_surprisal_nats"]),
    ]
    return {
        "content": content,
        "checked": checked,
        "one_hot": [(name, "infinite" if value is None else f"{value:.10f}") for name, value in one_hot],
        "left_out": _left_out(record),
    }


def _asymmetry(info: dict[str, Any]) -> str:
    forward, reverse = info["mean_kl_divergence_nats"], info["mean_kl_divergence_reversed_nats"]
    if not forward or not reverse:
        return ""
    return f", a factor of {significant(max(forward, reverse) / min(forward, reverse), 2)}"


def _left_out(record: dict[str, Any]) -> str:
    samples, shown = record["information"]["samples"], simplex.divergences(record)
    below = sum(min(s["kl_divergence"], s["kl_divergence_reversed"]) < simplex.SMALLEST_DRAWN for s in shown)
    text = f"{plural(len(shown), 'test row')}, spread evenly from the smallest divergence to the largest"
    if below:
        text += f"; {count(below)} below {power(round(math.log10(simplex.SMALLEST_DRAWN)))} nats at the edge"
    if len(shown) < len(samples):
        text += f"; {count(len(samples) - len(shown))} infinite ones are not shown"
    return text + "."


def likelihood_text(record: dict[str, Any]) -> list[Markup]:
    """Return the texts of part 4."""
    part = record["likelihood"]
    before, after = part["before"], part["after"]
    rows_ = count(part["rows"])
    underflow = before["rows_until_underflow"]
    product = (
        Markup("as a product of float64 numbers it is exactly 0 from row {} on").format(count(underflow))
        if underflow
        else Markup("a float64 can still represent it, but at this rate for {} rows at most").format(_most_rows(record))
    )
    first = Markup(
        "The likelihood of a model is the product of the probabilities that it gave to the labels: one factor for "
        "each of {rows} rows. Before training it is {before}; {product}. The sum of the logarithms is {log} nats, "
        "far from any limit."
    ).format(
        rows=rows_,
        before=scientific(before["likelihood"]),
        product=product,
        log=_nats(before["log_likelihood_nats"]),
    )
    mean = None if after["log_likelihood_nats"] is None else -after["log_likelihood_nats"] / part["rows"]
    second = Markup(
        "Training by cross-entropy raises the likelihood to {after}. The two are one quantity: {nll} nats of negative "
        "log-likelihood are {rows} rows times a mean cross-entropy of {mean} nats per row, so that minimum "
        "cross-entropy is maximum likelihood."
    ).format(
        after=scientific(after["likelihood"]),
        nll=_nats(None if after["log_likelihood_nats"] is None else -after["log_likelihood_nats"]),
        rows=rows_,
        mean="infinite" if mean is None else f"{mean:.5f}",
    )
    return [first, second]


def _most_rows(record: dict[str, Any]) -> str:
    """Return for about how many rows a float64 could represent the product, at the mean rate of these rows."""
    log10 = (record["likelihood"]["before"]["log_likelihood_nats"] or -math.inf) / math.log(10)
    return f"about {significant(record['likelihood']['rows'] * math.log10(5e-324) / log10, 2)}"


def _nats(value: float | None) -> str:
    return "infinite" if value is None else f"{value:,.2f}".replace("-", "−")


def race_text(record: dict[str, Any]) -> dict[str, Any]:
    """Return the texts of part 5."""
    seeds = len(record["settings"]["seeds"])
    thin = f"the first {MOST_SEEDS} of {count(seeds)} seeds" if seeds > MOST_SEEDS else "seeds"
    return {
        "verdict": verdict(record),
        "squared_error": wins_of_squared_error(record),
        "rates": rates(record),
        "title": f"Test rows during training: thin lines are {thin}, thick lines are medians",
    }


def lab(record: dict[str, Any]) -> dict[str, Any]:
    """Return the menus of part 2."""
    made = [("rings", "three rings"), ("blobs", "three blobs"), ("spirals", "three spirals")]
    found = plane(record)
    if found is None:
        return {"sets": made, "columns": []}
    columns = [(str(i), column["name"]) for i, column in enumerate(found["columns"])]
    classes, all_classes = len(found["classes"]), len(record["data"]["classes"])
    of_all = f", {classes} of {count(all_classes)} classes" if classes < all_classes else ""
    name = shown_name(record["data"]["name"], 30)
    about = f"{plural(len(found['labels']), 'training row')} of {name}{of_all}; standardised."
    up = [columns[1], columns[0], *columns[2:]]
    sets = [*made, ("own", f"two columns of {name}")]
    return {"sets": sets, "columns": columns, "columns_up": up, "about": about}


def rows_text(record: dict[str, Any]) -> dict[str, Any] | None:
    """Return what the template says of the rows to guess; None in a record without rows."""
    found = rows(record)
    if found is None:
        return None
    more = record["examples"]["columns_in_source"] - len(found["columns"])
    telling = plural(len(found["columns"]), "column")
    text = f"The {telling} whose classes differ most; {plural(more, 'more is', 'more are')} not shown."
    return {"image": found["image"], "more": text if more > 0 else ""}


def shows(name: str, text: str) -> Markup:
    """Return a number that the scripts of the page keep equal to the control it depends on, and its initial value."""
    return Markup('<span data-shows="{}">{}</span>').format(name, text)


def method(record: dict[str, Any]) -> dict[str, Any]:
    """Return settings and versions, for the last section."""
    settings = record["settings"]
    return {
        "settings": [
            ("Seeds", listed(str(seed) for seed in settings["seeds"])),
            ("Epochs", count(settings["epochs"])),
            ("Rows per batch", count(settings["batch_size"])),
            ("Hidden units", count(settings["hidden_units"])),
            ("Learning rates tried", _tried(record)),
            ("Trainings compared", count(len(record["runs"]))),
            ("Time", f"{record['seconds']:.1f} seconds"),
            ("Versions", ", ".join(f"{name} {version}" for name, version in record["versions"].items())),
        ],
        "rows_caption": caption_of_rows(record),
    }


def _tried(record: dict[str, Any]) -> str:
    tried = sorted({trial["learning_rate"] for trial in record["learning_rates"]})
    trainings = plural(len(record["learning_rates"]), "training")
    return f"{trainings}, from {tried[0]:g} to {tried[-1]:g}" if tried else "none"
