"""What survives: deaths, restarts, forks, interrupts, several clients, and what must not remain."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import nbtasks
from nbtasks.exceptions import (
    WorkerLostError,
)
from nbtasks.result import AsyncResult
from tests.living import SOON, entries, eventually, family, kill, note, run, said

READY = {"SUCCESS", "FAILURE", "REVOKED"}

MakeCluster = Callable[..., nbtasks.Cluster]


@nbtasks.task
def add(x, y):
    return x + y


@nbtasks.task(acks_late=True)
def enter_late(ledger, number):
    return enter(ledger, number)


@nbtasks.task
def enter_early(ledger, number):
    return enter(ledger, number)


@nbtasks.task
def wait_for(gate, begun=None):
    if begun is not None:
        Path(begun).touch()
    while not Path(gate).exists():
        time.sleep(0.005)
    return "seen"


@nbtasks.task(bind=True)
def count_down(self, start):
    for left in range(start, 0, -1):
        self.update_state(state="PROGRESS", meta={"left": left})
    return "lift-off"


@nbtasks.task(bind=True, max_retries=2)
def fail_twice(self):
    if self.request.retries < 2:
        raise self.retry(exc=ConnectionError(self.request.retries), countdown=0)
    return self.request.retries


@nbtasks.task
def grandparent(n):
    return [parent.delay(number).id for number in range(n)]


@nbtasks.task(bind=True)
def parent(self, number):
    return add.delay(number, 1).id, self.request.parent_id, self.request.root_id


def enter(ledger, number):
    note(ledger, number)
    time.sleep(0.01)
    return number * number


@pytest.fixture
def ledger(short_path: Path) -> str:
    return str(short_path / "ledger")


@pytest.fixture
def gate(short_path: Path) -> Path:
    return short_path / "gate"


# ----------------------------------------------------------------------------------------- deaths


def victims_of(blow: str, cluster: nbtasks.Cluster) -> list[int]:
    if blow == "everything":
        return family(cluster)
    if blow == "supervisor":
        return [cluster.supervisor_pid]
    if blow == "broker":
        return [cluster.broker_pid]
    return cluster.worker_pids()[:1]


BLOWS = ("worker", "broker", "supervisor", "everything", "broker", "worker")


def beat(cluster: nbtasks.Cluster, results: list[AsyncResult], rng: random.Random) -> None:
    """Kill each kind of process, at instants that nobody foresees, while tasks run.

    Never the same task again before it is over: struck three times it is given up, as promised.
    """
    for blow in BLOWS:
        begun = sum(result.ready() for result in results)
        eventually(lambda begun=begun: sum(result.ready() for result in results) > begun)
        eventually(lambda: not any(is_struck(result) for result in results))
        victims = victims_of(blow, cluster)
        time.sleep(rng.random() / 50)
        kill(*victims)


def is_struck(result: AsyncResult) -> bool:
    """Say whether an open task has lost its process before."""
    return not result.ready() and any(moment.what == "AGAIN" for moment in result.history)


def endings(result: AsyncResult) -> list[str]:
    """Return the final states that were ever told of a task."""
    told: list[dict[str, Any]] = []
    result.get(timeout=SOON, propagate=False, on_message=told.append)
    return [message["status"] for message in told if message["status"] in READY]


@pytest.mark.parametrize("task", [enter_late, enter_early], ids=["late", "early"])
def test_no_accepted_task_is_lost_whoever_is_killed(cluster: nbtasks.Cluster, task, ledger):
    results = [task.delay(ledger, number) for number in range(300)]
    task.apply_async((ledger, 300), confirm=True)
    assert all(result.accepted for result in results)

    beat(cluster, results, random.Random(7))

    values = [result.get(timeout=SOON, propagate=False) for result in results]
    assert [endings(result) for result in results] == [[result.state] for result in results]
    runs = entries(ledger)
    for number, (result, value) in enumerate(zip(results, values, strict=True)):
        if result.state == "SUCCESS":
            assert value == number * number
            assert runs[number] >= 1
        else:
            assert isinstance(value, WorkerLostError), (number, value)
    lost = [result for result in results if result.state != "SUCCESS"]
    # Workers died four times (one, all, all, one): six processes, each with one running task.
    if task is enter_late:
        assert lost == []
        assert sum(runs.values()) - 301 <= 6
        assert max(runs.values()) <= 3
    else:
        assert len(lost) <= 6
        assert max(runs.values()) == 1


def test_countdown_outlives_everything_and_fires_once(cluster: nbtasks.Cluster, ledger):
    before = time.time()
    result = enter_late.apply_async((ledger, 3), countdown=2, confirm=True)

    kill(*family(cluster))

    assert result.get(timeout=SOON) == 9
    assert time.time() - before >= 2
    assert entries(ledger) == {3: 1}


def test_work_goes_on_and_reports_when_only_the_broker_dies(cluster, gate, short_path):
    begun = short_path / "begun"
    result = wait_for.delay(str(gate), str(begun))
    eventually(begun.exists)
    workers = cluster.worker_pids()

    began = time.monotonic()
    former = cluster.broker_pid
    kill(former)
    assert add.delay(1, 2).get(timeout=SOON) == 3
    back = time.monotonic() - began
    gate.touch()

    assert result.get(timeout=SOON) == "seen"
    assert cluster.worker_pids() == workers
    assert back < 3


# -------------------------------------------------------------------------------- kernel restarts


KERNEL = """
    import sys, time
    import nbtasks

    nbtasks.start(workers=2, dir=sys.argv[1])

    @nbtasks.task
    def square(ledger, number):
        with open(ledger, "a") as file:
            file.write(f"{number}\\n")
        time.sleep(0.01)
        return number * number

    results = [square.delay(sys.argv[2], number) for number in range(50)]
    results.append(square.apply_async((sys.argv[2], 50), confirm=True))
    print(*(result.id for result in results), flush=True)
    time.sleep(3600)
"""


def test_killed_kernel_loses_and_repeats_nothing(make_cluster: MakeCluster, ledger):
    cluster = make_cluster()
    kernel = run(KERNEL, cluster.dir, ledger)
    assert kernel.stdout is not None
    ids = kernel.stdout.readline().split()

    kernel.kill()
    kernel.communicate()

    values = [AsyncResult(task_id).get(timeout=SOON) for task_id in ids]
    assert values == [number * number for number in range(51)]
    assert set(entries(ledger).values()) == {1}


def test_kernel_that_started_the_cluster_may_die_and_another_finds_all(short_path: Path, ledger):
    kernel = run(KERNEL, short_path / "c", ledger)
    assert kernel.stdout is not None
    ids = kernel.stdout.readline().split()
    kernel.kill()
    kernel.communicate()

    with nbtasks.connect(short_path / "c"):
        assert AsyncResult(ids[-1]).get(timeout=SOON) == 2500


def test_two_processes_and_eight_threads_share_one_cluster(cluster: nbtasks.Cluster):
    code = """
        import sys
        import nbtasks

        nbtasks.connect(sys.argv[1])

        @nbtasks.task
        def double(x):
            return 2 * x

        results = [double.delay(n) for n in range(200)]
        print(sum(result.get(timeout=30) for result in results))
    """
    other = run(code, cluster.dir)

    def work(offset):
        results = [add.delay(number, offset) for number in range(100)]
        return sum(result.get(timeout=SOON) for result in results) - 100 * offset

    with ThreadPoolExecutor(8) as threads:  # whose errors are told
        sums = list(threads.map(work, range(8)))

    assert sums == [4950] * 8
    assert int(said(other, within=2 * SOON)) == 39_800


# ------------------------------------------------------------------------ forks, signals, the end


def test_interrupt_ends_the_waiting_in_a_moment_and_no_task(cluster, gate, short_path):
    begun = short_path / "begun"
    result = wait_for.delay(str(gate), str(begun))
    eventually(begun.exists)
    workers = cluster.worker_pids()
    sent: list[float] = []

    def interrupt():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.2, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        result.get(timeout=SOON)
    took = time.monotonic() - sent[0]

    assert took < 0.3
    assert result.state in ("PENDING", "STARTED")
    gate.touch()
    assert result.get(timeout=SOON) == "seen"
    assert cluster.worker_pids() == workers


def test_interrupt_of_the_whole_group_does_not_reach_the_workers(cluster: nbtasks.Cluster):
    for pid in family(cluster):
        os.kill(pid, signal.SIGINT)
        assert os.getpgid(pid) != os.getpgid(0)

    assert add.delay(1, 2).get(timeout=SOON) == 3
    assert "Told to stop" not in (cluster.dir / "logs" / "supervisor.log").read_text()


@pytest.mark.usefixtures("cluster")
def test_results_are_awaited_in_a_running_loop():
    async def main():
        assert await add.delay(1, 2) == 3
        with pytest.raises(TypeError):
            await add.apply_async(("1", 2))
        return await asyncio.gather(*(add.delay(number, 0) for number in range(100)))

    assert asyncio.run(asyncio.wait_for(main(), SOON)) == list(range(100))


@pytest.mark.usefixtures("cluster")
def test_waiting_for_a_result_leaves_the_loop_free(gate):
    async def main():
        result = wait_for.delay(str(gate))
        beats = 0

        async def beat():
            nonlocal beats
            while not result.ready():
                beats += 1
                if beats == 20:
                    gate.touch()
                await asyncio.sleep(0.01)

        value, _ = await asyncio.gather(result, beat())
        return value, beats

    value, beats = asyncio.run(asyncio.wait_for(main(), SOON))
    assert value == "seen"
    assert beats >= 20


def test_cancelled_await_leaves_the_task_alone(cluster: nbtasks.Cluster, gate):
    async def main():
        result = wait_for.delay(str(gate))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(as_coroutine(result), 0.1)
        gate.touch()
        return await result

    async def as_coroutine(result):
        return await result

    assert asyncio.run(main()) == "seen"


# -------------------------------------------------------------------------------- stop and start


def test_open_tasks_go_on_at_the_next_start(make_cluster: MakeCluster, ledger):
    first = make_cluster(workers=1)
    done = enter_early.delay(ledger, 1)
    assert done.get(timeout=SOON) == 1
    waits = [enter_early.apply_async((ledger, number), countdown=1) for number in (2, 3)]
    queued = [enter_early.delay(ledger, number) for number in range(10, 200)]
    enter_early.apply_async((ledger, 4), queue="nobody", confirm=True)
    ids = [result.id for result in (done, *waits, *queued)]

    first.shutdown()
    make_cluster(workers=2, dir=first.dir)

    values = [AsyncResult(task_id).get(timeout=SOON) for task_id in ids]
    assert values == [number * number for number in (1, 2, 3, *range(10, 200))]
    assert set(entries(ledger).values()) == {1}


def test_purging_shutdown_forgets(make_cluster: MakeCluster, ledger):
    first = make_cluster(workers=1)
    done = enter_early.delay(ledger, 1)
    assert done.get(timeout=SOON) == 1
    later = enter_early.apply_async((ledger, 2), countdown=0.2, confirm=True)

    first.shutdown(purge=True)
    make_cluster(workers=1, dir=first.dir)

    assert add.delay(1, 2).get(timeout=SOON) == 3
    for forgotten in (done, later):
        assert not AsyncResult(forgotten.id).exists()
        assert AsyncResult(forgotten.id).state == "PENDING"


# ------------------------------------------------------------------------------- once is enough


def test_same_key_is_the_same_task_whoever_sends_it(cluster: nbtasks.Cluster, ledger):
    first = enter_late.apply_async((ledger, 5), idempotency_key="report of May")
    assert first.get(timeout=SOON) == 25

    again = enter_late.apply_async((ledger, 5), idempotency_key="report of May")
    other = enter_late.apply_async((ledger, 6), idempotency_key="report of June")

    assert again.id == first.id
    assert again.get(timeout=SOON) == 25
    assert other.get(timeout=SOON) == 36
    assert entries(ledger) == {5: 1, 6: 1}


def test_same_id_sent_again_after_the_death_of_the_broker_runs_once(cluster, ledger):
    enter_late.apply_async((ledger, 5), task_id="mine", confirm=True).get(timeout=SOON)

    kill(cluster.broker_pid)

    assert enter_late.apply_async((ledger, 5), task_id="mine").get(timeout=SOON) == 25
    assert entries(ledger) == {5: 1}


def test_confirmed_task_is_in_the_store(cluster: nbtasks.Cluster, ledger):
    results = [
        enter_late.apply_async((ledger, number), confirm=True, countdown=0.5) for number in range(5)
    ]
    assert all(result.accepted for result in results)

    kill(*family(cluster))

    assert [result.get(timeout=SOON) for result in results] == [0, 1, 4, 9, 16]
    assert set(entries(ledger).values()) == {1}


# ---------------------------------------------------------------------------------- being told


def statuses(result: AsyncResult) -> list[tuple[str, Any]]:
    told: list[dict[str, Any]] = []
    result.get(timeout=SOON, on_message=told.append)
    assert {message["task_id"] for message in told} == {result.id}
    return [(message["status"], message["result"]) for message in told]


@pytest.mark.usefixtures("cluster")
def test_all_messages_are_replayed_in_order_after_the_end():
    noise = [count_down.delay(3) for _ in range(5)]
    result = count_down.delay(50)
    result.get(timeout=SOON)

    expected = [("PROGRESS", {"left": left}) for left in range(50, 0, -1)]
    expected.append(("SUCCESS", "lift-off"))
    assert statuses(result) == expected
    assert statuses(AsyncResult(result.id)) == expected
    assert [result.get(timeout=SOON) for result in noise] == ["lift-off"] * 5


@pytest.mark.usefixtures("cluster")
def test_retries_are_told_with_their_reasons():
    told = statuses(fail_twice.delay())

    assert [status for status, _ in told] == ["RETRY", "RETRY", "SUCCESS"]
    assert [str(reason) for _, reason in told[:2]] == ["0", "1"]


def test_another_process_is_told_all_messages_too(cluster: nbtasks.Cluster):
    result = count_down.delay(20)
    result.get(timeout=SOON)
    code = """
        import sys
        import nbtasks

        nbtasks.connect(sys.argv[1])
        told = []
        nbtasks.AsyncResult(sys.argv[2]).get(timeout=30, on_message=told.append)
        print(*(m["status"] for m in told), *(m["result"]["left"] for m in told[:-1]))
    """

    heard = said(run(code, cluster.dir, result.id)).split()

    assert heard == ["PROGRESS"] * 20 + ["SUCCESS"] + [str(left) for left in range(20, 0, -1)]


@pytest.mark.usefixtures("cluster")
def test_tasks_that_tasks_send_are_their_children():
    result = grandparent.delay(3)

    ids = result.get(timeout=SOON)

    assert [child.id for child in result.children] == ids
    for number, child in enumerate(result.children):
        grandchild, parent_id, root_id = child.get(timeout=SOON)
        assert (parent_id, root_id) == (result.id, result.id)
        assert [c.id for c in child.children] == [grandchild]
        assert AsyncResult(grandchild).get(timeout=SOON) == number + 1
    values = [value for _, value in result.collect()]
    assert sorted(value for value in values if isinstance(value, int)) == [1, 2, 3]


# ------------------------------------------------------------------------ code as it is at the call


def test_task_of_a_notebook_sees_globals_as_they_are_at_the_call(cluster: nbtasks.Cluster):
    code = """
        import sys
        import nbtasks

        nbtasks.connect(sys.argv[1])
        factor, table = 1, {"a": 1}

        @nbtasks.task
        def look():
            return factor, sorted(table)

        results = [look.delay()]
        table["b"] = 2  # mutated
        results.append(look.delay())
        factor = 7  # bound anew
        results.append(look.delay())

        @nbtasks.task
        def look():  # the cell is run again
            return "new"

        results.append(look.delay())
        print([result.get(timeout=30) for result in results])
    """

    seen = said(run(code, cluster.dir)).strip()

    assert seen == "[(1, ['a']), (1, ['a', 'b']), (7, ['a', 'b']), 'new']"


def test_edited_module_is_used_as_it_is_on_disk(cluster: nbtasks.Cluster, tmp_path: Path):
    code = """
        import sys
        from pathlib import Path

        sys.path.insert(0, sys.argv[2])
        import nbtasks
        nbtasks.connect(sys.argv[1])
        module = Path(sys.argv[2]) / "helper.py"
        module.write_text("def answer():\\n    return 1\\n")
        import helper

        @nbtasks.task
        def ask():
            import helper
            return helper.answer()

        @nbtasks.task
        def ask_global():
            return helper.answer()

        first = ask.delay().get(timeout=30), ask_global.delay().get(timeout=30)
        module.write_text("def answer():\\n    return 20\\n")
        second = ask.delay().get(timeout=30), ask_global.delay().get(timeout=30)
        print(*first, *second)
    """

    assert said(run(code, cluster.dir, tmp_path)).split() == ["1", "1", "20", "20"]


@nbtasks.task
def spoken_by_a_program(text):
    os.system(f"echo {text}")


@nbtasks.task
def dies_after_words(text):
    print(text)
    os.system(f"echo {text}, from a program")
    os._exit(3)


def test_last_words_of_a_dead_run_are_its_own_and_those_of_its_process_apart(
    make_cluster: MakeCluster,
):
    make_cluster(workers=1)
    spoken_by_a_program.delay("another one").get(timeout=SOON)

    error = dies_after_words.delay("mine").get(timeout=SOON, propagate=False)

    before, _, words = str(error).partition(" The last that it printed:\n")
    printed, _, logged = words.partition("The end of its process's log (not all need be of it):\n")
    assert "exited with code 3" in before
    assert printed == "mine\n"
    assert logged == "another one\nmine, from a program"
