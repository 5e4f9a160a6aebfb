"""What is always true of the scheduler, whatever happens in whatever order."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nbtasks.core import states
from nbtasks.core.deaths import MAX_DEATHS
from nbtasks.core.messages import Done, Hasten, Now, Policy, Revoke
from nbtasks.core.scheduler import Scheduler
from nbtasks.simulation import CLIENT, Simulation

ENDS = st.lists(
    st.sampled_from(["ok", "fail", "die", "retry:0", "retry:3"]), min_size=1, max_size=4
).map(lambda ends: " ".join([*ends, "ok"]))


class Cluster(RuleBasedStateMachine):
    """Users, workers, deaths and restarts in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = Simulation(workers=2)
        self.ids: list[str] = []
        #: When those with a countdown may begin, boot clock.
        self.due: dict[str, float] = {}
        self.deaths = 0

    @rule(
        seconds=st.sampled_from([0.0, 0.0001, 1.0, 20.0]),
        ends=ENDS,
        countdown=st.sampled_from([None, 0.0, 2.0]),
        expires=st.sampled_from([None, 1.0, 30.0]),
        acks_late=st.booleans(),
        priority=st.integers(0, 9),
        client=st.sampled_from([b"client", b"other"]),
        needed=st.integers(0, 3),
        limit=st.sampled_from([None, 5.0]),
    )
    def submit(
        self, seconds, ends, countdown, expires, acks_late, priority, client, needed, limit
    ) -> None:
        needs = tuple(self.ids[-needed:]) if needed == 1 and self.ids else ()
        if countdown is not None:
            self.due[f"task-{len(self.ids)}"] = self.world.now.boot + countdown
        self.ids.append(
            self.world.submit(
                seconds=seconds,
                ends=ends,
                countdown=countdown,
                expires=None if expires is None else self.world.now.wall + expires,
                policy=Policy(acks_late=acks_late, time_limit=limit),
                priority=priority,
                client=client,
                needs=needs,
            )
        )

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.5, 5.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(hours=st.sampled_from([-2, 2]))
    def set_the_clock(self, hours: int) -> None:
        now = self.world.now
        self.world.now = Now(now.wall + hours * 3_600, now.boot)

    @rule(number=st.integers(0, 1))
    def kill_a_worker(self, number: int) -> None:
        self.deaths += 1
        self.world.kill(list(self.world.workers)[number % len(self.world.workers)])

    @rule()
    def restart_the_broker(self) -> None:
        self.world.restart_broker()

    @rule(chances=st.integers(0, 30))
    def let_the_broker_die_at_some_later_moment(self, chances: int) -> None:
        self.world.crash_later(chances)

    @precondition(lambda self: self.ids)
    @rule(number=st.integers(0), terminate=st.booleans())
    def revoke(self, number: int, terminate: bool) -> None:
        self.world.say(CLIENT, Revoke((self.ids[number % len(self.ids)],), terminate))

    @precondition(lambda self: self.ids)
    @rule(number=st.integers(0))
    def hasten(self, number: int) -> None:
        task_id = self.ids[number % len(self.ids)]
        self.due.pop(task_id, None)
        self.world.say(CLIENT, Hasten((task_id,)))

    @rule(number=st.integers(0, 1), ticket=st.integers(1, 50))
    def answer_late(self, number: int, ticket: int) -> None:
        worker = list(self.world.workers.values())[number % len(self.world.workers)]
        before = {task_id: self.world.state(task_id) for task_id in self.ids}
        held = self.world.scheduler.workers[worker.name].held
        if ticket not in held:
            self.world.say(worker.peer, Done(ticket, "SUCCESS", b"stale"))
            assert all(
                event.body != b"stale" for task_id in before for event in self.world.events(task_id)
            )

    @invariant()
    def nothing_begins_too_early(self) -> None:
        early = {name for name, due in self.due.items() if due > self.world.now.boot}
        assert not early & set(self.world.runs)

    @invariant()
    def nothing_ends_twice(self) -> None:
        for task_id in self.ids:
            assert sum(event.final for event in self.world.events(task_id)) <= 1

    @invariant()
    def events_are_numbered_without_a_gap(self) -> None:
        for task_id in self.ids:
            numbers = [event.n for event in self.world.events(task_id)]
            assert numbers == list(range(1, len(numbers) + 1))

    @invariant()
    def restart_equals_never_having_stopped(self) -> None:
        again = Scheduler(self.world.store, first_ticket=1 << 40)
        again.restore(self.world.store.open_tasks(), self.world.now)
        assert snapshot(again) == snapshot(self.world.scheduler)

    @invariant()
    def nobody_holds_what_another_holds(self) -> None:
        held = [
            task.id
            for worker in self.world.scheduler.workers.values()
            for task in worker.held.values()
        ]
        assert len(held) == len(set(held))

    def teardown(self) -> None:
        self.world.run(limit=1e5)
        for task_id in self.ids:
            ends = [event for event in self.world.events(task_id) if event.final]
            assert len(ends) == 1, (task_id, self.world.phase(task_id), self.world.events(task_id))
            assert ends[0].state in states.READY_STATES
            assert self.world.events(task_id)[-1].final
            # A run is paid for by the first start, a retry, or a death of the process that had
            # begun it; never by a death of the broker.
            retries = sum(event.state == "RETRY" for event in self.world.events(task_id))
            deaths = min(self.world.losses.get(task_id, 0), MAX_DEATHS)
            assert self.world.runs.get(task_id, 0) <= 1 + retries + deaths


def snapshot(scheduler: Scheduler) -> dict[str, tuple]:
    """All of an open task that must survive; a due task may already be called queued."""

    def phase(task) -> str:
        return "ready" if task.phase in ("scheduled", "queued") else task.phase

    return {
        task.id: (task.seq, phase(task), task.state, task.n, task.retries, task.deaths,
                  task.worker, task.ticket, task.due, task.eta, task.expires)
        for task in scheduler.tasks.values()
    }  # fmt: skip


TestCluster = Cluster.TestCase
TestCluster.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
