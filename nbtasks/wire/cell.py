"""A worker's cell: 24 bytes in a mapped file that say what the worker was doing when it died.

Messages that a process has not yet handed over die with it; a store to a mapped page does not.
So a worker writes the ticket of each call that it begins and of each that it has finished here, at
the price of a memory write, and after a SIGKILL its supervisor still knows exactly which calls had
begun, which were over, and which had merely been waiting their turn.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import NamedTuple

_LAYOUT = struct.Struct("<QQQ")
_NUMBER = struct.Struct("<Q")


class Reading(NamedTuple):
    """What a cell said last."""

    pid: int
    #: Ticket of the last call whose body began, or 0.
    started: int
    #: Ticket of the last call that was over, or 0.
    finished: int


class Cell:
    """The worker's end of its cell."""

    def __init__(self, path: Path) -> None:
        self.path = path
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, _LAYOUT.size)
            self._memory = mmap.mmap(descriptor, _LAYOUT.size)
        finally:
            os.close(descriptor)
        _LAYOUT.pack_into(self._memory, 0, os.getpid(), 0, 0)

    def start(self, ticket: int) -> None:
        """Note that the body of `ticket` begins."""
        _NUMBER.pack_into(self._memory, 8, ticket)

    def finish(self, ticket: int) -> None:
        """Note that `ticket` is over and its outcome is on its way."""
        _NUMBER.pack_into(self._memory, 16, ticket)

    def close(self) -> None:
        self._memory.close()


def read(path: Path) -> Reading | None:
    """Return what the cell at `path` says, or None when there is none (or not a whole one)."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return Reading(*_LAYOUT.unpack(data)) if len(data) == _LAYOUT.size else None
