"""What is due when; and the line of those that wait for a worker: what is told of it happens."""

from __future__ import annotations

from itertools import islice
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from nbtasks.core.agenda import FEW, Agenda, Ready
from nbtasks.core.messages import Now, Policy, Revoke
from nbtasks.core.states import DONE, QUEUED
from nbtasks.core.tasks import Task
from nbtasks.core.workers import PLACES, SIGHT
from nbtasks.simulation import CLIENT, Simulation

QUEUES = ("default", "gpu", "io")

#: (client, queue, priority, whether it goes to the front, whether one is taken before it comes)
ARRIVALS = st.lists(
    st.tuples(
        st.sampled_from([b"a", b"b", b"c"]),
        st.sampled_from(QUEUES),
        st.integers(0, 2),
        st.booleans(),
        st.booleans(),
    ),
    max_size=30,
)
SERVED = st.lists(st.sampled_from((*QUEUES, "none")), unique=True).map(tuple)


def queued(seq: int, client: bytes = b"a", queue: str = "default", priority: int = 5) -> Task:
    return Task(seq, f"t{seq}", b"", "f", client, priority, queue, "queued")


def take(ready: Ready, served: tuple[str, ...]) -> Task | None:
    level = ready.first(served)
    return None if level is None else ready.take(level)


#: Clients that come before others.
AHEAD = st.lists(st.sampled_from([b"a", b"b", b"none"]), unique=True)


@given(ARRIVALS, SERVED, AHEAD, AHEAD)
def test_line_has_the_order_in_which_tasks_are_taken(arrivals, served, ahead, ahead_now):
    ready = Ready()
    ready.put_ahead(ahead)
    for seq, (client, queue, priority, front, taken) in enumerate(arrivals):
        if taken:
            take(ready, ())
        ready.push(queued(seq, client, queue, priority), front)
    ready.put_ahead(ahead_now)

    line = [task.seq for task in ready.line(served)]
    lengths = ready.lengths()

    assert sum(lengths.values()) == len(ready)
    taken_out = []
    while (task := take(ready, served)) is not None:
        taken_out.append(task.seq)
    assert line == taken_out
    assert not served or len(line) == sum(lengths.get(name, 0) for name in served)


@pytest.mark.parametrize("queues", [("default",), QUEUES])
def test_clients_put_ahead_come_first_and_take_no_turn_from_others(queues) -> None:
    ready = Ready()
    for seq in range(12):
        ready.push(queued(seq, b"abcd"[seq % 4 :][:1], queues[seq // 4 % len(queues)]))
    ready.push(queued(12, b"a", priority=6))
    ready.put_ahead([b"c", b"d"])

    taken = []
    while (task := take(ready, ())) is not None:
        taken.append(task.client)
        if len(taken) == 4:
            ready.put_ahead([b"d"])

    assert b"".join(taken) == b"acccdddababab"


def test_first_of_those_ahead_is_by_client_and_then_by_priority() -> None:
    ready = Ready()
    for seq, (client, queue, priority) in enumerate(
        [(b"a", "io", 9), (b"b", "io", 1), (b"b", "default", 3), (b"b", "gpu", 5)]
    ):
        ready.push(queued(seq, client, queue, priority))
    assert ready.first_ahead(()) is None
    ready.put_ahead([b"none", b"b"])

    found = [ready.first_ahead(queues) for queues in ((), ("io", "default"), ("io",), ("none",))]

    assert [level and level.head().seq for level in found] == [3, 2, 1, None]


def test_what_was_revoked_takes_no_turn_of_its_client() -> None:
    ready = Ready()
    tasks = [queued(seq, client) for client in (b"a", b"b") for seq in range(4)]
    for task in tasks:
        ready.push(task)
    for task in tasks[:3]:  # all but the last of the first client
        task.phase = DONE
        ready.give_up()

    told = [task.client for task in ready.line(()) if task.phase == QUEUED]
    taken = []
    while (level := ready.first(())) is not None:
        if level.head().phase == QUEUED:
            taken.append(ready.take(level).client)
        else:
            ready.drop(level)

    assert told == taken == [b"a", b"b", b"b", b"b", b"b"]


def test_looking_at_the_line_takes_nothing_out():
    ready = Ready()
    for seq in range(3):
        ready.push(queued(seq))

    first = [task.seq for task in islice(ready.line(()), 2)]

    assert first == [0, 1]
    assert len(ready) == 3
    assert [task.seq for task in ready.line(())] == [0, 1, 2]


# ------------------------------------------------------------------------------------- places


def places(world: Simulation) -> dict[str, int]:
    return world.scheduler.pool.places(world.now)


def test_places_are_the_order_in_which_tasks_then_run():
    world = Simulation(workers=1)
    for number in range(12):
        world.submit(client=(b"client", b"other")[number % 3 == 0], priority=number % 2)

    told = places(world)
    world.run()

    begun = [task_id for task_id in world.order if task_id in told]
    assert begun == sorted(told, key=told.__getitem__)
    assert sorted(told.values()) == list(range(1, 12))


def test_only_the_first_are_told_their_place():
    world = Simulation(workers=1)
    for _ in range(PLACES + 50):
        world.submit()

    assert len(places(world)) == PLACES


def test_cancelled_tasks_have_no_place_and_hold_none():
    world = Simulation(workers=1)
    ids = [world.submit() for _ in range(4)]
    world.say(CLIENT, Revoke((ids[1],)))

    assert places(world) == {ids[2]: 1, ids[3]: 2}


def test_cost_is_bounded_when_the_line_is_full_of_cancelled_tasks():
    world = Simulation(workers=1)
    ids = [world.submit() for _ in range(2 * SIGHT)]
    world.say(CLIENT, Revoke(tuple(ids[1 : SIGHT + 10])))

    assert places(world) == {}


def test_each_line_is_counted_for_the_workers_that_serve_it():
    world = Simulation(workers=0)
    world.add_worker(("default",))
    world.add_worker(("gpu",))
    running = [world.submit(queue=queue) for queue in ("default", "gpu")]
    first, second, third = (world.submit(queue=queue) for queue in ("default", "default", "gpu"))
    unserved = world.submit(queue="io")

    assert places(world) == {first: 1, second: 2, third: 1}
    assert unserved not in places(world)
    assert {world.phase(task_id) for task_id in running} == {"running"}


def test_task_that_its_rate_limit_holds_back_lets_others_pass():
    world = Simulation(workers=1)
    world.submit(seconds=100, policy=Policy(interval=60.0))
    limited = [world.submit(policy=Policy(interval=60.0)) for _ in range(2)]
    free = world.submit()

    assert places(world) == {free: 1}

    world.advance(61)
    assert places(world) == {limited[0]: 1, free: 2}


@pytest.mark.parametrize(
    "call", [{"expires": 1e9}, {"policy": Policy(time_limit=1e6)}, {"countdown": 1e6}]
)
def test_tasks_that_are_over_leave_the_agenda(call: dict[str, Any]) -> None:
    world = Simulation(workers=1)
    for _ in range(2 * FEW):
        task_id = world.submit(seconds=0.1, **call)
        world.advance(0.1)
        world.say(CLIENT, Revoke((task_id,)))

    assert not world.scheduler.tasks
    assert len(world.scheduler.agenda) <= FEW


def test_what_is_due_is_due_in_its_order_though_others_are_over() -> None:
    agenda = Agenda()
    tasks = [queued(seq) for seq in range(2 * FEW)]
    for task in reversed(tasks):
        agenda.add_boot(float(task.seq), "start", task)
        task.phase = DONE if task.seq % 3 else QUEUED
    agenda.add_boot(0.5, "joins", None)

    due = [entry.subject for entry in agenda.due(Now(0.0, 1e9))]

    assert [task for task in due if task is None or task.phase == QUEUED] == [
        tasks[0],
        None,
        *tasks[3::3],
    ]


def test_tasks_that_are_over_do_not_stand_in_the_line() -> None:
    world = Simulation(workers=1)
    world.submit(seconds=1e6)
    ids = [world.submit(queue=QUEUES[n % 3], priority=n % 2) for n in range(3 * FEW)]
    pool = world.scheduler.pool

    world.say(CLIENT, Revoke(tuple(ids[1:])))

    assert pool.ready.lengths() == {QUEUES[0]: 1}
    assert len(pool.ready) == 1
    assert len(list(pool.ready.line(()))) <= FEW + 1
    world.add_worker()
    world.advance(1)
    assert world.state(ids[0]) == "SUCCESS"
    assert not pool.ready


def test_tasks_that_are_over_starve_nobody() -> None:
    world = Simulation(workers=1)
    world.submit(seconds=1e6)
    world.advance(1)
    ids = tuple(world.submit() for _ in range(3))
    (worker,) = world.scheduler.workers.values()
    worker.joining = True
    assert world.scheduler.pool.starved()

    world.say(CLIENT, Revoke(ids))

    assert not world.scheduler.pool.starved()
