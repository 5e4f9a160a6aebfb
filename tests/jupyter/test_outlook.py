"""The thread that asks the broker: for all panels at once, and only while there is a question."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from nbtasks.jupyter import outlook
from nbtasks.jupyter.outlook import Outlook, Wants
from tests.jupyter.conftest import NOW

NOTHING = Wants([], [], [], None)


class Curious:
    """A panel that wants to know what the test says, and remembers what it was told."""

    def __init__(self, wants: Wants | None, home: Path) -> None:
        self.wants = wants
        self.home = home
        self.most = 0
        self.learned: list[Any] = []
        self.heard = threading.Event()

    def want(self, most: int) -> Wants | None:
        self.most = most
        return self.wants

    def learn(self, here: Any, answer: Any, wants: Wants, named: Any) -> None:
        self.learned.append((answer, named))
        self.heard.set()


@pytest.fixture
def asked(here):
    """The questions that the broker was asked."""
    questions: list[dict[str, Any]] = []

    def answer(**question: Any) -> str:
        questions.append(question)
        return "the answer"

    here.answers["outlook"] = answer
    return questions


@pytest.fixture
def asking(monkeypatch):
    """An outlook whose thread the test is."""
    asking = Outlook()
    monkeypatch.setattr(threading.Thread, "start", lambda thread: None)
    return asking


@pytest.fixture
def panel(here, asking):
    def make(wants: Wants | None, home: Path = here.runtime) -> Curious:
        curious = Curious(wants, home)
        asking.follow(curious)
        return curious

    return make


def test_all_panels_are_asked_about_in_one_question(asking, panel, asked):
    panels = [panel(Wants([f"w{n}"], [f"p{n}"], [], None)) for n in range(3)]

    asking.look()

    (question,) = asked
    assert sorted(question["ids"]) == ["w0", "w1", "w2"]
    assert sorted(question["parents"]) == ["p0", "p1", "p2"]
    assert all(each.learned == [("the answer", {})] for each in panels)


def test_a_hundred_panels_share_the_room_of_a_question(asking, panel, asked):
    panels = [panel(Wants(["w"], [], [], None)) for _ in range(50)]

    asking.look()

    assert {each.most for each in panels} == {2}


def test_it_asks_again_soon_while_somebody_wants_to_know(asking, panel, asked):
    panel(Wants(["w"], [], [], None))

    assert asking.look() == 0.0
    assert asking.look() == 0.0
    assert len(asked) == 2


def test_it_waits_for_the_next_start_where_all_wait_for_a_time(asking, panel, asked):
    panel(Wants([], [], [], NOW.wall + 60))
    panel(Wants([], [], [], NOW.wall + 30))

    assert asking.look() == 30.0
    assert asked == []


def test_it_sleeps_when_nobody_wants_to_know_anything(asking, panel, asked):
    panel(None)

    assert asking.look() is None
    assert asking.look() is None
    assert asked == []


def test_a_panel_that_was_done_may_come_again(asking, panel, asked):
    curious = panel(None)
    asking.look()

    curious.wants = Wants(["w"], [], [], None)
    asking.follow(curious)
    asking.look()

    assert len(asked) == 1


def test_a_broker_that_is_away_is_asked_again(asking, panel, here):
    curious = panel(Wants(["w"], [], [], None))

    def away(**question: Any) -> None:
        raise TimeoutError("away")

    here.answers["outlook"] = away
    first = asking.look()
    here.answers["outlook"] = "the answer"
    asking.look()

    assert first == 0.0
    assert curious.learned == [("the answer", {})]


def test_tasks_of_which_only_the_id_is_known_are_asked_about_one_by_one(asking, panel, asked, here):
    curious = panel(Wants([], [], ["far", "lost"], None))
    known = {"far": {"name": "nb.far", "summary": "(7)"}}
    here.answers["show"] = lambda id: known.get(id)

    asking.look()

    assert curious.learned == [("the answer", {"far": ("nb.far", "(7)"), "lost": ("", "")})]


def test_panels_of_a_cluster_that_is_gone_are_passed_over(asking, panel, asked):
    curious = panel(Wants(["w"], [], [], None), Path("/elsewhere"))

    assert asking.look() == 0.0
    assert curious.learned == []
    assert asked == []


def test_the_thread_asks_by_itself(here, asked, monkeypatch):
    monkeypatch.setattr(outlook, "PAUSE", 0.0)
    monkeypatch.setattr(outlook, "PERIOD", 0.01)
    asking, curious = Outlook(), Curious(Wants(["w"], [], [], None), here.runtime)

    asking.follow(curious)

    assert curious.heard.wait(10)
    curious.wants = None
