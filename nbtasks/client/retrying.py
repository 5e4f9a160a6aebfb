"""What `Task.retry` decides: how the task shall run next, or why it shall not."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn

from nbtasks.client import arguments, models, options
from nbtasks.context import Request, RetryPlan
from nbtasks.core.messages import MOST_RETRIES
from nbtasks.exceptions import EncodeError, Reject, SerializerNotInstalled
from nbtasks.wire.connection import now

if TYPE_CHECKING:
    from nbtasks.client.base import Task


def limit_of(task: Task, given: Any) -> float | None:
    """Return how many retries there may be: what `retry` was given, or what the task says.

    Raises
    ------
    ValueError
        When it is no number.
    """
    return options.bound_of(task.max_retries if given is None else given)


def plan(
    task: Task,
    request: Request,
    args: tuple[Any, ...] | None,
    kwargs: dict[str, Any] | None,
    eta: Any,
    countdown: Any,
    given: dict[str, Any],
) -> RetryPlan:
    """Return how a task shall run next.

    Parameters
    ----------
    task, request
        Which, and its present run.
    args, kwargs
        New arguments; None: those of this run.
    eta, countdown
        Earliest start; both None: after the task's `default_retry_delay`. `countdown` wins.
    given
        Options of `apply_async` that shall differ from those of this run.

    Raises
    ------
    Reject
        When the new arguments do not fit, or cannot be sent.
    TypeError, ValueError
        When an option cannot be used.
    """
    changes = options.normalize_for_retry(given, now().wall)
    start, wait = None, None
    if countdown is not None or eta is None:
        chosen = task.default_retry_delay if countdown is None else countdown
        wait = options.seconds("countdown", chosen)
    else:
        start = options.moment("eta", eta)
    if args is not None or kwargs is not None:
        args, kwargs = _new_arguments(task, request, args, kwargs, changes)
    # The body may have set any number.
    retries = min(max(0, request.retries + 1), MOST_RETRIES)
    return RetryPlan(args, kwargs, wait, start, retries, changes)


def _new_arguments(
    task: Task,
    request: Request,
    args: tuple[Any, ...] | None,
    kwargs: dict[str, Any] | None,
    changes: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    from nbtasks.wire import payloads

    old = tuple(request.args or ()), dict(request.kwargs or {})
    merged = arguments.merge_for_retry(task._signature(), old, args, kwargs)
    serializer = changes.get("serializer") or task.serializer
    if models.must_be_dumped(task, serializer):
        merged = models.dumped(*merged)
    try:
        if task.typing and task._check is not None:
            task._check(*merged[0], **merged[1])
        payloads.dumps_arguments(
            *merged, serializer, changes.get("compression", task.compression), task
        )
    except (TypeError, EncodeError, SerializerNotInstalled) as error:
        raise Reject(error, requeue=False) from error
    return merged


def exceeded(
    task: Task,
    request: Request,
    args: tuple[Any, ...] | None,
    kwargs: dict[str, Any] | None,
) -> Exception:
    """Return the error that says that there are no retries left."""
    args = request.args if args is None else args
    kwargs = request.kwargs if kwargs is None else kwargs
    error: Exception = task.MaxRetriesExceededError(
        f"Can't retry {task.name}[{request.id}] args:{arguments.shown(args)} "
        f"kwargs:{arguments.shown(kwargs)}: it has had {request.retries} retries. Raise "
        f"max_retries, or give retry() the exception that shall be raised then (exc=...).",
        task_args=args,
        task_kwargs=kwargs,
    )
    return error


def raise_here(error: BaseException) -> NoReturn:
    """Raise `error`, because of the exception that is being handled if there is one."""
    current = sys.exc_info()[1]
    if current is None or current is error:
        raise error
    raise error from current
