"""Follow submitted tasks and have whoever draws them do so, not too often.

    client's I/O thread            flusher thread                      cell's thread
    callback: note the row   ───▶  at most 20 times a second:   ◀───  end of the cell:
    as changed, wake               catch up, paint, send               flush now, finish

The I/O thread must never wait for a front end, nor unpickle what a task said: it adds a number to a
set. All else is done by the one flusher thread, or by the thread that runs the cell.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from nbtasks.client import client
from nbtasks.core.messages import Event, Now
from nbtasks.jupyter.rows import FINAL, Row, ended, total

log = logging.getLogger("nbtasks.jupyter")

#: Seconds between two drawings: 20 a second, over all panels together.
PERIOD = 0.05


class Drawn(Protocol):
    """Somebody who draws."""

    def flush(self) -> None: ...


class Flusher:
    """The one thread that draws; it sleeps while nothing changes."""

    def __init__(self) -> None:
        self._due: set[Drawn] = set()
        self._awake = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def wake(self, drawn: Drawn) -> None:
        """Have this drawn soon. Cheap, and callable from any thread."""
        if drawn in self._due:
            return
        with self._lock:
            self._due.add(drawn)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="nbtasks-panel", daemon=True)
                self._thread.start()
        self._awake.set()

    def _run(self) -> None:
        while True:
            self._awake.wait()
            time.sleep(PERIOD * max(1, len(self._due)))
            with self._lock:
                due, self._due = self._due, set()
                self._awake.clear()
            for drawn in due:
                try:
                    drawn.flush()
                except Exception:
                    log.exception("A panel could not be drawn; the tasks go on.")


flusher = Flusher()


class _Alarm:
    """Released like the lock of somebody who waits: a refused submission has no event to tell."""

    __slots__ = ("_index", "_watch")

    def __init__(self, watch: Watch, index: int) -> None:
        self._watch = watch
        self._index = index

    def release(self) -> None:
        if self._watch.rows[self._index].record.error is not None:
            self._watch._note(self._index)


class Watch:
    """The rows of one panel, which of them have changed, and how many are in which state.

    `add` may be called by any thread. All that counts (`look`, `paint`, `settle`, `total`) is
    called by whoever draws, one thread at a time.
    """

    def __init__(self, drawn: Drawn) -> None:
        self.rows: list[Row] = []
        self.counts: Counter[str] = Counter()
        self._drawn = drawn
        self._index: dict[str, int] = {}
        self._changed: set[int] = set()

    def add(self, record: client.Record, called: tuple[str, str] | None = None) -> None:
        """Follow a task from now on (once, however often it is added).

        Called for each submission, so it leaves all that can wait to the flusher.

        Parameters
        ----------
        record
            What the client knows of it.
        called
            The task's name and its arguments as text, where the record does not know them because
            another process has sent it.
        """
        if record.id in self._index:
            return
        index = self._index[record.id] = len(self.rows)
        self.rows.append(Row(record, index, called))
        record.subscribe(self._hear)
        record.waiters.append(_Alarm(self, index))
        self._note(index)

    def _hear(self, record: client.Record, event: Event) -> None:
        self._note(self._index[record.id])

    def _note(self, index: int) -> None:
        self._changed.add(index)
        flusher.wake(self._drawn)

    def look(self, instant: Now) -> list[Row]:
        """Return the rows that changed since the last look, in order."""
        found = [self.rows[index] for index in sorted(self._take())]
        for row in found:
            self._count(row, instant)
        return found

    def _take(self) -> set[int]:
        # Not a swap: what another thread adds in between must not get lost.
        taken: set[int] = set()
        while self._changed:
            taken.add(self._changed.pop())
        return taken

    def _count(self, row: Row, instant: Now) -> None:
        if row.state:
            self.counts[row.state] -= 1
        self.counts[row.look(instant)] += 1

    def paint(self, rows: Iterable[Row], instant: Now) -> list[dict[str, Any]]:
        """Return all that is drawn of these rows."""
        painted = [row.paint(instant, load) for row in rows]
        for row in painted:
            if "attempt" in row:
                row["attempts"] = most_attempts(self.rows[row["i"]].called[0])
        return painted

    def settle(self) -> bool:
        """Look at all rows that are open, told of or not; return whether every task is over."""
        instant = now()
        for row in self.rows:
            if row.state not in FINAL:
                before = row.state
                self._count(row, instant)
                if row.state != before:
                    self._changed.add(row.index)
        return self.over

    @property
    def over(self) -> bool:
        return ended(self.counts) == len(self.rows)

    def total(self) -> dict[str, Any]:
        """Return the counts, when the first was sent, and when the last ended."""
        ends = [row.record.ended_at or 0.0 for row in self.rows] if self.over else []
        began = self.rows[0].record.created if self.rows else 0.0
        return {**total(self.counts), "began": began, "ended": max(ends, default=0.0) or None}

    def open_ids(self, indices: Iterable[int] | None = None) -> list[str]:
        """Return the ids of the tasks that are not over."""
        rows = self.rows if indices is None else [self.rows[i] for i in indices]
        return [row.record.id for row in rows if not row.final]


def most_attempts(name: str) -> int | None:
    """Return how often a task may run at most, or None when this process does not know."""
    found: Any = known_tasks().get(name)
    if found is None:
        return None
    limit = (getattr(found, "retry_kwargs", None) or {}).get("max_retries", found.max_retries)
    return None if limit is None else int(limit) + 1


def known_tasks() -> Mapping[str, Any]:
    """Return the tasks that this process knows, by name."""
    from nbtasks.client import task

    return task.tasks


def load(record: client.Record, event: Event) -> Any:
    """Return the value that an event carries."""
    from nbtasks.client import outcome

    return outcome.load(record, event)


def now() -> Now:
    """Return this instant on both clocks (the boot clock is that of `wire.connection`)."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return Now(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME))
    return Now(time.time(), time.monotonic())
