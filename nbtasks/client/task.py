"""Making tasks: the decorators, classes of tasks, and tasks of which only the name is known."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload

from nbtasks import config
from nbtasks.client.base import Task, as_args, as_kwargs, send
from nbtasks.client.shape import fill, looks_of, name_of
from nbtasks.exceptions import AlwaysEagerIgnored, DuplicateTaskNameWarning

if TYPE_CHECKING:
    from nbtasks.client.result import AsyncResult

__all__ = ["Task", "register_task", "send_task", "shared_task", "task", "tasks"]

#: All tasks of this process, by name; a cell that is run again replaces its own.
tasks: dict[str, Task] = {}


@overload
def task(function: Callable[..., Any], /) -> Task: ...
@overload
def task(**options: Any) -> Callable[[Callable[..., Any]], Task]: ...


def task(*args: Any, **options: Any) -> Any:
    """Make a function a task, which can be run in a worker.

    Parameters
    ----------
    function
        The body; an `async def` too.
    name
        By default `module.function`; just `function` in a notebook or script.
    bind
        Whether the body gets the task itself as its first argument (`self`).
    base
        Class to derive the task from; by default `Task`.
    **options
        See `Task`. Those that it does not know become attributes of the task.

    Returns
    -------
    Task
        It is called like the function. `delay` and `apply_async` run it in a worker.

    Raises
    ------
    TypeError, ValueError
        When an option cannot be used.

    Examples
    --------
    >>> @task(bind=True, max_retries=5, colour="red")
    ... def add(self, x, y):
    ...     return x + y
    >>> add(1, 2), add.max_retries, add.colour
    (3, 5, 'red')
    """
    if not args:
        return lambda function: _make(function, options)
    if len(args) > 1 or not callable(args[0]):
        raise TypeError(
            "@task takes the function alone, and options by name. Write @task, or "
            "@task(name=..., bind=True)."
        )
    return _make(args[0], options)


def shared_task(*args: Any, **options: Any) -> Any:
    """Make a function a task: `task` under the name that Celery has for libraries."""
    return task(*args, **options)


def register_task(task: Task | type[Task]) -> Task:
    """Make a class of tasks, or an instance of one, a task that can be called.

    Parameters
    ----------
    task
        A class with a method `run`, which is instantiated here without arguments and once in each
        worker; or an instance, which travels as it is.

    Returns
    -------
    Task
        The instance.

    Examples
    --------
    >>> class Add(Task):
    ...     def run(self, x, y):
    ...         return x + y
    >>> add = register_task(Add)
    >>> add(1, 2)
    3
    """
    if isinstance(task, type) and issubclass(task, Task):
        instance = task()
        instance.__dict__.update(_given=set(), _anew=True)
    elif isinstance(task, Task):
        instance = task
        instance.__dict__.setdefault("_given", set(instance.__dict__))
    else:
        raise TypeError(
            f"register_task got {task!r}, which is no Task. Give a class derived from Task, or an "
            f"instance of one; for a function there is @task."
        )
    instance._ensure_name()
    instance._validate()
    if instance.pydantic and instance._made is None:
        raise TypeError(
            f"The class {type(instance).__name__} says pydantic=True, but only functions have "
            f"their arguments validated. Write the body as a function: "
            f"@task(base={type(instance).__name__})."
        )
    return _register(instance)


def send_task(name: str, args: Any = None, kwargs: Any = None, **options: Any) -> AsyncResult:
    """Run a task of which only the name is known here.

    A worker imports it from the module that the name begins with; where there is no such task, it
    ends FAILURE with `NotRegistered`.

    Parameters
    ----------
    name
        As `task.name` says it, such as `mypackage.reports.add`.
    args, kwargs, **options
        As for `Task.apply_async`; the arguments are not checked.

    Returns
    -------
    AsyncResult
        At once.
    """
    if not isinstance(name, str) or not name:
        raise TypeError(f"send_task got {name!r} instead of a name. Give text: 'module.function'.")
    settings = config.settings()
    if settings.task_always_eager:
        warnings.warn(
            "send_task sends, in spite of task_always_eager: it knows a name and no function.",
            AlwaysEagerIgnored,
            stacklevel=2,
        )
    known = tasks.get(name)
    target = known or Task()
    if known is None:
        target.name = name
    prepared, is_known = target._prepare(settings), known is not None
    return send(target, prepared, as_args(args, kwargs), as_kwargs(kwargs), options, known=is_known)


def _make(function: Callable[..., Any], options: dict[str, Any]) -> Task:
    return _register(make(function, options))


def make(function: Callable[..., Any], options: dict[str, Any]) -> Task:
    """Return a task as `task` makes it, which cannot be found by its name."""
    if not callable(function):
        raise TypeError(f"@task got {function!r}, which cannot be called. Put it above a function.")
    given = dict(options)
    base = given.pop("base", None) or Task
    if not (isinstance(base, type) and issubclass(base, Task)):
        raise TypeError(f"base={base!r} is no class of tasks. Derive it from nbtasks.Task.")
    if not given.get("name"):  # that of the base is for its other children, too
        given["name"] = name_of(function)
    # From Python 3.14 on a partial binds, too, but what it is given first comes first.
    is_partial = isinstance(function, functools.partial)
    if given.get("bind") and (is_partial or not inspect.isroutine(function)):
        raise TypeError(
            f"bind=True needs a function whose first parameter is the task, but {function!r} is "
            f"none. Wrap it in a function: def body(self, ...)."
        )
    made = type(getattr(function, "__name__", "task"), (base,), {})
    fill(made, base, function, given)
    instance: Task = made()
    instance.__dict__.update(looks_of(function), _given=set())
    instance._validate()
    return instance


def _register(task: Task) -> Task:
    former = tasks.get(task.name)
    if former is not None and _origin(former) != _origin(task):
        from nbtasks.client.options import levels_up

        warnings.warn(
            f"The name {task.name!r} stood for the task of {'.'.join(_origin(former))}; now it "
            f"stands for that of {'.'.join(_origin(task))}. Calls that have been sent keep theirs. "
            f"Give one of them another name=.",
            DuplicateTaskNameWarning,
            stacklevel=levels_up(),
        )
    tasks[task.name] = task
    return task


def _origin(task: Task) -> tuple[str, str]:
    function = task.__dict__.get("__wrapped__", type(task))
    qualname = getattr(function, "__qualname__", None) or type(function).__qualname__
    return str(getattr(function, "__module__", None)), qualname
