"""Clicks while a cell waits, in real kernels: one ipykernel of each kind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nbtasks.client import waiting
from nbtasks.jupyter import pump
from tests.conftest import nothing_left_running, short_directory
from tests.kernels import NAMES, Kernel, skip_unless_installed, write_kernelspecs

pytestmark = pytest.mark.processes

#: A click is code that its handler runs.
NOTEBOOK = """
%load_ext nbtasks
import asyncio, os, signal, time
import nbtasks
from comm import create_comm
from nbtasks.client.client import current

cluster = nbtasks.start(dir="cluster", workers=2)

@nbtasks.task
def nap(seconds):
    import time
    time.sleep(seconds)
    return seconds

comm = create_comm(target_name="test")
comm.on_msg(lambda message: exec(message["content"]["data"], globals()))
heard = []
"""


class Notebook(Kernel):
    """A kernel with a cluster, and a comm whose clicks are code."""

    comm: str

    def begin(self, code: str) -> str:
        """Start a cell and wait until it runs."""
        cell = self.send(f"print('begun')\n{code}")
        self.until_printed(cell, "begun")
        return cell

    def press(self, code: str) -> str:
        return self.click(self.comm, code)


@pytest.fixture(autouse=True)
def _still() -> None:
    """Let the clock go on: these kernels are real."""


@pytest.fixture(autouse=True)
def _no_process_left() -> None:
    """Let kernels and clusters live on from test to test; they are looked at in the end."""


@pytest.fixture(scope="module", params=NAMES)
def notebook(request: pytest.FixtureRequest) -> Iterator[Notebook]:
    skip_unless_installed(request.param)
    write_kernelspecs(Path(os.environ["JUPYTER_DATA_DIR"]))
    with nothing_left_running(), short_directory() as path:
        with Notebook(request.param, path) as notebook:
            notebook.run(NOTEBOOK)
            notebook.comm = notebook.run("print(comm.comm_id)").strip()
            yield notebook
            notebook.run("cluster.shutdown()")


# ------------------------------------------------------------------------------------ clicks


def test_click_is_handled_while_a_cell_waits(notebook: Notebook):
    cell = notebook.begin("result = nap.delay(30); result.get()")
    notebook.press("result.cancel()")

    assert notebook.error(cell) == "TaskRevokedError"


def test_cancel_of_the_panel_ends_the_wait(notebook: Notebook):
    cell = notebook.begin("nap.delay(30).get()")
    panel = notebook.until(lambda: panel_under(notebook, cell))
    saying = {"kind": "cancel", "rows": None, "ask": 7}
    notebook.click(panel, {"method": "custom", "content": saying})

    assert notebook.error(cell) == "TaskRevokedError"
    answers = [said.get("content", {}) for said in notebook.heard(panel)]
    assert {"kind": "heard", "ask": 7} in answers


def panel_under(notebook: Notebook, cell: str) -> str | None:
    """Return the comm of the panel that a cell has shown."""
    for message in notebook.told("comm_open", cell):
        if "_esm" in message["content"]["data"]["state"]:
            return str(message["content"]["comm_id"])
    return None


def test_click_is_handled_while_a_cell_awaits(notebook: Notebook):
    cell = notebook.begin("result = nap.delay(30); await result")
    notebook.press("result.cancel()")

    assert notebook.error(cell) == "TaskRevokedError"


def test_clicks_are_handled_once_and_in_order(notebook: Notebook):
    notebook.run("heard.clear()")
    cell = notebook.begin("result = nap.delay(30); result.get()")
    for number in range(50):
        notebook.press(f"heard.append({number})")
    notebook.press("result.cancel()")
    notebook.status(cell)

    assert notebook.run("print(heard == list(range(50)))") == "True\n"


def test_clicks_get_through_between_many_short_waits(notebook: Notebook):
    cell = notebook.begin("on = True\nwhile on: nap.delay(0).get()")
    notebook.press("on = False")

    assert notebook.status(cell) == "ok"


def test_click_that_waits_itself_is_finished_before_the_next(notebook: Notebook):
    notebook.run("heard.clear()")
    cell = notebook.begin("result = nap.delay(30); result.get()")
    notebook.press("heard.append(nap.delay(0.1).get())")
    notebook.press("heard.append('next'); result.cancel()")
    notebook.status(cell)

    assert notebook.run("print(heard)") == "[0.1, 'next']\n"


def test_click_that_fails_leaves_the_wait_alone(notebook: Notebook):
    cell = notebook.begin("result = nap.delay(30); result.get()")
    notebook.press("1 / 0")
    notebook.press("result.cancel()")

    assert notebook.error(cell) == "TaskRevokedError"


def test_page_that_is_reloaded_is_told_which_comms_there_are(notebook: Notebook):
    cell = notebook.begin("result = nap.delay(30); result.get()")
    message = notebook.client.session.msg("comm_info_request", {"target_name": "test"})
    notebook.client.shell_channel.send(message)
    asked = str(message["header"]["msg_id"])

    answer = notebook.until(lambda: notebook.answers.get(asked))
    assert notebook.comm in answer["content"]["comms"]
    assert cell not in notebook.answers
    notebook.press("result.cancel()")
    assert notebook.error(cell) == "TaskRevokedError"


def test_click_on_an_idle_kernel_is_handled_as_ever(notebook: Notebook):
    click = notebook.press("print('clicked')")

    notebook.until_printed(click, "clicked")


# ---------------------------------------------------------------------------------- the cell


def test_output_after_a_click_stays_with_the_cell(notebook: Notebook):
    cell = notebook.begin("result = nap.delay(30); result.wait(propagate=False); print('after')")
    click = notebook.press("print('clicked'); result.cancel()")

    assert notebook.status(cell) == "ok"
    notebook.until_printed(cell, "after")
    assert notebook.printed(click) == "clicked\n"


def test_kernel_says_after_a_click_that_it_is_busy_with_the_cell(notebook: Notebook):
    cell = notebook.begin("result = nap.delay(30); result.get(propagate=False)")
    click = notebook.press("pass")
    notebook.until(lambda: notebook.is_idle(click))
    notebook.until(lambda: states(notebook)[-1] == (cell, "busy"))
    notebook.press("result.cancel()")
    notebook.until(lambda: notebook.is_idle(cell))

    assert states(notebook, cell).count((cell, "idle")) == 1


def states(notebook: Notebook, request: str | None = None) -> list[tuple[str, str]]:
    return [
        (message["parent_header"]["msg_id"], message["content"]["execution_state"])
        for message in notebook.told("status", request)
    ]


def test_click_is_no_end_of_the_cell_for_those_who_wait_for_that(notebook: Notebook):
    notebook.run("ends = []; get_ipython().events.register('post_execute', lambda: ends.append(1))")
    cell = notebook.begin("ends.clear(); result = nap.delay(30); result.get(propagate=False)")
    notebook.press("ends.append('clicked'); result.cancel()")
    notebook.status(cell)

    assert notebook.run("print(ends)") == "['clicked', 1]\n"


# ---------------------------------------------------------------------------- queued cells


def test_queued_cells_run_afterwards_in_order(notebook: Notebook):
    first = notebook.begin("order = []; result = nap.delay(30); result.get(propagate=False)")
    queued = [notebook.send(f"order.append({number}); print(order)") for number in (1, 2)]
    notebook.press("order.append('click'); result.cancel()")

    assert [notebook.status(cell) for cell in (first, *queued)] == ["ok", "ok", "ok"]
    notebook.until_printed(queued[1], "['click', 1, 2]")
    notebook.until_printed(queued[0], "['click', 1]")


def test_queued_cells_are_aborted_after_an_error(notebook: Notebook):
    first = notebook.begin("result = nap.delay(30); result.get()")
    queued = [notebook.send("print('ran')") for _ in range(3)]
    notebook.press("result.cancel()")

    assert notebook.error(first) == "TaskRevokedError"
    assert [notebook.status(cell) for cell in queued] == ["aborted"] * 3
    assert notebook.run("print('goes on')") == "goes on\n"


def test_click_that_came_before_the_wait_is_handled_in_it(notebook: Notebook):
    notebook.begin("time.sleep(0.3)")
    cell = notebook.send("result = nap.delay(30); result.get()")
    notebook.press("result.cancel()")

    assert notebook.error(cell) == "TaskRevokedError"


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """Leave this machine's processes little time, so that they come to each other's feet."""
    spin = [sys.executable, "-c", "while True: pass"]
    spinning = [subprocess.Popen(spin) for _ in range((os.cpu_count() or 1) + 1)]
    yield
    for process in spinning:
        process.kill()
        process.wait()


def test_nothing_is_overlooked_that_comes_while_the_kernel_answers(
    notebook: Notebook, busy_machine: None
):
    notebook.run("heard.clear()")
    for _ in range(60):
        cells = [notebook.send(code) for code in ("time.sleep(0.005)", "1")]
        for _ in range(25):
            notebook.press("heard.append(1)")
        cells.append(notebook.send("2"))
        assert [notebook.status(cell) for cell in cells] == ["ok"] * 3

    assert notebook.run("print(len(heard))") == "1500\n"


# ------------------------------------------------------------------------------ interrupts


def test_interrupt_ends_the_wait(notebook: Notebook):
    cell = notebook.begin("nap.delay(1).get()")
    notebook.interrupt(cell)

    assert notebook.error(cell) == "KeyboardInterrupt"
    assert notebook.run("print('goes on')") == "goes on\n"


#: Waits until a click says `end`, and is interrupted again and again.
ENDURE = """
def interrupt():
    global inside
    while "end" not in heard:
        time.sleep(random.uniform(0.0, 0.03))
        if inside:
            inside = False
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

def end():
    heard.append("end")
    interrupter.join()
    result.cancel()

interrupts, inside, result = 0, False, nap.delay(60)
interrupter = threading.Thread(target=interrupt)
interrupter.start()
while "end" not in heard:
    try:
        inside = True
        result.get(propagate=False)
    except KeyboardInterrupt:
        interrupts += 1
"""


def test_interrupts_lose_no_click_and_no_cell(notebook: Notebook):
    notebook.run("import random, threading; heard.clear()")
    notebook.begin(ENDURE)
    for number in range(300):
        notebook.press(f"heard.append({number})")
        time.sleep(0.003)
    queued = notebook.send("print(heard == [*range(300), 'end'], interrupts > 9)")
    notebook.press("end()")

    notebook.until_printed(queued, "True True")


def test_interrupt_ends_a_handler_that_hangs(notebook: Notebook):
    cell = notebook.begin("result = nap.delay(30)\nresult.get()")
    click = notebook.press("print('hangs')\ntime.sleep(0.3)\nprint('still')\ntime.sleep(60)")
    notebook.until_printed(click, "hangs")
    time.sleep(2 * pump.GRACE)
    notebook.interrupt(cell)

    assert notebook.error(cell) == "KeyboardInterrupt"
    notebook.run("result.cancel()")


# --------------------------------------------------------------------------- kinds of waits

FUTURE = (
    "result.cancel(); executor = nbtasks.Executor(); future = executor.submit(time.sleep, 30); "
    "result = future.task"
)
WAITS = {
    "wait": "result.wait(propagate=False)",
    "join": "nbtasks.ResultSet([result]).join(propagate=False)",
    "get of a set": "nbtasks.ResultSet([result]).get(propagate=False)",
    "iterate": "list(nbtasks.ResultSet([result]).iter_native())",
    "callbacks": "result.get(propagate=False, on_message=print)",
    "a future": f"{FUTURE}; future.exception()",
    "the end of an executor": f"{FUTURE}; executor.shutdown()",
    "a broker that is slow to answer": "halt(); current().ask('status')",
    "a broker that is slow to accept": "halt(); nap.apply_async((0,), confirm=True)",
}


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("notebook", ["python3"], indirect=True)
def test_all_waits_let_clicks_through(notebook: Notebook, wait: str):
    notebook.run("def halt(): os.kill(cluster.broker_pid, signal.SIGSTOP)")
    cell = notebook.begin(f"result = nap.delay(30); {WAITS[wait]}")
    notebook.press("os.kill(cluster.broker_pid, signal.SIGCONT); result.cancel()")

    assert notebook.status(cell) == "ok"


# ------------------------------------------------------------------------------ its parts


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads in which something was done between waits."""
    calls: list[str] = []
    between = lambda: calls.append(threading.current_thread().name)  # noqa: E731
    monkeypatch.setattr(waiting, "between_waits", between)
    return calls


def test_main_thread_waits_in_slices_and_others_at_a_stretch(calls: list[str]):
    slices: list[float] = []
    other = threading.Thread(target=lambda: slices.append(waiting.pause(9.0)))
    other.start()
    other.join()

    assert waiting.pause(9.0) == waiting.PULSE
    assert waiting.pause(0.001) == 0.001
    assert slices == [9.0]
    assert set(calls) == {threading.main_thread().name}


def test_waits_are_at_a_stretch_where_there_is_nothing_to_do_between():
    assert waiting.pause(9.0) == 9.0


@pytest.mark.parametrize("name", NAMES)
def test_kernel_whose_configuration_loads_us_lets_clicks_through(
    name: str, short_path: Path, monkeypatch: pytest.MonkeyPatch
):
    skip_unless_installed(name)
    write_kernelspecs(Path(os.environ["JUPYTER_DATA_DIR"]))
    monkeypatch.setenv("IPYTHONDIR", str(short_path))
    profile = short_path / "profile_default"
    profile.mkdir()
    config = "get_config().InteractiveShellApp.extensions = ['nbtasks']"
    (profile / "ipython_config.py").write_text(config)

    with Kernel(name, short_path) as kernel:
        reason = kernel.run("from nbtasks.jupyter import pump; print([pump.reason()])")

    assert reason == "['']\n"


def test_unknown_kernel_is_left_alone_and_the_reason_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pump, "_reason", "")
    pump.install(SimpleNamespace(kernel=SimpleNamespace(io_loop=None), events=None))

    assert "not built like" in pump.reason()
    assert waiting.between_waits is None


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """Interrupt this process, as Ctrl-C does."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, usual)


def test_held_interrupt_comes_afterwards(interrupt: Callable[[], Any]):
    done = []

    def work() -> None:
        with pump.Held():
            interrupt()
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all of it"]
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_held_interrupt_does_not_wait_for_ever(interrupt: Callable[[], Any]):
    done = []

    def work() -> None:
        with pump.Held(longest=-1.0):
            interrupt()
            done.append("more")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == []
