"""How many processors we may use: those of the machine are not all ours in a container."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final

#: Where Linux tells which control groups a process is in, and what these may take.
MEMBERSHIP: Final = Path("/proc/self/cgroup")
GROUPS: Final = Path("/sys/fs/cgroup")


def usable() -> int:
    """Return how many processors this process may use, one at least.

    The number of those that the system lets it run on, or what the quota of its container amounts
    to, rounded up, if that is less: in Docker, Kubernetes and on Binder all processors of the
    machine are seen, and much less time of them is to be had.
    """
    return max(1, math.ceil(min(seen(), quota())))


def seen() -> int:
    """Return how many processors the system lets this process run on; libraries count these."""
    if hasattr(os, "process_cpu_count"):  # from Python 3.13 on, where -X cpu_count is heeded, too
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota(membership: Path = MEMBERSHIP, groups: Path = GROUPS) -> float:
    """Return the processors that our control groups (version 1 or 2) may use; infinity: all.

    Parameters
    ----------
    membership, groups
        The file that names our groups, and the folder with the limits of all groups.
    """
    return min((_limit(folder) for folder in _folders(membership, groups)), default=math.inf)


def _folders(membership: Path, groups: Path) -> Iterator[Path]:
    """Yield the folders of our groups and of all that they are in, as far as we can see these."""
    try:
        lines = membership.read_text().splitlines()
    except (OSError, UnicodeError):
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not path.startswith("/") or (controllers and "cpu" not in controllers.split(",")):
            continue
        # In a container its own group is at the top, whatever it is called outside.
        for own in (PurePosixPath(path), *PurePosixPath(path).parents):
            yield groups / controllers / str(own).lstrip("/")


def _limit(folder: Path) -> float:
    """Return the processors that a group may use: the part of each period times their number."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        allowed, period = (folder / "cpu.max").read_text().split()
        return math.inf if allowed == "max" else int(allowed) / int(period)
    with suppress(OSError, ValueError, ZeroDivisionError):
        micros = int((folder / "cpu.cfs_quota_us").read_text())
        period = (folder / "cpu.cfs_period_us").read_text()
        return math.inf if micros <= 0 else micros / int(period)
    return math.inf
