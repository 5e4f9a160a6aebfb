"""The limit: bare pyzmq, one message a task through a ROUTER, no store, no errors, no names."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from typing import Any

import drivers
import zmq


class Driver(drivers.Driver):
    name = "raw pyzmq relay"
    requirements = ("pyzmq",)

    def start(self) -> None:
        ends = [f"ipc://{self.folder}/{name}" for name in ("front", "back")]
        command = (sys.executable, "-m", "drivers.relay")
        self.processes = [drivers.spawn(*command, "relay", *ends)]
        self.processes += [drivers.spawn(*command, "work", ends[1]) for _ in range(drivers.WORKERS)]
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.set_hwm(0)
        self.socket.connect(ends[0])
        self.sent = 0
        self.answers: dict[int, Any] = {}

    def stop(self) -> None:
        self.socket.close(0)
        drivers.end(*self.processes)

    def send(self, work: Callable[..., Any], *args: Any) -> Any:
        self.sent += 1
        self.socket.send(pickle.dumps((self.sent, work, args)))
        return self.sent

    def fetch(self, sent: Any) -> Any:
        while sent not in self.answers:
            number, value = pickle.loads(self.socket.recv())
            self.answers[number] = value
        return self.answers.pop(sent)


def relay(front: str, back: str) -> None:
    """Hand calls to the workers in turn, and answers back; there is one client only."""
    context = zmq.Context()
    clients, workers = context.socket(zmq.DEALER), context.socket(zmq.DEALER)
    for socket, end in ((clients, front), (workers, back)):
        socket.set_hwm(0)
        socket.bind(end)
    poller = zmq.Poller()
    poller.register(clients, zmq.POLLIN)
    poller.register(workers, zmq.POLLIN)
    while True:
        for socket, _ in poller.poll():
            (workers if socket is clients else clients).send(socket.recv())


def work(back: str) -> None:
    socket = zmq.Context().socket(zmq.DEALER)
    socket.set_hwm(0)
    socket.connect(back)
    while True:
        number, function, args = pickle.loads(socket.recv())
        socket.send(pickle.dumps((number, function(*args))))


if __name__ == "__main__":
    {"relay": relay, "work": work}[sys.argv[1]](*sys.argv[2:])
