"""What becomes of the tasks of a worker that died.

The supervisor reports it, with what the worker's cell said: calls that had not begun go back to the
front of the line as if nothing had happened, those that had are lost: they end, or run again with
`acks_late`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from nbtasks.core import states
from nbtasks.core.agenda import Agenda
from nbtasks.core.attempts import Attempts
from nbtasks.core.flow import Flow
from nbtasks.core.handlers import Handlers
from nbtasks.core.ledger import Ledger
from nbtasks.core.messages import (
    MOST_RETRIES,
    Died,
    Done,
    Now,
    Policy,
)
from nbtasks.core.states import RUNNING
from nbtasks.core.tasks import Task
from nbtasks.core.workers import Worker, Workers

#: How a run ends that took more than it may.
LIMITS: Final = ("TimeLimitExceeded", "MemoryLimitExceeded")
#: Processes that may die under one task before it is given up.
MAX_DEATHS: Final = 3
#: Names of the dead that are remembered: what one has sent may be read after the news of its death.
REMEMBERED: Final = 64
#: Seconds between the news of a death and its consequences, where something is still to come that
#: the dead had sent.
MOURNING: Final = 0.02


class Deaths:
    """Decides on what dead workers have left.

    Parameters
    ----------
    ledger, agenda, pool
        What the scheduler's parts share.
    flow, handlers, attempts
        Where it goes on with their tasks.
    """

    def __init__(
        self,
        ledger: Ledger,
        agenda: Agenda,
        pool: Workers,
        flow: Flow,
        handlers: Handlers,
        attempts: Attempts,
    ) -> None:
        self._ledger = ledger
        self._agenda = agenda
        self._pool = pool
        self._flow = flow
        self._handlers = handlers
        self._attempts = attempts
        #: Whose death was reported, the latest last.
        self.dead: deque[str] = deque(maxlen=REMEMBERED)

    def died(self, peer: bytes, died: Died, now: Now, _: Iterator[Any]) -> None:
        """Take note of a death; it is decided on when all has come that the dead had sent."""
        worker = self._pool.workers.get(died.name)
        if died.name not in self.dead:
            self.dead.append(died.name)
        if worker is None:
            # Buried by a former broker, which may not have lived to save all of it.
            self._ledger.clear(died.name, self._ledger.ticket + 1)
        elif not worker.dead:
            worker.dead = True
            if worker.last is not None and worker.prepares:
                # That may have been its death, and would be that of one newcomer after another.
                worker.last.doubt()
            complete = died.sent is not None and worker.heard >= died.sent
            wait = 0.0 if complete else MOURNING
            self._agenda.add_boot(now.boot + wait, "died", (worker, died))

    def on_died(self, subject: tuple[Worker, Died], when: float, now: Now) -> None:
        """Decide on a death."""
        self.bury(*subject, now)

    def on_unseen(self, worker: Worker, when: float, now: Now) -> None:
        """Bury a worker that nobody has seen since the broker came."""
        if not worker.peer and self._pool.workers.get(worker.name) is worker and not worker.dead:
            self.bury(worker, Died(worker.name, worker.pid, 0, min(worker.held, default=0)), now)

    def bury(self, worker: Worker, died: Died, now: Now) -> None:
        """Decide on everything that a dead worker held."""
        worker.dead = True
        self._handlers.end(worker)
        self._pool.by_peer.pop(worker.peer, None)
        self._pool.dismiss(worker)
        for outcome in died.outcomes:
            if outcome.ticket not in worker.held:
                continue
            if isinstance(outcome, Done):
                self._attempts.conclude(worker, outcome, (), now)
            else:
                self._attempts.repeat(worker, outcome, (), now)
        for ticket in sorted(worker.held, reverse=True):
            task = worker.held.pop(ticket)
            verdict = worker.verdicts.pop(ticket, None)
            if verdict is not None and verdict[1] in LIMITS and not died.code:
                verdict = None  # all were killed, and its time has passed since then
            if died.taken and ticket == died.started:
                limit = self._pool.limit_of(task, "memory_limit") or 0
                verdict = (states.FAILURE, "MemoryLimitExceeded", [limit, died.taken])
            if task.phase == RUNNING or ticket <= died.started:
                self._lose(task, verdict, died, now)
            else:
                self._flow.give_back(task, now)
        self._ledger.clear(worker.name, self._ledger.ticket + 1)

    def _lose(
        self, task: Task, verdict: tuple[str, str, list[Any]] | None, died: Died, now: Now
    ) -> None:
        """Decide on a task whose process died while it was running."""
        definition = self._pool.of(task)
        policy = definition.policy
        if verdict is None and task.wish == "terminated":
            # A former broker gave the order.
            verdict = (states.REVOKED, "TaskRevokedError", ["terminated"])
        task.deaths = max(task.deaths, 0) + 1
        if verdict is not None:
            state, error, args = verdict
            again = error in LIMITS and policy.acks_late and not policy.acks_on_timeout
            if again and task.deaths < MAX_DEATHS:
                self._run_again(task, f"killed ({error}), put back into the queue", now)
                return
            self._flow.end_by_broker(task, state, error, args, now)
            if error in LIMITS and policy.handlers:
                self._handlers.bereft.append((task, json.dumps([error, args])))
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
            text += f" {died.words}"
        self._flow.end_by_broker(task, states.FAILURE, "WorkerLostError", [text], now)

    def _run_again(self, task: Task, why: str, now: Now) -> None:
        self._ledger.tell_again(task, f"worker {why}", now)
        if self._flow.is_unwanted(task, now):
            return
        self._flow.make_ready(task, front=True)
        self._ledger.save(task)


def describe_exit(died: Died) -> str:
    """Return what became of a process, for people."""
    memory = f" (peak memory {died.peak_memory / 1e6:.0f} MB)" if died.peak_memory else ""
    if died.why:
        return f"{died.why}{memory}"
    if died.code < 0:
        number = -died.code
        known = {6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM"}
        name = known.get(number, "a signal")
        hint = ", often a sign of too little memory" if number == 9 else ""
        return f"was killed by {name} ({number}){hint}{memory}"
    if died.code > 0:
        return f"exited with code {died.code}{memory}"
    # So says the next supervisor of a process that the former one took along.
    return f"ended with code 0, or with the whole cluster,{memory}"


def why_given_up(task: Task, policy: Policy) -> str:
    """Return why a task whose process died is not run again, for people."""
    if policy.retry_on_worker_lost or (policy.acks_late and policy.reject_on_worker_lost):
        return f"It was the {ordinal(task.deaths)} death; the task is given up."
    wanted = "reject_on_worker_lost" if policy.acks_late else "acks_late"
    return f"It was not run again, as it may be half done ({wanted}=True runs it again)."


def ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
