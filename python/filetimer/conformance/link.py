"""The line to a driver: one request out, one reply in, and never a wait without end."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

STARTUP = 30.0  # seconds that it has for its first one: a runtime may have much to load
TIMEOUT = 10.0  # seconds that a driver has for a reply (driver.md, The conversation)
_LONGEST_REPLY = 8 << 20  # a driver that never ends its line is not to fill the memory

Message = dict[str, Any]


class DriverFault(Exception):
    """The driver broke the conversation: it hung, died, or wrote what is no reply."""


class DriverHung(DriverFault):
    """It did not answer in time."""


class Unsupported(Exception):
    """The driver does not know the op."""


class Driver:
    """One process of the implementation under test."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        umask: int = -1,
        timeout: float = TIMEOUT,
    ) -> None:
        self.timeout = timeout
        self.log: list[tuple[Message, Message | str]] = []
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=None if env is None else dict(env),
            cwd=cwd,
            umask=umask,
            start_new_session=True,  # so that close() ends its children too
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in = self._process.stdin.fileno()
        self._out = self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        self._pending = b""
        self.hello: Message = {}

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def request(self, message: Message, timeout: float | None = None) -> Message:
        """One exchange. Raises DriverFault, after which the driver is of no more use."""
        limit = self.timeout if timeout is None else timeout
        try:
            line = self._exchange(json.dumps(message).encode() + b"\n", time.monotonic() + limit)
            reply = json.loads(line)
            if not isinstance(reply, dict):
                raise ValueError("not an object")
        except TimeoutError:
            raise DriverHung(self._fault(message, f"no reply within {limit:g} seconds")) from None
        except (BrokenPipeError, EOFError):
            raise self._fault(message, f"the driver ended ({self._ending()})") from None
        except ValueError as error:
            raise self._fault(message, f"no reply in JSON: {error}: {line[:200]!r}") from None
        self.log.append((message, reply))
        if "unsupported" in reply:
            raise Unsupported(f"the driver has no op {message['op']}")
        return reply

    def close(self) -> None:
        """Ends the driver and every process of its session that is still in its group."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass
        if self.alive:
            try:
                self._process.wait(0.2)  # end of file is the polite way
            except subprocess.TimeoutExpired:
                pass
        self._kill_group()
        self._process.wait()
        self._stderr.close()

    def kill(self) -> None:
        """SIGKILL, as a host would do it: nothing is tidied up."""
        self._kill_group()
        self._process.wait()

    def stderr_tail(self) -> str:
        if self._stderr.closed:
            return ""
        size = os.fstat(self._stderr.fileno()).st_size
        tail = os.pread(self._stderr.fileno(), 2000, max(0, size - 2000))
        return tail.decode("utf-8", "replace")

    # ------------------------------------------------------------------------------------------

    def _kill_group(self) -> None:
        try:
            os.killpg(self._process.pid, 9)  # its own group, by start_new_session
        except ProcessLookupError:
            pass

    def _exchange(self, data: bytes, deadline: float) -> bytes:
        with selectors.DefaultSelector() as selector:
            selector.register(self._out, selectors.EVENT_READ)
            if data:
                selector.register(self._in, selectors.EVENT_WRITE)
            while b"\n" not in self._pending:
                left = deadline - time.monotonic()
                if left <= 0 or not (ready := selector.select(left)):
                    raise TimeoutError
                for key, _ in ready:
                    if key.fd == self._in:
                        data = data[os.write(self._in, data[:65536]) :]
                        if not data:
                            selector.unregister(self._in)
                    else:
                        self._receive()
        line, self._pending = self._pending.split(b"\n", 1)
        return line

    def _receive(self) -> None:
        chunk = os.read(self._out, 65536)
        if not chunk:
            raise EOFError
        self._pending += chunk
        if len(self._pending) > _LONGEST_REPLY:
            raise EOFError

    def _ending(self) -> str:
        try:
            status = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "it closed its standard output"
        return f"by signal {-status}" if status < 0 else f"exit status {status}"

    def _fault(self, message: Message, why: str) -> DriverFault:
        self.log.append((message, why))
        self._kill_group()
        if tail := self.stderr_tail().strip():
            why = f"{why}; standard error: {tail[-600:]}"
        return DriverFault(why)
