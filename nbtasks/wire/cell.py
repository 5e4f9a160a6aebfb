"""A worker's cell: a mapped file that says what the worker was doing when it died.

Messages that a process has not yet handed over die with it; a store to a mapped page does not.
So a worker writes the ticket of each call that it begins and of each that it has finished here, at
the price of a memory write, and after a SIGKILL its supervisor still knows exactly which calls had
begun, which were over, and which had merely been waiting their turn.

What the dead would still have said lies here too: the outcomes of calls that the broker may not
have saved yet, so that a call which kills the process takes nobody along, and the last words that
the running call has printed; and how many messages it had sent, so that the broker knows whether it
has heard them all. And, for the living, how much memory it may take.

    pid | started | finished | limited, base, limit      numbers of 8 bytes
    said | noted | used, used | sent                     (`Reading`, `_SAID` ...)
    words          a ring of WORDS bytes
    outcomes       two halves of HALF bytes; each outcome: its size in 4 bytes, then the message

While one half of the outcomes fills, the other one holds those before: it is filled anew only when
the broker has noted all that it holds.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from nbtasks.core.messages import Again, Done

_LAYOUT = struct.Struct("=11Q")
_SIZE = struct.Struct("<L")
#: Places of the numbers.
_STARTED, _FINISHED, _LIMITED, _BASE, _LIMIT, _SAID, _NOTED, _USED = range(1, 9)
_SENT = 10

#: Bytes of what the running call has said that are kept.
WORDS = 4096
#: Bytes of each half of the outcomes.
HALF = 128 * 1024

_OUTCOMES = _LAYOUT.size + WORDS
_WHOLE = _OUTCOMES + 2 * HALF

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Done | Again)


class Reading(NamedTuple):
    """What a cell said last."""

    pid: int
    #: Ticket of the last call whose body began, or 0.
    started: int
    #: Ticket of the last call that was over, or 0.
    finished: int
    #: Ticket of the last call with a memory limit, or 0.
    limited: int = 0
    #: Resident bytes of the process when that call began, and how many more it may take.
    base: int = 0
    limit: int = 0

    @property
    def running(self) -> int:
        """The ticket that runs, or 0."""
        return self.started if self.started > self.finished else 0


class Remains(NamedTuple):
    """What else a dead worker has left."""

    #: The end of what the call that was started last has printed and logged.
    words: str = ""
    #: Outcomes that may not have been saved, in order.
    outcomes: tuple[Done | Again, ...] = ()
    #: How many messages it had sent at most, Hello not counted; None: that is not known.
    sent: int | None = None


class Cell:
    """The worker's end of its cell."""

    def __init__(self, path: Path) -> None:
        self.path = path
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, _WHOLE)
            if hasattr(os, "posix_fallocate"):
                # On a full disk this is an error; without it a later write would be a SIGBUS.
                os.posix_fallocate(descriptor, 0, _WHOLE)
            self._memory = mmap.mmap(descriptor, _WHOLE)
        finally:
            os.close(descriptor)
        _LAYOUT.pack_into(self._memory, 0, os.getpid(), *(0,) * 10)
        self._numbers = memoryview(self._memory)[: _LAYOUT.size].cast("Q")
        self._said = 0
        #: The half that is being filled, its bytes in use, and the last ticket of each half.
        self._half = self._used = 0
        self._last = [0, 0]

    def start(self, ticket: int) -> None:
        """Note that the body of `ticket` begins."""
        if self._said:
            self._said = 0
            self._numbers[_SAID] = 0
        self._numbers[_STARTED] = ticket

    def finish(self, ticket: int) -> None:
        """Note that `ticket` is over and its outcome is on its way."""
        self._numbers[_FINISHED] = ticket

    def send(self, number: int) -> None:
        """Note that so many messages have been sent, or are about to be."""
        self._numbers[_SENT] = number

    def limit(self, ticket: int, base: int, limit: int) -> None:
        """Note that the process may grow from `base` bytes by `limit` while it runs `ticket`."""
        self._numbers[_BASE] = base
        self._numbers[_LIMIT] = limit
        self._numbers[_LIMITED] = ticket

    def say(self, text: str) -> None:
        """Keep the end of what the running call says."""
        data = text[-WORDS:].encode("utf-8", "backslashreplace")[-WORDS:]
        place = self._said % WORDS
        before = data[: WORDS - place]
        after = data[len(before) :]
        start = _LAYOUT.size + place
        self._memory[start : start + len(before)] = before
        self._memory[_LAYOUT.size : _LAYOUT.size + len(after)] = after
        self._said += len(data)
        self._numbers[_SAID] = self._said

    def keep(self, outcome: Done | Again, noted: int) -> bool:
        """Keep an outcome, if there is room for it.

        Parameters
        ----------
        outcome
            Without payload frames.
        noted
            The broker has saved all up to this ticket.
        """
        data = _encoder.encode(outcome)
        sized = _SIZE.pack(len(data)) + data
        size = len(sized)
        half, used = self._half, self._used + size
        if used > HALF:
            if size > HALF or self._last[1 - half] > noted:
                return False
            half, used = 1 - half, size
            self._half = half
            self._numbers[_USED + half] = 0
        end = _OUTCOMES + half * HALF + used
        self._memory[end - size : end] = sized
        self._used = self._numbers[_USED + half] = used
        self._last[half] = outcome.ticket
        self._numbers[_NOTED] = noted
        return True

    def close(self) -> None:
        self._numbers.release()
        self._memory.close()


def read(path: Path) -> Reading | None:
    """Return what the cell at `path` says, or None when there is none (or not a whole one)."""
    try:
        with path.open("rb", buffering=0) as file:
            whole = os.fstat(file.fileno()).st_size == _WHOLE
            data = file.read(_LAYOUT.size)
    except OSError:
        return None
    reading = Reading(*_LAYOUT.unpack(data)[: len(Reading._fields)]) if whole else None
    return reading if reading is not None and reading.pid else None


def remains(path: Path) -> Remains:
    """Return what the dead worker whose cell is at `path` would still have said."""
    try:
        data = path.read_bytes()
    except OSError:
        return Remains()
    if len(data) != _WHOLE:
        return Remains()
    *_, said, noted, used, other, sent = _LAYOUT.unpack_from(data)
    ring = data[_LAYOUT.size : _OUTCOMES]
    place = said % WORDS
    words = ring[:said] if said <= WORDS else ring[place:] + ring[:place]
    outcomes = [
        outcome
        for start, size in ((_OUTCOMES, used), (_OUTCOMES + HALF, other))
        for outcome in _decode(memoryview(data)[start : start + size])
        if outcome.ticket > noted
    ]
    outcomes.sort(key=lambda outcome: outcome.ticket)
    return Remains(words.decode("utf-8", "replace"), tuple(outcomes), sent)


def _decode(half: memoryview) -> Iterator[Done | Again]:
    start = 0
    # A machine that lost its power may have saved some pages of the file and others not.
    with suppress(msgspec.MsgspecError, struct.error):
        while start < len(half):
            (size,) = _SIZE.unpack_from(half, start)
            start += _SIZE.size
            yield _decoder.decode(half[start : start + size])
            start += size
