"""The threads of the CPU kernels: called from many threads, after a fork, in a worker, and with an empty cache."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import xent.numpy
import xent.torch
from xent.cpu import threads

ROWS, CLASSES = 512, 600  # above the size from which on a call is shared between threads


def inputs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(ROWS, CLASSES)).astype(np.float32), generator.integers(0, CLASSES, ROWS)


def result(seed: int = 0) -> tuple[float, bytes]:
    loss, gradient = xent.numpy.cross_entropy_value_and_grad(*inputs(seed), label_smoothing=0.1)
    return float(loss), gradient.tobytes()


@pytest.fixture
def restored_threads():
    before = threads.get_num_threads()
    yield
    threads.set_num_threads(before)


def test_results_have_the_same_bits_for_any_number_of_threads(restored_threads):
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
    with pytest.raises(ValueError, match="found 0, expected 1 or more"):
        threads.set_num_threads(0)


def test_eight_threads_call_two_hundred_times_at_once(restored_threads):
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
def test_a_forked_child_computes_with_threads_of_its_own():
    """The pool's threads do not survive a fork; the child must not wait for them."""
    expected = result()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            threads.set_num_threads(2)
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


PROGRAM = """
import numpy as np, sys, xent.numpy
logits = np.random.default_rng(0).normal(size=(8, 300)).astype(np.float32)
print(repr(xent.numpy.cross_entropy(logits, np.arange(8)).item()))
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
