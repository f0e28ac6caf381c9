"""The options of the commands that serve which say what becomes of a stuck worker."""

from __future__ import annotations

import argparse
from typing import TypedDict

from filetimer.cli.arguments import seconds

__all__ = ["PolicyOptions", "add_policy_options", "policy_options"]


class PolicyOptions(TypedDict):
    """Those of ``filetimer.server.policy.Policy``, save ``kill_after``."""

    report_only: bool
    warn_after: float | None
    reap_tree: bool
    hold_stopped: bool


def add_policy_options(parser: argparse.ArgumentParser) -> None:
    """Describe them."""
    parser.add_argument(
        "--report-only", action="store_true", help="report every expiry, and signal nobody"
    )
    parser.add_argument(
        "--warn-after",
        type=seconds,
        metavar="W",
        help="report a timer as overdue before it expires: below 1, after that fraction of the "
        "time that it allows; from 1 on, after W seconds (default: never)",
    )
    parser.add_argument(
        "--reap-tree",
        action="store_true",
        help="signal a stuck worker's descendants and process group with it",
    )
    parser.add_argument(
        "--hold-stopped",
        action="store_true",
        help="while a worker is stopped, by SIGSTOP or a debugger, its deadlines wait",
    )


def policy_options(options: argparse.Namespace) -> PolicyOptions:
    """What was given."""
    return {
        "report_only": options.report_only,
        "warn_after": options.warn_after,
        "reap_tree": options.reap_tree,
        "hold_stopped": options.hold_stopped,
    }
