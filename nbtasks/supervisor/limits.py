"""How much the supervisor puts up with: deaths at the start, frozen processes, what is left over.

`Backoff` is a rule and knows no clock; the functions below it touch the operating system.
"""

from __future__ import annotations

import sys
from contextlib import suppress

#: A process that stands still (SIGSTOP) for so many seconds is replaced.
FROZEN = 2.0

#: Seconds between two looks at the memory of a run that has a limit.
MEMORY_LOOK = 0.02

#: A process that dies within so many seconds counts as one that cannot start.
SHORT_LIFE = 2.0

#: So many brokers in a row may die before they serve; then the supervisor gives up.
BROKER_TRIES = 4

#: The longest wait between two starts, seconds.
LONGEST_WAIT = 5.0

#: The same for a worker that others than we have killed: the pool shall soon be full again.
KILLED_WAIT = 1.0

#: So many processes in a row must die young before anybody is told.
TROUBLE = 3


class Backoff:
    """How long to wait before a process that died is started again.

    The first that dies young is replaced at once: somebody may have killed it. After that the
    waits double, from 50 ms to `LONGEST_WAIT`, until one lives.
    """

    def __init__(self) -> None:
        #: Deaths in a row of processes that achieved nothing.
        self.early = 0

    def died(self, lived: float, *, useful: bool) -> float:
        """Return the seconds to wait before the next start.

        Parameters
        ----------
        lived
            How long the dead process lived, seconds.
        useful
            Whether it had done what it was for.
        """
        if useful or lived >= SHORT_LIFE:
            self.early = 0
            return 0.0
        self.early += 1
        return 0.0 if self.early == 1 else min(0.05 * 2.0 ** (self.early - 2), LONGEST_WAIT)


def become_subreaper() -> None:
    """Become the parent of whatever our children's children leave behind (Linux)."""
    if sys.platform != "linux":
        return
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def end_descendants(pid: int, spare: frozenset[int] = frozenset()) -> None:
    """Kill all that a process has started, whatever session it is in.

    Parameters
    ----------
    pid
        The process itself is left alone.
    spare
        Its children that are left alone too, with all that they started.
    """
    with suppress(OSError):  # without a free descriptor; a sweep comes after each death
        import psutil

        with suppress(psutil.Error):
            for child in psutil.Process(pid).children():
                if child.pid not in spare:
                    end_descendants(child.pid)
                    with suppress(psutil.Error):
                        child.kill()


def end_leftover(pid: int, runtime: str, name: str) -> bool:
    """End the worker `name` of a supervisor that is gone; return whether it is no more.

    The number may long be somebody else's: only a process whose command line names this runtime
    directory and this worker is touched.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        words = process.cmdline()
        if process.status() == psutil.STATUS_ZOMBIE or runtime not in words or name not in words:
            return True
        end_descendants(pid)
        process.kill()
        process.wait(1.0)
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False
    return True
