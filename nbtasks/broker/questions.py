"""What one may ask a broker: `_answer_WORD` answers `Ask(what="WORD")`.

All answers tell what is saved: they are given after the turn's commit.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from nbtasks.core.messages import Answer, Ask, Event, Now
from nbtasks.core.states import (
    DONE,
    EXCEPTION_STATES,
    FAILURE,
    QUEUED,
    RETRY,
    REVOKED,
    RUNNING,
    SCHEDULED,
    WAITING,
)
from nbtasks.core.tracebacks import error_in
from nbtasks.exceptions import ClusterError
from nbtasks.wire.connection import STORE_FILE

if TYPE_CHECKING:
    from nbtasks.broker.rows import TaskRow
    from nbtasks.broker.store import Store
    from nbtasks.core.scheduler import Scheduler
    from nbtasks.core.tasks import Task
    from nbtasks.core.workers import Worker
    from nbtasks.wire.connection import Settings

#: Tasks of a kind that are told of what goes on.
LATEST = 30
#: Events of a task among which its last run, and its last error, are looked for: output may have
#: come after them.
TAIL = 20


class Questions:
    """The answers of one broker.

    Parameters
    ----------
    scheduler, store, settings
        The broker's.
    carry_out
        Saves and sends what an answer brings with it.
    facts
        What else to tell of the broker: instance, whether the store is failing, and so on.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        store: Store,
        settings: Settings,
        carry_out: Callable[[Now], None],
        facts: Callable[[Now], dict[str, Any]],
    ) -> None:
        self._scheduler, self._store, self._settings = scheduler, store, settings
        self._carry_out, self._facts = carry_out, facts

    def answer(self, ask: Ask, instant: Now) -> Answer:
        """Answer one question, or say why not."""
        answer = getattr(self, f"_answer_{ask.what}", None)
        if answer is None:
            return Answer(ask.request, None, f"The broker does not know the question {ask.what!r}.")
        try:
            return Answer(ask.request, answer(instant, **ask.args))
        except (ClusterError, TypeError, ValueError) as error:
            return Answer(ask.request, None, f"{type(error).__name__}: {error}")

    def _answer_status(self, instant: Now) -> dict[str, Any]:
        scheduler = self._scheduler
        return {
            **self._facts(instant),
            "durability": self._settings.durability,
            "store": str(Path(self._settings.data) / STORE_FILE),
            "wanted": scheduler.staff.wanted,
            "clients": len(scheduler.clients),
            "phases": scheduler.phases(),
            "states": self._store.counts(),
            "queues": scheduler.pool.ready.lengths(),
            "workers": [
                {
                    "name": worker.name,
                    "pid": worker.pid,
                    "queues": list(worker.queues),
                    "held": len(worker.held),
                    "running": [task.id for task in worker.held.values() if task.phase == RUNNING],
                    "current": self._current(worker, instant),
                }
                for worker in scheduler.workers.values()
                if worker.peer and not worker.dead
            ],
        }

    def _current(self, worker: Worker, instant: Now) -> dict[str, Any] | None:
        """Return the call that a worker runs, and since when as far as this broker knows."""
        running = next((task for task in worker.held.values() if task.phase == RUNNING), None)
        row = None if running is None else self._store.find(running.id)
        if row is None:
            return None
        began = instant.wall - (instant.boot - worker.progress_at)
        return {
            "id": row.id,
            "name": row.name,
            "shown": row.shown,
            "summary": row.summary,
            "began": began,
        }

    def _answer_activity(self, instant: Now) -> dict[str, Any]:
        """Tell which tasks start next by the clock, and which failed and which ended last."""
        waiting = [task for task in self._scheduler.tasks.values() if task.phase == SCHEDULED]
        starts = {task.id: starts_of(task, instant) for task in waiting}
        soonest = heapq.nsmallest(LATEST, starts, key=starts.__getitem__)
        rows = self._store.finds(soonest)
        return {
            "retrying": sum(task.state == RETRY for task in waiting),
            "next": [
                self._describe_why(rows[task_id]) | {"starts": starts[task_id]}
                for task_id in soonest
                if task_id in rows
            ],
            "failed": [self._describe_why(row) for row in self._store.ended(LATEST, FAILURE)],
            "ended": [self._describe_why(row) for row in self._store.ended(LATEST)],
        }

    def _describe_why(self, row: TaskRow) -> dict[str, Any]:
        """Describe a task and, in a line, the error that it last ended or broke off with."""
        error = ""
        if row.state in EXCEPTION_STATES:
            last = self._store.bare_events(row.seq, row.n - TAIL)
            error = next((line for event in reversed(last) if (line := error_line(event))), "")
        return self._describe(row) | {"error": error}

    def _answer_outlook(self, instant: Now, ids: list[str], parents: list[str]) -> dict[str, Any]:
        """Tell why tasks wait, and which tasks others have sent.

        `places` has those of `ids` that are among the first in the line (1: next), `why` those
        that wait for something else than a worker, `starts` the wall time of those that wait for
        one, `expires` that of those that are not to begin later, `children` [id, name, summary] of
        tasks that any of `parents` has sent.
        """
        pool = self._scheduler.pool
        serving = pool.serving()
        line = {} if self._scheduler.stopping else pool.places(instant)
        places = {task_id: line[task_id] for task_id in texts(ids) if task_id in line}
        why = {task_id: self._why(task_id, instant) for task_id in ids if task_id not in places}
        tasks = [task for task in map(self._scheduler.tasks.get, texts(ids)) if task is not None]
        return {
            "workers": len(serving),
            "busy": sum(worker.busy for worker in serving),
            "queued": len(pool.ready),
            "places": places,
            "why": {task_id: text for task_id, text in why.items() if text},
            "starts": {
                task.id: starts_of(task, instant) for task in tasks if task.phase == SCHEDULED
            },
            "expires": {task.id: task.expires for task in tasks if task.expires is not None},
            "children": self._store.children_of(texts(parents)),
        }

    def _why(self, task_id: str, instant: Now) -> str:
        """Return what else than a worker and its time an open task waits for, or nothing."""
        scheduler = self._scheduler
        task = scheduler.tasks.get(task_id)
        if task is None or task.phase not in (WAITING, QUEUED):
            return ""
        if scheduler.stopping:
            return "the cluster is stopping"
        if task.phase == WAITING:
            missing = len(scheduler.flow.needs.missing(task_id))
            return f"waits for {missing} other task{'' if missing == 1 else 's'}"
        serving = scheduler.pool.serving()
        if not serving:
            return (
                "the workers are starting"
                if scheduler.staff.wanted
                else "the cluster has 0 workers"
            )
        if not any(not worker.queues or task.queue in worker.queues for worker in serving):
            return f"no worker serves the queue {task.queue!r}"
        definition = scheduler.pool.of(task)
        if definition.rate is not None and definition.rate.bars(instant):
            return f"rate limit {rate_text(definition.policy.interval)}"
        return ""

    def _answer_list(
        self,
        instant: Now,
        state: str | None = None,
        limit: int = 100,
        phase: str | None = None,
        took: bool = False,
    ) -> list[dict[str, Any]]:
        if phase is None or phase == DONE:
            rows = self._store.listing(state, limit, over=phase == DONE)
        else:
            rows = self._in_phase(phase, limit)
        if not took:
            return [self._describe(row) for row in rows]
        return [self._describe(row) | {"took": self._took(row)} for row in rows]

    def _in_phase(self, phase: str, limit: int) -> list[TaskRow]:
        """Return the open tasks in a phase, newest first; rows do not tell who was given out."""
        tasks = [task for task in self._scheduler.tasks.values() if task.phase == phase]
        ids = [task.id for task in sorted(tasks, key=lambda task: -task.seq)[:limit]]
        found = self._store.finds(ids)
        return [found[task_id] for task_id in ids if task_id in found]

    def _took(self, row: TaskRow) -> float | None:
        """Return the seconds that the last run of a task took that is over; None: it never ran."""
        if row.ended_at is None:
            return None
        last = self._store.bare_events(row.seq, row.n - TAIL)
        if runtime := next((event.runtime for event in reversed(last) if event.final), 0.0):
            return runtime
        # The process of a run that was killed has not told how long it was.
        began = next((event.at for event in reversed(last) if event.kind == "run"), None)
        return None if began is None else max(0.0, row.ended_at - began)

    def _answer_show(self, instant: Now, id: str) -> dict[str, Any] | None:
        row = self._store.find(id)
        if row is None:
            return None
        saved = self._store.calls([row.seq]).get(row.seq)
        call = saved[0] if saved else None
        options = call.options if call is not None else None
        task = self._scheduler.tasks.get(id)
        waits = task is not None and task.phase == SCHEDULED
        return self._describe(row) | {
            "starts": starts_of(task, instant) if task is not None and waits else None,
            "children": self._store.children(id),
            "root": row.root or row.id,
            "deaths": max(row.deaths, 0),
            "eta": call.eta if call is not None else None,
            "expires": call.expires if call is not None else None,
            "body": call.body if call is not None else b"",
            "buffers": [bytes(buffer) for buffer in saved[1]] if saved else [],
            "options": msgspec.structs.asdict(options) if options is not None else {},
            "events": [
                msgspec.structs.asdict(event) | {"body": b"", "error": error_line(event)}
                for event in self._store.bare_events(row.seq)
            ],
        }

    def _describe(self, row: TaskRow) -> dict[str, Any]:
        task = self._scheduler.tasks.get(row.id, row)  # an open one knows more than its row
        return {
            "id": row.id,
            "name": row.name,
            "shown": row.shown,
            "state": row.state,
            "phase": task.phase,
            "summary": row.summary,
            "queue": row.queue,
            "priority": row.priority,
            "retries": row.retries,
            "worker": task.worker,
            "parent": row.parent,
            "accepted_at": row.accepted_at,
            "ended_at": row.ended_at,
        }

    def _answer_wanted(self, instant: Now) -> int:
        """Tell how many workers there shall be; `status` looks at all tasks for its answer."""
        return self._scheduler.staff.wanted

    def _answer_settled(self, instant: Now) -> None:
        """Say nothing but that what the same peer has sent before is carried out by now."""

    def _answer_purge(self, instant: Now) -> int:
        count = self._scheduler.orders.purge(instant)
        self._carry_out(instant)
        return count

    def _answer_put(self, instant: Now, key: str, value: bytes) -> None:
        if not isinstance(value, bytes):
            raise TypeError(f"bytes are wanted, not {value!r:.80}")
        self._store.put(key, value)

    def _answer_peek(self, instant: Now, key: str) -> bytes | None:
        return self._store.peek(key)

    def _answer_take(self, instant: Now, key: str) -> bytes | None:
        return self._store.take(key)


# -------------------------------------------------------------------------------------- helpers


def starts_of(task: Task, instant: Now) -> float:
    """Return the wall time at which a task that waits for its time will start."""
    if task.due is not None:
        return instant.wall + task.due - instant.boot
    # Without a time it waits for the handlers of its former attempt.
    return instant.wall if task.eta is None else task.eta


def texts(value: Any) -> list[str]:
    """Return a list of texts as it is.

    Raises
    ------
    TypeError
        When it is anything else.
    """
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise TypeError(f"a list of ids is wanted, not {value!r:.80}")
    return value


def error_line(event: Event) -> str:
    """Return the error that an event tells of, in one line, or nothing."""
    if event.traceback:
        line = error_in(event.traceback)
        name, _, said = line.partition(": ")
        # Not `Retry: Retry in 5s: ValueError(...)`: when that is stands elsewhere.
        return said.partition(": ")[2] or said if name.endswith("Retry") else line
    if event.state == REVOKED and b"expired" in bytes(event.body):
        return "TaskRevokedError: expired"  # a worker's own word of it, which is a pickle
    if event.kind != "state" or not event.text:
        return ""
    name, args = json.loads(event.text)  # one of our own: the broker has no pickle to write
    return ": ".join([name, *map(str, args[:1])])


def rate_text(interval: float) -> str:
    """Return a rate limit as it is written, from the seconds between two starts.

    >>> rate_text(0.1), rate_text(6.0), rate_text(3600.0)
    ('10/s', '10/m', '1/h')
    """
    for seconds, unit in ((1, "s"), (60, "m"), (3600, "h")):
        if interval <= seconds:
            return f"{seconds / interval:.4g}/{unit}"
    return f"{3600 / interval:.4g}/h"
