"""P1: whoever is killed, whenever, nothing that was accepted is lost, and nothing is told twice.

Kernels (`sender.py`) send tasks and write down, outside of the cluster, what they were told; the
tasks write down that they run. Meanwhile a storm kills the kernel, the supervisor, the broker, a
worker or all at once, also in the very commit, and freezes some of them for a while. When it is
over, what the cluster says is held against the ledger.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

import nbtasks
from nbtasks.exceptions import WorkerLostError
from nbtasks.result import AsyncResult
from tests.living import SOON, eventually
from tests.promises.faults import changed
from tests.promises.sender import large, mark

SENDER = Path(__file__).with_name("sender.py")
READY = {"SUCCESS", "FAILURE", "REVOKED"}

#: Kills in one round, each round with a cluster of its own.
ROUND = 50

#: Who is hit, and how often: `commit` is the broker while it commits.
BLOWS = {"worker": 6, "broker": 4, "commit": 3, "kernel": 3, "supervisor": 3, "everything": 2}
#: Deaths after which a task is given up (P8).
MOST_DEATHS = 3

#: Code for brokers: die so many seconds after the beginning of the next commit, if it is ordered.
DIE_IN_COMMIT = """
    import os, threading, time
    from nbtasks.broker.store import Store

    commit, order = Store.commit, {order!r}

    def commit_and_die(self, turn, now):
        if turn.saves and os.path.exists(order):
            with open(order) as file:
                delay = float(file.read())
            os.unlink(order)
            blow = lambda: (time.sleep(delay), os.kill(os.getpid(), 9))
            threading.Thread(target=blow, daemon=True).start()
        return commit(self, turn, now)

    Store.commit = commit_and_die
"""


# ------------------------------------------------------------------------------------ the storm


class Storm:
    """One cluster, one kernel at a time, and what happens to them."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.runtime, self.ledger, self.order = folder / "c", folder / "ledger", folder / "order"
        self.ledger.mkdir()
        self.rng = rng
        self.kernels: list[subprocess.Popen[bytes]] = []
        self.log: list[str] = []
        self.kills = 0
        self.began = time.monotonic()

    def note(self, *words: Any) -> None:
        self.log.append(f"{time.monotonic() - self.began:8.3f} s  {' '.join(map(str, words))}")

    def start_kernel(self) -> None:
        name, seed = f"k{len(self.kernels)}", self.rng.randrange(10**9)
        words = [sys.executable, SENDER, self.runtime, self.ledger, name, seed]
        with open(self.ledger / f"{name}.log", "wb") as log:
            kernel = subprocess.Popen(
                list(map(str, words)), stdout=log, stderr=log, start_new_session=True
            )
        self.kernels.append(kernel)

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Return all that belongs to the cluster, found by what it was started with."""
        found = defaultdict(list)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if str(self.runtime) in words:
                    module = next((word for word in words if word.startswith("nbtasks.")), "")
                    found[module.removeprefix("nbtasks.") or "kernel"].append(process)
        for processes in found.values():
            processes.sort(key=lambda process: process.pid)
        return found

    def rage(self, kills: int) -> None:
        """Hit again and again: at times while all goes well, at times while they get up again."""
        self.start_kernel()
        self.await_progress()
        while self.kills < kills:
            if self.rng.random() < 0.7:
                self.hit()
            else:
                # So that what the others would do about the first cannot come before the second.
                with self.somebody_frozen():
                    for _ in range(self.rng.randint(1, 3)):
                        self.hit()
                        time.sleep(self.rng.expovariate(1 / 0.03))
            if self.rng.random() < 0.7:
                self.await_progress()
            time.sleep(self.rng.expovariate(1 / 0.3))

    def hit(self) -> None:
        self.kills += 1
        kind = self.rng.choices(list(BLOWS), list(BLOWS.values()))[0]
        processes = self.processes()
        victims = everyone(processes) if kind == "everything" else processes.get(kind, [])
        if kind == "commit":
            self.note("broker, in a commit", [process.pid for process in processes["broker"]])
            self.order.write_text(str(self.rng.uniform(0, 0.004)))
        elif kind == "worker":
            victims = victims and [self.rng.choice(victims)]
        if kind != "commit":
            self.note(kind, [process.pid for process in victims])
        for process in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if kind in ("kernel", "everything"):
            self.kernels[-1].wait(SOON)
            self.start_kernel()

    @contextlib.contextmanager
    def somebody_frozen(self) -> Iterator[None]:
        kind = self.rng.choice(("worker", "broker", "supervisor", "kernel"))
        frozen = self.processes().get(kind, [])[:1]
        self.note("frozen:", kind, [process.pid for process in frozen])
        for process in frozen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        try:
            time.sleep(self.rng.uniform(0, 0.5))
            yield
            time.sleep(self.rng.uniform(0, 0.5))
        finally:
            for process in frozen:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()
            self.note("thawed")

    def await_progress(self) -> None:
        """Wait until one more task has begun, after whatever has happened."""
        before = self.runs()

        def progress() -> bool:
            assert self.kernels[-1].poll() is None, "the kernel has ended"
            return self.runs() > before and not self.order.exists()

        eventually(progress, 2 * SOON)

    def runs(self) -> int:
        path = self.ledger / "runs"
        return path.stat().st_size if path.exists() else 0

    def calm_down(self) -> None:
        """Let the last kernel see everything through."""
        (self.ledger / "enough").touch()
        assert self.kernels[-1].wait(4 * SOON) == 0, self.told_by_kernels()
        self.note("calm")

    def told_by_kernels(self) -> str:
        logs = (path.read_text("utf-8", "replace") for path in self.ledger.glob("k*.log"))
        return "\n".join(filter(None, logs))

    def end(self) -> None:
        """Leave nobody, whatever has happened."""
        for process in everyone(self.processes()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for kernel in self.kernels:
            kernel.wait(SOON)

    def page(self, name: str) -> list[list[str]]:
        path = self.ledger / name
        return [line.split(" ") for line in path.read_text().splitlines()] if path.exists() else []


def everyone(processes: dict[str, list[psutil.Process]]) -> list[psutil.Process]:
    return list(chain.from_iterable(processes.values()))


# ---------------------------------------------------------------------------------- the judgement


class Fate(NamedTuple):
    """What the cluster says of a task in the end."""

    state: str
    value: Any
    history: list[Any]


class Judge:
    """Hold what the cluster says against the ledger."""

    def __init__(self, storm: Storm) -> None:
        self.storm = storm
        self.sent: dict[str, tuple[str, int]] = {}
        self.fates: dict[str, Fate] = {}
        # What was sent by kernels that are dead may still run, and send more.
        while fresh := [words for words in storm.page("sent") if words[0] not in self.sent]:
            self.sent.update({task_id: (kind, int(n)) for task_id, kind, n in fresh})
            found = {task_id: fate_of(task_id) for task_id, *_ in fresh}
            self.fates.update({task_id: fate for task_id, fate in found.items() if fate})
        self.accepted = {task_id for (task_id,) in storm.page("accepted")}
        self.runs: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for task_id, retries, pid in storm.page("runs"):
            self.runs[task_id][int(retries)].append(int(pid))

    def verdict(self) -> dict[str, list[str]]:
        """Return the tasks with which something is wrong, and what it is."""
        checks = (self.lost, self.wrong, self.without_one_end, self.overpaid)
        return {check.__name__: check() for check in checks}

    def lost(self) -> list[str]:
        return [task_id for task_id in self.accepted if task_id not in self.fates]

    def without_one_end(self) -> list[str]:
        def ends(fate: Fate) -> list[str]:
            return [moment.what for moment in fate.history if moment.what in READY]

        return [task_id for task_id, fate in self.fates.items() if ends(fate) != [fate.state]]

    def wrong(self) -> list[str]:
        """Return the tasks whose outcome is neither right nor the price of a death."""
        wrong = [
            task_id for task_id, fate in self.fates.items() if not self.is_right(task_id, fate)
        ]
        for task_id, state, value in self.storm.page("seen"):
            fate = self.fates.get(task_id)
            if fate is None or (state, value) != (fate.state, mark(fate.value)):
                wrong.append(task_id)
        return wrong

    def is_right(self, task_id: str, fate: Fate) -> bool:
        kind, number = self.sent[task_id]
        runs = self.runs[task_id]
        if fate.state == "SUCCESS":
            expected = range(3) if kind == "thrice" else range(1)
            right = large(number * number) if kind == "bulky" else number * number
            return fate.value == right and list(runs) == list(expected)
        lost = isinstance(fate.value, WorkerLostError)
        deaths = 1 + sum(moment.what == "AGAIN" for moment in fate.history)
        return lost and deaths == (1 if kind == "early" else MOST_DEATHS)

    def overpaid(self) -> list[str]:
        """Return tasks that ran again, or failed, without a death of their own to show for it."""
        living = {process.pid for process in self.storm.processes()["worker"]}
        costs: Counter[int] = Counter()
        for _, pid in self.charged():
            costs[pid] += 1 + (pid in living)
        return [task_id for task_id, pid in self.charged() if costs[pid] > 1]

    def charged(self) -> Iterator[tuple[str, int]]:
        """Tell which death each run that came to nothing is charged to."""
        for task_id, fate in self.fates.items():
            runs = list(self.runs[task_id].values())
            for pids in runs:
                in_vain = fate.state == "FAILURE" and pids is runs[-1]
                for pid in pids if in_vain else pids[:-1]:
                    yield task_id, pid

    def story(self, task_id: str) -> str:
        """Tell all that is known of a task."""
        fate = self.fates.get(task_id)
        lines = [f"task {task_id}: {self.sent.get(task_id)}, accepted: {task_id in self.accepted}"]
        lines += [f"    run by {dict(self.runs[task_id])}"]
        lines += [f"    seen: {words}" for words in self.storm.page("seen") if words[0] == task_id]
        if fate is None:
            return "\n".join([*lines, "    the cluster does not know it, or it has not ended"])
        return "\n".join([*lines, f"    {fate.state} {fate.value!r}", *map(told, fate.history)])


def told(moment: Any) -> str:
    at = f"{moment.at:%H:%M:%S.%f}"
    return f"    {at} {moment.attempt} {moment.what} {moment.worker} {moment.detail}"


def fate_of(task_id: str) -> Fate | None:
    """Return how a task ended; nothing when it is unknown, or does not end."""
    result = AsyncResult(task_id)
    if not result.exists():
        return None
    try:
        value = result.get(timeout=SOON, propagate=False)
    except nbtasks.exceptions.TimeoutError:
        return None
    return Fate(result.state, value, result.history)


# ---------------------------------------------------------------------------------------- the test


@pytest.mark.timeout(7_200)  # with --full
def test_nothing_is_lost_or_told_twice_whoever_is_killed(short_path, rng, kills, measure):
    tally: Counter[str] = Counter()

    for first in range(0, kills, ROUND):
        folder = short_path / str(first)
        folder.mkdir()
        storm = Storm(folder, random.Random(rng.randrange(10**9)))
        weather(storm, min(ROUND, kills - first), tally)

    measure("P1", "kills at random instants, of whoever", tally["kills"], least=kills)
    of = f"of {tally['accepted']:,}"
    measure("P1", f"accepted tasks lost, {of}", tally["lost"], most=0)
    measure("P1", f"results lost or changed, {of}", tally["wrong"], most=0)
    measure("P1", f"tasks without exactly one end, {of}", tally["without_one_end"], most=0)
    measure("P5", "deaths that cost more than one run", tally["overpaid"], most=0)


def weather(storm: Storm, kills: int, tally: Counter[str]) -> None:
    """Live through one round and count what has gone wrong; tell its story if anything has."""
    order = str(storm.order)
    try:
        with changed(storm.runtime.with_name("site"), broker=DIE_IN_COMMIT.format(order=order)):
            storm.rage(kills)
            storm.calm_down()
            with nbtasks.start(dir=storm.runtime):
                judge = Judge(storm)
                found = judge.verdict()
    except BaseException:
        print(*storm.log, storm.told_by_kernels(), sep="\n")
        raise
    finally:
        storm.end()
    if any(found.values()):
        print(*storm.log, sep="\n")
    for what, ids in found.items():
        for task_id in ids:
            print(what, judge.story(task_id))
        tally[what] += len(ids)
    tally["accepted"] += len(judge.accepted)
    tally["kills"] += storm.kills
