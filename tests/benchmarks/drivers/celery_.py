"""Celery with Redis: prefork workers, prefetching as its guide advises for short tasks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import drivers
import works
from celery import Celery

#: Set for the worker's process by the driver's.
ADDRESS = "BENCH_REDIS"

app = Celery("bench", broker=os.environ.get(ADDRESS), backend=os.environ.get(ADDRESS))
app.conf.update(
    worker_prefetch_multiplier=128,
    task_serializer="pickle",
    result_serializer="pickle",
    accept_content=["pickle"],
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    # By default it gives up on what is large: a value of 512 MB takes longer.
    redis_socket_timeout=600,
    broker_transport_options={"socket_timeout": 600},
)
TASKS = {work: app.task(work, name=work.__name__) for work in works.WORKS}
LATE = app.task(
    works.die_once, name="survivor", acks_late=True, task_reject_on_worker_lost=True,
    reject_on_worker_lost=True,
)  # fmt: skip


@app.task(bind=True)
def tell(self: Any, number: int) -> None:
    for done in range(number):
        self.update_state(state="PROGRESS", meta={"current": done, "total": number})


class Driver(drivers.Driver):
    name = "celery + redis"
    requirements = ("celery[redis]", "redis")
    slow = 10
    chunks = (100, 1_000, 10_000)
    programs = ("redis-server",)

    def start(self) -> None:
        self.redis, address = drivers.redis(self.folder)
        app.conf.update(broker_url=address, result_backend=address)
        os.environ[ADDRESS] = address
        command = (sys.executable, "-m", "celery", "-A", "drivers.celery_", "worker")
        options = ("-c", str(drivers.WORKERS), "-O", "fair", "--without-gossip", "--without-mingle")
        # It refuses to load pickles as root, as in a container, unless it is told to.
        quiet = ("--loglevel", "ERROR")
        self.worker = drivers.spawn(*command, *options, *quiet, C_FORCE_ROOT="1")
        self.fetch(self.send(works.noop))

    def stop(self) -> None:
        drivers.end(self.worker, self.redis)

    def send(self, work: Callable[..., Any], *args: Any) -> Any:
        return TASKS[work].delay(*args)

    def fetch(self, sent: Any) -> Any:
        return sent.get(timeout=600, interval=0.001)

    def map(self, work: Callable[..., Any], items: list[Any], chunk: int) -> list[Any]:
        group = TASKS[work].chunks([(item,) for item in items], chunk).apply_async()
        return [value for part in group.get(timeout=600, interval=0.001) for value in part]

    def send_at(self, due: float, work: Callable[..., Any]) -> Any:
        return TASKS[work].apply_async(eta=datetime.fromtimestamp(due, UTC))

    def survivor(self, work: Callable[..., Any], *args: Any) -> Any:
        return LATE.delay(*args)

    def progress(self, number: int) -> int:
        heard: list[Any] = []
        tell.delay(number).get(timeout=600, on_message=heard.append)
        return len(heard)
