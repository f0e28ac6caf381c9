"""Serve metrics of a timer server to Prometheus, as text and as OpenMetrics.

It runs beside the server and reads what that writes down: timers, records, rejections, kills,
lateness, and per scope how long blocks take and how much of their time is left.  It outlives
servers: filetimer_up is 0 until there is one.  Without PATH it follows the only server that runs.
"""

from __future__ import annotations

import argparse

from filetimer.cli.arguments import count, seconds
from filetimer.cli.errors import system_error
from filetimer.cli.view_options import add_view_options, friendly_errors, needs_extra
from filetimer.replay import find_journals
from filetimer.server.loop import read_clocks
from filetimer.supervisor.signals import ENDINGS, WaitedSignals
from filetimer.views.source import choose_journal

__all__ = ["add_arguments", "execute"]

PORT = 9850
LAST_PORT = 65535


def port(text: str) -> int:
    """A port number; 0 is any that is free."""
    value = count(0)(text)
    if value > LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: the last one is {LAST_PORT}")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    add_view_options(parser, kept=False)
    parser.add_argument(
        "--port", type=port, default=PORT, metavar="N", help=f"default: {PORT}; 0: any free one"
    )
    parser.add_argument(
        "--address",
        default="127.0.0.1",
        metavar="A",
        help="where to listen (default: 127.0.0.1, this host only)",
    )
    parser.add_argument(
        "--max-scopes",
        type=count(0),
        default=50,
        metavar="N",
        help='scopes with a label of their own; the rest is "other" (default: 50)',
    )
    parser.add_argument(
        "--interval",
        type=seconds,
        default=1.0,
        metavar="S",
        help="seconds between two looks at the journal (default: 1)",
    )


def execute(options: argparse.Namespace) -> int:
    """Serve until SIGINT, SIGTERM or SIGHUP; return 0."""
    with needs_extra("metrics"):
        from prometheus_client import start_http_server

        from filetimer.views.metrics import Exporter, journal_finder
    if options.path is None:
        _require_at_most_one()
    exporter = Exporter(journal_finder(options.path), options.max_scopes)
    exporter.update(read_clocks())
    with WaitedSignals(ENDINGS) as signals:  # before the threads that answer start
        try:
            server, thread = start_http_server(options.port, options.address, exporter.registry)
        except OSError as error:
            raise system_error(f"listen on {options.address} port {options.port}", error) from None
        host = f"[{options.address}]" if ":" in options.address else options.address
        print(f"serving metrics at http://{host}:{server.server_port}/metrics", flush=True)
        while signals.wait(options.interval) is None:
            exporter.update(read_clocks())
        server.shutdown()
        server.server_close()
        thread.join()
    return 0


def _require_at_most_one() -> None:
    """Of several servers one must be named; when there is none, one may come."""
    if find_journals():
        with friendly_errors():
            choose_journal()
