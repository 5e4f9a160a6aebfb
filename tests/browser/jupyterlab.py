"""A throw-away JupyterLab, and a notebook in it as seen by a person with a browser."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import nbformat
import psutil
from playwright.sync_api import ConsoleMessage, Error, Locator, Page

from tests import kernels
from tests.browser import traffic
from tests.browser.chromium import PATIENCE

#: What Jupyter itself says on the console: where it cannot reach the outside, and (the last three)
#: when Notebook 7 opens any notebook at all, or wants a font of its own.
NOT_OURS = re.compile(
    r"favicon|ERR_NAME_NOT_RESOLVED|ERR_INTERNET_DISCONNECTED|/workspaces/.*404"
    r"|reading 'schema'|Command 'filebrowser:open-path' not registered"
    r"|403 .*/static/notebook/\w+\.woff2"
)

SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}

#: The address of a notebook in each application, without what was open before. One server has both.
ADDRESS = {"lab": "lab/tree/{}?reset&", "notebook": "notebooks/{}?"}

#: The notebook that is open, as Jupyter's own object (`NotebookPanel`), and its kernel.
NOTEBOOK = "[...window.jupyterapp.shell.widgets('main')].find((each) => each.sessionContext)"
KERNEL = f"{NOTEBOOK}?.sessionContext?.session?.kernel"
#: Waits until the kernel has answered something. A request that comes while ipykernel 7 sends its
#: first answers is not seen before the next connection (ipython/ipykernel#1554).
ANSWERED = f"""async () => {{
    const kernel = {KERNEL};
    const late = new Promise(resolve => setTimeout(resolve, 5000, true));
    if (await Promise.race([kernel.requestKernelInfo(), late]) === true) await kernel.reconnect();
}}"""

DIALOG = ".jp-Dialog"


def write_notebook(path: Path, *cells: str, kernel: str = "python3") -> None:
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
        metadata={"kernelspec": {"name": kernel, "display_name": kernel}},
    )
    nbformat.write(notebook, path)


class Server:
    """JupyterLab and Notebook 7 on a port that the system chose, in a directory of their own."""

    def __init__(self, home: Path) -> None:
        self.root = home / "work"
        self.root.mkdir()
        self._runtime = home / "r"
        self._log = home / "server.log"
        settings = home / "settings" / "@jupyterlab"
        for name, value in SETTINGS.items():
            file = settings / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(value))
        kernels.write_kernelspecs(home / "d")
        self.environment = {
            **os.environ,
            "JUPYTER_CONFIG_DIR": str(home / "c"),
            "JUPYTER_DATA_DIR": str(home / "d"),
            "JUPYTER_RUNTIME_DIR": str(self._runtime),
            "JUPYTERLAB_SETTINGS_DIR": str(settings.parent),
            "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }

    def __enter__(self) -> Server:
        options = ["--no-browser", "--ip=127.0.0.1", "--port=0", "--allow-root"]
        options += ["--expose-app-in-browser", "--JupyterNotebookApp.expose_app_in_browser=True"]
        options += ["--ServerApp.log_level=WARN", "--LabApp.extension_manager=readonly"]
        options += [f"--ServerApp.root_dir={self.root}"]
        with self._log.open("wb") as log:
            self._process = psutil.Popen(
                [sys.executable, "-m", "jupyterlab", *options],
                cwd=self.root,
                env=self.environment,
                start_new_session=True,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._info = self._wait_for_info()
        return self

    def _wait_for_info(self) -> dict[str, Any]:
        """Return what the server writes down about itself once it listens."""
        file = self._runtime / f"jpserver-{self._process.pid}.json"
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(OSError, ValueError):
                return json.loads(file.read_text())
            time.sleep(0.1)
        raise RuntimeError(f"JupyterLab did not start:\n{self._log.read_text()}")

    def url(self, notebook: Path, app: str = "lab") -> str:
        """Return the address of a notebook."""
        place = ADDRESS[app].format(notebook.relative_to(self.root))
        return f"{self._info['url']}{place}token={self._info['token']}"

    def _ask(self, method: str, path: str) -> Any:
        request = urllib.request.Request(self._info["url"] + path, method=method)
        request.add_header("Authorization", f"token {self._info['token']}")
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read() or b"null")

    def end_kernels(self) -> None:
        # Kernels are in sessions of their own: the server is the one to end them.
        for session in self._ask("GET", "api/sessions"):
            self._ask("DELETE", f"api/sessions/{session['id']}")

    def kernel_process(self) -> psutil.Process:
        """Return the process of the one kernel that runs."""
        (kernel,) = self._ask("GET", "api/kernels")
        children = self._process.children(recursive=True)
        return next(each for each in children if kernel["id"] in " ".join(each.cmdline()))

    def stop_cluster(self, folder: Path) -> None:
        """End the cluster that kernels in this folder have started."""
        subprocess.run(
            [sys.executable, "-m", "nbtasks", "stop"],
            cwd=folder,
            env=self.environment,
            check=False,
            capture_output=True,
            timeout=PATIENCE,
        )

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(psutil.TimeoutExpired):
            self._process.wait(PATIENCE / 4)
        if self._process.is_running():
            self._process.kill()
            self._process.wait(PATIENCE / 4)


class Notebook:
    """One notebook in the browser: run its cells, look at what is under them."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        page.add_init_script(traffic.SCRIPT)
        page.on("console", self._note)
        page.on("pageerror", self._note_uncaught)

    def _note(self, message: ConsoleMessage) -> None:
        text = f"{message.text} ({message.location.get('url', '')})"
        if message.type == "error" and not NOT_OURS.search(text):
            self.errors.append(text)

    def _note_uncaught(self, error: Error) -> None:
        if not NOT_OURS.search(str(error)):
            self.errors.append(f"uncaught: {error}")

    # --------------------------------------------------------------------------- the page

    def open(self, url: str) -> None:
        self.page.goto(url, wait_until="domcontentloaded")
        self._wait_for_kernel()
        self.page.evaluate(ANSWERED)

    def reload(self) -> None:
        self.page.reload(wait_until="domcontentloaded")
        self._wait_for_kernel()

    def leave(self) -> None:
        """Close the page, as far as the server and the kernel can see."""
        self.page.goto("about:blank")

    def _wait_for_kernel(self) -> None:
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")
        self.page.wait_for_function(f"() => {KERNEL}?.connectionStatus === 'connected'")

    def save(self) -> None:
        self._command("docmanager:save", wait=True)

    def traffic(self) -> traffic.Traffic:
        """Return the messages to and from kernels since the page was loaded."""
        return traffic.of(self.page)

    # --------------------------------------------------------------------------- the kernel

    def _command(self, name: str, *, wait: bool = False) -> None:
        done = "return promise" if wait else ""
        self.page.evaluate(
            f"(name) => {{ const promise = window.jupyterapp.commands.execute(name); {done} }}",
            name,
        )

    def start(self, index: int) -> None:
        """Run one cell, without waiting for its end."""
        self.page.evaluate(f"(index) => {{ {NOTEBOOK}.content.activeCellIndex = index }}", index)
        self._command("notebook:run-cell")

    def run(self, index: int) -> None:
        """Run one cell and wait until the kernel is idle again."""
        self.start(index)
        self.wait_run(index)
        self.wait_idle()

    def wait_run(self, index: int) -> None:
        """Wait until a cell that was started has ended."""
        prompt = self.cell(index).locator(".jp-InputPrompt")
        prompt.filter(has_text=re.compile(r"\d")).wait_for()

    def run_all(self) -> None:
        """Run all cells, without waiting for their end."""
        self._command("notebook:run-all-cells")

    def restart_kernel(self) -> None:
        """Restart the kernel as a person does, and wait until it is there again."""
        before = self.page.evaluate(f"() => {KERNEL}.id")
        self._command("notebook:restart-kernel")
        self.page.locator(f"{DIALOG} button.jp-mod-warn").click()
        self.page.wait_for_function(f"() => {KERNEL}.status.includes('start')")
        self.wait_idle()
        assert before == self.page.evaluate(f"() => {KERNEL}.id")

    def wait_idle(self) -> None:
        self.page.wait_for_function(f"() => {KERNEL}.status === 'idle'")

    # --------------------------------------------------------------------------- what is seen

    def cell(self, index: int) -> Locator:
        return self.page.locator(".jp-Notebook .jp-Cell").nth(index)

    def text_under(self, index: int) -> str:
        """Return all that stands under a cell, without the numbers beside it."""
        return "\n".join(self.cell(index).locator(".jp-OutputArea-output").all_inner_texts())

    def set_theme(self, name: str) -> None:
        """Switch to `Light`, `Dark` or `Dark High Contrast`."""
        command = (
            "name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})"
        )
        self.page.evaluate(command, f"JupyterLab {name}")
        light = "true" if name == "Light" else "false"
        self.page.wait_for_selector(f"body[data-jp-theme-light='{light}']", state="attached")
        self.page.wait_for_selector("#jupyterlab-splash", state="detached")

    def hide_all_but_the_notebook(self) -> None:
        """Put away JupyterLab's side bar, and the tools and the frame of the cell in focus."""
        self._command("application:toggle-left-area")
        self.page.evaluate(f"() => {{ {NOTEBOOK}.content.activeCellIndex = 0 }}")
