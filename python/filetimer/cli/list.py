"""Show the timers that are set: pid, command, scope, and the seconds that are left.

Without PATH, all servers of this user are shown, those under torchrun among them.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from filetimer.cli.errors import CommandError
from filetimer.replay import ServerView, find_journals, view_server
from filetimer.runtime import runtime_directory
from filetimer.server.events import describe_attributes
from filetimer.server.journal import JournalError
from filetimer.server.loop import read_clocks
from filetimer.server.timers import Now, deadline_of
from filetimer.views.words import printable
from filetimer.wire.decoder import UNSET, Record

__all__ = ["add_arguments", "execute"]

COMMAND_WIDTH = 40
ROW = "{:>8}  {:<40}  {:>10}  {:<10}  {}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument(
        "path", nargs="?", metavar="PATH", help="the FIFO of one server (default: all of yours)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a server and line")


def execute(options: argparse.Namespace) -> int:
    """Print the timers; return 0, or raise CommandError when there is no such server."""
    now = read_clocks()
    views = [view for journal in find_journals(options.path) if (view := _view(journal, now))]
    if options.path is not None and not views:
        raise CommandError(
            f"no timer server that can be looked at serves {options.path}: torch's own cannot, "
            f"and one of ours keeps its journal in {runtime_directory()}"
        )
    if options.json:
        for view in views:
            print(json.dumps(_as_dict(view, now)))
    else:
        _print_for_people(views, now)
    return 0


def _view(journal: str, now: Now) -> ServerView | None:
    try:
        return view_server(journal, now)
    except FileNotFoundError:
        return None  # it stopped just now
    except (JournalError, OSError) as error:
        print(f"filetimer list: {error}", file=sys.stderr)
        return None


def _print_for_people(views: list[ServerView], now: Now) -> None:
    if not views:
        print("no timer server is running")
    for view in views:
        state = f"pid {view.pid}" if view.alive else f"dead, was pid {view.pid}"
        print(f"{view.path}  ({state}, run {view.run_id})")
        if not view.timers:
            print("  no timers are set")
            continue
        print(ROW.format("PID", "COMMAND", "LEFT", "ON EXPIRY", "SCOPE"))
        for timer in view.timers:
            left = f"{deadline_of(timer) - now.monotonic:.1f} s"
            action = f"signal {timer.signal}" if timer.signal > 0 else "report"
            print(ROW.format(timer.pid, _command(timer.pid), left, action, _scope(timer)))


def _as_dict(view: ServerView, now: Now) -> dict[str, Any]:
    return {
        "path": view.path,
        "run_id": view.run_id,
        "pid": view.pid,
        "alive": view.alive,
        "timers": [
            {
                "pid": timer.pid,
                "command": _command(timer.pid, width=None),
                "scope_id": timer.scope_id,
                "token": None if timer.token is UNSET else timer.token,
                "signal": timer.signal,
                "attributes": {} if timer.attributes is UNSET else timer.attributes,
                "seconds_left": round(deadline_of(timer) - now.monotonic, 6),
            }
            for timer in view.timers
        ],
    }


def _command(pid: int, width: int | None = COMMAND_WIDTH) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().rstrip(b"\0").split(b"\0")
    except OSError:
        return "?"
    text = " ".join(printable(word.decode(errors="replace")) for word in words)
    return text if width is None or len(text) <= width else text[: width - 3] + "..."


def _scope(timer: Record) -> str:
    scope = printable(timer.scope_id)
    if timer.attributes is UNSET or not timer.attributes:
        return scope
    return f"{scope}  {describe_attributes(timer.attributes)}"
