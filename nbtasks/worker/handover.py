"""What the worker's two threads hand to each other.

    I/O thread ── inbox ──▶ main thread        calls, in the order in which they are to run; now and
                                               then a function to be loaded ahead
    I/O thread ◀── outbox ── main thread       what is to be said to the broker, in order
    I/O thread ── replies ──▶ main thread      definitions
    I/O thread ◀── began, ended ── main thread how far it is

There is no lock: each end is touched by one thread only, or by an operation that the interpreter
does in one piece. The one rule is the order of two steps. The I/O thread first says that it sleeps
and then looks whether there is anything to do; the main thread first puts something down and then
looks whether the other one sleeps. So one of the two always notices.

While calls follow one another, the main thread wakes nobody: the I/O thread then sleeps for a
millisecond at a time and takes what has gathered. It is woken when the main thread has nothing left
to do (somebody waits for that answer), or when it had gone to sleep for good.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any, NamedTuple

import msgspec

from nbtasks.core.messages import Define, Handling, Joining, Policy, Run

Buffer = bytes | bytearray | memoryview


class Assignment(msgspec.Struct, frozen=True, gc=False):
    """A call to be run, with its payload frames."""

    run: Run
    buffers: tuple[Buffer, ...]


class Preparation(NamedTuple):
    """A function to be loaded before there is a call of it."""

    digest: bytes


class Loaded(NamedTuple):
    """A message with its payload frames."""

    message: Any
    buffers: Sequence[Buffer]

    @property
    def ticket(self) -> int:
        """The message's."""
        ticket: int = self.message.ticket
        return ticket


class Reply(NamedTuple):
    """The answer to a Fetch: no definition means that the broker has none either."""

    digest: bytes
    define: Define | None
    buffers: tuple[Buffer, ...]


class Receipt(Event):
    """Lies in the outbox between messages; set when all before it has been handed to zmq."""


class Leave(NamedTuple):
    """Lies in the outbox between messages: the main thread takes no more calls."""

    #: Whether to tell the broker; a process that is lost says nothing, its supervisor speaks.
    orderly: bool


class Handover:
    """What lies between the two threads.

    Parameters
    ----------
    ring
        Ends the sleep of the I/O thread.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        #: None: there will be no more calls.
        self.inbox: SimpleQueue[Assignment | Preparation | None] = SimpleQueue()
        #: Messages, bare or `Loaded`; receipts; a Leave.
        self.outbox: deque[Any] = deque()
        self.replies: SimpleQueue[Reply] = SimpleQueue()
        #: Digests that have been asked for, or have come unasked; the main thread takes out what it
        #: has dropped.
        self.asked: set[bytes] = set()
        #: Ticket of the last call that the main thread began and of the last that is over.
        self.began = 0
        self.ended = 0
        #: When the last call began (one with a limit: once its function was loaded), monotonic
        #: seconds.
        self.began_at = 0.0
        #: Ticket of the last call of whose beginning the broker has been, or need not be, told.
        self.told = 0
        #: Ticket of the call whose function is being loaded, if its run has a limit or is known by
        #: its name only: the broker is told of its beginning when that is over, so that imports are
        #: not on its time.
        self.loading = 0
        #: What the broker must know of the handlers that run now; None when none do.
        self.handling: Handling | None = None
        #: The same of a run that waits for other tasks.
        self.joining: Joining | None = None
        #: Digest of the function that is being, or about to be, loaded ahead.
        self.prepares = b""
        #: Name and policy of the function that was found last by its name alone.
        self.found: tuple[str, Policy] | None = None
        #: Digests that nobody has → set when the broker says so: it has heard all before that.
        self.echoes: dict[bytes, Event] = {}
        #: Set by the main thread: it waits for a call, or for its own end.
        self.resting = False
        #: Ticket of the running call whose end somebody wants.
        self.unwanted = 0
        #: Set by the I/O thread: it sleeps; it sleeps until it is woken.
        self.asleep = False
        self.dozing = False
        #: Set by the I/O thread when it has said its last word.
        self.over = Event()
        #: The broker has saved the outcomes of all tickets up to this one.
        self.noted = 0
        self._ring = ring
        self._awaited = 0
        self._heard = Event()

    # ---------------------------------------------------------------------------- main thread

    def begin(self, ticket: int) -> None:
        """Note that this call begins."""
        self.began_at = time.monotonic()
        self.began = ticket
        if self.dozing:
            self.wake()

    def post(self, item: Any) -> None:
        """Say something to the broker, soon."""
        self.outbox.append(item)
        if self.dozing:
            self.wake()

    def take(self) -> Assignment | Preparation | None:
        """Return the next thing to do, or None when there will be no more."""
        try:
            return self.inbox.get_nowait()
        except Empty:
            self.resting = True
            self.settle()
            assignment = self.inbox.get()
            self.resting = False
            return assignment

    def settle(self) -> None:
        """Say all that is still to be said now: the main thread is about to wait."""
        if self.asleep and self.outbox:
            self.wake()

    def wake(self) -> None:
        self.asleep = self.dozing = False
        self._ring()

    def stir(self) -> None:
        """Let the I/O thread look again when something is due."""
        if self.dozing:
            self.wake()

    def leave(self, orderly: bool, timeout: float | None = None) -> None:
        """Take no more calls, and wait until the last word has been said."""
        self.resting = True
        self.outbox.append(Leave(orderly))
        self.wake()
        self.over.wait(timeout)

    def wait_sent(self, timeout: float) -> bool:
        """Wait until all that was posted has been handed to zmq."""
        receipt = Receipt()
        self.outbox.append(receipt)
        self.wake()
        return receipt.wait(timeout)

    def wait_noted(self, ticket: int, timeout: float) -> bool:
        """Wait until the broker has saved the outcome of `ticket`."""
        self._heard.clear()
        self._awaited = ticket
        if self.noted < ticket:
            self.settle()
            self._heard.wait(timeout)
        self._awaited = 0
        return self.noted >= ticket

    # ----------------------------------------------------------------------------- I/O thread

    def note(self, ticket: int) -> None:
        """Take note that the broker has saved all outcomes up to this one."""
        self.noted = ticket
        if self._awaited and ticket >= self._awaited:
            self._heard.set()

    def running(self) -> int:
        """Return the ticket that is running, or 0."""
        began = self.began
        return began if began > self.ended else 0
