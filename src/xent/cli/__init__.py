"""The command line: `xent score`, `compare`, `why`, `bench` and `doctor`. `main` is what the `xent` script calls."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say which extra it needs."""
    try:
        from xent.cli.score import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "xent":
            raise
        print(
            f"xent: the command line needs the package {error.name!r}. Install it with: pip install 'xent[cli]'",
            file=sys.stderr,
        )
        sys.exit(2)
    app()
