"""dramatiq with Redis: two processes of one thread each."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import dramatiq
import drivers
import redis
import works
from dramatiq.brokers.redis import RedisBroker
from dramatiq.encoder import PickleEncoder
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

#: Set for the workers' processes by the driver's.
ADDRESS = "BENCH_REDIS"


def connect(address: str) -> dict[Callable[..., Any], Any]:
    """Make the broker and the actors; return work → actor."""
    dramatiq.set_encoder(PickleEncoder())
    # As long as it takes, for what is large as well, and not as long as redis-py thinks by itself.
    patient = redis.Redis.from_url(address, socket_timeout=None)
    broker = RedisBroker(client=patient)
    broker.add_middleware(Results(backend=RedisBackend(client=patient)))
    dramatiq.set_broker(broker)
    return {
        work: dramatiq.actor(work, actor_name=work.__name__, store_results=True, broker=broker)
        for work in works.WORKS
    }


TASKS = connect(os.environ[ADDRESS]) if ADDRESS in os.environ else {}


class Driver(drivers.Driver):
    name = "dramatiq + redis"
    requirements = ("dramatiq[redis]", "redis")
    slow = 10
    programs = ("redis-server",)

    def start(self) -> None:
        self.redis, address = drivers.redis(self.folder)
        self.tasks = connect(address)
        command = (sys.executable, "-m", "dramatiq", "drivers.dramatiq_")
        options = ("--processes", str(drivers.WORKERS), "--threads", "1", "--skip-logging")
        self.worker = drivers.spawn(*command, *options, **{ADDRESS: address})
        self.fetch(self.send(works.noop))

    def stop(self) -> None:
        drivers.end(self.worker, self.redis)

    def send(self, work: Callable[..., Any], *args: Any) -> Any:
        return self.tasks[work].send(*args)

    def fetch(self, sent: Any) -> Any:
        return sent.get_result(block=True, timeout=600_000)

    def send_at(self, due: float, work: Callable[..., Any]) -> Any:
        return self.tasks[work].send_with_options(delay=int((due - time.time()) * 1000))
