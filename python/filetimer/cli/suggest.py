"""Suggest a deadline for each scope, from how long its blocks have taken.

A job that keeps its history can be asked afterwards:

    filetimer run --keep-journal job.journal -- python train.py
    filetimer suggest --journal job.journal

The suggestion is the longest duration seen, times a factor that is larger the fewer calls there
were (5.6 after 100, 1.8 after 10,000, never below 1.5), and never below 1 s: so that, whatever the
distribution, with a tail no heavier than x**-4, one healthy call in 100,000 exceeds it.  "raise":
less is allowed now.  "could be lower": more than four times as much is; a hang is found late.
First calls are apart, because they compile and warm up.  Blocks that were killed, expired, or are
open are counted beside (censored), never as durations.
"""

from __future__ import annotations

import argparse
import json
from itertools import groupby

from filetimer.cli.view_options import add_view_options, chosen_journal, friendly_errors
from filetimer.views.source import load
from filetimer.views.suggest import Advice, advise
from filetimer.views.words import printable, seconds

__all__ = ["add_arguments", "execute"]

ROW = "{:<13} {:>6} {:>4} {:>8} {:>8} {:>8} {:>8} {:>5} {:>8}"
TITLES = ("", "ENDED", "CENS", "MEDIAN", "P99", "MAX", "ALLOWED", "LEFT", "SUGGEST")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    add_view_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object for each row")


def execute(options: argparse.Namespace) -> int:
    """Print the advice; return 0."""
    with friendly_errors():
        header, history = load(chosen_journal(options))
    advice = advise([*history.spans, *history.open_spans()])
    if options.json:
        for row in advice:
            print(json.dumps(row.to_dict()))
        return 0
    covered = history.last - (history.first or 0.0)
    start = "from its start" if history.complete else "the last of it, see --journal-size"
    print(f"{header['path']}, run {header['run_id']}: {seconds(covered)} of history, {start}")
    if not advice:
        print("no block was guarded")
        return 0
    print(ROW.format(*TITLES))
    for scope_id, rows in groupby(advice, key=lambda row: row.scope_id):
        print(printable(scope_id))
        for row in rows:
            _print_row(row)
    return 0


def _print_row(row: Advice) -> None:
    left = "-" if row.headroom is None else f"{row.headroom:.0%}"
    times = [_time(value) for value in (row.median, row.p99, row.longest, row.allowed)]
    what = "  first calls" if row.first_call else "  later calls"
    censored = sum(row.censored.values())
    print(ROW.format(what, row.count, censored, *times, left, _time(row.suggested)))
    print(f"    {row.verdict}: {row.why}")


def _time(value: float | None) -> str:
    return "-" if value is None else seconds(value)
