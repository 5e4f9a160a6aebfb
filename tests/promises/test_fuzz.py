"""Frames and messages that make no sense: what cannot be read costs nothing and ends nothing."""

from __future__ import annotations

import random
import tracemalloc
from contextlib import closing
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings

from nbtasks.broker.server import Server
from nbtasks.core.messages import Hello, Run, Submit
from nbtasks.core.states import ASSIGNED, RUNNING
from nbtasks.wire import frames
from nbtasks.wire.connection import Settings, now, prepare_directory, write_settings
from tests.promises.conftest import Measure
from tests.promises.peers import (
    KINDS,
    PYTHON,
    Broker,
    Innocent,
    Peer,
    a_call,
    build,
    nonsense,
    serving,
)

pytestmark = pytest.mark.timeout(1_200)  # with --full

INSTANCE = b"12345678"
FIRST = frames.MAGIC + INSTANCE

#: Bytes of memory for each byte of a batch that was read, at most.
MULTIPLE = 100


def examples(full: bool, few: int, many: int) -> Any:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(max_examples=many if full else few, suppress_health_check=checks)


def readers() -> list[Any]:
    return [frames.unpack_to_broker, frames.unpack_from_broker]


def is_read(parts: list[bytes]) -> bool:
    """Read a batch in both directions; any other error than ours is a finding."""
    read = False
    for unpack in readers():
        try:
            _, messages, buffers = unpack(parts)
        except frames.ProtocolError:
            continue
        read = True
        assert all(isinstance(message, msgspec.Struct) for message in messages)
        assert sum(message.frames for message in messages) == len(buffers)
    return read


# ------------------------------------------------------------------------------------ decoding


def test_any_bytes_are_messages_or_refused(full: bool, measure: Measure) -> None:
    tried = 0
    parts = st.lists(st.binary(max_size=400), max_size=5)
    first = st.sampled_from([FIRST, frames.MAGIC, frames.MAGIC[:3] + b"\2", b"", b"x"])

    @examples(full, 400, 40_000)
    @given(first, parts)
    def read(first: bytes, rest: list[bytes]) -> None:
        nonlocal tried
        tried += 1
        is_read([first, *rest])

    read()

    measure("P20", "batches of any bytes, read or refused", tried, least=400)


def test_nearly_right_batches_are_messages_or_refused(
    full: bool, rng: random.Random, measure: Measure
) -> None:
    tried = read = 0
    for _ in range(100_000 if full else 5_000):
        parts = spoilt(rng, a_batch(rng, []))
        read += is_read(parts)
        tried += 1

    assert 0 < read < tried  # the spoiling is neither too mild nor too harsh to find anything
    measure("P20", "batches with wrong bytes in them, read or refused", tried, least=5_000)


def a_batch(rng: random.Random, tickets: list[int]) -> list[bytes]:
    leaf = nonsense(rng, tickets)
    said = [build(rng.choice(KINDS), leaf) for _ in range(rng.randrange(1, 4))]
    return [bytes(part) for part in frames.pack(INSTANCE, said)]


def spoilt(rng: random.Random, parts: list[bytes]) -> list[bytes]:
    """Return a batch with something wrong in it: bits, lengths, pieces of it twice or gone."""
    place = rng.randrange(len(parts))
    data = bytearray(parts[place])
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at : at + rng.randrange(8)]
            case 2:
                data[at:at] = data[: rng.randrange(16)]
            case 3:  # msgpack's words for arrays, maps, texts and bytes of any length
                data[at : at + 1] = rng.choice((b"\xdd", b"\xdf", b"\xdb", b"\xc6")) + b"\xff" * 4
            case _:
                data[at : at + 1] = bytes([rng.randrange(256)])
    spoilt = [*parts[:place], bytes(data), *parts[place + 1 :]]
    if rng.random() < 0.1:
        spoilt.insert(rng.randrange(len(spoilt) + 1), rng.choice(spoilt))
    return spoilt


HELD = [[0, "", False]] * 100_000


def test_reading_costs_a_small_multiple_of_what_came(measure: Measure) -> None:
    deep = b"\x91" * 500_000
    large = {
        "claims of four thousand million": [b"\xdd\xff\xff\xff\xff" * 10_000],
        "empty lists in a question": [lists_in_a_question(300_000)],
        "empty calls": [msgspec.msgpack.encode([["Submit", 1, [["", b"", "", b""]] * 100_000]])],
        "empty ids": [msgspec.msgpack.encode([["Follow", [""] * 300_000, [0] * 300_000]])],
        "held tickets": [msgspec.msgpack.encode([["Hello", "worker", "w", 1, "3", [], HELD]])],
        "short messages": [msgspec.msgpack.encode([["Bye"]] * 100_000)],
        "lists without end": [deep],
        "payload frames": [b"\x90", *[b""] * 100_000],
    }
    dearest = 0.0
    for parts in large.values():
        size = sum(map(len, parts)) + len(parts)
        tracemalloc.start()
        is_read([FIRST, *parts])
        dearest = max(dearest, tracemalloc.get_traced_memory()[1] / size)
        tracemalloc.stop()

    measure("P20", "memory to read a batch, in sizes of the batch", dearest, most=MULTIPLE)


def lists_in_a_question(count: int) -> bytes:
    return msgspec.msgpack.encode([["Ask", 1, "x", {"a": [[]] * count}]])


# ------------------------------------------------------------------------------- the whole broker


class Bench:
    """A broker in this process, its socket replaced by a list: thousands of turns a second."""

    def __init__(self, runtime: Path) -> None:
        orders = Settings(data=str(prepare_directory(runtime)), workers=0, durability="none")
        write_settings(runtime, orders)
        self.server = Server(runtime, orders)
        self._socket = self.server.socket
        self._waiting: list[list[bytes]] = []
        self.tickets: list[int] = []
        self.server.socket = self  # type: ignore[assignment]

    def close(self) -> None:
        self.server.socket = self._socket
        self.server.close()

    def getsockopt(self, option: int) -> int:
        return 1 if self._waiting else 0  # POLLIN

    def recv_multipart(self, flags: int = 0) -> list[bytes]:
        return self._waiting.pop(0)

    def send_multipart(self, parts: list[bytes], flags: int = 0, copy: bool = True) -> None:
        for message in frames.unpack_from_broker(parts[1:])[1]:
            if isinstance(message, Run):
                self.tickets.append(message.ticket)

    def take(self, peer: bytes, parts: list[bytes]) -> None:
        self._waiting.append([peer, *parts])
        self.server.turn(now())

    def orphans(self) -> list[str]:
        """Return the tasks that are said to be with a worker who knows nothing of them."""
        scheduler = self.server.scheduler
        given = [task for task in scheduler.tasks.values() if task.phase in (ASSIGNED, RUNNING)]
        return [
            task.id
            for task in given
            if task.worker not in scheduler.workers
            or scheduler.workers[task.worker].held.get(task.ticket) is not task
        ]


def test_nonsense_from_peers_of_all_roles_ends_no_broker(
    short_path: Path, full: bool, rng: random.Random, measure: Measure
) -> None:
    # A supervisor may say at once that all workers are dead: one broker alone might do nothing.
    brokers, each = (10, 20_000) if full else (4, 1_500)
    runs = 0
    for number in range(brokers):
        with closing(Bench(short_path / f"c{number}")) as bench:
            talk_nonsense(bench, each, rng)
            runs += len(bench.tickets)

    assert runs, "no task was ever given out: nothing was tried"
    measure("P20", "nonsensical messages taken in by brokers", brokers * each, least=6_000)


def talk_nonsense(bench: Bench, count: int, rng: random.Random) -> None:
    """Say so many things to a broker as peers of all roles, most of which cannot be meant."""
    roles = {b"c1": "client", b"c2": "client", b"w1": "worker", b"w2": "worker", b"s": "supervisor"}
    leaf = nonsense(rng, bench.tickets)
    for _ in range(count):
        peer = rng.choice(list(roles))
        message = build(rng.choice(KINDS), leaf)
        if rng.random() < 0.15:
            message = Hello(roles[peer], peer.decode(), 1, PYTHON)  # type: ignore[arg-type]
        elif rng.random() < 0.1:
            message = Submit(1, (a_call(id=rng.choice("123")),), again=rng.random() < 0.5)
        instance = b"" if isinstance(message, Hello) else bench.server.instance
        bench.take(peer, [bytes(part) for part in frames.pack(instance, [message])])
        assert bench.orphans() == [], message
    assert bench.server.store_failed_at is None


def test_spoilt_batches_harm_no_innocent_client(
    short_path: Path, full: bool, rng: random.Random, measure: Measure
) -> None:
    count = 20_000 if full else 600
    with serving(short_path / "c") as broker, Innocent(broker) as innocent:
        before = broker.peak()
        with Peer(broker) as client, Peer(broker) as worker:
            client.introduce("client")
            worker.introduce("worker")
            for number in range(count):
                peer = rng.choice((client, worker))
                parts = a_batch(rng, [])
                parts[0] = frames.MAGIC + broker_instance(broker, number, peer)
                peer.send(*spoilt(rng, parts))
                while peer.hear(0):
                    pass
                if number % 100 == 0:
                    innocent.work()
            innocent.work()

        assert broker.lives()
        measure(
            "P20", "spoilt batches: an innocent client's calls lost", innocent.missing(), most=0
        )
        measure("P20", "spoilt batches: its slowest call", innocent.slowest, most=2.0, unit="s")
        growth = (broker.peak() - before) / 1e6
        measure("P20", "spoilt batches: growth of the broker", growth, most=64, unit="MB")


def broker_instance(broker: Broker, number: int, peer: Peer) -> bytes:
    return peer.instance if number % 7 else b""
