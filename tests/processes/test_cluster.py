"""Clusters of real processes: start, attach, scale, stop, and what can go wrong on the way."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest

import nbtasks
from nbtasks import cluster as clusters
from nbtasks import config, exceptions, start_options
from nbtasks import place as places
from nbtasks.exceptions import (
    BrokerUnavailable,
    ClusterError,
    ImproperlyConfigured,
    OperationalError,
)
from tests.living import SOON, eventually, family, kill, lives, run, said

MakeCluster = Callable[..., nbtasks.Cluster]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default clusters go by the present folder; no two tests shall share one."""
    monkeypatch.chdir(tmp_path)


def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds:g} s"
        time.sleep(0.005)
    return value


# -------------------------------------------------------------------------------- start and stop


def test_cluster_has_a_supervisor_with_a_broker_and_the_wanted_workers(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(workers=2)

    pids = cluster.worker_pids()
    assert len(pids) == 2
    children = psutil.Process(cluster.supervisor_pid).children()
    others = {p.pid for p in children if "undertaker" not in p.cmdline()}
    assert others == {cluster.broker_pid, *pids}
    assert len(children) == len(others) + 1
    assert cluster.endpoint == f"ipc://{cluster.dir}/broker.sock"
    assert nbtasks.current_cluster() is cluster


def test_cluster_that_never_goes_by_itself(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(workers=1, idle_timeout=float("inf"))

    assert nbtasks.start(dir=cluster.dir, idle_timeout=float("inf")) is cluster
    assert len(cluster.worker_pids()) == 1


def test_whatever_lies_on_the_path_of_modules_a_cluster_starts(
    make_cluster: MakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path / "src", b"bytes", None])

    cluster = make_cluster(workers=1)

    assert cluster.settings.sys_path[-1] == str(tmp_path / "src")


def test_start_in_the_same_folder_attaches(make_cluster: MakeCluster) -> None:
    first = make_cluster(workers=1)

    assert nbtasks.start(dir=first.dir) is first
    assert nbtasks.start(workers=1, dir=first.dir) is first
    assert nbtasks.connect(first.dir) is first


def test_another_process_attaches_to_the_same_broker(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(workers=1)
    code = f"import nbtasks; print(nbtasks.start(dir={str(cluster.dir)!r}).broker_pid)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert int(done.stdout) == cluster.broker_pid


def test_cluster_outlives_the_process_that_started_it(short_path: Path) -> None:
    code = f"import nbtasks; print(nbtasks.start(workers=1, dir={str(short_path)!r}).broker_pid)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    with nbtasks.connect(short_path) as cluster:
        assert cluster.broker_pid == int(done.stdout)


def test_many_starts_at_once_make_one_cluster(short_path: Path) -> None:
    code = f"import nbtasks; print(nbtasks.start(workers=1, dir={str(short_path)!r}).broker_pid)"

    starters = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(3)
    ]

    pids = {int(starter.communicate()[0]) for starter in starters}
    with nbtasks.connect(short_path) as cluster:
        assert pids == {cluster.broker_pid}


def test_shutdown_ends_all_processes_and_keeps_the_store(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(workers=2)
    pids = family(cluster)
    began = time.monotonic()

    cluster.shutdown()

    assert time.monotonic() - began < 3
    assert not any(lives(pid) for pid in pids)
    assert not psutil.pid_exists(pids[0]), "the supervisor is left as a zombie"
    assert (cluster.dir / "store.sqlite").exists()
    assert not (cluster.dir / "connection.json").exists()
    assert nbtasks.current_cluster() is None
    assert "stopped" in repr(cluster)


def test_shutdown_with_purge_forgets_the_store(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(workers=1)

    cluster.shutdown(purge=True)

    assert not list(cluster.dir.glob("store*"))


@pytest.mark.parametrize(
    "stop", [lambda c: c.shutdown(purge=True), lambda c: clusters.stop(c.dir, purge=True)]
)
def test_who_waits_for_a_task_that_is_deleted_with_its_cluster_is_told(
    make_cluster: MakeCluster, stop: Callable[[nbtasks.Cluster], Any]
) -> None:
    cluster = make_cluster(workers=1)
    number = nbtasks.task(os.getpid, name="number")
    done = number.delay()
    pid = done.get(timeout=SOON)
    waiting = [number.apply_async(countdown=3600) for _ in range(3)]
    told: list[BaseException] = []

    def wait() -> None:
        try:
            waiting[2].get(timeout=SOON)
        except OperationalError as error:
            told.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    eventually(lambda: waiting[2]._record.waiters)

    stop(cluster)

    waiter.join()
    with pytest.raises(OperationalError) as caught:
        waiting[0].get(timeout=SOON)
    told.append(caught.value)
    make_cluster(dir=cluster.dir)
    with pytest.raises(OperationalError) as caught:
        waiting[1].get(timeout=SOON)
    told.append(caught.value)
    assert ["was deleted" in str(error) for error in told] == [True, True, True]
    assert done.get() == pid


def test_shutdown_right_after_start_is_as_orderly_as_later(make_cluster: MakeCluster) -> None:
    for _ in range(4):
        cluster = make_cluster(workers=0)

        cluster.shutdown()

        assert not (cluster.dir / "connection.json").exists()


def test_cluster_can_be_stopped_after_its_connection_was_closed(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(workers=0)
    pid = cluster.supervisor_pid
    cluster.close()

    cluster.shutdown()

    assert not lives(pid)


def test_stopped_cluster_starts_again_with_its_store(make_cluster: MakeCluster) -> None:
    first = make_cluster(workers=1)
    first.shutdown()

    second = make_cluster(workers=1, dir=first.dir)

    assert second is not first
    assert second.running


@pytest.mark.parametrize("again", [nbtasks.Cluster.shutdown, lambda _: nbtasks.shutdown()])
def test_interrupted_shutdown_can_be_done_again(
    make_cluster: MakeCluster,
    monkeypatch: pytest.MonkeyPatch,
    again: Callable[[nbtasks.Cluster], None],
) -> None:
    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    cluster = make_cluster(workers=1)
    pids = family(cluster)
    with monkeypatch.context() as patch:
        patch.setattr(clusters, "_stop_supervisor", interrupt)
        with pytest.raises(KeyboardInterrupt):
            cluster.shutdown()

    again(cluster)

    assert not any(lives(pid) for pid in pids)
    assert nbtasks.current_cluster() is None


def test_cluster_whose_shutdown_was_interrupted_at_once_goes_on(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> bool:
        raise KeyboardInterrupt

    cluster = make_cluster(workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(cluster.client, "_say_all", interrupt)
        with pytest.raises(KeyboardInterrupt):
            cluster.shutdown()

    assert cluster.running
    assert nbtasks.start(dir=cluster.dir) is cluster


def test_child_made_by_fork_cannot_stop_the_cluster_of_its_parent(short_path: Path) -> None:
    code = """
        import os, sys, warnings
        warnings.simplefilter("ignore")
        import nbtasks
        with nbtasks.start(workers=0, dir=sys.argv[1]) as cluster:
            if pid := os.fork():
                os.waitpid(pid, 0)
                print(cluster.status()["supervisor_pid"] == cluster.supervisor_pid)
            else:
                for stop in (cluster.shutdown, nbtasks.shutdown):
                    try:
                        stop()
                    except nbtasks.exceptions.ForkedError as error:
                        print(type(error).__name__, flush=True)
                os._exit(0)
    """

    assert said(run(code, short_path)).split() == ["ForkedError", "ForkedError", "True"]


def test_with_block_stops_the_cluster(short_path: Path) -> None:
    with nbtasks.start(workers=1, dir=short_path) as cluster:
        pid = cluster.supervisor_pid

    assert not lives(pid)


def test_shutdown_leaves_nothing_of_a_cluster_that_stands_still(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(workers=1)
    cluster.worker_pids()
    children = psutil.Process(cluster.supervisor_pid).children()
    pids = [child.pid for child in children] + [cluster.supervisor_pid]
    kill(*pids, by=signal.SIGSTOP)

    cluster.shutdown()

    eventually(lambda: not any(lives(pid) for pid in pids))


def test_broker_that_does_not_answer_in_time_says_what_to_do(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(workers=0)
    kill(cluster.broker_pid, by=signal.SIGSTOP)

    with pytest.raises(exceptions.TimeoutError, match=r"0\.2 s\. .*`nbtasks doctor`"):
        cluster.client.ask("status", timeout=0.2)
    with pytest.raises(exceptions.TimeoutError, match=r"0\.2 s\. .*`nbtasks doctor`"):
        cluster.client.learn(cluster.client.record("x"), 0.2)


@pytest.mark.parametrize("text", ["", "-1", "0", "nobody"])
def test_shutdown_finds_a_supervisor_whose_lock_was_spoilt(
    make_cluster: MakeCluster, text: str
) -> None:
    cluster = make_cluster(workers=0)
    pid = cluster.supervisor_pid
    (cluster.dir / "supervisor.lock").write_text(text)

    cluster.shutdown()

    assert not lives(pid)


def test_shutdown_without_a_cluster_does_nothing() -> None:
    nbtasks.shutdown()


def test_first_use_starts_the_cluster_of_the_folder() -> None:
    from nbtasks.client import client

    config.configure(worker_concurrency=1)
    try:
        status = client.current().ask("status")

        cluster = nbtasks.current_cluster()
        assert status["broker_pid"] == cluster.broker_pid
        assert cluster.dir.parts[-2] == "nbtasks"
    finally:
        nbtasks.shutdown()
        config.reset()


def test_default_cluster_can_be_named_by_its_folder() -> None:
    with nbtasks.start(workers=1) as cluster:
        store = cluster.settings.data
        assert Path(store) != cluster.dir

        assert places.place_of(cluster.dir) == places.Place(cluster.dir, Path(store))


def test_files_are_closed_to_others(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(workers=1)
    cluster.worker_pids()

    paths = [cluster.dir, *cluster.dir.rglob("*")]

    assert {path.name for path in paths if path.stat().st_mode & 0o077} == set()


def test_stray_modules_in_the_folder_do_no_harm(make_cluster: MakeCluster, tmp_path: Path) -> None:
    for name in ("queue", "select", "msgspec", "zmq", "sqlite3", "json", "platform"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")

    assert make_cluster(workers=1).client.ask("status")["broker_pid"]


# ------------------------------------------------------------- results of a cluster that is gone


@nbtasks.task
def add(x: int, y: int) -> int:
    return x + y


@pytest.fixture
def left_open(make_cluster: MakeCluster) -> nbtasks.AsyncResult:
    """A result that is open when its cluster is shut down; the cluster has a folder of its own."""
    cluster = make_cluster(workers=0)
    result = add.apply_async((1, 2), confirm=True)
    cluster.shutdown()
    return result


@pytest.mark.parametrize(
    "ask",
    [
        lambda result: result.get(timeout=SOON),
        lambda result: result.state,
        lambda result: result.exists(),
        lambda result: result.revoke(),
        lambda result: nbtasks.ResultSet([result]).revoke(),
    ],
)
def test_open_result_of_a_cluster_that_was_shut_down_starts_no_other_one(
    left_open: nbtasks.AsyncResult, short_path: Path, ask: Callable[[nbtasks.AsyncResult], object]
) -> None:
    with pytest.raises(BrokerUnavailable) as caught:
        ask(left_open)

    assert f"nbtasks.start(dir='{short_path / '0'}')" in str(caught.value)
    assert nbtasks.current_cluster() is None


def test_open_result_goes_on_when_its_cluster_is_started_again(
    left_open: nbtasks.AsyncResult, make_cluster: MakeCluster, short_path: Path
) -> None:
    make_cluster(workers=1, dir=short_path / "0")
    make_cluster(workers=0, dir=short_path / "another")

    assert left_open.get(timeout=SOON) == 3


def test_open_result_of_the_cluster_of_the_folder_starts_it_again() -> None:
    try:
        cluster = nbtasks.start(workers=0)
        result = add.apply_async((1, 2), confirm=True)
        cluster.shutdown()
        config.configure(worker_concurrency=1)

        assert result.get(timeout=SOON) == 3
    finally:
        nbtasks.shutdown()
        config.reset()


# ------------------------------------------------------------------------- interrupted starts


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The supervisors that this process starts."""
    processes = []

    def spawn(*given: Any) -> subprocess.Popen[bytes]:
        processes.append(original(*given))
        return processes[-1]

    original = clusters._spawn
    monkeypatch.setattr(clusters, "_spawn", spawn)
    return processes


@pytest.fixture
def interrupted_start(short_path: Path, spawned: list[Any]) -> Path:
    """A folder where a start was interrupted when the supervisor was on its way."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    place = short_path / "c"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "_await_broker", interrupt)
        with pytest.raises(KeyboardInterrupt):
            nbtasks.start(workers=1, dir=place)
    return place


def test_start_after_an_interrupted_one_takes_over_its_supervisor(
    interrupted_start: Path, spawned: list[subprocess.Popen[bytes]]
) -> None:
    with nbtasks.start(workers=1, dir=interrupted_start) as cluster:
        assert [process.pid for process in spawned] == [cluster.supervisor_pid]

    assert not places.is_running(places.place_of(interrupted_start))
    assert spawned[0].poll() is not None


def test_supervisor_of_an_interrupted_start_can_be_stopped_at_once(
    interrupted_start: Path, spawned: list[subprocess.Popen[bytes]]
) -> None:
    assert clusters.stop(interrupted_start)

    assert spawned[0].wait(0) == 0


# --------------------------------------------------------------------------------- deaths


def test_killed_broker_comes_back(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(workers=1)
    former = cluster.broker_pid

    os.kill(former, signal.SIGKILL)

    until(lambda: cluster.broker_pid != former)
    assert cluster.status()["broker_pid"] == cluster.broker_pid


def test_socket_that_somebody_has_removed_is_made_again(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(workers=1)
    (former,) = cluster.worker_pids()
    (cluster.dir / "broker.sock").unlink()

    kill(former)

    eventually(lambda: [w["pid"] for w in cluster.status()["workers"]] not in ([], [former]))
    assert stat.S_IMODE((cluster.dir / "broker.sock").stat().st_mode) == 0o600


def test_cluster_whose_folder_was_removed_goes_and_leaves_the_next_one_there_alone(
    make_cluster: MakeCluster, short_path: Path
) -> None:
    cluster = make_cluster(dir=short_path / "c", workers=1)
    eventually(lambda: cluster.status()["wanted"])  # the supervisor has done all for its start
    former = family(cluster)
    shutil.rmtree(short_path / "c")

    cluster = make_cluster(dir=short_path / "c", workers=1)
    eventually(lambda: not any(map(lives, former)))

    assert all(map(lives, family(cluster)))
    code = f"import nbtasks; print(nbtasks.connect({str(cluster.dir)!r}).broker_pid)"
    assert int(said(run(code))) == cluster.broker_pid


def test_lock_that_somebody_has_removed_is_taken_again(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(workers=1)
    supervisor = cluster.supervisor_pid

    (cluster.dir / "supervisor.lock").unlink()

    eventually(lambda: cluster.running)
    assert (cluster.dir / "supervisor.lock").read_text() == str(supervisor)


def test_killed_worker_is_replaced(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(workers=2)
    victim, survivor = cluster.worker_pids()

    os.kill(victim, signal.SIGKILL)

    pids = until(lambda: (p := cluster.worker_pids()) and victim not in p and len(p) == 2 and p)
    assert survivor in pids


def test_killed_supervisor_takes_all_along_and_is_started_again(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(workers=1)
    former = family(cluster)

    os.kill(former[0], signal.SIGKILL)

    until(lambda: not any(lives(pid) for pid in former), seconds=2)
    until(lambda: cluster.supervisor_pid not in former)
    assert cluster.status()["supervisor_pid"] not in former
    assert len(cluster.worker_pids()) == 1


def test_cluster_stopped_by_another_process_is_not_started_again(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(workers=1)
    code = f"from nbtasks import cluster; cluster.stop({str(cluster.dir)!r})"

    subprocess.run([sys.executable, "-c", code], check=True)

    with pytest.raises(BrokerUnavailable):
        cluster.client.ask("status", timeout=5)
    assert not cluster.running


def test_cluster_stopped_by_force_is_not_started_again_by_other_clients(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(workers=0)
    code = f"from nbtasks import cluster; cluster.stop({str(cluster.dir)!r})"
    kill(cluster.supervisor_pid, by=signal.SIGSTOP)

    subprocess.run([sys.executable, "-c", code], check=True)

    with pytest.raises(BrokerUnavailable) as caught:
        cluster.client.ask("status", timeout=SOON)
    assert "was shut down" in str(caught.value.__cause__)
    assert not places.is_running(places.place_of(cluster.dir))


def test_cluster_that_is_stopped_while_a_client_is_about_to_revive_it_stays_so(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(workers=0)
    kill(cluster.supervisor_pid, cluster.broker_pid)

    with clusters._hold(cluster.dir / "start.lock"):
        eventually(lambda: cluster.client._link._reviving)
        clusters._stop_supervisor(cluster.dir)

    with pytest.raises(BrokerUnavailable):
        cluster.client.ask("status", timeout=SOON)


def test_idle_cluster_goes(short_path: Path) -> None:
    cluster = nbtasks.start(workers=1, dir=short_path, idle_timeout=0.1)
    pids = family(cluster)

    cluster.close()

    until(lambda: not any(lives(pid) for pid in pids), seconds=15)


def test_start_while_the_cluster_is_stopping_waits_and_starts_it_anew(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(workers=1)
    former = family(cluster)
    cluster.close()
    kill(cluster.supervisor_pid, by=signal.SIGTERM)
    eventually(lambda: not (cluster.dir / "connection.json").exists())

    new = make_cluster(workers=2, dir=cluster.dir)

    assert set(family(new)).isdisjoint(former)


def test_start_of_a_cluster_that_stops_in_between_starts_it_anew(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = make_cluster(workers=1)
    former = family(cluster)
    cluster.close()

    def ensure(*given: Any) -> None:
        original(*given)
        monkeypatch.setattr(clusters, "_ensure", original)
        kill(cluster.supervisor_pid, by=signal.SIGTERM)
        eventually(lambda: not (cluster.dir / "connection.json").exists())

    original = clusters._ensure
    monkeypatch.setattr(clusters, "_ensure", ensure)

    new = make_cluster(workers=1, dir=cluster.dir)

    assert set(family(new)).isdisjoint(former)


def test_cluster_that_stops_is_no_more_attached_to(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(workers=0)
    kill(cluster.broker_pid, by=signal.SIGSTOP)  # so that the stop takes a while
    kill(cluster.supervisor_pid, by=signal.SIGTERM)

    eventually(lambda: not cluster.running)

    with pytest.raises(BrokerUnavailable):
        nbtasks.connect(cluster.dir)


# --------------------------------------------------------------------------------- scale


def test_scale_up_and_down(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(workers=1)

    cluster.scale(3)
    until(lambda: len(cluster.worker_pids()) == 3)

    cluster.scale(1)
    until(lambda: len(cluster.worker_pids()) == 1)
    assert cluster.settings.workers == 1


def test_workers_that_are_still_starting_go_too_when_none_is_wanted(
    make_cluster: MakeCluster,
) -> None:
    def starting() -> int:
        found = 0
        for child in psutil.Process(cluster.supervisor_pid).children():
            with contextlib.suppress(psutil.Error):
                found += "nbtasks.worker" in child.cmdline()
        return found

    cluster = make_cluster(workers=1)
    cluster.scale(4)
    until(lambda: starting() == 4)

    cluster.scale(0)

    until(lambda: starting() == 0)


def test_cluster_whose_settings_were_spoilt_goes_on_and_says_so(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(workers=1)
    cluster.worker_pids()
    (cluster.dir / "settings.json").write_text("rubbish")

    for ask in (cluster.worker_pids, lambda: cluster.scale(0), lambda: cluster.settings):
        with pytest.raises(ClusterError, match=r"settings\.json cannot be read.*nbtasks stop"):
            ask()

    assert str(cluster.dir) in repr(cluster)
    until(lambda: not cluster.status()["workers"])


def test_who_connects_to_a_cluster_whose_settings_were_spoilt_is_told_so(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(workers=1)
    (cluster.dir / "settings.json").write_text("rubbish")
    cluster.close()

    with pytest.raises(ClusterError, match=r"settings\.json cannot be read.*nbtasks stop"):
        nbtasks.connect(cluster.dir)


def test_whole_numbers_of_numpy_are_numbers_of_workers() -> None:
    count = start_options.count("workers", numpy.int64(3))

    assert type(count) is int
    assert count == 3


@pytest.mark.parametrize("workers", [-1, 1.5, True, "two"])
def test_scale_to_nonsense_is_refused(workers: Any) -> None:
    scale = nbtasks.Cluster.scale
    with pytest.raises(ImproperlyConfigured, match=r"^scale\(workers=.*whole number"):
        scale(object.__new__(nbtasks.Cluster), workers)


# --------------------------------------------------------------------------------- bad input


def test_second_start_with_other_options_names_both_values_and_the_remedies(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(workers=1)

    with pytest.raises(ImproperlyConfigured) as caught:
        nbtasks.start(workers=4, dir=cluster.dir)
    text = str(caught.value)
    assert "workers=1" in text
    assert "workers=4" in text
    assert "cluster.scale(4)" in text
    assert "shutdown()" in text
    with pytest.raises(ImproperlyConfigured, match=r"durability='full'.*durability='none'"):
        nbtasks.start(durability="none", dir=cluster.dir)
    assert cluster.running


@pytest.mark.parametrize(
    "options",
    [
        {"workers": -1},
        {"workers": 1.5},
        {"durability": "fsync"},
        {"transport": "http"},
        {"memory_limit": "lots"},
        {"max_tasks_per_worker": 0},
        {"workers": 1, "queues": {"gpu": 2}},
        {"queues": 3},
        {"queues": ["a", ""]},
        {"queues": ""},
        {"queues": {"": 1}},
        {"idle_timeout": -1},
        {"idle_timeout": float("nan")},
        {"idle_timeout": "abc"},
        {"idle_timeout": True},
    ],
)
def test_wrong_option_is_refused_before_anything_starts(
    short_path: Path, options: dict[str, Any]
) -> None:
    place = short_path / "c"

    with pytest.raises(ImproperlyConfigured) as caught:
        nbtasks.start(dir=place, **options)

    assert next(reversed(options)) in str(caught.value) or "workers" in str(caught.value)
    assert not place.exists()


def test_empty_folder_name_does_not_mean_the_present_folder() -> None:
    with pytest.raises(ImproperlyConfigured, match="names no folder"):
        nbtasks.start(dir="")


def test_folder_that_others_use_is_neither_closed_nor_taken(short_path: Path) -> None:
    place = short_path / "project"
    place.mkdir(mode=0o755)
    place.chmod(0o755)
    (place / "report.ipynb").touch()

    with pytest.raises(ClusterError, match=r"report\.ipynb.*/project/nbtasks'") as caught:
        nbtasks.start(dir=place)

    assert f"chmod 700 {place}" in str(caught.value)
    assert place.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in place.iterdir()] == ["report.ipynb"]


def test_folder_with_nothing_but_our_files_is_closed_again(
    make_cluster: MakeCluster, short_path: Path
) -> None:
    make_cluster(workers=0, dir=short_path).shutdown()
    short_path.chmod(0o755)

    make_cluster(workers=0, dir=short_path)

    assert short_path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("dir", ["a\0b", 3, b"/tmp/\xff"])
def test_what_is_no_path_is_refused(dir: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"start\(dir=.*path"):
        nbtasks.start(dir=dir)


def test_path_too_long_for_a_socket_is_named_with_its_length_and_the_limit(
    tmp_path: Path,
) -> None:
    place = tmp_path / ("long" * 30)

    with pytest.raises(ClusterError) as caught:
        nbtasks.start(dir=place)

    text = str(caught.value)
    assert str(place) in text
    assert str(len(f"{place}/broker.sock")) in text
    assert ("103" if sys.platform == "darwin" else "107") in text
    assert not place.exists()


def test_long_home_directory_moves_the_default_cluster_to_a_short_path(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(short_path / ("long" * 30)))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path))

    place = places.place_of(None)

    assert place.runtime.parent == short_path / "nbtasks"


def test_symbolic_link_is_refused(short_path: Path) -> None:
    (short_path / "real").mkdir()
    (short_path / "link").symlink_to(short_path / "real")

    with pytest.raises(ClusterError, match="symbolic link"):
        nbtasks.start(dir=short_path / "link")


def test_file_in_the_place_of_the_folder_is_refused(short_path: Path) -> None:
    (short_path / "file").touch()

    with pytest.raises(ClusterError, match="not a directory"):
        nbtasks.start(dir=short_path / "file")


def test_link_that_leads_nowhere_is_refused(short_path: Path) -> None:
    (short_path / "link").symlink_to(short_path / "nowhere")

    with pytest.raises(ClusterError, match="symbolic link"):
        nbtasks.start(dir=short_path / "link")


def test_folder_may_be_given_in_bytes() -> None:
    assert places.place_of(b"/a/../b") == places.place_of("/b")


def test_folder_that_was_removed_is_named_where_it_matters(
    make_cluster: MakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()

    assert make_cluster(workers=1).status()["broker_pid"]
    for dir in (None, "relative"):
        with pytest.raises(ClusterError, match=r"removed.*os\.chdir"):
            nbtasks.start(dir=dir)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_place_where_nobody_may_write_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"cannot use the directory /proc/nbtasks.*start\(dir"):
        nbtasks.start(dir="/proc/nbtasks")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_folder_without_write_permission_is_refused(short_path: Path) -> None:
    place = short_path / "closed"
    place.mkdir(0o500)

    with pytest.raises(ClusterError, match="may not write"):
        nbtasks.start(dir=place)


@pytest.mark.parametrize("name", ["logs", "cells", "segments", "start.lock", "supervisor.lock"])
def test_folder_or_lock_of_ours_that_cannot_be_written_is_named(
    short_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    closed = short_path / name
    if name.endswith(".lock"):
        closed.touch(0o400)
    else:
        closed.mkdir(0o500)
    # What the system would say if we were not root.
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != closed)

    with pytest.raises(ClusterError, match=rf"may not write into {closed}\..*chmod"):
        nbtasks.start(dir=short_path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_folder_of_somebody_else_is_refused(short_path: Path) -> None:
    place = short_path / "theirs"
    place.mkdir()
    os.chown(place, 65534, 65534)

    with pytest.raises(ClusterError, match="belongs to user 65534"):
        nbtasks.start(dir=place)


def test_store_of_a_newer_version_is_refused_and_kept(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(workers=1)
    cluster.shutdown()
    store = cluster.dir / "store.sqlite"
    with contextlib.closing(sqlite3.connect(store)) as database:
        database.execute("PRAGMA user_version = 1000")
    before = store.read_bytes()

    with pytest.raises(ClusterError, match=r"(?s)version 1000.*start\(dir"):
        nbtasks.start(workers=1, dir=cluster.dir)

    assert store.read_bytes() == before


def test_file_that_is_no_store_is_refused_and_kept(short_path: Path) -> None:
    (short_path / "store.sqlite").write_bytes(b"my diary" * 1000)

    with pytest.raises(ClusterError, match="store"):
        nbtasks.start(workers=1, dir=short_path)

    assert (short_path / "store.sqlite").read_bytes().startswith(b"my diary")


def test_connect_without_a_cluster_says_how_to_start_one(short_path: Path) -> None:
    with pytest.raises(BrokerUnavailable, match="nbtasks start"):
        nbtasks.connect(short_path)


def test_supervisor_that_cannot_even_start_is_quoted(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")

    with pytest.raises(ClusterError, match=r"(?s)supervisor\.log.*nbtasks doctor"):
        nbtasks.start(workers=1, dir=short_path)


# --------------------------------------------------------------------------------- processes


def test_process_lists_show_no_more_than_names_and_the_folder(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(workers=1)

    for pid in family(cluster):
        words = psutil.Process(pid).cmdline()
        assert words[1] == "-P"
        assert words[3].startswith("nbtasks.")
        assert words[4] == str(cluster.dir)
        assert len(words) <= 6


def test_workers_run_the_same_interpreter_in_the_same_folder(
    make_cluster: MakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_OWN_VARIABLE", "42")
    cluster = make_cluster(workers=1)

    worker = psutil.Process(cluster.worker_pids()[0])

    assert worker.cmdline()[0] == sys.executable
    assert Path(worker.cwd()) == tmp_path.resolve()
    assert worker.environ()["MY_OWN_VARIABLE"] == "42"
    assert worker.environ()["NBTASKS_RUNTIME"] == str(cluster.dir)


@pytest.mark.parametrize("mask", [0o002, 0o027])
def test_files_of_tasks_are_open_to_whom_the_notebook_s_are(
    make_cluster: MakeCluster, tmp_path: Path, mask: int
) -> None:
    @nbtasks.task
    def write(path: str) -> None:
        open(path, "w").close()

    before = os.umask(mask)
    try:
        make_cluster(workers=1)
        write.delay(str(tmp_path / "out")).get(timeout=20)
        mask_after = os.umask(mask)
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o666 & ~mask
    assert mask_after == mask


def test_workers_of_named_queues(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(workers=None, queues={"gpu": 1, "io": 2})
    cluster.worker_pids()

    queues = sorted(tuple(worker["queues"]) for worker in cluster.status()["workers"])

    assert queues == [("gpu",), ("io",), ("io",)]


def test_threads_that_start_together_get_one_cluster(make_cluster: MakeCluster) -> None:
    first = make_cluster(workers=1)
    found: list[nbtasks.Cluster] = []
    threads = [
        threading.Thread(target=lambda: found.append(nbtasks.start(dir=first.dir)))
        for _ in range(4)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [first] * 4
