"""Processors that are not here: those with fewer instructions than this one has, and arm64.

Kernels are compiled for the processor that Numba finds, or is told of. With fewer instructions they are slower, and
right; none may need an instruction, or a function of a compiler's library, that is not there.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from arm64 import signatures
from llvmlite import binding

HERE = Path(__file__).parent
FILES = ("test_value.py", "test_gradient.py", "test_edges.py")
X86 = "x86" in binding.get_process_triple() or "amd64" in binding.get_process_triple()


def features_without(*names: str) -> str:
    """This processor's features without some, and without those that imply them."""
    implied = {"avx2": ("avx512", "fma", "f16c", "vaes", "vpclmulqdq"), "avx512f": ("avx512",), "f16c": ("avx512",)}
    gone = {*names, *(prefix for name in names for prefix in implied.get(name, ()))}
    features = binding.get_host_cpu_features()
    signs = {name: "+" if there and not name.startswith(tuple(gone)) else "-" for name, there in features.items()}
    return ",".join(sign + name for name, sign in signs.items())


PROCESSORS = {
    "generic": {"NUMBA_CPU_NAME": "generic"},
    "nehalem": {"NUMBA_CPU_NAME": "nehalem", "NUMBA_CPU_FEATURES": ""},
    "haswell": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ""},
    "without f16c": {"NUMBA_CPU_FEATURES": features_without("f16c")},
    "without avx2": {"NUMBA_CPU_FEATURES": features_without("avx2")},
    "without avx512f": {"NUMBA_CPU_FEATURES": features_without("avx512f")},
}


def run(environment: dict[str, str], cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, [str(HERE.parent / "src"), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, **environment, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": paths}
    return subprocess.run(
        [sys.executable, *arguments], cwd=HERE.parent, env=variables, capture_output=True, text=True, check=False
    )


FLOAT16 = """
import numpy as np
from xent.backends.cpu.backend import CpuBackend
from xent.objective import Objective
x = np.linspace(-8, 8, 4 * 300).reshape(4, 300).astype(np.float16)
y = np.array([0, 5, 299, 17])
loss, _, gradient = CpuBackend().forward_backward(x, y, 0.25, Objective())
wide = x.astype(np.float64)
q = np.exp(wide - wide.max(1, keepdims=True))
total = q.sum(1)
wanted = np.log(total) + wide.max(1) - wide[range(4), y]
q = q / total[:, None]
q[range(4), y] -= 1
assert np.abs(loss - wanted).max() < 2e-6, (loss, wanted)
assert (np.abs(gradient - q / 4) <= 2.0**-11 * np.abs(q / 4) + 2.0**-24 + 1e-7).all()
print("right")
"""


@pytest.mark.slow
@pytest.mark.skipif(not X86, reason="these instructions are those of x86")
@pytest.mark.timeout(900)
def test_float16_needs_no_instructions_of_its_own(tmp_path):
    """R2: without F16C the process was aborted, `__extendhfsf2` not found."""
    done = run(PROCESSORS["without f16c"], tmp_path, "-c", FLOAT16)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_kernel_compiles_for_arm64(tmp_path):
    """To machine code of that processor, for every dtype, and without functions of a compiler's library."""
    wanted = signatures()
    with (tmp_path / "signatures").open("wb") as file:
        pickle.dump(wanted, file)
    done = run({}, tmp_path, str(HERE / "arm64.py"), str(tmp_path / "signatures"))
    assert done.returncode == 0, done.stderr[-3000:]
    lines = json.loads(done.stdout.splitlines()[-1])
    assert {name: len(codes) for name, codes in lines.items()} == {name: len(given) for name, given in wanted.items()}
    for name, least in (("forward", 16), ("backward", 12), ("statistics", 8)):
        assert len(lines[f"kernels.{name}"]) >= least
        assert min(lines[f"kernels.{name}"]) > 1_000


@pytest.mark.slow
@pytest.mark.skipif(not X86, reason="these instructions are those of x86")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_shared_tests_pass_on_other_processors(processor, tmp_path):
    """Of the kernels: values, gradients and edges in float64, float32, bfloat16 and float16."""
    files = [f"tests/{name}" for name in FILES]
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "-k", "torch or numpy", *files)
    done = run(PROCESSORS[processor], tmp_path, *arguments)
    last = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert int(last.split(" passed")[0].split()[-1]) >= 600, last
