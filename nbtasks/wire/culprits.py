"""Which part of a value cannot be turned into bytes, found by trying its parts, step by step.

    arguments → argument 2 ('model') → attribute 'session' → item 3, a _thread.lock

Each step tries the parts of the culprit so far, one by one (long ones by halves), and goes on with
the first that fails. When none fails alone, the culprit is found. It only happens on the way to an
error, so it may take its time, within bounds.
"""

from __future__ import annotations

import inspect
import io
import itertools
import types
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from nbtasks.wire import declared

#: Steps from the value to the culprit at most.
MOST_STEPS: Final = 25
#: Parts of one value that are looked at.
MOST_PARTS: Final = 100_000
#: What to do about a value that is nested too deeply, whatever it is.
FLATTER: Final = "Make it flatter: a list of its parts, say, that name each other by their places."


class Part(NamedTuple):
    """Something inside something."""

    #: How to say where it is; empty when that need not be said.
    label: str
    value: Any


Parts = Callable[[Any], Iterable[Part]]
Works = Callable[[Any], object]


def explain(value: Any, error: BaseException, works: Works, parts: Parts, verb: str = "") -> str:
    """Return a text that names the culprit, says why, and what to do.

    Parameters
    ----------
    value
        What could not be turned into bytes.
    error
        What was raised then.
    works
        Turns a value into bytes, or raises.
    parts
        Says what `value` is made of; further down it is decided by type.
    verb
        Name of the serializer; empty: pickle.
    """
    labels, culprit, reason = _search(value, error, works, parts, of_data if verb else of_object)
    where = " → ".join(labels) or "the value"
    where = where[0].upper() + where[1:]
    kind = _kind(culprit)
    what = f"{where}, {_article(kind)} {kind}, cannot be "
    what += f"written as {verb}: " if verb else "pickled: "
    what += _reason(reason)
    return f"{what} {FLATTER if _is_too_deep(reason) else _advice(culprit, verb)}"


def _search(
    value: Any, error: BaseException, works: Works, first: Parts, further: Parts
) -> tuple[list[str], Any, BaseException]:
    labels: list[str] = []
    seen = {id(value)}
    parts = first
    for _ in range(MOST_STEPS):
        try:
            candidates = list(itertools.islice(parts(value), MOST_PARTS))
        except Exception:
            break
        candidates = [part for part in candidates if id(part.value) not in seen]
        found = _first_that_fails(candidates, works)
        if found is None:
            break
        part, error = found
        seen.add(id(part.value))
        if part.label:
            labels.append(part.label)
        value, parts = part.value, further
    return labels, value, error


def _first_that_fails(parts: list[Part], works: Works) -> tuple[Part, BaseException] | None:
    while len(parts) > 8:
        half = parts[: len(parts) // 2]
        fails = _try(works, [part.value for part in half]) is not None
        parts = half if fails else parts[len(parts) // 2 :]
    for part in parts:
        error = _try(works, part.value)
        if error is not None:
            return part, error
    return None


def _try(works: Works, value: Any) -> BaseException | None:
    try:
        works(value)
    except Exception as error:
        return error
    return None


# ----------------------------------------------------------------------------- what is in what


def arguments(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], function: Callable[..., Any] | None
) -> list[Part]:
    """Return the arguments of a call, with the names of the parameters where they are known."""
    names = _parameters(function)
    found = []
    for place, value in enumerate(args):
        name = f" ({names[place]!r})" if place < len(names) else ""
        found.append(Part(f"argument {place + 1}{name}", value))
    return [*found, *(Part(f"argument {name!r}", value) for name, value in kwargs.items())]


def _parameters(function: Callable[..., Any] | None) -> list[str]:
    if function is None:
        return []
    try:
        parameters = declared.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter.name for parameter in parameters if parameter.kind in positional]


def of_task(task: Any) -> Iterable[Part]:
    """Return what a task is made of."""
    function = getattr(task, "__wrapped__", None) or getattr(task, "run", None)
    if isinstance(function, types.FunctionType):
        yield from _of_function(function)
    for cls in type(task).__mro__:
        if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
            yield Part(f"the class {cls.__name__!r}", cls)
    for name, value in getattr(task, "__dict__", {}).items():
        yield Part(f"attribute {name!r} of the task", value)


def of_data(value: Any) -> Iterable[Part]:
    """Return what a list, tuple or dict holds: all that json and its like look into."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if len(value) > 1 or item is not None:  # else it is this very part
                yield Part(f"key {short_repr(key)}", {key: None})
            yield Part(f"item {short_repr(key)}", item)
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield Part(f"item {place}", item)


def of_object(value: Any) -> Iterable[Part]:
    """Return what any object is made of, as pickle sees it."""
    kind = type(value)
    if isinstance(value, str | bytes | int | float | types.ModuleType):
        return
    if isinstance(value, types.FunctionType):
        yield from _of_function(value)
    elif isinstance(value, types.MethodType):
        yield Part("", value.__func__)
        yield Part("the object whose method it is", value.__self__)
    elif isinstance(value, partial):
        yield Part("the function of the partial", value.func)
        yield from arguments(value.args, value.keywords, None)
    elif isinstance(value, type):
        yield from _of_class(value)
    else:
        yield from of_data(value)
        if isinstance(value, set | frozenset):
            yield from (Part("member", item) for item in value)
        if kind not in (list, tuple, dict, set, frozenset):
            yield from _of_instance(value)


def _of_function(function: types.FunctionType) -> Iterable[Part]:
    name = function.__qualname__.rpartition("<locals>.")[2]
    of = f" of the function {name!r}"
    registry = getattr(function, "registry", None)  # of functools.singledispatch
    if isinstance(registry, types.MappingProxyType):
        for cls, implementation in registry.items():
            yield Part(f"what the function {name!r} does with {cls.__name__}", implementation)
    for word in _global_names(function.__code__):
        if word in function.__globals__:
            yield Part(f"the global {word!r}{of}", function.__globals__[word])
    for word, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield Part(f"the variable {word!r}{of}", cell.cell_contents)
        except ValueError:  # not bound yet
            continue
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for value in defaults:
        yield Part(f"a default value{of}", value)
    for word, value in function.__dict__.items():
        label = "" if word == "__wrapped__" else f"attribute {word!r}{of}"
        yield Part(label, value)


def _global_names(code: types.CodeType) -> Iterable[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _of_class(cls: type) -> Iterable[Part]:
    of = f" of the class {cls.__name__!r}"
    for base in cls.__bases__:
        yield Part(f"the base class {base.__name__!r}{of}", base)
    for name, value in vars(cls).items():
        if isinstance(value, types.GetSetDescriptorType | types.MemberDescriptorType):
            continue
        inner = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
        label = "" if isinstance(inner, types.FunctionType) else f"attribute {name!r}{of}"
        yield Part(label, inner)


def _of_instance(value: Any) -> Iterable[Part]:
    for name, item in getattr(value, "__dict__", {}).items():
        yield Part(f"attribute {name!r}", item)
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name) and name != "__dict__":
                yield Part(f"attribute {name!r}", getattr(value, name))
    yield Part("its class", type(value))


# --------------------------------------------------------------------------------- the sentence


def short_repr(value: Any) -> str:
    """Return at most 60 characters of `repr(value)`; it never fails."""
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kind(value: Any) -> str:
    kind = type(value)
    name = kind.__qualname__.rpartition("<locals>.")[2]
    return name if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{name}"


def _article(noun: str) -> str:
    return "an" if noun[:1].lower() in "aeiou" else "a"


def _reason(error: BaseException) -> str:
    if _is_too_deep(error):
        return "it is nested too deeply."
    text = str(error).strip().rstrip(".") or type(error).__name__
    return f"{text}."


def _is_too_deep(error: BaseException) -> bool:
    return isinstance(error, RecursionError) or "recursion" in str(error)


# Arguments, return values, `meta` and headers come here, so nothing is said of which it is.
def _advice(culprit: Any, verb: str) -> str:
    if verb == "raw":
        return "Send bytes, or use another serializer."
    if verb:
        return "Use serializer='pickle', which takes nearly everything, or pass plain data."
    if isinstance(culprit, types.GeneratorType | types.AsyncGeneratorType):
        return "Give a list of what it yields instead."
    if isinstance(culprit, types.CoroutineType):
        return "Give what its function takes, and await it in the task (async def) instead."
    if isinstance(culprit, io.IOBase):
        return "Give the path, and open the file where it is used."
    if isinstance(culprit, types.FrameType | types.TracebackType):
        return "Give its text instead (traceback.format_exc())."
    return "It means nothing in another process: give what is needed to make it there instead."
