"""What every system is asked to do. Imported by name in each system's workers."""

from __future__ import annotations

import os
import signal
import time

import numpy


def noop() -> None:
    """Do nothing, which is all overhead."""


def double(number: int) -> int:
    return number * 2


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds  # huey keeps no result that is None


def weigh(data: numpy.ndarray) -> int:
    """Take something large, look at all its pages, and give something small."""
    return data.nbytes + int(data[::4096].sum() & 0)


def make(size: int) -> numpy.ndarray:
    """Give something large that nobody has given before."""
    return numpy.full(size // 8, time.time_ns())


def decompose(size: int, times: int) -> float:
    """Do what numeric libraries use all processors for: many small computations."""
    return sum(numpy.linalg.svd(numpy.ones((size, size)))[1][0] for _ in range(times))


def multiply(size: int, times: int) -> float:
    """Do the same with few large ones, which is what that is good for."""
    data = numpy.ones((size, size))
    return float(sum((data @ data)[0, 0] for _ in range(times)))


def stamp() -> float:
    """Say when this ran."""
    return time.time()


def wait_for(path: str) -> bool:
    """Keep a worker busy until the file exists."""
    while not os.path.exists(path):
        time.sleep(0.02)
    return True


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


WORKS = (noop, double, nap, weigh, make, decompose, multiply, stamp, wait_for, die_once)
