"""The standard library's concurrent.futures."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import drivers


class Driver(drivers.Driver):
    name = "ProcessPoolExecutor"
    chunks = (100, 1_000, 10_000)

    def start(self) -> None:
        self.pool = ProcessPoolExecutor(drivers.WORKERS)

    def stop(self) -> None:
        self.pool.shutdown()

    def send(self, work: Callable[..., Any], *args: Any) -> Any:
        return self.pool.submit(work, *args)

    def map(self, work: Callable[..., Any], items: list[Any], chunk: int) -> list[Any]:
        return list(self.pool.map(work, items, chunksize=chunk))
