"""What the scheduler works on: tasks, and what it may look up of those that it has let go of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Protocol

import msgspec

from nbtasks.core import states
from nbtasks.core.messages import Call, Options, Policy

#: In the place of a number of deaths: no process has died under the task, but a run has put it back
#: into the queue.
REQUEUED: Final = -1


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
    #: How many processes died under it, or `REQUEUED`.
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
    expires = task.expires if task.ended_at is None else call.expires  # its handlers still run
    if call.retries == task.retries and call.expires == expires:
        return call
    return msgspec.structs.replace(call, retries=task.retries, expires=expires)
