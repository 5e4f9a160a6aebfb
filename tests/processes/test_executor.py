"""The words of concurrent.futures, on a cluster."""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
import os
import threading
import time
from concurrent.futures import (
    ALL_COMPLETED,
    CancelledError,
    Future,
    ProcessPoolExecutor,
    as_completed,
    wait,
)
from pathlib import Path

import pytest

import nbtasks
from nbtasks.client import client as clients
from nbtasks.client import executor as executor_module
from nbtasks.exceptions import BrokerUnavailable, EncodeError
from tests.living import SOON, eventually, note


@pytest.fixture
def executor(cluster):
    with nbtasks.Executor() as executor:
        yield executor


def double(number):
    return 2 * number


def fail_at(place, number):
    if number == place:
        raise KeyError(number)
    return number


def noted(ledger, number):
    note(ledger, number)
    return number


def until(path):
    while not Path(path).exists():
        time.sleep(0.005)
    return str(path)


def lines(ledger):
    return sorted(map(int, Path(ledger).read_text().split())) if Path(ledger).exists() else []


# ----------------------------------------------------------------------------------------- submit


def test_nobody_waits_for_a_cluster_that_is_gone(make_cluster, tmp_path):
    cluster = make_cluster(workers=1)
    executor = nbtasks.Executor()
    futures = [executor.submit(until, tmp_path / "gate") for _ in range(3)]

    cluster.shutdown()

    assert not wait(futures, timeout=SOON).not_done
    assert isinstance(futures[-1].exception(), BrokerUnavailable)
    assert not futures[-1].cancel()
    executor.shutdown()


@pytest.mark.parametrize(
    ("function", "args", "value"),
    [
        (double, (4,), 8),
        (lambda x: x + 1, (4,), 5),
        (math.sqrt, (9,), 3.0),
        (functools.partial(pow, 2), (3,), 8),
        ([1, 2, 3].index, (3,), 2),
        (str.upper, ("a",), "A"),
        (dict, ([("a", 1)],), {"a": 1}),
    ],
    ids=["function", "lambda", "builtin", "partial", "method", "slot", "class"],
)
def test_anything_that_can_be_called_is_run(executor, function, args, value):
    assert executor.submit(function, *args).result(SOON) == value


def test_task_is_run_as_itself(executor):
    task = nbtasks.task(name="doubled")(double)

    future = executor.submit(task, number=3)

    assert future.result(SOON) == 6
    assert future.task.name == "doubled"


def test_it_runs_elsewhere(executor):
    assert executor.submit(os.getpid).result(SOON) in nbtasks.current_cluster().worker_pids()


def test_error_comes_back_as_itself(executor):
    future = executor.submit(fail_at, 1, 1)

    assert isinstance(future.exception(SOON), KeyError)
    with pytest.raises(KeyError, match="1"):
        future.result()


def test_argument_that_cannot_be_sent_is_refused_at_the_call(executor):
    with pytest.raises(EncodeError):
        executor.submit(double, (n for n in [1]))


def test_futures_work_with_wait_and_as_completed(executor):
    futures = [executor.submit(double, n) for n in range(20)]

    assert {future.result() for future in as_completed(futures, SOON)} == set(range(0, 40, 2))
    assert wait(futures, SOON, ALL_COMPLETED).not_done == set()


def test_futures_can_be_awaited(executor):
    async def main():
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(executor, double, n) for n in range(5)))

    assert asyncio.run(main()) == [0, 2, 4, 6, 8]


def test_callback_is_called_when_it_is_done(executor):
    heard = []

    executor.submit(double, 2).add_done_callback(lambda future: heard.append(future.result()))

    eventually(lambda: heard == [4])


def test_callback_may_wait_for_another_future(executor):
    heard = []

    executor.submit(double, 2).add_done_callback(
        lambda future: heard.append(executor.submit(double, future.result()).result(SOON))
    )

    eventually(lambda: heard == [8])


def test_callback_of_a_future_that_is_done_is_called_at_once(executor):
    heard = []
    future = executor.submit(double, 2)
    future.result(SOON)

    future.add_done_callback(heard.append)

    assert heard == [future]


def test_cancelled_future_never_runs(executor, short_path):
    gate = short_path / "gate"
    blockers = [executor.submit(until, gate) for _ in range(2)]
    late = executor.submit(noted, short_path / "ledger", 1)

    assert late.cancel()
    gate.touch()

    assert late.cancelled()
    assert late in wait([late], SOON).done
    with pytest.raises(CancelledError):
        late.result()
    assert [future.result(SOON) for future in blockers] == [str(gate)] * 2
    eventually(late.task.ready)
    assert late.task.state == "REVOKED"
    assert lines(short_path / "ledger") == []


def test_future_can_be_cancelled_twice(executor, short_path):
    blockers = [executor.submit(until, short_path / "gate") for _ in range(2)]
    late = executor.submit(double, 1)

    assert late.cancel()
    assert late.cancel()

    (short_path / "gate").touch()
    wait(blockers, SOON)


def test_future_that_is_running_says_so_and_cannot_be_cancelled(executor, short_path):
    gate = short_path / "gate"
    future = executor.submit(until, gate)

    eventually(future.running)
    assert not future.cancel()

    gate.touch()
    assert future.result(SOON) == str(gate)
    assert not future.running()


def test_callback_of_a_result_may_wait_for_a_future(executor):
    heard = []

    def call(result):
        heard.append(executor.submit(double, result.get()).result(SOON))

    nbtasks.task(double).delay(2).then(call)

    eventually(lambda: heard == [8])


def test_future_that_is_done_cannot_be_cancelled(executor):
    future = executor.submit(double, 1)
    future.result(SOON)

    assert not future.cancel()
    assert not future.cancelled()


def test_task_that_somebody_else_revokes_ends_its_future(executor, short_path):
    blockers = [executor.submit(until, short_path / "gate") for _ in range(2)]
    future = executor.submit(double, 1)

    future.task.revoke()

    assert isinstance(future.exception(SOON), nbtasks.exceptions.TaskRevokedError)
    (short_path / "gate").touch()
    wait(blockers, SOON)


def test_many_functions_do_not_pile_up(executor):
    values = [executor.submit(lambda n=n: n).result(SOON) for n in range(100)]

    assert values == list(range(100))
    assert len(executor._tasks) == executor_module.REMEMBERED


# -------------------------------------------------------------------------------------------- map


def test_values_come_in_order(executor):
    assert list(executor.map(double, range(20_000))) == list(range(0, 40_000, 2))


@pytest.mark.parametrize("is_task", [False, True], ids=["function", "task"])
def test_coroutines_are_awaited(executor, is_task):
    async def double_slowly(number):
        await asyncio.sleep(0.001)
        return 2 * number

    function = nbtasks.task(double_slowly) if is_task else double_slowly

    assert list(executor.map(function, range(3))) == [0, 2, 4]
    assert executor.submit(function, 4).result(SOON) == 8


def test_nothing_is_started_where_all_runs_here(short_path, monkeypatch):
    def refused(*_):
        raise AssertionError("a cluster was started")

    monkeypatch.setattr(nbtasks.cluster, "start", refused)
    monkeypatch.setattr(clients, "_current", None)
    nbtasks.configure(task_always_eager=True)
    try:
        with nbtasks.Executor() as executor:
            future = executor.submit(double, 4)
            assert not future.running()
            assert future.result(SOON) == 8
            assert isinstance(executor.submit(fail_at, 1, 1).exception(SOON), KeyError)
            assert list(executor.map(double, range(5))) == [0, 2, 4, 6, 8]
            values = executor.map(fail_at, itertools.repeat(2), range(5))
            assert [next(values), next(values)] == [0, 1]
            with pytest.raises(KeyError):
                next(values)
    finally:
        nbtasks.configure(task_always_eager=False)


def test_map_gives_its_values_where_results_are_ignored(executor):
    nbtasks.configure(task_ignore_result=True)
    try:
        assert list(executor.map(double, range(5))) == [0, 2, 4, 6, 8]
    finally:
        nbtasks.configure(task_ignore_result=False)


def test_several_iterables_end_with_the_shortest(executor):
    assert list(executor.map(pow, [2, 3, 4], (n for n in (1, 2)))) == [2, 9]
    assert list(executor.map(pow, range(3), itertools.repeat(2))) == [0, 1, 4]


@pytest.mark.parametrize("iterables", [(), ([],), ([1], [])])
def test_nothing_gives_nothing(executor, iterables):
    assert list(executor.map(pow, *iterables)) == []


def test_quick_items_travel_together(executor):
    list(executor.map(double, range(10_000)))

    tasks = nbtasks.current_cluster().client.ask("list", limit=1_000)
    assert 4 <= len(tasks) < 200


def test_items_that_become_slow_are_shared_by_all_workers(executor):
    def work(number):
        if number >= 20_000:
            time.sleep(0.01)
        return number, os.getpid()

    found = list(executor.map(work, range(20_300)))

    assert [number for number, _ in found] == list(range(20_300))
    assert len({pid for number, pid in found if number >= 20_000}) == 2


def test_slow_items_travel_alone(executor, short_path):
    def slow(number):
        time.sleep(0.15)
        return os.getpid()

    pids = list(executor.map(slow, range(6)))

    assert len(nbtasks.current_cluster().client.ask("list", limit=100)) == 6
    assert len(set(pids)) == 2


def test_chunks_have_the_size_that_was_asked_for(executor):
    assert list(executor.map(double, range(10), chunksize=4)) == list(range(0, 20, 2))
    assert len(nbtasks.current_cluster().client.ask("list", limit=100)) == 3


@pytest.mark.parametrize("chunksize", [0, -1])
def test_chunks_without_items_are_refused(executor, chunksize):
    with pytest.raises(ValueError, match=r"chunksize is .*give 1 or more"):
        executor.map(double, [1], chunksize=chunksize)


def test_it_goes_on_while_nobody_asks_for_values(executor, short_path):
    ledger = short_path / "ledger"

    values = executor.map(functools.partial(noted, ledger), range(500))

    eventually(lambda: lines(ledger) == list(range(500)))
    assert list(values) == list(range(500))


def test_values_before_an_error_are_given(executor):
    values, got = executor.map(functools.partial(fail_at, 700), range(5_000)), []

    with pytest.raises(KeyError, match="700") as caught:
        got.extend(values)

    assert got == list(range(700))
    assert "fail_at" in "".join(caught.value.__notes__)
    assert vars(caught.value).keys() <= {"__notes__", "_render_traceback_"}


@pytest.mark.parametrize("chunksize", [1, 5])
def test_function_that_raises_stop_iteration_ends_no_map(executor, chunksize):
    def stop(number):
        return next(iter([])) if number == 2 else number

    values, got = executor.map(stop, range(5), chunksize=chunksize), []
    with pytest.raises(RuntimeError, match="StopIteration"):
        got.extend(values)

    assert got == [0, 1]


def test_values_before_an_error_that_cannot_be_sent_are_left_out(executor):
    def lock_or_fail(number):
        return threading.Lock() if number == 0 else fail_at(1, number)

    values, got = executor.map(lock_or_fail, range(2), chunksize=2), []
    with pytest.raises(KeyError):
        got.extend(values)

    assert got == []


def test_rest_is_not_begun_after_an_error(executor, short_path):
    ledger = short_path / "ledger"

    def slow_noted(number):
        note(ledger, number)
        time.sleep(0.1)
        return fail_at(1, number)

    with pytest.raises(KeyError):
        list(executor.map(slow_noted, range(1_000)))

    done = lines(ledger)
    executor.submit(double, 1).result(SOON)
    executor.submit(double, 1).result(SOON)
    assert len(done) < 20
    assert len(lines(ledger)) < 20


def test_item_that_cannot_be_sent_is_told_in_its_place(executor):
    items = [1, 2, threading.Lock(), 4]

    values, got = executor.map(str, items, chunksize=1), []
    with pytest.raises(EncodeError):
        got.extend(values)

    assert got == ["1", "2"]


def test_map_that_takes_too_long_is_given_up(executor, short_path):
    gate = short_path / "gate"

    with pytest.raises(TimeoutError):
        list(executor.map(until, [gate] * 8, timeout=0.3))

    gate.touch()


def test_abandoned_map_is_ended(executor, short_path):
    def slow(number):
        time.sleep(0.05)
        return number

    values = executor.map(slow, range(1_000))
    assert next(values) == 0
    values.close()

    def states():
        listed = nbtasks.current_cluster().client.ask("list", limit=1_000)
        return {task["state"] for task in listed}

    eventually(lambda: states() <= {"SUCCESS", "REVOKED"})
    assert len(nbtasks.current_cluster().client.ask("list", limit=1_000)) < 50


def test_map_in_a_task_uses_the_other_workers(executor):
    def outer():
        with nbtasks.Executor() as inner:
            return sum(inner.map(double, range(100)))

    assert executor.submit(outer).result(SOON) == 9_900


# --------------------------------------------------------------------------------------- shutdown


def test_shut_executor_takes_nothing(cluster):
    executor = nbtasks.Executor()
    executor.shutdown()

    with pytest.raises(RuntimeError, match="shut down"):
        executor.submit(double, 1)
    with pytest.raises(RuntimeError, match="shut down"):
        executor.map(double, [1])
    assert nbtasks.task(double).delay(2).get(timeout=SOON) == 4


def test_shutdown_waits_for_what_was_submitted(cluster):
    executor = nbtasks.Executor()
    futures = [executor.submit(time.sleep, 0.1) for _ in range(4)]

    executor.shutdown()

    assert all(future.done() for future in futures)


def test_shutdown_can_cancel(cluster, short_path):
    gate = short_path / "gate"
    executor = nbtasks.Executor()
    futures = [executor.submit(until, gate) for _ in range(10)]
    eventually(lambda: futures[0].running() and futures[1].running())

    executor.shutdown(wait=False, cancel_futures=True)
    gate.touch()

    assert [future.cancelled() for future in futures] == [False] * 2 + [True] * 8
    assert [future.result(SOON) for future in futures[:2]] == [str(gate)] * 2


def test_shutdown_waits_for_what_is_mapped(cluster, short_path):
    ledger = short_path / "ledger"

    with nbtasks.Executor() as executor:
        values = executor.map(functools.partial(noted, ledger), range(200))

    assert lines(ledger) == list(range(200))
    assert list(values) == list(range(200))


def test_shutdown_waits_for_no_map_whose_cluster_is_gone(make_cluster, short_path):
    cluster = make_cluster(workers=1)
    executor = nbtasks.Executor()
    executor.map(until, [short_path / "gate"] * 9)
    cluster.shutdown()

    executor.shutdown()

    assert nbtasks.current_cluster() is None


def test_shutdown_can_cancel_what_is_mapped(cluster, short_path):
    gate = short_path / "gate"
    executor = nbtasks.Executor()
    values = executor.map(until, [gate] * 20)
    eventually(lambda: cluster.client.ask("status")["phases"].get("running") == 2)

    executor.shutdown(wait=False, cancel_futures=True)
    gate.touch()

    assert [next(values), next(values)] == [str(gate)] * 2
    with pytest.raises(CancelledError):
        next(values)


def test_it_has_the_words_of_the_standard_library():
    for word in ("submit", "map", "shutdown", "__enter__", "__exit__"):
        assert getattr(nbtasks.Executor, word) is not None
        assert hasattr(ProcessPoolExecutor, word)
    assert issubclass(executor_module.TaskFuture, Future)
