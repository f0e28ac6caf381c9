"""The table of commands, and what a user's mistakes look like."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import filetimer
from filetimer.cli.main import COMMANDS, main

MISTAKES = [
    ([], "no command given"),
    (["nosuch"], "no such command"),
    (["--nosuch"], "--nosuch"),
    (["run"], "write it after `--`"),
    (["run", "--"], "write it after `--`"),
    (["run", "true"], "unrecognized arguments: true"),
    (["run", "--workers", "0", "--", "true"], "'0' is not a whole number that is 1 or more"),
    (["run", "--workers", "two", "--", "true"], "'two' is not a whole number"),
    (["run", "--max-restarts", "-1", "--", "true"], "--max-restarts"),
    (["run", "--kill-after", "inf", "--", "true"], "'inf' is not a positive number of seconds"),
    (["run", "--nosuch", "--", "true"], "--nosuch"),
    (["serve"], "PATH"),
    (["serve", "p", "--max-interval", "0"], "'0' is not a positive number of seconds"),
    (["serve", "p", "q"], "unrecognized arguments: q"),
    (["expires", "--", "true"], "--after"),
    (["expires", "--after", "1"], "write it after `--`"),
    (["expires", "--after", "nan", "--", "true"], "'nan' is not a positive number of seconds"),
    (["expires", "--after", "-1", "--", "true"], "--after"),
    (["expires", "--after", "1", "--signal", "0", "--", "true"], "there is no signal '0'"),
    (["expires", "--after", "1", "--signal", "FOO", "--", "true"], "there is no signal 'FOO'"),
    (["expires", "--after", "1", "--scope", "", "--", "true"], "scope must not be empty"),
    (["doctor", "--nosuch"], "--nosuch"),
]


@pytest.mark.parametrize(("arguments", "says"), MISTAKES, ids=lambda value: " ".join(value))
def test_a_mistake_is_one_sentence_and_status_2(arguments, says, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert says in err
    assert err.startswith("filetimer")


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"filetimer {filetimer.__version__}\n"
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out and row.summary in out for name, row in COMMANDS.items())


@pytest.mark.parametrize("name", [n for n, row in COMMANDS.items() if not row.parses_itself])
def test_every_command_has_help(name, capsys):
    module = importlib.import_module(COMMANDS[name].module)
    assert callable(module.execute)
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: filetimer {name}")
    assert module.__doc__.splitlines()[0] in out
    assert ("-- CMD" in out) == COMMANDS[name].takes_command


def test_commands_are_imported_only_when_they_are_called():
    program = (
        "import sys, filetimer.cli.main as m; m.main(['--version']);"
        "sys.exit(any(n.startswith(('filetimer.server', 'msgspec')) for n in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_python_m_filetimer(bench):
    result = bench("--version")
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.startswith(b"filetimer ")


def test_a_reader_that_goes_away_is_no_traceback(bench):
    process = bench.popen("--help")
    process.stdout.close()
    process.wait()
    assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        ("metrics", "prometheus_client", "metrics"),
        ("top", "rich", "top"),
        ("report", "matplotlib", "report"),
    ],
)
def test_a_missing_extra_is_one_sentence(bench, command, module, extra):
    bench.serve()
    program = (
        f"import sys; sys.modules[{module!r}] = None\n"
        f"from filetimer.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    result = bench(command, program=("-c", program))
    assert (result.returncode, result.stdout) == (2, b"")
    assert f"pip install 'filetimer[{extra}]'".encode() in result.stderr
    assert result.stderr.count(b"\n") == 1
