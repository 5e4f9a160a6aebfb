"""A real supervisor whose broker and workers are stand-ins, for tests of the supervisor alone.

    python -m tests.processes.standins supervisor RUNTIME

The stand-ins do what RUNTIME/orders.json says at their start: `{"broker": ..., "worker": ...}`,
each an object with `exit` (a code: print a reason and leave at once), `refuse` (leave failed.txt
and the exit code that forbids a restart), `killed` (by SIGKILL, at once), `begin` and `finish`
(tickets to write into the cell), `deaf` (ignore SIGTERM), `spawn` (start a process in a session of
its own).
Otherwise they live until their standard input ends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbtasks.supervisor.__main__ import main
from nbtasks.supervisor.crew import Crew
from nbtasks.wire.cell import Cell

ROOT = Path(__file__).parents[2]


def command(*words: str) -> list[str]:
    return [sys.executable, str(Path(__file__)), *words]


class StandIns(Crew):
    """Two lines of Python in the places of broker and workers."""

    def broker_command(self) -> list[str]:
        return command("broker", self.runtime)

    def worker_command(self, name: str, queues: Sequence[str]) -> list[str]:
        return command("worker", self.runtime, name, *queues)


def orders(runtime: str, role: str) -> dict[str, Any]:
    try:
        return json.loads((Path(runtime) / "orders.json").read_text()).get(role, {})
    except FileNotFoundError:
        return {}


def stand_in(role: str, runtime: str, name: str = "") -> int:
    order = orders(runtime, role)
    if "exit" in order:
        print(f"{role} has no mind to work today", flush=True)
        return int(order["exit"])
    if order.get("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if "refuse" in order:
        (Path(runtime) / "failed.txt").write_text(order["refuse"])
        return 78
    if order.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if order.get("spawn"):
        subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(100)"],
            start_new_session=order["spawn"] == "session",
        )
    if role == "broker":
        # Not one that can be read, but a sign: the supervisor may go on.
        (Path(runtime) / "connection.json").write_text("{}")
    if role == "worker":
        cell = Cell(Path(runtime) / "cells" / name)
        cell.start(order.get("begin", 0))
        cell.finish(order.get("finish", 0))
    os.read(0, 1)
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "supervisor":
        sys.exit(main(sys.argv[2], StandIns))
    sys.exit(stand_in(*sys.argv[1:4]))
