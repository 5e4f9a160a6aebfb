"""What the panel may count on elsewhere: fewer packages, and other front ends than JupyterLab.

VS Code, Colab and marimo give a widget's module no more of its model than anywidget promises, and
two of them do so by handing it a stand-in; no private word of Jupyter's reaches it there.
"""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap

import pytest

from nbtasks.jupyter.widget import module

MODULE = module()

#: All that a module may use of its model wherever anywidget works.
MODEL = {"get", "set", "save_changes", "send", "on", "off", "widget_manager"}

#: Such words would only work where a page has loaded them.
FOREIGN = ("jupyterapp", "requirejs", "google.colab", "acquireVsCodeApi", "window.parent")


def code(module: str) -> str:
    """Return a module without its comments."""
    return re.sub(r"/\*.*?\*/|(?<![:\"'`])//[^\n]*", "", module, flags=re.DOTALL)


def test_module_uses_of_its_model_only_what_every_front_end_gives_it() -> None:
    used = set(re.findall(r"(?<![?.]\.)\bmodel\??\.(\w+)", code(MODULE)))

    assert used <= MODEL
    assert {"get", "on", "off", "send"} <= used


def test_module_uses_of_a_widget_manager_what_there_is_or_asks_first() -> None:
    uses = re.findall(r"\bwidget_manager((?:\.get_model\()|\S{0,2})", code(MODULE))

    assert {use for use in uses if not use.startswith("?.")} <= {".get_model("}


def test_module_listens_to_what_every_front_end_tells() -> None:
    heard = set(re.findall(r"model\.on\(\s*[\"'`]([^\"'`]+)", code(MODULE)))

    # The last is a word of ipywidgets: it is never said elsewhere, and nobody is harmed.
    assert heard <= {"msg:custom", "change:snapshot", "comm_live_update"}


def test_module_stands_alone() -> None:
    """A page that is offline, or forbids foreign scripts, still gets it."""
    text = code(MODULE)

    assert not re.search(r"^\s*import\b|\bimport\(|\bfetch\(|XMLHttpRequest", text, re.MULTILINE)
    assert set(re.findall(r"https?://[\w.]+", text)) <= {"http://www.w3.org"}
    assert not [word for word in FOREIGN if word in text]


def test_module_exports_what_anywidget_calls() -> None:
    exported = MODULE.partition("export default")[2]

    assert re.match(r"\s*(\{|\(\) =>)", exported)  # its parts, or what makes them for each widget
    assert {"initialize", "render"} <= set(re.findall(r"^\s*(\w+)\b", exported, re.MULTILINE))


# --------------------------------------------------------------------------------- fewer packages


def run_without(packages: str, program: str) -> str:
    """Run a program where these packages cannot be imported; return what it printed."""
    prologue = f"""
        import sys

        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {packages.split()!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, Missing())
    """
    whole = textwrap.dedent(prologue) + textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


#: A cell that sends a task, in an IPython shell; `{kernel}` is what the shell has as its kernel.
CELL = """
    from IPython.core.interactiveshell import InteractiveShell
    from nbtasks.client import client
    from nbtasks.client.client import Record
    from nbtasks.core.messages import Call, Event

    shell = InteractiveShell.instance()
    shell.kernel = {kernel}
    shell.run_cell("%load_ext nbtasks")

    def send():
        call = Call("id-1", b"", "nb.load", b"", summary="('a.csv')")
        record = Record(call.id, call=call, created=0.0)
        for hook in client.submitted_hooks:
            hook(record)
        event = Event(call.id, 1, 1.0, "state", "SUCCESS", final=True, runtime=1.5)
        record.note(event)
        for listener in record.listeners:
            listener(record, event)

    shell.user_ns["send"] = send
    shell.display_pub.publish = lambda data, **more: print(sorted(data), data["text/plain"])
    shell.run_cell("send()")
"""

TERMINAL = textwrap.dedent(CELL.format(kernel="None"))
KERNEL = textwrap.dedent(CELL.format(kernel="object()"))


@pytest.mark.parametrize("packages", ["", "rich", "anywidget ipywidgets", "rich anywidget"])
def test_terminal_needs_neither_rich_nor_widgets(packages: str) -> None:
    assert "✓ load('a.csv')  done  1.5 s" in run_without(packages, TERMINAL)


@pytest.mark.parametrize("packages", ["anywidget", "anywidget ipywidgets", "anywidget rich"])
def test_kernel_without_widgets_shows_html_that_is_drawn_again(packages: str) -> None:
    first, *_, last = [
        line for line in run_without(packages, KERNEL).splitlines() if line.startswith("[")
    ]

    assert first.startswith("['text/html', 'text/plain']")
    assert last.startswith("['text/html', 'text/plain']")
    assert "done" in last


def test_widget_without_the_packages_for_it_is_a_picture() -> None:
    program = """
        import nbtasks

        @nbtasks.task
        def add(x, y):
            return x + y

        print(add.apply((1, 2)).widget())
    """

    out = run_without("anywidget ipywidgets IPython", program)

    assert out == "nbtasks: 1 task: 1 done\n✓ add(1, 2)  done\n"


def test_python_without_ipython_shows_nothing_and_needs_nothing() -> None:
    program = """
        import nbtasks

        @nbtasks.task
        def add(x, y):
            return x + y

        print(add(1, 2), add.apply((3, 4)).get())
    """

    out = run_without("IPython ipykernel ipywidgets anywidget rich", program)

    assert out == "3 7\n"
