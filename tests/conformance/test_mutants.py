"""The kit is tested itself: each wrong behaviour of the reference driver is caught by its case.

A kit that passes everything proves nothing. `drivers/reference.py --wrong NAME` breaks one rule;
the case beside the name must fail, and the driver without `--wrong` must pass the same case.
"""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from kit import REFERENCE

from filetimer.conformance import run
from filetimer.conformance.report import Result

CAUGHT_BY = {
    # framing and records
    "ends-a-line-at-every-read": "split-in-the-middle",
    "ends-lines-at-carriage-return": "carriage-return-ends-no-line",
    "ends-lines-at-unicode-separators": "line-separators-end-no-line",
    "loses-the-lines-beside-a-bad-one": "bad-line-between-good-ones",
    "skips-blank-lines": "blank-line",
    "skips-a-byte-order-mark": "byte-order-mark",
    "repairs-invalid-utf8": "invalid-utf8-in-the-scope",
    "rejects-4097-bytes": "line-of-4097-bytes-from-torch",
    "accepts-lines-of-any-length": "line-of-4098-bytes",
    "rescues-nothing": "half-line-swallows-the-next-record",
    "rescues-from-the-first-marker": "half-line-of-three-dead-writers",
    "accepts-nan": "nan",
    "accepts-infinite-numbers": "time-not-finite",
    "accepts-integers-with-fraction": "pid-with-fraction",
    "takes-true-for-one": "pid-true",
    "takes-the-first-of-repeated-fields": "repeated-field-last-wins",
    "rejects-unknown-fields": "unknown-field",
    "rejects-newer-versions": "version-3-from-the-future",
    "wants-version-first": "fields-in-any-order",
    "checks-fields-in-another-order": "bad-version-comes-before-bad-pid",
    "keeps-half-surrogate-pairs": "scope-surrogate-high-alone",
    # what a sender writes
    "forgets-the-newline": "writes-acquire",
    "writes-version-last": "writes-acquire",
    "writes-a-field-twice": "writes-acquire",
    "writes-newlines-raw": "writes-newline-as-escape",
    "writes-a-decimal-comma": "writes-decimal-point",
    "sends-lines-of-any-length": "refuses-a-line-over-pipe-buf",
    # timers
    "takes-negative-zero-for-a-release": "expired-at-negative-zero",
    "expires-a-step-late": "expired-means-less-or-equal",
    "expires-before-it-reads": "release-read-late-counts",
    "kills-at-the-wall-clock": "wall-clock-stepped-forward",
    "ignores-deadline": "deadline-wins-over-expiration-time-early",
    "ignores-tokens": "token-of-two-threads-in-one-scope",
    "one-timer-a-worker": "release-of-another-scope",
    "a-release-clears-every-scope": "release-of-another-scope",
    "an-inner-timer-hides-the-outer": "inner-timer-hides-not-the-outer",
    "keeps-the-first-of-two-acquires": "acquire-replaces-with-later",
    "the-last-deadline-decides": "earliest-deadline-decides-whatever-the-order",
    "signals-again-and-again": "signal-is-sent-once",
    "kills-with-sigkill-whatever-is-asked": "signal-number-of-the-record",
    "keeps-the-other-timers-after-a-kill": "kill-clears-the-workers-other-timers",
    "kills-for-report-only": "report-only-sends-nothing",
    "report-only-clears-the-worker": "report-only-spares-the-other-timers",
    "never-escalates": "escalates-to-sigkill",
    "sends-sigkill-twice": "sigkill-is-not-sent-twice",
    # whom it may reap
    "kills-a-recycled-pid": "pid-recycled-unseen",
    "believes-releases-of-former-processes": "release-of-a-former-process",
    "does-not-refuse-init": "refused-init-even-of-the-same-user",
    "does-not-refuse-self": "refused-self",
    "does-not-refuse-foreign-pid-ns": "refused-foreign-pid-ns",
    "does-not-refuse-zombie": "refused-zombie",
    "does-not-refuse-start-time": "refused-start-time",
    "does-not-refuse-foreign-uid": "refused-foreign-uid",
    "does-not-refuse-foreign-time-ns": "refused-foreign-time-ns",
    # a live client
    "prefers-torchs-variable": "client-filetimer-path-comes-first",
    "takes-an-empty-variable": "client-empty-variable-counts-as-unset",
    "guesses-a-path": "client-guesses-no-path",
    "creates-the-path": "client-creates-nothing",
    "writes-to-any-file": "client-refuses-a-regular-file",
    "writes-to-foreign-fifos": "client-refuses-a-foreign-fifo",
    "writes-in-two-pieces": "client-one-write-a-record",
    "releases-with-its-signal": "client-release-arrives",
    "guesses-its-start-time": "client-identity-is-true",
    "writes-the-thread-id": "client-thread-writes-the-process-id",
    "caches-the-pid-over-fork": "client-child-writes-its-own-pid",
    "a-child-releases-its-parents-guard": "client-child-leaves-not-its-parents-guard",
    "one-token-for-every-guard": "client-guard-has-a-token",
    "releases-without-the-token": "client-guard-has-a-token",
    "waits-for-a-server": "client-reports-a-missing-server",
    "raises-from-release": "client-release-without-a-server-is-quiet",
    "lets-sigpipe-through": "client-raises-no-sigpipe",
    "leaves-sigpipe-blocked": "client-raises-no-sigpipe",
    "leaks-its-descriptor": "client-descriptor-is-close-on-exec",
    "reopens-by-close-and-open": "client-reopens-onto-the-same-number",
    "blocks-on-a-full-pipe": "client-full-pipe-acquire-is-bounded",
    "gives-up-on-a-full-pipe-at-once": "client-full-pipe-acquire-waits",
    "waits-in-a-signal-handler": "client-in-a-signal-handler-waits-not",
    # a live server
    "makes-a-readable-fifo": "server-makes-a-private-fifo",
    "removes-whatever-is-at-the-path": "server-refuses-a-regular-file",
    "removes-what-it-did-not-make": "server-removes-not-what-it-did-not-make",
    "serves-foreign-fifos": "server-refuses-a-foreign-fifo",
    "takes-no-lock": "server-holds-a-lock",
    "does-not-hold-the-writing-end": "server-sleeps-without-clients",
    "takes-end-of-file-for-a-release": "server-takes-end-of-file-for-no-release",
    "reads-until-a-line-ends": "server-waits-for-no-half-line",
    "keeps-a-line-without-end-in-memory": "server-survives-a-line-without-end",
    "lets-a-flood-postpone-a-kill": "server-kills-in-a-flood",
    "kills-itself-after-a-kill": "server-lives-on-after-a-kill",
    # the driver itself
    "hangs": "blank-line",
    "crashes": "blank-line",
}


def test_every_wrong_behaviour_has_its_case() -> None:
    listed = subprocess.run([*REFERENCE, "--list"], capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) == CAUGHT_BY.keys()
    assert len(CAUGHT_BY) >= 25


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Result]:
    """What became of each wrong behaviour. They mostly wait, so they are tried side by side."""
    with ThreadPoolExecutor(6) as pool:
        return dict(zip(CAUGHT_BY, pool.map(_try, CAUGHT_BY), strict=True))


def _try(behaviour: str) -> Result:
    # A fault that shows as silence is waited for no longer than it takes to be sure.
    command = [*REFERENCE, "--wrong", behaviour]
    (result,) = run(command, names=[CAUGHT_BY[behaviour]], timeout=2).results
    return result


@pytest.mark.parametrize(("behaviour", "case"), CAUGHT_BY.items(), ids=CAUGHT_BY.keys())
def test_wrong_behaviour_is_caught(behaviour: str, case: str, outcomes: dict[str, Result]) -> None:
    result = outcomes[behaviour]
    if result.status == "skipped":
        pytest.skip(result.reason)
    assert result.status == "failed", f"{case} does not notice that the driver {behaviour}"


def test_right_behaviour_is_not() -> None:
    report = run(REFERENCE, names=sorted(set(CAUGHT_BY.values())))
    assert [result for result in report.results if result.status == "failed"] == []
