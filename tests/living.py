"""Small tools for tests with real processes: wait for a condition, kill, run another Python."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

if TYPE_CHECKING:
    from nbtasks.cluster import Cluster

T = TypeVar("T")

#: Seconds within which something that takes milliseconds must have happened on a busy machine.
SOON = 30.0


def eventually(condition: Callable[[], T], seconds: float = SOON) -> T:
    """Wait until a condition holds and return what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.005)
    return value


class Acts:
    """Does something in every process that loads it."""

    def __init__(self, act: Callable[..., Any], *args: Any) -> None:
        self._reduced = act, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._reduced


def lives(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def family(cluster: Cluster) -> list[int]:
    """Return the pids of all processes of a cluster."""
    return [cluster.supervisor_pid, cluster.broker_pid, *cluster.worker_pids()]


def kill(*pids: int, by: int = signal.SIGKILL) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, by)


def run(code: str, *arguments: Any, **options: Any) -> subprocess.Popen[str]:
    """Start a Python process of another user's session, so to say."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def said(process: subprocess.Popen[str], within: float = SOON) -> str:
    """Wait for a process that `run` started and return what it printed."""
    out, err = process.communicate(timeout=within)
    assert process.returncode == 0, err
    return out


def note(ledger: str | Path, number: int) -> None:
    """Write a line into a ledger that no part of the cluster knows of."""
    descriptor = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{number}\n".encode())
    finally:
        os.close(descriptor)


def entries(ledger: str | Path) -> Counter[int]:
    """Return how often each number stands in the ledger."""
    path = Path(ledger)
    return Counter(map(int, path.read_text().split())) if path.exists() else Counter()
