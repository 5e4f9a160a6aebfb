"""Who gets which call next: credit, rate limits, and calling back what was given too early.

An idle worker gets one call. More are given ahead only where calls of that function are known to
be so short that the wire would otherwise keep the worker waiting; where one of them proves long,
the others are called back as soon as another worker has nothing to do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from nbtasks.core.actions import Archive, Task
from nbtasks.core.agenda import Agenda, Ready
from nbtasks.core.messages import Now, Policy, Revoke
from nbtasks.core.states import QUEUED

#: Seconds of work that a worker may hold ahead of what it is running.
WINDOW = 0.010
#: Calls of functions that take longer than this (seconds) are never given ahead.
SHORT = WINDOW
#: Calls that a worker may hold.
CREDIT = 512
#: Seconds that the wire and the worker add to each call, about.
OVERHEAD = 0.000_015
#: Seconds after which calls held by a busy worker are called back for an idle one.
STRANDED = 0.010
#: Seconds that a worker is given to answer before it is asked again.
PATIENCE = 0.2


class Definition:
    """What the scheduler knows of a function."""

    __slots__ = ("digest", "estimate", "limited", "name", "next_start", "policy", "timer")

    def __init__(self, digest: bytes, name: str, policy: Policy) -> None:
        self.digest = digest
        self.name = name
        self.policy = policy
        #: Seconds that one of its calls takes, about; None until one has ended.
        self.estimate: float | None = None
        #: Rate limit: the next start (boot clock), who waits for it, and whether a timer is set.
        self.next_start = 0.0
        self.limited: deque[Task] = deque()
        self.timer = False

    def learn(self, runtime: float) -> None:
        """Take the duration of one more call into the estimate."""
        seconds = runtime + OVERHEAD
        known = self.estimate
        # Upwards at once, downwards slowly: what was long once is not given ahead lightly.
        self.estimate = (
            seconds if known is None or seconds > known * 4 else known * 0.7 + seconds * 0.3
        )

    def may_wait(self, task: Task) -> bool:
        """Whether a call may be given to a worker that is running another one."""
        policy, options = self.policy, task.options
        return (
            self.estimate is not None
            and self.estimate < SHORT
            and not policy.interval
            and policy.time_limit is None
            and (options is None or options.time_limit is None)
        )


class Worker:
    """A worker, and what it holds."""

    __slots__ = (
        "ahead", "dead", "held", "leaving", "name", "noted", "peer", "pid", "progress_at",
        "queues", "recalled_at", "verdicts", "wishes",
    )  # fmt: skip

    def __init__(self, name: str, peer: bytes = b"", pid: int = 0, queues: tuple[str, ...] = ()):
        self.name = name
        #: Empty until it has said Hello to this broker.
        self.peer = peer
        self.pid = pid
        self.queues = queues
        #: Ticket → task, in the order in which they will run.
        self.held: dict[int, Task] = {}
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
        self.dead = False
        #: Told to stop: gets nothing more.
        self.leaving = False

    @property
    def serving(self) -> bool:
        """Whether it can be given something."""
        return bool(self.peer) and not self.dead and not self.leaving

    def has_room(self) -> bool:
        """Whether it may be given something ahead."""
        return self.ahead < WINDOW and len(self.held) < CREDIT

    def hold(self, ticket: int, task: Task, definition: Definition, now: Now) -> None:
        """Note that it was given a call."""
        if not self.held:
            self.progress_at = now.boot
        self.held[ticket] = task
        # A worker with a call of unknown length gets nothing else.
        self.ahead += WINDOW if definition.estimate is None else definition.estimate

    def drop(self, ticket: int, definition: Definition) -> Task:
        """Note that a call is no longer its own."""
        task = self.held.pop(ticket)
        self.verdicts.pop(ticket, None)
        if not self.held:
            self.ahead = 0.0
        elif definition.estimate is not None:
            self.ahead = max(self.ahead - definition.estimate, 0.0)
        return task


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
        self.workers: dict[str, Worker] = {}
        self.ready = Ready()
        self._archive = archive
        self._agenda = agenda
        self._definitions: dict[bytes, Definition] = {}

    # ------------------------------------------------------------------------------- functions

    def define(self, digest: bytes, name: str, policy: Policy) -> None:
        """Note a function; one that is known stays as it is."""
        if digest not in self._definitions:
            self._definitions[digest] = Definition(digest, name, policy)

    def definition(self, digest: bytes, name: str = "") -> Definition | None:
        """Return what is known of a function (by name only, when the digest is empty), or None."""
        known = self._definitions.get(digest)
        if known is None:
            saved = self._archive.policy_of(digest) if digest else (name, Policy())
            if saved is None:
                return None
            known = self._definitions[digest] = Definition(digest, *saved)
        return known

    def of(self, task: Task) -> Definition:
        """Return the function of an accepted task."""
        definition = self.definition(task.definition, task.name)
        assert definition is not None  # it was there when the task was accepted
        return definition

    # --------------------------------------------------------------------------------- choosing

    def idle(self) -> list[Worker]:
        """Return the workers that have nothing to do."""
        return [worker for worker in self.workers.values() if not worker.held and worker.serving]

    def stranded(self) -> bool:
        """Whether a worker may be sitting on calls that another one could run now."""
        return any(len(worker.held) > 1 for worker in self.workers.values()) and bool(self.idle())

    def choose(self, now: Now) -> Iterator[tuple[Worker, Task]]:
        """Yield who shall get what; the caller gives it before it asks for the next."""
        if not self.ready:
            return
        for worker in self.idle():
            task = self._next(worker, now, ahead=False)
            if task is not None:
                yield worker, task
        busy = [
            worker
            for worker in self.workers.values()
            # One that has not got on for a while is running something longer than thought.
            if worker.held and worker.serving and now.boot - worker.progress_at < STRANDED
        ]
        while busy and self.ready:
            for worker in list(busy):
                # A few to each in turn, so that a short burst is shared out.
                for _ in range(8):
                    task = self._next(worker, now, ahead=True) if worker.has_room() else None
                    if task is None:
                        busy.remove(worker)
                        break
                    yield worker, task

    def to_call_back(self, now: Now) -> Iterator[Worker]:
        """Yield the workers that sit on calls behind a long one while others are idle."""
        if self.ready or not self.idle():
            return
        for worker in self.workers.values():
            asked = worker.recalled_at is not None and now.boot - worker.recalled_at < PATIENCE
            waits = now.boot - worker.progress_at >= STRANDED
            if len(worker.held) > 1 and worker.serving and waits and not asked:
                yield worker

    def release(self, definition: Definition) -> None:
        """Put the next call of a rate-limited function first in line: it may start."""
        definition.timer = False
        while definition.limited:
            task = definition.limited.popleft()
            if task.phase == QUEUED:
                self.ready.push(task, front=True)
                return

    def _next(self, worker: Worker, now: Now, ahead: bool) -> Task | None:
        """Take the task that this worker shall run next, or None."""
        ready, queues = self.ready, worker.queues
        while (task := ready.peek(queues)) is not None:
            if task.phase != QUEUED:
                ready.pop(queues)  # it was revoked, has expired, or was hastened before
                continue
            definition = self.of(task)
            if ahead and not definition.may_wait(task):
                return None
            ready.pop(queues)
            if not definition.policy.interval or self._may_start(definition, task, now):
                return task
        return None

    def _may_start(self, definition: Definition, task: Task, now: Now) -> bool:
        """Whether the rate limit lets a task start now; if not, it is put aside until it does."""
        allowed = now.boot >= definition.next_start
        if allowed:
            definition.next_start = now.boot + definition.policy.interval
        else:
            definition.limited.append(task)
        if definition.limited and not definition.timer:
            definition.timer = True
            self._agenda.add_boot(definition.next_start, "slot", definition)
        return allowed
