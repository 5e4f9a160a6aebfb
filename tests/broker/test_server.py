"""A real broker process and real sockets; no workers, no supervisor."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from nbtasks.broker.server import PAGE, PARCEL, Server
from nbtasks.client.client import Client
from nbtasks.client.outcome import load
from nbtasks.core.messages import (
    Accepted,
    Ask,
    Call,
    Define,
    Died,
    Done,
    Event,
    Forget,
    Hello,
    Kill,
    Lacking,
    Now,
    Output,
    Policy,
    Redo,
    Refused,
    Replayed,
    Revoke,
    Role,
    Run,
    Started,
    Submit,
    Welcome,
    take,
)
from nbtasks.core.tasks import Task
from nbtasks.core.turn import Send
from nbtasks.core.workers import Worker
from nbtasks.exceptions import (
    BrokerUnavailable,
    EncodeError,
    ForkedError,
    OperationalError,
    StoreCorrupt,
    StoreError,
    TaskRevokedError,
)
from nbtasks.wire import frames, segments, sockets
from nbtasks.wire.connection import (
    CONNECTION_FILE,
    EXIT_BUSY,
    FAILED_FILE,
    STORE_FILE,
    Settings,
    now,
    prepare_directory,
    read_connection,
)
from nbtasks.wire.frames import pack, pack_to_broker, unpack_from_broker
from nbtasks.wire.segments import LARGE
from tests.promises.peers import DEFINE, DIGEST, Broker, a_call


@pytest.fixture
def runtime() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nbt-") as place:
        yield prepare_directory(Path(place) / "c")


@pytest.fixture
def broker(runtime: Path) -> Iterator[Broker]:
    started = Broker(runtime)
    yield started
    started.close()


@pytest.fixture
def client(broker: Broker) -> Iterator[Client]:
    connected = Client(broker.runtime)
    yield connected
    connected.close()


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)


def test_confirmed_call_is_in_the_store(client: Client) -> None:
    record = client.submit(a_call(), (), DEFINE, confirm=True)

    assert record.accepted
    assert client.ask("show", id=record.id)["phase"] == "queued"


def test_quiet_moments_bring_the_journal_into_its_tables(client: Client, runtime: Path) -> None:
    client.submit(a_call(), (), DEFINE, confirm=True)

    until(lambda: tables_of(runtime) == (0, 1))


def tables_of(runtime: Path) -> tuple[int, int]:
    """Return how many rows there are in the journal and in the table of tasks."""
    with tempfile.TemporaryDirectory() as place:
        for file in runtime.glob(f"{STORE_FILE}*"):
            shutil.copy(file, place)
        with contextlib.closing(sqlite3.connect(Path(place) / STORE_FILE)) as copy:
            [counts] = copy.execute(
                "SELECT (SELECT count(*) FROM journal), (SELECT count(*) FROM tasks)"
            )
    return counts


UNHURRIED = """
from nbtasks.broker import disk
disk.MOMENT = 3600.0
"""


def test_large_piece_is_not_put_off_when_somebody_waits_for_acceptance(runtime: Path) -> None:
    broker = Broker(runtime, before=UNHURRIED)
    client = Client(runtime)
    piece = client.segments.keep(memoryview(bytes(LARGE)))
    record = client.submit(a_call(frames=1), [piece], DEFINE)
    until(lambda: client.ask("list") != [])
    assert not record.accepted

    assert client.flush(20.0)

    assert record.accepted
    client.close()
    broker.close()


def test_same_id_again_is_the_same_task(client: Client) -> None:
    call = a_call()

    client.submit(call, (), DEFINE, confirm=True)
    client.submit(call, (), DEFINE, confirm=True, check=True)

    assert client.ask("status")["phases"] == {"queued": 1}


def test_same_id_is_the_same_task_though_the_broker_lacked_the_function(client: Client) -> None:
    first = client.submit(a_call(id="x"), (), DEFINE, confirm=True)
    client.tell(Revoke((first.id,)))
    assert client.wait([first], 10)
    other = Define(b"e" * 16, "f", Policy(), b"another function")
    client._link._defined.add(other.digest)  # as when a broker died before it had saved it

    again = Call(first.id, other.digest, "f", b"x")
    client.submit(again, (), (other, ()), confirm=True, check=True)

    assert client.ask("status")["phases"] == {}


def test_calls_survive_a_killed_broker_and_clients_come_back(
    broker: Broker, client: Client
) -> None:
    first = client.submit(a_call(), (), DEFINE, confirm=True)
    before = client.instance
    broker.kill()
    broker.start()

    until(lambda: client.instance != before)
    second = client.submit(a_call(), (), DEFINE, confirm=True)

    assert client.ask("status")["phases"] == {"queued": 2}
    client.tell(Revoke((first.id, second.id)))
    assert client.wait([first, second], 10)
    assert first.final is not None
    assert isinstance(load(first, first.final), TaskRevokedError)


def test_what_was_sent_into_a_dying_broker_is_sent_again(broker: Broker, client: Client) -> None:
    records = [client.submit(a_call(), (), DEFINE) for _ in range(5_000)]
    broker.kill()
    broker.start()

    assert client.flush(20)
    assert all(record.accepted for record in records)
    assert client.ask("status")["phases"] == {"queued": 5_000}


def test_large_payloads_come_back_whole(client: Client) -> None:
    large = os.urandom(3_000_000)
    record = client.submit(a_call(b"", frames=1), (large,), DEFINE, confirm=True)

    shown = client.ask("show", id=record.id)

    assert shown["buffers"] == [large]


def test_no_broker_for_good_is_an_error_within_two_seconds(broker: Broker, client: Client) -> None:
    record = client.submit(a_call(), (), DEFINE, confirm=True)
    broker.kill()
    (broker.runtime / "connection.json").unlink()  # as its supervisor does in the end

    began = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        client.wait([record], 60)
    assert time.monotonic() - began < 10  # P13 says 2 s; machines in CI may be slow
    with pytest.raises(BrokerUnavailable):
        client.submit(a_call(), (), DEFINE)


def test_call_that_is_not_sent_leaves_no_file(broker: Broker, client: Client) -> None:
    broker.kill()
    until(lambda: not client._link.up)
    frame = client.segments.keep(memoryview(bytes(LARGE)))
    assert segments.name_in(frame)

    with pytest.raises(OperationalError):
        client.submit(a_call(frames=1), (frame,), DEFINE, retry=False)

    assert not segments.there(client.segments._folder)


def test_using_a_client_after_a_fork_is_a_clear_error(client: Client) -> None:
    child = os.fork()
    if child == 0:
        try:
            client.submit(a_call(), (), DEFINE)
        except ForkedError:
            os._exit(7)
        finally:
            os._exit(1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_eight_threads_submit_at_once(client: Client) -> None:
    import threading

    def submit() -> None:
        for _ in range(250):
            client.submit(a_call(), (), DEFINE)

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert client.flush(20)
    assert client.ask("status")["phases"] == {"queued": 2_000}


def test_call_that_cannot_be_encoded_harms_no_other(client: Client) -> None:
    good = [client.submit(a_call(), (), DEFINE) for _ in range(3)]
    bad = client.submit(a_call(queue="\ud800"), (), DEFINE)
    more = [client.submit(a_call(), (), DEFINE) for _ in range(3)]

    assert client.wait([bad], 20)
    assert isinstance(bad.error, EncodeError)
    assert client.flush(20)
    assert all(record.accepted for record in good + more)


def test_call_that_the_broker_refuses_leaves_the_client_alive(client: Client) -> None:
    bad = client.submit(a_call(priority=99), (), DEFINE)

    assert client.wait([bad], 20)
    assert isinstance(bad.error, OperationalError)
    assert client.submit(a_call(), (), DEFINE, confirm=True).accepted


class Peer:
    """A bare socket, for what a client of ours would never say."""

    def __init__(self, runtime: Path) -> None:
        self.context = zmq.Context()
        self.socket = sockets.dealer(self.context, runtime, sockets.identity("x"))

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close(0)
        self.context.term()

    def say(self, *frames: bytes) -> list[Any]:
        self.socket.send_multipart(frames)
        return self.hear()

    def hear(self) -> list[Any]:
        assert self.socket.poll(10_000)
        return unpack_from_broker(self.socket.recv_multipart())[1]


def test_stranger_is_told_to_say_hello(broker: Broker) -> None:
    with Peer(broker.runtime) as peer:
        assert peer.say(*pack(b"", [Ask(1, "status")])) == [Refused("hello")]


def test_garbage_is_refused_and_the_broker_lives(broker: Broker, client: Client) -> None:
    with Peer(broker.runtime) as peer:
        for frames in ([b"garbage", b"more"], [b"nbt\x01", b"\xff\xff"], [b"x"]):
            (answer,) = peer.say(*frames)
            assert isinstance(answer, Refused)

    assert client.ask("status")["phases"] == {}


def test_unlike_python_is_refused_with_both_versions(broker: Broker) -> None:
    with Peer(broker.runtime) as peer:
        (answer,) = peer.say(*pack(b"", [Hello("client", "old", 1, "2.7.18")]))

    assert "2.7.18" in answer.reason
    assert platform.python_version() in answer.reason


def test_call_of_an_unknown_definition_is_asked_for(broker: Broker) -> None:
    with Peer(broker.runtime) as peer:
        hello = Hello("client", "me", os.getpid(), platform.python_version())
        (welcome,) = peer.say(*pack(b"", [hello]))
        assert isinstance(welcome, Welcome)

        (answer,) = peer.say(*pack(welcome.instance, [Submit(1, (a_call(),))]))

    assert answer.digests == (DIGEST,)


UP_FOR_LONG = """
from nbtasks.wire import connection
boot = connection.boot
connection.boot = lambda: boot() + 6 * 365 * 86_400
"""


@pytest.mark.parametrize("before", ["", UP_FOR_LONG])
def test_no_ticket_is_given_twice_however_briefly_brokers_live(runtime: Path, before: str) -> None:
    broker = Broker(runtime, before=before)
    client = Client(runtime)
    tickets = []
    for number in range(4):
        client.submit(a_call(), (), DEFINE, confirm=True)
        with Peer(broker.runtime) as worker:
            hello = Hello("worker", f"w{number}", os.getpid(), platform.python_version())
            said = worker.say(*pack(b"", [hello]))
            while not any(isinstance(message, Run) for message in said):
                said = worker.hear()
        tickets += [message.ticket for message in said if isinstance(message, Run)]
        broker.kill()
        broker.before = ""  # as after a reboot
        broker.start()

    assert len(tickets) >= 4
    assert tickets == sorted(set(tickets))
    client.close()
    broker.close()


@pytest.mark.parametrize("known", [False, True])
def test_order_decided_before_the_supervisor_said_hello_reaches_it(
    runtime: Path, known: bool
) -> None:
    kill = Kill("worker", 7)
    server = Server(runtime, Settings(data=str(runtime), workers=0))
    try:
        with Peer(runtime) as supervisor:
            if not known:
                server.scheduler.turn.say(b"", kill)
                server.carry_out(now())
            hello = Hello("supervisor", "s", os.getpid(), platform.python_version())
            supervisor.socket.send_multipart(pack(b"", [hello]))
            assert server.socket.poll(10_000)
            server.turn(now())
            (welcome,) = supervisor.hear()
            if known:  # decided in the turn in which Hello came, but before that
                server.scheduler.turn.say(b"", kill)
                server.carry_out(now())
                server.turn(now())

            assert isinstance(welcome, Welcome)
            assert supervisor.hear() == [kill]
    finally:
        server.close()


def test_task_that_printed_more_than_a_batch_holds_is_told_in_several(
    broker: Broker, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = client.submit(a_call(), (), DEFINE, confirm=True)
    with Peer(broker.runtime) as worker:
        hello = Hello("worker", "w", os.getpid(), platform.python_version())
        said = worker.say(*pack(b"", [hello]))
        while not (runs := [message for message in said if isinstance(message, Run)]):
            said = worker.hear()
        lines = [Output(record.id, "stdout", f"{n:050000}", 1.0) for n in range(400)]
        done = Done(runs[0].ticket, "SUCCESS", b"", frames=2, at=1.0)
        buffers = (b"value", b"buffer")
        worker.socket.send_multipart(pack_to_broker(broker.instance, [*lines[:200], done], buffers))
        assert client.wait([record], 20)
        worker.socket.send_multipart(pack_to_broker(broker.instance, lines[200:]))
        until(lambda: len(record.events) == 401)
    monkeypatch.setattr(frames, "HEADER_LIMIT", 2 * PARCEL)

    other = Client(broker.runtime)
    told = other.record(record.id)
    other.follow(told)

    until(lambda: len(told.events) == 401)
    assert told.final is not None
    assert told.events == record.events
    assert list(map(bytes, told.buffers[told.final.n])) == list(buffers)
    other.close()


def test_what_many_turns_have_to_say_goes_in_several_batches(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbtasks.broker.server.PARCEL", 10_000)
    server = Server(runtime, Settings(data=str(runtime), workers=0))
    try:
        with Peer(runtime) as peer:
            hello = Hello("client", "c", os.getpid(), platform.python_version())
            peer.socket.send_multipart(pack(b"", [hello]))
            assert server.socket.poll(10_000)
            server.turn(now())
            peer.hear()
            [name] = server.scheduler.clients
            events = [
                Event("t", n, 1.0, "output", frames=n % 2, text="x" * 3_000) for n in range(9)
            ]
            for event in events:
                server.scheduler.turn.say(name, Send(event, (b"%d" % event.n,) * event.frames))
            server.carry_out(now())

            told: list[Any] = []
            while len(told) < 9:
                assert peer.socket.poll(10_000)
                batch = peer.socket.recv_multipart()
                assert len(batch[1]) <= 10_000
                told += zip_frames(batch)
    finally:
        server.close()
    assert told == [(event, [b"%d" % event.n] * event.frames) for event in events]


def test_former_version_of_a_function_goes_with_its_last_task(runtime: Path) -> None:
    server = Server(runtime, Settings(data=str(runtime), workers=0))
    call, again = a_call(), a_call()
    versions = Define(DIGEST, "f", Policy(), b"1"), Define(b"e" * 16, "f", Policy(), b"2")
    hello = Hello("client", "c", os.getpid(), platform.python_version())
    try:
        with Peer(runtime) as peer:

            def say(instance: bytes, *said: Any) -> list[Any]:
                peer.socket.send_multipart(pack(instance, said))
                assert server.socket.poll(10_000)
                server.turn(now())
                time.sleep(0.01)
                server.turn(now())
                return peer.hear()

            say(b"", hello)
            say(server.instance, *versions, Submit(1, (call,), urgent=True))
            say(server.instance, Revoke((call.id,)))

            instant = now()
            server._tidy(Now(instant.wall + 1e6, instant.boot + 1e6))

            assert say(server.instance, Submit(2, (again,))) == [Lacking((DIGEST,))]
            versions = versions[:1]
            assert say(server.instance, *versions, Submit(2, (again,))) == [Accepted((2,))]
    finally:
        server.close()


STANDS_STILL = """
import sys
from pathlib import Path
from nbtasks.client.client import Client
from nbtasks.wire import sockets
sockets.SIGN, sockets.SILENCE = 100, 500
client = Client(Path(sys.argv[1]))
for _ in range(2):
    print(client.ask("status")["phases"], flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_broker_keeps_nothing_for_a_client_that_stands_still(runtime: Path, transport: str) -> None:
    broker = Broker(runtime, transport=transport)
    time.sleep(0.2)
    alone = broker.descriptors()
    command = [sys.executable, "-c", STANDS_STILL, str(runtime)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stdout.readline() == "{}\n"
        time.sleep(0.3)
        assert broker.descriptors() > alone

        client.send_signal(signal.SIGSTOP)
        try:
            until(lambda: broker.descriptors() == alone)
        finally:
            client.send_signal(signal.SIGCONT)

        client.stdin.write("\n")
        assert client.stdout.readline() == "{}\n"
        client.stdin.write("\n")
    broker.close()


def zip_frames(batch: list[bytes]) -> list[tuple[Any, list[Any]]]:
    """Return the messages of a batch with their payload frames."""
    _, messages, buffers = unpack_from_broker(batch)
    rest = iter(buffers)
    return [(message, list(take(rest, message.frames))) for message in messages]


class Inside:
    """A broker in this process, and peers without sockets: what they say is just there."""

    def __init__(self, server: Server) -> None:
        self.server, self.scheduler = server, server.scheduler
        for role in ("supervisor", "client", "worker"):
            self.greet(role, role)

    @property
    def worker(self) -> Worker:
        return self.scheduler.workers["worker"]

    def greet(self, role: Role, name: str) -> None:
        hello = Hello(role, name, os.getpid(), platform.python_version())
        self.server._greet(name.encode(), hello, now())

    def say(self, peer: str, *messages: Any) -> None:
        for message in messages:
            self.scheduler.receive(peer.encode(), message, now())

    def submit(self, policy: Policy | None = None) -> Task:
        """Send a call and have it given to the worker."""
        define = Define(DIGEST, "f", policy or Policy(), b"function")
        self.say("client", define, Submit(1, (a_call(),)))
        self.server.turn(now())
        (task,) = self.worker.held.values()
        return task


@pytest.fixture
def inside(runtime: Path) -> Iterator[Inside]:
    server = Server(runtime, Settings(data=str(runtime), workers=0, result_expires=100.0))
    yield Inside(server)
    server.close()


def later(seconds: float) -> Now:
    return Now(now().wall + seconds, now().boot + seconds)


@pytest.mark.parametrize("how", ["forgotten", "expired"])
def test_worker_is_free_though_what_it_was_to_handle_is_gone(inside: Inside, how: str) -> None:
    task = inside.submit(Policy(time_limit=5.0, handlers=True))
    inside.say("worker", Started(task.ticket, now().wall))
    inside.server.turn(later(6))  # over its limit, so the supervisor is told to kill it
    inside.say("supervisor", Died("worker", os.getpid(), -9, task.ticket, sent=0))
    inside.server.turn(later(6))
    assert task.state == "FAILURE"
    if how == "forgotten":
        inside.say("client", Forget((task.id,)))
        inside.server.turn(later(6))
    else:
        inside.server.turn(later(200))

    inside.greet("worker", "new")
    inside.server.turn(later(200))

    assert inside.scheduler.workers["new"].idle


def test_task_that_is_told_to_run_again_when_it_expires_runs_again(inside: Inside) -> None:
    task = inside.submit()
    inside.say("worker", Done(task.ticket, "FAILURE", b""))
    inside.server.turn(now())

    inside.say("client", Redo((task.id,)))
    inside.server.turn(later(200))

    (again,) = inside.worker.held.values()
    assert again.id == task.id
    assert inside.server.store.calls([again.seq])


def test_all_is_told_again_of_a_task_whose_first_event_stands_apart(inside: Inside) -> None:
    task = inside.submit()
    inside.say("worker", Done(task.ticket, "FAILURE", b""))
    inside.server.turn(now())
    inside.say("client", Redo((task.id,)))
    inside.server.turn(now())
    (again,) = inside.worker.held.values()
    inside.say("worker", *(Output(task.id, "stdout", "x") for _ in range(2 * PAGE)))
    inside.say("worker", Done(again.ticket, "SUCCESS", b""))
    inside.server.turn(now())

    *events, (replayed, _) = inside.server._replay(
        Replayed(task.id, True, again.n, "done"), again.seq, 0
    )

    assert isinstance(replayed, Replayed)
    assert [event.n for event, _ in events] == list(range(1, again.n + 1))
    assert events[-1][0].state == "SUCCESS"


def test_end_of_which_nothing_is_kept_is_told_though_a_former_end_was(inside: Inside) -> None:
    policy = Policy(ignore_result=True, store_errors_even_if_ignored=True)
    task = inside.submit(policy)
    inside.say("worker", Done(task.ticket, "FAILURE", b""))
    inside.server.turn(now())
    inside.say("client", Redo((task.id,)))
    inside.server.turn(now())
    (again,) = inside.worker.held.values()
    inside.say("worker", Done(again.ticket, "IGNORED", b""))
    inside.server.turn(now())

    *events, _ = inside.server._replay(Replayed(task.id, True, again.n, "done"), again.seq, 0)

    assert [(event.kind, event.final) for event, _ in events] == [
        ("state", True),
        ("again", False),
        ("end", True),
    ]


def test_nothing_expires_that_is_told_to_run_again_while_the_store_fails(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StoreError("full")

    task = inside.submit()
    inside.say("worker", Done(task.ticket, "FAILURE", b""))
    inside.server.turn(now())
    with monkeypatch.context() as failing:
        failing.setattr(inside.server.store, "commit", fail)
        inside.say("client", Redo((task.id,)))
        inside.server.turn(later(200))

    inside.server.turn(later(201))

    (again,) = inside.worker.held.values()
    assert again.id == task.id
    assert inside.server.store.calls([again.seq])


def test_broker_does_not_go_on_with_a_store_that_is_damaged(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([StoreCorrupt("damaged")])

    def sync() -> None:
        for failure in failures:
            raise failure

    monkeypatch.setattr(inside.server.store, "sync", sync)
    with pytest.raises(StoreCorrupt):
        inside.server._sync()


def test_task_whose_call_is_lost_ends_and_frees_its_worker(inside: Inside) -> None:
    task = inside.submit()
    inside.say("worker", Done(task.ticket, "FAILURE", b""))
    inside.server.turn(now())
    inside.say("client", Redo((task.id,)))
    inside.server.store._delete([task.seq])

    inside.server.turn(now())

    assert inside.worker.idle
    assert not inside.scheduler.tasks


def test_broker_that_serves_takes_away_why_a_former_one_would_not(runtime: Path) -> None:
    (runtime / FAILED_FILE).write_text("The store was of no use.")

    broker = Broker(runtime)

    until(lambda: not (runtime / FAILED_FILE).exists())
    broker.close()


def test_second_broker_on_a_living_one_gives_up(broker: Broker, client: Client) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "nbtasks.broker", str(broker.runtime)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )

    assert second.returncode == EXIT_BUSY
    assert b"Another broker" in second.stderr
    assert not (broker.runtime / FAILED_FILE).exists()
    assert client.ask("status")["broker_pid"] == broker.process.pid


WATCHFUL = """
from nbtasks.broker import server
server.HOUSEKEEPING = 0.05
"""
EASILY_BORED = f"""{WATCHFUL}
import msgspec
from nbtasks.wire import connection
read = connection.read_settings
connection.read_settings = lambda path: msgspec.structs.replace(read(path), idle_timeout=1.0)
"""


@pytest.mark.parametrize("spoil", [Path.unlink, lambda file: file.write_text("rubbish")])
def test_connection_file_that_was_spoilt_is_written_again(
    runtime: Path, spoil: Callable[[Path], object]
) -> None:
    broker = Broker(runtime, before=WATCHFUL)
    written = read_connection(runtime)
    assert written is not None

    spoil(runtime / CONNECTION_FILE)

    until(lambda: read_connection(runtime) == written)
    broker.close()


def test_idle_broker_cannot_be_found_any_more_before_it_wants_to_stop(runtime: Path) -> None:
    broker = Broker(runtime, before=EASILY_BORED)

    until(lambda: read_connection(runtime) is None)

    assert broker.lives()
    broker.close()


def test_nothing_is_readable_by_others(broker: Broker, client: Client) -> None:
    client.submit(a_call(), (), DEFINE, confirm=True)

    for path in broker.runtime.rglob("*"):
        assert not path.stat().st_mode & 0o077, path


def test_tcp_with_keys_works_and_without_keys_does_not(runtime: Path) -> None:
    broker = Broker(runtime, transport="tcp")
    try:
        client = Client(runtime)
        connection = read_connection(runtime)
        assert connection is not None
        assert connection.endpoint.startswith("tcp://127.0.0.1:")
        assert client.submit(a_call(), (), DEFINE, confirm=True).accepted
        client.close()

        context = zmq.Context()
        bare = context.socket(zmq.DEALER)
        bare.connect(connection.endpoint)
        hello = Hello("client", "thief", 1, platform.python_version())
        bare.send_multipart(pack(b"", [hello]))
        assert not bare.poll(1_000)
        bare.close(0)
        context.term()
    finally:
        broker.close()
