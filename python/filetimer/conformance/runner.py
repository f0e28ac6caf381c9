"""Runs the cases against one subject and collects the results."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .cases import Case, load, requirements
from .link import TIMEOUT, DriverFault, Unsupported
from .live_client import run_client
from .live_server import run_server
from .pure import run_codec, run_timeline
from .report import Report, Result
from .session import Session
from .verdicts import Failure, Skip

Progress = Callable[[int, int, Result], None]


class UsageError(Exception):
    """The subject cannot be tried as asked: not a verdict on it."""


def run(
    command: Sequence[str],
    *,
    roles: Sequence[str] | None = None,
    version: int | None = None,
    names: Sequence[str] | None = None,
    timeout: float = TIMEOUT,
    progress: Progress | None = None,
) -> Report:
    """Tries every case that applies. Raises DriverFault if the driver gives no `hello`."""
    session = Session(command, timeout)
    try:
        with session.shared() as driver:
            hello = driver.request({"op": "hello"})
        session.version = _version(hello, version)
        chosen = _choose(load(), hello, session.version, roles, names)
        results = []
        for number, case in enumerate(chosen, 1):
            result = _try(case, session, hello)
            results.append(result)
            if progress is not None:
                progress(number, len(chosen), result)
    finally:
        session.discard()
    return Report(hello, session.version, results, requirements())


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


def _try(case: Case, session: Session, hello: dict[str, Any]) -> Result:
    session.log.clear()
    if reason := _declined(case, hello):
        return Result(case, "skipped", reason=reason)
    start = time.monotonic()

    def result(status: str, **more: Any) -> Result:
        return Result(case, status, time.monotonic() - start, **more)

    try:
        _run(case, session)
    except (Skip, Unsupported) as skip:
        return result("skipped", reason=str(skip))
    except DriverFault as fault:
        return result("failed", reason=str(fault), sent=_conversation(session))
    except Failure as failure:
        sent = failure.sent if failure.sent is not None else _conversation(session)
        return result("failed", expected=failure.expected, got=failure.got, sent=sent)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # A reply of the wrong shape is the driver's fault, and no reason to stop.
        why = f"a reply that driver.md does not describe: {type(error).__name__}: {error}"
        return result("failed", reason=why, sent=_conversation(session))
    return result("passed")


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
    return list(_exchanges(session))[-4:]


def _exchanges(session: Session) -> Iterator[Any]:
    for request, reply in session.log:
        yield {"request": request, "reply": reply}
