"""What the scheduler wants kept, brought into the shape of rows. Knows no database."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Any, Final

from nbtasks.broker.journal import StateRow
from nbtasks.core.messages import DEFAULT_PRIORITY, DEFAULT_QUEUE, Call, Now, Options
from nbtasks.core.states import ASSIGNED, DONE, QUEUED
from nbtasks.core.tasks import Row, Task
from nbtasks.core.turn import NewCall

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


#: The fields of a call that most have no use for, and what is in them then. (That stays so: stores
#: do not say it.)
_unusual = attrgetter(*Call.__struct_fields__[6:])
_UNUSED: Final = Call.__struct_defaults__[2:]


def without_known(call: Call, task: Task) -> tuple[Any, ...]:
    """Return a call as the tuple that it is on the wire, without what its row says already.

    And without a long body, and without the last fields where they have their defaults.
    """
    body = call.body if len(call.body) <= SHORT_BODY else b""
    definition, name = call.definition, call.name
    if name == task.name and definition == task.definition:
        definition, name = b"", ""
    rest = _unusual(call)
    short = ("", definition, name, body, call.frames, call.summary)
    return short if rest == _UNUSED else short + rest


def call_payloads(new: NewCall) -> Iterator[tuple[int, int, int, int, Buffer]]:
    seq = new.task.seq
    if len(new.call.body) > SHORT_BODY:
        yield seq, 0, BODY, 0, new.call.body
    for part in parts(new.buffers):
        yield seq, 0, *part


#: What makes a task special, and what most tasks have there.
_special = attrgetter(
    "due", "eta", "expires", "retries", "deaths", "wish", "limit_at", "priority", "queue"
)
_USUAL: Final = (None, None, None, 0, 0, "", None, DEFAULT_PRIORITY, DEFAULT_QUEUE)


def is_as_new(task: Task) -> bool:
    """Whether a task is as its call alone makes it, and at most given to a worker."""
    return task.phase in (QUEUED, ASSIGNED) and not task.n and _special(task) == _USUAL


def state_row(task: Task, now: Now) -> StateRow:
    """Return what a task is now, as a row: short, when there is nothing special about it."""
    ended_at = None
    if task.phase == DONE:
        ended_at = now.wall if task.ended_at is None else task.ended_at
    row = (task.seq, task.phase, task.state, task.n, task.worker, task.ticket, ended_at)
    # With more events it may have been run again, for another client.
    if task.n <= 1 and _special(task) == _USUAL:
        return row
    due_at = None if task.due is None else task.due - now.boot + now.wall
    return (
        *row, task.client, task.priority, task.queue, task.retries, task.deaths,
        task.due, due_at, task.eta, task.expires, task.wish, task.limit_at,
    )  # fmt: skip
