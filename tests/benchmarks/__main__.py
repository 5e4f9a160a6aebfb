"""Measure nbtasks side by side with the standard library's process pools: `./dev bench`.

All take turns in one run on one machine, two workers each, and the median of the rounds counts:
absolute figures move from machine to machine, the ratios are what matters. Figures, goals and what
the machine was go to a JSON file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psutil

import nbtasks

ROOT = Path(__file__).parents[2]
WORKERS = 2

#: Seconds to wait for anything at all.
PATIENCE = 300


def noop() -> None:
    """Do nothing, which is all overhead."""


def nap(seconds: float) -> None:
    time.sleep(seconds)


def wait_for(path: str) -> None:
    """Keep a worker busy until the file exists."""
    while not os.path.exists(path):
        time.sleep(0.05)


COLD_START = """
import time
began = time.perf_counter()
import nbtasks

@nbtasks.task
def add(x, y):
    return x + y

cluster = nbtasks.start(workers={workers}, dir={dir!r})
assert add.delay(1, 2).get(timeout=60) == 3
print(time.perf_counter() - began)
cluster.shutdown(purge=True)
"""


class Goal(NamedTuple):
    """A figure that the project has set itself, and what was measured."""

    what: str
    measured: float
    limit: float
    #: Whether more is better.
    floor: bool
    unit: str = "x"

    @property
    def met(self) -> bool:
        return self.measured >= self.limit if self.floor else self.measured <= self.limit

    def row(self) -> str:
        sign = ">=" if self.floor else "<="
        verdict = "met" if self.met else "MISSED"
        return (
            f"{self.what:<52} {self.measured:>8.2f} {self.unit:<6}"
            f" {sign} {self.limit:g} {self.unit:<6} {verdict}"
        )


# -------------------------------------------------------------------------------------- the peers


class Peer(NamedTuple):
    """Something that runs functions in other processes."""

    name: str
    send: Callable[..., Any]
    fetch: Callable[[Any], Any]
    #: Ids of all processes that work for it, this one included.
    pids: Callable[[], list[int]]


@contextlib.contextmanager
def pools() -> Iterator[list[Peer]]:
    """Open the standard library's two pools, with all their workers running."""
    with ProcessPoolExecutor(WORKERS) as executor:
        for future in [executor.submit(nap, 0.2) for _ in range(WORKERS)]:
            future.result()
        executor_pids = children()
        with multiprocessing.Pool(WORKERS) as pool:
            pool_pids = children() - executor_pids
            yield [
                Peer(
                    "ProcessPoolExecutor",
                    executor.submit,
                    lambda future: future.result(),
                    lambda: [os.getpid(), *executor_pids],
                ),
                Peer(
                    "multiprocessing.Pool",
                    lambda function, *args: pool.apply_async(function, args),
                    lambda result: result.get(),
                    lambda: [os.getpid(), *pool_pids],
                ),
            ]


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


@contextlib.contextmanager
def cluster(scratch: Path, **options: Any) -> Iterator[Any]:
    """Start a cluster in a directory of its own, all its workers warm."""
    directory = Path(tempfile.mkdtemp(dir=scratch))
    started = nbtasks.start(workers=WORKERS, dir=directory, **options)
    try:
        sleep = nbtasks.task(nap)
        for result in [sleep.delay(0.2) for _ in range(WORKERS)]:
            result.get(timeout=PATIENCE)
        yield started
    finally:
        started.shutdown(purge=True)


def ours(running: Any) -> Peer:
    tasks: dict[Callable[..., Any], Any] = {}

    def send(function: Callable[..., Any], *args: Any) -> Any:
        return tasks[function].delay(*args)

    tasks[noop] = nbtasks.task(noop)
    pids = [os.getpid(), running.broker_pid, running.supervisor_pid, *running.worker_pids()]
    return Peer("nbtasks", send, lambda result: result.get(timeout=PATIENCE), lambda: pids)


# ----------------------------------------------------------------------------------- measurements


def in_turn(
    peers: list[Peer], rounds: int, measure: Callable[[Peer], dict[str, float]]
) -> dict[str, dict[str, float]]:
    """Let the peers take turns; return the median of each figure of each peer."""
    for peer in peers:
        measure(peer)
    taken: dict[str, list[dict[str, float]]] = {peer.name: [] for peer in peers}
    for number in range(rounds):
        for peer in peers if number % 2 else reversed(peers):
            taken[peer.name].append(measure(peer))
    return {
        name: {key: statistics.median(one[key] for one in all_) for key in all_[0]}
        for name, all_ in taken.items()
    }


def cpu_seconds(pids: list[int]) -> float:
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def throughput(number: int) -> Callable[[Peer], dict[str, float]]:
    def measure(peer: Peer) -> dict[str, float]:
        cpu, began = cpu_seconds(peer.pids()), time.perf_counter()
        for answer in [peer.send(noop) for _ in range(number)]:
            peer.fetch(answer)
        taken = time.perf_counter() - began
        cpu = cpu_seconds(peer.pids()) - cpu
        return {"tasks_per_second": number / taken, "cpu_per_thousand": cpu / number * 1000}

    return measure


def round_trip(number: int) -> Callable[[Peer], dict[str, float]]:
    def measure(peer: Peer) -> dict[str, float]:
        times = []
        for _ in range(number):
            began = time.perf_counter()
            peer.fetch(peer.send(noop))
            times.append((time.perf_counter() - began) * 1000)
        times.sort()
        return {"median_ms": statistics.median(times), "p99_ms": times[int(number * 0.99)]}

    return measure


def cold_start(scratch: Path, rounds: int) -> list[float]:
    """Return the seconds from `import nbtasks` to a first result, each in a new directory."""
    times = []
    for _ in range(rounds + 1):
        directory = tempfile.mkdtemp(dir=scratch)
        program = COLD_START.format(workers=WORKERS, dir=directory)
        answer = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, check=True, text=True, cwd=ROOT
        )
        times.append(float(answer.stdout))
    return times[1:]


def backlog(scratch: Path, number: int) -> float:
    """Return the broker's resident bytes for each of `number` calls that wait for a worker."""
    gate = scratch / "gate"
    with cluster(scratch) as running:
        task, stopper = nbtasks.task(noop), nbtasks.task(wait_for)
        held = [stopper.delay(str(gate)) for _ in range(WORKERS)]
        # The first hundreds pay for caches and buffers that the rest will use again.
        task.apply_async(confirm=True)
        for _ in range(1000):
            task.delay()
        task.apply_async(confirm=True)
        broker = psutil.Process(running.broker_pid)
        before = broker.memory_info().rss
        for _ in range(number - 1):
            task.delay()
        task.apply_async(confirm=True)
        grown = broker.memory_info().rss - before
        gate.touch()
        for result in held:
            result.get(timeout=PATIENCE)
    return grown / number


# ----------------------------------------------------------------------------------------- report


def measure_all(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    with pools() as peers:
        say(f"{arguments.tasks:,} no-ops one by one, durability='full'")
        with cluster(scratch, durability="full") as running:
            everyone = [ours(running), *peers]
            figures["throughput"] = in_turn(everyone, arguments.rounds, throughput(arguments.tasks))
        say(f"{arguments.trips:,} round trips one after the other, durability='normal'")
        with cluster(scratch, durability="normal") as running:
            everyone = [ours(running), *peers]
            figures["round_trip"] = in_turn(everyone, arguments.rounds, round_trip(arguments.trips))
    say("cold start")
    figures["cold_start_seconds"] = statistics.median(cold_start(scratch, arguments.rounds))
    say(f"{arguments.backlog:,} queued")
    figures["backlog_bytes"] = backlog(scratch, arguments.backlog)
    return figures


def goals(figures: dict[str, Any]) -> list[Goal]:
    executor, pool = "ProcessPoolExecutor", "multiprocessing.Pool"
    rate = {name: one["tasks_per_second"] for name, one in figures["throughput"].items()}
    cpu = {name: one["cpu_per_thousand"] for name, one in figures["throughput"].items()}
    trip = {name: one["median_ms"] for name, one in figures["round_trip"].items()}
    return [
        Goal(f"no-ops: rate against {executor}", rate["nbtasks"] / rate[executor], 3, True),
        Goal(f"no-ops: rate against {pool}", rate["nbtasks"] / rate[pool], 1.5, True),
        Goal(f"no-ops: CPU against {executor}", cpu["nbtasks"] / cpu[executor], 1 / 3, False),
        Goal(f"round trip against {executor}", trip["nbtasks"] / trip[executor], 3, False),
        Goal("cold start to first result", figures["cold_start_seconds"], 0.7, False, "s"),
        Goal("broker memory for each queued task", figures["backlog_bytes"], 600, False, "bytes"),
    ]


def print_figures(figures: dict[str, Any]) -> None:
    print(f"\n{'':<22}{'no-ops/s':>12}{'CPU s/1,000':>14}{'trip ms':>10}{'p99 ms':>9}")
    for name, one in figures["throughput"].items():
        trip = figures["round_trip"][name]
        print(
            f"{name:<22}{one['tasks_per_second']:>12,.0f}{one['cpu_per_thousand']:>14.4f}"
            f"{trip['median_ms']:>10.2f}{trip['p99_ms']:>9.2f}"
        )
    print()


def say(text: str) -> None:
    print(f"-- {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: 5)")
    parser.add_argument("--tasks", type=int, default=10_000, help="no-ops a turn")
    parser.add_argument("--trips", type=int, default=500, help="round trips a turn")
    parser.add_argument("--backlog", type=int, default=100_000, help="queued tasks")
    parser.add_argument("--json", type=Path, default=ROOT / ".bench" / "latest.json")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a goal is missed")
    arguments = parser.parse_args()
    # Without bytecode files each process would compile all it imports.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

    scratch = Path(tempfile.mkdtemp(prefix="nbt-"))
    try:
        figures = measure_all(arguments, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)

    print_figures(figures)
    results = goals(figures)
    for goal in results:
        print(goal.row())
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    machine = {"python": platform.python_version(), "platform": platform.platform()}
    machine["cores"] = str(os.cpu_count())
    report = {"machine": machine, "figures": figures, "goals": [goal._asdict() for goal in results]}
    arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nwritten to {arguments.json}")
    return 1 if arguments.strict and not all(goal.met for goal in results) else 0


if __name__ == "__main__":
    sys.exit(main())
