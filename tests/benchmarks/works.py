"""What every system is asked to do. Imported by name in each system's workers."""

from __future__ import annotations

import os
import signal
import time


def noop() -> None:
    """Do nothing, which is all overhead."""


def double(number: int) -> int:
    return number * 2


def nap(seconds: float) -> None:
    time.sleep(seconds)


def weigh(data: bytes) -> int:
    """Take something large and give something small."""
    return len(data)


def make(size: int) -> bytes:
    """Give something large."""
    return bytes(size)


def stamp() -> float:
    """Say when this ran."""
    return time.time()


def wait_for(path: str) -> None:
    """Keep a worker busy until the file exists."""
    while not os.path.exists(path):
        time.sleep(0.02)


def die_once(path: str) -> float:
    """Kill the own process the first time; the second time say how long that is ago, seconds."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        with open(path) as file:
            return time.time() - float(file.read())
    os.write(descriptor, repr(time.time()).encode())
    os.close(descriptor)
    os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


WORKS = (noop, double, nap, weigh, make, stamp, wait_for, die_once)
