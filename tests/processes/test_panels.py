"""Panels over a real cluster: every row ends in what the broker knows. Only the page is a fake."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nbtasks
from nbtasks.client import client
from nbtasks.jupyter import cells, panel
from nbtasks.jupyter.magics import Commands
from nbtasks.result import AsyncResult
from tests.jupyter.fakes import Kernel, Shell, Widget
from tests.tasks import wait_for

#: Seconds within which what must happen has happened.
SOON = 20.0


@nbtasks.task
def echo(value):
    return value


@nbtasks.task
def fail(value):
    print("about to fail")
    raise ValueError(value)


@nbtasks.task
def once(gate):
    """Fail unless the gate is open."""
    if not Path(gate).exists():
        raise ValueError("closed")
    return "open"


@nbtasks.task
def send_echoes(number):
    for value in range(number):
        echo.delay(value)


@nbtasks.task
def send_senders(number):
    for _ in range(number):
        send_echoes.delay(2)


def eventually(condition: Callable[[], Any], what: str = "it") -> Any:
    deadline = time.monotonic() + SOON
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen in time"
        time.sleep(0.01)
    return found


class Under:
    """What stands under a cell."""

    def __init__(self, panel_: panel.NotebookPanel, page: list[Any]) -> None:
        self.panel = panel_
        self._page = page

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.panel.snapshot()["rows"]

    @property
    def states(self) -> list[str]:
        return [row["state"] for row in self.rows]

    @property
    def messages(self) -> int:
        """How many messages the page was sent."""
        return len(self.panel._widget.told) + len(self._page)

    def is_picture(self) -> bool:
        return self.panel._still

    def click(self, kind: str, rows: list[int] | None = None) -> None:
        self.panel._widget.click(kind, rows=rows, ask=1)


@pytest.fixture
def notebook(cluster, monkeypatch) -> Iterator[Callable[[Callable[[], Any]], Under]]:
    """Run a cell of a notebook; return what stands under it."""
    page: list[Any] = []
    monkeypatch.setattr(
        "IPython.display.publish_display_data", lambda bundle, **options: page.append(bundle)
    )
    monkeypatch.setattr(panel, "new_widget", Widget)
    shell = Shell(Kernel())
    cells.install(shell)

    def run(cell: Callable[[], Any]) -> Under:
        shell.run(cell)
        shown = cells._cells._latest
        return Under(shown.panel or shown.shown[0], page)

    yield run
    cells.uninstall()


def test_all_rows_end_in_what_the_broker_knows(cluster, notebook):
    def cell():
        for number in range(150):
            (fail if number % 7 == 3 else echo).delay(number)
        echo.apply_async((1,), countdown=3600).revoke()
        echo.apply_async((1,), countdown=60, expires=0.2)

    under = notebook(cell)
    eventually(under.is_picture, "the picture")

    words = {"SUCCESS": {"done"}, "FAILURE": {"failed"}, "REVOKED": {"cancelled", "expired"}}
    known = {task["id"]: task["state"] for task in cluster.client.ask("list", limit=1_000)}
    assert len(under.rows) == 152
    assert all(row["state"] in words[known[row["id"]]] for row in under.rows)
    assert under.states[-2:] == ["cancelled", "expired"]


def test_a_broker_that_is_killed_in_between_loses_no_row(cluster, notebook, short_path):
    gate = short_path / "gate"
    under = notebook(lambda: [wait_for.delay(gate) for _ in range(20)])
    eventually(lambda: "running" in under.states, "a run")

    os.kill(cluster.broker_pid, signal.SIGKILL)
    gate.touch()

    eventually(under.is_picture, "the picture")
    assert set(under.states) == {"done"}


def test_a_purge_cancels_what_has_not_begun(cluster, notebook):
    under = notebook(lambda: [echo.apply_async((1,), countdown=3600) for _ in range(5)])

    cluster.client.ask("purge")

    eventually(under.is_picture, "the picture")
    assert set(under.states) == {"cancelled"}
    assert not any(row.get("redo") for row in under.rows)  # their arguments are gone


def test_a_panel_says_of_tasks_that_they_were_deleted_with_their_cluster(cluster, notebook):
    under = notebook(lambda: [echo.apply_async((1,), countdown=3600) for _ in range(3)])

    cluster.shutdown(purge=True)

    eventually(under.is_picture, "the picture")
    assert set(under.states) == {"failed"}
    assert "was deleted" in under.rows[0]["error"]


def test_a_panel_goes_on_when_the_cluster_was_stopped_and_started(make_cluster, notebook):
    first = nbtasks.current_cluster()
    under = notebook(lambda: echo.apply_async((1,), countdown=2))
    eventually(lambda: under.states == ["scheduled"], "the countdown")
    (before,) = under.rows
    first.shutdown()

    make_cluster(dir=first.dir)

    eventually(under.is_picture, "the picture")
    (after,) = under.rows
    assert (after["state"], after["args"]) == ("done", before["args"])


def test_tasks_that_tasks_have_sent_stand_below_them(cluster, notebook):
    under = notebook(lambda: send_senders.delay(3))

    eventually(under.is_picture, "the picture")

    rows = {row["i"]: row for row in under.rows}
    names = [row["name"] for row in rows.values()]
    assert (names.count("send_senders"), names.count("send_echoes"), names.count("echo")) == (
        *(1, 3),
        6,
    )
    for row in rows.values():
        sender = rows[row["parent"]]["name"] if "parent" in row else ""
        assert sender == {"echo": "send_echoes", "send_echoes": "send_senders"}.get(row["name"], "")
    assert set(under.states) == {"done"}


def test_a_failure_is_done_once_more_when_its_panel_has_let_go_of_it(notebook, short_path):
    gate = short_path / "gate"

    def cell():
        once.delay(gate)
        echo.delay(1)

    under = notebook(cell)
    eventually(under.is_picture, "the picture")
    failed = under.states
    client.current().drop([row["id"] for row in under.rows])
    gc.collect()
    gate.touch()

    under.click("retry", [0])

    eventually(lambda: under.states == ["done", "done"], "the second run")
    eventually(under.is_picture, "the picture")
    assert failed == ["failed", "done"]


def test_run_now_skips_the_wait_and_cancel_ends_the_run(notebook, short_path):
    under = notebook(lambda: wait_for.apply_async((short_path / "never",), countdown=3600))
    eventually(lambda: under.states == ["scheduled"], "the countdown")

    under.click("hasten")
    eventually(lambda: under.states == ["running"], "the run")
    under.click("cancel")

    eventually(under.is_picture, "the picture")
    assert under.states == ["cancelled"]


def test_what_waits_knows_its_place_in_the_queue(notebook, short_path):
    gate = short_path / "gate"
    under = notebook(lambda: [wait_for.delay(gate) for _ in range(6)])

    def queue():
        return (under.panel.snapshot()["queue"] or {}).get("places")

    places = eventually(queue, "an answer")
    gate.touch()

    assert [place for _, place in sorted(places)] == list(range(1, len(places) + 1))
    eventually(under.is_picture, "the picture")


def test_a_panel_in_which_nothing_happens_sends_nothing(cluster, notebook, short_path):
    gate = short_path / "gate"

    def cell():
        for _ in range(4):
            wait_for.delay(gate)
        echo.apply_async((1,), countdown=3600)

    under = notebook(cell)
    eventually(lambda: under.panel.snapshot()["queue"], "an answer")
    eventually(lambda: sorted(under.states)[:2] == ["running"] * 2, "the runs")
    time.sleep(1.5)  # what the broker still had to say
    before = under.messages

    time.sleep(2.5)

    assert under.messages == before
    gate.touch()
    under.click("cancel")
    eventually(under.is_picture, "the picture")


def test_the_detail_of_a_task_that_was_let_go_of_comes_from_the_broker(notebook):
    under = notebook(lambda: fail.delay("bad"))
    eventually(under.is_picture, "the picture")
    client.current().drop([under.rows[0]["id"]])
    gc.collect()

    under.panel._widget.click("detail", i=0)
    sent = under.panel._widget.sent
    (told,) = eventually(lambda: [each for each in sent if each["kind"] == "detail"], "the detail")

    assert told["detail"]["output"] == [["stdout", "about to fail\n"]]
    assert told["detail"]["traceback"].endswith("ValueError: bad")
    assert told["detail"]["attempts"][0]["how"] == "failed"
    assert told["detail"]["call"] == "fail('bad')"


def test_a_widget_of_a_task_that_another_process_has_sent_names_it(cluster, monkeypatch):
    monkeypatch.setattr(panel, "new_widget", Widget)
    task_id = echo.delay("far").id
    AsyncResult(task_id).get(timeout=SOON)
    cluster.client.drop([task_id])

    widget = AsyncResult(task_id).widget()

    def row():
        return widget.source.snapshot()["rows"][0]

    eventually(lambda: row()["args"] == "('far')", "its name")
    assert (row()["name"], row()["state"]) == ("echo", "done")


def test_a_widget_of_an_id_that_nobody_knows_says_so(cluster, monkeypatch):
    monkeypatch.setattr(panel, "new_widget", Widget)

    widget = AsyncResult("nobody-knows-me").widget()

    def why():
        return widget.source.snapshot()["rows"][0].get("why")

    assert eventually(why, "the broker's answer") == "the broker knows no such task"


def test_one_widget_shows_several_results(cluster, monkeypatch):
    monkeypatch.setattr(panel, "new_widget", Widget)
    results = nbtasks.ResultSet([echo.delay(number) for number in range(3)])

    widget = results.widget()

    eventually(lambda: widget.source.snapshot()["total"]["counts"] == {"done": 3}, "their ends")


def test_a_kernel_that_comes_later_attaches_to_what_is_open(cluster, notebook, short_path):
    gate = short_path / "gate"
    open_, over = wait_for.delay(gate), echo.delay("over")
    sender = send_echoes.apply_async((2,), countdown=3600)
    over.get(timeout=SOON)
    cluster.client.drop([open_.id, over.id, sender.id])
    attach = Commands(nbtasks.cluster).run

    under = notebook(lambda: attach("attach"))

    counts = {"running": 1, "scheduled": 1}
    eventually(lambda: under.panel.snapshot()["total"]["counts"] == counts, "what is open")
    assert [row["name"] for row in under.rows] == ["wait_for", "send_echoes"]
    gate.touch()
    under.click("hasten")
    eventually(under.is_picture, "the picture")
    assert [row["name"] for row in under.rows][:2] == ["wait_for", "send_echoes"]
    assert under.states == ["done"] * 4
    assert attach("attach") == "No task is open."
    assert attach("attach nobody").startswith("The broker knows no task 'nobody'")


def test_a_result_in_a_later_cell_shows_how_its_task_ended(notebook):
    result = echo.delay(41)
    result.get(timeout=SOON)
    formatter = cells._cells._formatter

    under = notebook(lambda: formatter(result))

    eventually(under.is_picture, "the picture")
    assert under.rows[0]["args"] == "(41)"
