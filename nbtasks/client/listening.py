"""State messages: what `on_message` is told of a task."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from nbtasks.client import outcome, waiting
from nbtasks.client.family import Listener
from nbtasks.core import states
from nbtasks.core.messages import Event
from nbtasks.exceptions import OperationalError
from nbtasks.wire import payloads

if TYPE_CHECKING:
    from nbtasks.client.client import Record
    from nbtasks.client.result import AsyncResult


class Facts(NamedTuple):
    """What was fixed when a task was sent."""

    name: str | None = None
    queue: str | None = None
    parent: str | None = None
    group: str | None = None
    body: bytes = b""
    buffers: Sequence[Any] = ()

    def arguments(self) -> tuple[Any, Any]:
        """Return `(args, kwargs)`."""
        if not self.body and not self.buffers:
            return None, None
        args, kwargs = payloads.loads(self.body, self.buffers)
        # Serializers other than pickle make a list of them.
        return tuple(args), kwargs


class Messages:
    """Tells one listener of each state message of one task, in order and once."""

    __slots__ = ("_end", "_facts", "_listener", "_result", "_retries", "seen")

    def __init__(
        self, result: AsyncResult, listener: Listener, timeout: float | None = None
    ) -> None:
        self._result = result
        #: When whoever waits will give up.
        self._end = time.monotonic() + (math.inf if timeout is None else timeout)
        self._listener = listener
        #: Number of the last event that was looked at.
        self.seen = 0
        #: What is the same in all messages of the run after so many retries.
        self._facts: dict[str, Any] = {}
        self._retries = -1

    def owed(self, record: Record) -> bool:
        """Say whether something is not told yet: more may come while the listener is called."""
        return record.n > self.seen or record.over

    def tell(self, record: Record) -> None:
        """Tell what has not been told yet."""
        for event in outcome.news(record, self.seen):
            self.seen = event.n
            if event.kind == "state":
                self._listener(self._body(record, event))

    def _body(self, record: Record, event: Event) -> dict[str, Any]:
        done = event.final or event.state in states.READY_STATES
        if event.retries != self._retries:
            self._facts, self._retries = self._fixed(event.retries), event.retries
        return {
            "task_id": record.id,
            "status": event.state,
            "result": self._value(record, event),
            "traceback": outcome.traceback_of(record, event, self._result._name),
            "children": [((child, None), None) for child in event.children],
            "date_done": outcome.moment(event.at).isoformat() if done else None,
            "worker": event.worker or None,
            "retries": event.retries,
            **self._facts,
        }

    def _value(self, record: Record, event: Event) -> Any:
        if event.state in states.EXCEPTION_STATES:
            return self._result._reason(record, event)
        return outcome.load(record, event)

    def _fixed(self, retries: int) -> dict[str, Any]:
        # A moment for a mere question (`timeout=0`), too.
        patience = min(waiting.PATIENCE, max(waiting.BEAT, self._end - time.monotonic()))
        try:
            facts = self._result._facts(retries, patience)
        except (TimeoutError, OperationalError):  # the broker does not answer
            facts = self._result._own_facts()
        args = kwargs = None
        with contextlib.suppress(Exception):  # a message about the task matters more
            args, kwargs = facts.arguments()
        fixed = {"name": facts.name, "args": args, "kwargs": kwargs, "queue": facts.queue}
        if facts.group:
            fixed["group_id"] = facts.group
        if facts.parent:
            fixed["parent_id"] = facts.parent
        return fixed
