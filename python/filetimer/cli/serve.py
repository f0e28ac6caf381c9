"""Serve timers at PATH in the foreground, until SIGINT, SIGTERM or SIGHUP.

With --events, SIGHUP opens the file anew, as log rotation asks of a daemon, and ends nothing.

Workers are told of it by FILETIMER_PATH=PATH.  Each event is one line on standard error.  The
server is a child of this process, which holds the pipe: a server that dies is replaced by one that
knows the same timers.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable

from filetimer.cli.arguments import seconds
from filetimer.cli.errors import require_linux, system_error
from filetimer.cli.event_option import add_events_option, event_file
from filetimer.cli.server_options import add_server_options, server_options
from filetimer.server.event_file import EventFile
from filetimer.server.events import Event, EventLog
from filetimer.supervisor.held_server import HeldServer, ServerOptions
from filetimer.supervisor.relay import Relay
from filetimer.supervisor.signals import ENDINGS, WaitedSignals

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("path", metavar="PATH", help="where to make the FIFO")
    parser.add_argument(
        "--max-interval",
        type=seconds,
        default=10.0,
        metavar="S",
        help="longest sleep of the server's loop, in seconds; kills are on time whatever it is "
        "(default: 10)",
    )
    parser.add_argument(
        "--kill-after",
        type=seconds,
        metavar="S",
        help="seconds after which a worker that outlives its timer's signal is sent SIGKILL "
        "(default: never)",
    )
    add_events_option(parser)
    add_server_options(parser, evidence=None)


def execute(options: argparse.Namespace) -> int:
    """Serve until a signal asks for the end; return 0."""
    require_linux()
    with event_file(options.events) as on_event, WaitedSignals(ENDINGS) as signals:
        relay = Relay()
        server = HeldServer(
            options.path,
            ServerOptions(
                "serve", options.max_interval, options.kill_after, **server_options(options)
            ),
            _sink(relay, on_event),
        )
        try:
            server.start()
            while _is_to_go_on(signals.wait(), on_event, relay):
                pass
        except OSError as error:
            raise system_error(f"serve timers at {options.path}", error) from None
        finally:
            server.stop()
            relay.close(2.0)
    return 0


def _is_to_go_on(info: signal.struct_siginfo | None, file: EventFile | None, relay: Relay) -> bool:
    """Whether a signal asked for the event file to be opened anew, which was then done."""
    if info is None or info.si_signo != signal.SIGHUP or file is None:
        return False
    try:
        file.reopen()
    except OSError as error:
        relay.say(f"filetimer serve: events go on to the file of before: {error}")
    return True


def _sink(relay: Relay, file: EventFile | None) -> Callable[[Event], None]:
    """Where events go: a line for people, through a relay that never waits, and the file."""
    log = EventLog(lambda level, text: relay.say(f"{time.strftime('%F %T')} filetimer: {text}"))

    def on_event(event: Event) -> None:
        log(event)
        if file is not None:
            file(event)

    return on_event
