"""Tokens: what tells apart the timers of one process and scope (SPEC C-8).

A counter from 53 random bits, drawn anew after a fork.  ``next`` on it is atomic, with and
without the GIL held elsewhere, and costs less than drawing random bits for every block.
"""

from __future__ import annotations

import itertools
import os

__all__ = ["new_token"]

_LIMIT = 1 << 53


def _draw() -> None:
    global _counter
    _counter = itertools.count(int.from_bytes(os.urandom(8), "big") % _LIMIT)


def new_token() -> int:
    """A token that no other live timer of this process has, however it was made."""
    return next(_counter) % _LIMIT


_counter: itertools.count[int]
_draw()
os.register_at_fork(after_in_child=_draw)
