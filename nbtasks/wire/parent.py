"""Not outliving one's parent: two nets, since each has a hole (RELIABILITY.md, rule 17)."""

from __future__ import annotations

import os
import signal
import stat
import sys

#: Environment variable with the pid of the supervisor that started this process.
PARENT = "NBTASKS_PARENT"

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> int | None:
    """Arrange for this process to end with its parent.

    Returns
    -------
    int or None
        A file descriptor that reads end-of-file when the parent is gone, where there is one.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The signal comes only from now on: the parent may have gone before.
    expected = os.environ.get(PARENT)
    if expected and os.getppid() != int(expected):
        os._exit(1)
    try:
        is_pipe = stat.S_ISFIFO(os.fstat(0).st_mode)
    except OSError:
        return None
    return 0 if is_pipe else None


def alive(pid: int) -> bool:
    """Return whether there is a process of this number (a zombie does not count)."""
    if pid <= 0:
        return False  # the system takes these for whole groups
    if sys.platform == "win32":
        import psutil

        return bool(psutil.pid_exists(pid))
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return not _is_zombie(pid)


def has_word(pid: int, word: str) -> bool:
    """Return whether this word stands in the command line of a process."""
    import psutil

    try:
        return word in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False


def _is_zombie(pid: int) -> bool:
    """Return whether a process has ended and waits for its parent to take note (Linux only)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"Z"
    except (OSError, IndexError):
        return False
