"""`submit` and `map`, with the words of the standard library's `concurrent.futures`.

    submit(fn, x)   ──▶ a task ──▶ Future
    map(fn, items)  ──▶ chunks of items ──▶ tasks ──▶ values, in order

How many items make a chunk is the business of `chunks`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor as BaseExecutor
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import wait as wait_for
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Final, TypeVar

from nbtasks import context
from nbtasks.client import waiting
from nbtasks.client.callbacks import finishing, when_over
from nbtasks.client.chunks import Chunks, called
from nbtasks.client.eager_result import EagerResult
from nbtasks.client.result import AsyncResult
from nbtasks.client.task import Task, make
from nbtasks.exceptions import OperationalError

T = TypeVar("T")

#: Functions whose tasks are kept.
REMEMBERED: Final = 64


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
        self._maps: set[Chunks] = set()
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
        when_over(future.task, future._settle)
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
        deadline = None if timeout is None else time.monotonic() + timeout
        chunks = Chunks(fn, iterables, chunksize, self._maps.discard)
        self._maps.add(chunks)
        try:
            chunks.feed()
        except BaseException:  # an interrupt, too: nobody will have the values
            chunks.cancel()
            raise
        return chunks.values(deadline)

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
            known = self._tasks.pop(id(fn), None) or (fn, make(fn, {"name": called(fn)}))
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
