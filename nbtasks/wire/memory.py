"""How much memory a process takes of its own."""

from __future__ import annotations

import re
import sys
from typing import Final

#: Lines of /proc/PID/status; what is left out, RssFile, are the pages of mapped files.
_OWN: Final = re.compile(rb"^Rss(?:Anon|Shmem):\s+(\d+) kB$", re.MULTILINE)


def resident(pid: int) -> int:
    """Return the bytes of memory that a process has for itself; 0 when it is gone.

    Pages of mapped files are not counted where they can be told apart (Linux): the system takes
    them back when it needs them, and a large argument is such a file.
    """
    if sys.platform != "linux":
        return _by_psutil(pid)
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            return sum(int(found) for found in _OWN.findall(file.read())) * 1024
    except OSError:
        return 0


def _by_psutil(pid: int) -> int:
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
