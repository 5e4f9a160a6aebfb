"""A day of ten million tasks through the scheduler, by an invented clock: `./dev day`.

    ./dev day                       10,000,000 tasks; the better part of an hour
    ./dev day --tasks 200000        less of everything

Only the scheduler is real. Calls come in waves, most of them short; some wait up to an hour, some
are tried again, fail, expire, are revoked, or kill their worker. Each must end exactly once, and
what the scheduler holds, and this process, must not grow from hour to hour.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import psutil

from nbtasks.core import states
from nbtasks.core.messages import Event, Policy, Revoke
from nbtasks.core.turn import Send
from nbtasks.simulation import CLIENT, Simulation
from tests.benchmarks import plan

HOUR = 3600.0
DAY = 24 * HOUR
#: Seconds from the top of one wave of calls to the next.
WAVE = 2 * HOUR
#: Seconds of a turn in which the calls of that time are sent.
TURN = 10.0
WORKERS = 8
LATE = Policy(acks_late=True)


class Day(Simulation):
    """A simulation that forgets what is over, so that only the scheduler could grow.

    Parameters
    ----------
    tasks
        How many are sent in the day.
    seed
        Of the random choices.
    """

    def __init__(self, tasks: int, seed: int = 1) -> None:
        super().__init__(WORKERS)
        self.tasks = tasks
        self.rng = random.Random(seed)
        self.order = deque(maxlen=0)  # type: ignore[assignment]
        self.sent = 0
        #: State → how many ended so; ids that ended more than once.
        self.ends: Counter[str] = Counter()
        self.twice: list[str] = []
        self._open: set[str] = set()

    def hours(self) -> Iterator[int]:
        """Let the day pass; yield each hour that is over, the 25th when all tasks are."""
        for turn in range(int(DAY / TURN)):
            self._send_until(self._wanted((turn + 1) * TURN))
            self.advance(TURN)
            self._deaths.clear()  # no other broker will come to hear of them
            if (turn + 1) * TURN % HOUR == 0:
                yield int((turn + 1) * TURN / HOUR)
        self.run()
        yield 25

    @property
    def open(self) -> int:
        return len(self._open)

    def _wanted(self, instant: float) -> int:
        """Return how many calls have been sent at an instant: the waves, summed up."""
        waves = instant - 0.8 * WAVE / math.tau * math.sin(math.tau * instant / WAVE)
        return round(self.tasks * waves / DAY)

    def _send_until(self, number: int) -> None:
        while self.sent < number:
            task_id = f"day-{self.sent}"
            self.sent += 1
            self._open.add(task_id)
            self._send(task_id, self.rng.random())

    def _send(self, task_id: str, chance: float) -> None:
        seconds = self.rng.expovariate(100)
        if chance < 0.05:
            self.submit(task_id=task_id, seconds=seconds, countdown=self.rng.uniform(0, HOUR))
        elif chance < 0.06:
            soon = self.now.wall + 5
            self.submit(task_id=task_id, seconds=seconds, countdown=10.0, expires=soon)
        elif chance < 0.07:
            self.submit(task_id=task_id, seconds=seconds, countdown=HOUR)
            self.say(CLIENT, Revoke((task_id,)))
        elif chance < 0.09:
            self.submit(task_id=task_id, seconds=seconds, ends="retry:5 retry:60 ok")
        elif chance < 0.11:
            self.submit(task_id=task_id, seconds=seconds, ends="fail")
        elif chance < 0.111:
            self.submit(task_id=task_id, seconds=seconds, ends="die ok", policy=LATE)
        else:
            self.submit(task_id=task_id, seconds=seconds)

    def _deliver(self, peer: bytes, send: Send) -> None:
        event = send.message
        if not isinstance(event, Event):
            super()._deliver(peer, send)
        elif event.final:
            self._end(event)

    def _end(self, event: Event) -> None:
        if event.id not in self._open:
            self.twice.append(event.id)
            return
        self._open.remove(event.id)
        self.ends[event.state] += 1
        seq = self.store.seqs.pop(event.id)
        for kept in (self.store.rows, self.store.calls, self.store.events):
            kept.pop(seq, None)
        for known in (self.plans, self.runs, self.losses):
            known.pop(event.id, None)


def held(thing: Any, depth: int = 3) -> int:
    """Return how many things the containers in an object hold, together."""
    count = 0
    if isinstance(thing, dict):
        count += len(thing)
        thing = list(thing.values())[:100] if depth else []
    elif isinstance(thing, (list, tuple, set, frozenset, deque)):
        count += len(thing)
        thing = list(thing)[:100] if depth else []
    elif type(thing).__module__.startswith("nbtasks.core") and depth:
        slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
        names = {*getattr(thing, "__dict__", ()), *slots}
        thing = [getattr(thing, name, None) for name in names]
    else:
        return 0
    return count + sum(held(each, depth - 1) for each in thing)


def wrong(day: Day) -> list[str]:
    """Return what is wrong at the end of a day; nothing, if all is well."""
    found = []
    if day.twice:
        found.append(f"{len(day.twice)} ended twice, such as {day.twice[0]}")
    if day.open or day.scheduler.tasks:
        found.append(f"{day.open} never ended, {len(day.scheduler.tasks)} are still open")
    if day.ends.total() != day.tasks:
        found.append(f"{day.ends.total():,} of {day.tasks:,} ended")
    if set(day.ends) != {states.SUCCESS, states.FAILURE, states.REVOKED}:
        found.append(f"the ends are {dict(day.ends)}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="./dev day", description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", type=plan.positive, default=10_000_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    day, process, memory = Day(asked.tasks, asked.seed), psutil.Process(), [0.0]
    began = time.process_time()
    print("hour       sent       open   held by the scheduler   memory, MB   us a task")
    for hour in day.hours():
        memory.append(process.memory_info().rss / 1e6)
        each = (time.process_time() - began) / max(day.sent, 1) * 1e6
        print(
            f"{hour:4} {day.sent:10,} {day.open:10,} {held(day.scheduler):23,} "
            f"{memory[-1]:12.1f} {each:11.1f}",
            flush=True,
        )
    # Each wave is like the one before: the second half of the day needs what the first one did.
    growth = max(memory[13:]) / max(memory[1:13])
    print(
        f"ends: {dict(day.ends)}; memory of the second half of the day: {growth:.2f} x the first's"
    )
    problems = wrong(day) + ([f"memory grew {growth:.2f} x"] if growth > 1.1 else [])
    sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
