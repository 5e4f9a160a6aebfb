"""What is sent to the page: whoever has a snapshot and what was sent after it has the truth."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbtasks.jupyter import panel
from tests.jupyter.fakes import Client

pytest.importorskip("anywidget")

from nbtasks.jupyter.widget import PanelWidget

#: What can happen to a task next.
STEPS = {
    "new": ("begins", "fails", "is_revoked"),
    "begun": ("says", "retries", "succeeds", "fails"),
    "over": ("runs_again",),
}


class Page:
    """A page that came when all that was sent before was lost."""

    def __init__(self, snapshot: dict[str, Any]) -> None:
        self.seq = snapshot["seq"]
        self.rows = {row["i"]: row for row in snapshot["rows"]}
        self.total = snapshot["total"]

    def hear(self, message: dict[str, Any]) -> None:
        if message.get("kind") != "rows" or message["seq"] <= self.seq:
            return
        assert message["seq"] == self.seq + 1, "a difference was lost"
        self.seq = message["seq"]
        self.rows |= {row["i"]: row for row in message["rows"]}
        self.total = message["total"]

    def agrees_with(self, snapshot: dict[str, Any]) -> bool:
        rows = {row["i"]: row for row in snapshot["rows"]}
        return self.rows == rows and self.total["counts"] == snapshot["total"]["counts"]


class Wire:
    """Everything that a widget sent, in order, and the pages that listened from somewhere on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[Any] = []
        self.pages: list[tuple[int, Page]] = []

        def take(widget: PanelWidget, message: dict[str, Any], buffers: Any = None) -> None:
            if "content" not in message:
                time.sleep(0.002)  # between the making of a state and its sending
            self.sent.append(message)

        monkeypatch.setattr(PanelWidget, "_send", take)

    def load_page(self, widget: PanelWidget) -> None:
        """Do what a page does that is reloaded: it asks for the state, and listens from then on."""
        widget.send_state()

    def check(self, truth: dict[str, Any]) -> int:
        """Have every page that ever came hear what came after it; return how many came."""
        pages = 0
        for number, message in enumerate(self.sent):
            if "snapshot" not in message.get("state", {}):
                continue
            page = Page(message["state"]["snapshot"])
            for later in self.sent[number:]:
                page.hear(later.get("content", {}))
            assert page.agrees_with(truth)
            pages += 1
        return pages


@pytest.fixture
def wire(monkeypatch):
    return Wire(monkeypatch)


@pytest.fixture
def shown(here, submit, wire):
    """Make a panel with one task and its widget."""

    def make():
        here.records.clear()
        wire.sent.clear()
        loose = panel.LoosePanel()
        told = submit()
        loose._watch.add(told.record)
        loose._widget = PanelWidget(loose)
        return loose, told

    return make


def step(told, choice: int) -> None:
    """Have something happen to a task that can happen to it."""
    record = told.record
    phase = "over" if record.over else "begun" if record.running else "new"
    name = STEPS[phase][choice % len(STEPS[phase])]
    arguments = {
        "says": ("PROGRESS", {"current": choice, "total": 100}),
        "retries": (ConnectionError("refused"), 1, 5.0),
        "fails": (ValueError("bad"),),
        "is_revoked": ("revoked",),
        "runs_again": ("run again by hand",),
    }.get(name, ())
    getattr(told, name)(*arguments)


ACTIONS = st.one_of(
    st.just(("submit", 0, 0)),
    st.just(("flush", 0, 0)),
    st.just(("load", 0, 0)),
    st.tuples(st.just("event"), st.integers(0, 20), st.integers(0, 99)),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ACTIONS, max_size=60))
def test_a_snapshot_and_what_came_after_it_are_the_truth(shown, submit, wire, actions):
    loose, told = shown()
    tasks = [told]
    for action, which, choice in actions:
        if action == "submit":
            tasks.append(submit())
            loose._watch.add(tasks[-1].record)
        elif action == "event":
            step(tasks[which % len(tasks)], choice)
        elif action == "load":
            wire.load_page(loose._widget)
        else:
            loose.flush()
    loose.flush()

    wire.check(loose.snapshot())
    states = [row["state"] for row in loose.snapshot()["rows"]]
    assert [row.look(panel.watch.now()) for row in loose._watch.rows] == states
    loose.close()


def test_nothing_is_lost_while_threads_send_tasks_and_pages_come(shown, submit, wire):
    loose, _ = shown()
    enough = threading.Event()

    def send_tasks() -> None:
        for number in itertools.count():
            if enough.is_set():
                return
            told = submit()
            loose._watch.add(told.record)
            for choice in range(number % 5):
                step(told, choice + number)
            time.sleep(0.0005)

    def draw() -> None:
        while not enough.is_set():
            loose.flush()

    threads = [threading.Thread(target=work) for work in (send_tasks, send_tasks, draw)]
    for thread in threads:
        thread.start()
    for number in range(25):
        while len(loose._watch.rows) < 10 * number:
            time.sleep(0.0005)
        wire.load_page(loose._widget)
        loose._widget.tell_all()
    enough.set()
    for thread in threads:
        thread.join()
    loose.flush()

    truth = loose.snapshot()
    assert wire.check(truth) == 25
    asked = [message["content"] for message in wire.sent if "content" in message]
    for number, message in enumerate(asked):
        if message["kind"] == "snapshot":
            page = Page(message)
            for later in asked[number:]:
                page.hear(later)
            assert page.agrees_with(truth)
    loose.close()


def test_a_click_is_answered_before_anything_is_done_about_it(shown, wire, here, monkeypatch):
    loose, told = shown()
    order: list[Any] = []
    monkeypatch.setattr(
        PanelWidget, "_send", lambda self, message, buffers=None: order.append("page")
    )
    monkeypatch.setattr(Client, "tell", lambda self, message: order.append("broker"))
    here.records[told.record.id] = told.record

    loose._widget._heard(loose._widget, {"kind": "cancel", "rows": [0], "ask": 7}, [])

    assert order == ["page", "broker"]
    loose.close()


@pytest.mark.parametrize(
    "said", [None, "cancel", {}, {"kind": "explode"}, {"kind": "detail", "i": "x"}]
)
def test_nonsense_from_the_page_does_nothing(shown, wire, here, said):
    loose, _ = shown()

    loose._widget._heard(loose._widget, said, [])

    assert not here.told
    loose.close()


def test_a_closed_widget_leaves_nothing_in_the_kernel(shown, wire):
    from ipywidgets.widgets import widget

    before = set(widget._instances)
    loose, _ = shown()
    opened = set(widget._instances) - before
    loose.close()

    assert opened
    assert set(widget._instances) == before


def test_a_widget_is_live_where_it_can_be_and_reads_everywhere_else(shown, wire):
    loose, told = shown()
    told.begins().fails(ValueError("bad"))

    bundle, _ = loose._widget._repr_mimebundle_()

    assert bundle["text/plain"] == repr(loose._widget)
    assert (
        repr(loose._widget) == "nbtasks: 1 task: 1 failed\n✕ load('a.csv')  failed: ValueError: bad"
    )
    assert bundle["text/html"].startswith('<section class="nbtasks-static">')
    assert bundle[panel.WIDGET_MIME]["model_id"] == loose._widget.model_id
    loose.close()
