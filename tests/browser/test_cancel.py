"""Cancel, pressed while the kernel is busy in whatever way."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time

import pytest

from tests import kernels
from tests.browser.cells import SET_UP, STATIC, press, row

#: Seconds from the click to the task's end on a quiet machine; tests allow for a busy one.
FAST = 0.2
SLOW = 1.5


def cancel(notebook, index, expect) -> float:
    """Cancel the task under this cell, and return when the click left the page."""
    running = row(notebook.cell(index), "running")
    expect(running).to_be_visible()
    before = time.time()
    press(running, "Cancel")
    expect(notebook.cell(index).locator(STATIC)).to_contain_text("cancelled")
    return notebook.traffic().since(before).comms("out")[0].at


@pytest.mark.parametrize("kernel", kernels.NAMES)
def test_cancel_ends_the_task_at_once_whatever_the_kernel_waits_for(open_notebook, expect, kernel):
    kernels.skip_unless_installed(kernel)
    notebook = open_notebook(
        SET_UP,
        "got = steps.delay(10_000)\ngot.get()",
        "print('not ' + 'aborted')",
        "awaited = steps.delay(10_000)\nawait awaited",
        "idle = steps.delay(10_000)",
        "[each.history[-1].at.timestamp() for each in (got, awaited, idle)]",
        kernel=kernel,
    )

    notebook.run_all()
    clicks = [cancel(notebook, 1, expect)]
    expect(notebook.cell(1)).to_contain_text("TaskRevokedError")
    notebook.wait_idle()
    assert "not aborted" not in notebook.text_under(2)
    notebook.start(3)
    clicks.append(cancel(notebook, 3, expect))
    expect(notebook.cell(3)).to_contain_text("TaskRevokedError")
    notebook.run(4)
    clicks.append(cancel(notebook, 4, expect))
    notebook.run(5)

    ends = json.loads(notebook.text_under(5))
    took = [end - click for end, click in zip(ends, clicks, strict=True)]
    print(f"{kernel}: {', '.join(f'{each * 1000:.0f} ms' for each in took)} from click to end")
    assert max(took) < SLOW


def test_where_nothing_can_be_done_the_panel_says_so_and_what_to_type(
    open_notebook, expect, folder, server
):
    kernels.skip_unless_installed("python3-6.31.0")
    notebook = open_notebook(
        SET_UP, "busy = steps.delay(10_000)\ntime.sleep(20)", kernel="python3-6.31.0"
    )
    notebook.run(0)
    notebook.start(1)
    cell = notebook.cell(1)
    expect(row(cell, "running")).to_be_visible()

    press(row(cell, "running"), "Cancel")

    notice = cell.locator(".nbtasks-notice")
    expect(notice).to_contain_text("The kernel is busy: cancel is queued")
    command = shlex.split(notice.locator("code").inner_text())
    assert command[:2] == ["nbtasks", "cancel"]
    subprocess.run(
        [sys.executable, "-m", *command],
        **{"cwd": folder, "env": server.environment, "check": True, "capture_output": True},
    )
    # The kernel still sleeps, but what its panel shows is true.
    expect(row(cell, "cancelled")).to_be_visible()
    expect(notice).to_be_hidden()
    expect(cell.locator(".jp-InputPrompt")).to_contain_text("*")
