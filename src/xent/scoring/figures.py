"""The figures of a `Score`, computed from the sums and histograms of a state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import special

from xent.scoring import loops
from xent.scoring.decomposition import Decomposition, Recalibration
from xent.scoring.form import Form
from xent.scoring.grouped_sums import Groups, estimate, hashes
from xent.scoring.score import ClassScore, SegmentScore, SurprisingRow
from xent.scoring.selection import SelectedRows
from xent.scoring.sums import Array, values

TOP_SHARES = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5)


def base_rate(classes: Array, weight: float) -> float:
    """Entropy of the labels' frequencies."""
    frequencies = values(classes)[:, loops.CLASS_WEIGHT] / weight if weight else np.full(len(classes), math.nan)
    return float(special.entr(frequencies).sum())


def class_scores(
    form: Form, classes: Array, one_vs_rest: Array, recalibrations: list[Recalibration], weight: float
) -> tuple[ClassScore, ...]:
    """Return the score of each class."""
    own, loss, impossible, correct, predicted = values(classes).T
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_loss = np.where(impossible > 0, math.inf, loss / own)
        share_of_loss, recall = loss / loss.sum(), correct / own
        share, predicted_share = own / weight, predicted / weight
    against_rest: list[Decomposition | None] = [r.decomposition for r in recalibrations] or [None] * len(own)
    probability = np.full(len(own), math.nan)
    if form.one_vs_rest and weight:
        probability = values(one_vs_rest)[:, :, 1].sum(axis=1) / weight
    columns = (own, share, predicted_share, probability, mean_loss, share_of_loss, recall)
    rows = zip(form.classes, *(column.tolist() for column in columns), against_rest, strict=True)
    return tuple(ClassScore(*row) for row in rows)


def segment_scores(
    form: Form, segments: Mapping[str, Array], clusters: Groups | None, all_loss: float
) -> tuple[SegmentScore, ...]:
    """Return the score of each segment of a column, the worst first and those without valid rows last."""
    scores = []
    parts = hashes(np.array(list(segments), object)) if segments else ()
    for (value, totals), part in zip(segments.items(), parts, strict=True):
        total = values(totals)
        weight = float(total[loops.WEIGHT])
        if not total[loops.ROWS] and total[loops.ROWS_WITHOUT_WEIGHT]:
            continue
        scores.append(
            SegmentScore(
                value=value,
                rows=int(total[loops.ROWS]),
                weight=weight,
                cross_entropy=estimate(totals, None if clusters is None else clusters.of_part(part)),
                **_per_amount(form, totals),
                share_of_loss=ratio(total[loops.LOSS], all_loss),
                impossible_rows=int(total[loops.IMPOSSIBLE_ROWS]),
                brier=ratio(total[loops.BRIER], weight) if form.classes else math.nan,
                accuracy=ratio(total[loops.CORRECT], weight) if form.classes else math.nan,
            )
        )
    return tuple(sorted(scores, key=lambda s: (math.isnan(s.cross_entropy.nats), -s.cross_entropy.nats, s.value)))


def _per_amount(form: Form, totals: Array) -> dict[str, float]:
    return {
        "bits_per_byte": estimate(totals, None, 0).bits if form.bytes else math.nan,
        "bits_per_character": estimate(totals, None, 1).bits if form.characters else math.nan,
    }


def surprising_rows(form: Form, selected: SelectedRows) -> tuple[SurprisingRow, ...]:
    """Return the most surprising rows with the names of their classes."""
    names, rows = form.classes, []
    for i in range(len(selected)):
        label = int(selected["label"][i])
        likeliest: tuple[tuple[str, float], ...] = ()
        if names:
            pairs = zip(selected["likeliest"][i], selected["probabilities"][i], strict=True)
            likeliest = tuple((names[c], float(q)) for c, q in pairs)
        rows.append(
            SurprisingRow(
                row=int(selected["row"][i]),
                id=selected["id"][i],
                label=names[label] if names and label >= 0 else None,
                predicted=names[int(selected["predicted"][i])] if names else None,
                loss=float(selected["loss"][i]),
                weight=float(selected["weight"][i]),
                likeliest=likeliest,
            )
        )
    return tuple(rows)


def concentration(losses: Array) -> tuple[tuple[float, float], ...]:
    """Share of the loss in the worst rows, from the histogram of the losses; a bin's rows count with its mean."""
    weight, loss = np.concatenate([[[0.0, 0.0]], np.cumsum(values(losses)[::-1], axis=0)]).T
    if not weight[-1] or not loss[-1]:
        return ()
    return tuple((share, float(np.interp(share * weight[-1], weight, loss) / loss[-1])) for share in TOP_SHARES)


def clip_sensitivity(form: Form, clipped: Array, all_loss: float, weight: float) -> tuple[tuple[float, float], ...]:
    """Mean loss for each clip; not defined for soft labels, nor if a clip was used."""
    if form.soft or form.clip is not None or not weight:
        return ()
    return tuple(
        (eps, float(all_loss - loss_above - weight_above * math.log(eps)) / weight)
        for eps, (weight_above, loss_above) in zip(loops.CLIPS.tolist(), values(clipped), strict=True)
    )


def loss_bins(losses: Array) -> tuple[tuple[float, float, float, float], ...]:
    """(from, to, weight, loss) of each bin of the histogram of losses that has rows."""
    return tuple(
        (*_edges(k), float(weight), float(loss)) for k, (weight, loss) in enumerate(values(losses)) if weight > 0
    )


def _edges(k: int) -> tuple[float, float]:
    """Return the lower and upper edge of bin k; an octave is divided into bins of equal width."""

    def edge(step: int) -> float:
        octave, part = divmod(step, loops.LOSS_STEPS)
        return math.ldexp(1 + part / loops.LOSS_STEPS, octave + loops.LOSS_LOWEST)

    return (0.0 if k == 0 else edge(k)), (math.inf if k == loops.LOSS_BINS - 1 else edge(k + 1))


def ratio(a: Any, b: Any) -> float:
    """Return a / b, or NaN for b = 0."""
    return float(a) / float(b) if b else math.nan
