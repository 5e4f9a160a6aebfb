"""The supervisor alone: this test is the broker at the other end of its wire."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import zmq

from nbtasks.core.messages import Bye, Died, Hello, Kill, Pool, Scale, Stop, Welcome
from nbtasks.supervisor.children import LOG_LIMIT, Children, open_log
from nbtasks.supervisor.crew import KEPT_LOGS
from nbtasks.supervisor.limits import Backoff
from nbtasks.wire import cell, frames, sockets
from nbtasks.wire.connection import Settings, write_settings
from tests.processes import standins

#: Seconds after which something that should have happened has not.
PATIENCE = 10.0

T = TypeVar("T")


def until(condition: Callable[[], T], what: str = "it", seconds: float = PATIENCE) -> T:
    """Return the condition's value as soon as it is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.005)
    return value


class Stage:
    """A runtime directory, its supervisor, and the test in the place of the broker."""

    def __init__(self, runtime: Path) -> None:
        self.runtime = runtime
        self.process: subprocess.Popen[bytes] | None = None
        self.heard: list[Any] = []
        self.peer = b""
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None

    def start(self, workers: int = 2, listening: bool = True, **orders: Any) -> None:
        """Start a supervisor, and wait until it has greeted."""
        write_settings(self.runtime, Settings(data=str(self.runtime), workers=workers))
        (self.runtime / "orders.json").write_text(json.dumps(orders))
        if self._socket is None:
            self._socket = sockets.bind(self._context, self.runtime).socket
        with (self.runtime / "supervisor.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.processes.standins", "supervisor", str(self.runtime)],
                cwd=standins.ROOT,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if listening:
            self.welcome()
            until(lambda: len(self.pool().workers) == workers, "the pool's being full")

    def welcome(self) -> Hello:
        hello = self.hear(Hello)
        self.say(Welcome(b"instance", "store"))
        return hello

    def say(self, *messages: Any) -> None:
        self._socket.send_multipart([self.peer, *frames.pack(b"instance", messages)])

    def hear(self, kind: type[T]) -> T:
        """Return the next message of this kind; earlier ones are passed over."""
        end = time.monotonic() + PATIENCE
        while True:
            while self.heard:
                message = self.heard.pop(0)
                if isinstance(message, kind):
                    return message
            assert self._socket.poll(max(0, end - time.monotonic()) * 1000), f"no {kind.__name__}"
            self.peer, *parts = self._socket.recv_multipart()
            self.heard += frames.unpack_to_broker(parts)[1]

    def pool(self) -> Pool:
        return self.hear(Pool)

    def hear_pool(self, count: int) -> Pool:
        while len((pool := self.pool()).workers) != count:
            pass
        return pool

    def children(self, role: str) -> list[psutil.Process]:
        found = []
        for process in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if len(words) > 2 and words[2] == role and process.status() != "zombie":
                    found.append(process)
        return found

    def worker(self, name: str) -> psutil.Process:
        return next(p for p in self.children("worker") if name in p.cmdline())

    def ready_worker(self) -> tuple[str, psutil.Process]:
        """Return a worker that has written its cell."""
        process = until(lambda: self.children("worker"), "a worker")[0]
        name = process.cmdline()[4]
        reading = until(lambda: cell.read(self.runtime / "cells" / name), "a cell")
        assert reading.pid == process.pid
        return name, process

    def log(self) -> str:
        return (self.runtime / "supervisor.log").read_text()

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self._socket is not None:
            self._socket.close(0)
        self._context.term()


@pytest.fixture
def stage(short_path: Path) -> Iterator[Stage]:
    stage = Stage(short_path)
    yield stage
    stage.end()


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(processes: list[psutil.Process], seconds: float) -> bool:
    """Return whether these end in time; somebody else's zombie has ended."""
    end = time.monotonic() + seconds
    while any(lives(process) for process in processes):
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


# --------------------------------------------------------------------------------- the pool


def test_supervisor_greets_with_its_workers_and_then_tells_the_pool(stage: Stage) -> None:
    stage.start(workers=2, listening=False)

    hello = stage.welcome()

    pool = stage.pool()
    assert (hello.role, hello.pid) == ("supervisor", stage.process.pid)
    assert len(hello.workers) == 2
    assert pool == Pool(hello.workers, 2)
    assert {p.cmdline()[4] for p in stage.children("worker")} == set(hello.workers)


def test_each_child_leads_a_session_of_its_own(stage: Stage) -> None:
    stage.start(workers=1)

    pids = [process.pid for process in stage.children("worker") + stage.children("broker")]

    assert [os.getsid(pid) for pid in pids] == pids


def test_killed_worker_is_reported_with_its_cell_and_replaced(stage: Stage) -> None:
    stage.start(workers=1, worker={"begin": 7, "finish": 6})
    name, process = stage.ready_worker()
    until(lambda: cell.read(stage.runtime / "cells" / name).finished == 6)

    process.kill()

    died = stage.hear(Died)
    assert (died.name, died.pid, died.code) == (name, process.pid, -9)
    assert (died.started, died.finished) == (7, 6)
    assert died.peak_memory > 1_000_000
    assert name not in stage.hear_pool(1).workers


def test_worker_that_leaves_of_its_own_will_is_replaced(stage: Stage) -> None:
    stage.start(workers=2)
    name, process = stage.ready_worker()

    process.terminate()

    assert stage.hear(Died).name == name
    assert len(stage.hear_pool(2).workers) == 2


def test_what_a_dead_worker_left_in_its_group_ends_with_it(stage: Stage) -> None:
    stage.start(workers=1, worker={"spawn": "group"})
    _, process = stage.ready_worker()
    grandchild = until(process.children, "a grandchild")

    process.kill()

    assert gone(grandchild, 2)


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="freezing is heard of through waitid")
def test_frozen_worker_is_replaced(stage: Stage) -> None:
    stage.start(workers=1)
    _, process = stage.ready_worker()

    process.send_signal(signal.SIGSTOP)

    assert gone([process], 5)
    assert stage.hear(Died).code == -signal.SIGKILL


def test_worker_that_stood_still_for_a_moment_lives_on(stage: Stage) -> None:
    stage.start(workers=1)
    name, process = stage.ready_worker()

    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGCONT)
    stage.say(Scale(2))

    assert name in stage.hear_pool(2).workers


def test_scaling_up_starts_workers_and_is_remembered(stage: Stage) -> None:
    stage.start(workers=1)

    stage.say(Scale(3))

    pool = stage.hear_pool(3)
    until(lambda: len(stage.children("worker")) == 3)
    assert pool.wanted == 3
    assert json.loads((stage.runtime / "settings.json").read_text())["workers"] == 3


def test_others_take_the_places_of_those_that_leave(stage: Stage) -> None:
    stage.start(workers=2)
    leaving, process = stage.ready_worker()

    stage.say(Scale(1, leaving=(leaving,)))
    stage.say(Scale(2))

    pool = stage.hear_pool(3)
    assert leaving in pool.workers
    assert pool.leaving == (leaving,)
    process.terminate()
    pool = stage.hear_pool(2)
    assert leaving not in pool.workers
    assert pool.leaving == ()


def test_extra_workers_are_for_a_while_only(stage: Stage) -> None:
    stage.start(workers=1)

    stage.say(Scale(1, extra=2))

    pool = stage.hear_pool(3)
    assert (pool.wanted, pool.extra) == (1, 2)
    assert json.loads((stage.runtime / "settings.json").read_text())["workers"] == 1
    stage.ready_worker()[1].kill()
    assert len(stage.hear_pool(3).workers) == 3
    stage.say(Scale(1))
    stage.ready_worker()[1].kill()
    assert len(stage.hear_pool(2).workers) == 2


def a_full_disk(runtime: Path) -> None:
    (runtime / "settings.json.new").mkdir()  # as good as one


@pytest.mark.parametrize(
    "spoil",
    [
        a_full_disk,
        lambda runtime: (runtime / "settings.json").write_text("rubbish"),
        lambda runtime: (runtime / "settings.json").write_text("[]"),
    ],
)
def test_scaling_works_though_it_cannot_be_written_down(
    stage: Stage, spoil: Callable[[Path], object]
) -> None:
    stage.start(workers=1)
    spoil(stage.runtime)

    stage.say(Scale(2))

    assert stage.hear_pool(2).wanted == 2
    assert stage.process.poll() is None


def test_number_of_workers_is_written_over_what_a_killed_one_has_left(short_path: Path) -> None:
    settings = short_path / "settings.json"
    settings.write_text('{"workers": 1}')
    settings.with_name("settings.json.new").write_text("x" * 1_000)
    crew = standins.StandIns(str(short_path), Children())

    crew.want(3)

    assert json.loads(settings.read_text()) == {"workers": 3}
    crew.children.close()


def test_scaling_down_leaves_it_to_the_broker_who_goes(stage: Stage) -> None:
    stage.start(workers=3)

    stage.say(Scale(2))

    assert until(stage.pool).wanted == 2
    stage.ready_worker()[1].kill()
    assert len(stage.hear_pool(2).workers) == 2


# ---------------------------------------------------------------------------------- killing


def test_kill_ends_a_worker_and_all_that_it_started(stage: Stage) -> None:
    stage.start(workers=1, worker={"spawn": "session"})
    name, process = stage.ready_worker()
    detached = until(process.children, "a grandchild")

    stage.say(Kill(name))

    assert gone([process, *detached], 2)
    assert stage.hear(Died).code == -signal.SIGKILL


def test_kill_with_a_milder_signal_becomes_sigkill_after_its_grace(stage: Stage) -> None:
    stage.start(workers=1, worker={"deaf": True})
    name, _ = stage.ready_worker()
    asked = time.monotonic()

    stage.say(Kill(name, signal="SIGTERM", grace=0.3))

    died = stage.hear(Died)
    assert died.code == -signal.SIGKILL
    assert time.monotonic() - asked >= 0.3


def test_kill_with_a_milder_signal_does_no_more_than_needed(stage: Stage) -> None:
    stage.start(workers=1)
    name, _ = stage.ready_worker()

    stage.say(Kill(name, signal="SIGTERM", grace=60.0))

    assert stage.hear(Died).code == -signal.SIGTERM


def test_kill_of_a_ticket_that_is_over_does_nothing(stage: Stage) -> None:
    stage.start(workers=1, worker={"begin": 7, "finish": 7})
    name, process = stage.ready_worker()
    until(lambda: cell.read(stage.runtime / "cells" / name).finished == 7)

    stage.say(Kill(name, ticket=7), Scale(2))

    assert name in stage.hear_pool(2).workers
    until(lambda: process.status() == psutil.STATUS_SLEEPING, "the worker's going on")


def test_kill_of_the_ticket_that_runs_ends_the_worker(stage: Stage) -> None:
    stage.start(workers=1, worker={"begin": 7, "finish": 6})
    name, _ = stage.ready_worker()
    until(lambda: cell.read(stage.runtime / "cells" / name).finished == 6)

    stage.say(Kill(name, ticket=7, signal="SIGTERM"))

    assert stage.hear(Died).code == -signal.SIGTERM


def test_kill_of_an_unknown_worker_is_nothing(stage: Stage) -> None:
    stage.start(workers=1)

    stage.say(Kill("nobody"), Scale(2))

    assert len(stage.hear_pool(2).workers) == 2


# ------------------------------------------------------------------------------- the broker


def test_killed_broker_is_replaced_and_greeted_and_told_of_earlier_deaths(stage: Stage) -> None:
    stage.start(workers=1)
    name, worker = stage.ready_worker()
    worker.kill()
    stage.hear(Died)
    (broker,) = until(lambda: stage.children("broker"))
    started = time.monotonic()

    broker.kill()

    hello = stage.welcome()
    assert time.monotonic() - started < 1
    assert hello.role == "supervisor"
    assert name not in hello.workers
    assert stage.hear(Died).name == name
    assert until(lambda: stage.children("broker"))[0].pid != broker.pid


def test_broker_that_cannot_start_ends_the_supervisor_with_its_last_words(stage: Stage) -> None:
    stage.start(listening=False, broker={"exit": 3})

    assert stage.process.wait(PATIENCE) == 78
    reason = (stage.runtime / "failed.txt").read_text()
    assert "exited with code 3" in reason
    assert "broker has no mind to work today" in reason


def test_broker_that_finds_another_one_at_work_ends_the_supervisor(stage: Stage) -> None:
    stage.start(listening=False, broker={"exit": 75})

    assert stage.process.wait(PATIENCE) == 78
    assert "broker has no mind to work today" in (stage.runtime / "failed.txt").read_text()
    assert stage.log().count("The broker exited") == 1


def test_broker_that_says_why_no_restart_will_help_is_not_restarted(stage: Stage) -> None:
    stage.start(listening=False, broker={"refuse": "The store is of a newer version."})

    assert stage.process.wait(PATIENCE) == 78
    assert (stage.runtime / "failed.txt").read_text() == "The store is of a newer version."
    assert stage.log().count("The broker exited") == 1


def test_workers_that_cannot_start_are_tried_again_ever_more_slowly(stage: Stage) -> None:
    stage.start(workers=1, listening=False, worker={"exit": 3})
    stage.welcome()

    trouble = until(lambda: (stage.runtime / "trouble.txt").exists() and stage.log(), "trouble")

    assert "worker has no mind to work today" in trouble
    assert "exited with code 3" in (stage.runtime / "trouble.txt").read_text()
    (stage.runtime / "orders.json").write_text("{}")
    stage.ready_worker()
    until(lambda: not (stage.runtime / "trouble.txt").exists(), "the end of the trouble")


def test_workers_that_the_system_kills_as_they_start_are_not_started_without_pause(
    stage: Stage,
) -> None:
    stage.start(workers=1, listening=False, worker={"killed": True})
    stage.welcome()
    until(lambda: (stage.runtime / "trouble.txt").exists(), "trouble")

    assert "SIGKILL" in (stage.runtime / "trouble.txt").read_text()
    before = stage.log().count("was killed by SIGKILL after")
    time.sleep(2.0)
    assert stage.log().count("was killed by SIGKILL after") - before <= 6


# ---------------------------------------------------------------------------------- the end


def test_stop_ends_all_within_three_seconds(stage: Stage) -> None:
    stage.start(workers=2)
    children = psutil.Process(stage.process.pid).children(recursive=True)

    stage.say(Stop())

    assert stage.process.wait(3) == 0
    assert gone(children, 0)
    stage.hear(Bye)


def test_stop_ends_deaf_workers_too_and_tells_the_broker(stage: Stage) -> None:
    stage.start(workers=2, worker={"deaf": True, "begin": 1, "spawn": "session"})
    for process in stage.children("worker"):
        until(process.children)
    stage.ready_worker()
    children = psutil.Process(stage.process.pid).children(recursive=True)

    stage.say(Stop())

    assert stage.process.wait(3) == 0
    assert gone(children, 0)
    assert {stage.hear(Died).code, stage.hear(Died).code} == {-signal.SIGKILL}


def test_stop_takes_the_connection_file_away_before_anybody_goes(stage: Stage) -> None:
    stage.start(workers=1, worker={"deaf": True, "begin": 1})
    _, worker = stage.ready_worker()

    stage.say(Stop())

    until(lambda: not (stage.runtime / "connection.json").exists(), "the end of the file")
    assert lives(worker)
    assert stage.process.wait(3) == 0


def test_sigterm_stops_like_stop(stage: Stage) -> None:
    stage.start(workers=1)
    children = psutil.Process(stage.process.pid).children()

    stage.process.terminate()

    assert stage.process.wait(3) == 0
    assert gone(children, 0)


def test_sigkill_of_the_supervisor_leaves_no_orphans(stage: Stage) -> None:
    stage.start(workers=2)
    stage.ready_worker()
    children = psutil.Process(stage.process.pid).children(recursive=True)
    assert len(children) == 4  # broker, workers, and who ends what these leave

    stage.process.kill()
    stage.process.wait()

    assert gone(children, 2)


def test_next_supervisor_ends_what_nobody_was_left_to_end(stage: Stage) -> None:
    stage.start(workers=1, worker={"spawn": "session"})
    _, worker = stage.ready_worker()
    (detached,) = until(worker.children, "a grandchild")
    undertaker = next(
        child
        for child in psutil.Process(stage.process.pid).children()
        if "undertaker" in child.cmdline()
    )
    undertaker.suspend()  # it is killed before it can do anything
    stage.process.kill()
    stage.process.wait()
    undertaker.kill()
    assert gone([worker, undertaker], 2)
    assert lives(detached)

    stage.start(workers=1)

    assert gone([detached], PATIENCE)
    assert lives(stage.ready_worker()[1])


def test_next_supervisor_reports_what_the_killed_one_left(stage: Stage) -> None:
    stage.start(workers=1, worker={"begin": 9, "finish": 8})
    name, worker = stage.ready_worker()
    until(lambda: cell.read(stage.runtime / "cells" / name).finished == 8)
    stage.process.kill()
    stage.process.wait()
    assert gone([worker], 2)

    stage.start(workers=1, listening=False)
    stage.welcome()

    died = stage.hear(Died)
    assert (died.name, died.code, died.started, died.finished) == (name, 0, 9, 8)


def test_second_supervisor_of_a_runtime_directory_does_not_start(stage: Stage) -> None:
    stage.start(workers=1)
    first, stage.process = stage.process, None

    stage.start(workers=1, listening=False)

    assert stage.process.wait(PATIENCE) == 75
    stage.process = first


def test_supervisor_goes_when_its_directory_is_removed(stage: Stage) -> None:
    stage.start(workers=1)

    (stage.runtime / "settings.json").unlink()

    assert stage.process.wait(PATIENCE) == 0


# ----------------------------------------------------------------------------------- logs


def test_logs_of_long_dead_workers_are_dropped(short_path: Path) -> None:
    crew = standins.StandIns(str(short_path), Children())
    for age in range(KEPT_LOGS + 5):
        log = Path(crew.log(f"worker-{age}"))
        log.touch()
        os.utime(log, (1e9 - age, 1e9 - age))
    Path(crew.log("broker")).touch()

    crew.drop_old_logs()

    kept = {log.stem for log in (short_path / "logs").iterdir()}
    assert kept == {"broker", *(f"worker-{age}" for age in range(KEPT_LOGS))}
    crew.children.close()


def test_log_that_has_grown_long_starts_afresh(short_path: Path) -> None:
    log = short_path / "broker.log"
    with log.open("wb") as file:
        file.truncate(LOG_LIMIT + 1)

    os.close(open_log(str(log)))

    assert log.stat().st_size == 0
    assert (short_path / "broker.log.old").stat().st_size == LOG_LIMIT + 1


# ------------------------------------------------------------------------------- back-off


def test_first_early_death_is_made_good_at_once_and_the_next_ever_later() -> None:
    backoff = Backoff()

    waits = [backoff.died(0.1, useful=False) for _ in range(9)]

    assert waits[:4] == [0.0, 0.05, 0.1, 0.2]
    assert waits == sorted(waits)
    assert backoff.died(0.1, useful=False) == 5.0


@pytest.mark.parametrize(("lived", "useful"), [(60.0, False), (0.1, True)])
def test_process_that_lived_or_was_of_use_starts_the_count_afresh(
    lived: float, useful: bool
) -> None:
    backoff = Backoff()
    backoff.died(0.1, useful=False)
    backoff.died(0.1, useful=False)

    assert backoff.died(lived, useful=useful) == 0.0
    assert backoff.died(0.1, useful=False) == 0.0
