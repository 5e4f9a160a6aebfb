"""The panel under a cell, as a person sees it in JupyterLab and in Notebook 7."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.browser.cells import PANEL, SET_UP, STATIC, press, row

#: Where the pictures of panels go; none are taken when the variable is not set.
PICTURES = os.environ.get("PICTURES")

MIXED = """\
@task(bind=True, autoretry_for=(ConnectionError,), retry_backoff=60, retry_jitter=False,
      max_retries=5)
def fetch(self, url):
    if self.request.retries < 1:
        raise ConnectionError("refused")
    return url

@task
def train(lr, epochs):
    for epoch in range(epochs):
        time.sleep(0.15)
        nbtasks.progress(epoch + 1, epochs, desc="epoch", loss=round(1 / (epoch + 2), 3))
    return 0.93

@task
def load(name):
    print("opening", name)
    rows = {"a.csv": 1200}
    return rows[name]

@task
def sweep(names):
    return [load.delay(name) for name in names]
"""


@pytest.mark.parametrize("app", ["lab", "notebook"])
def test_panel_appears_under_the_cell_that_sent_and_moves_and_ends(open_notebook, expect, app):
    notebook = open_notebook(SET_UP, "result = steps.delay(25)", "1 + 1", app=app)
    notebook.run(0)

    notebook.run(1)
    notebook.run(2)

    cell = notebook.cell(1)
    expect(row(cell, "running", "steps")).to_be_visible()
    for other in (0, 2):
        expect(notebook.cell(other).locator(PANEL)).to_have_count(0)
    bar = row(cell, "running").get_by_role("progressbar")
    first = int(bar.get_attribute("aria-valuenow"))
    expect(bar).not_to_have_attribute("aria-valuenow", str(first))
    assert int(bar.get_attribute("aria-valuenow")) > first

    expect(cell.locator(STATIC)).to_contain_text("done")
    assert notebook.text_under(2) == "2"


def test_countdowns_tick_in_the_browser_without_the_kernel(open_notebook, expect):
    sends = 'later = steps.apply_async((1,), countdown=3600, expires=7200)\nfetch.delay("c")'
    notebook = open_notebook(SET_UP + MIXED, sends)
    notebook.run(0)
    notebook.run(1)
    cell = notebook.cell(1)
    scheduled, retrying = row(cell, "scheduled"), row(cell, "retrying")
    expect(scheduled).to_contain_text("starts in 59:")
    expect(scheduled).to_contain_text("expires in 1:59:")
    expect(retrying).to_contain_text("attempt 2 of 6 in 0:5")
    expect(retrying).to_contain_text("ConnectionError: refused")

    began = time.time()
    for _ in range(3):
        for each in (scheduled, retrying):
            expect(each).not_to_have_text(each.inner_text(), use_inner_text=True)

    seen = notebook.traffic().since(began)
    assert [*seen.comms("in"), *seen.comms("out")] == []


def test_run_now_and_cancel_end_a_wait(open_notebook, expect):
    sends = 'later = steps.apply_async((1,), countdown=3600)\nretried = fetch.delay("c")'
    notebook = open_notebook(SET_UP + MIXED, sends, "retried.get(timeout=20)", "later.state")
    notebook.run(0)
    notebook.run(1)
    cell = notebook.cell(1)

    press(row(cell, "retrying"), "Run now")
    expect(row(cell, "done", "fetch")).to_contain_text("after 2 attempts")
    press(row(cell, "scheduled"), "Cancel")

    expect(cell.locator(STATIC)).to_contain_text("1 done · 1 cancelled")
    notebook.run(2)
    notebook.run(3)
    assert "'c'" in notebook.text_under(2)
    assert "'REVOKED'" in notebook.text_under(3)


def test_a_failure_can_be_run_again_and_the_panel_lives_on(open_notebook, expect):
    notebook = open_notebook(
        SET_UP,
        "import pathlib\n@task\ndef size(name):\n    return len(pathlib.Path(name).read_text())",
        "other = steps.apply_async((1,), countdown=3600)\nwrong = size.delay('missing.txt')",
        "pathlib.Path('missing.txt').write_text('here')",
        "wrong.get()",
    )
    for index in range(3):
        notebook.run(index)
    cell = notebook.cell(2)
    expect(row(cell, "failed")).to_contain_text("FileNotFoundError")
    notebook.run(3)

    press(row(cell, "failed"), "Retry")

    expect(row(cell, "done", "size")).to_be_visible()
    notebook.run(4)
    assert notebook.text_under(4) == "4"


def test_a_row_folds_out_to_all_that_is_known(open_notebook, expect):
    sends = 'load.delay("b.csv")\nload.apply_async(("a.csv",), countdown=3600)'
    notebook = open_notebook(SET_UP + MIXED, sends)
    notebook.run(0)
    notebook.run(1)
    failed = row(notebook.cell(1), "failed")
    expect(failed).to_contain_text("KeyError: 'b.csv'")
    expect(failed).to_contain_text("(cell [1], line ")

    failed.get_by_role("button", name="load('b.csv')").first.click()

    fold = failed.locator(".nbtasks-fold")
    for text in ("return rows[name]", "opening b.csv", "failed", "Copy id"):
        expect(fold).to_contain_text(text)


def test_a_task_that_a_task_sent_stands_below_it(open_notebook, expect):
    notebook = open_notebook(SET_UP + MIXED, "top = sweep.delay(['a.csv', 'a.csv'])")
    notebook.run(0)

    notebook.run(1)

    expect(notebook.cell(1).locator(STATIC)).to_contain_text("3 tasks")
    expect(notebook.cell(1).locator(f"{STATIC} .row", has_text="└ load")).to_have_count(2)


def test_a_rate_limit_is_told_as_what_a_task_waits_for(open_notebook, expect):
    sends = (
        '@task(rate_limit="1/m")\ndef slow(k):\n    return k\nr = [slow.delay(k) for k in (1, 2)]'
    )
    notebook = open_notebook(SET_UP, sends)
    notebook.run(0)
    notebook.run(1)

    waiting = row(notebook.cell(1), "waiting", "slow(2)")
    expect(waiting).to_contain_text("rate limit 1/m")
    press(waiting, "Cancel")
    expect(notebook.cell(1).locator(STATIC)).to_contain_text("1 done · 1 cancelled")


def test_waiting_tasks_say_what_for(open_notebook, expect):
    notebook = open_notebook(SET_UP, "results = [steps.delay(10_000) for _ in range(5)]")
    notebook.run(0)

    notebook.run(1)

    cell = notebook.cell(1)
    expect(row(cell, "waiting").nth(0)).to_contain_text("next in the queue")
    expect(row(cell, "waiting").nth(1)).to_contain_text("2nd in the queue · all 2 workers busy")
    press(cell, "Cancel all")
    expect(cell.locator(STATIC)).to_contain_text("5 cancelled")


def test_names_arguments_and_errors_are_drawn_as_text(open_notebook, expect):
    evil = "<img src=x onerror=document.title='run'>"
    sends = f"""\
evil = {evil!r}
@task(name=evil)
def run(said, end):
    print(said)
    nbtasks.progress(1, 2, desc=said)
    if end:
        raise ValueError(said)
    time.sleep(3600)
results = [run.delay(evil, True), run.delay(evil, False)]"""
    notebook = open_notebook(SET_UP, sends)
    notebook.run(0)
    notebook.run(1)
    cell = notebook.cell(1)

    expect(row(cell, "running", f"{evil} 1/2").locator(".nbtasks-name")).to_contain_text(evil)
    expect(row(cell, "failed")).to_contain_text(f"ValueError: {evil}")
    row(cell, "failed").locator(".nbtasks-toggle").click()
    expect(row(cell, "failed").locator(".nbtasks-fold")).to_contain_text("raise ValueError(said)")
    expect(notebook.page.locator("img[src=x]")).to_have_count(0)
    press(row(cell, "running"), "Cancel")
    expect(cell.locator(STATIC)).to_contain_text("1 failed · 1 cancelled")
    expect(notebook.page.locator("img[src=x]")).to_have_count(0)
    assert notebook.page.title() != "run"


def test_a_retry_folds_out_to_its_attempts_and_its_result(open_notebook, expect):
    again = """\
@task(bind=True, autoretry_for=(ConnectionError,), default_retry_delay=0.2, retry_backoff=False)
def again(self):
    print("trying")
    if self.request.retries < 2:
        raise ConnectionError("refused")
    return {"rows": 1200}
later, result = steps.apply_async((1,), countdown=3600), again.delay()"""
    notebook = open_notebook(SET_UP, again)
    notebook.run(0)
    notebook.run(1)
    done = row(notebook.cell(1), "done")
    expect(done).to_contain_text("after 3 attempts")

    done.locator(".nbtasks-toggle").click()

    attempts = done.locator(".nbtasks-attempt")
    expect(attempts).to_have_count(3)
    expect(attempts.nth(0)).to_contain_text("ConnectionError: refused")
    expect(attempts.nth(2)).to_contain_text("done")
    for text in ("{'rows': 1200}", "trying"):
        expect(done.locator(".nbtasks-fold")).to_contain_text(text)


def test_results_and_their_widgets_are_shown_wherever_they_are_put(open_notebook, expect):
    notebook = open_notebook(
        SET_UP,
        "one, two = steps.delay(10_000), steps.delay(10_000)",
        "from ipywidgets import HBox, VBox\nVBox([one.widget(), HBox([two.widget()])])",
        "one",
    )
    for index in range(4):
        notebook.run(index)

    expect(row(notebook.cell(2), "running")).to_have_count(2)
    expect(row(notebook.cell(3), "running")).to_have_count(1)
    press(row(notebook.cell(2), "running").nth(1), "Cancel")
    press(row(notebook.cell(3), "running"), "Cancel")

    expect(row(notebook.cell(2), "cancelled")).to_have_count(2)
    expect(notebook.cell(3)).to_contain_text("cancelled")
    expect(notebook.cell(1).locator(STATIC)).to_contain_text("2 cancelled")


def test_axe_finds_nothing_to_complain_of_in_any_theme(open_notebook, expect):
    axe = pytest.importorskip("tests.browser.axe", exc_type=ImportError)
    over = 'load.delay("a.csv")\nload.delay("b.csv")\nsteps.apply_async((1,), expires=-1)'
    notebook = open_notebook(SET_UP + MIXED, over, SENDS)
    notebook.run(0)
    notebook.run(1)
    notebook.run(2)
    still, live = notebook.cell(1), notebook.cell(2)
    expect(row(live, "running")).to_have_count(2)
    expect(row(live, "retrying")).to_be_visible()
    row(live, "failed").get_by_role("button", name="load").first.click()
    expect(row(live, "failed")).to_contain_text("return rows[name]")
    expect(still.locator(STATIC)).to_contain_text("KeyError")
    still.locator(f"{STATIC} summary").first.click()

    for theme in ("Light", "Dark", "Dark High Contrast"):
        notebook.set_theme(theme)
        assert axe.violations(notebook.page, PANEL) == []
        assert axe.violations(notebook.page, STATIC) == []


# --------------------------------------------------------------------------------------- pictures

SENDS = """\
load.delay("a.csv")
load.delay("b.csv")
fetch.delay("http://example.org/c.csv")
training = train.delay(0.1, epochs=200)
others = [train.delay(0.2, epochs=100), train.delay(0.3, epochs=100)]
load.apply_async(("a.csv",), countdown=95, expires=600);
"""

MANY = """\
@task
def count(number):
    time.sleep(0.01)
    assert number % 400 != 3, "three is not divisible"

many = [count.delay(number) for number in range(10_000)];
"""

pictured = pytest.mark.skipif(not PICTURES, reason="PICTURES names no folder for pictures")


def take(notebook, cell, name: str) -> None:
    for theme in ("Light", "Dark"):
        notebook.set_theme(theme)
        path = Path(PICTURES) / f"{name}-{theme.lower()}.png"
        cell.locator(".jp-OutputArea").first.screenshot(path=path, animations="disabled")


@pictured
def test_a_picture_of_a_panel_live_and_of_what_is_left_of_it(open_notebook, expect):
    notebook = open_notebook(SET_UP + MIXED, SENDS, "cluster.scale(8)")
    notebook.run(0)
    notebook.run(1)
    cell = notebook.cell(1)
    expect(row(cell, "running", "epoch").first).to_be_visible()
    expect(row(cell, "retrying")).to_be_visible()
    notebook.hide_all_but_the_notebook()
    row(cell, "failed").get_by_role("button", name="load").first.click()
    expect(row(cell, "failed")).to_contain_text("return rows[name]")
    notebook.page.wait_for_timeout(8_000)  # for a bar that has something to show
    take(notebook, cell, "panel")

    notebook.run(2)
    press(row(cell, "retrying"), "Run now")
    press(row(cell, "scheduled"), "Run now")
    expect(row(cell, "waiting")).to_have_count(0)
    for _ in range(2):
        press(row(cell, "running", "0.3").or_(row(cell, "running", "0.2")), "Cancel")
        notebook.page.wait_for_timeout(1_000)
    cell.locator(STATIC).wait_for()
    take(notebook, cell, "static")


@pictured
def test_a_picture_of_many_tasks(open_notebook, expect):
    notebook = open_notebook(SET_UP, MANY)
    notebook.run(0)
    notebook.run(1)
    cell = notebook.cell(1)
    notebook.hide_all_but_the_notebook()
    expect(cell.locator(PANEL)).to_contain_text("4,", timeout=60_000)
    take(notebook, cell, "many")
    press(cell, "Cancel all")
    cell.locator(STATIC).wait_for()
