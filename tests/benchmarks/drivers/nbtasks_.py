"""nbtasks with default settings; BENCH_DURABILITY names another durability."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import drivers
import psutil

PATIENCE = 600


class Driver(drivers.Driver):
    name = "nbtasks"
    requirements = ("-e {root}",)

    def start(self) -> None:
        import works

        import nbtasks

        durability = os.environ.get("BENCH_DURABILITY", "full")
        self.cluster = nbtasks.start(
            workers=drivers.WORKERS, dir=self.folder / "nb", durability=durability
        )
        self.tasks = {work: nbtasks.task(work) for work in works.WORKS}
        self.late = nbtasks.task(works.die_once, name="survivor", acks_late=True)
        self.telling = nbtasks.task(tell, bind=True, name="tell")

    def stop(self) -> None:
        self.cluster.shutdown(purge=True)

    def pids(self) -> Iterable[int]:
        supervisor = psutil.Process(self.cluster.supervisor_pid)
        started = [child.pid for child in supervisor.children(recursive=True)]
        return [os.getpid(), supervisor.pid, *started]

    def send(self, work: Callable[..., Any], *args: Any) -> Any:
        return self.tasks[work].delay(*args)

    def map(self, work: Callable[..., Any], items: list[Any], chunk: int) -> list[Any]:
        import nbtasks

        with nbtasks.Executor() as executor:
            return list(executor.map(work, items))

    def fetch(self, sent: Any) -> Any:
        return sent.get(timeout=PATIENCE)

    def share(self, data: Any) -> Any:
        import nbtasks

        return nbtasks.share(data)

    def send_at(self, due: float, work: Callable[..., Any]) -> Any:
        return self.tasks[work].apply_async(eta=datetime.fromtimestamp(due, UTC))

    def survivor(self, work: Callable[..., Any], *args: Any) -> Any:
        return self.late.delay(*args)

    def progress(self, number: int) -> int:
        heard: list[Any] = []
        self.telling.delay(number).get(timeout=PATIENCE, on_message=heard.append)
        return len(heard) - 1


def tell(self: Any, number: int) -> None:
    for done in range(number):
        self.update_state(state="PROGRESS", meta={"current": done, "total": number})
