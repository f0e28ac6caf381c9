"""Records to bytes: one :class:`RecordEncoder` for each process, signal and version.

What a record of one scope repeats is kept as a template, so that an acquire is one formatting
operation.  The template cache is bounded; dynamic scope names cost an encoding each.
"""

from __future__ import annotations

import re
from json.encoder import encode_basestring_ascii
from typing import NamedTuple

from filetimer.wire import MAX_SENT

__all__ = ["RecordEncoder", "encode_scope", "well_formed"]

MAX_SCOPES = 1024  # scopes whose templates are kept
_HALF_SURROGATE = re.compile("[\ud800-\udfff]")


def well_formed(scope_id: str) -> str:
    """The scope, with U+FFFD for what is no character: SPEC R-8.

    File names that are not UTF-8 have such halves of surrogate pairs.
    """
    return _HALF_SURROGATE.sub("\ufffd", scope_id)


def encode_scope(scope_id: str) -> bytes:
    """The scope as a JSON string in ASCII."""
    return encode_basestring_ascii(well_formed(scope_id)).encode("ascii")


class _Templates(NamedTuple):
    """What the records of one scope share, ready for ``%``: without and with a token."""

    acquire: bytes
    acquire_token: bytes
    release: bytes
    release_token: bytes


class RecordEncoder:
    """Encodes the records of one process.

    Args:
        version: 1 (the five fields that torch knows) or 2.
        pid: the worker; ``start_time`` and ``pid_ns`` as in SPEC section 3, None when unknown.
        signal: what the server shall send when a timer expires.
    """

    __slots__ = ("_identity", "_templates", "pid", "signal", "version")

    def __init__(
        self,
        version: int,
        pid: int,
        signal: int,
        start_time: int | None = None,
        pid_ns: int | None = None,
    ) -> None:
        self.version, self.pid, self.signal = version, pid, int(signal)
        # SPEC V-1: version 2 only adds to version 1.  SPEC V-4: what is unknown is left out.
        self._identity = b""
        if version >= 2 and start_time is not None:
            self._identity += b', "start_time": %d' % start_time
        if version >= 2 and pid_ns is not None:
            self._identity += b', "pid_ns": %d' % pid_ns
        self._templates: dict[str, _Templates] = {}

    def acquire(
        self, scope_id: str, expiration_time: float, deadline: float, token: int | None = None
    ) -> bytes:
        """An acquire: ``expiration_time`` in Unix seconds, ``deadline`` in monotonic seconds.

        Raises RuntimeError when the record would be longer than ``MAX_SENT`` bytes, ValueError
        for an empty scope.
        """
        templates = self._templates.get(scope_id) or self._new_templates(scope_id)
        if self.version == 1:
            record = templates.acquire % expiration_time
        elif token is None:
            record = templates.acquire % (expiration_time, deadline)
        else:
            record = templates.acquire_token % (expiration_time, deadline, token)
        if len(record) > MAX_SENT:
            raise _too_long(record, scope_id)
        return record

    def release(self, scope_id: str, token: int | None = None) -> bytes:
        """A release; ``token`` is that of its acquire.  Raises as :meth:`acquire` does."""
        templates = self._templates.get(scope_id) or self._new_templates(scope_id)
        if token is None or self.version == 1:
            record = templates.release
        else:
            record = templates.release_token % token
        if len(record) > MAX_SENT:
            raise _too_long(record, scope_id)
        return record

    def _new_templates(self, scope_id: str) -> _Templates:
        if not scope_id:
            raise ValueError("scope_id must not be empty")  # SPEC R-11
        head = self._head(scope_id)
        acquire = head.replace(b"%", b"%%") + b'%%.6f, "signal": %d' % self.signal
        if self.version >= 2:
            acquire += b', "deadline": %.6f' + self._identity
        # SPEC R-9: a release is written with time -1 and signal 0.
        release = head + b'-1, "signal": 0' + self._identity
        templates = _Templates(
            acquire + b"}\n",
            acquire + b', "token": %d}\n',
            release + b"}\n",
            release.replace(b"%", b"%%") + b', "token": %d}\n',
        )
        if len(self._templates) >= MAX_SCOPES:
            self._templates.clear()
        self._templates[scope_id] = templates
        return templates

    def _head(self, scope_id: str) -> bytes:
        # SPEC R-2: version comes first, in exactly these bytes.
        return b'{"version": %d, "pid": %d, "scope_id": %s, "expiration_time": ' % (
            self.version,
            self.pid,
            encode_scope(scope_id),
        )


def _too_long(record: bytes, scope_id: str) -> RuntimeError:
    return RuntimeError(  # SPEC F-2
        f"the timer record for scope {scope_id[:40]!r}... has {len(record)} bytes, "
        f"more than the {MAX_SENT} that a pipe keeps in one piece: use a shorter scope"
    )
