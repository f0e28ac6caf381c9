"""``filetimer trace``: a file for Perfetto."""

from __future__ import annotations

import gzip
import json

from .conftest import wait_until


def test_a_server_that_runs_and_one_that_died(bench):
    path = bench.serve()
    worker = bench.script("with filetimer.expires(60, 'step'): pass\n")
    assert bench("expires", "--after", "60", "--", *worker).returncode == 0

    def traced():
        result = bench("trace", str(path), "-o", "out.json")
        assert (result.returncode, result.stderr) == (0, b"")
        assert b"out.json: " in result.stdout
        found = json.loads((bench.directory / "out.json").read_text())
        return {event["name"] for event in found["traceEvents"]}

    wait_until(lambda: "step" in traced(), "the server has read the worker's records")

    torch = {"traceEvents": [{"ph": "X", "name": "theirs"}], "baseTimeNanoseconds": 10**18}
    (bench.directory / "torch.json.gz").write_bytes(gzip.compress(json.dumps(torch).encode()))
    assert bench("trace", "--with", "torch.json.gz").returncode == 0
    found = json.loads((bench.directory / "trace.json").read_text())
    assert {"step", "theirs"} <= {event["name"] for event in found["traceEvents"]}


def test_mistakes(bench):
    bench.serve()
    (bench.directory / "no.json").write_text("no")
    for arguments, says in [
        (["-o", "/nosuch/trace.json"], b"cannot write the trace: "),
        (["--with", "nosuch.json"], b"cannot read the trace nosuch.json"),
        (["--with", "no.json"], b"no.json is no trace"),
    ]:
        result = bench("trace", *arguments)
        assert result.returncode != 0
        assert says in result.stderr
        assert result.stderr.count(b"\n") == 1
