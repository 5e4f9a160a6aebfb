"""Peers that a broker should not trust: any message, any frame, any byte; and a broker to try."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import random
import re
import socket
import struct
import subprocess
import sys
import time
import types
import typing
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import psutil
import zmq

from nbtasks.client.client import Client, new_id
from nbtasks.core import messages
from nbtasks.core.messages import Call, Define, Hello, Policy, Refused, ToBroker
from nbtasks.wire import locks, sockets
from nbtasks.wire.connection import (
    SUPERVISOR_LOCK,
    Settings,
    prepare_directory,
    read_connection,
    write_settings,
)
from nbtasks.wire.frames import pack, unpack_from_broker
from tests.living import eventually

DIGEST = b"d" * 16
DEFINE = (Define(DIGEST, "f", Policy(), b"function"), ())
PYTHON = platform.python_version()

#: All that may be said to a broker.
KINDS: tuple[type, ...] = typing.get_args(ToBroker)

_START = "import sys; from nbtasks.broker.__main__ import main; sys.exit(main(sys.argv[1]))"


def a_call(body: bytes = b"x", **fields: Any) -> Call:
    return Call(fields.pop("id", None) or new_id(), DIGEST, "f", body, **fields)


# ---------------------------------------------------------------------------------- the broker


class Broker:
    """A broker without supervisor and workers: whoever speaks to it is of the test."""

    def __init__(self, runtime: Path, transport: str = "ipc", before: str = "") -> None:
        self.runtime = prepare_directory(runtime)
        write_settings(runtime, Settings(data=str(runtime), workers=0, transport=transport))
        self.before = before
        lock = locks.acquire(runtime / SUPERVISOR_LOCK)  # as its supervisor would hold it
        assert lock is not None
        self._lock = lock
        self.start()

    def start(self) -> None:
        former = read_connection(self.runtime)
        closed = partial(os.open, mode=0o600)  # as its supervisor would have it
        with open(self.runtime / "broker.log", "ab", opener=closed) as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", self.before + _START, str(self.runtime)],
                stdin=subprocess.PIPE,
                stderr=log,
            )
        eventually(lambda: read_connection(self.runtime) not in (None, former))

    @property
    def instance(self) -> bytes:
        connection = read_connection(self.runtime)
        assert connection is not None
        return bytes.fromhex(connection.instance)

    @property
    def endpoint(self) -> str:
        connection = read_connection(self.runtime)
        assert connection is not None
        return connection.endpoint

    def lives(self) -> bool:
        return self.process.poll() is None

    def log(self) -> str:
        return (self.runtime / "broker.log").read_text()

    def peak(self) -> int:
        """Return the most memory that it ever had resident, bytes."""
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            found = re.search(r"VmHWM:\s*(\d+) kB", status)
            assert found is not None
            return int(found[1]) * 1024
        return int(psutil.Process(self.process.pid).memory_info().rss)  # the best that is known

    def descriptors(self) -> int:
        return int(psutil.Process(self.process.pid).num_fds())

    def kill(self) -> None:
        self.process.kill()
        self._end()

    def stop(self) -> None:
        """End it as its supervisor would, so that it can be started again."""
        self.process.terminate()
        self._end()

    def close(self) -> None:
        self.stop()
        os.close(self._lock)

    def _end(self) -> None:
        self.process.wait(10)
        assert self.process.stdin is not None
        self.process.stdin.close()


@contextlib.contextmanager
def serving(runtime: Path, **options: Any) -> Iterator[Broker]:
    broker = Broker(runtime, **options)
    try:
        yield broker
    finally:
        broker.close()


class Innocent:
    """A client like any other, that wants its calls accepted whatever others do."""

    def __init__(self, broker: Broker) -> None:
        self._client = Client(broker.runtime)
        self.sent: list[str] = []
        #: Seconds that its slowest call took to be accepted.
        self.slowest = 0.0

    def __enter__(self) -> Innocent:
        self.work()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def work(self) -> None:
        began = time.monotonic()
        self.sent.append(self._client.submit(a_call(), (), DEFINE, confirm=True).id)
        self.slowest = max(self.slowest, time.monotonic() - began)

    def missing(self) -> int:
        """Return how many of its accepted calls the broker does not know as they were sent."""
        shown = (self._client.ask("show", id=task_id) for task_id in self.sent)
        return sum(task is None or task["body"] != b"x" for task in shown)

    def ask(self, what: str, **args: Any) -> Any:
        return self._client.ask(what, **args)


# ----------------------------------------------------------------------- peers that speak ZeroMQ


class Peer:
    """A bare socket that says what no program of ours would."""

    def __init__(self, broker: Broker, name: bytes = b"", **keys: bytes) -> None:
        self.broker = broker
        self.instance = b""
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.ROUTING_ID, name or sockets.identity("x"))
        for option, key in keys.items():
            setattr(self.socket, option, key)
        self._monitor = self.socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self.socket.connect(broker.endpoint)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.disable_monitor()
        self._monitor.close(0)
        self.socket.close(0)
        self._context.term()

    def gets_in(self, within: float = 1.0) -> bool:
        """Return whether the broker lets it connect."""
        return bool(self._monitor.poll(within * 1000))

    def send(self, *frames: Any) -> None:
        self.socket.send_multipart(frames)

    def say(self, *said: Any, buffers: tuple[bytes, ...] = ()) -> None:
        self.send(*pack(self.instance, said, buffers))

    def hear(self, seconds: float = 10.0) -> list[Any]:
        """Return the messages of the next batch; none when there is none in time."""
        if not self.socket.poll(seconds * 1000):
            return []
        self.instance, heard, _ = unpack_from_broker(self.socket.recv_multipart())
        return heard

    def hear_all(self, kind: type, seconds: float = 10.0) -> Any:
        """Return the next message of a kind."""
        while heard := self.hear(seconds):
            for message in heard:
                if isinstance(message, kind):
                    return message
        raise AssertionError(f"no {kind.__name__} has come")

    def introduce(self, role: str, name: str = "", **fields: Any) -> Peer:
        """Say Hello and wait for the welcome."""
        hello = Hello(typing.cast(Any, role), name or role, os.getpid(), PYTHON, **fields)
        self.send(*pack(b"", [hello]))
        heard = self.hear()
        assert heard, "no answer"
        assert not isinstance(heard[0], Refused), heard[0]
        return self


# ------------------------------------------------------------------------ peers that speak bytes

#: ZMTP 3.1, mechanism NULL, not a server.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)


def ready(name: bytes = b"") -> bytes:
    """Return the command that ends the handshake of NULL."""
    facts = ((b"Socket-Type", b"DEALER"), (b"Identity", name))
    body = b"\x05READY" + b"".join(
        bytes([len(key)]) + key + struct.pack(">I", len(value)) + value for key, value in facts
    )
    return b"\x04" + bytes([len(body)]) + body


def claim(length: int, flags: int = 0) -> bytes:
    """Return the head of a frame that claims to be so long."""
    return bytes([flags | 2]) + struct.pack(">Q", length)


def raw(broker: Broker) -> socket.socket:
    """Return a connection on which nothing has been said."""
    if broker.endpoint.startswith("tcp://"):
        host, _, port = broker.endpoint[6:].rpartition(":")
        return socket.create_connection((host, int(port)), timeout=10)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    # Where many wait to be let in, one is told to come again.
    path = broker.endpoint.removeprefix("ipc://")
    eventually(lambda: connection.connect_ex(path) == 0)
    return connection


def is_dropped(connection: socket.socket) -> bool:
    """Return whether the other side has closed the connection; never waits."""
    connection.setblocking(False)
    try:
        while connection.recv(65_536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


# ------------------------------------------------------------------------------- any message

#: Makes a value of a plain type for a field of that name.
Leaf = Callable[[type, str], Any]


def build(kind: type, leaf: Leaf) -> Any:
    """Return a message of this kind, its fields as `leaf` makes them.

    What the message itself forbids is tried again.
    """
    hints = _hints(kind)
    while True:
        with contextlib.suppress(ValueError):
            names = kind.__struct_fields__  # type: ignore[attr-defined]
            return kind(**{name: _value(hints[name], name, leaf) for name in names})


_hints = functools.cache(typing.get_type_hints)


def _value(hint: Any, name: str, leaf: Leaf) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _value(inner[leaf(int, "which of several types") % len(inner)], name, leaf)
    if origin is tuple:
        return tuple(_value(inner[0], name, leaf) for _ in range(leaf(int, "length") % 4))
    if origin is typing.Literal:
        return inner[leaf(int, "which of several words") % len(inner)]
    if origin is dict:
        return leaf(dict, name)
    if hint is type(None):
        return None
    return build(hint, leaf) if issubclass(hint, msgspec.Struct) else leaf(hint, name)


def nonsense(rng: random.Random, tickets: list[int]) -> Leaf:
    """Return a leaf that makes what is possible, and seldom what is sensible."""
    words = {
        **dict.fromkeys(("id", "ids", "needs", "root", "parent"), ("", "1", "2", "3", "\0", "é")),
        **dict.fromkeys(("name", "workers"), ("w1", "w2", "f")),
        "what": ("status", "list", "show", "purge", "outlook", "put", "peek", "take"),
        "state": ("SUCCESS", "FAILURE", "REVOKED", "IGNORED", "REQUEUE", "RETRY", "", "PROGRESS"),
        "signal": ("SIGTERM", "SIGKILL", "SIGNOTHING"),
        "python": (PYTHON, PYTHON, PYTHON, "", "2.7"),
        "queue": ("default", "q"),
    }
    texts = ("", "a", "\0", "z" * 2_000)
    numbers = (0, 1, 2, 3, 5, 2**20, 2**31, 2**53)
    values = (None, True, -1, 2**63, 1.5, "x", b"\0", [], [1], {}, {"a": [{}]})

    def leaf(kind: type, name: str) -> Any:
        if kind is int and tickets and name in ("ticket", "tickets", "started", "finished"):
            return rng.choice(tickets[-4:])
        if kind is int:
            small = {"frames": (0,), "priority": (0, 5, 9), "pid": (1, os.getpid())}
            return rng.choice(small.get(name, numbers))
        if kind is str:
            return rng.choice(words.get(name, texts))
        if kind is bytes:
            return rng.choice((DIGEST, DIGEST, b"e" * 16, *(() if "dig" in name else (b"",))))
        if kind is float:
            return rng.choice((0.0, 1.0, -1.0, 1e12, -1e12, 1e-9))
        if kind is dict:
            if name != "args":
                return {}
            keys = ("id", "ids", "limit", "key", "value", "state", "parents", "self", "instant")
            return {rng.choice(keys): rng.choice(values) for _ in range(rng.randrange(3))}
        assert kind is bool
        return rng.random() < 0.5

    return leaf


assert set(KINDS) == {messages.Hello}.union(*messages.WORDS.values())
