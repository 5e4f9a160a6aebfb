"""One turn of one system: `python turn.py DRIVER FOLDER WORKLOADS`, in that system's environment.

Prints one JSON object: workload → figure → number. A workload that the system does not offer is
left out; one that goes wrong is told as text.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import drivers
import numpy
import psutil
import works

Figures = dict[str, float]
MB = 1_000_000
#: Seconds for one workload; a system that takes longer is told so, and started anew.
LIMIT = 150


def one_by_one(driver: drivers.Driver, number: int = 10_000) -> Figures:
    """Send no-ops one by one and fetch all results."""
    cpu, began = cpu_seconds(driver), time.perf_counter()
    for sent in [driver.send(works.noop) for _ in range(number)]:
        driver.fetch(sent)
    taken = time.perf_counter() - began
    return {"rate": number / taken, "cpu": (cpu_seconds(driver) - cpu) / number * 1000}


def mapped(driver: drivers.Driver, number: int = 100_000) -> Figures:
    """Do many small things, in the way that is meant for many."""
    number //= driver.slow
    began = time.perf_counter()
    assert driver.map(works.double, list(range(number)))[-1] == 2 * number - 2
    return {"rate": number / (time.perf_counter() - began)}


def round_trip(driver: drivers.Driver, number: int = 300) -> Figures:
    """Send one, fetch it, send the next."""
    times = []
    for _ in range(number):
        began = time.perf_counter()
        driver.fetch(driver.send(works.noop))
        times.append((time.perf_counter() - began) * 1000)
    return {"median": statistics.median(times), "p99": sorted(times)[int(number * 0.99)]}


def data_in(driver: drivers.Driver, megabytes: int) -> Figures:
    """Give tasks something large, new each time."""
    return speed(megabytes, lambda data: driver.fetch(driver.send(works.weigh, data)))


def data_out(driver: drivers.Driver, megabytes: int) -> Figures:
    """Let tasks return something large."""
    return speed(megabytes, lambda _: driver.fetch(driver.send(works.make, megabytes * MB)))


def speed(megabytes: int, once: Callable[[numpy.ndarray], Any]) -> Figures:
    times = []
    for number in range(max(3, 256 // megabytes)):
        data = numpy.full(megabytes * MB // 8, number)
        began = time.perf_counter()
        result = once(data)
        if isinstance(result, numpy.ndarray):
            works.weigh(result)
        times.append(time.perf_counter() - began)
    return {"gigabytes_per_second": megabytes / 1000 / statistics.median(times)}


def one_to_many(driver: drivers.Driver, megabytes: int = 200, number: int = 50) -> Figures:
    """Give one large object to many tasks."""
    data = numpy.full(megabytes * MB // 8, time.time_ns())
    began = time.perf_counter()
    shared = driver.share(data)
    for sent in [driver.send(works.weigh, shared) for _ in range(number)]:
        assert driver.fetch(sent) == megabytes * MB
    return {"seconds": time.perf_counter() - began}


def backlog(driver: drivers.Driver, number: int = 100_000) -> Figures:
    """Queue many while all workers are busy: memory of all processes, cost of sending one."""
    number //= driver.slow
    gate = driver.folder / f"gate-{number}"
    held = [driver.send(works.wait_for, str(gate)) for _ in range(drivers.WORKERS)]
    before, cpu, began = memory(driver), cpu_seconds(driver), time.perf_counter()
    sent = [driver.send(works.noop) for _ in range(number)]
    settle(driver)
    taken, grown = time.perf_counter() - began, memory(driver) - before
    cpu = cpu_seconds(driver) - cpu
    gate.touch()
    for each in (*held, *sent):
        driver.fetch(each)
    return {"bytes": grown / number, "rate": number / taken, "cpu": cpu / number * 1000}


def timers(driver: drivers.Driver, number: int = 10_000, wait: float = 15.0) -> Figures:
    """Let many fall due at one instant: how late do they run?"""
    number //= driver.slow
    due = time.time() + wait
    sent = [driver.send_at(due, works.stamp) for _ in range(number)]
    if time.time() > due:
        raise TimeoutError(f"took more than {wait} s to send {number} calls")
    late = sorted((driver.fetch(each) - due) * 1000 for each in sent)
    return {"median": statistics.median(late), "p99": late[int(number * 0.99)], "first": late[0]}


def progress(driver: drivers.Driver, number: int = 10_000) -> Figures:
    """Let one task tell often how far it is."""
    began = time.perf_counter()
    arrived = driver.progress(number)
    return {"rate": arrived / (time.perf_counter() - began), "arrived": arrived}


def recovery(driver: drivers.Driver) -> Figures:
    """Kill a worker in the middle of a task: when does the task run again?"""
    path = str(driver.folder / f"died-{time.time()}")
    return {"seconds": driver.fetch(driver.survivor(works.die_once, path))}


WORKLOADS: dict[str, Callable[..., Figures]] = {
    "one_by_one": one_by_one,
    "map": mapped,
    "round_trip": round_trip,
    "1_MB_in": lambda driver: data_in(driver, 1),
    "1_MB_out": lambda driver: data_out(driver, 1),
    "64_MB_in": lambda driver: data_in(driver, 64),
    "64_MB_out": lambda driver: data_out(driver, 64),
    "512_MB_in": lambda driver: data_in(driver, 512),
    "512_MB_out": lambda driver: data_out(driver, 512),
    "one_to_many": one_to_many,
    "backlog": backlog,
    "backlog_million": lambda driver: backlog(driver, 1_000_000),
    "timers": timers,
    "progress": progress,
    "recovery": recovery,
}


def cpu_seconds(driver: drivers.Driver) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes(driver))


def memory(driver: drivers.Driver) -> int:
    """Return the resident bytes of all that works for the driver, this process left out."""
    me = psutil.Process().pid
    return sum(each.memory_info().rss for each in processes(driver) if each.pid != me)


def processes(driver: drivers.Driver) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in driver.pids() if psutil.pid_exists(pid)]


def settle(driver: drivers.Driver) -> None:
    """Wait until what was sent has arrived: until memory has stopped growing."""
    before = -1
    while abs(memory(driver) - before) > 1 * MB:
        before = memory(driver)
        time.sleep(0.5)


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` here when the block takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def start(name: str, folder: str) -> drivers.Driver:
    """Start a system, and wait for its first result."""
    driver = importlib.import_module(f"drivers.{name}").Driver(Path(folder))
    driver.start()
    driver.fetch(driver.send(works.double, 1))
    return driver


def main(name: str, folder: str, wanted: str) -> None:
    began = time.perf_counter()
    driver = start(name, folder)
    figures: dict[str, Any] = {"cold_start": {"seconds": time.perf_counter() - began}}
    try:
        for sent in [driver.send(works.nap, 0.2) for _ in range(drivers.WORKERS)]:
            driver.fetch(sent)
        for workload in wanted.split(","):
            try:
                with limited(LIMIT):
                    figures[workload] = WORKLOADS[workload](driver)
            except drivers.NotOffered:
                continue
            except Exception as error:
                figures[workload] = {"wrong": f"{type(error).__name__}: {error}"[:200]}
                # What is still on its way there would be measured with what comes next.
                driver.stop()
                driver = start(name, tempfile.mkdtemp(dir=folder))
    finally:
        print(json.dumps(figures), flush=True)
        driver.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
