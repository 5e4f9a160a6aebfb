"""The real scheduler with an invented clock and invented workers.

For tests, for teaching, and for questions of capacity: what happens, and when, if ... Nothing here
sleeps, and an hour passes in a moment.

The broker may die at any moment, and takes with it whatever was on its way. The invented peers do
what the real ones do then: they say Hello to the next broker, and say again what nobody has
confirmed.

>>> world = Simulation(workers=2)
>>> ids = [world.submit(seconds=10) for _ in range(4)]
>>> world.run()
>>> world.now.boot, [world.state(task_id) for task_id in ids]
(20.0, ['SUCCESS', 'SUCCESS', 'SUCCESS', 'SUCCESS'])
"""

from __future__ import annotations

from collections import deque
from itertools import groupby
from typing import Any, NamedTuple

import msgspec

from nbtasks.core import states
from nbtasks.core.messages import (
    Accepted,
    Again,
    Call,
    Define,
    Died,
    Done,
    Event,
    Hasten,
    Held,
    Hello,
    Kill,
    Noted,
    Now,
    Options,
    Policy,
    Prepared,
    Recall,
    Returned,
    Revoke,
    Run,
    Scale,
    Started,
    Submit,
)
from nbtasks.core.scheduler import Scheduler
from nbtasks.core.tasks import Task, task_of
from nbtasks.core.turn import Send, Turn

CLIENT = b"client"
#: Of the process of all clients: no worker's.
NOTEBOOK_PID = 10**6
SUPERVISOR = b"supervisor"
#: Seconds in which an order is given again to a new broker.
UNHEARD = 2.0
#: The instant at which a simulation begins.
DAWN = Now(wall=1_000_000.0, boot=0.0)


class MemoryStore:
    """A store that keeps everything in dictionaries: what the broker's store must amount to."""

    def __init__(self) -> None:
        self.rows: dict[int, Task] = {}
        self.seqs: dict[str, int] = {}
        self.calls: dict[int, Call] = {}
        self.events: dict[int, list[Event]] = {}
        self.definitions: dict[bytes, Define] = {}
        #: (worker, ticket) → seq of what was given to it.
        self.given: dict[tuple[str, int], int] = {}
        self.unwanted: dict[str, None] = {}

    def commit(self, turn: Turn) -> None:
        """Take in what one turn saves."""
        new = {seq: saved.task for seq, saved in turn.calls.items()}
        for seq, task in {**new, **turn.tasks}.items():
            self.rows[seq] = task_of(task)
            self.seqs[task.id] = seq
        for seq, saved in turn.calls.items():
            self.calls[seq] = saved.call
        for seq, event, _ in turn.events:
            self.events.setdefault(seq, []).append(event)
        for define, _ in turn.definitions:
            self.definitions[define.digest] = define
        for name, pairs in turn.given.items():
            self.given |= {(name, ticket): seq for ticket, seq in pairs}
        for name, below in turn.cleared.items():
            self.given = {
                (worker, ticket): seq
                for (worker, ticket), seq in self.given.items()
                if worker != name or ticket >= below
            }
        for seq in turn.forgotten:
            del self.seqs[self.rows.pop(seq).id]
        for task_id, kept in turn.revoked.items():
            self.unwanted.pop(task_id, None)
            if kept:
                self.unwanted[task_id] = None

    def open_tasks(self) -> list[Task]:
        rows = {seq: task_of(row) for seq, row in self.rows.items() if row.phase != states.DONE}
        for (worker, ticket), seq in self.given.items():
            row = rows.get(seq)
            if row is not None and ticket > row.ticket:
                row.phase, row.worker, row.ticket = states.ASSIGNED, worker, ticket
        return list(rows.values())

    def find(self, task_id: str) -> Task | None:
        seq = self.seqs.get(task_id)
        return None if seq is None else self.rows[seq]

    def policy_of(self, digest: bytes) -> tuple[str, Policy] | None:
        define = self.definitions.get(digest)
        return None if define is None else (define.name, define.policy)

    def definition_named(self, name: str) -> bytes | None:
        named = [d.digest for d in self.definitions.values() if d.name == name]
        return named[-1] if named else None

    def revoked(self) -> list[str]:
        return list(self.unwanted)


class Plan(NamedTuple):
    """How an invented function behaves: how long a run takes, and how each attempt ends."""

    seconds: float
    #: ok, fail, die, requeue or `retry:SECONDS`, one an attempt; the last one goes for all later
    #: attempts.
    ends: tuple[str, ...]


class InventedWorker:
    """A worker that runs what it is given, first in first out."""

    def __init__(self, number: int) -> None:
        self.name = f"worker-{number}"
        self.pid = number
        self.waiting: deque[Run] = deque()
        self.running: Run | None = None
        self.ends_at = 0.0
        self.started = 0
        self.finished = 0
        #: Until Noted: what it was given and has not given back, and the outcomes.
        self.held: list[Run] = []
        self.unnoted: list[Any] = []
        #: Functions that it was told to load ahead.
        self.prepared: list[bytes] = []

    @property
    def peer(self) -> bytes:
        return self.name.encode()


class Simulation:
    """A cluster in which only the scheduler is real.

    Parameters
    ----------
    workers
        How many workers there are.
    """

    def __init__(self, workers: int = 2) -> None:
        self.now = DAWN
        self.store = MemoryStore()
        self.plans: dict[str, Plan] = {}
        self.runs: dict[str, int] = {}
        #: How many processes died that had begun a task and whose outcome was not confirmed.
        self.losses: dict[str, int] = {}
        self.workers: dict[str, InventedWorker] = {}
        self.told: dict[str, list[Event]] = {}
        self.order: list[str] = []
        #: Whether workers get done with what they load ahead.
        self.loads = True
        self._born = 0
        self._batches = 0
        self._brokers = 0
        #: What peers have said and the broker has not yet heard.
        self._mail: list[tuple[bytes, Any]] = []
        #: What is said again to the next broker: functions, calls by batch, deaths.
        self._defined: list[tuple[bytes, Define]] = []
        self._unaccepted: dict[int, tuple[bytes, Submit]] = {}
        self._deaths: list[Died] = []
        #: Orders, which nobody confirms, and when they were given (boot clock).
        self._orders: deque[tuple[float, bytes, Any]] = deque()
        #: How many more chances to die the broker lets pass.
        self._dies_in: int | None = None
        self.scheduler = self._new_scheduler()
        for _ in range(workers):
            self.add_worker()

    # ------------------------------------------------------------------------------ the world

    def submit(
        self,
        *,
        seconds: float = 1.0,
        ends: str = "ok",
        task_id: str | None = None,
        policy: Policy | None = None,
        needs: tuple[str, ...] = (),
        countdown: float | None = None,
        client: bytes = CLIENT,
        **fields: Any,
    ) -> str:
        """Send a call of an invented function and return its id.

        Parameters
        ----------
        seconds
            How long each run takes.
        ends
            How the attempts end, by blanks: `"retry:5 die ok"`.
        task_id, policy, needs, countdown, client
            As in a real call.
        **fields
            Further fields of `Call`.
        """
        task_id = task_id or f"task-{len(self.plans)}"
        self.plans[task_id] = Plan(seconds, tuple(ends.split()))
        policy = policy or Policy()
        digest = repr(policy).encode()
        define = Define(digest, "invented", policy, b"")
        if (client, define) not in self._defined:
            self._defined.append((client, define))
            self.say(client, define)
        due = None if countdown is None else self.now.boot + countdown
        options = Options(needs=needs) if needs else None
        call = Call(task_id, digest, "invented", b"x", due=due, options=options, **fields)
        self._batches += 1
        submit = Submit(self._batches, (call,))
        self._unaccepted[self._batches] = client, submit
        self.say(client, submit)
        return task_id

    def say(self, peer: bytes, message: Any) -> None:
        """Let a peer say something to the broker."""
        stranger = peer != SUPERVISOR and peer not in self.scheduler.clients
        if stranger and peer.decode() not in self.workers:
            self._mail.append((peer, Hello("client", "c", NOTEBOOK_PID, "3.11")))
        self._mail.append((peer, message))
        if isinstance(message, (Revoke, Hasten)):
            self._orders.append((self.now.boot, peer, message))
            while self._orders[0][0] <= self.now.boot - UNHEARD:
                self._orders.popleft()
        self._settle()

    def advance(self, seconds: float) -> None:
        """Let time pass, and everything happen that happens in it."""
        until = self.now.boot + seconds
        while (instant := self._next_instant()) is not None and instant <= until:
            self._move_to(instant)
            self._step()
        self._move_to(until)
        self._settle()

    def run(self, limit: float = 1e6) -> None:
        """Let time pass until nothing is open any more, or nothing will ever happen."""
        end = self.now.boot + limit
        self._settle()
        while self.scheduler.tasks and self.now.boot < end:
            instant = self._next_instant()
            if instant is None:
                return
            self._move_to(instant)
            self._step()

    def add_worker(self, queues: tuple[str, ...] = ()) -> str:
        """Let a new worker come; return its name."""
        name = self._hire(queues)
        self._settle()
        return name

    def kill(self, name: str) -> None:
        """Let a worker's process die and be replaced."""
        self._replace(name)
        self._settle()

    def restart_broker(self) -> None:
        """Let the broker die and come back from its store; the workers live on."""
        self._crash()
        self._settle()

    def crash_later(self, chances: int) -> None:
        """Let the broker die later, and come back from its store.

        Parameters
        ----------
        chances
            It dies in one of the turns to come, before these are saved, or after that before any
            of the messages is sent. So many of these chances it lets pass.
        """
        self._dies_in = chances

    # -------------------------------------------------------------------------------- the facts

    def state(self, task_id: str) -> str:
        row = self.store.find(task_id)
        return states.PENDING if row is None else row.state

    def phase(self, task_id: str) -> str:
        row = self.store.find(task_id)
        return "unknown" if row is None else row.phase

    def events(self, task_id: str) -> list[Event]:
        return self.store.events.get(self.store.seqs[task_id], [])

    # ------------------------------------------------------------------------------ the machinery

    def _hire(self, queues: tuple[str, ...] = ()) -> str:
        self._born += 1
        worker = InventedWorker(self._born)
        self.workers[worker.name] = worker
        hello = Hello("worker", worker.name, worker.pid, "3.11", queues)
        self._mail.append((worker.peer, hello))
        return worker.name

    def _replace(self, name: str) -> None:
        worker = self.workers.pop(name)
        for run in worker.held:
            if run.ticket <= worker.started and run.call is not None:
                self.losses[run.call.id] = self.losses.get(run.call.id, 0) + 1
        died = Died(name, 1, -9, worker.started, worker.finished)
        self._deaths.append(died)
        self._mail.append((SUPERVISOR, died))
        self._hire()

    def _crash(self) -> None:
        """Take the broker away, with all that was on its way to it, and start another."""
        self._dies_in = None
        self._mail.clear()
        self.scheduler = self._new_scheduler()
        self.scheduler.restore(self.store.open_tasks(), self.now)
        self._carry_out()
        mail = self._mail.append
        mail((SUPERVISOR, Hello("supervisor", "s", 1, "3.11", workers=tuple(self.workers))))
        for died in self._deaths:
            mail((SUPERVISOR, died))
        for worker in self.workers.values():
            mail((worker.peer, self._hello_again(worker)))
            self._mail.extend((worker.peer, outcome) for outcome in worker.unnoted)
        for client in dict.fromkeys(client for client, _ in self._defined):
            mail((client, Hello("client", "c", NOTEBOOK_PID, "3.11")))
        self._mail.extend(self._defined)
        for client, submit in self._unaccepted.values():
            mail((client, msgspec.structs.replace(submit, again=True)))
        for given_at, client, order in self._orders:
            if given_at > self.now.boot - UNHEARD:
                mail((client, order))

    def _new_scheduler(self) -> Scheduler:
        self._brokers += 1
        scheduler = Scheduler(
            self.store, first_ticket=self._brokers << 20, first_seq=max(self.store.rows, default=0)
        )
        scheduler.receive(SUPERVISOR, Hello("supervisor", "s", 1, "3.11"), self.now)
        return scheduler

    def _hello_again(self, worker: InventedWorker) -> Hello:
        held = tuple(
            Held(run.ticket, run.call.id, run.ticket <= worker.started)
            for run in worker.held
            if run.call
        )
        return Hello("worker", worker.name, worker.pid, "3.11", held=held)

    def _move_to(self, instant: float) -> None:
        passed = max(instant - self.now.boot, 0.0)
        self.now = Now(self.now.wall + passed, self.now.boot + passed)

    def _next_instant(self) -> float | None:
        instants = [worker.ends_at for worker in self.workers.values() if worker.running]
        wait = self.scheduler.next_wakeup(self.now)
        if wait is not None:
            instants.append(self.now.boot + wait)
        return min(instants) if instants else None

    def _step(self) -> None:
        for worker in list(self.workers.values()):
            if worker.running is not None and worker.ends_at <= self.now.boot:
                self._end_run(worker)
        self._settle()

    def _settle(self) -> None:
        """Let the broker take its turns until nobody has anything to say."""
        while True:
            mail, self._mail = self._mail, []
            for (peer, _), alike in groupby(mail, key=lambda each: (each[0], type(each[1]))):
                messages = [message for _, message in alike]
                self.scheduler.receive_alike(peer, messages, self.now, iter(()))
            self.scheduler.tick(self.now)
            self._carry_out()
            if not self._mail:
                return

    def _carry_out(self) -> None:
        if self._dies_now():
            return
        self.store.commit(self.scheduler.turn)
        for peer, said in self.scheduler.committed().mail.items():
            for each in said:
                if self._dies_now():
                    return
                self._deliver(peer, each if isinstance(each, Send) else Send(each))

    def _dies_now(self) -> bool:
        """Let the broker die if this is the chance that it does not let pass."""
        if self._dies_in is None:
            return False
        self._dies_in -= 1
        if self._dies_in >= 0:
            return False
        self._crash()
        return True

    def _deliver(self, peer: bytes, send: Send) -> None:
        message = send.message
        if isinstance(message, Event):
            self.told.setdefault(message.id, []).append(message)
        worker = self.workers.get(peer.decode(errors="replace"))
        if isinstance(message, Accepted):
            for batch in message.batches:
                self._unaccepted.pop(batch, None)
        elif isinstance(message, Kill):
            self._obey(message)
        elif isinstance(message, Scale):
            shall_be = message.workers + message.extra
            while len(self.workers.keys() - set(message.leaving)) < shall_be:
                self._hire()
        elif worker is None:
            return
        elif isinstance(message, Run):
            call = message.call
            if call is None and send.task is not None:
                call = self.store.calls[send.task.seq]
                call = msgspec.structs.replace(call, retries=send.task.retries)
            run = msgspec.structs.replace(message, call=call)
            worker.waiting.append(run)
            worker.held.append(run)
            self._begin_next(worker)
        elif isinstance(message, Noted):
            noted = message.ticket
            worker.held = [run for run in worker.held if run.ticket > noted]
            worker.unnoted = [said for said in worker.unnoted if said.ticket > noted]
        elif isinstance(message, Recall):
            self._give_back(worker, message)
        elif isinstance(message, Define):
            worker.prepared.append(send.fetch)
            if self.loads:
                self._mail.append((worker.peer, Prepared(send.fetch)))

    def _obey(self, kill: Kill) -> None:
        worker = self.workers.get(kill.name)
        runs = worker.running.ticket if worker is not None and worker.running else 0
        if worker is not None and kill.ticket in (0, runs):
            self._replace(kill.name)

    def _give_back(self, worker: InventedWorker, recall: Recall) -> None:
        back = [
            run.ticket
            for run in worker.waiting
            if not recall.tickets or run.ticket in recall.tickets
        ]
        worker.waiting = deque(run for run in worker.waiting if run.ticket not in back)
        worker.held = [run for run in worker.held if run.ticket not in back]
        self._mail.append((worker.peer, Returned(tuple(back))))

    def _begin_next(self, worker: InventedWorker) -> None:
        if worker.running is not None or not worker.waiting:
            return
        run = worker.running = worker.waiting.popleft()
        assert run.call is not None
        worker.started = run.ticket
        worker.ends_at = self.now.boot + self.plans[run.call.id].seconds
        self.order.append(run.call.id)
        self.runs[run.call.id] = self.runs.get(run.call.id, 0) + 1
        if self.plans[run.call.id].seconds > 0.01:
            self._mail.append((worker.peer, Started(run.ticket, self.now.wall)))

    def _end_run(self, worker: InventedWorker) -> None:
        run, worker.running = worker.running, None
        assert run is not None
        assert run.call is not None
        plan = self.plans[run.call.id]
        end = plan.ends[min(self.runs[run.call.id], len(plan.ends)) - 1]
        if end == "die":
            self._replace(worker.name)
            return
        worker.finished = run.ticket
        outcome = self._outcome(run, end, plan)
        worker.unnoted.append(outcome)
        self._mail.append((worker.peer, outcome))
        self._begin_next(worker)

    def _outcome(self, run: Run, end: str, plan: Plan) -> Any:
        assert run.call is not None
        kind, _, argument = end.partition(":")
        if kind == "retry":
            call = msgspec.structs.replace(
                run.call, retries=run.call.retries + 1, due=self.now.boot + float(argument or 0)
            )
            return Again(run.ticket, call, b"reason", runtime=plan.seconds)
        state = {"ok": states.SUCCESS, "requeue": "REQUEUE"}.get(kind, states.FAILURE)
        return Done(run.ticket, state, b"value", runtime=plan.seconds)
