# SPDX-License-Identifier: BSD-3-Clause
"""client_test.c under every compiler that has an opinion on it, and sanitizers and valgrind;
guards.cpp and its records; scopes of all kinds."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from native import HERE, INCLUDE, Fifo, compile_c, need, run

PROGRAM = HERE / "client_test.c"
Build = Callable[..., Path]

BUILDS = {
    "gcc": ("gcc", "-O2"),
    "clang": ("clang", "-O2"),
    "O0": ("gcc", "-O0"),
    "strict-posix": ("gcc", "-O2", "-std=c99", "-D_XOPEN_SOURCE=700"),  # no pwritev2, no madvise
    "c++11": ("g++", "-O2", "-std=c++11", "-x", "c++"),
    "musl": ("musl-gcc", "-O2", "-static"),
    "gcc-address-undefined": ("gcc", "-g", "-O1", "-fsanitize=address,undefined"),
    "clang-address-undefined": ("clang", "-g", "-O1", "-fsanitize=address,undefined"),
    "gcc-thread": ("gcc", "-g", "-O1", "-fsanitize=thread"),
    "clang-thread": ("clang", "-g", "-O1", "-fsanitize=thread"),
    "clang-memory": ("clang", "-g", "-O1", "-fsanitize=memory"),
}


def environment(mask: bool) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k != "MASK_SIGPIPE"}
    env["TSAN_OPTIONS"] = env["ASAN_OPTIONS"] = "halt_on_error=1"
    if mask:
        env["MASK_SIGPIPE"] = "1"
    return env


@pytest.mark.parametrize("mask", [False, True], ids=["pwritev2", "mask"])
@pytest.mark.parametrize("name", BUILDS)
def test_client(name: str, mask: bool, build: Build) -> None:
    compiler, *flags = BUILDS[name]
    if any("sanitize" in flag for flag in flags):
        flags.append("-fno-sanitize-recover=all")
    program = build(compiler, PROGRAM, *flags)
    result = run(program, env=environment(mask))
    assert result.stderr == ""


def test_valgrind(build: Build) -> None:
    run(need("valgrind"), "-q", "--error-exitcode=9", "--trace-children=yes",
        build("gcc", PROGRAM, "-g", "-O1"), env=environment(False))  # fmt: skip


def test_kernel_with_nosignal_uses_it(build: Build) -> None:
    """Linux 6.18 and later: no silent fall back to the signal mask."""
    release = tuple(int(n) for n in re.findall(r"\d+", os.uname().release)[:2])
    if release < (6, 18):
        pytest.skip("this kernel has no RWF_NOSIGNAL: the mask path is what was tested")
    run(build("gcc", PROGRAM, "-O2"), "path_taken", env=os.environ | {"EXPECT_NOSIGNAL": "1"})


@pytest.mark.parametrize("standard", ["c++17", "c++20"])
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_guard(compiler: str, standard: str, build: Build, fifo: Fifo) -> None:
    source = HERE / "guards.cpp"
    run(build(compiler, source, f"-std={standard}", "-fsanitize=address,undefined"), fifo.path)
    records = [json.loads(line) for line in fifo.read()]
    line = next(
        n for n, text in enumerate(source.read_text().splitlines(), 1) if "{1500ms, client}" in text
    )
    name = "n" * 100 + "ame"
    assert [(r["scope_id"], r["signal"]) for r in records] == [
        (f"{source}#{line}", 15), (f"{source}#{line}", 0),
        (name, 15), (name, 15), (name, 0),
        ("ended", 15), ("ended", 0),
        ("attributes", 15), ("own attributes", 15), ("own attributes", 0), ("attributes", 0),
        ("throws", 15), ("throws", 0),
    ]  # fmt: skip
    # An extension and a release name the timer by its token; no two timers share one.
    tokens = [r["token"] for r in records]
    assert tokens[0] == tokens[1]
    assert tokens[2] == tokens[3] == tokens[4]
    assert len(set(tokens)) == 6
    assert [r["attributes"] for r in records if "attributes" in r] == [
        {"rank": 3, "device": "cuda:1"}, {"step": 7},
    ]  # fmt: skip


class Record(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_int), ("pid", ctypes.c_int),
        ("scope", ctypes.c_char_p), ("scope_length", ctypes.c_size_t),
        ("expiration_us", ctypes.c_int64), ("signal", ctypes.c_int),
        ("deadline_us", ctypes.c_int64), ("start_time", ctypes.c_int64),
        ("pid_ns", ctypes.c_int64), ("token", ctypes.c_int64),
    )  # fmt: skip


@pytest.fixture(scope="module")
def encode(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Record], bytes | int]:
    folder = tmp_path_factory.mktemp("encode")
    source = folder / "encode.c"
    source.write_text(
        "#include <filetimer.h>\n"
        "int encode(char *b, size_t n, const filetimer_record *r);\n"
        "int encode(char *b, size_t n, const filetimer_record *r)"
        "{ return filetimer_encode(b, n, r); }\n"
    )
    library = ctypes.CDLL(
        str(compile_c("gcc", "-O2", "-shared", "-fPIC", source, output=folder / "encode.so"))
    )

    def encode(record: Record) -> bytes | int:
        buffer = ctypes.create_string_buffer(8192)
        length = library.encode(buffer, len(buffer), ctypes.byref(record))
        return buffer.raw[:length] if length >= 0 else length

    return encode


@settings(max_examples=600, deadline=None)
@given(st.binary(min_size=1, max_size=300) | st.text(min_size=1).map(str.encode))
@example(bytes(range(1, 256)))
@example(b"\0")
@example(b'1234567"')
@example(b"12345678\\")
@example(b"\x1f \x7f\x80 \xc2 \xe0\x80\x80 \xf4\x90\x80\x80 \xf0\x9f\x98\x80 \xed\xb0\x80")
def test_any_scope_is_valid_json(encode: Callable[[Record], bytes | int], scope: bytes) -> None:
    """... and what it says is what Python's decoder makes of the same bytes."""
    expected = scope.decode("utf-8", "replace")
    prefixes = set()
    for expiration in (5_000_000, -1):
        line = encode(Record(2, 7, scope, len(scope), expiration, 9, 1, 1, 1, 1))
        assert isinstance(line, bytes)
        assert line.isascii()
        assert line.startswith(b'{"version":')
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        assert json.loads(line)["scope_id"] == expected
        prefixes.add(line[: line.rindex(b'", "expiration_time"')])
    assert len(prefixes) == 1  # a release matches its acquire


INTEGERS = st.integers(0, 2**53 - 1)


@settings(max_examples=600, deadline=None)
@given(
    st.integers(1, 2**31 - 1), st.integers(0, 2**50), st.integers(-(2**31), 64),
    INTEGERS, INTEGERS, INTEGERS, INTEGERS,
)  # fmt: skip
def test_any_number(
    encode: Callable[[Record], bytes | int],
    pid: int, expiration: int, signum: int, deadline: int, start: int, ns: int, token: int,
) -> None:  # fmt: skip
    line = encode(Record(2, pid, b"s", 1, expiration, signum, deadline, start, ns, token))
    assert (
        line
        == (
            f'{{"version": 2, "pid": {pid}, "scope_id": "s", "expiration_time": '
            f'{expiration // 10**6}.{expiration % 10**6:06}, "signal": {signum}, "deadline": '
            f'{deadline // 10**6}.{deadline % 10**6:06}, "start_time": {start}, "pid_ns": {ns}, '
            f'"token": {token}}}\n'
        ).encode()
    )


def test_shared_objects_share_the_default(tmp_path: Path) -> None:
    """A library and the program that is linked with it have one default client."""
    library = tmp_path / "libother.so"
    compile_c("gcc", "-O2", "-shared", "-fPIC", HERE / "unit_two.c", output=library)
    program = compile_c("gcc", "-O2", HERE / "unit_one.c", library, f"-Wl,-rpath,{tmp_path}",
                        output=tmp_path / "it")  # fmt: skip
    run(program, "same")


def test_unconfigured_program_makes_no_system_call_per_timer(build: Build, tmp_path: Path) -> None:
    source = tmp_path / "idle.c"
    source.write_text(
        "#include <filetimer.h>\nint main(void) { int i; for (i = 0; i < 20000000; i++)"
        " FILETIMER_EXPIRES(1.0) { } return 0; }\n"
    )
    env = {k: v for k, v in os.environ.items() if "TIMER" not in k}
    program = compile_c("gcc", "-O2", source, output=tmp_path / "idle")
    # 20 million in well under the time that 20 million system calls take
    subprocess.run([program], env=env, check=True, timeout=5)


def test_header_is_self_contained() -> None:
    """One file to copy: it includes nothing of ours."""
    assert not re.findall(r'#include "', (INCLUDE / "filetimer.h").read_text())
