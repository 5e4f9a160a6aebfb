"""Show where the time of a task that does nothing goes: `./dev profile`.

    ./dev profile                burst after burst of tasks, all results fetched
    ./dev profile --trips        one task at a time, each result fetched before the next is sent
    ./dev profile --seconds 20   longer, for steadier figures

py-spy (installed on demand into .bench/profile) looks at the client, the broker and a worker many
times a second while they work. What it finds is scaled to the processor time that each of them took
for a task, so that figures are microseconds of a task. Where the system lets nobody look at
processes that are not their own children (Linux: kernel.yama.ptrace_scope), it takes root.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

import nbtasks
from tests.benchmarks import plan, works
from tests.benchmarks.systems import ENVIRONMENTS, last_line

#: Looks a second; tasks in a burst; functions shown of each process.
RATE = 400
BURST = 10_000
SHOWN = 14
#: py-spy takes a thread that waits here for one that works.
WAITS = "poll (zmq/"


class Looked:
    """What was seen of one process: how often each function was at work, or one called by it."""

    def __init__(self, stacks: Path) -> None:
        self.own: Counter[str] = Counter()
        self.whole: Counter[str] = Counter()
        for line in stacks.read_text(encoding="utf-8").splitlines():
            stack, count = line.rsplit(" ", 1)
            if WAITS in stack.rpartition(";")[2]:
                continue
            functions = [frame.rpartition(":")[0] + ")" for frame in stack.split(";")]
            self.own[functions[-1]] += int(count)
            for function in set(functions):
                self.whole[function] += int(count)

    def table(self, cost: float) -> str:
        """Return the dearest functions: microseconds of a task, their own and with what they call.

        Parameters
        ----------
        cost
            Microseconds of processor time that the process took for a task.
        """
        each = cost / max(self.own.total(), 1)
        lines = [
            f"  {self.own[function] * each:6.1f} {self.whole[function] * each:6.1f}  {function}"
            for function, _ in self.own.most_common(SHOWN)
        ]
        return "\n".join(["     own  whole", *lines])


def py_spy() -> Path:
    """Install py-spy, once, and return the program."""
    folder = ENVIRONMENTS / "profile"
    program = folder / ("Scripts/py-spy.exe" if os.name == "nt" else "bin/py-spy")
    if not program.exists():
        make = [sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)]
        pip = [sys.executable, "-m", "pip", "--python", str(folder), "install", "-q", "py-spy"]
        for command in (make, pip):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"py-spy cannot be installed: {last_line(done.stderr)}")
    return program


def look_at(pid: int, seconds: int, stacks: Path) -> subprocess.Popen[str]:
    how = ["record", "--rate", str(RATE), "--duration", str(seconds), "--format", "raw"]
    command = [str(py_spy()), *how, "--output", str(stacks), "--pid", str(pid)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def cpu(pids: dict[str, int]) -> dict[str, float]:
    """Return the seconds of processor time that each process has taken."""
    return {name: sum(psutil.Process(pid).cpu_times()[:2]) for name, pid in pids.items()}


def work(seconds: float, *, trips: bool) -> int:
    """Send no-ops and fetch their results for so long; return how many."""
    noop, count, end = nbtasks.task(works.noop), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        if trips:
            noop.delay().get()
            count += 1
        else:
            for sent in [noop.delay() for _ in range(BURST)]:
                sent.get()
            count += BURST
    return count


def main() -> None:
    parser = argparse.ArgumentParser(prog="./dev profile", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=plan.positive, default=10, help="how long to look")
    parser.add_argument("--trips", action="store_true", help="one task at a time")
    asked = parser.parse_args()
    plan.end_in_order()
    with tempfile.TemporaryDirectory(prefix="nbt-") as folder:
        profile(Path(folder), asked.seconds, trips=asked.trips)


def profile(folder: Path, seconds: int, *, trips: bool) -> None:
    cluster = nbtasks.start(workers=2, dir=folder / "nb")
    try:
        work(1.0, trips=trips)  # so that all know the function and how long it takes
        worker = cluster.worker_pids()[0]
        pids = {"client": os.getpid(), "broker": cluster.broker_pid, "worker": worker}
        looks = {name: look_at(pid, seconds, folder / name) for name, pid in pids.items()}
        time.sleep(0.5)  # until they look
        before, began = cpu(pids), time.monotonic()
        count = work(seconds, trips=trips)
        taken, after = time.monotonic() - began, cpu(pids)
        wrong = {name: look.communicate()[0] for name, look in looks.items() if look.wait()}
    finally:
        cluster.shutdown(purge=True)
    print(f"{count:,} tasks, {count / taken:,.0f} a second while looked at")
    for name in pids:
        cost = (after[name] - before[name]) / count * 1e6
        print(f"\n{name}: {cost:.1f} us of a task{' (one of two)' * (name == 'worker')}")
        found = f"  cannot be looked at: {last_line(wrong[name])}" if name in wrong else ""
        print(found or Looked(folder / name).table(cost))


if __name__ == "__main__":
    main()
