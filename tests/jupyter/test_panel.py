"""Which cell gets which panel, and what stands there in the end. IPython and widget are fakes."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from contextvars import copy_context
from typing import Any

import pytest

from nbtasks.client import client
from nbtasks.jupyter import panel
from nbtasks.jupyter.text import TextPanel


class Events:
    def __init__(self) -> None:
        self.callbacks: dict[str, list[Any]] = defaultdict(list)

    def register(self, name: str, callback: Any) -> None:
        self.callbacks[name].append(callback)

    def unregister(self, name: str, callback: Any) -> None:
        self.callbacks[name].remove(callback)

    def trigger(self, name: str) -> None:
        for callback in self.callbacks[name]:
            callback(None)


class Kernel:
    """A kernel that was asked to run a cell."""

    parent: dict[str, Any] = {"header": {"msg_id": "0"}, "metadata": {"cellId": "0"}}  # noqa: RUF012

    def get_parent(self) -> dict[str, Any]:
        return self.parent


class Shell:
    """As much of IPython as panels see."""

    def __init__(self, kernel: Kernel | None) -> None:
        self.events = Events()
        self.kernel = kernel
        self.count = 0

    def run(self, cell, *, cell_id: str | None = None) -> None:
        self.count += 1
        if self.kernel is not None:
            self.kernel.parent = {
                "header": {"msg_id": str(self.count)},
                "metadata": {"cellId": cell_id or str(self.count)},
            }
        self.nest(cell)

    def nest(self, cell) -> None:
        self.events.trigger("pre_run_cell")
        try:
            cell()
        finally:
            self.events.trigger("post_run_cell")


class Widget:
    """A widget that nobody sees."""

    def __init__(self) -> None:
        self.model_id = "model"
        self.told: list[Any] = []
        self.closed = False

    def tell(self, difference: Any) -> None:
        self.told.append(difference)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def page(monkeypatch):
    """What was published: (display id, update, mime bundle)."""
    published: list[tuple[str, bool, dict[str, Any]]] = []

    def publish(bundle, *, transient, update):
        published.append((transient["display_id"], update, bundle))

    monkeypatch.setattr("IPython.display.publish_display_data", publish)
    monkeypatch.setattr(panel, "new_widget", lambda source: Widget())
    return published


@pytest.fixture
def shell(monkeypatch):
    shell = Shell(Kernel())
    panel.install(shell)
    yield shell
    panel.uninstall()


@pytest.fixture
def send(submit):
    """Submit as a client does: the hooks are called in the submitting thread."""

    def send(*args, **options):
        told = submit(*args, **options)
        for hook in client.submitted_hooks:
            hook(told.record)
        return told

    return send


def displays(page):
    return [display for display, update, _ in page if not update]


def test_the_first_task_of_a_cell_makes_its_panel_appear_once(shell, page, send):
    shell.run(lambda: [send(), send(), send()])

    assert len(displays(page)) == 1
    assert panel.WIDGET_MIME in page[0][2]
    assert page[0][2]["text/plain"].startswith("nbtasks: 1 task")


def test_a_cell_that_sends_nothing_shows_nothing(shell, page):
    shell.run(lambda: None)

    assert not page


def test_each_cell_has_a_panel_of_its_own(shell, page, send):
    shell.run(send)
    shell.run(send)

    assert len(set(displays(page))) == 2


def test_when_all_is_over_the_widget_gives_way_to_the_picture(shell, page, send):
    shell.run(lambda: send().begins().succeeds())

    (shown, _, _), (replaced, update, bundle) = page
    assert (shown, update) == (replaced, True)
    assert panel.WIDGET_MIME not in bundle
    assert bundle["text/plain"] == "nbtasks: 1 task: 1 done\n✓ load('a.csv')  done"


def test_a_task_that_ends_later_makes_the_picture_then(shell, page, send):
    told = []
    shell.run(lambda: told.append(send()))
    assert len(page) == 1

    told[0].succeeds()
    shell.run(lambda: None)

    assert page[-1][1]
    assert "1 done" in page[-1][2]["text/plain"]


def test_a_panel_becomes_final_without_any_further_cell(shell, page, send):
    told, panels = [], []
    shell.run(lambda: (told.append(send()), panels.append(panel._cells._latest.panel)))
    told[0].succeeds()

    panels[0].flush()

    assert "1 done" in page[-1][2]["text/plain"]


def test_a_panel_is_not_final_while_its_cell_runs(shell, page, send):
    def cell():
        send().succeeds()
        panel._cells._latest.panel.flush()
        assert len(page) == 1
        send()

    shell.run(cell)

    assert len(page) == 1


def test_a_task_that_comes_after_the_picture_brings_the_widget_back(shell, page, send):
    later = []

    def cell():
        send().succeeds()
        later.append(copy_context())  # what an asyncio task of this cell would run in

    shell.run(cell)
    shell.run(lambda: later[0].run(send))

    assert len(displays(page)) == 1
    assert page[-1][1]
    assert panel.WIDGET_MIME in page[-1][2]


def test_a_task_sent_by_an_async_function_belongs_to_the_cell_that_started_it(shell, page, send):
    async def notebook():
        started = []

        async def background():
            await asyncio.sleep(0)
            send("nb.late")

        shell.run(lambda: (send(), started.append(asyncio.ensure_future(background()))))
        shell.run(send)
        await started[0]

    asyncio.run(notebook())

    assert len(displays(page)) == 2


def test_a_task_sent_by_a_thread_belongs_to_the_running_cell(shell, page, send):
    def cell():
        thread = threading.Thread(target=send)
        thread.start()
        thread.join()
        send()

    shell.run(cell)

    assert len(displays(page)) == 1


def test_a_cell_inside_a_cell_shares_its_panel(shell, page, send):
    def cell():
        send()
        shell.nest(send)
        send()

    shell.run(cell)

    assert len(displays(page)) == 1


def test_a_cell_that_is_run_again_lets_go_of_its_old_panel(shell, page, send):
    shell.run(send, cell_id="a")
    old = panel._cells._latest.panel
    widget = old._widget

    shell.run(send, cell_id="a")

    assert widget.closed
    assert panel._cells._latest.panel is not old


def test_only_rows_that_changed_are_sent(shell, page, send):
    told = []
    shell.run(lambda: told.extend([send(), send()]))
    shown = panel._cells._latest.panel
    shown.flush()

    told[1].begins()
    shown.flush()

    difference = shown._widget.told[-1]
    assert [row["i"] for row in difference["rows"]] == [1]
    assert difference["total"]["counts"] == {"running": 1, "waiting": 1}


def test_rows_beyond_the_limit_are_only_counted(shell, page, send, monkeypatch):
    monkeypatch.setattr(panel, "LIMIT", 3)
    shell.run(lambda: [send() for _ in range(5)])

    snapshot = panel._cells._latest.panel.snapshot()

    assert len(snapshot["rows"]) == 3
    assert snapshot["total"]["n"] == 5


def test_cancel_revokes_what_is_open_and_nothing_else(shell, page, send, monkeypatch):
    revoked = []
    monkeypatch.setattr(
        "nbtasks.client.result.AsyncResult.revoke",
        lambda self, terminate: revoked.append((self.id, terminate)),
    )
    told = []
    shell.run(lambda: told.extend([send().succeeds(), send(), send()]))

    panel._cells._latest.panel.cancel(None)

    assert revoked == [(each.record.id, True) for each in told[1:]]


def test_without_anywidget_the_html_itself_is_kept_up_to_date(shell, page, send, monkeypatch):
    monkeypatch.setattr(panel, "new_widget", lambda source: None)
    told = []
    shell.run(lambda: told.append(send()))

    told[0].begins()
    panel._cells._latest.panel.flush()

    assert panel.WIDGET_MIME not in page[0][2]
    assert "running" in page[-1][2]["text/html"]


def test_a_terminal_gets_text(submit, capsys):
    shell = Shell(None)
    shell.run(lambda: panel.install(shell))
    try:

        def cell():
            told = submit()
            for hook in client.submitted_hooks:
                hook(told.record)
            told.succeeds()
            assert isinstance(panel._cells._latest.panel, TextPanel)

        shell.run(cell)
    finally:
        panel.uninstall()

    assert capsys.readouterr().out == "  ✓ load('a.csv')  done\n"


def test_uninstalling_leaves_nothing_behind(submit):
    shell, hooks = Shell(Kernel()), list(client.submitted_hooks)
    panel.install(shell)
    panel.install(shell)

    panel.uninstall()

    assert client.submitted_hooks == hooks
    assert not any(shell.events.callbacks.values())


def test_a_task_that_ends_while_its_panel_is_being_made_is_counted_right(
    shell, page, send, monkeypatch
):
    told = []

    def slow_widget(source):
        told[0].succeeds()
        return Widget()

    monkeypatch.setattr(panel, "new_widget", slow_widget)
    monkeypatch.setattr(client, "submitted_hooks", [told_first(told), *client.submitted_hooks])

    shell.run(send)

    assert page[0][2]["text/plain"].startswith("nbtasks: 1 task: 1 done")
    assert panel.WIDGET_MIME not in page[-1][2]


def told_first(told):
    from tests.jupyter.conftest import Told

    return lambda record: told.append(Told(record))
