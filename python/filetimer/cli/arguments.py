"""Argument types that several commands share.  Each says in one sentence what it wants."""

from __future__ import annotations

import argparse
import math
import signal
from collections.abc import Callable
from typing import NoReturn

from filetimer.cli.errors import CommandError

__all__ = ["Parser", "count", "seconds", "signal_number"]

LAST_SIGNAL = 64


class Parser(argparse.ArgumentParser):
    """Reports a usage error as one sentence, without the usage text before it."""

    def error(self, message: str) -> NoReturn:
        """Raise CommandError."""
        raise CommandError(f"{message} (see `{self.prog} --help`)")


def seconds(text: str) -> float:
    """A positive, finite duration in seconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def count(minimum: int) -> Callable[[str], int]:
    """A whole number that is ``minimum`` or more."""

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number that is {minimum} or more"
            )
        return int(text)

    return convert


def signal_number(text: str) -> int:
    """A signal by name (``SIGTERM``, ``TERM``) or by number."""
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    if text.isdecimal() and 1 <= int(text) <= LAST_SIGNAL:
        return int(text)
    if name in signal.Signals.__members__:
        return int(signal.Signals[name])
    raise argparse.ArgumentTypeError(f"there is no signal {text!r}: give a name such as TERM")
