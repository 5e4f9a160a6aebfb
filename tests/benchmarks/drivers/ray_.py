"""ray on this machine only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import drivers
import numpy


class Driver(drivers.Driver):
    name = "ray"
    requirements = ("ray",)
    slow = 10
    chunks = (100, 1_000, 10_000)

    def start(self) -> None:
        import ray
        import works

        ray.init(
            num_cpus=drivers.WORKERS,
            include_dashboard=False,
            configure_logging=False,
            log_to_driver=False,
            object_store_memory=2 * 1024**3,
            runtime_env={"env_vars": {"PYTHONPATH": drivers.environment()["PYTHONPATH"]}},
        )
        self.ray = ray
        self.batch = ray.remote(batch)
        self.tell = ray.remote(num_returns="streaming")(tell)
        self.tasks = {work: ray.remote(max_retries=-1)(work) for work in works.WORKS}

    def stop(self) -> None:
        self.ray.shutdown()

    def send(self, work: Callable[..., Any], *args: Any) -> Any:
        return self.tasks[work].remote(*args)

    def fetch(self, sent: Any) -> Any:
        return self.ray.get(sent, timeout=600)

    def map(self, work: Callable[..., Any], items: list[Any], chunk: int) -> list[Any]:
        # "Anti-pattern: over-parallelizing with too fine-grained tasks": batches of them.
        starts = range(0, len(items), chunk)
        sent = [self.batch.remote(work, items[start : start + chunk]) for start in starts]
        return [value for batch in self.ray.get(sent, timeout=600) for value in batch]

    def share(self, data: numpy.ndarray) -> Any:
        return self.ray.put(data)

    def survivor(self, work: Callable[..., Any], *args: Any) -> Any:
        return self.send(work, *args)

    def progress(self, number: int) -> int:
        # A task that tells while it runs is a streaming generator.
        return sum(1 for told in self.tell.remote(number) if self.ray.get(told))


def batch(work: Callable[..., Any], items: list[Any]) -> list[Any]:
    return [work(item) for item in items]


def tell(number: int) -> Iterator[dict[str, int]]:
    for done in range(number):
        yield {"current": done, "total": number}
