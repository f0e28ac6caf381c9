"""``filetimer doctor``: findings with remedies, and an exit status that scripts can use."""

from __future__ import annotations

import json

import pytest

from filetimer.cli import doctor


def checks(bench, *, status: int) -> dict[str, dict[str, str | None]]:
    result = bench("doctor", "--json")
    assert result.returncode == status, result.stdout
    return {check["name"]: check for check in json.loads(result.stdout)}


def test_every_finding_is_complete(bench):
    found = checks(bench, status=0)
    assert list(found) == list(doctor.CHECKS)
    for check in found.values():
        assert check["status"] in ("ok", "degraded")
        assert check["detail"]
        assert (check["remedy"] is None) == (check["status"] == "ok")
    assert "was reaped" in found["trial"]["detail"]
    bench.assert_nothing_left()


def test_for_people_it_is_one_line_a_check_and_one_a_remedy(bench):
    result = bench("doctor")
    lines = result.stdout.decode().splitlines()
    assert result.stderr == b""
    assert len([line for line in lines if not line.startswith(" ")]) == len(doctor.CHECKS)


def test_it_finds_the_configured_server(bench):
    path = bench.serve()
    found = checks(bench, status=0)
    assert f" answers at {path}" in found["server"]["detail"]


@pytest.mark.parametrize("what", ["missing", "a file"])
def test_a_configured_path_without_a_server_is_broken(bench, what):
    path = bench.directory / "p"
    if what == "a file":
        path.write_text("")
    bench.environment["FILETIMER_PATH"] = str(path)
    server = checks(bench, status=1)["server"]
    assert server["status"] == "broken"
    assert str(path) in server["detail"]
    assert server["remedy"]


def test_a_check_that_fails_does_not_hide_the_others(monkeypatch, capsys):
    def refused():
        raise PermissionError(1, "not here")

    monkeypatch.setitem(doctor.CHECKS, "pidfd", refused)
    monkeypatch.delitem(doctor.CHECKS, "trial")
    monkeypatch.delenv("FILETIMER_PATH", raising=False)
    monkeypatch.delenv("TORCHELASTIC_TIMER_FILE", raising=False)
    from filetimer.cli.main import main

    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "degraded  pidfd: cannot be told: [Errno 1] not here" in out
    assert "ok        python" in out
