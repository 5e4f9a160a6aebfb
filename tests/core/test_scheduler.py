"""The scheduler alone: messages in, decisions out, an invented clock."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest

from nbtasks.core import orders
from nbtasks.core.deaths import MAX_DEATHS
from nbtasks.core.messages import (
    MOST_RETRIES,
    Again,
    Call,
    Define,
    Died,
    Done,
    Follow,
    Forget,
    Handling,
    Hasten,
    Hello,
    Joining,
    Kill,
    Now,
    Output,
    Policy,
    Pool,
    Redo,
    Refused,
    Revoke,
    Run,
    Scale,
    Started,
    Submit,
)
from nbtasks.simulation import CLIENT, SUPERVISOR, Simulation


@pytest.fixture
def world() -> Simulation:
    return Simulation(workers=2)


def finals(world: Simulation, task_id: str) -> list[str]:
    return [event.state for event in world.events(task_id) if event.final]


def test_task_runs_and_ends_once(world: Simulation) -> None:
    task_id = world.submit()

    world.run()

    assert finals(world, task_id) == ["SUCCESS"]
    assert world.phase(task_id) == "done"
    assert not world.scheduler.tasks


def test_countdown_is_never_early(world: Simulation) -> None:
    task_id = world.submit(countdown=5)

    world.advance(4.999)
    assert world.phase(task_id) == "scheduled"

    world.advance(0.002)
    assert world.phase(task_id) in ("assigned", "running")


def test_wall_clock_step_moves_no_countdown(world: Simulation) -> None:
    task_id = world.submit(countdown=10)

    world.now = Now(world.now.wall + 7200, world.now.boot)
    world.advance(9)

    assert world.phase(task_id) == "scheduled"


def test_eta_follows_the_wall_clock(world: Simulation) -> None:
    task_id = world.submit(eta=world.now.wall + 3600)

    world.advance(1)
    world.now = Now(world.now.wall + 3600, world.now.boot)
    world.advance(1)

    assert world.phase(task_id) in ("assigned", "running", "done")


def test_expired_task_never_reaches_a_worker(world: Simulation) -> None:
    for _ in range(2):
        world.submit(seconds=100)
    late = world.submit(expires=world.now.wall + 5)

    world.run()

    assert finals(world, late) == ["REVOKED"]
    assert late not in world.order
    assert "expired" in world.events(late)[-1].text


def test_countdown_beyond_expiry_always_expires(world: Simulation) -> None:
    task_id = world.submit(countdown=10, expires=world.now.wall + 5)

    world.run()

    assert finals(world, task_id) == ["REVOKED"]


def test_retry_runs_again_after_its_delay(world: Simulation) -> None:
    task_id = world.submit(ends="retry:5 retry:7 ok")

    world.run()

    assert [event.state for event in world.events(task_id) if event.kind == "state"] == [
        "RETRY",
        "RETRY",
        "SUCCESS",
    ]
    assert world.now.boot == pytest.approx(15.0)
    assert world.runs[task_id] == 3


def test_retry_past_expiry_ends_revoked(world: Simulation) -> None:
    task_id = world.submit(ends="retry:50 ok", expires=world.now.wall + 10)

    world.run()

    assert finals(world, task_id) == ["REVOKED"]
    assert world.runs[task_id] == 1


def test_running_task_of_a_dead_worker_fails(world: Simulation) -> None:
    task_id = world.submit(ends="die ok")

    world.run()

    assert finals(world, task_id) == ["FAILURE"]
    assert "WorkerLostError" in world.events(task_id)[-1].text
    assert world.runs[task_id] == 1


def test_lost_worker_puts_its_late_acked_task_back_in_the_queue(world: Simulation) -> None:
    task_id = world.submit(ends="die ok", policy=Policy(acks_late=True))

    world.run()

    assert finals(world, task_id) == ["SUCCESS"]
    assert world.runs[task_id] == 2


def test_poison_task_is_given_up_after_three_deaths(world: Simulation) -> None:
    task_id = world.submit(ends="die", policy=Policy(acks_late=True))

    world.run()

    assert finals(world, task_id) == ["FAILURE"]
    assert world.runs[task_id] == MAX_DEATHS


def test_retry_on_worker_lost_counts_as_a_retry(world: Simulation) -> None:
    policy = Policy(retry_on_worker_lost=True, max_retries=1)
    task_id = world.submit(ends="die", policy=policy)

    world.run()

    assert world.runs[task_id] == 2
    assert finals(world, task_id) == ["FAILURE"]


def test_count_of_retries_stops_where_it_could_not_be_read(world: Simulation) -> None:
    policy = Policy(retry_on_worker_lost=True, max_retries=None)
    task_id = world.submit(seconds=10, policy=policy)
    world.advance(1)
    task = world.scheduler.tasks[task_id]
    task.retries = MOST_RETRIES

    world.kill(task.worker)
    world.advance(1)

    assert task.deaths == 1
    assert task.retries == MOST_RETRIES


def test_calls_merely_held_by_a_dead_worker_lose_nothing() -> None:
    world = Simulation(workers=1)
    teacher = world.submit(seconds=0.0001)
    world.run()
    ids = [world.submit(seconds=0.0001) for _ in range(20)]
    name = next(iter(world.workers))

    assert len(world.scheduler.workers[name].held) > 1
    world.kill(name)
    world.run()

    assert world.runs[teacher] == 1
    lost = [task_id for task_id in ids if finals(world, task_id) == ["FAILURE"]]
    assert lost == ids[:1]
    assert all(world.runs[task_id] == 1 for task_id in ids)


def test_answer_from_an_earlier_attempt_is_ignored(world: Simulation) -> None:
    task_id = world.submit(seconds=10, policy=Policy(acks_late=True))
    task = world.scheduler.tasks[task_id]
    name, ticket = task.worker, task.ticket
    world.kill(name)
    world.advance(1)
    assert world.runs[task_id] == 2

    late = Done(ticket, "SUCCESS", b"stale")
    world.say(next(iter(world.workers.values())).peer, late)

    assert not finals(world, task_id)
    world.run()
    assert finals(world, task_id) == ["SUCCESS"]
    assert world.events(task_id)[-1].body == b"value"


def test_higher_priority_starts_first() -> None:
    world = Simulation(workers=1)
    world.submit(seconds=1)
    low = world.submit(priority=0)
    middle = world.submit()
    high = world.submit(priority=9)

    world.run()

    assert world.order[1:] == [high, middle, low]


def test_clients_take_turns() -> None:
    world = Simulation(workers=1)
    mine = [world.submit(seconds=1) for _ in range(3)]
    theirs = [world.submit(seconds=1, client=b"other") for _ in range(2)]

    world.run()

    assert world.order == [mine[0], mine[1], theirs[0], mine[2], theirs[1]] or world.order == [
        mine[0],
        theirs[0],
        mine[1],
        theirs[1],
        mine[2],
    ]


def test_rate_limit_spaces_the_starts() -> None:
    world = Simulation(workers=4)
    policy = Policy(interval=2.0)
    ids = [world.submit(seconds=0.1, policy=policy) for _ in range(4)]

    world.run()

    starts = [event.at for task_id in ids for event in world.events(task_id) if event.kind == "run"]
    assert [round(b - a, 3) for a, b in pairwise(starts)] == [2.0, 2.0, 2.0]


def test_worker_serves_only_its_queues() -> None:
    world = Simulation(workers=0)
    world.add_worker(queues=("gpu",))
    plain = world.submit()
    gpu = world.submit(queue="gpu")

    world.advance(10)

    assert world.state(gpu) == "SUCCESS"
    assert world.phase(plain) == "queued"


def test_short_calls_behind_a_long_one_are_called_back() -> None:
    world = Simulation(workers=2)
    for _ in range(2):
        world.submit(seconds=0.0001)
    world.run()
    long = world.submit(seconds=100)
    shorts = [world.submit(seconds=0.0001) for _ in range(50)]

    world.advance(1)

    assert all(world.state(task_id) == "SUCCESS" for task_id in shorts)
    assert world.state(long) == "PENDING"


def test_they_are_called_back_though_calls_wait_where_nobody_is_idle() -> None:
    world = Simulation(workers=0)
    for queue in ("default", "default", "gpu"):
        world.add_worker((queue,))
    for _ in range(2):
        world.submit(seconds=1_000, queue="gpu", policy=Policy(max_retries=7))
    for _ in range(2):
        world.submit(seconds=0.0001)
    world.advance(1)
    world.submit(seconds=100)
    short = [world.submit(seconds=0.0001) for _ in range(50)]

    world.advance(1)

    assert {world.state(task_id) for task_id in short} == {"SUCCESS"}


def test_revoking_what_waits_ends_it_at_once(world: Simulation) -> None:
    task_id = world.submit(countdown=100)

    world.say(CLIENT, Revoke((task_id,)))

    assert finals(world, task_id) == ["REVOKED"]


def test_revoking_what_runs_lets_it_go_on(world: Simulation) -> None:
    task_id = world.submit(seconds=5)
    world.advance(1)

    world.say(CLIENT, Revoke((task_id,)))
    world.run()

    assert finals(world, task_id) == ["SUCCESS"]


def test_terminating_what_runs_kills_its_worker_only(world: Simulation) -> None:
    task_id, other = world.submit(seconds=50), world.submit(seconds=50)
    world.advance(1)

    world.say(CLIENT, Revoke((task_id,), terminate=True))
    world.run()

    assert finals(world, task_id) == ["REVOKED"]
    assert "terminated" in world.events(task_id)[-1].text
    assert finals(world, other) == ["SUCCESS"]


def test_revoked_while_it_ran_is_not_retried(world: Simulation) -> None:
    task_id = world.submit(seconds=5, ends="retry:10 ok")
    world.advance(1)

    world.say(CLIENT, Revoke((task_id,)))
    world.run()

    assert finals(world, task_id) == ["REVOKED"]
    assert world.runs[task_id] == 1


def test_revoked_while_it_ran_is_not_run_again_for_a_lost_worker(world: Simulation) -> None:
    task_id = world.submit(seconds=5, ends="die ok", policy=Policy(acks_late=True))
    world.advance(1)

    world.say(CLIENT, Revoke((task_id,)))
    world.run()

    assert finals(world, task_id) == ["REVOKED"]
    assert world.runs[task_id] == 1


def test_wish_to_revoke_outlives_the_broker(world: Simulation) -> None:
    task_id = world.submit(seconds=5, ends="retry:10 ok")
    world.advance(1)

    world.say(CLIENT, Revoke((task_id,)))
    world.restart_broker()
    world.run()

    assert finals(world, task_id) == ["REVOKED"]


def test_call_that_was_revoked_before_it_came_never_begins(world: Simulation) -> None:
    world.say(CLIENT, Revoke(("early",)))
    world.restart_broker()

    world.submit(task_id="early")
    world.run()

    assert finals(world, "early") == ["REVOKED"]
    assert "early" not in world.runs
    assert world.store.revoked() == []


def test_early_revokes_are_remembered_up_to_a_number(
    world: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "REVOKED_EARLY", 2)

    world.say(CLIENT, Revoke(("first", "second", "second", "third")))

    assert world.store.revoked() == ["second", "third"]


def test_revoke_of_a_task_that_is_over_is_not_remembered(world: Simulation) -> None:
    task_id = world.submit()
    world.run()

    world.say(CLIENT, Revoke((task_id,)))

    assert world.store.revoked() == []
    assert world.state(task_id) == "SUCCESS"


def test_purged_task_is_not_run_again_by_hand(world: Simulation) -> None:
    task_id = world.submit(countdown=60)
    world.scheduler.orders.purge(world.now)
    emptied = world.scheduler.turn.emptied
    world.store.commit(world.scheduler.turn)
    world.scheduler.committed()

    world.say(CLIENT, Redo((task_id,)))

    assert emptied == {world.store.seqs[task_id]}
    assert (world.phase(task_id), world.state(task_id)) == ("done", "REVOKED")


def test_task_run_again_by_hand_is_no_longer_revoked(world: Simulation) -> None:
    task_id = world.submit(seconds=5, ends="retry:10 ok")
    world.advance(1)
    world.say(CLIENT, Revoke((task_id,)))
    world.run()

    world.say(CLIENT, Redo((task_id,)))
    world.run()

    assert finals(world, task_id) == ["REVOKED", "SUCCESS"]


def test_time_limit_outlives_the_broker(world: Simulation) -> None:
    task_id = world.submit(seconds=1000, policy=Policy(time_limit=3.0))
    world.advance(1)

    world.restart_broker()
    world.run()

    assert finals(world, task_id) == ["FAILURE"]
    assert world.now.boot < 3.5


def test_time_that_loading_took_is_not_the_bodys(world: Simulation) -> None:
    task_id = world.submit(seconds=1000, policy=Policy(time_limit=3.0))
    world.advance(2)
    (worker,) = (worker for worker in world.workers.values() if worker.running)

    world.say(worker.peer, Started(worker.running.ticket, world.now.wall))
    world.run()

    assert finals(world, task_id) == ["FAILURE"]
    assert 5 <= world.now.boot < 5.1


def test_timed_out_task_that_is_to_run_again_is_given_up_in_the_end(world: Simulation) -> None:
    policy = Policy(acks_late=True, acks_on_timeout=False, time_limit=1.0)
    task_id = world.submit(seconds=1000, policy=policy)

    world.run()

    assert finals(world, task_id) == ["FAILURE"]
    assert "TimeLimitExceeded" in world.events(task_id)[-1].text
    assert world.runs[task_id] == MAX_DEATHS


def test_revoking_the_next_in_line_does_not_stop_a_rate_limited_line() -> None:
    world = Simulation(workers=1)
    policy = Policy(interval=2.0)
    ids = [world.submit(seconds=0.1, policy=policy) for _ in range(4)]
    world.advance(1)
    world.submit(seconds=10)
    world.advance(2)  # the next may start, but there is nobody to run it

    world.say(CLIENT, Revoke((ids[1],)))
    world.run()

    assert [world.state(i) for i in ids] == ["SUCCESS", "REVOKED", "SUCCESS", "SUCCESS"]


@pytest.fixture
def queues() -> Simulation:
    """A worker for each of the queues a and b; that of b is busy when its calls may start."""
    world = Simulation(workers=0)
    for queue in ("a", "b"):
        world.add_worker((queue,))
    for task_id, queue in [("a0", "a"), ("b1", "b"), ("b2", "b"), ("a1", "a"), ("a2", "a")]:
        world.submit(seconds=0.1, policy=Policy(interval=2.0), queue=queue, task_id=task_id)
    world.submit(seconds=20, queue="b", task_id="long")
    return world


def test_busy_queue_holds_up_no_other_with_the_same_rate_limit(queues: Simulation) -> None:
    queues.run()

    assert queues.order == ["a0", "long", "a1", "a2", "b1", "b2"]
    starts = [e.at for i in ("a0", "a1", "a2") for e in queues.events(i) if e.kind == "run"]
    assert [b - a for a, b in pairwise(starts)] == [2.0, 2.0]


def test_revoking_the_next_of_a_busy_queue_does_not_stop_its_line(queues: Simulation) -> None:
    queues.advance(10)

    queues.say(CLIENT, Revoke(("b1",)))
    queues.run()

    assert queues.order == ["a0", "long", "a1", "a2", "b2"]


def test_rate_limit_goes_by_the_name_whatever_the_version_of_the_function(
    world: Simulation,
) -> None:
    versions = [Policy(interval=2.0, max_retries=number) for number in range(3)]
    ids = [world.submit(seconds=0.1, policy=policy) for policy in versions]

    world.run()

    starts = [event.at for task_id in ids for event in world.events(task_id) if event.kind == "run"]
    assert [b - a for a, b in pairwise(starts)] == [2.0, 2.0]


def test_rate_limited_line_is_by_priority() -> None:
    world = Simulation(workers=1)
    policy = Policy(interval=1.0)
    low = [world.submit(seconds=0.1, policy=policy) for _ in range(3)]
    high = world.submit(seconds=0.1, policy=policy, priority=9)

    world.run()

    assert world.order == [low[0], high, low[1], low[2]]


@pytest.mark.parametrize("priority", [9, 5])
def test_rate_limited_lines_of_several_queues_are_by_priority_then_first_come(
    priority: int,
) -> None:
    world = Simulation(workers=0)
    for queue in ("a", "b"):
        world.add_worker((queue,))
    policy = Policy(interval=1.0)

    urgent = [
        world.submit(seconds=0.1, policy=policy, queue="b", priority=priority) for _ in range(4)
    ]
    others = [world.submit(seconds=0.1, policy=policy, queue="a") for _ in range(4)]
    world.run()

    assert world.order == urgent + others


def test_hard_time_limit_ends_the_task(world: Simulation) -> None:
    task_id = world.submit(seconds=1000, policy=Policy(time_limit=3.0))

    world.run()

    assert finals(world, task_id) == ["FAILURE"]
    assert "TimeLimitExceeded" in world.events(task_id)[-1].text
    assert world.now.boot == pytest.approx(3.0, abs=0.1)


def test_terminated_task_ends_so_though_its_time_is_over_before_it_is_gone(
    world: Simulation,
) -> None:
    task_id = world.submit(seconds=1_000, policy=Policy(time_limit=3.0))
    world.advance(2.9)
    obey = world._obey
    world._obey = lambda kill: (  # type: ignore[method-assign]
        None if kill.signal == "SIGTERM" else obey(kill)
    )

    world.say(CLIENT, Revoke((task_id,), terminate=True))
    world.run()

    assert finals(world, task_id) == ["REVOKED"]


@pytest.mark.parametrize(("wanted", "kept"), [(False, []), (True, ["FAILURE"])])
def test_ignored_task_that_was_killed_leaves_nothing_unless_errors_are_wanted(
    world: Simulation, wanted: bool, kept: list[str]
) -> None:
    policy = Policy(time_limit=3.0, ignore_result=True, store_errors_even_if_ignored=wanted)
    task_id = world.submit(seconds=1000, policy=policy)

    world.run()

    assert [event.state for event in world.events(task_id) if event.final] == kept
    assert world.phase(task_id) == "done"
    assert world.told[task_id][-1].state == "FAILURE"


def test_hasten_skips_the_wait(world: Simulation) -> None:
    task_id = world.submit(countdown=1000)

    world.say(CLIENT, Hasten((task_id,)))
    world.advance(2)

    assert world.state(task_id) == "SUCCESS"


@pytest.mark.parametrize("told", [True, False])
def test_time_that_passes_while_all_is_down_does_not_count_for_limits(
    world: Simulation, told: bool
) -> None:
    policy = Policy(acks_late=True, time_limit=3.0)
    task_id = world.submit(seconds=2, policy=policy)
    world.advance(1)
    [(name, worker)] = [item for item in world.workers.items() if item[1].running]
    world.losses[task_id] = 1
    world.workers.clear()

    world._move_to(world.now.boot + 60)
    world.restart_broker()
    if told:  # by the next supervisor, from its cell
        world.say(SUPERVISOR, Died(name, 1, 0, worker.started))
    world.add_worker()
    world.run()

    assert world.state(task_id) == "SUCCESS"
    assert world.runs[task_id] == 2


def test_what_was_revoked_long_ago_may_stand_in_line_without_its_function(
    world: Simulation,
) -> None:
    task_id = world.submit(queue="nobody")
    world.run()
    world.say(CLIENT, Revoke((task_id,)))
    world.say(CLIENT, Forget((task_id,)))
    [digest] = world.store.definitions
    world.store.definitions.clear()
    world.scheduler.pool.forget(digest)

    world.add_worker(("nobody",))
    other = world.submit(queue="nobody", policy=Policy(ignore_result=True))
    world.run()

    assert world.runs[other] == 1


def test_what_a_worker_is_to_load_ahead_reaches_it_though_the_disk_is_full() -> None:
    world = Simulation(workers=1)
    world.submit()
    world.run()
    scheduler = world.scheduler
    scheduler.turn.revoked["something to be saved"] = True

    scheduler.receive(b"new", Hello("worker", "new", 1, "3.11"), world.now)
    scheduler.tick(world.now)

    # It would be killed for not loading it, and that goes out in any case.
    assert scheduler.workers["new"].prepares
    free = [said.message for said in scheduler.turn.take_free()[b"new"]]
    assert [type(message) for message in free] == [Define]


def test_redo_runs_a_failed_task_once_more(world: Simulation) -> None:
    task_id = world.submit(ends="fail ok")
    world.run()

    world.say(CLIENT, Redo((task_id,)))
    world.run()

    assert finals(world, task_id) == ["FAILURE", "SUCCESS"]


def test_redo_of_what_ran_before_a_reboot_gets_a_higher_ticket(world: Simulation) -> None:
    task_id = world.submit(ends="fail ok")
    world.run()
    seq = world.store.seqs[task_id]
    world.store.rows[seq].ticket = 1 << 50  # the boot clock was far ahead then

    world.scheduler.receive(CLIENT, Redo((task_id,)), world.now)
    former = world.scheduler.tasks[task_id].ticket
    world.scheduler.tick(world.now)

    [(ticket, _)] = [pair for pairs in world.scheduler.turn.given.values() for pair in pairs]
    assert ticket > former  # or a note of it would not count


def test_task_that_was_just_forgotten_does_not_run_again(world: Simulation) -> None:
    task_id = world.submit(ends="fail ok")
    world.run()

    world._mail.append((CLIENT, Forget((task_id,))))
    world.say(CLIENT, Redo((task_id,)))  # both in one turn
    world.run()

    assert world.runs[task_id] == 1
    assert world.phase(task_id) == "unknown"


def test_same_id_again_is_the_same_task(world: Simulation) -> None:
    task_id = world.submit(seconds=5)
    call = world.store.calls[world.store.seqs[task_id]]

    world.say(CLIENT, Submit(99, (call,), again=True))
    world.run()
    world.say(CLIENT, Submit(100, (call,), again=True))
    world.run()

    assert world.runs[task_id] == 1


def test_call_waits_for_what_it_needs(world: Simulation) -> None:
    first, second = world.submit(seconds=3), world.submit(seconds=5)
    last = world.submit(needs=(first, second))

    world.advance(4)
    assert world.phase(last) == "waiting"

    world.run()
    assert world.order[-1] == last
    assert finals(world, last) == ["SUCCESS"]


def test_call_ends_with_what_it_needed(world: Simulation) -> None:
    bad = world.submit(ends="fail")
    first = world.submit(needs=(bad,))
    second = world.submit(needs=(first,))

    world.run()

    assert finals(world, first) == finals(world, second) == ["FAILURE"]
    assert first not in world.order


def test_broker_restart_loses_and_repeats_nothing(world: Simulation) -> None:
    ids = [world.submit(seconds=3, countdown=wait) for wait in (0, 0, 0, 1, 10)]
    world.advance(2)

    world.restart_broker()
    world.run()

    assert all(finals(world, task_id) == ["SUCCESS"] for task_id in ids)
    assert all(world.runs[task_id] == 1 for task_id in ids)


def test_all_that_handlers_print_in_one_turn_is_kept(world: Simulation) -> None:
    task_id = world.submit()
    world.run()
    worker = next(iter(world.workers.values())).peer

    for text in ("one", "two"):  # both heard before either is saved
        world._mail.append((worker, Output(task_id, "stdout", text)))
    world._settle()

    assert [e.text for e in world.events(task_id) if e.kind == "output"] == ["one", "two"]
    assert [event.n for event in world.events(task_id)] == [1, 2, 3, 4]


def test_outcomes_that_come_together_have_each_its_own_frames() -> None:
    world = Simulation(workers=1)
    world.submit(seconds=0.001)
    world.run()  # so that more are given ahead
    ids = [world.submit(seconds=0.001) for _ in range(2)]
    (worker,) = world.scheduler.workers.values()
    first, last = worker.held
    outcomes = [
        Done(first, "SUCCESS", b"", frames=1),
        Done(first, "SUCCESS", b"", frames=1),  # late
        Done(last, "FAILURE", b"", frames=2),
    ]

    world.scheduler.receive_alike(worker.peer, outcomes, world.now, iter([b"1", b"2", b"3", b"4"]))

    told = [(event.id, event.state, buffers) for _, event, buffers in world.scheduler.turn.events]
    assert told == [(ids[0], "SUCCESS", (b"1",)), (ids[1], "FAILURE", (b"3", b"4"))]


def burst(world: Simulation, count: int) -> None:
    """Send calls together, of a function that is known to be short."""
    first = world.submit(seconds=0.001)
    world.run()
    ids = [f"t{n}" for n in range(count)]
    world.plans |= dict.fromkeys(ids, world.plans[first])
    digest = repr(Policy()).encode()
    world.say(CLIENT, Submit(7, tuple(Call(id, digest, "invented", b"x") for id in ids)))


def test_short_calls_that_come_together_are_shared_out_evenly() -> None:
    world = Simulation(workers=2)

    burst(world, 7)

    assert sorted(len(worker.held) for worker in world.scheduler.workers.values()) == [3, 4]


def test_next_short_call_is_for_the_worker_that_has_least_before_it() -> None:
    world = Simulation(workers=3)
    burst(world, 8)
    least = min(world.scheduler.workers.values(), key=lambda worker: len(worker.held))
    assert len(least.held) == 2

    world.submit(seconds=0.001)

    assert len(least.held) == 3


def test_stranger_is_asked_to_introduce_itself(world: Simulation) -> None:
    world.scheduler.receive(b"nobody", Revoke(("x",)), world.now)

    assert world.scheduler.turn.mail == {b"nobody": [Refused("hello")]}


def test_many_queued_calls_are_not_kept_in_memory() -> None:
    world = Simulation(workers=0)
    world.say(CLIENT, Define(b"d", "f", Policy(), b""))
    calls = tuple(Call(f"t{i}", b"d", "f", b"x" * 1000) for i in range(10_000))

    world.say(CLIENT, Submit(1, calls))

    kept = sum(task.kept is not None for task in world.scheduler.tasks.values())
    assert kept < 5_000


def test_task_that_is_revoked_and_sent_again_waits_for_its_needs_once_more(
    world: Simulation,
) -> None:
    first = world.submit(seconds=1000)
    world.advance(1)
    for _ in range(3):
        world.submit(task_id="after", needs=(first,))
        world.say(CLIENT, Revoke(("after",)))
    world.submit(task_id="after", needs=(first,))

    world.say(CLIENT, Revoke((first,), terminate=True))
    world.run()

    assert world.state("after") == "FAILURE"
    assert not world.scheduler.tasks


def test_nothing_is_left_of_a_wait_that_was_revoked(world: Simulation) -> None:
    first = world.submit(seconds=1)
    world.say(CLIENT, Revoke((world.submit(needs=(first,)),)))

    world.run()

    assert not world.scheduler.flow.needs.waiters


def test_chain_longer_than_the_stack_is_high_ends_with_its_first_task(world: Simulation) -> None:
    first = world.submit(seconds=1000)
    world.advance(1)
    for number in range(3_000):
        need = f"link-{number - 1}" if number else first
        world.submit(task_id=f"link-{number}", needs=(need,))

    world.say(CLIENT, Revoke((first,), terminate=True))
    world.run()

    assert world.state("link-2999") == "FAILURE"
    assert not world.scheduler.tasks


def test_rate_limited_task_that_is_revoked_and_run_again_stands_in_the_line_once_more() -> None:
    world = Simulation(workers=1)
    policy = Policy(interval=5.0)
    first, second = (world.submit(seconds=0.1, policy=policy) for _ in range(2))
    world.advance(1)

    for _ in range(3):
        world.say(CLIENT, Revoke((second,)))
        world.say(CLIENT, Redo((second,)))
        world.advance(0.1)
    world.run()

    assert world.order == [first, second]


def test_following_a_task_of_which_all_is_known_reads_nothing(world: Simulation) -> None:
    task_id = world.submit(seconds=1000)
    world.advance(1)
    known = world.scheduler.tasks[task_id].n

    def replays(after: int) -> list[object]:
        world.scheduler.receive(CLIENT, Follow((task_id,), (after,)), world.now)
        return [send.replay for send in world.scheduler.committed().mail[CLIENT]]

    assert known > 0
    assert replays(known) == [None]
    assert replays(0) != [None]


# ------------------------------------------------------------------------------------- handlers


def test_call_behind_handlers_is_called_back_for_an_idle_worker(world: Simulation) -> None:
    world.submit(seconds=0.001)
    world.run()
    first = next(iter(world.workers.values()))
    first.running, first.ends_at = Run(1, None), float("inf")  # its handlers, so to speak
    task_id = world.submit()
    assert [run.call.id for run in first.waiting if run.call] == [task_id]

    world.say(first.peer, Handling(first.finished, "task-0"))
    world.advance(2)

    assert world.state(task_id) == "SUCCESS"
    assert world.store.find(task_id).worker != first.name  # type: ignore[union-attr]


def test_worker_is_given_nothing_behind_long_handlers_until_they_are_over(
    world: Simulation,
) -> None:
    task_id = world.submit()
    world.run()
    first, other = world.workers.values()
    world.say(first.peer, Handling(first.finished, task_id))
    world.advance(1)

    during = [world.submit() for _ in range(3)]
    world.run()
    world.say(first.peer, Handling(first.finished, task_id, over=True))
    after = [world.submit() for _ in range(2)]
    world.run()

    rows = [world.store.find(task_id) for task_id in (*during, *after)]
    names = [row.worker for row in rows if row]
    assert set(names[:3]) == {other.name}
    assert set(names[3:]) == {first.name, other.name}


@pytest.mark.parametrize("how", ["over", "dead"])
def test_next_attempt_waits_for_the_handlers_of_the_former_one(world: Simulation, how: str) -> None:
    task_id = world.submit(seconds=10)
    world.advance(1)
    first = next(worker for worker in world.workers.values() if worker.running)
    run, first.running = first.running, None
    assert run is not None
    assert run.call is not None
    world.say(first.peer, Handling(run.ticket, task_id))
    world.say(first.peer, Again(run.ticket, msgspec.structs.replace(run.call, retries=1), b""))
    world.advance(5)
    assert world.phase(task_id) == "scheduled"

    if how == "over":
        world.say(first.peer, Handling(run.ticket, task_id, over=True))
    else:
        world.say(SUPERVISOR, Died(first.name, 1, -9, run.ticket, run.ticket))
    world.advance(1)

    assert world.phase(task_id) in ("assigned", "running")


def test_handlers_have_the_time_limit_anew(world: Simulation) -> None:
    task_id = world.submit(seconds=2.5, policy=Policy(time_limit=3.0))
    world.run()
    first, *_ = world.workers.values()
    first.running, first.ends_at = Run(first.finished, None), float("inf")
    world.say(first.peer, Handling(first.finished, task_id))

    world.advance(2.9)
    assert first.name in world.workers

    world.advance(0.2)
    assert first.name not in world.workers
    assert finals(world, task_id) == ["SUCCESS"]
    assert "longer than its time limit of 3 s" in world.events(task_id)[-1].text


def test_handlers_that_are_over_in_time_harm_nobody(world: Simulation) -> None:
    task_id = world.submit(policy=Policy(time_limit=3.0))
    world.run()
    first, *_ = world.workers.values()
    world.scheduler.receive(first.peer, Handling(first.finished, task_id), world.now)
    world.scheduler.receive(first.peer, Handling(first.finished, task_id, over=True), world.now)

    instant = Now(world.now.wall + 5, world.now.boot + 5)
    world.scheduler.tick(instant)

    mail = world.scheduler.turn.mail[SUPERVISOR]
    assert not [each for each in mail if isinstance(getattr(each, "message", each), Kill)]


def test_only_worker_of_a_queue_stays_when_there_are_to_be_fewer() -> None:
    world = Simulation(workers=0)
    names = [world.add_worker((queue,)) for queue in ("default", "default", "gpu")]
    world.submit(queue="gpu")
    world.run()

    world.scheduler.receive(CLIENT, Scale(2), world.now)

    workers = world.scheduler.workers
    assert [workers[name].leaving for name in names] == [False, True, False]


# ----------------------------------------------------------------- how many runs go on at once


def told_runs(world: Simulation) -> dict[str, int]:
    return {
        run.call.id: run.runs
        for worker in world.workers.values()
        for run in [worker.running]
        if run is not None and run.call is not None
    }


def test_each_run_is_told_how_many_go_on_at_once() -> None:
    world = Simulation(workers=3)
    world.say(SUPERVISOR, Pool(tuple(world.workers), 3))
    first = world.submit(seconds=10)
    second = world.submit(seconds=10)
    third = world.submit(seconds=10)

    assert told_runs(world) == {first: 1, second: 2, third: 3}


def test_runs_that_wait_for_a_worker_are_counted_up_to_the_number_of_workers() -> None:
    world = Simulation(workers=2)
    world.say(SUPERVISOR, Pool(tuple(world.workers), 2))
    for _ in range(2):
        world.submit(seconds=1)
    ids = [world.submit(seconds=10) for _ in range(5)]

    world.advance(2)

    assert told_runs(world) == {ids[0]: 2, ids[1]: 2}
    world.advance(10)
    assert told_runs(world) == {ids[2]: 2, ids[3]: 2}


def test_runs_that_wait_for_other_tasks_are_not_counted() -> None:
    world = Simulation(workers=2)
    world.say(SUPERVISOR, Pool(tuple(world.workers), 2))
    parent = world.submit(seconds=10)
    (worker,) = (worker for worker in world.workers.values() if worker.running)
    assert worker.running is not None

    world.say(worker.peer, Joining(worker.running.ticket))
    child = world.submit(seconds=10)

    assert told_runs(world) == {parent: 1, child: 1}
