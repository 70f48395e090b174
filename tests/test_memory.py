"""xent.memory: what is handed out is nobody else's, what is given back serves again, and the peak does not rise."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from xent import memory
from xent.errors import ArgumentError

MB = 2**20

pytestmark = pytest.mark.skipif(not memory.HAS_PRIVATE_PAGES, reason="this system has no MADV_FREE")


@pytest.fixture(autouse=True)
def nothing_idle():
    memory.release()
    yield
    memory.release()


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16, np.float16, np.int64])
@pytest.mark.parametrize("shape", [(3000, 1001), 4_000_001, (7, 1000, 333), (5, 0), ()])
def test_an_array_like_any_other(shape, dtype):
    array = memory.empty(shape, dtype)
    expected = np.empty(shape, dtype)
    assert (array.shape, array.dtype, array.strides) == (expected.shape, expected.dtype, expected.strides)
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert address(array) % 16 == 0
    array[...] = 3
    assert (array == 3).all()


def test_a_block_serves_again():
    first = memory.empty(16 * MB, np.uint8)
    place = address(first)
    assert memory.idle_bytes() == 0
    del first
    assert memory.idle_bytes() == 16 * MB
    second = memory.empty((4, MB - 1), np.float32)  # a little smaller, another shape and dtype
    assert address(second) == place
    assert memory.idle_bytes() == 0


def test_a_view_keeps_its_block():
    view = memory.empty((4, 4 * MB), np.uint8)[2, 5:9]
    view[:] = 7
    others = [memory.empty(16 * MB, np.uint8) for _ in range(3)]
    for other in others:
        other[:] = 1
    assert view.tolist() == [7, 7, 7, 7]
    del view
    assert memory.idle_bytes() == 16 * MB


def test_a_tensor_keeps_its_block():
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(memory.empty(16 * MB, np.uint8))
    row = tensor.view(16, MB)[3]
    del tensor
    assert memory.idle_bytes() == 0
    del row
    assert memory.idle_bytes() == 16 * MB


def test_what_does_not_fit_drops_the_idle():
    """So that the peak of a process is what it would be without keeping."""
    del (kept := [memory.empty(16 * MB, np.uint8), memory.empty(32 * MB, np.uint8)])[:]
    assert kept == []
    assert memory.idle_bytes() == 48 * MB
    array = memory.empty(100 * MB, np.uint8)
    assert memory.idle_bytes() == 0
    assert array.size == 100 * MB


def test_a_small_request_does_not_take_a_large_block():
    large = memory.empty(64 * MB, np.uint8)
    place = address(large)
    del large
    small = memory.empty(10 * MB, np.uint8)
    assert address(small) != place


def test_small_arrays_are_left_to_the_c_library():
    array = memory.empty(MB, np.uint8)
    assert array.base is None
    del array
    assert memory.idle_bytes() == 0


def test_no_more_is_kept_than_allowed(monkeypatch):
    monkeypatch.setattr(memory, "KEPT", 40 * MB)
    del (arrays := [memory.empty(16 * MB, np.uint8) for _ in range(4)])[:]
    assert arrays == []
    assert memory.idle_bytes() == 32 * MB
    monkeypatch.setattr(memory, "KEPT", 0)
    memory.release()
    memory.empty(16 * MB, np.uint8)
    assert memory.idle_bytes() == 0


@pytest.mark.parametrize("text", ["-1", "2GB", "", "many"])
def test_an_unreadable_limit_is_told(text):
    with pytest.raises(ArgumentError, match=r"XENT_KEPT_BYTES.*number of bytes"):
        memory.limit(text)


def test_a_quarter_of_the_memory_is_kept_where_nothing_is_said():
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert abs(memory.limit(None) - total / 4) < 0.01 * total


def test_the_environment_sets_the_limit():
    code = "import numpy as np; from xent import memory; memory.empty(2**25, np.uint8); print(memory.idle_bytes())"
    for limit, kept in (("0", "0"), (str(2**26), str(2**25))):
        environment = {**os.environ, memory.VARIABLE: limit}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == kept


def test_many_threads_at_once():
    """Nobody writes into what another thread holds, and nothing is lost or handed out twice."""
    wrong = []

    def work(mark):
        rng = np.random.default_rng(mark)
        held = []
        for turn in range(60):
            array = memory.empty(int(rng.integers(8, 14)) * MB, np.uint8)
            array[:: MB // 2] = mark * 60 % 251 + turn % 4
            held.append((array, mark * 60 % 251 + turn % 4))
            if len(held) > 2:
                old, value = held.pop(int(rng.integers(len(held))))
                if not (old[:: MB // 2] == value).all():
                    wrong.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_gradients_come_from_kept_memory():
    """A training loop: from the second step on the gradient lies where the first one lay, and is right all the same."""
    torch = pytest.importorskip("torch")
    from xent.torch import cross_entropy

    target = torch.arange(2000)
    places = set()
    for seed in range(3):
        logits = torch.randn(2000, 2500, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        cross_entropy(logits, target).backward()
        expected = (logits.detach().double().softmax(1) - torch.eye(2500, dtype=torch.double)[:2000]) / 2000
        places.add(logits.grad.data_ptr())
        # Each of exponential, sum and product is rounded to float32 a few times.
        torch.testing.assert_close(logits.grad.double(), expected, rtol=1e-5, atol=1e-11)
    assert len(places) == 1


@pytest.mark.parametrize("unmarked", [0, 2**40])
def test_kept_memory_is_usable_whether_it_is_marked_or_not(monkeypatch, unmarked):
    memory.release()
    monkeypatch.setattr(memory, "UNMARKED", unmarked)
    first = memory.empty(16 * MB, np.uint8)
    first[:] = 1
    place = first.ctypes.data
    del first
    second = memory.empty(16 * MB, np.uint8)
    assert second.ctypes.data == place
    second[:] = 2
    assert (second == 2).all()
