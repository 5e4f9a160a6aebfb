"""What code declares of types: annotations, type parameters, aliases; some are evaluated late.

From Python 3.12 on `type Json = int | list[Json]` may name itself, and from 3.14 on an annotation
may name what comes below it, or nothing at all: each is evaluated when somebody asks for it. So a
pickle holds such a thing as the text of a declaration and, apart, what is named in it.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, Final

# ------------------------------------------------------------------------------- annotations

if sys.version_info >= (3, 14):
    import annotationlib
    from annotationlib import Format

    def signature(function: Callable[..., Any], *, follow_wrapped: bool = True) -> Any:
        """Return the signature of a function, whatever its annotations name."""
        return inspect.signature(
            function, follow_wrapped=follow_wrapped, annotation_format=Format.FORWARDREF
        )

    def annotations_of(it: Any) -> dict[str, Any]:
        """Return the annotations of a function; what names nothing stands there as a reference."""
        return annotationlib.get_annotations(it, format=Format.FORWARDREF)

    def with_annotations(function: types.FunctionType) -> types.FunctionType:
        """Return a function that can be asked for its annotations: this, or one that is like it."""
        try:
            function.__annotations__  # noqa: B018
        except Exception:
            like = types.FunctionType(
                *(function.__code__, function.__globals__, function.__name__),
                *(function.__defaults__, function.__closure__, function.__kwdefaults__),
            )
            for name in ("__doc__", "__module__", "__qualname__"):
                setattr(like, name, getattr(function, name))
            like.__dict__.update(function.__dict__)
            like.__annotations__ = annotations_of(function)
            return like
        return function

    def annotations_of_class(cls: type) -> dict[str, Any] | None:
        """Return what a class itself is annotated with; None: with nothing.

        When it is asked itself, it notes the answer, and is no longer as it was.
        """
        known: dict[str, Any] | None = vars(cls).get("__annotations_cache__")
        annotate = vars(cls).get("__annotate_func__")
        if known is not None or annotate is None:
            return known
        try:
            return annotate(Format.VALUE)
        except Exception:
            return annotationlib.call_annotate_function(annotate, Format.FORWARDREF, owner=cls)

    def reduce_reference(reference: Any) -> tuple[Any, ...]:
        """Keep what it says; where it said so (the namespace of its class) stays behind."""
        return typing.ForwardRef, (reference.evaluate(format=Format.STRING),)

else:
    signature = inspect.signature

    def annotations_of(it: Any) -> dict[str, Any]:
        return dict(getattr(it, "__annotations__", {}))


# ----------------------------------------------------------------- type parameters, and aliases

#: Kinds of them → what stands before their names.
PARAMETERS: Final[dict[type, str]] = {
    typing.TypeVar: "",
    typing.TypeVarTuple: "*",
    typing.ParamSpec: "**",
}


def is_declared(it: Any) -> bool:
    """Whether a type parameter is the T of `def f[T]()`, which Python says typing has."""
    return it.__module__ == "typing" and getattr(typing, it.__name__, None) is not it


def _declaration(parameter: Any, named: list[Any]) -> str:
    """Return how a type parameter is declared; what it names is added to a list."""

    def place(value: Any) -> str:
        named.append(value)
        return f"_named[{len(named) - 1}]"

    text: str = PARAMETERS[type(parameter)] + parameter.__name__
    constraints = getattr(parameter, "__constraints__", ())
    bound = getattr(parameter, "__bound__", None)
    if constraints:
        text += f": ({', '.join(map(place, constraints))})"
    elif bound is not None:
        text += f": {place(bound)}"
    if sys.version_info >= (3, 13) and parameter.has_default():
        text += f" = {place(parameter.__default__)}"
    return text


def reduce_alias(alias: Any) -> tuple[Any, ...]:
    named: list[Any] = []
    inside = ", ".join(_declaration(one, named) for one in alias.__type_params__)
    name = f"{alias.__name__}[{inside}]" if inside else alias.__name__
    named.append(alias.__value__)
    return _declared(declare, f"type {name} = _named[-1]", alias.__name__, named)


def reduce_parameter(parameter: Any) -> tuple[Any, ...]:
    named: list[Any] = []
    text = f"type _it[{_declaration(parameter, named)}] = None"
    return _declared(declare_parameter, text, "_it", named)


def _declared(make: Callable[..., Any], text: str, name: str, named: list[Any]) -> tuple[Any, ...]:
    # The list is filled only afterwards, because what is in it may refer to what is made here.
    later: list[Any] = []
    return make, (text, name, later), (later, named), None, None, fill


def declare(text: str, name: str, named: list[Any]) -> Any:
    namespace: dict[str, Any] = {"__name__": "__main__", "_named": named}
    exec(text, namespace)
    return namespace[name]


def declare_parameter(text: str, name: str, named: list[Any]) -> Any:
    return parameter_of(declare(text, name, named), 0)


def parameter_of(alias: Any, place: int) -> Any:
    return alias.__type_params__[place]


def fill(it: Any, state: tuple[list[Any], list[Any]]) -> None:
    later, named = state
    later.extend(named)
