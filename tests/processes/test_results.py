"""Results of real tasks: what a caller may ask, while real workers run and die."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

import pytest

import nbtasks
from nbtasks import exceptions
from nbtasks.result import AsyncResult, GroupResult, ResultSet, result_from_tuple

#: Seconds within which something that takes milliseconds must have happened on a busy machine.
SOON = 20.0


class HeaderError(ValueError):
    """An error of the user's own, whose class wants two arguments."""

    def __init__(self, message, line):
        super().__init__(message, line)
        self.line = line


@nbtasks.task
def add(x, y):
    return x + y


@nbtasks.task
def wait_for(path, begun=None):
    """Run until a file is there; say that it has begun by making another."""
    if begun is not None:
        Path(begun).touch()
    while not Path(path).exists():
        time.sleep(0.005)
    return "seen"


@nbtasks.task(bind=True)
def hello(self, a, b):
    self.update_state(state="PROGRESS", meta={"progress": 50})
    self.update_state(state="PROGRESS", meta={"progress": 90})
    return f"hello world: {a + b}"


@nbtasks.task
def load(path):
    try:
        raise KeyError("line 3")
    except KeyError as cause:
        error = HeaderError("bad header", 3)
        error.add_note(f"while reading {path}")
        raise error from cause


@nbtasks.task
def fail_until(path):
    if not Path(path).exists():
        raise ConnectionError("refused")
    return "connected"


@nbtasks.task
def fail_with(text):
    raise ValueError(text)


@nbtasks.task(bind=True)
def try_again_in_an_hour(self):
    if self.request.retries == 0:
        raise self.retry(exc=ConnectionError("refused"), countdown=3600)
    return self.request.retries


@nbtasks.task(bind=True)
def halve(self, number):
    self.update_state(state="HALVING", meta=number)
    if number > 1:
        self.retry(args=(number // 2,), countdown=0)
    return number


@nbtasks.task
def ignore():
    raise exceptions.Ignore()


@nbtasks.task
def spread(n):
    return [add.delay(number, 1).id for number in range(n)]


@nbtasks.task
def wait_inside(allowed):
    result = add.delay(1, 2)
    if not allowed:
        return result.get(timeout=SOON)
    with nbtasks.allow_join_result():
        return result.get(timeout=SOON)


@nbtasks.task
def talk():
    print("to stdout")
    print("to stderr", file=sys.stderr)
    for _ in nbtasks.track(range(4)):
        pass
    return os.getpid()


def eventually(condition):
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.005)


@pytest.fixture
def gate(short_path):
    """A file that lets `wait_for` end; it is not there yet."""
    return short_path / "gate"


@pytest.fixture
def running(cluster, gate, short_path):
    """A task that runs until the gate is there."""
    begun = short_path / "begun"
    result = wait_for.delay(str(gate), str(begun))
    eventually(begun.exists)
    return result


# -------------------------------------------------------------------------------- values, facts


@pytest.mark.usefixtures("cluster")
def test_result_tells_value_and_facts():
    before = datetime.now(UTC)

    result = add.apply_async((2, 3), priority=7)

    assert result.get(timeout=SOON) == 5
    assert (result.state, result.result, result.traceback) == ("SUCCESS", 5, None)
    assert result.successful()
    assert result.accepted
    assert result.exists()
    assert result.name == add.name
    assert (tuple(result.args), result.kwargs, result.queue) == ((2, 3), {}, "default")
    assert (result.retries, result.children) == (0, [])
    assert result.worker
    assert before <= result.date_done <= datetime.now(UTC)


@pytest.mark.usefixtures("cluster")
def test_large_value_arrives_whole():
    megabytes = b"\x01" * 3_000_000

    assert add.delay(megabytes, b"\x02").get(timeout=SOON) == megabytes + b"\x02"


def test_another_process_has_the_result_by_its_id(cluster):
    result = add.delay(2, 3)
    result.get(timeout=SOON)
    program = (
        "import nbtasks, sys\n"
        "from nbtasks.result import AsyncResult\n"
        "with nbtasks.connect(dir=sys.argv[1]):\n"
        "    result = AsyncResult(sys.argv[2])\n"
        "    messages = []\n"
        "    print(result.state, result.get(timeout=20, on_message=messages.append))\n"
        "    print(result.name, tuple(result.args), result.queue, messages[-1]['args'])\n"
        "    print(result.exists(), AsyncResult('mistyped').exists())\n"
    )

    ran = subprocess.run(
        [sys.executable, "-c", program, str(cluster.dir), result.id],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )

    assert ran.stdout.splitlines() == [
        "SUCCESS 5",
        f"{add.name} (2, 3) default (2, 3)",
        "True False",
    ], ran.stderr


def test_task_sent_with_the_same_id_is_the_same_task(running, gate):
    again = wait_for.apply_async((str(gate),), task_id=running.id)
    gate.touch()

    assert running.get(timeout=SOON) == again.get(timeout=SOON) == "seen"
    assert again.history[-1] == running.history[-1]


# --------------------------------------------------------------------------------------- waiting


def test_timeout_is_exact_and_the_task_goes_on(running, gate):
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"was not ready within 0\.2 s"):
        running.get(timeout=0.2)
    waited = time.monotonic() - began

    gate.touch()

    assert 0.2 <= waited < 0.35
    assert running.get(timeout=SOON) == "seen"


def test_interrupt_ends_the_waiting_and_not_the_task(running, gate):
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()

    with pytest.raises(KeyboardInterrupt):
        running.get(timeout=SOON)

    assert time.monotonic() - began < 0.6
    timer.join()
    gate.touch()
    assert running.get(timeout=SOON) == "seen"


def test_waiting_outlives_the_death_of_the_broker(cluster, running, gate):
    os.kill(cluster.broker_pid, signal.SIGKILL)
    gate.touch()

    assert running.get(timeout=SOON) == "seen"


def test_result_outlives_the_cluster_and_waits_in_the_next_one(make_cluster, short_path):
    first = make_cluster(dir=short_path / "c")
    late = add.apply_async((1, 2), countdown=1.0, confirm=True)
    first.shutdown()

    make_cluster(dir=short_path / "c")

    assert AsyncResult(late.id).get(timeout=SOON) == 3
    assert late.get(timeout=SOON) == 3


def test_set_with_members_in_two_clusters_is_revoked_and_forgotten_whole(make_cluster):
    members = ResultSet([])
    for _ in range(2):
        make_cluster(workers=1)
        members.add(add.apply_async((1, 2), countdown=60))

    members.revoke(wait=True, timeout=SOON)
    assert [member.state for member in members] == ["REVOKED"] * 2
    members.forget()
    assert [member.state for member in members] == ["PENDING"] * 2


@pytest.mark.usefixtures("cluster")
def test_callback_then_and_await_all_get_the_value():
    called, told = threading.Event(), []

    def note(result):
        told.append(result.get())
        called.set()

    add.delay(1, 2).then(note)
    assert called.wait(SOON)
    add.delay(3, 4).get(timeout=SOON, callback=lambda *heard: told.append(heard[1]))

    async def main():
        return await asyncio.gather(*(add.delay(number, 0) for number in (5, 6)))

    assert (told, asyncio.run(main())) == ([3, 7], [5, 6])


@pytest.mark.usefixtures("cluster")
def test_ignored_results_give_none():
    assert add.apply_async((1, 2), ignore_result=True).get() is None

    ignored = ignore.delay()

    assert ignored.get(timeout=SOON) is None
    assert (ignored.state, ignored.ignored) == ("IGNORED", True)


@pytest.mark.usefixtures("cluster")
def test_waiting_inside_a_task_is_refused_unless_it_is_allowed():
    with pytest.raises(RuntimeError, match="inside a running task"):
        wait_inside.delay(False).get(timeout=SOON)

    assert wait_inside.delay(True).get(timeout=SOON) == 3


# ------------------------------------------------------------------------------------ on_message


@pytest.mark.usefixtures("cluster")
def test_on_message_tells_all_states_in_order_live_and_again_afterwards():
    live, replayed, elsewhere = [], [], []
    result = hello.apply_async((4, 6))

    assert result.get(timeout=SOON, on_message=live.append) == "hello world: 10"
    result.get(on_message=replayed.append)
    AsyncResult(result.id).get(timeout=SOON, on_message=elsewhere.append)

    assert [(body["status"], body["result"]) for body in live] == [
        ("PROGRESS", {"progress": 50}),
        ("PROGRESS", {"progress": 90}),
        ("SUCCESS", "hello world: 10"),
    ]
    assert live == replayed == elsewhere
    assert {body["task_id"] for body in live} == {result.id}
    last = live[-1]
    assert (last["name"], tuple(last["args"]), last["kwargs"]) == (hello.name, (4, 6), {})
    assert (last["queue"], last["retries"], last["traceback"]) == ("default", 0, None)
    assert datetime.fromisoformat(last["date_done"]) == result.date_done


@pytest.mark.usefixtures("cluster")
def test_on_message_hears_the_retry_with_its_reason():
    messages = []
    result = try_again_in_an_hour.delay()
    eventually(lambda: result.state == "RETRY")
    assert isinstance(result.info, ConnectionError)

    result.retry()  # at once instead

    assert result.get(timeout=SOON, on_message=messages.append) == 1
    assert [body["status"] for body in messages] == ["RETRY", "SUCCESS"]
    assert isinstance(messages[0]["result"], ConnectionError)
    assert "ConnectionError" in messages[0]["traceback"]
    assert result.retries == 1


@pytest.mark.usefixtures("cluster")
def test_arguments_are_those_of_the_last_retry():
    messages = []
    result = halve.delay(4)

    assert result.get(timeout=SOON, on_message=messages.append) == 1

    assert result.args == (1,)
    assert messages[-1]["args"] == (1,)
    assert [body["result"] for body in messages if body["status"] == "HALVING"] == [4, 2, 1]
    assert messages[0]["args"] == (4,)


# ----------------------------------------------------------------------------------------- errors


@pytest.mark.usefixtures("cluster")
def test_error_arrives_as_itself_with_the_lines_of_the_task():
    result = load.delay("b.csv")

    for _ in range(2):
        with pytest.raises(HeaderError) as raised:
            result.get(timeout=SOON)
        error = raised.value
        assert (type(error), error.args, error.line) == (HeaderError, ("bad header", 3), 3)
        assert isinstance(error.__cause__, KeyError)
        assert error.__notes__[0] == "while reading b.csv"
        assert len(error.__notes__) == 2
        shown = "".join(traceback.format_exception(error))
        assert shown.count("raise error from cause") == 1

    assert result.failed()
    assert "raise error from cause" in result.traceback
    assert isinstance(result.get(propagate=False), HeaderError)


@pytest.mark.usefixtures("cluster")
def test_failed_task_is_run_again_when_asked(gate):
    result = fail_until.delay(str(gate))
    with pytest.raises(ConnectionError):
        result.get(timeout=SOON)

    gate.touch()
    result.retry()

    assert result.get(timeout=SOON) == "connected"
    assert [moment.attempt for moment in result.history][-1] == 2
    with pytest.raises(ValueError, match="SUCCESS, so it cannot be run again"):
        result.retry()


def test_who_has_seen_a_task_fail_hears_that_another_process_runs_it_again(cluster, gate):
    result = fail_until.delay(str(gate))
    with pytest.raises(ConnectionError):
        result.get(timeout=SOON)
    program = (
        "import nbtasks, sys\n"
        "with nbtasks.connect(dir=sys.argv[1]):\n"
        "    nbtasks.AsyncResult(sys.argv[2]).retry()\n"
    )

    gate.touch()
    subprocess.run(
        [sys.executable, "-c", program, str(cluster.dir), result.id],
        check=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )

    eventually(result.successful)
    assert result.get(timeout=SOON) == AsyncResult(result.id).get(timeout=SOON) == "connected"


@pytest.mark.usefixtures("cluster")
def test_expired_task_runs_when_asked_once_more():
    result = add.apply_async((1, 2), countdown=3600, expires=0.1)
    with pytest.raises(exceptions.TaskRevokedError, match="expired"):
        result.get(timeout=SOON)

    result.retry()

    assert result.get(timeout=SOON) == 3


def test_purged_task_cannot_be_run_again_and_one_that_says_so_can(cluster):
    waits = add.apply_async((1, 2), countdown=3600, confirm=True)
    cluster.client.ask("purge")
    with pytest.raises(exceptions.TaskRevokedError, match="purged"):
        waits.get(timeout=SOON)

    with pytest.raises(ValueError, match="purged, and its arguments are deleted"):
        waits.retry()

    fails = fail_with.delay("purged")
    for _ in range(2):
        with pytest.raises(ValueError, match="purged"):
            fails.get(timeout=SOON)
        fails.retry()


# ---------------------------------------------------------------------------------------- control


def test_task_that_waits_is_revoked_at_once(cluster):
    result = add.apply_async((1, 2), countdown=3600)

    result.revoke(wait=True, timeout=SOON)

    assert (result.state, result.ready(), result.successful(), result.failed()) == (
        *("REVOKED", True, False, False),
    )
    with pytest.raises(exceptions.TaskRevokedError, match="revoked"):
        result.get()


def test_running_task_goes_on_when_revoked_and_ends_when_cancelled(running):
    running.revoke()
    with pytest.raises(TimeoutError):
        running.get(timeout=0.2)

    running.cancel(wait=True, timeout=SOON)

    with pytest.raises(exceptions.TaskRevokedError, match="terminated"):
        running.get()
    assert add.delay(1, 2).get(timeout=SOON) == 3


@pytest.mark.usefixtures("cluster")
def test_expired_task_says_so():
    result = add.apply_async((1, 2), expires=-1)

    with pytest.raises(exceptions.TaskRevokedError, match="expired"):
        result.get(timeout=SOON)


@pytest.mark.usefixtures("cluster")
def test_forgotten_result_is_as_if_it_had_never_been():
    result = add.delay(1, 2)
    assert result.get(timeout=SOON) == 3
    twin = AsyncResult(result.id)

    result.forget()

    assert (result.state, result.result, result.exists()) == ("PENDING", None, False)
    assert (twin.state, twin.exists()) == ("PENDING", False)


# ------------------------------------------------------------------------------- beyond a value


@pytest.mark.usefixtures("cluster")
def test_logs_history_and_progress_tell_how_it_went():
    result = talk.delay()
    pid = result.get(timeout=SOON)
    eventually(lambda: result.logs().count("\n") == 2)

    assert (result.logs("stdout"), result.logs("stderr")) == ("to stdout\n", "to stderr\n")
    assert result.progress == 1.0
    whats = [moment.what for moment in result.history]
    assert (whats[0], whats[-1]) == ("SUBMITTED", "SUCCESS")
    assert "PROGRESS" in whats
    assert isinstance(pid, int)


@pytest.mark.usefixtures("cluster")
def test_tasks_that_a_task_sends_are_its_children():
    result = spread.delay(3)
    ids = result.get(timeout=SOON)

    assert result.children == ids
    assert [value for _, value in result.collect(timeout=SOON)] == [ids, 1, 2, 3]
    assert result.get_leaf() == 3
    assert result.graph == {result: ids, **{child: [] for child in ids}}


# ------------------------------------------------------------------------------------------- sets


@pytest.mark.usefixtures("cluster")
def test_set_gathers_values_errors_and_messages():
    results = ResultSet([hello.delay(1, number) for number in range(5)])
    messages, called = [], []

    values = results.get(timeout=SOON, on_message=messages.append)
    results.get(callback=lambda *told: called.append(told))

    assert values == [f"hello world: {1 + number}" for number in range(5)]
    assert sorted(called) == sorted((result.id, result.get()) for result in results)
    assert len(messages) == 15
    assert results.completed_count() == 5

    results.add(load.delay("b.csv"))
    with pytest.raises(HeaderError):
        results.get(timeout=SOON)
    assert isinstance(results.get(propagate=False)[-1], HeaderError)


def test_error_in_a_set_is_raised_while_others_run(running, gate):
    results = ResultSet([running, load.delay("b.csv")])

    with pytest.raises(HeaderError):
        results.get(timeout=SOON)

    assert not running.ready()
    gate.touch()
    assert running.get(timeout=SOON) == "seen"


@pytest.mark.usefixtures("cluster")
def test_group_is_restored_by_its_id():
    group = GroupResult("my-group", [add.delay(number, 1) for number in range(3)])
    group.save()

    restored = GroupResult.restore("my-group")

    assert restored == group == result_from_tuple(group.as_tuple())
    assert restored.get(timeout=SOON) == [1, 2, 3]
    restored.delete()
    assert GroupResult.restore("my-group") is None


@pytest.mark.usefixtures("cluster")
def test_a_thousand_results_are_gathered_by_four_threads_at_once():
    results = ResultSet([add.delay(number, 1) for number in range(1000)])
    gathered = []

    def gather():
        gathered.append(results.get(timeout=SOON))

    threads = [threading.Thread(target=gather) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)

    assert gathered == [list(range(1, 1001))] * 4
