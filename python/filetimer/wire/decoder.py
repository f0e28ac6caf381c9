"""Bytes to records: what a server does with whatever comes out of the pipe.

The theory is short.  The stream is cut at every LF, and each line is judged on its own (SPEC F-5),
so how reads cut the stream cannot matter.  A chunk whose lines are all valid, the usual case, is
decoded in one go; if anything in it is wrong, its lines are judged one by one.  Both ways decode
with the same decoder, line by line: msgspec's ``decode_lines`` would accept two objects on a line.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from io import BytesIO
from typing import Annotated, Any, NoReturn

import msgspec
from msgspec import UNSET, Meta, UnsetType

from filetimer import memory
from filetimer.wire import MAX_RECEIVED

__all__ = [
    "UNSET",
    "BadLine",
    "Garbage",
    "LineDecoder",
    "Received",
    "Record",
    "Rejection",
    "checked_record",
    "code_of_garbage",
    "decode_line",
    "judge_garbage",
    "judge_line",
]

_Integer = Annotated[int, Meta(ge=0, lt=2**53)]  # SPEC R-3
# SPEC R-12, in bounded memory; flat, so that a record has no reference cycles.
_Attributes = Annotated[dict[str, str | bool | int | float], Meta(max_length=8)]


class Record(msgspec.Struct, gc=False):
    """One valid record.  An optional field that is absent is ``UNSET``.

    The types below are the table of SPEC section 3 (SPEC R-1).  Fields that are not named here are
    skipped (SPEC R-6), the last of repeated ones counts (SPEC R-7), and no rule looks at
    ``version`` (SPEC V-2).
    """

    version: Annotated[int, Meta(ge=1, lt=2**53)]
    pid: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    scope_id: str
    expiration_time: float
    signal: Annotated[int, Meta(ge=-(2**31), le=64)]
    deadline: Annotated[float, Meta(ge=0)] | UnsetType = UNSET
    start_time: _Integer | UnsetType = UNSET
    pid_ns: _Integer | UnsetType = UNSET
    token: _Integer | UnsetType = UNSET
    attributes: _Attributes | UnsetType = UNSET


_WHITE = b" \t\r"
_BEGINNINGS = frozenset(bytes([byte]) for byte in b'{["-0123456789tfn')  # of any JSON text
SHOWN = 200  # bytes of a bad line that a rejection keeps
VERSION_KEY = b'{"version":'  # how every record starts: SPEC R-2
SHORTEST = len(b'{"version":1,"pid":1,"scope_id":"","expiration_time":1,"signal":0}')

# msgspec 0.22 writes a string to where there is no memory for it, and the process dies.  So it is
# asked before: for what Python's allocator takes at once, and for what lines may become.
ARENA = 1 << 20  # bytes
GROWTH = 16  # bytes, of a line's byte, at most

_REQUIRED = ("version", "pid", "scope_id", "expiration_time", "signal")
_OPTIONAL = ("deadline", "start_time", "pid_ns", "token")
_FIELD_TYPES: dict[str, Any] = {field.name: field.type for field in msgspec.structs.fields(Record)}
_HALF_SURROGATE = re.compile("[\ud800-\udfff]")
_decode = msgspec.json.Decoder(Record).decode


class BadLine(ValueError):
    """What is wrong with a line: a code of SPEC section 5, and words."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail


class Rejection(msgspec.Struct, gc=False):
    """A line that is not a valid record.

    ``line`` holds its first bytes, at most :data:`SHOWN`; ``code`` is one of SPEC section 5, and
    ``detail`` says what is wrong in words.
    """

    line: bytes
    code: str
    detail: str


class Garbage(msgspec.Struct, gc=False):
    """Lines that follow one another and are each too short for a record, as most of a flood is.

    Which code each deserves is for :func:`judge_garbage` to say, when there is time: that must not
    hold up a record behind them.
    """

    text: bytes

    @property
    def lines(self) -> list[bytes]:
        """The lines without their LFs."""
        return self.text[:-1].split(b"\n")


Received = list[Record | Rejection | Garbage]
"""What bytes came to, in order."""


class LineDecoder:
    """Cuts a byte stream into lines and lines into records, in bounded memory (SPEC F-4, X-1).

    ``feed`` returns what the bytes completed, in order.  The unfinished line is kept for the next
    call and is never acted on (SPEC F-8).
    """

    def __init__(self) -> None:
        self._partial = b""  # the unfinished line; at most its last MAX_RECEIVED bytes
        self._partial_head: bytes | None = None  # its first bytes, once it is oversize

    @property
    def unfinished(self) -> bytes:
        """The line that has not ended yet: at most its last ``MAX_RECEIVED`` bytes."""
        return self._partial

    def feed(self, data: bytes) -> list[Record | Rejection]:
        """Take in bytes of any length; return the records and rejections they complete."""
        verdicts: list[Record | Rejection] = []
        for result in self.feed_fast(data):
            if isinstance(result, Garbage):
                verdicts += [judge_garbage(line) for line in result.lines]
            else:
                verdicts.append(result)
        return verdicts

    def feed_fast(self, data: bytes) -> Received:
        """As :meth:`feed`, with lines that cannot be records not yet judged.

        Raises MemoryError, and then it may be fed the same again.
        """
        data = self._partial + data
        end = data.rfind(b"\n") + 1
        head, partial = self._partial_head, data[end:]
        results: Received = []
        if end:
            memory.require(ARENA + GROWTH * end)
            results = _decode_lines(data[:end], head)
        # From here on nothing can fail.
        head = None if end else head
        if len(partial) > MAX_RECEIVED:
            # SPEC F-7: the tail may hold another writer's record, so the tail is what is kept.
            head = head or partial[:SHOWN]
            partial = partial[-MAX_RECEIVED:]
        self._partial, self._partial_head = partial, head
        return results


def _decode_lines(data: bytes, oversize_head: bytes | None) -> Received:
    """The verdicts on whole lines.  ``oversize_head``: as in :func:`judge_line`, of the first."""
    if oversize_head is None and _fits(data) and _is_utf8(data):
        try:
            return list(map(_decode, BytesIO(data)))  # faster than split; an LF is white space
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass  # at least one is bad: judge them one by one
    results: Received = []
    seen: dict[bytes, list[Record | Rejection]] = {}  # floods repeat themselves
    if oversize_head is not None:
        line, _, data = data.partition(b"\n")
        results += judge_line(line, oversize_head)
    for garbage, line in _cut(data):
        if garbage:
            results.append(Garbage(garbage))
        if line:
            verdict = seen.get(line)
            if verdict is None:
                verdict = judge_line(line)
                if len(verdict) == 1 and isinstance(verdict[0], Rejection):
                    seen[line] = verdict
            results += verdict
    return results


def _cut(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Lines too short for a record, and the line after them, which is not; either may be empty.

    It goes in strides of a shortest record, not line by line.
    """
    done = position = 0
    while position < len(data):
        short = data.rfind(b"\n", position, position + SHORTEST) + 1
        if short:
            position = short
            continue
        end = data.index(b"\n", position)
        yield data[done:position], data[position:end]
        done = position = end + 1
    yield data[done:], b""


def judge_line(line: bytes, oversize_head: bytes | None = None) -> list[Record | Rejection]:
    """The verdict on one line without its LF: a record, a rejection, or (SPEC F-7) both.

    ``oversize_head``: the first bytes of a line of which only the tail was kept.
    """
    try:
        if oversize_head is not None:
            _raise_oversize()
        return [decode_line(line)]
    except BadLine as bad:
        shown = (oversize_head or line)[:SHOWN]
        rejection = Rejection(shown, bad.code, bad.detail)
    # SPEC F-7: a half-written line may have swallowed the record behind it.  One attempt.
    start = line.rfind(VERSION_KEY)
    if start > 0:
        try:
            return [rejection, decode_line(line[start:])]
        except BadLine:
            pass
    return [rejection]


def code_of_garbage(line: bytes) -> str:
    """The code of a line that is too short for a record: what is plain to see comes first."""
    if not _is_utf8(line):
        return "utf8"
    if line.lstrip(_WHITE)[:1] not in _BEGINNINGS:
        return "json"
    return judge_garbage(line).code


def judge_garbage(line: bytes) -> Rejection:
    """The verdict on a line that is too short for a record."""
    try:
        decode_line(line)
    except BadLine as bad:
        return Rejection(line, bad.code, bad.detail)
    raise AssertionError(f"{line!r} is too short for a record")


def decode_line(line: bytes) -> Record:
    """Decode one line without its LF.  Raises :class:`BadLine` with the code of SPEC section 5."""
    if len(line) >= MAX_RECEIVED:  # the LF counts, too
        _raise_oversize()
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadLine("utf8", f"byte {error.start} is not UTF-8") from None
    try:
        return _decode(line)
    except msgspec.ValidationError:
        pass  # some JSON, but no record; or broken behind the first thing that is wrong
    except (msgspec.DecodeError, RecursionError) as error:
        if "\\u" not in text:
            raise BadLine("json", str(error)) from None
    return _second_opinion(text)


def _second_opinion(text: str) -> Record:
    """Find the code for a line that is no record, or accept half surrogates (SPEC R-8)."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        value = _decode_half_surrogates(text)
    if not isinstance(value, dict):
        raise BadLine("object", f"a JSON {type(value).__name__} is not a record")
    return record_from(value)


def _decode_half_surrogates(text: str) -> Any:
    """What the standard library's decoder accepts and msgspec's does not."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadLine("json", str(error)) from None


def record_from(value: dict[str, Any]) -> Record:
    """The record with these field values.  Raises :class:`BadLine` as for a line."""
    # SPEC E-1: the first code that applies, in the order of the table.
    for name in _REQUIRED:
        if name not in value:
            raise BadLine("missing_field", f"the field {name!r} is missing")
    known = {name: value[name] for name in (*_REQUIRED, *_OPTIONAL) if name in value}
    known["scope_id"] = _well_formed(known["scope_id"])
    checked = {name: _checked(name, field) for name, field in known.items()}
    return Record(**checked, attributes=_attributes(value.get("attributes")))


def checked_record(value: dict[str, Any]) -> Record | Rejection:
    """As :func:`record_from`, for requests that did not come as lines."""
    try:
        return record_from(value)
    except BadLine as bad:
        return Rejection(repr(value).encode()[:SHOWN], bad.code, bad.detail)


def _checked(name: str, value: object) -> Any:
    try:
        if isinstance(value, float) and not math.isfinite(value):
            raise msgspec.ValidationError("Number out of range")  # SPEC R-4
        return msgspec.convert(value, _FIELD_TYPES[name])
    except (msgspec.ValidationError, OverflowError, UnicodeEncodeError) as error:
        # UnicodeEncodeError: half a surrogate pair, which msgspec cannot take for a string.
        raise BadLine(f"bad_{name}", f"field {name!r}: {error}") from None


def _attributes(value: object) -> Any:
    """Those of a record; ``UNSET`` if they are other than SPEC R-12 says: no reason to reject."""
    if not isinstance(value, dict):
        return UNSET
    flat = {_well_formed(key): _well_formed(field) for key, field in value.items()}
    if not all(math.isfinite(field) for field in flat.values() if isinstance(field, float)):
        return UNSET
    try:
        return msgspec.convert(flat, _Attributes)
    except msgspec.ValidationError:
        return UNSET


def _well_formed(value: Any) -> Any:
    return _HALF_SURROGATE.sub("\ufffd", value) if isinstance(value, str) else value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")  # SPEC R-5


def _raise_oversize() -> NoReturn:
    raise BadLine("oversize", f"a line may have {MAX_RECEIVED} bytes with its newline")


def _fits(lines: bytes) -> bool:
    """Whether no line is oversize, in strides of a longest line, not line by line."""
    position, end = 0, len(lines)
    while position < end:
        position = lines.rfind(b"\n", position, position + MAX_RECEIVED) + 1
        if not position:
            return False
    return True


def _is_utf8(lines: bytes) -> bool:
    # msgspec does not look inside the strings that it skips.
    if lines.isascii():
        return True
    try:
        lines.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
