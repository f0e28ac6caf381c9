"""``filetimer suggest``, and how all views find their server."""

from __future__ import annotations

import json

import pytest

from filetimer.cli.main import main

from .conftest import wait_until

VIEWS = ["suggest", "trace", "top", "report"]


def test_after_a_job(bench):
    worker = bench.script(
        "for i in range(40):\n"
        "    with filetimer.expires(60, 'train step'): time.sleep(0.002)\n"
        "if rank == 1 and attempt == 0:\n"
        "    with filetimer.expires(0.2, 'train step'): time.sleep(600)\n"
    )
    result = bench(
        "run", "--workers", "2", "--max-restarts", "1", "--keep-journal", "kept", "--", *worker
    )
    assert result.returncode == 0
    rows = [
        json.loads(line)
        for line in bench("suggest", "--journal", "kept", "--json").stdout.splitlines()
    ]
    first, later = rows
    # Rank 0 may be stopped at any point of the first attempt.
    assert (first["scope_id"], first["first_call"]) == ("train step", True)
    assert first["count"] in (3, 4)
    assert 3 * 39 <= later["count"] <= 4 * 39
    assert later["censored"]["killed"] == 1
    assert 0 <= later["median"] <= later["p99"] <= later["longest"] < 60
    text = bench("suggest", "--journal", "kept").stdout.decode()
    assert "train step\n  first calls " in text
    assert "too few: " in text
    assert max(map(len, text.splitlines()[1:])) <= 80  # all but the path
    bench.assert_nothing_left()


def test_on_a_server_that_runs(bench):
    path = bench.serve()
    worker = bench.script("with filetimer.expires(60, 's\\x1b[2J'): pass\n")
    assert bench("expires", "--after", "60", "--", *worker).returncode == 0
    wait_until(lambda: b"s\\x1b[2J\n" in bench("suggest").stdout, "the server has read its records")
    for arguments in ([], [str(path)]):
        result = bench("suggest", *arguments)
        assert result.returncode == 0
        assert b"s\\x1b[2J\n" in result.stdout


@pytest.mark.parametrize("view", VIEWS)
class TestWhichServer:
    def test_none(self, bench, view):
        result = bench(view)
        assert result.returncode == 2
        assert b"no timer server is running" in result.stderr
        assert b"--keep-journal" in result.stderr

    def test_several(self, bench, view):
        first = bench.serve()
        log = bench.directory / "other.log"
        with open(log, "wb") as file:
            bench.popen("serve", "other", stderr=file)
            while b"watchdog started" not in log.read_bytes():
                pass
        result = bench(view)
        assert result.returncode == 2
        assert b"2 timer servers are running, name one: " in result.stderr
        assert str(first).encode() in result.stderr
        assert result.stderr.count(b"\n") == 1

    def test_mistakes(self, bench, view, capsys, monkeypatch, tmp_path):
        monkeypatch.setenv("FILETIMER_RUNTIME_DIR", str(bench.runtime))
        file = tmp_path / "file"
        file.write_text("something else\n")
        for arguments, says in [
            ([str(tmp_path / "nosuch")], "no timer server that can be looked at serves"),
            ([str(file)], "name a kept journal by `--journal`"),
            (["--journal", str(tmp_path / "nosuch")], "there is no"),
            (["--journal", str(file)], "is not a timer journal that can be read"),
            (["--journal", str(tmp_path)], "cannot read the journal"),
            (["p", "--journal", "q"], "not both"),
        ]:
            assert main([view, *arguments]) == 2
            out, err = capsys.readouterr()
            assert out == ""
            assert says in err
            assert err.count("\n") == 1
