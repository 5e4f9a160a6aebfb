"""The tasks of which this process has, or wants, news."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from nbtasks.client.record import Record, ring, size_of

#: Ended tasks of which late words (output of handlers) are still taken in, and bytes of arguments
#: and results that these may hold.
RECENT = 2_000
RECENT_BYTES = 16 * 1024**2


class Records:
    """All open tasks by id, and those that ended lately."""

    def __init__(self) -> None:
        self.open: dict[str, Record] = {}
        self.recent: dict[str, Record] = {}
        #: Ids and bytes of the recent ones, oldest first. (The first key of a dict that loses its
        #: first key all the time takes long to find.)
        self._endings: deque[tuple[str, int]] = deque()
        self._size = 0

    def get(self, task_id: str) -> Record | None:
        """Return what is known of a task, or None."""
        return self.open.get(task_id) or self.recent.get(task_id)

    def hears_of(self, record: Record) -> bool:
        """Whether news of this task still reaches this very record."""
        return record in (self.open.get(record.id), self.recent.get(record.id))

    def settle(self, record: Record) -> None:
        """Note that a task is over; it is forgotten in a while."""
        self.open.pop(record.id, None)
        self.recent[record.id] = record
        size = size_of(record)
        self._endings.append((record.id, size))
        self._size += size
        while len(self._endings) > RECENT or self._size > RECENT_BYTES:
            task_id, size = self._endings.popleft()
            self.recent.pop(task_id, None)
            self._size -= size

    def fail(self, record: Record, error: Exception) -> None:
        """Let a task have no outcome but an error, and those go on that wait for it."""
        record.error = error
        self.open.pop(record.id, None)
        ring(record)

    def reopen(self, task_id: str) -> None:
        """Note that a task runs again that had ended."""
        if task_id in self.recent:
            self.open[task_id] = self.recent.pop(task_id)

    def drop(self, task_ids: Iterable[str]) -> None:
        """Know nothing of these tasks any more."""
        for task_id in task_ids:
            self.open.pop(task_id, None)
            self.recent.pop(task_id, None)
