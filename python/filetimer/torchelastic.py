"""Our server in the agent of torchrun.

torch's ``LocalElasticAgent`` starts a timer server of its own when TORCHELASTIC_ENABLE_FILE_TIMER
is "1".  It looks the class up as ``torch.distributed.elastic.timer.FileTimerServer`` each time it
starts a worker group, so setting that attribute is all that :func:`install` does.  Three ways lead
there: ``filetimer torchrun``, FILETIMER_TORCHRUN=1 with plain ``torchrun`` (see
:mod:`filetimer.torchrun_handler`), and a call of :func:`install` before an agent of one's own.

The rule of this module: the agent outlives whatever happens to a timer.  The server never signals
the agent (SPEC S-13), and raises nothing into it but the signals that the agent itself received.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import math
import os
import signal as signals
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from filetimer.requests import FileTimerRequest
from filetimer.server import events, file_server
from filetimer.server.events import Event, LogEvent
from filetimer.server.process import ProcessHandle
from filetimer.wire.decoder import Record

__all__ = ["FileTimerServer", "enable", "incompatibility", "install"]

logger = logging.getLogger("filetimer")

TIMER_PACKAGE = "torch.distributed.elastic.timer"
AGENT_MODULE = "torch.distributed.elastic.agent.server.local_elastic_agent"
ENABLE = "TORCHELASTIC_ENABLE_FILE_TIMER"
EVIDENCE = "FILETIMER_EVIDENCE"  # where reports on hung workers go; empty or not set: none
KILL_AFTER = "FILETIMER_KILL_AFTER"  # seconds; the variables here are keywords of the server
WARN_AFTER = "FILETIMER_WARN_AFTER"  # a fraction below 1, or seconds
REPORT_ONLY = "FILETIMER_REPORT_ONLY"  # these are on unless empty or 0
REAP_TREE = "FILETIMER_REAP_TREE"
HOLD_STOPPED = "FILETIMER_HOLD_STOPPED"
PATH = "FILETIMER_PATH"  # goes before TORCHELASTIC_TIMER_FILE in every client (SPEC T-1)


def enable() -> bool:
    """Make the agents of this process guard their workers, with our server: see :func:`install`.

    Sets TORCHELASTIC_ENABLE_FILE_TIMER, and unsets FILETIMER_PATH: the server of an outer
    ``filetimer run`` is not the one that the workers of this process are to talk to.
    """
    os.environ[ENABLE] = "1"
    os.environ.pop(PATH, None)
    return install()


def install() -> bool:
    """Put our server in the place of torch's, for every agent that this process starts from now on.

    Returns False, with one warning in the log, when this torch would not work with it: then
    torch's own server stays.  Raises ImportError when torch is missing.
    """
    timer = importlib.import_module(TIMER_PACKAGE)
    reason = incompatibility(timer, sys.modules.get(AGENT_MODULE))
    if reason is not None:
        logger.warning("filetimer is not used: %s; torch's own timer server stays", reason)
        return False
    timer.FileTimerServer = FileTimerServer  # type: ignore[attr-defined]
    return True


def incompatibility(timer: Any, agent: Any = None) -> str | None:
    """Why our server cannot stand in for the one in the package ``timer``; None: it can.

    ``agent``: torch's module of that name, where it is loaded.
    """
    theirs = getattr(timer, "FileTimerServer", None)
    if theirs is FileTimerServer:
        return None
    if not inspect.isclass(theirs):
        return f"this torch has no {TIMER_PACKAGE}.FileTimerServer"
    return _differing_parameter(theirs) or _missing_method(theirs) or _other_look_up(agent)


def _differing_parameter(theirs: type) -> str | None:
    try:
        wanted = inspect.signature(theirs).parameters
    except (TypeError, ValueError):
        return "the parameters of torch's FileTimerServer cannot be read"
    ours = inspect.signature(FileTimerServer).parameters
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for name, parameter in wanted.items():
        if name not in ours and parameter.kind not in variadic:
            return f"torch's FileTimerServer has a parameter {name!r} that is not known here"
    for name, parameter in ours.items():
        if name not in wanted and parameter.default is inspect.Parameter.empty:
            return f"torch's FileTimerServer has no parameter {name!r}"
    return None


def _missing_method(theirs: type) -> str | None:
    for name in dir(theirs):
        if not name.startswith("_") and not hasattr(FileTimerServer, name):
            return f"torch's FileTimerServer has a method {name!r} that is not known here"
    return None


def _other_look_up(agent: Any) -> str | None:
    """An agent that got hold of the class in another way would go on with torch's."""
    if agent is None:
        return None
    code = getattr(agent.LocalElasticAgent, "_setup_local_watchdog", None)
    names = getattr(getattr(code, "__code__", None), "co_names", ("FileTimerServer",))
    if "FileTimerServer" not in names or "FileTimerServer" in vars(agent):
        return "this torch's agent does not look its timer server up where it can be replaced"
    return None


class FileTimerServer(file_server.FileTimerServer):
    """:class:`filetimer.FileTimerServer` for an agent: a drop-in for torch's class of that name.

    It takes the same arguments.  What it adds: a path that cannot be served is logged and does not
    raise; a worker that is reaped is named in the log by its rank, and in torch's failure report.
    While it serves, FILETIMER_PATH tells the workers, who inherit it, that the server is ours: a
    client that knows only TORCHELASTIC_TIMER_FILE has to reckon with torch's.
    """

    def __init__(
        self,
        file_path: str,
        run_id: str,
        max_interval: float = 10,
        daemon: bool = True,
        log_event: LogEvent | None = None,
        *,
        on_event: Callable[[Event], None] | None = None,
        kill_after: float | None = None,
        journal: bool = True,
        evidence: str | None = None,
    ) -> None:
        self._workers = _AgentsWorkers(log_event)
        self._names: dict[int, str] = {}  # of the workers that were signalled, by pid
        self._listener = on_event
        self._callback = _AgentCallback(log_event)
        super().__init__(
            file_path,
            run_id,
            max_interval,
            daemon,
            None if log_event is None else self._callback,
            on_event=self._on_event,
            journal=journal,
            evidence=evidence or os.environ.get(EVIDENCE) or None,
            **_policy_from_environment(kill_after),
        )

    def start(self) -> None:
        """Serve in a thread.  When that cannot be, the log says why, and no worker is guarded."""
        try:
            super().start()
            os.environ[PATH] = self._file_path
        except (OSError, RuntimeError) as error:
            logger.error(
                "filetimer: no worker of this agent is guarded, timers cannot be served: %s", error
            )
        self._callback.raise_signal()

    def stop(self) -> None:
        """Stop serving, at once.  May be called again."""
        if os.environ.get(PATH) == self._file_path:
            del os.environ[PATH]
        super().stop()
        self._callback.raise_signal()

    def _before_signal(self, process: ProcessHandle, timer: Record) -> None:
        # Here the worker still is what it was; an instant later its files in /proc are empty.
        worker = self._workers.find(process.pid)
        rank = _rank_from_environment(process.pid) if worker is None else worker.rank
        name = f"pid {process.pid}" if rank is None else f"rank {rank} (pid {process.pid})"
        self._names[process.pid] = name
        if worker is not None and worker.error_file is not None:
            _write_error_file(worker.error_file, _failure_text(name, timer))

    def _on_event(self, event: Event) -> None:
        if event.name in (events.KILL_WORKER, events.KILL_ESCALATED, events.KILL_FAILED):
            name = self._names.get(event.pid or 0, f"pid {event.pid}")
            logger.error("filetimer: %s", _event_text(name, event))
        elif event.name == events.WORKER_DIED:
            self._names.pop(event.pid or 0, None)
        if self._listener is not None:
            self._listener(event)


def _policy_from_environment(kill_after: float | None) -> dict[str, Any]:
    """What becomes of stuck workers, as the variables say.  One that makes no sense is logged."""
    return {
        "kill_after": kill_after if kill_after is not None else _seconds(KILL_AFTER),
        "warn_after": _seconds(WARN_AFTER),
        "report_only": os.environ.get(REPORT_ONLY, "") not in ("", "0"),
        "reap_tree": os.environ.get(REAP_TREE, "") not in ("", "0"),
        "hold_stopped": os.environ.get(HOLD_STOPPED, "") not in ("", "0"),
    }


def _seconds(name: str) -> float | None:
    text = os.environ.get(name, "")
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if 0 < seconds < math.inf:
        return seconds
    logger.error("filetimer: %s must be a positive number, and is ignored: %r", name, text)
    return None


class _AgentCallback:
    """The agent's ``log_event``, which in the agent's own thread may raise the agent's signals.

    The agent turns SIGTERM into an exception, wherever its main thread is.  A server logs what a
    callback raises and goes on; that must not swallow the order to stop.
    """

    def __init__(self, log_event: LogEvent | None) -> None:
        self._log_event = log_event
        self._signal: Exception | None = None

    def __call__(self, name: str, request: FileTimerRequest | None) -> None:
        try:
            if self._log_event is not None:
                self._log_event(name, request)
        except Exception as error:
            if type(error).__name__ != "SignalException":
                raise
            self._signal = error

    def raise_signal(self) -> None:
        """Raise what came while the callback ran."""
        error, self._signal = self._signal, None
        if error is not None:
            raise error


class _Worker(NamedTuple):
    rank: int
    error_file: str | None


class _AgentsWorkers:
    """What the agent knows of its workers.  ``log_event`` is a method of it.

    These are private attributes of torch's: where they are not as expected, nothing is known.
    """

    def __init__(self, log_event: LogEvent | None) -> None:
        self._agent: Any = getattr(log_event, "__self__", None)

    def find(self, pid: int) -> _Worker | None:
        try:
            for worker in self._agent._worker_group.workers:
                if worker.id == pid:
                    return _Worker(int(worker.global_rank), self._error_file(worker.local_rank))
        except (AttributeError, TypeError, ValueError):
            pass
        return None

    def _error_file(self, local_rank: int) -> str | None:
        files = getattr(getattr(self._agent, "_pcontext", None), "error_files", None)
        path = files.get(local_rank) if isinstance(files, dict) else None
        return path if isinstance(path, str) and path != os.devnull else None


def _rank_from_environment(pid: int) -> int | None:
    """The rank of a process that the agent did not start itself, but that a worker did.

    RANK alone may be a stranger's (some schedulers number the hosts so): torchrun sets both.
    """
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            variables = dict(entry.partition(b"=")[::2] for entry in file.read().split(b"\0"))
        return int(variables[b"RANK"]) if b"TORCHELASTIC_RUN_ID" in variables else None
    except (OSError, KeyError, ValueError):
        return None


def _write_error_file(path: str, text: str) -> None:
    """Leave the reason where the agent looks for it when a worker has failed.

    The form is that of torch's own error files.  The file appears whole, and only if the worker
    has left none: the agent trusts what it finds.
    """
    extra = {"py_callstack": text, "timestamp": str(int(time.time()))}
    temporary = f"{path}.filetimer"
    try:
        with open(temporary, "w") as file:
            json.dump({"message": {"message": text, "extraInfo": extra}}, file)
        try:
            os.link(temporary, path)
        finally:
            os.unlink(temporary)
    except OSError as error:
        logger.debug("no reason was left in %s: %s", path, error)


def _failure_text(name: str, timer: Record) -> str:
    return (
        f"filetimer reaped {name}: its timer {timer.scope_id!r} expired, "
        f"and {_signal_text(timer.signal)} was sent"
    )


def _event_text(name: str, event: Event) -> str:
    late = "" if event.late is None else f", {1000 * event.late:.1f} ms after the deadline"
    hung = "" if event.where is None else f"; it hung in {event.where}"
    hung += "" if event.evidence is None else f"; evidence in {event.evidence}"
    signum = _signal_text(event.signal or 0)
    if event.name == events.KILL_FAILED:
        return f"{name} could not be sent {signum} for its timer {event.scope_id!r}: {event.detail}"
    if event.name == events.KILL_ESCALATED:
        return f"{name} outlived its signal and was sent {signum}{late}; scope {event.scope_id!r}"
    return f"reaped {name}: its timer {event.scope_id!r} expired, {signum} was sent{late}{hung}"


def _signal_text(signum: int) -> str:
    try:
        return f"signal {signum} ({signals.Signals(signum).name})"
    except ValueError:
        return f"signal {signum}"
