"""Records that nobody sent, and what happens to them said by the test."""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Callable
from typing import Any

import pytest

from nbtasks.client import client
from nbtasks.client.client import Record
from nbtasks.core.messages import Call, Event, Now
from nbtasks.jupyter import cells, panel, watch
from tests.jupyter.fakes import Client, Kernel, Shell, Widget

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
        self.record.note(event)
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
    """Stop the clock, know no tasks, and let nobody draw or ask but the test."""
    monkeypatch.setattr(watch, "now", lambda: NOW)
    monkeypatch.setattr(time, "time", lambda: NOW.wall)
    monkeypatch.setattr(watch, "known_tasks", dict)
    monkeypatch.setattr(watch.flusher, "wake", lambda drawn: None)
    monkeypatch.setattr(watch.outlook, "follow", lambda watch: None)


@pytest.fixture
def page(monkeypatch):
    """What was published: (display id, update, mime bundle)."""
    published: list[tuple[str, bool, dict[str, Any]]] = []

    def publish(bundle, *, transient, update):
        published.append((transient["display_id"], update, bundle))

    monkeypatch.setattr("IPython.display.publish_display_data", publish)
    monkeypatch.setattr(panel, "new_widget", Widget)
    return published


@pytest.fixture
def shell(monkeypatch):
    shell = Shell(Kernel())
    cells.install(shell)
    yield shell
    cells.uninstall()


@pytest.fixture
def here(monkeypatch):
    """The one connection that is open."""
    here = Client()
    monkeypatch.setattr(client, "_clients", [here])
    return here


@pytest.fixture
def send(submit, here):
    """Submit as a client does: the hooks are called in the submitting thread."""

    def send(*args, **options):
        told = submit(*args, **options)
        here.records[told.record.id] = told.record
        for hook in client.submitted_hooks:
            hook(told.record)
        return told

    return send
