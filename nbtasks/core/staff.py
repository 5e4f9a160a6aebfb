"""How many workers there shall be, and how many more stand in for those whose runs wait.

A run that waits for other tasks keeps its process, but not its place in the pool: once something is
starved, another worker takes it. Whoever did stays for a while, for there may be a next wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from nbtasks.core.agenda import Agenda
from nbtasks.core.ledger import Ledger
from nbtasks.core.messages import (
    Joining,
    Kill,
    Now,
    Pool,
    Recall,
    Scale,
    Stop,
)
from nbtasks.core.turn import Send
from nbtasks.core.workers import Worker, Workers

#: Seconds after which somebody takes the place of a worker whose run waits for other tasks, and
#: between two looks whether this is so.
GRACE: Final = 0.05
LOOK: Final = 0.2
#: Seconds for which those stay who did, and how many there are at most.
LINGER: Final = 10.0
MOST: Final = 32


class Staff:
    """Who shall be there, and what the supervisor is told for that.

    Parameters
    ----------
    ledger, agenda, pool
        What the scheduler's parts share.
    """

    def __init__(self, ledger: Ledger, agenda: Agenda, pool: Workers) -> None:
        self._ledger = ledger
        self._agenda = agenda
        self._pool = pool
        #: How many workers there shall be.
        self.wanted = 0
        #: How many more in the places of those whose runs wait for other tasks.
        self.extra = 0
        #: The workers that the supervisor has started.
        self.hired: frozenset[str] = frozenset()
        #: Those of them that a former broker may have told to go.
        self._leaving: frozenset[str] = frozenset()
        #: The cluster is going: nothing is begun any more.
        self.stopping = False
        #: Whether the next look at those that wait stands in the agenda.
        self._looks = False
        #: Since when (boot clock) there need not be as many extra ones.
        self._spared_at: float | None = None

    @property
    def whole(self) -> int:
        """How many workers there shall be in all."""
        return self.wanted + self.extra

    def room(self) -> int | None:
        """Return how many idle workers may get something; None: all.

        Who took the place of one that waits may find it going on, and stay for a while.
        """
        return max(0, self.wanted - self._pool.running()) if self.extra else None

    # --------------------------------------------------------------------- orders to the supervisor

    def order(self, message: Any) -> None:
        """Say something to the supervisor."""
        self._ledger.turn.say(self._ledger.supervisor, message)

    def kill(self, worker: Worker, ticket: int, signal: str) -> None:
        """Have the supervisor end a worker, if it runs this ticket (0: whatever it runs)."""
        # Not even a full disk lets a run go on that must end: it may be what fills the disk.
        self.order(Send(Kill(worker.name, ticket, signal), free=True))

    def scale(self, peer: bytes, scale: Scale, now: Now, _: Iterator[Any]) -> None:
        """Have another number of workers."""
        self._want(scale.workers, self.extra)

    def _want(self, workers: int, extra: int) -> None:
        """Have the supervisor start workers that are lacking, and let go those too many."""
        self.wanted, self.extra = workers, extra
        self._let_go_surplus()
        self._order_workers()

    def greet(self, worker: Worker) -> None:
        """Let go whom a newcomer makes one too many: it was on its way while others had to go."""
        if worker.leaving or worker.name in self._leaving:
            self._let_go(worker)  # it may not have heard
        elif worker.name in self.hired and self._let_go_surplus():
            self._order_workers()

    def _order_workers(self) -> None:
        leaving = tuple(worker.name for worker in self._pool.workers.values() if worker.leaving)
        self.order(Scale(self.wanted, self.extra, leaving))

    def _let_go_surplus(self) -> bool:
        """Let workers go while there are more than shall be; return whether there were.

        Those go who hold least, and of these who came last.
        """
        present = self._pool.serving()[::-1]
        present.sort(key=lambda worker: len(worker.held))
        surplus = max(0, len(present) - self.whole)
        # Whoever is the only one left for some queues stays longest: nobody else would serve them.
        last = {worker.queues: worker for worker in present}
        for worker in sorted(present, key=lambda worker: last[worker.queues] is worker)[:surplus]:
            self._let_go(worker)
        return surplus > 0

    def _let_go(self, worker: Worker) -> None:
        worker.leaving = True
        self._ledger.turn.say(worker.peer, Stop())

    def hear(self, peer: bytes, pool: Pool, now: Now, _: Iterator[Any]) -> None:
        """Take note of what the supervisor says of the workers that it has."""
        self.wanted, self.extra = pool.wanted, pool.extra
        self.hired, self._leaving = frozenset(pool.workers), frozenset(pool.leaving)
        for worker in self._pool.serving():
            if worker.name in self._leaving:
                self._let_go(worker)
        if pool.extra:
            self.mind_joins(now, 0.0)

    # ------------------------------------------------------------- in the places of those that wait

    def join(self, peer: bytes, said: Joining, now: Now, _: Iterator[Any]) -> None:
        """Take note that a worker's run waits for other tasks, or does so no more."""
        worker = self._pool.by_peer[peer]
        worker.joining = not said.over
        worker.progress_at = now.boot
        if worker.joining:
            if worker.sits_on_calls():
                self._ledger.turn.say(peer, Recall())
            self.mind_joins(now, GRACE)

    def mind_joins(self, now: Now, wait: float) -> None:
        """Look in a while whether workers are lacking, unless somebody does already."""
        if not self._looks and not self.stopping:
            self._looks = True
            self._agenda.add_boot(now.boot + wait, "joins", None)

    def on_joins(self, _: None, when: float, now: Now) -> None:
        """See to it that as many tasks run as there shall be workers, whatever others wait for."""
        self._looks = False
        extra = self._extra_now(now)
        if extra != self.extra:
            self._want(self.wanted, extra)
        if extra or self._pool.joining():
            self.mind_joins(now, LOOK)

    def _extra_now(self, now: Now) -> int:
        """Return how many extra workers there shall be from now on."""
        joining = len(self._pool.joining())
        if joining >= self.extra:
            self._spared_at = None
        elif self._spared_at is None:
            self._spared_at = now.boot
        # A new broker may hear of those that wait before it is told how many there shall be.
        complete = bool(self.hired) and len(self._pool.serving()) >= self.whole
        if complete and joining > self.extra and self._pool.starved():
            return min(joining, self.extra + len(self._pool.ready), MOST)
        if self._spared_at is not None and now.boot - self._spared_at >= LINGER:
            return joining
        return self.extra
