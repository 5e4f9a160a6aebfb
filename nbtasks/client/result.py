"""What a caller holds of a task: `AsyncResult` and its kin.

    record.events  ──▶  outcome (pure) ──▶  state, value, error, on_message bodies
         ▲                                        │
         │ I/O thread                             ▼
    client.wait(...)  ◀── the caller's thread ──  get()

A result is a name and little else: an id, and the client's `Record` of the task once somebody has
asked. States are pushed, so a look at one costs no message; only `get` and its like wait, in the
thread that called them.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import json
import signal as signals
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Self

from nbtasks import context, exceptions
from nbtasks.client import outcome
from nbtasks.client.callbacks import callbacks
from nbtasks.client.outcome import Moment
from nbtasks.core import states
from nbtasks.core.messages import Event, Forget, Hasten, Redo, Revoke
from nbtasks.wire import payloads

if TYPE_CHECKING:
    from nbtasks.client.client import Client, Record

__all__ = [
    "AsyncResult",
    "EagerResult",
    "GroupResult",
    "Moment",
    "ResultBase",
    "ResultSet",
    "result_from_tuple",
]

#: Called with `(task_id, value)`.
Callback = Callable[[str, Any], object]
#: Called with one state message.
Listener = Callable[[dict[str, Any]], object]

#: Seconds within which the broker must have told what it knows of a task.
PATIENCE: Final = 10.0
#: Seconds between two calls of `on_interval`, and between two looks at the parents.
BEAT: Final = 1.0
#: Seconds between two looks at the members of a set, while it waits for the last one.
SLICE: Final = 0.05


def _client() -> Client:
    """Return the client of this process; the cluster is started if there is none."""
    from nbtasks.client.client import current

    return current()


def _assert_may_wait(what: str) -> None:
    """Refuse to wait for a task inside a task, as Celery does."""
    if context.task_join_will_block():
        raise RuntimeError(
            f"{what} was asked to wait inside a running task. A worker that waits for other tasks "
            f"cannot run them, and when all workers wait nothing goes on. Let the caller combine "
            f"the results; or, if you know that workers are left, wait inside "
            f"`with allow_join_result():` or with get(disable_sync_subtasks=False)."
        )


class _Facts(NamedTuple):
    """What was fixed when a task was sent."""

    name: str | None = None
    queue: str | None = None
    parent: str | None = None
    group: str | None = None
    body: bytes = b""
    buffers: Sequence[Any] = ()

    def arguments(self) -> tuple[Any, Any]:
        """Return `(args, kwargs)`."""
        body, buffers = self.body, list(self.buffers)
        if not body and buffers:
            body = buffers.pop(0)
        if not body:
            return None, None
        args, kwargs = payloads.loads(body, buffers)
        return args, kwargs


class _Messages:
    """Tells one listener of each state message of one task, in order and once."""

    __slots__ = ("_facts", "_listener", "_result", "seen")

    def __init__(self, result: AsyncResult, listener: Listener) -> None:
        self._result = result
        self._listener = listener
        #: Number of the last event that was told.
        self.seen = 0
        self._facts: dict[str, Any] | None = None

    def tell(self, record: Record) -> None:
        """Tell what has not been told yet."""
        for event in outcome.state_messages(record, self.seen):
            self.tell_of(record, event)

    def tell_of(self, record: Record, event: Event) -> None:
        if event.n > self.seen:
            self.seen = event.n
            self._listener(self._body(record, event))

    def _body(self, record: Record, event: Event) -> dict[str, Any]:
        done = event.final or event.state in states.READY_STATES
        if self._facts is None:
            self._facts = self._fixed()
        return {
            "task_id": record.id,
            "status": event.state,
            "result": self._value(record, event),
            "traceback": event.traceback or None,
            "children": [((child, None), None) for child in event.children],
            "date_done": outcome.moment(event.at).isoformat() if done else None,
            "worker": event.worker or None,
            "retries": event.retries,
            **self._facts,
        }

    def _value(self, record: Record, event: Event) -> Any:
        if event.state in states.EXCEPTION_STATES:
            return self._result._error(record, event)
        return outcome.load(record, event)

    def _fixed(self) -> dict[str, Any]:
        facts = self._result._facts()
        args = kwargs = None
        with contextlib.suppress(Exception):  # a message about the task matters more
            args, kwargs = facts.arguments()
        fixed = {"name": facts.name, "args": args, "kwargs": kwargs, "queue": facts.queue}
        if facts.group:
            fixed["group_id"] = facts.group
        if facts.parent:
            fixed["parent_id"] = facts.parent
        return fixed


class ResultBase:
    """What all results have in common."""

    __slots__ = ()

    #: The result that this one follows in a chain, or None.
    parent: ResultBase | None

    # Members that a tree of results needs; all kinds of results have them.

    def ready(self) -> bool:
        """Say whether it is over."""
        raise NotImplementedError

    def get(self, timeout: float | None = None, propagate: bool = True, **kwargs: Any) -> Any:
        """Wait, and return the value."""
        raise NotImplementedError

    def as_tuple(self) -> tuple[Any, Any]:
        """Return ids only, in the form that `result_from_tuple` reads."""
        raise NotImplementedError

    def forget(self) -> None:
        """Delete what is stored."""
        raise NotImplementedError

    def maybe_throw(self, propagate: bool = True, callback: Callback | None = None) -> Any:
        """Raise if it has ended in an error."""
        raise NotImplementedError

    @property
    def children(self) -> list[Any] | None:
        """Results of what was sent from here."""
        raise NotImplementedError


class AsyncResult(ResultBase):
    """A task that was sent: ask for its state, wait for its value, cancel it.

    `delay` and `apply_async` return one; anybody who knows the id can make another, in any process
    and after any restart. Two results are equal when their ids are.

    Parameters
    ----------
    id
        Id of the task.
    backend, app
        Taken for the sake of Celery's signature; not used.
    task_name
        Name of the task, if known.
    parent
        Result of the step before this one in a chain.

    Raises
    ------
    ValueError
        When `id` is None or empty.

    Examples
    --------
    >>> result = add.delay(2, 2)  # doctest: +SKIP
    >>> result.get(timeout=10)  # doctest: +SKIP
    4
    >>> result.state, result.retries  # doctest: +SKIP
    ('SUCCESS', 0)
    >>> AsyncResult("no-such-task") == "no-such-task"
    True
    """

    __slots__ = ("__weakref__", "_ignored", "_name", "_record", "_value", "id", "parent")

    #: Raised by `get` when time is up; also a builtin TimeoutError.
    TimeoutError: ClassVar[type[exceptions.TimeoutError]] = exceptions.TimeoutError
    #: Many results can be waited for at once.
    supports_native_join: ClassVar[bool] = True

    #: Id of the task.
    id: str
    parent: ResultBase | None

    def __init__(
        self,
        id: str,
        backend: Any = None,
        task_name: str | None = None,
        app: Any = None,
        parent: ResultBase | None = None,
    ) -> None:
        if not id:
            raise ValueError(
                f"AsyncResult needs the id of a task, not {id!r}. "
                f"It is what result.id shows where the task was sent."
            )
        self.id = str(id)
        self.parent = parent
        self._name = task_name
        self._record: Record | None = None
        self._ignored = False
        self._value: tuple[Event, Any] | None = None

    @classmethod
    def _of(
        cls,
        record: Record,
        task_name: str | None = None,
        parent: ResultBase | None = None,
        ignored: bool = False,
    ) -> Self:
        """Return the result of a task that this process has just sent."""
        self = cls.__new__(cls)
        self.id = record.id
        self.parent = parent
        self._name = task_name
        self._record = record
        self._ignored = ignored
        self._value = None
        return self

    # --------------------------------------------------------------------------- looking it up

    def _follow(self) -> Record:
        """Return the client's record of the task; from now on the broker tells of it."""
        record = self._record
        if record is None:
            record = self._record = _client().record(self.id)
        return record

    def _learned(self) -> Record:
        """Return the record once it says what the broker knew when it was asked."""
        record = self._follow()
        if record.known is None and record.call is None and not record.over:
            _client().learn(record, PATIENCE)
        return record

    def _facts(self) -> _Facts:
        """Return what was fixed at the call, from the call itself or from the broker."""
        record = self._learned()
        call = record.call
        if call is not None and not call.frames:
            group = call.options.group if call.options is not None else None
            return _Facts(call.name, call.queue, call.parent or None, group, call.body)
        shown = _client().ask("show", id=self.id)
        if shown is None:
            return _Facts(self._name)
        return _Facts(
            shown["name"],
            shown["queue"],
            shown["parent"] or None,
            shown["options"].get("group"),
            shown["body"],
            shown["buffers"],
        )

    # ------------------------------------------------------------------------- state and value

    @property
    def state(self) -> str:
        """Present state.

        PENDING (not begun, or unknown), STARTED, any text given to `update_state`, RETRY, SUCCESS,
        FAILURE, REVOKED or IGNORED.
        """
        return self._learned().state

    status = state

    @property
    def result(self) -> Any:
        """What belongs to the present state.

        The value of SUCCESS, the exception of FAILURE, RETRY and REVOKED, the `meta` of states set
        by `update_state`; None when there is nothing.
        """
        record = self._learned()
        event = outcome.deciding(record) or outcome.latest(record)
        if event is None:
            return None
        if event.state in states.EXCEPTION_STATES:
            return self._error(record, event)
        return self._load(record, event)

    info = result

    @property
    def traceback(self) -> str | None:
        """Text of the remote traceback after FAILURE and during RETRY, else None."""
        record = self._learned()
        event = outcome.deciding(record) or outcome.latest(record)
        return (event.traceback or None) if event is not None else None

    def ready(self) -> bool:
        """Say whether the task is over, in whatever way."""
        return self._learned().final is not None

    def successful(self) -> bool:
        """Say whether the task ended in SUCCESS."""
        return self.state == states.SUCCESS

    def failed(self) -> bool:
        """Say whether the task ended in FAILURE; a revoked one has not failed."""
        return self.state == states.FAILURE

    @property
    def ignored(self) -> bool:
        """Whether the result is ignored: `get` returns None without waiting."""
        record = self._record
        return self._ignored or (record is not None and record.state == states.IGNORED)

    @ignored.setter
    def ignored(self, value: bool) -> None:
        self._ignored = value

    def exists(self) -> bool:
        """Say whether the cluster knows the task, finished or not.

        It tells a task that waits from an id that is mistyped, forgotten or expired; both are
        PENDING.
        """
        return _client().ask("show", id=self.id) is not None

    @property
    def accepted(self) -> bool:
        """Whether the task is in the broker's store, so that no crash can lose it."""
        record = self._learned()
        return bool(record.accepted or record.known)

    def _load(self, record: Record, event: Event) -> Any:
        """Return the value of a state that is no error; always the same object."""
        kept = self._value
        if kept is not None and kept[0] is event:
            return kept[1]
        value = outcome.load(record, event)
        self._value = (event, value)
        return value

    def _error(self, record: Record, event: Event) -> BaseException:
        return outcome.load_error(record, event, self._name)

    # --------------------------------------------------------------------------------- waiting

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        no_ack: bool = True,
        follow_parents: bool = True,
        callback: Callback | None = None,
        on_message: Listener | None = None,
        on_interval: Callable[[], object] | None = None,
        disable_sync_subtasks: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Wait until the task is over, and return its value.

        Parameters
        ----------
        timeout
            Seconds to wait at most; None waits as long as it takes. The task is not touched when
            time is up, and `get` may be called again.
        propagate
            Whether the exception of a failed or revoked task is raised; otherwise it is returned.
        interval, no_ack
            Taken for the sake of Celery's signature; nothing is polled here.
        follow_parents
            Whether an error in an earlier step of the chain is raised as well.
        callback
            Called with `(task_id, value)` before `get` returns.
        on_message
            Called in this thread with each state message of this task, in order and from the first
            on, also when the task is over already: a dictionary with `task_id`, `status`,
            `result`, `traceback`, `children`, `date_done` (ISO text, None until ready), `name`,
            `args`, `kwargs`, `worker`, `retries`, `queue`, and `group_id` and `parent_id` if set.
        on_interval
            Called without arguments about each second of waiting.
        disable_sync_subtasks
            Whether waiting inside a task is refused.
        **kwargs
            Ignored, as results of other kinds take other words.

        Returns
        -------
        object
            What the task returned; None if its result is ignored.

        Raises
        ------
        nbtasks.exceptions.TimeoutError
            When time is up; it is a builtin TimeoutError, too.
        nbtasks.exceptions.TaskRevokedError
            When the task was revoked, terminated, or expired.
        RuntimeError
            When called inside a task, unless that is allowed.
        Exception
            Whatever the task raised: the same class, arguments, cause and notes, with the remote
            traceback as one more note.

        Examples
        --------
        >>> result = fetch.apply_async((url,), countdown=10)  # doctest: +SKIP
        >>> result.get(timeout=60, on_message=print)  # doctest: +SKIP
        """
        __tracebackhide__ = True
        if self.ignored:
            return None
        if disable_sync_subtasks:
            _assert_may_wait(f"The result of {self._title()}")
        parents = self._parents() if propagate and follow_parents and self.parent else []
        for parent in parents:
            parent.maybe_throw()
        record = self._follow()
        if on_message is not None or record.final is None:
            beat = _Beat(on_interval, parents)
            messages = None if on_message is None else _Messages(self, on_message)
            self._wait(record, timeout, beat, messages)
        value = self._settle(record, propagate)
        if callback is not None:
            callback(self.id, value)
        return value

    wait = get

    def _wait(
        self,
        record: Record,
        timeout: float | None,
        beat: _Beat | None = None,
        messages: _Messages | None = None,
    ) -> None:
        """Return when the task is over and all its messages are told; raise when time is up."""
        __tracebackhide__ = True
        client, beat = _client(), beat or _Beat()
        deadline = None if timeout is None else time.monotonic() + timeout
        if timeout is not None and timeout <= 0:
            self._learned()  # a mere question: what is known of the task must be known here
        if record.known is False and timeout is None:
            warnings.warn(self._unknown(), exceptions.CeleryWarning, stacklevel=3)
        while True:
            told = _told_to_the_end(record)
            if messages is not None:
                messages.tell(record)
            if told:
                return
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise self._late(record, timeout or 0.0)
            pause = beat.next(left, record)
            if messages is None:
                client.wait([record], pause)
            else:
                client.wait_event(record, record.n, pause)

    def _late(self, record: Record, timeout: float) -> exceptions.TimeoutError:
        if record.known is False:
            advice = self._unknown()
        else:
            advice = (
                f"It is {record.state} and goes on: call get() again to wait longer, or cancel()."
            )
        return exceptions.TimeoutError(
            f"{self._title()} was not ready within {timeout:g} s. {advice}"
        )

    def _unknown(self) -> str:
        return (
            f"The cluster knows no task {self.id!r}: the id may be mistyped, its result forgotten "
            f"or expired, or the task not sent yet. Look at result.exists()."
        )

    def _title(self) -> str:
        record = self._record
        name = self._name or (outcome.name_of(record) if record is not None else None)
        return f"task {name}[{self.id}]" if name else f"task {self.id}"

    def _settle(self, record: Record, propagate: bool) -> Any:
        """Return the value of a task that is over, or raise its error."""
        __tracebackhide__ = True
        event = outcome.deciding(record)
        if event is not None and event.state in states.PROPAGATE_STATES:
            error = self._error(record, event)
        elif record.error is not None and record.final is None:
            error = record.error.with_traceback(None)  # the broker has refused the task
        else:
            return None if event is None else self._load(record, event)
        if not propagate:
            return error
        try:
            raise error
        finally:
            del error  # it holds this frame, which must not hold it

    def maybe_throw(self, propagate: bool = True, callback: Callback | None = None) -> Any:
        """Raise the task's error if it has one by now; does not wait.

        Parameters
        ----------
        propagate
            Whether to raise at all.
        callback
            Called with `(task_id, value)` if nothing was raised.

        Returns
        -------
        object
            What `result` gives: the value, if there is one.
        """
        __tracebackhide__ = True
        record = self._learned()
        over = record.over
        value = self._settle(record, propagate) if over else self.result
        if callback is not None:
            callback(self.id, value)
        return value

    maybe_reraise = maybe_throw

    def _parents(self) -> list[ResultBase]:
        """Return the results before this one in the chain, the first step first."""
        found: list[ResultBase] = []
        node = self.parent
        while node is not None:
            found.append(node)
            node = node.parent
        return found[::-1]

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait without blocking the event loop; the value and the errors are those of `get`."""
        return self._arrive().__await__()

    async def _arrive(self) -> Any:
        import asyncio

        if self.ignored:
            return None
        _assert_may_wait(f"The result of {self._title()}")
        record, client = self._follow(), _client()
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()
        beat = _Beat(parents=self._parents())

        def wake(*_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(arrived.set)

        client.add_waiter(record, wake)
        while not record.over:
            with contextlib.suppress(builtins.TimeoutError):
                await asyncio.wait_for(arrived.wait(), beat.next(BEAT, record))
            client.wait([record], 0.0)  # raises when there is no cluster any more
            if arrived.is_set() and not record.over:  # it was over, and runs again
                arrived.clear()
                client.add_waiter(record, wake)
        return self._settle(record, propagate=True)

    def then(
        self,
        callback: Callable[[Self], object],
        on_error: Callable[[Exception], object] | None = None,
        weak: bool = False,
    ) -> Self:
        """Call a function with this result once the task is over; nobody needs to wait.

        The function runs in a thread of its own and may send tasks and wait for them. It is called
        at once if the task is over already.

        Parameters
        ----------
        callback
            Called with this result, however the task ended.
        on_error
            Called with the exception that `callback` raised; without it the exception is logged.
        weak
            Whether the callback is dropped when nobody else holds this result any more.

        Returns
        -------
        AsyncResult
            This result.
        """
        hold: Callable[[], Self | None] = weakref.ref(self) if weak else lambda: self

        def call() -> None:
            result = hold()
            if result is not None:
                _call_back(callback, result, on_error)

        self._when_over(lambda: callbacks.post(call))
        return self

    @property
    def on_ready(self) -> _OnReady:
        """Celery's promise of this result: `on_ready.then(callback)`."""
        return _OnReady(self)

    def _when_over(self, function: Callable[[], object]) -> None:
        """Call `function` once when the task is over, from whichever thread learns of it."""
        _client().add_waiter(self._follow(), function)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call a function with each state message of this task, from the first on, without `get`.

        It is called in order, in a thread of its own, with what `get` gives to `on_message`.

        Parameters
        ----------
        listener
            Called with one dictionary a message.

        Returns
        -------
        callable
            Call it to hear no more.
        """
        messages = _Messages(self, listener)
        record = self._follow()

        def hear(record: Record, event: Event) -> None:
            if event.kind == "state":
                callbacks.post(functools.partial(messages.tell_of, record, event))

        record.subscribe(hear)
        return lambda: record.unsubscribe(hear)

    # ---------------------------------------------------------------------- what else is known

    @property
    def task_id(self) -> str:
        """Id of the task: the same as `id`."""
        return self.id

    @property
    def name(self) -> str | None:
        """Name of the task, None when unknown."""
        if self._name is None:
            self._name = self._facts().name
        return self._name

    @property
    def args(self) -> Any:
        """Positional arguments that the task was sent with, None when unknown."""
        return self._facts().arguments()[0]

    @property
    def kwargs(self) -> Any:
        """Keyword arguments that the task was sent with, None when unknown."""
        return self._facts().arguments()[1]

    @property
    def queue(self) -> str | None:
        """Name of the queue that the task was sent to, None when unknown."""
        return self._facts().queue

    @property
    def worker(self) -> str | None:
        """Name of the worker that runs the task or ran it last, None before."""
        events = list(self._learned().events)
        return next((event.worker for event in reversed(events) if event.worker), None)

    @property
    def retries(self) -> int | None:
        """How often the task was retried so far, None when the task is unknown."""
        record = self._learned()
        if record.known is False:
            return None
        return max((event.retries for event in list(record.events)), default=0)

    @property
    def date_done(self) -> datetime | None:
        """When the task ended, an aware datetime in UTC; None before."""
        final = self._learned().final
        return outcome.moment(final.at) if final is not None else None

    def logs(self, stream: str | None = None) -> str:
        """Return what the task has printed and logged so far.

        Parameters
        ----------
        stream
            `stdout`, `stderr` or `log`; None for all three, in order.
        """
        if stream not in (None, "stdout", "stderr", "log"):
            raise ValueError(
                f"There is no stream {stream!r}; a task writes to 'stdout', 'stderr' and 'log'."
            )
        return "".join(
            event.text
            for event in list(self._learned().events)
            if event.kind == "output" and stream in (None, event.state)
        )

    @property
    def history(self) -> list[Moment]:
        """The story of the task: each attempt, state and repetition, with its time.

        Returns
        -------
        list of Moment
            Named tuples of `at` (aware, UTC), `attempt` (from 1), `what` (SUBMITTED, RUNNING,
            AGAIN, or a state), `worker`, `detail`.
        """
        return list(outcome.moments(self._learned()))

    @property
    def progress(self) -> float | None:
        """How far the task has come, 0.0 to 1.0; None when it has not said.

        It is read from the `meta` of the present state: `current` of `total`, or `progress`, where
        whole numbers and all over 1 are per cent.
        """
        record = self._learned()
        if record.state == states.SUCCESS:
            return 1.0
        for event in reversed(list(record.events)):
            if event.kind == "again":
                return None
            if event.kind == "state" and event.state not in states.ALL_STATES:
                return outcome.fraction(outcome.load(record, event))
        return None

    def widget(self) -> Any:
        """Return a widget that shows this task, live; needs a notebook."""
        from nbtasks.jupyter import panel

        return panel.widget(self)

    # --------------------------------------------------------------------------------- control

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: str | int = "SIGTERM",
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Do not run the task; with `terminate`, also end it when it is running.

        A task that is over keeps its result; one that is running goes on unless terminated. This
        holds at once and for good, whichever worker would have run it.

        Parameters
        ----------
        connection
            Taken for the sake of Celery's signature; not used.
        terminate
            Whether a running task is ended, by killing its process.
        signal
            What the process is sent first, by name or number; SIGKILL follows if it stays.
        wait
            Whether to wait until the task is over.
        timeout
            Seconds to wait at most.

        Raises
        ------
        ValueError
            When there is no such signal.
        nbtasks.exceptions.TimeoutError
            When the task is not over in time.
        """
        _client().tell(Revoke((self.id,), terminate, _signal_name(signal)))
        if wait:
            self._wait(self._follow(), timeout)

    def revoke_by_stamped_headers(self, headers: Mapping[str, Any], *args: Any, **kw: Any) -> None:
        """Not there yet: stamps come with the canvas."""
        raise NotImplementedError(
            "Tasks cannot be revoked by stamped headers: this version of nbtasks has no stamps. "
            "Revoke them by id: result.revoke()."
        )

    def cancel(self, wait: bool = False, timeout: float | None = None) -> None:
        """Do not run the task, or end it when it is running.

        Parameters
        ----------
        wait
            Whether to wait until the task is over.
        timeout
            Seconds to wait at most.
        """
        self.revoke(terminate=True, wait=wait, timeout=timeout)

    def retry(self, timeout: float | None = PATIENCE) -> Self:
        """Run the task once more, now: one that failed or was revoked, or one that waits for RETRY.

        It is the same task: same id, arguments and code; `state` is PENDING again and `get` waits
        for the new run.

        Parameters
        ----------
        timeout
            Seconds within which the broker must have confirmed it.

        Returns
        -------
        AsyncResult
            This result.

        Raises
        ------
        ValueError
            When the task is not in such a state; tasks that succeeded are not repeated.
        """
        record = self._learned()
        if record.state == states.RETRY:
            _client().tell(Hasten((self.id,)))
            return self
        if record.final is None or record.state not in states.PROPAGATE_STATES:
            raise ValueError(
                f"{self._title()} is {record.state}, so it cannot be run again. That is for tasks "
                f"that ended in FAILURE or REVOKED; send a new one with delay() or apply_async()."
            )
        self._redo(record, timeout)
        return self

    def _redo(self, record: Record, timeout: float | None) -> None:
        """Have the task run again, and return when the record says so."""
        before, told = record.n, threading.Event()

        def hear(_: Record, event: Event) -> None:
            if event.n > before:
                told.set()

        record.subscribe(hear)
        try:
            _client().follow(record)
            _client().tell(Redo((self.id,)))
            if not told.wait(timeout):
                raise exceptions.TimeoutError(
                    f"The broker did not confirm within {timeout:g} s that {self._title()} will "
                    f"run again. Its result may have expired; look at result.exists()."
                )
        finally:
            record.unsubscribe(hear)

    def forget(self) -> None:
        """Delete the task's result, and its parents', from the store; it is PENDING afterwards.

        A task that is not over is not touched.
        """
        if self.parent is not None:
            self.parent.forget()
        _forget([self])

    # ------------------------------------------------------------------------- the family tree

    @property
    def children(self) -> list[Any] | None:
        """Results of the tasks that this task has sent; None as long as it is not known."""
        record = self._learned()
        ids = outcome.children_of(record)
        if not ids and record.final is None:
            return None
        return [AsyncResult(child) for child in ids]

    def iterdeps(
        self, intermediate: bool = False
    ) -> Iterator[tuple[ResultBase | None, ResultBase]]:
        """Walk the tree of this task and all that it has sent, breadth first.

        Parameters
        ----------
        intermediate
            Whether to pass over tasks that are not over yet.

        Yields
        ------
        tuple
            `(parent, result)`; the first parent is None.

        Raises
        ------
        nbtasks.exceptions.IncompleteStream
            When a task is not over yet, unless `intermediate`.
        """
        waiting: deque[tuple[ResultBase | None, ResultBase]] = deque([(None, self)])
        while waiting:
            parent, node = waiting.popleft()
            yield parent, node
            if node.ready():
                waiting.extend((node, child) for child in node.children or ())
            elif not intermediate:
                raise exceptions.IncompleteStream(
                    f"{node} is not over yet, so the tasks that it sends are not all known. Wait "
                    f"for it with get(), or pass intermediate=True to see what there is."
                )

    def collect(
        self, intermediate: bool = False, **kwargs: Any
    ) -> Iterator[tuple[ResultBase, Any]]:
        """Wait for this task, then for all that it has sent, and so on.

        Parameters
        ----------
        intermediate
            Whether to pass over tasks that are not over yet.
        **kwargs
            Given to each `get`.

        Yields
        ------
        tuple
            `(result, value)`, breadth first.
        """
        for _, node in self.iterdeps(intermediate=intermediate):
            yield node, node.get(**kwargs)

    def get_leaf(self) -> Any:
        """Wait for the whole tree, and return the value of the last task in it."""
        value = None
        for _, node in self.iterdeps():
            value = node.get()
        return value

    @property
    def graph(self) -> dict[ResultBase, list[ResultBase]]:
        """The tree as a mapping of each result to those that its task has sent."""
        return self.build_graph()

    def build_graph(
        self, intermediate: bool = False, formatter: Any = None
    ) -> dict[ResultBase, list[ResultBase]]:
        """Return the tree as a mapping of each result to those that its task has sent.

        Parameters
        ----------
        intermediate
            Whether to pass over tasks that are not over yet.
        formatter
            Taken for the sake of Celery's signature; not used.
        """
        graph: dict[ResultBase, list[ResultBase]] = {}
        for parent, node in self.iterdeps(intermediate=intermediate):
            graph.setdefault(node, [])
            if parent is not None:
                graph[parent].append(node)
        return graph

    def as_tuple(self) -> tuple[Any, Any]:
        """Return ids only, `((id, parent or None), None)`; `result_from_tuple` reverses it."""
        return (self.id, self.parent and self.parent.as_tuple()), None

    def as_list(self) -> list[str]:
        """Return the ids from this result back to the first of the chain."""
        ids, node = [], self.parent
        while node is not None:
            ids.append(getattr(node, "id", None))
            node = node.parent
        return [self.id, *(id for id in ids if id)]

    # ------------------------------------------------------------------------------ as a value

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id}>"

    def __str__(self) -> str:
        return self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, AsyncResult):
            return self.id == other.id
        if isinstance(other, str):
            return self.id == other
        return NotImplemented

    def __copy__(self) -> Self:
        twin = type(self)(self.id, None, self._name, None, self.parent)
        twin._record = self._record
        twin._ignored = self._ignored
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        # What is known of the task stays here: whoever loads this asks for itself.
        made = type(self), (self.id, None, self._name, None, self.parent)
        return (*made, (None, {"_ignored": True})) if self._ignored else made


def _told_to_the_end(record: Record) -> bool:
    """Say whether a task is over and its last event stands among its events."""
    if record.final is None:
        return record.error is not None
    return bool(record.events) and record.events[-1].n >= record.final.n


class _Beat:
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
                _client().follow(record)  # somebody may have sent it by now
            if self._on_interval is not None:
                self._on_interval()
        pause = max(0.0, self._at - time.monotonic())
        return pause if left is None else min(left, pause)


def _forget(results: Iterable[AsyncResult]) -> None:
    """Have the broker delete these results, and forget here what is known of them."""
    client = _client()
    over = [result for result in results if result._learned().final is not None]
    if not over:
        return
    client.tell(Forget(tuple(result.id for result in over)))
    client.ask("peek", key="")  # questions are answered after what was said before them is done
    for result in over:
        client._records.pop(result.id, None)
        client._recent.pop(result.id, None)
        result._record = result._value = None


class _OnReady:
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
    ) -> _OnReady:
        self._result.then(callback, on_error)
        return self


def _call_back(
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


def _signal_name(signal: str | int | None) -> str:
    """Return a signal's name, checked here, where the mistake was made."""
    try:
        if signal is None:
            return "SIGTERM"
        if isinstance(signal, int):
            return signals.Signals(signal).name
        name = signal.upper() if signal.upper().startswith("SIG") else f"SIG{signal.upper()}"
        return signals.Signals[name].name
    except (KeyError, ValueError):
        raise ValueError(
            f"This system has no signal {signal!r}. Name one such as 'SIGTERM', 'SIGINT' or "
            f"'SIGKILL'."
        ) from None


# ------------------------------------------------------------------------------------- eager runs


class EagerResult(AsyncResult):
    """The result of a task that ran here and now, by `apply()`. It is always ready.

    Parameters
    ----------
    id
        Id of the run.
    ret_value
        What the task returned, or the exception that it raised.
    state
        How it ended.
    traceback
        Text of the traceback, after an error.
    name
        Name of the task.

    Examples
    --------
    >>> result = EagerResult("1", 4, "SUCCESS", name="add")
    >>> result.ready(), result.get()
    (True, 4)
    """

    __slots__ = ("_at", "_result", "_state", "_tb", "_traceback")

    supports_native_join = False

    def __init__(
        self,
        id: str,
        ret_value: Any,
        state: str,
        traceback: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(id, task_name=name)
        self._result = ret_value
        self._state = state
        self._traceback = traceback
        #: Where the exception came from; each `get` raises it from there, not from the last `get`.
        self._tb: TracebackType | None = getattr(ret_value, "__traceback__", None)
        self._at = time.time()

    @property
    def state(self) -> str:
        """How the task ended."""
        return self._state

    status = state

    @property
    def result(self) -> Any:
        """What the task returned, or the exception that it raised."""
        return self._result

    info = result

    @property
    def traceback(self) -> str | None:
        """Text of the traceback, after an error."""
        return self._traceback

    def ready(self) -> bool:
        """Return True."""
        return True

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        no_ack: bool = True,
        follow_parents: bool = True,
        callback: Callback | None = None,
        on_message: Listener | None = None,
        on_interval: Callable[[], object] | None = None,
        disable_sync_subtasks: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Return the value, or raise the exception; nothing is waited for.

        Parameters
        ----------
        propagate
            Whether the exception is raised; otherwise it is returned.
        callback
            Called with `(id, value)`.
        on_message
            Called with the one state message that there is.
        timeout, interval, no_ack, follow_parents, on_interval, disable_sync_subtasks, **kwargs
            Ignored: there is nothing to wait for.
        """
        __tracebackhide__ = True
        if on_message is not None:
            on_message(self._message())
        return self.maybe_throw(propagate, callback)

    wait = get

    def maybe_throw(self, propagate: bool = True, callback: Callback | None = None) -> Any:
        """Raise the exception if there is one, else return the value."""
        __tracebackhide__ = True
        value = self._result
        if propagate and self._state in states.PROPAGATE_STATES:
            if isinstance(value, BaseException):
                raise value.with_traceback(self._tb)
            raise Exception(value)
        if callback is not None:
            callback(self.id, value)
        return value

    maybe_reraise = maybe_throw

    async def _arrive(self) -> Any:
        return self.get()

    def _message(self) -> dict[str, Any]:
        return {
            "task_id": self.id,
            "status": self._state,
            "result": self._result,
            "traceback": self._traceback,
            "children": [],
            "date_done": outcome.moment(self._at).isoformat(),
            "name": self._name,
            "args": None,
            "kwargs": None,
            "worker": None,
            "retries": 0,
            "queue": None,
        }

    def _when_over(self, function: Callable[[], object]) -> None:
        function()

    def then(
        self,
        callback: Callable[[Self], object],
        on_error: Callable[[Exception], object] | None = None,
        weak: bool = False,
    ) -> Self:
        """Call a function with this result, here and now."""
        _call_back(callback, self, on_error)
        return self

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call a function with the one state message that there is."""
        listener(self._message())
        return lambda: None

    @property
    def ignored(self) -> bool:
        """Whether the task ended by `Ignore`."""
        return self._ignored or self._state == states.IGNORED

    @ignored.setter
    def ignored(self, value: bool) -> None:
        self._ignored = value

    def exists(self) -> bool:
        """Return False: nothing is stored of an eager run."""
        return False

    @property
    def accepted(self) -> bool:
        """True: it has run."""
        return True

    @property
    def name(self) -> str | None:
        """Name of the task."""
        return self._name

    def _facts(self) -> _Facts:
        return _Facts(self._name)

    @property
    def worker(self) -> str | None:
        """None: it ran here."""
        return None

    @property
    def retries(self) -> int | None:
        """None: not told apart in an eager run."""
        return None

    @property
    def date_done(self) -> datetime | None:
        """When it ended, an aware datetime in UTC."""
        return outcome.moment(self._at)

    def logs(self, stream: str | None = None) -> str:
        """Return nothing: what the task printed is on the screen."""
        return ""

    @property
    def history(self) -> list[Moment]:
        """The one moment at which it ended."""
        return [Moment(outcome.moment(self._at), 1, self._state, "", "")]

    @property
    def progress(self) -> float | None:
        """1.0 after SUCCESS, else None."""
        return 1.0 if self._state == states.SUCCESS else None

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: str | int = "SIGTERM",
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Set the state to REVOKED, although it has run; all arguments are ignored."""
        self._state = states.REVOKED
        self._result = exceptions.TaskRevokedError("revoked")
        self._tb = self._traceback = None

    def retry(self, timeout: float | None = None) -> Self:
        """Not possible: an eager run is not stored."""
        raise ValueError(
            f"{self._title()} was run by apply() and is not stored, so it cannot be run again. "
            f"Call apply() once more."
        )

    def forget(self) -> None:
        """Do nothing: nothing is stored."""

    @property
    def children(self) -> list[Any] | None:
        """Nothing: an eager run keeps no record of what it has sent."""
        return []

    def __copy__(self) -> Self:
        return type(self)(self.id, self._result, self._state, self._traceback, self._name)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.id, self._result, self._state, self._traceback, self._name)


# ------------------------------------------------------------------------------------ many at once


class ResultSet(ResultBase):
    """Several results that are asked and waited for together.

    Parameters
    ----------
    results
        The members, in order.
    app, **kwargs
        Taken for the sake of Celery's signature; not used.

    Examples
    --------
    >>> results = ResultSet([EagerResult("a", 1, "SUCCESS"), EagerResult("b", 2, "SUCCESS")])
    >>> results.get(), results.completed_count()
    ([1, 2], 2)
    """

    #: Many results can be waited for at once.
    supports_native_join = True

    def __init__(self, results: Iterable[Any], app: Any = None, **kwargs: Any) -> None:
        #: The members, in order.
        self.results: list[Any] = list(results)
        self.parent: ResultBase | None = None

    # ------------------------------------------------------------------------------- as a list

    def add(self, result: ResultBase) -> None:
        """Add a member, unless it is one already."""
        if result not in self.results:
            self.results.append(result)

    def remove(self, result: ResultBase | str) -> None:
        """Remove a member, given as a result or by id.

        Raises
        ------
        KeyError
            When it is no member.
        """
        try:
            self.results.remove(result)
        except ValueError:
            raise KeyError(result) from None

    def discard(self, result: ResultBase | str) -> None:
        """Remove a member if it is one."""
        with contextlib.suppress(KeyError):
            self.remove(result)

    def update(self, results: Iterable[ResultBase]) -> None:
        """Add several members."""
        known = set(self.results)
        for result in results:
            if result not in known:
                known.add(result)
                self.results.append(result)

    def clear(self) -> None:
        """Remove all members."""
        self.results.clear()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.results)

    def __getitem__(self, index: Any) -> Any:
        return self.results[index]

    def __len__(self) -> int:
        return len(self.results)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ResultSet):
            return self.results == other.results
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # members come and go

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: [{', '.join(map(_id_of, self.results))}]>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.results,)

    # ---------------------------------------------------------------------------------- states

    def _followed(self) -> list[Any]:
        """Return the members; the broker is asked of all of them before the first is looked at."""
        for leaf in self._leaves():
            leaf._follow()
        return self.results

    def _leaves(self) -> Iterator[AsyncResult]:
        """Return all members that run in workers, those of sets among the members, too."""
        for member in self.results:
            if isinstance(member, ResultSet):
                yield from member._leaves()
            elif not isinstance(member, EagerResult):
                yield member

    def ready(self) -> bool:
        """Say whether all members are over."""
        return all(member.ready() for member in self._followed())

    def waiting(self) -> bool:
        """Say whether any member is not over yet."""
        return not self.ready()

    def successful(self) -> bool:
        """Say whether all members ended in SUCCESS."""
        return all(member.successful() for member in self._followed())

    def failed(self) -> bool:
        """Say whether any member ended in FAILURE."""
        return any(member.failed() for member in self._followed())

    def completed_count(self) -> int:
        """Return how many members have ended in SUCCESS so far."""
        return sum(member.successful() for member in self._followed())

    @property
    def progress(self) -> float | None:
        """Mean of the members' progress, 0.0 to 1.0; those that have not said count as 0."""
        shares = [member.progress or 0.0 for member in self._followed()]
        return sum(shares) / len(shares) if shares else None

    @property
    def children(self) -> list[Any] | None:
        """The members."""
        return self.results

    def maybe_throw(self, propagate: bool = True, callback: Callback | None = None) -> Any:
        """Raise the error of the first member that has one by now; does not wait."""
        __tracebackhide__ = True
        for member in self._followed():
            member.maybe_throw(propagate=propagate, callback=callback)

    maybe_reraise = maybe_throw

    # --------------------------------------------------------------------------------- control

    def forget(self) -> None:
        """Delete the results of all members that are over."""
        _forget(list(self._leaves()))

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: str | int = "SIGTERM",
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Revoke all members, with one message; the arguments are those of `AsyncResult.revoke`."""
        leaves = list(self._leaves())
        if leaves:
            ids = tuple(leaf.id for leaf in leaves)
            _client().tell(Revoke(ids, terminate, _signal_name(signal)))
        if wait:
            _Gathering(self, timeout).run()

    def cancel(self, wait: bool = False, timeout: float | None = None) -> None:
        """Do not run the members, or end those that are running."""
        self.revoke(terminate=True, wait=wait, timeout=timeout)

    # --------------------------------------------------------------------------------- waiting

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        callback: Callback | None = None,
        no_ack: bool = True,
        on_message: Listener | None = None,
        disable_sync_subtasks: bool = True,
        on_interval: Callable[[], object] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Wait for all members, and return their values in the members' order.

        Parameters
        ----------
        timeout
            Seconds to wait at most, for all together.
        propagate
            Whether the first error met is raised, without waiting for the rest; otherwise
            exceptions stand in the list in place of values.
        callback
            Called with `(task_id, value)` for each member as it completes; then there is no list.
        on_message
            Called with each state message of each member; see `AsyncResult.get`.
        disable_sync_subtasks
            Whether waiting inside a task is refused.
        on_interval
            Called without arguments about each second of waiting.
        interval, no_ack, **kwargs
            Taken for the sake of Celery's signature; nothing is polled here.

        Returns
        -------
        list or None
            The values; None with a `callback`.

        Raises
        ------
        nbtasks.exceptions.TimeoutError
            When time is up; it is a builtin TimeoutError, too.
        RuntimeError
            When called inside a task, unless that is allowed.
        """
        __tracebackhide__ = True
        if disable_sync_subtasks:
            _assert_may_wait("A set of results")
        gathering = _Gathering(self, timeout, propagate, callback, on_message, on_interval)
        gathering.run()
        if callback is not None:
            return None
        return [
            member.get(propagate=propagate, follow_parents=False, disable_sync_subtasks=False)
            for member in self.results
        ]

    join = get
    join_native = get

    def iter_native(
        self,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_message: Listener | None = None,
        on_interval: Callable[[], object] | None = None,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield `(task_id, {"status": ..., "result": ...})` of each member as it completes.

        Parameters
        ----------
        timeout
            Seconds to wait at most, for all together.
        on_message, on_interval
            See `get`.
        interval, no_ack
            Taken for the sake of Celery's signature; nothing is polled here.
        """
        gathering = _Gathering(self, timeout, False, None, on_message, on_interval)
        for member in gathering.completed():
            yield (
                member.id,
                {"task_id": member.id, "status": member.state, "result": member.result},
            )

    def __await__(self) -> Generator[Any, None, list[Any]]:
        """Wait for all members without blocking the event loop."""
        return self._arrive().__await__()

    async def _arrive(self) -> list[Any]:
        self._followed()
        return [await member for member in self.results]

    def then(
        self,
        callback: Callable[[Self], object],
        on_error: Callable[[Exception], object] | None = None,
        weak: bool = False,
    ) -> Self:
        """Call a function with this set once all members are over; nobody needs to wait.

        Parameters
        ----------
        callback
            Called with this set, in a thread of its own.
        on_error
            Called with the exception that `callback` raised; without it the exception is logged.
        weak
            Whether the callback is dropped when nobody else holds this set any more.
        """
        hold: Callable[[], Self | None] = weakref.ref(self) if weak else lambda: self
        left = deque(self._leaves())

        def call() -> None:
            result = hold()
            if result is not None:
                _call_back(callback, result, on_error)

        # A chain of waits rather than a counter: no lock, and the order of ends does not matter.
        def advance() -> None:
            if left:
                left.popleft()._when_over(advance)
            else:
                callbacks.post(call)

        callbacks.post(advance)
        return self

    @property
    def on_ready(self) -> _OnReady:
        """Celery's promise of this set: `on_ready.then(callback)`."""
        return _OnReady(self)


class _Gathering:
    """One wait for the members of a set: who is over, what was told, when time is up."""

    def __init__(
        self,
        results: ResultSet,
        timeout: float | None,
        propagate: bool = False,
        callback: Callback | None = None,
        on_message: Listener | None = None,
        on_interval: Callable[[], object] | None = None,
    ) -> None:
        self._members = results.results
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._propagate = propagate
        self._callback = callback
        self._beat = _Beat(on_interval)
        leaves = [leaf for leaf in results._leaves() if not leaf.ignored]
        self._messages = (
            [(leaf._follow(), _Messages(leaf, on_message)) for leaf in leaves]
            if on_message is not None
            else []
        )
        #: Members that are over but not yet looked at; the I/O thread appends.
        self._arrived: deque[AsyncResult] = deque()
        #: Those still open, the first of them waited for.
        self._open = {id(leaf): leaf for leaf in leaves}

    def run(self) -> None:
        """Wait for all; raise the first error met, and call back for each."""
        __tracebackhide__ = True
        for member in self.completed():
            if self._propagate or self._callback is not None:
                member.maybe_throw(self._propagate, self._callback)

    def completed(self) -> Iterator[Any]:
        """Yield the members as they complete."""
        __tracebackhide__ = True
        yield from (member for member in self._members if self._is_over_by_nature(member))
        self._watch()
        while True:
            self._tell()
            yield from self._newly_over()
            if not self._open:
                break
            self._pause()
        for member in self._members:
            if isinstance(member, ResultSet):
                yield _Nested(member)

    @staticmethod
    def _is_over_by_nature(member: Any) -> bool:
        return isinstance(member, EagerResult) or bool(getattr(member, "ignored", False))

    def _watch(self) -> None:
        """Have each member reported when it is over."""
        for leaf in self._open.values():
            record = leaf._follow()
            if record.over:
                self._arrived.append(leaf)
            else:
                leaf._when_over(functools.partial(self._arrived.append, leaf))

    def _newly_over(self) -> Iterator[AsyncResult]:
        """Return those that are over since the last look, in the order in which they ended."""
        found: list[AsyncResult] = []
        while self._arrived:
            leaf = self._arrived.popleft()
            if self._open.pop(id(leaf), None) is not None:
                found.append(leaf)
        found.sort(key=_ended_at)
        members = {id(member) for member in self._members}
        # Members of a nested set come as one, when all are over; their errors count at once.
        return (leaf for leaf in found if id(leaf) in members or self._fails(leaf))

    def _fails(self, leaf: AsyncResult) -> bool:
        return self._propagate and leaf.state in states.PROPAGATE_STATES

    def _tell(self) -> None:
        for record, messages in self._messages:
            if record.n > messages.seen:
                messages.tell(record)

    def _pause(self) -> None:
        """Wait until something may have changed."""
        __tracebackhide__ = True
        left = None if self._deadline is None else self._deadline - time.monotonic()
        if left is not None and left <= 0:
            raise exceptions.TimeoutError(
                f"{len(self._open)} of {len(self._members)} tasks were not ready within "
                f"{self._timeout:g} s. They go on: call get() again to wait longer, or cancel()."
            )
        left = self._beat.next(left)
        # One that is open is enough to wait for: what else arrives is looked at each slice.
        record = next(iter(self._open.values()))._follow()
        _client().wait([record], SLICE if left is None else min(left, SLICE))


class _Nested:
    """A set that is a member of a set, as the one thing that its callback sees."""

    def __init__(self, results: ResultSet) -> None:
        self._results = results
        self.id = _id_of(results)
        self.state = states.SUCCESS if results.successful() else states.FAILURE

    @property
    def result(self) -> Any:
        return self._results.get(propagate=False, disable_sync_subtasks=False)

    def maybe_throw(self, propagate: bool, callback: Callback | None) -> None:
        if callback is not None:
            value = self._results.get(propagate=propagate, disable_sync_subtasks=False)
            callback(self.id, value)


def _ended_at(leaf: AsyncResult) -> float:
    final = leaf._follow().final
    return final.at if final is not None else 0.0


def _id_of(result: Any) -> str:
    return str(getattr(result, "id", None) or result)


class GroupResult(ResultSet):
    """The results of a group: a set with an id that can be saved.

    Parameters
    ----------
    id
        Id of the group.
    results
        The members, in order.
    parent
        Result of the step before the group in a chain.
    **kwargs
        Taken for the sake of Celery's signature; not used.
    """

    def __init__(
        self,
        id: str | None = None,
        results: Iterable[Any] | None = None,
        parent: ResultBase | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(results or ())
        #: Id of the group.
        self.id = id
        self.parent = parent

    def save(self, backend: Any = None) -> None:
        """Keep the group in the cluster's store, so that `restore` finds it in any process.

        Parameters
        ----------
        backend
            Taken for the sake of Celery's signature; not used.
        """
        value = json.dumps(self.as_tuple()).encode()
        _client().ask("put", key=self._key(self.id), value=value)

    def delete(self, backend: Any = None) -> None:
        """Remove the group from the store; the members' results stay."""
        _client().ask("take", key=self._key(self.id))

    @classmethod
    def restore(cls, id: str, backend: Any = None, app: Any = None) -> Self | None:
        """Return a group that was saved, or None when there is none of this id.

        Parameters
        ----------
        id
            Id of the group.
        backend, app
            Taken for the sake of Celery's signature; not used.
        """
        value = _client().ask("peek", key=cls._key(id))
        if value is None:
            return None
        found = result_from_tuple(json.loads(value))
        return cls(found.id, found.results, found.parent)

    @staticmethod
    def _key(id: str | None) -> str:
        if not id:
            raise ValueError(
                "A group without an id cannot be saved: nobody could ask for it. "
                "Give it one: GroupResult(id, results)."
            )
        return f"group:{id}"

    def as_tuple(self) -> tuple[Any, Any]:
        """Return ids only, `((id, parent or None), [members])`; `result_from_tuple` reverses it."""
        parent = self.parent and self.parent.as_tuple()
        return (self.id, parent), [member.as_tuple() for member in self.results]

    def forget(self) -> None:
        """Delete the results of all members that are over, and the group itself."""
        super().forget()
        if self.parent is not None:
            self.parent.forget()
        if self.id:
            self.delete()

    def __bool__(self) -> bool:
        return bool(self.id or self.results)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, GroupResult):
            return (self.id, self.results, self.parent) == (other.id, other.results, other.parent)
        if isinstance(other, str):
            return self.id == other
        return super().__eq__(other)

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(self.id)

    def __str__(self) -> str:
        return self.id or repr(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id} [{', '.join(map(_id_of, self.results))}]>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.id, self.results, self.parent)


def result_from_tuple(r: Any, app: Any = None) -> Any:
    """Return the result that `as_tuple` took apart.

    Parameters
    ----------
    r
        What `as_tuple` returned, tuples or lists; results pass through.
    app
        Taken for the sake of Celery's signature; not used.

    Examples
    --------
    >>> result_from_tuple((("b", (("a", None), None)), None)).parent
    <AsyncResult: a>
    """
    if not isinstance(r, (list, tuple)):
        return r
    head, members = r
    id, parent = head if isinstance(head, (list, tuple)) else (head, None)
    parent = result_from_tuple(parent) if parent else None
    if members is None:
        return AsyncResult(id, parent=parent)
    return GroupResult(id, [result_from_tuple(member) for member in members], parent=parent)
