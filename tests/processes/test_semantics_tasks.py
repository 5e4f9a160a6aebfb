"""Celery's words with real workers: decorator, bases, handlers, request, retry, calling, errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pydantic
import pytest

import nbtasks
from nbtasks import Task, exceptions, task
from nbtasks.exceptions import (
    EncodeError,
    Ignore,
    MaxRetriesExceededError,
    NotRegistered,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
    TaskRevokedError,
    TimeLimitExceeded,
    UnpickleableExceptionWrapper,
    WorkerLostError,
)
from tests.conftest import nothing_left_running, short_directory

#: Seconds within which something that takes milliseconds must have happened on a busy machine.
SOON = 30.0


@pytest.fixture(scope="module", autouse=True)
def _no_process_left() -> Iterator[None]:
    """As in all tests, but for the file: the tests share a cluster, which replaces its dead."""
    with nothing_left_running():
        yield


@pytest.fixture(scope="module", autouse=True)
def cluster(_no_process_left: None) -> Iterator[nbtasks.Cluster]:
    with short_directory() as path, nbtasks.start(workers=2, dir=path) as cluster:
        yield cluster


@pytest.fixture
def log(short_path: Path) -> Log:
    """A file into which workers write what happened to them."""
    return Log(str(short_path / "log"))


class Log:
    def __init__(self, path: str) -> None:
        self.path = path

    def lines(self) -> list[str]:
        path = Path(self.path)
        return path.read_text().splitlines() if path.exists() else []

    def becomes(self, *lines: str) -> bool:
        """Handlers run after the caller may have the result, so this waits a little."""
        with contextlib.suppress(AssertionError):
            eventually(lambda: len(self.lines()) >= len(lines))
        assert self.lines() == list(lines)
        return True


def write(path, *words):
    with open(path, "a") as file:
        file.write(" ".join(map(str, words)) + "\n")


def eventually(condition):
    deadline = time.monotonic() + SOON
    while not (value := condition()):
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.005)
    return value


def messages(result):
    """Wait for a task, and return its state messages."""
    found = []
    result.get(timeout=SOON, propagate=False, on_message=found.append)
    return found


def statuses(result):
    return [message["status"] for message in messages(result)]


def error_of(result):
    return result.get(timeout=SOON, propagate=False)


def tries(log):
    """Note one more run in a file, and return how many there have been."""
    write(log, "run")
    return len(Path(log).read_text().splitlines())


# =================================================================== the decorator and its options


@task
def add(x, y):
    """Add two numbers."""
    return x + y


@task()
def called_empty():
    return "called empty"


@task(name="named.here")
def named():
    return "named"


@nbtasks.shared_task(bind=True)
def who(self):
    return self.name, self.request.id, isinstance(self, Task)


@pytest.mark.parametrize(
    ("made", "value"), [(called_empty, "called empty"), (named, "named")], ids=lambda v: str(v)
)
def test_every_form_of_the_decorator_makes_a_task_that_workers_run(made, value):
    assert isinstance(made, Task)

    assert made.delay().get(timeout=SOON) == value
    assert made() == value


def test_a_task_looks_like_its_function():
    assert add.__name__ == "add"
    assert add.__doc__ == "Add two numbers."
    assert add.__module__ == __name__
    assert add.__wrapped__(1, 2) == 3
    assert add.name == f"{__name__}.add"


def test_a_bound_task_gets_itself():
    result = who.delay()

    assert result.get(timeout=SOON) == (who.name, result.id, True)


def test_unknown_keywords_become_attributes_that_travel():
    @task(bind=True, colour="red")
    def paint(self):
        return self.colour

    assert paint.colour == "red"
    assert paint.delay().get(timeout=SOON) == "red"


def test_nested_functions_of_one_name_are_two_tasks():
    def one():
        @task
        def inner():
            return 1

        return inner

    def two():
        @task
        def inner():
            return 2

        return inner

    first, second = one(), two()

    assert first.name != second.name
    assert (first.delay().get(timeout=SOON), second.delay().get(timeout=SOON)) == (1, 2)


@pytest.mark.parametrize("positional", [(1,), ("name",), (len, len)])
def test_the_decorator_takes_one_function_and_nothing_else(positional):
    with pytest.raises(TypeError, match="@task"):
        task(*positional)


def test_a_class_of_tasks_is_registered_and_runs():
    class Multiply(Task):
        factor = 3

        def run(self, x):
            return x * self.factor

    multiply = nbtasks.register_task(Multiply)

    assert multiply.delay(2).get(timeout=SOON) == 6


def test_a_class_without_run_says_so():
    class Empty(Task):
        pass

    empty = nbtasks.register_task(Empty)

    with pytest.raises(NotImplementedError, match="run"):
        empty.delay().get(timeout=SOON)


def test_instance_attributes_persist_between_calls_in_one_process():
    class Counting(Task):
        def __init__(self):
            self.count = 0

    @task(bind=True, base=Counting)
    def count(self):
        self.count += 1
        return os.getpid(), self.count

    seen = [r.get(timeout=SOON) for r in [count.delay() for _ in range(10)]]

    for pid in {pid for pid, _ in seen}:
        counts = [number for one, number in seen if one == pid]
        assert counts == list(range(1, len(counts) + 1))
    assert count.count == 0


# --------------------------------------------------------------------------------------- typing


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((1,), {}), ((1, 2, 3), {}), ((1,), {"z": 2}), ((1, 2), {"x": 1}), ((), {})],
    ids=["missing", "surplus", "unknown", "doubled", "none"],
)
def test_wrong_arguments_are_a_type_error_in_the_caller(cluster, args, kwargs):
    before = cluster.status()

    with pytest.raises(TypeError, match=r"add\(\)"):
        add.delay(*args, **kwargs)
    with pytest.raises(TypeError, match=r"add\(\)"):
        add.apply_async(args, kwargs)

    assert cluster.status().get("tasks") == before.get("tasks")


def test_without_typing_wrong_arguments_are_the_failure_of_the_task():
    @task(typing=False)
    def untyped(x):
        return x

    error = error_of(untyped.delay(1, 2, 3))

    assert isinstance(error, TypeError)
    assert "untyped()" in str(error)


# --------------------------------------------------------------------- serializer, compression


@task
def echo(value):
    return value


@pytest.mark.parametrize("serializer", ["pickle", "json", "yaml", "msgpack"])
@pytest.mark.parametrize("where", ["call", "task"])
def test_arguments_travel_in_each_serializer(serializer, where):
    value = {"n": 1, "words": ["eins", "zwei"], "x": 0.5, "none": None}
    if where == "call":
        result = echo.apply_async((value,), serializer=serializer)
    else:
        result = task(serializer=serializer, name=f"echo.{serializer}")(lambda v: v).delay(value)

    assert result.get(timeout=SOON) == value


def test_json_carries_what_celery_s_json_carries():
    from decimal import Decimal
    from uuid import UUID

    at = datetime(2030, 1, 31, 12, tzinfo=UTC)
    values = [at, at.date(), Decimal("1.5"), UUID(int=7), b"\x00\xff"]

    arrived = echo.apply_async((values,), serializer="json").get(timeout=SOON)

    assert arrived == values
    assert [type(value) for value in arrived] == [type(value) for value in values]


def test_the_arguments_of_a_result_are_a_tuple_in_each_serializer():
    @task
    def f(x):
        return x

    result = f.apply_async((1,), serializer="json")
    result.get(timeout=SOON)

    assert (result.args, result.kwargs) == ((1,), {})


def test_json_makes_lists_of_tuples_and_text_of_keys():
    result = echo.apply_async(({"t": (1, 2), 3: 4},), serializer="json")

    assert result.get(timeout=SOON) == {"t": [1, 2], "3": 4}


@pytest.mark.parametrize(
    "compression",
    ["gzip", "zlib", "bzip2", "bzip", "lzma", "xz", "zstd", "zstandard", "brotli", None],
)
def test_arguments_travel_in_each_compression(compression):
    result = echo.apply_async(("abc" * 5000,), compression=compression)

    assert result.get(timeout=SOON) == "abc" * 5000


def test_a_task_s_compression_holds_for_its_calls():
    @task(compression="gzip", serializer="json")
    def length(text):
        return len(text)

    assert length.delay("x" * 10_000).get(timeout=SOON) == 10_000
    assert length.apply_async(("x" * 10,), compression="bzip2").get(timeout=SOON) == 10


def test_values_travel_in_the_result_serializer_and_errors_as_themselves():
    plain = task(result_serializer="json", result_compression="gzip", name="plain")(echo.run)
    nbtasks.configure(result_serializer="json")
    try:
        by_setting = task(name="plain.by.setting")(echo.run).delay((1, 2))
        with pytest.raises(exceptions.SerializerNotInstalled, match="morse"):
            task(result_serializer="morse", name="unknown")(echo.run).delay(1)
    finally:
        nbtasks.config.reset()

    assert plain.delay((1, 2)).get(timeout=SOON) == [1, 2]
    assert by_setting.get(timeout=SOON) == [1, 2]
    assert isinstance(error_of(plain.delay({1, 2})), EncodeError)
    assert echo.delay((1, 2)).get(timeout=SOON) == (1, 2)


def test_arrays_arrive_and_come_back():
    array = np.arange(300_000).reshape(3, -1)

    assert (echo.delay(array).get(timeout=SOON) == array).all()


# ------------------------------------------------------------------------------ ignored results


@task(ignore_result=True)
def ignored(fail=False):
    if fail:
        raise ValueError("nobody hears it")
    return 1


@task(ignore_result=True, store_errors_even_if_ignored=True)
def only_errors(fail):
    if fail:
        raise ValueError("this is kept")
    return 1


def test_an_ignored_result_is_none_at_once():
    result = ignored.apply_async((), countdown=3600)

    assert result.ignored
    assert result.get() is None
    result.revoke()


def test_a_call_s_ignore_result_wins_in_both_directions():
    assert ignored.apply_async((), ignore_result=False).get(timeout=SOON) == 1
    result = add.apply_async((1, 2), ignore_result=True)
    assert result.ignored
    assert result.get(timeout=SOON) is None


def test_nothing_is_kept_of_an_ignored_result_but_errors_where_they_are_wanted(cluster):
    sent = [ignored.delay(), ignored.delay(True), only_errors.delay(False), only_errors.delay(True)]
    eventually(lambda: all(result.ready() for result in sent))

    assert [result.state for result in sent] == ["PENDING", "PENDING", "PENDING", "FAILURE"]
    assert nbtasks.AsyncResult(sent[1].id).get(timeout=SOON) is None

    code = f"""
        import nbtasks
        nbtasks.connect({str(cluster.dir)!r})
        for id in {[result.id for result in sent]!r}:
            result = nbtasks.AsyncResult(id)
            print(result.state, repr(result.result))
    """
    assert script(code).splitlines() == [
        *["PENDING None"] * 3,
        "FAILURE ValueError('this is kept')",
    ]


@pytest.mark.parametrize(("errors", "told"), [(False, "PENDING"), (True, "RETRY")])
def test_the_retry_of_an_ignored_result_is_kept_where_errors_are_wanted(cluster, errors, told):
    @task(bind=True, ignore_result=True, store_errors_even_if_ignored=errors)
    def later(self):
        self.retry(countdown=3600)

    result = later.delay()
    eventually(lambda: "RETRY" in [moment.what for moment in result.history])

    assert result.state == told
    code = f"""
        import nbtasks
        nbtasks.connect({str(cluster.dir)!r})
        print(nbtasks.AsyncResult({result.id!r}).state)
    """
    assert script(code) == told
    result.revoke()


def test_a_state_of_its_own_is_stored_even_when_results_are_ignored(log):
    @task(bind=True, ignore_result=True)
    def tell(self, path):
        self.update_state(state="HALF", meta=0.5)
        write(path, "told")
        while len(Path(path).read_text().splitlines()) < 2:
            time.sleep(0.005)

    result = tell.delay(log.path)
    by_id = nbtasks.AsyncResult(result.id)

    eventually(lambda: by_id.state == "HALF")
    assert by_id.info == 0.5
    write(log.path, "go on")


# -------------------------------------------------------------------------------- track_started


def test_started_is_told_when_the_task_wants_it():
    @task(track_started=True)
    def quick():
        return os.getpid()

    result = quick.delay()
    told = messages(result)

    assert [message["status"] for message in told] == ["STARTED", "SUCCESS"]
    assert told[0]["result"] == {"pid": result.get(), "hostname": result.worker}


def test_started_is_a_matter_of_settings_too():
    nbtasks.configure(task_track_started=True)
    try:
        result = task(name="quick.by.setting")(lambda: 1).delay()
        assert statuses(result) == ["STARTED", "SUCCESS"]
    finally:
        nbtasks.config.reset()


# ---------------------------------------------------------------------------------- time limits


@task(soft_time_limit=0.2)
def soft(caught=True):
    try:
        while True:
            time.sleep(0.01)
    except SoftTimeLimitExceeded:
        if caught:
            return "cleaned up"
        raise


@task(time_limit=0.3)
def hard():
    while True:
        time.sleep(0.01)


def test_a_soft_limit_can_be_caught_in_the_body():
    assert soft.delay().get(timeout=SOON) == "cleaned up"


def test_limits_may_be_timedeltas():
    @task(bind=True, time_limit=timedelta(seconds=60), soft_time_limit=timedelta(seconds=0.2))
    def f(self, wait):
        time.sleep(wait)
        return self.request.timelimit

    assert f.delay(0).get(timeout=SOON) == [60.0, 0.2]
    with pytest.raises(SoftTimeLimitExceeded):
        f.delay(SOON).get(timeout=SOON)


def test_a_soft_limit_that_nobody_catches_is_the_failure():
    result = soft.delay(caught=False)

    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=SOON)
    assert result.state == "FAILURE"


def test_a_call_s_soft_limit_wins_over_the_task_s():
    @task(soft_time_limit=3600)
    def endless():
        while True:
            time.sleep(0.01)

    with pytest.raises(SoftTimeLimitExceeded):
        endless.apply_async((), soft_time_limit=0.1).get(timeout=SOON)


def test_a_hard_limit_kills_and_says_so():
    result = hard.delay()

    with pytest.raises(TimeLimitExceeded) as caught:
        result.get(timeout=SOON)

    assert caught.value.args == (0.3,)
    assert result.state == "FAILURE"
    assert add.delay(1, 2).get(timeout=SOON) == 3


def test_a_call_s_hard_limit_is_seen_in_the_request():
    @task(bind=True, time_limit=100, soft_time_limit=50)
    def limits(self):
        return self.request.timelimit, self.request.time_limit, self.request.soft_time_limit

    assert limits.delay().get(timeout=SOON) == ([100, 50], 100, 50)
    call = limits.apply_async((), time_limit=20, soft_time_limit=10)
    assert call.get(timeout=SOON) == ([20, 10], 20, 10)


def test_a_soft_limit_beyond_the_hard_one_is_a_value_error_at_the_call():
    @task(time_limit=1, soft_time_limit=2)
    def contradictory():
        pass

    with pytest.raises(ValueError, match="soft_time_limit"):
        contradictory.delay()
    with pytest.raises(ValueError, match="soft_time_limit"):
        add.apply_async((1, 2), time_limit=1, soft_time_limit=2)


# -------------------------------------------------------------------------------- lost processes


@task
def die(log):
    tries(log)
    os.kill(os.getpid(), signal.SIGKILL)


@task(acks_late=True)
def die_late(log, times):
    if tries(log) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def test_a_task_whose_process_died_fails_with_worker_lost_and_is_not_run_again(log):
    result = die.delay(log.path)

    with pytest.raises(WorkerLostError, match="SIGKILL"):
        result.get(timeout=SOON)
    assert len(log.lines()) == 1


def test_a_late_acked_task_whose_process_died_runs_again(log):
    assert die_late.delay(log.path, 1).get(timeout=SOON) == "survived"
    assert len(log.lines()) == 2


def test_a_late_acked_task_is_given_up_at_the_third_death(log):
    with pytest.raises(WorkerLostError, match="third"):
        die_late.delay(log.path, 100).get(timeout=SOON)
    assert len(log.lines()) == 3


def test_the_run_after_a_death_is_redelivered(log):
    @task(bind=True, acks_late=True)
    def redelivered(self, path):
        if tries(path) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.request.delivery_info["redelivered"]

    assert redelivered.delay(log.path).get(timeout=SOON) is True


def test_retry_on_worker_lost_counts_the_death_as_a_retry(log):
    @task(bind=True, retry_on_worker_lost=True, max_retries=1)
    def lost(self, path):
        if tries(path) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.request.retries

    assert lost.delay(log.path).get(timeout=SOON) == 1


def test_system_exit_in_a_body_is_a_lost_process():
    @task
    def leave():
        sys.exit(3)

    with pytest.raises(WorkerLostError, match="code 3"):
        leave.delay().get(timeout=SOON)


# --------------------------------------------------------------- rate, expiry, priority, queue ...


def test_a_rate_limit_spaces_the_starts():
    @task(rate_limit="20/s")
    def limited():
        return time.monotonic()

    limited.delay().get(timeout=SOON)  # so that the function is there when the others start
    starts = sorted(r.get(timeout=SOON) for r in [limited.delay() for _ in range(6)])

    assert starts[-1] - starts[0] >= 0.2


def test_a_task_s_expiry_is_a_default_that_a_call_clears():
    @task(expires=-1)
    def stale():
        return "run"

    with pytest.raises(TaskRevokedError, match="expired"):
        stale.delay().get(timeout=SOON)
    assert stale.apply_async((), expires=None).get(timeout=SOON) == "run"


def test_priority_and_queue_of_a_task_hold_for_its_calls_and_a_call_wins():
    @task(bind=True, priority=7, queue="mine")
    def where(self):
        info = self.request.delivery_info
        return info["priority"], info["routing_key"]

    assert where.delay().get(timeout=SOON) == (7, "mine")
    call = where.apply_async((), priority=2, queue="theirs")
    assert call.get(timeout=SOON) == (2, "theirs")
    assert call.queue == "theirs"


def test_higher_priority_runs_first(log, short_path):
    one, other = short_path / "one", short_path / "other"

    @task
    def hold(path):
        while not Path(path).exists():
            time.sleep(0.005)

    holding = [hold.delay(str(gate)) for gate in (one, other)]
    eventually(lambda: all(result.history[-1].what == "RUNNING" for result in holding))
    note = task(name="note")(write)
    sent = [note.apply_async((log.path, n), priority=n) for n in (0, 5, 9, 3)]
    one.touch()
    for result in sent:
        result.get(timeout=SOON)
    other.touch()

    assert log.lines() == ["9", "5", "3", "0"]


def test_trail_decides_whether_children_are_recorded():
    @task
    def parent():
        return add.delay(1, 2).id

    @task(trail=False)
    def silent():
        return add.delay(1, 2).id

    loud_one, silent_one = parent.delay(), silent.delay()

    assert [child.id for child in (loud_one.get(timeout=SOON), loud_one.children)[1]] == [
        loud_one.get()
    ]
    silent_one.get(timeout=SOON)
    assert silent_one.children == []


def test_shadow_names_are_seen_in_the_request():
    class Shadowed(Task):
        def shadow_name(self, args, kwargs, options):
            return f"{self.name}({args[0]})"

    @task(bind=True, base=Shadowed, name="shadowed")
    def shadowed(self, x):
        return self.request.shadow

    assert shadowed.delay(3).get(timeout=SOON) == "shadowed(3)"
    assert shadowed.apply_async((3,), shadow="other").get(timeout=SOON) == "other"


class Point(pydantic.BaseModel):
    x: int
    y: int = 0


def test_pydantic_arguments_become_models_and_a_returned_model_plain_data():
    @task(pydantic=True)
    def mirror(point: Point, other: Point | None = None) -> Point:
        assert isinstance(point, Point)
        return Point(x=-point.x, y=-point.y)

    assert mirror.delay({"x": 1, "y": 2}).get(timeout=SOON) == {"x": -1, "y": -2}
    assert mirror.delay(Point(x=3)).get(timeout=SOON) == {"x": -3, "y": 0}
    error = error_of(mirror.delay({"x": "no number"}))
    assert isinstance(error, pydantic.ValidationError)


def test_options_are_attributes_of_a_base_too():
    class Patient(Task):
        max_retries = 1
        default_retry_delay = 0
        autoretry_for = (KeyError,)
        track_started = True

    @task(bind=True, base=Patient)
    def fails(self):
        raise KeyError(self.request.retries)

    assert statuses(fails.delay()) == ["STARTED", "RETRY", "STARTED", "FAILURE"]


# ===================================================================================== handlers


class Telling(Task):
    """Writes what it is told into the file that the task's first argument names."""

    def before_start(self, task_id, args, kwargs):
        write(args[0], "before_start", task_id == self.request.id)

    def on_success(self, retval, task_id, args, kwargs):
        write(args[0], "on_success", retval, task_id == self.request.id, kwargs)

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        write(args[0], "on_retry", repr(exc), type(einfo.exception).__name__)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        same = exc is einfo.exception and einfo.type is type(exc)
        write(args[0], "on_failure", repr(exc), same, "Traceback" in einfo.traceback)

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        write(args[0], "after_return", status, repr(retval), einfo is not None)


def test_handlers_of_a_success_run_in_order(log):
    @task(base=Telling)
    def succeed(path, word="x"):
        write(path, "body")
        return "value"

    assert succeed.delay(log.path, word="y").get(timeout=SOON) == "value"

    assert log.becomes(
        "before_start True",
        "body",
        "on_success value True {'word': 'y'}",
        "after_return SUCCESS 'value' False",
    )


def test_handlers_of_a_failure_get_the_exception_itself(log):
    @task(base=Telling)
    def fail(path):
        raise ValueError("v")

    error_of(fail.delay(log.path))

    assert log.becomes(
        "before_start True",
        "on_failure ValueError('v') True True",
        "after_return FAILURE ValueError('v') True",
    )


def test_a_retried_attempt_ends_at_on_retry_and_the_last_one_at_on_failure(log):
    @task(base=Telling, bind=True, max_retries=1)
    def again(self, path):
        self.retry(exc=ValueError("v"), countdown=0)

    error_of(again.delay(log.path))

    assert log.becomes(
        "before_start True",
        "on_retry ValueError('v') Retry",
        "before_start True",
        "on_failure ValueError('v') True True",
        "after_return FAILURE ValueError('v') True",
    )


def test_an_error_before_the_start_is_the_failure_and_the_body_is_not_run(log):
    class Refusing(Telling):
        def before_start(self, task_id, args, kwargs):
            raise PermissionError("not today")

    @task(base=Refusing)
    def never(path):
        write(path, "body")

    assert repr(error_of(never.delay(log.path))) == "PermissionError('not today')"
    assert log.becomes(
        "on_failure PermissionError('not today') True True",
        "after_return FAILURE PermissionError('not today') True",
    )


@pytest.mark.parametrize("said", [Ignore(), Reject("no")], ids=["Ignore", "Reject"])
def test_ignore_and_reject_call_no_outcome_handler(log, said):
    @task(base=Telling)
    def stop(path):
        raise said

    result = stop.delay(log.path)
    result.get(timeout=SOON, propagate=False)
    # Two calls more, so that whatever comes after the first has come.
    for _ in range(2):
        add.delay(1, 2).get(timeout=SOON)

    assert log.lines() == ["before_start True"]


def test_a_failing_handler_does_not_change_the_outcome():
    class Clumsy(Task):
        def on_success(self, *facts):
            raise RuntimeError("in on_success")

        def after_return(self, *facts):
            raise RuntimeError("in after_return")

    @task(base=Clumsy)
    def fine():
        return "fine"

    results = [fine.delay() for _ in range(4)]

    assert [result.get(timeout=SOON) for result in results] == ["fine"] * 4
    assert [result.state for result in results] == ["SUCCESS"] * 4


def test_handlers_see_the_state_that_is_stored(log):
    class Looking(Task):
        def on_retry(self, exc, task_id, args, kwargs, einfo):
            write(log.path, "on_retry", self.AsyncResult(task_id).state)

        def after_return(self, status, retval, task_id, args, kwargs, einfo):
            write(log.path, "after_return", self.AsyncResult(task_id).state)

    @task(base=Looking, bind=True)
    def twice(self):
        if not self.request.retries:
            raise self.retry(countdown=0.5)  # so long that the first handler is over

    twice.delay()

    assert log.becomes("on_retry RETRY", "after_return SUCCESS")


def test_handlers_may_send_tasks_and_print(log):
    class Sending(Task):
        def on_success(self, retval, task_id, args, kwargs):
            write(args[0], add.delay(retval, 1).id)

    @task(base=Sending)
    def first(path):
        return 1

    first.delay(log.path).get(timeout=SOON)

    (id,) = eventually(log.lines)
    assert nbtasks.AsyncResult(id).get(timeout=SOON) == 2


def test_a_handler_that_init_has_set_runs_from_the_first_call_on(log):
    class Base(Task):
        def __init__(self):
            self.before_start = lambda *_: write(log.path, "before_start")
            self.on_success = lambda retval, *_: write(log.path, "on_success", retval)

    @task(base=Base)
    def f():
        return 1

    assert f.delay().get(timeout=SOON) == 1
    assert log.becomes("before_start", "on_success 1")


def test_a_handler_that_init_has_set_hears_of_a_hard_limit(log):
    class Base(Task):
        def __init__(self):
            self.on_failure = lambda exc, *_: write(log.path, type(exc).__name__)

    @task(base=Base, time_limit=0.5)
    def f():
        time.sleep(SOON)

    f.delay()

    assert log.becomes("TimeLimitExceeded")


def test_an_overridden_call_is_what_workers_run():
    class Doubling(Task):
        def __call__(self, *args, **kwargs):
            return 2 * super().__call__(*args, **kwargs)

    @task(base=Doubling)
    def three():
        return 3

    assert three.delay().get(timeout=SOON) == 6
    assert three() == 6


def test_a_direct_call_runs_no_handlers(log):
    @task(base=Telling)
    def succeed(path):
        return 1

    assert succeed(log.path) == 1
    assert log.lines() == []


def test_handlers_of_a_base_of_the_user_s_guide():
    """The class of the guide: its print arrives in the task's log."""

    class MyTask(Task):
        def on_failure(self, exc, task_id, args, kwargs, einfo):
            print(f"{task_id!r} failed: {exc!r}")

    @task(base=MyTask)
    def add_wrongly(x, y):
        raise KeyError()

    result = add_wrongly.delay(1, 2)

    with pytest.raises(KeyError):
        result.get(timeout=SOON)
    eventually(lambda: f"{result.id!r} failed: KeyError()" in result.logs())


# ====================================================================================== request


@task(bind=True)
def tell_request(self, *args, **kwargs):
    names = """id correlation_id root_id parent_id group group_index args kwargs retries eta expires
    hostname origin delivery_info timelimit called_directly is_eager headers shadow reply_to
    ignore_result children callbacks errbacks chord chain stamps stamped_headers
    replaced_task_nesting""".split()
    return {name: getattr(self.request, name) for name in names}


def test_the_request_of_a_plain_call_has_every_field():
    result = tell_request.delay(1, x=2)
    seen = result.get(timeout=SOON)

    assert seen["id"] == seen["correlation_id"] == seen["root_id"] == result.id
    assert seen["parent_id"] is None
    assert (tuple(seen["args"]), seen["kwargs"]) == ((1,), {"x": 2})
    assert (seen["retries"], seen["eta"], seen["expires"]) == (0, None, None)
    assert seen["hostname"] == result.worker
    assert str(os.getpid()) in seen["origin"]
    assert seen["delivery_info"]["redelivered"] is False
    assert seen["timelimit"] == [None, None]
    assert (seen["called_directly"], seen["is_eager"]) == (False, False)
    assert seen["headers"] is None
    assert seen["children"] == []
    for name in ("callbacks", "errbacks", "chord", "chain", "group", "group_index", "shadow"):
        assert seen[name] is None, name


def test_the_request_of_a_rich_call_has_every_field():
    before = datetime.now(UTC)
    result = tell_request.apply_async(
        (1,),
        countdown=0.01,
        expires=3600,
        headers={"user": "ann"},
        shadow="shown",
        priority=8,
        queue="rich",
        task_id="my id of a rich call",
        reply_to="nobody",
        time_limit=60,
        soft_time_limit=50,
    )
    seen = result.get(timeout=SOON)

    assert seen["id"] == result.id == "my id of a rich call"
    assert before <= datetime.fromisoformat(seen["eta"]) < before + timedelta(seconds=60)
    expires = datetime.fromisoformat(seen["expires"])
    assert before < expires - timedelta(seconds=3590)
    assert seen["headers"] == {"user": "ann"}
    assert (seen["shadow"], seen["reply_to"]) == ("shown", "nobody")
    assert seen["delivery_info"]["priority"] == 8
    assert seen["delivery_info"]["routing_key"] == "rich"
    assert seen["timelimit"] == [60, 50]


def test_a_direct_call_has_a_request_of_defaults():
    seen = tell_request(1)

    assert seen["called_directly"] is True
    assert seen["id"] is None
    assert seen["retries"] == 0


def test_a_missing_field_has_the_given_default():
    @task(bind=True)
    def ask(self):
        return self.request.get("nothing", "default"), self.request.get("retries")

    assert ask.delay().get(timeout=SOON) == ("default", 0)


def test_root_and_parent_go_down_the_tree_and_stay_after_a_retry():
    @task(bind=True)
    def leaf(self):
        if self.request.retries == 0:
            raise self.retry(countdown=0)
        return self.request.root_id, self.request.parent_id

    @task(bind=True)
    def middle(self):
        return leaf.delay().id, self.request.root_id, self.request.parent_id

    @task
    def top():
        return middle.delay().id

    root = top.delay()
    middle_one = nbtasks.AsyncResult(root.get(timeout=SOON))
    leaf_id, *of_middle = middle_one.get(timeout=SOON)

    assert of_middle == [root.id, root.id]
    assert nbtasks.AsyncResult(leaf_id).get(timeout=SOON) == (root.id, middle_one.id)
    assert [child.id for child in root.children] == [middle_one.id]
    assert [child.id for child in middle_one.children] == [leaf_id]
    assert next(value for _, value in root.collect()) == middle_one.id


def test_a_task_called_inside_a_task_has_a_request_of_its_own():
    @task(bind=True)
    def inner(self):
        return self.request.called_directly, self.request.id

    @task(bind=True)
    def outer(self):
        return inner(), self.request.id

    result = outer.delay()

    assert result.get(timeout=SOON) == ((True, None), result.id)


def test_add_to_parent_false_leaves_no_child():
    @task
    def parent():
        return add.apply_async((1, 2), add_to_parent=False).id

    result = parent.delay()
    result.get(timeout=SOON)

    assert result.children == []


# --------------------------------------------------------------------------------- update_state


def test_states_of_its_own_arrive_in_order_with_their_meta():
    @task(bind=True)
    def hello(self, a, b):
        self.update_state(state="PROGRESS", meta={"progress": 50})
        self.update_state(state="PROGRESS", meta={"progress": 90})
        return f"hello world: {a + b}"

    told = messages(hello.delay(4, 6))

    assert [(m["status"], m["result"]) for m in told] == [
        ("PROGRESS", {"progress": 50}),
        ("PROGRESS", {"progress": 90}),
        ("SUCCESS", "hello world: 10"),
    ]


def test_a_state_can_be_set_for_another_task():
    waiting = add.apply_async((1, 2), countdown=3600)

    @task(bind=True)
    def tell(self, id):
        self.update_state(task_id=id, state="BLOCKED", meta="by the weather")

    tell.delay(waiting.id).get(timeout=SOON)

    eventually(lambda: (waiting.state, waiting.info) == ("BLOCKED", "by the weather"))
    waiting.revoke()


def test_a_state_that_was_set_for_another_task_is_seen_at_once():
    waiting = add.apply_async((1, 2), countdown=3600)
    failed = raise_.delay(ValueError("v"))
    failed.get(timeout=SOON, propagate=False)

    for result in (waiting, failed, failed):
        add.update_state(task_id=result.id, state="MARKED", meta=1)

        assert (result.state, result.info) == ("MARKED", 1)

    waiting.revoke()


def test_a_task_sees_at_once_what_it_has_said_of_itself():
    @task(bind=True)
    def tell(self, n):
        seen = []
        for said in range(n):
            self.update_state(state="SAID", meta=said)
            result = self.AsyncResult(self.request.id)
            seen.append((result.state, result.info))
        return seen

    assert tell.delay(20).get(timeout=SOON) == [("SAID", n) for n in range(20)]


def test_states_that_a_thread_of_the_task_sets_come_before_its_end():
    @task(bind=True)
    def tell(self, n):
        def say():
            for i in range(n):
                self.update_state(task_id=id, state="SAID", meta=i)

        id = self.request.id
        thread = threading.Thread(target=say)
        thread.start()
        thread.join()

    messages = []
    tell.delay(50).get(timeout=SOON, on_message=messages.append)

    assert [body["result"] for body in messages] == [*range(50), None]


def test_success_is_never_overwritten():
    result = add.delay(1, 2)
    result.get(timeout=SOON)

    add.update_state(task_id=result.id, state="LATER", meta="too late")
    add.delay(1, 2).get(timeout=SOON)

    assert (nbtasks.AsyncResult(result.id).state, result.get()) == ("SUCCESS", 3)


@pytest.mark.parametrize("state", ["RETRY", "FAILURE", "REVOKED"])
def test_states_of_errors_want_an_exception(state):
    @task(bind=True)
    def tell(self):
        self.update_state(state=state, meta="no exception")

    assert isinstance(error_of(tell.delay()), TypeError)


def test_update_state_in_a_direct_call_says_that_there_is_no_id():
    with pytest.raises(ValueError, match="called_directly"):
        add.update_state(state="PROGRESS")


# ======================================================================================== retry


@task(bind=True)
def retry_with(self, **options):
    exc = options.pop("exc", None)
    if self.request.retries < options.pop("times", 1):
        raise self.retry(exc=exc, **options)
    return self.request.retries


def test_a_retry_is_told_with_its_reason_and_runs_again():
    result = retry_with.delay(exc=ValueError("v"), countdown=0)
    told = messages(result)

    assert [m["status"] for m in told] == ["RETRY", "SUCCESS"]
    assert repr(told[0]["result"]) == "ValueError('v')"
    assert told[0]["traceback"]
    assert result.get() == 1
    assert result.retries == 1


def test_a_retry_waits_the_default_delay_and_can_be_hastened():
    @task(bind=True, default_retry_delay=3600)
    def patient(self):
        if not self.request.retries:
            self.retry(exc=ConnectionError("refused"))
        return self.request.eta

    before = datetime.now(UTC)
    result = patient.delay()
    eventually(lambda: result.state == "RETRY")
    assert repr(result.result) == "ConnectionError('refused')"
    assert not result.ready()

    result.retry()

    eta = datetime.fromisoformat(result.get(timeout=SOON))
    assert timedelta(minutes=59) < eta - before < timedelta(minutes=62)


def test_max_retries_counts_the_retries_and_not_the_runs(log):
    @task(bind=True, max_retries=2, default_retry_delay=0)
    def fails(self, path):
        write(path, self.request.retries)
        self.retry()

    error = error_of(fails.delay(log.path))

    assert isinstance(error, MaxRetriesExceededError)
    assert str(error).startswith(f"Can't retry {fails.name}[")
    assert tuple(error.task_args) == (log.path,)
    assert error.task_kwargs == {}
    assert log.lines() == ["0", "1", "2"]


def test_giving_up_raises_the_given_exception_because_of_the_present_one():
    @task(bind=True, max_retries=0)
    def fails(self):
        try:
            raise KeyError("present")
        except KeyError:
            self.retry(exc=ValueError("given"))

    error = error_of(fails.delay())

    assert repr(error) == "ValueError('given')"
    assert repr(error.__cause__) == "KeyError('present')"


def test_giving_up_inside_an_except_block_without_exc_is_max_retries():
    @task(bind=True, max_retries=0)
    def fails(self):
        try:
            raise KeyError("present")
        except KeyError:
            self.retry()

    assert isinstance(error_of(fails.delay()), MaxRetriesExceededError)


def test_none_as_the_task_s_limit_means_for_ever_and_as_an_argument_the_task_s():
    @task(bind=True, max_retries=None)
    def five(self):
        if self.request.retries < 5:
            self.retry(countdown=0)
        return self.request.retries

    @task(bind=True, max_retries=1)
    def one(self):
        self.retry(countdown=0, max_retries=None)

    assert five.delay().get(timeout=SOON) == 5
    assert isinstance(error_of(one.delay()), MaxRetriesExceededError)


def test_the_limit_of_a_retry_is_for_that_decision_only():
    @task(bind=True, max_retries=1)
    def patient(self):
        if self.request.retries < 3:
            self.retry(countdown=0, max_retries=10)
        return self.request.retries

    assert patient.delay().get(timeout=SOON) == 3


@pytest.mark.parametrize(
    ("new", "then"),
    [
        ({"args": (3,)}, (3, 2, "old")),
        ({"kwargs": {"word": "new"}}, (1, 2, "new")),
        ({"kwargs": {"n": 3}}, (3, 2, "old")),
        ({"args": (3,), "kwargs": {"word": "new"}}, (3, 1, "new")),
    ],
)
def test_new_arguments_replace_those_that_they_clash_with(new, then):
    @task(bind=True)
    def count(self, n, step=1, word="none"):
        if not self.request.retries:
            raise self.retry(**new, countdown=0)
        return n, step, word

    assert count.delay(1, step=2, word="old").get(timeout=SOON) == then


def test_a_retry_keeps_id_headers_priority_queue_and_limits():
    @task(bind=True)
    def same(self):
        request = self.request
        if not request.retries:
            raise self.retry(countdown=0)
        info = request.delivery_info
        return (
            request.id,
            request.headers,
            info["priority"],
            info["routing_key"],
            request.timelimit,
            request.expires is not None,
        )

    result = same.apply_async(
        (), headers={"h": 1}, priority=8, queue="q", time_limit=99, soft_time_limit=98, expires=600
    )

    assert result.get(timeout=SOON) == (result.id, {"h": 1}, 8, "q", [99, 98], True)


def test_options_of_a_retry_override_those_of_the_run():
    @task(bind=True)
    def other(self):
        if not self.request.retries:
            raise self.retry(countdown=0, queue="other", priority=1, headers={"h": 2})
        info = self.request.delivery_info
        return info["routing_key"], info["priority"], self.request.headers

    assert other.delay().get(timeout=SOON) == ("other", 1, {"h": 2})


def test_a_retry_past_the_expiry_ends_revoked():
    result = retry_with.apply_async((), {"countdown": 0.2}, expires=0.1)

    with pytest.raises(TaskRevokedError, match="expired"):
        result.get(timeout=SOON)
    assert result.state == "REVOKED"


def test_a_retry_with_an_eta_in_the_past_runs_at_once():
    result = retry_with.delay(eta=datetime.now(UTC) - timedelta(days=1))

    assert result.get(timeout=SOON) == 1


def test_retry_without_throwing_lets_the_run_go_on(log):
    @task(bind=True)
    def both(self, path):
        write(path, self.request.retries)
        if not self.request.retries:
            retry = self.retry(countdown=0, throw=False)
            return type(retry).__name__
        return "second"

    assert both.delay(log.path).get(timeout=SOON) == "Retry"
    assert log.becomes("0", "1")


def test_retry_in_a_direct_call_raises_the_exception():
    with pytest.raises(ValueError, match="v"):
        retry_with(exc=ValueError("v"))
    with pytest.raises(Retry):
        retry_with()


# ------------------------------------------------------------------------------------ autoretry


@task(bind=True, autoretry_for=(ConnectionError,), default_retry_delay=0)
def connect(self, log, error=ConnectionError, times=1):
    if tries(log) <= times:
        raise error("refused")
    return self.request.retries


def test_a_listed_exception_is_retried_by_itself(log):
    result = connect.delay(log.path)

    assert statuses(result) == ["RETRY", "SUCCESS"]
    assert result.get() == 1


def test_subclasses_of_listed_exceptions_count_and_others_do_not(log, short_path):
    assert connect.delay(log.path, ConnectionResetError).get(timeout=SOON) == 1

    assert isinstance(error_of(connect.delay(str(short_path / "o"), KeyError)), KeyError)


def test_giving_up_an_autoretry_raises_the_original_exception(log):
    error = error_of(connect.delay(log.path, times=100))

    assert repr(error) == "ConnectionError('refused')"
    assert len(log.lines()) == 4


@pytest.mark.parametrize("listed", [ConnectionError, [ConnectionError], False, None])
def test_autoretry_takes_a_class_or_a_list_and_false_is_none(listed):
    @task(bind=True, autoretry_for=listed, retry_kwargs={"countdown": 0, "max_retries": 1})
    def fails(self):
        raise ConnectionError(self.request.retries)

    assert error_of(fails.delay()).args == (1 if listed else 0,)


def test_dont_autoretry_for_wins():
    @task(bind=True, autoretry_for=(OSError,), dont_autoretry_for=(ConnectionError,))
    def fails(self):
        raise ConnectionError(self.request.retries)

    assert error_of(fails.delay()).args == (0,)


def test_a_reject_is_not_retried_by_itself():
    @task(autoretry_for=(Exception,), default_retry_delay=0)
    def reject():
        raise Reject("no")

    assert statuses(reject.delay()) == ["FAILURE"]


def test_backoff_doubles_the_waits_up_to_the_ceiling_whatever_retry_kwargs_say():
    @task(
        bind=True,
        autoretry_for=(KeyError,),
        retry_backoff=3,
        retry_backoff_max=7,
        retry_jitter=False,
        retry_kwargs={"countdown": 3600, "max_retries": 4},
    )
    def fails(self):
        raise KeyError(time.time(), self.request.eta)

    result, waits, ran = fails.delay(), [], None
    for retries in range(1, 5):
        eventually(lambda: result.state == "RETRY" and result.retries == retries)  # noqa: B023
        ran = result.result.args[0]
        result.retry()
        eventually(lambda: result.retries > retries or result.ready())  # noqa: B023
        error = result.result
        waits.append(datetime.fromisoformat(error.args[1]).timestamp() - ran)

    assert isinstance(error_of(result), KeyError)
    assert waits == pytest.approx([3, 6, 7, 7], abs=0.9)


def test_expected_exceptions_are_failures_all_the_same():
    @task(throws=(KeyError,))
    def fails():
        raise KeyError("expected")

    result = fails.delay()

    assert repr(error_of(result)) == "KeyError('expected')"
    assert result.state == "FAILURE"
    assert "KeyError" in result.traceback


# ====================================================================================== calling


def test_delay_is_apply_async_with_args():
    assert add.delay(1, y=2).get(timeout=SOON) == 3
    assert add.apply_async((1,), {"y": 2}).get(timeout=SOON) == 3
    assert add.apply_async([1, 2]).get(timeout=SOON) == 3
    assert add.apply_async(args=[1], kwargs={"y": 2}).get(timeout=SOON) == 3


def test_the_guide_s_misprint_is_explained():
    with pytest.raises(TypeError, match=r"apply_async\(\(4"):
        add.apply_async(4, 6)


@pytest.mark.parametrize("wrong", [{"args": 4}, {"args": "ab"}, {"kwargs": [1]}, {"kwargs": 6}])
def test_args_must_be_a_sequence_and_kwargs_a_mapping(wrong):
    with pytest.raises(TypeError):
        add.apply_async(**wrong)


def test_a_countdown_is_the_earliest_start():
    sent = time.time()

    ran = task(name="now")(time.time).apply_async((), countdown=0.3).get(timeout=SOON)

    assert 0.3 <= ran - sent < 5


@pytest.mark.parametrize("countdown", [0, -5, None, 0.01])
def test_any_real_number_is_a_countdown(countdown):
    assert add.apply_async((1, 2), countdown=countdown).get(timeout=SOON) == 3


def test_an_eta_of_any_zone_and_iso_text_are_points_in_time():
    far = timezone(timedelta(hours=9))
    soon = datetime.now(far) + timedelta(seconds=0.2)
    when = task(name="when")(time.time)

    assert when.apply_async((), eta=soon).get(timeout=SOON) >= soon.timestamp()
    assert when.apply_async((), eta=soon.isoformat()).get(timeout=SOON) >= soon.timestamp()


def test_countdown_wins_over_eta_and_a_task_that_waits_is_pending_and_overtaken():
    later = datetime.now(UTC) + timedelta(hours=1)
    assert add.apply_async((1, 2), countdown=0, eta=later).get(timeout=SOON) == 3

    waiting = add.apply_async((1, 2), eta=later)
    assert add.delay(1, 2).get(timeout=SOON) == 3
    assert waiting.state == "PENDING"

    waiting.revoke()
    with pytest.raises(TaskRevokedError):
        waiting.get(timeout=SOON)


@pytest.mark.parametrize(
    "expires", [-1, 0, datetime(2020, 1, 1, tzinfo=UTC), "2020-01-01T00:00:00+00:00"]
)
def test_what_is_too_late_ends_revoked(expires):
    result = add.apply_async((1, 2), expires=expires)

    with pytest.raises(TaskRevokedError, match="expired"):
        result.get(timeout=SOON)
    assert (result.state, result.successful(), result.failed()) == ("REVOKED", False, False)


def test_a_countdown_beyond_the_expiry_always_expires():
    result = add.apply_async((1, 2), countdown=0.2, expires=0.1)

    with pytest.raises(TaskRevokedError, match="expired"):
        result.get(timeout=SOON)


def test_a_naive_time_is_utc_and_one_that_is_far_off_is_warned_of():
    naive = datetime.now(UTC).replace(tzinfo=None)

    assert add.apply_async((1, 2), eta=naive).get(timeout=SOON) == 3
    with pytest.warns(exceptions.NaiveTimeWarning, match="UTC"):
        assert add.apply_async((1, 2), eta=naive - timedelta(hours=1)).get(timeout=SOON) == 3


def test_an_own_id_is_kept_and_known_by_all():
    result = add.apply_async((1, 2), task_id="any text: ä/1")

    assert result.id == "any text: ä/1"
    assert nbtasks.AsyncResult("any text: ä/1").get(timeout=SOON) == 3


def test_argsrepr_hides_what_shall_not_be_seen(cluster):
    result = add.apply_async(
        (1, 22222), argsrepr="(1, '***')", kwargsrepr="{}", countdown=0, task_id="hiding"
    )
    result.get(timeout=SOON)

    shown = cluster.client.ask("show", id="hiding")
    assert "***" in shown["summary"]
    assert "22222" not in shown["summary"]


def test_a_call_goes_with_confirmation():
    result = add.apply_async((1, 2), confirm=True)

    assert result.accepted
    assert result.get(timeout=SOON) == 3


def test_calls_with_one_idempotency_key_are_one_call(log):
    note = task(name="noting")(write)
    first = note.apply_async((log.path, "once"), idempotency_key="k1")
    second = note.apply_async((log.path, "once"), idempotency_key="k1")

    assert first == second
    first.get(timeout=SOON)
    second.get(timeout=SOON)
    assert log.lines() == ["once"]


@pytest.mark.parametrize("policy", [{"max_retries": 3, "interval_start": 0}, {}, None])
def test_a_publish_policy_is_taken(policy):
    result = add.apply_async((1, 2), retry=True, retry_policy=policy)

    assert result.get(timeout=SOON) == 3


@pytest.mark.parametrize("option", ["exchange", "producer", "connection", "publisher"])
def test_options_of_other_brokers_change_nothing(option):
    assert add.apply_async((1, 2), **{option: "x"}).get(timeout=SOON) == 3


@pytest.mark.parametrize("option", ["link", "link_error", "chord", "chain"])
def test_options_of_signatures_say_that_they_are_not_there_yet(option):
    with pytest.raises(NotImplementedError, match=option):
        add.apply_async((1, 2), **{option: add})


# ------------------------------------------------------------------------------------ send_task


def test_a_known_name_can_be_sent():
    assert nbtasks.send_task(add.name, (1, 2)).get(timeout=SOON) == 3


def test_a_name_that_only_the_worker_can_import_is_imported(cluster):
    code = f"""
        import nbtasks
        nbtasks.connect({str(cluster.dir)!r})
        result = nbtasks.send_task({add.name!r}, args=[3, 4], priority=7)
        print(result.get(timeout=30))
    """
    assert script(code) == "7"


@task(time_limit=0.5)
def takes_too_long():
    time.sleep(60)


@task(acks_late=True)
def dies_at_first(path):
    if tries(path) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "lives"


def test_the_options_hold_of_a_task_that_only_the_worker_finds(cluster, log):
    code = f"""
        import nbtasks
        nbtasks.connect({str(cluster.dir)!r})
        long = nbtasks.send_task({takes_too_long.name!r})
        late = nbtasks.send_task({dies_at_first.name!r}, [{log.path!r}])
        print(type(long.get(timeout=30, propagate=False)).__name__, late.get(timeout=30))
    """
    assert script(code) == "TimeLimitExceeded lives"


def test_an_unknown_name_ends_with_not_registered():
    result = nbtasks.send_task("no.such.task", (1,))

    with pytest.raises(NotRegistered, match=r"no\.such\.task"):
        result.get(timeout=SOON)
    assert result.state == "FAILURE"


# --------------------------------------------------------------------------------------- eager


def test_apply_runs_here_with_request_and_handlers(log):
    @task(base=Telling, bind=True)
    def here(self, path):
        return os.getpid(), self.request.is_eager, self.request.delivery_info["is_eager"]

    result = here.apply((log.path,))

    assert isinstance(result, nbtasks.EagerResult)
    assert result.get() == (os.getpid(), True, True)
    assert [line.split()[0] for line in log.lines()] == [
        "before_start",
        "on_success",
        "after_return",
    ]


def test_apply_holds_errors_unless_told_to_throw():
    @task
    def fail():
        raise ValueError("v")

    result = fail.apply()

    assert (result.state, result.failed()) == ("FAILURE", True)
    assert "ValueError: v" in result.traceback
    with pytest.raises(ValueError, match="v"):
        result.get()
    with pytest.raises(ValueError, match="v"):
        fail.apply(throw=True)


def test_always_eager_runs_here_and_still_encodes(cluster):
    pid = task(name="pid")(os.getpid)
    nbtasks.configure(task_always_eager=True)
    try:
        assert pid.delay().get() == os.getpid()
        with pytest.raises(EncodeError):
            echo.delay(threading.Lock())
        nbtasks.configure(task_eager_propagates=True)
        with pytest.raises(TypeError):
            add.delay("1", 2)
    finally:
        nbtasks.config.reset()
    assert pid.delay().get(timeout=SOON) != os.getpid()


# ============================================================================ Ignore, Reject, async


def test_ignore_leaves_the_state_as_it_is():
    @task(bind=True)
    def own_end(self):
        self.update_state(state="CUSTOM", meta={"left": 1})
        raise Ignore()

    result = own_end.delay()
    result.get(timeout=SOON)

    assert (result.state, result.info) == ("CUSTOM", {"left": 1})


def test_a_rejected_task_fails_with_its_reject():
    @task
    def reject():
        raise Reject("bad message", requeue=False)

    result = reject.delay()
    error = error_of(result)

    assert result.state == "FAILURE"
    assert isinstance(error, Reject)
    assert (error.reason, error.requeue) == ("bad message", False)


def test_a_late_acked_task_can_go_back_into_the_queue(log):
    @task(bind=True, acks_late=True)
    def back(self, path):
        if tries(path) < 3:
            raise Reject("not yet", requeue=True)
        return self.request.delivery_info["redelivered"], self.request.retries

    assert back.delay(log.path).get(timeout=SOON) == (True, 0)


def test_a_requeue_without_late_acks_is_a_failure():
    @task
    def back():
        raise Reject("not yet", requeue=True)

    assert isinstance(error_of(back.delay()), Reject)


def test_a_coroutine_is_run_to_its_end():
    @task(bind=True)
    async def add_slowly(self, x, y):
        await asyncio.sleep(0.01)
        self.update_state(state="HALF")
        return x + y, self.request.retries

    result = add_slowly.delay(1, 2)

    assert statuses(result) == ["HALF", "SUCCESS"]
    assert result.get() == (3, 0)


def test_a_coroutine_may_retry_and_fail():
    @task(bind=True, autoretry_for=(KeyError,), default_retry_delay=0)
    async def fail(self):
        await asyncio.sleep(0)
        if not self.request.retries:
            raise KeyError("first")
        raise ValueError("second")

    result = fail.delay()

    assert statuses(result) == ["RETRY", "FAILURE"]
    assert repr(error_of(result)) == "ValueError('second')"


def test_a_soft_limit_reaches_a_coroutine():
    @task(soft_time_limit=0.1)
    async def endless():
        await asyncio.sleep(3600)

    assert isinstance(error_of(endless.delay()), SoftTimeLimitExceeded)


# =================================================================================== exceptions


class Broken(Exception):
    """Wants two arguments, has attributes, gives Exception only one."""

    def __init__(self, part, *, line):
        super().__init__(f"{part} is broken")
        self.part = part
        self.line = line


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


class Locked(Exception):
    """Cannot be pickled whole."""

    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class Unloadable(Exception):
    """Can be pickled and not be loaded."""

    def __reduce__(self):
        return int, ("no number",)


class Holding(Exception):
    """Cannot be pickled: an argument is a lock."""

    def __init__(self, lock):
        super().__init__(lock)

    def __str__(self):
        return "holding on"


@task
def raise_(error):
    raise error


@task
def break_it(kind):
    if kind == "chain":
        try:
            raise KeyError("cause") from OSError(2, "No such file", "x")
        except KeyError as cause:
            error = ValueError("effect")
            error.add_note("a note")
            raise error from cause
    if kind == "context":
        try:
            raise KeyError("before")
        except KeyError:
            raise ValueError("during") from None
    if kind == "attributes":
        raise Broken("wheel", line=3)
    if kind == "frozen":
        raise Frozen(7)
    if kind == "locked":
        raise Locked("cannot travel")
    if kind == "holding":
        raise Holding(threading.Lock())
    if kind == "unloadable":
        raise Unloadable("cannot be loaded")
    if kind == "group":
        raise ExceptionGroup("both", [ValueError("one"), Broken("two", line=2)])
    if kind == "local":

        class Local(Exception):
            pass

        raise Local("of a function")
    raise AssertionError(kind)


def test_an_error_arrives_with_cause_and_notes():
    error = error_of(break_it.delay("chain"))

    assert type(error) is ValueError
    assert error.args == ("effect",)
    assert repr(error.__cause__) == "KeyError('cause')"
    cause = error.__cause__.__cause__
    assert (type(cause), cause.errno, cause.filename) == (FileNotFoundError, 2, "x")
    assert "a note" in error.__notes__
    assert any("raise error from cause" in note for note in error.__notes__)


def test_a_suppressed_context_stays_suppressed():
    error = error_of(break_it.delay("context"))

    assert error.__suppress_context__
    assert error.__cause__ is None


def test_an_error_arrives_with_class_and_attributes():
    result = break_it.delay("attributes")

    with pytest.raises(Broken, match="wheel is broken") as caught:
        result.get(timeout=SOON)
    assert (caught.value.part, caught.value.line) == ("wheel", 3)
    assert caught.value.args == ("wheel is broken",)


def test_an_error_that_is_frozen_arrives():
    error = error_of(break_it.delay("frozen"))

    assert (type(error), error.code) == (Frozen, 7)


def test_a_group_of_errors_arrives():
    error = error_of(break_it.delay("group"))

    assert isinstance(error, ExceptionGroup)
    assert [type(each) for each in error.exceptions] == [ValueError, Broken]


def test_an_error_of_a_local_class_arrives():
    error = error_of(break_it.delay("local"))

    assert type(error).__name__ == "Local"
    assert error.args == ("of a function",)


def test_an_error_that_cannot_be_pickled_arrives_as_text_that_says_so():
    result = break_it.delay("holding")
    error = error_of(result)

    assert isinstance(error, UnpickleableExceptionWrapper)
    assert "Holding" in str(error)
    assert "holding on" in str(error)
    assert "does not survive pickling" in str(error)
    assert result.state == "FAILURE"
    assert "in break_it" in result.traceback


def test_an_attribute_of_an_error_that_cannot_be_pickled_is_a_text_and_a_note_says_so():
    error = error_of(break_it.delay("locked"))

    assert type(error) is Locked
    assert error.args == ("cannot travel",)
    assert "lock object" in error.lock
    assert any("'lock'" in note for note in error.__notes__)


def test_an_error_whose_own_pickling_is_broken_arrives_by_its_parts():
    error = error_of(break_it.delay("unloadable"))

    assert type(error) is Unloadable
    assert error.args == ("cannot be loaded",)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("k"),
        StopIteration(3),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"),
        json.JSONDecodeError("bad", "doc", 1),
        subprocess.CalledProcessError(3, ["ls"], b"out"),
        exceptions.MaxRetriesExceededError("m", task_args=(1,)),
        AssertionError(),
        KeyboardInterrupt(),
        GeneratorExit("g"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_all_kinds_arrive_as_themselves(error):
    arrived = error_of(raise_.delay(error))

    assert type(arrived) is type(error)
    assert arrived.args == error.args


def test_the_traceback_shows_the_user_s_lines_and_none_of_ours():
    result = break_it.delay("attributes")
    result.get(timeout=SOON, propagate=False)

    assert 'raise Broken("wheel", line=3)' in result.traceback
    assert f"{os.sep}nbtasks{os.sep}worker" not in result.traceback
    assert "life.py" not in result.traceback


def test_each_get_raises_an_error_of_its_own():
    result = break_it.delay("attributes")

    assert error_of(result) is not error_of(result)


def test_a_value_that_cannot_travel_is_a_failure_that_names_it():
    @task
    def give_lock():
        return {"ok": 1, "lock": threading.Lock()}

    result = give_lock.delay()
    error = error_of(result)

    assert isinstance(error, EncodeError)
    assert "lock" in str(error)
    assert result.state == "FAILURE"


# ====================================================================== __main__, cells, new code


def script(code, *args, timeout=60):
    """Run a script as __main__ and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", textwrap.dedent(code), *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_functions_and_classes_of_main_travel(cluster):
    code = f"""
        from dataclasses import dataclass
        from enum import Enum
        import nbtasks
        nbtasks.connect({str(cluster.dir)!r})

        class Colour(Enum):
            RED = 1

        @dataclass
        class Point:
            x: int
            def moved(self, by):
                return Point(self.x + helper(by))

        class Odd(Exception):
            def __init__(self, point):
                super().__init__(point)
                self.point = point

        FACTOR = 10

        def helper(n):
            return n * FACTOR

        @nbtasks.task
        def move(point, by):
            if by % 2:
                raise Odd(point)
            return point.moved(by), Colour.RED

        print(move.name)
        point, colour = move.delay(Point(1), 2).get(timeout=30)
        print(point == Point(21), type(point) is Point, colour is Colour.RED)
        try:
            move.delay(Point(1), 1).get(timeout=30)
        except Odd as error:
            print(type(error) is Odd, error.point == Point(1), error.args == (Point(1),))
        FACTOR = 100
        print(move.delay(Point(1), 2).get(timeout=30)[0].x)
    """
    assert script(code).splitlines() == ["move", "True True True", "True True True", "201"]


def test_a_task_of_main_may_send_itself(cluster):
    code = f"""
        import nbtasks
        nbtasks.connect({str(cluster.dir)!r})

        @nbtasks.task(bind=True)
        def down(self, n):
            return n if n == 0 else down.delay(n - 1).id

        result = down.delay(3)
        while isinstance(value := result.get(timeout=30), str):
            result = nbtasks.AsyncResult(value)
        print(value)
    """
    assert script(code) == "0"


def test_a_task_made_anew_holds_for_new_calls_and_queued_ones_keep_their_code():
    def make(word):
        @task(name="the.word")
        def say(*args):
            return word

        return say

    old = make("old")
    waiting = old.apply_async((), countdown=0.3)
    ready = old.delay()
    new = make("new")

    assert new.delay().get(timeout=SOON) == "new"
    assert nbtasks.send_task("the.word").get(timeout=SOON) == "new"
    assert waiting.get(timeout=SOON) == "old"
    assert ready.get(timeout=SOON) == "old"


def test_what_is_taken_from_a_class_is_gone_for_new_calls_too():
    class Model:
        rate = 1
        decay = 2

    @task
    def look(kind=Model):
        return sorted(name for name in ("rate", "decay") if hasattr(kind, name))

    # Both workers have the class.
    asked = [look.delay() for _ in range(8)]
    assert all(one.get(timeout=SOON) == ["decay", "rate"] for one in asked)
    del Model.decay

    asked = [look.delay() for _ in range(8)]
    assert all(one.get(timeout=SOON) == ["rate"] for one in asked)


# ------------------------------------------------------------------------ what must not be lost


@task(bind=True, autoretry_for=(ValueError,), max_retries=1)
def bends_its_options(self, name, value):
    setattr(self, name, value)
    raise ValueError("the original")


@pytest.mark.parametrize(
    "change",
    [
        ("autoretry_for", "x"),
        ("dont_autoretry_for", 5),
        ("retry_kwargs", 5),
        ("retry_backoff", "x"),
    ],
)
def test_an_option_that_the_body_spoils_costs_no_worker(change):
    error = bends_its_options.delay(*change).get(timeout=SOON, propagate=False)

    assert isinstance(error, (TypeError, ValueError))
    assert not isinstance(error, WorkerLostError)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"retry_kwargs": 5}, "is no mapping"),
        ({"retry_kwargs": {"max_retriez": 1}}, "retriez"),
        ({"retry_kwargs": {"countdown": "soon"}}, "no number of seconds"),
        ({"retry_kwargs": {"max_retries": "5"}}, "no number of retries"),
    ],
)
def test_keywords_of_retry_are_checked_when_the_task_is_made(options, said):
    with pytest.raises((TypeError, ValueError), match=said):
        task(autoretry_for=(ValueError,), **options)(lambda: None)


def test_an_option_that_is_set_later_is_checked_at_the_call():
    @task(autoretry_for=(ValueError,))
    def later():
        pass

    later.autoretry_for = "x"

    with pytest.raises(TypeError, match="autoretry_for='x'"):
        later.delay()


@task(bind=True, max_retries=2)
def asks_in_vain(self, what):
    self.retry(**what)


@pytest.mark.parametrize(
    ("what", "kind", "said"),
    [
        ({"exc": "text"}, TypeError, "exc='text', which is no exception"),
        ({"max_retries": "3"}, ValueError, "max_retries='3' is no number of retries"),
        ({"serializer": "nope"}, exceptions.SerializerNotInstalled, "no serializer 'nope'"),
        ({"group_index": 2**70}, ValueError, "is no place in a group"),
    ],
)
def test_a_retry_that_cannot_be_meant_fails_at_once(what, kind, said):
    with pytest.raises(kind, match=said):
        asks_in_vain.delay(what).get(timeout=SOON)


@task(bind=True, max_retries=10**30, memory_limit=10**30)
def has_no_bounds(self):
    if not self.request.retries:
        self.retry(countdown=0, memory_limit=10**30)
    return self.request.retries


def test_limits_that_no_message_can_carry_are_as_high_as_can_be():
    assert has_no_bounds.delay().get(timeout=SOON) == 1
    assert has_no_bounds.apply_async(retries=10**30).get(timeout=SOON) > 10**9


@task(bind=True, max_retries=None)
def miscounts(self, retries):
    if retries is not None:
        self.request.retries = retries
        self.retry((None,), countdown=0)
    return self.request.retries


@pytest.mark.parametrize(("set_to", "then"), [(-5, 0), (6, 7), (2**40, 2**31)])
def test_a_body_may_set_how_often_it_was_retried(set_to, then):
    assert miscounts.delay(set_to).get(timeout=SOON) == then


@task(bind=True)
def parent_of_two(self):
    first, second = answer.delay(1), answer.delay(2)
    here = answer.apply((3,))
    mine = self.request.children
    return [child.id for child in mine], [first.id, second.id, here.id], type(mine[0]).__name__


@task
def answer(number):
    return number


def test_children_are_results_and_what_ran_by_itself_is_nobody_elses():
    result = parent_of_two.delay()

    ids, sent, kind = result.get(timeout=SOON)
    assert ids == sent
    assert kind == "AsyncResult"
    assert [child.id for child in result.children] == sent[:2]
    assert [value for _, value in result.collect(timeout=SOON)][1:] == [1, 2]


@task(bind=True, max_retries=2)
def succeeds_early(self, then):
    if self.request.retries == 0 and not self.request.delivery_info["redelivered"]:
        self.update_state(state="SUCCESS", meta="early")
        time.sleep(0.05)
        if then == "retry":
            self.retry(countdown=0)
        if then == "die":
            os._exit(3)
        time.sleep(60 if then == "limit" else 0)
    return "late"


@pytest.mark.parametrize("then", ["retry", "die", "limit", "end"])
def test_a_success_that_was_stored_is_never_overwritten(cluster, then):
    limits = {"time_limit": 0.3} if then == "limit" else {}
    result = succeeds_early.apply_async((then,), **limits)

    eventually(lambda: cluster.client.ask("show", id=result.id)["phase"] == "done")
    assert (result.state, result.get(timeout=SOON)) == ("SUCCESS", "early")
    again = cluster.client.ask("show", id=result.id)
    assert again["state"] == "SUCCESS"


@task
def fails():
    raise ValueError("it fails")


def test_another_state_may_follow_a_failure():
    result = fails.delay()
    assert isinstance(result.get(timeout=SOON, propagate=False), ValueError)

    fails.update_state(task_id=result.id, state="EXCUSED", meta={"by": "me"})

    eventually(lambda: result.state == "EXCUSED")
    assert result.info == {"by": "me"}
    with pytest.raises(ValueError, match="it fails"):
        result.get(timeout=SOON)


class Excuses(Task):
    def on_failure(self, exc, task_id, args, kwargs, einfo):
        self.update_state(state="EXCUSED", meta="by the handler")


def test_a_handler_may_set_a_state_after_the_end():
    @task(base=Excuses)
    def fails_too():
        raise ValueError

    result = fails_too.delay()

    eventually(lambda: result.state == "EXCUSED")
    assert result.info == "by the handler"


def test_a_state_for_an_id_that_nobody_knows_is_an_error():
    with pytest.raises(ValueError, match="knows no task 'never sent'"):
        answer.update_state(task_id="never sent", state="LOST", meta=1)


@task(bind=True, max_retries=1)
def swallows_its_retry(self):
    if self.request.parent_id is None and self.request.retries == 0:
        with contextlib.suppress(Exception):
            self.retry(countdown=0)
    return self.request.retries


def test_a_retry_that_the_body_swallows_happens_all_the_same():
    result = swallows_its_retry.delay()

    assert result.get(timeout=SOON) == 0
    (beside,) = result.children
    assert beside.get(timeout=SOON) == 1


class Catching(Task):
    def __call__(self, *args, **kwargs):
        try:
            return self.run(*args, **kwargs)
        except ValueError:
            return "swallowed"


class CallingAndFailing(Task):
    def __call__(self, *args, **kwargs):
        super().__call__(*args, **kwargs)
        raise ValueError("after the body")


def test_autoretry_stands_around_the_body_and_inside_of_ones_own_call(log):
    @task(base=Catching, autoretry_for=(ValueError,), retry_kwargs={"countdown": 0}, max_retries=1)
    def twice(path):
        write(path, "ran")
        raise ValueError

    @task(base=CallingAndFailing, autoretry_for=(ValueError,), max_retries=3)
    def once(path):
        write(path, "ran")

    @task(base=Catching, autoretry_for=(ValueError,), retry_kwargs={"countdown": 0}, max_retries=1)
    async def twice_too(path):
        write(path, "ran")
        raise ValueError

    assert twice.delay(log.path).get(timeout=SOON) == "swallowed"
    assert log.lines() == ["ran", "ran"]
    with pytest.raises(ValueError, match="after the body"):
        once.delay(log.path).get(timeout=SOON)
    assert log.lines() == ["ran", "ran", "ran"]
    with pytest.raises(ValueError, match="Remote"):  # its __call__ has seen a coroutine only
        twice_too.delay(log.path).get(timeout=SOON)
    assert log.lines() == ["ran"] * 5


def test_a_retry_without_an_exception_shows_none():
    @task(bind=True, max_retries=1)
    def waits(self):
        self.retry(countdown=60)

    result = waits.delay()

    eventually(lambda: result.state == "RETRY")
    assert result.result is None
    result.revoke()


def test_the_traceback_of_a_run_that_was_killed_is_its_error():
    @task(time_limit=0.2)
    def sleeps():
        time.sleep(60)

    said = []
    result = sleeps.delay()
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=SOON, on_message=said.append)

    assert "TimeLimitExceeded" in result.traceback
    assert said[-1]["traceback"] == result.traceback


def test_for_ever_is_an_expiry_too():
    never = datetime.max.replace(tzinfo=timezone(-timedelta(hours=12)))
    long_ago = datetime.min.replace(tzinfo=timezone(timedelta(hours=12)))

    assert answer.apply_async((1,), expires=never).get(timeout=SOON) == 1
    assert answer.apply_async((2,), eta=long_ago).get(timeout=SOON) == 2
    assert answer.apply((3,), expires=datetime.max.replace(tzinfo=UTC)).get() == 3


def test_each_line_that_gives_a_naive_time_is_warned_of_once(monkeypatch):
    from nbtasks.client import options

    monkeypatch.setattr(options, "_warned", set())
    far = datetime.now(UTC).replace(tzinfo=None) + timedelta(hours=5)

    def send():
        for _ in range(3):
            answer.apply_async((1,), eta=far, expires=far).revoke()
        answer.apply_async((1,), eta=far).revoke()

    with pytest.warns(exceptions.NaiveTimeWarning) as told:
        send()

    assert [str(one.message).split()[0] for one in told] == ["eta", "expires", "eta"]


def test_lists_show_the_name_that_the_caller_wants_to_be_shown(cluster):
    result = answer.apply_async((1,), shadow="the shown one")
    result.get(timeout=SOON)

    shown = cluster.client.ask("show", id=result.id)
    assert (shown["name"], shown["shown"]) == (answer.name, "the shown one")


def test_an_ignored_end_is_an_end_for_everybody(cluster):
    result = answer.apply_async((1,), ignore_result=True)
    eventually(lambda: cluster.client.ask("show", id=result.id)["phase"] == "done")
    code = f"""
        import nbtasks
        nbtasks.connect({str(cluster.dir)!r})
        print(nbtasks.AsyncResult({result.id!r}).get(timeout=30))
    """
    assert script(code) == "None"


def test_options_are_checked_in_eager_calls_too(monkeypatch):
    bad = [
        {"priority": 99},
        {"queue": 5},
        {"headers": 5},
        {"time_limit": 1, "soft_time_limit": 2},
        {"retry_policy": {"x": 1}},
        {"retries": "x"},
    ]
    for options in bad:
        with pytest.raises((TypeError, ValueError)):
            answer.apply((1,), **options)


def test_a_task_is_one_of_its_kind_for_copy():
    import copy

    assert copy.copy(answer) is answer
    assert copy.deepcopy({"task": answer})["task"] is answer


class Named(Task):
    name = "of the base"


def test_the_name_of_a_base_is_not_that_of_its_tasks():
    @task(base=Named, name="")
    def one_of_them():
        pass

    assert one_of_them.name.endswith("one_of_them")


@pytest.mark.parametrize("when", ["before the start", "after it"])
def test_what_a_task_sends_goes_to_the_queue_that_the_notebook_has_set(make_cluster, when):
    @nbtasks.task
    def child():
        return 1

    @nbtasks.task
    def parent():
        return child.delay().id, nbtasks.send_task("nobody.knows").id

    try:
        if when == "before the start":
            nbtasks.configure(task_default_queue="chosen")
        cluster = make_cluster(workers=1)
        nbtasks.configure(task_default_queue="chosen")
        ids = parent.delay().get(timeout=SOON)
        queues = [nbtasks.AsyncResult(task_id).queue for task_id in ids]
        cluster.shutdown()
    finally:
        nbtasks.config.reset()

    # A call by name knows only what its worker was started with.
    assert queues == ["chosen", "chosen" if when == "before the start" else "default"]
