"""The items of a `map`, on their way through the workers.

    items  ──▶ chunks ──▶ tasks, some ahead of the workers ──▶ values, in order
      ▲          ▲                      │
      │          └── how long one took ─┤
      └───────── what it did not reach ─┘

The first chunk holds one item, the next few hold what is sent in no time. How long they take says
how many items the others hold, so that a chunk is worth the journey and no worker is left with a
long one at the end. One quick item says little of the next: so a chunk that turns out to be long
ends early, and what it has not reached is sent again. A chunk is sent when one has ended, by
whoever notices first: the caller who wants its values, or the callback.
"""

from __future__ import annotations

import threading
import time
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import cached_property, partial
from itertools import islice
from typing import Any, Final, NamedTuple, cast

from nbtasks import config
from nbtasks.client import waiting
from nbtasks.client.callbacks import settling
from nbtasks.client.result import AsyncResult
from nbtasks.client.shape import name_of
from nbtasks.client.task import Task, make
from nbtasks.exceptions import OperationalError, TaskRevokedError

#: Seconds that a chunk shall take, and what it shall take at least, which the journey is worth.
WORTH: Final = 0.1
LEAST: Final = 0.005
#: How often a worker looks at the clock while it does a chunk, seconds.
LOOK: Final = 0.01
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
        #: Items of the next chunk, and whether that may change.
        self._size, self._adapts = size or 1, size is None
        #: So many items are worth a journey.
        self._least = 1
        #: Whether a chunk has ended.
        self._learned = False
        self._count = min(map(len, self._columns), default=0)
        #: No item from this one on is sent any more.
        self._end = self._count
        #: What is to be sent, in order: the first item, and the one after the last.
        self._gaps: list[tuple[int, int]] = []
        #: Chunks whose values nobody has fetched, by the place of their first item.
        self._sent: dict[int, AsyncResult] = {}
        #: Those that are not over.
        self._flying: dict[AsyncResult, _Flight] = {}
        #: What is raised where the values of items would be that are not sent.
        self._failed: Exception = CancelledError()
        self._cancelled = False
        self._over = over
        # A callback may come while its own thread is in here, on a busy machine.
        self._lock = threading.RLock()
        self._leave(0, self._count)
        if not config.settings().task_always_eager:
            waiting.client()  # raises here what keeps a cluster from being started

    @cached_property
    def _most(self) -> int:
        """How many are on their way at once; it is asked once the first is."""
        if config.settings().task_always_eager:
            return AHEAD
        return AHEAD * max(1, int(waiting.client().ask("wanted")))

    def feed(self) -> None:
        """Send as many chunks as the workers need to be busy."""
        with self._lock:
            while self._gaps and (not self._flying or len(self._flying) < self._most):
                self._send()
            if not self._flying:
                self._over(self)

    def _send(self) -> None:
        """Send the first chunk of all that is to be sent."""
        place, end = self._gaps[0]
        size = min(self._size, end - place)
        if self._adapts and size > 1:  # towards the end, something for each
            left = sum(end - place for place, end in self._gaps)
            share = left // self._most if self._learned else left // self._most // CAREFUL
            size = min(size, max(self._least, share))
        items = [column[place : place + size] for column in self._columns]
        began = time.monotonic()
        count = f"{size:,} items" if size > 1 else "1 item"
        try:
            result = self._task.apply_async(items, shadow=self._name, argsrepr=count)
        except Exception as error:
            self._failed, self._end = error, place
            self._gaps.clear()
            return
        del self._gaps[0]
        self._leave(place + size, end)
        self._sent[place] = result
        sending = time.monotonic() - began
        self._flying[result] = _Flight(place, size, sending)
        if self._adapts and not self._learned:
            self._size = _worth(sending / size, WORTH)
        when_over(result, self._note)

    def _leave(self, place: int, end: int) -> None:
        """Note that these items are to be sent."""
        end = min(end, self._end)
        if place < end:
            insort(self._gaps, (place, end))

    def _note(self, result: AsyncResult) -> None:
        """Learn from a chunk that is over, and send the next."""
        with self._lock:
            flight = self._flying.pop(result, None)
            if flight is not None and self._adapts:
                self._judge(result, flight)
            self.feed()

    def _judge(self, result: AsyncResult, flight: _Flight) -> None:
        """Learn from a chunk how many items the next one shall hold, and what it has left over."""
        place, size, sending = flight
        record = result._record
        final = None if record is None else record.final
        runtime = 0.0 if final is None else final.runtime
        done = size if final is not None and runtime < WORTH / 2 else _done(result, size)
        each = max(sending / size, runtime / done)
        self._size, self._least = _worth(each, WORTH), _worth(each, LEAST)
        self._learned = True
        self._leave(place + done, place + size)

    def values(self, end: float | None) -> Iterator[Any]:
        """Yield the values, in order.

        Parameters
        ----------
        end
            Until when to wait, monotonic seconds; None: no limit.
        """
        place = 0
        try:
            while place < self._count:
                result = self._take(place)
                left = None if end is None else max(0.0, end - time.monotonic())
                try:
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
            if place not in self._sent and self._gaps:  # what is wanted first comes first there
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
            self._note(result)

    def cancel(self) -> None:
        """Let nothing begin any more."""
        self._cancelled = True
        self._stop()

    def _stop(self) -> None:
        with self._lock:
            self._end = 0
            self._gaps.clear()
            flying = list(self._flying)
        with suppress(OperationalError):  # there is no cluster any more
            for result in flying:
                if not result.ready():
                    result.revoke()


def when_over(result: AsyncResult, function: Callable[[AsyncResult], object]) -> None:
    """Call a function once a task is over, in the thread of settlings."""
    result._when_over(lambda: settling.post(partial(function, result)))


def called(fn: Callable[..., Any]) -> str:
    """Return the name of a function, or of a task."""
    return str(fn.name) if isinstance(fn, Task) else name_of(fn)


def _worth(each: float, seconds: float) -> int:
    """Return how many items take so many seconds."""
    return max(1, int(seconds / max(each, 1e-9)))


def _done(result: AsyncResult, size: int) -> int:
    """Return how many items a chunk of `size` has done."""
    try:
        values = result.result
    except Exception:  # it is raised where the values would be
        return size
    return len(values) if isinstance(values, list) else size


def _columns(iterables: Sequence[Iterable[Any]]) -> list[Sequence[Any]]:
    """Return the items of each iterable, as many as the shortest has; another may have no end."""
    # A range is sent as one; all else is read now, and may change afterwards.
    if all(isinstance(each, range) for each in iterables):
        return list(cast("Sequence[range]", iterables))
    if len(iterables) == 1:
        return [list(iterables[0])]
    return list(zip(*zip(*iterables, strict=False), strict=True))


def _each(fn: Callable[..., Any], in_haste: bool) -> Callable[..., list[Any]]:
    """Return a function that calls `fn` with each row of some columns.

    In haste, it returns the values of the first rows only once it has taken `WORTH` seconds.
    """
    from nbtasks.life import finish

    before, worth, look = _BEFORE, WORTH, LOOK

    def each(*columns: Sequence[Any]) -> list[Any]:
        values: list[Any] = []
        calls = map(finish, map(fn, *columns))
        size = len(columns[0])
        step = 1 if in_haste else size
        began = time.perf_counter()
        taken = 0.0
        try:
            while len(values) < size and (taken < worth or not in_haste):
                goal = min(len(values) + step, size)
                values.extend(islice(calls, goal - len(values)))
                if len(values) < goal:  # to `extend`, this is the end of the items
                    raise RuntimeError("The function raised StopIteration, which no call may.")
                taken = time.perf_counter() - began
                step = min(2 * step, 1 + int(look * goal / max(taken, 1e-9)))
        except Exception as error:
            vars(error)[before] = values  # they were asked for, too
            raise
        return values

    return each
