"""The runner: what it does with drivers that misbehave, and what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from kit import PROTOCOL, REFERENCE, ROOT

from filetimer.conformance import main, run
from filetimer.conformance.cases import protocol_directory
from filetimer.conformance.link import STARTUP, Driver, DriverFault, DriverHung
from filetimer.conformance.session import Session, copy_of_environ

HELLO = '{"name": "t", "language": "t", "versions": [1, 2], "roles": ["codec"]}'


def driver(folder: Path, body: str, hello: str = HELLO) -> list[str]:
    """A driver that says hello, and does `body` with every other request (in `line`)."""
    script = f"""\
import json, os, sys, time
for line in sys.stdin:
    if '"hello"' in line:
        print({hello!r}, flush=True)
        continue
{textwrap.indent(textwrap.dedent(body), "    ")}
"""
    path = folder / "driver.py"
    path.write_text(script)
    return [sys.executable, str(path)]


def only_result(command: list[str], case: str = "blank-line", timeout: float = 1.0):
    (result,) = run(command, names=[case], timeout=timeout).results
    return result


# ------------------------------------------------------------------------ drivers that misbehave


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("time.sleep(60)", "no reply within 1 seconds"),
        ("os._exit(3)", "exit status 3"),
        ("os.kill(os.getpid(), 11)", "by signal 11"),
        ("print('hello', flush=True)", "no reply in JSON"),
        ("print('[]', flush=True)", "no reply in JSON"),
        ("print(flush=True)", "no reply in JSON"),
        ("sys.stdout.buffer.write(bytes([255, 10])); sys.stdout.flush()", "no reply in JSON"),
        ("sys.stdout.close(); os.close(1); time.sleep(60)", "closed its standard output"),
        ("sys.stderr.write('out of luck'); sys.stderr.flush(); os._exit(1)", "out of luck"),
        ("while True: print('x' * 65536, end='')", "driver"),
    ],
    ids=[
        "hangs",
        "exits",
        "crashes",
        "prose",
        "list",
        "blank",
        "bytes",
        "closes",
        "stderr",
        "flood",
    ],
)
def test_fault_of_the_driver_is_a_result(tmp_path: Path, body: str, said: str) -> None:
    result = only_result(driver(tmp_path, body))
    assert result.status == "failed"
    assert said in result.reason


@pytest.mark.parametrize(
    "reply", ["{}", '{"results": null}', '{"results": [7]}', '{"results": [{"record": []}]}']
)
def test_reply_of_another_shape_is_a_failure(tmp_path: Path, reply: str) -> None:
    assert only_result(driver(tmp_path, f"print({reply!r}, flush=True)")).status == "failed"


def test_driver_that_always_hangs_takes_no_hour(tmp_path: Path) -> None:
    start = time.monotonic()
    report = run(driver(tmp_path, "time.sleep(60)"), timeout=0.2)
    assert report.count("passed") == 0
    assert any("hung too often" in result.reason for result in report.results)
    assert time.monotonic() - start < 20


def test_case_after_a_crash_has_a_driver_again(tmp_path: Path) -> None:
    body = """
    if '"0a"' in line:
        os._exit(3)
    print('{"results": [{"error": "object"}]}', flush=True)
    """
    report = run(driver(tmp_path, body), names=["blank-line", "array", "null-alone"], jobs=1)
    assert [result.status for result in report.results] == ["failed", "passed", "passed"]


def test_children_of_a_hanging_driver_end_with_it(tmp_path: Path) -> None:
    body = """
    child = os.fork()
    if child == 0:
        time.sleep(60)
    print(json.dumps({"pid": child}), flush=True)
    """
    subject = Driver(driver(tmp_path, body))
    child = subject.request({"op": "noop"})["pid"]
    subject.close()
    deadline = time.monotonic() + 5
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_driver_that_reads_nothing_hangs_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "deaf.py"
    path.write_text(f"import time\nprint({HELLO!r}, flush=True)\ntime.sleep(60)")
    subject = Driver([sys.executable, str(path)], timeout=0.5)
    subject.request({"op": "hello"}, STARTUP)
    with pytest.raises(DriverHung):
        subject.request({"op": "decode", "reads": ["00" * (1 << 20)]})
    subject.close()


def test_unsupported_op_is_a_skip_with_its_reason(tmp_path: Path) -> None:
    result = only_result(driver(tmp_path, 'print(\'{"unsupported": "decode"}\', flush=True)'))
    assert (result.status, result.reason) == ("skipped", "the driver has no op decode")


@pytest.mark.parametrize("key", ["blank-line", "decode", "E-1"])
def test_declared_skip_is_shown(tmp_path: Path, key: str) -> None:
    hello = json.dumps({**json.loads(HELLO), "skips": {key: "no time"}})
    result = only_result(driver(tmp_path, "os._exit(1)", hello))
    assert (result.status, result.reason) == ("skipped", f"{key}: no time")


def test_no_hello_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(DriverFault, match="exit status 1"):
        run([sys.executable, "-c", "raise SystemExit(1)"])


def test_subject_inherits_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FILETIMER_PATH", "/tmp/of-the-caller")
    assert "FILETIMER_PATH" not in Session(["true"], 1).environment()


def test_the_environment_may_change_while_it_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    class Changing(dict[str, str]):
        def __iter__(self) -> Iterator[str]:
            return iter(["HOME", "GONE_BY_NOW"])

    monkeypatch.setattr(os, "environ", Changing(HOME="/root"))
    assert copy_of_environ() == {"HOME": "/root"}


# ------------------------------------------------------------------------------ the command line

CASES = ["--case", "blank-line", "--case", "nan", "--case", "inner-timer-hides-not-the-outer"]


def test_success_is_exit_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*CASES, "--", *REFERENCE]) == 0
    told = capsys.readouterr()
    assert "3 passed, 0 failed, 0 skipped" in told.out
    assert "R-5" in told.out
    assert "3/3" in told.err


def test_failure_is_exit_status_1_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*CASES, "--", *REFERENCE, "--wrong", "accepts-nan"]) == 1
    told = capsys.readouterr().out
    assert "FAIL  R-5" in told
    assert "FAILED nan  (records/invalid.json)" in told
    assert "SPEC R-5, section 3 Records: `NaN`, `Infinity`" in told
    assert '"expiration_time": NaN' in told  # the bytes that were sent
    assert 'expected  [{"error": "json"}]' in told
    assert 'got       [{"record"' in told


def test_timeline_failure_names_the_step(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = "an-inner-timer-hides-the-outer"
    assert main([*CASES, "--", *REFERENCE, "--wrong", wrong]) == 1
    assert '"step": 4' in capsys.readouterr().out


def test_json_has_everything(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    main([*CASES, "--json", str(file), "--", *REFERENCE, "--wrong", "accepts-nan"])
    told = json.loads(file.read_text())
    assert (told["passed"], told["failed"], told["skipped"]) == (2, 1, 0)
    (failed,) = [result for result in told["results"] if result["status"] == "failed"]
    assert failed["spec"] == [{"id": "R-5", "section": "3 Records"}]
    assert bytes.fromhex(failed["sent"]["hex"]).startswith(b'{"version"')
    assert failed["expected"] == [{"error": "json"}]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--"],
        ["--roles", "poet", "--", *REFERENCE],
        ["--version", "3", "--", *REFERENCE],
        ["--case", "no-such-case", "--", *REFERENCE],
        ["--", "/no/such/command"],
    ],
    ids=["nothing", "no-command", "role", "version", "case", "missing-command"],
)
def test_wrong_command_line_is_exit_status_2(arguments: list[str]) -> None:
    try:
        status = main(arguments)
    except SystemExit as exit:
        status = exit.code
    assert status == 2


def test_role_that_the_driver_has_not(tmp_path: Path) -> None:
    assert main(["--roles", "server", "--", *driver(tmp_path, "pass")]) == 2


def test_roles_and_version_choose_the_cases() -> None:
    report = run(REFERENCE, roles=["timeline"], version=1)
    assert report.version == 1
    assert {result.case.role for result in report.results} == {"timeline"}
    assert all(1 in result.case.versions for result in report.results)


def test_module_can_be_run() -> None:
    command = [sys.executable, "-m", "filetimer.conformance", "--case", "nan", "--", *REFERENCE]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


# ----------------------------------------------------------------------------- the driver's manual


def test_conversation_matches_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the runner sends, and what the reference driver answers, in all four roles."""
    schema = json.loads((PROTOCOL / "driver.schema.json").read_text())
    valid = {
        kind: jsonschema.Draft202012Validator({**schema, "oneOf": [{"$ref": f"#/$defs/{kind}"}]})
        for kind in ("request", "reply")
    }
    seen = set()
    exchange = Driver.request

    def request(self, message, timeout=None):
        valid["request"].validate(message)
        reply = exchange(self, message, timeout)
        valid["reply"].validate(reply)
        seen.add(message["op"])
        return reply

    monkeypatch.setattr(Driver, "request", request)
    names = ["nan", "writes-acquire", "refuses-an-empty-scope", "inner-timer-hides-not-the-outer"]
    names += [
        "client-guard-has-a-token",
        "client-child-writes-its-own-pid",
        "client-release-arrives",
    ]
    names += ["client-thread-writes-the-process-id", "client-in-a-signal-handler-waits-not"]
    names += ["client-reopens-onto-the-same-number", "server-counts-every-rejection"]
    names += ["server-lives-on-after-a-kill"]
    assert run(REFERENCE, names=names).passed
    assert seen == {one["properties"]["op"]["const"] for one in schema["$defs"]["request"]["oneOf"]}


def test_template_of_the_manual_works(tmp_path: Path) -> None:
    """The code in driver.md, around the smallest codec that one can write."""
    manual = (PROTOCOL / "driver.md").read_text()
    template = manual.split("```python\n")[1].split("```")[0]
    (tmp_path / "template.py").write_text(template)
    (tmp_path / "my.py").write_text(
        textwrap.dedent("""
        import json
        class Error(Exception): pass
        class Decoder:
            def feed(self, data):
                return [{"error": "json"} for line in data.splitlines()]
        def encode(record):
            return json.dumps(record).encode() + b"\\n"
        """)
    )
    command = [sys.executable, str(tmp_path / "template.py")]
    report = run(command, names=["not-json", "writes-acquire", "array"])
    statuses = {result.case.name: result.status for result in report.results}
    assert statuses == {"not-json": "passed", "writes-acquire": "passed", "array": "failed"}


def test_manual_names_every_op_and_event() -> None:
    manual = (PROTOCOL / "driver.md").read_text()
    schema = json.loads((PROTOCOL / "driver.schema.json").read_text())
    for one in schema["$defs"]["request"]["oneOf"]:
        assert f'"op": "{one["properties"]["op"]["const"]}"' in manual
    timelines = json.loads((PROTOCOL / "vectors/timelines.schema.json").read_text())
    for one in timelines["$defs"]["event"]["oneOf"]:
        assert f'"event": "{one["properties"]["event"]["const"]}"' in manual


def test_installed_vectors_are_found(tmp_path: Path) -> None:
    """In a wheel the protocol lies beside the package's code."""
    package = tmp_path / "filetimer" / "conformance"
    source = Path(sys.modules["filetimer.conformance"].__file__).parent
    package.mkdir(parents=True)
    (tmp_path / "filetimer" / "__init__.py").touch()
    for file in source.glob("*.py"):
        (package / file.name).write_bytes(file.read_bytes())
    (package / "protocol").symlink_to(protocol_directory())
    command = [sys.executable, "-m", "filetimer.conformance", "--case", "nan", "--", *REFERENCE]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
