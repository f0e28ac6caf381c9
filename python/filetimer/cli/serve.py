"""Serve timers at PATH in the foreground, until SIGINT, SIGTERM or SIGHUP.

Workers are told of it by FILETIMER_PATH=PATH.  Each event is one line on standard error.
"""

from __future__ import annotations

import argparse
import logging

from filetimer.cli.arguments import seconds
from filetimer.cli.errors import require_linux, system_error
from filetimer.cli.event_option import add_events_option, event_file
from filetimer.server.file_server import FileTimerServer
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


def execute(options: argparse.Namespace) -> int:
    """Serve until a signal asks for the end; return 0."""
    require_linux()
    with event_file(options.events) as on_event, WaitedSignals(ENDINGS) as signals:
        server = FileTimerServer(
            options.path,
            "serve",
            options.max_interval,
            on_event=on_event,
            kill_after=options.kill_after,
        )
        log = _log_to(Relay())
        try:
            server.start()
            signals.wait()
        except OSError as error:
            raise system_error(f"serve timers at {options.path}", error) from None
        finally:
            server.stop()
            log.relay.close(2.0)
    return 0


class _RelayHandler(logging.Handler):
    """Hands log lines to a relay: a terminal that stands still must not stop the server."""

    def __init__(self, relay: Relay) -> None:
        super().__init__()
        self.relay = relay

    def emit(self, record: logging.LogRecord) -> None:
        if record.module != "debug_info_logging":  # what it says, the events say as well
            self.relay.say(self.format(record))


def _log_to(relay: Relay) -> _RelayHandler:
    """Show the server's log, which limits the rate of rejections (SPEC X-2)."""
    handler = _RelayHandler(relay)
    handler.setFormatter(logging.Formatter("%(asctime)s filetimer: %(message)s"))
    logger = logging.getLogger("filetimer")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return handler
