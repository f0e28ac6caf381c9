"""``filetimer metrics``: a process of its own, asked over HTTP."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import urllib.request

import pytest

from .conftest import wait_until


def ask(url: str, accept: str = "text/plain") -> tuple[str, str]:
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_both_formats_until_it_is_asked_to_end(bench, signum):
    path = bench.serve()
    worker = bench.script("for _ in range(5):\n    with filetimer.expires(60, 'step'): pass\n")
    assert bench("expires", "--after", "60", "--", *worker).returncode == 0
    process = bench.popen("metrics", str(path), "--port", "0", "--interval", "0.05")
    url = re.fullmatch(
        rb"serving metrics at (http://127.0.0.1:\d+/metrics)\n", process.stdout.readline()
    )[1].decode()
    counted = 'filetimer_scope_duration_seconds_count{scope="step"} 5.0\n'
    wait_until(lambda: counted in ask(url)[1], "it sees that the server has read all records")
    kind, text = ask(url)
    assert kind.startswith("text/plain")
    assert "\nfiletimer_up 1.0\n" in text
    kind, text = ask(url, "application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")
    bench.started[0].terminate()
    wait_until(lambda: "\nfiletimer_up 0.0\n" in ask(url)[1], "it sees that the server is gone")
    process.send_signal(signum)
    assert process.wait(60) == 0
    assert process.stderr.read() == b""


def test_mistakes(bench):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        result = bench("metrics", "--port", str(number))
    assert (result.returncode, result.stderr.count(b"\n")) == (125, 1)
    assert f"cannot listen on 127.0.0.1 port {number}".encode() in result.stderr
    assert b"no port" in bench("metrics", "--port", "65536").stderr


def test_of_several_servers_one_must_be_named(bench):
    bench.serve()
    bench.popen("serve", "other", stderr=subprocess.DEVNULL)
    wait_until((bench.directory / "other").exists, "the other serves")
    wait_until(lambda: len(list(bench.runtime.glob("*.journal"))) == 2, "both have a journal")
    result = bench("metrics", "--port", "0")
    assert result.returncode == 2
    assert b"name one: " in result.stderr
