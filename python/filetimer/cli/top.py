"""Watch a timer server: the timers that are set, the time they have left, and who was killed.

It reads what the server writes down, so it costs the server nothing, and it also shows a server
that has just died.  Ranks come from the workers' attribute `rank`, or from their environment (RANK,
where LOCAL_RANK is set, too).  Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from filetimer.cli.arguments import count, seconds
from filetimer.cli.view_options import (
    add_view_options,
    chosen_journal,
    friendly_errors,
    needs_extra,
)
from filetimer.server.loop import read_clocks
from filetimer.views.top import Board, Frame, kept_frame

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["add_arguments", "execute"]

PIPED_ROWS = 40  # lines where there is no screen to fill


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    add_view_options(parser)
    parser.add_argument(
        "--once", action="store_true", help="print one frame, as when the output is no terminal"
    )
    parser.add_argument(
        "--interval",
        type=seconds,
        default=0.5,
        metavar="S",
        help="seconds between two frames (default: 0.5)",
    )
    parser.add_argument(
        "--lines",
        type=count(10),
        metavar="N",
        help=f"lines of a frame (default: the screen's; {PIPED_ROWS} where there is none)",
    )


def execute(options: argparse.Namespace) -> int:
    """Show frames until Ctrl-C, or one; return 0."""
    with needs_extra("top"):
        from rich.console import Console
    console = Console(highlight=False)
    with friendly_errors():
        journal = chosen_journal(options)
        if options.journal is not None:
            return _print(console, kept_frame(journal), options.lines)
        board = Board(journal)
        first = board.look(read_clocks())
        if options.once or not console.is_terminal:
            return _print(console, first, options.lines)
        return _watch(console, lambda: board.look(read_clocks()), options)


def _print(console: Console, frame: Frame, lines: int | None) -> int:
    from filetimer.views.top_screen import render

    console.print(render(frame, console.width, lines or PIPED_ROWS), soft_wrap=True)
    return 0


def _watch(console: Console, look: Callable[[], Frame], options: argparse.Namespace) -> int:
    from rich.live import Live

    from filetimer.views.top_screen import render

    with Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                height = options.lines or console.height
                live.update(render(look(), console.width, height), refresh=True)
                time.sleep(options.interval)
        except KeyboardInterrupt:
            return 0
