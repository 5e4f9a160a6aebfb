"""dask.distributed with two single-threaded worker processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import drivers
import numpy


class Driver(drivers.Driver):
    name = "dask.distributed"
    requirements = ("distributed", "dask[array]")
    slow = 10
    chunks = (100, 1_000, 10_000)

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

    def map(self, work: Callable[..., Any], items: list[Any], chunk: int) -> list[Any]:
        # "Avoid very large graphs": many small things make a bag of fewer partitions.
        import dask.bag

        bag = dask.bag.from_sequence(items, partition_size=chunk)
        return list(self.client.compute(bag.map(work)).result())

    def share(self, data: numpy.ndarray) -> Any:
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
