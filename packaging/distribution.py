"""Build wheel and sdist, check them, and try the wheel in an environment of its own outside of the checkout.

    .venv-dist/bin/python packaging/distribution.py [--extras cli]

`make dist` runs this. It stops at the first thing that is wrong.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
BEGAN = time.monotonic()

IN_THE_WHEEL = re.compile(r"xent/[\w./]+\.(py|jinja|css|js)|xent/py\.typed|xent-[\w.]+\.dist-info/[\w./]+")
IN_THE_SDIST = re.compile(
    r"src/xent/.*|(README|CHANGELOG)\.md|LICENSE|CITATION\.cff|pyproject\.toml|PKG-INFO|\.gitignore"
)


def main() -> None:
    """Build, check, install, try."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--extras", default="cli", help="extras of the wheel that is tried [default: cli]")
    extras = parser.parse_args().extras
    tools = Path(sys.executable).parent
    say("building wheel and sdist")
    shutil.rmtree(DIST, ignore_errors=True)
    run([sys.executable, "-m", "build", "--installer", "uv", "--outdir", str(DIST), str(ROOT)], quiet=True)
    (wheel,), (sdist,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    say(f"checking {wheel.name} and {sdist.name}")
    run([sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)])
    run([str(tools / "check-wheel-contents"), str(wheel)])
    refuse_others(wheel_contents(wheel), IN_THE_WHEEL, wheel)
    refuse_others(sdist_contents(sdist), IN_THE_SDIST, sdist)
    with tempfile.TemporaryDirectory() as folder:
        try_wheel(wheel, extras, Path(folder), tools)
    say("done: " + ", ".join(f"dist/{path.name} ({path.stat().st_size / 1e3:.0f} kB)" for path in (wheel, sdist)))


def wheel_contents(path: Path) -> list[str]:
    """Return the names of the files in a wheel."""
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def sdist_contents(path: Path) -> list[str]:
    """Return the names of the files in an sdist, without its folder."""
    with tarfile.open(path) as archive:
        return [member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()]


def refuse_others(names: Iterable[str], allowed: re.Pattern[str], path: Path) -> None:
    """Stop if there is a file that nobody needs: a test, a benchmark, a record."""
    others = [name for name in names if not allowed.fullmatch(name)]
    if others:
        sys.exit(f"{path.name} has files that do not belong there: {', '.join(others[:10])}")


def try_wheel(wheel: Path, extras: str, folder: Path, tools: Path) -> None:
    """Install the wheel where there is no checkout; call everything, and check a program that uses its types."""
    environment, uv = folder / "environment", str(tools / "uv")
    python = str(environment / "bin" / "python")
    say(f"installing xent[{extras}] from the wheel")
    run([uv, "venv", "--quiet", "--python", sys.executable, str(environment)])
    constraint = ["--constraint", str(ROOT / "constraints.txt")]
    run(
        [uv, "pip", "install", "--quiet", "--python", python, *constraint, f"xent[{extras}] @ {wheel.as_uri()}", "mypy"]
    )
    for script in ("smoke.py", "typed_program.py"):
        shutil.copy(ROOT / "packaging" / script, folder)
    say("calling everything public, and each command")
    run([python, "smoke.py"], folder)
    say("importing xent")
    times = run([python, "-X", "importtime", "-c", "import xent"], folder, quiet=True)
    print("\n".join(times.splitlines()[-6:]))
    loaded = run(
        [python, "-c", "import sys, xent; print(*{'numpy', 'numba', 'torch'} & {*sys.modules})"], folder, quiet=True
    )
    if loaded.strip():
        sys.exit(f"import xent imports {loaded.strip()}, which should wait for the first use")
    say("types: mypy --strict and pyright")
    run([python, "-m", "mypy", "--strict", "typed_program.py"], folder)
    (folder / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}', encoding="utf-8")
    run([str(tools / "pyright"), "--pythonpath", python, "typed_program.py"], folder)


def run(command: Sequence[str], folder: Path = ROOT, *, quiet: bool = False) -> str:
    """Run a command without this checkout on its path; return its output, which is shown at once unless quiet."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    output = (subprocess.PIPE, subprocess.STDOUT) if quiet else (None, None)
    done = subprocess.run(
        command, cwd=folder, env=variables, text=True, check=False, stdout=output[0], stderr=output[1]
    )
    if done.returncode:
        sys.exit(f"{done.stdout or ''}\nfailed with exit code {done.returncode}: {' '.join(command)}")
    return done.stdout or ""


def say(step: str) -> None:
    """Print a step with the seconds since the beginning."""
    print(f"[{time.monotonic() - BEGAN:5.1f} s] {step}", flush=True)


if __name__ == "__main__":
    main()
