"""Real kernels, one of each kind of ipykernel, and what a front end does with them.

    with Kernel("python3-6.31.0", cwd) as kernel:
        kernel.run("x = 1")                     # a cell; it must succeed
        cell = kernel.send("result.get()")      # another; go on while it runs
        kernel.click(comm_id, {"kind": "cancel"})
        assert kernel.status(cell) == "error"

`./dev` installs the versions that pyproject.toml names, each in a folder of its own under .venv;
the newest is the one that is installed anyway.
"""

from __future__ import annotations

import contextlib
import json
import queue
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from jupyter_client.manager import KernelManager

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".venv" / "kernels"

_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
#: Versions of ipykernel beside the installed one.
VERSIONS: list[str] = _PROJECT["tool"]["nbtasks-dev"]["kernels"]

#: The names of all kernels, for `pytest.mark.parametrize` and for `Kernel`.
NAMES = [*(f"python3-{version}" for version in VERSIONS), "python3"]

#: Seconds that anything in here may take on a busy machine.
PATIENCE = 40.0

T = TypeVar("T")
Message = dict[str, Any]


def write_kernelspecs(data: Path) -> None:
    """Let Jupyter find the kernels of all versions, in a data directory such as JUPYTER_DATA_DIR.

    "python3" is there without this.
    """
    for version in VERSIONS:
        if (FOLDER / version).is_dir():
            spec = {
                "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                "display_name": f"ipykernel {version}",
                "language": "python",
                # Before what is installed; all but ipykernel itself is the same.
                "env": {"PYTHONPATH": str(FOLDER / version)},
            }
            folder = data / "kernels" / f"python3-{version}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "kernel.json").write_text(json.dumps(spec))


def skip_unless_installed(name: str) -> None:
    version = name.partition("-")[2]
    if version and not (FOLDER / version).is_dir():
        pytest.skip(f"ipykernel {version} is not installed: ./dev could not download it")


class Kernel:
    """A kernel and a front end: cells and clicks go in, outputs and answers come out."""

    def __init__(self, name: str, cwd: Path) -> None:
        self._manager = KernelManager(kernel_name=name)
        self._cwd = cwd
        #: All that the kernel has published and answered, in order.
        self.published: list[Message] = []
        self.answers: dict[str, Message] = {}

    def __enter__(self) -> Kernel:
        # ipykernel 7.2 and 7.3 may lock up while they are greeted, before we can help it.
        for patience in (PATIENCE / 4, PATIENCE / 4, PATIENCE):
            try:
                self._start(patience)
            except RuntimeError as error:
                last = error
            else:
                return self
        raise last

    def _start(self, patience: float) -> None:
        self._manager.start_kernel(cwd=str(self._cwd))
        self.client = self._manager.blocking_client()
        self.client.start_channels()
        try:
            self.client.wait_for_ready(timeout=patience)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self.client.stop_channels()
        self._manager.shutdown_kernel(now=True)

    # ---------------------------------------------------------------------------- into the kernel

    def send(self, code: str) -> str:
        """Send a cell, and return the number of the request."""
        return str(self.client.execute(code))

    def run(self, code: str) -> str:
        """Run a cell, which must succeed, and return what it printed."""
        cell = self.send(code)
        assert self.status(cell) == "ok", self.answers[cell]["content"]
        self.until(lambda: self.is_idle(cell))
        return self.printed(cell)

    def click(self, comm: str, data: object) -> str:
        """Say something to a comm, as a widget's button does."""
        message = self.client.session.msg("comm_msg", {"comm_id": comm, "data": data})
        self.client.shell_channel.send(message)
        return str(message["header"]["msg_id"])

    def interrupt(self, cell: str) -> float:
        """Interrupt a cell and wait until it has ended; return when that was asked for.

        Python ignores, and says so, an interrupt that hits a callback of the garbage collector, of
        which ipykernel has one: then again.
        """
        asked, ignored = 0.0, -1

        def over() -> bool:
            nonlocal asked, ignored
            if (now_ignored := self.printed(cell).count("Exception ignored")) > ignored:
                asked, ignored = time.monotonic(), now_ignored
                self._manager.interrupt_kernel()
            return cell in self.answers and self.is_idle(cell)

        self.until(over)
        return asked

    # -------------------------------------------------------------------------- out of the kernel

    def until(self, condition: Callable[[], T], seconds: float = PATIENCE) -> T:
        """Take in what the kernel says until a condition holds; return what it gave."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, self._last_heard()
            self._take_in()
        return value

    def _last_heard(self) -> str:
        """Return the last that the kernel said, a short line for each."""
        lines = [
            f"{said['msg_type']} for {said['parent_header'].get('msg_id', '')[-8:]}: "
            f"{str(said['content'])[:120]}"
            for said in self.published[-20:]
        ]
        return "in vain; last heard:\n" + "\n".join(lines)

    def _take_in(self) -> None:
        with contextlib.suppress(queue.Empty):
            self.published.append(self.client.get_iopub_msg(timeout=0.01))
        with contextlib.suppress(queue.Empty):
            answer = self.client.get_shell_msg(timeout=0)
            self.answers[answer["parent_header"]["msg_id"]] = answer

    def status(self, cell: str) -> str:
        """Wait for the end of a cell: "ok", "error" or "aborted"."""
        self.until(lambda: cell in self.answers)
        return str(self.answers[cell]["content"]["status"])

    def error(self, cell: str) -> str:
        """Wait for the end of a cell, and return the name of what it raised."""
        assert self.status(cell) == "error", self.answers[cell]["content"]
        return str(self.answers[cell]["content"]["ename"])

    def told(self, kind: str, request: str | None = None) -> list[Message]:
        """Return what was published of one kind, because of one request."""
        return [
            message
            for message in self.published
            if message["msg_type"] == kind
            and (request is None or message["parent_header"].get("msg_id") == request)
        ]

    def printed(self, cell: str) -> str:
        return "".join(message["content"]["text"] for message in self.told("stream", cell))

    def until_printed(self, cell: str, text: str) -> None:
        self.until(lambda: text in self.printed(cell))

    def is_idle(self, request: str) -> bool:
        """Whether the kernel has said that this request is dealt with."""
        states = [each["content"]["execution_state"] for each in self.told("status", request)]
        return states[-1:] == ["idle"]

    def heard(self, comm: str) -> list[Any]:
        """Return what a comm has said so far."""
        said = [message["content"] for message in self.told("comm_msg")]
        return [content["data"] for content in said if content["comm_id"] == comm]
