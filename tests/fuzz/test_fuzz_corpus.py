"""Every input that the fuzzers keep is tried again, and what they found stays found.

The fuzzers themselves are run by ``make fuzz`` and ``make fuzz-quick``.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import fuzz_server
import mutations
import pytest
import table_property
import wire_property

from filetimer.wire.decoder import LineDecoder, Record

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NUMBERS = struct.Struct("<iiiIqqqqqd")  # the head of encoder_fuzzer.c


def corpus(target: str) -> list[Path]:
    return sorted((HERE / "corpus" / target).iterdir())


def name(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", corpus("wire"), ids=name)
def test_wire(path: Path) -> None:
    wire_property.check(path.read_bytes())


@pytest.mark.parametrize("path", corpus("table"), ids=name)
def test_table(path: Path) -> None:
    table_property.check(path.read_bytes())


def test_mutations() -> None:
    """A thousand fresh ones, always the same."""
    rng = random.Random(2026)
    for _ in range(300):
        wire_property.check(mutations.stream(rng))
        table_property.check(rng.randbytes(300))


# ----------------------------------------------------------------------------- the encoder in C


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By input: the line in hexadecimal, or the error, once encoder_fuzzer.c found no fault."""
    compiler = shutil.which("cc")
    flags = ["-std=gnu99", "-Wall", "-Wextra", "-Werror", "-g", "-DREPLAY", f"-I{ROOT}/c/include"]
    probe = "#include <jansson.h>"
    if (
        not compiler
        or subprocess.run(
            [compiler, "-E", "-x", "c", "-", "-o", os.devnull],
            input=probe.encode(),
            capture_output=True,
        ).returncode
    ):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "needs a C compiler and jansson.h (Debian: gcc, libjansson-dev)"
        )
    program = tmp_path_factory.mktemp("encoder") / "replay"
    source = HERE / "encoder_fuzzer.c"
    subprocess.run(
        [compiler, *flags, str(source), "-ljansson", "-lm", "-o", str(program)], check=True
    )
    paths = corpus("encoder")
    result = subprocess.run([str(program), *map(str, paths)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return dict(zip(map(name, paths), result.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("path", corpus("encoder"), ids=name)
def test_what_c_encodes_python_decodes(encoded: dict[str, str], path: Path) -> None:
    text = encoded[path.name]
    if text == "skipped" or text.startswith("-"):
        return  # encoder_fuzzer.c judges which errors are due
    (record,) = LineDecoder().feed(bytes.fromhex(text))
    assert isinstance(record, Record)
    got, want = wire_property.fields_of(record), wanted(path.read_bytes())
    for field in wire_property.NUMBERS:
        if field in want:
            assert math.isclose(got.pop(field), want.pop(field), rel_tol=1e-15)
    assert got == want


def test_some_of_the_corpus_is_encoded(encoded: dict[str, str]) -> None:
    """So that the test above has something to test."""
    lines = [text for text in encoded.values() if len(text) > 100]
    assert len(lines) >= len(encoded) / 3


def wanted(data: bytes) -> dict[str, Any]:
    """What an input of encoder_fuzzer.c asks to be written."""
    version, pid, signum, _, expiration, deadline, *integers, _ = NUMBERS.unpack_from(data)
    record: dict[str, Any] = {
        "version": version,
        "pid": pid,
        "scope_id": data[NUMBERS.size :].decode("utf-8", "replace"),  # as Unicode recommends
        "expiration_time": expiration / 1e6,
        "signal": signum,
    }
    if expiration < 0:
        record |= {"expiration_time": -1.0, "signal": 0}
    if version >= 2:
        optional = dict(zip(("start_time", "pid_ns", "token"), integers, strict=True))
        record |= {field: value for field, value in optional.items() if value >= 0}
        if expiration >= 0 and deadline >= 0:
            record["deadline"] = deadline / 1e6
    return record


# ----------------------------------------------------------------------- the fuzzer of the server


def test_the_server_is_fuzzed_in_a_namespace_only() -> None:
    """Elsewhere forged records would name strangers."""
    result = subprocess.run(
        [sys.executable, str(HERE / "fuzz_server.py"), "--seconds", "1"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "private pid namespace" in result.stderr


@pytest.mark.parametrize("protected", [5, 7])
def test_no_forged_bytes_have_a_protected_pid(protected: int) -> None:
    """Not within a write, and not where two of them meet."""
    rng = random.Random(protected)
    writes = [fuzz_server.forge(rng, [b"1", b"301"], protected) for _ in range(300)]
    for data in writes:
        assert data[-1:] not in b"0123456789"
        assert len(data) <= fuzz_server.PIPE_BUF or not any(48 <= byte <= 57 for byte in data)
    runs = "".join(chr(byte) if 48 <= byte <= 57 else " " for byte in b"".join(writes)).split()
    assert any(len(run) == protected + 1 for run in runs)
    assert not any(len(run) == protected for run in runs)
