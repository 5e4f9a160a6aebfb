"""Who gets which call next: credit, rate limits, and calling back what was given too early.

An idle worker gets one call. More are given ahead only where calls of that function are known to
be so short that the wire would otherwise keep the worker waiting; where one of them proves long,
the others are called back as soon as another worker has nothing to do. A worker that runs the
handlers of a call is as busy as with its body.

A new worker in the place of one that is gone loads ahead what that one ran last, and a second one
what the first has run, so that the next call, or one beside it, need not wait for imports.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count, islice
from operator import attrgetter
from typing import Any

from nbtasks.core.agenda import Agenda, Level, Ready
from nbtasks.core.messages import Call, Now, Policy, Revoke
from nbtasks.core.states import QUEUED
from nbtasks.core.tasks import Archive, Row, Task

#: Seconds of work that a worker may hold ahead of what it is running.
WINDOW = 0.010
#: Calls of functions that take longer than this (seconds) are never given ahead.
SHORT = WINDOW
#: Calls that a worker may hold.
CREDIT = 512
#: Calls that are given ahead to a worker at most before it is the next one's turn, so that a burst
#: is shared out.
FEW = 8
#: Seconds that the wire and the worker add to each call, about.
OVERHEAD = 0.000_015
#: Seconds after which calls held by a busy worker are called back for an idle one.
STRANDED = 0.010
#: Seconds that a worker is given to answer before it is asked again.
PATIENCE = 0.2
#: Seconds after which a worker that still loads something ahead is given up: it gets no calls.
LOADING = 30.0
#: Workers that are gone of which is remembered what they ran last.
VACANT = 64
#: Tasks that are told their place in the line, and how many are looked at for that.
PLACES = 100
SIGHT = 1_000


class Rate:
    """The rate limit of a task: one for all versions of its function."""

    __slots__ = ("_order", "_waiting", "aside", "let_go", "next_start", "timer")

    def __init__(self) -> None:
        #: Boot clock.
        self.next_start = 0.0
        #: Who waits for it.
        self.aside: set[Task] = set()
        #: Queue → these, and who does no more: a heap by priority, 9 first, then first come. A task
        #: that was revoked and told to run again may stand in it twice: the third number keeps
        #: these two apart.
        self._waiting: dict[str, list[tuple[int, int, int, Task]]] = {}
        #: Queue → who of it may start next, and is first in its line. Whose worker has time first
        #: starts; a queue whose workers are busy holds up no other.
        self.let_go: dict[str, Task] = {}
        self._order = count()
        #: Whether the next start stands in the agenda.
        self.timer = False

    def wait(self, task: Task) -> None:
        """Put a task aside until it may start."""
        self.aside.add(task)
        waiting = self._waiting.setdefault(task.queue, [])
        heapq.heappush(waiting, (-task.priority, task.seq, next(self._order), task))

    def bars(self, now: Now) -> bool:
        """Whether one more task would have to wait for it, were a worker free."""
        return bool(self.aside) or now.boot < self.next_start

    def _next(self, queue: str) -> Task | None:
        """Take the task of a queue that may start next, or None."""
        while waiting := self._waiting.get(queue):
            task = heapq.heappop(waiting)[3]
            if not waiting:
                del self._waiting[queue]
            if task in self.aside:
                self.aside.remove(task)
                return task
        return None

    def next(self) -> Iterator[Task]:
        """Take the tasks that may start next: one of each queue that has none yet."""
        for queue in [queue for queue in self._waiting if queue not in self.let_go]:
            task = self._next(queue)
            if task is not None:
                self.let_go[queue] = task
                yield task

    def drain(self) -> Iterator[Task]:
        """Take out all that wait."""
        self.let_go.clear()
        for queue in list(self._waiting):
            while (task := self._next(queue)) is not None:
                yield task


class Definition:
    """What the scheduler knows of a function."""

    __slots__ = ("_may_be_short", "digest", "estimate", "is_short", "name", "policy", "rate")

    def __init__(self, digest: bytes, name: str, policy: Policy, rate: Rate | None) -> None:
        self.digest = digest
        self.name = name
        self.heed(policy, rate)
        #: Seconds that one of its calls takes, about; None until one has ended.
        self.estimate: float | None = None

    def heed(self, policy: Policy, rate: Rate | None) -> None:
        """Take over what users want of its calls."""
        self.policy, self.rate = policy, rate
        self._may_be_short = not policy.interval and policy.time_limit is None
        self.is_short = False  # until the next call has ended

    def learn(self, runtime: float) -> None:
        """Take the duration of one more call into the estimate."""
        seconds = runtime + OVERHEAD
        known = self.estimate
        # Upwards at once, downwards slowly: what was long once is not given ahead lightly.
        self.estimate = (
            seconds if known is None or seconds > known * 4 else known * 0.7 + seconds * 0.3
        )
        self.is_short = self._may_be_short and self.estimate < SHORT

    def doubt(self) -> None:
        """Know nothing of its calls any more, until the next one has ended."""
        self.estimate, self.is_short = None, False

    def may_wait(self, task: Task) -> bool:
        """Whether a call may be given to a worker that is running another one."""
        return self.is_short and (task.options is None or task.options.time_limit is None)


class Worker:
    """A worker, and what it holds."""

    __slots__ = (
        "ahead", "bereft", "dead", "handling", "heard", "held", "joining", "last", "leaving",
        "name", "noted", "peer", "pid", "prepares", "progress_at", "queues", "recalled_at",
        "verdicts", "waits_for_it", "wishes",
    )  # fmt: skip

    def __init__(self, name: str, peer: bytes = b"", pid: int = 0, queues: tuple[str, ...] = ()):
        self.name = name
        #: Empty until it has said Hello to this broker.
        self.peer = peer
        self.pid = pid
        self.queues = queues
        #: Ticket → task, in the order in which they will run.
        self.held: dict[int, Task] = {}
        #: The function of the call that it was given last, or that it was to load ahead.
        self.last: Definition | None = None
        #: The function that it is loading ahead: meanwhile it gets no call, which would only wait.
        self.prepares = b""
        #: Ticket of the call whose handlers it runs, or 0. It does not hold that any more: the
        #: outcome is saved.
        self.handling = 0
        #: Whether what it runs waits for other tasks.
        self.joining = False
        #: If it was given only these, as another process was killed: the task, and how it ended.
        self.bereft: tuple[Task, str] | None = None
        #: The task that is to run again once these are over, and which of its attempts comes then.
        self.waits_for_it: tuple[Task, int] | None = None
        #: Seconds of work that it holds, about.
        self.ahead = 0.0
        #: Boot clock: when it was last seen to get on.
        self.progress_at = 0.0
        self.recalled_at: float | None = None
        #: Ticket → how the task ends when the process has died on our order.
        self.verdicts: dict[int, tuple[str, str, list[Any]]] = {}
        #: Ticket → the Revoke that waits to hear whether the call has begun.
        self.wishes: dict[int, Revoke] = {}
        #: Ticket to be confirmed at the end of the turn.
        self.noted = 0
        #: How many messages have come from it, Hello not counted.
        self.heard = 0
        self.dead = False
        #: Told to stop: gets nothing more.
        self.leaving = False

    @property
    def serving(self) -> bool:
        """Whether it can be given something."""
        return bool(self.peer) and not self.dead and not self.leaving

    @property
    def busy(self) -> bool:
        """Whether it has a call to run."""
        return bool(self.held) or self.handling > 0

    @property
    def idle(self) -> bool:
        """Whether it can be given something that it begins at once."""
        return self.serving and not self.busy and not self.prepares

    def sits_on_calls(self) -> bool:
        """Whether it holds calls that wait for something else that it does."""
        return len(self.held) > (0 if self.handling else 1)

    def reserve(self, definition: Definition) -> None:
        """Note that it is going to be given a call."""
        self.last = definition
        # A worker with a call of unknown length gets nothing else.
        self.ahead += WINDOW if definition.estimate is None else definition.estimate

    def drop(self, ticket: int, definition: Definition) -> None:
        """Note that a call is no longer its own."""
        del self.held[ticket]
        if self.verdicts or self.wishes:
            self.verdicts.pop(ticket, None)
            self.wishes.pop(ticket, None)
        if not self.held:
            self.ahead = 0.0
        elif definition.estimate is not None:
            self.ahead -= definition.estimate
            if self.ahead < 0.0:  # not `max`, which takes three times as long
                self.ahead = 0.0


class Workers:
    """The workers, and what is ready for them.

    Parameters
    ----------
    archive
        Knows the functions of calls that were accepted by a former broker.
    agenda
        Where the ends of rate limits' pauses are noted.
    """

    def __init__(self, archive: Archive, agenda: Agenda) -> None:
        #: By name, and by their peers.
        self.workers: dict[str, Worker] = {}
        self.by_peer: dict[bytes, Worker] = {}
        self.ready = Ready()
        self._archive = archive
        self._agenda = agenda
        #: By digest; those that nobody has defined by their names.
        self._definitions: dict[bytes | str, Definition] = {}
        #: By task name.
        self._rates: dict[str, Rate] = {}
        #: Queues of workers that are gone, and what they ran last: for who takes their places.
        self._vacant: deque[tuple[tuple[str, ...], Definition]] = deque(maxlen=VACANT)

    # ------------------------------------------------------------------------------- functions

    def define(self, digest: bytes, name: str, policy: Policy) -> None:
        """Note a function; one that is known stays as it is."""
        key = digest or name
        if key not in self._definitions:
            self._definitions[key] = Definition(digest, name, policy, self._rate(name, policy))

    def found(self, name: str, policy: Policy) -> None:
        """Note what a worker says of a function that it has found by its name."""
        self.define(b"", name, policy)
        known = self._definitions[name]
        if known.policy != policy:
            former = known.rate
            known.heed(policy, self._rate(name, policy))
            for task in former.drain() if former is not None else ():
                self.ready.push(task)  # it waits as it shall from now on

    def _rate(self, name: str, policy: Policy) -> Rate | None:
        return self._rates.setdefault(name, Rate()) if policy.interval else None

    def definition(self, digest: bytes, name: str = "") -> Definition | None:
        """Return what is known of a function (by name only, when the digest is empty), or None."""
        known = self._definitions.get(digest or name)
        if known is None:
            saved = self._archive.policy_of(digest) if digest else (name, Policy())
            if saved is None:
                return None
            self.define(digest, *saved)
            known = self._definitions[digest or name]
        return known

    def of(self, task: Row | Call) -> Definition:
        """Return the function of an accepted task, or call, which the archive still has."""
        known = self._definitions.get(task.definition or task.name)
        if known is None:
            known = self.definition(task.definition, task.name)
        assert known is not None  # it goes with the last task of it
        return known

    def forget(self, digest: bytes) -> None:
        """Know nothing more of a function that the archive has dropped."""
        known = self._definitions.pop(digest, None)
        if known is not None:
            known.doubt()  # nobody can load it ahead

    def limit_of(self, task: Row, what: str = "time_limit") -> Any:
        """Return a limit of a run (seconds, bytes), or None: what the call says wins."""
        limit = None if task.options is None else getattr(task.options, what)
        return getattr(self.of(task).policy, what) if limit is None else limit

    # --------------------------------------------------------------------------- coming, going

    def dismiss(self, worker: Worker) -> None:
        """Note that a worker is gone."""
        if self.workers.get(worker.name) is worker:
            del self.workers[worker.name]
        if worker.last is not None and worker.last.digest:
            self._vacant.append((worker.queues, worker.last))

    def to_prepare(self) -> Iterator[tuple[Worker, Definition]]:
        """Yield workers that have had nothing to do yet, and what they shall load ahead.

        Not before a call of it has ended: to load it is then known to do no harm.
        """
        fresh = [worker for worker in self.idle() if worker.last is None]
        alone = self._known_to_one() if fresh else {}
        for worker in fresh:
            function = self._left_to(worker) or alone.get(worker.queues)
            if function is not None:
                alone.pop(worker.queues, None)
                worker.last = function
                yield worker, function

    def _left_to(self, worker: Worker) -> Definition | None:
        """Return what a worker ran last that is gone, and in whose place this one may be."""
        for queues, function in self._vacant:
            if queues == worker.queues and function.estimate is not None:
                self._vacant.remove((queues, function))
                return function
        return None

    def _known_to_one(self) -> dict[tuple[str, ...], Definition]:
        """Return queues → what was run last, where only one worker of them has done anything yet.

        A second one is made ready, not all: what functions import may take much memory.
        """
        known: dict[tuple[str, ...], list[Definition]] = {}
        for worker in self.serving():
            if worker.last is not None:
                known.setdefault(worker.queues, []).append(worker.last)
        return {
            queues: functions[0]
            for queues, functions in known.items()
            # What is known by its name only, no message can carry.
            if len(functions) == 1 and functions[0].estimate is not None and functions[0].digest
        }

    # ---------------------------------------------------------------------------------- looking

    def serving(self) -> list[Worker]:
        """Return the workers that can be given something."""
        return [worker for worker in self.workers.values() if worker.serving]

    def places(self, now: Now) -> dict[str, int]:
        """Return task id → place in the line (1: next) of those that wait for a worker only.

        Told of the first `PLACES` of each line; workers that serve the same queues share a line.
        """
        found: dict[str, int] = {}
        for queues in {worker.queues for worker in self.serving()}:
            for place, task in enumerate(islice(self._line(queues, now), PLACES), 1):
                found[task.id] = min(place, found.get(task.id, place))
        return found

    def _line(self, queues: tuple[str, ...], now: Now) -> Iterator[Task]:
        """Yield the tasks that a worker of these queues would get, if it took one after another."""
        passed = set()
        for task in islice(self.ready.line(queues), SIGHT):
            if task.phase != QUEUED:
                continue
            rate = self.of(task).rate
            if rate is not None:
                if rate in passed:
                    continue
                passed.add(rate)  # it lets no more than one through at a time
                if now.boot < rate.next_start:
                    continue
            yield task

    # --------------------------------------------------------------------------------- choosing

    def idle(self) -> list[Worker]:
        """Return the workers that have nothing to do."""
        return [worker for worker in self.workers.values() if worker.idle]

    def joining(self) -> list[Worker]:
        """Return the workers whose runs wait for other tasks."""
        return [worker for worker in self.workers.values() if worker.joining and not worker.dead]

    def running(self) -> list[Worker]:
        """Return the workers that have something to do and do not wait for other tasks, or go."""
        return [
            worker
            for worker in self.workers.values()
            if worker.busy and not worker.joining and not worker.leaving
        ]

    def starved(self) -> bool:
        """Whether there is something that only workers could run whose runs wait for others."""
        has, idle = self.ready.has, self.idle()
        return any(has(worker.queues) for worker in self.joining()) and not any(
            has(worker.queues) for worker in idle
        )

    def stranded(self) -> bool:
        """Whether a worker may be sitting on calls that another one could run now."""
        sitting = any(worker.sits_on_calls() for worker in self.workers.values())
        return sitting and bool(self.idle())

    def choose(
        self, now: Now, most: int | None = None, only_ahead: bool = False
    ) -> Iterator[tuple[Worker, list[Task]]]:
        """Yield who shall get what; the caller gives it before it asks for more.

        Parameters
        ----------
        now
            The present instant.
        most
            How many of the idle workers may get something; None: all.
        only_ahead
            Whether only tasks of clients that were put ahead may begin.
        """
        if not self.ready:
            return
        first = self.ready.first_ahead if only_ahead else self.ready.first
        for worker in self._in_turn(self.idle()):
            if most == 0:
                break
            if tasks := self._take(worker, 1, now, first):
                most = None if most is None else most - 1
                yield worker, tasks
        if only_ahead:
            return
        busy = [
            worker
            for worker in self.workers.values()
            # One that has not got on for a while is running something longer than thought.
            if worker.busy
            and worker.serving
            and not worker.joining
            and now.boot - worker.progress_at < STRANDED
        ]
        busy.sort(key=attrgetter("ahead"))
        while busy and self.ready:
            few = min(FEW, -(-len(self.ready) // len(busy)))
            for worker in list(busy):
                tasks = self._take(worker, few, now, first)
                if len(tasks) < few:
                    busy.remove(worker)
                if tasks:
                    yield worker, tasks

    def _in_turn(self, idle: list[Worker]) -> list[Worker]:
        """Return workers in the order in which what comes next for them has its turn.

        Others may be waiting for the same start of a rate limit.
        """
        if all(worker.queues == idle[0].queues for worker in idle):
            return idle

        def turn(worker: Worker) -> tuple[int, int, int]:
            level = self.ready.first(worker.queues)
            if level is None:
                return (1, 0, 0)
            return -level.priority, *self.ready.turn(level.head())

        return sorted(idle, key=turn)

    def to_call_back(self, now: Now) -> Iterator[Worker]:
        """Yield the workers that sit on calls behind a long one while others are idle."""
        idle = self.idle()
        if not idle:
            return
        for worker in self.workers.values():
            asked = worker.recalled_at is not None and now.boot - worker.recalled_at < PATIENCE
            waits = now.boot - worker.progress_at >= STRANDED
            if worker.sits_on_calls() and worker.serving and waits and not asked:
                if any(self.ready.has(other.queues) for other in idle):
                    return  # they have something to do
                yield worker

    def release(self, rate: Rate) -> None:
        """Put the next call of each queue first in line: a task with this limit may start again."""
        for task in rate.next():
            self.ready.push(task, front=True)

    def give_up(self, task: Task) -> None:
        """Take note that a task has ended that waited for a worker."""
        definition = self._definitions.get(task.definition or task.name)
        rate = definition.rate if definition is not None else None
        if rate is not None and task in rate.aside:
            rate.aside.remove(task)
            return
        self.ready.give_up()
        if rate is not None and rate.let_go.get(task.queue) is task:
            del rate.let_go[task.queue]
            if not rate.timer:
                self.release(rate)  # the start that it was let go for is another's

    def _take(
        self,
        worker: Worker,
        most: int,
        now: Now,
        first: Callable[[tuple[str, ...]], Level | None],
    ) -> list[Task]:
        """Take out the tasks that this worker shall run next: at most so many.

        Ahead of the end of what it is running, it gets short ones only, while it has room.
        """
        ready, queues = self.ready, worker.queues
        taken: list[Task] = []
        ahead = worker.busy
        if ahead:
            most = min(most, CREDIT - len(worker.held))
        while len(taken) < most and (not ahead or worker.ahead < WINDOW):
            level = first(queues)
            if level is None:
                break
            task = level.head()
            if task.phase != QUEUED:
                ready.drop(level)  # it was revoked, or has expired
                continue
            definition = self.of(task)
            if ahead and not definition.may_wait(task):
                break
            ready.take(level)
            rate = definition.rate
            if rate is None or self._may_start(rate, definition.policy.interval, task, now):
                worker.reserve(definition)
                taken.append(task)
        return taken

    def _may_start(self, rate: Rate, interval: float, task: Task, now: Now) -> bool:
        """Whether the rate limit lets a task start now; if not, it is put aside until it does."""
        if rate.let_go.get(task.queue) is task:
            del rate.let_go[task.queue]
        allowed = now.boot >= rate.next_start
        if allowed:
            rate.next_start = now.boot + interval
        else:
            rate.wait(task)
        if rate.aside and not rate.timer:
            rate.timer = True
            self._agenda.add_boot(rate.next_start, "slot", rate)
        return allowed
