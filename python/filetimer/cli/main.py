"""The command ``filetimer``: finds the subcommand in a table and runs it.

A subcommand is a module with two functions: ``add_arguments(parser)``, and ``execute(options)``,
which returns the exit status.  It is imported only when it is called.  Its docstring is its help.
One that parses its arguments itself has, instead, ``main(arguments)``.
A command line after ``--``, where the table says that there is one, is ``options.command``.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from filetimer import __version__, native_files
from filetimer.cli.arguments import Parser
from filetimer.cli.errors import CommandError

__all__ = ["main"]


class Command(NamedTuple):
    """One row of the table: where the subcommand lives, and what it does."""

    module: str
    summary: str
    takes_command: bool = False
    parses_itself: bool = False  # its ``main(arguments)`` is called with all that follows its name


COMMANDS = {
    "run": Command("filetimer.cli.run", "run workers under a timer server", True),
    "serve": Command("filetimer.cli.serve", "serve timers at a path, in the foreground"),
    "expires": Command("filetimer.cli.expires", "guard one command with a timer", True),
    "torchrun": Command(
        "filetimer.cli.torchrun", "torchrun, with a timer server in its agent", parses_itself=True
    ),
    "list": Command("filetimer.cli.list", "show the timers that are set"),
    "suggest": Command("filetimer.cli.suggest", "suggest deadlines from what was measured"),
    "top": Command("filetimer.cli.top", "watch the timers of a server, live"),
    "metrics": Command("filetimer.cli.metrics", "serve metrics of a server to Prometheus"),
    "report": Command("filetimer.cli.report", "draw what a job did, as one HTML page"),
    "trace": Command("filetimer.cli.trace", "write what a job did for Perfetto"),
    "conformance": Command(
        "filetimer.conformance.cli", "try an implementation of the protocol", True
    ),
    "doctor": Command("filetimer.cli.doctor", "say what this host offers, and what to mend"),
}

NATIVE_FILES = {
    "--includes": (native_files.includes, "print the -I option for C and C++ compilers, and nvcc"),
    "--cflags": (native_files.cflags, "print all options for a C or C++ compiler"),
    "--cmakedir": (native_files.get_cmake_dir, "print the folder for CMake's filetimer_DIR"),
    "--pkgconfigdir": (native_files.get_pkgconfig_dir, "print the folder for PKG_CONFIG_PATH"),
}

INTERRUPTED = 130  # 128 + SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv``, by default that of the process; return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = next((argument for argument in arguments[:1] if not argument.startswith("-")), None)
    prog = "filetimer" if name is None else f"filetimer {name}"
    # The library's log goes where a command sends it; unasked, Python would print it.
    logging.getLogger("filetimer").addHandler(logging.NullHandler())
    try:
        if name is None:
            return _main_options(arguments)
        return _run(name, arguments[1:])
    except CommandError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return error.status
    except SystemExit as end:  # argparse, after --help and --version
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `filetimer ... | head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _main_options(arguments: list[str]) -> int:
    width = max(map(len, COMMANDS)) + 2
    rows = "\n".join(f"  {name:{width}}{row.summary}" for name, row in COMMANDS.items())
    parser = Parser(
        prog="filetimer",
        usage="filetimer COMMAND ...",
        description="Timers for training jobs: a worker that hangs past its deadline is reaped.",
        epilog=f"commands:\n{rows}\n\n`filetimer COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"filetimer {__version__}")
    for option, (show, summary) in NATIVE_FILES.items():
        parser.add_argument(
            option, action="append_const", dest="native_files", const=show, help=summary
        )
    options = parser.parse_args(arguments)
    if options.native_files:
        for show in options.native_files:
            print(show())
        return 0
    raise CommandError(f"no command given: choose one of {', '.join(COMMANDS)}")


def _run(name: str, arguments: list[str]) -> int:
    row = COMMANDS.get(name)
    if row is None:
        raise CommandError(f"there is no such command: choose one of {', '.join(COMMANDS)}")
    module = importlib.import_module(row.module)
    if row.parses_itself:
        own_status: int = module.main(arguments)
        return own_status
    tail = " -- CMD..." if row.takes_command else ""
    parser = Parser(
        prog=f"filetimer {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    if tail:
        parser.usage = parser.format_usage().removeprefix("usage: ").rstrip() + tail
    own, command = _split(arguments) if row.takes_command else (arguments, [])
    options = parser.parse_args(own)
    if row.takes_command and not command:
        parser.error(f"no command given: write it after `--`, as in `{parser.prog} ... -- CMD`")
    options.command = command
    status: int = module.execute(options)
    return status


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What stands before the first ``--``, and what stands after it."""
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]
