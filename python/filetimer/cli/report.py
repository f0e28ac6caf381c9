"""Draw what a job did, as one HTML page that needs nothing else.

A timeline of the workers, by rank where that is known, with their blocks, kills and restarts; how
long the blocks of each scope took, with the deadline drawn in; suggested deadlines; what the server
noted.  For a page after a job, let it keep its history:

    filetimer run --keep-journal job.journal -- python train.py
    filetimer report --journal job.journal -o report.html

`filetimer trace` writes the same for Perfetto, where one can zoom.
"""

from __future__ import annotations

import argparse

from filetimer.cli.errors import system_error
from filetimer.cli.view_options import (
    add_view_options,
    chosen_journal,
    friendly_errors,
    needs_extra,
)
from filetimer.views.report import make_report
from filetimer.views.source import load

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    add_view_options(parser)
    parser.add_argument(
        "-o", "--output", metavar="FILE", default="report.html", help="default: report.html"
    )


def execute(options: argparse.Namespace) -> int:
    """Write the page; return 0."""
    with friendly_errors():
        header, history = load(chosen_journal(options))
    with needs_extra("report"):
        from filetimer.views.report_page import page
    report = make_report(header, history, look=options.journal is None)
    try:
        with open(options.output, "w", encoding="utf-8") as file:
            file.write(page(report))
    except OSError as error:
        raise system_error("write the page", error) from None
    print(f"{options.output}: {report.blocks} blocks of {report.workers} workers")
    return 0
