"""ray on this machine only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import drivers


class Driver(drivers.Driver):
    name = "ray"
    requirements = ("ray",)
    slow = 10

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
        self.tasks = {work: ray.remote(max_retries=-1)(work) for work in works.WORKS}

    def stop(self) -> None:
        self.ray.shutdown()

    def send(self, work: Callable[..., Any], *args: Any) -> Any:
        return self.tasks[work].remote(*args)

    def fetch(self, sent: Any) -> Any:
        return self.ray.get(sent, timeout=600)

    def map(self, work: Callable[..., Any], items: list[Any]) -> list[Any]:
        remote = self.tasks[work].remote
        return self.ray.get([remote(item) for item in items], timeout=600)

    def share(self, data: bytes) -> Any:
        return self.ray.put(data)

    def survivor(self, work: Callable[..., Any], *args: Any) -> Any:
        return self.send(work, *args)
