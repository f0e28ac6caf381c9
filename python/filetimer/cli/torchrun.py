"""``filetimer torchrun``: torchrun, with our timer server in its agent.

Reports on hung workers go to ./filetimer-evidence, or to $FILETIMER_EVIDENCE; empty: none.
FILETIMER_REPORT_ONLY=1, FILETIMER_REAP_TREE=1, FILETIMER_HOLD_STOPPED=1, FILETIMER_WARN_AFTER=W and
FILETIMER_KILL_AFTER=S are what the options of these names are to ``filetimer run``.
Arguments, output and exit status are torchrun's: its own ``main`` runs here, in this process.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys

from filetimer.cli.server_options import EVIDENCE_DIRECTORY

__all__ = ["main"]

AGENT = "torch.distributed.elastic.agent.server.local_elastic_agent"


def main(argv: list[str]) -> int:
    """Run torchrun with these arguments.  Returns its exit status, or raises as it does.

    2, with a sentence on standard error: torch cannot be imported.
    """
    try:
        importlib.import_module("torch")
        run = importlib.import_module("torch.distributed.run")
        importlib.import_module(AGENT)  # so that its compatibility can be checked
    except ImportError as error:
        print(f"filetimer torchrun: {_cure(error)}", file=sys.stderr)
        return 2
    from filetimer import torchelastic

    _log_to_stderr()
    os.environ.setdefault(torchelastic.EVIDENCE, EVIDENCE_DIRECTORY)
    torchelastic.enable()
    sys.argv = ["torchrun", *argv]  # its messages are to name it
    return _status(run.main())


def _log_to_stderr() -> None:
    """What the server says belongs beside what torchrun says."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    logging.getLogger("filetimer").addHandler(handler)


def _cure(error: ImportError) -> str:
    if error.name == "torch":
        return "torch is not installed: pip install torch"
    return f"this torch cannot be used: {error}"


def _status(returned: object) -> int:
    return returned if isinstance(returned, int) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
