"""How many workers there shall be, and how many more stand in for those whose runs wait.

A run that waits for other tasks keeps its process, but not its place in the pool: once something is
starved, another worker takes it. Whoever did stays for a while, for there may be a next wait.

There is an end to that, and tasks for which no place is left would be waited for without end. So
where more wait than there shall be workers, what the deepest of them have sent comes first
(`Ready.put_ahead`): then a few branches of a tree of tasks wait, and not all of it but its leaves.
With many places taken it goes on in fewer branches, at last in one, and nothing else begins as long
as anything is left of what they have sent. Where even one branch is too long, it breaks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from nbtasks.core import states
from nbtasks.core.agenda import Agenda
from nbtasks.core.flow import Flow
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
from nbtasks.core.states import QUEUED, SCHEDULED, WAITING
from nbtasks.core.turn import Send
from nbtasks.core.workers import Worker, Workers

#: Seconds after which somebody takes the place of a worker whose run waits for other tasks, and
#: between two looks whether this is so.
GRACE: Final = 0.05
LOOK: Final = 0.2
#: Seconds for which those stay who did, and how many there are at most.
LINGER: Final = 10.0
MOST: Final = 32
#: Seconds for which all must have waited for one another until one is told that it waits in vain.
STANDSTILL: Final = 1.0
#: How many may wait before fewer go on, and seconds without news before one then goes on that is
#: not of the deepest branch.
FREELY: Final = MOST // 2
HESITATION: Final = 0.05


class Staff:
    """Who shall be there, and what the supervisor is told for that.

    Parameters
    ----------
    ledger, agenda, pool
        What the scheduler's parts share.
    flow
        Where tasks end that can never have a worker.
    """

    def __init__(self, ledger: Ledger, agenda: Agenda, pool: Workers, flow: Flow) -> None:
        self._ledger = ledger
        self._agenda = agenda
        self._pool = pool
        self._flow = flow
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
        #: Since when (boot clock) there need not be as many extra ones, and all places have been
        #: taken by runs that wait.
        self._spared_at: float | None = None
        self._stuck_at: float | None = None
        #: Those who have sent what the deepest wait for.
        self._deepest: list[bytes] = []
        #: Whether only what runs that wait have sent may begin.
        self.reserved = False

    @property
    def whole(self) -> int:
        """How many workers there shall be in all."""
        return self.wanted + self.extra

    def room(self, now: Now) -> int | None:
        """Return how many idle workers may get something; None: all.

        Who took the place of one that waits may find it going on, and stay for a while.
        """
        if not self.extra:
            return None
        return 0 if self._hesitates(now) else self._free()

    def at_once(self) -> int:
        """Return how many runs are going to go on at once, one at least, as things stand."""
        ready = len(self._pool.ready)
        if ready >= self.wanted > 0:
            return self.wanted
        begun_soon = len(self._pool.running()) + ready
        return max(1, min(begun_soon, self.wanted or begun_soon))

    def _free(self) -> int:
        """Return how many more runs may begin: fewer of a tree of tasks, the more of it wait."""
        running = self._pool.running()
        firsts = (next(iter(worker.held.values()), None) for worker in running)
        branches = sum(task is not None and self._pool.ready.is_ahead(task) for task in firsts)
        return max(0, min(self.wanted - len(running), max(1, self._spare()) - branches))

    def _spare(self) -> int:
        """Return how many branches may go on, so that places are left for what they wait for."""
        return self.wanted + FREELY - len(self._pool.joining())

    def _hesitates(self, now: Now) -> bool:
        """Whether there is room for one branch only, and the deepest may be about to go on.

        What a run has sent comes by another socket than the word that it is waited for.
        """
        if self._spare() > 1 or any(self._pool.ready.of(self._deepest)):
            return False
        news = max(worker.progress_at for worker in self._pool.workers.values())
        return now.boot - news < HESITATION

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
            self._put_ahead()
            self.reserved = self._spare() <= 1  # until the next look
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
        self._put_ahead()
        self.reserved = self._spare() <= 1 and self._is_more_to_come()
        extra = self._extra_now(now)
        if extra != self.extra:
            self._want(self.wanted, extra)
        self._break_standstill(now)
        if extra or self._pool.joining():
            self.mind_joins(now, LOOK)

    def _put_ahead(self) -> None:
        """Let what the runs that wait have sent come first, that of the deepest at the front."""
        joining = {worker.pid: worker for worker in self._pool.joining()}
        found = []
        for peer, hello in self._ledger.clients.items():
            above = self._above(joining.get(hello.pid), joining)
            if above:
                found.append((len(above), peer))
        found.sort(reverse=True)
        self._deepest = [peer for depth, peer in found if depth == found[0][0]]
        many = len(joining) > self.wanted
        self._pool.ready.put_ahead([peer for _, peer in found] if many else ())

    def _is_more_to_come(self) -> bool:
        """Whether anything has not begun yet of what runs that wait have sent."""
        is_ahead = self._pool.ready.is_ahead
        return any(
            task.phase in (WAITING, SCHEDULED, QUEUED) and is_ahead(task)
            for task in self._ledger.tasks.values()
        )

    def _above(self, worker: Worker | None, joining: dict[int, Worker]) -> list[Worker]:
        """Return the worker, if it waits, who waits for what it runs, and so on."""
        found: list[Worker] = []
        while worker is not None and worker not in found:
            found.append(worker)
            task = next(iter(worker.held.values()), None)
            sender = None if task is None else self._ledger.clients.get(task.client)
            worker = None if sender is None else joining.get(sender.pid)
        return found

    def _extra_now(self, now: Now) -> int:
        """Return how many extra workers there shall be from now on."""
        joining = len(self._pool.joining())
        if joining >= self.extra:
            self._spared_at = None
        elif self._spared_at is None:
            self._spared_at = now.boot
        more = min(self._free(), len(self._pool.ready))
        if more and self._is_short():
            return min(self.extra + more, MOST)
        if self._spared_at is not None and now.boot - self._spared_at >= LINGER:
            return joining
        return self.extra

    def _is_short(self) -> bool:
        """Whether all workers are there, and some task can run in none but those that wait."""
        # A new broker may hear of those that wait before it is told how many there shall be.
        complete = bool(self.hired) and len(self._pool.serving()) >= self.whole
        may_begin = not self.reserved or self._pool.ready.first_ahead(()) is not None
        return complete and may_begin and self._pool.starved()

    def _break_standstill(self, now: Now) -> None:
        """Where all wait for one another, tell the deepest of them that it waits in vain.

        What it waits for ends. So the others go on, one after the other.
        """
        stands = self.extra >= MOST and not self._pool.running() and self._is_short()
        task = next(self._pool.ready.of(self._deepest), None) if stands else None
        if task is None:
            self._stuck_at = None
        elif self._stuck_at is None:
            self._stuck_at = now.boot
        elif now.boot - self._stuck_at >= STANDSTILL:
            self._stuck_at = now.boot
            text = (
                f"It was never begun: all {self.whole} workers run tasks that wait for others, and "
                f"no more than {MOST} step in for those. Let tasks wait for one another less deep: "
                f"from some depth on call the function itself, or let the caller combine the "
                f"results."
            )
            self._flow.end_by_broker(task, states.FAILURE, "TaskError", [text], now)
