"""One run of a task, from `before_start` to `after_return`: the same in a worker and in `apply()`.

    push request
      wrap ┌ before_start                 an error here is the run's error; no autoretry
           └ body                         __call__ where overridden, else run; coroutines in a loop
      autoretry                           turns a listed exception into a retry
      store(outcome)                      the worker sends it; apply() has nothing to store
      on_success | on_retry | on_failure  only after the outcome is stored
      after_return                        after SUCCESS and FAILURE
    pop request

In a worker the hard limits hold for these handlers, too; they have the time limit anew, as what
they do is not the body's fault.

How the body ends → what the outcome is:

    returns                               SUCCESS
    Retry (self.retry, autoretry)         RETRY, with the plan of the next run
    Ignore                                IGNORED, no handlers
    Reject                                REQUEUE if it asks for that and the task is acks_late,
                                          else FAILURE that holds the Reject; no handlers
    SystemExit                            not an outcome: the process is lost. Raised to the caller
    any other exception                   FAILURE

The task is duck-typed: this module knows nothing of clients, so a worker may import it.
"""

from __future__ import annotations

import logging
import os
import threading
import traceback
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from contextvars import copy_context
from functools import partial, update_wrapper
from numbers import Real
from types import CodeType, CoroutineType, TracebackType
from typing import Any, Final

import msgspec

from nbtasks import context
from nbtasks.context import Request, RetryPlan
from nbtasks.core import states
from nbtasks.core.retry import backoff, exception_classes
from nbtasks.exceptions import (
    EncodeError,
    Ignore,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
    TaskPredicate,
)

log = logging.getLogger("nbtasks.task")

#: How runs ended, for whoever attaches a handler: success and expected exceptions (`throws`) at
#: INFO, other failures at ERROR with their traceback. Nothing propagates from here: the user sees
#: it all in the result, and would see it twice.
runs = logging.getLogger("nbtasks.runs")
runs.propagate = False

#: Not a state that users see: the run is to be repeated.
REQUEUE: Final = "REQUEUE"

#: Handlers that run after the outcome is stored, and the one before.
HANDLERS: Final = frozenset({"on_success", "on_retry", "on_failure", "after_return"})
_BEFORE: Final = "before_start"
_CALL: Final = "__call__"

_PACKAGE: Final = os.path.dirname(os.path.abspath(__file__)) + os.sep
#: Files that stand between a body and whoever runs it; their lines tell the user nothing.
_MACHINERY: Final = frozenset(
    os.path.join(_PACKAGE, *path.split("/"))
    for path in ("life.py", "client/base.py", "client/retrying.py", "client/models.py")
)


# ---------------------------------------------------------------------------------- the outcome


class ExceptionInfo:
    """An exception with its traceback, as handlers get it in `einfo`.

    Parameters
    ----------
    exception
        The exception itself.
    """

    __slots__ = ("_text", "exception", "tb")

    def __init__(self, exception: BaseException) -> None:
        #: The exception itself (Celery has a wrapper here).
        self.exception = exception
        #: The traceback, from the first line of the user's own code.
        self.tb = _without_ours_on_top(exception.__traceback__)
        self._text: str | None = None

    @property
    def type(self) -> type[BaseException]:
        """Class of the exception."""
        return type(self.exception)

    @property
    def traceback(self) -> str:
        """The traceback as text, with the exceptions that led to this one."""
        if self._text is None:
            self._text = format_exception(self.exception, self.tb)
        return self._text

    def __str__(self) -> str:
        return self.traceback

    def __repr__(self) -> str:
        return f"<ExceptionInfo: {self.exception!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # Frames do not travel; their text does.
        return _info_of, (self.exception, self.traceback)


def _info_of(exception: BaseException, text: str) -> ExceptionInfo:
    info = ExceptionInfo(exception)
    info._text = text
    return info


class Outcome(msgspec.Struct, eq=False):
    """How a run ended."""

    #: SUCCESS, FAILURE, RETRY, IGNORED, REVOKED or REQUEUE.
    state: str
    #: Return value; the exception of a FAILURE; the one given to `retry`, or None, for RETRY.
    value: Any = None
    #: Set for FAILURE and RETRY; in the latter its exception is the `Retry`.
    einfo: ExceptionInfo | None = None
    #: For RETRY: how to run next.
    plan: RetryPlan | None = None
    #: Seconds that `before_start` and the body took.
    runtime: float = 0.0

    def fail(self, error: BaseException) -> None:
        """Become a FAILURE after all: the value cannot be told to anybody."""
        self.state = states.FAILURE
        self.value = error
        self.einfo = ExceptionInfo(error)
        self.plan = None

    def __repr__(self) -> str:
        return f"<Outcome: {self.state} {self.value!r}>"


# ---------------------------------------------------------------------------------------- a run


def run(
    task: Any,
    request: Request,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    store: Callable[[Outcome], object],
    clock: Callable[[], float],
    wrap: Callable[[Callable[[], Any]], Any] | None = None,
) -> Outcome:
    """Run a task once and return how it ended.

    Parameters
    ----------
    task, request
        The task, and what the run shall see as `self.request`.
    args, kwargs
        Arguments of the body.
    store
        Called once with the outcome, before the handlers. An `EncodeError` that it raises turns
        the outcome into a FAILURE, with which it is then called again.
    clock
        Seconds on any clock.
    wrap
        Given a function without arguments, `before_start` and the body, call it and return what
        it returns: the place for time limits.

    Raises
    ------
    SystemExit
        When the body raised it: the process is meant to end.
    """
    context.push(task, request)
    try:
        outcome = _attempt(task, request, args, kwargs, clock, wrap)
        try:
            store(outcome)
        except EncodeError as error:
            outcome.fail(error)
            store(outcome)
        if runs.handlers and not request.is_eager:
            _log(task, request, outcome)
        if _own_methods(task):
            _tell_handlers(task, request, outcome, args, kwargs)
        return outcome
    finally:
        context.pop()


def has_handlers(task: Any) -> bool:
    """Return whether the task has handlers that must not run before the outcome is stored."""
    return not HANDLERS.isdisjoint(_own_methods(task))


def hears_of_failure(task: Any) -> bool:
    """Return whether the task has a handler for runs that failed."""
    handlers = (getattr(task, name, None) for name in ("on_failure", "after_return"))
    return any(handler and not hasattr(handler, "does_nothing") for handler in handlers)


def bereave(
    task: Any,
    request: Request,
    error: BaseException,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Run the handlers of a run whose process was killed, in another process."""
    context.push(task, request)
    try:
        outcome = Outcome(states.FAILURE, error, ExceptionInfo(error))
        if "_asleep" in task.__dict__:
            with suppress(Exception):  # it is tried again when a handler needs what __init__ makes
                task._wake()
        _tell_handlers(task, request, outcome, args, kwargs)
    finally:
        context.pop()


def _own_methods(task: Any) -> frozenset[str]:
    """Return which methods around the body are the task's own; worked out once for each task."""
    known: frozenset[str] | None = task.__dict__.get("_handlers")
    if known is None:
        # Task's own handlers, which do nothing, carry the mark `does_nothing`.
        names = (*HANDLERS, _BEFORE)
        own = {name for name in names if not hasattr(getattr(task, name), "does_nothing")}
        if not hasattr(type(task).__call__, "runs_run"):
            own.add(_CALL)
        known = task.__dict__["_handlers"] = frozenset(own)
    return known


def _attempt(
    task: Any,
    request: Request,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    clock: Callable[[], float],
    wrap: Callable[[Callable[[], Any]], Any] | None,
) -> Outcome:
    began = clock()
    try:
        if wrap is None:
            value = _body(task, request, args, kwargs)
        else:
            value = wrap(partial(_body, task, request, args, kwargs))
    except SystemExit:
        raise
    except BaseException as error:
        if request.is_eager and isinstance(error, KeyboardInterrupt):
            raise  # the user's own, here and now
        runtime = clock() - began
        outcome = _judge(task, request, error)
        outcome.runtime = runtime
    else:
        outcome = Outcome(states.SUCCESS, value, None, None, clock() - began)
    if request._raised is not None:
        _heed_swallowed(request, outcome)
    return outcome


def _heed_swallowed(request: Request, outcome: Outcome) -> None:
    """Retry beside a run that has swallowed its Retry: who asks for one gets it."""
    swallowed: Any = request._raised
    if swallowed._plan is not outcome.plan and request._channel is not None:
        request._channel.again(swallowed._plan, swallowed.exc, ExceptionInfo(swallowed))


def _body(task: Any, request: Request, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run `before_start` and the body."""
    if "_asleep" in task.__dict__:
        task._wake()  # the base's __init__, which has not run in this process yet
    own = _own_methods(task)  # __init__ may have set some
    if _BEFORE in own:
        finish(task.before_start(request.id, args, kwargs))
    if _CALL in own:
        return _call_own(task, request, args, kwargs)
    request._begun = request._protected = True
    return finish(task.run(*args, **kwargs))


def _call_own(task: Any, request: Request, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the `__call__` of the task's own; autoretry stands around `run`, so it sees the Retry.

    It calls super().__call__, which sees that the run has been prepared already.
    """
    if not task.autoretry_for:
        return finish(task(*args, **kwargs))
    own = task.__dict__
    with _watching:
        watched = own.get("run")
        if not isinstance(watched, _Watched):
            watched = own["run"] = _Watched(task)
        watched.runs += 1
    try:
        return finish(task(*args, **kwargs))
    finally:
        with _watching:
            watched.runs -= 1
            if not watched.runs and own.get("run") is watched:
                del own["run"]
                own.update(watched.former)


#: Held where `run` of a task is replaced, or put back: threads may have eager runs of one task.
_watching: Final = threading.Lock()


class _Watched:
    """The `run` of a task, and autoretry around it, as long as there are runs that need it."""

    def __init__(self, task: Any) -> None:
        update_wrapper(self, task.run)
        #: What was set on the task itself.
        self.former = {name: it for name, it in task.__dict__.items() if name == "run"}
        self.runs = 0
        self._task = task
        self._run = task.run

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        frame = context.top()
        if frame is None or frame.task is not self._task or frame.request.called_directly:
            return self._run(*args, **kwargs)
        try:
            value = self._run(*args, **kwargs)
        except BaseException as error:
            raise _consider_autoretry(self._task, frame.request, error)  # noqa: B904 (or the same)
        return self._watch(frame.request, value) if isinstance(value, CoroutineType) else value

    async def _watch(self, request: Request, value: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await value
        except BaseException as error:
            raise _consider_autoretry(self._task, request, error)  # noqa: B904 (or the same)


def _judge(task: Any, request: Request, error: BaseException) -> Outcome:
    """Return the outcome that an exception means. Called while it is being handled."""
    if request._begun:
        error = _consider_autoretry(task, request, error)
    if isinstance(error, Retry):
        return _judge_retry(task, error)
    if isinstance(error, Ignore):
        return Outcome(states.IGNORED)
    if isinstance(error, Reject) and error.requeue and task.acks_late and not request.is_eager:
        return Outcome(REQUEUE)
    return Outcome(states.FAILURE, error, ExceptionInfo(error))


def _judge_retry(task: Any, error: Retry) -> Outcome:
    if getattr(error, "_sent", False):
        # The Retry that retry(throw=False) returned, raised after all: that retry is on its way.
        return Outcome(states.IGNORED)
    plan = getattr(error, "_plan", None)
    if plan is None:  # not made by retry(): somebody wrote `raise Retry(...)`
        try:
            when = {} if error.when is None else _when(error.when)
            task.retry(exc=error.exc, **when)
        except Retry as decided:
            plan = getattr(decided, "_plan", None)
        except BaseException as decided:
            return Outcome(states.FAILURE, decided, ExceptionInfo(decided))
    return Outcome(states.RETRY, error.exc, ExceptionInfo(error), plan)


def _when(when: Any) -> dict[str, Any]:
    return {"countdown" if isinstance(when, Real) else "eta": when}


def _consider_autoretry(task: Any, request: Request, error: BaseException) -> BaseException:
    """Return how the run really ends: with `error`, or with what `retry` makes of it."""
    # Ignore, Reject and Retry are said on purpose; SystemExit means the process.
    if isinstance(error, (TaskPredicate, SystemExit)):
        return error
    try:
        if not isinstance(error, exception_classes("autoretry_for", task.autoretry_for)):
            return error
        if isinstance(error, exception_classes("dont_autoretry_for", task.dont_autoretry_for)):
            return error
        options = dict(task.retry_kwargs or {})
        if task.retry_backoff:
            from random import randrange

            jitter = randrange if task.retry_jitter else None
            options["countdown"] = backoff(
                request.retries, task.retry_backoff, task.retry_backoff_max, jitter
            )
        task.retry(**{**options, "exc": error, "throw": True})
    except BaseException as decided:  # also where an option that the body has set is none
        return decided
    return error


# ------------------------------------------------------------------------------------- handlers


def _tell_handlers(
    task: Any,
    request: Request,
    outcome: Outcome,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    state, value, einfo = outcome.state, outcome.value, outcome.einfo
    ours = (request.id, args, kwargs)
    if state == states.SUCCESS:
        _tell(task, request, "on_success", value, *ours)
    elif state == states.RETRY:
        _tell(task, request, "on_retry", value, *ours, einfo)
    elif state == states.FAILURE and not isinstance(value, Reject):
        _tell(task, request, "on_failure", value, *ours, einfo)
    else:
        return
    if state != states.RETRY:
        _tell(task, request, "after_return", state, value, *ours, einfo)


def _tell(task: Any, request: Request, name: str, *facts: Any) -> None:
    """Call a handler. What it raises cannot change the outcome, which is stored already."""
    if name not in _own_methods(task):
        return
    try:
        finish(getattr(task, name)(*facts))
    except BaseException:
        if request.is_eager:
            raise
        log.exception(
            "%s of the task %s[%s] failed. Its state and result are stored and stay as they are.",
            name,
            task.name,
            request.id,
        )


def _log(task: Any, request: Request, outcome: Outcome) -> None:
    value = outcome.value
    who = (task.name, request.id)
    if outcome.state == states.SUCCESS:
        if runs.isEnabledFor(logging.INFO):
            text = _text_of(value, task.resultrepr_maxsize)
            runs.info("Task %s[%s] succeeded in %.3f s: %s", *who, outcome.runtime, text)
    elif outcome.state == states.FAILURE:
        if _is_expected(task, value):
            runs.info("Task %s[%s] raised expected: %r", *who, value)
        else:
            runs.error("Task %s[%s] raised unexpected: %r\n%s", *who, value, outcome.einfo)


def _is_expected(task: Any, error: BaseException) -> bool:
    try:
        return isinstance(error, exception_classes("throws", task.throws))
    except TypeError:  # a body has set it to something else
        return False


def _text_of(value: object, most: int) -> str:
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__} whose repr fails with {type(error).__name__}>"
    return text if len(text) <= most else f"{text[: most - 1]}…"


# ----------------------------------------------------------------------------------- coroutines


def finish(value: Any) -> Any:
    """Return `value`, or what comes of it when it is a coroutine."""
    if isinstance(value, CoroutineType):
        return run_coroutine(value)
    return value


def run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in an event loop of its own, and return its value.

    An eager run in a notebook cell finds a loop running in its thread; then a helper thread, with
    a copy of the context, has the loop.
    """
    import asyncio  # many workers never need it, and it takes a while to load

    if asyncio._get_running_loop() is None:
        return _run_in_loop(coroutine)
    here = copy_context()
    ended: list[tuple[Any, BaseException | None]] = []

    def work() -> None:
        try:
            ended.append((here.run(_run_in_loop, coroutine), None))
        except BaseException as error:
            ended.append((None, error))

    helper = threading.Thread(target=work, name="nbtasks-eager", daemon=True)
    helper.start()
    helper.join()
    value, error = ended[0]
    if error is not None:
        raise error
    return value


def _run_in_loop(coroutine: Coroutine[Any, Any, Any]) -> Any:
    import asyncio

    steered = _Steered(coroutine)
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        future = loop.create_task(steered)
        while True:
            try:
                return loop.run_until_complete(future)
            except SoftTimeLimitExceeded as limit:
                if future.done():
                    raise
                # It hit the loop, asleep between two steps of the body: hand it to the body.
                steered.divert(limit)
                future.cancel()


class _Steered(Coroutine[Any, Any, Any]):
    """A coroutine to which one exception can be thrown where it waits."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self._instead: BaseException | None = None

    def divert(self, error: BaseException) -> None:
        """Let the next cancellation arrive as `error`."""
        self._instead = error

    def send(self, value: Any) -> Any:
        return self._coroutine.send(value)

    def throw(self, error: Any, *rest: Any) -> Any:
        from asyncio import CancelledError

        if self._instead is not None and isinstance(error, CancelledError):
            error, self._instead = self._instead, None
        return self._coroutine.throw(error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._coroutine.__await__()

    @property
    def cr_code(self) -> CodeType | None:
        # What asyncio shows of a task in its own messages.
        return getattr(self._coroutine, "cr_code", None)


# ----------------------------------------------------------------------------------- tracebacks


def format_exception(error: BaseException, tb: TracebackType | None) -> str:
    """Return the text of a traceback without the lines that stand between worker and body.

    It never fails: an exception whose texts cannot be had is shown by its class.
    """
    try:
        shown = traceback.TracebackException(type(error), error, tb, compact=True)
        _drop_machinery(shown, set())
        return "".join(shown.format())
    except Exception as failure:
        kind = type(error)
        return (
            f"{kind.__module__}.{kind.__qualname__} (its traceback cannot be shown: "
            f"{type(failure).__name__})\n"
        )


def _drop_machinery(shown: traceback.TracebackException, seen: set[int]) -> None:
    if id(shown) in seen:
        return
    seen.add(id(shown))
    frames = [frame for frame in shown.stack if frame.filename not in _MACHINERY]
    while frames and frames[0].filename.startswith(_PACKAGE):
        del frames[0]
    shown.stack[:] = frames
    further = [shown.__cause__, shown.__context__, *(getattr(shown, "exceptions", None) or ())]
    for other in further:
        if other is not None:
            _drop_machinery(other, seen)


def _without_ours_on_top(tb: TracebackType | None) -> TracebackType | None:
    while tb is not None and tb.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        tb = tb.tb_next
    return tb
