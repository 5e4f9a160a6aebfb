"""One small file for each system: how its documentation says that work is given to it.

A driver is loaded in an environment of its own, where its system is installed and nbtasks is not
(but in its own). What a system does not offer raises `NotOffered` and is left out of the table.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy
import psutil

WORKERS = 2


class NotOffered(Exception):
    """This system has no such thing."""


class Driver:
    """What the workloads need of a system.

    Parameters
    ----------
    folder
        A directory of this run's own.
    """

    #: As the table has it.
    name: ClassVar[str]
    #: What pip installs.
    requirements: ClassVar[tuple[str, ...]] = ()
    #: Programs that must be on the path.
    programs: ClassVar[tuple[str, ...]] = ()
    #: By how much fewer tasks it is given where there are very many: they would take minutes.
    slow: ClassVar[int] = 1
    #: Chunk sizes for `map`, of which the fastest counts; empty where it has no such setting.
    chunks: ClassVar[tuple[int, ...]] = ()

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self) -> None:
        """Start with `WORKERS` workers."""

    def stop(self) -> None:
        """End all that was started."""

    def pids(self) -> Iterable[int]:
        """Return the ids of all processes that work for it, this one included."""
        me = psutil.Process()
        return [me.pid, *(child.pid for child in me.children(recursive=True))]

    def send(self, work: Callable[..., Any], *args: Any) -> Any:
        """Send one call, and return something to fetch its result with."""
        raise NotImplementedError

    def fetch(self, sent: Any) -> Any:
        """Wait for the result of one call."""
        return sent.result()

    def map(self, work: Callable[..., Any], items: list[Any], chunk: int) -> list[Any]:
        """Do many, the way that this system means for many."""
        return [self.fetch(sent) for sent in [self.send(work, item) for item in items]]

    def share(self, data: numpy.ndarray) -> Any:
        """Make something large ready for many tasks; return what to give to them."""
        return data

    def send_at(self, due: float, work: Callable[..., Any]) -> Any:
        """Send one call that starts at a time on the wall clock, and not before."""
        raise NotOffered

    def progress(self, number: int) -> int:
        """Have one task tell so often how far it is, and return how many of these arrived."""
        raise NotOffered

    def survivor(self, work: Callable[..., Any], *args: Any) -> Any:
        """Send a call that shall run again when its process dies."""
        raise NotOffered


def drivers() -> list[str]:
    """Return the names of all drivers."""
    here = Path(__file__).parent
    return sorted(file.stem for file in here.glob("*.py") if file.stem != "__init__")


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def spawn(*command: str, **variables: str) -> psutil.Popen:
    """Start a process of the system's own, such as its worker or its broker."""
    quiet = subprocess.DEVNULL
    return psutil.Popen(command, env={**environment(), **variables}, stdout=quiet, stderr=quiet)


def redis(folder: Path) -> tuple[psutil.Popen, str]:
    """Start a Redis that keeps nothing on disk, which is its fastest; return it and its address."""
    import redis

    port = free_port()
    options = ("--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(folder))
    # As delivered it refuses values of 512 MB, and hangs up on who is told results of 32 MB.
    large = ("--proto-max-bulk-len", "4gb", "--client-output-buffer-limit", "pubsub", "0", "0", "0")
    server = spawn("redis-server", *options, *large)
    client = redis.Redis(port=port)
    while True:
        try:
            client.ping()
        except redis.ConnectionError:
            time.sleep(0.02)
        else:
            return server, f"redis://127.0.0.1:{port}/0"


def end(*processes: psutil.Popen) -> None:
    """End processes that `spawn` has started, with all that they started."""
    family = [each for process in processes for each in process.children(recursive=True)]
    for process in [*processes, *family]:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, left = psutil.wait_procs([*processes, *family], timeout=5)
    for process in left:
        process.kill()


def environment() -> dict[str, str]:
    """Return the variables for worker processes that a driver starts by command line."""
    here = Path(__file__).parents[1]
    return {**os.environ, "PYTHONPATH": str(here)}
