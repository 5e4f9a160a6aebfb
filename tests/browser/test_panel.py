"""The panel under a cell, as a person sees it in JupyterLab."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SET_UP = """
%load_ext nbtasks
import time
import nbtasks
from nbtasks import task

nbtasks.start(workers=2)

@task
def steps(number, seconds=0.2):
    for _ in nbtasks.track(range(number)):
        time.sleep(seconds)
    return number
"""

#: Where the pictures of panels go; none are taken when the variable is not set.
PICTURES = os.environ.get("PICTURES")

ROW = ".nbtasks-panel .nbtasks-row"


@pytest.fixture
def expect():
    expect = pytest.importorskip("playwright.sync_api").expect
    expect.set_options(timeout=30_000)
    return expect


def test_panel_appears_under_the_cell_that_sent_and_moves_and_ends(open_notebook, expect):
    notebook = open_notebook(SET_UP, "result = steps.delay(25)", "1 + 1")
    notebook.run(0)

    notebook.run(1)
    notebook.run(2)

    cell = notebook.cell(1)
    expect(cell.locator(f"{ROW}[data-state=running]")).to_contain_text("steps")
    for other in (0, 2):
        expect(notebook.cell(other).locator(".nbtasks-panel")).to_have_count(0)
    bar = cell.locator(ROW).get_by_role("progressbar")
    first = int(bar.get_attribute("aria-valuenow"))
    expect(bar).not_to_have_attribute("aria-valuenow", str(first))
    assert int(bar.get_attribute("aria-valuenow")) > first

    expect(cell.locator(".nbtasks-static")).to_contain_text("done")
    assert notebook.text_under(2).split() == ["[3]:", "2"]


def test_countdown_ticks_in_the_browser_while_the_kernel_does_nothing(open_notebook, expect):
    notebook = open_notebook(SET_UP, "later = steps.apply_async((1,), countdown=3600)")
    notebook.run(0)
    notebook.run(1)

    row = notebook.cell(1).locator(f"{ROW}[data-state=scheduled]")
    expect(row).to_contain_text("59:")
    shown = row.inner_text()

    expect(row).not_to_have_text(shown, use_inner_text=True)
    row.locator("button.nbtasks-cancel").click()
    expect(notebook.cell(1)).to_contain_text("cancelled")


def test_cancel_ends_a_running_task_while_the_kernel_is_idle(open_notebook, expect):
    notebook = open_notebook(SET_UP, "result = steps.delay(10_000)", "result.state")
    notebook.run(0)
    notebook.run(1)
    row = notebook.cell(1).locator(f"{ROW}[data-state=running]")
    expect(row).to_be_visible()

    row.locator("button.nbtasks-cancel").click()

    expect(notebook.cell(1)).to_contain_text("cancelled")
    notebook.run(2)
    assert "'REVOKED'" in notebook.text_under(2)


MIXED = """
@task(bind=True, autoretry_for=(ConnectionError,), retry_backoff=10, retry_jitter=False)
def fetch(self, url):
    raise ConnectionError("refused")

@task
def train(lr, epochs):
    for epoch in range(epochs):
        time.sleep(0.15)
        nbtasks.progress(epoch + 1, epochs, desc="epoch", loss=round(1 / (epoch + 2), 3))
    return 0.93

@task
def load(name):
    rows = {"a.csv": 1200}
    return rows[name]
"""

SENDS = """load.delay("a.csv")
load.delay("b.csv")
fetch.delay("http://example.org/c.csv")
training = train.delay(0.1, epochs=200)
load.apply_async(("a.csv",), countdown=95, expires=600);"""


@pytest.mark.skipif(not PICTURES, reason="takes pictures, and PICTURES names no folder for them")
def test_a_picture_of_a_panel_in_the_light_and_in_the_dark(open_notebook, expect):
    notebook = open_notebook(SET_UP + MIXED, SENDS)
    notebook.run(0)
    notebook.run(1)
    cell = notebook.cell(1)
    training = cell.locator(f"{ROW}[data-state=running]").filter(has_text="epoch")
    expect(training).to_be_visible()
    expect(cell.locator(f"{ROW}[data-state=retrying]")).to_be_visible()
    notebook.hide_all_but_the_notebook()
    notebook.page.wait_for_timeout(8_000)  # for a bar that has something to show

    for theme in ("Light", "Dark"):
        notebook.set_theme(theme)
        cell.screenshot(path=Path(PICTURES) / f"panel-{theme.lower()}.png", animations="disabled")

    cell.get_by_role("button", name="Cancel all").click()
    expect(cell).to_contain_text("cancelled")
