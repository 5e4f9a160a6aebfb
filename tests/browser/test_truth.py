"""What a panel shows is what the broker knows, whatever happens to the page or to the kernel."""

from __future__ import annotations

import json
import os
import signal
import time

import nbformat
import pytest

from tests import kernels
from tests.browser.cells import PANEL, SET_UP, STATIC, press, row

BURST = """\
@task(bind=True)
def burst(self, number):
    for k in range(number):
        self.update_state(state="PROGRESS", meta={"current": k + 1, "total": number})
    time.sleep(3600)

@task
def quick(number):
    return number

bursts = [burst.delay(20_000), burst.delay(20_000)]
"""


def test_no_difference_is_lost_in_a_burst(open_notebook, expect):
    notebook = open_notebook(SET_UP, BURST, "[result.info for result in bursts]")
    notebook.run(0)

    notebook.run(1)

    rows = row(notebook.cell(1), "running", "20000/20000")
    expect(rows).to_have_count(2, timeout=60_000)
    expect(rows.get_by_role("progressbar").first).to_have_attribute("aria-valuenow", "100")
    assert notebook.traffic().busiest_second() <= 30
    press(notebook.cell(1), "Cancel all")
    expect(notebook.cell(1).locator(STATIC)).to_contain_text("2 cancelled")


@pytest.mark.parametrize("app", ["lab", "notebook"])
def test_a_page_that_is_reloaded_shows_all_and_goes_on(open_notebook, expect, app):
    sends = "quick = [steps.delay(1, 0.01) for _ in range(20)]\nslow = steps.delay(1_000)"
    notebook = open_notebook(SET_UP, sends, app=app)
    notebook.run(0)
    notebook.run(1)
    notebook.save()
    expect(row(notebook.cell(1), "running", "1000")).to_be_visible()

    notebook.reload()

    cell = notebook.cell(1)
    expect(cell.locator(PANEL)).to_contain_text("20 done")
    slow = row(cell, "running", "1000")
    expect(slow).not_to_have_text(slow.inner_text(), use_inner_text=True)
    press(slow, "Cancel")
    expect(cell.locator(STATIC)).to_contain_text("20 done · 1 cancelled")


@pytest.mark.parametrize("app", ["lab", "notebook"])
def test_tasks_that_end_while_no_browser_is_open_are_shown_when_one_is(
    open_notebook, expect, folder, app
):
    marks = (
        "import pathlib\n@task\ndef mark():\n    while not pathlib.Path('away').exists():\n"
        "        time.sleep(0.05)\n    pathlib.Path('ended').touch()\n    return 'marked'\n"
    )
    notebook = open_notebook(SET_UP + marks, "one, two = mark.delay(), mark.delay()", app=app)
    notebook.run(0)
    notebook.run(1)
    expect(row(notebook.cell(1), "running")).to_have_count(2)
    notebook.save()
    notebook.leave()
    (folder / "away").touch()
    wait_for((folder / "ended").exists)
    time.sleep(1)  # for what is sent to nobody

    notebook = open_notebook(app=app)

    expect(notebook.cell(1).locator(STATIC)).to_contain_text("2 done")
    expect(notebook.cell(1).locator(STATIC)).to_contain_text("'marked'")
    expect(notebook.cell(1).locator(PANEL)).to_have_count(0)
    notebook.save()
    (output,) = nbformat.read(folder / "test.ipynb", as_version=4).cells[1].outputs
    assert set(output.data) == {"text/html", "text/plain"}


MIXED = """\
@task
def mixed(k):
    time.sleep(0.05)
    if k % 7 == 3:
        raise ValueError(k)
    return k

last = steps.apply_async((1,), countdown=3600)
results = [mixed.apply_async((k,), expires=-1 if k % 11 == 5 else None) for k in range(80)]
print(cluster.broker_pid)
"""

#: What each row of a panel says: its name -> its state; the list is scrolled through for that.
ROWS = """async (list) => {
  const found = {};
  for (list.scrollTop = 0; ; list.scrollTop += 200) {
    const at = list.scrollTop;
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    for (const row of list.querySelectorAll(".nbtasks-row")) {
      found[row.querySelector(".nbtasks-name").textContent] = row.dataset.state;
    }
    if (at + list.clientHeight >= list.scrollHeight - 1) return found;
  }
}"""


def test_every_row_ends_in_what_the_broker_knows_whatever_came_in_between(open_notebook, expect):
    states = "import json\nprint(json.dumps([result.state for result in results]))"
    notebook = open_notebook(SET_UP, MIXED, states)
    notebook.run(0)
    notebook.run(1)
    notebook.save()
    cell = notebook.cell(1)
    os.kill(int(cell.locator(".jp-OutputArea-output pre").inner_text()), signal.SIGKILL)
    notebook.reload()

    expect(cell.locator(f"{PANEL} .nbtasks-percent").first).to_have_text("98 %", timeout=60_000)
    rows = cell.locator(f"{PANEL} .nbtasks-list").evaluate(ROWS)

    notebook.run(2)
    known = json.loads(notebook.text_under(2))
    words = {"SUCCESS": ("done",), "FAILURE": ("failed",), "REVOKED": ("expired", "cancelled")}
    assert len(rows) == 81
    assert [k for k in range(80) if rows[f"mixed({k})"] not in words[known[k]]] == []
    press(cell, "1 scheduled")  # the list is at its end
    press(row(cell, "scheduled"), "Cancel")
    expect(cell.locator(STATIC)).to_contain_text("81 tasks")


def test_a_broker_that_is_killed_in_between_leaves_no_row_untrue(open_notebook, expect):
    sends = "results = [steps.delay(4, 0.5) for _ in range(6)]\nprint(cluster.broker_pid)"
    told = "[result.get(timeout=60) for result in results]"
    notebook = open_notebook(SET_UP, sends, told)
    notebook.run(0)
    notebook.run(1)
    cell = notebook.cell(1)
    expect(row(cell, "running")).to_have_count(2)

    os.kill(int(cell.locator(".jp-OutputArea-output pre").inner_text()), signal.SIGKILL)

    expect(cell.locator(STATIC)).to_contain_text("6 done", timeout=60_000)
    notebook.run(2)
    assert json.loads(notebook.text_under(2)) == [4] * 6


@pytest.mark.parametrize("app", ["lab", "notebook"])
def test_reopened_when_its_kernel_is_gone_it_shows_how_things_stood(
    open_notebook, expect, folder, server, app
):
    sends = "results = [steps.delay(1, 0.01), steps.delay(10_000)]"
    notebook = open_notebook(SET_UP, sends, app=app)
    notebook.run(0)
    notebook.run(1)
    expect(row(notebook.cell(1), "done")).to_be_visible()
    expect(row(notebook.cell(1), "running")).to_be_visible()
    notebook.save()
    notebook.leave()
    server.end_kernels()

    notebook = open_notebook(app=app)

    cell = notebook.cell(1)
    expect(cell.locator(".nbtasks-notice")).to_contain_text("The kernel is gone. The tasks go on")
    expect(cell.locator(".nbtasks-notice code")).to_contain_text("nbtasks cancel --terminate")
    expect(row(cell, "done", "steps(1, 0.01)")).to_be_visible()
    expect(row(cell, "running", "steps(10000)")).to_be_visible()
    expect(cell.get_by_role("button", name="Cancel")).to_have_count(0)
    notebook.run(0)
    notebook.run(1)  # once more: what is gone leaves the file
    press(row(notebook.cell(1), "running", "steps(10000)"), "Cancel")
    expect(notebook.cell(1).locator(STATIC)).to_be_visible()
    notebook.save()
    assert "widgets" not in nbformat.read(folder / "test.ipynb", as_version=4).metadata


HALF = """\
@task(bind=True)
def half(self):
    self.update_state(meta={"desc": "half \\ud83d"})
    raise ValueError("half \\ud83d")
"""


def test_a_results_widget_reads_in_a_saved_notebook(open_notebook, expect, folder, server):
    notebook = open_notebook(
        SET_UP + HALF, "result = half.delay()\nresult.get(propagate=False);", "result.widget()"
    )
    notebook.run(0)
    notebook.run(1)
    said = "ValueError: half \\ud83d"
    expect(notebook.cell(1).locator(STATIC)).to_contain_text(said)
    notebook.run(2)
    expect(row(notebook.cell(2), "failed", said)).to_be_visible()
    notebook.save()
    notebook.leave()
    server.end_kernels()

    (output,) = nbformat.read(folder / "test.ipynb", as_version=4).cells[2].outputs
    assert output.data["text/plain"].startswith(
        f"nbtasks: 1 task: 1 failed\n✕ half()  failed: {said}"
    )
    assert output.data["text/html"].startswith('<section class="nbtasks-static">')
    notebook = open_notebook()
    expect(row(notebook.cell(2), "failed", said)).to_be_visible()


@pytest.mark.parametrize("kernel", ["python3-6.31.0", "python3"])
def test_a_page_reloaded_while_a_cell_waits_goes_on_and_can_cancel(open_notebook, expect, kernel):
    kernels.skip_unless_installed(kernel)
    notebook = open_notebook(SET_UP, "got = steps.delay(10_000)\ngot.get()", kernel=kernel)
    notebook.run(0)
    notebook.start(1)
    cell = notebook.cell(1)
    expect(row(cell, "running")).to_be_visible()
    notebook.save()

    notebook.reload()

    running = row(cell, "running")
    expect(running).to_be_visible()
    expect(running).not_to_have_text(running.inner_text(), use_inner_text=True)
    press(running, "Cancel")
    expect(cell.locator(STATIC)).to_contain_text("cancelled")


@pytest.mark.parametrize(
    ("end", "app"), [("restart", "lab"), ("kill", "lab"), ("kill", "notebook")]
)
def test_a_kernel_that_is_gone_is_shown_as_such(open_notebook, expect, server, end, app):
    attach = "%load_ext nbtasks\n%nbtasks attach"
    notebook = open_notebook(SET_UP, "result = steps.delay(10_000)", attach, app=app)
    notebook.run(0)
    notebook.run(1)
    cell = notebook.cell(1)
    expect(row(cell, "running")).to_be_visible()

    if end == "restart":
        notebook.restart_kernel()
    else:
        server.kernel_process().kill()

    notice = cell.locator(".nbtasks-notice")
    expect(notice).to_contain_text("The kernel is gone. The tasks go on without it")
    expect(notice.locator("code")).to_contain_text("nbtasks cancel --terminate")
    expect(cell.get_by_role("button", name="Cancel")).to_have_count(0)

    expect(notice).to_contain_text("run %load_ext nbtasks and %nbtasks attach")
    if end == "restart":
        notebook.run(2)
        press(row(notebook.cell(2), "running", "steps(10000)"), "Cancel")
        expect(notebook.cell(2).locator(STATIC)).to_contain_text("cancelled")


def wait_for(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
