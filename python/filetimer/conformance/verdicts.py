"""How a case tells its outcome: it returns, or raises one of these."""

from __future__ import annotations

from typing import Any


class Failure(Exception):
    """What was asked for and what came instead."""

    def __init__(self, expected: Any, got: Any, sent: Any = None) -> None:
        super().__init__(f"expected {expected!r}, got {got!r}")
        self.expected, self.got, self.sent = expected, got, sent


class Skip(Exception):
    """The case cannot be tried here; the text says why."""


def expect(condition: object, expected: Any, got: Any, sent: Any = None) -> None:
    if not condition:
        raise Failure(expected, got, sent)
