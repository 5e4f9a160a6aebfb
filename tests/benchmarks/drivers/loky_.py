"""loky's reusable executor, as joblib uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import drivers


class Driver(drivers.Driver):
    name = "loky"
    requirements = ("loky",)
    chunks = (100, 1_000, 10_000)

    def start(self) -> None:
        from loky import get_reusable_executor

        self.pool = get_reusable_executor(max_workers=drivers.WORKERS, timeout=600)

    def stop(self) -> None:
        self.pool.shutdown(wait=True)

    def send(self, work: Callable[..., Any], *args: Any) -> Any:
        return self.pool.submit(work, *args)

    def map(self, work: Callable[..., Any], items: list[Any], chunk: int) -> list[Any]:
        return list(self.pool.map(work, items, chunksize=chunk))
