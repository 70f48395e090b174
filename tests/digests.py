"""Digests of losses and gradients: whether a change of the code has changed a bit of a result.

The cross-entropies and the statistics of both eager fronts on the CPU, of logits and of a linear layer: for the cases
of cases.py and larger random instances, in every dtype. Each result is digested by itself, under a key that names it:

    torch.cross_entropy/float32/smoothing-weight/mean/gradient

digests.json has the digests of some machines. Another machine may give other bits, because the order of a
vectorised sum depends on the processor and the compiler. So there is one record for each combination of everything that
bits may depend on (see `machine`). On all machines, test_digests.py also compares processes with different numbers of
threads.

    python tests/digests.py --compare            which digests differ from the record of this machine
    python tests/digests.py --show PATTERN       digests of the record, and as they are now
    python tests/digests.py --record             write the record of this machine

A record is replaced only where digests differ on purpose: MENDED says which and why. The digests they had before stay
in the record beside them, under "before".
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from cases import CASES
from implementations import by_kernels

RECORD = Path(__file__).with_suffix(".json")
THREADS = 2

# Which results differ from those of the first record, and why: a pattern of keys, and the reason.
MENDED: dict[str, str] = {
    "torch.statistics/*/gradient": "made by the kernel; a formula, whose derivative of the softcap cancelled, made it",
    "numpy.cross_entropy/float64/*/loss": "one sum of losses for both fronts, which notes what it loses",
    "numpy.linear_cross_entropy/float64/*": "no private symbols of NumPy: the gradient of the weight is added up by"
    " slabs, which take a part of the workspace, so that chunks are smaller",
    "numpy.linear_cross_entropy/float32/*": "the same",
    "*.cross_entropy/*/loss": "the loss of a confident row is summed without its label, and never below 0; terms of a"
    " smoothed target are differences in float64, added up in groups of classes",
    "*.cross_entropy/float64/*soft*/gradient": "the masses of class probabilities are added up in groups of classes",
    "*linear_cross_entropy/*soft*": "both of these, in the linear loss",
    "torch.linear_cross_entropy/*/*everything*/none/loss": "the first of these, in the linear loss",
    "torch.linear_*/float32/*": "on AMD's processors torch makes the logits, some classes at a time; NumPy made them",
    "torch.linear_*/float64/*": "the same",
    "torch.linear_*/float16/*": "the same",
    "*/*/1500x100-threads-*": "loops along the classes from 32 classes on (AVX2: 16), in place of 128",
    "*/*/random-97-*": "the same",
    "torch.cross_entropy/*/target": "made from the log-sum-exp that the forward has saved",
}

# Which results are not the same bits for every number of threads, and why.
DEPENDS_ON_THREADS: dict[str, str] = {}

Entries = Iterator[tuple[str, object]]

NUMPY_DTYPES = ["float64", "float32", "float16"]
TORCH_DTYPES = [*NUMPY_DTYPES, "bfloat16"]


# ---------------------------------------------------------------------------------------------------- what is digested


class Large:
    """A random instance: logits as a view of a larger array, labels of which some are ignored, and distributions.

    `shape` is that of the array, and `view` makes the logits of it, for arrays and tensors alike.
    """

    def __init__(self, shape, view=lambda a: a, kinds=("labels", "everything", "soft", "soft-everything")):
        rng = np.random.default_rng(sum(shape))
        self.view, self.kinds = view, kinds
        self.logits = rng.normal(0, 4, shape)
        logits = view(self.logits)
        axis = min(1, logits.ndim - 1)
        classes = logits.shape[axis]
        self.labels = rng.integers(0, classes, np.delete(logits.shape, axis))
        self.labels[rng.random(self.labels.shape) < 0.1] = -100
        self.weight = rng.uniform(0.25, 2, classes).astype(np.float16)
        self.distributions = rng.exponential(size=shape)
        rows = view(self.distributions)
        rows /= rows.sum(axis, keepdims=True)

    def target(self, kind):
        """Labels, or the array of which `view` makes the class probabilities."""
        return self.distributions if kind.startswith("soft") else self.labels


EVERYTHING = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 12.0, "logit_scale": 0.7}

# Sizes on both sides of the thresholds of the kernels: 16 or 32 classes, from which on the inner loop goes along the
# classes of a row; blocks of 2048 classes; tiles of 256 positions, fewer for many classes; 2**19 classes, above which
# the exponentials of a row are not kept; 2**17 logits, from which on a call uses several threads.
LARGE = {
    "vector-1000": lambda: Large((1000,)),
    "7x3000": lambda: Large((7, 3000)),
    "300x130": lambda: Large((300, 130)),
    "3000x10": lambda: Large((3000, 10)),
    "2x21x40x40": lambda: Large((2, 21, 40, 40)),
    "40x6000-threads": lambda: Large((40, 6000)),
    "1500x100-threads": lambda: Large((1500, 100)),
    "2x300x20x20-threads": lambda: Large((2, 300, 20, 20)),
    "3x60x1000-threads": lambda: Large((3, 60, 1000)),
    "1x530000": lambda: Large((1, 530000), kinds=("labels", "everything")),
    "60x2500-sliced-threads": lambda: Large((60, 2600), lambda a: a[:, 50:2550]),
    "500x400-transposed-threads": lambda: Large((400, 500), lambda a: a.swapaxes(0, 1)),
    "30x700-strided": lambda: Large((60, 1400), lambda a: a[::2, 1::2]),
    "2x21x40x40-channels-last": lambda: Large((2, 40, 40, 21), lambda a: a.swapaxes(1, 3)),
}


LINEAR_KINDS = {
    "labels": (False, {}),
    "bias": (True, {}),
    "everything": (True, EVERYTHING),
    "soft": (False, {}),
    "soft-everything": (True, EVERYTHING),
}


class Linear:
    """The arguments of a linear loss, and the workspaces it is computed in."""

    def __init__(self, rows, features, classes, workspaces, dtypes=TORCH_DTYPES, kinds=tuple(LINEAR_KINDS)):
        rng = np.random.default_rng(rows + features + classes)
        shapes = ((rows, features), (classes, features), (classes,))
        self.input, self.linear_weight, self.linear_bias = (rng.normal(size=shape) for shape in shapes)
        self.labels = rng.integers(0, classes, rows)
        self.labels[1:rows:7] = -100
        self.weight = rng.uniform(0.25, 2, classes).astype(np.float16)
        sizes = rng.exponential(size=(rows, classes))
        self.distributions = sizes / sizes.sum(axis=1, keepdims=True)
        self.workspaces, self.dtypes, self.kinds = workspaces, dtypes, kinds

    def target(self, kind):
        return self.distributions if kind.startswith("soft") else self.labels


# One chunk of rows, several, and, for the sums of 16-bit numbers, several parts of the classes. The products are small:
# large ones were made by the library that was measured to be the fastest.
LINEAR = {
    "17x5x30": lambda: Linear(17, 5, 30, {"whole": "1MB", "chunks": 1800}),
    "300x24x700-threads": lambda: Linear(300, 24, 700, {"whole": "10MB", "chunks": 500_000}),
    "400x320x250": lambda: Linear(400, 320, 250, {"parts": 600_000}, ["float16", "bfloat16"], ["bias"]),
}
STATISTICS = {"ignore_index", "softcap", "logit_scale"}
LINEAR_STATISTICS = {"plain": (False, {}), "softcap": (True, {"softcap": 12.0, "logit_scale": 0.7})}


def numpy_entries() -> Entries:
    """Of the NumPy front. Nothing here imports torch: products are by NumPy, threads those of our own pool."""
    import xent.numpy

    for dtype in NUMPY_DTYPES:
        for case in (case for case in CASES if case.fits(dtype)):
            rounded = case.rounded(dtype)
            for reduction in ("none", "sum", "mean"):
                options = {**case.options, "reduction": reduction}
                loss, gradient = xent.numpy.cross_entropy_value_and_grad(rounded.logits, rounded.target, **options)
                key = f"numpy.cross_entropy/{dtype}/{case.name}/{reduction}"
                yield from ((f"{key}/loss", loss), (f"{key}/gradient", gradient))

    for name, large in ((name, make()) for name, make in LARGE.items()):
        for dtype in NUMPY_DTYPES:
            for kind in large.kinds:
                x, y = large.logits.astype(dtype), large.target(kind)
                y = large.view(y.astype(dtype)) if kind.startswith("soft") else y
                options = {**EVERYTHING, "weight": large.weight} if kind.endswith("everything") else {}
                for reduction in ("none", "mean"):
                    loss, gradient = xent.numpy.cross_entropy_value_and_grad(
                        large.view(x), y, reduction=reduction, **options
                    )
                    key = f"numpy.cross_entropy/{dtype}/{name}-{kind}/{reduction}"
                    yield from ((f"{key}/loss", loss), (f"{key}/gradient", gradient))

    for name, linear in ((name, make()) for name, make in LINEAR.items()):
        for dtype in (dtype for dtype in linear.dtypes if dtype in NUMPY_DTYPES):
            x, w, b = (a.astype(dtype) for a in (linear.input, linear.linear_weight, linear.linear_bias))
            for cut, workspace in linear.workspaces.items():
                for kind in linear.kinds:
                    has_bias, options = LINEAR_KINDS[kind]
                    more = {**options, "linear_bias": b if has_bias else None, "workspace": workspace}
                    more |= {"weight": linear.weight} if options else {}
                    for reduction in ("none", "mean"):
                        loss, found = xent.numpy.linear_cross_entropy_value_and_grad(
                            x, w, linear.target(kind), reduction=reduction, **more
                        )
                        key = f"numpy.linear_cross_entropy/{dtype}/{name}-{kind}-{cut}/{reduction}"
                        yield f"{key}/loss", loss
                        yield from ((f"{key}/{argument}", value) for argument, value in found._asdict().items())
                for kind, (has_bias, options) in LINEAR_STATISTICS.items():
                    more = {"linear_bias": b if has_bias else None, "workspace": workspace}
                    found = xent.numpy.linear_statistics(x, w, linear.labels, **options, **more)
                    yield from _statistics(f"numpy.linear_statistics/{dtype}/{name}-{kind}-{cut}", found)


def _statistics(key, found) -> Entries:
    yield from ((f"{key}/{name}", getattr(found, name)) for name in found._fields)


def torch_entries(threads: int) -> Entries:
    """Of the torch front."""
    import torch

    import xent.torch

    torch.set_num_threads(threads)

    def tensor(array, dtype):
        """A copy in torch's memory, in that dtype unless it holds labels."""
        copied = torch.tensor(array)
        return copied.to(getattr(torch, dtype)) if copied.is_floating_point() else copied

    def upstream(loss):
        """A gradient for each row."""
        return torch.tensor(np.linspace(0.5, 1.5, loss.numel())).to(loss.dtype).reshape(loss.shape)

    def gradients(key, loss, above, arguments) -> Entries:
        wanted = {name: value for name, value in arguments.items() if value is not None and value.requires_grad}
        found = torch.autograd.grad(loss, tuple(wanted.values()), above, retain_graph=True)
        yield from ((f"{key}/{name}", value) for name, value in zip(wanted, found, strict=True))

    def cross_entropy(key, x, y, weight, reductions, options) -> Entries:
        x = x.requires_grad_()
        y = y.requires_grad_() if y.is_floating_point() else y
        for reduction in reductions:
            loss = xent.torch.cross_entropy(x, y, weight, reduction=reduction, **options)
            yield f"{key}/{reduction}/loss", loss
            named = {"gradient": x, "target": y}
            yield from gradients(f"{key}/{reduction}", loss, upstream(loss) if loss.ndim else None, named)

    def statistics(key, found, arguments) -> Entries:
        yield from _statistics(key, found)
        for name in ("log_prob", "entropy", "lse"):
            value = getattr(found, name)
            if value.isfinite().all():
                yield from gradients(f"{key}/{name}", value, upstream(value), arguments)

    for dtype in TORCH_DTYPES:
        for case in CASES:
            x, y = tensor(case.logits, dtype), tensor(case.target, dtype)
            if not np.array_equal(x.double().isinf().numpy(), np.isinf(case.logits)):
                continue
            options = {name: value for name, value in case.options.items() if name != "weight"}
            weight = torch.tensor(case.options["weight"]) if "weight" in case.options else None
            key = f"{dtype}/{case.name}"
            yield from cross_entropy(f"torch.cross_entropy/{key}", x, y, weight, ("none", "sum", "mean"), options)
            if not case.soft and set(case.options) <= STATISTICS:  # the others have the same logits
                found = xent.torch.statistics(x, y, **options)
                yield from statistics(f"torch.statistics/{key}", found, {"gradient": x})

    for name, large in ((name, make()) for name, make in LARGE.items()):
        for dtype in TORCH_DTYPES:
            for kind in large.kinds:
                x, y = large.view(tensor(large.logits, dtype)), tensor(large.target(kind), dtype)
                y = large.view(y) if kind.startswith("soft") else y
                everything = kind.endswith("everything")
                weight = tensor(large.weight, dtype) if everything else None
                key = f"{dtype}/{name}-{kind}"
                options = EVERYTHING if everything else {}
                yield from cross_entropy(f"torch.cross_entropy/{key}", x, y, weight, ("none", "mean"), options)
                if not kind.startswith("soft"):
                    options = {name: value for name, value in options.items() if name in STATISTICS}
                    found = xent.torch.statistics(x, y, **options)
                    yield from statistics(f"torch.statistics/{key}", found, {"gradient": x})

    # On one thread all products are torch's, and their sums always in the same order.
    torch.set_num_threads(1)
    for name, linear in ((name, make()) for name, make in LINEAR.items()):
        for dtype in linear.dtypes:
            arguments = {
                name: tensor(getattr(linear, name), dtype) for name in ("input", "linear_weight", "linear_bias")
            }
            x, w, b = (argument.requires_grad_() for argument in arguments.values())
            for cut, workspace in linear.workspaces.items():
                for kind in linear.kinds:
                    has_bias, options = LINEAR_KINDS[kind]
                    y = tensor(linear.target(kind), dtype)
                    y = y.requires_grad_() if y.is_floating_point() else y
                    more = {**options, "linear_bias": b if has_bias else None, "workspace": workspace}
                    more |= {"weight": tensor(linear.weight, dtype)} if options else {}
                    named = {"input": x, "linear_weight": w, "linear_bias": more["linear_bias"], "target": y}
                    key = f"torch.linear_cross_entropy/{dtype}/{name}-{kind}-{cut}"
                    for reduction in ("none", "mean"):
                        loss = xent.torch.linear_cross_entropy(x, w, y, reduction=reduction, **more)
                        yield f"{key}/{reduction}/loss", loss
                        yield from gradients(f"{key}/{reduction}", loss, upstream(loss) if loss.ndim else None, named)
                    if kind == "bias":  # a gradient of the loss other than 1
                        loss = xent.torch.linear_cross_entropy(x, w, y, **more)
                        yield from gradients(f"{key}/mean-times-0.3", loss, torch.tensor(0.3).to(loss.dtype), named)
                for kind, (has_bias, options) in LINEAR_STATISTICS.items():
                    bias = b if has_bias else None
                    y = tensor(linear.labels, dtype)
                    found = xent.torch.linear_statistics(x, w, y, linear_bias=bias, workspace=workspace, **options)
                    key = f"torch.linear_statistics/{dtype}/{name}-{kind}-{cut}"
                    yield from statistics(key, found, {"input": x, "linear_weight": w, "linear_bias": bias})


# ------------------------------------------------------------------------------------------------------------- digests


def digest(values) -> str:
    """Twelve hexadecimal digits for dtype, shape and numbers; every NaN counts as the same one, and -0 is not 0."""
    name, array = str(getattr(values, "dtype", None)), values
    if name.startswith("torch."):
        values = values.detach()
        name, array = name.removeprefix("torch."), (values.float() if name == "torch.bfloat16" else values).numpy()
    array = np.array(array, order="C")
    if array.dtype.kind == "f":
        array[np.isnan(array)] = np.nan
    about = f"{name} {array.shape} "
    return hashlib.sha256(about.encode() + array.tobytes()).hexdigest()[:12]


def machine() -> dict[str, str]:
    """What the bits of a result may depend on."""
    import llvmlite.binding
    import numba
    import threadpoolctl
    import torch

    features = ",".join(sorted(name for name, has in llvmlite.binding.get_host_cpu_features().items() if has))
    blas = [
        f"{library['internal_api']} {library['version']} {library.get('architecture', '')}".strip()
        for library in threadpoolctl.threadpool_info()
        if library["user_api"] == "blas" and "numpy" in library["filepath"]
    ]
    return {
        "processor": llvmlite.binding.get_host_cpu_name(),
        "features": hashlib.sha256(features.encode()).hexdigest()[:8],
        "numba": numba.__version__ + (" with SVML" if numba.config.USING_SVML else ""),
        "llvmlite": llvmlite.__version__,
        "numpy": np.__version__,
        "blas": ", ".join(sorted(blas)),
        "torch": f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()}",
        "libc": " ".join(platform.libc_ver()),
    }


def computed(threads: int = THREADS) -> dict[str, object]:
    """The machine, and all digests as a process of its own makes them with so many threads."""
    environment = {
        "XENT_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",  # with more threads the sums of a matrix product may be in another order
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait took 5 times as long beside other processes
    }
    command = [sys.executable, __file__, "--compute", str(threads)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def compute(threads: int) -> dict[str, object]:
    """What `computed` gives, in this process, by kernels alone: what torch and NumPy give for small calls is theirs."""
    found: dict[str, str] = {}
    with by_kernels():
        for entries in (numpy_entries(), torch_entries(threads)):
            for key, values in entries:
                if values is not None:
                    assert key not in found, f"two results are called {key}"
                    found[key] = digest(values)
    return {"about": machine(), "digests": found}


# ---------------------------------------------------------------------------------------------------------- the record


def key_of(about: dict[str, str]) -> str:
    """The name of a machine in the record."""
    return ", ".join(f"{name} {value}" for name, value in about.items())


def records() -> dict[str, dict[str, dict[str, str]]]:
    """The records of all machines: the digests, and those that some results had before."""
    return {name: {part: _flat(parts[part]) for part in ("digests", "before")} for name, parts in _read().items()}


def recorded(about: dict[str, str]) -> dict[str, dict[str, str]] | None:
    """The record of this machine, if there is one."""
    return records().get(key_of(about))


def differing(ours: dict[str, str], theirs: dict[str, str]) -> list[str]:
    """The keys whose digests differ, or that are missing on one side."""
    return sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))


def matches(key: str, patterns) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def write_record(found) -> list[str]:
    """Put the digests in the record; if some differ that MENDED does not list, return them and write nothing."""
    about, digests = found["about"], found["digests"]
    old = recorded(about) or {"digests": {}, "before": {}}
    changed = [key for key in differing(digests, old["digests"]) if key in old["digests"]]
    unexpected = [key for key in changed if not matches(key, MENDED)]
    if unexpected:
        return unexpected
    before = {key: old["digests"][key] for key in changed} | old["before"]  # the first record's digest stays
    whole = {**_read(), key_of(about): {"about": about, "digests": _nested(digests), "before": _nested(before)}}
    RECORD.write_text(_text(whole), encoding="utf-8")
    return []


def _read():
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}


def _text(record) -> str:
    """JSON with one line for each case, so that a difference between two records can be read."""
    machines = []
    for name, parts in sorted(record.items()):
        lines = [f'  "about": {json.dumps(parts["about"])}']
        for part in ("digests", "before"):
            groups = (f"   {json.dumps(group)}: {json.dumps(leaves)}" for group, leaves in parts[part].items())
            lines.append(f'  "{part}": {{\n' + ",\n".join(groups) + "\n  }")
        machines.append(f" {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(machines) + "\n}\n"


def _nested(digests):
    """By call, dtype and case; `_flat` is the way back."""
    groups = {}
    for key, value in digests.items():
        call, dtype, case, result = key.split("/", 3)
        groups.setdefault(f"{call}/{dtype}/{case}", {})[result] = value
    return groups


def _flat(groups):
    return {f"{group}/{result}": value for group, results in groups.items() for result, value in results.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--record", action="store_true")
    action.add_argument("--compare", action="store_true")
    action.add_argument("--show", metavar="PATTERN")
    action.add_argument("--compute", type=int, metavar="THREADS", help="print everything as JSON")
    arguments = parser.parse_args()
    if arguments.compute:
        print(json.dumps(compute(arguments.compute)))
        return 0
    found = computed()
    now, old = found["digests"], recorded(found["about"])
    if arguments.record:
        unexpected = write_record(found)
        print("\n".join(unexpected) if unexpected else f"{len(now)} digests of {key_of(found['about'])}")
        if unexpected:
            print(f"{len(unexpected)} digests differ and are not in MENDED: nothing was written", file=sys.stderr)
        return bool(unexpected)
    if old is None:
        print(f"no record of {key_of(found['about'])}", file=sys.stderr)
        return 2
    if arguments.show:
        for key in sorted(now.keys() | old["digests"].keys()):
            if fnmatchcase(key, arguments.show):
                before = f", before {old['before'][key]}" if key in old["before"] else ""
                print(f"{key}: record {old['digests'].get(key)}{before}, now {now.get(key)}")
        return 0
    keys = differing(now, old["digests"])
    for key in keys:
        print(
            f"{key}{' (mended)' if matches(key, MENDED) else ''}: record {old['digests'].get(key)}, now {now.get(key)}"
        )
    print(f"{len(keys)} of {len(now)} differ", file=sys.stderr)
    return bool(keys)


if __name__ == "__main__":
    sys.exit(main())
