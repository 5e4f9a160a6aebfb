"""What a test has a store save, one thing after the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from nbtasks.broker.rows import TaskRow
from nbtasks.broker.store import Store
from nbtasks.core.messages import Call, Define, Event, Now, Policy
from nbtasks.core.tasks import Task
from nbtasks.core.turn import NewCall, Turn

NOW = Now(wall=1_700_000_000.0, boot=5_000.0)
DIGEST = b"0123456789abcdef"
CLIENT = b"c-client"


class SaveCall(NamedTuple):
    """A call, and the task that it makes if the test has one."""

    seq: int
    call: Call
    client: bytes
    accepted_at: float
    buffers: tuple[Any, ...] = ()
    task: Task | None = None


class SaveTask(NamedTuple):
    task: Task


class SaveEvent(NamedTuple):
    seq: int
    event: Event
    buffers: tuple[Any, ...] = ()


class SaveDefinition(NamedTuple):
    define: Define
    buffers: tuple[Any, ...] = ()


class SaveGiven(NamedTuple):
    seq: int
    worker: str
    ticket: int


class SaveCleared(NamedTuple):
    worker: str
    below: int


class SaveForget(NamedTuple):
    seq: int


class SaveEmptied(NamedTuple):
    seq: int


class SaveUnwanted(NamedTuple):
    buffers: tuple[Any, ...]


class SaveRevoked(NamedTuple):
    id: str
    kept: bool = True


def task_for(seq: int, call: Call, client: bytes = CLIENT) -> Task:
    """Return the task that a call makes when nothing else is said of it."""
    return Task(
        *(seq, call.id, call.definition, call.name, client, call.priority, call.queue, "queued"),
        retries=call.retries,
        due=call.due,
        eta=call.eta,
        expires=call.expires,
    )


def turn_of(saves: Iterable[Any]) -> Turn:
    """Return the turn in which all of this is saved."""
    turn = Turn()
    saves = list(saves)
    tasks = {save.task.seq: save.task for save in saves if isinstance(save, SaveTask)}
    for save in saves:
        match save:
            case SaveCall(seq, call, client, accepted_at, buffers, task):
                task = task or tasks.get(seq) or task_for(seq, call, client)
                turn.calls[seq] = NewCall(call, task, accepted_at, buffers)
            case SaveTask(task):
                turn.tasks[task.seq] = task
            case SaveEvent(seq, event, buffers):
                turn.events.append((seq, event, buffers))
            case SaveDefinition(define, buffers):
                turn.definitions.append((define, buffers))
            case SaveGiven(seq, worker, ticket):
                turn.given.setdefault(worker, []).append((ticket, seq))
            case SaveCleared(worker, below):
                turn.cleared[worker] = below
            case SaveForget(seq):
                turn.forgotten.add(seq)
            case SaveEmptied(seq):
                turn.emptied.add(seq)
            case SaveUnwanted(buffers):
                turn.unwanted.extend(buffers)
            case SaveRevoked(task_id, kept):
                turn.revoked[task_id] = kept
    return turn


def commit(store: Store, saves: Iterable[Any], now: Now) -> None:
    store.commit(turn_of(saves), now)


def later(seconds: float) -> Now:
    return Now(NOW.wall + seconds, NOW.boot + seconds)


def call_for(seq: int, **fields: Any) -> Call:
    defaults = {"id": f"task-{seq}", "definition": DIGEST, "name": "add", "body": b"(1, 2)"}
    return Call(**(defaults | fields))


def accept(
    store: Store, seq: int, buffers: tuple[bytes, ...] = (), now: Now = NOW, **fields: Any
) -> Task:
    call = call_for(seq, **fields)
    task = task_for(seq, call)
    commit(store, [SaveCall(seq, call, CLIENT, now.wall, buffers), SaveTask(task)], now)
    return task


def finish(store: Store, task: Task, state: str = "SUCCESS", now: Now = NOW) -> Event:
    task.phase, task.state, task.n, task.ended_at = "done", state, task.n + 1, now.wall
    event = Event(task.id, task.n, now.wall, "state", state, b"3", final=True)
    commit(store, [SaveEvent(task.seq, event), SaveTask(task)], now)
    return event


def define(digest: bytes = DIGEST, name: str = "add", body: bytes = b"code") -> Define:
    return Define(digest, name, Policy(max_retries=7), body)


def columns(task: Task) -> dict[str, Any]:
    """Return what a row must say of a task."""
    lasting = [name for name in Task.__struct_fields__ if name not in ("kept", "options")]
    return {name: getattr(task, name) for name in lasting}


def says(row: TaskRow | None) -> dict[str, Any]:
    assert row is not None
    unlike = ("accepted_at", "summary", "options", "parent", "root")
    return {name: getattr(row, name) for name in TaskRow.__struct_fields__ if name not in unlike}
