"""The standard library's concurrent.futures."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import drivers


class Driver(drivers.Driver):
    name = "ProcessPoolExecutor"

    def start(self) -> None:
        self.pool = ProcessPoolExecutor(drivers.WORKERS)

    def stop(self) -> None:
        self.pool.shutdown()

    def send(self, work: Callable[..., Any], *args: Any) -> Any:
        return self.pool.submit(work, *args)

    def map(self, work: Callable[..., Any], items: list[Any]) -> list[Any]:
        # The best chunk size of 1, 10, 100, 1,000 and 10,000 on this work.
        return list(self.pool.map(work, items, chunksize=1000))
