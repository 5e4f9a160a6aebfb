"""What one may ask a broker: `_answer_WORD` answers `Ask(what="WORD")`.

All answers tell what is saved: they are given after the turn's commit.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from nbtasks.core.messages import Answer, Ask, Now
from nbtasks.exceptions import ClusterError
from nbtasks.wire.connection import STORE_FILE

if TYPE_CHECKING:
    from nbtasks.broker.rows import TaskRow
    from nbtasks.broker.server import Server


class Questions:
    """The answers of one broker."""

    def __init__(self, server: Server) -> None:
        self._server = server

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
        scheduler = self._server.scheduler
        return {
            "broker_pid": os.getpid(),
            "supervisor_pid": os.getppid(),
            "instance": self._server.instance.hex(),
            "uptime": instant.boot - self._server.started.boot,
            "durability": self._server.settings.durability,
            "store": str(Path(self._server.settings.data) / STORE_FILE),
            "store_failing": self._server.store_failed_at is not None,
            "wanted": scheduler.wanted,
            "clients": len(scheduler.clients),
            "phases": scheduler.phases(),
            "states": self._server.store.counts(),
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
        return [self._describe(row) for row in self._server.store.listing(state, limit)]

    def _answer_show(self, instant: Now, id: str) -> dict[str, Any] | None:
        row = self._server.store.find(id)
        if row is None:
            return None
        saved = self._server.store.calls([row.seq]).get(row.seq)
        call = saved[0] if saved else None
        options = call.options if call is not None else None
        return self._describe(row) | {
            "children": self._server.store.children(id),
            "root": row.root or row.id,
            "deaths": row.deaths,
            "eta": call.eta if call is not None else None,
            "expires": call.expires if call is not None else None,
            "body": call.body if call is not None else b"",
            "buffers": [bytes(buffer) for buffer in saved[1]] if saved else [],
            "options": msgspec.structs.asdict(options) if options is not None else {},
            "events": [
                msgspec.structs.asdict(event) | {"body": b""}
                for event, _ in self._server.store.events(row.seq, 0)
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
        count, actions = self._server.scheduler.purge(instant)
        self._server.carry_out(actions, instant)
        return count

    def _answer_children(self, instant: Now, id: str) -> list[str]:
        return self._server.store.children(id)

    def _answer_put(self, instant: Now, key: str, value: bytes) -> None:
        self._server.store.put(key, value)

    def _answer_peek(self, instant: Now, key: str) -> bytes | None:
        return self._server.store.peek(key)

    def _answer_take(self, instant: Now, key: str) -> bytes | None:
        return self._server.store.take(key)
