"""The C side of an installation, as a C project finds it.

Runs against whatever `import filetimer` gives: a checkout, an editable install, or a wheel.  With
FILETIMER_TEST_INSTALLED=1 it has to be a wheel, complete.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from consumer import ROOT, need, run

import filetimer
from filetimer import native_files
from filetimer.conformance.cases import load, protocol_directory

PACKAGE = Path(filetimer.__file__).parent
IS_WHEEL = os.environ.get("FILETIMER_TEST_INSTALLED") == "1"

PROGRAM = """
#include <filetimer.h>
#include <stdio.h>
int main(void) {
    FILETIMER_EXPIRES(1.0) puts(FILETIMER_VERSION);
    return 0;
}
"""
CXX_PROGRAM = """
#include <filetimer.hpp>
#include <cstdio>
int main() {
    using namespace std::chrono_literals;
    filetimer::expires guard{1s};
    std::puts(FILETIMER_VERSION);
}
"""
PROJECT = """
cmake_minimum_required(VERSION 3.15)
project(user LANGUAGES C CXX)
find_package(filetimer 0.1 REQUIRED)
find_package(filetimer REQUIRED)
add_executable(in_c main.c)
target_link_libraries(in_c PRIVATE filetimer::filetimer)
add_executable(in_cxx main.cpp)
target_compile_features(in_cxx PRIVATE cxx_std_17)
target_link_libraries(in_cxx PRIVATE filetimer::filetimer)
file(WRITE "${CMAKE_BINARY_DIR}/version" "${filetimer_VERSION}")
"""


def option(name: str) -> str:
    return run(sys.executable, "-m", "filetimer", name).rstrip("\n")


def assert_runs(program: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if "TIMER" not in k}
    assert run(program, env=environment) == f"{filetimer.__version__}\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "main.c").write_text(PROGRAM)
    (tmp_path / "main.cpp").write_text(CXX_PROGRAM)
    (tmp_path / "CMakeLists.txt").write_text(PROJECT)
    return tmp_path


@pytest.mark.skipif(not IS_WHEEL, reason="FILETIMER_TEST_INSTALLED is not 1")
def test_the_wheel_has_all_of_its_own() -> None:
    assert ROOT not in PACKAGE.parents or "site-packages" in PACKAGE.parts
    assert filetimer.NativeTimerClient is not None
    folders = [
        native_files.get_include(),
        native_files.get_cmake_dir(),
        native_files.get_pkgconfig_dir(),
        protocol_directory(),
    ]
    assert all(PACKAGE in Path(folder).parents for folder in folders)
    assert len(load()) > 100


def test_the_options_print_what_is_there() -> None:
    include = Path(filetimer.get_include())
    assert {path.name for path in include.iterdir()} == {"filetimer.h", "filetimer.hpp"}
    assert shlex.split(option("--includes")) == [f"-I{include}"]
    assert shlex.split(option("--cflags")) == [f"-I{include}", "-pthread"]
    assert Path(option("--cmakedir"), "filetimerConfig.cmake").is_file()
    assert Path(option("--pkgconfigdir"), "filetimer.pc").is_file()


def test_a_folder_with_a_space_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_files, "get_include", lambda: "/a b/include")
    assert shlex.split(native_files.cflags()) == ["-I/a b/include", "-pthread"]


def test_a_compiler_takes_the_flags(project: Path) -> None:
    flags = shlex.split(option("--cflags"))
    run(need("cc", "gcc"), *flags, project / "main.c", "-o", project / "in_c")
    run(need("c++", "g++"), "-std=c++17", *flags, project / "main.cpp", "-o", project / "in_cxx")
    assert_runs(project / "in_c")
    assert_runs(project / "in_cxx")


def test_one_file_copied_is_enough(project: Path) -> None:
    shutil.copy(Path(filetimer.get_include(), "filetimer.h"), project)
    run(need("cc", "gcc"), f"-I{project}", "-pthread", project / "main.c", "-o", project / "in_c")
    assert_runs(project / "in_c")


def pkg_config(folder: str | Path, *arguments: str) -> list[str]:
    environment = {**os.environ, "PKG_CONFIG_PATH": str(folder)}
    return shlex.split(run(need("pkg-config"), *arguments, "filetimer", env=environment))


def test_pkg_config(project: Path) -> None:
    folder = option("--pkgconfigdir")
    assert pkg_config(folder, "--modversion") == [filetimer.__version__]
    flags = pkg_config(folder, "--cflags", "--libs")
    run(need("cc", "gcc"), *flags, project / "main.c", "-o", project / "in_c")
    assert_runs(project / "in_c")


def test_pkg_config_follows_when_all_is_moved(tmp_path: Path) -> None:
    for folder in (native_files.get_include(), native_files.get_pkgconfig_dir()):
        shutil.copytree(folder, tmp_path / "moved" / Path(folder).name)
    (include, _) = pkg_config(tmp_path / "moved" / "pkgconfig", "--cflags")
    assert Path(include.removeprefix("-I")).resolve() == tmp_path / "moved" / "include"


def build_with_cmake(project: Path, *definitions: str) -> None:
    need("c++", "g++")
    cmake = need("cmake")
    run(cmake, "-S", project, "-B", project / "build", *definitions)
    run(cmake, "--build", project / "build")
    assert_runs(project / "build" / "in_c")
    assert_runs(project / "build" / "in_cxx")


@pytest.mark.parametrize("variable", ["filetimer_DIR", "CMAKE_PREFIX_PATH"])
def test_cmake_finds_the_package(project: Path, variable: str) -> None:
    build_with_cmake(project, f"-D{variable}={option('--cmakedir')}")
    assert (project / "build" / "version").read_text() == filetimer.__version__


@pytest.mark.parametrize(
    ("version", "found"),
    [("0.1", True), ("0.1.0", True), ("0", True), ("0.1.1", False), ("0.2", False), ("1", False)],
)
def test_cmake_knows_which_version_it_has(project: Path, version: str, found: bool) -> None:
    text = PROJECT.replace("filetimer 0.1 ", f"filetimer {version} ").replace(" CXX)", ")")
    (project / "CMakeLists.txt").write_text(text.partition("add_executable")[0])
    command = [need("cmake"), "-S", project, "-B", project / "build"]
    command.append(f"-Dfiletimer_DIR={option('--cmakedir')}")
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode == 0) is found, result.stderr


@pytest.mark.skipif(IS_WHEEL, reason="a wheel has no c/CMakeLists.txt")
class TestCMakeProject:
    """c/ is a CMake project itself."""

    def test_installed_it_is_found_below_any_prefix(self, project: Path) -> None:
        cmake = need("cmake")
        build, prefix = project / "filetimer", project / "prefix"
        run(cmake, "-S", ROOT / "c", "-B", build)
        run(cmake, "--install", build, "--prefix", prefix)
        files = {str(p.relative_to(prefix)) for p in prefix.rglob("*") if p.is_file()}
        assert files == {
            "include/filetimer.h",
            "include/filetimer.hpp",
            "share/cmake/filetimer/filetimerConfig.cmake",
            "share/cmake/filetimer/filetimerConfigVersion.cmake",
            "share/pkgconfig/filetimer.pc",
        }
        moved = prefix.rename(project / "moved")
        build_with_cmake(project, f"-DCMAKE_PREFIX_PATH={moved}")
        (include, _) = pkg_config(moved / "share/pkgconfig", "--cflags")
        assert Path(include.removeprefix("-I")).resolve() == moved / "include"

    def test_as_a_subdirectory(self, project: Path) -> None:
        text = PROJECT.replace("find_package(filetimer 0.1 REQUIRED)\n", "").replace(
            "find_package(filetimer REQUIRED)", f"add_subdirectory({ROOT / 'c'} filetimer)"
        )
        (project / "CMakeLists.txt").write_text(text)
        build_with_cmake(project)
