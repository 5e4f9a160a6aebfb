"""Every error that a user may meet, under Celery's name where Celery has one.

    CeleryError
    ├── ImproperlyConfigured, SecurityError
    ├── TaskPredicate                what a running task raises to say how the run shall end
    │   └── Ignore, Reject, Retry
    ├── TaskError
    │   └── TimeoutError, MaxRetriesExceededError, TaskRevokedError, NotRegistered, ChordError, ...
    └── ClusterError                 no cluster can be had
        └── NotPermitted, PathTooLong, StoreError (StoreTooNew, StoreCorrupt)
    KombuError
    ├── OperationalError ── BrokerUnavailable
    └── EncodeError, DecodeError, SerializerNotInstalled ── ContentDisallowed
    SoftTimeLimitExceeded, TimeLimitExceeded, MemoryLimitExceeded, WorkerLostError, Terminated
    CeleryWarning                    and what is below it

All of them cross process boundaries, so all of them survive pickling with text and attributes,
whatever their `__init__` takes: `_Portable` rebuilds them without calling it.
"""

from __future__ import annotations

import builtins
import numbers
import os
from datetime import datetime
from typing import Any, Final, Self

__all__ = [
    "AlreadyRegistered",
    "AlwaysEagerIgnored",
    "BackendError",
    "BackendGetMetaError",
    "BackendStoreError",
    "BrokerUnavailable",
    "CDeprecationWarning",
    "CPendingDeprecationWarning",
    "CeleryError",
    "CeleryWarning",
    "ChordError",
    "ClusterError",
    "ContentDisallowed",
    "DecodeError",
    "DuplicateNodenameWarning",
    "DuplicateTaskNameWarning",
    "EncodeError",
    "FixupWarning",
    "ForkedError",
    "Ignore",
    "ImproperlyConfigured",
    "IncompleteStream",
    "InvalidTaskError",
    "KombuError",
    "LargeGlobalWarning",
    "MaxRetriesExceededError",
    "MemoryLimitExceeded",
    "NaiveTimeWarning",
    "NotConfigured",
    "NotPermitted",
    "NotRegistered",
    "OperationalError",
    "PathTooLong",
    "QueueNotFound",
    "Reject",
    "Retry",
    "SecurityError",
    "SerializationError",
    "SerializerNotInstalled",
    "SoftTimeLimitExceeded",
    "StoreCorrupt",
    "StoreError",
    "StoreTooNew",
    "TaskError",
    "TaskPredicate",
    "TaskRevokedError",
    "Terminated",
    "TimeLimitExceeded",
    "TimeoutError",
    "UnpickleableExceptionWrapper",
    "WorkerLostError",
    "WorkerShutdown",
    "WorkerTerminate",
]


#: `Py_TPFLAGS_HEAPTYPE`: the class was made by a class statement.
_HEAP_TYPE: Final = 1 << 9


def _rebuild(
    cls: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]
) -> BaseException:
    """Make an exception of its parts, without its `__init__`, which may want other things."""
    builtin: type[BaseException] = cls
    while builtin.__flags__ & _HEAP_TYPE:
        builtin = builtin.__base__  # type: ignore[assignment]
    # cls.__new__ could be that of a base with a smaller layout (RuntimeError before OSError).
    exception = builtin.__new__(cls)
    exception.args = args
    exception.__dict__.update(attributes)
    return exception


class _Portable(BaseException):
    """Survives pickling with text and attributes, whatever `__init__` takes."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))

    # KeyError and OSError, from which some inherit, have a text of their own.
    def __str__(self) -> str:
        return Exception.__str__(self)


# ------------------------------------------------------------------------------------- the roots


class CeleryError(_Portable, Exception):
    """Base of the errors about tasks; the name is Celery's, so that `except` clauses carry over."""


class ImproperlyConfigured(CeleryError):
    """A setting, or a set of them, cannot be."""


class SecurityError(CeleryError):
    """Something was not done because it would not be safe."""


# ---------------------------------------------------- raised by a task to say how its run shall end


class TaskPredicate(CeleryError):
    """Base of what a running task raises to say how the run shall end."""


class Ignore(TaskPredicate):
    """End the run without storing any state or result."""


class Reject(TaskPredicate):
    """End the run as rejected.

    Parameters
    ----------
    reason
        Why; an exception or text.
    requeue
        Whether the task shall be handed out again (only with `acks_late`).
    """

    def __init__(self, reason: Any = None, requeue: bool = False) -> None:
        super().__init__(reason, requeue)
        self.reason = reason
        self.requeue = requeue

    def __repr__(self) -> str:
        return f"reject requeue={self.requeue}: {self.reason}"

    def __str__(self) -> str:
        return repr(self)


class Retry(TaskPredicate):
    """The run ends here; the task will run again. Raised by `Task.retry`.

    Parameters
    ----------
    message
        Text to show instead of the usual one.
    exc
        The exception because of which the task is retried, or its text.
    when
        Seconds until the next run, or the time of it.
    is_eager
        Whether the task runs in `apply()`.
    sig
        What the next run is made of (eager runs only).

    Examples
    --------
    >>> str(Retry(exc=ValueError("v"), when=10))
    "Retry in 10s: ValueError('v')"
    """

    #: Text of the exception because of which the task is retried.
    excs: str | None = None

    def __init__(
        self,
        message: str | None = None,
        exc: BaseException | str | None = None,
        when: float | datetime | None = None,
        is_eager: bool = False,
        sig: Any = None,
        **kwargs: Any,
    ) -> None:
        self.message = message
        self.exc: BaseException | None = None
        if isinstance(exc, BaseException):
            self.exc = exc
            self.excs = _safe_repr(exc)
        elif exc is not None:
            self.excs = exc
        self.when = when
        self.is_eager = is_eager
        self.sig = sig
        super().__init__(message, exc, when, **kwargs)

    def humanize(self) -> str:
        """Say when the next run will be: `in 10s`, or `at <time>`."""
        if isinstance(self.when, (int, float, numbers.Number)):
            return f"in {self.when}s"
        return f"at {self.when}"

    def __str__(self) -> str:
        if self.message:
            return self.message
        if self.excs:
            return f"Retry {self.humanize()}: {self.excs}"
        return f"Retry {self.humanize()}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Neither `sig` nor `is_eager` means anything to another process.
        attributes = {**self.__dict__, "sig": None, "is_eager": False}
        return _rebuild, (type(self), self.args, attributes)


# ----------------------------------------------------------------------------------- task errors


class TaskError(CeleryError):
    """Base of what can go wrong with a task."""


class QueueNotFound(TaskError, KeyError):
    """No queue of this name."""


class IncompleteStream(TaskError):
    """Results were asked for before all of them were there."""


class NotRegistered(TaskError, KeyError):
    """No task of this name is known.

    Parameters
    ----------
    name
        The task's name (or a whole sentence about it).
    """

    def __str__(self) -> str:
        text = Exception.__str__(self)
        if " " in text or not text:
            return text
        return (
            f"No task is registered under the name {text!r}. The worker has neither been sent its "
            f"function nor found a module to import it from. Call the task object itself "
            f"(task.delay(...)), or give send_task the name that task.name shows."
        )


class AlreadyRegistered(TaskError):
    """There is a task of this name already."""


class TimeoutError(TaskError, builtins.TimeoutError):
    """The time-out is over and there is no result yet; the task itself goes on."""


class MaxRetriesExceededError(TaskError):
    """A task wanted to be retried once more than it may.

    Parameters
    ----------
    *args
        The text.
    task_args, task_kwargs
        Arguments of the run that gave up.
    """

    def __init__(self, *args: Any, task_args: Any = (), task_kwargs: Any = None) -> None:
        super().__init__(*args)
        self.task_args = task_args
        self.task_kwargs = {} if task_kwargs is None else task_kwargs


class TaskRevokedError(TaskError):
    """The task was revoked, expired or terminated, so there is no result."""


class InvalidTaskError(TaskError):
    """The data of a task cannot be understood."""


class ChordError(TaskError):
    """A part of a chord failed, so its body was not run."""


# ----------------------------------------------------------------------------------- the store's


class BackendError(_Portable, Exception):
    """Something is wrong with the store of results."""


class BackendGetMetaError(BackendError):
    """A result cannot be read.

    Parameters
    ----------
    *args
        The text.
    task_id
        Whose result it is.
    """

    def __init__(self, *args: Any, task_id: str = "") -> None:
        super().__init__(*args)
        self.task_id = task_id


class BackendStoreError(BackendError):
    """A result cannot be stored.

    Parameters
    ----------
    *args
        The text.
    state
        The state that was to be stored.
    task_id
        Whose result it is.
    """

    def __init__(self, *args: Any, state: str = "", task_id: str = "") -> None:
        super().__init__(*args)
        self.state = state
        self.task_id = task_id


# ------------------------------------------------------------------------------- messages, broker


class KombuError(_Portable, Exception):
    """Base of the errors about messages; the name is that of Celery's messaging library."""


class OperationalError(KombuError):
    """The broker cannot be reached, or will not take a message."""


class BrokerUnavailable(OperationalError, ConnectionError):
    """No broker answers.

    Parameters
    ----------
    path
        Where it was looked for; or, without `waited`, a whole text.
    waited
        How long, seconds.
    """

    def __init__(self, path: str | os.PathLike[str], waited: float | None = None) -> None:
        text = os.fspath(path)
        if waited is not None:
            text = (
                f"No broker answered at {text} within {waited:.1f} s. It may have stopped, or the "
                f"file may be left over from an earlier run. Start one with %nbtasks start (in a "
                f"notebook) or `nbtasks start` (in a shell)."
            )
        super().__init__(text)
        self.path = None if waited is None else os.fspath(path)
        self.waited = waited


class SerializationError(KombuError, ValueError):
    """Something cannot be turned into bytes, or bytes into something."""


class EncodeError(SerializationError):
    """An argument or a result cannot be turned into bytes."""


class DecodeError(SerializationError):
    """Bytes cannot be turned back into what they were."""


class SerializerNotInstalled(KombuError, KeyError):
    """No serializer or compression of this name."""


class ContentDisallowed(SerializerNotInstalled):
    """Bytes of this kind are not accepted here."""


# ------------------------------------------------------------------------------ how a process ends


class SoftTimeLimitExceeded(_Portable, Exception):
    """Raised inside a task that has run for its soft time limit; it may be caught to clean up."""

    def __str__(self) -> str:
        if len(self.args) == 1 and isinstance(self.args[0], (int, float)):
            return (
                f"The task has run for its soft time limit of {self.args[0]:g} s. Catch "
                f"SoftTimeLimitExceeded to clean up, or raise soft_time_limit."
            )
        return Exception.__str__(self)


class TimeLimitExceeded(_Portable, Exception):
    """The task ran for its hard time limit, so its process was killed.

    Parameters
    ----------
    limit
        The limit, seconds.
    """

    def __str__(self) -> str:
        if len(self.args) == 1 and isinstance(self.args[0], (int, float)):
            return (
                f"The task ran for its time limit of {self.args[0]:g} s, so its process was killed "
                f"and replaced. Raise time_limit, or set a soft_time_limit below it to end in time."
            )
        return Exception.__str__(self)


class MemoryLimitExceeded(_Portable, MemoryError):
    """The task took more memory than it may, so its process was killed.

    Parameters
    ----------
    limit
        The limit, bytes.
    taken
        What it had taken, bytes.
    """

    def __str__(self) -> str:
        if len(self.args) == 2 and all(isinstance(arg, int) for arg in self.args):
            limit, taken = (arg / 1e6 for arg in self.args)
            return (
                f"The task took {taken:,.0f} MB of memory, more than its memory limit of "
                f"{limit:,.0f} MB, so its process was killed and replaced. Raise memory_limit, or "
                f"work in smaller pieces."
            )
        return Exception.__str__(self)


class WorkerLostError(_Portable, Exception):
    """The process that ran the task is gone."""


class Terminated(_Portable, Exception):
    """The task was terminated while it ran."""


class WorkerShutdown(_Portable, SystemExit):
    """Ask the worker process to end in an orderly way."""


class WorkerTerminate(_Portable, SystemExit):
    """Ask the worker process to end at once."""


# ----------------------------------------------------------------------------------- the cluster


class ClusterError(CeleryError, RuntimeError):
    """A cluster cannot be started, found or used."""


class NotPermitted(ClusterError, PermissionError):
    """The operating system, or the broker, does not allow it."""


class PathTooLong(ClusterError, ValueError):
    """A path is longer than the system takes for a socket."""


class StoreError(ClusterError):
    """The store cannot be used; it is left as it is."""


class StoreTooNew(StoreError):
    """The store was written by a later version of nbtasks."""


class StoreCorrupt(StoreError):
    """The file is no store, or a damaged one."""


class ForkedError(CeleryError, RuntimeError):
    """A child made by fork uses the connection of its parent.

    Parameters
    ----------
    text
        Instead of the usual text.
    """

    def __init__(self, text: str | None = None) -> None:
        super().__init__(
            text
            or "This process was forked from one that is connected to nbtasks, and a connection "
            "cannot be shared. Whatever is sent here would vanish without an error. Start child "
            'processes with multiprocessing.get_context("spawn"), or send the task before '
            "the fork."
        )


# -------------------------------------------------------------------- exceptions that do not travel


class UnpickleableExceptionWrapper(_Portable, Exception):
    """Stands for an exception that cannot be pickled.

    Parameters
    ----------
    exc_module, exc_cls_name
        Where its class is, and what it is called.
    exc_args
        Its arguments, or their texts.
    text
        What to show; by default the class's name with the arguments.
    message
        Text of the exception, to be shown as well where the arguments do not say it.
    """

    def __init__(
        self,
        exc_module: str,
        exc_cls_name: str,
        exc_args: Any,
        text: str | None = None,
        *,
        message: str = "",
    ) -> None:
        self.exc_module = exc_module
        self.exc_cls_name = exc_cls_name
        self.exc_args = exc_args
        what = f"{exc_cls_name}({', '.join(map(str, exc_args))})"
        if message and message not in what:
            what = f"{what}: {message}"
        self.text = (
            f"{what}\n"
            f"(The exception itself, of class {exc_module}.{exc_cls_name}, could not be carried "
            f"back: it does not survive pickling. This is its text. To have it as itself, let the "
            f"class pass all that its __init__ takes to super().__init__().)"
            if text is None
            else text
        )
        super().__init__(exc_module, exc_cls_name, exc_args, self.text)

    @classmethod
    def from_exception(cls, exc: BaseException) -> Self:
        """Return the wrapper of `exc`, with its arguments as texts."""
        kind = type(exc)
        args = tuple(_safe_repr(arg) for arg in exc.args)
        return cls(kind.__module__, kind.__name__, args, message=_safe_str(exc))

    def __str__(self) -> str:
        return self.text


def _safe_str(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return ""


def _safe_repr(value: object) -> str:
    """Return `repr(value)`, or something like it when that fails: errors must not breed."""
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__name__} whose repr fails with {type(error).__name__}>"


# -------------------------------------------------------------------------------------- warnings


class CeleryWarning(UserWarning):
    """Base of the warnings."""


class AlwaysEagerIgnored(CeleryWarning):
    """`send_task` does not obey `task_always_eager`: there is no function to run here."""


class DuplicateTaskNameWarning(CeleryWarning):
    """Two tasks have one name."""


class DuplicateNodenameWarning(CeleryWarning):
    """Two workers have one name."""


class FixupWarning(CeleryWarning):
    """Something was put right that may not have been meant."""


class NotConfigured(CeleryWarning):
    """There is no configuration where one was named."""


class CPendingDeprecationWarning(PendingDeprecationWarning):
    """Something will go, some day."""


class CDeprecationWarning(DeprecationWarning):
    """Something will go with the next version."""


class NaiveTimeWarning(CeleryWarning):
    """A time without a zone was taken as UTC, and probably was not meant so."""


class LargeGlobalWarning(CeleryWarning):
    """A function drags a large object along."""
