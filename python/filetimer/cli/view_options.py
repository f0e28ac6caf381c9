"""Options of the commands that look at a server: which one, and the errors of choosing."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from filetimer.cli.errors import CommandError
from filetimer.views.source import NoServer, choose_journal

__all__ = ["add_view_options", "chosen_journal", "friendly_errors", "needs_extra"]


def add_view_options(parser: argparse.ArgumentParser, *, kept: bool = True) -> None:
    """Describe them; ``kept``: whether what a job has left can be looked at."""
    parser.add_argument(
        "path",
        nargs="?",
        metavar="PATH",
        help="the FIFO of one server (default: the one that is running)",
    )
    parser.set_defaults(journal=None)
    if kept:
        parser.add_argument(
            "--journal",
            metavar="FILE",
            help="what a job has kept (`filetimer run --keep-journal FILE`), instead of a server",
        )


def chosen_journal(options: argparse.Namespace) -> str:
    """The journal that they mean.  Raises NoServer."""
    if options.path is not None and options.journal is not None:
        raise CommandError("name a server's PATH or a kept --journal, not both")
    return choose_journal(options.path, options.journal)


@contextmanager
def friendly_errors() -> Iterator[None]:
    """Turn what a user can mend into one sentence."""
    try:
        yield
    except NoServer as error:
        raise CommandError(str(error)) from None


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Around the import of a module that needs the libraries of an extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise CommandError(
            f"this needs {error.name}, which is not installed: pip install 'filetimer[{extra}]'"
        ) from None
