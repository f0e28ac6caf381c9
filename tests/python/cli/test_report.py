"""``filetimer report``: one page after a job."""

from __future__ import annotations

from .conftest import wait_until


def test_after_a_job(bench):
    worker = bench.script(
        "for i in range(20):\n"
        "    with filetimer.expires(60, 'train step'): time.sleep(0.002)\n"
        "if rank == 1 and attempt == 0:\n"
        "    with filetimer.expires(0.2, 'hung here'): time.sleep(600)\n"
    )
    result = bench(
        "run", "--workers", "2", "--max-restarts", "1", "--keep-journal", "kept", "--", *worker
    )
    assert result.returncode == 0
    assert b"look at it with `filetimer report --journal kept` or" in result.stderr
    result = bench("report", "--journal", "kept", "-o", "page.html")
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == b"page.html: " + result.stdout.split(b": ")[1]
    text = (bench.directory / "page.html").read_text()
    assert "hung here" in text
    assert "ran out, worker killed" in text
    assert "restart of the group" in text
    assert ">rank 1</text>" in text
    assert bench("trace", "--journal", "kept").returncode == 0
    assert '"restart 1"' in (bench.directory / "trace.json").read_text()
    bench.assert_nothing_left()


def test_of_a_server_that_runs(bench):
    bench.serve()
    assert bench("report").returncode == 0
    assert "No block was guarded" in (bench.directory / "report.html").read_text()


def test_the_rank_of_a_worker_that_runs(bench):
    bench.serve()
    worker = bench.script("with filetimer.expires(60, 'guarded'): time.sleep(600)\n")
    environment = {**bench.environment, "RANK": "3", "LOCAL_RANK": "1"}
    bench.popen("expires", "--after", "600", "--", *worker, env=environment)
    wait_until(lambda: b"guarded" in bench("list").stdout, "the worker's timer is seen")
    assert bench("report").returncode == 0
    assert ">rank 3</text>" in (bench.directory / "report.html").read_text()


def test_a_page_that_cannot_be_written(bench):
    bench.serve()
    result = bench("report", "-o", "/nosuch/page.html")
    assert (result.returncode, result.stderr.count(b"\n")) == (125, 1)
    assert b"cannot write the page: " in result.stderr
