"""What is due when, and what is ready in which order."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator
from operator import attrgetter
from typing import Any, NamedTuple

from nbtasks.core.messages import Now
from nbtasks.core.states import DONE, QUEUED
from nbtasks.core.tasks import Task

#: Entries that are not worth a look whether they are of any use.
FEW = 1_000


class Entry(NamedTuple):
    """Something to be done at a time; `order` keeps equal times first in, first out."""

    when: float
    order: int
    kind: str
    subject: Any

    def is_over(self) -> bool:
        """Whether it is about a task that has ended."""
        return isinstance(self.subject, Task) and self.subject.phase == DONE


class Agenda:
    """Things to do, on both clocks.

    Whoever gets an entry looks whether it still holds. Those of tasks that are over are taken out
    now and then, for they may be of times that are far off.
    """

    def __init__(self) -> None:
        self._boot: list[Entry] = []
        self._wall: list[Entry] = []
        self._order = 0
        #: How many entries there may be until it is looked which of them are of any use.
        self._most = FEW

    def __len__(self) -> int:
        return len(self._boot) + len(self._wall)

    def add_boot(self, when: float, kind: str, subject: Any) -> None:
        """Note something for an instant of the boot clock."""
        self._add(self._boot, when, kind, subject)

    def add_wall(self, when: float, kind: str, subject: Any) -> None:
        """Note something for an instant of the wall clock."""
        self._add(self._wall, when, kind, subject)

    def _add(self, heap: list[Entry], when: float, kind: str, subject: Any) -> None:
        self._order += 1
        heapq.heappush(heap, Entry(when, self._order, kind, subject))
        if len(self) > self._most:
            for entries in (self._boot, self._wall):
                entries[:] = [entry for entry in entries if not entry.is_over()]
                heapq.heapify(entries)
            self._most = max(FEW, 2 * len(self))

    def due(self, now: Now) -> Iterator[Entry]:
        """Yield and drop what is due, earliest first on each clock."""
        for heap, instant in ((self._boot, now.boot), (self._wall, now.wall)):
            while heap and heap[0].when <= instant:
                yield heapq.heappop(heap)

    def wait(self, now: Now) -> float | None:
        """Return the seconds until something is due, or None.

        Never more than one second for the wall clock, because it may be set.
        """
        waits = []
        if self._boot:
            waits.append(self._boot[0].when - now.boot)
        if self._wall:
            waits.append(min(self._wall[0].when - now.wall, 1.0))
        return max(min(waits), 0.0) if waits else None


class Level:
    """The tasks of one queue and one priority: fair between clients, first in first out in each.

    Parameters
    ----------
    queue, priority
        Which.
    ahead
        The clients whose tasks come before all others, in order: it may change.
    """

    __slots__ = ("ahead", "lines", "priority", "queue", "turns")

    def __init__(self, queue: str, priority: int, ahead: Collection[bytes]) -> None:
        self.queue = queue
        self.priority = priority
        self.ahead = ahead
        self.lines: dict[bytes, deque[Task]] = {}
        self.turns: deque[bytes] = deque()

    def push(self, task: Task, front: bool) -> None:
        line = self.lines.get(task.client)
        if line is None:
            line = self.lines[task.client] = deque()
            if front:
                self.turns.appendleft(task.client)
            else:
                self.turns.append(task.client)
        if front:
            line.appendleft(task)
        else:
            line.append(task)

    def next(self) -> bytes:
        """Return the client whose turn it is."""
        for client in self.ahead:
            if client in self.lines:
                return client
        return self.turns[0]

    def head(self) -> Task:
        return self.lines[self.next()][0]

    def pop(self, turn: bool) -> Task:
        """Take the head out; whether that was its client's turn."""
        client = self.next()
        line = self.lines[client]
        task = line.popleft()
        if not line:
            self.turns.remove(client)
            del self.lines[client]
        elif turn and client not in self.ahead:
            self.turns.rotate(-1)
        return task

    def sweep(self) -> None:
        """Drop the tasks that wait no more."""
        lines = {
            client: deque(task for task in line if task.phase == QUEUED)
            for client, line in self.lines.items()
        }
        self.lines = {client: line for client, line in lines.items() if line}
        self.turns = deque(client for client in self.turns if client in self.lines)

    def __iter__(self) -> Iterator[Task]:
        """Yield the tasks in the order in which they would be taken."""
        for client in self.ahead:
            yield from self.lines.get(client, ())
        turns = [client for client in self.turns if client not in self.ahead]
        lines = deque(iter(self.lines[client]) for client in turns)
        while lines:
            line = lines.popleft()
            for task in line:
                yield task
                if task.phase == QUEUED:
                    lines.append(line)
                    break


class Ready:
    """Tasks that wait for a worker: by priority, 9 first; then fair between clients.

    Some clients may come before the others. Tasks that were revoked, or have expired, stand there
    until somebody comes by, or until they are the most.
    """

    def __init__(self) -> None:
        self._queues: dict[str, dict[int, Level]] = {}
        #: Queues that were asked for → their levels of the highest priority; asked anew when any
        #: level comes or goes.
        self._highest: dict[tuple[str, ...], list[Level]] = {}
        #: Clients that come before the others → their place, from 0.
        self._ahead: dict[bytes, int] = {}
        #: How many wait, and how many only stand there.
        self._count = 0
        self._over = 0

    def __len__(self) -> int:
        return self._count

    def put_ahead(self, clients: Iterable[bytes]) -> None:
        """Let the tasks of these clients, and no others, come before all of their priority."""
        self._ahead.clear()
        self._ahead.update((client, place) for place, client in enumerate(clients))

    def is_ahead(self, task: Task) -> bool:
        """Whether the task is one of those."""
        return task.client in self._ahead

    def of(self, clients: Iterable[bytes]) -> Iterator[Task]:
        """Yield the tasks of some clients that wait."""
        levels = self._levels()
        for client in clients:
            for level in levels:
                yield from (t for t in level.lines.get(client, ()) if t.phase == QUEUED)

    def first_ahead(self, queues: tuple[str, ...]) -> Level | None:
        """Return as `first` does, but for clients that come before the others only.

        Their place counts, and the priority only among the tasks of one.
        """
        levels = self._levels(queues)
        for client in self._ahead:
            if having := [level for level in levels if client in level.lines]:
                return max(having, key=attrgetter("priority"))
        return None

    def turn(self, task: Task) -> tuple[int, int]:
        """Return what the heads of the lines of a priority are ordered by, between queues."""
        ahead = self._ahead
        return ahead.get(task.client, len(ahead)), task.seq

    def push(self, task: Task, front: bool = False) -> None:
        """Add a task at the end of its client's line, or at the front."""
        levels = self._queues.get(task.queue)
        level = None if levels is None else levels.get(task.priority)
        if level is None:
            level = self._open(task.queue, task.priority)
        level.push(task, front)
        self._count += 1

    def _open(self, queue: str, priority: int) -> Level:
        self._highest.clear()
        level = self._queues.setdefault(queue, {})[priority] = Level(queue, priority, self._ahead)
        return level

    def first(self, queues: tuple[str, ...]) -> Level | None:
        """Return where the task stands whose turn it is in these queues (none named: in all)."""
        levels = self._highest.get(queues)
        if levels is None:
            levels = self._highest[queues] = self._find_highest(queues)
        if len(levels) < 2:
            return levels[0] if levels else None
        return min(levels, key=lambda level: self.turn(level.head()))

    def _find_highest(self, queues: tuple[str, ...]) -> list[Level]:
        levels = self._levels(queues)
        highest = max([level.priority for level in levels], default=0)
        return [level for level in levels if level.priority == highest]

    def _levels(self, queues: tuple[str, ...] = ()) -> list[Level]:
        """Return the levels of these queues (none named: of all)."""
        served = (self._queues.get(queue, {}) for queue in queues or self._queues)
        return [level for levels in served for level in levels.values()]

    def take(self, level: Level) -> Task:
        """Take the first task out that stands there."""
        self._count -= 1
        return self._out(level, turn=True)

    def drop(self, level: Level) -> None:
        """Take the first task out that stands there, which waits no more."""
        self._over -= 1
        self._out(level, turn=False)

    def _out(self, level: Level, turn: bool) -> Task:
        task = level.pop(turn)
        if not level.lines:
            self._close(level)
        return task

    def _close(self, level: Level) -> None:
        self._highest.clear()
        levels = self._queues[level.queue]
        del levels[level.priority]
        if not levels:
            del self._queues[level.queue]

    def give_up(self) -> None:
        """Take note that one of the tasks waits no more."""
        self._count -= 1
        self._over += 1
        if self._over > FEW + self._count:
            self._over = 0
            for level in self._levels():
                level.sweep()
                if not level.lines:
                    self._close(level)

    def has(self, queues: tuple[str, ...]) -> bool:
        """Whether there is anything for a worker of these queues (none named: of all)."""
        return any(task.phase == QUEUED for task in self.line(queues))

    def line(self, queues: tuple[str, ...]) -> Iterator[Task]:
        """Yield the tasks of these queues (none named: of all) in the order of `take`.

        It takes nothing out, and looks no further than the caller does.
        """
        served = self._levels(queues)
        for priority in sorted({level.priority for level in served}, reverse=True):
            levels = [level for level in served if level.priority == priority]
            # Between queues the head that came first has its turn: what `merge` looks at, too.
            yield from heapq.merge(*levels, key=self.turn)

    def lengths(self) -> dict[str, int]:
        """Return how many tasks wait in each queue that has any."""
        waiting = (
            task.queue
            for level in self._levels()
            for line in level.lines.values()
            for task in line
            if task.phase == QUEUED
        )
        return dict(Counter(waiting))
