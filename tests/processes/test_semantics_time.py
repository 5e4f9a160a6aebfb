"""When tasks start, how long they may run, how they are stopped: Celery's words, to the letter."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import psutil
import pytest

import nbtasks
from nbtasks.exceptions import (
    OperationalError,
    SoftTimeLimitExceeded,
    TaskRevokedError,
    TimeLimitExceeded,
    WorkerLostError,
)
from tests.conftest import short_directory

#: Seconds within which something that takes milliseconds must have happened on a busy machine.
SOON = 20.0
#: Seconds for which a task waits that nobody shall wait for.
LONG = 3600.0

MakeCluster = Callable[..., nbtasks.Cluster]


class Noting(nbtasks.Task):
    """A task that notes in a file which of its handlers were called."""

    abstract = True

    def note(self, kwargs, word):
        with Path(kwargs["ledger"]).open("a") as file:
            file.write(f"{word}\n")

    def before_start(self, task_id, args, kwargs):
        self.note(kwargs, "before_start")

    def on_success(self, retval, task_id, args, kwargs):
        self.note(kwargs, "on_success")

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        self.note(kwargs, "on_failure")

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        self.note(kwargs, "on_retry")

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        self.note(kwargs, "after_return")


@nbtasks.task(base=Noting)
def noted(*, ledger):
    with Path(ledger).open("a") as file:
        file.write("body\n")


class LongToLoad:
    """A value that takes for ever to be unpickled."""

    def __reduce__(self):
        return time.sleep, (LONG,)


class LongAfterwards(nbtasks.Task):
    """A task whose handler writes down who runs it, and does not come to an end."""

    abstract = True

    def on_success(self, retval, task_id, args, kwargs):
        write(retval, os.getpid())
        time.sleep(LONG)


@nbtasks.task(base=LongAfterwards)
def with_long_handler(path):
    return path


@nbtasks.task
def instant():
    return time.time()


@nbtasks.task(expires=-1)
def too_late():
    return "not too late"


@nbtasks.task(bind=True)
def times(self):
    return self.request.eta, self.request.expires, time.time()


@nbtasks.task
def write_down(ledger, word, gate=None):
    """Write a word into a file, then wait for another file to appear."""
    with Path(ledger).open("a") as file:
        file.write(f"{word}\n")
    while gate is not None and not Path(gate).exists():
        time.sleep(0.005)
    return word


@nbtasks.task(rate_limit="10/s")
def limited():
    return time.time()


@nbtasks.task(soft_time_limit=0.2)
def tidy_up():
    try:
        time.sleep(LONG)
    except SoftTimeLimitExceeded:
        return "tidied up"


@nbtasks.task
def sleep(seconds, begun=None):
    if begun is not None:
        write(begun, os.getpid())
    time.sleep(seconds)
    return seconds


@nbtasks.task(time_limit=1)
def hold_the_interpreter(begun):
    write(begun, time.time())
    return sum(range(10**12))


@nbtasks.task(base=Noting, time_limit=0.3)
def noted_and_killed(*, ledger):
    write_down(ledger, "body")
    time.sleep(LONG)


@nbtasks.task(time_limit=0.5, acks_late=True, acks_on_timeout=False, bind=True)
def too_long_at_first(self, ledger):
    write_down(ledger, "run")
    if len(lines(ledger)) == 1:
        time.sleep(LONG)
    return self.request.delivery_info["redelivered"]


@nbtasks.task(acks_late=True, acks_on_failure=False)
def fail_late():
    raise ValueError("no")


@nbtasks.task
def lose(ledger):
    write_down(ledger, "run")
    os.kill(os.getpid(), signal.SIGKILL)


@nbtasks.task(retry_on_worker_lost=True, max_retries=1, bind=True)
def lose_as_retry(self, ledger):
    write_down(ledger, str(self.request.retries))
    os.kill(os.getpid(), signal.SIGKILL)


@nbtasks.task
def leave(code):
    raise SystemExit(code)


@nbtasks.task(bind=True, max_retries=None)
def retry_for_ever(self, ledger, gate=None):
    write_down(ledger, "run", gate)
    raise self.retry(countdown=0)


def write(path, value):
    """Write a value into a file in one step."""
    part = Path(f"{path}.part")
    part.write_text(str(value))
    part.rename(path)


def lines(path):
    return Path(path).read_text().split() if Path(path).exists() else []


def eventually(condition, seconds=SOON):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.005)
    return value


def wait_until(moment):
    time.sleep(max(moment - time.time(), 0))


def revoked(result) -> tuple[object, ...]:
    """Return the arguments of the TaskRevokedError that a task ended with."""
    with pytest.raises(TaskRevokedError) as caught:
        result.get(timeout=SOON)
    assert result.state == "REVOKED"
    assert (result.ready(), result.failed(), result.successful()) == (True, False, False)
    return caught.value.args


@pytest.fixture(scope="module")
def shared_directory() -> Iterator[Path]:
    """Where the cluster lives that the tests share which kill nothing."""
    with short_directory() as path:
        cluster = nbtasks.start(workers=2, dir=path)
        cluster.worker_pids()
        yield path
        cluster.shutdown()


@pytest.fixture
def shared(shared_directory: Path) -> nbtasks.Cluster:
    return nbtasks.start(dir=shared_directory)


@pytest.fixture
def ledger(short_path: Path) -> str:
    return str(short_path / "ledger")


@pytest.fixture
def gate(short_path: Path) -> Path:
    """A file that is not there yet."""
    return short_path / "gate"


# --------------------------------------------------------------------------------- eta, countdown


@pytest.mark.usefixtures("shared")
def test_countdown_is_never_early_and_hardly_late():
    before = time.time()

    began = instant.apply_async(countdown=0.5).get(timeout=SOON)

    assert 0.5 <= began - before < 1.5


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("wait", [0, None, -5, 0.05, timedelta(seconds=0.05)])
def test_any_real_number_is_a_countdown(wait):
    before = time.time()

    assert instant.apply_async(countdown=wait).get(timeout=SOON) - before < 2


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=9)), timezone(timedelta(hours=-3))])
def test_eta_is_the_earliest_time_in_any_zone(zone):
    eta = datetime.now(zone) + timedelta(seconds=0.3)

    began = instant.apply_async(eta=eta).get(timeout=SOON)

    assert 0 <= began - eta.timestamp() < 1


@pytest.mark.usefixtures("shared")
def test_eta_without_a_zone_is_utc():
    eta = datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=0.2)

    result = instant.apply_async(eta=eta, expires=eta + timedelta(minutes=5))

    assert 0 <= result.get(timeout=SOON) - eta.replace(tzinfo=UTC).timestamp() < 1


@pytest.mark.usefixtures("shared")
def test_eta_as_iso_text_is_shown_to_the_task_as_such():
    eta = datetime.now(UTC) + timedelta(seconds=0.2)
    expires = datetime.now(UTC) + timedelta(minutes=5)

    result = times.apply_async(eta=eta.isoformat(), expires=expires.isoformat())

    shown_eta, shown_expires, began = result.get(timeout=SOON)
    assert began >= eta.timestamp()
    assert abs(datetime.fromisoformat(shown_eta) - eta) < timedelta(milliseconds=1)
    assert abs(datetime.fromisoformat(shown_expires) - expires) < timedelta(milliseconds=1)


@pytest.mark.usefixtures("shared")
def test_past_eta_means_at_once():
    eta = datetime.now(UTC) - timedelta(days=400)

    assert abs(instant.apply_async(eta=eta).get(timeout=SOON) - time.time()) < SOON


@pytest.mark.usefixtures("shared")
def test_countdown_beats_eta():
    before = time.time()
    far = datetime.now(UTC) + timedelta(days=1)

    early = instant.apply_async(countdown=0.1, eta=far).get(timeout=SOON)

    assert 0.1 <= early - before < SOON


@pytest.mark.usefixtures("shared")
def test_task_that_waits_for_its_time_is_pending_and_holds_nobody_up():
    waiting = [instant.apply_async(countdown=LONG) for _ in range(10)]

    assert instant.delay().get(timeout=SOON)

    assert {result.state for result in waiting} == {"PENDING"}
    for result in waiting:
        result.revoke()
    assert {revoked(result) for result in waiting} == {("revoked",)}


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"eta": 5}, TypeError),
        ({"eta": "tomorrow"}, ValueError),
        ({"countdown": "soon"}, TypeError),
        ({"countdown": float("nan")}, ValueError),
        ({"expires": "never"}, ValueError),
        ({"expires": object()}, TypeError),
    ],
)
def test_what_is_no_time_is_refused_at_the_call(wrong, error):
    with pytest.raises(error, match=f"{next(iter(wrong))}="):
        instant.apply_async(**wrong)


# ---------------------------------------------------------------------------------------- expires


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(
    "expires",
    [
        -1,
        datetime.now(UTC) - timedelta(seconds=1),
        (datetime.now(UTC) - timedelta(days=1)).isoformat(),
        timedelta(seconds=-1),
    ],
)
def test_expired_task_is_revoked_and_nothing_of_it_runs(expires, ledger):
    result = noted.apply_async(kwargs={"ledger": ledger}, expires=expires)

    assert revoked(result) == ("expired",)
    assert lines(ledger) == []


@pytest.mark.usefixtures("shared")
def test_task_that_expires_later_runs_with_all_its_handlers(ledger):
    noted.apply_async(kwargs={"ledger": ledger}, expires=60).get(timeout=SOON)

    eventually(lambda: "after_return" in lines(ledger))
    assert lines(ledger) == ["before_start", "body", "on_success", "after_return"]


@pytest.mark.usefixtures("shared")
def test_countdown_beyond_expiry_always_expires(ledger):
    result = noted.apply_async(kwargs={"ledger": ledger}, countdown=0.3, expires=0.2)

    assert revoked(result) == ("expired",)
    assert lines(ledger) == []


@pytest.mark.usefixtures("shared")
def test_expiry_of_the_task_is_a_default_that_none_clears():
    assert revoked(too_late.delay()) == ("expired",)
    assert too_late.apply_async(expires=None).get(timeout=SOON) == "not too late"
    assert too_late.apply_async(expires=60).get(timeout=SOON) == "not too late"


@pytest.mark.usefixtures("shared")
def test_task_expires_in_the_queue_and_not_once_it_has_begun(ledger, gate):
    sent = time.time()
    begun = [write_down.apply_async((ledger, "begun", str(gate)), expires=0.5) for _ in range(2)]
    eventually(lambda: len(lines(ledger)) == 2)

    queued = noted.apply_async(kwargs={"ledger": ledger}, expires=0.1)

    assert revoked(queued) == ("expired",)
    wait_until(sent + 0.5)
    gate.touch()
    assert [result.get(timeout=SOON) for result in begun] == ["begun", "begun"]


# ---------------------------------------------------------------------------------- publish retry


def test_publishing_waits_as_its_policy_says_and_then_raises(cluster: nbtasks.Cluster):
    policy = {"max_retries": 2, "interval_start": 0.1, "interval_step": 0.1, "interval_max": 0.2}
    with without_broker(cluster):
        took = []
        for given in ({"retry": False}, {"retry_policy": policy}, {}):
            began = time.monotonic()
            with pytest.raises(OperationalError) as caught:
                instant.apply_async(**given)
            took.append(time.monotonic() - began)

        assert "broker" in str(caught.value)
        assert isinstance(caught.value, instant.OperationalError)
        assert 0.3 <= took[1]
        assert 0.6 <= took[2]
        assert max(took) <= 2

    assert instant.delay().get(timeout=SOON)


def test_publishing_goes_on_when_the_broker_is_back_in_time(cluster: nbtasks.Cluster):
    with without_broker(cluster) as bring_back:
        bring_back()

        result = instant.apply_async(retry_policy={"max_retries": None})

        assert result.get(timeout=SOON)


class without_broker:
    """Let a cluster have no broker in this block, or until it is called."""

    def __init__(self, cluster: nbtasks.Cluster) -> None:
        self.cluster = cluster
        self.supervisor = cluster.supervisor_pid

    def __enter__(self) -> without_broker:
        broker = psutil.Process(self.cluster.broker_pid)
        os.kill(self.supervisor, signal.SIGSTOP)
        broker.kill()
        eventually(lambda: not self.cluster.client.connected)
        return self

    def __exit__(self, *error: object) -> None:
        self()

    def __call__(self) -> None:
        os.kill(self.supervisor, signal.SIGCONT)


# ------------------------------------------------------------------------- rate, priority, queues


@pytest.mark.usefixtures("shared")
def test_rate_limit_spaces_the_starts_evenly():
    limited.delay().get(timeout=SOON)
    results = [limited.delay() for _ in range(5)]

    starts = sorted(result.get(timeout=SOON) for result in results)

    # To the letter in tests/core; here a busy machine may delay the first one.
    assert starts[-1] - starts[0] >= 0.25


def test_nine_comes_first_and_nought_last(make_cluster: MakeCluster, ledger, gate):
    make_cluster(workers=1)
    write_down.delay(ledger, "begun", str(gate))
    eventually(lambda: lines(ledger))
    given = {"a0": 0, "b5": None, "c9": 9, "d3": 3, "e9": 9, "f5": None}

    results = [
        write_down.apply_async((ledger, word), priority=priority)
        for word, priority in given.items()
    ]
    eventually(lambda: all(result.accepted for result in results))
    gate.touch()

    for result in results:
        result.get(timeout=SOON)
    assert lines(ledger)[1:] == ["c9", "e9", "b5", "f5", "d3", "a0"]


def test_workers_serve_their_queues_only(make_cluster: MakeCluster):
    make_cluster(workers=1, queues=["heavy"])

    waits = instant.delay()
    assert instant.apply_async(queue="heavy").get(timeout=SOON)

    assert waits.state == "PENDING"
    waits.revoke()
    assert revoked(waits) == ("revoked",)


# ------------------------------------------------------------------------------------ time limits


@pytest.mark.usefixtures("shared")
def test_soft_limit_is_an_exception_that_the_body_may_catch():
    assert tidy_up.delay().get(timeout=SOON) == "tidied up"


@pytest.mark.usefixtures("shared")
def test_soft_limit_that_is_not_caught_is_a_failure():
    result = sleep.apply_async((LONG,), soft_time_limit=0.2)

    with pytest.raises(SoftTimeLimitExceeded) as caught:
        result.get(timeout=SOON)
    assert result.state == "FAILURE"
    assert caught.value.args == (0.2,)


def test_hard_limit_holds_though_the_broker_dies_meanwhile(cluster: nbtasks.Cluster, gate):
    result = hold_the_interpreter.delay(str(gate))
    eventually(gate.exists)
    os.kill(cluster.broker_pid, signal.SIGKILL)

    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=SOON)
    assert time.time() - float(gate.read_text()) < 3


def test_handlers_hear_of_a_hard_limit_in_another_process(cluster: nbtasks.Cluster, ledger):
    with pytest.raises(TimeLimitExceeded):
        noted_and_killed.delay(ledger=ledger).get(timeout=SOON)

    eventually(lambda: len(lines(ledger)) == 4)
    assert lines(ledger) == ["before_start", "body", "on_failure", "after_return"]


@pytest.mark.usefixtures("cluster")
def test_hard_limit_holds_while_the_arguments_of_a_first_call_are_loaded():
    @nbtasks.task(time_limit=0.5)
    def take(value):
        return value

    with pytest.raises(TimeLimitExceeded):
        take.delay(LongToLoad()).get(timeout=SOON)


def test_hard_limit_ends_handlers_and_leaves_the_result(cluster: nbtasks.Cluster, gate):
    result = with_long_handler.apply_async((str(gate),), time_limit=0.5)

    assert result.get(timeout=SOON) == str(gate)
    eventually(gate.exists)
    eventually(lambda: not psutil.pid_exists(int(gate.read_text() or 0)))
    eventually(lambda: "longer than its time limit of 0.5 s" in result.logs())
    assert result.state == "SUCCESS"


def test_nothing_waits_behind_a_long_handler(cluster: nbtasks.Cluster, gate):
    with_long_handler.delay(str(gate)).get(timeout=SOON)
    eventually(gate.exists)

    assert len([instant.delay().get(timeout=SOON) for _ in range(6)]) == 6


def test_limits_that_contradict_each_other_are_refused_at_the_call():
    with pytest.raises(ValueError, match="soft"):
        instant.apply_async(soft_time_limit=5, time_limit=1)


def test_timed_out_task_runs_again_where_that_is_wanted(cluster: nbtasks.Cluster, ledger):
    assert too_long_at_first.delay(ledger).get(timeout=SOON) is True

    assert lines(ledger) == ["run", "run"]


# -------------------------------------------------------------------------- revoke and terminate


@pytest.mark.usefixtures("shared")
def test_task_is_revoked_while_it_waits_for_a_worker(ledger, gate):
    busy = [write_down.delay(ledger, "begun", str(gate)) for _ in range(2)]
    eventually(lambda: len(lines(ledger)) == 2)
    queued = [write_down.delay(ledger, "never") for _ in range(3)]

    for result in queued:
        result.revoke()

    assert {revoked(result) for result in queued} == {("revoked",)}
    gate.touch()
    assert [result.get(timeout=SOON) for result in busy] == ["begun", "begun"]
    assert lines(ledger) == ["begun", "begun"]


@pytest.mark.usefixtures("shared")
def test_running_task_goes_on_when_it_is_revoked_and_a_finished_one_keeps_its_result(ledger, gate):
    running = write_down.delay(ledger, "begun", str(gate))
    eventually(lambda: lines(ledger))

    running.revoke()
    gate.touch()

    assert running.get(timeout=SOON) == "begun"
    running.revoke(terminate=True)
    instant.delay().get(timeout=SOON)
    assert running.state == "SUCCESS"


@pytest.mark.usefixtures("shared")
def test_task_revoked_while_it_runs_is_not_retried(ledger, gate):
    result = retry_for_ever.delay(ledger, str(gate))
    eventually(lambda: lines(ledger))

    result.revoke()
    instant.delay().get(timeout=SOON)  # by now the broker has heard of it
    gate.touch()

    assert revoked(result) == ("revoked",)
    assert lines(ledger) == ["run"]


@pytest.mark.usefixtures("shared")
def test_task_is_revoked_while_it_waits_for_its_retry(ledger):
    result = retry_for_ever.delay(ledger)
    eventually(lambda: len(lines(ledger)) > 3)

    result.revoke()

    assert revoked(result) == ("revoked",)


def test_terminate_ends_that_task_and_no_other(cluster: nbtasks.Cluster, short_path):
    begun = [short_path / "1", short_path / "2"]
    victim, other = (
        sleep.delay(seconds, str(path)) for seconds, path in zip((LONG, 1), begun, strict=True)
    )
    eventually(lambda: all(path.exists() for path in begun))

    victim.revoke(terminate=True)

    assert revoked(victim) == ("terminated",)
    assert other.get(timeout=SOON) == 1
    eventually(lambda: len(cluster.worker_pids()) == 2)
    pids = cluster.worker_pids()
    assert int(begun[0].read_text()) not in pids
    assert int(begun[1].read_text()) in pids


def test_terminate_of_short_tasks_kills_the_right_ones_only(cluster: nbtasks.Cluster):
    results = [sleep.delay(0.01) for _ in range(60)]
    unwanted = results[::3]

    for result in unwanted:
        result.revoke(terminate=True, signal="SIGKILL")

    states = [result.get(timeout=SOON, propagate=False) and result.state for result in results]
    assert {state for n, state in enumerate(states) if n % 3} == {"SUCCESS"}
    assert {state for n, state in enumerate(states) if not n % 3} <= {"SUCCESS", "REVOKED"}


def test_broker_remembers_who_was_revoked_though_it_dies(cluster: nbtasks.Cluster, ledger, gate):
    result = retry_for_ever.delay(ledger, str(gate))
    eventually(lambda: lines(ledger))
    result.revoke()
    former = cluster.status()["broker_pid"]  # it has heard of it

    os.kill(former, signal.SIGKILL)

    eventually(lambda: cluster.broker_pid != former)
    gate.touch()
    assert revoked(result) == ("revoked",)
    assert lines(ledger) == ["run"]


def test_order_that_a_dying_broker_took_along_is_given_again(cluster: nbtasks.Cluster):
    result = instant.apply_async(countdown=LONG, confirm=True)

    os.kill(cluster.broker_pid, signal.SIGSTOP)
    result.revoke()
    os.kill(cluster.broker_pid, signal.SIGKILL)

    assert revoked(result) == ("revoked",)


# ------------------------------------------------------------------------------- lost, late, again


def test_lost_process_is_a_failure_and_the_task_is_not_repeated(cluster: nbtasks.Cluster, ledger):
    result = lose.delay(ledger)

    with pytest.raises(WorkerLostError, match="SIGKILL"):
        result.get(timeout=SOON)

    assert result.state == "FAILURE"
    assert lines(ledger) == ["run"]


def test_exit_of_a_body_is_a_lost_process(cluster: nbtasks.Cluster):
    with pytest.raises(WorkerLostError, match="code 7"):
        leave.delay(7).get(timeout=SOON)


def test_lost_process_counts_as_a_retry_where_that_is_wanted(cluster: nbtasks.Cluster, ledger):
    with pytest.raises(WorkerLostError):
        lose_as_retry.delay(ledger).get(timeout=SOON)

    assert lines(ledger) == ["0", "1"]


@pytest.mark.usefixtures("shared")
def test_failure_of_a_late_acknowledged_task_is_a_failure():
    with pytest.raises(ValueError, match="no"):
        fail_late.delay().get(timeout=SOON)
