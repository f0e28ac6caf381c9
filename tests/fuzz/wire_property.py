"""What must hold for the codec, whatever the bytes (``check``).

W-1  The decoder never raises.
W-2  Its memory is bounded: of an unfinished line it keeps at most ``MAX_RECEIVED`` bytes, and of
     the head of an oversize one at most ``SHOWN``.
W-3  Results do not depend on how reads cut the stream: records, rejections, and what is unfinished
     are the same for one read, for single bytes, and for any cuts (SPEC F-5).
W-4  Each line gets the verdict that it gets alone (SPEC F-6), and that is the verdict of an
     independent reading of SPEC.md, the conformance oracle: the same record, or the same code, and
     the same rescued record (SPEC F-7).  Only lines nested deeper than SPEC R-6 asks for may be
     judged ``json`` by one and not by the other.
W-5  What was decoded and is encoded again by our encoder decodes to the same record, to the
     microsecond, alone and amid garbage lines; what the encoder refuses has an empty scope, or is
     too long for a pipe.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Iterable, Iterator

from filetimer.conformance import oracle
from filetimer.wire import MAX_RECEIVED, MAX_SENT
from filetimer.wire.decoder import SHOWN, UNSET, LineDecoder, Record, Rejection
from filetimer.wire.encoder import RecordEncoder

Result = Record | Rejection

NUMBERS = ("expiration_time", "deadline")
LF = 0x0A
MUST_NEST = 32  # SPEC R-6
BYTEWISE = 600  # longer streams are not also fed byte by byte, for the time it takes


def check(stream: bytes) -> None:
    """Raises AssertionError, or whatever the codec raises, if one of the above does not hold."""
    results, unfinished = feed([stream])
    verdicts = _without_words(results)
    for chunks in cuts(stream):
        cut, rest = feed(chunks)
        assert (_without_words(cut), rest) == (verdicts, unfinished), ("W-3", chunks)
    alone = itertools.chain(*(_check_line(line) for line in stream.split(b"\n")[:-1]))
    assert _without_words(alone) == verdicts, "W-4: lines depend on their neighbours"
    for result in results:
        if isinstance(result, Record):
            _check_encoding(result)


def _without_words(results: Iterable[Result]) -> list[object]:
    """Of what is nested too deep, the words depend on how deep the stack was that read it."""
    return [r if isinstance(r, Record) else (r.code, r.line) for r in results]


def feed(chunks: list[bytes]) -> tuple[list[Result], bytes]:
    """The results of reads that returned these chunks, and what is unfinished."""
    decoder = LineDecoder()
    results: list[Result] = []
    for chunk in chunks:
        results += decoder.feed(chunk)
        assert len(decoder.unfinished) <= MAX_RECEIVED, "W-2"
        assert len(decoder._partial_head or b"") <= SHOWN, "W-2"
    return results, decoder.unfinished


def cuts(stream: bytes) -> Iterator[list[bytes]]:
    """Ways to cut the stream; the same ones whenever it is tried."""
    rng = random.Random(zlib.crc32(stream))
    if len(stream) <= BYTEWISE:
        yield [stream[at : at + 1] for at in range(len(stream))]
    for number in (1, 2, 7):
        yield _cut(stream, [rng.randint(0, len(stream)) for _ in range(number)])
    if len(stream) >= MAX_RECEIVED:  # where lines become too long
        starts = [0, *(at + 1 for at, byte in enumerate(stream) if byte == LF)]
        yield _cut(stream, [start + MAX_RECEIVED + more for start in starts for more in (-1, 0, 1)])


def _cut(stream: bytes, edges: list[int]) -> list[bytes]:
    edges = sorted(edge for edge in edges if edge < len(stream))
    return [stream[a:b] for a, b in itertools.pairwise([0, *edges, len(stream)])]


def _check_line(line: bytes) -> list[Result]:
    got, _ = feed([line + b"\n"])
    want = [_as_binary64(verdict) for verdict in oracle.judge(line + b"\n")]
    if nesting(line) > MUST_NEST and {"error": "json"} in (_verdict(got[0]), want[0]):
        return got  # SPEC R-6
    assert [_verdict(result) for result in got] == want, ("W-4", line, got, want)
    for result in got:
        assert isinstance(result, Record) or result.line == line[:SHOWN], "W-4: what is shown"
    return got


def nesting(line: bytes) -> int:
    """At least how deep the line is nested, or more: brackets in strings count, too."""
    return line.count(b"[") + line.count(b"{")


def _verdict(result: Result) -> oracle.Verdict:
    if isinstance(result, Rejection):
        return {"error": result.code}
    return {"record": fields_of(result)}


def _as_binary64(verdict: oracle.Verdict) -> oracle.Verdict:
    """Numbers as a receiver has them (SPEC R-4); the oracle keeps integers of any size."""
    if "record" not in verdict:
        return verdict
    record = verdict["record"]
    numbers = {name: float(record[name]) for name in NUMBERS if name in record}
    return {"record": record | numbers}


def fields_of(record: Record) -> dict[str, object]:
    """The fields that the record has."""
    fields = {name: getattr(record, name) for name in record.__struct_fields__}
    return {name: value for name, value in fields.items() if value is not UNSET}


def _check_encoding(record: Record) -> None:
    try:
        line = encode(record)
    except ValueError:
        assert record.scope_id == "", "W-5"  # SPEC R-11
        return
    except RuntimeError:
        assert 12 * len(record.scope_id) + 700 > MAX_SENT, "W-5: refused though it is short"
        return
    assert list(oracle.sender_faults(line)) in ([], _replaced(record)), "W-5"
    results, _ = feed([b"garbage\n" + line + b'{"version": 2, "pid": 1\n' + line[:30]])
    assert [type(result) for result in results] == [Rejection, Record, Rejection], "W-5"
    back = results[1]
    assert isinstance(back, Record)
    assert _same(back, expected(record)), ("W-5", line, back)


def _replaced(record: Record) -> list[tuple[str, str]]:
    """The oracle cannot tell a U+FFFD that was sent from half a surrogate pair."""
    if "\ufffd" not in record.scope_id:
        return []
    return [("R-8", "half a surrogate pair (or U+FFFD) in scope_id")]


def encode(record: Record) -> bytes:
    """The record as our encoder writes it: as version 1 or 2, a release as SPEC R-9 asks."""
    encoder = RecordEncoder(
        min(record.version, 2),
        record.pid,
        record.signal,
        None if record.start_time is UNSET else record.start_time,
        None if record.pid_ns is UNSET else record.pid_ns,
    )
    token = None if record.token is UNSET else record.token
    if record.expiration_time < 0:
        return encoder.release(record.scope_id, token)
    deadline = 0.0 if record.deadline is UNSET else record.deadline
    return encoder.acquire(record.scope_id, record.expiration_time, deadline, token)


def expected(record: Record) -> dict[str, object]:
    """The fields that :func:`encode` must have written."""
    fields = fields_of(record)
    fields["version"] = min(record.version, 2)
    if record.expiration_time < 0:
        fields["expiration_time"], fields["signal"] = -1.0, 0
        fields.pop("deadline", None)
    elif record.version >= 2:
        fields.setdefault("deadline", 0.0)
    if record.version == 1:
        for name in oracle.OPTIONAL:
            fields.pop(name, None)
    return fields


def _same(record: Record, want: dict[str, object]) -> bool:
    got = fields_of(record)
    for name, seconds in oracle.tolerances(want).items():
        if name in got and name in want and abs(got[name] - want[name]) <= seconds:  # type: ignore
            got[name] = want[name]
    return got == want
