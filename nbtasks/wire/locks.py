"""Locks between processes: held as long as a file is open, let go by the system at any death.

Not the filelock package: it takes 10 ms to import, which every start of a cluster would pay twice,
and cannot tell without taking a lock whether somebody holds it.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

#: Seconds between two attempts.
PAUSE = 0.002

if sys.platform == "win32":
    import msvcrt

    #: The byte that is locked: far behind the text, which others may go on reading.
    _BYTE = 1 << 30

    def _lock(descriptor: int, shared: bool) -> None:
        os.lseek(descriptor, _BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int, shared: bool) -> None:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)


def acquire(path: Path | str, patience: float = 0.0) -> int | None:
    """Return a descriptor that holds the lock until it is closed, or None when others hold it.

    The holder's process number stands in the file. Parameters and errors as for `hold`.
    """
    descriptor = hold(path, patience)
    if descriptor is not None:
        try:
            _sign(descriptor)
        except BaseException:  # a full disk, an interrupt: who tries again shall not find it held
            os.close(descriptor)
            raise
    return descriptor


def hold(path: Path | str, patience: float = 0.0) -> int | None:
    """Take a lock for a process that will sign it itself (`inherit`); until then nobody has.

    Parameters
    ----------
    path
        The lock's file; made when there is none, readable by us alone.
    patience
        Seconds to try: a process just killed holds its lock for some milliseconds more.

    Raises
    ------
    OSError
        When the file cannot be made.
    """
    descriptor, taken = os.open(path, os.O_RDWR | os.O_CREAT, 0o600), False
    end = time.monotonic() + patience
    try:
        while not _lock_if_free(descriptor):
            if time.monotonic() > end:
                return None
            time.sleep(PAUSE)
        os.ftruncate(descriptor, 0)
        taken = True
        return descriptor
    finally:
        if not taken:  # also when we are interrupted
            os.close(descriptor)


def _lock_if_free(descriptor: int) -> bool:
    try:
        _lock(descriptor, shared=False)
    except OSError:
        return False
    return True


def inherit(path: Path | str) -> int | None:
    """Return our standard input if it is this lock, handed over by whoever started us, or None."""
    with suppress(OSError):
        if os.path.samestat(os.fstat(0), os.stat(path)):
            _lock(0, shared=False)
            _sign(0)
            return 0
    return None


def _sign(descriptor: int) -> None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, str(os.getpid()).encode())


def is_held(path: Path) -> bool:
    """Return whether a living process holds the lock at `path`."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        # Shared, so that two who look at once do not take each other for a holder.
        _lock(descriptor, shared=True)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def holder(path: Path) -> int:
    """Return the process number that the lock's holder wrote, or 0: it has not, or not yet."""
    try:
        return max(0, int(path.read_text() or 0))  # others mean whole groups
    except (OSError, ValueError):
        return 0
