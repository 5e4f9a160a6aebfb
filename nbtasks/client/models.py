"""Pydantic models as arguments and results: `@task(pydantic=True)`."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from nbtasks.wire import declared

if typing.TYPE_CHECKING:
    from pydantic import BaseModel

    from nbtasks.client.base import Task


class Validated:
    """A function whose arguments become models before it runs, and whose model becomes plain data.

    Parameters annotated with a model class, or with an optional one, are validated; a returned
    model that is what the return annotation says is dumped. Unions and generics of models are left
    alone.

    Parameters
    ----------
    function
        The body.
    name
        Of the task; validators find it in their context.
    strict
        Whether the models must be met to the letter (pydantic's strict mode).
    context
        For validators; `celery_task_name` is added.
    dump_kwargs
        Of `model_dump`; by default `mode="json"`.
    models
        Name of a parameter (or `return`) → its class, where the annotations cannot be read any
        more: those written as text mean something where the function was defined only.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        strict: bool | None = False,
        context: Mapping[str, Any] | None = None,
        dump_kwargs: Mapping[str, Any] | None = None,
        models: dict[str, type[BaseModel]] | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._strict = strict
        self._context = {**(context or {}), "celery_task_name": name}
        if models is not None:
            self.__dict__["models"] = models
        self._dump_kwargs = dict(dump_kwargs) if dump_kwargs is not None else {"mode": "json"}

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    @functools.cached_property
    def _signature(self) -> inspect.Signature:
        return declared.signature(self._function)

    @functools.cached_property
    def models(self) -> dict[str, type[BaseModel]]:
        """Name of a parameter (or `return`) → the class of model that it must be."""
        found = {}
        for name, annotation in _annotations(self._function).items():
            model = _model_in(annotation)
            if model is not None:
                found[name] = model
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            model = self.models.get(name)
            if model is not None and value is not None:
                bound.arguments[name] = model.model_validate(
                    value, strict=self._strict, context=self._context
                )
        value = self._function(*bound.args, **bound.kwargs)
        if inspect.iscoroutine(value):
            return self._finish(value)
        return self._dump(value)

    async def _finish(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._dump(await coroutine)

    def _dump(self, value: Any) -> Any:
        model = self.models.get("return")
        if model is not None and isinstance(value, model):
            return value.model_dump(**self._dump_kwargs)
        return value


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """Return what the parameters are annotated with, those written as text included."""
    try:
        return typing.get_type_hints(function)
    except Exception:  # one of them names nothing; the others still count
        return declared.annotations_of(function)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model class that an annotation is, or is the optional form of."""
    from pydantic import BaseModel

    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        others = [one for one in typing.get_args(annotation) if one is not types.NoneType]
        if len(others) != 1 or len(typing.get_args(annotation)) != 2:
            return None
        annotation = others[0]
    if isinstance(annotation, type) and typing.get_origin(annotation) is None:
        if issubclass(annotation, BaseModel):
            return annotation
    return None


def check_installed() -> None:
    """Raise when there is no pydantic.

    Raises
    ------
    ImproperlyConfigured
        Then.
    """
    from importlib.util import find_spec

    from nbtasks.exceptions import ImproperlyConfigured

    if find_spec("pydantic") is None:
        raise ImproperlyConfigured(
            "@task(pydantic=True) needs pydantic, which is not installed. Install it with "
            "%pip install 'nbtasks[pydantic]', or leave pydantic=True out."
        )


def must_be_dumped(task: Task, serializer: str) -> bool:
    """Whether a task takes models that a serializer cannot carry: only pickle can."""
    return bool(task.pydantic) and serializer != "pickle"


def dumped(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments with models as plain data, for serializers that cannot carry them."""
    return tuple(map(_plain, args)), {name: _plain(value) for name, value in kwargs.items()}


def _plain(value: Any) -> Any:
    from pydantic import BaseModel

    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value
