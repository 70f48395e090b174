"""Settings from environment variables: one table, one line of error, and a process in which nothing may be compiled."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from xent import environment
from xent.errors import ArgumentError

REPOSITORY = Path(__file__).parent.parent


@pytest.mark.parametrize("variable", environment.SETTINGS)
@pytest.mark.parametrize("text", ["", "-1", "1.5", "many", "0x10", "9" * 5000, "１", " 1", "1\n"])
def test_a_setting_that_is_no_number_is_refused_with_one_line(variable, text, monkeypatch):
    monkeypatch.setenv(variable, text)
    with pytest.raises(ArgumentError) as error:
        environment.setting(variable)
    assert re.fullmatch(rf"{variable}: found .*, expected a whole number, .*\. Set it to .*", str(error.value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("variable", environment.SETTINGS)
def test_a_setting_within_its_range_is_read(variable, monkeypatch):
    monkeypatch.delenv(variable, raising=False)
    assert environment.setting(variable) is None
    for value in (environment.SETTINGS[variable].least, 1):
        monkeypatch.setenv(variable, str(value))
        assert environment.setting(variable) == value


def test_the_table_and_the_document_name_all_of_them():
    documents = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")
    for name in environment.SETTINGS:
        assert f"| {name} |" in (environment.__doc__ or "")
        assert f"| `{name}` |" in documents


def test_no_other_file_reads_a_variable_of_ours():
    """Each fact at home in one place: `os.environ` is asked for these names by environment.py alone."""
    readers = [
        path.name
        for path in (REPOSITORY / "src" / "xent").rglob("*.py")
        if re.search(r"environ(\.get)?[\[(]\s*[\"'](XENT_|NUMBA_DISABLE)", path.read_text(encoding="utf-8"))
    ]
    assert readers == []


def test_the_doctor_shows_what_is_set():
    variables = {**os.environ, "XENT_NUM_THREADS": "3"}
    done = subprocess.run(
        [sys.executable, "-m", "xent", "doctor", "--json"], capture_output=True, text=True, env=variables, check=True
    )
    shown = json.loads(done.stdout)["environment"]
    assert shown["XENT_NUM_THREADS"] == "3"
    assert environment.SETTINGS.keys() <= shown.keys()


UNCOMPILED = """
import warnings
warnings.simplefilter("ignore")
import numpy as np, torch, xent, xent.numpy, xent.torch
import torch.nn.functional as F

x = np.array([[2.0, 1.0, -np.inf], [0.5, 2.5, 0.0], [1.0, 2.0, 3.0]])
y = np.array([0, 1, -100])
options = {"weight": np.array([1.0, 0.5, 2.0]), "label_smoothing": 0.0}
t = torch.tensor(x, requires_grad=True)
wanted = F.cross_entropy(t, torch.tensor(y), torch.tensor(options["weight"]))
(gradient,) = torch.autograd.grad(wanted, t)
value, found = xent.numpy.cross_entropy_value_and_grad(x, y, **options)
assert abs(value - wanted.item()) < 1e-14 and np.abs(found - gradient.numpy()).max() < 1e-14
for dtype in (np.float16, np.float32):
    value, found = xent.numpy.cross_entropy_value_and_grad(x.astype(dtype), y, **options)
    assert value.dtype == np.float32 and found.dtype == dtype and abs(value - wanted.item()) < 1e-6
ours = xent.torch.cross_entropy(t, torch.tensor(y), torch.tensor(options["weight"]))
assert abs(ours.item() - wanted.item()) < 1e-14
assert (torch.autograd.grad(ours, t)[0] - gradient).abs().max() < 1e-14
h, w = np.arange(6.0).reshape(3, 2) / 6, np.arange(6.0).reshape(3, 2) / 3
value, found = xent.numpy.linear_cross_entropy_value_and_grad(h, w, y)
hidden, head = torch.tensor(h, requires_grad=True), torch.tensor(w, requires_grad=True)
loss = F.cross_entropy(hidden @ head.T, torch.tensor(y))
loss.backward()
assert abs(value - loss.item()) < 1e-14 and np.abs(found.linear_weight - head.grad.numpy()).max() < 1e-14
assert abs(xent.torch.linear_cross_entropy(hidden, head, torch.tensor(y)).item() - loss.item()) < 1e-14
statistics = xent.torch.statistics(t, torch.tensor(y))
assert statistics.rank.tolist() == [0, 0, -1]
score = xent.score([[0.5, 0.5], [0.2, 0.8]], [0, 1])
assert abs(score.cross_entropy.nats - (np.log(2) - np.log(0.8)) / 2) < 1e-14
print("right")
"""


def uncompiled(*arguments):
    variables = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=variables, check=False)


def test_without_a_compiler_the_definitions_serve():
    """R9: NUMBA_DISABLE_JIT=1, as debuggers and coverage tools set it."""
    variables = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", UNCOMPILED], capture_output=True, text=True, env=variables, check=False
    )
    assert done.stdout == "right\n", done.stderr


def test_without_a_compiler_a_warning_says_so():
    variables = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", "import xent.numpy"],
        capture_output=True,
        text=True,
        env=variables,
        check=True,
    )
    assert "NUMBA_DISABLE_JIT is set, so that the float64 definitions serve in place of kernels, slowly" in done.stderr
