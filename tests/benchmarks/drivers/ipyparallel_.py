"""ipyparallel with a load-balanced view."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import drivers


class Driver(drivers.Driver):
    name = "ipyparallel"
    requirements = ("ipyparallel",)
    slow = 10

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

    def map(self, work: Callable[..., Any], items: list[Any]) -> list[Any]:
        return self.view.map_sync(work, items, chunksize=1000)
