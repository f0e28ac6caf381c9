"""Data-parallel training on real data, in which one worker hangs.  Run it under filetimer:

    filetimer run --workers 2 --max-restarts 1 -- python python/examples/train_digits.py

Two processes train a small network on scikit-learn's handwritten digits and average their
gradients after every step.  On the first attempt rank 1 hangs in the middle of a step: in native
code that holds the GIL, as a deadlocked CUDA or NCCL call may, so that no Python thread, no signal
handler and no timeout in that process will ever run again.  Its timer expires, it is reaped, the
group restarts from the last checkpoint and finishes.

Without a timer server the same job hangs for good (`timeout` ends it after 20 s, status 124):

    (export WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29517 CHECKPOINT_DIR=$(mktemp -d)
     RANK=0 timeout 20 python python/examples/train_digits.py & \\
     RANK=1 timeout 20 python python/examples/train_digits.py; wait)

Three lines make it reapable: `filetimer.configure_from_env()` and two `with filetimer.expires`.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import filetimer

RANK, WORLD_SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
RESTARTS = int(os.environ.get("FILETIMER_RESTART_COUNT", "0"))

STEPS = int(os.environ.get("STEPS", "600"))
HANG_AT = STEPS * 7 // 12
CHECKPOINT_EVERY = max(1, STEPS // 6)
STEP_SECONDS = 2.0  # a step takes milliseconds; one that takes this long hangs
PEER_SECONDS = 10.0  # waiting for the others: longer, so that the one that hangs is reaped first

Arrays = list[np.ndarray]


def say(text: str) -> None:
    print(text, flush=True)


class Star:
    """Averages arrays over all ranks: rank 0 collects, adds up and sends back."""

    def __init__(self) -> None:
        address = os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", "0"))
        if RANK == 0:
            with socket.create_server(address) as listener:
                self.peers = [listener.accept()[0] for _ in range(WORLD_SIZE - 1)]
        else:
            self.peers = [connect(address)]
        for peer in self.peers:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def average(self, arrays: Arrays) -> Arrays:
        """The mean of every array over all ranks."""
        flat = np.concatenate([array.ravel() for array in arrays])
        if RANK == 0:
            flat = sum((receive(peer, flat) for peer in self.peers), flat) / WORLD_SIZE
        for peer in self.peers:
            peer.sendall(flat.tobytes())
        if RANK != 0:
            flat = receive(self.peers[0], flat)
        ends = np.cumsum([array.size for array in arrays])[:-1]
        parts = np.split(flat, ends)
        return [part.reshape(like.shape) for part, like in zip(parts, arrays, strict=True)]


def connect(address: tuple[str, int]) -> socket.socket:
    for _ in range(300):  # rank 0 may still be loading its data
        try:
            return socket.create_connection(address)
        except ConnectionRefusedError:
            time.sleep(0.1)
    raise TimeoutError(f"rank 0 did not turn up at {address}")


def receive(peer: socket.socket, like: np.ndarray) -> np.ndarray:
    buffer, received = bytearray(like.nbytes), 0
    while received < len(buffer):
        count = peer.recv_into(memoryview(buffer)[received:])
        if count == 0:
            raise ConnectionError("a peer is gone")
        received += count
    return np.frombuffer(buffer, like.dtype)


def gradients(weights: Arrays, x: np.ndarray, y: np.ndarray) -> tuple[float, Arrays]:
    """Loss and gradients of a network with one hidden layer."""
    w1, b1, w2, b2 = weights
    hidden = np.maximum(x @ w1 + b1, 0)
    probability = softmax(hidden @ w2 + b2)
    loss = -float(np.log(probability[np.arange(len(y)), y] + 1e-12).mean())
    error = probability
    error[np.arange(len(y)), y] -= 1
    error /= len(y)
    back = (error @ w2.T) * (hidden > 0)
    return loss, [x.T @ back, back.sum(0), hidden.T @ error, error.sum(0)]


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def accuracy(weights: Arrays, x: np.ndarray, y: np.ndarray) -> float:
    w1, b1, w2, b2 = weights
    return float(((np.maximum(x @ w1 + b1, 0) @ w2 + b2).argmax(axis=1) == y).mean())


def new_weights() -> Arrays:
    random = np.random.default_rng(0)
    return [
        random.normal(0, 0.15, (64, 32)),
        np.zeros(32),
        random.normal(0, 0.15, (32, 10)),
        np.zeros(10),
    ]


def checkpoint_path() -> Path:
    """In the directory of the timer pipe: it is the job's own, and goes when the job ends."""
    pipe = os.environ.get("FILETIMER_PATH")
    fallback = os.path.dirname(pipe) if pipe else tempfile.gettempdir()
    return Path(os.environ.get("CHECKPOINT_DIR", fallback)) / "digits.npz"


def load_checkpoint() -> tuple[int, Arrays]:
    try:
        with np.load(checkpoint_path()) as saved:
            weights = [saved[f"arr_{i}"] for i in range(4)]
            step = int(saved["step"])
    except FileNotFoundError:
        return 0, new_weights()
    say(f"continuing from the checkpoint of step {step}")
    return step, weights


def save_checkpoint(step: int, weights: Arrays) -> None:
    new = checkpoint_path().with_suffix(".new.npz")
    np.savez(new, *weights, step=step)
    new.replace(checkpoint_path())  # whole or not at all


def hang() -> None:
    """Wait in the C library for a byte that never comes, with the GIL held."""
    say("calling into native code, and never coming back")
    reader, _ = os.pipe()
    ctypes.PyDLL(None).read(reader, ctypes.create_string_buffer(1), 1)


def main() -> None:
    filetimer.configure_from_env()
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x / 16, y, random_state=0)
    x_mine, y_mine = x_train[RANK::WORLD_SIZE], y_train[RANK::WORLD_SIZE]
    peers = Star()
    start, weights = load_checkpoint()
    for step in range(start, STEPS):
        batch = np.random.default_rng((step, RANK)).integers(0, len(y_mine), 64)

        with filetimer.expires(after=STEP_SECONDS, scope="compute gradients"):
            loss, own = gradients(weights, x_mine[batch], y_mine[batch])
            if RANK == 1 and RESTARTS == 0 and step == HANG_AT:
                hang()

        with filetimer.expires(after=PEER_SECONDS, scope="average gradients"):
            mean = peers.average(own)

        weights = [weight - 0.3 * gradient for weight, gradient in zip(weights, mean, strict=True)]
        if RANK == 0 and (step + 1) % CHECKPOINT_EVERY == 0:
            save_checkpoint(step + 1, weights)
            say(f"step {step + 1} of {STEPS}, loss {loss:.3f}, checkpoint saved")
    if RANK == 0:
        say(f"finished: accuracy {accuracy(weights, x_test, y_test):.1%} on {len(y_test)} digits")


if __name__ == "__main__":
    try:
        main()
    except ConnectionError as error:
        sys.exit(f"leaving the job: {error}")
