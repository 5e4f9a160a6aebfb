"""What users ask of tasks: revoke, run now, run again, forget, another state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from nbtasks.core import states
from nbtasks.core.flow import Flow
from nbtasks.core.ledger import Ledger
from nbtasks.core.messages import (
    Forget,
    Hasten,
    Now,
    Recall,
    Redo,
    Revoke,
    Update,
    take,
)
from nbtasks.core.staff import Staff
from nbtasks.core.states import ASSIGNED, DONE, QUEUED, RUNNING, SCHEDULED, WAITING
from nbtasks.core.tasks import Task
from nbtasks.core.workers import Worker, Workers

#: Ids that are remembered of calls that were revoked before they came.
REVOKED_EARLY: Final = 10_000


class Orders:
    """Carries out what clients want.

    Parameters
    ----------
    ledger, pool
        What the scheduler's parts share.
    flow, staff
        Where tasks end or go on, and who ends processes.
    """

    def __init__(self, ledger: Ledger, pool: Workers, flow: Flow, staff: Staff) -> None:
        self._ledger = ledger
        self._pool = pool
        self._flow = flow
        self._staff = staff
        #: Revoked before their calls came, oldest first.
        self._revoked = dict.fromkeys(ledger.archive.revoked())

    def revoke(self, peer: bytes, revoke: Revoke, now: Now, _: Iterator[Any]) -> None:
        """End tasks that have not begun, and have workers end, or look after, those that have."""
        for task_id in revoke.ids:
            task = self._ledger.tasks.get(task_id)
            if task is None:
                if self._ledger.find(task_id) is None:
                    self._revoke_early(task_id)
            elif task.phase in (WAITING, SCHEDULED, QUEUED):
                self._flow.end_by_broker(task, states.REVOKED, "TaskRevokedError", ["revoked"], now)
            else:
                self._note_wish(task, revoke)

    def _revoke_early(self, task_id: str) -> None:
        """Remember that a call is unwanted that has not come yet, and may never."""
        if task_id in self._revoked:
            return
        self._revoked[task_id] = None
        self._ledger.turn.revoked[task_id] = True
        if len(self._revoked) > REVOKED_EARLY:
            self._drop_early_revoke(next(iter(self._revoked)))

    def was_revoked(self, task_id: str) -> bool:
        """Return whether a call that comes now was revoked before; that is settled by it."""
        if task_id not in self._revoked:
            return False
        self._drop_early_revoke(task_id)
        return True

    def _drop_early_revoke(self, task_id: str) -> None:
        del self._revoked[task_id]
        self._ledger.turn.revoked[task_id] = False

    def _note_wish(self, task: Task, revoke: Revoke) -> None:
        """Note of a task that a worker has: it may end there, but will not begin again."""
        if task.wish != "terminated":
            task.wish = "terminated" if revoke.terminate else "revoked"
            self._ledger.save(task)
        worker = self._pool.workers[task.worker]
        if task.phase == RUNNING and revoke.terminate:
            self.terminate(worker, task, revoke.signal)
            return
        if task.phase == ASSIGNED:
            worker.wishes[task.ticket] = revoke
        if worker.peer:
            # Only the worker can say whether it has begun. What has begun goes on, but may ask
            # whether it should (`nbtasks.cancelled()`).
            self._ledger.turn.say(worker.peer, Recall((task.ticket,)))

    def terminate(self, worker: Worker, task: Task, signal: str) -> None:
        """Have the run of a task ended, which was revoked."""
        worker.verdicts.setdefault(
            task.ticket, (states.REVOKED, "TaskRevokedError", ["terminated"])
        )
        self._staff.kill(worker, task.ticket, signal)

    def purge(self, now: Now) -> int:
        """Revoke all that has not been given to a worker, for good; return how many that were."""
        tasks = self._ledger.tasks.values()
        waiting = [task for task in tasks if task.phase in (WAITING, SCHEDULED, QUEUED)]
        for task in waiting:
            if task.phase != DONE:
                task.wish = "purged"
                self._flow.end_by_broker(task, states.REVOKED, "TaskRevokedError", ["purged"], now)
                self._ledger.turn.emptied.add(task.seq)
        return len(waiting)

    def hasten(self, peer: bytes, hasten: Hasten, now: Now, _: Iterator[Any]) -> None:
        """Let tasks wait for their time no more."""
        for task_id in hasten.ids:
            task = self._ledger.tasks.get(task_id)
            if task is not None and task.phase == SCHEDULED:
                task.due = task.eta = None
                self._flow.make_ready(task, front=True)
                self._ledger.save(task)

    def redo(self, peer: bytes, redo: Redo, now: Now, _: Iterator[Any]) -> None:
        """Run tasks once more that have failed or were revoked."""
        for task_id in redo.ids:
            row = None if task_id in self._ledger.tasks else self._ledger.find(task_id)
            if row is None or row.state not in states.PROPAGATE_STATES or row.wish == "purged":
                continue
            task = self._ledger.reopen(row)
            task.state, task.ended_at, task.client = states.PENDING, None, peer
            task.due = task.eta = task.expires = None
            task.deaths, task.wish = 0, ""
            task.ticket = min(task.ticket, self._ledger.ticket)  # it may be from before a reboot
            self._ledger.tell_again(task, "run again by hand", now)
            self._flow.make_ready(task)
            self._ledger.save(task)

    def forget(self, peer: bytes, forget: Forget, now: Now, _: Iterator[Any]) -> None:
        """Leave nothing of tasks that are over."""
        for task_id in forget.ids:
            row = None if task_id in self._ledger.tasks else self._ledger.find(task_id)
            if row is not None:
                self._ledger.turn.forgotten.add(row.seq)

    def update(self, peer: bytes, update: Update, now: Now, buffers: Iterator[Any]) -> None:
        """Take in a new state of a task that is not running here, or whose run is over."""
        payload = take(buffers, update.frames)
        task = self._ledger.tasks.get(update.id) or self._ledger.ended(update.id)
        if task is not None:
            self._flow.new_state(task, update, payload, now)
