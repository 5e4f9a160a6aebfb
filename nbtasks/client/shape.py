"""What the class of one task is made of, and how a task travels to a worker.

A task travels in two steps, so that a function may refer to its own task: first an empty task,
which the function then finds; then function, options and whatever was set on the instance. The
base's `__init__` is not run at once, for the base may be on its way itself: it runs when the task
is first used (`Task._wake`).
"""

from __future__ import annotations

import abc
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbtasks.client.base import Task


def name_of(made_of: Any) -> str:
    """Return the name of a task that is made of this function or class.

    `module.function`; `module.outer.function` for a nested one. What a notebook or script defines
    has no module that anybody could import, so there the name is just `function`. A partial is
    called as what it is a part of.
    """
    while isinstance(made_of, partial):
        made_of = made_of.func
    qualname = getattr(made_of, "__qualname__", None) or type(made_of).__qualname__
    plain = qualname.replace("<locals>.", "")
    module = getattr(made_of, "__module__", None)
    return plain if module in (None, "__main__") else f"{module}.{plain}"


def fill(made: type[Task], base: type[Task], function: Any, given: dict[str, Any]) -> None:
    """Make a class the class of one task: the options and the body are its attributes."""
    made.__module__ = getattr(function, "__module__", None) or base.__module__
    made.__doc__ = getattr(function, "__doc__", None)
    made._made = (base, function, given)
    for name, value in given.items():
        if name not in ("bind", "pydantic_models"):
            setattr(made, name, value)
    body = function
    if made.pydantic:
        from nbtasks.client.models import Validated

        body = Validated(
            function,
            str(made.name),
            made.pydantic_strict,
            made.pydantic_context,
            made.pydantic_dump_kwargs,
            given.get("pydantic_models"),
        )
    made.run = body if given.get("bind") else staticmethod(body)  # type: ignore[method-assign]
    abc.update_abstractmethods(made)


def users_classes(cls: type[Task]) -> tuple[type, ...]:
    """Return the classes that a class of tasks is made of, without ours and that of one task."""
    theirs = cls.__mro__[1:] if "_made" in vars(cls) else cls.__mro__
    return tuple(base for base in theirs if "_made" not in vars(base) and base is not object)


def models_of(made: type[Task]) -> Any:
    """Return the models that a pydantic task takes and gives, by parameter."""
    run = vars(made).get("run")
    return getattr(run.__func__ if isinstance(run, staticmethod) else run, "models", None)


def looks_of(function: Any) -> dict[str, Any]:
    """Return what makes a task look like the function that it is made of."""
    looks: dict[str, Any] = {"__wrapped__": function}
    for name in ("__name__", "__qualname__", "__doc__", "__module__", "__annotations__"):
        try:
            looks[name] = getattr(function, name)
        except Exception:  # annotations are evaluated here, from Python 3.14 on
            continue
    return looks


# ---------------------------------------------------------------------------------- by value


def unborn_task(base: type[Task]) -> Task:
    made: type[Task] = type("task", (base,), {})
    # A `run` that the base calls abstract is still to come.
    made.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]
    return made.__new__(made)


def restore_task(task: Task, state: tuple[Any, dict[str, Any], dict[str, Any]]) -> None:
    function, given, changes = state
    made = type(task)
    made.__name__ = made.__qualname__ = getattr(function, "__name__", "task")
    fill(made, made.__bases__[0], function, given)
    task.__dict__.update(looks_of(function))
    _restore(task, changes, anew=True)


def unborn_instance(cls: type[Task]) -> Task:
    return cls.__new__(cls)


def restore_instance(task: Task, state: tuple[bool, dict[str, Any]]) -> None:
    anew, changes = state
    if anew:
        task.__dict__["_anew"] = True
    _restore(task, changes, anew)


def _restore(task: Task, changes: dict[str, Any], anew: bool) -> None:
    task.__dict__.update(changes)
    task.__dict__["_given"] = set(changes)
    if anew:
        # Whether there is an __init__ cannot be seen yet: the class may still be on its way.
        task.__dict__["_asleep"] = changes
