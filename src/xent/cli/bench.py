"""`xent bench`: the loss beside its peers, on this machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from xent.cli.app import errors, progress, reported_errors, terminal


def bench(
    shape: Annotated[
        list[str] | None, typer.Option(help="gpt2, imagenet, cifar ...; can be given more than once.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="All implementations and more rounds: minutes.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads for all implementations.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON in place of the tables.")] = False,
) -> None:
    """Measure the loss on this machine, beside its peers and beside a copy of the logits.

    - `xent bench` : the quick run, about a minute
    - `xent bench --shape gpt2 --full` : one shape with all implementations
    """
    with reported_errors():
        from xent.bench import run
        from xent.bench.show import disturbed, tables

        with progress() as report:
            record = run(shape or (), quick=not full, threads=threads, command="xent bench", progress=report)
        if as_json:
            print(json.dumps(record))
            return
        for table in tables(record):
            terminal().print(table, "")
        for sentence in disturbed(record):
            errors.print(sentence)
