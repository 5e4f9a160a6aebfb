"""The items of a `map`, on their way through the workers.

    items  ──▶ chunks ──▶ tasks, some ahead of the workers ──▶ values, in order
      ▲          ▲                      │
      │          └── how long one took ─┤
      └───────── what it did not reach ─┘

The first chunk holds one item; until it is known how long items take, the others hold as many as
are sent in a moment, but a small part of all. From then on a chunk is worth the journey, and no
worker is left with a long one at the end. One quick item says little of the next: so a chunk that
turns out to be long ends early, and what it has not reached is sent again. A chunk is sent when one
has ended, by whoever notices first: the caller who wants its values, or the callback.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from itertools import islice
from typing import Any, Final, NamedTuple, cast

from nbtasks import config
from nbtasks.client import outcome, waiting
from nbtasks.client.callbacks import when_over
from nbtasks.client.result import AsyncResult
from nbtasks.client.shape import name_of
from nbtasks.client.task import Task, make
from nbtasks.exceptions import DecodeError, Ignore, OperationalError, TaskRevokedError

#: Seconds that a chunk is meant to take, and at least, so that it is worth the journey.
WORTH: Final = 0.1
LEAST: Final = 0.005
#: Seconds after which a chunk ends early, how often a worker looks whether they are over, and how
#: many items it does at most between two looks.
LATE: Final = 0.2
LOOK: Final = 0.01
AT_ONCE: Final = 100
#: Chunks for each worker on their way.
AHEAD: Final = 2
#: As long as no chunk has ended, one holds this part of its share at most: what has begun cannot be
#: cancelled any more.
CAREFUL: Final = 32
#: Attribute of an exception that holds the values of its chunk that came before.
_BEFORE: Final = "_values_before"


class _Flight(NamedTuple):
    """A chunk on its way."""

    #: Place of its first item, and how many it has.
    place: int
    size: int
    #: Seconds that it took to send it.
    sending: float


class Chunks:
    """Items on their way through the workers.

    Parameters
    ----------
    fn
        Called with one item of each iterable.
    iterables
        They are read at once, to the end of the shortest.
    size
        Items of one chunk; None: as many as take `WORTH` seconds.
    over
        Called with this when nothing is on its way any more.

    Raises
    ------
    OperationalError
        When there is no cluster.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        iterables: Sequence[Iterable[Any]],
        size: int | None,
        over: Callable[[Chunks], object],
    ) -> None:
        self._name = called(fn)
        self._task = make(_each(fn, in_haste=size is None), {"name": f"map {self._name}"})
        self._columns = _columns(iterables)
        self._count = min(map(len, self._columns), default=0)
        #: Items of the next chunk, and whether that may change.
        self._size, self._adapts = size or 1, size is None
        #: So many items are worth a journey.
        self._least = 1
        #: Whether a chunk has ended.
        self._learned = False
        #: How many chunks may be on their way: one, until it is known how many workers there are.
        self._most, self._asked = 1, False
        #: What is to be sent, in order: the first item, and the one after the last.
        self._gaps: list[tuple[int, int]] = []
        #: From this item on, nothing is sent any more.
        self._until = self._count
        #: Chunks whose values nobody has fetched, by the place of their first item.
        self._sent: dict[int, AsyncResult] = {}
        #: Those that are not over.
        self._flying: dict[AsyncResult, _Flight] = {}
        #: What is raised where the values of items would be that are not sent.
        self._failed: Exception = CancelledError()
        self._cancelled = False
        self._over = over
        # It is entered again when a click cancels what is just being sent, or the values of another
        # map are given up there.
        self._lock = threading.RLock()
        self._owe(0, self._count)
        if config.settings().task_always_eager:
            self._most, self._asked = AHEAD, True
        else:
            waiting.client()  # raises here what keeps a cluster from being started

    def feed(self) -> None:
        """Send as many chunks as the workers need to be busy."""
        with self._lock:
            while len(self._flying) < self._room() and self._gaps:
                self._send()
            if not self._flying:
                self._over(self)

    def _room(self) -> int:
        """Return how many chunks may be on their way; the broker is asked once the first is."""
        if self._flying and not self._asked:
            self._most = AHEAD * max(1, int(waiting.client().ask("wanted")))
            self._asked = True
        return self._most

    def _send(self) -> None:
        """Send the first chunk of all that is to be sent."""
        left = sum(after - first for first, after in self._gaps)
        place, after = self._gaps.pop(0)
        size = min(self._size, after - place)
        if self._adapts and size > 1:  # towards the end, something for each
            share = left // self._most // (1 if self._learned else CAREFUL)
            size = min(size, max(self._least, share))
        self._owe(place + size, after)
        items = [column[place : place + size] for column in self._columns]
        count = f"{size:,} items" if size > 1 else "1 item"
        began = time.monotonic()
        try:
            result = self._task.apply_async(
                items, shadow=self._name, argsrepr=count, ignore_result=False
            )
        except Exception as error:
            self._failed, self._until = error, min(place, self._until)
            self._gaps.clear()
            return
        sending = time.monotonic() - began
        self._sent[place] = result
        self._flying[result] = _Flight(place, size, sending)
        if self._adapts and not self._learned:
            self._size = _worth(sending / size, WORTH)
        when_over(result, self._note)
        if place >= self._until:  # all was cancelled meanwhile
            self._stop()

    def _owe(self, place: int, after: int) -> None:
        """Note that these items are still to be sent."""
        after = min(after, self._until)
        if place < after:
            insort(self._gaps, (place, after))

    def _note(self, result: AsyncResult) -> None:
        """Learn from a chunk that is over, and send the next."""
        flight = self._flying.get(result)
        if flight is None:
            return
        record = result._record
        final = None if record is None else record.final
        # An eager chunk has run while it was sent.
        runtime = flight.sending if record is None else 0.0 if final is None else final.runtime
        done = flight.size
        if self._adapts and done > 1 and runtime >= LATE:
            # Not under the lock: to load values, modules may be imported that are waiting for it.
            done = _done(result, done)
        with self._lock:
            if self._flying.pop(result, None) is not None and self._adapts:
                self._judge(flight, runtime, done)
            if record is not None and record.error is not None:
                self._stop()  # its cluster is gone, and nobody wants another one for the rest
            self.feed()

    def _judge(self, flight: _Flight, runtime: float, done: int) -> None:
        """Learn from a chunk how many items the next one shall hold, and what it has left over."""
        place, size, sending = flight
        pace = max(sending / size, runtime / done)
        self._size, self._least = _worth(pace, WORTH), _worth(pace, LEAST)
        self._learned = True
        self._owe(place + done, place + size)

    def values(self, deadline: float | None) -> Iterator[Any]:
        """Yield the values, in order.

        Parameters
        ----------
        deadline
            Until when to wait, monotonic seconds; None: no limit.
        """
        place = 0
        try:
            while place < self._count:
                try:
                    result = self._take(place)
                    left = None if deadline is None else max(0.0, deadline - time.monotonic())
                    values = result.get(timeout=left, disable_sync_subtasks=False)
                except TaskRevokedError:
                    if self._cancelled:
                        raise CancelledError from None
                    raise
                except Exception as error:
                    before = vars(error).pop(_BEFORE, None)
                    if isinstance(before, list):  # it is a text where they cannot be pickled
                        yield from before
                    raise
                self._note(result)
                place += len(values)
                yield from values
        finally:
            self._stop()

    def _take(self, place: int) -> AsyncResult:
        """Return the chunk that begins with this item, and forget it."""
        with self._lock:
            if place not in self._sent:
                # A chunk that failed and was told to run again may have left over something.
                known = [*self._sent, *(first for first, _ in self._gaps), self._count]
                self._owe(place, min(known))
                if self._gaps:
                    self._send()
            if place not in self._sent:
                raise self._failed
            return self._sent.pop(place)

    def wait(self) -> None:
        """Return when nothing is on its way any more."""
        while True:
            with self._lock:
                result = next(iter(self._flying), None)
            if result is None:
                return
            try:
                result.get(propagate=False, disable_sync_subtasks=False)
            except OperationalError:  # there is no cluster any more
                self._stop()
                return
            except DecodeError:
                pass  # for whoever wants its values
            self._note(result)

    def cancel(self) -> None:
        """Let nothing begin any more."""
        self._cancelled = True
        self._stop()

    def _stop(self) -> None:
        with self._lock:
            self._until = 0
            self._gaps.clear()
            flying = list(self._flying)
        with suppress(OperationalError):  # there is no cluster any more
            for result in flying:
                if not result.ready():
                    result.revoke()


def called(fn: Callable[..., Any]) -> str:
    """Return the name of a function, or of a task."""
    return str(fn.name) if isinstance(fn, Task) else name_of(fn)


def _worth(pace: float, seconds: float) -> int:
    """Return how many items take so long, if one takes `pace` seconds."""
    return max(1, int(seconds / max(pace, 1e-9)))


def _done(result: AsyncResult, size: int) -> int:
    """Return how many items a chunk of `size` has done; the values, maybe large, are not kept."""
    record = result._record
    try:
        if record is None or record.final is None:
            values = result.result
        else:
            values = outcome.load(record, record.final)
    except Exception:  # it is raised where the values would be
        return size
    return max(1, len(values)) if isinstance(values, list) else size


def _columns(iterables: Sequence[Iterable[Any]]) -> list[Sequence[Any]]:
    """Return the items of each iterable, as many as the shortest has; another may have no end."""
    # A range is sent as one; all else is read now, and may change afterwards.
    if all(isinstance(items, range) for items in iterables):
        return list(cast("Sequence[range]", iterables))
    if len(iterables) == 1:
        return [list(iterables[0])]
    return list(zip(*zip(*iterables, strict=False), strict=True))


def _each(fn: Callable[..., Any], in_haste: bool) -> Callable[..., list[Any]]:
    """Return a function that calls `fn` with each row of some columns.

    In haste, it returns the values of the first rows only once it has taken `LATE` seconds.
    """
    from nbtasks.life import finish

    late = LATE if in_haste else math.inf
    before, look, at_once, ignore = _BEFORE, LOOK, AT_ONCE, Ignore

    def each(*columns: Sequence[Any]) -> list[Any]:
        values: list[Any] = []
        calls = map(finish, map(fn, *columns))
        size = len(columns[0])
        step = 1 if in_haste else size
        began = time.perf_counter()
        taken = 0.0
        try:
            while len(values) < size and taken < late:
                goal = min(len(values) + step, size)
                values.extend(islice(calls, goal - len(values)))
                if len(values) < goal:  # to `extend`, this is the end of the items
                    raise RuntimeError("The function raised StopIteration, which no call may.")
                taken = time.perf_counter() - began
                step = min(2 * step, 1 + int(look * goal / max(taken, 1e-9)), at_once)
        except ignore:
            error = RuntimeError("The function raised Ignore, but map wants a value of each call.")
            vars(error)[before] = values
            raise error from None
        except Exception as error:
            vars(error)[before] = values  # they were asked for, too
            raise
        return values

    return each
