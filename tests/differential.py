"""Random configurations of the losses against their definitions: python tests/differential.py --seed N --count K.

A configuration is drawn from a seed: the call, its shape, dtype, layout, options, labels, and the way it is executed.
The numbers are drawn from the same seed, so that `--seed N` repeats a failure; `--set option=value` changes one part of
the configuration, to find out what matters.
"""

from __future__ import annotations

import argparse
import ast
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import differential_modes as modes
import differential_reference as reference
from differential_drawing import Configuration, Numbers, configuration, long, numbers
from differential_reference import LONG, Bounded, Linear, Problem, Result

Array = np.ndarray


# -------------------------------------------------------------------------------------------- what the call returns


def found(given: Configuration) -> dict[str, Any]:
    """The results of the package, by name."""
    if given.mode == "vmap(grad)":
        members = [numbers(given, member) for member in range(modes.DIRECTIONS)]
        leaves = [member.leaves(given) for member in members]
        stacked = {n: leaves[0][n] if n in modes.OPTIONS else torch.stack([m[n] for m in leaves]) for n in leaves[0]}
        stacked.setdefault("target", torch.stack([member.target for member in members]))
        call = modes.through_torch(given.call, given.mode, None, members[0].options)
        return modes.vmap_grad(call, stacked, members[0].upstream)
    drawn = numbers(given)
    if given.mode == "numpy":
        return modes.through_numpy(given.call, drawn.arguments, drawn.target, drawn.options)
    call = modes.through_torch(given.call, given.mode, drawn.target, drawn.options)
    return modes.MODES[given.mode](call, drawn.leaves(given), drawn.upstream)


# ------------------------------------------------------------------------------------------- what it is compared with


@dataclass
class Expected:
    value: Array
    bound: Array
    dtype: str


def expected(given: Configuration, broken: str = "") -> tuple[dict[str, Expected], Problem]:
    """The results by the definitions; `broken` names what is wrong with them (test_differential.py)."""
    if given.mode != "vmap(grad)":
        return _expected(given, numbers(given), broken)
    members = [_expected(given, numbers(given, member), broken) for member in range(modes.DIRECTIONS)]
    stacked = {
        name: Expected(
            np.stack([m[name].value for m, _ in members]), np.stack([m[name].bound for m, _ in members]), first.dtype
        )
        for name, first in members[0][0].items()
    }
    return stacked, members[0][1]


def problem_of(given: Configuration, drawn: Numbers) -> tuple[Problem, Linear | None]:
    """The numbers as rows of logits."""
    options = {n: v for n, v in drawn.options.items() if n != "workspace"}
    options.update({n: float(long(v)) for n, v in options.items() if isinstance(v, Tensor) and v.ndim == 0})
    if "weight" in options:
        options["weight"] = long(options["weight"])
    target = drawn.target.numpy().astype(np.int64) if given.target == "labels" else _rows(given, long(drawn.target))
    target = target.reshape(-1) if given.target == "labels" else target
    options["option_eps"] = tuple(
        (name, reference.eps(modes.dtype_name(value)))
        for name, value in drawn.options.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    )
    options["parts"] = given.linear
    if not given.linear:
        logits = _rows(given, long(drawn.arguments["input"]))
        return Problem(logits, np.zeros(logits.shape, LONG), target, given.arithmetic, **options), None
    x, w, b = (drawn.arguments.get(name) for name in ("input", "linear_weight", "linear_bias"))
    positions = int(np.prod(given.inner))
    layer = Linear(
        long(x).reshape(-1, given.features),
        long(w).reshape(given.classes, positions, given.features),
        None if b is None else long(b).reshape(given.classes, positions),
        given.dtype,
        repeated=given.layout == "expanded",
        scaled=given.logit_scale in ("tensor", "with gradient"),
    )
    logits, error = layer.logits()
    return Problem(logits, error, target, given.arithmetic, **options), layer


def _rows(given: Configuration, values: Array) -> Array:
    """From (*leading, classes, *inner) to (rows, classes)."""
    moved = np.moveaxis(values, len(given.leading), -1)
    return moved.reshape(int(np.prod(moved.shape[:-1])), given.classes)


def _unrows(given: Configuration, rows: Array) -> Array:
    return np.moveaxis(rows.reshape(*given.leading, *given.inner, given.classes), -1, len(given.leading))


def _expected(given: Configuration, drawn: Numbers, broken: str) -> tuple[dict[str, Expected], Problem]:
    problem, layer = problem_of(given, drawn)
    wrong = {
        "smoothing": {"label_smoothing": 0.0},
        "denominator": {"denominator": float(len(problem.target) + 1)},
        "z-loss": {"z_loss": -problem.z_loss},
        "scale": {"logit_scale": 1.0},
        "ignored": {"ignore_index": -12345, "target": np.where(problem.valid, problem.target, 0)}
        if not problem.soft
        else {},
    }
    problem = replace(problem, **wrong.get(broken, {}))
    upstream = np.stack([long(g).reshape(-1) for g in drawn.upstream])
    compute = reference.statistics_of if given.statistics else reference.loss_of
    result = compute(problem, upstream if given.statistics else upstream[0])
    if broken == "masked" and not given.linear:
        result = result._replace(by_logits=_without_mask(problem, result.by_logits))
    return _by_name(given, drawn, problem, layer, result), problem


def _without_mask(problem: Problem, by_logits: Bounded) -> Bounded:
    """A gradient of masked classes that is that of the row's smallest entry."""
    return by_logits._replace(
        value=np.where(np.isneginf(problem.logits), LONG(1) / problem.logits.shape[1], by_logits.value)
    )


def _by_name(
    given: Configuration, drawn: Numbers, problem: Problem, layer: Linear | None, result: Result
) -> dict[str, Expected]:
    """Values and gradients, in the shapes of what the call returns."""
    shape = (*given.leading, *given.inner) if given.reduction == "none" else ()
    dtype = given.arithmetic
    named = {
        n: Expected(v.value.reshape(shape), reference.rounded(v, dtype).reshape(shape), dtype)
        for n, v in result.values.items()
    }
    if given.mode == "no_grad" or (given.mode == "numpy" and given.statistics):
        return named
    if layer is None:
        gradients = {"input": Bounded(*(_unrows(given, a) for a in result.by_logits))}
    else:
        gradients = layer.gradients(result.by_logits)
    gradients |= result.gradients
    if layer is not None and layer.scaled and "logit_scale" in gradients:
        gradients["logit_scale"] = layer.rounded_scale(gradients, problem.logit_scale)
    if "target" in gradients:
        gradients["target"] = Bounded(*(_unrows(given, a) for a in gradients["target"]))
    leaves = drawn.leaves(given)
    taken = {n: Bounded(*(a.reshape(tuple(leaf.shape)) for a in gradients[n])) for n, leaf in leaves.items()}
    if given.mode == "forward_ad":
        return named | {"tangent": _tangent(given, taken, leaves)}
    copies = np.array([1, 2]) if given.mode == "is_grads_batched" else None
    losses = result.values["loss"].value if "loss" in result.values else np.zeros(())
    for name, leaf in leaves.items():
        if name == "logit_scale" and layer is not None and np.isinf(losses).any():
            # The derivative of an infinite loss by a scale is nothing that the definitions promise.
            taken[name] = taken[name]._replace(value=np.full_like(taken[name].value, np.inf))
        value, bound = taken[name].value, reference.rounded(taken[name], modes.dtype_name(leaf))
        if copies is not None:
            value, bound = (np.stack([k * a for k in copies]) for a in (value, bound))
        named[f"d {name}"] = Expected(value, bound, modes.dtype_name(leaf))
    return named


def _tangent(given: Configuration, gradients: dict[str, Bounded], leaves: dict[str, Tensor]) -> Expected:
    """The sum over all leaves of gradient times direction."""
    directions = {name: long(v) for name, v in modes.directions(leaves).items()}
    with np.errstate(invalid="ignore"):  # infinite gradients of both signs
        value = sum((g.value * directions[n]).sum() for n, g in gradients.items())
    unit = reference.eps(given.arithmetic)
    sizes = sum((np.abs(g.value * directions[n])).sum() for n, g in gradients.items())
    error = sum((g.error * np.abs(directions[n])).sum() for n, g in gradients.items())
    bound = error + 16 * unit * sizes
    if reference.eps(given.dtype) > unit:
        bound = bound + reference.eps(given.dtype) * sizes
    return Expected(np.asarray(value), np.asarray(bound + reference.least(given.dtype)), given.arithmetic)


# -------------------------------------------------------------------------------------------------------- comparing


def failures(given: Configuration, results: dict[str, Any], wanted: dict[str, Expected], problem: Problem) -> list[str]:
    """What differs, as one line each."""
    lines = []
    for name, one in wanted.items():
        if results.get(name) is None:
            lines.append(f"{name}: missing")
            continue
        if modes.dtype_name(results[name]) != one.dtype and name != "tangent":
            lines.append(f"{name}: dtype {modes.dtype_name(results[name])}, expected {one.dtype}")
        lines += _differences(name, modes.as_floats(results[name]), one)
    if "loss" in wanted and given.target == "labels" and (modes.as_floats(results["loss"]) < 0).any():
        lines.append(f"loss: negative, {modes.as_floats(results['loss']).min()}")
    if given.statistics and given.mode != "vmap(grad)":
        lines += _order_failures(results, problem)
    return lines


GREATEST = {name: torch.finfo(getattr(torch, name)).max for name in ("float64", "float32", "bfloat16", "float16")}


def _differences(name: str, values: Array, one: Expected) -> list[str]:
    wanted = one.value
    if values.shape != wanted.shape:
        return [f"{name}: shape {values.shape}, expected {wanted.shape}"]
    # An infinite derivative by the share of a masked class is nothing that the definitions promise.
    compared = ~np.isinf(wanted) if name in ("d target", "d weight", "d logit_scale") else np.ones(wanted.shape, bool)
    # Nor has a dtype a number for what is beyond its greatest.
    with np.errstate(invalid="ignore"):
        compared &= ~(np.abs(wanted) + one.bound > GREATEST[one.dtype]) | np.isinf(wanted)
    infinite = ~np.isfinite(wanted)
    wrong = np.where(infinite, ~((values == wanted) | (np.isnan(values) & np.isnan(wanted))), False)
    with np.errstate(invalid="ignore"):
        error = np.where(infinite, 0, np.abs(values - np.where(infinite, 0, wanted)))
    wrong = compared & (wrong | ~(error <= one.bound) & ~infinite)
    if not wrong.any():
        return []
    excess = np.where(wrong, np.where(infinite | np.isnan(error), np.inf, error / np.maximum(one.bound, 5e-324)), -1)
    worst = np.unravel_index(np.argmax(excess), wanted.shape)
    return [
        f"{name}{[int(i) for i in worst]}: found {values[worst]!r}, expected {float(wanted[worst])!r}, off by "
        f"{float(error[worst]):.3g}, at most {float(one.bound[worst]):.3g} is rounding ({wrong.sum()} of {wrong.size})"
    ]


def _order_failures(results: dict[str, Any], problem: Problem) -> list[str]:
    """argmax and rank; where rounding may change the order, anything that it may give."""
    m = reference.softmax(problem)
    z = np.where(m.masked, -np.inf, m.z)
    argmax, rank = (np.asarray(modes.as_floats(results[name])).reshape(-1) for name in ("argmax", "rank"))
    lines = []
    for row in np.flatnonzero((problem.logits < np.inf).all(axis=1)):
        low, high = z[row] - 2 * m.z_error[row], z[row] + 2 * m.z_error[row]
        if not 0 <= argmax[row] < z.shape[1] or high[argmax[row]] < low.max():
            lines.append(f"argmax[{row}]: found {argmax[row]}, expected {z[row].argmax()}")
        if not m.z_error[row].any() and argmax[row] != z[row].argmax():
            lines.append(f"argmax[{row}]: found {argmax[row]}, expected the first, {z[row].argmax()}")
        if not problem.valid[row]:
            least, greatest = -1, -1
        else:
            y = problem.target[row]
            least, greatest = (low > high[y]).sum(), (np.delete(high, y) > low[y]).sum()
        if not least <= rank[row] <= greatest:
            lines.append(f"rank[{row}]: found {rank[row]}, expected {least} to {greatest}")
    return lines


def check(given: Configuration) -> list[str]:
    """The failures of one configuration."""
    wanted, problem = expected(given)
    return failures(given, found(given), wanted, problem)


def describe(given: Configuration) -> str:
    """How to run it again."""
    return f"python tests/differential.py --seed {given.seed}  # {given}"


# ------------------------------------------------------------------------------------------------------ command line


def changed(given: Configuration, settings: list[str]) -> Configuration:
    """A configuration with some of its fields set, as `field=value`."""
    values = dict(setting.split("=", 1) for setting in settings)
    return replace(given, **{name: _literal(value) for name, value in values.items()})


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds")
    parser.add_argument("--set", nargs="*", default=[], help="field=value, of every configuration")
    arguments = parser.parse_args()
    failed = 0
    with modes.one_rank():
        for seed in range(arguments.seed, arguments.seed + arguments.count):
            given = changed(configuration(seed), arguments.set)
            try:
                lines = check(given)
            except Exception as error:
                lines = [f"{type(error).__name__}: {str(error)[:300]}"]
            if lines:
                failed += 1
                print(describe(given), *(f"    {line}" for line in lines), sep="\n", flush=True)
    print(f"{failed} of {arguments.count} configurations failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
