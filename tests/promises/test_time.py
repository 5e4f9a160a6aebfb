"""What is due is due: never early, hardly late, whatever becomes of the clock and the broker."""

from __future__ import annotations

import datetime
import mmap
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import nbtasks
from nbtasks.result import AsyncResult
from nbtasks.wire.connection import boot
from tests.living import SOON, entries, eventually, family, kill, note
from tests.promises.figures import best_of

MakeCluster = Callable[..., nbtasks.Cluster]
Measure = Callable[..., None]

#: Two hours: what a wrong zone, or a clock set right at last, may come to.
STEP = 7_200.0


@nbtasks.task
def begun(then_sleep=0.0):
    from nbtasks.wire.connection import boot

    instant = boot()
    time.sleep(then_sleep)
    return instant


def warm_up(workers: int = 2) -> None:
    """Let each worker load the function: that is no matter of timers."""
    for result in [begun.delay(0.3) for _ in range(workers)]:
        result.get(timeout=SOON)


@nbtasks.task(bind=True, max_retries=1)
def begun_again(self, countdown=1.5):
    from nbtasks.wire.connection import boot

    if self.request.retries == 0:
        raise self.retry(countdown=countdown)
    return boot()


@nbtasks.task
def enter(ledger, number):
    note(ledger, number)


@nbtasks.task
def wait_for(gate):
    while not Path(gate).exists():
        time.sleep(0.005)
    return "seen"


# ---------------------------------------------------------------------------- a clock that is set

#: Loaded by each Python that starts with this in its path.
STEPPED = """
import mmap, os, struct, time

_time, _file = time.time, open(os.environ["NBT_TEST_CLOCK"], "rb")
_step = mmap.mmap(_file.fileno(), 8, prot=mmap.PROT_READ)
time.time = lambda: _time() + struct.unpack("d", _step)[0]
"""


class WallClock:
    """The wall clock of this process and of all that it starts, to be set like any other."""

    def __init__(self, place: Path, patch: pytest.MonkeyPatch) -> None:
        place.mkdir()
        (place / "sitecustomize.py").write_text(STEPPED)
        (place / "step").write_bytes(struct.pack("d", 0.0))
        with (place / "step").open("r+b") as file:
            self._step = mmap.mmap(file.fileno(), 8)
        plain = time.time
        patch.setenv("PYTHONPATH", str(place))
        patch.setenv("NBT_TEST_CLOCK", str(place / "step"))
        patch.setattr(time, "time", lambda: plain() + self.step)

    @property
    def step(self) -> float:
        """Seconds by which it is wrong."""
        return float(struct.unpack("d", self._step)[0])

    @step.setter
    def step(self, seconds: float) -> None:
        self._step[:] = struct.pack("d", seconds)


@pytest.fixture
def clock(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> WallClock:
    return WallClock(short_path / "clock", monkeypatch)


@nbtasks.task
def wall():
    return time.time()


def at(instant: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(instant, datetime.UTC)


@pytest.mark.parametrize("step", [STEP, -STEP], ids=["forward", "back"])
def test_step_of_the_clock_moves_no_countdown_and_kills_nothing(
    clock: WallClock, make_cluster: MakeCluster, short_path: Path, step: float, measure: Measure
):
    cluster = make_cluster()
    pids = sorted([cluster.broker_pid, *cluster.worker_pids()])
    warm_up()
    running = wait_for.apply_async((short_path / "gate",), time_limit=60, soft_time_limit=50)
    eventually(lambda: cluster.status()["phases"].get("running"))
    sent_at = boot()
    counting = begun.apply_async(countdown=1.5)
    retrying = begun_again.delay()
    eventually(lambda: retrying.state == "RETRY")
    retried_at = boot()

    clock.step = step
    assert abs(wall.delay().get(timeout=SOON) - time.time()) < 60, "the workers' clock was not set"
    late = [
        counting.get(timeout=SOON) - (sent_at + 1.5),
        retrying.get(timeout=SOON) - (retried_at + 1.5),
    ]
    (short_path / "gate").touch()

    way = "forward" if step > 0 else "back"
    assert running.get(timeout=SOON) == "seen"
    # The retry was decided a moment before we could see it.
    measure("P9", f"countdown early, clock {STEP:,.0f} s {way}", max(-late[0], 0), most=0, unit="s")
    measure("P9", f"countdown late, clock {STEP:,.0f} s {way}", max(late), most=0.2, unit="s")
    now = sorted([cluster.broker_pid, *cluster.worker_pids()])
    measure("P9", f"processes that died of a clock {way}", len(set(pids) - set(now)), most=0)


def test_eta_and_expiry_follow_the_wall_clock(
    clock: WallClock, make_cluster: MakeCluster, measure: Measure
):
    cluster = make_cluster()
    warm_up()
    in_an_hour = begun.apply_async(eta=at(time.time() + 3_600), confirm=True)
    too_late = begun.apply_async(countdown=5_000, expires=3_600, confirm=True)

    clock.step = STEP
    stepped_at = boot()
    late = in_an_hour.get(timeout=SOON) - stepped_at
    with pytest.raises(nbtasks.exceptions.TaskRevokedError, match="expired"):
        too_late.get(timeout=SOON)
    measure(
        "P9", "until a clock set forward is seen (looked at each second)", late, most=1.2, unit="s"
    )

    soon = begun.apply_async(eta=at(time.time() + 0.5), confirm=True)
    clock.step = 0.0  # and back: it is two hours off again
    time.sleep(1.5)
    early = cluster.client.ask("show", id=soon.id)["phase"] != "scheduled"
    measure("P9", "tasks early by a clock set back", early, most=0)
    clock.step = STEP
    soon.get(timeout=SOON)


# ------------------------------------------------------------------------- brokers that come and go


def test_countdown_is_kept_through_deaths_of_the_broker(
    cluster: nbtasks.Cluster, full: bool, rng: random.Random, measure: Measure
):
    warm_up()
    early, late = [], []
    for _ in range(20 if full else 3):
        sent_at = boot()
        waits = [2.0 + number / 50 for number in range(10)]  # time enough to come back
        results = [begun.apply_async(countdown=wait) for wait in waits]
        assert cluster.client.flush(SOON)
        for _ in range(2):
            time.sleep(rng.random() / 3)
            kill(cluster.broker_pid)
        for wait, result in zip(waits, results, strict=True):
            lateness = result.get(timeout=SOON) - (sent_at + wait)
            early.append(-lateness)
            late.append(lateness)

    measure("P9", "countdown early, broker killed", max(0.0, *early), most=0, unit="s")
    measure(
        "P9",
        "countdown late, broker killed (median of the worst)",
        late_of(late),
        most=0.2,
        unit="s",
    )


def test_retry_is_kept_through_deaths_of_the_broker(cluster: nbtasks.Cluster, measure: Measure):
    warm_up()
    countdown = 6.0  # time enough to come back twice
    retrying = begun_again.delay(countdown)
    eventually(lambda: retrying.state == "RETRY")
    retried_at = boot()

    for _ in range(2):
        kill(cluster.broker_pid)
        cluster.status(SOON)

    late = retrying.get(timeout=SOON) - (retried_at + countdown)
    # The retry was decided a moment before we could see it.
    measure("P9", "retry late, broker killed twice", late, most=0.2, unit="s")
    measure("P9", "runs of it", retrying.retries + 1, most=2)


def test_what_expired_while_all_was_down_never_runs(
    make_cluster: MakeCluster, short_path: Path, measure: Measure
):
    ledger = str(short_path / "ledger")
    cluster = make_cluster(dir=short_path / "c", workers=0)
    results = [enter.apply_async((ledger, n), expires=0.5, confirm=True) for n in range(50)]
    kill(*family(cluster))
    time.sleep(0.6)

    make_cluster(dir=short_path / "c", workers=2)
    revived = [AsyncResult(result.id) for result in results]
    for result in revived:
        with pytest.raises(nbtasks.exceptions.TaskRevokedError, match="expired"):
            result.get(timeout=SOON)

    measure("P9", "runs of 50 tasks that expired while all was down", len(entries(ledger)), most=0)


def late_of(late: list[float]) -> float:
    """Return the worst of each ten, and of these the median: one hiccup of the machine is none."""
    worst = sorted(max(late[start : start + 10]) for start in range(0, len(late), 10))
    return worst[len(worst) // 2]


def test_what_came_due_while_all_was_down_runs_once(
    make_cluster: MakeCluster, short_path: Path, measure: Measure
):
    ledger = str(short_path / "ledger")
    cluster = make_cluster(dir=short_path / "c")
    instant = time.time()
    for number in range(0, 100, 2):
        enter.apply_async((ledger, number), countdown=0.5)
        enter.apply_async((ledger, number + 1), eta=at(instant + 0.5))
    assert cluster.client.flush(SOON)
    cluster.shutdown()
    time.sleep(max(instant + 0.7 - time.time(), 0.0))

    ran_before = sum(entries(ledger).values())
    make_cluster(dir=short_path / "c")
    eventually(lambda: sum(entries(ledger).values()) >= 100)

    runs = entries(ledger)
    assert ran_before < 100
    measure(
        "P9", "runs of 100 tasks that came due while all was down", sum(runs.values()), most=100
    )
    measure("P9", "tasks of these that did not run", 100 - len(runs), most=0)


# ------------------------------------------------------------------------------------ many at once


def test_ten_thousand_timers_at_once(cluster: nbtasks.Cluster, measure: Measure):
    warm_up()
    first: list[float] = []

    def once() -> float:
        """Return how late the last of them was ready to run."""
        due, results = timers_at_once()
        time.sleep(max(due - boot() - 0.05, 0.0))
        eventually(lambda: not cluster.status()["phases"].get("scheduled"))
        ready = boot() - due
        first.append(min(result.get(timeout=SOON) for result in results) - due)
        return ready

    ready = best_of(3, 0.2, once)
    early = max(-min(first), 0.0)
    measure("P9", "10,000 timers at once: early", early, most=0, unit="s")
    measure("P9", "10,000 timers at once: first begun", min(first), most=0.2, unit="s")
    measure("P9", "10,000 timers at once: last ready to run", ready, most=0.2, unit="s")


def timers_at_once() -> tuple[float, list[AsyncResult]]:
    """Send them in time; return when they are due, boot clock, and their results."""
    ahead = 2.0
    while True:
        ahead *= 2
        due = boot() + ahead
        results = [begun.apply_async(countdown=max(due - boot(), 0)) for _ in range(10_000)]
        assert nbtasks.current_cluster().client.flush(SOON)
        if boot() < due:
            return due, results
        for result in results:  # this machine has other things to do; they shall not be in the way
            result.get(timeout=SOON)
