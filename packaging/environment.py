"""Make a virtual environment and install requirements in it, saying each step and how long it has taken so far.

    python packaging/environment.py .venv-demo --constraint constraints.txt --editable '.[cli]'

uv installs if it is on the PATH or can be had from the package index, since it takes a fraction of pip's time; pip does
otherwise. With a uv of its own nothing is left behind but the environment: uv and its cache are removed at the end.
Needs nothing but Python and its standard library.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from pathlib import Path

OLDEST = (3, 11)
BEGAN = time.monotonic()


def main() -> None:
    """Read the command line, and make the environment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("requirements", nargs="*")
    parser.add_argument("--from-file", type=Path, help="a file of requirements")
    parser.add_argument("--editable", help="a project to install in place, with its extras")
    parser.add_argument("--constraint", type=Path, help="a file of versions")
    parser.add_argument("--lowest", action="store_true", help="the lowest versions that the requirements admit")
    parser.add_argument("--with-pip", action="store_true", help="leave pip in the environment")
    options = parser.parse_args()
    if sys.version_info < OLDEST:
        found = ".".join(map(str, sys.version_info[:3]))
        sys.exit(f"Python {found} is too old: set PYTHON to one of {'.'.join(map(str, OLDEST))} or later.")
    wanted = [*options.requirements]
    if options.from_file:
        wanted += ["-r", str(options.from_file)]
    if options.editable:
        wanted += ["--editable", options.editable]
    if options.constraint:
        wanted += ["--constraint", str(options.constraint)]
    try:
        make(options.folder, wanted, lowest=options.lowest, with_pip=options.with_pip)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{options.folder}: the step failed with exit code {error.returncode}. What it wrote is above.")


def make(folder: Path, wanted: Sequence[str], *, lowest: bool, with_pip: bool) -> None:
    """Make the environment, which a run that was interrupted may have begun."""
    uv = shutil.which("uv")
    say(f"making {folder} with Python {sys.version.split()[0]}")
    venv.create(folder, with_pip=with_pip or uv is None, symlinks=os.name != "nt", clear=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    borrowed = folder / "installer"
    if uv is None:
        uv = borrowed_uv(python, borrowed)
    if uv is None and lowest:
        sys.exit("The lowest versions are found by uv, which is not installed: pip install uv")
    say(f"downloading and installing with {'uv' if uv else 'pip'}: {' '.join(wanted)}")
    if uv:
        settings = {"UV_CACHE_DIR": str(borrowed / "cache")} if borrowed.exists() else {}
        chosen = ["--resolution", "lowest-direct"] if lowest else []
        quiet = [] if sys.stderr.isatty() else ["--quiet"]
        command = [uv, "pip", "install", *quiet, "--python", str(python), *chosen, *wanted]
        done = subprocess.run(command, check=False, env={**os.environ, **settings})
        if done.returncode and lowest:
            raise subprocess.CalledProcessError(done.returncode, command)
        if done.returncode:
            # It is stricter than pip where two builds of one version require different versions of another package.
            say("uv could not install them; trying pip")
            run([str(python), "-m", "ensurepip", "--default-pip"])
            uv = None
    if not uv:
        # Bytecode is made when a module is first imported: that of all modules takes longer than the demo.
        options = ["--quiet", "--disable-pip-version-check", "--no-compile"]
        run([str(python), "-m", "pip", "install", *options, *wanted])
    shutil.rmtree(borrowed, ignore_errors=True)
    (folder / "installed").touch()
    say(f"{folder} is ready")


def borrowed_uv(python: Path, folder: Path) -> str | None:
    """Install uv in a folder of its own, and return its path; None if it cannot be had."""
    say("fetching uv, which installs faster than pip")
    options = ["--quiet", "--disable-pip-version-check", "--no-compile", "--target", str(folder)]
    done = subprocess.run([str(python), "-m", "pip", "install", *options, "uv"], check=False, stderr=subprocess.DEVNULL)
    programs = [folder / "bin" / "uv", folder / "Scripts" / "uv.exe"]
    return next((str(path) for path in programs if done.returncode == 0 and path.is_file()), None)


def run(command: Sequence[str], settings: dict[str, str] | None = None) -> None:
    """Run a command, whose output is shown."""
    subprocess.run(command, check=True, env={**os.environ, **(settings or {})})


def say(step: str) -> None:
    """Print a step with the seconds since the beginning."""
    print(f"[{time.monotonic() - BEGAN:5.1f} s] {step}", flush=True)


if __name__ == "__main__":
    main()
