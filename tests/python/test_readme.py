"""What the README shows is compiled or run, and the tests that it names are there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import PATIENCE

import filetimer
from filetimer.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS: list[tuple[str, str]] = re.findall(
    r"^```(\w+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE
)

# What an example takes for granted: data, a model, and frameworks that are not installed here.
PRELUDE = """
import sys, types
data, batches, loader = [1, 2], [1, 2], [1, 2]
train_step = train = lambda batch: batch
sys.modules["lightning"] = types.SimpleNamespace(Callback=object)
"""
STUBS = "static void launch_and_synchronise(void) {}\n"


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_examples_run_under_a_server(
    server: filetimer.FileTimerServer, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = blocks("python")[number]
    if "accelerator" in text or "torchelastic" in text:
        compile(text, "README.md", "exec")  # needs what is not installed here
        return
    monkeypatch.setenv("FILETIMER_PATH", server._file_path)
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE + text], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("language", ["c", "cpp"])
def test_c_and_cpp_examples_compile(language: str, tmp_path: Path) -> None:
    compiler = shutil.which("cc" if language == "c" else "c++")
    if compiler is None:
        pytest.skip(f"needs a {language} compiler")
    for text in blocks(language):
        source = tmp_path / f"example.{language}"
        source.write_text(STUBS + text)
        command = [compiler, "-Wall", "-Wextra", "-Werror", "-I", str(ROOT / "c/include"), "-c"]
        subprocess.run([*command, str(source), "-o", str(tmp_path / "o")], check=True)


@pytest.mark.parametrize("text", blocks("sh"))
def test_shell_examples_are_shell_and_name_real_commands_and_options(text: str) -> None:
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["filetimer"]:
            assert words[1] in COMMANDS, line
            _check_options(words[1], words[2 : words.index("--") if "--" in words else None])


def _check_options(command: str, words: list[str]) -> None:
    options = {word for word in words if word.startswith("--")}
    if command == "torchrun" or not options:
        return  # torchrun's own
    help_text = subprocess.run(
        [sys.executable, "-m", "filetimer", command, "--help"], capture_output=True, text=True
    ).stdout
    assert [option for option in options if option.partition("=")[0] not in help_text] == []


def test_files_and_tests_that_are_named_exist() -> None:
    named = set(re.findall(r"`((?:tests|python|c|protocol)/[\w/.]+)`", README))
    named |= set(re.findall(r"\]\(([\w/.]+)\)", README))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_table_of_the_api_names_what_is_there() -> None:
    rows = re.findall(r"^\| `[^|]+\| `filetimer\.(\w+)`", README, re.MULTILINE)
    assert len(rows) == 13
    for name in rows:
        assert getattr(filetimer, name)


def test_the_commands_of_the_first_screen_are_targets() -> None:
    first_screen = "\n".join(README.splitlines()[:14])
    for target in ("demo", "test"):
        assert f"make {target}" in first_screen
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
