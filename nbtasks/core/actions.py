"""What the scheduler works on, and the two kinds of things that it wants done: save and send."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from nbtasks.core import states
from nbtasks.core.messages import Call, Define, Event, Options, Policy


class Row(msgspec.Struct, gc=False):
    """The lasting part of a task: what is saved of it, and told by the archive."""

    seq: int
    id: str
    definition: bytes
    name: str
    client: bytes
    priority: int
    queue: str
    phase: str
    state: str = states.PENDING
    #: Number of its last event.
    n: int = 0
    retries: int = 0
    deaths: int = 0
    due: float | None = None
    eta: float | None = None
    expires: float | None = None
    worker: str = ""
    ticket: int = 0
    ended_at: float | None = None
    #: Somebody wants it not to begin (again): `revoked`, `terminated` or `purged`; else empty.
    wish: str = ""
    #: Boot clock: when its hard time limit ends the present run.
    limit_at: float | None = None
    #: From the call, where it carries any.
    options: Options | None = None


class Task(Row, gc=False, eq=False):
    """One submitted call, as far as the scheduler needs to know it.

    There may be a million of them: each field costs as many times 8 bytes.
    """

    #: The call itself and its payload frames, while they are kept in memory.
    kept: tuple[Call, tuple[Any, ...]] | None = None


class Archive(Protocol):
    """What the scheduler may look up of what it no longer has in memory."""

    def find(self, task_id: str) -> Row | None: ...

    def call_of(self, seq: int) -> tuple[Call, tuple[Any, ...]] | None: ...

    def policy_of(self, digest: bytes) -> tuple[str, Policy] | None: ...

    def definition_named(self, name: str) -> bytes | None: ...

    def revoked(self) -> Iterable[str]:
        """Return the ids that were revoked before their calls came, oldest first."""
        ...


_LASTING = len(Row.__struct_fields__)


def task_of(row: Row) -> Task:
    """Return the task that a row of the archive tells of."""
    return Task(*msgspec.structs.astuple(row)[:_LASTING])


def call_now(call: Call, task: Row) -> Call:
    """Return a task's call as it shall run now: it may run again, and its time not be over."""
    if call.retries == task.retries and call.expires == task.expires:
        return call
    return msgspec.structs.replace(call, retries=task.retries, expires=task.expires)


# ---------------------------------------------------------------------------------- the actions


class SaveCall(msgspec.Struct, frozen=True, gc=False):
    """Keep a call: a new one, or the same task's for its next attempt."""

    seq: int
    call: Call
    client: bytes
    accepted_at: float
    buffers: tuple[Any, ...] = ()


class SaveTask(msgspec.Struct, frozen=True, gc=False):
    """Keep a task as it is at the end of the turn (the object lives on)."""

    task: Task


class SaveEvent(msgspec.Struct, frozen=True, gc=False):
    seq: int
    event: Event
    buffers: tuple[Any, ...] = ()


class SaveDefinition(msgspec.Struct, frozen=True, gc=False):
    define: Define
    buffers: tuple[Any, ...] = ()


class SaveGiven(msgspec.Struct, frozen=True, gc=False):
    """Note that a queued task was given to a worker; its row may stay as it is.

    Every task is given out, so this is the one change that is not worth writing its row anew:
    notes of many go into one record. A note holds while its ticket is higher than the row's.
    """

    seq: int
    worker: str
    ticket: int


class SaveCleared(msgspec.Struct, frozen=True, gc=False):
    """Drop the notes of what was given to a worker under tickets below this one."""

    worker: str
    below: int


class SaveForget(msgspec.Struct, frozen=True, gc=False):
    seq: int


class SaveEmptied(msgspec.Struct, frozen=True, gc=False):
    """Drop the payload of a call that will never run (again); its row stays."""

    seq: int


class SaveUnwanted(msgspec.Struct, frozen=True, gc=False):
    """Let go of what a call carried that was known already, as far as nobody else needs it."""

    buffers: tuple[Any, ...]


class SaveRevoked(msgspec.Struct, frozen=True, gc=False):
    """Keep, or no longer keep, that the call of this id is unwanted should it ever come."""

    id: str
    kept: bool = True


class Send(msgspec.Struct, frozen=True, gc=False):
    """Say `message` to `peer`, after all saves of the turn."""

    peer: bytes
    message: Any
    buffers: tuple[Any, ...] = ()
    #: For a Run whose call must be read from the store first.
    task: Task | None = None
    #: For a Replayed: send the events of this row after this number first.
    replay: tuple[int, int] | None = None
    #: For a Define: read it from the store.
    fetch: bytes = b""
    #: May wait a little for other news to the same peer.
    lazy: bool = False
    #: Tells nothing that is yet to be saved: goes even while the store cannot write.
    free: bool = False


Save = (
    SaveCall | SaveTask | SaveEvent | SaveDefinition | SaveGiven | SaveCleared | SaveForget
    | SaveEmptied | SaveUnwanted | SaveRevoked
)  # fmt: skip
Action = Save | Send
