"""A client without a broker: the test says what happens to each task, and when."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from nbtasks.client.client import Record
from nbtasks.core.messages import Call, Event, Forget, Options
from nbtasks.exceptions import BrokerUnavailable, TimeoutError
from nbtasks.wire import payloads


class FakeClient:
    """Stands for `nbtasks.client.client.Client`; `happen` and its kin stand for the broker."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._recent: dict[str, Record] = {}
        self._changed = threading.Condition()
        self._ids = itertools.count(1)
        #: What the broker has of tasks that this process has not sent: id → events.
        self.elsewhere: dict[str, list[Event]] = {}
        #: What the broker answers: question → function of its arguments.
        self.answers: dict[str, Callable[..., Any]] = {
            "peek": lambda key: None,
            "settled": lambda: None,
        }
        #: All that was told, in order.
        self.told: list[Any] = []
        self.gone = False
        #: Called, in order, each time somebody begins to wait.
        self.scenes: list[Callable[[], object]] = []

    # ------------------------------------------------------------------ what the broker would do

    def send(
        self, task_id: str = "", *, args: Any = (), kwargs: Any = None, **fields: Any
    ) -> Record:
        """Return the record of a task that this process sends."""
        body, _ = payloads.dumps((args, kwargs or {}))
        options = Options(**fields.pop("options")) if "options" in fields else None
        name = fields.pop("name", "demo.add")
        task_id = task_id or f"task-{next(self._ids)}"
        call = Call(task_id, b"digest", name, body, options=options, **fields)
        record = Record(task_id, call=call, created=1000.0, accepted=True, known=True)
        self._records[task_id] = record
        return record

    def happen(
        self, record: Record, kind: str = "state", value: Any = None, **fields: Any
    ) -> Event:
        """Let something happen to a task; return the event."""
        body: bytes = b""
        buffers: list[Any] = []
        if isinstance(value, BaseException):
            body, buffers = payloads.dumps_exception(value)
        elif value is not None:
            body, buffers = payloads.dumps(value)
        fields.setdefault("at", 1000.0 + record.n + 1)
        event = Event(
            record.id, record.n + 1, kind=kind, body=bytes(body), frames=len(buffers), **fields
        )
        with self._changed:
            if buffers:
                record.buffers = {**record.buffers, event.n: tuple(buffers)}
            record.note(event)
            for listener in record.listeners:
                listener(record, event)
            self._changed.notify_all()
        if record.over:
            waiters, record.waiters = record.waiters, ()
            for waiter in waiters:
                waiter()
        return event

    def succeed(self, record: Record, value: Any = None, **fields: Any) -> Event:
        return self.happen(record, value=value, state="SUCCESS", final=True, **fields)

    def fail(self, record: Record, error: BaseException, **fields: Any) -> Event:
        return self.happen(record, value=error, state="FAILURE", final=True, **fields)

    def end_by_broker(self, record: Record, state: str, error: str, *args: Any) -> Event:
        """End a task with one of our own exceptions, as the broker says it: by name."""
        return self.happen(record, state=state, text=json.dumps([error, args]), final=True)

    # ------------------------------------------------------------------------ what a client does

    def hears_of(self, record: Record) -> bool:
        return record in (self._records.get(record.id), self._recent.get(record.id))

    def drop(self, task_ids: Iterable[str]) -> None:
        for task_id in task_ids:
            self._records.pop(task_id, None)
            self._recent.pop(task_id, None)

    def record(self, task_id: str) -> Record:
        known = self._records.get(task_id) or self._recent.get(task_id)
        if known is None:
            known = self._records[task_id] = Record(task_id)
        return known

    def follow(self, record: Record) -> None:
        self.told.append(("follow", record.id))

    def learn(self, record: Record, timeout: float | None = None) -> None:
        events = self.elsewhere.get(record.id)
        for event in events or ():
            record.note(event)
        record.known = events is not None

    def wait(self, records: Iterable[Record], timeout: float | None = None) -> bool:
        several = list(records)
        return self._sleep(lambda: all(record.over for record in several), timeout)

    def wait_until(
        self, record: Record, condition: Callable[[], bool], timeout: float | None = None
    ) -> bool:
        return self._sleep(condition, timeout)

    def _sleep(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        if self.scenes and not condition():
            self.scenes.pop(0)()
        deadline = time.monotonic() + (10.0 if timeout is None else timeout)
        with self._changed:
            while not condition():
                if self.gone:
                    raise BrokerUnavailable("nowhere", 1.0)
                if not self._changed.wait(deadline - time.monotonic()):
                    assert timeout is not None, "this test would wait for ever"
                    return condition()
        return True

    def add_waiter(self, record: Record, callback: Callable[[], Any]) -> Any:
        if record.over:
            callback()
        else:
            record.add_waiter(callback)
        return callback

    def tell(self, *messages: Any) -> None:
        self.told.extend(messages)
        for message in messages:
            if isinstance(message, Forget):
                for task_id in message.ids:
                    self.elsewhere.pop(task_id, None)

    def settle(self, timeout: float = 10.0) -> None:
        self.ask("settled", timeout=timeout)

    def ask(self, what: str, *, timeout: float = 10.0, **args: Any) -> Any:
        if what not in self.answers:
            raise TimeoutError(f"nobody answers {what!r}")
        return self.answers[what](**args)
