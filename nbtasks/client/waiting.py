"""What all results share when they wait for tasks, and when they talk to the broker."""

from __future__ import annotations

import copy
import math
import signal as signals
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from nbtasks import context
from nbtasks.client import options
from nbtasks.client.family import ResultBase
from nbtasks.core.messages import Forget
from nbtasks.exceptions import BrokerUnavailable

if TYPE_CHECKING:
    from nbtasks.client.client import Client, Record
    from nbtasks.client.result import AsyncResult

#: Seconds within which the broker must have told what it knows of a task.
PATIENCE: Final = 10.0
#: Seconds between two calls of `on_interval`, and between two looks at the parents.
BEAT: Final = 1.0
#: Seconds between two looks at the members of a set, while it waits for the last one.
SLICE: Final = 0.05
#: Seconds between two calls of `between_waits`.
PULSE: Final = 0.03

#: Called by the main thread, about each PULSE seconds, while it waits for the broker or for tasks;
#: what it raises ends the wait. A front end does here what cannot wait until the cell is over.
between_waits: Callable[[], object] | None = None

#: How many coroutines await tasks. Event loops go on meanwhile, so `between_waits` is not called.
awaited = 0


def client() -> Client:
    """Return the client of this process; the cluster is started if there is none."""
    from nbtasks.client.client import current

    return current()


def open_clients() -> Sequence[Client]:
    """Return the clients of this process that are not closed."""
    from nbtasks.client import client as clients

    return clients.open_clients()


def client_of(record: Record | None) -> Client:
    """Return the client that hears of a task, or else one of its cluster, or the present one.

    Raises
    ------
    BrokerUnavailable
        When the task was in a cluster of its own folder that nobody here is connected to.
    OperationalError
        When it was deleted with that.
    """
    if record is None:
        return client()
    for one in open_clients():
        if one.hears_of(record):
            return one
    if record.home is None:
        return client()
    for one in open_clients():
        if one.runtime == record.home:
            return one
    if record.error is not None:
        raise afresh(record.error)
    raise BrokerUnavailable(
        f"Task {record.id} is in the cluster in {record.home}, which was shut down or let go of. "
        f"Start it again, or attach to it: nbtasks.start(dir={str(record.home)!r})."
    )


def afresh(error: Exception) -> Exception:
    """Return a copy of an error that is kept, to be raised.

    Raised many times itself, it would gather the frames of all who met it, and keep them alive.
    """
    copied = copy.copy(error)
    copied.__cause__, copied.__suppress_context__ = error.__cause__, error.__suppress_context__
    return copied


def remember_home(client: Client) -> None:
    """Note with the tasks of a client that is about to be closed which cluster they are in."""
    for record in (*client._records.open.values(), *client._records.recent.values()):
        record.home = client.runtime


def is_orphan(record: Record) -> bool:
    """Say whether nobody hears of an open task any more: its client was closed."""
    if record.over:
        return False
    return not any(one.hears_of(record) for one in open_clients())


def refusal(what: str) -> RuntimeError:
    """Return why nobody waits for a task inside a task: as Celery, we refuse it."""
    return RuntimeError(
        f"{what} was asked to wait inside a running task. A worker that waits for other tasks "
        f"does nothing else, and each of them needs one more. Let the caller combine the results; "
        f"or, if the task must have them, wait inside `with allow_join_result():` or with "
        f"get(disable_sync_subtasks=False): another worker takes the place of this one meanwhile."
    )


def told_to_the_end(record: Record) -> bool:
    """Say whether a task is over and its last event stands among its events."""
    if record.final is None:
        return record.error is not None
    return bool(record.events) and record.events[-1].n >= record.final.n


def pause(left: float | None = None) -> float:
    """Do what is to be done between waits, and return for how long to wait at a stretch.

    Parameters
    ----------
    left
        Seconds that are left to wait; None for no end.
    """
    longest = 3600.0
    if between_waits is not None and threading.current_thread() is threading.main_thread():
        between_waits()
        longest = PULSE
    return longest if left is None else min(left, longest)


@contextmanager
def awaiting() -> Iterator[None]:
    """Note that a coroutine awaits a task."""
    global awaited
    pause()
    awaited += 1
    try:
        with context.joining():
            yield
    finally:
        awaited -= 1


def seconds_of(timeout: Any) -> float | None:
    """Return a timeout in seconds; None, or infinity: none.

    Raises
    ------
    TypeError, ValueError
        When it is no number of seconds.
    """
    if timeout is None or timeout == math.inf:
        return None
    return options.seconds("timeout", timeout)


def check_callable(name: str, function: Any) -> None:
    """Raise TypeError where a function is wanted and something else was given."""
    if not callable(function):
        raise TypeError(
            f"{name}={function!r} cannot be called. Give a function, such as {name}=print."
        )


def check_given(**functions: Any) -> None:
    """Raise TypeError where one of several functions that may be left out is something else."""
    for name, function in functions.items():
        if function is not None:
            check_callable(name, function)


class Beat:
    """What `get` does about each second while it waits."""

    __slots__ = ("_at", "_on_interval", "_parents")

    def __init__(
        self,
        on_interval: Callable[[], object] | None = None,
        parents: Sequence[ResultBase] = (),
    ) -> None:
        self._on_interval = on_interval
        self._parents = parents
        self._at = time.monotonic() + BEAT

    def next(self, left: float | None, record: Record | None = None) -> float | None:
        """Do what is due, and return how long to wait, `left` seconds at most."""
        unknown = record is not None and record.known is False
        if self._on_interval is None and not self._parents and not unknown:
            return left
        if time.monotonic() >= self._at:
            self._at = time.monotonic() + BEAT
            for parent in self._parents:
                parent.maybe_throw()
            if record is not None and unknown:
                client_of(record).follow(record)  # somebody may have sent it by now
            if self._on_interval is not None:
                self._on_interval()
        pause = max(0.0, self._at - time.monotonic())
        return pause if left is None else min(left, pause)


def forget(results: Iterable[AsyncResult]) -> None:
    """Have the broker delete these results, and forget here what is known of them."""
    over = [result for result in results if result._learned().final is not None]
    for client, members in by_client(over).items():
        client.tell(Forget(tuple(result.id for result in members)))
        client.settle()
        client.drop(result.id for result in members)
    for result in over:
        result._record = result._value = None


def by_client(results: Iterable[AsyncResult]) -> dict[Client, list[AsyncResult]]:
    """Return the client of each cluster with those results whose tasks are there."""
    found: dict[Client, list[AsyncResult]] = {}
    for result in results:
        found.setdefault(result._client, []).append(result)
    return found


class OnReady:
    """The part of Celery's promises that people use."""

    __slots__ = ("_result",)

    def __init__(self, result: Any) -> None:
        self._result = result

    @property
    def ready(self) -> bool:
        return bool(self._result.ready())

    def then(
        self,
        callback: Callable[[Any], object],
        on_error: Callable[[Exception], object] | None = None,
    ) -> OnReady:
        self._result.then(callback, on_error)
        return self


def call_back(
    callback: Callable[[Any], object],
    result: Any,
    on_error: Callable[[Exception], object] | None,
) -> None:
    try:
        callback(result)
    except Exception as error:
        if on_error is None:
            raise
        on_error(error)


def signal_name(signal: str | int | None) -> str:
    """Return a signal's name, checked here, where the mistake was made."""
    try:
        if signal is None:
            return "SIGTERM"
        if isinstance(signal, int):
            return signals.Signals(signal).name
        if not isinstance(signal, str):
            raise ValueError
        name = signal.upper() if signal.upper().startswith("SIG") else f"SIG{signal.upper()}"
        return signals.Signals[name].name
    except (KeyError, ValueError):
        raise ValueError(
            f"This system has no signal {signal!r}. Name one such as 'SIGTERM', 'SIGINT' or "
            f"'SIGKILL'."
        ) from None
