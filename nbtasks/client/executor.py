"""`submit` and `map`, with the words of the standard library's `concurrent.futures`.

    submit(fn, x)   ──▶ a task ──▶ Future
    map(fn, items)  ──▶ chunks ──▶ tasks, some ahead of the workers ──▶ values, in order
                          ▲                      │
                          └── how long one took ─┘

The first chunks hold one item each. How long they take says how many items the next ones hold, so
that a chunk is worth the journey and no worker is left with a long one at the end. A chunk is sent
when one has ended, by whoever notices first: the caller who wants its values, or the callback.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from concurrent.futures import Executor as BaseExecutor
from concurrent.futures import wait as wait_for
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Final, TypeVar, cast

from nbtasks import config, context
from nbtasks.client import waiting
from nbtasks.client.callbacks import finishing, settling
from nbtasks.client.eager_result import EagerResult
from nbtasks.client.result import AsyncResult
from nbtasks.client.shape import name_of
from nbtasks.client.task import Task, make
from nbtasks.exceptions import OperationalError, TaskRevokedError

T = TypeVar("T")

#: Seconds that a chunk shall take, and what it shall take at least, which the journey is worth.
WORTH: Final = 0.1
LEAST: Final = 0.005
#: How many times as many items as the last chunk the next one may hold: one quick item says little.
GROWTH: Final = 100
#: Chunks for each worker on their way.
AHEAD: Final = 2
#: Functions whose tasks are kept.
REMEMBERED: Final = 64
#: Attribute of an exception that holds the values of its chunk that came before.
_BEFORE: Final = "_values_before"


class TaskFuture(Future[T]):
    """The future of one task.

    Attributes
    ----------
    task
        Its `AsyncResult`.
    """

    def __init__(self, task: AsyncResult) -> None:
        super().__init__()
        self.task = task
        # A task may wait for it in ways that we do not see: `wait`, `as_completed`, an event loop.
        joining = ExitStack()
        joining.enter_context(context.joining())
        super().add_done_callback(lambda _: joining.close())

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Call a function once this is done; see `concurrent.futures.Future`.

        At once, here, if it is done; else in the one thread that calls these functions of all
        futures, one after the other. It may wait for other futures.
        """
        if self.done():
            super().add_done_callback(fn)
        else:
            super().add_done_callback(lambda _: finishing.post(partial(fn, self)))

    def result(self, timeout: float | None = None) -> T:
        """Return the value once it is there; see `concurrent.futures.Future`."""
        return super().result(_await([self], timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the task has raised once it is over; see `concurrent.futures.Future`."""
        return super().exception(_await([self], timeout))

    def running(self) -> bool:
        """Say whether the task is running, as far as it is known here."""
        return not (self.done() or self.task.ready()) and self.task._follow().running

    def cancel(self) -> bool:
        """Revoke the task, and forget about it; return whether it was not too late.

        A task that has begun already, unnoticed here, runs to its end.
        """
        if self.cancelled():
            return True
        if self.running() or not super().cancel():
            return False
        # Those who wait for several futures are told by this word only.
        self.set_running_or_notify_cancel()
        with suppress(OperationalError):  # there is no cluster any more
            if not self.task.ready():
                self.task.revoke()
        return True

    def lose(self, error: Exception) -> None:
        """End with an error: the cluster is gone."""
        self._end(self.set_exception, waiting.afresh(error))

    def _settle(self, task: AsyncResult) -> None:
        if self.cancelled():
            return
        try:
            value = task.get(disable_sync_subtasks=False)
        except BaseException as error:
            self._end(self.set_exception, error)
        else:
            self._end(self.set_result, value)

    def _end(self, settle: Callable[[Any], None], outcome: Any) -> None:
        try:
            settle(outcome)
        except InvalidStateError:  # cancelled at the last moment
            pass


class Executor(BaseExecutor):
    """Run functions in the background, with the words of `concurrent.futures`.

    It sends to the current cluster, which is started if there is none: what was sent goes on when
    this process ends, and shows in the panel. The cluster stays when the executor is shut down.

    Examples
    --------
    >>> with Executor() as executor:  # doctest: +SKIP
    ...     squares = list(executor.map(lambda x: x * x, range(1000)))
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shut = False
        self._pending: set[TaskFuture[Any]] = set()
        self._maps: set[_Chunks] = set()
        #: Functions of late, with the tasks that run them, by `id`.
        self._tasks: dict[int, tuple[Callable[..., Any], Task]] = {}

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> TaskFuture[T]:
        """Run a function in a worker.

        Parameters
        ----------
        fn
            Anything that can be called; a task, too.
        *args, **kwargs
            Its arguments.

        Returns
        -------
        concurrent.futures.Future
            Of its value; `task` is the `AsyncResult`.

        Raises
        ------
        RuntimeError
            When the executor was shut down.
        """
        self._check_open()
        future: TaskFuture[T] = TaskFuture(self._task_of(fn).delay(*args, **kwargs))
        with self._lock:
            self._pending.add(future)
        Future.add_done_callback(future, self._pending.discard)
        if not isinstance(future.task, EagerResult):
            dependents = waiting.client_of(future.task._follow()).dependents
            dependents.add(future)
            Future.add_done_callback(future, dependents.discard)
        _when_over(future.task, future._settle)
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
    ) -> Iterator[T]:
        """Call a function with each item, in the workers; yield the values in order.

        Parameters
        ----------
        fn
            Called as `fn(*items)`, with one item of each iterable.
        *iterables
            They are read at once, to the end of the shortest.
        timeout
            Seconds from now within which all values must have been fetched; None: no limit.
        chunksize
            Items of one task; None: as many as take about a tenth of a second.

        Returns
        -------
        iterator
            When a call fails, its exception is raised in the place of its value, and what has not
            begun is cancelled.

        Raises
        ------
        TimeoutError
            When `timeout` has passed.
        RuntimeError
            When the executor was shut down.
        ValueError
            When `chunksize` is less than 1.
        """
        self._check_open()
        if chunksize is not None and chunksize < 1:
            raise ValueError(
                f"chunksize is {chunksize}; give 1 or more, or None to have it chosen."
            )
        end = None if timeout is None else time.monotonic() + timeout
        chunks = _Chunks(fn, iterables, chunksize, self._maps.discard)
        self._maps.add(chunks)
        chunks.feed()
        return chunks.values(end)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no further functions; the cluster stays.

        Parameters
        ----------
        wait
            Whether to wait until what was submitted, or is mapped, is over.
        cancel_futures
            Whether to cancel what has not begun.
        """
        with self._lock:
            self._shut = True
            pending, maps = list(self._pending), list(self._maps)
        if cancel_futures:
            for future in pending:
                future.cancel()
            for chunks in maps:
                chunks.cancel()
        if wait:
            _await(pending)
            for chunks in maps:
                chunks.wait()

    def _check_open(self) -> None:
        if self._shut:
            raise RuntimeError("This executor was shut down. Make another: nbtasks.Executor().")

    def _task_of(self, fn: Callable[..., Any]) -> Task:
        """Return the task that runs a function, the same one each time."""
        if isinstance(fn, Task):
            return fn
        with self._lock:
            known = self._tasks.pop(id(fn), None) or (fn, make(fn, {"name": _name(fn)}))
            self._tasks[id(fn)] = known  # now the last
            if len(self._tasks) > REMEMBERED:
                del self._tasks[next(iter(self._tasks))]
            return known[1]


def _await(futures: Sequence[TaskFuture[Any]], timeout: float | None = None) -> float | None:
    """Wait for futures, at most so many seconds; return how many are left.

    The library's own waits are at a stretch, and no click would get through.
    """
    end, left = None if timeout is None else time.monotonic() + timeout, timeout
    for future in futures:
        while not future.done():
            left = None if end is None else max(0.0, end - time.monotonic())
            if left == 0.0:
                return left
            wait_for([future], waiting.pause(left))
    return left


def _when_over(result: AsyncResult, function: Callable[[AsyncResult], object]) -> None:
    result._when_over(lambda: settling.post(partial(function, result)))


class _Chunks:
    """Items on their way through the workers."""

    def __init__(
        self,
        fn: Callable[..., Any],
        iterables: Sequence[Iterable[Any]],
        size: int | None,
        over: Callable[[_Chunks], object],
    ) -> None:
        self._task = make(_each(fn), {"name": f"map {_name(fn)}"})
        self._name = _name(fn)
        self._columns = _columns(iterables)
        self._place, self._end = 0, min(map(len, self._columns), default=0)
        #: Items of the next chunk, and whether that may change.
        self._size, self._adapts = size or 1, size is None
        #: So many items are worth a journey.
        self._least = 1
        self._workers = 1
        if not config.settings().task_always_eager:
            self._workers = max(1, int(waiting.client().ask("wanted")))
        #: Chunks in order, as far as nobody has fetched their values.
        self._sent: deque[AsyncResult] = deque()
        #: Each chunk that is not over → its items, and the seconds that it took to send it.
        self._flying: dict[AsyncResult, tuple[int, float]] = {}
        self._failed: Exception | None = None
        self._cancelled = False
        #: Called when nothing is on its way any more.
        self._over = over
        # A callback may come while its own thread is in here, on a busy machine.
        self._lock = threading.RLock()

    def feed(self) -> None:
        """Send as many chunks as the workers need to be busy."""
        with self._lock:
            while self._place < self._end and len(self._flying) < AHEAD * self._workers:
                try:
                    self._send()
                except Exception as error:
                    # It belongs where the values of this chunk would be.
                    self._failed, self._end = error, self._place
            if not self._flying:
                self._over(self)

    def _send(self) -> None:
        left = self._end - self._place
        size = min(self._size, left)
        if self._adapts:  # towards the end, something for each
            size = min(size, max(self._least, left // (AHEAD * self._workers)))
        items = [column[self._place : self._place + size] for column in self._columns]
        began = time.monotonic()
        count = f"{size:,} items" if size > 1 else "1 item"
        result = self._task.apply_async(items, shadow=self._name, argsrepr=count)
        self._place += size
        self._sent.append(result)
        self._flying[result] = (size, time.monotonic() - began)
        _when_over(result, self._note)

    def _note(self, result: AsyncResult) -> None:
        """Learn from a chunk that is over, and send the next."""
        with self._lock:
            flown = self._flying.pop(result, None)
            if flown is not None and self._adapts:
                self._judge(result, *flown)
            self.feed()

    def _judge(self, result: AsyncResult, items: int, sending: float) -> None:
        """Learn from a chunk how many items the next one shall hold."""
        record = result._record
        final = None if record is None else record.final
        took = max(sending, final.runtime if final is not None else 0.0, 1e-9)
        most = GROWTH * items
        self._size = max(1, min(int(WORTH * items / took), most))
        self._least = max(1, min(int(LEAST * items / took), most))

    def values(self, end: float | None) -> Iterator[Any]:
        """Yield the values, in order."""
        try:
            while self._sent:
                result = self._sent[0]
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
                self._sent.popleft()
                yield from values
            if self._failed is not None:
                raise self._failed
        finally:
            self._stop()

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
        with self._lock:
            self._cancelled = True
            if self._place < self._end:
                self._failed = CancelledError()
        self._stop()

    def _stop(self) -> None:
        with self._lock:
            self._end = self._place
            flying = list(self._flying)
        with suppress(OperationalError):  # there is no cluster any more
            for result in flying:
                if not result.ready():
                    result.revoke()


def _columns(iterables: Sequence[Iterable[Any]]) -> list[Sequence[Any]]:
    """Return the items of each iterable, as many as the shortest has; another may have no end."""
    # A range is sent as one; all else is read now, and may change afterwards.
    if all(isinstance(each, range) for each in iterables):
        return list(cast("Sequence[range]", iterables))
    if len(iterables) == 1:
        return [list(iterables[0])]
    return list(zip(*zip(*iterables, strict=False), strict=True))


def _each(fn: Callable[..., Any]) -> Callable[..., list[Any]]:
    """Return a function that calls `fn` with each row of some columns."""
    from nbtasks.life import finish

    before = _BEFORE

    def each(*columns: Sequence[Any]) -> list[Any]:
        values: list[Any] = []
        try:
            values.extend(map(finish, map(fn, *columns)))
            if len(values) < len(columns[0]):  # to `extend`, this is the end of the items
                raise RuntimeError("The function raised StopIteration, which no call may.")
        except Exception as error:
            vars(error)[before] = values  # they were asked for, too
            raise
        return values

    return each


def _name(fn: Callable[..., Any]) -> str:
    return str(fn.name) if isinstance(fn, Task) else name_of(fn)
