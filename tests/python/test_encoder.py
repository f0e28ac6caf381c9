"""The encoder: byte for byte, and back through the decoder."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filetimer import FileTimerRequest
from filetimer.server.journal import timer_lines
from filetimer.server.timers import Worker
from filetimer.wire import MAX_SENT
from filetimer.wire.decoder import UNSET, LineDecoder, Record
from filetimer.wire.encoder import MAX_SCOPES, RecordEncoder, encode_attributes

V1 = RecordEncoder(1, 4242, 9)
V2 = RecordEncoder(2, 4242, 9, start_time=123456, pid_ns=4026531836)


def test_version_1_is_what_torch_writes() -> None:
    assert V1.acquire("train.py#120", 1767225600.123456, 5.0) == (
        b'{"version": 1, "pid": 4242, "scope_id": "train.py#120", '
        b'"expiration_time": 1767225600.123456, "signal": 9}\n'
    )
    assert V1.release("train.py#120") == (
        FileTimerRequest(4242, "train.py#120", -1, 0).to_json().encode() + b"\n"
    )


def test_version_2() -> None:
    assert V2.acquire("a%sb", 1767225600.5, 12345.678901, 77) == (
        b'{"version": 2, "pid": 4242, "scope_id": "a%sb", "expiration_time": 1767225600.5000, '
        b'"signal": 9, "deadline": 12345.678901, "start_time": 123456, "pid_ns": 4026531836, '
        b'"token": 77}\n'
    )
    assert V2.release("a%sb", 77) == (
        b'{"version": 2, "pid": 4242, "scope_id": "a%sb", "expiration_time": -1, "signal": 0, '
        b'"start_time": 123456, "pid_ns": 4026531836, "token": 77}\n'
    )


class TestAttributes:
    def test_they_are_the_last_field_of_an_acquire(self) -> None:
        """And a release has none: SPEC R-12."""
        encoded = encode_attributes({"rank": 3, "%s": "5 % é", "on": True, "x": 0.5})
        encoder = RecordEncoder(2, 4242, 9, attributes=encoded)
        assert encoder.acquire("a", 1.0, 2.0, 5) == (
            b'{"version": 2, "pid": 4242, "scope_id": "a", "expiration_time": 1.0000, '
            b'"signal": 9, "deadline": 2.000000, "token": 5, '
            b'"attributes": {"rank": 3, "%s": "5 % \\u00e9", "on": true, "x": 0.5}}\n'
        )
        assert b"attributes" in encoder.acquire("a", 1.0, 2.0)
        assert b"attributes" not in encoder.release("a") + encoder.release("a", 5)

    def test_version_1_has_none(self) -> None:
        encoder = RecordEncoder(1, 4242, 9, attributes=encode_attributes({"rank": 3}))
        assert encoder.acquire("a", 1.0, 2.0) == V1.acquire("a", 1.0, 2.0)

    def test_none_are_nothing(self) -> None:
        assert encode_attributes({}) == b""

    @pytest.mark.parametrize(
        ("attributes", "why"),
        [
            (dict.fromkeys("abcdefghi", 1), "9 attributes of 72 bytes"),
            ({"a": "x" * 248}, "1 attributes of 257 bytes"),
            ({"": 1}, "name of an attribute"),
            ({5: 1}, "name of an attribute"),
            ({"a": None}, "'a' must be"),
            ({"a": [1]}, "'a' must be"),
            ({"a": float("nan")}, "'a' must be"),
            ({"a": float("inf")}, "'a' must be"),
            ({"a": 2**53}, "'a' must be"),
        ],
    )
    def test_what_is_not_allowed(self, attributes: Any, why: str) -> None:
        with pytest.raises(ValueError, match=why):
            encode_attributes(attributes)

    def test_the_longest(self) -> None:
        assert len(encode_attributes({"a": "x" * 247})) == 256

    @given(
        st.dictionaries(
            st.text(min_size=1, max_size=5),
            st.text(max_size=5)
            | st.booleans()
            | st.integers(1 - 2**53, 2**53 - 1)
            | st.floats(allow_nan=False, allow_infinity=False),
            max_size=4,
        )
    )
    def test_they_come_back(self, attributes: dict[str, Any]) -> None:
        encoder = RecordEncoder(2, 4242, 9, attributes=encode_attributes(attributes))
        (record,) = LineDecoder().feed(encoder.acquire("a", 1.0, 2.0))
        assert isinstance(record, Record)
        assert record.attributes == (attributes or UNSET)
        (again,) = LineDecoder().feed(timer_lines(Worker(NoProcess()), [record]))
        assert isinstance(again, Record)
        assert again.attributes == record.attributes


class NoProcess:
    pid = 4242
    start_time = uid = time_ns = None
    zombie = False

    def close(self) -> None:
        pass


def test_what_is_unknown_is_left_out() -> None:
    """SPEC V-4."""
    record = json.loads(RecordEncoder(2, 4242, 9).acquire("a", 1.0, 2.0))
    assert set(record) == {
        "version", "pid", "scope_id", "expiration_time", "signal", "deadline",
    }  # fmt: skip


def test_a_half_surrogate_becomes_the_replacement_character() -> None:
    """SPEC R-8: file names that are not UTF-8 have them."""
    assert b'"a\\ufffdb"' in V2.acquire("a\udcffb", 1.0, 2.0)


def test_the_longest_record_is_sent_and_the_next_is_refused() -> None:
    """SPEC F-2."""
    room = MAX_SENT - len(V2.acquire("x", 1.0, 2.0)) + 1
    assert len(V2.acquire("x" * room, 1.0, 2.0)) == MAX_SENT
    with pytest.raises(RuntimeError, match="shorter scope"):
        V2.acquire("x" * (room + 1), 1.0, 2.0)


def test_the_template_cache_is_bounded() -> None:
    encoder = RecordEncoder(2, 4242, 9)
    for i in range(3 * MAX_SCOPES):
        encoder.acquire(f"step {i}", 1.0, 2.0)
        encoder.release(f"step {i}")
    assert len(encoder.known) <= MAX_SCOPES


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300),
    st.floats(0, 4e9),
    st.floats(0, 1e9),
    st.none() | st.integers(0, 2**53 - 1),
    st.sampled_from([1, 2]),
)
def test_the_decoder_reads_what_went_in(
    scope: str, expiration_time: float, deadline: float, token: int | None, version: int
) -> None:
    encoder = RecordEncoder(version, 4242, 15, start_time=3, pid_ns=4)
    (acquire, release) = LineDecoder().feed(
        encoder.acquire(scope, expiration_time, deadline, token) + encoder.release(scope, token)
    )
    assert isinstance(acquire, Record)
    assert isinstance(release, Record)
    assert acquire.scope_id == release.scope_id == scope
    precision = 1e-4 if version == 2 else 1e-6  # SPEC R-4
    assert abs(acquire.expiration_time - expiration_time) < precision
    assert (acquire.pid, acquire.signal, release.expiration_time) == (4242, 15, -1)
    assert acquire.token == release.token
    if version == 2:
        assert abs(acquire.deadline - deadline) < 1e-6  # type: ignore[operator]
        assert (acquire.start_time, acquire.pid_ns) == (3, 4)
