"""Cross-entropy against squared error of the softmax, under equal conditions.

Rows, split, start, batches and epochs are the same. Each loss has its own learning rate, the best by the validation
accuracy averaged over the training, which rewards both speed and the final result and favours neither loss. The search
uses a seed of its own, is repeated for each model and start, and extends the grid until the best rate is not at an end
of it. Test rows are not used for any choice.

The second start is confidently wrong: a model that was trained on labels shifted by one class. There the gradient of
the squared error, which has a factor q[label], should stall.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import xent
from xent.errors import ArgumentError, message
from xent.information import entropy
from xent.why.data import Dataset, Split, Splits, prepare
from xent.why.examples import examples, plane
from xent.why.explain import gradient_samples, information, likelihood_part
from xent.why.gradient_descent import (
    Descent,
    Evaluation,
    Parameters,
    Trained,
    evaluation_steps,
    initial_parameters,
    logits_of,
    train,
)
from xent.why.losses import mean_loss
from xent.why.measures import comparisons, steps_to_reach
from xent.why.record import (
    LOSSES,
    MODELS,
    STARTS,
    Curve,
    DataSummary,
    LearningRateTrial,
    Loss,
    ModelName,
    Record,
    Run,
    Settings,
    Start,
)

SEARCH_SEED = 1_000_000
"""The seed of the search for learning rates, which no result uses."""
LEVELS = (0.5, 0.8, 0.9, 0.95, 0.98)
"""Levels to time, as fractions of the way from the majority class's accuracy to the best validation accuracy."""
CURVE_POINTS = 60
WIDEST_SEARCH = 6
"""How often the grid of learning rates may be extended."""

Progress = Callable[[str, int, int], None]
"""Called with the current task, the number of trainings done and the number of all trainings."""


@dataclass(frozen=True)
class Training:
    """One training to be run."""

    start: Start
    model: ModelName
    loss: Loss
    learning_rate: float
    seed: int


def run(dataset: Dataset, settings: Settings | None = None, progress: Progress | None = None) -> Record:
    """Run the whole experiment: about 100 trainings, those of one model together."""
    settings = Settings() if settings is None else settings
    if not (isinstance(dataset, Dataset) and isinstance(settings, Settings)):
        problem = f"found a {type(dataset).__name__} and a {type(settings).__name__}"
        raise ArgumentError(
            message("run", "dataset, settings", problem, "Pass what xent.why.load returns, and Settings")
        )
    began = time.perf_counter()
    splits = prepare(dataset)
    lab = Lab(dataset, splits, settings, progress or (lambda task, done, total: None))
    # The matrices are small: several threads for one product would only compete with each other.
    with threadpool_limits(1):
        trials = [trial for start in STARTS for trial in lab.search(start)]
        chosen = {(t.start, t.model, t.loss): t.learning_rate for t in trials if t.chosen}
        results = lab.compare(chosen)

    summary = _summary(dataset, splits)
    best = max(e.validation_accuracy for trained in results.values() for e in trained.evaluations)
    levels = _levels(summary.majority_accuracy, best)
    runs = [_run(training, trained, levels) for training, trained in results.items()]
    final = _explained_models(results, settings.seeds[0])
    starts = {start: {model: lab.start(start, model, settings.seeds[0]) for model in MODELS} for start in STARTS}
    return Record(
        data=summary,
        settings=settings,
        versions={
            "xent": xent.__version__,
            "python": platform.python_version(),
            **{package: version(package) for package in ("numpy", "scikit-learn")},
        },
        seconds=time.perf_counter() - began,
        levels=levels,
        learning_rates=tuple(trials),
        runs=tuple(runs),
        comparisons=tuple(comparisons(runs, levels)),
        gradients=tuple(gradient_samples(starts, {m: t.parameters for m, t in final.items()}, splits)),
        information=information({m: t.parameters for m, t in final.items()}, splits),
        likelihood=likelihood_part(starts["random"][MODELS[0]], final[MODELS[0]], splits),
        examples=examples(starts["confidently wrong"][MODELS[-1]], _raced(results, settings.seeds[0]), dataset, splits),
        plane=plane(dataset, splits),
    )


class Lab:
    """Runs trainings, those of one model together, and keeps the starts that they share."""

    def __init__(self, dataset: Dataset, splits: Splits, settings: Settings, progress: Progress) -> None:
        self.splits, self.settings, self.progress = splits, settings, progress
        self.classes = len(dataset.classes)
        self.is_stopped = False
        self.rates_at_start: dict[ModelName, float] = {}
        self.starts: dict[tuple[Start, ModelName, int], Parameters] = {}
        self.evaluation_steps = evaluation_steps(len(splits.train.labels), settings.epochs, settings.batch_size)

    def search(self, start: Start) -> list[LearningRateTrial]:
        """Try learning rates for each model and loss, extending the grid until the best is inside; mark the best."""
        scores: dict[tuple[ModelName, Loss], dict[float, float]] = {pair: {} for pair in product(MODELS, LOSSES)}
        untried = [(model, loss, rate) for model, loss in scores for rate in self.settings.learning_rates]
        for _ in range(WIDEST_SEARCH + 1):
            trainings = [Training(start, model, loss, rate, SEARCH_SEED) for model, loss, rate in untried]
            for training, trained in self._train(f"learning rates, {start} start", trainings).items():
                accuracies = [evaluation.validation_accuracy for evaluation in trained.evaluations]
                steps = [evaluation.step for evaluation in trained.evaluations]
                score = float(np.trapezoid(accuracies, steps) / steps[-1])
                scores[training.model, training.loss][training.learning_rate] = score
            untried = [(*pair, rate) for pair in scores if (rate := _beyond(scores[pair])) is not None]
            if not untried:
                break
        if start == "random":
            self.rates_at_start = {model: _best(scores[model, "cross-entropy"]) for model in MODELS}
        return [
            LearningRateTrial(start, model, loss, rate, score, rate == _best(scores[model, loss]))
            for model, loss in scores
            for rate, score in sorted(scores[model, loss].items())
        ]

    def compare(self, rates: dict[tuple[Start, ModelName, Loss], float]) -> dict[Training, Trained]:
        """Train each start, model and loss at its learning rate, once per seed."""
        trainings = [Training(*key, rate, seed) for key, rate in rates.items() for seed in self.settings.seeds]
        return self._train("the race", trainings, is_race=True)

    def start(self, start: Start, model: ModelName, seed: int) -> Parameters:
        """The parameters that both losses start from."""
        self._prepare_starts(start, model, [seed])
        return self.starts[start, model, seed]

    def _prepare_starts(self, start: Start, model: ModelName, wanted: Sequence[int]) -> None:
        """Make the starts of these seeds that are missing, all wrong ones in one batch of trainings."""
        seeds = [seed for seed in wanted if (start, model, seed) not in self.starts]
        if not seeds:
            return
        features, hidden_units = self.splits.train.features.shape[1], self.settings.hidden_units
        made = [initial_parameters(model, features, self.classes, hidden_units, seed) for seed in seeds]
        if start == "confidently wrong":
            shifted = (self.splits.train.labels + 1) % self.classes
            wrong = Split(self.splits.train.features, shifted)
            rate = self.rates_at_start[model]
            descents = [Descent(p, "cross-entropy", rate, seed) for p, seed in zip(made, seeds, strict=True)]
            made = [trained.parameters for trained in self._descend(descents, wrong)]
        self.starts |= {(start, model, seed): p for p, seed in zip(made, seeds, strict=True)}

    def _train(self, task: str, trainings: Sequence[Training], is_race: bool = False) -> dict[Training, Trained]:
        """Train, those of one model and loss together, which fill the cores with few calls of NumPy."""
        batches = {
            pair: batch
            for pair in product(reversed(MODELS), LOSSES)
            if (batch := [training for training in trainings if (training.model, training.loss) == pair])
        }
        steps_done = dict.fromkeys(batches, 0)  # of all from the start: threads read its items while others write
        shown = {self.evaluation_steps[i] for i in _places_shown(len(self.evaluation_steps))}

        def report() -> None:
            """Half a batch counts as half of its trainings."""
            done = sum(len(batches[pair]) * steps for pair, steps in steps_done.items())
            self.progress(task, done // self.evaluation_steps[-1], len(trainings))

        def train_batch(pair: tuple[ModelName, Loss]) -> list[Trained]:
            batch = batches[pair]

            def evaluate(step: int, which: int, parameters: Parameters) -> Evaluation:
                if self.is_stopped:
                    raise CancelledError
                if which == 0:
                    steps_done[pair] = step
                    report()
                validation = _accuracy(parameters, self.splits.validation)
                if not is_race:
                    return Evaluation(step, validation)
                is_explained = _is_explained(batch[which], self.settings.seeds[0])
                return _evaluate(step, validation, parameters, self.splits, step in shown, is_explained)

            descents = [Descent(self.start(t.start, t.model, t.seed), t.loss, t.learning_rate, t.seed) for t in batch]
            return self._descend(descents, self.splits.train, evaluate)

        self.progress(task, 0, len(trainings))
        seeds = list(dict.fromkeys(training.seed for training in trainings))
        starts = dict.fromkeys((training.start, training.model) for training in trainings)
        self._side_by_side(lambda key: self._prepare_starts(key[0], key[1], seeds), starts)
        results = zip(batches.values(), self._side_by_side(train_batch, batches), strict=True)
        trained = {training: one for batch, many in results for training, one in zip(batch, many, strict=True)}
        return {training: trained[training] for training in trainings}

    def _side_by_side(self, function: Callable[[Any], Any], arguments: Iterable[Any]) -> list[Any]:
        """Call the function in threads. An error or an interrupt stops the others at their next evaluation."""
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            try:
                return list(threads.map(function, arguments))
            except BaseException:
                self.is_stopped = True
                raise

    def _descend(
        self,
        descents: Sequence[Descent],
        rows: Split,
        evaluate: Callable[[int, int, Parameters], Evaluation] | None = None,
    ) -> list[Trained]:
        return train(descents, rows, evaluate, epochs=self.settings.epochs, batch_size=self.settings.batch_size)


def _accuracy(parameters: Parameters, rows: Split) -> float:
    return float((logits_of(parameters, rows.features).argmax(axis=1) == rows.labels).mean())


def _evaluate(
    step: int, validation: float, parameters: Parameters, splits: Splits, is_shown: bool, is_explained: bool
) -> Evaluation:
    """Measure on the test rows, with both losses at the points of the charts, and for one model on all rows."""
    logits, labels = logits_of(parameters, splits.test.features), splits.test.labels
    losses = [math.nan, math.nan, math.nan]
    if is_shown:
        losses[:2] = (mean_loss(loss, logits, labels) for loss in LOSSES)
    if is_explained:
        everything = splits.everything
        losses[2] = mean_loss("cross-entropy", logits_of(parameters, everything.features), everything.labels)
    return Evaluation(step, validation, float((logits.argmax(axis=1) == labels).mean()), *losses)


def _best(scores: dict[float, float]) -> float:
    """Return the learning rate with the highest score; of equal scores, the lower rate."""
    return max(sorted(scores), key=lambda rate: scores[rate])


def _beyond(scores: dict[float, float]) -> float | None:
    """Return the next learning rate (0.1, 0.3, 1, 3, ...) beyond the best one if that is at an end of those tried."""
    rates, best = sorted(scores), _best(scores)
    if len(rates) > 1 and best not in (rates[0], rates[-1]):
        return None
    outwards = 1 if best == rates[-1] else -1
    return float(f"{10 ** ((round(2 * math.log10(best)) + outwards) / 2):.0e}")


def _levels(majority: float, best: float) -> tuple[float, ...]:
    """Return the accuracies to time, rounded to 0.1%; only those above the majority class."""
    levels = {round(majority + share * (best - majority), 3) for share in LEVELS}
    return tuple(sorted(level for level in levels if level > majority))


def _summary(dataset: Dataset, splits: Splits) -> DataSummary:
    counts = np.bincount(splits.train.labels, minlength=len(dataset.classes))
    return DataSummary(
        name=dataset.name,
        source=dataset.source,
        label=dataset.label,
        rows=len(dataset.labels),
        rows_in_source=dataset.rows_in_source,
        features=splits.train.features.shape[1],
        classes=dataset.classes,
        rows_train=len(splits.train.labels),
        rows_validation=len(splits.validation.labels),
        rows_test=len(splits.test.labels),
        majority_accuracy=float((splits.test.labels == counts.argmax()).mean()),
        label_entropy_nats=float(entropy(counts / counts.sum())),
    )


def _run(training: Training, trained: Trained, levels: Sequence[float]) -> Run:
    evaluations = trained.evaluations
    shown = [evaluations[i] for i in _places_shown(len(evaluations))]
    return Run(
        start=training.start,
        model=training.model,
        loss=training.loss,
        seed=training.seed,
        learning_rate=training.learning_rate,
        curve=Curve(
            tuple(e.step for e in shown),
            tuple(round(e.accuracy, 5) for e in shown),
            tuple(round(e.cross_entropy, 5) for e in shown),
            tuple(round(e.squared_error, 5) for e in shown),
        ),
        steps_to_reach=steps_to_reach(evaluations, levels),
    )


def _places_shown(evaluations: int) -> list[int]:
    """Return which evaluations the charts show: evenly spaced on their logarithmic axis, with both ends."""
    places: list[int] = (np.unique(np.geomspace(1, evaluations, CURVE_POINTS).round().astype(int)) - 1).tolist()
    return places


def _explained_models(results: dict[Training, Trained], seed: int) -> dict[ModelName, Trained]:
    """Return the models that the report uses as examples."""
    return {training.model: trained for training, trained in results.items() if _is_explained(training, seed)}


def _raced(results: dict[Training, Trained], seed: int) -> dict[Loss, Parameters]:
    """Return the networks of the report's first picture: the larger model, from the confidently wrong start."""
    return {
        training.loss: trained.parameters
        for training, trained in results.items()
        if (training.start, training.model, training.seed) == ("confidently wrong", MODELS[-1], seed)
    }


def _is_explained(training: Training, seed: int) -> bool:
    """Whether it is an example of the report: random start, cross-entropy, first seed."""
    return (training.start, training.loss, training.seed) == ("random", "cross-entropy", seed)
