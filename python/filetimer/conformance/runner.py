"""Runs the cases against one subject and collects the results."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from .cases import Case, load, requirements
from .link import TIMEOUT, DriverFault, DriverHung, Unsupported
from .live_client import run_client
from .live_server import run_server
from .pure import run_codec, run_timeline
from .report import Report, Result
from .session import Session
from .verdicts import Failure, Skip

Progress = Callable[[int, int, Result], None]

JOBS = 4  # drivers side by side: the live cases mostly wait
_HANGS_ALLOWED = 3  # of one op: a driver that hangs at every case is not to take an hour


class UsageError(Exception):
    """The subject cannot be tried as asked: not a verdict on it."""


def run(
    command: Sequence[str],
    *,
    roles: Sequence[str] | None = None,
    version: int | None = None,
    names: Sequence[str] | None = None,
    timeout: float = TIMEOUT,
    jobs: int = JOBS,
    progress: Progress | None = None,
) -> Report:
    """Tries every case that applies. Raises DriverFault if the driver gives no `hello`."""
    first = Session(command, timeout)
    try:
        with first.shared() as driver:
            hello = driver.hello
        spoken = _version(hello, version)
        chosen = _choose(load(), hello, spoken, roles, names)
        sessions = [first, *(Session(command, timeout) for _ in range(jobs - 1))][: len(chosen)]
        results = _Trial(hello, spoken, sessions, progress).results(chosen)
    finally:
        first.discard()
    return Report(hello, spoken, results, requirements())


def _version(hello: dict[str, Any], asked: int | None) -> int:
    versions = hello.get("versions")
    if not isinstance(versions, list) or not set(versions) & {1, 2}:
        raise UsageError(f"hello names no version that the kit knows: {hello}")
    if asked is not None and asked not in versions:
        raise UsageError(f"the driver does not speak version {asked}, only {versions}")
    return asked or max(set(versions) & {1, 2})


def _choose(
    cases: Sequence[Case],
    hello: dict[str, Any],
    version: int,
    roles: Sequence[str] | None,
    names: Sequence[str] | None,
) -> list[Case]:
    offered = hello.get("roles", [])
    if missing := [role for role in roles or () if role not in offered]:
        raise UsageError(f"the driver has no role {missing[0]}, only {', '.join(offered)}")
    if names and (unknown := set(names) - {case.name for case in cases}):
        raise UsageError(f"there is no case {sorted(unknown)[0]}")
    return [
        case
        for case in cases
        if case.role in (roles or offered)
        and version in case.versions
        and (not names or case.name in names)
    ]


class _Trial:
    """The cases of one run, tried side by side, each in a session that is free."""

    def __init__(
        self,
        hello: dict[str, Any],
        version: int,
        sessions: Sequence[Session],
        progress: Progress | None,
    ) -> None:
        self._hello, self._progress, self._sessions = hello, progress, sessions
        self._free: SimpleQueue[Session] = SimpleQueue()
        for session in sessions:
            session.version = version
            self._free.put(session)
        self._lock = threading.Lock()
        self._done = 0
        self._hangs: Counter[str] = Counter()

    def results(self, cases: Sequence[Case]) -> list[Result]:
        if not cases:
            return []
        try:
            with ThreadPoolExecutor(len(self._sessions)) as pool:
                return list(pool.map(lambda case: self._try(case, len(cases)), cases))
        finally:
            for session in self._sessions:
                session.discard()

    def _try(self, case: Case, total: int) -> Result:
        session = self._free.get()
        session.log.clear()
        start = time.monotonic()
        try:
            outcome = self._outcome(case, session)
        finally:
            self._free.put(session)
        result = Result(case, seconds=time.monotonic() - start, **outcome)
        with self._lock:
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, total, result)
        return result

    def _outcome(self, case: Case, session: Session) -> dict[str, Any]:
        """The fields of the result that the case decides."""
        if reason := _declined(case, self._hello):
            return {"status": "skipped", "reason": reason}
        op = case.needs[0]
        if self._hangs[op] >= _HANGS_ALLOWED:
            return {"status": "failed", "reason": f"not tried: {op} has hung too often"}
        try:
            _run(case, session)
        except (Skip, Unsupported) as skip:
            return {"status": "skipped", "reason": str(skip)}
        except DriverFault as fault:
            sent = _conversation(session)
            if isinstance(fault, DriverHung) and sent and sent[-1]["request"].get("op") == op:
                self._hangs[op] += 1
            return {"status": "failed", "reason": str(fault), "sent": sent}
        except Failure as failure:
            sent = failure.sent if failure.sent is not None else _conversation(session)
            told = {"expected": failure.expected, "got": failure.got, "sent": sent}
            return {"status": "failed", **told}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # A reply of the wrong shape is the driver's fault, and no reason to stop.
            why = f"a reply that driver.md does not describe: {type(error).__name__}: {error}"
            return {"status": "failed", "reason": why, "sent": _conversation(session)}
        return {"status": "passed"}


def _run(case: Case, session: Session) -> None:
    if case.role == "client":
        run_client(case, session)
    elif case.role == "server":
        run_server(case, session)
    else:
        with session.shared() as driver:
            if case.role == "codec":
                run_codec(case, driver.request, session.version)
            else:
                run_timeline(case, driver.request)


def _declined(case: Case, hello: dict[str, Any]) -> str:
    """The reason for which the driver, or the runner, does not try the case."""
    skips = hello.get("skips", {})
    for key in (case.name, *case.needs, *case.spec):
        if key in skips:
            return f"{key}: {skips[key]}"
    if case.body.get("needs_root") and os.geteuid() != 0:
        return "the runner must be root to make another user's files and processes"
    return ""


def _conversation(session: Session) -> list[Any]:
    """The last exchanges of the case."""
    return [{"request": request, "reply": reply} for request, reply in session.log[-4:]]
