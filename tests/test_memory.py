"""xent.memory: what is handed out is nobody else's, what is given back serves again, and the peak does not rise."""

import errno
import mmap
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
    monkeypatch.setattr(memory, "limit", lambda: 40 * MB)
    del (arrays := [memory.empty(16 * MB, np.uint8) for _ in range(4)])[:]
    assert arrays == []
    assert memory.idle_bytes() == 32 * MB
    monkeypatch.setattr(memory, "limit", lambda: 0)
    memory.release()
    memory.empty(16 * MB, np.uint8)
    assert memory.idle_bytes() == 0


def test_all_that_is_idle_is_given_back():
    """Marked and unmarked memory alike: the address space of the process is what it was."""
    before = mapped_bytes()
    del (arrays := [memory.empty(16 * MB, np.uint8) for _ in range(6)])[:]
    assert arrays == []
    assert memory.idle_bytes() == 96 * MB
    assert mapped_bytes() - before >= 96 * MB
    memory.release()
    assert memory.idle_bytes() == 0
    assert mapped_bytes() - before < 16 * MB


def mapped_bytes():
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


class RefusingPages(mmap.mmap):
    def madvise(self, *arguments):
        raise OSError(errno.EINVAL, "Invalid argument")


def test_a_hint_that_the_system_refuses_is_no_error(monkeypatch):
    """A kernel without huge pages answers EINVAL."""
    monkeypatch.setattr(mmap, "mmap", RefusingPages)
    monkeypatch.setattr(memory, "UNMARKED_PART", 2**40)
    array = memory.empty(16 * MB, np.uint8)
    array[:] = 3
    place = address(array)
    del array
    assert address(memory.empty(16 * MB, np.uint8)) == place


def test_out_of_memory_is_a_memory_error_and_the_next_call_is_right():
    idle = memory.empty(16 * MB, np.uint8)
    del idle
    for size in (2**56, 2**62):
        with pytest.raises(MemoryError, match="no memory for an array"):
            memory.empty(size, np.uint8)
    assert memory.idle_bytes() == 0
    array = memory.empty(16 * MB, np.uint8)
    array[:] = 1
    assert (array == 1).all()


@pytest.fixture
def unread_limit():
    """The limit as if it had not been read yet."""
    memory.limit.cache_clear()
    yield
    memory.limit.cache_clear()


@pytest.mark.parametrize("text", ["-1", "2GB", "", "many", "9" * 5000])
def test_an_unreadable_limit_is_refused_at_first_use(text, monkeypatch, unread_limit):
    monkeypatch.setenv(memory.VARIABLE, text)
    with pytest.raises(ArgumentError, match=r"^XENT_KEPT_BYTES: found .*, expected.*number of bytes"):
        memory.empty(10, np.uint8)


def test_an_unreadable_limit_is_no_error_of_the_import():
    environment = {**os.environ, memory.VARIABLE: "2GB"}
    subprocess.run([sys.executable, "-c", "import xent.memory, xent.numpy, xent.torch"], env=environment, check=True)


def test_a_quarter_of_the_memory_is_kept_and_one_gibibyte_at_most(monkeypatch, unread_limit):
    for available, kept in ((2 * 2**30, 2**29), (4 * 2**30, 2**30), (2**40, 2**30), (0, 0)):
        memory.limit.cache_clear()
        monkeypatch.setattr(memory, "available_memory", lambda available=available: available)
        assert memory.limit() == kept


# ----------------------------------------------------------------------------- the limits of a container, in fake trees

UNLIMITED = str(2**63 - 4096)  # what a group of version 1 says that has no limit
MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
V2 = "30 24 0:26 {group} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "35 31 0:32 {group} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory"
OTHER = "33 31 0:30 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"


def tree(root, groups, mounts, files):
    """Files of proc and sys below a folder."""
    files = {"proc/self/cgroup": "\n".join(groups), "proc/self/mountinfo": "\n".join(mounts), **files}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def version_2(files):
    return {f"sys/fs/cgroup/{name}memory.max": text for name, text in files.items()}


def version_1(files):
    return {f"sys/fs/cgroup/memory/{name}memory.limit_in_bytes": text for name, text in files.items()}


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "available"),
    {
        "version 2, in the container": (["0::/"], [V2.format(group="/")], version_2({"": "300000000"}), 300_000_000),
        "version 2, nested": (
            ["0::/user.slice/job"],
            [V2.format(group="/")],
            version_2({"user.slice/": "200000000", "user.slice/job/": "900000000"}),
            200_000_000,
        ),
        "version 2, no limit inside": (
            ["0::/user.slice/job"],
            [V2.format(group="/")],
            version_2({"user.slice/": "200000000", "user.slice/job/": "max"}),
            200_000_000,
        ),
        "version 2, unlimited": (["0::/job"], [V2.format(group="/")], version_2({"job/": "max"}), MACHINE),
        "version 2, the own group mounted": (
            ["0::/docker/abc"],
            [V2.format(group="/docker/abc")],
            version_2({"": "100000000"}),
            100_000_000,
        ),
        "version 2, another group mounted": (
            ["0::/../other"],
            [V2.format(group="/docker/abc")],
            version_2({"": "100000000"}),
            100_000_000,
        ),
        "version 1": (
            ["5:memory,hugetlb:/job", "3:cpu:/", "0::/"],
            [OTHER, V1.format(group="/")],
            version_1({"": UNLIMITED, "job/": "400000000"}),
            400_000_000,
        ),
        "version 1, nested": (
            ["5:memory:/a/b/c"],
            [V1.format(group="/")],
            version_1({"": UNLIMITED, "a/": "150000000", "a/b/": UNLIMITED, "a/b/c/": "250000000"}),
            150_000_000,
        ),
        "version 1, unlimited": (["5:memory:/"], [V1.format(group="/")], version_1({"": UNLIMITED}), MACHINE),
        "version 1, the own group mounted": (
            ["5:memory:/docker/abc"],
            [V1.format(group="/docker/abc")],
            version_1({"": "100000000"}),
            100_000_000,
        ),
        "both versions": (
            ["5:memory:/job", "0::/job"],
            [V1.format(group="/"), V2.format(group="/").replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")],
            {**version_1({"job/": "400000000"}), "sys/fs/cgroup/unified/job/memory.max": "100000000"},
            100_000_000,
        ),
        "larger than the machine": (["0::/"], [V2.format(group="/")], version_2({"": str(2**60)}), MACHINE),
        "memory of another group": (["4:cpu:/job"], [OTHER, V1.format(group="/")], version_1({"": "5000"}), MACHINE),
        "no group": ([], [], {}, MACHINE),
        "files of another format": (["memory"], ["cgroup2"], {}, MACHINE),
    }.values(),
    ids=lambda value: None,
)
def test_the_limit_of_a_container_counts(tmp_path, groups, mounts, files, available):
    assert memory.available_memory(tree(tmp_path, groups, mounts, files)) == available


def test_without_proc_the_machine_counts(tmp_path):
    assert memory.available_memory(tmp_path) == MACHINE


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


@pytest.mark.parametrize("unmarked_part", [2**40, 1])
def test_kept_memory_is_usable_whether_it_is_marked_or_not(monkeypatch, unmarked_part):
    memory.release()
    monkeypatch.setattr(memory, "UNMARKED_PART", unmarked_part)
    first = memory.empty(16 * MB, np.uint8)
    first[:] = 1
    place = first.ctypes.data
    del first
    second = memory.empty(16 * MB, np.uint8)
    assert second.ctypes.data == place
    second[:] = 2
    assert (second == 2).all()
