"""Records to bytes: one :class:`RecordEncoder` for each process, signal and version.

What a record of one scope repeats is kept as a template, so that an acquire is one formatting
operation.  The template cache is bounded; dynamic scope names cost an encoding each.
"""

from __future__ import annotations

import re
from json.encoder import encode_basestring_ascii

from filetimer.wire import MAX_SENT

__all__ = ["RecordEncoder", "encode_scope"]

MAX_TEMPLATES = 1024
_HALF_SURROGATE = re.compile("[\ud800-\udfff]")


def encode_scope(scope_id: str) -> bytes:
    """The scope as a JSON string in ASCII.

    What is no character (file names that are not UTF-8 have such halves) becomes U+FFFD: SPEC R-8.
    """
    return encode_basestring_ascii(_HALF_SURROGATE.sub("\ufffd", scope_id)).encode("ascii")


class RecordEncoder:
    """Encodes the records of one process.

    Args:
        version: 1 (the five fields that torch knows) or 2.
        pid: the worker; ``start_time`` and ``pid_ns`` as in SPEC section 3, None when unknown.
        signal: what the server shall send when a timer expires.
    """

    __slots__ = ("_acquires", "_identity", "_releases", "pid", "signal", "version")

    def __init__(
        self,
        version: int,
        pid: int,
        signal: int,
        start_time: int | None = None,
        pid_ns: int | None = None,
    ) -> None:
        self.version, self.pid, self.signal = version, pid, int(signal)
        self._identity = b""
        if version >= 2 and start_time is not None:
            self._identity += b', "start_time": %d' % start_time
        if version >= 2 and pid_ns is not None:
            self._identity += b', "pid_ns": %d' % pid_ns
        self._acquires: dict[str, bytes] = {}
        self._releases: dict[str, bytes] = {}

    def acquire(
        self, scope_id: str, expiration_time: float, deadline: float, token: int | None = None
    ) -> bytes:
        """An acquire: ``expiration_time`` in Unix seconds, ``deadline`` in monotonic seconds.

        Raises RuntimeError when the record would be longer than ``MAX_SENT`` bytes.
        """
        template = self._acquires.get(scope_id) or self._acquire_template(scope_id)
        if self.version == 1:
            return self._checked(template % expiration_time + b"}\n", scope_id)
        if token is None:
            return self._checked(template % (expiration_time, deadline) + b"}\n", scope_id)
        return self._checked(
            template % (expiration_time, deadline) + b', "token": %d}\n' % token, scope_id
        )

    def release(self, scope_id: str, token: int | None = None) -> bytes:
        """A release; ``token`` is that of its acquire.  Raises as :meth:`acquire` does."""
        head = self._releases.get(scope_id) or self._release_template(scope_id)
        if token is None or self.version == 1:
            return self._checked(head + b"}\n", scope_id)
        return self._checked(head + b', "token": %d}\n' % token, scope_id)

    def _acquire_template(self, scope_id: str) -> bytes:
        template = self._head(scope_id).replace(b"%", b"%%") + b'%%.6f, "signal": %d' % self.signal
        if self.version >= 2:
            template += b', "deadline": %.6f' + self._identity
        return _remember(self._acquires, scope_id, template)

    def _release_template(self, scope_id: str) -> bytes:
        # SPEC R-9: a release is written with time -1 and signal 0.
        head = self._head(scope_id) + b'-1, "signal": 0' + self._identity
        return _remember(self._releases, scope_id, head)

    def _head(self, scope_id: str) -> bytes:
        # SPEC R-2: version comes first, in exactly these bytes.
        return b'{"version": %d, "pid": %d, "scope_id": %s, "expiration_time": ' % (
            self.version,
            self.pid,
            encode_scope(scope_id),
        )

    @staticmethod
    def _checked(record: bytes, scope_id: str) -> bytes:
        if len(record) > MAX_SENT:  # SPEC F-2
            raise RuntimeError(
                f"the timer record for scope {scope_id[:40]!r}... has {len(record)} bytes, "
                f"more than the {MAX_SENT} that a pipe keeps in one piece: use a shorter scope"
            )
        return record


def _remember(cache: dict[str, bytes], scope_id: str, template: bytes) -> bytes:
    if len(cache) >= MAX_TEMPLATES:
        cache.clear()
    cache[scope_id] = template
    return template
