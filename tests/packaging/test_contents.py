"""What an sdist and a wheel contain: everything that they must, and nothing else."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from consumer import ROOT, need_module, run, skip_or_fail

import filetimer

VERSION = filetimer.__version__
BASE = f"filetimer-{VERSION}"
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

NOT_IN_SDIST = (".ci/", ".github/", ".gitignore")
MADE_FOR_SDIST = {"PKG-INFO", "setup.cfg", "python/filetimer.egg-info/SOURCES.txt"}
WHEEL_DATA = {
    "filetimer/py.typed",
    "filetimer/_native.pyi",
    "filetimer/include/filetimer.h",
    "filetimer/include/filetimer.hpp",
    "filetimer/cmake/filetimerConfig.cmake",
    "filetimer/cmake/filetimerConfigVersion.cmake",
    "filetimer/pkgconfig/filetimer.pc",
    f"{BASE}.dist-info/METADATA",
    f"{BASE}.dist-info/RECORD",
    f"{BASE}.dist-info/WHEEL",
    f"{BASE}.dist-info/entry_points.txt",
    f"{BASE}.dist-info/licenses/LICENSE",
    f"{BASE}.dist-info/top_level.txt",
}
MAX_WHEEL_SIZE = 500_000  # bytes


def sources() -> list[str]:
    """The files of the checkout, without what builds have left behind."""
    try:
        listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    except (AssertionError, FileNotFoundError):
        pytest.skip("this is not a git checkout")
    return [name for name in listed.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy: nothing that lies about here gets into it, and builds leave nothing here."""
    copy = tmp_path_factory.mktemp("clean")
    for name in sources():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    return copy


def build(
    checkout: Path, target: Path, what: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    for name in ("build", "cffi"):
        need_module(name)
    import setuptools

    if int(setuptools.__version__.partition(".")[0]) < 77:
        skip_or_fail("setuptools>=77 is not installed: pip install '.[test]'")
    command = [sys.executable, "-m", "build", "--no-isolation", what, "--outdir", str(target)]
    return subprocess.run(
        [*command, str(checkout)], check=False, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": "", **environment},
    )  # fmt: skip


def the_one(folder: Path, pattern: str, built: subprocess.CompletedProcess[str]) -> Path:
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob(pattern)
    return path


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    return the_one(folder, "*.tar.gz", build(checkout, folder, "--sdist"))


@pytest.fixture
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, anew: a build leaves its results in it."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder)
    return folder / BASE


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, as pip does."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder)
    unpacked = folder / BASE
    return the_one(folder, "*.whl", build(unpacked, folder, "--wheel"))


def expected_in_wheel() -> set[str]:
    names = set(WHEEL_DATA)
    for source in sources():
        if source.startswith("python/filetimer/") and source.endswith(".py"):
            names.add(source.removeprefix("python/"))
        if source.startswith("protocol/"):
            names.add(f"filetimer/conformance/{source}")
    return names


def test_sdist_is_the_checkout(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {member.name for member in archive.getmembers() if member.isfile()}
    expected = {name for name in sources() if not name.startswith(NOT_IN_SDIST)}
    assert names == {f"{BASE}/{name}" for name in expected | MADE_FOR_SDIST}


def test_wheel_has_package_header_and_contract(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    (module,) = (name for name in names if name.endswith(".so"))
    suffix = sysconfig.get_config_var("EXT_SUFFIX") if FREE_THREADED else ".abi3.so"
    assert module == f"filetimer/_native{suffix}"
    assert names - {module} == expected_in_wheel()


def test_wheel_carries_the_very_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for inside, here in [
            ("filetimer/include/filetimer.h", "c/include/filetimer.h"),
            ("filetimer/conformance/protocol/SPEC.md", "protocol/SPEC.md"),
        ]:
            assert archive.read(inside) == (ROOT / here).read_bytes()


def test_wheel_is_small_and_for_every_python(wheel: Path) -> None:
    assert wheel.stat().st_size < MAX_WHEEL_SIZE
    tag = PurePosixPath(wheel.name).stem.split("-")[2:4]
    version = f"cp3{sys.version_info.minor}"
    assert tag == ([version, f"{version}t"] if FREE_THREADED else ["cp310", "abi3"])


def test_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = email.message_from_bytes(archive.read(f"{BASE}.dist-info/METADATA"))
        entry_points = archive.read(f"{BASE}.dist-info/entry_points.txt").decode()
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["Requires-Python"] == ">=3.10"
    needed = [r for r in metadata.get_all("Requires-Dist") if "extra" not in r]
    assert [re.split(r"[>=;]", r)[0] for r in needed] == ["msgspec", "cffi"]
    assert "filetimer = filetimer.cli.main:main" in entry_points


def test_one_version_everywhere() -> None:
    texts = {
        "pyproject.toml": rf'^version = "{VERSION}"$',
        "c/include/filetimer.h": rf'^#define FILETIMER_VERSION "{VERSION}"$',
        "c/pkgconfig/filetimer.pc": rf"^Version: {VERSION}$",
    }
    for name, line in texts.items():
        assert re.search(line, (ROOT / name).read_text(), re.MULTILINE), name


def test_without_a_compiler_it_is_pure_python_and_says_so(unpacked: Path, tmp_path: Path) -> None:
    built = build(unpacked, tmp_path, "--wheel", CC="/nonexistent/cc")
    wheel = the_one(tmp_path, "*.whl", built)
    assert "installed without its native client" in built.stderr + built.stdout
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) == expected_in_wheel()
        archive.extractall(tmp_path / "site")
    code = "import filetimer; filetimer.NativeTimerClient"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert result.stderr.splitlines()[-1].startswith(
        "ImportError: filetimer.NativeTimerClient cannot be used: "
    )
    assert "install a C compiler" in result.stderr
