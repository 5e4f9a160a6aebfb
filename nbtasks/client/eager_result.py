"""Results of tasks that ran here and now: `EagerResult`."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Any, NamedTuple, Self

from nbtasks import exceptions
from nbtasks.client import outcome, waiting
from nbtasks.client.family import Callback, Listener
from nbtasks.client.outcome import Moment
from nbtasks.client.result import AsyncResult
from nbtasks.core import states


class Ran(NamedTuple):
    """What is known of the run behind a result, as far as it is known."""

    args: Any = None
    kwargs: Any = None
    retries: int | None = None
    queue: str | None = None
    #: Results of the tasks that it has sent.
    children: tuple[AsyncResult, ...] = ()
    #: Ids of its group and of the task that has run it.
    group: str | None = None
    parent: str | None = None
    #: What it is called in panels, and its arguments as text.
    called: tuple[str, str] | None = None


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
    ran
        What else is known of the run.

    Examples
    --------
    >>> result = EagerResult("1", 4, "SUCCESS", name="add")
    >>> result.ready(), result.get()
    (True, 4)
    """

    __slots__ = ("_at", "_ran", "_result", "_state", "_tb", "_traceback")

    supports_native_join = False

    def __init__(
        self,
        id: str,
        ret_value: Any,
        state: str,
        traceback: str | None = None,
        name: str | None = None,
        ran: Ran | None = None,
    ) -> None:
        super().__init__(id, task_name=name)
        self._ran = ran or Ran()
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
        ran = self._ran
        ids = {"group_id": ran.group, "parent_id": ran.parent}
        return {
            "task_id": self.id,
            "status": self._state,
            "result": self._result,
            "traceback": self._traceback,
            "children": [((child.id, None), None) for child in ran.children],
            "date_done": outcome.moment(self._at).isoformat(),
            "name": self._name,
            "args": ran.args,
            "kwargs": ran.kwargs,
            "worker": None,
            "retries": ran.retries or 0,
            "queue": ran.queue,
            **{name: id for name, id in ids.items() if id},
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
        waiting.call_back(callback, self, on_error)
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

    @property
    def args(self) -> Any:
        """Positional arguments of the run, None when unknown."""
        return self._ran.args

    @property
    def kwargs(self) -> Any:
        """Keyword arguments of the run, None when unknown."""
        return self._ran.kwargs

    @property
    def queue(self) -> str | None:
        """The queue that the call named, else None: it went to no queue."""
        return self._ran.queue

    @property
    def worker(self) -> str | None:
        """None: it ran here."""
        return None

    @property
    def retries(self) -> int | None:
        """How often the task was retried, None when unknown."""
        return self._ran.retries

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
        terminate: bool = False,
        signal: str | int = "SIGTERM",
        wait: bool = False,
        timeout: float | None = None,
        connection: Any = None,
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
        """Results of the tasks that this task has sent."""
        return list(self._ran.children)

    def __copy__(self) -> Self:
        made, parts, (_, more) = self.__reduce__()
        twin: Self = made(*parts)
        for name, value in more.items():
            setattr(twin, name, value)
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        told = self._result, self._state, self._traceback, self._name, self._ran
        more = {"_at": self._at, "_ignored": self._ignored, "parent": self.parent}
        return type(self), (self.id, *told), (None, more)
