"""What becomes of a task apart from its runs: it waits for others, its time, a worker; it ends.

accepted ─▶ WAITING ─▶ SCHEDULED ─▶ QUEUED ─▶ (a worker has it: `attempts`) ─▶ DONE
             needs       due, eta    ready                     and from any phase ─▶ DONE
"""

from __future__ import annotations

import json
from collections import deque
from typing import Any

from nbtasks.core import states
from nbtasks.core.agenda import Agenda
from nbtasks.core.ledger import Ledger
from nbtasks.core.messages import (
    Done,
    Event,
    Now,
    Policy,
    Report,
    Update,
)
from nbtasks.core.needs import Needs
from nbtasks.core.states import ASSIGNED, QUEUED, SCHEDULED, WAITING
from nbtasks.core.tasks import Task
from nbtasks.core.workers import Rate, Workers


class Flow:
    """The ways from phase to phase that need no worker.

    Parameters
    ----------
    ledger, agenda, pool
        What the scheduler's parts share.
    """

    def __init__(self, ledger: Ledger, agenda: Agenda, pool: Workers) -> None:
        self._ledger = ledger
        self._agenda = agenda
        self._pool = pool
        self.needs = Needs()
        #: Ended, and those who wait for it do not know yet.
        self._unsettled: deque[tuple[Task, str]] = deque()

    # -------------------------------------------------------------------------------------- waiting

    def wait_for(self, task: Task, needs: tuple[str, ...], now: Now) -> bool:
        """Let a task wait for what it needs; return False when it need not wait."""
        missing = []
        for need in needs:
            if need in self._ledger.tasks:
                missing.append(need)
                continue
            row = self._ledger.find(need)
            if row is None or row.state != states.SUCCESS:
                self._end_in_vain(task, need, row.state if row else "unknown", now)
                return True
        if not missing:
            return False
        self.needs.wait(task.id, missing)
        return True

    def schedule_or_queue(self, task: Task, now: Now) -> None:
        """Let a task wait for its time, if that is still to come, and for a worker otherwise."""
        if not self.delay(task, now):
            self.make_ready(task)

    def delay(self, task: Task, now: Now) -> bool:
        """Let a task wait for its time; return False when that has come."""
        if task.due is not None:
            if task.due <= now.boot:
                return False
            self._agenda.add_boot(task.due, "start", task)
        elif task.eta is not None and task.eta > now.wall:
            self._agenda.add_wall(task.eta, "start", task)
        else:
            return False
        self._ledger.step(task, "delay")
        return True

    def make_ready(self, task: Task, front: bool = False) -> None:
        """Let a task wait for a worker: at the end of its line, or at the front."""
        self._ledger.step(task, "ready")
        task.worker = ""  # the ticket stays: what was noted under it is void
        task.limit_at = None
        self._pool.ready.push(task, front)

    def give_back(self, task: Task, now: Now) -> None:
        """Put a call that had not begun back to the front, or end it if its time is over."""
        if not self.is_unwanted(task, now):
            self.make_ready(task, front=True)
            self._ledger.save(task)

    def is_unwanted(self, task: Task, now: Now) -> bool:
        """End a task that must not begin (again), revoked or too late; return whether it was."""
        if task.wish:
            # What never began was merely revoked, however much more was wanted.
            why = "revoked" if task.phase == ASSIGNED else task.wish
        elif task.expires is not None and task.expires <= now.wall:
            why = "expired"
        else:
            return False
        self.end_by_broker(task, states.REVOKED, "TaskRevokedError", [why], now)
        return True

    def on_start(self, task: Task, when: float, now: Now) -> None:
        """Let a task wait for a worker, if this is what it has waited for."""
        waits_for = task.due if task.due is not None else task.eta
        is_open = self._ledger.tasks.get(task.id) is task
        if task.phase == SCHEDULED and waits_for == when and is_open:
            # Not saved: whoever restores it sees as well that its time has come.
            self.make_ready(task)

    def on_expire(self, task: Task, when: float, now: Now) -> None:
        """End a task that has not been given to a worker in time."""
        if self._ledger.tasks.get(task.id) is not task or task.expires != when:
            return
        if task.phase in (WAITING, SCHEDULED, QUEUED):
            self.end_by_broker(task, states.REVOKED, "TaskRevokedError", ["expired"], now)

    def on_slot(self, rate: Rate, when: float, now: Now) -> None:
        """Let those start that have waited for their rate limit: the first of them does."""
        rate.timer = False
        self._pool.release(rate)

    # ---------------------------------------------------------------------------------- a new state

    def new_state(
        self, task: Task, said: Report | Update, buffers: tuple[Any, ...], now: Now
    ) -> None:
        """Take in a state that a task has got from `update_state`."""
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
        self._ledger.tell(task, event, buffers)
        self._ledger.save(task)

    # -------------------------------------------------------------------------------------- the end

    def finish(
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
            done.children, True, is_kept(task, policy, state),
        )  # fmt: skip
        self.end(task, state, event, buffers, now)

    def end_by_broker(
        self, task: Task, state: str, error: str, args: list[Any], now: Now, traceback: str = ""
    ) -> None:
        """End a task with one of our own exceptions, by name: the broker never pickles."""
        if task.state == states.SUCCESS:  # set by update_state, never overwritten
            event = self._ledger.event(task, now, "end", worker=task.worker, final=True)
            self.end(task, states.SUCCESS, event, (), now)
            return
        # What was revoked, or came too late, has no outcome that could be ignored.
        kept = state != states.FAILURE or is_kept(task, self._pool.of(task).policy, state)
        event = self._ledger.event(
            task, now, "state", state=state, text=json.dumps([error, args]), traceback=traceback,
            worker=task.worker, retries=task.retries, final=True, kept=kept,
        )  # fmt: skip
        self.end(task, state, event, (), now)

    def end(self, task: Task, state: str, event: Event, buffers: tuple[Any, ...], now: Now) -> None:
        """End a task: the only way out."""
        waited = task.phase == QUEUED
        self._ledger.step(task, "end")
        if waited:
            self._pool.give_up(task)
        task.state = state
        task.ended_at = now.wall
        # It waits for nothing any more, so most tasks that have ended are alike in the store.
        task.due = task.eta = task.expires = None
        self._ledger.close(task, event, buffers)
        if self.needs.waiters:
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
                task = self._ledger.tasks.get(task_id)
                if task is not None and task.phase == WAITING:
                    self.schedule_or_queue(task, now)
                    self._ledger.save(task)
        else:
            for task_id in self.needs.fail(ended.id):
                task = self._ledger.tasks.get(task_id)
                if task is not None and task.phase == WAITING:
                    self._end_in_vain(task, ended.id, state, now)

    def _end_in_vain(self, task: Task, need: str, state: str, now: Now) -> None:
        text = f"Dependency {need} ended {state}"
        self.end_by_broker(task, states.FAILURE, "ChordError", [text], now)


def is_kept(task: Task, policy: Policy, state: str) -> bool:
    """Whether a state that a run leads to is kept: not of an ignored one, unless an error."""
    kept = (states.FAILURE, states.RETRY) if policy.store_errors_even_if_ignored else ()
    return state in kept or not is_ignored(task, policy)


def is_ignored(task: Task, policy: Policy) -> bool:
    """Whether nobody wants the task's result: what the call says wins."""
    wish = None if task.options is None else task.options.ignore_result
    return policy.ignore_result if wish is None else wish
