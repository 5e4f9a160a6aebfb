"""What one may ask a broker: `_answer_WORD` answers `Ask(what="WORD")`.

All answers tell what is saved: they are given after the turn's commit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from nbtasks.core.messages import Answer, Ask, Now
from nbtasks.exceptions import ClusterError
from nbtasks.wire.connection import STORE_FILE

if TYPE_CHECKING:
    from nbtasks.broker.rows import TaskRow
    from nbtasks.broker.store import Store
    from nbtasks.core.actions import Action
    from nbtasks.core.scheduler import Scheduler
    from nbtasks.wire.connection import Settings


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
        carry_out: Callable[[list[Action], Now], None],
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
            "wanted": scheduler.wanted,
            "clients": len(scheduler.clients),
            "phases": scheduler.phases(),
            "states": self._store.counts(),
            "workers": [
                {
                    "name": worker.name,
                    "pid": worker.pid,
                    "queues": list(worker.queues),
                    "held": len(worker.held),
                    "running": [
                        task.id for task in worker.held.values() if task.phase == "running"
                    ],
                }
                for worker in scheduler.workers.values()
                if worker.peer and not worker.dead
            ],
        }

    def _answer_list(
        self, instant: Now, state: str | None = None, limit: int = 100
    ) -> list[dict[str, Any]]:
        return [self._describe(row) for row in self._store.listing(state, limit)]

    def _answer_show(self, instant: Now, id: str) -> dict[str, Any] | None:
        row = self._store.find(id)
        if row is None:
            return None
        saved = self._store.calls([row.seq]).get(row.seq)
        call = saved[0] if saved else None
        options = call.options if call is not None else None
        return self._describe(row) | {
            "children": self._store.children(id),
            "root": row.root or row.id,
            "deaths": row.deaths,
            "eta": call.eta if call is not None else None,
            "expires": call.expires if call is not None else None,
            "body": call.body if call is not None else b"",
            "buffers": [bytes(buffer) for buffer in saved[1]] if saved else [],
            "options": msgspec.structs.asdict(options) if options is not None else {},
            "events": [
                msgspec.structs.asdict(event) | {"body": b""}
                for event, _ in self._store.events(row.seq, 0)
            ],
        }

    def _describe(self, row: TaskRow) -> dict[str, Any]:
        return {
            "id": row.id,
            "name": row.name,
            "state": row.state,
            "phase": row.phase,
            "summary": row.summary,
            "queue": row.queue,
            "priority": row.priority,
            "retries": row.retries,
            "worker": row.worker,
            "parent": row.parent,
            "accepted_at": row.accepted_at,
            "ended_at": row.ended_at,
        }

    def _answer_purge(self, instant: Now) -> int:
        count, actions = self._scheduler.purge(instant)
        self._carry_out(actions, instant)
        return count

    def _answer_children(self, instant: Now, id: str) -> list[str]:
        return self._store.children(id)

    def _answer_put(self, instant: Now, key: str, value: bytes) -> None:
        self._store.put(key, value)

    def _answer_peek(self, instant: Now, key: str) -> bytes | None:
        return self._store.peek(key)

    def _answer_take(self, instant: Now, key: str) -> bytes | None:
        return self._store.take(key)
