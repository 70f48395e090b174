"""The command line: a file each for `score`, `compare`, `calibrate`, `why`, `bench`, `doctor`; app.py has the rest."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def main() -> None:
    """Run the command line, or name the extra that it needs; the `xent` script calls this."""
    try:
        application = load()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "xent":
            raise
        print(
            f"xent: the command line needs the package {error.name!r}. Install it with: pip install 'xent[cli]'",
            file=sys.stderr,
        )
        sys.exit(2)
    application()


@functools.cache
def load() -> typer.Typer:
    """Return the application with its commands, in the order of `xent --help`."""
    from xent.cli.app import app
    from xent.cli.bench import bench
    from xent.cli.calibrate import calibrate
    from xent.cli.compare import compare
    from xent.cli.doctor import doctor
    from xent.cli.score import score
    from xent.cli.why import why

    for command in (why, bench, doctor, score, compare, calibrate):
        app.command()(command)
    return app
