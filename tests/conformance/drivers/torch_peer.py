"""PyTorch's FileTimerClient and FileTimerServer as live peers, in version 1.

What they fail is listed, with the reasons, in protocol/torch-2.13.md. The server runs in a child:
it ends its own process after a kill, and that is not to be the end of the driver.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time

import torch
from torch.distributed.elastic.timer import FileTimerClient, FileTimerServer, expires

HELLO = {
    "name": f"torch {torch.__version__.split('+')[0]}",
    "language": "Python",
    "versions": [1],
    "roles": ["client", "server"],
    "skips": {
        "S-14": "its server cannot be asked to escalate",
        "events": "its server counts no rejected lines",
    },
}

client = None
guards = {}
server = None  # (pid, the descriptor whose end of file stops it)


def serve(path, parent, ready):
    """The child: serves until the parent closes its end."""
    peer = FileTimerServer(path, "conformance", max_interval=0.1)
    peer.start()
    os.write(ready, b".")
    os.read(parent, 1)
    threading.Timer(5, os._exit, [1]).start()  # its stop may wait for a client for ever
    peer.stop()
    os._exit(0)


def start(path):
    global server
    from_parent, to_child = os.pipe()
    from_child, to_parent = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(to_child)
        os.close(from_child)
        serve(path, from_parent, to_parent)
    os.close(from_parent)
    os.close(to_parent)
    os.read(from_child, 1)
    os.close(from_child)
    server = pid, to_child
    return {"ok": True, "pid": pid}


def stop():
    pid, to_child = server
    os.close(to_child)
    os.waitpid(pid, 0)
    return {"ok": True}


def fork(requests):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, json.dumps([answer(request) for request in requests]).encode())
        os._exit(0)
    os.close(write)
    with open(read) as replies:
        told = json.load(replies)
    os.waitpid(pid, 0)
    return {"ok": True, "pid": pid, "replies": told}


def thread(requests):
    replies = []
    worker = threading.Thread(target=lambda: replies.extend(map(answer, requests)))
    worker.start()
    worker.join()
    return {"ok": True, "replies": replies}


def handler(requests):
    replies = []
    signal.signal(signal.SIGUSR1, lambda *_: replies.extend(map(answer, requests)))
    signal.raise_signal(signal.SIGUSR1)
    return {"ok": True, "replies": replies}


def enter(guard, scope, after):
    guards[guard] = expires(after, scope, client)
    guards[guard].__enter__()
    return {"ok": True}


def leave(guard):
    guards[guard].__exit__(None, None, None)
    return {"ok": True}


def open_client(path):
    global client
    if path is None:
        return {"error": "FileTimerClient needs a path"}
    client = FileTimerClient(path)
    return {"ok": True}


def acquire(scope, after, number):
    client.signal = number
    client.acquire(scope, time.time() + after)
    return {"ok": True}


def release(scope):
    client.release(scope)
    return {"ok": True}


OPS = {
    "hello": lambda request: {**HELLO, "pid": os.getpid()},
    "noop": lambda request: {"ok": True},
    "open": lambda request: open_client(request.get("path")),
    "acquire": lambda request: acquire(request["scope_id"], request["after"], request["signal"]),
    "release": lambda request: release(request["scope_id"]),
    "enter": lambda request: enter(request["guard"], request["scope_id"], request["after"]),
    "leave": lambda request: leave(request["guard"]),
    "fork": lambda request: fork(request["do"]),
    "thread": lambda request: thread(request["do"]),
    "handler": lambda request: handler(request["do"]),
    "close_fd": lambda request: os.close(request["fd"]) or {"ok": True},
    "start": lambda request: start(request["path"]),
    "stop": lambda request: stop(),
}


def answer(request):
    if request["op"] not in OPS:
        return {"unsupported": request["op"]}
    try:
        return OPS[request["op"]](request)
    except (OSError, RuntimeError, ValueError, AttributeError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main():
    logging.disable()  # ten tracebacks for every server that is gone
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
