"""Try an implementation of the wire protocol, in any language.

CMD is a driver: a command that puts the implementation under test, as protocol/driver.md
describes. Shown are a table by requirement, what was declined, and for each failure the bytes
sent, what was expected and what came.

exit status: 0 when nothing failed, 1 when a case failed, 2 for a wrong command line.
"""

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


def main(argv: Sequence[str] | None = None) -> int:
    """The command on its own: `python -m filetimer.conformance [options] -- CMD ARGS...`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="filetimer conformance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.usage = parser.format_usage().removeprefix("usage: ").rstrip() + " -- CMD ARGS..."
    at = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:at])
    options.command = arguments[at + 1 :]
    if not options.command:
        parser.error("no driver: give its command after --")
    return execute(options)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument(
        "--roles",
        type=_roles,
        metavar="ROLE,...",
        help=f"of {', '.join(ROLES)} (default: all that the driver has)",
    )
    parser.add_argument(
        "--version",
        type=int,
        choices=(1, 2),
        help="of the protocol (default: the driver's highest)",
    )
    parser.add_argument("--case", action="append", metavar="NAME", help="only this one; repeatable")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument(
        "--timeout",
        type=float,
        default=TIMEOUT,
        metavar="SECONDS",
        help="for a reply (default: %(default)g)",
    )
    parser.add_argument(
        "--jobs", type=int, default=JOBS, metavar="N", help="drivers at once (default: %(default)d)"
    )


def execute(options: argparse.Namespace) -> int:
    """Try the driver `options.command`; the exit status."""
    try:
        report = run(
            options.command,
            roles=options.roles,
            version=options.version,
            names=options.case,
            timeout=options.timeout,
            jobs=max(1, options.jobs),
            progress=_progress(),
        )
        _print(report)
        if options.json:
            Path(options.json).write_text(reports.as_json(report) + "\n", encoding="utf-8")
    except (UsageError, OSError) as error:
        print(f"filetimer conformance: {error}", file=sys.stderr)
        return 2
    except DriverFault as fault:
        print(f"filetimer conformance: no hello from the driver: {fault}", file=sys.stderr)
        return 1
    return 0 if report.passed else 1


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
