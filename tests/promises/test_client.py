"""What clients are promised: no call hangs, nothing is dropped, interrupts and forks do no harm."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

import nbtasks
from nbtasks.client import client as clients
from nbtasks.client import link
from nbtasks.exceptions import OperationalError
from nbtasks.result import AsyncResult
from nbtasks.wire import segments
from nbtasks.wire.connection import SEGMENTS
from tests.living import SOON, entries, eventually, family, kill, run, said
from tests.promises.faults import changed, deaf, frozen, resident
from tests.promises.figures import best_of
from tests.tasks import add, enter, length, wait_for

MakeCluster = Callable[..., nbtasks.Cluster]
Measure = Callable[..., None]


@nbtasks.task
def fail():
    raise ValueError


@pytest.fixture
def ledger(short_path: Path) -> str:
    return str(short_path / "ledger")


@pytest.fixture
def gate(short_path: Path) -> Path:
    return short_path / "gate"


# ----------------------------------------------------------------------------- P13: no call hangs

#: Seconds that each call below is given.
GIVEN = 0.5


@contextlib.contextmanager
def frozen_broker(cluster: nbtasks.Cluster) -> Iterator[None]:
    with deaf(cluster):
        yield


@contextlib.contextmanager
def dead_broker(cluster: nbtasks.Cluster) -> Iterator[None]:
    """Kill the broker; whoever would restart it stands still."""
    with frozen(cluster.supervisor_pid):
        kill(cluster.broker_pid)
        eventually(lambda: not cluster.client.connected)
        yield


@contextlib.contextmanager
def removed(cluster: nbtasks.Cluster) -> Iterator[None]:
    """Kill all and remove their directory: there is nothing that could be started again."""
    kill(*family(cluster))
    shutil.rmtree(cluster.dir)
    eventually(lambda: not cluster.client.connected)
    yield


FAULTS = [frozen_broker, dead_broker, removed]


async def awaited(result: AsyncResult, seconds: float) -> Any:
    async def get():
        return await result

    return await asyncio.wait_for(get(), seconds)


def calls_with_timeouts(cluster: nbtasks.Cluster, open_one: AsyncResult, failed: AsyncResult):
    """Return calls that end within `GIVEN` seconds, by what they are."""
    several = nbtasks.ResultSet([open_one, AsyncResult("unheard of")])
    return {
        "get": lambda: open_one.get(timeout=GIVEN),
        "get, on_message": lambda: open_one.get(timeout=GIVEN, on_message=print),
        "get of an unknown id": lambda: AsyncResult("unknown").get(timeout=GIVEN),
        "await": lambda: asyncio.run(awaited(open_one, GIVEN)),
        "revoke and wait": lambda: AsyncResult("never sent").revoke(wait=True, timeout=GIVEN),
        "retry": lambda: failed.retry(timeout=GIVEN),
        "get of several": lambda: several.get(timeout=GIVEN),
        "ask": lambda: cluster.client.ask("status", timeout=GIVEN),
        "status": lambda: cluster.status(timeout=GIVEN),
        "worker_pids": lambda: cluster.worker_pids(timeout=GIVEN),
        "scale": lambda: cluster.scale(3, timeout=GIVEN),
        "flush": lambda: cluster.client.flush(timeout=GIVEN),
    }


def seconds_of(call: Callable[[], object]) -> float:
    began = time.monotonic()
    with contextlib.suppress(TimeoutError, OperationalError):
        call()
    return time.monotonic() - began


@pytest.mark.parametrize("fault", FAULTS)
def test_every_call_ends_by_its_timeout(cluster, gate, measure: Measure, fault):
    open_one, failed = wait_for.delay(str(gate)), fail.delay()
    failed.get(timeout=SOON, propagate=False)
    eventually(lambda: open_one.accepted)
    calls = calls_with_timeouts(cluster, open_one, failed)

    with fault(cluster), ThreadPoolExecutor(len(calls)) as pool:
        times = dict(zip(calls, pool.map(seconds_of, calls.values()), strict=True))
    gate.touch()

    slowest = max(times, key=lambda name: times[name])
    what = f"{fault.__name__}: beyond its time-out ({len(calls)} calls; {slowest})"
    measure("P13", what, times[slowest] - GIVEN, most=0.5, unit="s")


def seconds_until_error(call: Callable[[], object]) -> float:
    began = time.monotonic()
    with pytest.raises(OperationalError, match="broker"):
        call()
    return time.monotonic() - began


@pytest.mark.parametrize("fault", [dead_broker, removed])
def test_submission_without_a_broker_is_soon_a_clear_error(cluster, measure: Measure, fault):
    add.delay(1, 2).get(timeout=SOON)

    with fault(cluster):
        times = [
            seconds_until_error(call)
            for call in (
                lambda: add.delay(1, 2),
                lambda: add.apply_async((1, 2), confirm=True),
                lambda: add.apply_async((1, 2), retry=False),
            )
        ]

    measure("P13", f"{fault.__name__}: error of a submission", max(times), most=2.0, unit="s")


def test_all_that_needs_a_broker_says_when_there_is_none(cluster, gate, measure: Measure):
    open_one, done = wait_for.delay(str(gate)), add.delay(1, 2)
    done.get(timeout=SOON)
    eventually(lambda: open_one.accepted)
    unknown = map(AsyncResult, map(str, range(100)))

    with removed(cluster):
        began = time.monotonic()
        eventually(lambda: not lives_on(cluster.client))
        calls = [
            *(partial(getattr, next(unknown), name) for name in ASKING),
            *(getattr(next(unknown), name) for name in ("ready", "exists", "logs", "forget")),
            *(open_one.get, open_one.exists, open_one.revoke, open_one.cancel, done.forget),
            *(cluster.status, cluster.worker_pids, partial(cluster.scale, 3)),
            nbtasks.ResultSet([open_one, next(unknown)]).get,
        ]
        with ThreadPoolExecutor(len(calls)) as pool:
            list(pool.map(seconds_until_error, calls))
        took = time.monotonic() - began

    what = f"error of {len(calls)} kinds of calls when all is gone"
    measure("P13", what, took, most=2.0, unit="s")


#: What is known of a task only by asking.
ASKING = ("state", "result", "traceback", "children", "args", "name", "worker", "history",
          "progress", "accepted")  # fmt: skip


def lives_on(client: clients.Client) -> bool:
    """Whether a client has not yet found that there is no cluster."""
    return client._link.gone is None


def test_whoever_waits_for_a_broker_that_is_gone_hears_of_it(cluster, gate, measure: Measure):
    result = wait_for.delay(str(gate))
    eventually(lambda: result.accepted)
    waits = [
        result.get,
        lambda: AsyncResult("never sent").revoke(wait=True),
        lambda: asyncio.run(awaited(result, SOON)),
    ]

    with ThreadPoolExecutor(len(waits)) as pool:
        ends = [pool.submit(seconds_until_error, wait) for wait in waits]
        eventually(lambda: len(cluster.client._link.waiting) >= 2)
        began = time.monotonic()
        with removed(cluster):
            for end in ends:
                end.result(SOON)

    seconds = time.monotonic() - began
    measure("P13", "error for whoever waits when all is gone", seconds, most=2.0, unit="s")


def test_whoever_waits_hears_that_the_connection_was_closed_here(cluster, gate):
    result, executor = wait_for.delay(str(gate)), nbtasks.Executor()
    future = executor.submit(time.sleep, SOON)
    eventually(lambda: result.accepted)

    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(result.get)
        eventually(lambda: len(cluster.client._link.waiting) >= 1)
        cluster.close()

        for call in (waits.result, future.result, cluster.status):
            with pytest.raises(OperationalError, match="was closed here"):
                call()
    nbtasks.start(dir=cluster.dir).shutdown()


def test_callbacks_come_also_after_the_cluster_was_shut_down_and_started_again(cluster):
    result, heard = add.apply_async((1, 2), countdown=1.5), []
    result.then(lambda _: heard.append("then"))
    nbtasks.ResultSet([result]).then(lambda _: heard.append("set"))
    result.listen(lambda message: heard.append(message["status"]))
    eventually(lambda: result.accepted)

    cluster.shutdown()
    with nbtasks.start(dir=cluster.dir, workers=1):
        assert result.get(timeout=SOON) == 3
        eventually(lambda: sorted(heard) == ["SUCCESS", "set", "then"])


def test_connection_that_has_failed_says_so_and_the_next_start_makes_another(cluster, gate):
    result = wait_for.delay(str(gate))
    eventually(lambda: result.accepted)

    def fail():
        raise MemoryError("once")

    cluster.client._link._take_in = fail
    for call in (cluster.status, result.get, partial(add.delay, 1, 2), result.exists):
        with pytest.raises(OperationalError, match=r"MemoryError: once.*connect again"):
            call()
        eventually(lambda: cluster.client.failed)
    assert not cluster.running

    with nbtasks.start(dir=cluster.dir):
        assert add.delay(1, 2).get(timeout=SOON) == 3
        gate.touch()
        assert result.get(timeout=SOON)
        assert cluster.client not in clients.open_clients()


def test_connection_that_cannot_be_made_leaves_nothing_behind(cluster, monkeypatch):
    def none(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    def no(_):
        raise RuntimeError("can't start new thread")

    process = psutil.Process()
    descriptors, threads, open_ones = (
        process.num_fds(),
        process.num_threads(),
        clients.open_clients(),
    )

    for place, name, refuse in (
        (link.sockets_of_the_system, "socketpair", none),
        (zmq.Socket, "get_monitor_socket", none),
        (threading.Thread, "start", no),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, refuse)
            for _ in range(3):
                with pytest.raises((OSError, RuntimeError)):
                    clients.Client(cluster.dir)

    # Others may come to an end meanwhile, and ZeroMQ ends its own in its own time.
    eventually(lambda: process.num_fds() <= descriptors and process.num_threads() <= threads)
    assert clients.open_clients() == open_ones


def test_client_whose_thread_has_left_can_still_be_closed(cluster):
    """It may look at `_closing` before it is woken to do so."""
    client = clients.Client(cluster.dir)
    client._link.closing = True
    client._link._thread.join(SOON)

    client._link.wake()
    client._link.closing = False
    client.close(patience=0.0)

    assert client not in clients.open_clients()


def test_client_that_is_interrupted_while_it_closes_is_closed(cluster, gate, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    future = nbtasks.Executor().submit(wait_for, str(gate))
    with monkeypatch.context() as patch:
        patch.setattr(cluster.client._link._thread, "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cluster.close()

    assert cluster.client not in clients.open_clients()
    assert isinstance(future.exception(SOON), OperationalError)
    gate.touch()
    assert nbtasks.connect(cluster.dir).client is not cluster.client
    assert future.task.get(timeout=SOON) is not None


def test_client_that_is_interrupted_in_the_making_blocks_nobody(cluster):
    code = """
        import gc, pathlib, sys, threading
        from nbtasks.client import client as clients

        def interrupted(_):
            raise KeyboardInterrupt

        really, threading.Thread.start = threading.Thread.start, interrupted
        try:
            clients.Client(pathlib.Path(sys.argv[1]))
        except KeyboardInterrupt:
            pass
        threading.Thread.start = really
        gc.collect()  # which waits for ever for sockets that nobody has closed
        print(len(clients.open_clients()))
    """
    assert said(run(code, cluster.dir)) == "0\n"


LEAVING = """
    import os, shutil, signal, sys, time
    import psutil
    import nbtasks

    cluster = nbtasks.connect(sys.argv[1])

    @nbtasks.task
    def double(x):
        return 2 * x

    assert double.delay(1).get(timeout=30) == 2
    supervisor, broker = psutil.Process(cluster.supervisor_pid), psutil.Process(cluster.broker_pid)
    match sys.argv[2]:
        case "frozen_broker":
            supervisor.suspend()
            broker.suspend()
        case "dead_broker":
            supervisor.suspend()
            broker.kill()
        case "removed":
            workers = [psutil.Process(pid) for pid in cluster.worker_pids()]
            for process in (supervisor, broker, *workers):
                process.kill()
            shutil.rmtree(sys.argv[1])
    for number in range(10):
        try:
            double.delay(number)
        except nbtasks.exceptions.OperationalError:
            break
    print(time.time(), flush=True)
"""


@pytest.mark.parametrize("fault", FAULTS)
def test_process_ends_soon_though_there_is_no_broker(cluster, measure: Measure, fault):
    supervisor = psutil.Process(cluster.supervisor_pid)
    broker = psutil.Process(cluster.broker_pid)
    process = run(LEAVING, cluster.dir, fault.__name__)
    try:
        out, err = process.communicate(timeout=SOON)
        seconds = time.time() - float(out)
    finally:
        for each in (broker, supervisor):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.resume()

    if fault is frozen_broker:
        assert "10 tasks that were sent last" in err
    measure("P13", f"{fault.__name__}: end of the process", seconds, most=3.0, unit="s")


def test_process_waits_for_three_brokers_that_do_not_answer_hardly_longer_than_for_one(
    make_cluster, measure: Measure
):
    clusters = [make_cluster(workers=1) for _ in range(3)]
    code = """
        import os, signal, sys, time
        import nbtasks

        @nbtasks.task
        def double(x):
            return 2 * x

        for place in sys.argv[1:]:
            cluster = nbtasks.connect(place)
            assert double.delay(1).get(timeout=30) == 2
            os.kill(cluster.supervisor_pid, signal.SIGSTOP)
            os.kill(cluster.broker_pid, signal.SIGSTOP)
            double.delay(2)
        print(time.time(), flush=True)
    """
    process = run(code, *[cluster.dir for cluster in clusters])
    try:
        out, _ = process.communicate(timeout=SOON)
        seconds = time.time() - float(out)
    finally:
        for cluster in clusters:
            kill(cluster.supervisor_pid, cluster.broker_pid, by=signal.SIGCONT)

    measure("P13", "end of a process with three frozen brokers", seconds, most=3.0, unit="s")


def test_process_that_ends_waits_for_a_broker_that_is_merely_slow(cluster, ledger):
    code = """
        import os, sys
        import nbtasks

        cluster = nbtasks.connect(sys.argv[1])

        @nbtasks.task
        def enter(ledger, number):
            with open(ledger, "a") as file:
                file.write(f"{number}\\n")

        enter.delay(sys.argv[2], 0).get(timeout=30)
        os.kill(cluster.broker_pid, 9)
        for number in range(1, 3_000):
            enter.delay(sys.argv[2], number)
    """
    assert said(run(code, cluster.dir, ledger)) == ""

    eventually(lambda: len(entries(ledger)) == 3_000)
    assert set(entries(ledger).values()) == {1}


# ------------------------------------------------------------------------------ P14: back-pressure


def known(cluster: nbtasks.Cluster) -> int:
    """Return how many tasks the cluster has, finished ones included."""
    return int(sum(cluster.status()["states"].values()))


@pytest.mark.timeout(600)
def test_frozen_broker_makes_callers_wait_and_loses_nothing(
    cluster, full: bool, measure: Measure, monkeypatch
):
    number = 200_000 if full else 25_000
    monkeypatch.setattr(link, "RESEND", 0.1)
    if not full:
        monkeypatch.setattr(clients, "UNACCEPTED", 10_000)
    add.apply_async((0, 0), queue="nobody", confirm=True)
    results: list[AsyncResult] = []

    def submit():
        results.extend(add.apply_async((1, 2), queue="nobody") for _ in range(number))

    caller = threading.Thread(target=submit)
    before = resident()
    with deaf(cluster):
        caller.start()
        eventually(lambda: len(results) >= clients.UNACCEPTED)
        growth = []
        for _ in range(2):
            time.sleep(1.0)  # in which nothing must happen
            growth.append(resident() - before)
        held = number - len(results)
    caller.join(500)
    assert not caller.is_alive()
    assert cluster.client.flush(SOON)

    per_call = growth[0] * 1e6 / clients.UNACCEPTED
    assert held >= number - clients.UNACCEPTED - 1
    assert all(result.accepted for result in results)
    measure(
        "P14", f"of {number:,} calls to a frozen broker lost", number + 1 - known(cluster), most=0
    )
    measure("P14", "memory of a call that waits for acceptance", per_call, most=5_000, unit="B")
    measure(
        "P14", "memory that grows while it is frozen", growth[1] - growth[0], most=3.0, unit="MB"
    )


@pytest.mark.timeout(600)
def test_large_arguments_for_a_frozen_broker_take_bounded_memory(
    cluster, full: bool, measure: Measure
):
    number = 500 if full else 120
    assert length.delay(b"x").get(timeout=SOON) == 1
    results: list[AsyncResult] = []

    def submit():
        results.extend(length.delay(os.urandom(1_000_000)) for _ in range(number))

    caller = threading.Thread(target=submit)
    before = resident()
    with deaf(cluster):
        caller.start()
        eventually(lambda: cluster.client._link.batches.size > clients.UNACCEPTED_BYTES)
        time.sleep(0.5)  # in which nothing more must be sent
        growth, sent = resident() - before, len(results)
    caller.join(SOON)

    assert [result.get(timeout=SOON) for result in results] == [1_000_000] * number
    assert sent < number
    what = f"memory of {number} calls of 1 MB each to a frozen broker"
    measure("P14", what, growth, most=90, unit="MB")


def stubborn(submit: Callable[[], AsyncResult]) -> AsyncResult:
    """Submit until it is taken: a refusal is an exception, so it was not."""
    while True:
        with contextlib.suppress(OperationalError):
            return submit()


@pytest.mark.timeout(600)
def test_eight_threads_submit_while_the_broker_comes_and_goes(
    cluster, ledger, full: bool, rng: random.Random, measure: Measure
):
    each, threads = (3_000 if full else 300), 8
    results: dict[int, AsyncResult] = {}

    def submit(offset):
        for number in range(offset, threads * each, threads):
            confirm = number % 50 == 0
            call = partial(enter.apply_async, (ledger, number), confirm=confirm)
            results[number] = stubborn(call)

    callers = [threading.Thread(target=submit, args=(n,)) for n in range(threads)]
    for caller in callers:
        caller.start()
    for _ in range(20 if full else 4):
        before = len(results)
        eventually(lambda before=before: len(results) > before or not alive(callers))
        time.sleep(rng.random() / 10)
        broker = cluster.broker_pid
        with frozen(broker):
            time.sleep(rng.random() / 5)
        kill(broker)
        eventually(lambda broker=broker: cluster.broker_pid != broker)
    for caller in callers:
        caller.join(500)
    assert not alive(callers)

    wrong = sum(result.get(timeout=SOON) != number for number, result in results.items())
    runs = entries(ledger)
    measure("P14", "tasks lost while the broker came and went", threads * each - len(runs), most=0)
    measure("P14", "tasks doubled or with a wrong result then", wrong + doubled(runs), most=0)


def alive(callers: list[threading.Thread]) -> bool:
    return any(caller.is_alive() for caller in callers)


def doubled(runs: dict[int, int]) -> int:
    return sum(count - 1 for count in runs.values())


# --------------------------------------------------------------------- P7: lost acknowledgements

#: Dies with the acknowledgement in its hand, as often as the file has bytes.
DYING = """
    import os
    from pathlib import Path
    from nbtasks.broker.server import Server
    from nbtasks.core.messages import Accepted

    post, deaths = Server._post, Path({path!r})

    def post_or_die(self, mail, absent=()):
        said = [getattr(each, "message", None) for letters in mail.values() for each in letters]
        if any(type(message) is Accepted for message in said):
            if left := deaths.read_bytes():
                deaths.write_bytes(left[1:])
                os.kill(os.getpid(), 9)
        post(self, mail, absent)

    Server._post = post_or_die
"""


@pytest.mark.timeout(600)
def test_lost_acknowledgement_doubles_nothing(
    make_cluster: MakeCluster, ledger, short_path: Path, full: bool, measure: Measure
):
    deaths = short_path / "deaths"
    deaths.write_bytes(b"")
    number = 30 if full else 3
    with changed(short_path / "site", broker=DYING.format(path=str(deaths))):
        cluster = make_cluster()
        enter.delay(ledger, 0).get(timeout=SOON)

        deaths.write_bytes(bytes(number))
        results: list[AsyncResult] = []
        while deaths.read_bytes():
            place = len(results) + 1
            call = partial(enter.apply_async, (ledger, place), task_id=f"id-{place}")
            results.append(stubborn(call))
            eventually(lambda: results[-1].accepted, number * SOON)  # the first meets most deaths
        values = [result.get(timeout=SOON) for result in results]

    assert values == list(range(1, len(results) + 1))
    assert known(cluster) == len(results) + 1
    measure(
        "P7", f"tasks doubled by {number} lost acknowledgements", doubled(entries(ledger)), most=0
    )


# -------------------------------------------------------------------------------- P12: interrupts

STORM = """
    import contextlib, os, signal, sys, threading, time
    import nbtasks
    from nbtasks.exceptions import OperationalError

    cluster = nbtasks.connect(sys.argv[1])
    ledger, seconds, kills = sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    armed, hits = False, 0

    def interrupt(*_):
        if armed:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)

    @nbtasks.task
    def enter(ledger, number, data=b""):
        assert not data or data == bytes([number % 256]) * 300_000
        descriptor = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, f"{number}\\n".encode())
        os.close(descriptor)
        return number

    def arguments(number):
        large = (bytes([number % 256]) * 300_000,)  # which goes through a file
        return (ledger, number, *(large if number % 4 == 0 else ()))

    enter.delay(ledger, 0).get(timeout=30)
    storming = True

    def storm():
        global storming
        import random
        end = time.monotonic() + seconds
        blows = [end - seconds * (n + 1) / (kills + 1) for n in range(kills)]
        while time.monotonic() < end:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.001 + random.random() / 250)
            if blows and time.monotonic() > blows[-1]:
                blows.pop()
                with contextlib.suppress(ProcessLookupError):  # not yet back from the last one
                    os.kill(cluster.broker_pid, 9)
        storming = False

    threading.Thread(target=storm).start()
    taken, number = {}, 0
    while storming:
        number += 1
        try:
            armed = True
            result = enter.apply_async(arguments(number), confirm=number % 5 == 0)
            taken[number] = result
            if number % 3 == 0:
                result.get(timeout=30)
            armed = False
        except KeyboardInterrupt:
            armed = False
            hits += 1
        except OperationalError:
            armed = False

    assert enter.delay(ledger, number + 1).get(timeout=30) == number + 1
    wrong = sum(result.get(timeout=30) != number for number, result in taken.items())
    print(number + 1, hits, wrong, len(cluster.client._link.waiting))
    print(*taken)
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills", [0, 3], ids=["calm", "broker killed"])
def test_storm_of_interrupts_breaks_nothing(cluster, ledger, full: bool, measure: Measure, kills):
    storm = run(STORM, cluster.dir, ledger, 20 if full else 3, kills)
    numbers, taken = said(storm, within=90).splitlines()
    sent, hits, wrong, waiting = map(int, numbers.split())

    runs = entries(ledger)
    log = (cluster.dir / "logs" / "broker.log").read_text()
    assert hits > 20
    assert waiting == 0
    assert "refused" not in log
    lost = sum(runs[int(number)] == 0 for number in taken.split())
    measure("P12", f"{hits} interrupts in {sent} calls: lost or wrong", lost + wrong, most=0)
    measure("P12", f"{hits} interrupts in {sent} calls: doubled", doubled(runs), most=0)


def interrupt_when(condition: Callable[[], object], sent: list[float]) -> threading.Thread:
    """Interrupt this process once a condition holds; note when that was."""

    def interrupt():
        eventually(condition)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    return thread


def test_interrupt_while_a_very_large_argument_is_written(cluster, measure: Measure):
    data, folder = bytes(400_000_000), cluster.dir / SEGMENTS
    length.delay(b"x").get(timeout=SOON)
    sent: list[float] = []

    def interrupted() -> float:
        """Return the seconds until an interrupt was heard while the file was written."""
        thread = interrupt_when(lambda: segments.size(folder) > 50_000_000, sent)
        ended = False
        try:
            length.apply_async((data,), countdown=3_600)
            ended = True  # too soon for us
            time.sleep(SOON)
        except KeyboardInterrupt:
            took = time.monotonic() - sent[-1]
        thread.join()
        if not ended:
            left.append(segments.size(folder))
        cluster.client.ask("purge")
        return took if not ended else SOON

    left: list[float] = []
    took = best_of(5, 0.3, interrupted)

    measure("P12", "control back while 400 MB are written", took, most=0.3, unit="s")
    measure("P12", "bytes of an interrupted argument that are left", max(left), most=0, unit="B")


# -------------------------------------------------------------------------------- P13: forks

FORKING = """
    import multiprocessing, os, sys, threading, time, warnings
    import nbtasks
    from nbtasks.exceptions import ForkedError

    warnings.simplefilter("ignore")
    cluster = nbtasks.connect(sys.argv[1])

    @nbtasks.task
    def double(x):
        return 2 * x

    first = double.delay(1)
    first.get(timeout=30)
    on, counts = True, [0] * 4

    def submit(index):
        while on:
            assert double.delay(index).get(timeout=30) == 2 * index
            counts[index] += 1

    def use_all():
        told = 0
        other = nbtasks.AsyncResult("x")
        for use in (lambda: double.delay(2), other.get, first.revoke, cluster.status):
            began = time.monotonic()
            try:
                use()
            except ForkedError as error:
                told += "fork" in str(error) and time.monotonic() - began < 1.0
        return told

    def child():
        sys.exit(use_all())

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    codes = []
    for _ in range(int(sys.argv[2])):
        pid = os.fork()
        if pid == 0:
            with cluster:  # which a child that ends in here must not stop
                child()
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(30)
        codes.append(process.exitcode)
    before = list(counts)
    while any(count <= since for count, since in zip(counts, before)):
        time.sleep(0.01)
    on = False
    for thread in threads:
        thread.join()
    print(*codes)
"""


@pytest.mark.timeout(600)
def test_children_forked_while_threads_submit_are_told_so(cluster, full: bool, measure: Measure):
    forks = 50 if full else 5
    codes = said(run(FORKING, cluster.dir, forks), within=90).split()

    assert add.delay(1, 2).get(timeout=SOON) == 3
    assert len(codes) == 2 * forks
    measure(
        "P13", "forked children that hung or were not told", len(codes) - codes.count("4"), most=0
    )


def test_child_forked_while_a_thread_opens_the_cluster_can_open_it_itself(cluster):
    code = """
        import os, sys, threading, warnings
        import nbtasks, nbtasks.cluster, nbtasks.client.client

        warnings.simplefilter("ignore")

        @nbtasks.task
        def double(x):
            return 2 * x

        opened, forked = threading.Event(), threading.Event()

        def open_slowly():
            with nbtasks.cluster._opening, nbtasks.client.client._opening:
                opened.set()
                forked.wait()

        threading.Thread(target=open_slowly).start()
        opened.wait()
        child = os.fork()
        if child == 0:
            nbtasks.connect(sys.argv[1])
            os._exit(double.delay(3).get(timeout=30))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        forked.set()
        print(code)
    """
    assert said(run(code, cluster.dir)) == "6\n"


# ------------------------------------------------------------------------ out of descriptors


def test_client_without_descriptors_goes_on_as_soon_as_there_are_some(cluster):
    code = """
        import os, resource, sys
        import nbtasks

        @nbtasks.task
        def length(x):
            return len(x)

        large = bytes(1_000_000)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        with nbtasks.connect(sys.argv[1]):
            length.delay(b"").get(timeout=30)
            taken = []
            try:
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                pass
            print(length.delay(large).get(timeout=30))
            for each in taken:
                os.close(each)
            print(length.delay(large).get(timeout=30))
    """
    assert said(run(code, cluster.dir)).split() == ["1000000", "1000000"]
