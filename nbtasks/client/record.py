"""One task as this process knows it, and those who wait for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nbtasks.core.messages import Call, Event
from nbtasks.core.view import View
from nbtasks.wire.frames import Buffer

log = logging.getLogger("nbtasks.client")


#: Most tasks have none, and there may be a hundred thousand records.
_NO_BUFFERS: Any = MappingProxyType({})

#: Held while somebody begins or ceases to listen or to wait: two threads at once would lose one of
#: them.
_listening = threading.Lock()


class Record(View):
    """One task that this process knows of.

    Only the I/O thread changes it. Whoever reads it sees each field whole; whoever needs more than
    one field of the same instant reads `events`.
    """

    #: What was submitted, when it was submitted here.
    call: Call | None = None
    #: Wall time of the submission here, or 0.
    created: float = 0.0
    #: State messages, runs, output and so on, in order. (Of most tasks one: a tuple of one event,
    #: and an empty one, are nothing to the garbage collector, which looks at lists all the time.)
    events: Sequence[Event] = ()
    #: Number of an event → its payload frames.
    buffers: dict[int, tuple[Buffer, ...]] = _NO_BUFFERS
    #: Runtime directory of its cluster, once the connection to it is closed; None: not known, or
    #: that of the folder, which is started when it is needed.
    home: Path | None = None
    #: Whether the broker has the submission in its store.
    accepted: bool = False
    #: Whether the broker knows the task; None until it has said so.
    known: bool | None = None
    #: Why there will never be an outcome: refused, or lost with a store that was not durable.
    error: Exception | None = None
    #: Called with (record, event) in the I/O thread.
    listeners: tuple[Callable[[Record, Event], None], ...] = ()
    #: Released when the task ends; see `Client.wait`.
    waiters: tuple[Any, ...] = ()

    @property
    def over(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.final is not None or self.error is not None

    def note(self, event: Event) -> None:
        """Take one more event in; only the I/O thread does so."""
        if type(self.events) is list:
            self.events.append(event)
        else:
            self.events = [*self.events, event] if self.events else (event,)
        self.apply(event)

    def add_waiter(self, waiter: Any) -> None:
        """Have `waiter` released at the end of the task, and when its submission fails."""
        with _listening:
            self.waiters = (*self.waiters, waiter)

    def remove_waiter(self, waiter: Any) -> None:
        """Take a waiter away; two threads may do so at once."""
        with _listening:
            self.waiters = tuple([known for known in self.waiters if known is not waiter])

    def listen(self, listener: Callable[[Record, Event], None]) -> None:
        """Call `listener` with each event from now on, in the client's I/O thread."""
        with _listening:
            self.listeners = (*self.listeners, listener)

    def unsubscribe(self, listener: Callable[[Record, Event], None]) -> None:
        with _listening:
            self.listeners = tuple(known for known in self.listeners if known != listener)


class Callback:
    """A waiter that calls back instead of letting a thread go on; at most once."""

    __slots__ = ("_callback",)

    def __init__(self, callback: Callable[[], Any]) -> None:
        self._callback: Callable[[], Any] | None = callback

    def release(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


def locked() -> Any:
    lock = threading.Lock()
    lock.acquire()
    return lock


def release(waiter: Any) -> None:
    try:
        waiter.release()
    except RuntimeError:
        pass  # released already: by the end of the task and by its cancellation, say
    except Exception:
        log.exception("a callback at the end of a task failed")


def ring(record: Record) -> None:
    """Let everybody look again who waits for a record; callbacks only when it is over."""
    for waiter in record.waiters:
        if type(waiter) is not Callback:
            release(waiter)
        elif record.over:
            record.remove_waiter(waiter)
            release(waiter)


def size_of(record: Record) -> int:
    """Return the bytes that the record of an ended task holds: arguments, result, output."""
    size = 0 if record.call is None else len(record.call.body)
    for event in record.events:  # mostly one: a loop takes half the time of `sum`
        size += event.size
    if record.buffers:
        size += sum(len(buffer) for buffers in record.buffers.values() for buffer in buffers)
    return size
