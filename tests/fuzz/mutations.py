"""Hostile bytes, drawn from a ``random.Random``: what all fuzzers of the wire share.

Blind mutation rarely gets past the first field.  So half of what is made here starts as a record
of which one field is replaced by a JSON text that somebody may mistake, and then bytes are moved,
lost, repeated and run together, as broken writers do.
"""

from __future__ import annotations

import random

MARKER = b'{"version":'
FIELDS = {
    b"version": b"2",
    b"pid": b"4242",
    b"scope_id": b'"train.py#120"',
    b"expiration_time": b"1767225600.123456",
    b"signal": b"9",
    b"deadline": b"4000.5",
    b"start_time": b"31337",
    b"pid_ns": b"4026531836",
    b"token": b"7",
}
REQUIRED = 5  # the first five of FIELDS

NUMBERS = (
    b"0 -0 1 -1 2 9 15 64 65 -64 0.0 -0.0 1.0 1.5 -0.5 1e2 1E+2 1e-2 1e308 1e309 -1e309 1e999 "
    b"1e-400 4.9e-324 2147483647 2147483648 -2147483648 -2147483649 9007199254740991 "
    b"9007199254740992 -9007199254740992 9223372036854775807 9223372036854775808 "
    b"18446744073709551615 18446744073709551616 36893488147419103232 0.1 1767225600.123456 "
    b"9007199254740993.0 123456789012345678 0.30000000000000004 2.2250738585072011e-308"
).split()
NOT_NUMBERS = b"NaN Infinity -Infinity 01 -01 +1 1. .5 - 1e 1e+ 0x10 1_0 00 --1 \xc2\xb2".split()
STRINGS = [
    b'""',
    b'"a"',
    b'"\\ud83d\\ude00"',
    b'"\\ud800"',
    b'"\\udc00\\ud800"',
    b'"\\ud800\\ud83d\\ude00"',
    b'"\\u0000"',
    b'"\\u00"',
    b'"\\x41"',
    b'"\\/\\b\\f\\n\\r\\t\\"\\\\"',
    b'"\xc3\xa9"',
    b'"\xed\xa0\x80"',
    b'"\xf0\x9f\x98\x80"',
    b'"\xff"',
    b'"a\tb"',
    b'"a\0b"',
    b'"\x7f\xc2\x85\xe2\x80\xa8"',
    b'"{\\"version\\":"',
    b'"}{"',
    b'"' + b"x" * 900 + b'"',
    b'"',
]
OTHERS = [
    b"null",
    b"true",
    b"false",
    b"[]",
    b"{}",
    b'[1, {"a": null}]',
    b"[" * 31 + b"]" * 31,
    b"[" * 40 + b"]" * 40,
    b'{"a": ' * 30 + b"1" + b"}" * 30,
    b"[" * 1500,
    b"[" * 1500 + b"]" * 1500,
    b"9" * 400,
    b"9" * 2000,
    b"0." + b"1" * 800,
    b"nul",
    b"",
]
VALUES = [*NUMBERS, *NOT_NUMBERS, *STRINGS, *OTHERS]
TOKENS = [
    MARKER,
    b"\n",
    b"\r\n",
    b"\xef\xbb\xbf",
    b"\0",
    b" ",
    b"\xff",
    b'"',
    b"\\u",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    *(b'"%s": ' % name for name in FIELDS),
    b'"p\\u0069d": ',
    b'"x_private": ',
]


def record(rng: random.Random) -> bytes:
    """A record without its LF: valid, or with a field or two that may not be."""
    names = list(FIELDS)
    chosen = names[:REQUIRED] + [name for name in names[REQUIRED:] if rng.random() < 0.5]
    fields = [(name, FIELDS[name]) for name in chosen]
    if rng.random() < 0.3:
        fields[3], fields[4] = (b"expiration_time", b"-1"), (b"signal", b"0")
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        at = rng.randrange(len(fields))
        fields[at] = (fields[at][0], rng.choice(VALUES))
    if rng.random() < 0.2:
        fields.append((b"x_private", rng.choice(VALUES)))
    if rng.random() < 0.1:
        fields.append((rng.choice(names), rng.choice(VALUES)))  # once more: SPEC R-7
    if rng.random() < 0.1:
        del fields[rng.randrange(len(fields))]
    if rng.random() < 0.1:
        rng.shuffle(fields)
    colon, comma = rng.choice(((b": ", b", "), (b":", b","), (b" :\t", b"\r ,")))
    return b"{" + comma.join(b'"%s"%s%s' % (name, colon, value) for name, value in fields) + b"}"


def stream(rng: random.Random, lines: int = 6) -> bytes:
    """A few records, most ended by LF, some of them mutated."""
    pieces = []
    for _ in range(rng.randint(1, lines)):
        piece = record(rng) if rng.random() < 0.9 else rng.randbytes(rng.randrange(60))
        pieces.append(piece + (b"\n" if rng.random() < 0.9 else b""))
    return mutate(b"".join(pieces), rng) if rng.random() < 0.7 else b"".join(pieces)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to three small damages."""
    for _ in range(rng.randint(1, 3)):
        data = rng.choice(_DAMAGES)(data, rng)
    return data


def _span(data: bytes, rng: random.Random, longest: int = 64) -> tuple[int, int]:
    start = rng.randint(0, len(data))
    return start, min(len(data), start + rng.randint(0, longest))


def _insert_token(data: bytes, rng: random.Random) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + rng.choice(TOKENS) + data[at:]


def _insert_value(data: bytes, rng: random.Random) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + rng.choice(VALUES) + data[at:]


def _insert_record(data: bytes, rng: random.Random) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + record(rng) + rng.choice((b"", b"\n")) + data[at:]


def _change_byte(data: bytes, rng: random.Random) -> bytes:
    start = rng.randint(0, len(data))
    return data[:start] + rng.randbytes(1) + data[start + 1 :]


def _lose(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + data[end:]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:end] + data[start:end] * rng.choice((1, 1, 2, 70)) + data[end:]


def _move(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    moved, rest = data[start:end], data[:start] + data[end:]
    at = rng.randint(0, len(rest))
    return rest[:at] + moved + rest[at:]


def _cut_short(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randint(0, len(data))]


def _join_lines(data: bytes, rng: random.Random) -> bytes:
    return data.replace(b"\n", b"", 1)


def _pad_to_the_limit(data: bytes, rng: random.Random) -> bytes:
    """A first line of about the length that SPEC F-4 allows, or of twice that."""
    first, lf, rest = data.partition(b"\n")
    length = rng.choice((4094, 4095, 4096, 4097, 8200)) + rng.randint(0, 2)
    padding = rng.choice((b" ", b"x")) * (length - len(first))
    return (padding + first if rng.random() < 0.5 else first + padding) + lf + rest


_DAMAGES = (
    _insert_token,
    _insert_value,
    _insert_record,
    _change_byte,
    _lose,
    _repeat,
    _move,
    _cut_short,
    _join_lines,
    _pad_to_the_limit,
)
