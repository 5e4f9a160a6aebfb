"""Peers that are broken, foreign or hostile: the broker lives on and serves the others."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import nbtasks
from nbtasks.client import client as clients
from nbtasks.client import definitions
from nbtasks.core.messages import (
    PROTOCOL_VERSION,
    STRANGER,
    WORDS,
    Accepted,
    Again,
    Answer,
    Ask,
    Call,
    Done,
    Event,
    Follow,
    Hello,
    Lacking,
    Noted,
    Pool,
    Refused,
    Replayed,
    Returned,
    Revoke,
    Run,
    Started,
    Submit,
    Welcome,
)
from nbtasks.exceptions import DecodeError
from nbtasks.wire.connection import SEGMENTS, STORE_FILE
from nbtasks.wire.frames import MAGIC, PIECE, pack
from nbtasks.wire.payloads import dumps_arguments
from tests.living import SOON, eventually, run, said
from tests.promises.conftest import Measure
from tests.promises.peers import (
    DEFINE,
    GREETING,
    KINDS,
    PYTHON,
    Broker,
    Innocent,
    Peer,
    a_call,
    build,
    claim,
    is_dropped,
    nonsense,
    raw,
    ready,
    serving,
)

pytestmark = pytest.mark.timeout(600)  # with --full

#: Megabytes by which nobody may make the broker grow.
GROWTH = 64
#: Seconds that a connection may stay half-open.
HALF_OPEN = 5


#: As many shells begin: a broker may open no more files than this unless it asks for more.
FEW_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
"""


@pytest.fixture
def broker(short_path: Path) -> Iterator[Broker]:
    with serving(short_path / "c", before=FEW_FILES) as made:
        yield made


@pytest.fixture
def innocent(broker: Broker) -> Iterator[Innocent]:
    with Innocent(broker) as client:
        yield client


@contextlib.contextmanager
def harmless(broker: Broker, innocent: Innocent, measure: Measure, what: str) -> Iterator[None]:
    """Let something be done to the broker that neither kills it nor makes it grow."""
    before = broker.peak()
    yield
    innocent.work()
    assert broker.lives()
    growth = (broker.peak() - before) / 1e6
    measure("P20", f"{what}: growth of the broker", growth, most=GROWTH, unit="MB")
    measure("P20", f"{what}: calls of others lost", innocent.missing(), most=0)


# ---------------------------------------------------------------------------------------- bytes


def test_half_open_connections_are_dropped(broker: Broker, measure: Measure) -> None:
    openings = [b"", GREETING[:1], GREETING[:10], GREETING[:-1], GREETING, GREETING + b"\x04\x10"]
    began = time.monotonic()
    connections = [raw(broker) for _ in openings]
    for connection, opening in zip(connections, openings, strict=True):
        connection.sendall(opening)

    eventually(lambda: all(map(is_dropped, connections)))

    took = time.monotonic() - began
    close(connections)
    measure("P20", "half-open connections are dropped", took, most=HALF_OPEN, unit="s")


def close(connections: list[socket.socket]) -> None:
    for connection in connections:
        connection.close()


def test_claims_of_length_are_not_believed(
    broker: Broker, innocent: Innocent, measure: Measure
) -> None:
    met = GREETING + ready()
    with harmless(broker, innocent, measure, "claims of length up to 2**64"):
        for length in (PIECE + 1_000, 10**9, 2 * 10**10, 2**63 - 1, 2**64 - 1):
            # What an old peer says first is a length, too; and long commands end no handshake.
            for begun in (
                b"\xff" + claim(length)[1:],
                GREETING + claim(length, 4),
                met + claim(length),
            ):
                with raw(broker) as connection:
                    connection.sendall(begun)
                    with contextlib.suppress(OSError):
                        for _ in range(200):
                            connection.sendall(bytes(1_000_000))
                    eventually(lambda: is_dropped(connection))


def test_random_bytes_on_the_socket(
    broker: Broker, innocent: Innocent, measure: Measure, rng: random.Random, full: bool
) -> None:
    openings = [b"", GREETING[:11], GREETING, GREETING + ready()]
    with harmless(broker, innocent, measure, "random bytes"):
        for _ in range(3_000 if full else 200):
            with raw(broker) as connection, contextlib.suppress(OSError):
                connection.sendall(rng.choice(openings) + rng.randbytes(rng.choice((9, 2_000))))


def test_thousands_of_connections(
    broker: Broker, innocent: Innocent, measure: Measure, full: bool
) -> None:
    room = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200
    # ZeroMQ takes some 28 KB for each, and knows no way to turn one of them out.
    count = min(room, 2_000 if full else 1_500)
    with harmless(broker, innocent, measure, "thousands of connections"):
        connections = []
        for number in range(count):
            connection = raw(broker)
            connections.append(connection)
            connection.sendall(GREETING + ready())
            if number % 500 == 0:
                innocent.work()
        assert eventually(lambda: broker.descriptors() > count)
        innocent.work()
        close(connections)
        eventually(lambda: broker.descriptors() < 100)

    measure("P20", "thousands of connections: how many", count, least=min(room, 1_500))
    what = "thousands of connections: slowest call of another"
    measure("P20", what, innocent.slowest, most=5.0, unit="s")


# --------------------------------------------------------------------------------------- frames


def test_a_flood_of_garbage_by_a_peer_that_does_not_listen(
    broker: Broker, innocent: Innocent, measure: Measure, full: bool
) -> None:
    count = 500_000 if full else 60_000
    with harmless(broker, innocent, measure, "a flood of garbage"), Peer(broker) as peer:
        for number in range(count):
            peer.send(b"garbage", b"more")
            if number % 20_000 == 0:
                innocent.work()
    log = len(broker.log())
    measure("P20", "a flood of garbage: what is in the log", log / 1e3, most=100, unit="KB")
    what = "a flood of garbage: slowest call of another"
    measure("P20", what, innocent.slowest, most=2.0, unit="s")


def test_frames_that_are_not_ours(broker: Broker, innocent: Innocent, measure: Measure) -> None:
    nonsense: list[list[bytes]] = [
        [b""],
        [b"x"],
        [b"nbt"],
        [b"nbt", b"\x90"],
        [MAGIC],
        [b"garbage", b"more"],
        [MAGIC, b""],
        [MAGIC, b"\xff\xff"],
        [MAGIC, b"\x91" * 100_000],
        [MAGIC, b"\xdd\xff\xff\xff\xff"],
        [MAGIC, b"\x91\x92\xa3Bye\xa1\xff"],
        [MAGIC, b"\x90", b"a frame of nobody"],
        [MAGIC, *[b""] * 20_000],
        [MAGIC + b"i" * 10_000, b"\x90"],
        [MAGIC, b"\x90", bytes(PIECE)],
    ]
    with harmless(broker, innocent, measure, "frames of others"), Peer(broker) as peer:
        for frames in nonsense:
            peer.send(*frames)
            (answer,) = peer.hear()
            assert isinstance(answer, Refused)
            assert answer.reason


def test_another_version_is_named(broker: Broker) -> None:
    with Peer(broker) as peer:
        peer.send(b"nbt%c" % (PROTOCOL_VERSION + 1), b"\x90")
        (answer,) = peer.hear()

    assert f"version {PROTOCOL_VERSION + 1}" in answer.reason
    assert f"version {PROTOCOL_VERSION}." in answer.reason


def test_client_of_another_version_is_told_so_at_once(cluster: nbtasks.Cluster) -> None:
    code = """
        import sys
        import nbtasks.core.messages as messages

        messages.PROTOCOL_VERSION += 1
        import nbtasks

        try:
            nbtasks.connect(sys.argv[1])
        except nbtasks.exceptions.ClusterError as error:
            print(error)
    """
    answer = said(run(code, cluster.dir))

    assert f"version {PROTOCOL_VERSION}" in answer
    assert "Restart the cluster" in answer


def test_who_means_another_run_of_the_broker_is_told_to_say_hello(broker: Broker) -> None:
    with Peer(broker) as peer:
        peer.introduce("client")
        peer.instance = b"old-one!"
        peer.say(Ask(1, "purge"))

        assert peer.hear() == [Refused(STRANGER)]


# ----------------------------------------------------------------------------------- who says what


def test_a_stranger_is_answered_nothing(broker: Broker, innocent: Innocent) -> None:
    """Knowing the name of the broker's run is not enough, nor is a Hello that was refused."""
    with Peer(broker) as peer:
        peer.instance = broker.instance
        peer.say(Ask(1, "status"))
        assert peer.hear() == [Refused(STRANGER)]

        old = Hello("client", "old", os.getpid(), "2.7.18")
        peer.instance = b""
        peer.say(old, Ask(2, "purge"))
        (answer,) = peer.hear()
        assert "2.7.18" in answer.reason

    assert innocent.ask("status")["phases"] == {"queued": 1}


def test_each_word_is_taken_from_its_own_role_only(
    broker: Broker, measure: Measure, rng: random.Random
) -> None:
    leaf = nonsense(rng, [])
    tried = taken = 0
    for role, words in WORDS.items():
        for kind in KINDS:
            if kind is Hello or kind in words:
                continue
            with Peer(broker) as peer:
                peer.introduce(role, name=f"{role}-{kind.__name__}")
                peer.say(build(kind, leaf))
                reason = peer.hear_all(Refused).reason
                tried += 1
                taken += "may not say" not in reason and "cannot be read" not in reason

    assert tried > 30
    assert broker.lives()
    measure("P20", "words taken from a peer of the wrong role", taken, most=0)


@pytest.mark.parametrize(
    "word",
    [
        Accepted((1,)),
        Welcome(b"12345678", "store"),
        Event("id", 1, 0.0, "state", "SUCCESS", final=True),
        Run(1, a_call()),
        Answer(1, None),
        Lacking((b"d" * 16,)),
        Noted(1),
        Replayed("id", True, 1),
    ],
    ids=lambda word: type(word).__name__,
)
def test_words_of_a_broker_are_taken_from_nobody(broker: Broker, word: Any) -> None:
    with Peer(broker) as peer:
        peer.introduce("client")
        peer.say(word)

        assert "cannot be read" in peer.hear_all(Refused).reason


def test_one_peer_does_not_become_another(broker: Broker) -> None:
    with Peer(broker) as peer:
        peer.introduce("client")
        peer.send(*pack(b"", [Hello("worker", "w", os.getpid(), PYTHON)]))

        assert "known as somebody else" in peer.hear_all(Refused).reason


def test_an_unknown_role_is_refused(broker: Broker) -> None:
    with Peer(broker) as peer:
        hello = Hello("master", "m", os.getpid(), PYTHON)  # type: ignore[arg-type]
        peer.send(*pack(b"", [hello]))

        assert "cannot be read" in peer.hear_all(Refused).reason


def test_the_name_of_a_living_worker_is_not_given_twice(broker: Broker) -> None:
    with Peer(broker) as first, Peer(broker) as second:
        first.introduce("worker", name="w1")
        second.send(*pack(b"", [Hello("worker", "w1", os.getpid(), PYTHON)]))

        assert "known as somebody else" in second.hear_all(Refused).reason
        with Innocent(broker):
            assert first.hear_all(Run)


def test_who_takes_the_wire_name_of_another_hears_nothing(broker: Broker) -> None:
    with Peer(broker, name=b"c-alice") as alice:
        alice.introduce("client")
        with Peer(broker, name=b"c-alice") as mallory:
            mallory.send(*pack(b"", [Hello("client", "mallory", os.getpid(), PYTHON)]))
            alice.say(Ask(1, "status"))

            assert alice.hear_all(Answer)
            assert mallory.hear(0.5) == []


# --------------------------------------------------------------------------- forged and replayed


@pytest.fixture
def at_work(broker: Broker) -> Iterator[tuple[Peer, Peer, Peer, Run]]:
    """A client, the worker that runs its call, and another worker; and what was given out."""
    with Peer(broker) as client, Peer(broker) as worker, Peer(broker) as other:
        client.introduce("client")
        worker.introduce("worker", name="w1")
        client.say(DEFINE[0], Submit(1, (a_call(id="one"),), urgent=True))
        run = worker.hear_all(Run)
        other.introduce("worker", name="w2")
        yield client, worker, other, run


def phase(client: Peer) -> str:
    client.say(Ask(7, "show", {"id": "one"}))
    return str(client.hear_all(Answer).value["phase"])


def test_the_ticket_of_another_worker_ends_nothing(
    at_work: tuple[Peer, Peer, Peer, Run], measure: Measure
) -> None:
    client, worker, other, run = at_work
    forged = [
        Done(run.ticket, "SUCCESS", b"forged"),
        Again(run.ticket, a_call(id="one"), b""),
        Returned((run.ticket,)),
    ]

    believed = 0
    for word in forged:
        other.say(word)
        believed += phase(client) != "assigned"
    worker.say(Done(run.ticket, "SUCCESS", b"honest"))
    believed += client.hear_all(Event).body != b"honest"

    measure("P20", "words of a worker about another's ticket believed", believed, most=0)


def test_an_outcome_told_twice_is_one(
    at_work: tuple[Peer, Peer, Peer, Run], measure: Measure
) -> None:
    client, worker, _, run = at_work
    done = pack(worker.instance, [Done(run.ticket, "SUCCESS", b"value")])
    for _ in range(3):
        worker.send(*done)
    worker.send(*pack(worker.instance, [Done(run.ticket, "FAILURE", b"another")]))
    assert worker.hear_all(Noted)

    client.say(Follow(("one",), (0,)))
    told = [client.hear_all(Event)]
    while heard := client.hear(0.3):
        told += [message for message in heard if isinstance(message, Event)]

    ends = {(event.n, event.state, event.body) for event in told if event.final}
    assert {(state, body) for _, state, body in ends} == {("SUCCESS", b"value")}
    measure("P20", "ends of a task whose outcome came four times", len(ends), most=1)


def test_a_submission_overheard_and_said_again_is_no_second_task(
    at_work: tuple[Peer, Peer, Peer, Run], broker: Broker, measure: Measure
) -> None:
    client, _, _, _ = at_work
    overheard = pack(client.instance, [Submit(1, (a_call(id="one"),), urgent=True)])
    with Peer(broker) as mallory:
        mallory.introduce("client")
        for _ in range(5):
            mallory.send(*overheard)
        mallory.say(Ask(1, "status"))
        answer = mallory.hear_all(Answer)

    tasks = sum(answer.value["phases"].values())
    measure("P20", "tasks after a submission that was replayed 5 times", tasks, most=1)


def test_a_worker_that_gives_back_what_it_has_begun_keeps_it(
    at_work: tuple[Peer, Peer, Peer, Run],
) -> None:
    """What has begun belongs to its worker until that says how it ended, or dies."""
    client, worker, _, run = at_work
    worker.say(Started(run.ticket, 0.0))
    worker.say(Returned((run.ticket,)))
    eventually(lambda: phase(client) == "running")

    client.say(Revoke(("one",)))
    worker.say(Done(run.ticket, "SUCCESS", b"value"))

    eventually(lambda: phase(client) == "done")


# ---------------------------------------------------------------------------------- absurd values


@pytest.mark.parametrize(
    "parts",
    [
        ["Hello", "client", "n", 2**31, PYTHON],
        ["Hello", "client", "n", 0, PYTHON],
        ["Follow", ["a", "b"], [0]],
        ["Follow", ["a"], [2**63]],
        ["Follow", ["a"], [-1]],
        ["Revoke", ["a"], True, "Signals"],
        ["Revoke", ["a"], True, "SIG_IGN"],
        ["Define", b"", "f", [], b""],
        ["Define", b"d" * 65, "f", [], b""],
        ["Submit", 1, [["id", b"d" * 16, "f", b"", -1]]],
        ["Submit", 1, [["id", b"d" * 16, "f", b"", 0, "", float("nan")]]],
        ["Submit", 1, [["id", b"d" * 16, "f", b"", 0, "", None, float("inf")]]],
        ["Scale", -1],
    ],
    ids=str,
)
def test_values_that_cannot_be_meant_are_refused(broker: Broker, parts: list[Any]) -> None:
    with Peer(broker) as peer:
        peer.introduce("client")
        peer.send(MAGIC + peer.instance, msgspec.msgpack.encode([parts]))
        assert "cannot be read" in peer.hear_all(Refused).reason

    assert broker.lives()


@pytest.mark.parametrize(
    ("what", "args"),
    [
        ("show", {"id": []}),
        ("show", {"id": {"a": 1}}),
        ("show", {"nonsense": 1}),
        ("show", {"self": 1, "instant": 2, "id": "x"}),
        ("list", {"limit": 2**63}),
        ("list", {"limit": "all"}),
        ("put", {"key": "k", "value": [[]]}),
        ("show", {"id": 2**64 - 1}),
        ("outlook", {"ids": 3, "parents": [{}]}),
        ("__class__", {}),
        ("", {}),
    ],
)
def test_questions_that_cannot_be_answered_are_errors(
    broker: Broker, innocent: Innocent, what: str, args: dict[str, Any]
) -> None:
    with Peer(broker) as peer:
        peer.introduce("client")
        peer.say(Ask(1, what, args))
        answer = peer.hear_all(Answer)

    assert answer.error or not answer.value
    innocent.work()


def test_what_is_kept_under_a_name_is_bytes(broker: Broker, innocent: Innocent) -> None:
    with Peer(broker) as peer:
        peer.introduce("client")
        peer.say(Ask(1, "put", {"key": "k", "value": 10**13}))
        peer.say(Ask(2, "peek", {"key": "k"}))
        assert peer.hear_all(Answer).error

    innocent.work()


def test_workers_are_scaled_by_the_broker_in_reason(broker: Broker) -> None:
    """An order for as many workers as a number can say would be the end of the machine."""
    with Peer(broker) as supervisor, Peer(broker) as client:
        supervisor.introduce("supervisor")
        supervisor.say(Pool((), 2))
        client.introduce("client")
        client.send(MAGIC + client.instance, msgspec.msgpack.encode([["Scale", 2**40]]))

        assert "cannot be read" in client.hear_all(Refused).reason
        assert supervisor.hear(0.3) == []


# ------------------------------------------------------------------ references to files, forged


@nbtasks.task
def weigh(data: bytes) -> int:
    return len(data)


LARGE = 300_000


def forge(reference: bytes, how: str, runtime: Path) -> bytes:
    """Return a reference to a large value that nobody has ever sent so."""
    magic, length, name = reference[:8], reference[8:16], reference[16:]
    match how:
        case "another name":
            name = bytes(16)
        case "another length":
            length = (LARGE + 100_000).to_bytes(8, "big")
        case "the greatest length":
            length = b"\xff" * 8
        case "a link":
            path = runtime / SEGMENTS / name.hex()
            path.unlink()
            path.symlink_to(runtime / STORE_FILE)
        case "a pipe":
            path = runtime / SEGMENTS / name.hex()
            path.unlink()
            os.mkfifo(path)
    return magic + length + name


FORGERIES = ("another name", "another length", "the greatest length", "a link", "a pipe")


def test_forged_references_fail_their_own_task_and_no_other(
    make_cluster: Callable[..., nbtasks.Cluster], measure: Measure
) -> None:
    cluster = make_cluster()
    pids = sorted([cluster.broker_pid, *cluster.worker_pids()])
    honest = weigh.apply_async((os.urandom(LARGE),), countdown=1.0)
    define = definitions.current(weigh)
    deceived = 0
    for how in FORGERIES:
        body, [reference] = dumps_arguments((os.urandom(LARGE),), {}, keep=clients.keep)
        forged = forge(bytes(reference), how, cluster.dir)
        call = Call(clients.new_id(), define[0].digest, weigh.name, body, 1)
        cluster.client.submit(call, (forged,), define)
        error = nbtasks.AsyncResult(call.id).get(timeout=SOON, propagate=False)
        deceived += not isinstance(error, DecodeError)

    assert honest.get(timeout=SOON) == LARGE
    measure("P20", "forged references to large values believed", deceived, most=0)
    died = set(pids) - {cluster.broker_pid, *cluster.worker_pids()}
    measure("P20", "processes that died of forged references", len(died), most=0)
