"""Options of the commands that serve: what becomes of a stuck worker, evidence, the journal."""

from __future__ import annotations

import argparse
from typing import Any

from filetimer.cli.arguments import count, seconds
from filetimer.server.evidence import DEFAULT_BUDGET
from filetimer.server.journal import BOUND

__all__ = ["EVIDENCE_DIRECTORY", "add_server_options", "server_options"]

EVIDENCE_DIRECTORY = "filetimer-evidence"  # made when there is something to write
MIB = 1 << 20


def add_server_options(parser: argparse.ArgumentParser, *, evidence: str | None) -> None:
    """Describe them; ``evidence`` is where it goes unless told otherwise."""
    _add_policy_options(parser)
    default = "none is collected" if evidence is None else f"./{evidence}"
    parser.add_argument(
        "--evidence",
        metavar="DIR",
        default=evidence,
        help="before a worker is reaped, write to DIR what it and its group were doing: stacks, "
        f"scopes, threads (default: {default})",
    )
    parser.add_argument(
        "--no-evidence",
        dest="evidence",
        action="store_const",
        const=None,
        help="reap at once, without a report",
    )
    parser.add_argument(
        "--evidence-budget",
        type=seconds,
        default=DEFAULT_BUDGET,
        metavar="S",
        help="seconds by which evidence may delay a worker's end, at most "
        f"(default: {DEFAULT_BUDGET:g})",
    )
    parser.add_argument(
        "--gpu-core-dump",
        action="store_true",
        help="have the CUDA driver of a worker that is to be reaped dump its GPU's state; the "
        "worker must run with CUDA_ENABLE_USER_TRIGGERED_COREDUMP=1, and the budget must suffice",
    )
    parser.add_argument(
        "--journal-size",
        type=count(1),
        default=BOUND // MIB,
        metavar="MIB",
        help="how much history is kept for top, suggest, report and trace: between one and two "
        f"times as much, at about 5000 records a MiB (default: {BOUND // MIB})",
    )
    parser.add_argument(
        "--keep-journal",
        metavar="FILE",
        help="leave that history in FILE at the end (default: it goes with the server)",
    )


def server_options(options: argparse.Namespace) -> dict[str, Any]:
    """What they say, as keywords of ``ServerOptions``."""
    return {
        "report_only": options.report_only,
        "warn_after": options.warn_after,
        "reap_tree": options.reap_tree,
        "hold_stopped": options.hold_stopped,
        "evidence": options.evidence,
        "evidence_budget": options.evidence_budget,
        "gpu_core_dump": options.gpu_core_dump,
        "journal_size": options.journal_size * MIB,
        "keep_journal": options.keep_journal,
    }


def _add_policy_options(parser: argparse.ArgumentParser) -> None:
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
