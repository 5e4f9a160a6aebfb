"""dask.distributed with two single-threaded worker processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import drivers


class Driver(drivers.Driver):
    name = "dask.distributed"
    requirements = ("distributed",)
    slow = 10

    def start(self) -> None:
        from distributed import Client, LocalCluster

        self.cluster = LocalCluster(
            n_workers=drivers.WORKERS,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            local_directory=str(self.folder),
            silence_logs=50,
        )
        self.client = Client(self.cluster)

    def stop(self) -> None:
        self.client.close()
        self.cluster.close()

    def send(self, work: Callable[..., Any], *args: Any) -> Any:
        return self.client.submit(work, *args, pure=False)

    def map(self, work: Callable[..., Any], items: list[Any]) -> list[Any]:
        return self.client.gather(self.client.map(work, items, pure=False, batch_size=1000))

    def share(self, data: bytes) -> Any:
        return self.client.scatter(data, broadcast=True)

    def survivor(self, work: Callable[..., Any], *args: Any) -> Any:
        return self.send(work, *args)

    def progress(self, number: int) -> int:
        import time

        topic = f"progress-{time.time()}"
        heard: list[Any] = []
        self.client.subscribe_topic(topic, heard.append)
        self.client.submit(tell, topic, number, pure=False).result()
        while len(heard) < number:
            time.sleep(0.001)
        self.client.unsubscribe_topic(topic)
        return len(heard)


def tell(topic: str, number: int) -> None:
    from distributed import get_worker

    worker = get_worker()
    for done in range(number):
        worker.log_event(topic, {"current": done, "total": number})
