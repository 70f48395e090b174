"""Make a virtual environment and install requirements in it, saying each step and how long it has taken so far.

    python packaging/environment.py .venv-demo --constraint constraints.txt --editable '.[cli]'

uv installs if it is on the PATH or can be had from the package index, since it takes a fraction of pip's time; pip does
otherwise, and where uv fails. uv is given pip's settings. With a uv of its own nothing is left behind but the
environment: uv and its cache are removed at the end.
Needs nothing but Python and its standard library.
"""

from __future__ import annotations

import argparse
import ast
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
PIP_OPTIONS = ["install", "--quiet", "--disable-pip-version-check", "--no-compile"]
OF_UV = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_EXTRA_INDEX_URL", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "constraint": ("UV_CONSTRAINT", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
}
"""Settings of pip as variables of uv, and what separates several values there."""


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
    say(f"making {folder} with Python {sys.version.split()[0]}")
    venv.create(folder, with_pip=True, symlinks=os.name != "nt", clear=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    borrowed = folder / "installer"
    uv = shutil.which("uv") or borrowed_uv(python, borrowed)
    if uv is None and lowest:
        sys.exit("The lowest versions are found by uv, which is not installed: pip install uv")
    if uv is None or not installed_by_uv(uv, python, borrowed, wanted, lowest):
        if lowest:
            sys.exit("uv found no such set of packages. What it wrote is above.")
        say(f"downloading and installing with pip, which takes longer: {' '.join(wanted)}")
        # Bytecode is made when a module is first imported: that of all modules takes longer than the demo.
        run([str(python), "-m", "pip", *PIP_OPTIONS, *wanted])
    if not with_pip:
        run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", "setuptools", "pip"])
    shutil.rmtree(borrowed, ignore_errors=True)
    (folder / "installed").touch()
    say(f"{folder} is ready")


def borrowed_uv(python: Path, folder: Path) -> str | None:
    """Install uv in a folder of its own, and return its path; None if it cannot be had."""
    say("fetching uv, which installs faster than pip")
    command = [str(python), "-m", "pip", *PIP_OPTIONS, "--target", str(folder), "uv"]
    done = subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
    programs = [folder / "bin" / "uv", folder / "Scripts" / "uv.exe"]
    return next((str(path) for path in programs if done.returncode == 0 and path.is_file()), None)


def installed_by_uv(uv: str, python: Path, borrowed: Path, wanted: Sequence[str], lowest: bool) -> bool:
    """Install; False if uv cannot."""
    say(f"downloading and installing with uv: {' '.join(wanted)}")
    # A cache beside the environment: files are linked from there, and not copied.
    settings = {"UV_CACHE_DIR": str(borrowed / "cache")} if borrowed.exists() else {}
    chosen = ["--resolution", "lowest-direct"] if lowest else []
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    command = [uv, "pip", "install", *quiet, "--python", str(python), *chosen, *wanted]
    variables = {**settings_of_pip(python), **settings, **os.environ}
    return subprocess.run(command, check=False, env=variables).returncode == 0


def settings_of_pip(python: Path) -> dict[str, str]:
    """Return what pip is configured with (indexes, folders of wheels, certificates) as uv's variables."""
    listed = [str(python), "-m", "pip", "config", "list"]
    lines = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.splitlines()
    # pip takes the best version of all indexes, uv by default the first index that has the package.
    settings = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for line in lines:
        name, _, value = line.partition("=")
        variable, separator = OF_UV.get(name.rsplit(".", 1)[-1], ("", ""))
        if variable:
            settings[variable] = separator.join(str(ast.literal_eval(value)).split())
    return settings


def run(command: Sequence[str]) -> None:
    """Run a command, whose output is shown."""
    subprocess.run(command, check=True)


def say(step: str) -> None:
    """Print a step with the seconds since the beginning."""
    print(f"[{time.monotonic() - BEGAN:5.1f} s] {step}", flush=True)


if __name__ == "__main__":
    main()
