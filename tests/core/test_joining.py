"""Tasks that wait for other tasks: their workers give up their places in the pool meanwhile."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from nbtasks.core.messages import Done, Hello, Joining, Pool, Recall, Scale, Stop
from nbtasks.core.scheduler import Scheduler
from nbtasks.core.staff import FREELY, GRACE, HESITATION, LINGER, LOOK, MOST, STANDSTILL
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


def inside(world: Simulation, task_id: str) -> bytes:
    """Return the client of the process in which a task runs."""
    worker = running(world, task_id)
    peer = b"client-in-" + worker.peer
    if peer not in world.scheduler.clients:
        world.say(peer, Hello("client", "c", worker.pid, "3.11"))
    return peer


def let_end(world: Simulation, task_id: str) -> None:
    say_join(world, task_id, over=True)
    running(world, task_id).ends_at = world.now.boot
    world.advance(0)


def dig(world: Simulation, length: int) -> list[str]:
    """Let a chain of so many tasks wait, each for the next; return them, and one more that runs."""
    chain = ["parent", *(f"{n}" for n in range(length))]
    for parent, child in pairwise(chain):
        world.submit(task_id=child, seconds=LONG, client=inside(world, parent))
        say_join(world, parent)
        world.advance(2 * SOON)
        assert world.phase(child) == "running"
    return chain


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


# ------------------------------------------------------------------------- trees of such tasks


def test_where_many_wait_what_the_deepest_has_sent_comes_first(world: Simulation) -> None:
    early = [world.submit() for _ in range(3)]
    late = [world.submit(client=inside(world, "parent")) for _ in range(3)]
    child = world.submit(task_id="child", client=inside(world, "parent"), seconds=LONG, priority=6)
    say_join(world, "parent")
    world.advance(SOON)
    grandchildren = [world.submit(client=inside(world, child)) for _ in range(2)]
    say_join(world, child)

    world.advance(2 * SOON + 2)
    let_end(world, child)
    world.advance(2 * SOON + 7)

    assert world.order[:4] == ["parent", child, *grandchildren]
    # Now that only one waits, it is the others' turn as well.
    assert world.order[4:] == [late[0], early[0], late[1], early[1], late[2], early[2]]


def test_what_was_sent_before_by_one_that_does_not_wait_has_no_privilege(world: Simulation) -> None:
    early = world.submit()
    late = world.submit(client=inside(world, "parent"))
    running(world, "parent").ends_at = world.now.boot

    world.advance(3)

    assert world.order == ["parent", early, late]


def test_who_waits_no_more_has_no_privilege(world: Simulation) -> None:
    child = world.submit(client=inside(world, "parent"))
    say_join(world, "parent")
    world.advance(SOON + 1)
    early = world.submit()
    late = world.submit(client=inside(world, "parent"))
    let_end(world, "parent")

    world.advance(LINGER + 2 * LOOK)

    assert world.order == ["parent", child, early, late]


def test_the_more_wait_the_fewer_go_on() -> None:
    world = world_of(4)
    parents = [world.submit(seconds=LONG) for _ in range(4)]
    at_once = []
    while len(world.scheduler.pool.joining()) < FREELY + 6:
        for parent in parents:
            for _ in range(4):
                world.submit(seconds=LONG, client=inside(world, parent))
        for parent in parents:
            say_join(world, parent)
        world.advance(3 * SOON)
        waiting = {worker.name for worker in world.scheduler.pool.joining()}
        begun = [w for w in world.workers.values() if w.running and w.name not in waiting]
        parents = [w.running.call.id for w in begun if w.running and w.running.call]
        at_once.append(len(parents))

    assert at_once == [4, 4, 4, 4, 1, 1, 1]


def test_a_place_is_kept_for_what_is_on_its_way(world: Simulation) -> None:
    *_, above, deepest = dig(world, FREELY + 1)
    world.submit(task_id="other", client=inside(world, above), seconds=LONG)
    world.submit(task_id="first", client=inside(world, deepest))
    say_join(world, deepest)
    world.advance(SOON)
    assert world.phase("first") == "running"
    running(world, "first").ends_at = world.now.boot

    world.advance(HESITATION / 2)
    assert (world.state("first"), world.phase("other")) == ("SUCCESS", "queued")
    say_join(world, deepest, over=True)
    say_join(world, deepest)
    world.submit(task_id="second", client=inside(world, deepest), seconds=LONG)
    world.advance(2 * SOON)

    assert (world.phase("second"), world.phase("other")) == ("running", "queued")


def test_while_many_go_on_nobody_hesitates() -> None:
    world = world_of(FREELY + 4)
    parents = [world.submit(seconds=LONG) for _ in range(FREELY + 2)]
    for parent in parents[1:]:
        for _ in range(4):
            world.submit(client=inside(world, parent), seconds=LONG)
    for parent in parents:
        say_join(world, parent)
    world.advance(2 * SOON)
    said = len(world.order)
    say_join(world, parents[0], over=True)
    say_join(world, parents[0])

    running(world, world.order[-1]).ends_at = world.now.boot
    world.advance(0)

    assert len(world.order) == said + 1  # at once, whoever is the deepest


def test_where_nothing_is_on_its_way_another_branch_goes_on(world: Simulation) -> None:
    chain = dig(world, FREELY + 1)
    world.submit(task_id="other", client=inside(world, chain[-2]), seconds=LONG)
    say_join(world, chain[-1])

    world.advance(2 * SOON)

    assert world.phase("other") == "running"


def test_who_waits_too_deep_is_told_so_and_the_others_go_on(world: Simulation) -> None:
    chain = dig(world, MOST)
    world.submit(task_id="too deep", client=inside(world, chain[-1]))
    other = world.submit()
    say_join(world, chain[-1])

    world.advance(STANDSTILL / 2)
    assert world.phase("too deep") == "queued"
    world.advance(STANDSTILL + 2 * LOOK)

    assert world.state("too deep") == "FAILURE"
    (event,) = world.events("too deep")
    assert "all 33 workers run tasks that wait for others" in event.text
    for task_id in reversed(chain):
        let_end(world, task_id)
    world.advance(LINGER)
    assert world.state(other) == "SUCCESS"


def test_who_waits_too_deep_is_told_so_beside_an_idle_worker_of_another_queue() -> None:
    world = world_of(1)
    world.add_worker(("gpu",))
    world.say(SUPERVISOR, Pool(tuple(world.workers), 2))
    world.submit(task_id="parent", seconds=LONG)
    world.advance(1)
    chain = dig(world, MOST)
    world.submit(task_id="too deep", client=inside(world, chain[-1]))
    say_join(world, chain[-1])

    world.advance(STANDSTILL + 3 * LOOK)

    assert world.state("too deep") == "FAILURE"


def test_nobody_is_told_so_while_what_all_wait_for_may_still_come(world: Simulation) -> None:
    chain = dig(world, MOST)
    world.submit(task_id="later", client=inside(world, chain[-1]), countdown=LONG)
    other = world.submit()
    say_join(world, chain[-1])

    world.advance(10 * STANDSTILL)

    assert (world.phase("later"), world.phase(other)) == ("scheduled", "queued")


@pytest.mark.parametrize("beside", ["a long run of another", "an idle worker of another queue"])
def test_what_others_do_takes_no_place_of_a_tree(beside: str) -> None:
    world = Simulation(1)
    if beside == "a long run of another":
        world.submit(seconds=1e9)
        world.add_worker()
    else:
        world.add_worker(("gpu",))
    world.say(SUPERVISOR, Pool(tuple(world.workers), 2))
    world.submit(task_id="parent", seconds=LONG, client=b"mine")
    world.advance(1)

    assert len(dig(world, MOST)) == MOST + 1


def test_runs_that_have_just_come_leave_a_place_for_what_others_wait_for() -> None:
    world = world_of(2)
    parents = [world.submit(seconds=1e9, priority=9) for _ in range(40)]
    begun: list[str] = []
    for _ in range(200):
        for parent in parents:
            if parent not in begun and world.phase(parent) == "running":
                begun.append(parent)
                client = inside(world, parent)
                world.submit(task_id=f"child of {parent}", client=client, countdown=20.0)
                say_join(world, parent)
            elif parent in begun and world.state(f"child of {parent}") == "SUCCESS":
                if world.phase(parent) == "running":
                    let_end(world, parent)
        world.advance(0.5)

    assert {world.state(parent) for parent in parents} == {"SUCCESS"}


def test_others_begin_where_those_that_wait_have_sent_nothing(world: Simulation) -> None:
    chain = dig(world, FREELY)
    awaited = world.submit()
    say_join(world, chain[-1])

    world.advance(2 * SOON + 1)

    assert world.state(awaited) == "SUCCESS"


def test_only_what_the_deepest_waits_for_may_be_in_vain(world: Simulation) -> None:
    thrown_in = [world.submit(client=inside(world, "parent"), seconds=LONG) for _ in range(3)]
    world.submit(task_id="0", client=inside(world, "parent"), seconds=LONG, priority=9)
    say_join(world, "parent")
    world.advance(2 * SOON)
    for n in range(MOST - 1):
        inner = inside(world, f"{n}")
        world.submit(task_id=f"{n + 1}", client=inner, seconds=LONG, priority=9)
        say_join(world, f"{n}")
        world.advance(2 * SOON)
    world.submit(client=inside(world, f"{MOST - 1}"), countdown=100.0)
    say_join(world, f"{MOST - 1}")

    world.advance(20 * STANDSTILL)

    assert {world.phase(task_id) for task_id in thrown_in} == {"queued"}


#: Trees: how many children each task has that waits, the deepest ones none.
TREES = st.recursive(
    st.just([]), lambda trees: st.lists(trees, min_size=1, max_size=4), max_leaves=40
)


def depth(tree: list) -> int:
    return 1 + max(map(depth, tree), default=0)


@settings(max_examples=60, deadline=None)
@given(
    tree=TREES.filter(lambda tree: depth(tree) <= 9),
    workers=st.integers(1, 6),
    has_own_queue=st.booleans(),
    others_run=st.integers(0, 1),
)
def test_any_tree_that_is_not_too_deep_comes_to_its_end(
    tree: list, workers: int, has_own_queue: bool, others_run: int
) -> None:
    world = Simulation(workers + others_run)
    if has_own_queue:
        world.add_worker(("gpu",))
    wanted = len(world.workers)
    world.say(SUPERVISOR, Pool(tuple(world.workers), wanted))
    for _ in range(others_run):
        world.submit(seconds=1e9, client=b"other")
    trees = {world.submit(task_id="root", seconds=LONG): tree}
    children: dict[str, list[str]] = {}
    while world.state("root") != "SUCCESS":
        for worker in list(world.workers.values()):
            task_id = worker.running.call.id if worker.running and worker.running.call else ""
            if task_id not in trees:
                continue
            if task_id not in children:
                client = inside(world, task_id)
                children[task_id] = []
                for number, subtree in enumerate(trees[task_id]):
                    countdown = 3.0 * (number % 2) or None
                    child = world.submit(seconds=LONG, client=client, countdown=countdown)
                    trees[child] = subtree
                    children[task_id].append(child)
                if children[task_id]:
                    say_join(world, task_id)
            elif all(world.state(child) == "SUCCESS" for child in children[task_id]):
                let_end(world, task_id)
        world.advance(0.02)
        assert world.now.boot < 300

    assert len(world.workers) <= wanted + MOST
    assert {world.state(task_id) for task_id in trees} == {"SUCCESS"}
