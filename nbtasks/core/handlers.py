"""Handlers of tasks (`on_failure`, `after_return` ...), which run after the outcome.

They run when the outcome of their call is saved: the task is over, but its worker is as busy as
before, and has the time limit anew. Those of a task whose process was killed for a limit are run by
another worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nbtasks.core.agenda import Agenda
from nbtasks.core.flow import Flow
from nbtasks.core.ledger import Ledger
from nbtasks.core.messages import (
    Handling,
    Now,
    Run,
)
from nbtasks.core.staff import Staff
from nbtasks.core.states import SCHEDULED
from nbtasks.core.tasks import Task
from nbtasks.core.workers import Worker, Workers


class Handlers:
    """Who runs handlers, and for whom nobody does yet.

    Parameters
    ----------
    ledger, agenda, pool
        What the scheduler's parts share.
    flow, staff
        Where the next attempt goes on that waits for handlers, and who ends processes.
    """

    def __init__(
        self, ledger: Ledger, agenda: Agenda, pool: Workers, flow: Flow, staff: Staff
    ) -> None:
        self._ledger = ledger
        self._agenda = agenda
        self._pool = pool
        self._flow = flow
        self._staff = staff
        #: Ended by a limit with nobody left to run their handlers, and how they ended.
        self.bereft: list[tuple[Task, str]] = []

    def give(self, now: Now) -> None:
        """Have idle workers run the handlers of what a limit has ended."""
        idle = self._pool.idle()
        for bereft in list(self.bereft):
            task, verdict = bereft
            worker = next((w for w in idle if not w.queues or task.queue in w.queues), None)
            if worker is not None:
                self.bereft.remove(bereft)
                self._ledger.ticket += 1
                worker.handling, worker.bereft = self._ledger.ticket, bereft
                worker.progress_at = now.boot
                runs = self._staff.at_once()
                run = Run(self._ledger.ticket, None, task.deaths != 0, "", verdict, runs)
                self._ledger.turn.say_absent(worker.peer, run, task)

    def handling(self, peer: bytes, said: Handling, now: Now, _: Iterator[Any]) -> None:
        """Take note that a worker runs the handlers of a call, or has run them."""
        worker = self._pool.by_peer[peer]
        worker.progress_at = now.boot
        if said.over:
            worker.joining = False
            self.end(worker)
            return
        worker.handling = said.ticket
        task = worker.held.get(said.ticket) or self._ledger.find(said.id)
        limit = None if task is None else self._pool.limit_of(task)
        if limit is not None:
            overrun = worker, said.ticket, said.id, limit
            self._agenda.add_boot(now.boot + limit, "overrun", overrun)

    def end(self, worker: Worker) -> None:
        """Let the next attempt begin that has waited for the handlers of the former one."""
        worker.handling = 0
        waits, worker.waits_for_it = worker.waits_for_it, None
        if waits is not None:
            task, retries = waits
            if task.phase == SCHEDULED and task.retries == retries:
                self._flow.make_ready(task)

    def on_overrun(self, subject: tuple[Worker, int, str, float], when: float, now: Now) -> None:
        """Have the worker killed, if it still runs the handlers that have run out of time."""
        worker, ticket, task_id, limit = subject
        if worker.handling == ticket and not worker.dead:
            self._staff.kill(worker, ticket, "SIGKILL")
            text = (
                f"ERROR nbtasks.task: The handlers of this task took longer than its time limit of "
                f"{limit:g} s, so their process was killed. State and result are stored and stay "
                f"as they are. Do less in the handlers, or give the task a longer time_limit.\n"
            )
            self._ledger.tell_output(task_id, "log", text, now)
