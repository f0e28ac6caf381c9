"""The hook that torch calls in every process that imports its rendezvous package.

With FILETIMER_TORCHRUN=1 it puts our server into the agent; without, nothing happens.  The entry
point group, ``torchrun.handlers``, is meant for rendezvous backends: it is the only one that torch
loads in the agent without a flag (``torch.backends`` would be loaded by every ``import torch``).

Workers import torch too.  There, and where the variable is not set, this costs two look-ups.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

__all__ = ["register"]

SWITCH = "FILETIMER_TORCHRUN"


def register() -> Callable[[Any], NoReturn]:
    """Install our server if this process is to have it; what is returned is a backend's maker."""
    if os.environ.get(SWITCH) == "1" and not _is_worker():
        try:
            from filetimer import torchelastic

            torchelastic.enable()
        except Exception as error:  # torch must come up whatever is wrong here
            logging.getLogger("filetimer").warning(
                "filetimer is not used: %s: %s; torch's own timer server stays",
                type(error).__name__,
                error,
            )
    return _no_backend


def _is_worker() -> bool:
    """Whether an agent started this process: by itself, or with ``multiprocessing``."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return True
    processes = sys.modules.get("multiprocessing.process")
    return processes is not None and processes.parent_process() is not None


def _no_backend(parameters: Any) -> NoReturn:
    raise ValueError("filetimer is not a rendezvous backend: give another --rdzv-backend")
