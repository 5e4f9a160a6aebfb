"""Which cell gets which panel, and what stands there in the end. IPython and widget are fakes."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from contextvars import copy_context

import pytest

from nbtasks.client import client
from nbtasks.client.eager_result import EagerResult
from nbtasks.client.result import AsyncResult
from nbtasks.jupyter import cells, panel
from nbtasks.jupyter.text import TextPanel
from tests.jupyter.conftest import Told
from tests.jupyter.fakes import Kernel, Shell, Widget


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
    shell.run(lambda: (told.append(send()), panels.append(cells._cells._latest.panel)))
    told[0].succeeds()

    panels[0].flush()

    assert "1 done" in page[-1][2]["text/plain"]


def test_a_panel_is_not_final_while_its_cell_runs(shell, page, send):
    def cell():
        send().succeeds()
        cells._cells._latest.panel.flush()
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


def test_threads_that_send_at_the_same_moment_have_one_panel(shell, page, send, monkeypatch):
    make, both = cells.Cells._new_panel, threading.Barrier(2)

    def make_together(*args):
        with suppress(threading.BrokenBarrierError):
            both.wait(0.2)
        return make(*args)

    def cell():
        threads = [threading.Thread(target=send) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    monkeypatch.setattr(cells.Cells, "_new_panel", make_together)
    shell.run(cell)

    assert len(displays(page)) == 1
    assert cells._cells._latest.panel.size == 2


def test_a_cell_inside_a_cell_shares_its_panel(shell, page, send):
    def cell():
        send()
        shell.nest(send)
        send()

    shell.run(cell)

    assert len(displays(page)) == 1


def test_a_cell_that_is_run_again_lets_go_of_its_old_panel(shell, page, send):
    shell.run(send, cell_id="a")
    old = cells._cells._latest.panel
    widget = old._widget

    shell.run(send, cell_id="a")

    assert widget.closed
    assert cells._cells._latest.panel is not old


def test_a_terminal_gets_text(submit, capsys):
    shell = Shell(None)
    shell.run(lambda: cells.install(shell))
    try:

        def cell():
            told = submit()
            for hook in client.submitted_hooks:
                hook(told.record)
            told.succeeds()
            assert isinstance(cells._cells._latest.panel, TextPanel)

        shell.run(cell)
    finally:
        cells.uninstall()

    assert capsys.readouterr().out == "  ✓ load('a.csv')  done\n"


def test_ipython_that_loads_the_extension_as_it_starts_is_no_cell(submit, capsys):
    shell = Shell(None)
    cells.install(shell)
    try:

        def cell():
            for told in (submit().succeeds(), submit().succeeds()):
                for hook in client.submitted_hooks:
                    hook(told.record)

        shell.run(cell)
    finally:
        cells.uninstall()

    assert capsys.readouterr().out.splitlines()[-1] == "  2 tasks: 2 done"


def test_uninstalling_leaves_nothing_behind(submit):
    shell, hooks = Shell(Kernel()), list(client.submitted_hooks)
    cells.install(shell)
    cells.install(shell)

    cells.uninstall()

    assert client.submitted_hooks == hooks
    assert not any(shell.events.callbacks.values())


def test_a_task_that_ends_while_its_panel_is_being_made_is_counted_right(
    shell, page, send, monkeypatch
):
    told = []

    def slow_widget(source):
        told[0].succeeds()
        return Widget(source)

    monkeypatch.setattr(panel, "new_widget", slow_widget)
    monkeypatch.setattr(client, "submitted_hooks", [told_first(told), *client.submitted_hooks])

    shell.run(send)

    assert page[0][2]["text/plain"].startswith("nbtasks: 1 task: 1 done")
    assert panel.WIDGET_MIME not in page[-1][2]


def told_first(told):
    return lambda record: told.append(Told(record))


# ------------------------------------------------------------------ panels that are over are kept


def test_a_panel_that_is_over_keeps_its_widget_for_pages_that_come_back(shell, page, send):
    shell.run(lambda: send().succeeds())

    assert not cells._cells._latest.panel._widget.closed


def test_the_oldest_panels_go_when_there_are_too_many(shell, page, send, monkeypatch):
    monkeypatch.setattr(cells, "PANELS", 2)
    panels = []
    for _ in range(4):
        shell.run(lambda: send().succeeds())
        panels.append(cells._cells._latest.panel)

    assert [each._closed for each in panels] == [True, True, False, False]


def test_the_oldest_panels_go_when_they_have_too_many_rows(shell, page, send, monkeypatch):
    monkeypatch.setattr(cells, "ROWS", 5)
    panels = []
    for number in (3, 1, 4):
        shell.run(lambda number=number: [send().succeeds() for _ in range(number)])
        panels.append(cells._cells._latest.panel)

    assert [each._closed for each in panels] == [True, False, False]


def test_a_cell_that_is_run_again_closes_the_panel_that_it_left(shell, page, send):
    shell.run(lambda: send().succeeds(), cell_id="a")
    old = cells._cells._latest.panel
    widget = old._widget

    shell.run(lambda: None, cell_id="a")

    assert widget.closed


def test_a_task_that_runs_again_when_its_cell_has_run_again_draws_nothing(shell, page, send):
    told = []
    shell.run(lambda: told.append(send().fails()), cell_id="a")
    old = cells._cells._latest.panel
    shell.run(lambda: None, cell_id="a")
    before = len(page)

    told[0].runs_again("run again by hand")
    old.flush()

    assert len(page) == before


# ----------------------------------------------------------------------------- displayed results


def shows(shell, result):
    """Say whether IPython shows something else than the text."""
    return bool(shell.display_formatter.ipython_display_formatter(result))


@pytest.fixture
def result_of():
    return lambda told: AsyncResult._of(told.record)


def test_a_result_in_a_later_cell_is_a_panel_that_ends_as_a_picture(shell, page, send, result_of):
    told = []
    shell.run(lambda: told.append(send()))
    before = len(displays(page))

    shell.run(lambda: shows(shell, result_of(told[0])))
    shown = cells._cells._latest.shown[0]
    told[0].begins().succeeds()
    shown.flush()

    assert len(displays(page)) == before + 1
    assert panel.WIDGET_MIME not in page[-1][2]
    assert "1 done" in page[-1][2]["text/plain"]
    assert told[0].record.id not in page[-1][2]["text/plain"]


def test_a_result_in_the_cell_that_sent_it_is_text(shell, page, send, result_of):
    shown = []
    shell.run(lambda: shown.append(shows(shell, result_of(send()))))

    assert shown == [False]
    assert len(displays(page)) == 1


def test_a_result_of_a_task_that_ran_here_is_text(shell, here):
    assert not shows(shell, EagerResult("1", 4, "SUCCESS"))


def test_a_result_without_a_cluster_is_text_and_starts_none(shell, monkeypatch):
    monkeypatch.setattr(client, "_clients", [])
    shell.run(lambda: None)

    assert not shows(shell, AsyncResult("anything"))


def test_a_result_that_is_shown_goes_with_its_cell(shell, page, send, result_of):
    told = []
    shell.run(lambda: told.append(send()))
    shell.run(lambda: shows(shell, result_of(told[0])), cell_id="a")
    shown = cells._cells._latest.shown[0]

    shell.run(lambda: None, cell_id="a")

    assert shown._closed


def test_a_result_in_a_terminal_is_text(monkeypatch, here):
    shell = Shell(None)
    cells.install(shell)
    try:
        assert not shows(shell, AsyncResult("anything"))
    finally:
        cells.uninstall()


def test_after_uninstalling_a_result_is_text(here):
    shell = Shell(Kernel())
    cells.install(shell)
    cells.uninstall()

    assert not shows(shell, AsyncResult("anything"))
