"""Follow submitted tasks and have whoever draws them do so, not too often.

    client's I/O thread            flusher thread                      cell's thread
    callback: note the row   ───▶  at most 20 times a second:   ◀───  end of the cell:
    as changed, wake               catch up, paint, send               flush now, finish
                                        ▲
                                   outlook thread: what no event tells (nbtasks.jupyter.outlook)

The I/O thread must never wait for a front end, nor unpickle what a task said: it adds a number to a
set. All else is done by the one flusher thread, or by the thread that runs the cell.

When a panel is over it lets go of its records, which hold results: each row keeps what was drawn of
it (it is frozen), and listens whether its task is run once more (then it thaws).
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from nbtasks.client import client, waiting
from nbtasks.core.messages import Event, Now
from nbtasks.jupyter.outlook import Named, Wants, client_at, home_of, outlook
from nbtasks.jupyter.pace import Throughput
from nbtasks.jupyter.rows import FINAL, Row, ended, total

log = logging.getLogger("nbtasks.jupyter")

#: Seconds between two drawings: 20 a second, over all panels together.
PERIOD = 0.05

#: A drawing that takes long is followed by a pause so many times as long, seconds at most.
REST = 3
LONGEST = 2.0

#: Rows that are drawn; the rest is counted.
LIMIT = 10_000

#: Seconds in which the broker must have heard of the tasks that a task says it has sent.
GRACE = 10.0

#: What the rows of a panel that is over hold: it says nothing, and keeps nothing alive.
NOBODY = client.Record("")


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
        rest = 0.0
        while True:
            self._awake.wait()
            time.sleep(max(rest, PERIOD * max(1, len(self._due))))
            with self._lock:
                due, self._due = self._due, set()
                self._awake.clear()
            began = time.perf_counter()
            self._draw(due)
            # Ten thousand rows a second must leave the kernel to its user.
            rest = min(LONGEST, REST * (time.perf_counter() - began))

    def _draw(self, due: set[Drawn]) -> None:
        for drawn in due:
            try:
                drawn.flush()
            except Exception:
                log.exception("A panel could not be drawn; the tasks go on.")


flusher = Flusher()


class _Alarm:
    """Released like the lock of somebody who waits: a refused submission has no event to tell."""

    __slots__ = ("_index", "watch")

    def __init__(self, watch: Watch, index: int) -> None:
        self.watch = watch
        self._index = index

    def release(self) -> None:
        if self.watch.rows[self._index].record.error is not None:
            self.watch._note(self._index)


class Watch:
    """The rows of one panel, which of them have changed, and how many are in which state.

    `add` may be called by any thread. All that counts (`look`, `paint`, `settle`, `total`) is
    called by whoever draws, one thread at a time; `want` and `learn` by the thread that asks.
    """

    def __init__(self, drawn: Drawn) -> None:
        self.rows: list[Row] = []
        self.counts: Counter[str] = Counter()
        #: What the broker said of its queue; None: unknown, or nobody waits.
        self.queue: dict[str, Any] | None = None
        #: Whether there is something to tell that is in no row.
        self.news = False
        #: Runtime directory of the cluster that the tasks are in.
        self.home: Path | None = None
        self._drawn = drawn
        self._index: dict[str, int] = {}
        self._changed: set[int] = set()
        #: Index of a row that is over → since when the broker is to tell more of it.
        self._owed: dict[int, float] = {}
        #: Index of a frozen row → its task's record, while somebody else holds it.
        self._let_go: dict[int, weakref.ref[client.Record]] = {}
        self._throughput = Throughput()
        self._told_rate: float | None = None
        self._ended_at = 0.0
        self._began = 0.0
        self._lock = threading.Lock()
        #: Always the same object: that is how a record knows whom to forget.
        self._listener = self._hear

    def add(
        self,
        record: client.Record,
        called: tuple[str, str] | None = None,
        parent: int | None = None,
    ) -> None:
        """Follow a task from now on (once, however often it is added).

        Called for each submission, so it leaves all that can wait to the flusher.

        Parameters
        ----------
        record
            What the client knows of it.
        called
            The task's name and its arguments as text, where the record does not know them because
            another process has sent it.
        parent
            Index of the row of the task that has sent it.
        """
        with self._lock:
            if record.id in self._index:
                return
            index = len(self.rows)
            self.rows.append(Row(record, index, called, parent))
            self._index[record.id] = index
        if index == 0:
            self.home, self._began = home_of(record), record.created
        record.listen(self._listener)
        record.add_waiter(_Alarm(self, index))
        self._note(index)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._index

    def _hear(self, record: client.Record, event: Event) -> None:
        index = self._index[record.id]
        if self.rows[index].record is not record:
            if event.kind != "again":
                return  # a frozen row: the output of handlers, say
            self._thaw(index, record)
        self._note(index)

    def _note(self, index: int) -> None:
        self._changed.add(index)
        flusher.wake(self._drawn)

    # ------------------------------------------------------------------------ for whoever draws

    def look(self, instant: Now) -> list[Row]:
        """Return the rows that changed since the last look, in order."""
        found = [self.rows[index] for index in sorted(self._take())]
        for row in found:
            self._count(row, instant)
        if not self.over:
            outlook.follow(self)
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
        record = row.record
        if row.state in FINAL and record.final is not None:
            self._ended_at = max(self._ended_at, record.ended_at or 0.0)
            if not self._is_told(row):
                self._owed.setdefault(row.index, instant.boot)

    def _is_told(self, row: Row) -> bool:
        """Whether all tasks that a task has sent are rows, and the task itself has a name."""
        sent = row.record.children
        return not row.nameless and (not sent or self._index.keys() >= set(sent))

    def paint(self, rows: Iterable[Row], instant: Now) -> list[dict[str, Any]]:
        """Return all that is drawn of these rows."""
        painted = [paint(row, instant) for row in rows]
        for row in painted:
            if "attempt" in row:
                row["attempts"] = most_attempts(self.rows[row["i"]].called[0])
        return painted

    def settle(self) -> bool:
        """Look at all rows that are open, told of or not; return whether every task is over."""
        instant = now()
        for row in list(self.rows):
            if row.state not in FINAL:
                before = row.state
                self._count(row, instant)
                if row.state != before:
                    self._changed.add(row.index)
        return self.over

    def ask(self) -> None:
        """Ask the broker here and now what no event tells, as when a task starts; may wait."""
        self.settle()
        outlook.follow(self)
        outlook.look()

    @property
    def over(self) -> bool:
        """Whether all tasks have ended, and all that these have sent."""
        return ended(self.counts) == len(self.rows) and not self._owed

    def total(self) -> dict[str, Any]:
        """Return the counts, when the first was sent and the last ended, and how fast they end."""
        counts, wall = total(self.counts), now().wall
        number = counts["open"]
        self._throughput.learn(wall, counts["n"] - number)
        rate = self._told_rate = self._throughput.rate(wall) if number else None
        # What waits for a time does not end because those before it have.
        left = None if rate is None or self.counts["scheduled"] else round(number / rate, 1)
        return {
            **counts,
            "began": self._began,
            "ended": self._ended_at if self._ended_at and self.over else None,
            "rate": None if rate is None else float(f"{rate:.3g}"),
            "left": left,
        }

    # -------------------------------------------------------------------------- for whoever asks

    def want(self, most: int) -> Wants | None:
        """Return what the broker should be asked; None when there is nothing more to expect."""
        if self.over:
            return None
        self._come_back()
        instant = now()
        if self._told_rate is not None and self._throughput.rate(instant.wall) is None:
            self._tell_news()
        owed = [self.rows[index] for index in list(self._owed)]
        parents = [row.id for row in owed if row.record.children]
        wants = Wants([], parents, [row.id for row in owed if row.nameless], None)
        starts = []
        for row in self.rows[:LIMIT]:
            if row.state in FINAL:
                continue
            if row.state in ("scheduled", "retrying"):
                starts.append(row.starts(instant) or instant.wall)
                if starts[-1] <= instant.wall:
                    self._note(row.index)  # its time has come, and no event says so
            if row.state == "waiting" or row.hastened:
                wants.waiting.append(row.id)
            elif row.state == "running":
                wants.parents.append(row.id)
            if row.nameless and row.record.known:
                wants.nameless.append(row.id)
        waiting, parents, nameless = (each[:most] for each in wants[:3])
        return Wants(waiting, parents, nameless, min(starts, default=None))

    def learn(
        self, here: client.Client, answer: Mapping[str, Any], wants: Wants, named: Named
    ) -> None:
        """Take the broker's answer in."""
        self._learn_queue(answer, wants)
        for parent, sent in answer["children"].items():
            index = self._index.get(parent)
            for task_id, *called in sent if index is not None else ():
                if task_id not in self._index:
                    self.add(here.record(task_id), (called[0], called[1]), index)
        for task_id, (name, summary) in named.items():
            index = self._index.get(task_id)
            if index is not None:
                self.rows[index].called = (name or "task", summary)
                self._note(index)
        self._settle_debts()

    def _learn_queue(self, answer: Mapping[str, Any], wants: Wants) -> None:
        places, why = answer["places"], answer["why"]
        starts, expires = answer.get("starts", {}), answer.get("expires", {})
        for task_id in wants.waiting:
            row = self.rows[self._index[task_id]]
            if row.hastened and task_id in places:
                row.queue()
                self._note(row.index)
            times = starts.get(task_id), expires.get(task_id)
            if row.call is None and times != (row.start, row.expiry):
                row.start, row.expiry = times
                self._note(row.index)
            if row.why != why.get(task_id, ""):
                row.why = why.get(task_id, "")
                self._note(row.index)
        if not wants.waiting:
            self.queue = None
            return
        here = [[self._index[each], places[each]] for each in wants.waiting if each in places]
        queue = {key: answer[key] for key in ("workers", "busy", "queued")} | {"places": here}
        if queue != self.queue:
            self.queue = queue
            self._tell_news()

    def _settle_debts(self) -> None:
        """Wait no longer for what was told by now, nor for what the broker never hears of."""
        for index, since in list(self._owed.items()):
            if self._is_told(self.rows[index]) or now().boot > since + GRACE:
                del self._owed[index]
                flusher.wake(self._drawn)

    def _tell_news(self) -> None:
        self.news = True
        flusher.wake(self._drawn)

    def _come_back(self) -> None:
        """Follow again what nobody hears of any more: the cluster was stopped and started."""
        first = next((row for row in self.rows if not row.final), None)
        here = client_at(self.home)
        if first is None or here is None or not waiting.is_orphan(first.record):
            return
        for row in self.rows:
            if not row.final and not here.hears_of(row.record):
                row.thaw(here.record(row.id))
                row.record.listen(self._listener)
                if row.record.n:
                    self._note(row.index)

    # ------------------------------------------------------------------- when all tasks are over

    def let_go(self) -> None:
        """Keep of each task only what is drawn of it, and listen whether it runs once more."""
        instant = now()
        for row in self.rows:
            if row.frozen is None:
                self._freeze(row, instant)

    def _freeze(self, row: Row, instant: Now) -> None:
        record = row.record
        drawn = {"id": row.id, "state": row.state, **({"redo": True} if row.redo else {})}
        if row.index < LIMIT:
            (drawn,) = self.paint([row], instant)
        self._let_go[row.index] = weakref.ref(record)
        row.freeze(drawn, NOBODY)
        self._unhook(record)
        if not record.over:  # it was told to run again just now
            self._thaw(row.index, record)
            self._note(row.index)

    def _unhook(self, record: client.Record) -> None:
        for waiter in record.waiters:
            if type(waiter) is _Alarm and waiter.watch is self:
                record.remove_waiter(waiter)

    def _thaw(self, index: int, record: client.Record) -> None:
        self._let_go.pop(index, None)
        self.rows[index].thaw(record)

    def held(self, row: Row) -> client.Record | None:
        """Return what is known here of a row's task; None when that was let go of."""
        if row.record is not NOBODY:
            return row.record
        reference = self._let_go.get(row.index)
        return None if reference is None else reference()

    def attend(self, row: Row, here: client.Client) -> None:
        """Listen again to a task that is over: it will be told to run once more."""
        record = self.held(row)
        if record is None or not here.hears_of(record):
            record = here.record(row.id)
            if self._listener not in record.listeners:
                record.listen(self._listener)
            self._let_go[row.index] = weakref.ref(record)
        here.follow(record)

    def close(self) -> None:
        """Hear nothing more."""
        outlook.leave(self)
        for row in self.rows:
            record = self.held(row)
            if record is not None:
                record.unsubscribe(self._listener)
                self._unhook(record)


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


def paint(row: Row, instant: Now) -> dict[str, Any]:
    """Return what is drawn of a row; what its task said is left out when that cannot be read."""
    try:
        return row.paint(instant, load)
    except Exception as error:  # a class of the user's: the other rows must not go with this one
        log.debug("What task %s says cannot be drawn: %r", row.id, error)
        return row.paint(instant, lambda record, event: None)


def load(record: client.Record, event: Event) -> Any:
    """Return the value that an event carries."""
    from nbtasks.client import outcome

    return outcome.load(record, event)


def now() -> Now:
    """Return this instant on both clocks (the boot clock is that of `wire.connection`)."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return Now(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME))
    return Now(time.time(), time.monotonic())
