"""Workers that need no torch.  usage: plain.py MODE DIRECTORY [ARGUMENT ...]

Each mode is a function below.  The attempt is torchrun's TORCHELASTIC_RESTART_COUNT.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path

import filetimer

RANK = int(os.environ["RANK"])
WORLD = int(os.environ["WORLD_SIZE"])
ATTEMPT = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
TIMER_FILE = os.environ.get("TORCHELASTIC_TIMER_FILE", "")


def stuck() -> None:
    """Never returns, and holds the interpreter's lock all the while."""
    ctypes.PyDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)


def always(directory: Path) -> None:
    """Rank 1 hangs in every attempt; the others wait for it."""
    with filetimer.expires(60 if RANK != 1 else 0.3, scope="exchange of gradients"):
        stuck() if RANK == 1 else time.sleep(60)


def in_turn(directory: Path, hangs: str) -> None:
    """In attempt n, rank n modulo the world's size hangs in a scope of its own."""
    counted = directory / f"census-{ATTEMPT}.json"
    if RANK == 0:
        write(counted, census(os.getppid()))
    while not counted.exists():
        time.sleep(0.01)
    if int(hangs) == ATTEMPT:
        return
    if ATTEMPT % WORLD == RANK:
        version = 1 + ATTEMPT // WORLD % 2
        filetimer.configure(filetimer.FileTimerClient(TIMER_FILE, version=version))
        with filetimer.expires(0.1, scope=f"scope {ATTEMPT}"):
            stuck()
    with filetimer.expires(60):
        time.sleep(60)


def leave_armed(directory: Path) -> None:
    """Rank 0 exits well with its timer armed; rank 1 goes on past that deadline."""
    if RANK == 0:
        client = filetimer.FileTimerClient(TIMER_FILE)
        client.acquire("left behind", time.time() + 1.0)
        os._exit(0)
    with filetimer.expires(30):
        time.sleep(2.5)


def during_shutdown(directory: Path, seconds: str) -> None:
    """Rank 0 fails; rank 1 is deaf to SIGTERM, and stuck until its timer expires."""
    if RANK == 0:
        while not (directory / "armed").exists():
            time.sleep(0.01)
        sys.exit(3)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with filetimer.expires(float(seconds), scope="stuck at the end"):
        (directory / "armed").touch()
        stuck()


def terminated(directory: Path, seconds: str) -> None:
    """All are stuck, in timers that expire about when the agent is terminated."""
    with filetimer.expires(float(seconds) + 0.05 * RANK, scope="stuck when told to end"):
        (directory / f"armed-{RANK}").touch()
        time.sleep(60)


def mixed(directory: Path) -> None:
    """Several kinds of client; in attempt n, the one of rank n hangs."""
    guard = (guard_2, guard_1, guard_torch, guard_plain, guard_native)[RANK]
    for _ in range(3):
        guard(60, lambda: None)
    if ATTEMPT == RANK:
        guard(0.5, stuck)
    if ATTEMPT < WORLD:
        guard(60, lambda: time.sleep(60))


def guard_2(after: float, body) -> None:
    filetimer.configure_from_env()
    with filetimer.expires(after, scope="our version 2"):
        body()


def guard_1(after: float, body) -> None:
    with filetimer.expires(
        after, "our version 1", filetimer.FileTimerClient(TIMER_FILE, version=1)
    ):
        body()


def guard_torch(after: float, body) -> None:
    from torch.distributed.elastic import timer

    timer.configure(timer.FileTimerClient(TIMER_FILE))
    with timer.expires(after, scope="torch's own"):
        body()


def guard_plain(after: float, body) -> None:
    """A client in the shape of torch's, under torch's ``expires``."""
    from torch.distributed.elastic import timer

    with timer.expires(after, "ours in torch's expires", filetimer.FileTimerClient(TIMER_FILE)):
        body()


def guard_native(after: float, body) -> None:
    """C++ code with our header: it guards the block itself, and gets stuck itself."""
    native = ctypes.PyDLL(os.environ["TEST_NATIVE"])
    native.guarded_block.argtypes = [ctypes.c_double, ctypes.c_int]
    if body is stuck:
        native.guarded_block(after, 1)
    else:
        native.guarded_block(after, 0)
        body()


def once(directory: Path) -> None:
    """Rank 0 hangs in attempt 0; afterwards all end well and say so, on both streams."""
    if ATTEMPT == 0:
        with filetimer.expires(0.3 if RANK == 0 else 60, scope="once"):
            stuck() if RANK == 0 else time.sleep(60)
    print(f"rank {RANK} of attempt {ATTEMPT} done")
    print(f"rank {RANK} complains", file=sys.stderr)


def once_after_a_while(directory: Path) -> None:
    """As ``once``, but nothing happens for three seconds before the hang."""
    if ATTEMPT == 0:
        time.sleep(3)
    once(directory)


def unguarded(directory: Path) -> None:
    """Says what the worker was given."""
    client = filetimer.configure_from_env()
    loaded = [name for name in ("torch", "filetimer.torchelastic") if name in sys.modules]
    print(f"client {type(client).__name__}, loaded {loaded}, timer file {TIMER_FILE or 'none'}")


def cheap(directory: Path) -> None:
    """The agent's hook in a worker: loaded with torch's rendezvous package, and without effect."""
    import torch.distributed.elastic.rendezvous
    import torch.distributed.elastic.timer as timer

    handlers = torch.distributed.elastic.rendezvous.rendezvous_handler_registry
    server = "filetimer.torchelastic" in sys.modules or "filetimer.server" in sys.modules
    print(f"server side loaded: {server}, hook called: {'filetimer' in handlers._registry}")
    print(f"class of torch: {timer.FileTimerServer.__module__}")


def census(pid: int) -> dict[str, int]:
    """The least number of descriptors and threads of the agent, over a moment."""
    samples = []
    for _ in range(8):
        samples.append([len(os.listdir(f"/proc/{pid}/{what}")) for what in ("fd", "task")])
        time.sleep(0.02)
    fds, threads = map(min, zip(*samples, strict=True))
    return {"fds": fds, "threads": threads}


def write(path: Path, value: object) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(value))
    temporary.rename(path)


if __name__ == "__main__":
    filetimer.configure_from_env()
    globals()[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
