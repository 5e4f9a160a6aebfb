"""A kernel that sends tasks until there are enough, and writes down what it was told.

    python sender.py RUNTIME LEDGER NAME SEED

The ledger is a folder outside of the cluster, and nobody reads it until all is over:

    sent        id kind number      just before the call
    accepted    id                  the broker has said so
    runs        id retries pid      a worker begins to run it
    seen        id state value      how it ended, as this kernel was told
    troubles    text                exceptions that a user would have met
    enough      (a file)            send no more, wait for what is open, and end

It is a program rather than a module: so its functions travel by value, as a notebook's do.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time
from collections import deque
from pathlib import Path

import nbtasks
from nbtasks.exceptions import ClusterError, OperationalError
from nbtasks.result import AsyncResult

#: Tasks that one kernel has open at a time.
MOST_OPEN = 40
#: Bytes, about: such values travel through files.
LARGE = 600_000
#: Seconds within which everything ends, however often it is hit.
PATIENCE = 60.0


def write(ledger, page, *words):
    """Add a line in one write, so that no death leaves half of it."""
    path = os.path.join(ledger, page)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(descriptor)


def mark(value):
    """Return a word by which a value is known."""
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    return repr(value).split()[0]


def work(request, ledger, number):
    write(ledger, "runs", request.id, request.retries, os.getpid())
    time.sleep(number % 20 / 1000)
    return number * number


@nbtasks.task(bind=True)
def early(self, ledger, number):
    return work(self.request, ledger, number)


@nbtasks.task(bind=True, acks_late=True)
def late(self, ledger, number):
    return work(self.request, ledger, number)


@nbtasks.task(bind=True, acks_late=True, max_retries=2)
def thrice(self, ledger, number):
    value = work(self.request, ledger, number)
    if self.request.retries < 2:
        raise self.retry(countdown=0.05)
    return value


def large(number):
    """Return bytes that travel through a file."""
    return f"{number} ".encode() * (LARGE // 7)


@nbtasks.task(bind=True, acks_late=True)
def bulky(self, ledger, number, data):
    work(self.request, ledger, number)
    assert data == large(number)
    return large(number * number)


@nbtasks.task(bind=True, acks_late=True)
def ancestor(self, ledger, number):
    """Send the next of kin; the same one again when this is run again."""
    value = work(self.request, ledger, number)
    generation, _, name = self.request.id.partition("-")
    if int(generation) < 2:
        child = f"{int(generation) + 1}-{name}"
        write(ledger, "sent", child, "ancestor", number)
        self.apply_async((ledger, number), task_id=child, confirm=True)
        write(ledger, "accepted", child)
    return value


KINDS = {task.__name__: task for task in (early, late, thrice, ancestor, bulky)}


class Sender:
    def __init__(self, runtime: str, ledger: str, name: str, seed: str) -> None:
        self.runtime, self.ledger, self.name = runtime, ledger, name
        self.rng = random.Random(seed)
        self.open: deque[str] = deque()
        self.count = 0

    def attach(self) -> None:
        """Find the cluster or start it: it may die under our hands."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                nbtasks.start(workers=2, dir=self.runtime)
            except (ClusterError, OperationalError) as error:
                self.complain(error)
                if time.monotonic() > end:
                    raise
            else:
                return

    def complain(self, error: Exception) -> None:
        write(self.ledger, "troubles", self.name, repr(error).replace("\n", " / "))

    def serve(self) -> None:
        self.attach()
        while not Path(self.ledger, "enough").exists():
            self.send()
            while len(self.open) > MOST_OPEN or self.first_is_over():
                self.settle()
        while self.open:
            self.settle()

    def send(self) -> None:
        self.count += 1
        kind = self.rng.choice(list(KINDS))
        number = self.rng.randrange(10**6)
        countdown = self.rng.choice((None, None, self.rng.uniform(0, 1.5)))
        task_id = f"0-{self.name}-{self.count}"
        write(self.ledger, "sent", task_id, kind, number)
        more = (large(number),) if kind == "bulky" else ()
        arguments = (self.ledger, number, *more)
        try:
            KINDS[kind].apply_async(arguments, task_id=task_id, countdown=countdown, confirm=True)
        except OperationalError as error:
            self.complain(error)
            self.attach()
        else:
            write(self.ledger, "accepted", task_id)
            self.open.append(task_id)

    def first_is_over(self) -> bool:
        return bool(self.open) and AsyncResult(self.open[0]).ready()

    def settle(self) -> None:
        result = AsyncResult(self.open[0])
        try:
            value = result.get(timeout=PATIENCE, propagate=False)
        except OperationalError as error:
            self.complain(error)
            self.attach()
        else:
            write(self.ledger, "seen", self.open.popleft(), result.state, mark(value))


if __name__ == "__main__":
    Sender(*sys.argv[1:]).serve()
