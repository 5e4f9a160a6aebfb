"""What a running function may ask and tell: which task it is, how far it is, whether to stop.

Each thread, and each asyncio task, has a stack of runs:

    push(fetch, request) ─▶ fetch's body ─▶ parse(...) called directly ─▶ push(parse, request) ...

The stack is a chain of immutable frames in a context variable, so a coroutine sees the run that
started it and two coroutines never see each other's. Outside a task everything here is quiet:
`progress` does nothing and `track` only passes items through, so that a function behaves the same
when it is called by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

Item = TypeVar("Item")

#: The state that `progress` and `track` report.
PROGRESS = "PROGRESS"

#: Progress is told when it has grown by this part of the whole: nobody sees less, and a loop of a
#: million steps sends a thousand messages.
RESOLUTION = 0.001


class RetryPlan(NamedTuple):
    """How a task shall run next, as `Task.retry` decided it."""

    #: New arguments; None: those of this run.
    args: tuple[Any, ...] | None
    kwargs: dict[str, Any] | None
    #: Seconds from now; None when `eta` is set.
    countdown: float | None
    #: Earliest start, with a zone.
    eta: datetime | None
    #: The new count of retries.
    retries: int
    #: Options of `apply_async` that differ from those of this run. `expires` is None or a wall
    #: time in seconds, `priority` an int, `headers` a dict or None; only what was given is there.
    options: dict[str, Any]


class Channel(Protocol):
    """What a run may tell the outside, and what it may ask."""

    def report(self, state: str, meta: Any) -> None:
        """Make `state`, with `meta`, the state of this very run."""

    def again(self, plan: RetryPlan, reason: BaseException | None, einfo: Any) -> None:
        """Retry beside this run, which goes on (`retry(throw=False)`)."""

    def cancelled(self) -> bool:
        """Return whether somebody wants the run to end."""
        ...

    def join(self, who: object, over: bool) -> None:
        """Say that the run waits for other tasks, or does so no more."""

    def flush(self) -> None:
        """Wait until the broker has heard what the run has told."""


class Request:
    """What a run knows of itself: `self.request` in a task that is bound.

    Fields that are not given have the values below, which are those of a direct call.
    """

    #: Task id; None in a direct call.
    id: str | None = None
    #: Name of the task.
    task: str | None = None
    #: Id of the first task of the tree, and of the task that sent this one.
    root_id: str | None = None
    parent_id: str | None = None
    group: str | None = None
    group_index: int | None = None
    chord: Any = None
    chain: Any = None
    callbacks: Any = None
    errbacks: Any = None
    #: Arguments as received.
    args: Any = ()
    kwargs: Any = None
    #: How many retries came before: 0 in the first run.
    retries: int = 0
    #: ISO text with zone.
    eta: str | None = None
    expires: str | None = None
    #: Name of the worker, and of the sender.
    hostname: str | None = None
    origin: str | None = None
    delivery_info: Any = None
    #: Hard and soft limit of this run, seconds.
    time_limit: float | None = None
    soft_time_limit: float | None = None
    #: True outside workers and `apply()`.
    called_directly: bool = True
    #: True in `apply()`.
    is_eager: bool = False
    #: The caller's own headers.
    headers: Any = None
    shadow: str | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    reply_to: str | None = None
    properties: Any = None
    utc: bool = True
    loglevel: int | None = None
    logfile: str | None = None
    ignore_result: bool = False
    stamps: Any = None
    stamped_headers: Any = None
    replaced_task_nesting: int = 0

    _channel: Channel | None = None
    #: Whether the body has begun, so that calling the task again is a direct call.
    _protected: bool = False
    #: Whether an error would be the body's, so that it may be retried by itself.
    _begun: bool = False
    #: The last Retry that `retry` has raised.
    _raised: BaseException | None = None
    #: Last progress told: part of the whole, and what else was said.
    _told: tuple[float, dict[str, Any]] | None = None

    def __init__(self, **fields: Any) -> None:
        #: Ids (or, in `apply()`, results) of the tasks that this run has sent.
        self._sent: list[Any] = []
        self.__dict__.update(fields)

    @property
    def children(self) -> list[Any]:
        """Results of the tasks that this run has sent, in a list of its own."""
        from nbtasks.result import AsyncResult

        return [AsyncResult(sent) if isinstance(sent, str) else sent for sent in self._sent]

    @property
    def correlation_id(self) -> str | None:
        """The task id, under its other name."""
        return self.id

    @property
    def timelimit(self) -> list[float | None]:
        """Hard and soft limit, in this order; seconds."""
        return [self.time_limit, self.soft_time_limit]

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field, or `default` when there is none of this name."""
        return getattr(self, name, default)

    def __repr__(self) -> str:
        # A worker writes times when they are asked for.
        times = {"eta": self.eta, "expires": self.expires}
        fields = {**vars(self), **times, "children": self._sent}
        told = (
            f"{name}={value!r}"
            for name, value in sorted(fields.items())
            if name[0] != "_" and (value is not None or name not in times)
        )
        return f"<Request: {', '.join(told)}>"


class Frame(msgspec.Struct, frozen=True, eq=False):
    """One run on the stack."""

    task: Any
    request: Request
    outer: Frame | None


_stack: ContextVar[Frame | None] = ContextVar("nbtasks_stack", default=None)
_joining: ContextVar[bool] = ContextVar("nbtasks_joining", default=False)
#: In a worker, the channel of its runs, for threads that a run has begun: these have no frame.
of_process: Channel | None = None


def push(task: Any, request: Request) -> None:
    """Begin a run of `task` in this context."""
    _stack.set(Frame(task, request, _stack.get()))


def pop() -> None:
    """End the run that began last."""
    frame = _stack.get()
    if frame is not None:
        _stack.set(frame.outer)


def top() -> Frame | None:
    """Return the innermost run, or None outside tasks."""
    return _stack.get()


def current_task() -> Any:
    """Return the task whose body runs here, or None."""
    frame = _stack.get()
    return None if frame is None else frame.task


def current_request() -> Request | None:
    """Return the request of the task whose body runs here, or None."""
    frame = _stack.get()
    return None if frame is None else frame.request


def current_frame() -> Frame | None:
    """Return the innermost run that has an id: direct calls in it do not count."""
    frame = _stack.get()
    while frame is not None and frame.request.called_directly:
        frame = frame.outer
    return frame


def current_run() -> Request | None:
    """Return the request of the innermost run that has an id."""
    frame = current_frame()
    return None if frame is None else frame.request


def request_of(task: Any) -> Request | None:
    """Return the request of the innermost run of this very task, or None.

    By name: a module that a body imports has a task object of its own for the same function.
    """
    frame = _stack.get()
    while frame is not None:
        if frame.task is task or frame.task.name == task.name:
            return frame.request
        frame = frame.outer
    return None


# ------------------------------------------------------------------------------- for task bodies


def cancelled() -> bool:
    """Return whether somebody wants the running task to end.

    A long loop may ask now and then, and return early. Outside a task: False.
    """
    request = current_run()
    if request is None or request._channel is None:
        return False
    return request._channel.cancelled()


def progress(current: float, total: float | None = None, **meta: Any) -> None:
    """Tell how far the running task is.

    The task gets the state PROGRESS with `current`, `total`, `progress` (percent) and whatever
    else is given. Steps too small to be seen (below a thousandth of the whole) are not told.
    Outside a task nothing happens.

    Parameters
    ----------
    current
        How much is done, in any unit.
    total
        How much there is to do, in the same unit, where that is known.
    **meta
        More to show, such as `message="reading"`; the values must be picklable.

    Examples
    --------
    >>> for done in range(3):
    ...     progress(done + 1, 3, message="counting")
    """
    request = current_run()
    if request is None or request._channel is None:
        return
    if not _worth_telling(request, current, total, meta):
        return
    facts: dict[str, Any] = {"current": current}
    if total is not None:
        facts["total"] = total
        if total > 0:
            facts["progress"] = round(100 * current / total, 1)
    request._channel.report(PROGRESS, {**facts, **meta})


def _worth_telling(
    request: Request, current: float, total: float | None, meta: dict[str, Any]
) -> bool:
    # Without a total the whole is what has been done so far.
    scale = total or abs(current) or 1
    told = request._told
    if (
        told is not None
        and _equal(meta, told[1])
        and abs(current - told[0]) < RESOLUTION * scale
        and (current != total or current == told[0])
    ):
        return False
    request._told = (current, meta)
    return True


def _equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    try:
        return one == other
    except Exception:  # arrays, for instance, have no truth
        return False


def track(iterable: Iterable[Item], total: float | None = None, **meta: Any) -> Iterator[Item]:
    """Yield the items, and tell the running task's progress after each of them.

    Parameters
    ----------
    iterable
        What to go through.
    total
        Number of items, where `len(iterable)` does not say it.
    **meta
        More to show, as for `progress`.

    Examples
    --------
    >>> sum(track([1, 2, 3]))
    6
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    progress(0, total, **meta)
    for done, item in enumerate(iterable, 1):
        yield item
        progress(done, total, **meta)


# -------------------------------------------------------------------------- waiting inside a task


@contextmanager
def allow_join_result() -> Iterator[None]:
    """Allow waiting for other tasks inside a task, in this block.

    Meanwhile another worker takes the place of the one that waits, 32 at most. Where more wait than
    there are workers, what the deepest of those have sent comes before other tasks of its priority,
    so a tree of tasks may be as wide as it likes. In one that is so deep that all wait for one
    another, the deepest task fails with `TaskError`.

    Examples
    --------
    >>> @task                                                                 # doctest: +SKIP
    ... def total(tree):
    ...     with nbtasks.allow_join_result():
    ...         parts = [total.delay(part) for part in tree.parts]
    ...         return tree.value + sum(part.get() for part in parts)
    """
    with _joining_is(True):
        yield


@contextmanager
def denied_join_result() -> Iterator[None]:
    """Refuse waiting for other tasks inside a task again, in this block."""
    with _joining_is(False):
        yield


@contextmanager
def _joining_is(allowed: bool) -> Iterator[None]:
    token = _joining.set(allowed)
    try:
        yield
    finally:
        _joining.reset(token)


@contextmanager
def joining() -> Iterator[None]:
    """Say, in a worker, that the running task waits for other tasks in this block.

    Another worker takes its place, so that these can run however many wait.
    """
    frame = _stack.get()
    while frame is not None and (frame.request.called_directly or frame.request.is_eager):
        frame = frame.outer
    channel = of_process if frame is None else frame.request._channel
    if channel is None:
        yield
        return
    who = object()
    channel.join(who, over=False)
    try:
        yield
    finally:
        channel.join(who, over=True)


def task_join_will_block() -> bool:
    """Return whether waiting for another task here must be refused.

    True in the body of a task that runs in a worker, unless it is in `allow_join_result()`: the
    task waited for might stand in the queue behind this one.
    """
    request = current_run()
    return request is not None and not request.is_eager and not _joining.get()
