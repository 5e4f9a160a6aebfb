"""Show that a task costs the same whatever is around it: `./dev growth`.

    ./dev growth              1,000 to 100,000 queued, 2 to 64 workers, 1 to 8 clients; minutes
    ./dev growth --million    with 1,000,000 queued as well

What counts is the processor time of client and broker (and memory): rates move with the load of a
machine. Each row is compared with the first of its kind that has enough tasks to be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

import nbtasks
from tests.benchmarks import plan, works
from tests.benchmarks.systems import ENVIRONMENTS

#: Part by which a task may cost more than in the row to compare with.
FLAT = 0.2
#: Each row is measured so often, in turn with the others; the medians count: machines have moods.
ROUNDS = 3
#: Rows from this size on are large enough to be measured once.
LARGE = 1_000_000
#: Tasks that are sent in all for each row, so that small rows are measured as well as large ones.
ENOUGH = 20_000

#: What one of several clients does.
CLIENT = """
import sys, nbtasks
from tests.benchmarks import works
nbtasks.connect(sys.argv[1])
noop = nbtasks.task(works.noop)
for warm in [noop.delay() for _ in range(500)]:
    warm.get(timeout=600)
print("ready", flush=True)
input()
sent = [noop.delay() for _ in range(int(sys.argv[2]))]
assert [each.get(timeout=600) for each in sent] == [None] * len(sent)
print("done", flush=True)
input()
"""

Row = dict[str, Any]


@contextmanager
def running(workers: int) -> Iterator[nbtasks.Cluster]:
    with tempfile.TemporaryDirectory(prefix="nbt-") as folder:
        cluster = nbtasks.start(workers=workers, dir=Path(folder) / "nb", durability="full")
        try:
            warm = [nbtasks.task(works.noop).delay() for _ in range(2_000)]
            for each in warm:
                each.get(timeout=600)
            yield cluster
        finally:
            cluster.shutdown(purge=True)


def cpu(*pids: int) -> float:
    """Return the processor time that these processes have taken, seconds."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def settled(*pids: int) -> float:
    """Wait until these processes are idle; return the processor time that they have taken."""
    taken = cpu(*pids)
    while True:
        time.sleep(0.3)
        if (now := cpu(*pids)) - taken < 0.02:
            return now
        taken = now


def queued(number: int) -> Row:
    """Queue so many behind busy workers, again and again until there were enough."""
    accept, finish, size = [], [], []
    with running(2) as cluster, tempfile.TemporaryDirectory(prefix="nbt-") as folder:
        noop, wait = nbtasks.task(works.noop), nbtasks.task(works.wait_for)
        pids, broker = (os.getpid(), cluster.broker_pid), psutil.Process(cluster.broker_pid)
        for turn in range(max(ENOUGH // number, 1)):
            gate = Path(folder) / str(turn)
            held = [wait.delay(str(gate)) for _ in range(2)]
            memory, before = broker.memory_info().rss, settled(*pids)
            sent = [noop.delay() for _ in range(number)]
            accept.append((settled(*pids) - before) / number * 1e6)
            size.append((broker.memory_info().rss - memory) / number)
            before = cpu(*pids)
            gate.touch()
            for each in (*held, *sent):
                each.get(timeout=600)
            finish.append((settled(*pids) - before) / number * 1e6)
    return {
        "accept, us": statistics.median(accept),
        "finish, us": statistics.median(finish),
        "both, us": statistics.mean(accept) + statistics.mean(finish),
        "memory, B": max(size),
    }


def idle(workers: int) -> Row:
    """Run tasks where most workers have nothing to do, and then nothing at all."""
    with running(workers) as cluster:
        noop, pids = nbtasks.task(works.noop), (os.getpid(), cluster.broker_pid)
        everybody = [cluster.supervisor_pid, cluster.broker_pid, *cluster.worker_pids()]
        before = cpu(*pids)
        for each in [noop.delay() for _ in range(ENOUGH)]:
            each.get(timeout=600)
        both = (settled(*pids) - before) / ENOUGH * 1e6
        before = settled(*everybody)
        time.sleep(5.0)
        percent = (cpu(*everybody) - before) / 5 * 100
        memory = sum(psutil.Process(pid).memory_full_info().pss for pid in everybody) / 1e6
    return {"both, us": both, "idle, % of a core": percent, "memory, MB": memory}


def clients(number: int) -> Row:
    """Let several processes send to one cluster at the same time, as many calls together."""
    with running(2) as cluster:
        command = [sys.executable, "-c", CLIENT, str(cluster.dir), str(ENOUGH // number)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        peers = [subprocess.Popen(command, **pipes) for _ in range(number)]
        for peer in peers:
            assert peer.stdout
            assert peer.stdout.readline() == "ready\n"
        pids = [cluster.broker_pid, *(peer.pid for peer in peers)]
        before = settled(*pids)
        for peer in peers:
            print(file=peer.stdin, flush=True)
        right = [peer.stdout.readline() == "done\n" for peer in peers if peer.stdout]
        taken = settled(*pids) - before
        for peer in peers:
            peer.communicate("\n")
    assert all(right), "a client did not get its results"
    return {"both, us": taken / ENOUGH * 1e6}


def measured(measure: Callable[[int], Row], numbers: list[int]) -> dict[int, Row]:
    """Measure each row some times; return the medians."""
    found: dict[int, list[Row]] = {number: [] for number in numbers}
    for turn in range(ROUNDS):
        for number in numbers:
            if turn == 0 or number < LARGE:
                found[number].append(measure(number))
    return {
        number: {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        for number, rows in found.items()
    }


def show(title: str, rows: dict[int, Row]) -> bool:
    """Print the rows; return whether a task costs the same in all of them, or less."""
    print(f"\n{title}")
    first = next(iter(rows.values()))
    flat = True
    for number, row in rows.items():
        ratio = row["both, us"] / first["both, us"]
        flat = flat and ratio <= 1 + FLAT
        figures = "   ".join(f"{name} {value:,.1f}" for name, value in row.items())
        print(f"  {number:9,}   {figures}   {ratio:.2f} x")
    print(f"  flat within {FLAT:.0%}: {'met' if flat else 'MISSED'}", flush=True)
    return flat


def main() -> None:
    parser = argparse.ArgumentParser(prog="./dev growth", description=__doc__.partition("\n")[0])
    parser.add_argument("--million", action="store_true", help="with 1,000,000 queued as well")
    plan.end_in_order()
    sizes = [1_000, 10_000, 100_000] + [1_000_000] * parser.parse_args().million
    kinds = {
        "queued tasks (client and broker, us of a task)": (queued, sizes),
        "workers, most of them idle": (idle, [2, 8, 32, 64]),
        "clients at the same time": (clients, [1, 2, 4, 8]),
    }
    found, flat = {}, []
    for title, (measure, numbers) in kinds.items():
        rows = measured(measure, numbers)
        flat.append(show(title, rows))
        found[title] = rows
    folder = ENVIRONMENTS / "latest"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "growth.json").write_text(json.dumps(found, indent=1))
    sys.exit(0 if all(flat) else "A task does not cost the same everywhere.")


if __name__ == "__main__":
    main()
