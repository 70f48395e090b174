"""The threads of the CPU kernels: called from many threads, after a fork, in a worker, and with an empty cache.

What is about sharing work holds for the threads of torch's OpenMP runtime and for the pool alike.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import xent.numpy
import xent.torch
from xent.backends.cpu import kernels, threads
from xent.backends.cpu.team import row_kernel
from xent.errors import ArgumentError

ROWS, CLASSES = 512, 600  # above the size from which on a call is shared between threads


def inputs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(ROWS, CLASSES)).astype(np.float32), generator.integers(0, CLASSES, ROWS)


def result(seed: int = 0) -> tuple[float, bytes]:
    loss, gradient = xent.numpy.cross_entropy_value_and_grad(*inputs(seed), label_smoothing=0.1)
    return float(loss), gradient.tobytes()


@pytest.fixture(params=["openmp", "pool"])
def helpers(request):
    """Who takes part in a call beside its caller."""
    if request.param == "pool":
        with threads.without_openmp():
            yield request.param
        return
    if not threads.uses_openmp():
        pytest.skip("this build of torch has no OpenMP runtime that is entered by GOMP_parallel")
    yield request.param


@row_kernel
def _visit(visits, failing, first, last):
    for row in range(first, last):
        visits[row] += 1
        if row == failing:
            raise ValueError("a row that fails")


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("rows", [0, 1, 2, 7, 1000, 4097])
def test_every_row_is_visited_once(helpers, rows, count):
    visits = np.zeros(rows, np.int64)
    threads.over_rows(_visit, (visits, -1), rows, count)
    assert (visits == 1).all()


@pytest.mark.parametrize("failing", [0, 999])
def test_an_error_on_any_thread_reaches_the_caller(helpers, failing):
    visits = np.zeros(1000, np.int64)
    for _ in range(20):
        with pytest.raises(ValueError, match="a row that fails"):
            threads.over_rows(_visit, (visits, failing), len(visits), 2)
    threads.over_rows(_visit, (np.zeros(1000, np.int64), -1), 1000, 2)


def test_both_kinds_of_helpers_give_the_same_bits():
    found = result()
    with threads.without_openmp():
        assert result() == found


@pytest.mark.parametrize("library", ["/nowhere.so", math.__file__])
def test_a_library_without_openmp_has_no_entry(library):
    assert threads.openmp_entry(library) == threads.NO_TEAM


# What belongs to the whole process, or to another package; printed as JSON before and after.
STATE = """
import gc, json, logging, multiprocessing, os, random, signal, sys, threading, warnings
import numpy as np, torch
from xent.backends.cpu import threads

def state():
    return {
        "environment": dict(os.environ),
        "path": list(sys.path),
        "signals": [repr(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "warnings": [repr(filter) for filter in warnings.filters],
        "numpy": [repr(np.geterr()), repr(np.get_printoptions()), repr(np.random.get_state()[1:])],
        "multiprocessing": multiprocessing.get_start_method(allow_none=True),
        "torch": [
            torch.get_num_threads(), torch.get_num_interop_threads(), repr(torch.get_default_dtype()),
            repr(torch.get_default_device()), torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(), torch.get_float32_matmul_precision(),
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.get_rng_state().tolist(),
        ],
        "random": repr(random.getstate()),
        "hooks": [repr(sys.excepthook), repr(threading.excepthook), repr(sys.unraisablehook)],
        "logging": [repr(logging.getLogger().handlers), logging.getLogger().level, logging.root.manager.disable],
        "limits": [gc.get_threshold(), gc.isenabled(), sys.getrecursionlimit(), sys.getswitchinterval()],
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "xent": {name: repr(value) for name, value in vars(threads).items() if not name.startswith("__")},
    }

before = state()
import xent.torch
print(json.dumps([before, state()]))
"""


def test_importing_the_torch_front_sets_no_state():
    done = subprocess.run([sys.executable, "-c", STATE], capture_output=True, text=True, check=True)
    before, after = json.loads(done.stdout)
    for name, value in before.items():
        assert after[name] == value, name
    assert done.stderr == ""


LAZY = """
import sys
import numpy as np
import xent.numpy
from xent.backends.cpu import threads

rng = np.random.default_rng(0)
logits, labels = rng.normal(size=(512, 600)).astype(np.float32), rng.integers(0, 600, 512)
threads.set_num_threads(2)
alone = xent.numpy.cross_entropy(logits, labels), threads._openmp, threads.uses_openmp()
import torch
beside = xent.numpy.cross_entropy(logits, labels), threads._openmp is None, threads.uses_openmp()
print(alone[0] == beside[0], alone[1:], beside[1:])
"""


def test_the_openmp_runtime_is_looked_for_when_torch_is_there():
    done = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True, check=True)
    assert done.stdout == f"True (None, False) (False, {threads.uses_openmp()})\n"


@pytest.fixture
def unread_threads(monkeypatch):
    """The number of threads as if it had not been read yet."""
    monkeypatch.setattr(threads, "_threads", None)


@pytest.mark.parametrize("text", ["0", "-1", "two", "", " 2 ", "1.5", "9" * 5000, "\u00b2"])
def test_a_wrong_number_of_threads_is_refused_at_first_use(text, monkeypatch, unread_threads):
    monkeypatch.setenv("XENT_NUM_THREADS", text)
    with pytest.raises(ArgumentError, match=r"^XENT_NUM_THREADS: found .*, expected a whole number.*or unset it$"):
        xent.numpy.cross_entropy(*inputs())


def test_the_environment_sets_the_number_of_threads(monkeypatch, unread_threads):
    monkeypatch.setenv("XENT_NUM_THREADS", "3")
    assert threads.get_num_threads() == 3


def test_labels_with_gaps_or_read_only_compile_no_kernel_anew():
    logits, labels = inputs()
    xent.numpy.cross_entropy(logits, labels)
    before = len(kernels.forward.signatures)
    with_gaps = torch.from_numpy(np.repeat(labels, 2))[::2]
    expected = xent.torch.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    assert torch.equal(xent.torch.cross_entropy(torch.from_numpy(logits), with_gaps), expected)
    wide = np.concatenate([logits, logits], axis=1)
    assert xent.numpy.cross_entropy(wide[:, :CLASSES], labels) == expected.item()
    for array in (logits, labels):
        array.flags.writeable = False
    assert xent.numpy.cross_entropy(logits, labels) == expected.item()
    assert len(kernels.forward.signatures) == before


@pytest.fixture
def restored_threads():
    before = threads.get_num_threads()
    yield
    threads.set_num_threads(before)


def test_results_have_the_same_bits_for_any_number_of_threads(helpers, restored_threads):
    found = set()
    for count in (1, 2, 3, 7):
        threads.set_num_threads(count)
        found.add(result())
    assert len(found) == 1


def test_torch_decides_the_number_of_threads_of_its_front():
    before = torch.get_num_threads()
    logits, labels = (torch.from_numpy(array) for array in inputs())
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(xent.torch.cross_entropy(logits, labels, reduction="none"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_a_number_of_threads_below_one_is_refused():
    with pytest.raises(ArgumentError, match="found 0, expected 1 or more"):
        threads.set_num_threads(0)


def test_eight_threads_call_two_hundred_times_at_once(helpers, restored_threads):
    threads.set_num_threads(2)
    expected = [result(seed) for seed in range(8)]
    wrong: list[int] = []

    def call(seed: int) -> None:
        for _ in range(200):
            if result(seed) != expected[seed]:
                wrong.append(seed)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=240)
    assert not any(caller.is_alive() for caller in callers), "a call never came back"
    assert wrong == []


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*fork.*:RuntimeWarning")
def test_a_forked_child_computes_with_threads_of_its_own(helpers, restored_threads):
    """The parent's threads do not survive a fork; the child must not wait for them."""
    threads.set_num_threads(2)
    expected = result()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, b"same" if result() == expected else b"different")
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"same"
    os.waitpid(child, 0)
    assert result() == expected


class _Losses(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> float:
        return result(index)[0]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*fork.*:RuntimeWarning")
def test_data_loader_workers_compute_losses():
    expected = [result(seed)[0] for seed in range(4)]
    loader = torch.utils.data.DataLoader(_Losses(), num_workers=2, batch_size=None, multiprocessing_context="fork")
    assert list(loader) == expected


# The smallest kernel: all go through the same cache.
PROGRAM = """
import numpy as np
from xent.backends.cpu.accumulation import add
from xent.backends.cpu.threads import over_rows
total = np.full(1000, 0.5)
over_rows(add, (np.arange(1000.0), total, False), len(total), 2)
print(total.sum())
"""


def started(cache: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


def test_two_processes_with_an_empty_cache_at_once_and_a_third_that_finds_it_filled(tmp_path):
    both = [started(str(tmp_path)) for _ in range(2)]
    answers = {finished(process) for process in both}
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert kept, "nothing was cached"
    answers.add(finished(started(str(tmp_path))))
    assert len(answers) == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == kept


def test_a_cache_folder_that_cannot_be_written_costs_time_and_nothing_else(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    usable = tmp_path / "cache"
    assert finished(started(str(blocked / "below"))) == finished(started(str(usable)))


@pytest.mark.slow
def test_more_elements_than_32_bits_can_count():
    """2^31 + 2^16 float16 logits: offsets beyond int32 (pytorch #85786, #111484; ml-cross-entropy #37)."""
    classes = 2**16
    rows = 2**15 + 1
    logits = np.zeros((rows, classes), dtype=np.float16)
    logits[-1, 7] = 5.0
    labels = np.zeros(rows, dtype=np.int64)
    labels[-1] = 7
    losses = xent.numpy.cross_entropy(logits, labels, reduction="none")
    assert losses[0] == pytest.approx(np.log(classes), rel=1e-6)
    assert losses[-1] == pytest.approx(np.log(classes - 1 + np.exp(5.0)) - 5.0, rel=1e-6)
    _, gradient = xent.numpy.cross_entropy_value_and_grad(logits, labels, reduction="sum")
    assert gradient[-1, 7] == pytest.approx(np.exp(5.0) / (classes - 1 + np.exp(5.0)) - 1, rel=1e-3)
    assert gradient[-2, 0] == pytest.approx(-1, rel=1e-3)


@pytest.mark.slow
def test_more_elements_than_32_bits_can_count_with_positions_after_the_classes():
    """The last sample begins 2^31 logits after the first, beyond int32 (pytorch #190139, in backward)."""
    classes, positions = 2**10, 2**6
    samples = 2**15 + 1
    logits = np.zeros((samples, classes, positions), dtype=np.float16)
    logits[-1, 7] = 5.0
    labels = np.zeros((samples, positions), dtype=np.int64)
    labels[-1] = 7
    losses = xent.numpy.cross_entropy(logits, labels, reduction="none")
    assert losses[0] == pytest.approx(np.log(classes), rel=1e-6)
    assert losses[-1] == pytest.approx(np.log(classes - 1 + np.exp(5.0)) - 5.0, rel=1e-6)
    _, gradient = xent.numpy.cross_entropy_value_and_grad(logits, labels, reduction="sum")
    q = np.exp(5.0) / (classes - 1 + np.exp(5.0))
    assert gradient[-1, 7] == pytest.approx(q - 1, rel=1e-3)
    assert gradient[-1, 8] == pytest.approx(np.exp(-5.0) * q, rel=1e-3)
    assert gradient[-2, 0] == pytest.approx(1 / classes - 1, rel=1e-3)
    assert gradient[0, 0] == pytest.approx(1 / classes - 1, rel=1e-3)
