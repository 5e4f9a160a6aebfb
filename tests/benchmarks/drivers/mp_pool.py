"""The standard library's multiprocessing.Pool."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import drivers


class Driver(drivers.Driver):
    name = "multiprocessing.Pool"
    chunks = (100, 1_000, 10_000)

    def start(self) -> None:
        self.pool = multiprocessing.Pool(drivers.WORKERS)

    def stop(self) -> None:
        self.pool.close()
        self.pool.join()

    def send(self, work: Callable[..., Any], *args: Any) -> Any:
        return self.pool.apply_async(work, args)

    def fetch(self, sent: Any) -> Any:
        return sent.get(600)

    def map(self, work: Callable[..., Any], items: list[Any], chunk: int) -> list[Any]:
        return self.pool.map(work, items, chunk)
