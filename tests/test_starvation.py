"""Too little memory, at many points of a call: MemoryError or the right result, and then the next call is right."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("resource", reason="the limit of a process's memory is POSIX's")


PROGRAM = """
import gc, resource, sys
import numpy as np, torch
import xent.memory, xent.numpy, xent.torch

POINTS = int(sys.argv[2])
torch.set_num_threads(2)
generator = np.random.default_rng(0)
x = generator.normal(size=(600, 8000)).astype(np.float32)
h, w = generator.normal(size=(600, 64)).astype(np.float32), generator.normal(size=(8000, 64)).astype(np.float32)
y = generator.integers(0, 8000, 600)
tensors = [torch.from_numpy(array).requires_grad_() for array in (x, h, w)]
labels = torch.from_numpy(y)


def of_numpy():
    return xent.numpy.cross_entropy_value_and_grad(x, y)


def of_torch():
    loss = xent.torch.cross_entropy(tensors[0], labels)
    return loss, *torch.autograd.grad(loss, tensors[0])


def of_layer():
    loss = xent.torch.linear_cross_entropy(tensors[1], tensors[2], labels)
    return loss, *torch.autograd.grad(loss, tensors[1:])


def of_layer_in_numpy():
    loss, gradients = xent.numpy.linear_cross_entropy_value_and_grad(h, w, y)
    return loss, gradients.input, gradients.linear_weight


call = {"numpy": of_numpy, "torch": of_torch, "layer": of_layer, "layer in numpy": of_layer_in_numpy}[sys.argv[1]]
digest = lambda found: [np.asarray(part.detach() if hasattr(part, "detach") else part).tobytes() for part in found]
wanted = digest(call())


def used():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


before = resource.getrlimit(resource.RLIMIT_AS)
failed = passed = 0
for point in range(POINTS):
    gc.collect()
    xent.memory.release()
    resource.setrlimit(resource.RLIMIT_AS, (used() + point * 80 * 2**20 // POINTS, before[1]))
    try:
        found = call()
    except MemoryError:
        failed += 1
        found = None
    except RuntimeError as error:  # torch's own allocator
        assert "memory" in str(error), error
        failed += 1
        found = None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    if found is not None:
        passed += 1
        assert digest(found) == wanted, point
    del found
    assert digest(call()) == wanted, point
print(failed, passed)
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("call", "points"),
    [
        *((call, 12) for call in ("torch", "layer")),
        *(pytest.param(call, 40, marks=pytest.mark.slow) for call in ("torch", "layer", "numpy", "layer in numpy")),
    ],
)
def test_starvation_is_a_memory_error_and_the_next_call_is_right(call, points):
    """R3."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, call, str(points)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    failed, passed = map(int, done.stdout.split())
    assert failed + passed == points
    assert failed >= points // 8, "nothing was short"
