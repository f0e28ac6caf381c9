"""The decoder: one case table, fed whole, byte by byte, and cut at random."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filetimer.wire import MAX_RECEIVED
from filetimer.wire.decoder import UNSET, LineDecoder, Record, Rejection

GOOD: dict[str, Any] = {
    "version": 2,
    "pid": 4242,
    "scope_id": "train.py#120",
    "expiration_time": 1767225600.123456,
    "signal": 9,
}


def line(**changes: Any) -> bytes:
    """A good record with some fields changed; ``...`` leaves one out."""
    fields = {k: v for k, v in {**GOOD, **changes}.items() if v is not ...}
    return json.dumps(fields).encode()


def raw(field: str, text: str) -> bytes:
    """A good record with the JSON text of one field replaced."""
    return line(**{field: "@@"}).replace(b'"@@"', text.encode())


NESTED = b'{"x": ' * 200 + b"1" + b"}" * 200

# What torch's server does with each of these is in its own table; here, each costs itself alone.
ACCEPTED: dict[str, tuple[bytes, dict[str, Any]]] = {
    "v1": (line(version=1), {"version": 1, "token": UNSET}),
    "unknown version": (line(version=77), {"version": 77}),
    "unknown field": (line(rank=3, nested={"a": [1, {"b": None}]}), {}),
    "private field": (line(x_mine=1), {}),
    "any order": (json.dumps(dict(reversed(GOOD.items()))).encode(), {"pid": 4242}),
    "duplicate key": (raw("pid", '1, "pid": 4243'), {"pid": 4243}),
    "CRLF": (line() + b"\r", {}),
    "padding": (b" \t" + line() + b"  ", {}),
    "raw UTF-8": (
        '{"version": 1, "pid": 5, "scope_id": "é", "expiration_time": 1, "signal": 9}'.encode(),
        {"scope_id": "é"},
    ),
    "escaped pair": (raw("scope_id", r'"\ud83d\ude00"'), {"scope_id": "\U0001f600"}),
    "half surrogate": (raw("scope_id", r'"a\ud800b"'), {"scope_id": "a\ufffdb"}),
    "half surrogate, unknown field": (line(x_a="\ud800"), {}),
    "escaped NUL in scope": (raw("scope_id", r'"a\u0000"'), {"scope_id": "a\0"}),
    "empty scope": (line(scope_id=""), {"scope_id": ""}),
    "scope with braces": (line(scope_id='}{"version": 1}['), {"scope_id": '}{"version": 1}['}),
    "release": (line(expiration_time=-1, signal=0), {"expiration_time": -1}),
    "integer time": (line(expiration_time=17), {"expiration_time": 17.0}),
    "minus zero": (line(expiration_time=-0.0), {"expiration_time": 0.0}),
    "report-only signal": (line(signal=-7), {"signal": -7}),
    "largest pid": (line(pid=2**31 - 1), {"pid": 2**31 - 1}),
    "all fields": (
        line(deadline=1.5, start_time=7, pid_ns=8, token=2**53 - 1),
        {"deadline": 1.5, "start_time": 7, "pid_ns": 8, "token": 2**53 - 1},
    ),
    "attributes": (
        line(attributes={"rank": 3, "loss": -0.5, "device": "cuda:1", "compiled": True}),
        {"attributes": {"rank": 3, "loss": -0.5, "device": "cuda:1", "compiled": True}},
    ),
    "attributes, none": (line(attributes={}), {"attributes": {}}),
    "attributes, half surrogate": (
        raw("attributes", r'{"\ud800": "\udfff"}'),
        {"attributes": {"\ufffd": "\ufffd"}},
    ),
    # SPEC R-12: those that are not as it says are no reason to reject.
    "attributes, null": (raw("attributes", "null"), {"attributes": UNSET}),
    "attributes, nested": (line(attributes={"a": {"b": 1}}), {"attributes": UNSET}),
    "attributes, a list": (line(attributes=[1]), {"attributes": UNSET}),
    "attributes, nine": (
        line(attributes=dict.fromkeys("abcdefghi", 1)),
        {"attributes": UNSET},
    ),
    "attributes, 1e999": (raw("attributes", '{"a": 1e999}'), {"attributes": UNSET}),
    "longest": (line() + b" " * (MAX_RECEIVED - 1 - len(line())), {}),
}

REJECTED: dict[str, tuple[bytes, str]] = {
    "blank line": (b"", "json"),
    "white space": (b"  ", "json"),
    "CR alone": (b"\r", "json"),
    "invalid JSON": (line()[:-1], "json"),
    "BOM": (b"\xef\xbb\xbf" + line(), "json"),
    "raw NUL": (line() + b"\0", "json"),
    "raw control character in scope": (raw("scope_id", '"a\tb"'), "json"),
    "two objects on a line": (line() + line(), "json"),
    "bad escape": (raw("scope_id", r'"\x41"'), "json"),
    "NaN": (raw("expiration_time", "NaN"), "json"),
    "Infinity": (raw("expiration_time", "Infinity"), "json"),
    "NaN in an unknown field": (raw("x_a", "NaN"), "json"),
    "leading zero": (raw("pid", "01"), "json"),
    "array": (b"[1, 2]", "object"),
    "number": (b"5", "object"),
    "string": (b'"record"', "object"),
    "null": (b"null", "object"),
    "invalid UTF-8": (line().replace(b"train", b"tr\xffin"), "utf8"),
    "invalid UTF-8 in an unknown field": (raw("x_a", '"@"').replace(b"@", b"\xff"), "utf8"),
    "encoded surrogate": (line().replace(b"train", b"\xed\xa0\x80"), "utf8"),
    "oversize": (line() + b" " * (MAX_RECEIVED - len(line())), "oversize"),
    "very oversize": (b"x" * 3 * MAX_RECEIVED, "oversize"),
    "no field": (b"{}", "missing_field"),
    "missing version": (line(version=...), "missing_field"),
    "missing pid": (line(pid=...), "missing_field"),
    "missing scope": (line(scope_id=...), "missing_field"),
    "missing time": (line(expiration_time=...), "missing_field"),
    "missing signal": (line(signal=...), "missing_field"),
    "missing before bad": (line(signal=..., pid="x"), "missing_field"),
    "version 0": (line(version=0), "bad_version"),
    "version a string": (line(version="2"), "bad_version"),
    "pid a string": (line(pid="4242"), "bad_pid"),
    "pid a float": (line(pid=4242.0), "bad_pid"),
    "pid with exponent": (raw("pid", "4e3"), "bad_pid"),
    "pid true": (line(pid=True), "bad_pid"),
    "pid null": (line(pid=None), "bad_pid"),
    "pid 0": (line(pid=0), "bad_pid"),
    "pid -1": (line(pid=-1), "bad_pid"),
    "pid 2**70": (line(pid=2**70), "bad_pid"),
    "pid a list": (line(pid=[4242]), "bad_pid"),
    "scope a list": (line(scope_id=["a"]), "bad_scope_id"),
    "scope null": (line(scope_id=None), "bad_scope_id"),
    "time a string": (line(expiration_time="1"), "bad_expiration_time"),
    "time null": (line(expiration_time=None), "bad_expiration_time"),
    "time 1e999": (raw("expiration_time", "1e999"), "bad_expiration_time"),
    "time -1e999": (raw("expiration_time", "-1e999"), "bad_expiration_time"),
    "time of 2000 digits": (raw("expiration_time", "9" * 2000), "bad_expiration_time"),
    "signal a string": (line(signal="9"), "bad_signal"),
    "signal null": (line(signal=None), "bad_signal"),
    "signal 65": (line(signal=65), "bad_signal"),
    "signal 999": (line(signal=999), "bad_signal"),
    "signal a float": (line(signal=9.0), "bad_signal"),
    "deadline negative": (line(deadline=-1.0), "bad_deadline"),
    "deadline null": (line(deadline=None), "bad_deadline"),
    "start_time a string": (line(start_time="7"), "bad_start_time"),
    "start_time negative": (line(start_time=-7), "bad_start_time"),
    "pid_ns a float": (line(pid_ns=1.5), "bad_pid_ns"),
    "token too large": (line(token=2**53), "bad_token"),
    "token null": (line(token=None), "bad_token"),
    "first bad field counts": (line(pid=0, signal=99, token=-1), "bad_pid"),
}

BEFORE, AFTER = line(pid=11), line(pid=12)


def verdicts(chunks: list[bytes]) -> list[object]:
    decoder = LineDecoder()
    results: list[Record | Rejection] = []
    for chunk in chunks:
        results += decoder.feed(chunk)
    return [
        (result.pid, result.scope_id, result.expiration_time, result.signal)
        if isinstance(result, Record)
        else result.code
        for result in results
    ]


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str) -> None:
    text, expected = ACCEPTED[name]
    (record,) = LineDecoder().feed(text + b"\n")
    assert isinstance(record, Record), record
    assert {field: getattr(record, field) for field in expected} == expected


@pytest.mark.parametrize("name", REJECTED)
def test_rejected_alone_between_two_good_lines(name: str) -> None:
    """SPEC F-6: one event with a code; the neighbours are untouched."""
    text, code = REJECTED[name]
    before, *between, after = LineDecoder().feed(b"\n".join([BEFORE, text, AFTER, b""]))
    assert [bad.code for bad in between if isinstance(bad, Rejection)] == [code]
    assert (before.pid, after.pid) == (11, 12)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", [*ACCEPTED, *REJECTED])
def test_byte_by_byte(name: str) -> None:
    """SPEC F-5: the same verdicts however the stream is cut."""
    text = (ACCEPTED.get(name) or REJECTED[name])[0]
    stream = b"\n".join([BEFORE, text, AFTER, b""])
    assert verdicts([stream[i : i + 1] for i in range(len(stream))]) == verdicts([stream])


ALL_LINES = [case[0] for case in (*ACCEPTED.values(), *REJECTED.values())]


@given(
    st.lists(st.sampled_from(ALL_LINES) | st.binary(max_size=60), min_size=1, max_size=12),
    st.lists(st.integers(0, 40_000), max_size=12),
)
def test_any_cut_gives_the_verdicts_of_each_line_alone(lines: list[bytes], cuts: list[int]) -> None:
    stream = b"\n".join(lines) + b"\n"
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    chunks = [stream[a:b] for a, b in itertools.pairwise(edges)]
    alone = [verdict for text in stream[:-1].split(b"\n") for verdict in verdicts([text + b"\n"])]
    assert verdicts(chunks) == alone


@pytest.mark.parametrize("name", ["BOM", "two objects on a line"])
def test_a_whole_record_in_a_rejected_line_is_found_too(name: str) -> None:
    """SPEC F-7 cannot tell these from a half-written line."""
    results = LineDecoder().feed(REJECTED[name][0] + b"\n")
    assert [type(result) for result in results] == [Rejection, Record]


@given(st.lists(st.binary(max_size=9000), max_size=8))
def test_memory_is_bounded_without_newlines(chunks: list[bytes]) -> None:
    decoder = LineDecoder()
    for chunk in chunks:
        decoder.feed(chunk.replace(b"\n", b""))
        assert len(decoder._partial) <= MAX_RECEIVED


@pytest.mark.parametrize(
    "half",
    [line()[:50], line()[:-1], b"\xff\xfe", b"x" * 4000, b"x" * 4096, b"x" * 9000, line()[:9] * 3],
    ids=["half a line", "no brace", "garbage", "long", "a pipe's worth", "oversize", "three"],
)
def test_half_a_line_costs_no_other_record(half: bytes) -> None:
    """SPEC F-7: the record that a half-written line swallowed is found again."""
    results = LineDecoder().feed(half + AFTER + b"\n")
    assert isinstance(results[0], Rejection)
    assert [r.pid for r in results[1:] if isinstance(r, Record)] == [12]


def test_only_one_attempt_at_the_last_occurrence() -> None:
    results = LineDecoder().feed(BEFORE + b"x" + AFTER + b'{"version":' + b"\n")
    assert [type(result) for result in results] == [Rejection]


def test_a_line_without_its_end_is_not_acted_on() -> None:
    """SPEC F-8."""
    decoder = LineDecoder()
    assert decoder.feed(line()) == []
    assert len(decoder.feed(b"\n")) == 1


def test_nesting_within_the_bound_is_accepted() -> None:
    """SPEC R-6."""
    deep = b"[" * 31 + b"]" * 31
    (record,) = LineDecoder().feed(raw("x_a", deep.decode()) + b"\n")
    assert isinstance(record, Record)


def test_absurd_nesting_is_a_rejection_not_a_crash() -> None:
    text = b'{"version": 1, "x_a": ' + b"[" * 4000
    (rejection,) = LineDecoder().feed(text + b"\n")
    assert isinstance(rejection, Rejection)
    assert rejection.code == "json"


def test_a_rejection_shows_the_beginning_of_the_line() -> None:
    (rejection,) = LineDecoder().feed(b"x" * 5000 + b"\n")
    assert isinstance(rejection, Rejection)
    assert rejection.line == b"x" * 200
