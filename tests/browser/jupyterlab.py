"""A throw-away JupyterLab, and a notebook in it as seen by a person with a browser."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import psutil
from playwright.sync_api import ConsoleMessage, Locator, Page, sync_playwright
from playwright.sync_api import Error as PlaywrightError

#: Seconds that anything in here may take; the machine may be slow and busy.
PATIENCE = 60.0

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

#: No sandbox: it refuses to work for root. Nothing but this machine is ever looked up.
FLAGS = [
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--disable-gpu", "--disable-quic", "--disable-sync", "--hide-scrollbars", "--no-first-run"),
    "--no-sandbox",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]

#: What JupyterLab itself says on the console where it cannot reach the outside.
NOT_OURS = re.compile(r"favicon|ERR_NAME_NOT_RESOLVED|ERR_INTERNET_DISCONNECTED|/workspaces/.*404")

LAB_SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}

#: The notebook in front, as JupyterLab's own objects.
NOTEBOOK = "window.jupyterapp.shell.currentWidget"


def chromium() -> str | None:
    """Return the path of the system's Chromium, or None."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def write_notebook(path: Path, *cells: str) -> None:
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    nbformat.write(notebook, path)


class Server:
    """JupyterLab on a port that the system chose, with its files in a directory of its own."""

    def __init__(self, home: Path) -> None:
        self.root = home / "work"
        self.root.mkdir()
        self._runtime = home / "r"
        self._log = home / "server.log"
        settings = home / "settings" / "@jupyterlab"
        for name, value in LAB_SETTINGS.items():
            file = settings / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(value))
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
        options += ["--expose-app-in-browser", "--ServerApp.log_level=WARN"]
        options += [f"--ServerApp.root_dir={self.root}", "--LabApp.extension_manager=readonly"]
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

    def url(self, notebook: str) -> str:
        return f"{self._info['url']}lab/tree/{notebook}?token={self._info['token']}"

    def stop_cluster(self) -> None:
        """End the cluster that kernels in this server's directory have started."""
        subprocess.run(
            [sys.executable, "-m", "nbtasks", "stop"],
            cwd=self.root,
            env=self.environment,
            check=False,
            capture_output=True,
            timeout=PATIENCE,
        )

    def __exit__(self, *_: object) -> None:
        self.stop_cluster()
        # Its kernels are in sessions of their own: the server is the one to end them.
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
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))

    def _note(self, message: ConsoleMessage) -> None:
        text = f"{message.text} ({message.location.get('url', '')})"
        if message.type == "error" and not NOT_OURS.search(text):
            self.errors.append(text)

    def open(self, url: str) -> None:
        self.page.goto(url, wait_until="domcontentloaded")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")
        self.page.wait_for_function(f"() => {NOTEBOOK}?.sessionContext?.session?.kernel")
        self.wait_idle()

    def cell(self, index: int) -> Locator:
        return self.page.locator(".jp-Notebook .jp-Cell").nth(index)

    def start(self, index: int) -> None:
        """Run one cell, without waiting for its end."""
        self.page.evaluate(
            f"""(index) => {{
                {NOTEBOOK}.content.activeCellIndex = index;
                window.jupyterapp.commands.execute("notebook:run-cell");
            }}""",
            index,
        )

    def run(self, index: int) -> None:
        """Run one cell and wait until the kernel is idle again."""
        self.start(index)
        prompt = self.cell(index).locator(".jp-InputPrompt")
        prompt.filter(has_text=re.compile(r"\d")).wait_for()
        self.wait_idle()

    def wait_idle(self) -> None:
        self.page.wait_for_function(
            f"() => {NOTEBOOK}.sessionContext.session.kernel.status === 'idle'"
        )

    def text_under(self, index: int) -> str:
        return self.cell(index).locator(".jp-Cell-outputWrapper").inner_text()

    def set_theme(self, name: str) -> None:
        command = (
            "name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})"
        )
        self.page.evaluate(command, f"JupyterLab {name}")
        light = "true" if name == "Light" else "false"
        self.page.wait_for_selector(f"body[data-jp-theme-light='{light}']", state="attached")
        self.page.wait_for_selector("#jupyterlab-splash", state="detached")

    def hide_all_but_the_notebook(self) -> None:
        """Put away JupyterLab's side bar, and the tools and the frame of the cell in focus."""
        self.page.evaluate(
            "() => window.jupyterapp.commands.execute('application:toggle-left-area')"
        )
        self.page.evaluate(f"() => {{ {NOTEBOOK}.content.activeCellIndex = 0 }}")


@contextlib.contextmanager
def browser_page(profile: Path) -> Iterator[Page]:
    """Yield an empty page of a Chromium that has never seen anything."""
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(profile),
            executable_path=chromium(),
            args=FLAGS,
            viewport={"width": 1100, "height": 800},
            device_scale_factor=2,
        )
        context.set_default_timeout(PATIENCE * 1000)
        try:
            yield context.pages[0] if context.pages else context.new_page()
        finally:
            with contextlib.suppress(PlaywrightError):
                context.close()
