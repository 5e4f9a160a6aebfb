"""As much of IPython, of a front end and of a cluster as panels see."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from IPython.core.formatters import DisplayFormatter

from nbtasks.client.record import Record


class Events:
    def __init__(self) -> None:
        self.callbacks: dict[str, list[Any]] = defaultdict(list)

    def register(self, name: str, callback: Any) -> None:
        self.callbacks[name].append(callback)

    def unregister(self, name: str, callback: Any) -> None:
        self.callbacks[name].remove(callback)

    def trigger(self, name: str) -> None:
        for callback in self.callbacks[name]:
            callback(None)


class Kernel:
    """A kernel that was asked to run a cell."""

    parent: dict[str, Any] = {"header": {"msg_id": "0"}, "metadata": {"cellId": "0"}}  # noqa: RUF012

    def get_parent(self) -> dict[str, Any]:
        return self.parent


class Shell:
    """As much of IPython as panels see."""

    def __init__(self, kernel: Kernel | None) -> None:
        self.events = Events()
        self.display_formatter = DisplayFormatter()
        self.kernel = kernel
        self.count = 0

    def run(self, cell, *, cell_id: str | None = None) -> None:
        self.count += 1
        if self.kernel is not None:
            self.kernel.parent = {
                "header": {"msg_id": str(self.count)},
                "metadata": {"cellId": cell_id or str(self.count)},
            }
        self.nest(cell)

    def nest(self, cell) -> None:
        self.events.trigger("pre_run_cell")
        try:
            cell()
        finally:
            self.events.trigger("post_run_cell")


class Widget:
    """A widget that nobody sees; it numbers what it is told, as the real one does."""

    def __init__(self, source: Any) -> None:
        self.model_id = "model"
        self.source = source
        self.told: list[Any] = []
        self.sent: list[Any] = []
        self.closed = False

    def tell(self, difference: Any) -> None:
        self.told.append(difference)

    def tell_all(self) -> None:
        self.sent.append({**self.source.snapshot(), "kind": "snapshot"})

    def send(self, content: Any) -> None:
        self.sent.append(content)

    def click(self, kind: str, **said: Any) -> None:
        self.source.hear({"kind": kind, **said}, self)

    def close(self) -> None:
        self.closed = True


class Client:
    """A connection to a broker that does what the test says, and remembers what it was told."""

    runtime = Path("/run/nb tasks")

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.records: dict[str, Record] = {}
        self.followed: list[Record] = []
        self.answers: dict[str, Any] = {}

    def tell(self, message: Any) -> None:
        self.told.append(message)

    def hears_of(self, record: Record) -> bool:
        return self.records.get(record.id) is record

    def record(self, task_id: str) -> Record:
        return self.records.setdefault(task_id, Record(task_id))

    def follow(self, record: Record) -> None:
        self.records[record.id] = record
        self.followed.append(record)

    def learn(self, record: Record, timeout: float) -> None:
        pass

    def ask(self, what: str, *, timeout: float = 10.0, **args: Any) -> Any:
        answer = self.answers.get(what)
        return answer(**args) if callable(answer) else answer
