"""Guard one command: it is reaped if it runs longer than --after seconds.

The timer stands before the command starts, and names the command's own process.  It ends with the
command.  Without a timer server the command runs unguarded, after a warning.

exit status: 124 when the command was reaped; else its own, 128+n if signal n ended it; 125 when
--require was given and there is no server; 126 and 127 when the command cannot be run.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from typing import NamedTuple

from filetimer.cli.arguments import seconds, signal_number
from filetimer.cli.errors import FAILED, REAPED, CommandError, cannot_run, require_linux
from filetimer.client.environment import PATH_VARIABLES, path_from_env
from filetimer.client.pipe import ClientPipe
from filetimer.client.tokens import new_token
from filetimer.server.process import read_stat, this_host
from filetimer.supervisor.children import Child, adopt_orphans, children, wait_for
from filetimer.supervisor.signals import WaitedSignals
from filetimer.wire.encoder import RecordEncoder

__all__ = ["add_arguments", "execute"]

DELIVERY = 1.0  # seconds to wait while the pipe is full
FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument(
        "--after", type=seconds, required=True, metavar="SECONDS", help="how long CMD may run"
    )
    parser.add_argument("--scope", metavar="NAME", help="names the timer (default: CMD's name)")
    parser.add_argument(
        "--signal",
        type=signal_number,
        default=signal.SIGKILL,
        metavar="SIG",
        help="what reaps CMD (default: KILL)",
    )
    parser.add_argument(
        "--path", metavar="P", help=f"the server's FIFO (default: ${' or $'.join(PATH_VARIABLES)})"
    )
    parser.add_argument(
        "--require", action="store_true", help="fail, rather than run CMD unguarded"
    )


def execute(options: argparse.Namespace) -> int:
    """Run the command under its timer; return its exit status."""
    require_linux()
    if options.scope == "":  # SPEC R-11
        raise CommandError("argument --scope: a scope must not be empty")
    adopt_orphans()
    with WaitedSignals((*FORWARDED, signal.SIGCHLD)) as signals:
        child = Child(
            options.command,
            os.environ,
            descriptors={},
            mask=signals.outer_mask,
            new_session=False,  # it belongs to the terminal, as we do
            gated=True,
        )
        try:
            timer = _acquire(options, child.pid)
        except CommandError:
            os.kill(child.pid, signal.SIGKILL)
            wait_for(child.pid)
            raise
        child.release()
        try:
            child.started()
        except OSError as error:
            if timer is not None:
                timer.release()
            raise cannot_run(error) from None
        status = _await_end(child.pid, signals)
        return _conclude(child.pid, status, timer, options.signal)


class _Timer(NamedTuple):
    """The command's timer; ``deadline`` is in monotonic seconds."""

    deadline: float
    pipe: ClientPipe
    encoder: RecordEncoder
    scope: str
    token: int

    def release(self) -> None:
        """Take it back, for servers that do not see the command's end themselves."""
        try:
            self.pipe.send(self.encoder.release(self.scope, self.token), DELIVERY)
        except OSError:
            pass  # SPEC C-2


def _acquire(options: argparse.Namespace, pid: int) -> _Timer | None:
    """Set the timer of the command, which waits at its gate; None: it runs unguarded."""
    path = options.path or path_from_env()
    try:
        if path is None:  # SPEC C-9
            names = " nor ".join(PATH_VARIABLES)
            raise OSError(f"no timer server is known: neither --path nor {names} is given")
        return _send_acquire(options, path, pid)
    except RuntimeError as error:  # SPEC F-2
        raise CommandError(f"argument --scope: {error}") from None
    except OSError as error:
        reason = error.strerror or str(error)
    if options.require:
        raise CommandError(f"{reason}; --require forbids to run unguarded", FAILED)
    print(f"filetimer expires: warning: {reason}; the command runs unguarded", file=sys.stderr)
    return None


def _send_acquire(options: argparse.Namespace, path: str, pid: int) -> _Timer:
    stat = read_stat(pid)
    start_time = None if stat is None else stat[1]
    encoder = RecordEncoder(2, pid, options.signal, start_time, this_host().pid_ns)
    scope = options.scope or os.path.basename(options.command[0]) or options.command[0]
    deadline = time.monotonic() + options.after
    timer = _Timer(deadline, ClientPipe(path, 0.0), encoder, scope, new_token())
    record = encoder.acquire(scope, time.time() + options.after, deadline, timer.token)
    timer.pipe.send(record, DELIVERY)
    return timer


def _await_end(pid: int, signals: WaitedSignals) -> int:
    """Pass signals on until the command has ended; its status.  Its zombie is kept."""
    while True:
        status = wait_for(pid, block=False, keep=True)
        if status is not None:
            return status
        info = signals.wait()
        # What the terminal sends (si_code above 0), it sends to the command, too.
        if info is not None and info.si_signo != signal.SIGCHLD and info.si_code <= 0:
            os.kill(pid, info.si_signo)


def _conclude(pid: int, status: int, timer: _Timer | None, signum: int) -> int:
    reaped = (
        timer is not None
        and time.monotonic() >= timer.deadline
        and status in (128 + signum, 128 + signal.SIGKILL)
    )
    if timer is not None:
        timer.release()
    wait_for(pid)
    if reaped:
        _end_orphans()
    return REAPED if reaped else status


def _end_orphans() -> None:
    """Kill what a reaped command has left behind: it came to us, as its nearest living forebear."""
    while orphans := [child.pid for child in children() if child.runs]:
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
            wait_for(pid)
