"""Records that nobody sent, and what happens to them said by the test."""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Callable
from typing import Any

import pytest

from nbtasks.client.client import Record
from nbtasks.core.messages import Call, Event, Now
from nbtasks.jupyter import watch

#: The moment of all tests here.
NOW = Now(1_000_000.0, 5_000.0)


class Told:
    """A record that the test plays the broker for."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def _tell(self, kind: str, state: str = "", value: Any = None, **fields: Any) -> Told:
        body = b"" if value is None else pickle.dumps(value)
        at = fields.pop("at", NOW.wall)
        event = Event(self.record.id, self.record.n + 1, at, kind, state, body, **fields)
        self.record.apply(event)
        self.record.events.append(event)
        for listener in self.record.listeners:
            listener(self.record, event)
        return self

    def begins(self, **fields: Any) -> Told:
        return self._tell("run", worker="worker-1", **fields)

    def says(self, state: str, meta: Any = None) -> Told:
        return self._tell("state", state, meta)

    def retries(self, reason: Exception, count: int, wait: float) -> Told:
        return self._tell("state", "RETRY", reason, retries=count, due=NOW.boot + wait)

    def succeeds(self, value: Any = None, **fields: Any) -> Told:
        return self._tell("state", "SUCCESS", value, final=True, **fields)

    def fails(self, error: Exception | None = None, **fields: Any) -> Told:
        return self._tell("state", "FAILURE", error, final=True, **fields)

    def is_revoked(self, why: str) -> Told:
        return self._tell("state", "REVOKED", text=f'["TaskRevokedError", ["{why}"]]', final=True)

    def runs_again(self, why: str) -> Told:
        return self._tell("again", text=why)


@pytest.fixture
def submit() -> Callable[..., Told]:
    """Make the record of a call, as `Client.submit` would."""
    numbers = itertools.count()

    def make(name: str = "nb.load", summary: str = "('a.csv')", **options: Any) -> Told:
        call = Call(f"id-{next(numbers)}", b"", name, b"", summary=summary, **options)
        return Told(Record(call.id, call=call, created=NOW.wall))

    return make


@pytest.fixture(autouse=True)
def _still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the clock, know no tasks, and let nobody draw but the test."""
    monkeypatch.setattr(watch, "now", lambda: NOW)
    monkeypatch.setattr(time, "time", lambda: NOW.wall)
    monkeypatch.setattr(watch, "known_tasks", dict)
    monkeypatch.setattr(watch.flusher, "wake", lambda drawn: None)
