"""What the scheduler wants kept, brought into the shape of rows. Knows no database."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final

from nbtasks.broker.journal import StateRow
from nbtasks.core.actions import (
    Row,
    Save,
    SaveCall,
    SaveCleared,
    SaveDefinition,
    SaveEmptied,
    SaveEvent,
    SaveForget,
    SaveGiven,
    SaveRevoked,
    SaveTask,
    SaveUnwanted,
    Task,
)
from nbtasks.core.messages import DEFAULT_PRIORITY, DEFAULT_QUEUE, Call, Now, Options
from nbtasks.core.states import DONE, PENDING, QUEUED

Buffer = bytes | bytearray | memoryview

#: Longer bodies of calls (bytes) lie apart: a row is written anew whenever its task changes.
SHORT_BODY: Final = 1024
#: Number of the "frame" that is such a body.
BODY: Final = -1
#: Longer frames (bytes) lie in parts: SQLite takes 1,000,000,000 at most, and copies each.
PART: Final = 64 * 1024 * 1024


class TaskRow(Row, gc=False):
    """A task as the store knows it."""

    #: Id of the task that sent it, and of the first one of its tree; empty: none, and itself.
    parent: str = ""
    root: str = ""
    #: Wall clock.
    accepted_at: float = 0.0
    #: The arguments as short text.
    summary: str = ""

    @property
    def shown(self) -> str:
        """The name to show: `shadow`, where the call has it."""
        return shown_name(self.name, self.options)


def shown_name(name: str, options: Options | None) -> str:
    """Return the name to show for a call."""
    return name if options is None else options.shadow or name


# ---------------------------------------------------------------------------------------- a turn


class Turn:
    """The saves of one turn, sorted and with each row once."""

    __slots__ = (
        "calls", "cleared", "definitions", "emptied", "events", "forgotten", "given", "revoked",
        "tasks", "unwanted",
    )  # fmt: skip

    def __init__(self, saves: Iterable[Save]) -> None:
        self.calls: dict[int, SaveCall] = {}
        self.tasks: dict[int, Task] = {}
        self.events: list[SaveEvent] = []
        self.definitions: list[SaveDefinition] = []
        self.forgotten: set[int] = set()
        self.emptied: set[int] = set()
        #: Payload frames of calls that were known already.
        self.unwanted: list[Buffer] = []
        #: Id of a call that has not come → whether to remember that it was revoked.
        self.revoked: dict[str, bool] = {}
        #: Worker → (ticket, seq) of what it was given; worker → below which ticket that is over.
        self.given: dict[str, list[tuple[int, int]]] = {}
        self.cleared: dict[str, int] = {}
        tasks, events = self.tasks, self.events
        for save in saves:
            if type(save) is SaveTask:
                tasks[save.task.seq] = save.task
            elif type(save) is SaveEvent:
                events.append(save)
            elif type(save) is SaveCall:
                self.calls[save.seq] = save
            elif type(save) is SaveGiven:
                self.given.setdefault(save.worker, []).append((save.ticket, save.seq))
            elif type(save) is SaveCleared:
                self.cleared[save.worker] = save.below
            elif type(save) is SaveDefinition:
                self.definitions.append(save)
            elif type(save) is SaveForget:
                self.forgotten.add(save.seq)
            elif type(save) is SaveEmptied:
                self.emptied.add(save.seq)
            elif type(save) is SaveUnwanted:
                self.unwanted.extend(save.buffers)
            elif type(save) is SaveRevoked:
                self.revoked[save.id] = save.kept
        if self.forgotten:
            self._leave_out()

    def _leave_out(self) -> None:
        for seq in self.forgotten:
            self.calls.pop(seq, None)
            self.tasks.pop(seq, None)
        self.events = [save for save in self.events if save.seq not in self.forgotten]


# -------------------------------------------------------------------- notes of what was given

_PAIR = struct.Struct("<2q")


def pack_given(pairs: Iterable[tuple[int, int]]) -> bytes:
    """Return (ticket, seq) pairs as one blob."""
    return b"".join(_PAIR.pack(ticket, seq) for ticket, seq in pairs)


def unpack_given(blob: bytes) -> Iterator[tuple[int, int]]:
    """Yield the (ticket, seq) pairs of a blob."""
    yield from _PAIR.iter_unpack(blob)


# ----------------------------------------------------------------------------------- payload frames


def parts(buffers: Iterable[Buffer]) -> Iterator[tuple[int, int, Buffer]]:
    """Yield (frame, part, data) of payload frames."""
    for frame, buffer in enumerate(buffers):
        if len(buffer) <= PART:
            yield frame, 0, buffer
            continue
        view = memoryview(buffer).cast("B")
        for part, start in enumerate(range(0, len(view), PART)):
            yield frame, part, view[start : start + PART]


def joined(parts: Iterable[tuple[int, bytes]]) -> dict[int, bytes]:
    """Return frame → data of (frame, data) in order of frame and part."""
    frames: dict[int, list[bytes]] = {}
    for frame, data in parts:
        frames.setdefault(frame, []).append(data)
    return {frame: data[0] if len(data) == 1 else b"".join(data) for frame, data in frames.items()}


# ------------------------------------------------------------------------------- what becomes rows


def task_for(save: SaveCall) -> Task:
    """Return the task that a call makes when nothing else is said of it."""
    call = save.call
    return Task(
        save.seq, call.id, call.definition, call.name, save.client, call.priority, call.queue,
        QUEUED, state=PENDING, retries=call.retries, due=call.due,
        eta=call.eta, expires=call.expires,
    )  # fmt: skip


def without_known(call: Call, task: Task) -> Call:
    """Return a call without what its row says already, and without a long body."""
    body = call.body if len(call.body) <= SHORT_BODY else b""
    known = call.name == task.name and call.definition == task.definition
    # Not `replace`, which takes twice as long, and this is done for each call.
    return Call(
        "", b"" if known else call.definition, "" if known else call.name, body, call.frames,
        call.summary, call.due, call.eta, call.expires, call.priority, call.queue, call.root,
        call.parent, call.retries, call.options,
    )  # fmt: skip


def call_payloads(save: SaveCall) -> Iterator[tuple[int, int, int, int, Buffer]]:
    if len(save.call.body) > SHORT_BODY:
        yield save.seq, 0, BODY, 0, save.call.body
    for part in parts(save.buffers):
        yield save.seq, 0, *part


def state_row(task: Task, now: Now) -> StateRow:
    """Return what a task is now, as a row: short, when there is nothing special about it."""
    ended_at = None
    if task.phase == DONE:
        ended_at = now.wall if task.ended_at is None else task.ended_at
    row = (task.seq, task.phase, task.state, task.n, task.worker, task.ticket, ended_at)
    if (
        task.n <= 1  # else it may have been run again, for another client
        and task.due is None
        and task.expires is None
        and task.eta is None
        and not task.retries
        and not task.deaths
        and not task.wish
        and task.limit_at is None
        and task.priority == DEFAULT_PRIORITY
        and task.queue == DEFAULT_QUEUE
    ):
        return row
    due_at = None if task.due is None else task.due - now.boot + now.wall
    return (
        *row, bytearray(task.client), task.priority, task.queue, task.retries, task.deaths,
        task.due, due_at, task.eta, task.expires, task.wish, task.limit_at,
    )  # fmt: skip
