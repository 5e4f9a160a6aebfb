"""Many tasks and many panels: how much goes to the page, and whether it keeps up."""

from __future__ import annotations

import time

from tests.browser.cells import PANEL, SET_UP, STATIC, press, row

MANY = """\
@task
def quick(number):
    assert number % 1000, "no thousands"

last = steps.apply_async((1,), countdown=3600)
many = [quick.delay(number) for number in range(9_999)]
"""

#: Messages a second (20 is the aim; a second as counted may hold the ends of two).
MOST = 30

#: Milliseconds of the longest task of the page on a busy machine (the aim is 100).
LONGEST = 400

#: Seconds from the data to the first paint on a busy machine (the aim is 0.5).
PAINT = 2.0

PANELS = 100


def test_10_000_tasks_in_one_cell(open_notebook, expect):
    notebook = open_notebook(SET_UP, MANY)
    notebook.run(0)
    settled = len(notebook.traffic().long)

    notebook.run(1)

    cell = notebook.cell(1)
    counts = cell.locator(".nbtasks-parts")
    expect(counts).to_contain_text("9,989 done", timeout=120_000)
    expect(counts).to_contain_text("10 failed")
    assert cell.locator(".nbtasks-row").count() < 60
    seen = notebook.traffic()
    print(f"{seen.busiest_second()} messages in the fullest second,")
    print(f"longest tasks of the page: {sorted(map(round, seen.long[settled:]))[-5:]} ms")
    assert seen.busiest_second() <= MOST
    assert max(seen.long[settled:], default=0) < LONGEST

    cell.get_by_role("button", name="failed").click()
    expect(row(cell, "failed")).to_have_count(10)
    press(row(cell, "failed").first, "quick")
    expect(row(cell, "failed").first).to_contain_text("no thousands")
    cell.get_by_role("button", name="failed").click()

    notebook.save()
    notebook.reload()
    expect(row(cell, "scheduled")).to_be_visible()
    seen = notebook.traffic()
    data = max(seen.comms("in"), key=lambda frame: frame.size)
    print(f"{data.size / 1e6:.1f} MB painted {seen.painted - data.at:.2f} s after they came")
    assert seen.painted - data.at < PAINT
    press(row(cell, "scheduled"), "Cancel")
    expect(cell.locator(STATIC)).to_contain_text("9989 done · 10 failed · 1 cancelled")


def test_100_panels_that_wait_send_nothing(open_notebook, expect):
    send = "steps.apply_async((1,), countdown=3600);"
    notebook = open_notebook(SET_UP, *[send] * PANELS)
    notebook.run_all()
    notebook.wait_run(PANELS)
    notebook.cell(PANELS).scroll_into_view_if_needed()
    expect(row(notebook.cell(PANELS), "scheduled")).to_contain_text("starts in")
    expect(notebook.page.locator(PANEL)).to_have_count(PANELS)
    notebook.wait_idle()

    began = time.time()
    notebook.page.wait_for_timeout(4_000)

    seen = notebook.traffic().since(began)
    assert [*seen.comms("in"), *seen.comms("out")] == []
