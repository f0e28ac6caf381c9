"""A timer server and client of one's own, over a Unix datagram socket.

The server decides what reaping means: here, it terminates the worker.  Run it to see both ends:
``python unix_socket_timer.py`` starts a worker that hangs and prints how it ended.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

import filetimer as timer


class SocketQueue(timer.RequestQueue):
    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)

    def size(self) -> int:
        return 1  # datagrams cannot be counted; get() takes at least one

    def get(self, size: int, timeout: float) -> list[timer.TimerRequest]:
        self.socket.settimeout(timeout)
        try:
            return [timer.TimerRequest(*json.loads(self.socket.recv(65536)))]
        except TimeoutError:
            return []


class SocketTimerServer(timer.TimerServer):
    def __init__(self, path: str, max_interval: float = 0.1) -> None:
        super().__init__(SocketQueue(path), max_interval)
        self.timers: dict[tuple[int, str], timer.TimerRequest] = {}

    def register_timers(self, timer_requests: list[timer.TimerRequest]) -> None:
        for request in timer_requests:
            self.timers[request.worker_id, request.scope_id] = request
        self.timers = {k: r for k, r in self.timers.items() if r.expiration_time >= 0}

    def clear_timers(self, worker_ids: set[int]) -> None:
        self.timers = {k: r for k, r in self.timers.items() if k[0] not in worker_ids}

    def get_expired_timers(self, deadline: float) -> dict[int, list[timer.TimerRequest]]:
        expired: dict[int, list[timer.TimerRequest]] = {}
        for (worker_id, _), request in self.timers.items():
            if request.expiration_time <= deadline:
                expired.setdefault(worker_id, []).append(request)
        return expired

    def _reap_worker(self, worker_id: int) -> bool:
        os.kill(worker_id, signal.SIGTERM)
        return True


class SocketTimerClient(timer.TimerClient):
    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.connect(path)

    def acquire(self, scope_id: str, expiration_time: float) -> None:
        self.socket.send(json.dumps([os.getpid(), scope_id, expiration_time]).encode())

    def release(self, scope_id: str) -> None:
        self.acquire(scope_id, -1)


def worker(path: str) -> None:
    timer.configure(SocketTimerClient(path))
    with timer.expires(after=60, scope="quick"):
        pass
    with timer.expires(after=0.5, scope="stuck"):
        time.sleep(600)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "timers.sock")
        server = SocketTimerServer(path)
        server.start()
        process = subprocess.Popen([sys.executable, __file__, path])
        print("the worker ended with", process.wait())
        server.stop()


if __name__ == "__main__":
    worker(sys.argv[1]) if len(sys.argv) > 1 else main()
