"""The wire: bytes to records and back.  Never does I/O and never reads a clock.

``encoder`` is what workers import and needs the standard library alone; ``decoder`` belongs to
the server and to the readers of its journal.  The rules are those of protocol/SPEC.md.
"""

MAX_SENT = 4096
"""Longest line a sender writes, in bytes with the newline: Linux's PIPE_BUF (SPEC F-2)."""

MAX_RECEIVED = 4097
"""Longest line a receiver accepts, in bytes with the newline (SPEC F-4)."""
