"""Runs of tasks by workers: calls are given out, begin, end, come back.

* A **worker** gets calls with rising tickets and runs them in that order. `(worker, ticket)` is the
  token of an attempt: an answer with a ticket that the worker does not hold is late and changes
  nothing.
* Who gets which call, and when one is called back, is decided in `workers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nbtasks.core import states
from nbtasks.core.agenda import Agenda
from nbtasks.core.flow import Flow, is_ignored, is_kept
from nbtasks.core.handlers import Handlers
from nbtasks.core.intake import Intake
from nbtasks.core.ledger import Ledger
from nbtasks.core.messages import (
    Again,
    Define,
    Done,
    Fetch,
    Lacking,
    Noted,
    Now,
    Policy,
    Prepared,
    Recall,
    Report,
    Returned,
    Run,
    Started,
    take,
)
from nbtasks.core.orders import Orders
from nbtasks.core.staff import Staff
from nbtasks.core.states import ASSIGNED
from nbtasks.core.tasks import REQUEUED, Task
from nbtasks.core.turn import NewCall, Send
from nbtasks.core.workers import LOADING, Worker, Workers


class Attempts:
    """Gives calls to workers, and takes in what they say of them.

    Parameters
    ----------
    ledger, agenda, pool
        What the scheduler's parts share.
    flow, staff, orders, intake, handlers
        Where it goes on with what workers say.
    """

    def __init__(
        self,
        ledger: Ledger,
        agenda: Agenda,
        pool: Workers,
        flow: Flow,
        staff: Staff,
        orders: Orders,
        intake: Intake,
        handlers: Handlers,
    ) -> None:
        self._ledger = ledger
        self._agenda = agenda
        self._pool = pool
        self._flow = flow
        self._staff = staff
        self._orders = orders
        self._intake = intake
        self._handlers = handlers
        #: Workers whose outcomes are to be confirmed at the end of the turn.
        self._noted: list[Worker] = []

    # ----------------------------------------------------------------------------------- giving out

    def assign(self, now: Now) -> None:
        """Give what is ready to the workers that have room for it."""
        if self._staff.stopping:
            return
        if self._handlers.bereft:
            self._handlers.give(now)
        if self._pool.ready:
            runs = self._staff.at_once()
            room, reserved = self._staff.room(now), self._staff.reserved
            for worker, tasks in self._pool.choose(now, room, reserved):
                self._give(worker, tasks, runs, now)
        for worker in self._pool.to_call_back(now):
            worker.recalled_at = now.boot
            self._ledger.turn.say(worker.peer, Recall())
        for worker, function in self._pool.to_prepare():
            # A full disk is no reason not to load it: its code is saved, as a call of it has ended.
            self._send_definition(worker.peer, function.digest, free=True)
            self.mind_loading(worker, function.digest, now)

    def _give(self, worker: Worker, tasks: list[Task], runs: int, now: Now) -> None:
        ledger, turn = self._ledger, self._ledger.turn
        given, mail = turn.given[worker.name], turn.mail[worker.peer]
        if not worker.busy:
            worker.progress_at = now.boot
        for task in tasks:
            ledger.ticket = ticket = ledger.ticket + 1
            ledger.step(task, "assign")
            task.worker, task.ticket = worker.name, ticket
            worker.held[ticket] = task
            given.append((ticket, task.seq))
            sender = ledger.clients.get(task.client)
            call, buffers = ledger.release(task)
            run = Run(ticket, call, task.deaths != 0, sender.name if sender else "", "", runs)
            if call is None:
                turn.say_absent(worker.peer, run, task)
            else:
                mail.append(Send(run, buffers) if buffers else run)

    def _send_definition(self, peer: bytes, digest: bytes, free: bool = False) -> None:
        placeholder = Define(digest, "", Policy(), b"")
        self._ledger.turn.say(peer, Send(placeholder, fetch=digest, free=free))

    def fetch(self, peer: bytes, fetch: Fetch, now: Now, _: Iterator[Any]) -> None:
        """Send a function to a worker that lacks it."""
        if self._pool.definition(fetch.digest) is None:
            self._ledger.turn.say(peer, Lacking((fetch.digest,)))
        else:
            self._send_definition(peer, fetch.digest)

    def mind_loading(self, worker: Worker, digest: bytes, now: Now) -> None:
        """Take note of what a worker loads ahead; it shall not take for ever."""
        worker.prepares = digest
        if digest:
            self._agenda.add_boot(now.boot + LOADING, "loading", (worker, digest))

    def prepared(self, peer: bytes, prepared: Prepared, now: Now, _: Iterator[Any]) -> None:
        """Take note that a worker has loaded what it was to load ahead."""
        worker = self._pool.by_peer.get(peer)
        if worker is not None and worker.prepares == prepared.digest:
            worker.prepares = b""

    def on_loading(self, subject: tuple[Worker, bytes], when: float, now: Now) -> None:
        """Have a worker killed that loads something ahead without end."""
        worker, digest = subject
        if worker.prepares == digest and not worker.dead:
            worker.leaving = True  # it gets no call that would die with it
            self._staff.kill(worker, 0, "SIGKILL")

    # ----------------------------------------------------------------------------- what workers say

    def _held(self, peer: bytes, ticket: int) -> tuple[Worker | None, Task | None]:
        worker = self._pool.by_peer.get(peer)
        return worker, worker.held.get(ticket) if worker is not None else None

    def started(self, peer: bytes, started: Started, now: Now, _: Iterator[Any]) -> None:
        """Take note that a run has begun."""
        worker, task = self._held(peer, started.ticket)
        if worker is None or task is None:
            return
        worker.progress_at = now.boot
        if started.policy is not None and not task.definition:
            self._pool.found(task.name, started.policy)
        if task.phase == ASSIGNED:
            self.begin(worker, started.ticket, task, now, started.at)
        elif self._pool.limit_of(task) is not None:
            # Said again once function and arguments are loaded: now the body begins.
            self.limit(task, now)
            self._ledger.save(task)

    def begin(self, worker: Worker, ticket: int, task: Task, now: Now, at: float) -> None:
        """Note that a run has begun, and tell of it."""
        self._ledger.step(task, "start")
        self.limit(task, now)
        self._ledger.save(task)
        event = self._ledger.event(
            task, now, "run", worker=worker.name, pid=worker.pid, retries=task.retries, at=at
        )
        self._ledger.tell(task, event, ())
        definition = self._pool.of(task)
        if definition.policy.track_started and not is_ignored(task, definition.policy):
            task.state = states.STARTED
            event = self._ledger.event(
                task, now, "state", state=states.STARTED, worker=worker.name, pid=worker.pid,
                retries=task.retries, at=at,
            )  # fmt: skip
            self._ledger.tell(task, event, ())
        wish = worker.wishes.pop(ticket, None)
        if task.wish == "terminated":
            self._orders.terminate(worker, task, "SIGTERM" if wish is None else wish.signal)

    def limit(self, task: Task, now: Now) -> None:
        """Note when a run that begins now must be over, if it has a hard time limit."""
        limit = self._pool.limit_of(task)
        if limit is not None:
            task.limit_at = now.boot + limit
            self._agenda.add_boot(task.limit_at, "limit", task)

    def on_limit(self, task: Task, when: float, now: Now) -> None:
        """Have the worker killed, if it still runs what has run out of time."""
        worker, ticket = self._pool.workers.get(task.worker), task.ticket
        if worker is None or worker.held.get(ticket) is not task or task.limit_at != when:
            return
        if not worker.dead:
            verdict = (states.FAILURE, "TimeLimitExceeded", [self._pool.limit_of(task)])
            worker.verdicts.setdefault(ticket, verdict)  # it may have been revoked and not be gone
            self._staff.kill(worker, ticket, "SIGKILL")

    def report(self, peer: bytes, report: Report, now: Now, buffers: Iterator[Any]) -> None:
        """Take in a state that a run has given its task."""
        payload = take(buffers, report.frames)
        worker, task = self._held(peer, report.ticket)
        if worker is None or task is None:
            return
        if task.phase == ASSIGNED:
            self.begin(worker, report.ticket, task, now, report.at)
        self._flow.new_state(task, report, payload, now)

    def done(self, peer: bytes, outcomes: list[Done], now: Now, buffers: Iterator[Any]) -> None:
        """Take in the outcomes of runs."""
        worker = self._pool.by_peer[peer]
        self._note(worker, max([done.ticket for done in outcomes]), now)
        for done in outcomes:
            payload = take(buffers, done.frames) if done.frames else ()
            if done.ticket in worker.held:  # or it is an answer of an earlier attempt
                self.conclude(worker, done, payload, now)

    def conclude(self, worker: Worker, done: Done, payload: tuple[Any, ...], now: Now) -> None:
        """Take the outcome of a call that a worker holds."""
        task = worker.held[done.ticket]
        definition = self._pool.of(task)
        worker.drop(done.ticket, definition)
        if done.runtime:
            definition.learn(done.runtime)
        if done.state == "REQUEUE":
            self._ledger.tell_again(task, "rejected, put back into the queue", now)
            task.deaths = task.deaths or REQUEUED
            if not self._flow.is_unwanted(task, now):
                self._flow.make_ready(task)
                self._ledger.save(task)
            return
        self._flow.finish(task, done, payload, definition.policy, worker.name, now)

    def again(self, peer: bytes, again: Again, now: Now, buffers: Iterator[Any]) -> None:
        """Take in the wish of a run to be run again, or to have another one beside it."""
        payload = take(buffers, again.frames)
        worker = self._pool.by_peer[peer]
        if not again.over:
            call = again.call
            new = not self._ledger.is_known(call.id) and self._intake.has_all(call)
            if new and again.ticket in worker.held:
                client = worker.held[again.ticket].client
                self._intake.accept(client, call, payload[: call.frames], now)
            return
        self._note(worker, again.ticket, now)
        if again.ticket in worker.held:
            self.repeat(worker, again, payload, now)

    def repeat(self, worker: Worker, again: Again, payload: tuple[Any, ...], now: Now) -> None:
        """Take the wish of a call that a worker holds to be run again."""
        mine, reason = payload[: again.call.frames], payload[again.call.frames :]
        task = worker.held[again.ticket]
        worker.drop(again.ticket, self._pool.of(task))
        self._ledger.release(task)
        call = again.call
        task.retries, task.due, task.eta = call.retries, call.due, call.eta
        task.expires, task.priority, task.queue = call.expires, call.priority, call.queue
        task.options = call.options
        if task.state != states.SUCCESS:  # set by update_state, never overwritten
            task.state = states.RETRY
            event = self._ledger.event(
                task, now, "state", state=states.RETRY, body=again.reason, frames=len(reason),
                traceback=again.traceback, worker=worker.name, retries=call.retries, at=again.at,
                runtime=again.runtime, due=call.due, children=again.children,
                kept=is_kept(task, self._pool.of(task).policy, states.RETRY),
            )  # fmt: skip
            self._ledger.tell(task, event, reason)
        self._ledger.turn.calls[task.seq] = NewCall(call, task, now.wall, mine)
        self._ledger.keep(task, call, mine)
        if call.expires is not None:
            self._agenda.add_wall(call.expires, "expire", task)
        if self._flow.is_unwanted(task, now):
            return
        if not self._flow.delay(task, now):
            if worker.handling == again.ticket:
                self._ledger.step(task, "delay")
                worker.waits_for_it = task, task.retries
            else:
                self._flow.make_ready(task)
        task.worker, task.limit_at = "", None
        self._ledger.save(task)

    def _note(self, worker: Worker, ticket: int, now: Now) -> None:
        if not worker.noted:
            self._noted.append(worker)
        worker.noted = max(worker.noted, ticket)
        worker.progress_at = now.boot
        worker.joining = False  # a thread that it has left may still think so

    def confirm(self) -> None:
        """Say to workers which outcomes will be in the store with this turn."""
        ledger = self._ledger
        for worker in self._noted:
            ledger.clear(worker.name, min(worker.held, default=ledger.ticket + 1))
            ledger.turn.say(worker.peer, Send(Noted(worker.noted), lazy=True))
            worker.noted = 0
        self._noted.clear()

    def lacks(self, ticket: int, task: Task, now: Now) -> None:
        """Free the worker of a call that cannot be given to it, as the store has it no more."""
        for worker in self._pool.workers.values():
            if worker.handling == ticket:  # its task has ended, and was forgotten or has expired
                self._handlers.end(worker)
            elif ticket in worker.held:
                worker.drop(ticket, self._pool.of(task))
                text = "What it was called with is not in the store any more."
                self._flow.end_by_broker(task, states.FAILURE, "InvalidTaskError", [text], now)

    # ------------------------------------------------------------------------- calls that come back

    def returned(self, peer: bytes, returned: Returned, now: Now, _: Iterator[Any]) -> None:
        """Take back calls that a worker has not begun."""
        worker = self._pool.by_peer[peer]
        if returned.tickets:
            worker.recalled_at = None  # who had nothing to give is not asked again at once
        for ticket in sorted(returned.tickets, reverse=True):
            if ticket == worker.handling and worker.bereft is not None:
                worker.handling = 0
                self._handlers.bereft.append(worker.bereft)
                continue
            task = worker.held.get(ticket)
            if task is None or task.phase != ASSIGNED:
                continue  # what has begun cannot be given back
            worker.drop(ticket, self._pool.of(task))
            self._flow.give_back(task, now)

    def on_untold(self, subject: tuple[Worker, int], when: float, now: Now) -> None:
        """After a restart: the worker does not have this call; it got lost on the way there."""
        worker, ticket = subject
        task = worker.held.get(ticket)
        if task is not None and not worker.dead and task.phase == ASSIGNED:
            worker.drop(ticket, self._pool.of(task))
            self._flow.give_back(task, now)
