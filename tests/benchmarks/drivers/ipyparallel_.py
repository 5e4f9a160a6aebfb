"""ipyparallel with a load-balanced view."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import drivers


class Driver(drivers.Driver):
    name = "ipyparallel"
    requirements = ("ipyparallel",)
    slow = 10
    chunks = (100, 1_000, 10_000)

    def start(self) -> None:
        import ipyparallel

        os.environ.update(drivers.environment())  # where the engines find `works`
        self.cluster = ipyparallel.Cluster(n=drivers.WORKERS, log_level=40)
        self.client = self.cluster.start_and_connect_sync(activate=False)
        self.view = self.client.load_balanced_view()

    def stop(self) -> None:
        self.client.close()
        self.cluster.stop_cluster_sync()

    def send(self, work: Callable[..., Any], *args: Any) -> Any:
        return self.view.apply_async(work, *args)

    def fetch(self, sent: Any) -> Any:
        return sent.get(600)

    def map(self, work: Callable[..., Any], items: list[Any], chunk: int) -> list[Any]:
        return list(self.view.map_sync(work, items, chunksize=chunk))

    def progress(self, number: int) -> int:
        telling = self.view.apply_async(tell, number)
        telling.get(600)
        while len(lines := telling.stdout.splitlines()) < number:
            time.sleep(0.001)
        return len(lines)


def tell(number: int) -> None:
    """Print, which is what a client is shown while a task runs."""
    for done in range(number):
        print(done, "of", number, flush=True)
