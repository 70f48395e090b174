"""Random configurations of the losses agree with the definitions, and the comparison rejects definitions that are wrong.

tests/differential.py draws and compares; a failure prints the command that repeats it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import differential
import numpy as np
import pytest
from differential import Configuration, configuration, expected, failures, found
from differential_modes import one_rank

# torch's own, when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

COUNT, MANY = 300, 20_000

KNOWN: dict[str, Callable[[Configuration], bool]] = {
    "deferred logits give no gradient to logit_scale": lambda c: (
        c.mode == "deferred" and c.logit_scale == "with gradient"
    ),
    "no rows in three dimensions are an error of NumPy": lambda c: (
        c.mode == "numpy" and not c.linear and 0 in c.leading and len(c.inner) > 0
    ),
    "no positions of a linear layer give no gradient": lambda c: (
        c.linear and 0 in c.inner and c.mode not in ("no_grad", "forward_ad", "func.grad", "vmap(grad)") and (c.bias or "with gradient" in (c.weight, c.logit_scale))
    ),
}
"""What fails for a known reason, and which configurations that are: each of them has to fail."""


class Outcome(NamedTuple):
    configuration: Configuration
    results: dict[str, Any] | None
    error: str


@pytest.fixture(scope="module")
def rank() -> Iterator[None]:
    with one_rank():
        yield


def outcome(seed: int) -> Outcome:
    drawn = configuration(seed)
    try:
        return Outcome(drawn, found(drawn), "")
    except Exception as error:
        return Outcome(drawn, None, f"{type(error).__name__}: {error}")


@pytest.fixture(scope="module")
def outcomes(rank) -> list[Outcome]:
    """What the package returns for the first configurations."""
    return [outcome(seed) for seed in range(COUNT)]


def complaints(one: Outcome, broken: str = "") -> list[str]:
    if one.results is None:
        return [one.error]
    wanted, problem = expected(one.configuration, broken)
    return failures(one.configuration, one.results, wanted, problem)


def known(given: Configuration) -> str | None:
    return next((reason for reason, applies in KNOWN.items() if applies(given)), None)


def verdict(one: Outcome) -> str:
    """What is wrong with a configuration, or with its entry among the known failures; else nothing."""
    lines, reason = complaints(one), known(one.configuration)
    if reason is not None:
        lines = [] if lines else [f"passes, and is said to fail: {reason}"]
    return "\n    ".join([differential.describe(one.configuration), *lines]) if lines else ""


def test_random_configurations_agree_with_the_definitions(outcomes):
    wrong = [text for one in outcomes if (text := verdict(one))]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_random_configurations_agree_with_the_definitions(rank):
    wrong = [text for seed in range(COUNT, COUNT + MANY) if (text := verdict(outcome(seed)))]
    assert not wrong, "\n" + "\n".join(wrong)


# Each is one of the ways in which an implementation of the loss goes wrong (_expected in differential.py has them).
BROKEN = ["smoothing", "denominator", "z-loss", "scale", "masked", "ignored"]


def differs(one: Outcome, broken: str) -> bool:
    """Whether the broken definition gives a number that is off by 2 % of the greatest of its kind, or by more."""
    right, wrong = (expected(one.configuration, kind)[0] for kind in ("", broken))
    for name, wanted in right.items():
        known = np.isfinite(wanted.value) & np.isfinite(wrong[name].value)
        value, other = wanted.value[known], wrong[name].value[known]
        if value.size and np.abs(other - value).max() > 0.02 * np.abs(value).max():
            return True
    return False


@pytest.mark.parametrize("broken", BROKEN)
def test_wrong_definitions_are_rejected(outcomes, broken):
    """By every configuration in which they differ by 2 %, 16 bits included."""
    right = [one for one in outcomes if one.results is not None and known(one.configuration) is None]
    affected = [one for one in right if differs(one, broken)]
    accepted = [one for one in affected if not complaints(one, broken)]
    assert len(affected) >= 5
    assert not accepted, "\n" + "\n".join(differential.describe(one.configuration) for one in accepted)
