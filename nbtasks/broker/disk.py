"""Let large pieces reach the disk, in a thread of its own: that takes as long as writing them did.

    server ── names ──▶ Disk: fsync each file, then their folder ── ring ──▶ server says Accepted

Whoever writes a piece does not wait for the disk, and neither does the worker that is to read it:
what can be lost with the power until then has not been accepted yet. A result is told at once, as
whoever waits for it dies with the same power; it reaches the disk a moment later.

Unless somebody waits for acceptance, that begins once no more files have come for a moment: while
many do, the disk would stand in the way of the next ones, and what is not needed any more by then
never has to go there. It does not wait for ever, so that power can take little.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from nbtasks.wire import segments
from nbtasks.wire.connection import sync

log = logging.getLogger("nbtasks.broker")

#: Seconds without a new file after which the disk begins, and those after which it begins anyway.
MOMENT = 0.2
LATEST = 1.0
#: What a disk says that fails, or is full.
FAILING = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT})
#: Bytes of a file that are written again at once.
PIECE = 1024 * 1024
#: Seconds between two attempts where the disk would not.
RETRY = 0.2
#: Seconds that the end of the broker waits for what is being written.
LAST_ORDERS = 1.0


class Wish(NamedTuple):
    """What the thread is asked for at once."""

    number: int
    #: Names of files that shall reach the disk, and of those that are to be unlinked then.
    kept: tuple[str, ...]
    dropped: tuple[str, ...]


class Disk:
    """Makes files survive a loss of power.

    Parameters
    ----------
    folder
        Where the files lie.
    ring
        Called, in the thread, whenever more of what was asked for is done.
    """

    def __init__(self, folder: Path, ring: Callable[[], None]) -> None:
        self._folder, self._ring = folder, ring
        #: None: the end.
        self._wishes: SimpleQueue[Wish | None] = SimpleQueue()
        #: What the thread does not know of yet, to be kept and to be unlinked: one wish.
        self._noted: list[str] = []
        self._dropped: list[str] = []
        #: When it shall know of it, and until when that may be put off (boot clock).
        self._due = self._latest = 0.0
        self._last = 0
        #: All wishes up to this number are fulfilled.
        self.through = 0
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def keep(self, names: Iterable[str], instant: float) -> int:
        """Have files reach the disk, in a moment; return the number of that wish.

        Parameters
        ----------
        instant
            The present, on the boot clock.
        """
        self._set_due(instant)
        self._noted.extend(names)
        return self._last + 1

    def drop(self, names: Iterable[str], instant: float) -> None:
        """Unlink files, once those that were to be kept so far have reached the disk."""
        self._set_due(instant)
        self._dropped.extend(names)

    def _set_due(self, instant: float) -> None:
        if not self._noted and not self._dropped:
            self._latest = instant + LATEST
        self._due = min(instant + MOMENT, self._latest)

    def hurry(self) -> None:
        """Let the next `begin` begin: somebody waits."""
        self._due = self._latest = 0.0

    def wait(self, instant: float) -> float | None:
        """Return the seconds until `begin` has something to do, or None."""
        return max(self._due - instant, 0.0) if self._noted or self._dropped else None

    def begin(self, instant: float) -> None:
        """Let the thread begin with what was asked for, if it is time.

        Whoever has to write something urgent meanwhile would wait for all of it.
        """
        if self.wait(instant) != 0.0:
            return
        self._last += 1
        self._wishes.put(Wish(self._last, tuple(self._noted), tuple(self._dropped)))
        self._noted.clear()
        self._dropped.clear()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="nbtasks-disk", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread when it has done what was asked for, if the disk does not hold it up."""
        self.hurry()
        self.begin(0.0)
        self._wishes.put(None)
        if self._thread is not None:
            self._thread.join(LAST_ORDERS)
            self._closing.set()
            self._thread.join(LAST_ORDERS)

    def _run(self) -> None:
        while (wish := self._wishes.get()) is not None:
            if not all(map(self._sync, [*wish.kept, "", ".."])):
                return
            segments.remove(self._folder, wish.dropped)
            self.through = wish.number
            self._ring()

    def _sync(self, name: str) -> bool:
        """Make the disk keep a file; one that is gone, or none of ours, is not needed."""
        path, failed = self._folder / name, False
        while not self._closing.is_set():
            try:
                if failed and path.is_file():
                    write_again(path)
                sync(path)
            except OSError as error:
                if error.errno in FAILING:
                    failed = True
                    log.error("the disk does not keep %s: %s", path, error)
                    self._closing.wait(RETRY)
                    continue
            return True
        return False


def write_again(path: Path) -> None:
    """Write a file once more, as it is.

    What the disk has failed on the system may take for written, and say so the next time.
    """
    with path.open("r+b", buffering=0) as file:
        while piece := file.read(PIECE):
            file.seek(-len(piece), os.SEEK_CUR)
            file.write(piece)
