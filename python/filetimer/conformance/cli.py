"""`filetimer conformance [options] -- CMD ARGS...`: the verdict on an implementation."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import report as reports
from .cases import ROLES
from .link import TIMEOUT, DriverFault
from .report import Report, Result
from .runner import JOBS, Progress, UsageError, run

_EXAMPLE = """\
CMD is a driver: a command that puts an implementation under test, as protocol/driver.md
describes. Exit status: 0 when nothing failed, 1 when a case failed, 2 for a wrong command line.
"""


def main(argv: Sequence[str] | None = None) -> int:
    options, command = _arguments(list(sys.argv[1:] if argv is None else argv))
    try:
        report = run(
            command,
            roles=options.roles,
            version=options.version,
            names=options.case,
            timeout=options.timeout,
            jobs=options.jobs,
            progress=_progress(),
        )
    except (UsageError, OSError) as error:
        print(f"filetimer conformance: {error}", file=sys.stderr)
        return 2
    except DriverFault as fault:
        print(f"filetimer conformance: no hello from the driver: {fault}", file=sys.stderr)
        return 1
    _print(report)
    if options.json:
        _write(options.json, reports.as_json(report) + "\n")
    return 0 if report.passed else 1


def _arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="filetimer conformance",
        usage="%(prog)s [--roles ROLE,...] [--version 1|2] [--json FILE] -- CMD ARGS...",
        description="Tries an implementation of the filetimer wire protocol.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--roles", type=_roles, help=f"of {', '.join(ROLES)}; default: all the driver has"
    )
    parser.add_argument("--version", type=int, choices=(1, 2), help="default: the driver's highest")
    parser.add_argument("--case", action="append", metavar="NAME", help="only this one; repeatable")
    parser.add_argument("--json", metavar="FILE", help="write the results there; - is stdout")
    parser.add_argument(
        "--timeout", type=float, default=TIMEOUT, help="seconds for a reply (default %(default)g)"
    )
    parser.add_argument(
        "--jobs", type=int, default=JOBS, help="drivers side by side (default %(default)d)"
    )
    own, command = argv, []
    if "--" in argv:
        own, command = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    options = parser.parse_args(own)
    if not command:
        parser.error("no driver: give its command after --")
    return options, command


def _roles(text: str) -> list[str]:
    roles = text.split(",")
    if unknown := [role for role in roles if role not in ROLES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(ROLES)}")
    return roles


def _progress() -> Progress:
    """On a terminal one line that changes; elsewhere a line for each failure."""
    terminal = sys.stderr.isatty()

    def show(number: int, total: int, result: Result) -> None:
        text = f"{number}/{total} {result.case.role} {result.case.name}"
        if terminal:
            print(f"\r\x1b[K{text[:78]}", end="\n" if number == total else "", file=sys.stderr)
        elif result.status == "failed" or number % 50 == 0 or number == total:
            print(f"{text}: {result.status}", file=sys.stderr)
        sys.stderr.flush()

    return show


def _print(report: Report) -> None:
    print(reports.table(report))
    if text := reports.skips(report):
        print(f"\n{text}")
    for result in report.results:
        if result.status == "failed":
            print(f"\n{reports.failure(result, report.requirements)}")
    print(f"\n{reports.summary(report)}")


def _write(target: str, text: str) -> None:
    if target == "-":
        print(text, end="")
    else:
        Path(target).write_text(text, encoding="utf-8")
