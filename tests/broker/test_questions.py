"""What a broker says when it is asked: the real scheduler and store, invented workers."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbtasks.broker.questions import Questions, error_line, rate_text
from nbtasks.broker.store import Store
from nbtasks.core.messages import Ask, Event, Policy, Pool, Revoke, Stop
from nbtasks.core.turn import Turn
from nbtasks.exceptions import TaskRevokedError
from nbtasks.simulation import CLIENT, SUPERVISOR, Simulation
from nbtasks.wire.connection import Settings


class Asked:
    """A broker that one may ask, and the world that it is in."""

    def __init__(self, store: Store, workers: int) -> None:
        self.world = Simulation(workers=workers)
        remember = self.world.store.commit

        def commit(turn: Turn) -> None:
            remember(turn)
            store.commit(turn, self.world.now)

        self.world.store.commit = commit  # type: ignore[method-assign]
        self.world.say(SUPERVISOR, Pool((), workers))
        settings = Settings(data=str(store.path.parent), workers=workers)
        self._questions = Questions(
            self.world.scheduler, store, settings, lambda now: None, lambda now: {}
        )

    def ask(self, what: str, **args: Any) -> Any:
        answer = self._questions.answer(Ask(1, what, args), self.world.now)
        assert not answer.error, answer.error
        return answer.value

    def refusal(self, what: str, **args: Any) -> str:
        return self._questions.answer(Ask(1, what, args), self.world.now).error

    def why(self, task_id: str) -> str | None:
        return self.ask("outlook", ids=[task_id], parents=[])["why"].get(task_id)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "store.sqlite", "none")
    yield opened
    opened.close()


@pytest.fixture
def asked(store: Store) -> Asked:
    return Asked(store, workers=2)


def test_who_was_given_to_a_worker_is_listed_as_such(asked: Asked) -> None:
    running, waiting = asked.world.submit(seconds=100), asked.world.submit(seconds=100)
    given, queued = asked.world.submit(), asked.world.submit(countdown=60)
    asked.world.scheduler.tasks[given].phase = "assigned"

    listed = {
        phase: [task["id"] for task in asked.ask("list", phase=phase)]
        for phase in ("running", "assigned", "queued", "scheduled", "done")
    }

    assert listed == {
        "running": [waiting, running],
        "assigned": [given],
        "queued": [],
        "scheduled": [queued],
        "done": [],
    }
    shown = asked.ask("show", id=given)
    assert shown["phase"] == "assigned"


def test_outlook_tells_the_place_of_those_that_wait_for_a_worker(asked: Asked) -> None:
    running = [asked.world.submit(seconds=100) for _ in range(2)]
    waiting = [asked.world.submit() for _ in range(3)]

    told = asked.ask("outlook", ids=[*running, waiting[2], waiting[0], "unknown"], parents=[])

    assert told == {
        "workers": 2,
        "busy": 2,
        "queued": 3,
        "places": {waiting[2]: 3, waiting[0]: 1},
        "why": {},
        "starts": {},
        "expires": {},
        "children": {},
    }


def test_outlook_tells_until_when_a_task_may_start(asked: Asked) -> None:
    now = asked.world.now
    running = [asked.world.submit(seconds=100) for _ in range(2)]
    waiting = asked.world.submit(expires=now.wall + 60)

    told = asked.ask("outlook", ids=[*running, waiting], parents=[])

    assert told["expires"] == {waiting: now.wall + 60}


def test_outlook_tells_when_a_task_will_start(asked: Asked) -> None:
    now = asked.world.now
    later = asked.world.submit(eta=now.wall + 60)
    soon = asked.world.submit(countdown=5)

    told = asked.ask("outlook", ids=[later, soon], parents=[])

    assert told["starts"] == {later: now.wall + 60, soon: now.wall + 5}


def test_outlook_says_how_many_other_tasks_one_waits_for(asked: Asked) -> None:
    needs = tuple(asked.world.submit(seconds=100) for _ in range(2))
    one, two = asked.world.submit(needs=needs[:1]), asked.world.submit(needs=needs)

    assert asked.why(one) == "waits for 1 other task"
    assert asked.why(two) == "waits for 2 other tasks"


def test_outlook_tells_of_a_rate_limit_while_that_is_what_holds_a_task_back(asked: Asked) -> None:
    for _ in range(3):
        task_id = asked.world.submit(seconds=0.1, policy=Policy(interval=6.0))

    assert asked.why(task_id) == "rate limit 10/m"
    asked.world.run()
    assert asked.why(task_id) is None


def test_outlook_tells_of_a_queue_that_nobody_serves(store: Store) -> None:
    asked = Asked(store, workers=0)
    asked.world.say(SUPERVISOR, Pool((), 1))
    asked.world.add_worker(("default",))

    assert asked.why(asked.world.submit(queue="gpu")) == "no worker serves the queue 'gpu'"


@pytest.mark.parametrize(
    ("wanted", "why"), [(0, "the cluster has 0 workers"), (2, "the workers are starting")]
)
def test_outlook_tells_that_there_are_no_workers(store: Store, wanted: int, why: str) -> None:
    asked = Asked(store, workers=0)
    asked.world.say(SUPERVISOR, Pool((), wanted))

    assert asked.why(asked.world.submit()) == why


def test_outlook_tells_that_the_cluster_is_stopping(asked: Asked) -> None:
    asked.world.say(CLIENT, Stop())

    assert asked.why(asked.world.submit()) == "the cluster is stopping"


def test_outlook_says_nothing_of_a_task_that_waits_for_its_time(asked: Asked) -> None:
    assert asked.why(asked.world.submit(countdown=60)) is None


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"ids": [], "parents": [], "more": 1},
        {"ids": "abc", "parents": []},
        {"ids": [1], "parents": []},
        {"ids": [], "parents": {"a": 1}},
        {"ids": None, "parents": []},
    ],
)
def test_nonsense_is_refused(asked: Asked, args: dict[str, Any]) -> None:
    assert "TypeError" in asked.refusal("outlook", **args)


# ------------------------------------------------------------------------- for `nbtasks top`


def test_status_tells_what_each_worker_runs_and_since_when(asked: Asked) -> None:
    task_id = asked.world.submit(seconds=100, summary="(lr=0.1)")
    began = asked.world.now.wall
    asked.world.advance(19)

    told = [worker["current"] for worker in asked.ask("status")["workers"]]

    assert told == [
        {
            **{"id": task_id, "name": "invented", "shown": "invented", "summary": "(lr=0.1)"},
            "began": pytest.approx(began),
        },
        None,
    ]


def test_those_between_two_attempts_and_those_in_each_queue_are_counted(asked: Asked) -> None:
    asked.world.submit(ends="retry:50 ok")
    asked.world.advance(2)
    for queue in ("default", "default", "default", "default", "gpu"):
        asked.world.submit(seconds=100, queue=queue)

    assert asked.ask("activity")["retrying"] == 1
    assert asked.ask("status")["queues"] == {"default": 2, "gpu": 1}


def test_activity_tells_what_starts_next_and_the_error_of_the_last_attempt(asked: Asked) -> None:
    later = asked.world.submit(countdown=60)
    sooner = asked.world.submit(ends="retry:50 ok")
    at_once = asked.world.submit(eta=asked.world.now.wall + 10)
    asked.world.advance(1)

    told = asked.ask("activity")["next"]

    assert [task["id"] for task in told] == [at_once, sooner, later]
    assert [task["starts"] - asked.world.now.wall for task in told] == pytest.approx([9, 50, 59])
    assert [task["state"] for task in told] == ["PENDING", "RETRY", "PENDING"]


def test_activity_tells_what_failed_apart_from_what_ended(asked: Asked) -> None:
    failed = asked.world.submit(ends="die")
    asked.world.run()
    done = [asked.world.submit() for _ in range(40)]
    asked.world.run()

    told = asked.ask("activity")

    assert [task["id"] for task in told["failed"]] == [failed]
    assert told["failed"][0]["error"].startswith("WorkerLostError: The worker process ")
    assert len(told["ended"]) == 30
    assert {task["id"] for task in told["ended"]} <= {*done}


HEAD = "Traceback (most recent call last):\n  File ...\n"


@pytest.mark.parametrize(
    ("traceback", "line"),
    [
        (f"{HEAD}ValueError: bad header\n", "ValueError: bad header"),
        (f"{HEAD}ValueError: bad header\nin line 3\n", "ValueError: bad header"),
        (f"{HEAD}nb.Retry: Retry in 5s: OSError('refused')\n", "OSError('refused')"),
        (f"{HEAD}nb.Retry: Retry in 5s\n", "Retry in 5s"),
        ("", ""),
    ],
)
def test_error_is_told_in_one_line(traceback: str, line: str) -> None:
    event = Event("i", 1, 0.0, "state", "FAILURE", traceback=traceback)

    assert error_line(event) == line


def test_task_that_expired_is_told_to_have() -> None:
    by_the_broker = Event("i", 1, 0.0, "state", "REVOKED", text='["TaskRevokedError", ["expired"]]')
    by_a_worker = Event("i", 1, 0.0, "state", "REVOKED", pickle.dumps(TaskRevokedError("expired")))

    assert error_line(by_the_broker) == error_line(by_a_worker) == "TaskRevokedError: expired"


def test_show_tells_when_a_task_starts_and_what_went_wrong(asked: Asked) -> None:
    killed = asked.world.submit(ends="die")
    asked.world.run()
    retrying = asked.world.submit(ends="retry:50 ok")
    later = asked.world.submit(countdown=60)
    asked.world.advance(1)

    told = {task_id: asked.ask("show", id=task_id) for task_id in (retrying, later, killed)}

    now = asked.world.now.wall
    assert told[retrying]["starts"] - now == pytest.approx(50, abs=1)
    assert told[later]["starts"] - now == pytest.approx(59)
    assert told[killed]["starts"] is None
    assert told[killed]["events"][-1]["error"].startswith("WorkerLostError: ")


def test_list_tells_how_long_the_runs_took_and_not_how_long_they_waited(asked: Asked) -> None:
    first = asked.world.submit(seconds=7)
    revoked = asked.world.submit(countdown=60)
    second = asked.world.submit(seconds=3, countdown=20)
    asked.world.advance(1)
    asked.world.say(CLIENT, Revoke((revoked,)))
    asked.world.run()

    told = {task["id"]: task["took"] for task in asked.ask("list", took=True)}

    assert told == {first: pytest.approx(7), second: pytest.approx(3), revoked: None}


@pytest.mark.parametrize(
    ("interval", "text"),
    [(0.1, "10/s"), (1.0, "1/s"), (6.0, "10/m"), (360.0, "10/h"), (7200.0, "0.5/h")],
)
def test_rate_limit_is_told_as_it_is_written(interval: float, text: str) -> None:
    assert rate_text(interval) == text
