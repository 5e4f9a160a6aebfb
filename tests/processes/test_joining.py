"""Tasks that wait for tasks that they send, in a pool smaller than their tree is deep."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from pathlib import Path

import pytest

import nbtasks
from nbtasks.context import allow_join_result
from tests.living import SOON, eventually, kill


@nbtasks.task
def square(x):
    return x * x


@nbtasks.task
def depth(n):
    return 0 if n == 0 else 1 + depth.delay(n - 1).get(disable_sync_subtasks=False)


@nbtasks.task
def fibonacci(n):
    if n < 2:
        return n
    with allow_join_result():
        return sum(part.get() for part in [fibonacci.delay(n - 1), fibonacci.delay(n - 2)])


@nbtasks.task
def by_set(n):
    with allow_join_result():
        return nbtasks.ResultSet([square.delay(k) for k in range(n)]).get()


@nbtasks.task
def one_by_one(n):
    with allow_join_result():
        results = nbtasks.ResultSet([square.delay(k) for k in range(n)])
        return sorted(told["result"] for _, told in results.iter_native())


@nbtasks.task
async def by_await(n):
    with allow_join_result():
        return list(await asyncio.gather(*[square.delay(k) for k in range(n)]))


@nbtasks.task
def by_map(n):
    with nbtasks.Executor() as executor:
        return list(executor.map(lambda x: x * x, range(n), chunksize=2))


@nbtasks.task
def by_future(n):
    with nbtasks.Executor() as executor:
        futures = [executor.submit(pow, k, 2) for k in range(n)]
        return [future.result() for future in futures]


@nbtasks.task
def as_completed(n):
    executor = nbtasks.Executor()
    futures = [executor.submit(pow, k, 2) for k in range(n)]
    return sorted(future.result() for future in concurrent.futures.as_completed(futures))


@nbtasks.task
async def in_a_loop(n):
    loop, executor = asyncio.get_running_loop(), nbtasks.Executor()
    return await asyncio.gather(*[loop.run_in_executor(executor, pow, k, 2) for k in range(n)])


@nbtasks.task
def in_threads(n):
    def wait(k):
        return square.delay(k).get(disable_sync_subtasks=False)

    with concurrent.futures.ThreadPoolExecutor() as threads:
        return list(threads.map(wait, range(n)))


@nbtasks.task
def eagerly(n):
    return depth.apply((n,)).get()


@nbtasks.task
def hold(begun, gate):
    Path(begun).touch()
    while not Path(gate).exists():
        time.sleep(0.005)
    return "held"


@nbtasks.task
def hold_by_another(begun, gate):
    with allow_join_result():
        return hold.delay(begun, gate).get()


@nbtasks.task
def hold_and_wait(begun, gate):
    hold.run(begun, gate)
    return square.delay(2).get(disable_sync_subtasks=False)


@nbtasks.task
def note_overlap(folder):
    mine = Path(folder) / str(time.monotonic_ns())
    mine.touch()
    time.sleep(0.02)
    others = len(list(Path(folder).iterdir()))
    mine.unlink()
    return others


@pytest.fixture
def alone(make_cluster):
    return make_cluster(workers=1)


@pytest.mark.usefixtures("alone")
def test_tasks_wait_for_one_another_in_a_pool_of_one():
    assert depth.delay(3).get(timeout=SOON) == 3


@pytest.mark.parametrize("workers", [1, 4])
def test_a_tree_of_tasks_may_be_wider_than_workers_step_in(make_cluster, workers):
    make_cluster(workers=workers)

    assert fibonacci.delay(10).get(timeout=2 * SOON) == 55  # 88 of its tasks wait


@pytest.mark.usefixtures("alone")
def test_who_waits_too_deep_is_told_so():
    with pytest.raises(nbtasks.exceptions.TaskError, match="from some depth on call the function"):
        depth.delay(40).get(timeout=2 * SOON)

    assert depth.delay(3).get(timeout=SOON) == 3


WAITS = [by_set, one_by_one, by_await, by_map, by_future, as_completed, in_a_loop, in_threads]


@pytest.mark.parametrize("waits", WAITS)
@pytest.mark.usefixtures("alone")
def test_a_task_may_wait_in_every_way(waits):
    assert waits.delay(4).get(timeout=SOON) == [0, 1, 4, 9]


@pytest.mark.usefixtures("alone")
def test_a_task_that_is_applied_in_a_task_may_wait_too():
    assert eagerly.delay(1).get(timeout=SOON) == 1


def test_the_wait_outlives_the_broker(alone, short_path):
    begun, gate = short_path / "begun", short_path / "gate"
    waiting = hold_by_another.delay(str(begun), str(gate))
    eventually(begun.exists)

    kill(alone.broker_pid)
    last = square.delay(3)
    gate.touch()

    assert waiting.get(timeout=SOON) == "held"
    assert last.get(timeout=SOON) == 9


def test_no_more_run_at_once_than_there_are_workers(alone, short_path):
    assert depth.delay(1).get(timeout=SOON) == 1
    assert len(alone.worker_pids()) == 2  # who stepped in stays for a while

    folder = short_path / "running"
    folder.mkdir()
    results = [note_overlap.delay(str(folder)) for _ in range(10)]

    assert {result.get(timeout=SOON) for result in results} == {1}


def test_who_stepped_in_goes_again(alone):
    assert depth.delay(1).get(timeout=SOON) == 1

    eventually(lambda: len(alone.worker_pids()) == 1)

    assert alone.status()["wanted"] == alone.settings.workers == 1
    assert square.delay(2).get(timeout=SOON) == 4


class Squaring(nbtasks.Task):
    """Its handler waits for a task, and writes what came of it."""

    def on_success(self, retval, task_id, args, kwargs):
        value = square.delay(retval).get(disable_sync_subtasks=False)
        Path(args[0]).write_text(str(value))


@nbtasks.task(base=Squaring)
def seven(path):
    return 7


def test_handler_that_waits_for_a_task_goes_on_in_a_pool_of_one(make_cluster, short_path):
    make_cluster(workers=1)
    told = short_path / "told"

    seven.delay(str(told))

    eventually(lambda: told.exists() and told.read_text() == "49")


def test_tasks_wait_for_others_in_workers_that_were_told_to_go(make_cluster, short_path):
    cluster = make_cluster(workers=2)
    begun, gates = ([short_path / f"{what}-{n}" for n in range(2)] for what in ("begun", "gate"))
    results = [hold_and_wait.delay(*map(str, paths)) for paths in zip(begun, gates, strict=True)]
    eventually(lambda: all(path.exists() for path in begun))

    cluster.scale(1)

    for gate, result in zip(gates, results, strict=True):
        gate.touch()
        assert result.get(timeout=SOON) == 4
