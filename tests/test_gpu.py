"""The GPU's kernels: the shared tests and their own under Triton's interpreter, and compiled for GPUs not here.

Triton decides at import whether it interprets, so that each of these runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_bars import judge
from benchmarks.record_tables import gpu, gpu_bars

pytest.importorskip("triton")

HERE = Path(__file__).parent
SOURCE = HERE.parent / "src"

# The tests of an implementation, on both; those of small tiles where blocks of classes are what matters. Left out are
# comparisons with torch, whose cases the oracle has too, and the repetition of 300 rows, which NumPy cannot fail.
SELECTED = (
    "gpu and not agrees_with_torch and not bit_for_bit"
    " and (not small or rows_agree or any_number or not_a_number or no_block_divides)"
)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.run(
        [sys.executable, *arguments], cwd=HERE.parent, env=variables, capture_output=True, text=True, check=False
    )


def pytest_in_the_interpreter(*arguments: str) -> str:
    """Run pytest with the GPU's implementations; return its last line. NumPy warns of inf - inf, which is legal."""
    found = run(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning", "-n", "0"),
        *arguments,
        TRITON_INTERPRET="1",
        XENT_TEST_IMPLEMENTATIONS="gpu",
    )
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
    return found.stdout.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("file", "at_least"),
    [
        ("test_value", 120),
        ("test_edges", 110),
        ("test_gradient", 90),
        ("test_known_failures", 40),
    ],
)
def test_the_shared_tests_pass(file, at_least):
    passed = pytest_in_the_interpreter(f"tests/{file}.py", "-k", SELECTED)
    assert int(passed.split(" passed")[0].split()[-1]) >= at_least, passed


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("files", "at_least"),
    [
        (("interpreted", "interpreted_linear"), 80),
        pytest.param(
            ("interpreted_divergence", "interpreted_binary", "interpreted_contrast"), 90, marks=pytest.mark.slow
        ),
    ],
    ids=["cross-entropy", "other-losses"],
)
def test_what_only_the_gpu_has_passes(files, at_least):
    passed = pytest_in_the_interpreter(*(f"tests/{file}.py" for file in files))
    assert int(passed.split(" passed")[0].split()[-1]) >= at_least, passed


@pytest.mark.timeout(900)
def test_execution_modes_agree():
    """The front over the GPU's backend: every mode of its own kind, on a few cases. All of them pass on a GPU."""
    modes = "eager or aot_eager or deferred or double or checkpoint or (func and (vmap or hessian or jvp)) or batched"
    cases = "entropy-everything or logits-everything or soft-everything or ignored-none"
    selected = f"every_mode and ({modes}) and ({cases})"
    passed = pytest_in_the_interpreter("tests/test_execution_modes.py", "-k", selected)
    assert int(passed.split(" passed")[0].split()[-1]) >= 40, passed


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "target", [("cuda", "90", "32"), pytest.param(("hip", "gfx942", "64"), marks=pytest.mark.slow)], ids="-".join
)
def test_every_kernel_compiles(target):
    """To machine code; rows of 32000 classes, which 16 divides, are read and written 128 bits at a time."""
    found = run(str(HERE / "compiled.py"), *target)
    assert found.returncode == 0, found.stderr[-3000:]
    kernels = json.loads(found.stdout.splitlines()[-1])
    assert {name: len(codes) for name, codes in kernels.items()} == {
        "forward": 4,
        "backward": 2,  # in float64 the gradient is made by forward_backward
        "forward_backward": 8,
        "statistics": 2,
        "scale": 1,
        "statistics_gradient": 2,
        "binary": 6,
        "count": 4,
        "columns": 2,
        "gradient": 2,
        "divergence": 3,
    }
    for name in ("forward", "forward_backward", "statistics_gradient", "divergence"):
        assert kernels[name][0].split()[0] == "128", (name, kernels[name])
    for name in ("forward_backward", "statistics_gradient", "binary", "divergence"):
        assert kernels[name][0].split()[1] == "128", (name, kernels[name])


def test_the_front_sends_cpu_tensors_to_numba_unless_told_otherwise():
    code = (
        "import torch, xent.torch\n"
        "from xent.backends import choice\n"
        "from xent.backends.cpu.tensors import CPU\n"
        "assert choice.choose(torch.device('cpu')) is CPU\n"
        "try:\n"
        "    choice.interpret(True)\n"
        "except RuntimeError as error:\n"
        "    assert 'TRITON_INTERPRET=1' in str(error)\n"
        "else:\n"
        "    raise AssertionError('compiled kernels were sent CPU tensors')\n"
    )
    found = run("-c", code, TRITON_INTERPRET="0")
    assert found.returncode == 0, found.stderr


def test_importing_the_torch_front_does_not_load_triton():
    code = "import sys, xent.torch; assert 'xent.backends.gpu' not in sys.modules, 'xent.backends.gpu is loaded'"
    found = run("-c", code)
    assert found.returncode == 0, found.stderr


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", ["logits", "linear"])
def test_the_benchmark_runs_to_its_end(part, tmp_path):
    """On a tiny shape under the interpreter: everything but the figures of speed and memory."""
    out = tmp_path / f"{part}.json"
    arguments = (part, "--device", "cuda", "--shape", "tiny", "--quick", "--out", str(out))
    found = run("-W", "ignore::RuntimeWarning", "benchmarks/run.py", *arguments, TRITON_INTERPRET="1")
    assert found.returncode == 0, found.stderr[-3000:]
    record = json.loads(out.read_text())
    assert record["device"].startswith("interpreted")
    assert [case["dtype"] for case in record["cases"]] == ["bfloat16", "float32"]
    for case in record["cases"]:
        assert {"xent.torch", "F.cross_entropy", "Liger"} <= {entry["name"] for entry in case["contestants"]}
        # Rounding to bfloat16, which the interpreter does by truncation, and for a linear layer that of the logits too.
        unit = {"bfloat16": 2.0**-7, "float32": 2.0**-23}[case["dtype"]]
        for entry in case["contestants"]:
            if entry["not_available"] is None and entry["role"] != "limit":
                assert all(spread["median"] > 0 for spread in entry["seconds"].values())
                assert entry["loss_error"] <= 4 * unit
                assert len(entry["gradient_errors"]) == 1 + (part == "linear")
                assert all(error <= 8 * unit for error in entry["gradient_errors"])
    assert "| `xent.torch` |" in gpu(record)


def test_the_benchmark_refuses_a_machine_without_gpu():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is one")
    found = run("benchmarks/run.py", "logits", "--device", "cuda", TRITON_INTERPRET="0")
    assert found.returncode == 2
    assert "torch finds no GPU here" in found.stderr


def entry(name, role, seconds, memory=None):
    samples = {"forward_backward": [seconds, seconds, seconds]}
    return {"name": name, "role": role, "not_available": None, "memory": memory, "samples": samples}


def test_a_record_says_what_is_met_on_a_gpu():
    """Ratios within rounds: of a copy at most 1 / 0.85, of the products at most 1.15, no slower than any peer."""
    absent = {"name": "quack", "role": "peer", "not_available": "quack is not installed"}
    copy, eager = entry("copy", "limit", 1.0), entry("F.cross_entropy", "peer", 3.0)
    logits = {"size": [4096, 32000, 0], "dtype": "float32", "contestants": [absent, copy, eager]}
    assert judge(logits) == []
    logits["contestants"].append(entry("xent.torch", "ours", 1.2))
    found = {bar["against"]: (bar["kind"], bar["median"], bar["met"]) for bar in judge(logits)}
    assert found == {"copy": ("at most", 1.2, False), "F.cross_entropy": ("at least", 2.5, True)}
    assert judge({**logits, "size": [4, 24, 0]}) == []

    ours = entry("xent.torch", "ours", 1.1, memory=100)
    peers = [entry("F.cross_entropy", "peer", 2.2, memory=900), entry("Liger", "peer", 1.0, memory=100)]
    limit = entry("products", "limit", 1.0)
    linear = {"size": [16384, 128256, 4096], "dtype": "bfloat16", "contestants": [ours, *peers, limit]}
    found = [(bar["measure"], bar["against"], round(bar["median"], 6), bar["met"]) for bar in judge(linear)]
    assert found == [
        ("forward_backward", "products", 1.1, True),
        ("forward_backward", "F.cross_entropy", 2.0, True),
        ("forward_backward", "Liger", round(1 / 1.1, 6), False),
        ("times less memory", "F.cross_entropy", 9.0, False),
    ]
    assert "| forward + backward, over Liger | at least 1.00 | 0.909" in gpu_bars(
        {"cases": [{**linear, "shape": "x", "bars": judge(linear)}]}
    )
