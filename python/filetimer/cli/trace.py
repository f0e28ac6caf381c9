"""Write what a job did as a trace that opens in Perfetto (https://ui.perfetto.dev).

Every guarded block is a slice in the row of its worker, with its attributes; kills, refusals and
restarts are marked, and processes are named by their ranks where these are known.  With the trace
of torch's profiler (`--with`), both are in one file and on one axis:

    filetimer trace --journal job.journal --with torch-trace.json -o trace.json
"""

from __future__ import annotations

import argparse
import gzip
import json
from typing import Any

from filetimer.cli.errors import CommandError, system_error
from filetimer.cli.view_options import add_view_options, chosen_journal, friendly_errors
from filetimer.views.source import load
from filetimer.views.trace import add_to, trace
from filetimer.views.words import seconds

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    add_view_options(parser)
    parser.add_argument(
        "-o", "--output", metavar="FILE", default="trace.json", help="default: trace.json"
    )
    parser.add_argument(
        "--with",
        dest="other",
        metavar="TRACE",
        help="a trace of torch's profiler (.json or .json.gz) to put this into",
    )


def execute(options: argparse.Namespace) -> int:
    """Write the trace; return 0."""
    with friendly_errors():
        _, history = load(chosen_journal(options))
    look = options.journal is None
    if options.other is None:
        found = trace(history, look=look)
    else:
        try:
            found = add_to(_read(options.other), history, look=look)
        except ValueError as error:
            raise CommandError(f"{options.other} is no trace: {error}") from None
    try:
        with open(options.output, "w", encoding="utf-8") as file:
            json.dump(found, file)
    except OSError as error:
        raise system_error("write the trace", error) from None
    blocks = len(history.spans) + len(history.open)
    covered = seconds(history.last - (history.first or 0.0))
    print(f"{options.output}: {blocks} blocks in {covered}; open it in https://ui.perfetto.dev")
    return 0


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = file.read()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise CommandError(f"cannot read the trace {path}: {error}") from None
    found: dict[str, Any] = json.loads(content)
    return found
