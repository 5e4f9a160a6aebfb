"""Who may say what: a table, and nothing that follows from a word of the wrong peer."""

from __future__ import annotations

import typing

import pytest

from nbtasks.core.messages import (
    WORDS,
    Again,
    Call,
    Died,
    Done,
    Hello,
    Pool,
    Refused,
    Returned,
    Revoke,
    Started,
    Submit,
    ToBroker,
    Welcome,
)
from nbtasks.simulation import CLIENT, SUPERVISOR, Simulation


def words_of(world: Simulation, peer: bytes, message: object) -> list[str]:
    """Let a peer say something and return the reasons of the refusals that follow."""
    world.scheduler.receive(peer, message, world.now)
    mail = world.scheduler.committed().mail
    refused = {to: [m.reason for m in said if isinstance(m, Refused)] for to, said in mail.items()}
    assert not any(reasons for to, reasons in refused.items() if to != peer)
    return refused.get(peer, [])


@pytest.fixture
def world() -> Simulation:
    """Two workers; the first runs `a task`."""
    world = Simulation(workers=2)
    world.submit(task_id="a task", seconds=1000)
    world.advance(1)
    return world


def test_every_word_to_the_broker_has_somebody_who_may_say_it() -> None:
    assert set(typing.get_args(ToBroker)) == {Hello}.union(*WORDS.values())


@pytest.mark.parametrize(
    ("role", "peer", "message"),
    [
        ("client", CLIENT, Died("w", 1, -9)),
        ("client", CLIENT, Done(1, "SUCCESS", b"")),
        ("client", CLIENT, Returned((1,))),
        ("client", CLIENT, Pool((), 9)),
        ("supervisor", SUPERVISOR, Submit(1, ())),
        ("supervisor", SUPERVISOR, Started(1, 0.0)),
    ],
)
def test_word_of_another_role_is_refused_and_changes_nothing(
    world: Simulation, role: str, peer: bytes, message: object
) -> None:
    before = world.scheduler.phases(), world.scheduler.staff.wanted

    assert words_of(world, peer, message) == [f"A {role} may not say {type(message).__name__}."]
    assert (world.scheduler.phases(), world.scheduler.staff.wanted) == before


def test_worker_may_neither_submit_nor_report_deaths(world: Simulation) -> None:
    worker = next(iter(world.workers)).encode()

    for message in (Submit(1, ()), Died("w", 1, -9), Revoke(("a task",)), Welcome(b"", "")):
        assert words_of(world, worker, message)
    assert world.phase("a task") == "running"


def test_name_of_a_living_worker_is_not_given_twice(world: Simulation) -> None:
    name = next(iter(world.workers))
    peer = world.scheduler.workers[name].peer

    assert words_of(world, b"thief", Hello("worker", name, 1, "3.11"))
    assert world.scheduler.workers[name].peer == peer
    assert words_of(world, b"thief", Done(1, "SUCCESS", b"")) == ["hello"]


def test_peer_does_not_change_its_role(world: Simulation) -> None:
    assert words_of(world, CLIENT, Hello("supervisor", "s", 1, "3.11"))
    assert world.scheduler.supervisor == SUPERVISOR


def test_what_has_begun_is_not_given_back(world: Simulation) -> None:
    scheduler = world.scheduler
    worker = next(w for w in scheduler.workers.values() if w.held)
    (ticket,) = worker.held

    scheduler.receive(worker.peer, Returned((ticket,)), world.now)

    assert ticket in worker.held
    assert world.phase("a task") == "running"


def test_retry_of_a_function_that_nobody_knows_changes_nothing(world: Simulation) -> None:
    worker = next(worker for worker in world.scheduler.workers.values() if worker.held)
    call = Call("beside", b"unknown", "f", b"")
    before = world.scheduler.phases()

    again = Again(next(iter(worker.held)), call, b"", over=False)
    assert words_of(world, worker.peer, again) == []
    assert world.scheduler.phases() == before
    assert world.phase("a task") == "running"
