"""Who the supervisor's children are, with their files and commands.

One broker, the workers, and an undertaker (see `sweep`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress

from nbtasks.supervisor import sweep
from nbtasks.supervisor.children import Child, Children, module_command

#: Logs of dead workers that are kept.
KEPT_LOGS = 20


class Worker(Child):
    """A worker process and the queues that it serves (none named: all)."""

    queues: tuple[str, ...] = ()


class Crew:
    """The broker and the workers of one runtime directory.

    Tests put other processes in their places by overriding the two commands.
    """

    def __init__(self, runtime: str, children: Children) -> None:
        self.runtime = runtime
        #: That directory, held open: there may be another one of its name, but not of its number.
        #: None where directories cannot be opened.
        self.place = os.open(runtime, os.O_RDONLY) if os.name == "posix" else None
        self.children = children
        self.broker: Child | None = None
        self.undertaker: Child | None = None
        self.workers: dict[str, Worker] = {}
        #: How many workers there shall be, and of these how many for one queue only.
        self.wanted = 0
        #: And how many more for a while, in the places of those that wait for other tasks.
        self.extra = 0
        #: Workers that go once they have ended what they run, though a new broker may not know it.
        self.leaving: set[str] = set()
        self._queues: tuple[str, ...] = ()
        self._own: dict[str, int] = {}
        # Children that find another parent than this one go (`wire.parent`).
        self._env = {**os.environ, "NBTASKS_PARENT": str(os.getpid())}
        self._make_folders()

    def _make_folders(self) -> None:
        for folder in ("logs", "cells"):
            with suppress(FileExistsError):
                os.mkdir(os.path.join(self.runtime, folder), 0o700)

    def broker_command(self) -> list[str]:
        return module_command("nbtasks.broker", self.runtime)

    def worker_command(self, name: str, queues: Sequence[str]) -> list[str]:
        return module_command("nbtasks.worker", self.runtime, name, *queues)

    def read_settings(self) -> None:
        """Learn from settings.json how many workers of what kind there shall be."""
        with open(os.path.join(self.runtime, "settings.json"), "rb") as file:
            settings = json.load(file)
        self.wanted = settings["workers"]
        self._queues = tuple(settings.get("queues", ()))
        self._own = dict(settings.get("queue_workers", {}))
        if queue := settings.get("extra", {}).get("task_default_queue"):
            # What tasks send by name goes where the notebook's own calls go.
            self._env["NBTASKS_TASK_DEFAULT_QUEUE"] = queue

    def want(self, workers: int) -> None:
        """Change how many workers there shall be, also after a restart of the supervisor."""
        self.wanted = max(0, workers)
        path = os.path.join(self.runtime, "settings.json")
        with open(path, "rb") as file:
            settings = json.load(file)
        settings["workers"] = self.wanted
        # One that was killed here may have left a longer file.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with open(os.open(f"{path}.new", flags, 0o600), "w") as file:
            json.dump(settings, file)
        os.replace(f"{path}.new", path)

    @property
    def lacking(self) -> int:
        """How many workers there are too few."""
        return self.wanted + self.extra - len(self._staying())

    def let_go(self, names: Iterable[str]) -> None:
        """Take note that these workers were told to go: others may take their places."""
        self.leaving.update(names)
        self.leaving.intersection_update(self.workers)

    def _staying(self) -> list[Worker]:
        return [worker for name, worker in self.workers.items() if name not in self.leaving]

    def start_broker(self) -> Child:
        """Start the broker; its log is logs/broker.log."""
        self._make_folders()
        log = self.log("broker")
        self.broker = self.children.spawn("broker", self.broker_command(), self._env, log, Child)
        return self.broker

    def start_worker(self) -> Worker:
        """Start one more worker, for the queue that lacks one most."""
        self._make_folders()  # somebody may have tidied up
        queues = self._next_queues()
        name = f"worker-{os.urandom(4).hex()}@{os.uname().nodename}"
        command = self.worker_command(name, queues)
        # A task that sends tasks finds its own cluster there; what it starts is known by the name.
        env = {**self._env, sweep.RUNTIME: self.runtime, sweep.WORKER: name}
        child = self.children.spawn(name, command, env, self.log(name), Worker)
        child.queues = queues
        self.workers[name] = child
        return child

    def start_undertaker(self) -> Child:
        """Start who waits for our end and then ends what is left of us."""
        command = sweep.undertaker_command(os.getpid())
        log = self.log("undertaker")
        self.undertaker = self.children.spawn("undertaker", command, self._env, log, Child)
        return self.undertaker

    def log(self, name: str) -> str:
        return os.path.join(self.runtime, "logs", f"{name}.log")

    def drop_old_logs(self) -> None:
        """Keep the logs of the workers that died last, not those of all that ever died."""
        folder = os.path.join(self.runtime, "logs")
        alive = {f"{name}.log" for name in self.workers}
        with os.scandir(folder) as entries:
            dead = [
                (entry.stat().st_mtime, entry.path)
                for entry in entries
                if entry.name.startswith("worker-") and entry.name not in alive
            ]
        for _, path in sorted(dead)[:-KEPT_LOGS]:
            os.unlink(path)

    def cell(self, name: str) -> str:
        return os.path.join(self.runtime, "cells", name)

    def _next_queues(self) -> tuple[str, ...]:
        """Return the queues of the next worker: those with workers of their own come first."""
        for queue, count in self._own.items():
            serving = sum(worker.queues == (queue,) for worker in self._staying())
            if serving < count:
                return (queue,)
        return self._queues
