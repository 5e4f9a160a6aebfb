"""The broker dies at each moment at which it can, one after the other; nothing is lost.

A turn is saved whole or not at all (tests/broker/test_store.py), so these are the moments: before
a turn is saved, and after that before each message that it sends.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from nbtasks.core.deaths import MAX_DEATHS
from nbtasks.core.messages import Policy, Revoke
from nbtasks.simulation import CLIENT, Simulation

LATE = Policy(acks_late=True)

#: How each task of the story ends, whoever dies when; "lost" and "limited" may end either way.
ENDS = {
    "plain": "SUCCESS",
    "failing": "FAILURE",
    "retried": "SUCCESS",
    "later": "SUCCESS",
    "late": "SUCCESS",
    "poison": "FAILURE",
    "limited": "FAILURE",
    "needed": "SUCCESS",
    "needing": "SUCCESS",
    "in vain": "FAILURE",
    "too late": "REVOKED",
    "short 0": "SUCCESS",
    "short 1": "SUCCESS",
    "short 2": "SUCCESS",
    "revoked": "REVOKED",
}


def story(world: Simulation) -> None:
    """Let happen what can happen, some of it twice at the same time."""
    world.submit(task_id="plain")
    world.submit(task_id="failing", ends="fail")
    world.submit(task_id="retried", ends="retry:2 retry:0 ok")
    world.submit(task_id="later", countdown=3.0)
    world.submit(task_id="late", ends="die ok", policy=LATE)
    world.submit(task_id="poison", ends="die", policy=LATE)
    world.submit(task_id="limited", seconds=60, policy=Policy(time_limit=4.0))
    world.submit(task_id="needed", seconds=2)
    world.submit(task_id="needing", needs=("needed", "plain"))
    world.submit(task_id="in vain", needs=("failing",))
    world.submit(task_id="too late", countdown=9.0, expires=world.now.wall + 8)
    for number in range(3):
        world.submit(task_id=f"short {number}", seconds=0.0001)
    world.submit(task_id="revoked", countdown=60.0)
    world.advance(2.5)
    world.say(CLIENT, Revoke(("revoked",)))
    world.run()


class Counting(Simulation):
    """Counts the chances that the broker has to die."""

    chances = 0

    def _dies_now(self) -> bool:
        self.chances += 1
        return super()._dies_now()


def check(world: Simulation) -> None:
    for task_id, state in ENDS.items():
        events = world.events(task_id)
        assert [event.n for event in events] == list(range(1, len(events) + 1)), task_id
        assert [event.state for event in events if event.final] == [state], task_id
        assert events[-1].final, task_id
        retries = sum(event.state == "RETRY" for event in events)
        deaths = min(world.losses.get(task_id, 0), MAX_DEATHS)
        assert world.runs.get(task_id, 0) <= 1 + retries + deaths, task_id
    assert not world.scheduler.tasks
    # A note of what was given goes with the next outcome, or the death, of its worker.
    assert {worker for worker, _ in world.store.given} <= set(world.workers)


def test_the_story_ends_as_it_should_when_nobody_dies() -> None:
    world = Counting(workers=2)

    story(world)

    check(world)
    assert world.chances > 100


def chances() -> int:
    world = Counting(workers=2)
    story(world)
    return world.chances


@pytest.mark.parametrize("part", range(4))
def test_the_story_ends_so_wherever_the_broker_dies(part: int) -> None:
    for chance in range(part, chances(), 4):
        world = Simulation(workers=2)
        world.crash_later(chance)
        story(world)
        try:
            check(world)
        except AssertionError as error:
            raise AssertionError(f"the broker died at chance {chance}: {error}") from error


@pytest.mark.parametrize("chance", [1, 2])
def test_order_to_terminate_that_is_saved_is_carried_out_though_nobody_repeats_it(
    chance: int,
) -> None:
    world = Simulation(workers=1)
    task_id = world.submit(seconds=3600)
    world.advance(1)

    world.crash_later(chance)  # before or after the supervisor is told
    world._mail.append((CLIENT, Revoke((task_id,), terminate=True)))
    world._settle()
    world.advance(5)

    assert world.state(task_id) == "REVOKED"
    assert world.runs[task_id] == 1


class Dying(Simulation):
    """The broker dies now and then, at moments that nobody foresees."""

    def __init__(self, seed: int, **options: Any) -> None:
        self.random = random.Random(seed)
        self.deaths = 0
        super().__init__(**options)

    def _dies_now(self) -> bool:
        if self._dies_in is None and self.random.random() < 0.02:
            self._dies_in = 0
            self.deaths += 1
        return super()._dies_now()


@pytest.mark.parametrize("seed", range(20))
def test_the_story_ends_so_though_the_broker_dies_again_and_again(seed: int) -> None:
    world = Dying(seed, workers=2)

    story(world)

    check(world)
