"""Records to bytes: one :class:`RecordEncoder` for each process, signal and version.

What a record of one scope repeats is kept as a template, so that an acquire is one formatting
operation.  The template cache is bounded; dynamic scope names cost an encoding each.
"""

from __future__ import annotations

import math
import re
from json.encoder import encode_basestring_ascii

from filetimer.api import Attributes
from filetimer.wire import MAX_SENT

__all__ = [
    "RecordEncoder",
    "Templates",
    "encode_attributes",
    "encode_scope",
    "too_long",
    "well_formed",
]

MAX_ATTRIBUTES, MAX_ATTRIBUTES_SIZE = 8, 256  # SPEC R-12: pairs, bytes
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


def encode_attributes(attributes: Attributes) -> bytes:
    """The attributes as a JSON object in ASCII; nothing where there are none.

    Raises ValueError for what SPEC R-12 does not allow.
    """
    if not attributes:
        return b""
    pairs = [
        f"{_encode_name(name)}: {_encode_value(name, attributes[name])}" for name in attributes
    ]
    encoded = ("{" + ", ".join(pairs) + "}").encode("ascii")
    if len(pairs) > MAX_ATTRIBUTES or len(encoded) > MAX_ATTRIBUTES_SIZE:
        raise ValueError(
            f"{len(pairs)} attributes of {len(encoded)} bytes are too many: at most "
            f"{MAX_ATTRIBUTES} fit, and {MAX_ATTRIBUTES_SIZE} bytes"
        )
    return encoded


def _encode_name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise ValueError(f"the name of an attribute must be a non-empty string, not {name!r}")
    return encode_basestring_ascii(well_formed(name))


def _encode_value(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return encode_basestring_ascii(well_formed(value))
    if isinstance(value, int) and abs(value) < 2**53:
        return int.__repr__(value)
    if isinstance(value, float) and math.isfinite(value):
        return float.__repr__(value)
    raise ValueError(
        f"the attribute {name!r} must be a string, a boolean or a finite number, not {value!r}"
    )


class Templates:
    """What the records of one scope share, ready for ``%``.

    ``acquire`` takes (expiration_time, deadline), ``acquire_token`` a token behind them, and
    ``release_token`` a token; ``release`` is whole.  ``deadline`` is for the client to remember
    when the plain timer of the scope expires: monotonic seconds, 0 when there is none.
    """

    __slots__ = ("acquire", "acquire_token", "deadline", "release", "release_token")

    def __init__(
        self, version: int, head: bytes, signal: int, identity: bytes, attributes: bytes = b""
    ) -> None:
        # SPEC R-4.  To write 14 digits takes half as long as to write 16, a tenth of a pair less.
        time = b"%.4f" if version >= 2 else b"%.6f"
        # SPEC V-1: version 2 only adds to version 1, where %.0a takes an argument, writes nothing.
        deadline = b', "deadline": %.6f' if version >= 2 else b"%.0a"
        token = b', "token": %d' if version >= 2 else b"%.0a"
        escaped = head.replace(b"%", b"%%")
        acquire = escaped + time + b', "signal": %d' % signal + deadline + identity
        release = b'-1, "signal": 0' + identity  # SPEC R-9
        end = b"}\n"
        if attributes and version >= 2:
            end = b', "attributes": ' + attributes.replace(b"%", b"%%") + end
        self.acquire = acquire + end
        self.acquire_token = acquire + token + end
        self.release = head + release + b"}\n"
        self.release_token = escaped + release + token + b"}\n"
        self.deadline = 0.0


class RecordEncoder:
    """Encodes the records of one process.

    Args:
        version: 1 (the five fields that torch knows) or 2.
        pid: the worker; ``start_time`` and ``pid_ns`` as in SPEC section 3, None when unknown.
        signal: what the server shall send when a timer expires.
        attributes: of all its timers, encoded (:func:`encode_attributes`).

    ``known`` has the templates of scopes that were seen before: a client looks there itself.
    """

    __slots__ = ("_attributes", "_identity", "known", "pid", "signal", "version")

    def __init__(
        self,
        version: int,
        pid: int,
        signal: int,
        start_time: int | None = None,
        pid_ns: int | None = None,
        attributes: bytes = b"",
    ) -> None:
        self._attributes = attributes
        self.version, self.pid, self.signal = version, pid, int(signal)
        # SPEC V-4: what is unknown is left out.
        self._identity = b""
        if version >= 2 and start_time is not None:
            self._identity += b', "start_time": %d' % start_time
        if version >= 2 and pid_ns is not None:
            self._identity += b', "pid_ns": %d' % pid_ns
        self.known: dict[str, Templates] = {}

    def acquire(
        self, scope_id: str, expiration_time: float, deadline: float, token: int | None = None
    ) -> bytes:
        """An acquire: ``expiration_time`` in Unix seconds, ``deadline`` in monotonic seconds.

        Raises RuntimeError when the record would be longer than ``MAX_SENT`` bytes, ValueError
        for an empty scope.
        """
        templates = self.known.get(scope_id) or self.learn(scope_id)
        if token is None:
            record = templates.acquire % (expiration_time, deadline)
        else:
            record = templates.acquire_token % (expiration_time, deadline, token)
        if len(record) > MAX_SENT:
            raise too_long(record, scope_id)
        return record

    def release(self, scope_id: str, token: int | None = None) -> bytes:
        """A release; ``token`` is that of its acquire.  Raises as :meth:`acquire` does."""
        templates = self.known.get(scope_id) or self.learn(scope_id)
        record = templates.release if token is None else templates.release_token % token
        if len(record) > MAX_SENT:
            raise too_long(record, scope_id)
        return record

    def learn(self, scope_id: str) -> Templates:
        """Make and keep the templates of a scope.

        Raises ValueError for an empty scope, RuntimeError for one whose release would be longer
        than ``MAX_SENT`` bytes; an acquire is the longer one, and needs a look at each.
        """
        templates = self.templates(scope_id, self._attributes)
        if len(self.known) >= MAX_SCOPES:
            self.known.clear()
        self.known[scope_id] = templates
        return templates

    def templates(self, scope_id: str, attributes: bytes) -> Templates:
        """Templates that are not kept, with other attributes.  Raises as :meth:`learn` does."""
        if not scope_id:
            raise ValueError("scope_id must not be empty")  # SPEC R-11
        templates = Templates(
            self.version, self._head(scope_id), self.signal, self._identity, attributes
        )
        if len(templates.release) > MAX_SENT:
            raise too_long(templates.release, scope_id)
        return templates

    def _head(self, scope_id: str) -> bytes:
        # SPEC R-2: version comes first, in exactly these bytes.
        return b'{"version": %d, "pid": %d, "scope_id": %s, "expiration_time": ' % (
            self.version,
            self.pid,
            encode_scope(scope_id),
        )


def too_long(record: bytes, scope_id: str) -> RuntimeError:
    """What is raised for a record of more than ``MAX_SENT`` bytes."""
    return RuntimeError(  # SPEC F-2
        f"the timer record for scope {scope_id[:40]!r}... has {len(record)} bytes, "
        f"more than the {MAX_SENT} that a pipe keeps in one piece: use a shorter scope"
    )
