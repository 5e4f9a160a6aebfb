"""The base of all tasks: their options, and what one can do with them.

    @task(max_retries=5)          class add(Base):           one class for each task: its options
    def add(x, y): ...      ─▶        max_retries = 5        are class attributes, `run` is the
                                      run = add              function; one instance, which the
                                                             decorator returns

A task can be asked to run in three ways, which differ in what the body sees:

    add(1, 2)            here; no request, no handlers, errors are raised
    add.apply((1, 2))    here, with request, handlers and retries; gives an EagerResult
    add.delay(1, 2)      in a worker; gives an AsyncResult

A task travels by value: base class, function, options, and whatever was set on the instance. In a
worker the base's `__init__` runs once, just before the task is first used there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from types import CoroutineType
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from nbtasks import config, context
from nbtasks.client import arguments
from nbtasks.client.shape import (
    models_of,
    name_of,
    restore_instance,
    restore_task,
    unborn_instance,
    unborn_task,
)
from nbtasks.context import Request
from nbtasks.core import states
from nbtasks.core.retry import backoff, exception_classes, parse_rate
from nbtasks.exceptions import (
    MaxRetriesExceededError,
    OperationalError,
    Retry,
)

if TYPE_CHECKING:
    import inspect
    from datetime import datetime

    from nbtasks.client.calls import Prepared
    from nbtasks.client.eager_result import EagerResult
    from nbtasks.client.result import AsyncResult
    from nbtasks.core.messages import Policy

Function = TypeVar("Function", bound=Callable[..., Any])

#: What a task keeps for itself and never ships.
_TRANSIENT: Final = frozenset({"_prepared", "_check", "_given", "_asleep", "_anew", "_handlers"})
#: What is worked out from the options, and no more holds when one of them is set.
_WORKED_OUT: Final = ("_prepared", "_handlers")

#: Celery's methods that make signatures.
_CANVAS: Final = frozenset(
    {
        *("s", "si", "signature", "subtask", "map", "starmap", "chunks", "replace"),
        *("add_to_chord", "signature_from_request", "subtask_from_request"),
    }
)

_MISSING: Final = object()


def does_nothing(method: Function) -> Function:
    """Mark a method that is there to be overridden, so that it need not be called."""
    method.does_nothing = True  # type: ignore[attr-defined]
    return method


def runs_run(method: Function) -> Function:
    """Mark the `__call__` that only calls `run`, so that workers may do that themselves."""
    method.runs_run = True  # type: ignore[attr-defined]
    return method


class _Setting:
    """The default of an option that a setting decides."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return None if instance is None else getattr(config.settings(), self.name)


class _Signature:
    """What callers give to a task; IPython shows it on shift-tab."""

    def __get__(self, instance: Task | None, owner: type | None = None) -> Any:
        # None on the class: there inspect shall look at __init__, as usual.
        return None if instance is None else instance._signature()


class Task:
    """Base of all tasks; derive from it to have handlers or options for several tasks.

    Options are class attributes, or keywords of `@task`. What a call names wins over the
    decorator, the decorator over the base class, the base class over the settings.

    Attributes
    ----------
    name
        By default `module.function`, with the outer function's name in between for a nested one;
        just the function's name in a notebook or script.
    typing
        Whether a call's arguments are checked against the signature when it is made.
    serializer, compression
        Of the arguments: pickle, json, msgpack, yaml, raw, or one that was registered.
    result_serializer, result_compression
        Of the value; exceptions always travel as themselves.
    max_retries
        How often a failed run may be repeated; None: for ever.
    default_retry_delay
        Seconds before a retry that names no time.
    autoretry_for, dont_autoretry_for
        Classes of exceptions upon which the task is retried by itself, and exceptions from that.
    retry_kwargs
        Keywords of that retry, such as `{"max_retries": 5, "countdown": 2}`.
    retry_backoff, retry_backoff_max, retry_jitter
        Whether waits double (or the first wait, seconds), their ceiling (seconds), and whether each
        is drawn at random from 0 up to that.
    throws
        Classes of exceptions that are expected: they are logged without a traceback.
    ignore_result, store_errors_even_if_ignored
        Whether nothing is kept of the outcome; whether failures are all the same.
    track_started
        Whether the state STARTED is reported.
    time_limit, soft_time_limit
        Seconds after which a run is killed, and after which it gets SoftTimeLimitExceeded. Handlers
        that run after it have the first one anew.
    acks_late, acks_on_failure_or_timeout, acks_on_failure, acks_on_timeout
        Whether a run whose process died is repeated, and whether failed and killed ones are not.
    reject_on_worker_lost, retry_on_worker_lost
        Whether with `acks_late` a lost process puts the task back (yes, unless this is False), at
        most twice; whether it counts as a retry, so that `max_retries` is the bound.
    rate_limit
        Starts per second, or text such as `"10/m"`.
    expires
        Default latest start: seconds from sending, or a datetime.
    priority
        0 to 9, 9 first; None: that of the task that sends it, or 5.
    queue
        Name of the queue.
    trail
        Whether the tasks that this one sends are recorded as its children.
    resultrepr_maxsize
        Letters of the result's text in logs (logger `nbtasks.runs`).
    memory_limit
        Bytes, or text such as `"300MB"`: a run whose process grows by more is killed and ends in
        MemoryLimitExceeded. What the worker held before, and processes that it starts, do not
        count.
    pydantic, pydantic_strict, pydantic_context, pydantic_dump_kwargs
        Whether arguments annotated with models are validated, and how.

    Examples
    --------
    >>> from nbtasks import Task, task
    >>> class Loud(Task):
    ...     def on_failure(self, exc, task_id, args, kwargs, einfo):
    ...         print(f"{task_id} failed: {exc!r}")
    >>> @task(base=Loud)
    ... def divide(x, y):
    ...     return x / y
    >>> divide.apply((1, 0), task_id="4711").state
    4711 failed: ZeroDivisionError('division by zero')
    'FAILURE'
    """

    name: Any = None
    typing: Any = True
    serializer: Any = _Setting("task_serializer")
    compression: Any = _Setting("task_compression")
    result_serializer: Any = _Setting("result_serializer")
    result_compression: Any = _Setting("result_compression")
    max_retries: Any = 3
    default_retry_delay: Any = 180
    autoretry_for: Any = ()
    dont_autoretry_for: Any = ()
    retry_kwargs: Any = {}  # noqa: RUF012 (never changed)
    retry_backoff: Any = False
    retry_backoff_max: Any = 600
    retry_jitter: Any = True
    throws: Any = ()
    ignore_result: Any = _Setting("task_ignore_result")
    store_errors_even_if_ignored: Any = _Setting("task_store_errors_even_if_ignored")
    track_started: Any = _Setting("task_track_started")
    time_limit: Any = _Setting("task_time_limit")
    soft_time_limit: Any = _Setting("task_soft_time_limit")
    acks_late: Any = _Setting("task_acks_late")
    acks_on_failure_or_timeout: Any = _Setting("task_acks_on_failure_or_timeout")
    #: None: as `acks_on_failure_or_timeout` says.
    acks_on_failure: Any = None
    acks_on_timeout: Any = None
    reject_on_worker_lost: Any = _Setting("task_reject_on_worker_lost")
    retry_on_worker_lost: Any = False
    rate_limit: Any = _Setting("task_default_rate_limit")
    expires: Any = None
    priority: Any = None
    queue: Any = None
    routing_key: Any = None
    exchange: Any = None
    trail: Any = True
    send_events: Any = True
    resultrepr_maxsize: Any = 1024
    memory_limit: Any = _Setting("task_memory_limit")
    pydantic: Any = False
    pydantic_strict: Any = False
    pydantic_context: Any = None
    pydantic_dump_kwargs: Any = None
    backend: Any = None
    app: Any = None
    Request: Any = None
    Strategy: Any = None

    #: What is raised when there are no retries left, and no broker.
    MaxRetriesExceededError: ClassVar[Any] = MaxRetriesExceededError
    OperationalError: ClassVar[Any] = OperationalError

    __signature__ = _Signature()

    #: Base class, function and options of a task that a decorator made.
    _made: ClassVar[tuple[type[Task], Callable[..., Any], dict[str, Any]] | None] = None
    #: What calls have in common; None: to be worked out.
    _prepared: Any = None

    # ------------------------------------------------------------------------------- the body

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Do the work; a class of tasks must define it."""
        raise NotImplementedError(
            f"The task {self.name or type(self).__name__} has no body. Define a method "
            f"run(self, ...) in its class."
        )

    @runs_run
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the body here and now, as a plain function."""
        frame = context.top()
        if frame is not None and frame.task is self:
            request = frame.request
            if not (request.called_directly or request._protected):
                # An overridden __call__ comes here from within a run that is prepared already.
                request._protected = True
                return self.run(*args, **kwargs)
        if "_asleep" in self.__dict__:
            self._wake()
        request = Request(args=args, kwargs=kwargs)
        context.push(self, request)
        try:
            value = self.run(*args, **kwargs)
        finally:
            context.pop()
        if not isinstance(value, CoroutineType):
            return value
        coroutine: Any = _directly(self, request, value)
        coroutine.__qualname__ = value.__qualname__  # told when nobody awaits it
        return coroutine

    @property
    def request(self) -> Request:
        """What the present run knows of itself; in a direct call only defaults."""
        return context.request_of(self) or Request()

    # ----------------------------------------------------------------------------- the handlers

    @does_nothing
    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Run before the body; what it raises is the task's error, and the body is not run."""

    @does_nothing
    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Run after the task has succeeded."""

    @does_nothing
    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Run after a run that will be retried."""

    @does_nothing
    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Run after the task has failed."""

    @does_nothing
    def after_return(
        self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any
    ) -> None:
        """Run last, after success or failure."""

    @does_nothing
    def shadow_name(self, args: Any, kwargs: Any, options: Any) -> str | None:
        """Return the name to show for a call instead of the task's, or None."""
        return None

    # ------------------------------------------------------------------------------- calling it

    def delay(self, /, *args: Any, **kwargs: Any) -> AsyncResult:
        """Run the task in a worker: `apply_async(args, kwargs)` as one would call the function.

        Returns
        -------
        AsyncResult
            At once; its `get()` waits for the value.

        Examples
        --------
        >>> result = add.delay(1, 2)                                          # doctest: +SKIP
        >>> result.get()                                                      # doctest: +SKIP
        3
        """
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Any,
    ) -> AsyncResult:
        """Run the task in a worker.

        Parameters
        ----------
        args, kwargs
            Positional arguments (tuple or list), and those by name (dict).
        task_id
            Id of the task; made by default. An id that is known already starts nothing new.
        countdown
            Earliest start, seconds from now.
        eta
            Earliest start, a datetime (without a zone: UTC) or ISO text. `countdown` wins over it.
        expires
            Latest start, seconds from now or a datetime; later the task ends REVOKED.
        priority
            0 to 9; 9 runs first, 5 is the default.
        queue
            Name of the queue.
        time_limit, soft_time_limit
            Seconds after which the run is killed, and after which it is asked to end.
        memory_limit
            Memory that the run may take: bytes, or text such as `"300MB"`.
        ignore_result
            Whether nothing is kept of the outcome.
        serializer, compression
            Of the arguments.
        headers
            Dict that the task finds in `self.request.headers`.
        shadow, argsrepr, kwargsrepr
            Texts to show instead of name and arguments.
        retry, retry_policy
            Whether, and how, to try again while there is no broker.
        confirm
            Whether to wait until the broker has stored the call.
        idempotency_key
            Text; calls of this task with the same key are one call.
        add_to_parent
            Whether a task that is running here gets the new one as its child.
        producer, link, link_error, **options
            As in Celery. `link` and `link_error` cannot be had yet; options about exchanges and
            connections change nothing.

        Returns
        -------
        AsyncResult
            At once.

        Raises
        ------
        TypeError
            When the arguments do not fit the task, or an option is unknown.
        ValueError
            When an option's value cannot be used.
        EncodeError
            When an argument cannot be sent; nothing is sent then.
        OperationalError
            When there is no broker.

        Examples
        --------
        >>> add.apply_async((1, 2), countdown=10, expires=60)                 # doctest: +SKIP
        <AsyncResult: 7ad6...>
        """
        if type(args) is not tuple:
            args = as_args(args, kwargs)
        if type(kwargs) is not dict:
            kwargs = as_kwargs(kwargs)
        prepared = self._prepared
        settings = config.settings()
        if (
            prepared is None
            or prepared.settings is not settings
            or (prepared.saying and not prepared.holds())
        ):
            prepared = self._prepare(settings)
        if prepared.check is not None:
            prepared.check(*args, **kwargs)
        if task_id is not None:
            options["task_id"] = task_id
        if shadow is not None:
            options["shadow"] = shadow
        if link or link_error:
            options.update(link=link, link_error=link_error)
        if settings.task_always_eager:
            from nbtasks.client import eager

            throw = settings.task_eager_propagates
            return eager.apply_instead(self, args, kwargs, options, throw)
        return send(self, prepared, args, kwargs, options)

    def apply(
        self,
        args: Any = None,
        kwargs: Any = None,
        link: Any = None,
        link_error: Any = None,
        task_id: str | None = None,
        retries: int | None = None,
        throw: bool | None = None,
        logfile: str | None = None,
        loglevel: int | None = None,
        headers: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> EagerResult:
        """Run the task here and now, with request, handlers and retries, as a worker would.

        Parameters
        ----------
        args, kwargs
            Positional arguments (tuple or list), and those by name (dict).
        throw
            Whether an error is raised here rather than held by the result.
        task_id, retries, headers, link, link_error, logfile, loglevel, **options
            What the run shall see in `self.request`. Nothing waits for `countdown`.

        Returns
        -------
        EagerResult
            It is ready.

        Examples
        --------
        >>> from nbtasks import task
        >>> @task
        ... def add(x, y):
        ...     return x + y
        >>> add.apply((1, 2)).get()
        3
        """
        from nbtasks.client import eager

        given = {
            **options,
            **{"link": link, "link_error": link_error, "task_id": task_id, "retries": retries},
            **{"logfile": logfile, "loglevel": loglevel, "headers": headers},
        }
        if throw is None:
            throw = config.settings().task_eager_propagates
        self._ensure_name()
        return eager.apply(self, as_args(args, kwargs), as_kwargs(kwargs), given, throw)

    def AsyncResult(self, task_id: str, **kwargs: Any) -> AsyncResult:
        """Return the result of a call of this task, by its id."""
        from nbtasks.client.result import AsyncResult

        return AsyncResult(task_id, task_name=self.name, **kwargs)

    # -------------------------------------------------------------------- for bodies and handlers

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: BaseException | type[BaseException] | None = None,
        throw: bool = True,
        eta: datetime | str | None = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Retry:
        """End this run and have the task run once more.

        Parameters
        ----------
        args, kwargs
            New arguments; by default those of this run.
        exc
            Why. It is raised when there are no retries left.
        throw
            Whether this run ends here; otherwise it goes on, beside the retry.
        eta, countdown
            Earliest start: a time, or seconds from now; by default `default_retry_delay`.
        max_retries
            For this decision only; None: the task's.
        **options
            Of `apply_async`, to differ from those of this run.

        Returns
        -------
        Retry
            Only with `throw=False`.

        Raises
        ------
        Retry
            Always, when there are retries left: let it pass.
        MaxRetriesExceededError
            When there are none left and no `exc` was given.
        Reject
            When the new arguments do not fit, or cannot be sent.

        Examples
        --------
        >>> from nbtasks import task
        >>> @task(bind=True, max_retries=5)
        ... def fetch(self, url):
        ...     try:
        ...         return download(url)
        ...     except ConnectionError as error:
        ...         raise self.retry(exc=error, countdown=2)
        """
        from nbtasks.client import retrying

        request = self.request
        if isinstance(exc, type) and issubclass(exc, BaseException):
            exc = exc()
        if exc is not None and not isinstance(exc, BaseException):
            raise TypeError(
                f"retry() got exc={exc!r}, which is no exception: it is what is raised when there "
                f"are no retries left. Give an exception, such as exc=ConnectionError(...)."
            )
        if request.called_directly:
            retrying.raise_here(Retry("Task can be retried", None) if exc is None else exc)
        new = (
            None if args is None else as_args(args),
            None if kwargs is None else as_kwargs(kwargs),
        )
        limit = retrying.limit_of(self, max_retries)
        if limit is not None and request.retries + 1 > limit:
            retrying.raise_here(retrying.exceeded(self, request, *new) if exc is None else exc)
        plan = retrying.plan(self, request, *new, eta, countdown, options)
        wait = self.default_retry_delay if countdown is None else countdown
        if isinstance(wait, timedelta):
            wait = plan.countdown
        when = wait if plan.eta is None else plan.eta
        decided = Retry(exc=exc, when=when, is_eager=request.is_eager)
        if throw:
            decided._plan = plan  # type: ignore[attr-defined]
            request._raised = decided
            raise decided
        decided._sent = True  # type: ignore[attr-defined]
        if request._channel is not None:
            from nbtasks.life import ExceptionInfo

            request._channel.again(plan, exc, ExceptionInfo(decided))
        return decided

    def update_state(
        self,
        task_id: str | None = None,
        state: str | None = None,
        meta: Any = None,
        **kwargs: Any,
    ) -> None:
        """Store a state of your own, such as PROGRESS, at once.

        Parameters
        ----------
        task_id
            Of another task; by default the one that is running.
        state
            Any text; by default PROGRESS.
        meta
            What `result.info` gives while the state holds, such as `{"progress": 50}`. For RETRY,
            FAILURE and REVOKED it must be an exception.

        Raises
        ------
        ValueError
            When nothing is running here, so that there is no id.
        TypeError
            When state and meta do not go together.
        nbtasks.exceptions.TimeoutError
            When the broker does not confirm in time that another task has the state.

        Examples
        --------
        >>> from nbtasks import task
        >>> @task(bind=True)
        ... def train(self, epochs):
        ...     for epoch in range(epochs):
        ...         self.update_state(state="PROGRESS", meta={"progress": 100 * epoch / epochs})
        """
        from nbtasks.client import options

        request = self.request
        state = context.PROGRESS if state is None else options.text_of("state", state)
        if state in states.EXCEPTION_STATES and not isinstance(meta, BaseException):
            raise TypeError(
                f"The state {state} needs an exception as meta, not {type(meta).__name__}: it is "
                f"what get() raises. Give one, or choose another state."
            )
        if task_id is not None and str(task_id) != request.id:
            _update_other(options.text_of("task_id", str(task_id)), state, meta)
        elif request.id is None:
            raise ValueError(
                f"The task {self.name} was called directly, so it has no id and nobody can see "
                f"its state. Guard with `if not self.request.called_directly`, or run it with "
                f"delay() or apply()."
            )
        elif request._channel is not None:
            request._channel.report(state, meta)

    def push_request(self, *args: Any, **fields: Any) -> None:
        """Let `self.request` be what is given, until `pop_request` (for tests of bodies)."""
        context.push(self, Request(*args, **fields))

    def pop_request(self) -> None:
        """End what `push_request` began."""
        context.pop()

    # ------------------------------------------------------------------------------ behind them

    def _function(self) -> tuple[Callable[..., Any], bool]:
        """Return the body, and whether its first parameter is the task."""
        if self._made is None:
            return self.run, False
        _, function, given = self._made
        return function, bool(given.get("bind"))

    def _signature(self) -> inspect.Signature | None:
        return arguments.signature_of(*self._function())

    @property
    def _check(self) -> Callable[..., Any] | None:
        """A function that takes what the task takes; made when first needed."""
        known = self.__dict__.get("_check", _MISSING)
        if known is _MISSING:
            function, bound = self._function()
            name = getattr(function, "__name__", None) or str(self.name)
            known = self.__dict__["_check"] = arguments.make_check(function, name, bound)
        return known  # type: ignore[no-any-return]

    def _prepare(self, settings: config.Settings) -> Prepared:
        from nbtasks.client.calls import Prepared

        self._ensure_name()
        self._validate()
        if self._made is None:  # its class may have another `run` by now
            self.__dict__.pop("_check", None)
        prepared = Prepared(self, settings)
        self.__dict__["_prepared"] = prepared
        return prepared

    def _policy(self) -> Policy:
        """Return what the broker must know; workers ask it of tasks that they find by name."""
        from nbtasks.client.definitions import policy_of

        return policy_of(self)

    def _ensure_name(self) -> None:
        if self.name is None:
            self.name = name_of(type(self))

    def _validate(self) -> None:
        """Raise where an option cannot be meant, when the task is made rather than later."""
        from nbtasks.client import options

        parse_rate(self.rate_limit)
        for option in ("autoretry_for", "dont_autoretry_for", "throws"):
            exception_classes(option, getattr(self, option))
        options.check_retry_kwargs(self.retry_kwargs)
        if self.retry_backoff:
            backoff(0, self.retry_backoff, self.retry_backoff_max, None)
        if self.priority is not None:
            options.priority_of(self.priority)
        for option in ("time_limit", "soft_time_limit"):
            options.limit_of(option, getattr(self, option))
        options.memory_of(self.memory_limit)
        options.retries_of("max_retries", self.max_retries)
        if self.name is not None:
            options.text_of("name", self.name)
        options.seconds("default_retry_delay", self.default_retry_delay)
        if self.pydantic:
            from nbtasks.client.models import check_installed

            check_installed()

    # --------------------------------------------------------------------------- as a Python object

    # Which attributes travel: those that were set on the task from outside. What `__init__` made,
    # what a run left behind and what begins with an underscore (a connection, a cache) belongs to
    # this process: `_given` holds the names that travel, and is absent while `__init__` runs.

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        own = self.__dict__
        for worked_out in _WORKED_OUT:
            own.pop(worked_out, None)
        given = own.get("_given")
        if given is not None and name[:1] != "_" and context.request_of(self) is None:
            given.add(name)

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        own = self.__dict__
        for worked_out in _WORKED_OUT:
            own.pop(worked_out, None)
        own.get("_given", set()).discard(name)

    def __getattr__(self, name: str) -> Any:
        # Only for what is not there.
        if not name.startswith("__") and "_asleep" in self.__dict__:
            self._wake()
            return getattr(self, name)
        if name in _CANVAS:
            raise AttributeError(
                f"Tasks have no {name!r} yet: nbtasks has no signatures, chains, groups and "
                f"chords so far. Use delay() or apply_async(), and get() the results."
            )
        raise AttributeError(f"The task {self.name} has no attribute {name!r}.")

    def __repr__(self) -> str:
        return f"<@task: {self.name}>"

    def __copy__(self) -> Task:
        return self  # there is one of each name in a process

    def __deepcopy__(self, memo: dict[int, Any]) -> Task:
        return self

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The standard library's pickle, of a pool for instance, looks for a function under its
        # name, and finds the task there.
        from nbtasks.wire import pickling

        return pickling.enclosed(self)

    def _by_value_for_nbtasks(self) -> tuple[Any, ...]:
        """Return how our own pickles hold a task.

        In two steps, so that a function may refer to its own task: first an empty task, which the
        function then finds, then what it is made of.
        """
        changes = self._changes()
        if self._made is None:
            anew = bool(self.__dict__.get("_anew"))
            return unborn_instance, (type(self),), (anew, changes), None, None, restore_instance
        base, function, options = self._made
        if self.pydantic:
            # Annotations that are text mean something here only.
            options = {**options, "pydantic_models": models_of(type(self))}
        return unborn_task, (base,), (function, options, changes), None, None, restore_task

    def _changes(self) -> dict[str, Any]:
        """Return what was set on this task, and what the settings here say of its options."""
        own = self.__dict__
        names = [name for name in own.get("_given", own) if name in own and name not in _TRANSIENT]
        changes = {name: own[name] for name in sorted(names)}
        for name in _SETTING_OPTIONS:
            changes.setdefault(name, getattr(self, name))
        if not self.queue and not self.routing_key:
            changes["queue"] = config.settings().task_default_queue
        return changes

    def _wake(self) -> None:
        """Run the base's `__init__`, which this process has not done yet for this task."""
        own = self.__dict__
        changes = own.pop("_asleep", None)
        if changes is None:
            return
        given = own.pop("_given")
        try:
            type(self).__init__(self)
        except BaseException:
            own["_asleep"] = changes
            raise
        finally:
            own["_given"] = given
        own.update(changes)


_SETTING_OPTIONS: Final = tuple(
    name for name, value in vars(Task).items() if isinstance(value, _Setting)
)


# ------------------------------------------------------------------------------------- small parts


def send(
    task: Task,
    prepared: Prepared,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    given: dict[str, Any],
    **more: Any,
) -> AsyncResult:
    """Replace itself, at the first call, by what brings the sockets."""
    from nbtasks.client import calls

    globals()["send"] = calls.send
    return calls.send(task, prepared, args, kwargs, given, **more)


def as_args(args: Any, kwargs: Any = None) -> tuple[Any, ...]:
    if args is None:
        return ()
    if isinstance(args, (tuple, list)):
        return tuple(args)
    given = arguments.shown(args)
    both = given
    if kwargs is not None and not isinstance(kwargs, Mapping):
        both = f"{given}, {arguments.shown(kwargs)}"
    raise TypeError(
        f"The positional arguments of a task must be a tuple or a list, not {given}. Write "
        f"apply_async(({both}{',' if both == given else ''})), or delay({both})."
    )


def as_kwargs(kwargs: Any) -> dict[str, Any]:
    if kwargs is None:
        return {}
    if isinstance(kwargs, Mapping):
        return dict(kwargs)
    raise TypeError(
        f"The second argument of apply_async holds arguments by name, so it must be a dict, not "
        f"{arguments.shown(kwargs)}. Positional ones go into one tuple: apply_async((4, 6)); or "
        f"write delay(4, 6)."
    )


async def _directly(task: Task, request: Request, body: CoroutineType[Any, Any, Any]) -> Any:
    """Await the body of a direct call, which has its request whenever it runs."""
    context.push(task, request)
    try:
        return await body
    finally:
        context.pop()


def _update_other(task_id: str, state: str, meta: Any) -> None:
    from nbtasks.client import client as clients
    from nbtasks.client import waiting
    from nbtasks.core.messages import Update
    from nbtasks.wire import payloads

    client = clients.current()
    record = client.record(task_id)
    client.learn(record, waiting.PATIENCE)
    if record.known is False:
        client.drop((task_id,))
        raise ValueError(
            f"The cluster knows no task {task_id!r}, so there is nothing whose state could be set. "
            f"The id may be mistyped, or the task not sent yet."
        )
    dumps = payloads.dumps_exception if isinstance(meta, BaseException) else payloads.dumps
    body, buffers = dumps(meta)
    client.tell(Update(task_id, state, body, len(buffers)), buffers=buffers)
    # A task tells what becomes of itself by another way: its end may not overtake this.
    client.settle(waiting.PATIENCE)
