"""What a caller holds of a task: `AsyncResult`.

    record.events  ──▶  outcome (pure) ──▶  state, value, error, on_message bodies
         ▲                                        │
         │ I/O thread                             ▼
    client.wait(...)  ◀── the caller's thread ──  get()

A result is a name and little else: an id, and the client's `Record` of the task once somebody has
asked. States are pushed, so a look at one costs no message; only `get` and its like wait, in the
thread that called them.

Its kin have files of their own, `eager_result` and `result_set`, and can be had from here as well.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import time
import warnings
import weakref
from collections.abc import Callable, Generator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Self

from nbtasks import context, exceptions
from nbtasks.client import outcome, waiting
from nbtasks.client.callbacks import callbacks
from nbtasks.client.family import Callback, Family, Listener, ResultBase
from nbtasks.client.listening import Facts, Messages
from nbtasks.client.options import text_of
from nbtasks.client.outcome import Moment
from nbtasks.core import states
from nbtasks.core.messages import Event, Hasten, Redo, Revoke

if TYPE_CHECKING:
    from nbtasks.client.client import Client, Record

__all__ = ["AsyncResult", "Moment", "ResultBase"]


class AsyncResult(Family):
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
        self.id = text_of("id", str(id))
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
        if record is None or (record.final is None and waiting.is_orphan(record)):
            record = self._record = self._client.record(self.id)
        return record

    @property
    def _client(self) -> Client:
        return waiting.client_of(self._record)

    def _learned(self) -> Record:
        """Return the record once it says what the broker knew when it was asked."""
        run = context.current_run()
        if run is not None and run.id == self.id and not run.is_eager and run._channel is not None:
            # A run tells of itself by another way than we hear of it.
            run._channel.flush()
            self._client.settle(waiting.PATIENCE)
        record = self._follow()
        if record.known is None and record.call is None and not record.over:
            self._client.learn(record, waiting.PATIENCE)
        return record

    def _facts(self, retries: int | None = None, timeout: float = waiting.PATIENCE) -> Facts:
        """Return what was fixed at the call, from the call itself or from the broker.

        Parameters
        ----------
        retries
            Of which run: arguments and queue may change with each retry. None: the last one.
        timeout
            Seconds to wait for the broker.
        """
        record = self._learned()
        call = record.call
        again = self.retries if retries is None else retries
        if call is not None and not call.frames and not again:
            return self._own_facts()
        shown = self._client.ask("show", id=self.id, timeout=timeout)
        if shown is None:
            return self._own_facts()
        return Facts(
            shown["name"],
            shown["queue"],
            shown["parent"] or None,
            shown["options"].get("group"),
            shown["body"],
            shown["buffers"],
        )

    def _own_facts(self) -> Facts:
        """Return the same as far as it is known here."""
        call = self._record.call if self._record is not None else None
        if call is None:
            return Facts(self._name)
        group = call.options.group if call.options is not None else None
        return Facts(call.name, call.queue, call.parent or None, group, call.body)

    # ------------------------------------------------------------------------- state and value

    @property
    def state(self) -> str:
        """Present state.

        PENDING (not begun, or unknown), STARTED, any text given to `update_state`, RETRY, SUCCESS,
        FAILURE, REVOKED or IGNORED.
        """
        return outcome.state_of(self._learned())

    status = state

    @property
    def result(self) -> Any:
        """What belongs to the present state.

        The value of SUCCESS, the exception of FAILURE, RETRY and REVOKED, the `meta` of states set
        by `update_state`; None when there is nothing.
        """
        record = self._learned()
        event = outcome.present(record)
        if event is None:
            return None
        if event.state in states.EXCEPTION_STATES:
            return self._reason(record, event)
        return self._load(record, event)

    info = result

    @property
    def traceback(self) -> str | None:
        """Text of the remote traceback after FAILURE and during RETRY, else None."""
        record = self._learned()
        event = outcome.present(record)
        return None if event is None else outcome.traceback_of(record, event, self._name)

    def ready(self) -> bool:
        """Say whether the task is over, in whatever way."""
        return self._learned().over

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
        return self._client.ask("show", id=self.id) is not None

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

    def _reason(self, record: Record, event: Event) -> BaseException | None:
        return outcome.load_reason(record, event, self._name)

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
        if disable_sync_subtasks and context.task_join_will_block():
            raise waiting.refusal(f"The result of {self._title()}")
        parents = self._parents() if propagate and follow_parents and self.parent else []
        for parent in parents:
            parent.maybe_throw()
        if timeout is not None:
            timeout = waiting.seconds_of(timeout)
        if callback is not None or on_message is not None or on_interval is not None:
            waiting.check_given(callback=callback, on_message=on_message, on_interval=on_interval)
        record = self._follow()
        if on_message is not None or record.final is None:
            beat = waiting.Beat(on_interval, parents)
            messages = None if on_message is None else Messages(self, on_message, timeout)
            with context.joining():
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
        beat: waiting.Beat | None = None,
        messages: Messages | None = None,
    ) -> None:
        """Return when the task is over and all its messages are told; raise when time is up."""
        __tracebackhide__ = True
        client, beat = self._client, beat or waiting.Beat()
        deadline = None if timeout is None else time.monotonic() + timeout
        if timeout is not None and timeout <= 0:
            self._learned()  # a mere question: what is known of the task must be known here
        if record.known is False and timeout is None:
            warnings.warn(self._unknown(), exceptions.CeleryWarning, stacklevel=3)
        while True:
            told = waiting.told_to_the_end(record)
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
                client.wait_until(record, functools.partial(messages.owed, record), pause)

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
        event = outcome.deciding(record, kept=True)
        if event is not None and event.state in states.PROPAGATE_STATES:
            error = self._error(record, event)
        elif record.error is not None and record.final is None:
            error = waiting.afresh(record.error)  # the broker has refused the task
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

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait without blocking the event loop; the value and the errors are those of `get`."""
        return self._arrive().__await__()

    async def _arrive(self) -> Any:
        import asyncio

        if self.ignored:
            return None
        if context.task_join_will_block():
            raise waiting.refusal(f"The result of {self._title()}")
        record, client = self._follow(), self._client
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()
        beat = waiting.Beat(parents=self._parents())

        def wake(*_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(arrived.set)

        waiter = client.add_waiter(record, wake)
        try:
            while not record.over:
                with waiting.awaiting(), contextlib.suppress(builtins.TimeoutError):
                    await asyncio.wait_for(arrived.wait(), beat.next(waiting.BEAT, record))
                client.wait([record], 0.0)  # raises when there is no cluster any more
                if arrived.is_set() and not record.over:  # it was over, and runs again
                    arrived.clear()
                    waiter = client.add_waiter(record, wake)
        finally:
            record.remove_waiter(waiter)
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
        waiting.check_callable("callback", callback)
        hold: Callable[[], Self | None] = weakref.ref(self) if weak else lambda: self

        def call() -> None:
            result = hold()
            if result is not None:
                waiting.call_back(callback, result, on_error)

        self._when_over(lambda: callbacks.post(call))
        return self

    @property
    def on_ready(self) -> waiting.OnReady:
        """Celery's promise of this result: `on_ready.then(callback)`."""
        return waiting.OnReady(self)

    def _when_over(self, function: Callable[[], object]) -> Any:
        """Call `function` once when the task is over, from whichever thread learns of it.

        What is returned is the waiter that `Record.remove_waiter` wants.
        """
        return self._client.add_waiter(self._follow(), function)

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
        waiting.check_callable("listener", listener)

        def say(message: dict[str, Any]) -> None:
            if hear in record.listeners:
                listener(message)

        messages = Messages(self, say)
        record = self._follow()

        def tell() -> None:
            if hear not in record.listeners:
                return
            try:
                messages.tell(record)
            except BaseException:
                callbacks.post(tell)  # of the rest
                raise

        def hear(_: Record, event: Event) -> None:
            if event.kind == "state":
                callbacks.post(tell)

        record.listen(hear)
        callbacks.post(tell)
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
        """Positional arguments of the task, those of its last retry; None when unknown."""
        return self._facts().arguments()[0]

    @property
    def kwargs(self) -> Any:
        """Keyword arguments of the task, those of its last retry; None when unknown."""
        return self._facts().arguments()[1]

    @property
    def queue(self) -> str | None:
        """Name of the queue that the task was sent to last, None when unknown."""
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
        """Return a widget that shows this task, live; where there is no notebook, as text."""
        # By name: notebooks are built upon clients, not the other way round.
        return importlib.import_module("nbtasks.jupyter.panel").widget(self)

    # --------------------------------------------------------------------------------- control

    def revoke(
        self,
        terminate: bool = False,
        signal: str | int = "SIGTERM",
        wait: bool = False,
        timeout: float | None = None,
        connection: Any = None,
    ) -> None:
        """Do not run the task; with `terminate`, also end it when it is running.

        A task that is over keeps its result; one that is running goes on unless terminated. This
        holds at once and for good, whichever worker would have run it.

        Parameters
        ----------
        terminate
            Whether a running task is ended, by killing its process.
        signal
            What the process is sent first, by name or number; SIGKILL follows if it stays.
        wait
            Whether to wait until the task is over.
        timeout
            Seconds to wait at most.
        connection
            Taken for the sake of Celery's signature; not used.

        Raises
        ------
        ValueError
            When there is no such signal.
        nbtasks.exceptions.TimeoutError
            When the task is not over in time.
        """
        timeout = waiting.seconds_of(timeout)
        self._client.tell(Revoke((self.id,), terminate, waiting.signal_name(signal)))
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

    def retry(self, timeout: float | None = waiting.PATIENCE) -> Self:
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
            When the task is not in such a state, or is forgotten; tasks that succeeded are not
            repeated.
        nbtasks.exceptions.TimeoutError
            When the broker has not confirmed it in time.
        """
        timeout = waiting.seconds_of(timeout)
        record = self._learned()
        if record.state == states.RETRY:
            self._client.tell(Hasten((self.id,)))
            return self
        if record.final is None or record.state not in states.PROPAGATE_STATES:
            raise ValueError(
                f"{self._title()} is {record.state}, so it cannot be run again. That is for tasks "
                f"that ended in FAILURE or REVOKED; send a new one with delay() or apply_async()."
            )
        if record.purged:
            raise ValueError(
                f"{self._title()} was purged, and its arguments are deleted with it; send a new "
                f"one with delay() or apply_async()."
            )
        self._redo(record, timeout)
        return self

    def _redo(self, record: Record, timeout: float | None) -> None:
        """Have the task run again, and return when the record says so."""
        client, before = self._client, record.n
        client.follow(record)
        client.tell(Redo((self.id,)))
        if not client.wait_until(
            record, lambda: record.n > before or record.known is False, timeout
        ):
            raise exceptions.TimeoutError(
                f"The broker did not confirm within {timeout:g} s that {self._title()} will "
                f"run again. Its result may have expired; look at result.exists()."
            )
        if record.known is False:
            raise ValueError(self._unknown())

    def forget(self) -> None:
        """Delete the task's result, and its parents', from the store; it is PENDING afterwards.

        A task that is not over is not touched.
        """
        if self.parent is not None:
            self.parent.forget()
        waiting.forget([self])

    @property
    def children(self) -> list[Any] | None:
        """Results of the tasks that this task has sent; None as long as it is not known."""
        record = self._learned()
        ids = outcome.children_of(record)
        if not ids and record.final is None:
            return None
        return [AsyncResult(child) for child in ids]

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
