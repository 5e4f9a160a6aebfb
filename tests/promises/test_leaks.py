"""Many tasks and many deaths leave nothing behind: descriptors, memory, threads, zombies, files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

import nbtasks
from nbtasks.wire.connection import SEGMENTS
from tests.kernels import Kernel
from tests.living import SOON, eventually, kill, lives
from tests.promises.faults import changed

MakeCluster = Callable[..., nbtasks.Cluster]
Measure = Callable[..., None]

#: Lets the supervisor drop cells soon, that it keeps for half a minute.
HASTY = """
    from nbtasks.supervisor import supervise
    supervise.SAVED, supervise.LOOK = 0.5, 0.2
"""
#: Tasks that are open at a time.
ROUND = 200
#: By how much a process may grow.
MOST = {"file descriptors": 4, "threads": 0, "memory": 40}
#: Logs of workers: of the living, and of those that died last.
LOGS = 40


@nbtasks.task
def work(number: int, size: int = 0) -> tuple[int, bytes]:
    print("said", number)
    return number, bytes(size)


class Holding(NamedTuple):
    """What a process holds."""

    descriptors: int
    threads: int
    megabytes: float


#: By the role of the process.
Holdings = dict[str, Holding]


def holding(pid: int) -> Holding:
    process = psutil.Process(pid)
    return Holding(process.num_fds(), process.num_threads(), process.memory_info().rss / 1e6)


def workers_hold(cluster: nbtasks.Cluster) -> Holdings:
    return {f"worker {pid}": holding(pid) for pid in sorted(cluster.worker_pids())}


def holdings(cluster: nbtasks.Cluster) -> Holdings:
    pids = {
        "client": os.getpid(),
        "broker": cluster.broker_pid,
        "supervisor": cluster.supervisor_pid,
    }
    return {name: holding(pid) for name, pid in pids.items()}


def run_tasks(number: int) -> None:
    """Run tasks, in rounds, some with large results; read all results and forget the large ones."""
    for begun in range(0, number, ROUND):
        count = min(ROUND, number - begun)
        results = [work.delay(n, 1_000_000 * (n % 20 == 7)) for n in range(count)]
        assert [result.get(timeout=SOON)[0] for result in results] == list(range(count))
        for result in results[7::20]:
            result.forget()


def kill_workers(cluster: nbtasks.Cluster, deaths: int) -> None:
    """Kill all workers again and again; each time, tasks go on."""
    while deaths > 0:
        workers = cluster.worker_pids()
        kill(*workers)
        deaths -= len(workers)
        eventually(lambda workers=workers: not set(workers) & set(cluster.worker_pids()))
        run_tasks(5)


def kill_brokers(cluster: nbtasks.Cluster, deaths: int) -> None:
    for _ in range(deaths):
        broker = cluster.broker_pid
        kill(broker)
        eventually(lambda broker=broker: cluster.broker_pid != broker)
        run_tasks(5)


def zombies(pids: Iterable[int]) -> int:
    children = [child for pid in pids for child in psutil.Process(pid).children()]
    return sum(not lives(child.pid) for child in children)


def compare(measure: Measure, before: Holdings, now: Holdings, after: str) -> None:
    """Note by how much the process that has grown most has grown."""
    for place, (what, most) in enumerate(MOST.items()):
        grown = {name: now[name][place] - before[name][place] for name in before}
        name = max(grown, key=lambda name: grown[name])
        unit = "MB" if what == "memory" else ""
        measure("P21", f"{what}, {after} ({name})", grown[name], most=most, unit=unit)


def files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


@pytest.mark.timeout(900)
def test_many_tasks_and_deaths_leave_nothing_behind(
    make_cluster: MakeCluster, short_path: Path, full: bool, measure: Measure
):
    tasks, deaths = (20_000, 100) if full else (2_000, 50)
    with changed(short_path / "site", supervisor=HASTY):
        cluster = make_cluster(workers=4)
    run_tasks(1_000)
    kill_workers(cluster, 4)
    before = holdings(cluster)
    dead = zombies([os.getpid()])  # of earlier tests

    living = workers_hold(cluster)
    run_tasks(tasks)
    compare(measure, living, workers_hold(cluster), f"{tasks:,} tasks")
    kill_workers(cluster, deaths * 4 // 5)
    after = f"{tasks:,} tasks + {deaths * 4 // 5} dead workers"
    compare(measure, before, settled(lambda: holdings(cluster), before), after)

    kill_brokers(cluster, 2)
    before = holdings(cluster)
    kill_brokers(cluster, deaths // 5)
    now = settled(lambda: holdings(cluster), before)
    compare(measure, before, now, f"{deaths // 5} dead brokers")
    measure("P21", "zombies", zombies([os.getpid(), cluster.supervisor_pid]) - dead, most=0)

    cells, logs = cluster.dir / "cells", cluster.dir / "logs"
    eventually(lambda: files(cells) <= 4)
    measure("P21", "cells of 4 workers", files(cells), most=4)
    measure("P21", "logs", files(logs), most=LOGS)
    large = cluster.dir / SEGMENTS
    eventually(lambda: not files(large))
    measure("P21", "files of large results that were forgotten", files(large), most=0)
    others = [path for path in cluster.dir.iterdir() if path.is_file()]
    measure("P21", "other files of the cluster", len(others), most=10)


def settled(held: Callable[[], Holdings], before: Holdings) -> Holdings:
    """Return what is held once the last is dealt with, or soon if that never comes."""

    def is_flat() -> bool:
        now = held()
        return all(
            grown <= least
            for name in before
            for grown, least in zip(now[name][:2], before[name][:2], strict=True)
        )

    for _ in range(100):
        if is_flat():
            break
        time.sleep(0.02)
    return held()


CELL = "result = work.delay({number}); result.get(timeout=30)[0]"


def test_session_of_many_cells_with_panels_stays_small(
    short_path: Path, full: bool, measure: Measure
):
    cells = 200 if full else 100
    with Kernel("python3", short_path) as kernel:
        kernel.run(
            "%load_ext nbtasks\n"
            "import nbtasks, os\n"
            "cluster = nbtasks.start(dir='c', workers=2)\n"
            "@nbtasks.task\n"
            "def work(number):\n"
            "    print('said', number)\n"
            "    return number, bytes(1_000_000)"
        )
        pid = int(kernel.run("print(os.getpid())"))
        for number in range(20):
            kernel.run(CELL.format(number=number))
        before = {"kernel": holding(pid)}
        for number in range(cells):
            kernel.run(CELL.format(number=number))
        now = settled(lambda: {"kernel": holding(pid)}, before)
        compare(measure, before, now, f"{cells} cells with panels")
        kernel.run("cluster.shutdown()")
