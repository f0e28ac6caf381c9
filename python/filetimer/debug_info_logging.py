"""The hook that a server calls with the timers that have expired."""

from __future__ import annotations

import logging

__all__ = ["log_debug_info_for_expired_timers"]

logger = logging.getLogger("filetimer")


def log_debug_info_for_expired_timers(run_id: str, expired_timers: dict[int, list[str]]) -> None:
    """Log which scopes have expired, by pid.  Replace it to collect more.

    Args:
        run_id: the job, as the server was told.
        expired_timers: scope ids by the pid of the worker that holds them.
    """
    if expired_timers:
        logger.info("run %s: expired timers by pid: %s", run_id, expired_timers)
