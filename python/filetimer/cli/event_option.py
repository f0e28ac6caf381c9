"""The option ``--events FILE`` of the commands that serve."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from filetimer.cli.errors import system_error
from filetimer.server.event_file import EventFile

__all__ = ["add_events_option", "event_file"]


def add_events_option(parser: argparse.ArgumentParser) -> None:
    """Describe it."""
    parser.add_argument(
        "--events",
        metavar="FILE",
        help="append events to FILE, as JSON lines; it may be renamed at any time (log rotation)",
    )


@contextmanager
def event_file(path: str | None) -> Iterator[EventFile | None]:
    """The open file, or None where no path was given.  Raises CommandError."""
    if path is None:
        yield None
        return
    try:
        file = EventFile(path)
    except OSError as error:
        raise system_error("write events", error) from None
    try:
        yield file
    finally:
        file.close()
