"""One turn of one system: `python turn.py DRIVER FOLDER WORKLOADS`, in that system's environment.

Prints one line of JSON for each workload: its name and its figures, or why there are none. After
one that went wrong the process ends: what is still on its way would be measured with the next.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import drivers
import numpy
import plan
import psutil
import works

Figures = dict[str, float]
CPU = dict[int, float]
MB = 1_000_000
#: Seconds in which a system that has nothing to do finishes what it has put off.
TIDY = 0.5
#: How often what chooses its chunk size is tried: as often as there are sizes for the others.
TRIES = 3
#: Large calls that are under way at once: 50 of 200 MB would be more than a machine's memory.
AFLOAT = 4 * drivers.WORKERS


def one_by_one(driver: drivers.Driver, number: int = 10_000) -> Figures:
    """Send no-ops one by one and fetch all results."""
    before, began = cpu(driver), time.perf_counter()
    for sent in [driver.send(works.noop) for _ in range(number)]:
        driver.fetch(sent)
    taken = time.perf_counter() - began
    return {"rate": number / taken, "cpu": spent(before, tidied(driver)) / number * 1000}


def idle(driver: drivers.Driver, seconds: float = 20.0) -> Figures:
    """Give it nothing to do: what do its processes take, this one left out?"""
    time.sleep(1)
    before = cpu(driver, caller=False)
    time.sleep(seconds)
    used = spent(before, cpu(driver, caller=False))
    return {
        "megabytes": shared_once(driver) / MB,
        "resident": memory(driver) / MB,
        "percent": used / seconds * 100,
    }


def mapped(driver: drivers.Driver, number: int = 100_000) -> Figures:
    """Do many small things, in the way that is meant for many, with the best chunk size.

    A system that chooses it by itself has as many tries: only the first one finds all cold.
    """
    if not driver.chunks:
        number //= driver.slow
    best: Figures = {"rate": 0.0}
    for chunk in driver.chunks or (0,) * TRIES:
        began = time.perf_counter()
        assert driver.map(works.double, list(range(number)), chunk)[-1] == 2 * number - 2
        rate = number / (time.perf_counter() - began)
        best = max(best, {"rate": rate, "chunk": chunk}, key=lambda found: found["rate"])
    return {**best, "number": number}


def round_trip(driver: drivers.Driver, number: int = 300) -> Figures:
    """Send one, fetch it, send the next."""
    times = []
    for _ in range(number):
        began = time.perf_counter()
        driver.fetch(driver.send(works.noop))
        times.append((time.perf_counter() - began) * 1000)
    return {"median": statistics.median(times), "p99": sorted(times)[int(number * 0.99)]}


def fsync(driver: drivers.Driver, number: int = 200) -> Figures:
    """Put one page of a database on the disk that the system's files are on.

    Over one that is there already, as a database does with its log: that is the cheaper way.
    """
    times = []
    keep = getattr(os, "fdatasync", os.fsync)
    with open(driver.folder / "fsync", "w+b", buffering=0) as file:
        file.write(bytes(4096 * number))
        os.fsync(file)
        file.seek(0)
        for _ in range(number):
            began = time.perf_counter()
            file.write(bytes(4096))
            keep(file.fileno())
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
    afloat: collections.deque[Any] = collections.deque()
    for place in range(number + AFLOAT):
        if place >= AFLOAT:
            assert driver.fetch(afloat.popleft()) == megabytes * MB
        if place < number:
            afloat.append(driver.send(works.weigh, shared))
    return {"seconds": time.perf_counter() - began}


def linear_algebra(driver: drivers.Driver, number: int = 8) -> Figures:
    """Let some tasks decompose small matrices side by side, and one multiply large ones alone."""
    for sent in [driver.send(works.decompose, 150, 1) for _ in range(drivers.WORKERS)]:
        driver.fetch(sent)  # numpy is there
    began = time.perf_counter()
    for sent in [driver.send(works.decompose, 150, 20) for _ in range(number)]:
        driver.fetch(sent)
    beside = time.perf_counter() - began
    began = time.perf_counter()
    driver.fetch(driver.send(works.multiply, 1_000, 20))
    return {"seconds": beside, "alone": time.perf_counter() - began}


def backlog_thousand(driver: drivers.Driver, times: int = 20) -> Figures:
    """Queue 1,000, so often that their cost can be told from the clock's ticks."""
    times = max(1, times // driver.slow)
    rounds = [backlog(driver, 1_000 * driver.slow, patient=False) for _ in range(times)]
    return {"cpu": statistics.fmean(found["cpu"] for found in rounds)}


def backlog(driver: drivers.Driver, number: int = 100_000, patient: bool = True) -> Figures:
    """Queue many while all workers are busy, then let them run.

    Memory is what the queue takes, CPU what a task costs from `send` to `fetch`.
    """
    number //= driver.slow
    gate = driver.folder / f"gate-{time.time_ns()}"
    held = [driver.send(works.wait_for, str(gate)) for _ in range(drivers.WORKERS)]
    me = psutil.Process()
    before, mine, ran = memory(driver), me.memory_info().rss, cpu(driver)
    sent = [driver.send(works.noop) for _ in range(number)]
    if patient:
        settle(driver)
    grown, caller = memory(driver) - before, me.memory_info().rss - mine
    gate.touch()
    for each in (*held, *sent):
        driver.fetch(each)
    return {
        "bytes": grown / number,
        "bytes_with_caller": (grown + caller) / number,
        "cpu": spent(ran, tidied(driver)) / number * 1000,
        "number": number,
    }


def timers(driver: drivers.Driver, number: int = 10_000, wait: float = 15.0) -> Figures:
    """Let many fall due at one instant: how late do they run?"""
    wait *= 3 if driver.slow > 1 else 1
    due = time.time() + wait
    sent = [driver.send_at(due, works.stamp) for _ in range(number)]
    if time.time() > due:
        raise TimeoutError(f"took more than {wait} s to send {number} calls")
    late = sorted((driver.fetch(each) - due) * 1000 for each in sent)
    return {"median": statistics.median(late), "p99": late[int(number * 0.99)], "first": late[0]}


def progress(driver: drivers.Driver, number: int = 10_000, times: int = 5) -> Figures:
    """Let one task tell often how far it is, and then another one: the first finds all cold."""
    rates = []
    for _ in range(times):
        began = time.perf_counter()
        arrived = driver.progress(number)
        rates.append(arrived / (time.perf_counter() - began))
    return {"rate": statistics.median(rates), "number": arrived}


def recovery(driver: drivers.Driver, times: int = 3) -> Figures:
    """Kill a worker in the middle of a task: when does the task run again?"""
    taken = []
    for number in range(times):
        time.sleep(1)  # for what it keeps ready for such a case
        path = str(driver.folder / f"died-{number}")
        taken.append(driver.fetch(driver.survivor(works.die_once, path)))
    return {"seconds": statistics.median(taken)}


WORKLOADS: dict[str, Callable[..., Figures]] = {
    "idle": idle,
    "one_by_one": one_by_one,
    "map": mapped,
    "round_trip": round_trip,
    "fsync": fsync,
    "1_MB_in": lambda driver: data_in(driver, 1),
    "1_MB_out": lambda driver: data_out(driver, 1),
    "64_MB_in": lambda driver: data_in(driver, 64),
    "64_MB_out": lambda driver: data_out(driver, 64),
    "512_MB_in": lambda driver: data_in(driver, 512),
    "512_MB_out": lambda driver: data_out(driver, 512),
    "one_to_many": one_to_many,
    "linear_algebra": linear_algebra,
    "backlog_1000": backlog_thousand,
    "backlog": backlog,
    "backlog_million": lambda driver: backlog(driver, 1_000_000),
    "timers": timers,
    "progress": progress,
    "recovery": recovery,
}


def cpu(driver: drivers.Driver, caller: bool = True) -> CPU:
    """Return the processor seconds of each process, so far."""
    return {
        each.pid: sum(times[:2]) for each, times in ask(driver, caller, psutil.Process.cpu_times)
    }


def tidied(driver: drivers.Driver) -> CPU:
    """Return the same a moment later: what a system puts off until it is idle counts as well."""
    time.sleep(TIDY)
    return cpu(driver)


def spent(before: CPU, after: CPU) -> float:
    """Return the seconds between; a process that has ended meanwhile takes nothing back."""
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())


def memory(driver: drivers.Driver) -> int:
    """Return the resident bytes of all that works for the driver, this process left out."""
    return sum(info.rss for _, info in ask(driver, False, psutil.Process.memory_info))


def shared_once(driver: drivers.Driver) -> int:
    """Return the same, but pages that processes share are counted once, where the system tells."""
    infos = ask(driver, False, psutil.Process.memory_full_info)
    return sum(getattr(info, "pss", info.rss) for _, info in infos)


def ask(
    driver: drivers.Driver, caller: bool, what: Callable[[psutil.Process], Any]
) -> Iterator[tuple[psutil.Process, Any]]:
    """Ask the driver's processes; one that ends meanwhile has nothing to say."""
    for pid in {*driver.pids()} - (set() if caller else {os.getpid()}):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            yield process, what(process)


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


def tell(workload: str, found: dict[str, Any]) -> None:
    print(json.dumps([workload, found]), flush=True)


def start(name: str, folder: str) -> drivers.Driver:
    """Start a system, and wait for its first result."""
    driver: drivers.Driver = importlib.import_module(f"drivers.{name}").Driver(Path(folder))
    driver.start()
    driver.fetch(driver.send(works.double, 1))
    return driver


def attempt(driver: drivers.Driver, workload: str) -> bool:
    """Do one workload and tell what came of it; return whether the next can follow."""
    try:
        with limited(plan.limit(workload)):
            found: dict[str, Any] = dict(WORKLOADS[workload](driver))
    except drivers.NotOffered:
        found = {"not_offered": True}
    except Exception as error:
        found = {"wrong": f"{type(error).__name__}: {error}"[:200]}
    tell(workload, found)
    return "wrong" not in found


def main(name: str, folder: str, wanted: str) -> None:
    workloads = wanted.split(",")
    began = time.perf_counter()
    with limited(plan.START):
        driver = start(name, folder)
    taken = time.perf_counter() - began
    try:
        if "cold_start" in workloads:
            workloads.remove("cold_start")
            tell("cold_start", {"seconds": taken})
        for sent in [driver.send(works.nap, 0.2) for _ in range(drivers.WORKERS)]:
            driver.fetch(sent)
        for workload in workloads:
            if not attempt(driver, workload):
                break
    finally:
        with limited(plan.START):
            driver.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
