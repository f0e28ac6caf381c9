"""Tokens: what tells apart the timers of one process and scope (SPEC C-8).

A counter from a random start, drawn anew after a fork: drawing random bits for every block would
cost more.  The start has 52 bits, so that the tokens stay below 2**53.
"""

from __future__ import annotations

import itertools
import os

__all__ = ["new_token"]


def new_token() -> int:
    """A token that no other live timer of this process has, however it was made."""
    return next(_counter)  # atomic


def _draw() -> None:
    global _counter
    _counter = itertools.count(int.from_bytes(os.urandom(8), "big") >> 12)


_counter: itertools.count[int]
_draw()
os.register_at_fork(after_in_child=_draw)
