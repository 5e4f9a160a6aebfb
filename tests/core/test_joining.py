"""Tasks that wait for other tasks: their workers give up their places in the pool meanwhile."""

from __future__ import annotations

from itertools import pairwise

import pytest

from nbtasks.core.messages import Done, Hello, Joining, Pool, Recall, Scale, Stop
from nbtasks.core.scheduler import Scheduler
from nbtasks.core.staff import GRACE, LINGER, LOOK, MOST
from nbtasks.simulation import CLIENT, SUPERVISOR, InventedWorker, Simulation

SOON = GRACE + LOOK
LONG = 1_000.0


def world_of(workers: int) -> Simulation:
    world = Simulation(workers)
    world.say(SUPERVISOR, Pool(tuple(world.workers), workers))
    return world


@pytest.fixture
def world() -> Simulation:
    """One worker, which runs `parent`."""
    world = world_of(1)
    world.submit(task_id="parent", seconds=LONG)
    world.advance(1)
    return world


def running(world: Simulation, task_id: str) -> InventedWorker:
    (worker,) = (w for w in world.workers.values() if w.running and w.running.call.id == task_id)
    return worker


def say_join(world: Simulation, task_id: str, over: bool = False) -> None:
    worker = running(world, task_id)
    assert worker.running is not None
    world.say(worker.peer, Joining(worker.running.ticket, over))


def test_another_worker_takes_the_place_of_one_that_waits(world: Simulation) -> None:
    child = world.submit()
    say_join(world, "parent")

    world.advance(SOON + 1)

    assert world.state(child) == "SUCCESS"
    assert len(world.workers) == 2
    assert (world.scheduler.staff.wanted, world.scheduler.staff.extra) == (1, 1)


def test_tasks_wait_for_one_another_as_deep_as_they_like(world: Simulation) -> None:
    names = ["parent", *(f"child-{n}" for n in range(5))]
    for parent, child in pairwise(names):
        world.submit(task_id=child, seconds=LONG)
        say_join(world, parent)
        world.advance(2 * SOON)

        assert world.phase(child) == "running"


def test_nobody_is_started_where_somebody_is_idle() -> None:
    world = world_of(2)
    world.submit(task_id="parent", seconds=LONG)
    world.advance(1)
    child = world.submit()
    say_join(world, "parent")

    world.advance(SOON + 1)

    assert world.state(child) == "SUCCESS"
    assert len(world.workers) == 2


def test_nobody_is_started_for_a_task_that_waits_for_its_time_only(world: Simulation) -> None:
    world.submit(countdown=LONG)
    say_join(world, "parent")

    world.advance(10)

    assert len(world.workers) == 1


def test_new_broker_starts_nobody_before_it_knows_how_many_there_shall_be() -> None:
    world = Simulation(1)
    world.submit(task_id="parent", seconds=LONG)
    world.advance(1)
    child = world.submit()
    say_join(world, "parent")

    world.advance(SOON + 1)

    assert (world.scheduler.staff.wanted, world.scheduler.staff.extra) == (0, 0)
    world.say(SUPERVISOR, Pool(tuple(world.workers), 1))
    world.advance(SOON + 1)
    assert world.state(child) == "SUCCESS"
    assert (world.scheduler.staff.wanted, world.scheduler.staff.extra) == (1, 1)


def test_what_stands_behind_one_that_waits_is_called_back() -> None:
    world = world_of(1)
    scheduler = world.scheduler
    for n in range(20):  # so that they are known to be short
        world.submit(task_id=f"quick-{n}", seconds=0.001)
    world.advance(1)
    for n in range(3):
        world.submit(task_id=f"next-{n}", seconds=0.001)
    (worker,) = scheduler.workers.values()
    assert len(worker.held) == 3

    scheduler.receive(worker.peer, Joining(next(iter(worker.held))), world.now)

    assert scheduler.turn.mail == {worker.peer: [Recall()]}


def test_one_that_goes_on_has_its_place_again(world: Simulation) -> None:
    child = world.submit()
    say_join(world, "parent")
    world.advance(SOON + 1)
    assert world.state(child) == "SUCCESS"

    say_join(world, "parent", over=True)
    other = world.submit()
    world.advance(1)

    assert world.phase(other) == "queued"  # two at once would be more than there shall be


def test_who_took_a_place_is_there_for_the_next_wait_and_goes_after_a_while(
    world: Simulation,
) -> None:
    world.submit()
    say_join(world, "parent")
    world.advance(SOON + 1)
    say_join(world, "parent", over=True)
    world.advance(LINGER / 2)

    child = world.submit(seconds=0.1)
    say_join(world, "parent")
    world.advance(0.1)
    assert world.state(child) == "SUCCESS"

    say_join(world, "parent", over=True)
    world.advance(LINGER + 2 * LOOK)
    leaving = [worker.leaving for worker in world.scheduler.workers.values()]
    assert (world.scheduler.staff.extra, leaving) == (0, [False, True])


def test_a_new_broker_knows_who_waits_and_who_stepped_in(world: Simulation) -> None:
    world.submit(task_id="child", seconds=LONG)
    say_join(world, "parent")
    world.advance(2 * SOON)
    world.restart_broker()

    world.say(SUPERVISOR, Pool(tuple(world.workers), 1, 1))
    for task_id in ("parent", "child"):
        say_join(world, task_id)
    grandchild = world.submit()
    world.advance(2 * SOON + 1)

    assert world.state(grandchild) == "SUCCESS"
    assert not any(worker.leaving for worker in world.scheduler.workers.values())


def test_there_is_an_end_to_it(world: Simulation) -> None:
    tasks = ["parent", *(f"{n}" for n in range(MOST + 10))]
    for parent, child in pairwise(tasks):
        world.submit(task_id=child, seconds=LONG)
        if world.phase(parent) == "running":
            say_join(world, parent)
        world.advance(2 * SOON)

    assert world.scheduler.staff.extra == MOST


def test_scaling_keeps_those_who_stepped_in(world: Simulation) -> None:
    scheduler = world.scheduler
    scheduler.staff.extra = 1

    scheduler.receive(CLIENT, Scale(3), world.now)

    assert scheduler.turn.mail == {SUPERVISOR: [Scale(3, 1)]}


def test_one_that_leaves_after_a_long_run_takes_nobodys_place() -> None:
    world = world_of(2)
    world.submit(task_id="parent", seconds=LONG)
    world.submit(task_id="long", seconds=LONG)
    world.advance(1)
    world.say(CLIENT, Scale(1))
    leaving = [worker.name for worker in world.scheduler.workers.values() if worker.leaving]
    assert len(leaving) == 1
    child = world.submit()

    for task_id in ("parent", "long"):
        say_join(world, task_id)
    world.advance(SOON + 1)

    assert world.state(child) == "SUCCESS"


def test_those_that_leave_are_named_wherever_others_may_have_to_come(world: Simulation) -> None:
    scheduler = world.scheduler
    (name,) = world.workers
    scheduler.receive(CLIENT, Scale(0), world.now)
    scheduler.receive(CLIENT, Scale(1), world.now)

    said = scheduler.turn.mail[SUPERVISOR]
    assert said == [Scale(0, leaving=(name,)), Scale(1, leaving=(name,))]
    world.advance(1)
    assert len(world.workers) == 2


def test_newcomer_makes_another_one_leave_where_it_is_one_too_many(world: Simulation) -> None:
    scheduler = world.scheduler
    world.say(SUPERVISOR, Pool((*world.workers, "worker-2"), 1))

    scheduler.receive(b"worker-2", Hello("worker", "worker-2", 2, "3.11"), world.now)

    assert scheduler.turn.mail[SUPERVISOR] == [Scale(1, leaving=("worker-2",))]


@pytest.mark.parametrize("first", ["worker", "supervisor"])
def test_new_broker_is_told_who_leaves_and_lets_nobody_go_for_them(first: str) -> None:
    world = Simulation(2)
    scheduler = world.scheduler
    hello = Hello("worker", "leaving", 3, "3.11")
    pool = Pool((*world.workers, "leaving"), 2, leaving=("leaving",))
    said = [(b"leaving", hello), (SUPERVISOR, pool)]

    for peer, message in said if first == "worker" else reversed(said):
        scheduler.receive(peer, message, world.now)
    scheduler.receive(b"worker-1", Hello("worker", "worker-1", 1, "3.11"), world.now)

    assert [worker.name for worker in scheduler.pool.serving()] == list(world.workers)
    assert scheduler.turn.mail[b"leaving"] == [Stop()]
    assert not scheduler.turn.mail[SUPERVISOR]


def test_who_leaves_is_told_so_again_when_it_greets_again(world: Simulation) -> None:
    scheduler = world.scheduler
    (name,) = world.workers
    world.say(SUPERVISOR, Pool((name,), 1, leaving=(name,)))

    scheduler.receive(name.encode(), Hello("worker", name, 1, "3.11"), world.now)

    assert scheduler.turn.mail[name.encode()][-1] == Stop()


def test_stopping_cluster_starts_nobody(world: Simulation) -> None:
    scheduler: Scheduler = world.scheduler
    scheduler.staff.stopping = True
    world.submit()
    say_join(world, "parent")

    world.advance(5)

    assert len(world.workers) == 1


def test_end_of_a_run_needs_no_word_that_it_waits_no_more(world: Simulation) -> None:
    say_join(world, "parent")
    worker = running(world, "parent")
    assert worker.running is not None

    world.say(worker.peer, Done(worker.running.ticket, "SUCCESS", b"value"))

    assert world.scheduler.pool.joining() == []
