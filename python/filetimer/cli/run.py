"""Run workers on this machine under a timer server, and restart them when one hangs.

CMD is started --workers times, with RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR,
MASTER_PORT, FILETIMER_PATH, TORCHELASTIC_TIMER_FILE and FILETIMER_RESTART_COUNT (0 at first) in its
environment, and its standard input closed.  Each line of its output gets the worker's rank in
front.  PYTHONUNBUFFERED is set unless it was, so that a reaped worker's last words are not lost.

When a worker fails, because it was reaped or by itself, the whole group is stopped (SIGTERM, then
SIGKILL after --kill-after seconds, to everything that the workers have started), and started anew
while there are restarts left.

exit status: 0 when all workers end with 0; 124 when the last attempt ended by reaping; else the
status of the worker that failed, 128+n if signal n ended it; 128+n also when signal n ended us.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from filetimer.cli.arguments import count, seconds
from filetimer.cli.errors import cannot_run, require_linux, system_error
from filetimer.cli.event_option import add_events_option, event_file
from filetimer.cli.server_options import EVIDENCE_DIRECTORY, add_server_options, server_options
from filetimer.runtime import runtime_directory
from filetimer.supervisor.job import CannotServe, Job, Plan

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument(
        "--workers", type=count(1), default=1, metavar="N", help="how many workers (default: 1)"
    )
    parser.add_argument(
        "--max-restarts",
        type=count(0),
        default=0,
        metavar="K",
        help="how often the group may be restarted, whatever made it fail (default: 0)",
    )
    parser.add_argument(
        "--path", metavar="P", help="where to make the FIFO (default: in a private directory)"
    )
    add_events_option(parser)
    parser.add_argument(
        "--kill-after",
        type=seconds,
        default=5.0,
        metavar="S",
        help="seconds from a signal that asks a worker to end to SIGKILL (default: 5)",
    )
    add_server_options(parser, evidence=EVIDENCE_DIRECTORY)


def execute(options: argparse.Namespace) -> int:
    """Run the job; return its exit status."""
    require_linux()
    with event_file(options.events) as on_event, _path(options.path) as path:
        plan = Plan(
            options.command,
            path,
            options.workers,
            options.max_restarts,
            options.kill_after,
            on_event,
            server_options(options),
        )
        try:
            return _say_what_is_kept(Job(plan).run(), options.keep_journal)
        except CannotServe as error:
            raise system_error(f"serve timers at {path}", error.reason) from None
        except OSError as error:
            if error.filename == options.command[0]:
                raise cannot_run(error) from None
            raise system_error("start the workers", error) from None


def _say_what_is_kept(status: int, journal: str | None) -> int:
    """Say how to look at the history that the job leaves; its exit status stays."""
    if journal is not None and os.path.exists(journal):
        option = f"--journal {shlex.quote(journal)}"
        print(
            "filetimer: kept the history of the timers: look at it with "
            f"`filetimer report {option}` or `filetimer suggest {option}`",
            file=sys.stderr,
        )
    return status


@contextmanager
def _path(path: str | None) -> Iterator[str]:
    """The given path, or one in a private directory that goes at the end."""
    if path is not None:
        yield path
        return
    try:
        directory = tempfile.mkdtemp(prefix="run-", dir=runtime_directory(create=True))
    except OSError as error:
        raise system_error("make a private directory", error) from None
    try:
        yield os.path.join(directory, "timers")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
