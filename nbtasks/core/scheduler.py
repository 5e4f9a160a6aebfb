"""Decide what happens next to every task. Knows no socket, file or clock.

Messages go in with the peer that sent them and the time; what follows from them gathers in `turn`:
what is to be saved, and what is to be said. The server writes all of a turn in one transaction and
only then sends: nobody is told what a crash could take back.

How things hang together:

* A **task** is one submitted call. Its phase moves by the table in `states`; the line that moves it
  is in `_step`. Open tasks are in memory, ended ones in the archive (the store) only.
* A **worker** gets calls with rising tickets and runs them in that order. `(worker, ticket)` is the
  token of an attempt: an answer with a ticket that the worker does not hold is late and changes
  nothing.
* **Credit**: an idle worker gets one call. More are given ahead only where calls of that function
  are known to be so short that the wire would otherwise keep the worker waiting; they are called
  back when another worker has nothing to do.
* A worker that **died** is reported by the supervisor with what its cell said: calls that had not
  begun go back to the front of the line as if nothing had happened, those that had are lost: they
  end, or run again with `acks_late`.
* **Handlers** run when the outcome of their call is saved: the task is over, but its worker is as
  busy as before, and has the time limit anew.
* **Events** are numbered per task and kept; whoever follows a task is told each of them.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from nbtasks.core import states
from nbtasks.core.agenda import Agenda
from nbtasks.core.deaths import describe_exit, why_given_up
from nbtasks.core.messages import (
    MOST_RETRIES,
    STRANGER,
    WORDS,
    Accepted,
    Again,
    Bye,
    Call,
    Define,
    Died,
    Done,
    Event,
    Fetch,
    Follow,
    Forget,
    Handling,
    Hasten,
    Hello,
    Joining,
    Kill,
    Lacking,
    Noted,
    Now,
    Output,
    Policy,
    Pool,
    Prepared,
    Recall,
    Redo,
    Refused,
    Replayed,
    Report,
    Returned,
    Revoke,
    Run,
    Scale,
    Started,
    Stop,
    Submit,
    Unfollow,
    Update,
    take,
)
from nbtasks.core.needs import Needs
from nbtasks.core.staff import GRACE, LOOK, Staff
from nbtasks.core.states import ASSIGNED, DONE, QUEUED, RUNNING, SCHEDULED, WAITING
from nbtasks.core.tasks import Archive, Row, Task, call_now, task_of
from nbtasks.core.turn import NewCall, Send, Turn
from nbtasks.core.workers import LOADING, STRANDED, Rate, Worker, Workers

#: How a run ends that took more than it may.
LIMITS = ("TimeLimitExceeded", "MemoryLimitExceeded")
#: Processes that may die under one task before it is given up.
MAX_DEATHS = 3
#: Seconds between the news of a death and its consequences, where something is still to come that
#: the dead had sent.
MOURNING = 0.02
#: Seconds in which a worker must report, to a new broker, what it was given by the old one.
ROLL_CALL = 1.0
#: Bytes of calls that are kept in memory until a worker wants them; the rest waits in the store.
KEPT_BYTES = 4 * 1024 * 1024
#: Ids that are remembered of calls that were revoked before they came.
REVOKED_EARLY = 10_000


# -------------------------------------------------------------------------------- the scheduler


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
        self.archive = archive
        self.tasks: dict[str, Task] = {}
        self.clients: dict[bytes, Hello] = {}
        self.supervisor: bytes = b""
        self.staff = Staff()
        #: The cluster is going: nothing is begun any more.
        self.stopping = False
        self.agenda = Agenda()
        self.needs = Needs()
        self.pool = Workers(archive, self.agenda)
        self.workers = self.pool.workers
        #: Ended by a limit with nobody left to run their handlers, and how they ended.
        self._bereft: list[tuple[Task, str]] = []
        #: Ended, and those who wait for it do not know yet.
        self._unsettled: deque[tuple[Task, str]] = deque()
        #: Ended since the last commit: the archive does not know it yet.
        self._just_ended: dict[str, Task] = {}
        #: Revoked before their calls came, oldest first.
        self._revoked = dict.fromkeys(archive.revoked())
        self._followers: dict[str, set[bytes]] = {}
        self._worker_of: dict[bytes, Worker] = {}
        #: To be confirmed at the end of the turn: batches, and whether somebody waits for it.
        self._accepted: dict[bytes, tuple[list[int], bool]] = {}
        self._noted: list[Worker] = []
        self._ticket = first_ticket
        self._seq = first_seq
        self._kept = 0
        #: One copy of each queue's name: a hundred thousand calls bring as many.
        self._queues: dict[str, str] = {}
        #: What has been decided since the last commit.
        self.turn = Turn()
        self._receivers: dict[type, Callable[..., None]] = {
            Bye: self._bye, Define: self._define, Submit: self._submit,
            Follow: self._follow, Unfollow: self._unfollow, Revoke: self._revoke,
            Hasten: self._hasten, Redo: self._redo, Forget: self._forget, Update: self._update,
            Scale: self._scale, Stop: self._stop, Started: self._started, Report: self._report,
            Output: self._output, Joining: self._join, Handling: self._handling, Done: self._done,
            Again: self._again, Returned: self._returned, Fetch: self._fetch,
            Prepared: self._prepared, Pool: self._pool, Died: self._died,
        }  # fmt: skip

    # ------------------------------------------------------------------------------- the doors

    def receive(
        self, peer: bytes, message: Any, now: Now, buffers: Iterator[Any] | None = None
    ) -> None:
        """Take one message in.

        `buffers` yields the payload frames of the batch that the message came in.
        """
        if buffers is None:
            buffers = iter(())
        kind, role = type(message), self.role_of(peer)
        if kind is Hello:
            self._hello(peer, message, now, buffers)
        elif role and kind in WORDS[role]:
            if role == "worker":
                self._worker_of[peer].heard += 1
            self._receivers[kind](peer, message, now, buffers)
        else:
            take(buffers, message.frames)
            why = f"A {role} may not say {kind.__name__}." if role else STRANGER
            self.turn.say(peer, Refused(why))

    def tick(self, now: Now) -> None:
        """Do what is due, give work to workers, and confirm; call it at the end of each turn."""
        for entry in self.agenda.due(now):
            getattr(self, f"_on_{entry.kind}")(entry.subject, entry.when, now)
        self._assign(now)
        for peer, (batches, urgent) in self._accepted.items():
            self.turn.say(peer, Send(Accepted(tuple(batches)), lazy=not urgent))
        self._accepted.clear()
        for worker in self._noted:
            self._clear(worker.name, min(worker.held, default=self._ticket + 1))
            self.turn.say(worker.peer, Send(Noted(worker.noted), lazy=True))
            worker.noted = 0
        self._noted.clear()

    def next_wakeup(self, now: Now) -> float | None:
        """Return the seconds until `tick` has something to do, or None."""
        wait = self.agenda.wait(now)
        if self.pool.stranded():
            wait = STRANDED if wait is None else min(wait, STRANDED)
        return wait

    def restore(self, rows: Iterable[Row], now: Now) -> None:
        """Take up what a former broker left open."""
        for row in rows:
            self._restore(row, now)

    def committed(self) -> Turn:
        """Begin the next turn, as the archive has this one; return it: its mail may go now."""
        self._just_ended.clear()
        turn, self.turn = self.turn, Turn()
        return turn

    def gone(self, peer: bytes, now: Now) -> None:
        """Take note that a client's process is no more."""
        self._bye(peer, Bye(), now, iter(()))

    # ----------------------------------------------------------------------------------- facts

    def phases(self) -> dict[str, int]:
        """Return how many open tasks are in each phase."""
        return dict(Counter(task.phase for task in self.tasks.values()))

    def _find(self, task_id: str) -> Row | None:
        """Return what is known of a task that is not open; of a forgotten one, nothing."""
        row = self._just_ended.get(task_id) or self.archive.find(task_id)
        return None if row is None or row.seq in self.turn.forgotten else row

    def role_of(self, peer: bytes) -> str:
        """Return as what a peer is known; nothing for a stranger and for a worker given up."""
        if peer in self.clients:
            return "client"
        if peer in self._worker_of:
            return "worker"
        return "supervisor" if peer == self.supervisor else ""

    # -------------------------------------------------------------------------- small mechanics

    def _step(self, task: Task, step: str) -> None:
        task.phase = states.next_phase(task.phase, step)

    def _save(self, task: Task) -> None:
        self.turn.tasks[task.seq] = task

    def _clear(self, worker: str, below: int) -> None:
        """Drop the notes of what a worker was given under tickets below this one."""
        self.turn.cleared[worker] = below

    def _tell(self, task: Task, event: Event, buffers: tuple[Any, ...]) -> None:
        """Save an event and tell it to everybody who follows the task."""
        turn = self.turn
        if event.kept:
            turn.events.append((task.seq, event, buffers))
        said = Send(event, buffers) if buffers else event
        if task.client in self.clients:
            turn.mail[task.client].append(said)
        for peer in self._followers.get(task.id, ()):
            if peer != task.client:
                turn.mail[peer].append(said)

    def _event(self, task: Task, now: Now, kind: str, **fields: Any) -> Event:
        task.n += 1
        return Event(
            id=task.id, n=task.n, at=fields.pop("at", 0.0) or now.wall, kind=kind, **fields
        )

    def _tell_again(self, task: Task, why: str, now: Now) -> None:
        """Tell that a task will run once more; a SUCCESS that it has stored itself stays."""
        if task.state != states.SUCCESS:
            event = self._event(task, now, "again", text=why, retries=task.retries)
            self._tell(task, event, ())

    def _make_ready(self, task: Task, front: bool = False) -> None:
        self._step(task, "ready")
        task.worker = ""  # the ticket stays: what was noted under it is void
        task.limit_at = None
        self.pool.ready.push(task, front)

    def _schedule_or_queue(self, task: Task, now: Now) -> None:
        """Let a task wait for its time, if that is still to come, and for a worker otherwise."""
        if not self._delay(task, now):
            self._make_ready(task)

    def _delay(self, task: Task, now: Now) -> bool:
        """Let a task wait for its time; return False when that has come."""
        if task.due is not None:
            if task.due <= now.boot:
                return False
            self.agenda.add_boot(task.due, "start", task)
        elif task.eta is not None and task.eta > now.wall:
            self.agenda.add_wall(task.eta, "start", task)
        else:
            return False
        self._step(task, "delay")
        return True

    def _keep(self, task: Task, call: Call, buffers: tuple[Any, ...]) -> None:
        """Keep a call in memory while there is room; otherwise it is read from the store later."""
        size = size_of(call, buffers)
        if self._kept + size <= KEPT_BYTES:
            self._kept += size
            task.kept = call, buffers

    def _release(self, task: Task) -> None:
        if task.kept is not None:
            self._kept -= size_of(*task.kept)
            task.kept = None

    # --------------------------------------------------------------------------- peers come, go

    def _hello(self, peer: bytes, hello: Hello, now: Now, _: Iterator[Any]) -> None:
        namesake = self.workers.get(hello.name) if hello.role == "worker" else None
        if self.role_of(peer) not in ("", hello.role) or (
            namesake is not None and namesake.peer not in (b"", peer)
        ):
            self.turn.say(peer, Refused(f"{hello.name} is known as somebody else."))
        elif hello.role == "client":
            self.clients[peer] = hello
        elif hello.role == "worker":
            self._hello_worker(peer, hello, now)
        else:
            self.supervisor = peer
            self.stopping = False
            # Whoever is not alive and not reported dead within a while died unseen.
            for worker in self.workers.values():
                if worker.name not in hello.workers and not worker.peer:
                    self.agenda.add_boot(now.boot + ROLL_CALL, "unseen", worker)

    def _hello_worker(self, peer: bytes, hello: Hello, now: Now) -> None:
        worker = self.workers.get(hello.name)
        if worker is None:
            worker = self.workers[hello.name] = Worker(hello.name)
        if worker.peer:
            self._worker_of.pop(worker.peer, None)
        worker.peer, worker.pid, worker.queues = peer, hello.pid, hello.queues
        worker.progress_at = now.boot
        worker.recalled_at = None
        self._mind_loading(worker, hello.prepares, now)  # it may not have heard what it was to load
        worker.joining = False  # it will say so if it still does
        self._end_handling(worker)  # and so here
        self._worker_of[peer] = worker
        if hello.found is not None:
            self.pool.found(*hello.found)
        strange = []
        for held in hello.held:
            task = worker.held.get(held.ticket)
            if task is None or task.id != held.id:
                strange.append(held.ticket)
            elif held.started and task.phase == ASSIGNED:
                self._begin(worker, held.ticket, task, now, 0.0)
        unwanted = [ticket for ticket, task in worker.held.items() if task.wish]
        if strange or unwanted:
            self.turn.say(peer, Recall((*strange, *unwanted)))
        for ticket in worker.held.keys() - {held.ticket for held in hello.held}:
            # Its outcome may be on the way; else it never arrived there.
            self.agenda.add_boot(now.boot + ROLL_CALL, "untold", (worker, ticket))
        if hello.name in self.staff.hired:  # it was on its way while others were told to go
            self._let_go_surplus()

    def _bye(self, peer: bytes, _: Bye, now: Now, __: Iterator[Any]) -> None:
        self.clients.pop(peer, None)
        if peer == self.supervisor:
            self.stopping = True
        worker = self._worker_of.pop(peer, None)
        if worker is not None:
            self._bury(worker, Died(worker.name, worker.pid, 0), now)
        for task_id, followers in list(self._followers.items()):
            followers.discard(peer)
            if not followers:
                del self._followers[task_id]

    # ------------------------------------------------------------------------------ submitting

    def _define(self, peer: bytes, define: Define, now: Now, buffers: Iterator[Any]) -> None:
        payload = take(buffers, define.frames)
        self.turn.definitions.append((define, payload))
        self.pool.define(define.digest, define.name, define.policy)

    def _submit(self, peer: bytes, submit: Submit, now: Now, buffers: Iterator[Any]) -> None:
        named = {call.definition for call in submit.calls} - {b""}
        lacking = [digest for digest in named if self.pool.definition(digest) is None]
        if lacking:
            # All or nothing: the client defines them and says it all again.
            for call in submit.calls:
                take(buffers, call.frames)
            self.turn.say(peer, Lacking(tuple(sorted(lacking))))
            return
        for call in submit.calls:
            payload = take(buffers, call.frames)
            if call.id in self.tasks:
                self._follow_open(peer, self.tasks[call.id], 0)
            elif submit.again and (row := self._find(call.id)) is not None:
                replayed = Replayed(row.id, True, row.n, row.phase)
                self.turn.say(peer, Send(replayed, replay=(row.seq, 0)))
            else:
                self._accept(peer, call, payload, now)
                continue
            if payload:
                self.turn.unwanted.extend(payload)
        batches, urgent = self._accepted.get(peer, ([], False))
        batches.append(submit.batch)
        self._accepted[peer] = (batches, urgent or submit.urgent)

    def _accept(self, peer: bytes, call: Call, buffers: tuple[Any, ...], now: Now) -> Task:
        self._seq += 1
        digest = call.definition
        if not digest:
            digest = self.archive.definition_named(call.name) or b""
            if digest:
                call = msgspec.structs.replace(call, definition=digest)
        definition = self.pool.definition(digest, call.name)
        assert definition is not None
        task = Task(
            self._seq, call.id, definition.digest, definition.name if digest else call.name, peer,
            call.priority, self._queues.setdefault(call.queue, call.queue), WAITING,
            states.PENDING, 0, call.retries, 0, call.due, call.eta, call.expires, "", 0, None, "",
            None, call.options,
        )  # fmt: skip
        self.tasks[call.id] = task
        self.turn.calls[task.seq] = NewCall(call, task, now.wall, buffers)
        if task.id in self._revoked:
            self._drop_early_revoke(task.id)
            self._end_by_broker(task, states.REVOKED, "TaskRevokedError", ["revoked"], now)
            return task
        self._keep(task, call, buffers)
        needs = call.options.needs if call.options is not None else ()
        if call.expires is not None:
            self.agenda.add_wall(call.expires, "expire", task)
        if needs and self._wait_for(task, needs, now):
            return task
        self._schedule_or_queue(task, now)
        return task

    def _wait_for(self, task: Task, needs: tuple[str, ...], now: Now) -> bool:
        """Let a task wait for what it needs; return False when it need not wait."""
        missing = []
        for need in needs:
            if need in self.tasks:
                missing.append(need)
                continue
            row = self._find(need)
            if row is None or row.state != states.SUCCESS:
                self._end_in_vain(task, need, row.state if row else "unknown", now)
                return True
        if not missing:
            return False
        self.needs.wait(task.id, missing)
        return True

    def _restore(self, row: Row, now: Now) -> None:
        task = task_of(row)
        self._seq = max(self._seq, task.seq)
        self.tasks[task.id] = task
        if task.expires is not None and task.phase in (WAITING, SCHEDULED, QUEUED, ASSIGNED):
            self.agenda.add_wall(task.expires, "expire", task)
        if task.phase == WAITING:
            saved = self.archive.call_of(task.seq)
            needs = saved[0].options.needs if saved and saved[0].options else ()
            if not self._wait_for(task, needs, now):
                self._schedule_or_queue(task, now)
        elif task.phase == SCHEDULED:
            self._schedule_or_queue(task, now)
        elif task.phase == QUEUED:
            self.pool.ready.push(task)
        else:
            worker = self.workers.get(task.worker)
            if worker is None:
                worker = self.workers[task.worker] = Worker(task.worker)
            worker.held[task.ticket] = task
            if task.phase == ASSIGNED:
                # It may have begun, and its worker be too busy to say so.
                self._limit(worker, task.ticket, task, now)
                return
            if task.limit_at is not None:
                self.agenda.add_boot(task.limit_at, "limit", (worker, task.ticket, task))
            if task.wish == "terminated":
                # Whoever was told to end it may not have heard, and who wanted it be gone.
                self._terminate(worker, task, "SIGTERM")

    # -------------------------------------------------------------------------------- following

    def _follow(self, peer: bytes, follow: Follow, now: Now, _: Iterator[Any]) -> None:
        for task_id, after in zip(follow.ids, follow.after, strict=True):
            task = self.tasks.get(task_id)
            if task is not None:
                self._follow_open(peer, task, after)
                continue
            row = self._find(task_id)
            if row is None:
                # It may still come, from another client.
                self._followers.setdefault(task_id, set()).add(peer)
                self.turn.say(peer, Send(Replayed(task_id, False, 0), free=True))
            else:
                replayed = Replayed(task_id, True, row.n, row.phase)
                saved = task_id not in self._just_ended
                self.turn.say(peer, Send(replayed, replay=(row.seq, after), free=saved))

    def _follow_open(self, peer: bytes, task: Task, after: int) -> None:
        if task.client != peer:
            self._followers.setdefault(task.id, set()).add(peer)
        replayed = Replayed(task.id, True, task.n, task.phase)
        news = (task.seq, after) if after < task.n else None
        self.turn.say(peer, Send(replayed, replay=news))

    def _unfollow(self, peer: bytes, unfollow: Unfollow, now: Now, _: Iterator[Any]) -> None:
        for task_id in unfollow.ids:
            followers = self._followers.get(task_id)
            if followers is not None:
                followers.discard(peer)
                if not followers:
                    del self._followers[task_id]

    # --------------------------------------------------------------------------- what users ask

    def _revoke(self, peer: bytes, revoke: Revoke, now: Now, _: Iterator[Any]) -> None:
        for task_id in revoke.ids:
            task = self.tasks.get(task_id)
            if task is None:
                if self._find(task_id) is None:
                    self._revoke_early(task_id)
            elif task.phase in (WAITING, SCHEDULED, QUEUED):
                self._end_by_broker(task, states.REVOKED, "TaskRevokedError", ["revoked"], now)
            else:
                self._note_wish(task, revoke)

    def _revoke_early(self, task_id: str) -> None:
        """Remember that a call is unwanted that has not come yet, and may never."""
        if task_id in self._revoked:
            return
        self._revoked[task_id] = None
        self.turn.revoked[task_id] = True
        if len(self._revoked) > REVOKED_EARLY:
            self._drop_early_revoke(next(iter(self._revoked)))

    def _drop_early_revoke(self, task_id: str) -> None:
        del self._revoked[task_id]
        self.turn.revoked[task_id] = False

    def _note_wish(self, task: Task, revoke: Revoke) -> None:
        """Note of a task that a worker has: it may end there, but will not begin again."""
        if task.wish != "terminated":
            task.wish = "terminated" if revoke.terminate else "revoked"
            self._save(task)
        worker = self.workers[task.worker]
        if task.phase == RUNNING and revoke.terminate:
            self._terminate(worker, task, revoke.signal)
            return
        if task.phase == ASSIGNED:
            worker.wishes[task.ticket] = revoke
        if worker.peer:
            # Only the worker can say whether it has begun. What has begun goes on, but may ask
            # whether it should (`nbtasks.cancelled()`).
            self.turn.say(worker.peer, Recall((task.ticket,)))

    def _terminate(self, worker: Worker, task: Task, signal: str) -> None:
        worker.verdicts.setdefault(
            task.ticket, (states.REVOKED, "TaskRevokedError", ["terminated"])
        )
        self._kill(worker, task.ticket, signal)

    def _kill(self, worker: Worker, ticket: int, signal: str) -> None:
        # Not even a full disk lets a run go on that must end: it may be what fills the disk.
        self.turn.say(self.supervisor, Send(Kill(worker.name, ticket, signal), free=True))

    def purge(self, now: Now) -> int:
        """Revoke all that has not been given to a worker, for good; return how many that were."""
        waiting = [t for t in self.tasks.values() if t.phase in (WAITING, SCHEDULED, QUEUED)]
        for task in waiting:
            if task.phase != DONE:
                task.wish = "purged"
                self._end_by_broker(task, states.REVOKED, "TaskRevokedError", ["purged"], now)
                self.turn.emptied.add(task.seq)
        return len(waiting)

    def _hasten(self, peer: bytes, hasten: Hasten, now: Now, _: Iterator[Any]) -> None:
        for task_id in hasten.ids:
            task = self.tasks.get(task_id)
            if task is not None and task.phase == SCHEDULED:
                task.due = task.eta = None
                self._make_ready(task, front=True)
                self._save(task)

    def _redo(self, peer: bytes, redo: Redo, now: Now, _: Iterator[Any]) -> None:
        for task_id in redo.ids:
            row = None if task_id in self.tasks else self._find(task_id)
            if row is None or row.state not in states.PROPAGATE_STATES or row.wish == "purged":
                continue
            task = self.tasks[task_id] = task_of(row)
            self._just_ended.pop(task_id, None)
            task.state, task.ended_at, task.client = states.PENDING, None, peer
            task.due = task.eta = task.expires = None
            task.deaths, task.wish = 0, ""
            task.ticket = min(task.ticket, self._ticket)  # it may be from before a reboot
            # Whoever has seen it end counts on that: nobody follows what is over.
            self._followers.setdefault(task_id, set()).update(self.clients)
            self._tell_again(task, "run again by hand", now)
            self._make_ready(task)
            self._save(task)

    def _forget(self, peer: bytes, forget: Forget, now: Now, _: Iterator[Any]) -> None:
        for task_id in forget.ids:
            row = None if task_id in self.tasks else self._find(task_id)
            if row is not None:
                self.turn.forgotten.add(row.seq)

    def _update(self, peer: bytes, update: Update, now: Now, buffers: Iterator[Any]) -> None:
        payload = take(buffers, update.frames)
        task = self.tasks.get(update.id) or self._ended(update.id)
        if task is not None:
            self._new_state(task, update, payload, now)

    def _scale(self, peer: bytes, scale: Scale, now: Now, _: Iterator[Any]) -> None:
        self._want(scale.workers, self.staff.extra)

    def _want(self, workers: int, extra: int) -> None:
        """Have the supervisor start workers that are lacking, and let go those too many."""
        self.staff.wanted, self.staff.extra = workers, extra
        self.turn.say(self.supervisor, Scale(workers, extra))
        self._let_go_surplus()

    def _let_go_surplus(self) -> None:
        """Let workers go while there are more than shall be: who holds least, who came last."""
        present = self.pool.serving()[::-1]
        present.sort(key=lambda worker: len(worker.held))
        surplus = max(0, len(present) - self.staff.whole)
        # Whoever is the only one left for some queues stays longest: nobody else would serve them.
        last = {worker.queues: worker for worker in present}
        for worker in sorted(present, key=lambda worker: last[worker.queues] is worker)[:surplus]:
            worker.leaving = True
            self.turn.say(worker.peer, Stop())

    def _stop(self, peer: bytes, stop: Stop, now: Now, _: Iterator[Any]) -> None:
        self.stopping = True
        for worker in self.workers.values():
            if worker.peer and not worker.dead:
                # To end what it is running, give back what it has not begun, and go.
                self.turn.say(worker.peer, Stop())
        self.turn.say(self.supervisor, stop)

    def _pool(self, peer: bytes, pool: Pool, now: Now, _: Iterator[Any]) -> None:
        self.staff.wanted, self.staff.extra = pool.wanted, pool.extra
        self.staff.hired = frozenset(pool.workers)
        if pool.extra:
            self._mind_joins(now, 0.0)

    # ------------------------------------------------------------------------------ what is due

    def _on_start(self, task: Task, when: float, now: Now) -> None:
        waits_for = task.due if task.due is not None else task.eta
        if task.phase == SCHEDULED and waits_for == when and self.tasks.get(task.id) is task:
            # Not saved: whoever restores it sees as well that its time has come.
            self._make_ready(task)

    def _on_expire(self, task: Task, when: float, now: Now) -> None:
        if self.tasks.get(task.id) is not task or task.expires != when:
            return
        if task.phase in (WAITING, SCHEDULED, QUEUED):
            self._end_by_broker(task, states.REVOKED, "TaskRevokedError", ["expired"], now)

    def _on_slot(self, rate: Rate, when: float, now: Now) -> None:
        rate.timer = False
        self.pool.release(rate)

    def _on_limit(self, subject: tuple[Worker, int, Task], when: float, now: Now) -> None:
        """Have the worker killed, if it still runs what has run out of time."""
        worker, ticket, task = subject
        if worker.held.get(ticket) is task and task.limit_at == when and not worker.dead:
            limit = self._limit_of(task)
            worker.verdicts[ticket] = (states.FAILURE, "TimeLimitExceeded", [limit])
            self._kill(worker, ticket, "SIGKILL")

    def _on_overrun(self, subject: tuple[Worker, int, str, float], when: float, now: Now) -> None:
        """Have the worker killed, if it still runs the handlers that have run out of time."""
        worker, ticket, task_id, limit = subject
        if worker.handling == ticket and not worker.dead:
            self._kill(worker, ticket, "SIGKILL")
            text = (
                f"ERROR nbtasks.task: The handlers of this task took longer than its time limit of "
                f"{limit:g} s, so their process was killed. State and result are stored and stay "
                f"as they are. Do less in the handlers, or give the task a longer time_limit.\n"
            )
            self._tell_output(task_id, "log", text, now)

    def _on_loading(self, subject: tuple[Worker, bytes], when: float, now: Now) -> None:
        worker, digest = subject
        if worker.prepares == digest and not worker.dead:
            worker.leaving = True  # it gets no call that would die with it
            self._kill(worker, 0, "SIGKILL")

    def _on_joins(self, _: None, when: float, now: Now) -> None:
        """See to it that as many tasks run as there shall be workers, whatever others wait for."""
        staff = self.staff
        staff.looks = False
        extra = staff.extra_now(self.pool, now)
        if extra != staff.extra:
            self._want(staff.wanted, extra)
        if extra or self.pool.joining():
            self._mind_joins(now, LOOK)

    def _mind_joins(self, now: Now, wait: float) -> None:
        if not self.staff.looks and not self.stopping:
            self.staff.looks = True
            self.agenda.add_boot(now.boot + wait, "joins", None)

    def _on_died(self, subject: tuple[Worker, Died], when: float, now: Now) -> None:
        self._bury(*subject, now)

    def _on_unseen(self, worker: Worker, when: float, now: Now) -> None:
        if not worker.peer and self.workers.get(worker.name) is worker and not worker.dead:
            self._bury(worker, Died(worker.name, worker.pid, 0, min(worker.held, default=0)), now)

    def _on_untold(self, subject: tuple[Worker, int], when: float, now: Now) -> None:
        """After a restart: the worker does not have this call; it got lost on the way there."""
        worker, ticket = subject
        task = worker.held.get(ticket)
        if task is not None and not worker.dead and task.phase == ASSIGNED:
            worker.drop(ticket, self.pool.of(task))
            self._give_back(task, now)

    # --------------------------------------------------------------------------- giving out work

    def _assign(self, now: Now) -> None:
        """Give what is ready to the workers that have room for it."""
        if self.stopping:
            return
        if self._bereft:
            self._give_bereft(now)
        for worker, task in self.pool.choose(now, self.staff.room(self.pool)):
            self._give(worker, task, now)
        for worker in self.pool.to_call_back(now):
            worker.recalled_at = now.boot
            self.turn.say(worker.peer, Recall())
        for worker, function in self.pool.to_prepare():
            # A full disk is no reason not to load it: its code is saved, as a call of it has ended.
            self._send_definition(worker.peer, function.digest, free=True)
            self._mind_loading(worker, function.digest, now)

    def _mind_loading(self, worker: Worker, digest: bytes, now: Now) -> None:
        worker.prepares = digest
        if digest:
            self.agenda.add_boot(now.boot + LOADING, "loading", (worker, digest))

    def _give(self, worker: Worker, task: Task, now: Now) -> None:
        self._ticket += 1
        self._step(task, "assign")
        task.worker, task.ticket = worker.name, self._ticket
        worker.hold(self._ticket, task, self.pool.of(task), now)
        self.turn.given.setdefault(worker.name, []).append((self._ticket, task.seq))
        sender = self.clients.get(task.client)
        call, buffers = task.kept or (None, ())
        if call is not None:
            call = call_now(call, task)
        run = Run(self._ticket, call, task.deaths, sender.name if sender else "")
        if call is None:
            self.turn.say_absent(worker.peer, run, task)
        else:
            self.turn.say(worker.peer, Send(run, buffers) if buffers else run)
        self._release(task)

    def _give_bereft(self, now: Now) -> None:
        """Have idle workers run the handlers of what a limit has ended."""
        idle = self.pool.idle()
        for bereft in list(self._bereft):
            task, verdict = bereft
            worker = next((w for w in idle if not w.queues or task.queue in w.queues), None)
            if worker is not None:
                self._bereft.remove(bereft)
                self._ticket += 1
                worker.handling, worker.bereft = self._ticket, bereft
                worker.progress_at = now.boot
                run = Run(self._ticket, None, task.deaths, verdict=verdict)
                self.turn.say_absent(worker.peer, run, task)

    # ------------------------------------------------------------------------ what workers report

    def _held(self, peer: bytes, ticket: int) -> tuple[Worker | None, Task | None]:
        worker = self._worker_of.get(peer)
        return worker, worker.held.get(ticket) if worker is not None else None

    def _note(self, worker: Worker, ticket: int, now: Now) -> None:
        if not worker.noted:
            self._noted.append(worker)
        worker.noted = max(worker.noted, ticket)
        worker.progress_at = now.boot
        worker.joining = False  # a thread that it has left may still think so

    def _begin(self, worker: Worker, ticket: int, task: Task, now: Now, at: float) -> None:
        self._step(task, "start")
        self._limit(worker, ticket, task, now)
        self._save(task)
        event = self._event(
            task, now, "run", worker=worker.name, pid=worker.pid, retries=task.retries, at=at
        )
        self._tell(task, event, ())
        definition = self.pool.of(task)
        if definition.policy.track_started and not self._is_ignored(task, definition.policy):
            task.state = states.STARTED
            event = self._event(
                task, now, "state", state=states.STARTED, worker=worker.name, pid=worker.pid,
                retries=task.retries, at=at,
            )  # fmt: skip
            self._tell(task, event, ())
        wish = worker.wishes.pop(ticket, None)
        if task.wish == "terminated":
            self._terminate(worker, task, "SIGTERM" if wish is None else wish.signal)

    def _limit(self, worker: Worker, ticket: int, task: Task, now: Now) -> None:
        """Note when a run that begins now must be over, if it has a hard time limit."""
        limit = self._limit_of(task)
        if limit is not None:
            task.limit_at = now.boot + limit
            self.agenda.add_boot(task.limit_at, "limit", (worker, ticket, task))

    def _limit_of(self, task: Row, what: str = "time_limit") -> Any:
        """Return a limit of a run (seconds, bytes), or None: what the call says wins."""
        limit = None if task.options is None else getattr(task.options, what)
        return getattr(self.pool.of(task).policy, what) if limit is None else limit

    def _started(self, peer: bytes, started: Started, now: Now, _: Iterator[Any]) -> None:
        worker, task = self._held(peer, started.ticket)
        if worker is None or task is None:
            return
        worker.progress_at = now.boot
        if started.policy is not None and not task.definition:
            self.pool.found(task.name, started.policy)
        if task.phase == ASSIGNED:
            self._begin(worker, started.ticket, task, now, started.at)
        elif self._limit_of(task) is not None:
            # Said again once function and arguments are loaded: now the body begins.
            self._limit(worker, started.ticket, task, now)
            self._save(task)

    def _report(self, peer: bytes, report: Report, now: Now, buffers: Iterator[Any]) -> None:
        payload = take(buffers, report.frames)
        worker, task = self._held(peer, report.ticket)
        if worker is None or task is None:
            return
        if task.phase == ASSIGNED:
            self._begin(worker, report.ticket, task, now, report.at)
        self._new_state(task, report, payload, now)

    def _new_state(
        self, task: Task, said: Report | Update, buffers: tuple[Any, ...], now: Now
    ) -> None:
        if task.state == states.SUCCESS:
            return  # never overwritten by anything
        task.state = said.state
        task.n += 1
        at = said.at if type(said) is Report else 0.0
        event = Event(
            task.id, task.n, at or now.wall, "state", said.state, said.body, said.frames, "",
            said.traceback, task.worker, 0, task.retries, 0.0, None, (),
            said.state in states.READY_STATES,
        )  # fmt: skip
        self._tell(task, event, buffers)
        self._save(task)

    def _output(self, peer: bytes, output: Output, now: Now, _: Iterator[Any]) -> None:
        self._tell_output(output.id, output.stream, output.text, now, output.at)

    def _tell_output(self, task_id: str, stream: str, text: str, now: Now, at: float = 0.0) -> None:
        task = self.tasks.get(task_id) or self._ended(task_id)
        if task is not None:
            event = self._event(task, now, "output", state=stream, text=text, at=at)
            self._tell(task, event, ())
            self._save(task)

    def _ended(self, task_id: str) -> Task | None:
        """Return a task that is over, for what may still come: the output of its handlers."""
        row = self._find(task_id)
        if row is None or isinstance(row, Task):
            return row
        # Kept until the commit: what comes next in this turn must find the number of this event.
        task = self._just_ended[task_id] = task_of(row)
        return task

    def _join(self, peer: bytes, said: Joining, now: Now, _: Iterator[Any]) -> None:
        """Take note that a worker's run waits for other tasks, or does so no more."""
        worker = self._worker_of[peer]
        worker.joining = not said.over
        worker.progress_at = now.boot
        if worker.joining:
            if worker.sits_on_calls():
                self.turn.say(peer, Recall())
            self._mind_joins(now, GRACE)

    def _handling(self, peer: bytes, said: Handling, now: Now, _: Iterator[Any]) -> None:
        """Take note that a worker runs the handlers of a call, or has run them."""
        worker = self._worker_of[peer]
        worker.progress_at = now.boot
        if said.over:
            worker.joining = False
            self._end_handling(worker)
            return
        worker.handling = said.ticket
        task = worker.held.get(said.ticket) or self._find(said.id)
        limit = None if task is None else self._limit_of(task)
        if limit is not None:
            self.agenda.add_boot(now.boot + limit, "overrun", (worker, said.ticket, said.id, limit))

    def _end_handling(self, worker: Worker) -> None:
        """Let the next attempt begin that has waited for the handlers of the former one."""
        worker.handling = 0
        waits, worker.waits_for_it = worker.waits_for_it, None
        if waits is not None:
            task, retries = waits
            if task.phase == SCHEDULED and task.retries == retries:
                self._make_ready(task)

    def _done(self, peer: bytes, done: Done, now: Now, buffers: Iterator[Any]) -> None:
        payload = take(buffers, done.frames)
        worker = self._worker_of[peer]
        self._note(worker, done.ticket, now)
        if done.ticket in worker.held:  # or it is an answer of an earlier attempt
            self._conclude(worker, done, payload, now)

    def _conclude(self, worker: Worker, done: Done, payload: tuple[Any, ...], now: Now) -> None:
        """Take the outcome of a call that a worker holds."""
        task = worker.held[done.ticket]
        definition = self.pool.of(task)
        worker.drop(done.ticket, definition)
        worker.wishes.pop(done.ticket, None)
        if done.runtime:
            definition.learn(done.runtime)
        if done.state == "REQUEUE":
            self._tell_again(task, "rejected, put back into the queue", now)
            task.deaths = max(task.deaths, 1)  # what the worker sees as `redelivered`
            if not self._is_unwanted(task, now):
                self._make_ready(task)
                self._save(task)
            return
        self._finish(task, done, payload, definition.policy, worker.name, now)

    def _finish(
        self,
        task: Task,
        done: Done,
        buffers: tuple[Any, ...],
        policy: Policy,
        worker: str,
        now: Now,
    ) -> None:
        """End a task as its worker says."""
        state, kind = done.state, "state"
        if state == states.IGNORED:
            unset = (states.PENDING, states.STARTED, states.RETRY, states.RECEIVED)
            if task.state not in unset:
                state, kind = task.state, "end"
        if task.state == states.SUCCESS:
            state, kind = states.SUCCESS, "end"  # set by update_state, never overwritten
        task.n += 1
        event = Event(
            task.id, task.n, done.at or now.wall, kind, "" if kind == "end" else state, done.body,
            done.frames, "", done.traceback, worker, 0, task.retries, done.runtime, None,
            done.children, True, self._is_kept(task, policy, state),
        )  # fmt: skip
        self._end(task, state, event, buffers, now)

    def _is_kept(self, task: Task, policy: Policy, state: str) -> bool:
        """Whether a state that a run leads to is kept: not of an ignored one, unless an error."""
        kept = (states.FAILURE, states.RETRY) if policy.store_errors_even_if_ignored else ()
        return state in kept or not self._is_ignored(task, policy)

    def _is_ignored(self, task: Task, policy: Policy) -> bool:
        """Whether nobody wants the task's result: what the call says wins."""
        wish = None if task.options is None else task.options.ignore_result
        return policy.ignore_result if wish is None else wish

    def _end_by_broker(
        self, task: Task, state: str, error: str, args: list[Any], now: Now, traceback: str = ""
    ) -> None:
        """End a task with one of our own exceptions, by name: the broker never pickles."""
        if task.state == states.SUCCESS:  # set by update_state, never overwritten
            event = self._event(task, now, "end", worker=task.worker, final=True)
            self._end(task, states.SUCCESS, event, (), now)
            return
        # What was revoked, or came too late, has no outcome that could be ignored.
        kept = state != states.FAILURE or self._is_kept(task, self.pool.of(task).policy, state)
        event = self._event(
            task, now, "state", state=state, text=json.dumps([error, args]), traceback=traceback,
            worker=task.worker, retries=task.retries, final=True, kept=kept,
        )  # fmt: skip
        self._end(task, state, event, (), now)

    def _end(
        self, task: Task, state: str, event: Event, buffers: tuple[Any, ...], now: Now
    ) -> None:
        """End a task: the only way out."""
        self._step(task, "end")
        task.state = state
        task.ended_at = now.wall
        self._release(task)
        del self.tasks[task.id]
        self._just_ended[task.id] = task
        self._tell(task, event, buffers)
        self._save(task)
        self._followers.pop(task.id, None)
        if len(self.needs):
            self._settle(task, state, now)

    def _settle(self, ended: Task, state: str, now: Now) -> None:
        """Let those go on that waited for this task, or end them with it.

        Those have others waiting for them, and so on: in a loop, as a chain may be longer than
        Python's stack is high.
        """
        self._unsettled.append((ended, state))
        if len(self._unsettled) > 1:
            return  # whoever ended the first of them is at it
        while self._unsettled:
            self._settle_one(*self._unsettled[0], now)
            self._unsettled.popleft()

    def _settle_one(self, ended: Task, state: str, now: Now) -> None:
        self.needs.drop(ended.id)
        if state == states.SUCCESS:
            for task_id in self.needs.succeed(ended.id):
                task = self.tasks.get(task_id)
                if task is not None and task.phase == WAITING:
                    self._schedule_or_queue(task, now)
                    self._save(task)
        else:
            for task_id in self.needs.fail(ended.id):
                task = self.tasks.get(task_id)
                if task is not None and task.phase == WAITING:
                    self._end_in_vain(task, ended.id, state, now)

    def _end_in_vain(self, task: Task, need: str, state: str, now: Now) -> None:
        text = f"Dependency {need} ended {state}"
        self._end_by_broker(task, states.FAILURE, "ChordError", [text], now)

    def _again(self, peer: bytes, again: Again, now: Now, buffers: Iterator[Any]) -> None:
        payload = take(buffers, again.frames)
        worker = self._worker_of[peer]
        if not again.over:
            call = again.call
            if again.ticket in worker.held and not self._is_known(call.id) and self._has_all(call):
                client = worker.held[again.ticket].client
                self._accept(client, call, payload[: call.frames], now)
            return
        self._note(worker, again.ticket, now)
        if again.ticket in worker.held:
            self._repeat(worker, again, payload, now)

    def _is_known(self, task_id: str) -> bool:
        return task_id in self.tasks or self._find(task_id) is not None

    def _has_all(self, call: Call) -> bool:
        """Whether the function of a call, if it says which, has been defined."""
        return not call.definition or self.pool.definition(call.definition) is not None

    def _repeat(self, worker: Worker, again: Again, payload: tuple[Any, ...], now: Now) -> None:
        """Take the wish of a call that a worker holds to be run again."""
        mine, reason = payload[: again.call.frames], payload[again.call.frames :]
        task = worker.held[again.ticket]
        worker.drop(again.ticket, self.pool.of(task))
        self._release(task)
        call = again.call
        task.retries, task.due, task.eta = call.retries, call.due, call.eta
        task.expires, task.priority, task.queue = call.expires, call.priority, call.queue
        task.options = call.options
        if task.state != states.SUCCESS:  # set by update_state, never overwritten
            task.state = states.RETRY
            event = self._event(
                task, now, "state", state=states.RETRY, body=again.reason, frames=len(reason),
                traceback=again.traceback, worker=worker.name, retries=call.retries, at=again.at,
                runtime=again.runtime, due=call.due, children=again.children,
                kept=self._is_kept(task, self.pool.of(task).policy, states.RETRY),
            )  # fmt: skip
            self._tell(task, event, reason)
        self.turn.calls[task.seq] = NewCall(call, task, now.wall, mine)
        self._keep(task, call, mine)
        if call.expires is not None:
            self.agenda.add_wall(call.expires, "expire", task)
        if self._is_unwanted(task, now):
            return
        if not self._delay(task, now):
            if worker.handling == again.ticket:
                self._step(task, "delay")
                worker.waits_for_it = task, task.retries
            else:
                self._make_ready(task)
        task.worker, task.limit_at = "", None
        self._save(task)

    def _returned(self, peer: bytes, returned: Returned, now: Now, _: Iterator[Any]) -> None:
        worker = self._worker_of[peer]
        if returned.tickets:
            worker.recalled_at = None  # who had nothing to give is not asked again at once
        for ticket in sorted(returned.tickets, reverse=True):
            if ticket == worker.handling and worker.bereft is not None:
                worker.handling = 0
                self._bereft.append(worker.bereft)
                continue
            task = worker.held.get(ticket)
            if task is None or task.phase != ASSIGNED:
                continue  # what has begun cannot be given back
            worker.drop(ticket, self.pool.of(task))
            worker.wishes.pop(ticket, None)
            self._give_back(task, now)

    def _give_back(self, task: Task, now: Now) -> None:
        """Put a call that had not begun back to the front, or end it if its time is over."""
        if not self._is_unwanted(task, now):
            self._make_ready(task, front=True)
            self._save(task)

    def _is_unwanted(self, task: Task, now: Now) -> bool:
        """End a task that must not begin (again), revoked or too late; return whether it was."""
        if task.wish:
            # What never began was merely revoked, however much more was wanted.
            why = "revoked" if task.phase == ASSIGNED else task.wish
        elif task.expires is not None and task.expires <= now.wall:
            why = "expired"
        else:
            return False
        self._end_by_broker(task, states.REVOKED, "TaskRevokedError", [why], now)
        return True

    def _fetch(self, peer: bytes, fetch: Fetch, now: Now, _: Iterator[Any]) -> None:
        if self.pool.definition(fetch.digest) is None:
            self.turn.say(peer, Lacking((fetch.digest,)))
        else:
            self._send_definition(peer, fetch.digest)

    def _prepared(self, peer: bytes, prepared: Prepared, now: Now, _: Iterator[Any]) -> None:
        worker = self._worker_of.get(peer)
        if worker is not None and worker.prepares == prepared.digest:
            worker.prepares = b""

    def _send_definition(self, peer: bytes, digest: bytes, free: bool = False) -> None:
        placeholder = Define(digest, "", Policy(), b"")
        self.turn.say(peer, Send(placeholder, fetch=digest, free=free))

    # ------------------------------------------------------------------------------------ deaths

    def _died(self, peer: bytes, died: Died, now: Now, _: Iterator[Any]) -> None:
        worker = self.workers.get(died.name)
        if worker is None:
            # Buried by a former broker, which may not have lived to save all of it.
            self._clear(died.name, self._ticket + 1)
        elif not worker.dead:
            worker.dead = True
            if worker.last is not None and worker.prepares:
                # That may have been its death, and would be that of one newcomer after another.
                worker.last.doubt()
            complete = died.sent is not None and worker.heard >= died.sent
            wait = 0.0 if complete else MOURNING
            self.agenda.add_boot(now.boot + wait, "died", (worker, died))

    def _bury(self, worker: Worker, died: Died, now: Now) -> None:
        """Decide on everything that a dead worker held."""
        worker.dead = True
        self._end_handling(worker)
        self._worker_of.pop(worker.peer, None)
        self.pool.dismiss(worker)
        for outcome in died.outcomes:
            if outcome.ticket not in worker.held:
                continue
            if isinstance(outcome, Done):
                self._conclude(worker, outcome, (), now)
            else:
                self._repeat(worker, outcome, (), now)
        for ticket in sorted(worker.held, reverse=True):
            task = worker.held.pop(ticket)
            verdict = worker.verdicts.pop(ticket, None)
            if verdict is not None and verdict[1] in LIMITS and not died.code:
                verdict = None  # all were killed, and its time has passed since then
            if died.taken and ticket == died.started:
                limit = self._limit_of(task, "memory_limit") or 0
                verdict = (states.FAILURE, "MemoryLimitExceeded", [limit, died.taken])
            if task.phase == RUNNING or ticket <= died.started:
                self._lose(task, verdict, died, now)
            else:
                self._give_back(task, now)
        self._clear(worker.name, self._ticket + 1)

    def _lose(
        self, task: Task, verdict: tuple[str, str, list[Any]] | None, died: Died, now: Now
    ) -> None:
        """Decide on a task whose process died while it was running."""
        definition = self.pool.of(task)
        policy = definition.policy
        if verdict is None and task.wish == "terminated":
            # A former broker gave the order.
            verdict = (states.REVOKED, "TaskRevokedError", ["terminated"])
        task.deaths += 1
        if verdict is not None:
            state, error, args = verdict
            again = error in LIMITS and policy.acks_late and not policy.acks_on_timeout
            if again and task.deaths < MAX_DEATHS:
                self._run_again(task, f"killed ({error}), put back into the queue", now)
                return
            self._end_by_broker(task, state, error, args, now)
            if error in LIMITS and policy.handlers:
                self._bereft.append((task, json.dumps([error, args])))
            return
        how = describe_exit(died)
        if policy.retry_on_worker_lost:
            if policy.max_retries is None or task.retries < policy.max_retries:
                task.retries = min(task.retries + 1, MOST_RETRIES)
                self._run_again(task, how, now)
                return
        elif policy.acks_late and policy.reject_on_worker_lost and task.deaths < MAX_DEATHS:
            self._run_again(task, how, now)
            return
        text = f"The worker process {how} while it ran this task. {why_given_up(task, policy)}"
        if died.words:
            text += f" The last that it printed:\n{died.words}"
        self._end_by_broker(task, states.FAILURE, "WorkerLostError", [text], now)

    def _run_again(self, task: Task, why: str, now: Now) -> None:
        self._tell_again(task, f"worker {why}", now)
        if self._is_unwanted(task, now):
            return
        self._make_ready(task, front=True)
        self._save(task)


def size_of(call: Call, buffers: tuple[Any, ...]) -> int:
    """Return about how many bytes of memory a call takes."""
    size = len(call.body) + 400
    return size + sum(map(len, buffers)) if buffers else size
