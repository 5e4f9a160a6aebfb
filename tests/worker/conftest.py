"""A real worker process, and a broker that is nothing but a socket in the hands of the test."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import zmq

from nbtasks.client.task import task as make_task
from nbtasks.core.messages import (
    Call,
    Define,
    Done,
    Fetch,
    Hello,
    Noted,
    Options,
    Policy,
    Run,
    Welcome,
    take,
)
from nbtasks.wire import payloads, segments, sockets
from nbtasks.wire.connection import Settings, write_settings
from nbtasks.wire.frames import Buffer, pack, unpack_to_broker

Message = TypeVar("Message")

#: Seconds after which a test gives up waiting; none waits so long when all is well.
PATIENCE = 20.0
#: The worker's program, as `python -m nbtasks.worker` runs it.
MAIN = """
import sys
from nbtasks.worker.__main__ import main
sys.exit(main(*sys.argv[1:]))
"""


def task(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a task of a function as if it had been written in a notebook: it travels by value."""
    if function is None:
        return lambda function: task(function, **options)
    function.__module__ = "__main__"
    return make_task(**options)(function)


class FakeBroker:
    """A broker that says what the test wants it to say.

    Definitions are given out when they are fetched; everything else is up to the test.
    """

    def __init__(self, runtime: Path, instance: bytes = b"broker-1") -> None:
        self.instance = instance
        segments.of_cluster(runtime)  # this process is told where large values are found
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = sockets.bind(self._context, runtime).socket
        self._peer = b""
        self._calls = 0
        self._ticket = 0
        self._heard: deque[Any] = deque()
        self._definitions: dict[bytes, tuple[Define, Sequence[Buffer]]] = {}
        #: Messages that had payload frames, with these.
        self._payloads: list[tuple[Any, tuple[Buffer, ...]]] = []

    def __enter__(self) -> FakeBroker:
        return self

    def __exit__(self, *_: Any) -> None:
        self._context.destroy(linger=0)

    # ----------------------------------------------------------------------------- listening

    def next(self, kind: type[Message], patience: float = PATIENCE) -> Message:
        """Return the next message of a kind; others stay where they are."""
        end = time.monotonic() + patience
        while True:
            for message in self._heard:
                if isinstance(message, kind):
                    self._heard.remove(message)
                    return message
            left = end - time.monotonic()
            if left <= 0 or not self._socket.poll(left * 1000):
                raise AssertionError(f"no {kind.__name__} came; heard: {list(self._heard)}")
            self._listen()

    def heard(self, kind: type[Message]) -> list[Message]:
        """Return what has come of a kind and was not asked for yet."""
        while self._socket.poll(0):
            self._listen()
        return [message for message in self._heard if isinstance(message, kind)]

    def forget(self) -> None:
        """Forget what has come and was not asked for."""
        while self._socket.poll(0):
            self._listen()
        self._heard.clear()

    def appear(self, path: Path) -> None:
        """Wait until a task has made a file."""
        end = time.monotonic() + PATIENCE
        while not path.exists():
            assert time.monotonic() < end, f"{path} never appeared"
            if self._socket.poll(2):
                self._listen()

    def _listen(self) -> None:
        self._peer, *parts = self._socket.recv_multipart()
        _, messages, buffers = unpack_to_broker(parts)
        frames = iter(buffers)
        for message in messages:
            payload = take(frames, message.frames)
            if payload:
                self._payloads.append((message, payload))
            if isinstance(message, Fetch) and message.digest in self._definitions:
                define, pieces = self._definitions[message.digest]
                self.say(define, buffers=pieces)
            else:
                self._heard.append(message)

    # ------------------------------------------------------------------------------ speaking

    def say(self, *messages: Any, buffers: Sequence[Buffer] = ()) -> None:
        self._socket.send_multipart([self._peer, *pack(self.instance, messages, buffers)])

    def welcome(self) -> Hello:
        """Answer the Hello of a worker, and return it."""
        hello = self.next(Hello)
        self.say(Welcome(self.instance, "store"))
        return hello

    def know(self, task: Any, **policy: Any) -> bytes:
        """Hold the definition of a task; return its digest."""
        pickled = payloads.pickle_task(task)
        body, buffers = payloads.pack_definition(task.name, pickled, [], {}, [])
        digest = payloads.digest([body, *buffers])
        define = Define(digest, task.name, Policy(**policy), body, len(buffers))
        self._definitions[digest] = (define, buffers)
        return digest

    def call(self, task: Any, *args: Any, **kwargs: Any) -> Call:
        body, buffers = payloads.dumps_arguments(args, kwargs)
        assert not buffers
        self._calls += 1
        return Call(f"id-{self._calls}", self.know(task), task.name, body)

    def run(self, *calls: Call, redelivered: bool = False) -> list[int]:
        """Hand calls to the worker, in one message; return their tickets."""
        runs = []
        for call in calls:
            self._ticket += 1
            runs.append(Run(self._ticket, call, redelivered))
        self.say(*runs)
        return [run.ticket for run in runs]

    def submit(self, task: Any, *args: Any, **kwargs: Any) -> int:
        """Hand one call to the worker; return its ticket."""
        return self.run(self.call(task, *args, **kwargs))[0]

    def done(self, patience: float = PATIENCE) -> Done:
        """Return the next Done, and confirm it."""
        done = self.next(Done, patience)
        self.say(Noted(done.ticket))
        return done

    def value(self, message: Any) -> Any:
        """Return what a message carries."""
        for owner, payload in self._payloads:
            if owner is message:
                return payloads.loads(message.body, payload)
        return payloads.loads(message.body)


def change(call: Call, **fields: Any) -> Call:
    """Return the call with other fields; `options` may be given as a dict."""
    if isinstance(fields.get("options"), dict):
        fields["options"] = Options(**fields["options"])
    return Call(**({name: getattr(call, name) for name in Call.__struct_fields__} | fields))


class WorkerProcess:
    """A worker, started by command line; its lifeline is in our hands.

    `change` is a line of Python that bends something in it first.
    """

    def __init__(
        self, runtime: Path, name: str = "worker-test", *queues: str, change: str = "pass"
    ) -> None:
        self.runtime, self.name = runtime, name
        self.log = runtime / "worker.log"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"{change}\n{MAIN}", str(runtime), name, *queues],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "NBTASKS_PARENT": str(os.getpid())},
            )
        self.pid = self._process.pid

    def wait(self, patience: float = PATIENCE) -> int:
        """Return the exit code."""
        return self._process.wait(patience)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def cut_lifeline(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def end(self) -> None:
        self.cut_lifeline()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(PATIENCE)


@pytest.fixture
def runtime(short_path: Path) -> Path:
    write_settings(short_path, Settings(data=str(short_path), workers=1))
    return short_path


@pytest.fixture
def broker(runtime: Path) -> Iterator[FakeBroker]:
    with FakeBroker(runtime) as broker:
        yield broker


@pytest.fixture
def start_worker(runtime: Path) -> Iterator[Callable[..., WorkerProcess]]:
    started: list[WorkerProcess] = []

    def start(*queues: str, **more: str) -> WorkerProcess:
        started.append(WorkerProcess(runtime, "worker-test", *queues, **more))
        return started[-1]

    yield start

    for worker in started:
        worker.end()


@pytest.fixture
def worker(broker: FakeBroker, start_worker: Callable[..., WorkerProcess]) -> WorkerProcess:
    """A worker that the broker has welcomed."""
    worker = start_worker()
    broker.welcome()
    return worker
