"""What the scheduler makes of the death of a worker, and of a silence that is none."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from nbtasks.core.deaths import MAX_DEATHS, MOURNING, ordinal
from nbtasks.core.messages import (
    Call,
    Died,
    Done,
    Handling,
    Held,
    Hello,
    Kill,
    Now,
    Policy,
    Prepared,
    Returned,
    Run,
    Submit,
)
from nbtasks.core.scheduler import Scheduler
from nbtasks.core.turn import Send
from nbtasks.core.workers import LOADING
from nbtasks.simulation import CLIENT, SUPERVISOR, Plan, Simulation


@pytest.fixture
def world() -> Simulation:
    return Simulation(workers=1)


def die(world: Simulation, **more: Any) -> None:
    """Let the only worker die in the midst of what it runs, and another one come."""
    (worker,) = world.workers.values()
    del world.workers[worker.name]
    code = more.pop("code", -9)
    world.say(SUPERVISOR, Died(worker.name, 1, code, worker.started, worker.finished, **more))
    world.add_worker()
    world.advance(0.1)


def error_of(world: Simulation, task_id: str) -> tuple[str, list[Any]]:
    name, args = json.loads(world.events(task_id)[-1].text)
    return name, args


def test_late_acked_task_is_not_put_back_where_that_is_not_wanted(world: Simulation) -> None:
    policy = Policy(acks_late=True, reject_on_worker_lost=False)
    task_id = world.submit(seconds=10, policy=policy)
    world.advance(1)

    die(world)

    assert world.state(task_id) == "FAILURE"
    assert "reject_on_worker_lost=True" in error_of(world, task_id)[1][0]


def bury(world: Simulation, unheard: int) -> str:
    """Let the only worker die with so many of its messages not there yet; return the state then."""
    task_id = world.submit(seconds=10)
    world.advance(1)
    (worker,) = world.workers.values()
    heard = world.scheduler.workers[worker.name].heard
    world.say(SUPERVISOR, Died(worker.name, 1, -9, worker.started, sent=heard + unheard))
    world.advance(MOURNING / 2)
    return world.state(task_id)


def test_task_that_was_put_back_may_die_as_often_as_any_other(world: Simulation) -> None:
    task_id = world.submit(ends="requeue die", policy=Policy(acks_late=True))
    world.run()

    assert world.runs[task_id] == 1 + MAX_DEATHS
    assert f"It was the {ordinal(MAX_DEATHS)} death" in error_of(world, task_id)[1][0]


def test_task_that_was_put_back_is_redelivered_by_the_next_broker_too(world: Simulation) -> None:
    world.submit(seconds=10)
    world.submit(task_id="task", ends="requeue ok")
    (worker,) = world.workers.values()
    world.advance(10.5)  # it is put back half a second later
    world.submit(seconds=10, priority=9)
    world.advance(1)
    assert world.phase("task") == "queued"

    world.restart_broker()
    world.advance(10)

    assert worker.running is not None
    assert worker.running.call.id == "task"  # type: ignore[union-attr]
    assert worker.running.redelivered


def test_nothing_is_waited_for_where_all_that_the_dead_had_sent_is_there(world) -> None:
    assert bury(world, unheard=0) == "FAILURE"


def test_what_the_dead_had_sent_is_waited_for(world) -> None:
    assert bury(world, unheard=1) == "PENDING"


def test_second_hello_is_none_of_the_messages_that_are_counted(world) -> None:
    (worker,) = world.workers.values()
    before = world.scheduler.workers[worker.name].heard

    world.say(worker.peer, Hello("worker", worker.name, 1, "3.11"))

    assert world.scheduler.workers[worker.name].heard == before


def test_worker_whose_hello_is_read_after_the_news_of_its_death_gets_nothing() -> None:
    world = Simulation(workers=0)
    world.scheduler.receive(SUPERVISOR, Died("late", 1, -9), world.now)
    world.scheduler.receive(b"late", Hello("worker", "late", 1, "3.11"), world.now)
    task_id = world.submit()
    world.advance(1)

    world.add_worker()
    world.run()

    assert world.state(task_id) == "SUCCESS"


def test_reason_and_last_words_are_told(world: Simulation) -> None:
    task_id = world.submit(seconds=10)
    world.advance(1)

    die(world, peak_memory=5_000_000, words="Its words: over", why="stood still and was killed")

    name, (text,) = error_of(world, task_id)
    assert name == "WorkerLostError"
    assert "The worker process stood still and was killed (peak memory 5 MB) while" in text
    assert text.endswith(" Its words: over")


def test_run_that_took_too_much_memory_ends_with_both_figures(world: Simulation) -> None:
    task_id = world.submit(seconds=10, policy=Policy(memory_limit=100, acks_late=True))
    world.advance(1)

    die(world, taken=120)

    assert error_of(world, task_id) == ("MemoryLimitExceeded", [100, 120])


def test_run_that_took_too_much_memory_is_repeated_as_one_that_took_too_long(
    world: Simulation,
) -> None:
    policy = Policy(memory_limit=100, acks_late=True, acks_on_timeout=False)
    task_id = world.submit(seconds=10, policy=policy)
    world.advance(1)

    die(world, taken=120)

    assert world.state(task_id) == "PENDING"
    world.run()
    assert world.state(task_id) == "SUCCESS"
    assert world.runs[task_id] == 2


def test_outcome_that_the_dead_left_is_taken_and_harms_no_call_behind_it(
    world: Simulation,
) -> None:
    task_id = world.submit(seconds=10)
    world.advance(1)
    (worker,) = world.workers.values()
    assert worker.running is not None

    outcome = Done(worker.running.ticket, "SUCCESS", b"value")
    die(world, outcomes=(outcome,))

    assert world.state(task_id) == "SUCCESS"
    assert world.events(task_id)[-1].body == b"value"


def test_silent_worker_is_given_up_only_when_the_supervisor_does_not_know_it(
    world: Simulation,
) -> None:
    task_id = world.submit(seconds=1_000, policy=Policy(acks_late=True))
    world.advance(1)
    (name,) = world.workers
    later = Now(world.now.wall + 100, world.now.boot + 100)

    for known, expected in (((name,), "running"), ((), "queued")):
        scheduler = Scheduler(world.store, first_ticket=1 << 40, first_seq=100)
        scheduler.restore(world.store.open_tasks(), world.now)
        scheduler.receive(SUPERVISOR, Hello("supervisor", "s", 1, "3.11", workers=known), world.now)
        scheduler.tick(later)

        assert scheduler.tasks[task_id].phase == expected


def test_time_limit_holds_for_a_run_of_which_the_broker_has_not_heard(world: Simulation) -> None:
    task_id = world.submit(seconds=1_000, policy=Policy(time_limit=5.0))
    (name,) = world.workers
    scheduler = Scheduler(world.store, first_ticket=1 << 40, first_seq=100)
    for row in world.store.open_tasks():
        row.phase = "assigned"
        scheduler.restore([row], world.now)
    scheduler.receive(SUPERVISOR, Hello("supervisor", "s", 1, "3.11", workers=(name,)), world.now)
    ticket = scheduler.tasks[task_id].ticket

    def kills_after(seconds: float) -> list[Any]:
        instant = Now(world.now.wall + seconds, world.now.boot + seconds)
        scheduler.tick(instant)
        mail = scheduler.committed().mail.get(SUPERVISOR, [])
        return [said.message for said in mail if isinstance(said, Send)]

    assert kills_after(4.9) == []
    assert kills_after(5.1) == [Kill(name, ticket)]


def test_idle_worker_runs_the_handlers_of_what_a_limit_has_ended() -> None:
    world = Simulation(workers=2)
    policy = Policy(time_limit=3.0, handlers=True)
    task_id = world.submit(seconds=1_000, policy=policy)
    heard = []
    deliver = world._deliver
    world._deliver = lambda peer, send: (  # type: ignore[method-assign]
        heard.append((peer, send.message))
        if getattr(send.message, "verdict", "")
        else deliver(peer, send)
    )

    world.run()
    world.advance(1)

    assert world.state(task_id) == "FAILURE"
    ((peer, run),) = heard
    assert isinstance(run, Run)
    assert json.loads(run.verdict) == ["TimeLimitExceeded", [3.0]]

    world.submit(seconds=10)
    world.say(peer, Returned((run.ticket,)))  # called back before they began

    assert [json.loads(again.verdict) for _, again in heard[1:]] == [json.loads(run.verdict)]
    assert [told.runs for _, told in heard] == [1, 2]  # the other task goes on beside the second


def test_worker_with_the_handlers_of_a_killed_run_gets_nothing_else() -> None:
    world = Simulation(workers=2)
    world.submit(seconds=1_000, policy=Policy(time_limit=3.0, handlers=True))
    deliver = world._deliver
    given = []
    world._deliver = lambda peer, send: (  # type: ignore[method-assign]
        given.append((peer, send.message))
        if getattr(send.message, "verdict", "")
        else deliver(peer, send)
    )
    world.run()
    world.advance(1)
    ((peer, run),) = given

    others = [world.submit() for _ in range(3)]
    world.run()

    workers = {world.store.find(task_id).worker for task_id in others}  # type: ignore[union-attr]
    assert len(workers) == 1
    assert workers != {peer.decode()}
    world.say(peer, Handling(run.ticket, "task-0", over=True))
    more = [world.submit() for _ in range(2)]
    world.run()
    assert {world.store.find(task_id).worker for task_id in more} == {  # type: ignore[union-attr]
        *workers,
        peer.decode(),
    }


# --------------------------------------------------------------- who takes the place of the dead


def lose(world: Simulation, name: str) -> None:
    """Let a worker die, another one come, and the news of both get about."""
    world.kill(name)
    world.advance(2 * MOURNING)


def prepared(world: Simulation) -> list[list[bytes]]:
    return [worker.prepared for worker in world.workers.values()]


def test_new_worker_loads_ahead_what_the_dead_one_ran_last(world: Simulation) -> None:
    world.submit(seconds=1)
    world.advance(2)

    lose(world, *world.workers)

    (policy,) = world.store.definitions
    assert prepared(world) == [[policy]]


def test_worker_that_was_never_used_leaves_what_it_had_loaded_ahead(world: Simulation) -> None:
    world.submit(seconds=1)
    world.advance(2)

    lose(world, *world.workers)
    lose(world, *world.workers)

    assert prepared(world) == [list(world.store.definitions)]


def test_function_is_loaded_ahead_only_once_a_call_of_it_has_ended() -> None:
    world = Simulation(workers=2)
    world.submit(seconds=5)
    world.submit(seconds=10)
    world.advance(1)

    lose(world, next(iter(world.workers)))
    assert prepared(world) == [[], []]

    world.advance(10)
    assert prepared(world) == [[], list(world.store.definitions)]


def test_second_worker_loads_ahead_what_the_first_has_run_and_no_third() -> None:
    world = Simulation(workers=3)
    world.submit(seconds=1)
    world.advance(0.5)
    assert prepared(world) == [[], [], []]

    world.advance(1)
    world.submit(seconds=1)
    world.advance(2)

    assert prepared(world) == [[], list(world.store.definitions), []]


def test_function_that_a_worker_has_found_by_name_is_loaded_ahead_by_none() -> None:
    world = Simulation(workers=2)
    world.plans["named"] = Plan(1.0, ("ok",))

    world.say(CLIENT, Submit(1, (Call("named", b"", "module.function", b"x"),)))
    world.advance(2)

    assert world.phase("named") == "done"
    assert prepared(world) == [[], []]


def second_worker_that_loads(first_takes: float) -> tuple[Simulation, str]:
    """Let a worker load ahead and not get done; return its name."""
    world = Simulation(workers=2)
    world.loads = False
    world.submit(seconds=first_takes)
    world.advance(2)
    (name,) = (name for name, worker in world.workers.items() if worker.prepared)
    return world, name


def test_worker_that_loads_ahead_gets_no_call_before_it_is_done() -> None:
    world, loading = second_worker_that_loads(first_takes=1)
    first = world.submit(seconds=1)
    second = world.submit(seconds=1)
    world.advance(0.5)
    assert [world.phase(first), world.phase(second)] == ["running", "queued"]

    world.say(loading.encode(), Prepared(*world.store.definitions))
    world.advance(0.1)

    assert world.phase(second) == "running"


def test_calls_keep_their_order_while_another_worker_loads_ahead() -> None:
    world, _ = second_worker_that_loads(first_takes=0.0001)

    calls = [world.submit(seconds=0.0001) for _ in range(50)]
    world.run()

    assert world.order[-50:] == calls


def test_worker_whose_link_broke_while_it_loaded_ahead_gets_calls_again() -> None:
    world, loading = second_worker_that_loads(first_takes=1)
    world.submit(seconds=9)

    world.say(loading.encode(), Hello("worker", loading, 2, "3.11"))
    task_id = world.submit(seconds=9)
    world.advance(0.1)

    assert world.phase(task_id) == "running"


def test_what_has_killed_whoever_loaded_it_ahead_is_not_loaded_ahead_again() -> None:
    world, loading = second_worker_that_loads(first_takes=1)

    lose(world, loading)
    world.advance(1)

    assert prepared(world) == [[], []]


def test_what_has_killed_whoever_loaded_it_ahead_is_so_once_a_call_has_ended_again() -> None:
    world, loading = second_worker_that_loads(first_takes=1)
    lose(world, loading)

    world.submit(seconds=1)
    world.advance(2)

    assert prepared(world) == [[], list(world.store.definitions)]


def test_worker_that_still_loads_when_its_link_is_back_gets_no_call() -> None:
    world, loading = second_worker_that_loads(first_takes=1)
    world.submit(seconds=90)
    (digest,) = world.store.definitions

    world.say(loading.encode(), Hello("worker", loading, 2, "3.11", prepares=digest))
    task_id = world.submit(seconds=9)
    world.advance(0.1)
    assert world.phase(task_id) == "queued"

    world.advance(LOADING + 2 * MOURNING)
    assert loading not in world.workers
    assert world.phase(task_id) == "running"


def test_worker_that_never_gets_done_with_loading_ahead_is_replaced() -> None:
    world, loading = second_worker_that_loads(first_takes=1)

    world.advance(LOADING + 2 * MOURNING)

    assert loading not in world.workers
    assert len(world.workers) == 2
    assert prepared(world) == [[], []]


def test_new_broker_hears_what_the_function_wants_that_a_worker_has_found_by_its_name() -> None:
    world = Simulation(workers=1)
    task_id = world.submit(seconds=10, policy=Policy())
    (call,) = world.store.calls.values()
    by_name = msgspec.structs.replace(call, id="by name", name="module.f", definition=b"")
    world.plans["by name"] = world.plans[task_id]
    world.say(CLIENT, Submit(7, (by_name,)))
    world.advance(11)
    assert world.phase(task_id) == "done"
    assert world.phase("by name") == "running"
    (worker,) = world.workers.values()

    world.restart_broker()
    wanted = Policy(acks_late=True)
    held = (Held(worker.running.ticket, "by name", True),)
    hello = Hello("worker", worker.name, 1, "3.11", (), held, found=(by_name.name, wanted))
    world.say(worker.peer, hello)
    lose(world, worker.name)

    assert world.phase("by name") == "running"


def test_worker_of_other_queues_does_not_load_it_ahead() -> None:
    world = Simulation(workers=0)
    for queue in ("quick", "slow"):
        world.add_worker((queue,))
    world.submit(seconds=1, queue="quick")

    world.advance(2)

    assert prepared(world) == [[], []]


def test_worker_that_gets_a_call_at_once_loads_nothing_ahead(world: Simulation) -> None:
    world.submit(seconds=1)
    world.advance(2)
    task_id = world.submit(seconds=10, policy=Policy(acks_late=True))
    world.advance(1)

    lose(world, *world.workers)

    assert prepared(world) == [[]]
    assert world.phase(task_id) == "running"


def test_place_in_another_queue_is_not_taken() -> None:
    world = Simulation(workers=0)
    quick = world.add_worker(("quick",))
    world.submit(seconds=1, queue="quick")
    world.advance(2)

    world.say(SUPERVISOR, Died(world.workers.pop(quick).name, 1, -9, 1, 1, sent=99))
    world.advance(1)
    slow, quick = world.add_worker(("slow",)), world.add_worker(("quick",))

    assert world.workers[slow].prepared == []
    assert world.workers[quick].prepared == list(world.store.definitions)


def test_death_that_is_reported_again_takes_no_other_name_away() -> None:
    world = Simulation(workers=1)
    for _ in range(2):
        world.say(SUPERVISOR, Died("worker-1", 1, -9, sent=0))

    assert list(world.scheduler.deaths.dead) == ["worker-1"]
