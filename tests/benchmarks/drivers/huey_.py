"""huey with SQLite: two worker processes that look often."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

import drivers
import works
from huey import SqliteHuey

#: Set for the consumer's process by the driver's.
FILE = "BENCH_HUEY"


def connect(file: str) -> tuple[Any, dict[Callable[..., Any], Any]]:
    """Make the queue and its tasks; return both, the tasks as work → task."""
    queue = SqliteHuey("bench", filename=file, fsync=False)
    return queue, {work: queue.task(name=work.__name__)(work) for work in works.WORKS}


huey, TASKS = connect(os.environ[FILE]) if FILE in os.environ else (None, {})


class Driver(drivers.Driver):
    name = "huey (SQLite)"
    requirements = ("huey",)

    def start(self) -> None:
        file = str(self.folder / "huey.db")
        _, self.tasks = connect(file)
        command = (sys.executable, "-m", "huey.bin.huey_consumer", "drivers.huey_.huey")
        options = ("-w", str(drivers.WORKERS), "-k", "process", "-d", "0.001", "-m", "0.01")
        self.consumer = drivers.spawn(*command, *options, "-q", **{FILE: file})
        self.fetch(self.send(works.double, 1))

    def stop(self) -> None:
        drivers.end(self.consumer)

    def send(self, work: Callable[..., Any], *args: Any) -> Any:
        # huey keeps no result that is None: `noop` is followed as `double` is.
        if work is works.noop:
            return self.tasks[works.double](1)
        return self.tasks[work](*args)

    def fetch(self, sent: Any) -> Any:
        return sent.get(blocking=True, timeout=600, backoff=1, max_delay=0.001)

    def send_at(self, due: float, work: Callable[..., Any]) -> Any:
        return self.tasks[work].schedule(eta=datetime.fromtimestamp(due))
