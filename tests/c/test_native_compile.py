# SPDX-License-Identifier: BSD-3-Clause
"""Every compiler, every language standard, every warning: nothing said."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from native import C_WARNINGS, HERE, INCLUDE, WARNINGS, compile_c, need, run

HEADER = INCLUDE / "filetimer.h"
POSIX = "-D_POSIX_C_SOURCE=200809L"

# fmt: off
C_STANDARDS = ["c99", "c11", "c17", "c2x", "gnu99", "gnu11", "gnu17", "gnu2x"]
CXX_STANDARDS = ["c++11", "c++14", "c++17", "c++20", "c++2b",
                 "gnu++11", "gnu++14", "gnu++17", "gnu++20", "gnu++2b"]
# fmt: on
MODERN = [s for s in CXX_STANDARDS if s.removeprefix("gnu++").removeprefix("c++") not in "11 14"]


@pytest.mark.parametrize("standard", C_STANDARDS)
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_c(compiler: str, standard: str, tmp_path: Path) -> None:
    strict = [POSIX] if standard.startswith("c") else []
    for optimise in ("-O0", "-O2"):
        for switch in ([], ["-DFILETIMER_DISABLE"]):
            out = compile_c(
                compiler, f"-std={standard}", *strict, optimise, *C_WARNINGS, *switch,
                HERE / "uses_everything.c", "-pthread", output=tmp_path / "it",
            )  # fmt: skip
    run(out)


@pytest.mark.parametrize("standard", CXX_STANDARDS)
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_cxx(compiler: str, standard: str, tmp_path: Path) -> None:
    sources = ["uses_everything.c", *(["guards.cpp"] if standard in MODERN else [])]
    for source in sources:
        arguments = [f"-std={standard}", *WARNINGS, "-x", "c++", HERE / source, "-pthread"]
        run(compile_c(compiler, "-O2", *arguments, output=tmp_path / "it"))
        run(need(compiler), f"-I{INCLUDE}", "-DFILETIMER_DISABLE", "-fsyntax-only", *arguments)


def test_cuda(tmp_path: Path) -> None:
    """nvcc takes the headers as host code of a .cu file."""
    nvcc = need("nvcc")
    for source in ("uses_everything.c", "guards.cpp"):
        cuda = tmp_path / f"{Path(source).stem}.cu"
        cuda.write_text((HERE / source).read_text())
        result = run(nvcc, f"-I{INCLUDE}", f"-I{HERE}", "-Werror", "all-warnings",
                     "-Xcompiler", "-Wall,-Wextra,-Wshadow,-Wconversion,-Werror",
                     cuda, "-o", tmp_path / "it")  # fmt: skip
        assert result.stdout + result.stderr == ""
        run(tmp_path / "it")


def test_musl(tmp_path: Path) -> None:
    out = compile_c("musl-gcc", "-static", "-O2", *C_WARNINGS, HERE / "uses_everything.c",
                    "-pthread", output=tmp_path / "it")  # fmt: skip
    run(out)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_strict_c_without_posix_names_the_cure(compiler: str, tmp_path: Path) -> None:
    source = tmp_path / "it.c"
    source.write_text("#include <filetimer.h>\n")
    result = subprocess.run(
        [need(compiler), "-std=c99", f"-I{INCLUDE}", "-c", source, "-o", tmp_path / "it.o"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode != 0
    assert "-std=gnu99" in result.stderr
    assert "-D_POSIX_C_SOURCE=200809L" in result.stderr


def test_cxx14_guard_names_the_cure(tmp_path: Path) -> None:
    source = tmp_path / "it.cpp"
    source.write_text("#include <filetimer.hpp>\n")
    result = subprocess.run(
        [need("g++"), "-std=c++14", f"-I{INCLUDE}", "-c", source, "-o", tmp_path / "it.o"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode != 0
    assert "-std=c++17" in result.stderr


@pytest.mark.parametrize(
    ("main", "other"),
    [("gcc", "gcc"), ("gcc", "g++"), ("g++", "g++"), ("clang", "clang++"), ("g++", "disabled")],
)
def test_two_translation_units_share_one_default(main: str, other: str, tmp_path: Path) -> None:
    """Also where one is C and the other C++, or one has everything compiled out."""
    objects = []
    for name, compiler in (("one", main), ("two", other)):
        switch = ["-DFILETIMER_DISABLE"] if compiler == "disabled" else []
        compiler = "g++" if compiler == "disabled" else compiler
        language = "c++" if compiler.endswith("++") else "c"
        warnings = WARNINGS if language == "c++" else C_WARNINGS
        objects.append(
            compile_c(
                compiler,
                *("-O0", "-x", language, "-c"),
                *warnings,
                *switch,
                HERE / f"unit_{name}.c",
                output=tmp_path / f"{name}.o",
            )
        )
    out = compile_c("g++", *objects, "-pthread", output=tmp_path / "it")
    run(out, "different" if other == "disabled" else "same")


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_symbols(compiler: str, tmp_path: Path) -> None:
    """No allocation, no stdio, no locale: the linker would know."""
    out = compile_c(compiler, "-O2", "-c", HERE / "uses_everything.c", output=tmp_path / "it.o")
    symbols = run(need("nm"), out).stdout
    undefined = set(re.findall(r" U (\w+)", symbols))
    assert undefined <= {
        "__errno_location", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_",
        "clock_gettime", "close", "dup2", "fcntl", "fcntl64", "fstat", "getenv", "geteuid",
        "getpid", "madvise", "memcpy", "memset", "mmap", "munmap", "open", "open64", "poll",
        "pthread_sigmask", "read", "sigaddset", "sigemptyset", "sigismember", "sigpending",
        "sigtimedwait", "stat", "strchr", "strlen", "strrchr", "syscall", "write",
    }  # fmt: skip
    assert re.findall(r" [VWBDC] (\w+)", symbols) == ["filetimer_shared_abi1"]


def test_disabled_needs_nothing(tmp_path: Path) -> None:
    out = compile_c("gcc", "-std=c99", "-O2", "-DFILETIMER_DISABLE", "-c",
                    HERE / "uses_everything.c", output=tmp_path / "it.o")  # fmt: skip
    assert not re.findall(r" U (\w+)", run(need("nm"), out).stdout)


def snippets(header: Path, language: str) -> list[str]:
    """The code blocks of a header's documentation, without their comment marks."""
    text = re.sub(r"(?m)^(?: \*|//) ?", "", header.read_text())
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def test_c_documentation_compiles(tmp_path: Path) -> None:
    found = snippets(HEADER, "c")
    assert len(found) == 5
    for number, code in enumerate(found):
        source = tmp_path / f"snippet{number}.c"
        source.write_text(
            "#include <filetimer.h>\n#include <stdio.h>\n#include <string.h>\n"
            "static int ran;\nstatic void might_hang(void) { ran++; }\n"
            f"int main(void)\n{{\n{code}\nreturn ran == 0;\n}}\n"
        )
        run(compile_c("gcc", *C_WARNINGS, source, output=tmp_path / f"snippet{number}"))


@pytest.mark.parametrize("standard", ["c++17", "c++20"])
def test_cxx_documentation_compiles(standard: str, tmp_path: Path) -> None:
    function, body = snippets(INCLUDE / "filetimer.hpp", "cpp")
    source = tmp_path / "snippets.cpp"
    source.write_text(
        "#include <filetimer.hpp>\n#include <csignal>\n#include <iostream>\n"
        "using namespace std::chrono_literals;\nstatic int ran;\n"
        f"static void might_hang() {{ ran++; }}\n{function}\n"
        f"int main()\n{{\nstep();\n{body}\nreturn ran != 3;\n}}\n"
    )
    run(compile_c("g++", f"-std={standard}", *WARNINGS, source, output=tmp_path / "it"))
