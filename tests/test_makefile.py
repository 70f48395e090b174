"""What the Makefile, the packaging scripts and the extras of pyproject.toml promise."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from xent.errors import MissingDependencyError, missing_package

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
# Packages whose import has another name, and those that the reader of a frame only meets when its owner has them.
IMPORTED_AS = {"scikit-learn": "sklearn", "vl-convert-python": "vl_convert", "array-api-compat": "array_api_compat"}
OF_THE_USER = {"dask", "duckdb", "markupsafe"}


def name_of(requirement: str) -> str:
    name = re.match(r"[\w-]+", requirement)
    assert name
    return IMPORTED_AS.get(name[0], name[0])


def imported(*parts: str) -> set[str]:
    """The packages that modules of these parts import, other than the standard library and xent."""
    found: set[str] = set()
    for part in parts:
        source = ROOT / "src" / "xent" / part
        for path in [source] if source.suffix else source.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"xent"}


def make(*arguments: str) -> str:
    done = subprocess.run(["make", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def test_help_lists_every_target_with_what_it_does():
    (line,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    listed = dict(re.findall(r"^make ([\w-]+) +(.+)$", make("--no-print-directory", "help"), re.MULTILINE))
    assert listed.keys() == set(line.split())
    assert all(len(what) > 8 for what in listed.values())


def test_demo_installs_what_the_demo_needs_and_test_the_developers_set():
    for target, environment, extra in (("demo", ".venv-demo", "cli"), ("test", ".venv", "dev")):
        commands = make("--dry-run", "--always-make", target)
        assert f"environment.py {environment} " in commands
        assert f"--editable '.[{extra}]'" in commands
        assert "--constraint constraints.txt" in commands
    assert "torch" not in " ".join(map(name_of, EXTRAS["cli"]))


def test_uv_is_given_the_settings_of_pip(monkeypatch):
    """Someone whose pip installs from an index of their own expects that of `make test`."""
    monkeypatch.syspath_prepend(str(ROOT / "packaging"))
    settings_of_pip = importlib.import_module("environment").settings_of_pip
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in [name for name in os.environ if name.startswith("PIP_") and name != "PIP_CONFIG_FILE"]:
        monkeypatch.delenv(name)
    assert settings_of_pip(Path(sys.executable)).keys() == {"UV_INDEX_STRATEGY"}
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels /more-wheels")
    monkeypatch.setenv("PIP_INDEX_URL", "file:///index")
    found = settings_of_pip(Path(sys.executable))
    assert found["UV_FIND_LINKS"] == "/wheels,/more-wheels"
    assert found["UV_DEFAULT_INDEX"] == "file:///index"


def test_constraints_pin_every_requirement():
    """Else two runs of `make demo` or `make test` could install different things."""
    pinned = {
        re.split("[>=]=", line)[0].lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if re.search("[<=]=", line)
    }
    requirements = PROJECT["project"]["dependencies"] + [r for extra in EXTRAS.values() for r in extra]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in requirements} - {"xent"}
    assert not {name for name in names if name.replace("-", "_") not in {pin.replace("-", "_") for pin in pinned}}


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        ("torch", ("torch",)),
        ("gpu", ("torch", "backends/gpu")),
        ("cli", ("cli", "why", "report", "scoring", "bench")),
        ("spark", ("scoring",)),
    ],
)
def test_an_extra_has_what_its_modules_import_and_no_more(extra, parts):
    core = {name_of(requirement) for requirement in PROJECT["project"]["dependencies"]}
    wanted, needed = {name_of(requirement) for requirement in EXTRAS[extra]}, imported(*parts) - core - OF_THE_USER
    others = {name_of(r) for other, requirements in EXTRAS.items() if other not in ("all", "dev") for r in requirements}
    if extra == "torch":
        needed -= {"triton"}
    assert needed - others <= set(), "imported, and of no extra"
    unused = wanted - needed
    assert unused <= ({"pandas"} if extra == "spark" else set()), "PySpark's Arrow needs pandas; nothing else is unused"
    of_others = {"cli": {"torch", "pyspark", "pyarrow", "pandas"}, "spark": {"sklearn"}}
    assert needed - wanted <= of_others.get(extra, set())


def test_core_imports_are_the_core_dependencies():
    core = {name_of(requirement) for requirement in PROJECT["project"]["dependencies"]}
    modules = ("numpy", "reference", "linear", "information.py", "likelihood.py", "terms.py", "arrays.py", "checks.py")
    cpu = imported("backends/cpu") - {"torch", "llvmlite"}  # tensors.py is torch's; llvmlite is Numba's
    assert imported(*modules) | cpu == core


WITHOUT = """
import importlib, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
try:
    importlib.import_module({module!r})
except ImportError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("xent.torch", "torch", "torch"),
        ("xent.torch.parallel", "torch", "torch"),
        ("xent.scoring", "polars", "cli"),
        ("xent.scoring.sklearn", "scipy", "cli"),
        ("xent.why", "sklearn", "cli"),
        ("xent.report", "altair", "cli"),
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(module, package, extra):
    program = WITHOUT.format(module=module, package=package)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingDependencyError xent.")
    assert done.stdout.count("\n") == 1
    assert f"needs the package '{package}', which is not installed" in done.stdout
    assert done.stdout.rstrip().endswith(f"pip install 'xent[{extra}]'")


def test_a_module_of_ours_that_is_missing_is_no_missing_extra():
    """A broken installation must not be told to install torch."""
    own = ModuleNotFoundError("No module named 'xent.torch.rows'", name="xent.torch.rows")
    assert missing_package(own, "xent.torch", "torch") is own
    assert isinstance(missing_package(ModuleNotFoundError(name="torch._C"), "a", "b"), MissingDependencyError)


def test_the_version_is_the_same_everywhere():
    import xent

    changelog = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert changelog[:2] == ["Unreleased", xent.__version__]
    assert f"\nversion: {xent.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_hooks_run_what_make_check_runs():
    checks = re.findall(r"\$\(BIN\)/(.+)", MAKEFILE.split("\ncheck:")[1].split("\n\n")[0])
    hooks = re.findall(r"entry: \.venv/bin/(.+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert (
        checks
        == [hook.removesuffix(" --force-exclude") for hook in hooks]
        == ["ruff check", "ruff format --check", "mypy"]
    )


@pytest.mark.slow
def test_wheel_has_the_package_and_nothing_else(tmp_path):
    """`make dist` checks this too, and tries the wheel."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "xent").rglob("*.py")}
    inside = {name for name in names if not re.match(r"xent-[\d.]+\.dist-info/", name)}
    assert sources <= inside
    assert "xent/py.typed" in inside
    assert {Path(name).suffix for name in inside - sources} <= {".typed", ".jinja", ".css", ".js"}
    assert not {name for name in names if re.search(r"test|benchmarks|results|packaging", name)}
