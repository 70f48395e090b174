"""Fixtures that every test file shares: what is tested, and over which array libraries."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Two workers share the cores: threads of OpenMP that wait in a busy loop would take them from the other worker. The
# runtime reads this when it is loaded, with torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

sys.path.insert(0, str(Path(__file__).parent))  # cases, comparison, implementations, libraries, mpmath_oracle

import implementations
from implementations import FRONTS, IMPLEMENTATIONS
from libraries import LIBRARIES

settings.register_profile("here", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("here"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture(scope="session", params=IMPLEMENTATIONS, ids=lambda implementation: implementation.name)
def implementation(request):
    """Each implementation of the softmax cross-entropy of rows."""
    return request.param


@pytest.fixture(scope="session", params=FRONTS, ids=lambda front: front.name)
def front(request):
    """Each implementation that a user calls: it checks, reduces and takes any shape."""
    return request.param


@pytest.fixture(scope="module", autouse=True)
def _garbage_is_young():
    """Let the garbage collector look at no object that was there before these tests: millions, by torch and pytest."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    """What was frozen can be freed again."""
    gc.unfreeze()


@pytest.fixture
def by_kernels():
    """Kernels compute small calls too."""
    with implementations.by_kernels():
        yield


@pytest.fixture(scope="session", params=LIBRARIES)
def xp(request):
    """Each array library, as a Library (libraries.py); imported only when a test asks for it."""
    return importlib.import_module("libraries").load(request.param)
