"""The verdict on a line, from SPEC.md alone: the runner's own measure of what a client writes.

This is deliberately not `filetimer.wire`: a kit that judged the package with the package's own
decoder would share its mistakes. It is written for reading, not for speed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

MARKER = b'{"version":'
PIPE_BUF = 4096  # SPEC F-2: what a sender may write
LONGEST = 4097  # SPEC F-4: what a receiver accepts

Record = dict[str, Any]
Verdict = dict[str, Any]  # {"record": {...}} or {"error": code}, as on the driver's wire


class Rejected(Exception):
    """A line that is not a valid record; `code` is from SPEC section 5."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def _integer(low: int, high: int) -> Callable[[object], bool]:
    """SPEC R-3: `json` gives `int` only for a number without fraction and exponent."""
    return lambda value: type(value) is int and low <= value <= high


def _finite(value: object) -> bool:
    """SPEC R-4: finite as a binary64, be it written as an integer of 400 digits."""
    if type(value) not in (int, float):
        return False
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]
    except OverflowError:
        return False


_EXACT = 2**53 - 1

REQUIRED: dict[str, Callable[[object], bool]] = {
    "version": _integer(1, _EXACT),
    "pid": _integer(1, 2**31 - 1),
    "scope_id": lambda value: isinstance(value, str),
    "expiration_time": _finite,
    "signal": _integer(-(2**31), 64),
}
OPTIONAL: dict[str, Callable[[object], bool]] = {
    "deadline": lambda value: _finite(value) and value >= 0,  # type: ignore[operator]
    "start_time": _integer(0, _EXACT),
    "pid_ns": _integer(0, _EXACT),
    "token": _integer(0, _EXACT),
}


def _no_constant(name: str) -> object:
    raise Rejected("json")  # SPEC R-5: NaN and the infinities are not JSON


def _unescaped(text: str) -> str:
    """SPEC R-8: `json` joins the pairs; what is left over is half of one."""
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def parse(line: bytes) -> Record:
    """The fields that the specification knows, of one line given with its LF (SPEC E-1)."""
    if len(line) > LONGEST:
        raise Rejected("oversize")
    try:
        text = line[:-1].decode("utf-8")
    except UnicodeDecodeError:
        raise Rejected("utf8") from None
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Rejected("json") from None
    if not isinstance(value, dict):
        raise Rejected("object")
    if not value.keys() >= REQUIRED.keys():
        raise Rejected("missing_field")
    for field, valid in (REQUIRED | OPTIONAL).items():
        if field in value and not valid(value[field]):
            raise Rejected("bad_" + field)
    record = {field: value[field] for field in REQUIRED | OPTIONAL if field in value}
    return record | {"scope_id": _unescaped(record["scope_id"])}


def judge(line: bytes) -> list[Verdict]:
    """What a receiver makes of one line: a record, or an error and perhaps a rescued record."""
    try:
        return [{"record": parse(line)}]
    except Rejected as rejected:
        verdicts: list[Verdict] = [{"error": rejected.code}]
    start = line.rfind(MARKER)
    if start > 0:  # SPEC F-7: not at the very start
        try:
            verdicts.append({"record": parse(line[start:])})
        except Rejected:
            pass  # SPEC F-7: one attempt a line, and one report
    return verdicts


def judge_stream(data: bytes) -> list[Verdict]:
    """SPEC F-8: what no LF has ended gets no verdict."""
    lines = data.split(b"\n")[:-1]
    return [verdict for line in lines for verdict in judge(line + b"\n")]


def repeated_fields(line: bytes) -> list[str]:
    """SPEC R-7: the names that occur more than once in the line's object."""
    names: list[str] = []

    def collect(pairs: list[tuple[str, object]]) -> None:
        names[:] = [name for name, _ in pairs]  # the outermost object comes last

    json.loads(line, object_pairs_hook=collect)
    return sorted({name for name in names if names.count(name) > 1})


def tolerances(record: Record) -> dict[str, float]:
    """By less than how many seconds a sender's times may differ from those of ``record``: R-4."""
    return {"expiration_time": 1e-4 if "deadline" in record else 1e-6, "deadline": 1e-6}


def sender_faults(line: bytes) -> Iterable[tuple[str, str]]:
    """What a sender may not write though a receiver would take it: (SPEC id, what is wrong)."""
    if not line.endswith(b"\n"):
        yield "F-1", "the line does not end with LF"
        return
    if line.count(b"\n") > 1:
        yield "F-1", "LF occurs inside the line"
        return
    if len(line) > PIPE_BUF:
        yield "F-2", f"the line has {len(line)} bytes, PIPE_BUF is {PIPE_BUF}"
    if not line.startswith(MARKER):
        yield "R-2", "the line does not start with the eleven bytes of the marker"
    try:
        record = parse(line)
    except Rejected as rejected:
        yield "R-1", f"the line is not a valid record: {rejected.code}"
        return
    if repeated := repeated_fields(line):
        yield "R-7", f"repeated fields: {', '.join(repeated)}"
    if not record["scope_id"]:
        yield "R-11", "scope_id is empty"
    if "\N{REPLACEMENT CHARACTER}" in record["scope_id"]:
        yield "R-8", "half a surrogate pair (or U+FFFD) in scope_id"
    if record["expiration_time"] < 0:
        if (record["expiration_time"], record["signal"]) != (-1, 0):
            yield "R-9", "a release is written with expiration_time -1 and signal 0"
        if "deadline" in record:
            yield "R-9", "a release has no deadline"
