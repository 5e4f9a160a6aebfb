"""What happens to tasks when their workers die, freeze, hang, or are murdered by what they run."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

import nbtasks
from nbtasks.core.messages import (
    Bye,
    Define,
    Done,
    Held,
    Hello,
    Prepared,
    Run,
    Started,
    Welcome,
)
from nbtasks.exceptions import (
    ClusterError,
    MemoryLimitExceeded,
    SoftTimeLimitExceeded,
    TimeLimitExceeded,
    WorkerLostError,
)
from nbtasks.result import AsyncResult
from nbtasks.wire import frames, payloads, sockets
from tests.living import SOON, Acts, entries, eventually, family, kill, lives, note
from tests.promises.faults import changed

MakeCluster = Callable[..., nbtasks.Cluster]

#: Seconds that nobody will wait for.
LONG = 1_000.0


def by_value(function: Any) -> Any:
    """Let a function travel as if from a notebook: new workers need not import pytest for it."""
    function.__module__ = "__main__"
    return function


@by_value
def say_begun(path: str) -> None:
    with open(path, "a") as file:
        file.write(f"{os.getpid()} {time.time()}\n")


@nbtasks.task
@by_value
def instant() -> int:
    return os.getpid()


@nbtasks.task(acks_late=True)
@by_value
def hold(begun: str, gate: str) -> int:
    """Run until the gate is there; each run writes its process and when it began."""
    say_begun(begun)
    while not Path(gate).exists():
        time.sleep(0.002)
    return os.getpid()


@nbtasks.task
@by_value
def meet(mine: str, other: str) -> bool:
    """End only when another worker runs the other one at the same time."""
    Path(mine).touch()
    while not Path(other).exists():
        time.sleep(0.002)
    return True


@nbtasks.task(acks_late=True)
def enter_late(ledger: str, number: int, seconds: float) -> int:
    note(ledger, number)
    time.sleep(seconds)
    return number * number


@nbtasks.task
def enter_early(ledger: str, number: int, seconds: float) -> int:
    note(ledger, number)
    time.sleep(seconds)
    return number * number


def beginnings(path: Path) -> list[tuple[int, float]]:
    """Return process and time of each run that has begun."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [(int(pid), float(at)) for pid, at in (line.split() for line in lines)]


def wait_begun(path: Path, runs: int = 1) -> tuple[int, float]:
    return eventually(lambda: beginnings(path)[runs - 1 : runs])[0]


def warm_up(short_path: Path, count: int = 2) -> list[int]:
    """Let all workers load what tasks need; return their pids."""
    gate = short_path / "warm"
    results = [hold.delay(str(short_path / f"warm-{n}"), str(gate)) for n in range(count)]
    pids = [wait_begun(short_path / f"warm-{n}")[0] for n in range(count)]
    gate.touch()
    for result in results:
        result.get(timeout=SOON)
    gate.unlink()
    assert len(set(pids)) == count
    return pids


def time_to_meet(short_path: Path) -> float:
    """Return the seconds until two workers have run two tasks at the same time."""
    began = time.monotonic()
    here, there = (str(short_path / f"{began}-{n}") for n in range(2))
    for result in (meet.delay(here, there), meet.delay(there, here)):
        result.get(timeout=SOON)
    return time.monotonic() - began


def ends_of(result: AsyncResult) -> list[str]:
    """Return the states in which a task has ever ended."""
    result.get(timeout=SOON, propagate=False)
    return [moment.what for moment in result.history if moment.what in ("SUCCESS", "FAILURE")]


# ----------------------------------------------------------------------- P2: seen at once


def test_death_of_a_worker_is_made_good_at_once(make_cluster, short_path, measure, full):
    make_cluster()
    warm_up(short_path)
    again, refilled = [], []
    for n in range(30 if full else 5):
        begun, gate = short_path / f"begun-{n}", short_path / f"gate-{n}"
        result = hold.delay(str(begun), str(gate))
        pid, _ = wait_begun(begun)

        died = time.time()
        kill(pid)
        _, began = wait_begun(begun, runs=2)
        gate.touch()
        waited = time_to_meet(short_path)

        again.append(began - died)
        refilled.append(time.time() - died)
        assert waited < SOON
        assert result.get(timeout=SOON) != pid
        assert len(beginnings(begun)) == 2

    measure(
        "P2", "acks_late: runs again after kill -9", statistics.median(again), most=0.5, unit="s"
    )
    measure(
        "P2",
        "the pool is full again after kill -9",
        statistics.median(refilled),
        most=1.5,
        unit="s",
    )


def test_new_worker_has_loaded_what_the_dead_one_ran(make_cluster, short_path):
    make_cluster(workers=1)
    ledger = short_path / "loaded"
    mark = Acts(note, str(ledger), 1)

    @nbtasks.task
    @by_value
    def run() -> int:
        assert mark is None  # what `note` returned when this was loaded
        return os.getpid()

    pid = run.delay().get(timeout=SOON)
    kill(pid)
    eventually(lambda: entries(ledger)[1] == 2)

    assert run.delay().get(timeout=SOON) != pid
    assert entries(ledger)[1] == 2


def test_pool_is_full_again_after_newborn_workers_died_one_after_another(
    make_cluster, short_path, measure, full
):
    cluster = make_cluster()
    warm_up(short_path)
    supervisor = psutil.Process(cluster.supervisor_pid)

    refilled = []
    for _ in range(10 if full else 3):
        for _ in range(5):
            kill(*eventually(lambda: workers_of(supervisor)))
        refilled.append(time_to_meet(short_path))

    took = statistics.median(refilled)
    measure("P2", "the pool is full again after newborns died", took, most=1.5, unit="s")


def workers_of(supervisor: psutil.Process) -> list[int]:
    """Return the worker processes, also those that have not said a word yet."""
    found = []
    for child in supervisor.children():
        with contextlib.suppress(psutil.Error):
            if "nbtasks.worker" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child.pid)
    return found


def test_frozen_worker_is_replaced_and_its_task_runs_again(make_cluster, short_path, measure):
    make_cluster()
    warm_up(short_path)
    begun, gate = short_path / "begun", short_path / "gate"
    result = hold.delay(str(begun), str(gate))
    pid, _ = wait_begun(begun)

    frozen = time.time()
    os.kill(pid, signal.SIGSTOP)
    _, began = wait_begun(begun, runs=2)
    gate.touch()
    time_to_meet(short_path)
    replaced = time.time() - frozen

    assert result.get(timeout=SOON) != pid
    measure("P2", "acks_late: runs again after SIGSTOP", began - frozen, most=5, unit="s")
    measure("P2", "a frozen (SIGSTOP) worker is replaced", replaced, most=5, unit="s")


#: Workers that end before they can say a word, as long as a file is there.
STILLBORN = """
    import os
    if os.path.exists({fault!r}):
        print("no such library", flush=True)
        os._exit(3)
"""


def test_workers_that_die_at_start_are_told_of_and_tried_again(make_cluster, short_path, measure):
    fault = short_path / "fault"
    fault.touch()
    with changed(short_path / "site", worker=STILLBORN.format(fault=str(fault))):
        cluster = make_cluster()
    trouble = cluster.dir / "trouble.txt"
    result = instant.apply_async(confirm=True)
    eventually(trouble.exists)
    assert "exited with code 3" in trouble.read_text()
    assert "no such library" in trouble.read_text()
    broker = cluster.broker_pid

    fault.unlink()
    began = time.monotonic()
    assert result.get(timeout=SOON)

    took = time.monotonic() - began
    eventually(lambda: not trouble.exists())
    assert cluster.broker_pid == broker
    measure("P2", "work goes on once workers can start again", took, most=10, unit="s")


def test_folders_that_somebody_has_removed_are_made_again(make_cluster):
    cluster = make_cluster(workers=1)
    first = instant.delay().get(timeout=SOON)
    for folder in ("logs", "cells"):
        shutil.rmtree(cluster.dir / folder)

    kill(first)
    # What it was given before its death is known would be lost: nobody can say how far it was.
    eventually(lambda: cluster.worker_pids() not in ([], [first]))

    assert instant.delay().get(timeout=SOON) != first
    kill(cluster.broker_pid)
    assert instant.delay().get(timeout=SOON) != first
    assert (cluster.dir / "logs" / "broker.log").exists()


def first_free(pid: int) -> int:
    """Return the lowest number that no descriptor of a process has, but for some moments."""
    looks = []
    for _ in range(20):
        looks.append({int(name) for name in os.listdir(f"/proc/{pid}/fd")})
        time.sleep(0.01)
    return next(number for number in count() if number not in set.intersection(*looks))


def test_supervisor_without_descriptors_waits_until_there_are_some(make_cluster):
    cluster = make_cluster()
    sleep.apply_async((LONG,), time_limit=1.0)
    supervisor, log = cluster.supervisor_pid, cluster.dir / "logs" / "supervisor.log"
    eventually(lambda: cluster.status()["phases"].get("running"))
    few = first_free(supervisor)
    before = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)

    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (few, before[1]))
    try:
        eventually(lambda: "has left cannot be ended" in log.read_text())
    finally:
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, before)

    eventually(lambda: len(cluster.worker_pids()) == 2)
    assert cluster.supervisor_pid == supervisor


def test_broker_that_dies_at_start_again_and_again_ends_with_a_word(short_path, measure):
    began = time.monotonic()

    with (
        changed(short_path / "site", broker="import os; print('no such disk'); os._exit(3)"),
        pytest.raises(ClusterError, match="no such disk"),
    ):
        nbtasks.start(workers=2, dir=short_path / "c")

    measure("P13", "no broker can start: an error", time.monotonic() - began, most=10, unit="s")


@nbtasks.task
def freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def test_task_that_freezes_its_worker_is_told_why_it_was_lost(make_cluster, measure):
    make_cluster()
    instant.delay().get(timeout=SOON)
    began = time.monotonic()

    with pytest.raises(WorkerLostError, match="stood still"):
        freeze.delay().get(timeout=SOON)

    took = time.monotonic() - began
    measure("P2", "a task that freezes its worker is told so", took, most=5, unit="s")


def test_frozen_broker_is_replaced(make_cluster, short_path, measure):
    cluster = make_cluster()
    warm_up(short_path)

    began = time.monotonic()
    os.kill(cluster.broker_pid, signal.SIGSTOP)
    time_to_meet(short_path)

    took = time.monotonic() - began
    measure("P2", "a frozen (SIGSTOP) broker is replaced, and serves", took, most=5, unit="s")


# ------------------------------------------------------------------- P5: bounded repetition


def murder(cluster: nbtasks.Cluster, results: list[AsyncResult], rng: Any, times: int) -> int:
    """Kill a worker at random, again and again while tasks end; return how many died."""
    for _ in range(times):
        ended = sum(result.ready() for result in results)
        if ended == len(results):
            break
        eventually(
            lambda ended=ended: sum(r.ready() for r in results) >= min(ended + 5, len(results))
        )
        victim = rng.choice(cluster.worker_pids())
        time.sleep(rng.random() / 50)
        kill(victim)
    return times


def test_runs_are_at_most_one_more_than_the_deaths(cluster, short_path, measure, rng, full):
    ledger = str(short_path / "ledger")
    count, times = (3_000, 100) if full else (300, 6)
    results = [enter_late.delay(ledger, number, 0.01) for number in range(count)]

    deaths = murder(cluster, results, rng, times)

    values = [result.get(timeout=SOON, propagate=False) for result in results]
    lost = sum(value != number * number for number, value in enumerate(values))
    ends = max(len(ends_of(result)) for result in results)
    assert all(result.history[-1].what == result.state for result in results)
    again = (sum(entries(ledger).values()) - count) / deaths
    measure("P5", "acks_late: runs beyond the first, for each death", again, most=1)
    measure("P5", "acks_late: tasks lost when workers are killed", lost, most=0)
    measure("P6", "ends of a task whose workers are killed", ends, most=1)


def test_prefetched_tasks_lose_no_attempt(cluster, short_path, measure, rng, full):
    ledger = str(short_path / "ledger")
    count, times = (10_000, 50) if full else (1_500, 6)
    enter_early.delay(str(short_path / "other"), 0, 0).get(timeout=SOON)  # known to be short
    results = [enter_early.delay(ledger, number, 0.001) for number in range(count)]

    deaths = murder(cluster, results, rng, times)

    values = [result.get(timeout=SOON, propagate=False) for result in results]
    lost = [value for value in values if isinstance(value, WorkerLostError)]
    runs = entries(ledger)
    assert sum(result.state == "SUCCESS" for result in results) == count - len(lost)
    measure(
        "P5", "tasks lost for each death, though many were prefetched", len(lost) / deaths, most=1
    )
    measure("P5", "runs of a task that is not acks_late", max(runs.values()), most=1)


@nbtasks.task(acks_late=True)
def hold_the_interpreter(begun: str, upto: int) -> int:
    """Compute in C, so that not even the worker's own threads get a word in."""
    say_begun(begun)
    return sum(range(upto))


@pytest.mark.usefixtures("cluster")
def test_worker_that_cannot_answer_the_new_broker_is_not_given_up(cluster, short_path, measure):
    began = time.perf_counter()
    sum(range(10**7))
    upto = int(3 / (time.perf_counter() - began)) * 10**7
    begun = short_path / "begun"
    result = hold_the_interpreter.delay(str(begun), upto)
    wait_begun(begun)

    former = cluster.broker_pid
    kill(former)

    assert result.get(timeout=SOON) == sum(range(upto))
    measure(
        "P5", "runs of a task that leaves a new broker without an answer for 3 s",
        len(beginnings(begun)), most=1,
    )  # fmt: skip


# --------------------------------------------------------------------- P6: one result only


class Ghost:
    """A worker in the hands of the test, which goes on when it has been given up."""

    def __init__(self, cluster: nbtasks.Cluster) -> None:
        self._context = zmq.Context()
        self._socket = sockets.dealer(self._context, cluster.dir, sockets.identity("worker"))
        self._instance = b""
        self.name = "ghost@nowhere"

    def __enter__(self) -> Ghost:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close(0)
        self._context.term()

    def say(self, *messages: Any) -> None:
        self._socket.send_multipart(frames.pack(self._instance, messages))

    def hello(self, *held: Held) -> None:
        python = ".".join(map(str, sys.version_info[:3]))
        self.say(Hello("worker", self.name, os.getpid(), python, (), held))
        self.hear(Welcome)

    def hear(self, kind: type) -> Any:
        end = time.monotonic() + SOON
        while True:
            assert self._socket.poll(max(0.0, end - time.monotonic()) * 1000), kind
            self._instance, messages, _ = frames.unpack_from_broker(self._socket.recv_multipart())
            ahead = [message for message in messages if isinstance(message, Define)]
            if ahead:  # unasked, to be loaded before it is called
                self.say(*[Prepared(define.digest) for define in ahead])
            for message in messages:
                if isinstance(message, kind):
                    return message

    def answer(self, ticket: int, value: Any) -> None:
        body, _ = payloads.dumps(value)
        self.say(Done(ticket, "SUCCESS", body, at=time.time()))


@pytest.mark.parametrize("when", ["while it runs again", "after the end"])
def test_late_answer_of_a_run_that_was_given_up_changes_nothing(
    make_cluster, short_path, measure, when
):
    cluster = make_cluster(workers=1)
    instant.delay().get(timeout=SOON)  # a worker that has not come yet cannot be told to go
    cluster.scale(0)
    begun, gate = short_path / "begun", short_path / "gate"
    with Ghost(cluster) as ghost:
        ghost.hello()
        result = hold.delay(str(begun), str(gate))
        run = ghost.hear(Run)
        ghost.say(Started(run.ticket, time.time()))
        ghost.say(Bye())
        cluster.scale(1)
        pid, _ = wait_begun(begun)
        if when == "after the end":
            gate.touch()
            result.get(timeout=SOON)

        ghost.hello(Held(run.ticket, run.call.id, True))
        ghost.answer(run.ticket, "late")
        instant.apply_async(confirm=True)  # by now the broker has heard it

        gate.touch()
        assert result.get(timeout=SOON) == pid
        assert AsyncResult(result.id).get(timeout=SOON) == pid
        ends = ends_of(result)
        ghost.say(Bye())
    measure("P6", f"results of a run given up that answers {when}", len(ends) - 1, most=0)


# ------------------------------------------------------------------ what tasks do to themselves


class Noting(nbtasks.Task):
    """Writes which handlers have run into the ledger that is the first argument."""

    def on_success(self, retval, task_id, args, kwargs):
        note(args[0], 1)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        note(args[0], 2)


@nbtasks.task(base=Noting)
def return_twice(ledger: str) -> str:
    child = os.fork()
    if not child:
        return "child"
    os.waitpid(child, 0)
    return "parent"


@nbtasks.task(time_limit=0.5)
def fork_and_hang(begun: str) -> None:
    say_begun(begun)
    if os.fork():
        time.sleep(LONG)


def test_task_that_forks_and_returns_twice_ends_once(cluster, short_path, measure):
    ledger = short_path / "ledger"
    result = return_twice.delay(str(ledger))

    assert result.get(timeout=SOON) == "parent"

    eventually(lambda: entries(ledger))
    instant.delay().get(timeout=SOON)
    measure("P6", "ends of a task that forks and returns twice", len(ends_of(result)), most=1)
    measure("P6", "handlers that it runs", sum(entries(ledger).values()), most=1)


def test_child_that_returns_does_not_hide_its_parent_from_the_limit(cluster, short_path, measure):
    begun = short_path / "begun"

    with pytest.raises(TimeLimitExceeded):
        fork_and_hang.delay(str(begun)).get(timeout=SOON)

    took = time.time() - wait_begun(begun)[1] - 0.5
    measure("P10", "the limit holds though a forked child has returned", took, most=0.5, unit="s")


@nbtasks.task
def close_everything() -> None:
    os.closerange(0, 4096)
    time.sleep(LONG)


def test_task_that_closes_all_descriptors_is_lost_and_nobody_else(cluster, measure):
    instant.delay().get(timeout=SOON)
    began = time.monotonic()

    with pytest.raises(WorkerLostError):
        close_everything.delay().get(timeout=SOON)

    took = time.monotonic() - began
    assert instant.delay().get(timeout=SOON)
    measure("P8", "the end of a task that closes all descriptors is told", took, most=1, unit="s")


@nbtasks.task
def shout(size: int, piece: int) -> str:
    for _ in range(size // piece):
        print("x" * (piece - 1))
    return "hoarse"


@pytest.mark.parametrize("piece", [100, 50_000_000], ids=["in lines", "at once"])
def test_task_that_prints_50_mb_harms_nobody(cluster, measure, piece):
    instant.delay().get(timeout=SOON)
    broker = psutil.Process(cluster.broker_pid)
    before = broker.memory_info().rss
    waits = [instant.delay() for _ in range(20)]

    result = shout.delay(50_000_000, piece)

    assert result.get(timeout=SOON) == "hoarse"
    assert all(other.get(timeout=SOON) for other in waits)
    assert len(result.logs()) < 9_000_000
    assert "the rest is in" in result.logs()[-300:]
    grown = (broker.memory_info().rss - before) / 1e6
    assert cluster.broker_pid == broker.pid
    how = "at once" if piece > 100 else "in lines"
    measure("P21", f"growth of the broker by 50 MB printed {how}", grown, most=64, unit="MB")


# -------------------------------------------------------------------------------- P8: poison


def die(how: str) -> None:
    """End this process in one of the ways in which tasks do."""
    if how == "SIGSEGV":
        import faulthandler

        faulthandler._sigsegv()
    elif how == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "SIGABRT":
        os.abort()
    elif how.startswith("code"):
        os._exit(int(how[-1]))


@nbtasks.task(acks_late=True)
def poison(ledger: str, number: int, how: str = "") -> int:
    note(ledger, number)
    if how:
        print(f"about to die by {how}")
        die(how)
    return number


WAYS = ("SIGSEGV", "SIGKILL", "SIGABRT", "code 3", "code 0")


def test_poison_is_given_up_and_innocents_are_unharmed(cluster, short_path, measure):
    ledger = str(short_path / "ledger")
    warm_up(short_path)
    poison.delay(ledger, 0).get(timeout=SOON)  # known to be short: others wait behind it
    tasks = [poison.delay(ledger, number) for number in range(1_000, 1_100)]
    poisonous = [poison.delay(ledger, number, how) for number, how in enumerate(WAYS, 1)]
    tasks += [poison.delay(ledger, number) for number in range(1_100, 1_200)]
    tasks += [enter_early.delay(ledger, number, 0.001) for number in range(2_000, 2_100)]

    errors = [result.get(timeout=SOON, propagate=False) for result in poisonous]

    harmed = [result for result in tasks if not isinstance(result.get(SOON, propagate=False), int)]
    runs = entries(ledger)
    for how, error in zip(WAYS, errors, strict=True):
        assert isinstance(error, WorkerLostError)
        assert how in str(error)
        assert "third death" in str(error)
        assert "peak memory" in str(error)
        assert f"about to die by {how}" in str(error)
    assert "Segmentation fault" in str(errors[0])
    assert "in die" in str(errors[0])  # the line of Python that did it
    deaths = max(runs[number] for number in range(1, len(WAYS) + 1))
    measure("P8", "deaths after which poison is given up", deaths, most=3)
    measure("P8", "other tasks harmed by poison", len(harmed), most=0)
    others = max(count for number, count in runs.items() if number >= 1_000)
    measure("P8", "runs of the other tasks", others, most=1)


@nbtasks.task(acks_late=True, reject_on_worker_lost=False)
def poison_that_is_not_put_back(ledger: str) -> None:
    note(ledger, 1)
    os._exit(1)


def test_late_acked_task_is_not_put_back_where_that_is_not_wanted(cluster, short_path, measure):
    ledger = short_path / "ledger"

    with pytest.raises(WorkerLostError, match="reject_on_worker_lost=True runs it again"):
        poison_that_is_not_put_back.delay(str(ledger)).get(timeout=SOON)

    runs = entries(ledger)[1]
    measure("P5", "acks_late, reject_on_worker_lost=False: runs", runs, most=1)


# ------------------------------------------------------------------------- P10: hard limits


def spawn(begun: str) -> None:
    """Leave processes behind: in our group, in a session of their own, and orphaned."""
    command = [sys.executable, "-c", f"import time; time.sleep({LONG})"]
    pids = [subprocess.Popen(command, start_new_session=alone).pid for alone in (False, True)]
    forked = subprocess.run(
        [sys.executable, "-c", f"import subprocess as s; print(s.Popen({command!r}, "
         "start_new_session=True, stdout=s.DEVNULL).pid)"],
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    Path(f"{begun}.new").write_text("".join(f"{pid}\n" for pid in (*pids, int(forked.stdout))))
    os.replace(f"{begun}.new", f"{begun}.spawned")


def spawned_by(begun: Path) -> list[int]:
    path = Path(f"{begun}.spawned")
    eventually(path.exists)
    return [int(pid) for pid in path.read_text().split()]


def hold_interpreter(begun: str) -> None:
    sum(range(10**15))


def multiply_matrices(begun: str) -> None:
    import numpy

    matrix = numpy.ones((6_000, 6_000))
    while True:
        matrix = matrix @ matrix / 6_000


def catch_everything(begun: str) -> None:
    while True:
        try:
            time.sleep(0.01)
        except BaseException:
            pass


def ignore_signals(begun: str) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(LONG)


def stand_still(begun: str) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


STUBBORN = (hold_interpreter, multiply_matrices, catch_everything, ignore_signals, stand_still)


@nbtasks.task(time_limit=0.5)
def be_stubborn(begun: str, how: Callable[[str], None]) -> None:
    say_begun(begun)
    how(begun)


@nbtasks.task(time_limit=2)
def be_stubborn_with_children(begun: str) -> None:
    say_begun(begun)
    spawn(begun)
    hold_interpreter(begun)


def test_hard_limit_ends_whatever_the_code_does(cluster, short_path, measure):
    pytest.importorskip("numpy")
    warm_up(short_path)
    for how in STUBBORN:
        begun = short_path / how.__name__
        result = be_stubborn.delay(str(begun), how)
        pid, at = wait_begun(begun)

        eventually(lambda pid=pid: not lives(pid))
        over = time.time() - at - 0.5

        with pytest.raises(TimeLimitExceeded) as caught:
            result.get(timeout=SOON)
        assert caught.value.args == (0.5,)
        assert over > -0.01
        what = how.__name__.replace("_", " ")
        measure("P10", f"dead after its time limit: {what}", over, most=0.5, unit="s")
    assert instant.delay().get(timeout=SOON)


def test_hard_limit_ends_all_that_the_task_has_started(cluster, short_path, measure):
    begun = short_path / "begun"
    be_stubborn_with_children.delay(str(begun))
    pid, at = wait_begun(begun)
    children = spawned_by(begun)
    assert all(lives(child) for child in children)

    eventually(lambda: not any(lives(one) for one in (pid, *children)))

    over = time.time() - at - 2
    measure("P10", "its children, setsid'ed and orphaned ones too, dead", over, most=0.5, unit="s")


@nbtasks.task
def leave_children_and_die(begun: str) -> None:
    spawn(begun)
    os._exit(1)


@pytest.mark.skipif(sys.platform != "linux", reason="whose orphan it is, is known by /proc")
def test_what_a_dead_worker_has_started_ends_with_it(cluster, short_path, measure):
    begun, other = short_path / "begun", short_path / "other"
    result = hold.delay(str(other), str(short_path / "gate"))
    wait_begun(other)
    leave_children_and_die.delay(str(begun)).get(timeout=SOON, propagate=False)

    told = time.monotonic()
    children = spawned_by(begun)
    eventually(lambda: not any(lives(one) for one in children))
    took = time.monotonic() - told

    (short_path / "gate").touch()
    assert result.get(timeout=SOON)
    measure("P11", "children of a worker that died are ended", took, most=2, unit="s")


# ---------------------------------------------------------------------------- P10: soft limits


@nbtasks.task
def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_soft_limit_never_hits_the_next_task(make_cluster, measure, full):
    make_cluster(workers=1)
    count = 400 if full else 40
    tight = [
        sleep.apply_async((0.02,), soft_time_limit=0.02 + (n - count / 4) / 100 / count)
        for n in range(count)
    ]
    free = [sleep.apply_async((0.0,)) for _ in range(count)]
    mixed = [result for pair in zip(tight, free, strict=True) for result in pair]

    values = [result.get(timeout=SOON, propagate=False) for result in mixed]

    hit = sum(result.state != "SUCCESS" for result in free)
    assert all(isinstance(value, float | SoftTimeLimitExceeded) for value in values)
    measure("P10", "tasks hit by the soft limit of the one before", hit, most=0)


@nbtasks.task(soft_time_limit=0.3, time_limit=LONG)
def tidy_up_when_told(path: str) -> float:
    """Return the seconds after which the limit was told and all was tidied up."""
    began = time.monotonic()
    Path(path).touch()
    try:
        time.sleep(LONG)
    except SoftTimeLimitExceeded:
        Path(path).unlink()
    return time.monotonic() - began


@pytest.mark.usefixtures("cluster")
def test_soft_limit_lets_the_task_tidy_up(short_path, measure):
    path = short_path / "mess"

    took = tidy_up_when_told.delay(str(path)).get(timeout=SOON)

    assert not path.exists()
    assert took > 0.29
    measure("P10", "told after its soft limit, and tidied up", took - 0.3, most=0.5, unit="s")


# -------------------------------------------------------------------------- P10: memory limits


@nbtasks.task(memory_limit="100MB")
def grow(crossed: str, megabytes: int) -> int:
    """Take memory, about 1 GB a second, and write down when the limit is about to be passed."""
    kept = []
    for taken in range(0, megabytes, 5):
        if taken == 90:
            Path(f"{crossed}.new").write_text(str(time.time()))
            os.replace(f"{crossed}.new", crossed)
        kept.append(b"x" * 5_000_000)
        time.sleep(0.005)
    return sum(map(len, kept))


@nbtasks.task
def bloat(megabytes: int) -> int:
    """Leave the worker itself a large one."""
    sys.modules["__main__"].ballast = b"x" * megabytes * 1_000_000
    return os.getpid()


def test_task_that_takes_too_much_memory_is_ended_and_told_how_much(cluster, short_path, measure):
    warm_up(short_path)
    crossed = short_path / "crossed"
    neighbour = hold.delay(str(short_path / "begun"), str(short_path / "gate"))

    with pytest.raises(MemoryLimitExceeded) as caught:
        grow.delay(str(crossed), 5_000).get(timeout=SOON)

    took = time.time() - float(crossed.read_text())
    limit, taken = caught.value.args
    assert limit == 100_000_000
    assert 100_000_000 < taken < 1_000_000_000
    assert "100 MB" in str(caught.value)
    (short_path / "gate").touch()
    assert neighbour.get(timeout=SOON)
    measure("P10", "ended after it has passed its memory limit", took, most=0.5, unit="s")


def test_memory_limit_is_for_the_run_and_not_for_what_was_there(make_cluster, short_path):
    make_cluster(workers=1)
    pid = bloat.delay(300).get(timeout=SOON)

    within = grow.delay(str(short_path / "crossed"), 60)

    assert within.get(timeout=SOON) == 60_000_000
    assert instant.delay().get(timeout=SOON) == pid


def test_memory_limit_of_a_call_wins_and_holds_without_a_broker(cluster, short_path, measure):
    warm_up(short_path)
    crossed = short_path / "crossed"
    result = grow.apply_async((str(crossed), 5_000), memory_limit="300MB")
    eventually(crossed.exists)

    kill(cluster.broker_pid)

    with pytest.raises(MemoryLimitExceeded) as caught:
        result.get(timeout=SOON)
    limit, taken = caught.value.args
    assert limit == 300_000_000
    measure(
        "P10", "taken before a limit of 300 MB held, no broker", taken / 1e6, most=900, unit="MB"
    )


# -------------------------------------------------------------------------------- P11: orphans


@nbtasks.task
def spawn_and_compute(begun: str) -> None:
    say_begun(begun)
    spawn(begun)
    hold_interpreter(begun)


def busy_family(cluster: nbtasks.Cluster, short_path: Path) -> list[int]:
    """Have all workers hold the interpreter, with children of their own; return all pids."""
    begun = [short_path / "begun-1", short_path / "begun-2"]
    for path in begun:
        spawn_and_compute.delay(str(path))
    grandchildren = [pid for path in begun for pid in spawned_by(path)]
    return [*family(cluster), *grandchildren]


def time_until_gone(pids: list[int]) -> float:
    began = time.monotonic()
    eventually(lambda: not any(lives(pid) for pid in pids))
    return time.monotonic() - began


def test_nobody_is_left_when_the_supervisor_is_gone(make_cluster, short_path, measure):
    cluster = make_cluster()
    pids = busy_family(cluster, short_path)
    cluster.close()

    kill(pids[0])

    took = time_until_gone(pids)
    nbtasks.start(workers=2, dir=cluster.dir).shutdown(purge=True)
    measure("P11", "all gone, children too, once the supervisor is", took, most=2, unit="s")


def test_nobody_is_left_when_there_can_be_no_broker_any_more(make_cluster, short_path, measure):
    cluster = make_cluster()
    pids = busy_family(cluster, short_path)
    store = Path(cluster.status()["store"])
    cluster.close()

    store.write_bytes(b"not a store any more " * 1000)
    kill(pids[1])

    took = time_until_gone(pids)
    measure("P11", "all gone, children too, once no broker can be", took, most=2, unit="s")
