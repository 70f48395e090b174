"""The identities of information theory, verified on the models and rows of the experiment."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from xent import information as theory
from xent.likelihood import likelihood
from xent.why.data import Splits
from xent.why.gradient_descent import Parameters, Trained, logits_of, spread_out
from xent.why.losses import gradient_lengths
from xent.why.record import (
    MODELS,
    GradientSample,
    Information,
    InformationSample,
    LikelihoodInTraining,
    LikelihoodOf,
    LikelihoodPart,
    LikelihoodPoint,
    ModelName,
    Start,
)

MOST_SAMPLES = 120


def gradient_samples(
    starts: Mapping[Start, Mapping[ModelName, Parameters]], trained: Mapping[ModelName, Parameters], splits: Splits
) -> Iterator[GradientSample]:
    """Yield training rows at each start and after training, with the gradient length (by the logits) of each loss."""
    for start, models in starts.items():
        for model, parameters in models.items():
            for state in (parameters, trained[model]) if start == "random" else (parameters,):
                logits = logits_of(state, splits.train.features)
                labels = splits.train.labels
                q = theory.softmax(logits)[np.arange(len(labels)), labels]
                lengths = gradient_lengths(logits, labels)
                for i in spread_out(q, MOST_SAMPLES):
                    yield GradientSample(start, model, *(_digits(v[i]) for v in (q, *lengths)))


def information(trained: Mapping[ModelName, Parameters], splits: Splits) -> Information:
    """Verify H(p, q) = H(p) + KL(p || q) and the asymmetry of KL on the two models' predictions of the test rows."""
    p, q = (theory.softmax(logits_of(trained[model], splits.test.features)) for model in MODELS)
    h, cross = theory.entropy(p), theory.cross_entropy(p, q)
    kl, reverse = theory.kl_divergence(p, q), theory.kl_divergence(q, p)
    labels = theory.one_hot(splits.test.labels, p.shape[1])
    surprisal = theory.information_content(p[np.arange(len(p)), splits.test.labels])
    return Information(
        samples=tuple(
            InformationSample(*(_digits(v[i]) for v in (h, cross, kl, reverse))) for i in spread_out(kl, MOST_SAMPLES)
        ),
        largest_residual_nats=float(np.abs(cross - h - kl).max()),
        mean_kl_divergence_nats=float(kl.mean()),
        mean_kl_divergence_reversed_nats=float(reverse.mean()),
        label_entropy_nats=float(theory.entropy(labels).mean()),
        label_cross_entropy_nats=float(theory.cross_entropy(labels, p).mean()),
        label_kl_divergence_nats=float(theory.kl_divergence(labels, p).mean()),
        label_mean_surprisal_nats=float(surprisal.mean()),
    )


def likelihood_part(start: Parameters, trained: Trained, splits: Splits) -> LikelihoodPart:
    """Return the likelihood of all rows under the softmax regression before, during and after training."""
    rows = len(splits.everything.labels)
    return LikelihoodPart(
        rows=rows,
        before=_likelihood_of("before training", start, splits),
        after=_likelihood_of("after training", trained.parameters, splits),
        training=tuple(
            LikelihoodInTraining(e.step, _digits(-rows * e.train_cross_entropy), _digits(e.train_cross_entropy))
            for e in trained.evaluations[:: max(1, len(trained.evaluations) // MOST_SAMPLES)]
        ),
    )


def _likelihood_of(name: str, parameters: Parameters, splits: Splits) -> LikelihoodOf:
    q = theory.softmax(logits_of(parameters, splits.everything.features))
    labels = splits.everything.labels
    whole = likelihood(labels, q)
    picked = q[np.arange(len(labels)), labels]
    products = np.cumprod(picked)
    log10 = np.cumsum(np.log10(picked))
    underflow = np.flatnonzero(products == 0)
    shown = np.unique(np.linspace(0, len(labels) - 1, MOST_SAMPLES).round().astype(int))
    return LikelihoodOf(
        model=name,
        log_likelihood_nats=whole.log,
        likelihood=str(whole),
        float64_product=float(products[-1]),
        rows_until_underflow=int(underflow[0]) + 1 if len(underflow) else None,
        points=tuple(LikelihoodPoint(int(i) + 1, float(products[i]), _digits(log10[i])) for i in shown),
    )


def _digits(value: float) -> float:
    """Round to six digits, enough for a chart."""
    return float(f"{value:.6g}") if math.isfinite(value) else float(value)
