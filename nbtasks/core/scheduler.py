"""Decide what happens next to every task. Knows no socket, file or clock.

Messages go in with the peer that sent them and the time; what follows from them gathers in `turn`:
what is to be saved, and what is to be said. The server writes all of a turn in one transaction and
only then sends: nobody is told what a crash could take back.

    Submit, Define   Revoke, Redo ...   Started, Done ...   Handling     Died    Scale, Joining
          │                 │                   │              │          │            │
       intake            orders    workers ─ attempts ─────── handlers ─ deaths      staff
          │                 │                   │              │          │            │
        flow: needs, times, lines of what is ready, and the end of a task              │
          │                                                                            │
       ledger: open tasks, their events and who is told, the turn ─────────────────────┘

* A **task** is one submitted call. Its phase moves by the table in `states`; the line that moves it
  is in `Ledger.step`.
* **Credit**: an idle worker gets one call. More are given ahead only where calls of that function
  are known to be so short that the wire would otherwise keep the worker waiting; they are called
  back when another worker has nothing to do.

Here are the doors, and who comes and goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from nbtasks.core.agenda import Agenda
from nbtasks.core.attempts import Attempts
from nbtasks.core.deaths import Deaths
from nbtasks.core.flow import Flow
from nbtasks.core.handlers import Handlers
from nbtasks.core.intake import Intake
from nbtasks.core.ledger import Ledger
from nbtasks.core.messages import (
    STRANGER,
    WORDS,
    Again,
    Bye,
    Define,
    Died,
    Done,
    Fetch,
    Follow,
    Forget,
    Handling,
    Hasten,
    Hello,
    Joining,
    Now,
    Output,
    Pool,
    Prepared,
    Recall,
    Redo,
    Refused,
    Report,
    Returned,
    Revoke,
    Scale,
    Started,
    Stop,
    Submit,
    Unfollow,
    Update,
    take,
)
from nbtasks.core.orders import Orders
from nbtasks.core.staff import Staff
from nbtasks.core.states import ASSIGNED, QUEUED, SCHEDULED, WAITING
from nbtasks.core.tasks import Archive, Row, task_of
from nbtasks.core.turn import Turn
from nbtasks.core.workers import STRANDED, Worker, Workers

#: Seconds in which a worker must report, to a new broker, what it was given by the old one.
ROLL_CALL: Final = 1.0


class Scheduler:
    """Decide what happens next to every task.

    Parameters
    ----------
    archive
        What has been saved.
    first_ticket
        Tickets of this run of the broker start above this; it must be higher than any before.
    first_seq
        The highest `seq` that was ever given.
    """

    def __init__(self, archive: Archive, first_ticket: int = 0, first_seq: int = 0) -> None:
        self.agenda = agenda = Agenda()
        self.ledger = ledger = Ledger(archive, first_ticket)
        self.pool = pool = Workers(archive, agenda)
        self.flow = flow = Flow(ledger, agenda, pool)
        self.staff = staff = Staff(ledger, agenda, pool, flow)
        self.orders = orders = Orders(ledger, pool, flow, staff)
        self.intake = intake = Intake(ledger, agenda, pool, flow, orders, first_seq)
        self.handlers = handlers = Handlers(ledger, agenda, pool, flow, staff)
        self.attempts = attempts = Attempts(
            ledger, agenda, pool, flow, staff, orders, intake, handlers
        )
        self.deaths = deaths = Deaths(ledger, agenda, pool, flow, handlers, attempts)
        self.tasks, self.clients, self.workers = ledger.tasks, ledger.clients, pool.workers
        self._receivers: dict[type, Callable[..., None]] = {
            Bye: self._bye, Stop: self._stop,
            Define: intake.define, Submit: intake.submit,
            Follow: ledger.follow, Unfollow: ledger.unfollow, Output: ledger.output,
            Revoke: orders.revoke, Hasten: orders.hasten, Redo: orders.redo,
            Forget: orders.forget, Update: orders.update,
            Started: attempts.started, Report: attempts.report,
            Again: attempts.again, Returned: attempts.returned, Fetch: attempts.fetch,
            Prepared: attempts.prepared,
            Handling: handlers.handling,
            Scale: staff.scale, Pool: staff.hear, Joining: staff.join,
            Died: deaths.died,
        }  # fmt: skip
        #: What is done of the entries of the agenda.
        self._due: dict[str, Callable[[Any, float, Now], None]] = {
            "start": flow.on_start, "expire": flow.on_expire, "slot": flow.on_slot,
            "limit": attempts.on_limit, "loading": attempts.on_loading,
            "untold": attempts.on_untold, "overrun": handlers.on_overrun,
            "joins": staff.on_joins, "died": deaths.on_died, "unseen": deaths.on_unseen,
        }  # fmt: skip

    @property
    def turn(self) -> Turn:
        """What has been decided since the last commit."""
        return self.ledger.turn

    @property
    def supervisor(self) -> bytes:
        """Whom the supervisor's mail goes to; empty until it has said Hello."""
        return self.ledger.supervisor

    @property
    def stopping(self) -> bool:
        """Whether the cluster is going: nothing is begun any more."""
        return self.staff.stopping

    # ------------------------------------------------------------------------------------ the doors

    def receive(
        self, peer: bytes, message: Any, now: Now, buffers: Iterator[Any] | None = None
    ) -> None:
        """Take one message in.

        `buffers` yields the payload frames of the batch that the message came in.
        """
        self.receive_alike(peer, [message], now, iter(()) if buffers is None else buffers)

    def receive_alike(
        self, peer: bytes, messages: list[Any], now: Now, buffers: Iterator[Any]
    ) -> None:
        """Take in messages of one kind that came one after another."""
        kind, role = type(messages[0]), self.role_of(peer)
        if kind is Hello:
            for message in messages:
                self._hello(peer, message, now, buffers)
        elif role and kind in WORDS[role]:
            if role == "worker":
                self.pool.by_peer[peer].heard += len(messages)
            if kind is Done:  # most of what comes: they are looked at together
                self.attempts.done(peer, messages, now, buffers)
                return
            receiver = self._receivers[kind]
            for message in messages:
                receiver(peer, message, now, buffers)
        else:
            why = f"A {role} may not say {kind.__name__}." if role else STRANGER
            for message in messages:
                take(buffers, message.frames)
                self.ledger.turn.say(peer, Refused(why))

    def tick(self, now: Now) -> None:
        """Do what is due, give work to workers, and confirm; call it at the end of each turn."""
        for entry in self.agenda.due(now):
            self._due[entry.kind](entry.subject, entry.when, now)
        self.attempts.assign(now)
        self.intake.confirm()
        self.attempts.confirm()

    def next_wakeup(self, now: Now) -> float | None:
        """Return the seconds until `tick` has something to do, or None."""
        wait = self.agenda.wait(now)
        if self.pool.stranded():
            wait = STRANDED if wait is None else min(wait, STRANDED)
        return wait

    def committed(self) -> Turn:
        """Begin the next turn, as the archive has this one; return it: its mail may go now."""
        return self.ledger.committed()

    def gone(self, peer: bytes, now: Now) -> None:
        """Take note that a client's process is no more."""
        self._bye(peer, Bye(), now, iter(()))

    def phases(self) -> dict[str, int]:
        """Return how many open tasks are in each phase."""
        return dict(Counter(task.phase for task in self.ledger.tasks.values()))

    def role_of(self, peer: bytes) -> str:
        """Return as what a peer is known; nothing for a stranger and for a worker given up."""
        if peer in self.ledger.clients:
            return "client"
        if peer in self.pool.by_peer:
            return "worker"
        return "supervisor" if peer == self.ledger.supervisor else ""

    # ------------------------------------------------------------------------------- peers come, go

    def _hello(self, peer: bytes, hello: Hello, now: Now, _: Iterator[Any]) -> None:
        namesake = self.pool.workers.get(hello.name) if hello.role == "worker" else None
        if self.role_of(peer) not in ("", hello.role) or (
            namesake is not None and namesake.peer not in (b"", peer)
        ):
            self.ledger.turn.say(peer, Refused(f"{hello.name} is known as somebody else."))
        elif hello.role == "worker" and namesake is None and hello.name in self.deaths.dead:
            self.ledger.turn.say(peer, Refused(f"{hello.name} was reported dead."))
        elif hello.role == "client":
            self.ledger.clients[peer] = hello
        elif hello.role == "worker":
            self._hello_worker(peer, hello, now)
        else:
            self.ledger.supervisor = peer
            self.staff.stopping = False
            # Whoever is not alive and not reported dead within a while died unseen.
            for worker in self.pool.workers.values():
                if worker.name not in hello.workers and not worker.peer:
                    self.agenda.add_boot(now.boot + ROLL_CALL, "unseen", worker)

    def _hello_worker(self, peer: bytes, hello: Hello, now: Now) -> None:
        worker = self.pool.workers.get(hello.name)
        if worker is None:
            worker = self.pool.workers[hello.name] = Worker(hello.name)
        if worker.peer:
            self.pool.by_peer.pop(worker.peer, None)
        worker.peer, worker.pid, worker.queues = peer, hello.pid, hello.queues
        worker.progress_at = now.boot
        worker.recalled_at = None
        # It may not have heard what it was to load.
        self.attempts.mind_loading(worker, hello.prepares, now)
        worker.joining = False  # it will say so if it still does
        self.handlers.end(worker)  # and so here
        self.pool.by_peer[peer] = worker
        if hello.found is not None:
            self.pool.found(*hello.found)
        strange = []
        for held in hello.held:
            task = worker.held.get(held.ticket)
            if task is None or task.id != held.id:
                strange.append(held.ticket)
            elif held.started and task.phase == ASSIGNED:
                self.attempts.begin(worker, held.ticket, task, now, 0.0)
        unwanted = [ticket for ticket, task in worker.held.items() if task.wish]
        if strange or unwanted:
            self.ledger.turn.say(peer, Recall((*strange, *unwanted)))
        for ticket in worker.held.keys() - {held.ticket for held in hello.held}:
            # Its outcome may be on the way; else it never arrived there.
            self.agenda.add_boot(now.boot + ROLL_CALL, "untold", (worker, ticket))
        self.staff.greet(worker)

    def _bye(self, peer: bytes, _: Bye, now: Now, __: Iterator[Any]) -> None:
        if peer == self.ledger.supervisor:
            self.staff.stopping = True
        worker = self.pool.by_peer.pop(peer, None)
        if worker is not None:
            self.deaths.bury(worker, Died(worker.name, worker.pid, 0), now)
        self.ledger.leave(peer)

    def _stop(self, peer: bytes, stop: Stop, now: Now, _: Iterator[Any]) -> None:
        self.staff.stopping = True
        for worker in self.pool.workers.values():
            if worker.peer and not worker.dead:
                # To end what it is running, give back what it has not begun, and go.
                self.ledger.turn.say(worker.peer, Stop())
        self.staff.order(stop)

    # ------------------------------------------------------------------------------ after a restart

    def restore(self, rows: Iterable[Row], now: Now) -> None:
        """Take up what a former broker left open."""
        for row in rows:
            self._restore(row, now)

    def _restore(self, row: Row, now: Now) -> None:
        task = task_of(row)
        self.intake.seq = max(self.intake.seq, task.seq)
        self.ledger.tasks[task.id] = task
        if task.expires is not None and task.phase in (WAITING, SCHEDULED, QUEUED, ASSIGNED):
            self.agenda.add_wall(task.expires, "expire", task)
        if task.phase == WAITING:
            needs = task.options.needs if task.options is not None else ()
            if not self.flow.wait_for(task, needs, now):
                self.flow.schedule_or_queue(task, now)
        elif task.phase == SCHEDULED:
            self.flow.schedule_or_queue(task, now)
        elif task.phase == QUEUED:
            self.pool.ready.push(task)
        else:
            worker = self.pool.workers.get(task.worker)
            if worker is None:
                worker = self.pool.workers[task.worker] = Worker(task.worker)
            worker.held[task.ticket] = task
            if task.phase == ASSIGNED:
                # It may have begun, and its worker be too busy to say so.
                self.attempts.limit(task, now)
                return
            if task.limit_at is not None:
                self.agenda.add_boot(task.limit_at, "limit", task)
            if task.wish == "terminated":
                # Whoever was told to end it may not have heard, and who wanted it be gone.
                self.orders.terminate(worker, task, "SIGTERM")
